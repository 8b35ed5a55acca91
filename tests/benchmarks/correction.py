"""What the correction of initial potentials is worth: conversions by default beside ``correction="none"``.

    python -m tests.benchmarks.correction --cache trained

LeNet, a small VGG and a small residual network are trained for three epochs on 10,000 images of Fashion-MNIST for each
seed, and exported by default for each T, calibrated on 600 images; measured are the first 500 test images. Accuracy
/ SOPs per sample, means over seeds. What the folder already holds is not measured again.
"""

from __future__ import annotations

import argparse

from tests.benchmarks import conversion
from tests.benchmarks.common import head, line, settled

IMAGES, EPOCHS, CALIBRATION, SAMPLES = 10_000, 3, 6, 500
WAYS: dict[str, dict[str, object]] = {
    "none": {"correction": "none"},
    "default": {},
    "per channel, none": {"per_channel": True, "correction": "none"},
    "per channel": {"per_channel": True},
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--timesteps", type=int, nargs="+", default=[1, 2, 4, 8])
    options = settled(parser)
    results = conversion.Results(options.cache / "correction.json")
    data = conversion.load(SAMPLES, CALIBRATION)
    print(head("", "DNN", *(f"T = {t}" for t in options.timesteps)))
    for network in conversion.NETWORKS:
        keys = {(seed, way, t): f"{network} seed={seed} {way} T={t}"
                for seed in options.seeds for way in WAYS for t in options.timesteps}  # fmt: skip
        for seed in options.seeds:
            path = options.cache / f"{network}-epochs{EPOCHS}-images{IMAGES}-seed{seed}.pt"
            model = conversion.train(network, EPOCHS, seed, path, IMAGES)
            if (dnn := f"{network} seed={seed}") not in results.runs:
                results.add({dnn: conversion.dnn(model, data)})
            for way, given in WAYS.items():
                missing = {t: keys[seed, way, t] for t in options.timesteps if keys[seed, way, t] not in results.runs}
                conversion.fill(results, missing, conversion.ours(given, False), model, data)
        accuracy = 100 * results.mean([f"{network} seed={seed}" for seed in options.seeds], "accuracy")
        for way in WAYS:
            cells = []
            for t in options.timesteps:
                of_seeds = [keys[seed, way, t] for seed in options.seeds]
                score, sops = 100 * results.mean(of_seeds, "accuracy"), results.mean(of_seeds, "sops") / 1e3
                cells.append(f"{score:.1f} % / {sops:.0f}k")
            print(line(f"{network}, {way}", f"{accuracy:.1f} %", *cells), flush=True)


if __name__ == "__main__":
    main()
