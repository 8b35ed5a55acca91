"""What adaptation, recurrent weights and time constants that differ do: accuracy and operations on time series.

    python -m tests.benchmarks.recurrent --data vowels

Japanese vowels, or digits row by row (--data digits), on one hidden layer of 64 neurons: plain (LIF) or adaptive
(ALIF), with recurrent weights or without, with time constants that begin alike or drawn from a distribution of that
mean; each neuron learns its own. Adam with cosine decay from 0.01; test accuracy after the last epoch, mean and
standard deviation over the seeds, and SOPs per sample. There is no penalty.
"""

from __future__ import annotations

import argparse
import warnings
from itertools import product
from statistics import mean

import torch
from torch.nn import functional as F

from snnreg_plugins import SynapticOperations
from snnreg_plugins._text import in_short
from snnreg_plugins.data import DigitRows, JapaneseVowels
from snnreg_plugins.modules import RecurrentNetwork
from snnreg_plugins.neurons import Drawn
from tests.benchmarks.common import head, line, spread

TAU_M, TAU_ADP = 3.0, 20.0
SPREADS = {
    "time constants alike": (TAU_M, TAU_ADP),
    "normal": (Drawn("normal", TAU_M, 1.5), Drawn("normal", TAU_ADP, 10.0)),
    "gamma": (Drawn("gamma", TAU_M, 1.5), Drawn("gamma", TAU_ADP, 10.0)),
}


def trained(data, seed, epochs, **settings):
    """A network of these settings, trained."""
    torch.manual_seed(seed)
    network = RecurrentNetwork(data.num_features, data.num_classes, hidden=[64], **settings)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    for _ in range(epochs):
        for x, y in data.train_dataloader():
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()
        scheduler.step()
    return network


def measured(network, data):
    """Accuracy in percent, and SOPs per sample, on the test data."""
    correct = samples = 0
    with torch.no_grad(), SynapticOperations(network) as sops:
        for x, y in data.test_dataloader():
            correct, samples = correct + int((network(x).argmax(1) == y).sum()), samples + len(y)
    return 100 * correct / samples, float(sops.compute())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=["vowels", "digits"], default="vowels")
    parser.add_argument("--root", help="folder of the vowels' files, if aeon is not installed")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    vowels = options.data == "vowels"
    data = JapaneseVowels(root=options.root) if vowels else DigitRows()
    print(head("", *SPREADS))
    for recurrent, adaptation in product((False, True), (0.0, 1.0)):
        cells = []
        for tau_m, tau_adp in SPREADS.values():
            settings = dict(recurrent=recurrent, adaptation=adaptation, tau_m=tau_m, tau_adp=tau_adp)
            settings["readout"] = "mean" if vowels else "last"
            found = [measured(trained(data, seed, options.epochs, **settings), data) for seed in range(options.seeds)]
            accuracy, sops = zip(*found, strict=True)
            cells.append(f"{spread(accuracy)} %, {in_short(mean(sops))}")
        print(
            line(f"{'recurrent' if recurrent else 'feed-forward'}, {'ALIF' if adaptation else 'LIF'}", *cells),
            flush=True,
        )


if __name__ == "__main__":
    main()
