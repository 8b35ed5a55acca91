"""What early exit saves: accuracy, time steps and synaptic operations at several agreements with the class of all T.

    python -m tests.benchmarks.early_exit --cache networks

LeNet, a small VGG and a small residual network, trained on all training images of Fashion-MNIST and kept under --cache.
Margins are found on the first half of the test images, as on training images the network is too sure; accuracy, steps
and SOPs are those of the second half, a column for each agreement.
"""

from __future__ import annotations

import argparse

import torch

from snnreg_plugins import SynapticOperations, TimeSteps, to_snntorch
from snnreg_plugins._text import in_short
from snnreg_plugins.export import exit_margins
from tests.benchmarks import conversion
from tests.benchmarks.common import head, line, settled

AGREEMENTS = (None, 0.999, 0.99, 0.95)
EPOCHS = 2


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--timesteps", type=int, nargs="+", default=[8, 32])
    options = settled(parser)
    data = conversion.load(options.samples)
    half = options.samples // 2
    held_out, tested = data.images[:half].split(100), conversion.Data(data.images[half:], data.labels[half:], [])
    print(head("network", "T", *("all steps" if one is None else f"{100 * one:g} %" for one in AGREEMENTS)))
    for name in conversion.NETWORKS:
        model = conversion.train(name, EPOCHS, 0, options.cache / f"{name}-epochs{EPOCHS}.pt")
        for timesteps in options.timesteps:
            network, cells = to_snntorch(model, data.calibration, timesteps=timesteps), []
            for agreement in AGREEMENTS:
                network.exit_margins = None
                if agreement is not None:
                    network.exit_margins = exit_margins(network, held_out, agreement)
                with torch.no_grad(), TimeSteps(network) as steps, SynapticOperations(network) as sops:
                    correct = sum(int((network(x).argmax(1) == y).sum()) for x, y in tested.batches())
                accuracy, spent = 100 * correct / len(tested.images), in_short(float(sops.compute()))
                cells.append(f"{accuracy:.1f} % / {steps.compute():.1f} / {spent}")
            print(line(name, timesteps, *cells), flush=True)


if __name__ == "__main__":
    main()
