"""What progressive tandem learning takes back of what an export loses, beside surrogate gradients, on digits.

    python -m tests.benchmarks.tandem --cache /tmp/trained

A LeNet is trained on the digits at 16 × 16 pixels, and exported at T steps; converted layer by layer
(``ProgressiveTandem``), which takes as many epochs as it takes; and fine-tuned for so many with surrogate gradients
(``SpikingClassifier``). Batch norms are kept in both. Test accuracy in % / thousand SOPs per sample, means over seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import mean
from typing import Any

import torch
from lightning.pytorch import seed_everything
from torch import nn

from snnreg_plugins import ProgressiveTandem, SynapticOperations, to_snntorch
from snnreg_plugins.data import Digits
from snnreg_plugins.modules import Classifier, LeNet, SpikingClassifier
from tests.benchmarks.common import head, kept, line, settled, trained


def adam(rate: float) -> Callable[[Any], torch.optim.Optimizer]:
    """Adam of a learning rate that stays."""
    return lambda parameters: torch.optim.Adam(parameters, lr=rate)


def measured(network: nn.Module, data: Digits) -> tuple[float, float]:
    """Accuracy in percent and thousand SOPs per sample on the test images."""
    data.setup("test")
    x, y = (torch.cat(parts) for parts in zip(*data.test_dataloader(), strict=True))
    with torch.no_grad(), SynapticOperations(network.eval()) as sops:
        accuracy = float((network(x).argmax(1) == y).float().mean())
        return 100 * accuracy, float(sops.compute()) / 1e3


def fresh(options: argparse.Namespace, seed: int) -> nn.Module:
    """The trained DNN."""
    network = LeNet((1, 16, 16))

    def train() -> None:
        seed_everything(seed, verbose=False)
        trained(Classifier(network, adam(2e-3)), Digits(size=16, batch_size=64), options.epochs)

    return kept(network, options.cache / f"digits-lenet-{options.epochs}-{seed}.pt", train)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=15, help="of the DNN")
    parser.add_argument("--at-most", type=int, default=60, help="epochs of the conversion")
    parser.add_argument("--patience", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--timesteps", type=int, nargs="+", default=[1, 2])
    options = settled(parser)
    ways = ["export", f"`ProgressiveTandem`, patience {options.patience}", "`SpikingClassifier`"]
    found: dict[tuple[str, int], list[tuple[float, float]]] = {(way, t): [] for way in ways for t in options.timesteps}
    for seed in range(options.seeds):
        data = Digits(size=16, batch_size=64)
        data.setup("fit")
        seed_everything(seed, verbose=False)
        calibration = torch.cat([x for x, _ in data.train_dataloader()])
        print(f"seed {seed}: DNN {measured(fresh(options, seed), data)[0]:.1f} %", flush=True)
        for t in options.timesteps:
            exported = to_snntorch(fresh(options, seed), calibration, timesteps=t)
            seed_everything(seed, verbose=False)
            tandem = ProgressiveTandem(t, patience=options.patience, batch_norm="keep")
            converted = Classifier(fresh(options, seed), adam(1e-3))
            epochs = trained(converted, data, options.at_most, tandem).current_epoch
            seed_everything(seed, verbose=False)
            tuned = SpikingClassifier(fresh(options, seed), timesteps=t, optimizer=adam(1e-3), batch_norm="keep")
            trained(tuned, data, epochs)
            for way, network in zip(ways, (exported, tandem.network, tuned.export()), strict=True):
                found[way, t].append(measured(network, data))
                print(f"seed {seed}: {way}, T = {t}, {epochs} epochs: {found[way, t][-1]}", flush=True)
    print("\n" + head("", *(f"T = {t}" for t in options.timesteps)))
    for way in ways:
        cells = [tuple(map(mean, zip(*found[way, t], strict=True))) for t in options.timesteps]
        print(line(way, *(f"{accuracy:.1f} % / {sops:.0f}k" for accuracy, sops in cells)))


if __name__ == "__main__":
    main()
