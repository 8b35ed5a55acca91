"""Accuracy of a LeNet with weights of few bits on Fashion-MNIST: rounded, and trained for one more epoch.

    python -m tests.benchmarks.fewbits --cache /tmp/trained

A DNN is trained on 10,000 images and exported at T = 4 by default, in each format of the weights: rounded without
training; trained as a spiking network (``SpikingClassifier``); and trained as a DNN (``FewBitWeights``) that is
exported then. Accuracy in % on the 10,000 test images, mean and standard deviation over seeds.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from torch import nn

from snnreg_plugins import to_snntorch
from snnreg_plugins.callbacks import FewBitWeights
from snnreg_plugins.data import FashionMNIST
from snnreg_plugins.modules import Classifier, LeNet, SpikingClassifier
from tests.benchmarks.common import fit, head, kept, line, settled, spread, trained

TIMESTEPS = 4
FORMATS: dict[str, dict[str, Any]] = {
    "float": {},
    "int8": {"weights": "int8"},
    "int8, 4 bits": {"weights": "int8", "weight_bits": 4},
    "int8, 3 bits": {"weights": "int8", "weight_bits": 3},
    "int8, 2 bits": {"weights": "int8", "weight_bits": 2},
    "power of two, 4 bits": {"weights": "power_of_two", "weight_bits": 4},
    "power of two, 3 bits": {"weights": "power_of_two", "weight_bits": 3},
}


def rounding(given: dict[str, Any]) -> list[FewBitWeights]:
    """The callback that trains a DNN in a format; none for float."""
    return [FewBitWeights(given["weights"], given.get("weight_bits"))] if given else []


def dnn(options: argparse.Namespace, images: FashionMNIST, seed: int) -> nn.Module:
    """The trained DNN."""
    network = LeNet()

    def train() -> None:
        seed_everything(seed, verbose=False)
        fit(network, images, options.epochs)

    return kept(network, options.cache / f"lenet-{options.images}-{options.epochs}-{seed}.pt", train)


@torch.no_grad()
def accuracy(network: nn.Module, images: FashionMNIST) -> float:
    """Accuracy in percent on the test images."""
    correct = [(network.eval()(x).argmax(1) == y).float().mean() for x, y in images.test_dataloader()]
    return 100 * float(torch.stack(correct).mean())


def row(given: dict[str, Any], seed: int, options: argparse.Namespace) -> list[float]:
    """Give the accuracies of a format: DNN and SNN rounded, SNN trained, SNN of a DNN that is trained."""
    images = FashionMNIST(options.root, batch_size=100, validation_size=60_000 - options.images, seed=seed)
    images.setup("fit")
    images.setup("test")
    calibration = [x for x, _ in images.train_dataloader()][:10]
    adam = partial(torch.optim.Adam, lr=1e-3)
    rounded = dnn(options, images, seed)
    for callback in rounding(given):
        callback.put(rounded)
        callback.leave(rounded)
    snn = to_snntorch(dnn(options, images, seed), calibration, timesteps=TIMESTEPS, **given)
    seed_everything(seed, verbose=False)
    tuned = SpikingClassifier(dnn(options, images, seed), timesteps=TIMESTEPS, optimizer=adam, **given)
    trained(tuned, images, 1, limit_val_batches=0)
    seed_everything(seed, verbose=False)
    longer = Classifier(dnn(options, images, seed), adam)
    trained(longer, images, 1, *rounding(given), limit_val_batches=0)
    of_longer = to_snntorch(longer.network.eval(), calibration, timesteps=TIMESTEPS, **given)
    return [accuracy(network, images) for network in (rounded, snn, tuned.export(), of_longer)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data"))
    parser.add_argument("--images", type=int, default=10_000, help="to train on")
    parser.add_argument("--epochs", type=int, default=8, help="of the DNN")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    options = settled(parser)
    print(head("weights", "DNN, rounded", "SNN, rounded", "SNN, trained", "SNN of a DNN, trained"))
    for name in options.formats:
        of_seeds = zip(*(row(FORMATS[name], seed, options) for seed in options.seeds), strict=True)
        print(line(name, *(f"{spread(of)} %" for of in of_seeds)), flush=True)


if __name__ == "__main__":
    main()
