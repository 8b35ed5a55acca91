"""Accuracy and SOPs of networks that are trained as spiking ones to a budget, on Fashion-MNIST.

    python -m tests.benchmarks.finetuning --cache /tmp/trained

trains a DNN (a), exports it at T = 4 (b), fine-tunes exports at T steps without a budget (c) and to shares of what (b)
spends (d); ``--set`` changes ingredients (e). All networks are trained on 55,000 images, budgets are
met by what 5,000 held-out ones spend, and all figures are those of the 10,000 test images. Runs that the folder already
holds are not repeated. ``front.png`` is drawn there, and ``lenet.csv`` and ``vgg.csv`` are results for
``snnreg front``, which draws them together with those of sweeps.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, seed_everything
from torch import nn

from snnreg_plugins import ActivityBudget, Distillation, report, to_snntorch
from snnreg_plugins._files import atomic
from snnreg_plugins.data import FashionMNIST
from snnreg_plugins.modules import VGG, Classifier, LeNet, SpikingClassifier
from snnreg_plugins.sweeps.results import COMPLETE, SNN, rows_of, write_csv
from tests.benchmarks.common import head, kept, line, settled, spread, timed, trained

NETWORKS = {
    "lenet": LeNet,
    "vgg": lambda: VGG(image_shape=(1, 28, 28), widths=(16, "P", 32, "P", 64, "P"), hidden=128, dropout=0.0),
}
#: What a run has unless --set says otherwise: options of a SpikingClassifier; the teacher, a network of NETWORKS,
#: "self" for the DNN that is exported, or "none", and its share of the loss; how the learning rate goes, "one_cycle" or
#: "cosine", and its peak.
INGREDIENTS = {
    "batch_norm": "keep",
    "train_thresholds": "neuron",
    "heterogeneity": "normal",
    "threshold_std": 0.15,
    "per_channel": True,
    "teacher": "self",
    "alpha": 0.5,
    "rate": "one_cycle",
    "peak": 2e-3,
}


def data(options: argparse.Namespace, seed: int) -> FashionMNIST:
    """Give the images."""
    return FashionMNIST(options.root, batch_size=128, validation_size=5000, seed=seed)


def seconds_of(module: Classifier, images: FashionMNIST, epochs: int, *callbacks: Callback) -> float:
    """Train, and give the seconds that it took."""
    return timed(lambda: trained(module, images, epochs, *callbacks, num_sanity_val_steps=0))


def rates(epochs: int, one_cycle_of: int | None = None, peak: float = 2e-3) -> dict[str, Any]:
    """Give Adam with a cosine decay, or one cycle of so many steps an epoch, as arguments of a Classifier."""
    schedulers = torch.optim.lr_scheduler
    return {
        "optimizer": lambda parameters: torch.optim.Adam(parameters, lr=peak),
        "scheduler": partial(schedulers.CosineAnnealingLR, T_max=epochs)
        if one_cycle_of is None
        else partial(schedulers.OneCycleLR, max_lr=peak, total_steps=epochs * one_cycle_of),
        "scheduler_interval": "epoch" if one_cycle_of is None else "step",
    }


def dnn(name: str, options: argparse.Namespace, seed: int) -> nn.Module:
    """Give the trained DNN."""
    network = NETWORKS[name]()

    def train() -> None:
        seed_everything(seed, verbose=False)
        seconds_of(Classifier(network, **rates(options.epochs)), data(options, seed), options.epochs)

    return kept(network, options.cache / f"{name}-{options.epochs}-{seed}.pt", train)


def measured(model: nn.Module | None, network: Any, images: FashionMNIST) -> dict[str, Any]:
    """Give accuracies and SOPs on the test images, and all of it as a row of results."""
    found = report(model, network, images.test_dataloader(), steps=[network.timesteps])
    (step,) = found.steps
    (row,) = rows_of(found, "by channel")
    dnn = 100 * (found.dnn.score if found.dnn else 0)
    return {"accuracy": 100 * step.score, "dnn": dnn, "sops": step.sops, "row": row}


def tuned(name: str, options: argparse.Namespace, seed: int, timesteps: int, sops: float | None) -> dict[str, Any]:
    """Fine-tune, and give what came of it."""
    given: dict[str, Any] = INGREDIENTS | dict(options.set)
    seed_everything(seed, verbose=False)
    images = data(options, seed)
    teacher, alpha, rate, peak = (given.pop(name) for name in ("teacher", "alpha", "rate", "peak"))
    images.setup("fit")
    given |= rates(options.tuning, len(images.train_dataloader()) if rate == "one_cycle" else None, peak)
    module = SpikingClassifier(dnn(name, options, seed), timesteps=timesteps, **given)
    callbacks: list[Callback] = []
    if teacher != "none":
        callbacks.append(Distillation("self" if teacher == "self" else dnn(teacher, options, seed), alpha=alpha))
    budget = None if sops is None else ActivityBudget(sops=sops, timesteps=timesteps)
    if budget is not None:
        callbacks.append(budget)
    seconds = seconds_of(module, images, options.tuning, *callbacks)
    found = {**measured(None, module.export(), images), "budget": sops, "seconds": seconds}
    if budget is not None and budget.kept is not None:
        found |= {"held_out": budget.kept.counts.sops, "epoch": budget.kept.epoch}
    return found


def runs(name: str, options: argparse.Namespace, seed: int) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Give the name of each run, and what does it."""
    images = data(options, seed)
    model = dnn(name, options, seed)
    images.setup("fit")
    calibration = [batch[0] for batch, _ in zip(images.train_dataloader(), range(40), strict=False)]
    exported = measured(model, to_snntorch(model, calibration, timesteps=4, per_channel=True), images)
    exported["row"] |= {"penalty": "exported"}
    yield "exported T=4", lambda: exported
    ending = "".join(f" {option}={value}" for option, value in options.set)
    of_dnn = {column: value for column, value in exported["row"].items() if column.startswith("dnn_")}
    for timesteps, budget in options.plan:
        sops = budget if budget is None or budget > 1 else budget * exported["sops"]
        said = "no budget" if budget is None else f"budget {budget:g}"
        yield (
            f"T={timesteps} {said} epochs={options.tuning}{ending}",
            lambda given=(timesteps, sops), asked=budget: marked(
                tuned(name, options, seed, *given),
                {**of_dnn, "penalty": "fine-tuned", "budget": asked, "epochs": options.tuning, "other": ending[1:]},
            ),
        )


