"""SOPs that conversions need to come as near to the DNN: SpikingJelly's, sinabs's and ours, on Fashion-MNIST.

    python -m tests.benchmarks.peers --cache trained --fronts docs/experiment/lenet.csv

converts one DNN without a penalty by every recipe of SpikingJelly and sinabs in :mod:`tests.benchmarks.conversion` and
by the defaults of ``to_snntorch``, and counts the SOPs of all by that benchmark's one counter. For each it prints the
fewest SOPs at some distances to the DNN, over all T; and the same of networks that sweeps trained with penalties, to
the DNN without one there, from their results. What the folder already holds is not measured again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from snnreg_plugins._text import in_percent, in_short
from snnreg_plugins.sweeps import find_front, read_results
from tests.benchmarks import conversion, finetuning
from tests.benchmarks.common import head, line, settled

DISTANCES = (0.25, 0.5, 1.0, 1.5)  # points
OURS = {
    "ours": {},
    "ours, per channel": {"per_channel": True},
}
_KINDS = ("SpikingJelly", "sinabs", *OURS)


def methods() -> dict[str, conversion.Method]:
    """Give the peers' ways to convert, and ours by default."""
    peers = {name: method for name, method in conversion.all_methods().items() if not name.startswith("ours ")}
    return {**peers, **{name: conversion.ours(options, False) for name, options in OURS.items()}}


def kind(method: str) -> str:
    """Tell whose a method is."""
    return method if method in OURS else next(name for name in _KINDS if method.startswith(name))


def nearest(found: dict[tuple[str, int], dict[str, float]], whose: str, least: float) -> str:
    """Write the fewest SOPs of one of several methods at an accuracy of at least so much, and T."""
    near = [(run["sops"], T) for (name, T), run in found.items() if kind(name) == whose and run["accuracy"] >= least]
    return f"{in_short(min(near)[0])} (T = {min(near)[1]})" if near else ""


def fronts(paths: list[Path]) -> Iterator[tuple[str, ...]]:
    """Give rows of what the networks in results reached: of the unpenalised ones, and the best of all."""
    for path in paths:
        front = find_front(read_results([path]))
        for name, labels in {"no penalty": [label for label in front.labels if label == "none"],
                             "the best": front.labels}.items():  # fmt: skip
            cells = []
            for distance in DISTANCES:
                points = [point for label in labels if (point := front.cheapest(label, distance)) is not None]
                least = min(points, key=lambda point: point.sops.value, default=None)
                cells.append("" if least is None else f"{in_short(least.sops.value)} (T = {least.timesteps})")
            if labels:
                yield (f"{path.stem}, {name}", *cells)


def main() -> None:
    """Convert, measure, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="folder of Fashion-MNIST")
    parser.add_argument("--network", choices=sorted(finetuning.NETWORKS), default="lenet")
    parser.add_argument("--epochs", type=int, default=8, help="of the DNN")
    parser.add_argument("--samples", type=int, default=2000, help="test images, the first ones")
    parser.add_argument("--timesteps", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument(
        "--fronts", type=Path, nargs="*", default=[], help="results of that network, of sweeps or fine-tuning"
    )
    options = settled(parser)
    data = conversion.load(options.samples)
    model = finetuning.dnn(options.network, options, 0)
    dnn = conversion.dnn(model, data)
    results = conversion.Results(options.cache / "peers.json")
    begin = f"{options.network} {options.epochs} {options.samples}"
    found = {}
    for name, method in methods().items():
        keys = {T: f"{begin} {name} {method.described()} T={T}" for T in sorted(options.timesteps)}
        conversion.fill(results, {T: key for T, key in keys.items() if key not in results.runs}, method, model, data)
        found |= {(name, T): results.runs[key] for T, key in keys.items() if key in results.runs}
    for key, error in results.errors.items():
        print(f"{key}: {error}")
    names = list(dict.fromkeys(name for name, _ in found))
    steps = sorted(options.timesteps)
    told = f"{options.network}, first {options.samples:,} test images; DNN {in_percent(dnn['accuracy'])}"
    print(f"{told}. Accuracy / SOPs per sample\n\n{head('', *(f'T = {T}' for T in steps))}")
    for name in names:
        print(line(name, *(_written(found.get((name, T))) for T in steps)))
    whose = dict.fromkeys(map(kind, names))
    least = [(name, *(nearest(found, name, dnn["accuracy"] - one / 100) for one in DISTANCES)) for name in whose]
    print("\nFewest SOPs per sample at so many points below the DNN\n")
    print(head("", *(f"{one:g}" for one in DISTANCES)))
    for cells in [*least, *fronts(options.fronts)]:
        print(line(*cells))
    print()
    print(", ".join(f"{name} {_version(name)}" for name in ("spikingjelly", "sinabs", "torch")))


def _written(run: dict[str, float] | None) -> str:
    return "" if run is None else f"{100 * run['accuracy']:.2f} % / {in_short(run['sops'])}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
