"""Accuracy and SOPs of LeNet on Fashion-MNIST for each penalty and strength, at several T.

    python -m tests.benchmarks.penalties --output penalties.json

trains one network per penalty and strength on all 60,000 images, exports each and measures it on all 10,000 test
images; then prints, for each penalty, the row of the largest strength that costs at most half a point of DNN accuracy.
Runs that the output file already holds are not repeated.

    python -m tests.benchmarks.penalties --starts

trains LeNet on digits and on 10,000 images of Fashion-MNIST with each penalty as it is without arguments, and with the
expected rate at other strengths.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from pathlib import Path

import torch
from lightning.pytorch import seed_everything

from snnreg_plugins import ActivityRegularization, report, to_snntorch
from snnreg_plugins._files import atomic
from snnreg_plugins.data import Digits, FashionMNIST
from snnreg_plugins.modules import LeNet
from tests.benchmarks.common import fit, head, line

STEPS = (4, 8, 16, 32)
GRID = {
    "none": [0.0],
    "l1": [0.1, 0.3, 0.6, 1.0],
    "hoyer_square": [3e-4, 1e-3],
    "expected_rate": [1.0, 1.4, 1.8, 3.0],
}
NAMES = {
    "none": "none", "l1": "L1", "hoyer_square": "Hoyer-square", "expected_rate": "expected rate by fan-out"
}  # fmt: skip
STARTS = [
    ("none", 0.0),
    *(("expected_rate", strength) for strength in (0.3, None, 3.0, 10.0)),
    *((penalty, None) for penalty in ("l1", "l2", "transformed_l1", "hoyer", "hoyer_square")),
]
POINTS = 0.005  # of DNN accuracy that a penalty may cost


def train(penalty: str, strength: float, epochs: int, seed: int) -> dict:
    """Train, export and measure one network."""
    seed_everything(seed, verbose=False)
    data = FashionMNIST(batch_size=128, validation_size=1)
    weighting = "fan_out" if penalty == "expected_rate" else "uniform"
    callbacks = [ActivityRegularization(penalty, strength, weighting, warmup_epochs=1)] if penalty != "none" else []
    model = fit(LeNet(), data, epochs, *callbacks)
    results = {}
    for per_channel in (False, True):
        calibration = [batch[0] for batch, _ in zip(data.train_dataloader(), range(40), strict=False)]
        # Potentials of a correction would be those for one T.
        how = {"per_channel": per_channel, "correction": "none"}
        network = to_snntorch(model, calibration, timesteps=max(STEPS), **how)
        measured = report(model, network, data.test_dataloader(), steps=STEPS)
        results["channel" if per_channel else "layer"] = measured.to_dict()
    return results


def start(name: str, penalty: str, strength: float | None, seed: int) -> str:
    """Train with a penalty as it is, and give a row: what is left of accuracy and operations."""
    seed_everything(seed, verbose=False)
    digits = name == "digits"
    data = Digits(size=16) if digits else FashionMNIST(batch_size=128, validation_size=50_000)
    model = LeNet((1, 16, 16)) if digits else LeNet()
    callbacks = [ActivityRegularization(penalty, strength)] if penalty != "none" else []
    classifier = fit(model, data, 20 if digits else 4, *callbacks)
    share = float(classifier.trainer.callback_metrics.get("penalty/share", 0.0))
    network = to_snntorch(model, data.train_dataloader(), timesteps=4)
    test = [(x[:1000], y[:1000]) for x, y in data.test_dataloader()][:8]
    measured = report(model, network, test, steps=[4]).to_dict()
    used = callbacks[0].strength if callbacks else 0.0
    return f"{name:13s} {penalty:14s} {used:<6g} {share:6.1%} of the loss  {row(measured)}"


def main() -> None:
    """Run the grid and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("penalties.json"))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--starts", action="store_true", help="penalties as they are without arguments")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    if options.starts:
        for name in ("digits", "Fashion-MNIST"):
            for penalty, strength in STARTS:
                print(start(name, penalty, strength, options.seed), flush=True)
        return
    runs = json.loads(options.output.read_text()) if options.output.exists() else {}
    best: dict[str, tuple[float, dict]] = {}
    for penalty, strengths in GRID.items():
        for strength in strengths:
            key = f"{penalty} {strength:g} epochs={options.epochs} seed={options.seed}"
            if key not in runs:
                runs[key] = train(penalty, strength, options.epochs, options.seed)
                with atomic(options.output) as temporary:
                    temporary.write_text(json.dumps(runs))
            for thresholds, measured in runs[key].items():
                print(key, thresholds, row(measured), file=sys.stderr, flush=True)
            lost = accuracy(best["none"][1]) - accuracy(runs[key]) if best else 0.0
            if lost <= POINTS:
                best[penalty] = strength, runs[key]
    print(f"\nThe largest strength that costs at most {POINTS:.1%} of DNN accuracy, thresholds per channel:\n")
    print(head("penalty", "DNN", *(f"T = {t}" for t in STEPS)))
    for penalty, (strength, measured) in best.items():
        it = measured["channel"]
        cells = (f"{100 * step['accuracy']:.1f} % / {step['sops'] / 1e3:.0f}k" for step in it["steps"])
        named = f"{NAMES[penalty]}, {strength:g}" if strength else NAMES[penalty]
        print(line(named, f"{100 * it['dnn']['accuracy']:.1f} %", *cells))


def accuracy(measured: dict) -> float:
    """Accuracy of the DNN."""
    return measured["layer"]["dnn"]["accuracy"]


def row(measured: dict) -> str:
    """One line: DNN accuracy, and accuracy / SOPs of the SNN at every T."""
    snn = [f"T={s['timesteps']}: {s['accuracy']:.2%} / {s['sops'] / 1e3:.0f}k" for s in measured["steps"]]
    dnn = measured["dnn"]
    return f"DNN {dnn['accuracy']:.2%} ({dnn['effective_macs'] / 1e3:.0f}k MACs)  " + "  ".join(snn)


if __name__ == "__main__":
    main()