def marked(found: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """Give what a run found with more in its row."""
    return found | {"row": found["row"] | row}


def point(text: str) -> tuple[int, float | None]:
    """Read ``2:0.5``, two steps at half of what the export spends, ``2:90000``, or ``2`` for no budget."""
    steps, _, budget = text.partition(":")
    return int(steps), float(budget) if budget else None


def setting(text: str) -> tuple[str, Any]:
    """Read ``surrogate=triangle``, or ``peak=0.003``."""
    name, _, value = text.partition("=")
    if isinstance(INGREDIENTS.get(name), float) or name.endswith("_std"):
        return name, float(value)
    return name, {"True": True, "False": False}.get(value, value)


def main() -> None:
    """Do the runs, and print a line of the table for each kind of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="folder of Fashion-MNIST")
    parser.add_argument("--network", choices=sorted(NETWORKS), default="lenet")
    parser.add_argument("--epochs", type=int, default=8, help="of DNNs")
    parser.add_argument("--tuning", type=int, default=6, help="epochs of spiking networks")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--plan", type=point, nargs="+", help=point.__doc__,
        default=[(4, None), (2, None), (1, None), (4, 1.0), (2, 0.5), (2, 0.25), (1, 0.25), (1, 0.1)],
    )  # fmt: skip
    parser.add_argument("--set", type=setting, nargs="*", default=[], help="such as batch_norm=fold, teacher=none")
    options = settled(parser)
    path: Path = options.cache / "finetuning.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for seed in options.seeds:
        for run, measure in runs(options.network, options, seed):
            key = f"{options.network} epochs={options.epochs} seed={seed} {run}"
            if key not in found:
                found[key] = measure()
                of_all = {"study": f"finetuning {options.network}", "state": COMPLETE, "trained_as": SNN, "seed": seed}
                found[key]["row"] |= of_all  # also where it is exported alone: its DNN is that of the others
                with atomic(path) as temporary:
                    temporary.write_text(json.dumps(found, indent=1))
                of_network = (
                    run["row"] for key, run in found.items() if key.startswith(options.network) and "row" in run
                )
                write_csv(of_network, options.cache / f"{options.network}.csv")
            print(f"{key:60s} {row(found[key])}", file=sys.stderr, flush=True)
    draw(found, options.cache / "front.png")
    of_kinds: dict[str, list[dict[str, Any]]] = {}
    for key, run in found.items():
        network, dnn_epochs, _, kind = key.split(" ", 3)
        if (network, dnn_epochs) == (options.network, f"epochs={options.epochs}"):
            of_kinds.setdefault(kind, []).append(run)
    print(head("", "seeds", "accuracy / SOPs", "missed by"))
    for kind, them in of_kinds.items():
        if kind.startswith("exported") or f" epochs={options.tuning}" in kind:
            print(line(*summary(kind.replace(f" epochs={options.tuning}", ""), them)))


def summary(kind: str, them: list[dict[str, Any]]) -> Iterator[str]:
    """Write the cells of the runs of a kind, such as ``T=2 budget 0.25``, one a seed."""
    yield kind.replace(" no budget", "").replace(" budget", ", budget").replace("exported ", "exported, ")
    yield str(len(them))
    yield f"{spread([run['accuracy'] for run in them])} % / {spread([run['sops'] / 1e3 for run in them], 0, 'k')}"
    yield ", ".join(f"{100 * (run['sops'] / run['budget'] - 1):+.1f} %" for run in them if run.get("budget"))


def row(run: dict[str, Any]) -> str:
    """Give a line of what a run gave."""
    line = f"{run['accuracy']:6.2f} % {run['sops'] / 1e3:7.1f}k SOPs"
    if run.get("budget"):
        line += f"  budget {run['budget'] / 1e3:.1f}k ({run['sops'] / run['budget'] - 1:+.1%})"
        line += f", held out {run['held_out'] / run['budget'] - 1:+.1%}" if "held_out" in run else ", not met held out"
    return line + (f"  DNN {run['dnn']:.2f} %" if run["dnn"] else "") + (
        f"  {run['seconds']:.0f} s" if "seconds" in run else ""
    )  # fmt: skip


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw accuracy over SOPs, a colour for each number of steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for marker, network in zip("os", sorted(NETWORKS), strict=True):
        for colour, kind in enumerate(("exported T=4", "T=4", "T=2", "T=1")):
            points = [
                (run["sops"] / 1e3, run["accuracy"])
                for key, run in found.items()
                if key.startswith(network) and key.split(" ", 3)[3].startswith(kind)
            ]
            if points:
                axes.scatter(*zip(*points, strict=True), color=f"C{colour}", marker=marker, label=f"{network}, {kind}")
    axes.set(xscale="log", xlabel="SOPs per image, in thousands", ylabel="Test accuracy (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
