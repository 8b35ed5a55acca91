"""What spiking networks cost beside their DNNs, by every model of cost, on Fashion-MNIST.

    python -m tests.benchmarks.energy --cache /tmp/trained

trains LeNet and a small VGG, each without a penalty and with the expected rate by fan-out, exports them with thresholds
per channel and prints, for each number of time steps, what the spiking network spends over the dense, the zero-skipping
and the bit-matched DNN by every model of cost, with the sentence that the report begins with. Networks that the folder
already holds are not trained again.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

from lightning.pytorch import seed_everything
from torch import nn

from snnreg_plugins import ActivityRegularization, report, to_snntorch
from snnreg_plugins.data import FashionMNIST
from snnreg_plugins.modules import Classifier
from snnreg_plugins.reports.report import Report
from tests.benchmarks.common import head, kept, line, settled, trained
from tests.benchmarks.finetuning import NETWORKS, rates

# Models of a table's columns: each with the DNN that spends the least by it, and the dense one.
MODELS = {
    "horowitz_fp32": "fp32",
    "horowitz_int8": "int8",
    "lemaire": "memory",
    "bit_matched": "bit-matched",
    "eflops": "EFLOPs",
}
NAMES = {"lenet": "LeNet", "vgg": "VGG"}


def dnn(name: str, strength: float, options: argparse.Namespace) -> nn.Module:
    """Give a trained DNN."""
    network = NETWORKS[name]()
    penalties = [ActivityRegularization("expected_rate", strength=strength, weighting="fan_out")] if strength else []

    def train() -> None:
        seed_everything(0, verbose=False)
        module, part = Classifier(network, **rates(options.epochs)), options.images // 128
        trained(module, data(options), options.epochs, *penalties, limit_train_batches=part, limit_val_batches=0)

    return kept(network, options.cache / f"energy-{name}-{strength:g}-{options.epochs}-{options.images}.pt", train)


def data(options: argparse.Namespace) -> FashionMNIST:
    """Give the images."""
    return FashionMNIST(options.root, batch_size=128, validation_size=5000, seed=0)


def measured(model: nn.Module, timesteps: int, options: argparse.Namespace) -> Report:
    """Export a DNN and measure both on test images."""
    images = data(options)
    images.setup("fit")
    calibration = [batch[0] for batch in islice(images.train_dataloader(), 20)]
    network = to_snntorch(model, calibration, timesteps=timesteps, per_channel=True)
    images.setup("test")
    test = list(islice(images.test_dataloader(), options.test_batches))
    return report(model, network, test, steps=[timesteps])


def ratios(result: Report, name: str) -> str:
    """Write what the network spends over the zero-skipping and the dense DNN, by a model."""
    model = result.model(name)
    spent = model.steps[0].total
    return "/".join(f"{spent / costs[0].total:.2f}" if costs else "–" for costs in (model.sparse, model.dense))


def main() -> None:
    """Print a row for each network, penalty and T, and then the sentences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="folder of Fashion-MNIST")
    parser.add_argument("--networks", nargs="+", choices=sorted(NETWORKS), default=sorted(NETWORKS))
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.0, 5.0])
    parser.add_argument("--timesteps", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--images", type=int, default=30_000, help="of an epoch")
    parser.add_argument("--test-batches", type=int, default=16, help="of 128 images")
    options = settled(parser)
    options.cache = Path(options.cache)
    print(head("network, penalty", "T", "DNN", "SNN", "SOPs", *MODELS.values()))
    sentences = []
    for name in options.networks:
        for strength in options.strengths:
            model = dnn(name, strength, options)
            for timesteps in options.timesteps:
                result = measured(model, timesteps, options)
                step, scored = result.at_timesteps(), result.dnn
                told = f"{NAMES[name]}, {f'expected rate × {strength:g}' if strength else 'none'}"
                scores = [f"{100 * one.score:.1f} %" for one in (scored, step) if one]
                spent = [ratios(result, model) for model in MODELS]
                print(line(told, timesteps, *scores, f"{step.sops / 1e3:.0f}k", *spent), flush=True)
                sentences.append(f"{told}: {' '.join(result.verdict())}")
    print("\n".join(["", *sentences]))


if __name__ == "__main__":
    main()
