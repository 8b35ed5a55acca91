"""What early exit saves: accuracy, time steps and synaptic operations at several agreements with the class of all T.

    python -m tests.benchmarks.early_exit --cache networks

LeNet and a small VGG, trained on all training images of Fashion-MNIST and kept under --cache. Margins are found on the
first half of the test images, as on training images the network is too sure; accuracy, steps and operations are those
of the second half.
"""

from __future__ import annotations

import argparse

import torch

from snnreg_plugins import SynapticOperations, TimeSteps, to_snntorch
from snnreg_plugins.export import exit_margins
from tests.benchmarks import conversion
from tests.benchmarks.common import settled

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
    print("| network | T | agreement | accuracy | steps | thousand SOPs |\n| --- | --- | --- | --- | --- | --- |")
    for name in conversion.NETWORKS:
        model = conversion.train(name, EPOCHS, 0, options.cache / f"{name}-epochs{EPOCHS}.pt")
        for timesteps in options.timesteps:
            network = to_snntorch(model, data.calibration, timesteps=timesteps)
            for agreement in AGREEMENTS:
                network.exit_margins = None
                if agreement is not None:
                    network.exit_margins = exit_margins(network, held_out, agreement)
                with torch.no_grad(), TimeSteps(network) as steps, SynapticOperations(network) as sops:
                    correct = sum(int((network(x).argmax(1) == y).sum()) for x, y in tested.batches())
                accuracy, thousands = correct / len(tested.images), float(sops.compute()) / 1000
                chosen = "all steps" if agreement is None else f"{agreement:.1%}"
                print(
                    f"| {name} | {timesteps} | {chosen} | {accuracy:.1%} | {steps.compute():.1f} | {thousands:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
