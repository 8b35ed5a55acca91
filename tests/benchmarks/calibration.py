"""What threshold balancing and SpikingValidation cost, in units of T forward passes of the DNN over the same samples.

    python -m tests.benchmarks.calibration --cache networks

LeNet on Fashion-MNIST, trained and kept under --cache: each way to choose thresholds on the first training images, and
one validation with all metrics. Printed are the median and range of paired runs; the machine's own noise is in them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from snnreg_plugins import to_snntorch
from snnreg_plugins.callbacks.measurement import Measurement
from snnreg_plugins.data import FashionMNIST
from snnreg_plugins.export.trace import trace
from tests.benchmarks import conversion
from tests.benchmarks.common import head, line, median_and_range, settled, timed

METHODS: dict[str, dict[str, object]] = {
    "percentile": {},
    "percentile, by channel": {"per_channel": True},
    "mmse": {"threshold": "mmse"},
    "local": {"threshold": "local"},
    "spike_norm": {"threshold": "spike_norm"},
    'percentile, correction "potential"': {"correction": "potential"},
    'percentile, correction "bias"': {"correction": "bias"},
    "percentile, beta = 0.9": {"beta": 0.9},
    "auto": {"threshold": "auto"},
}
BATCH, EPOCHS = 128, 2


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--timesteps", type=int, nargs="+", default=[4, 32])
    parser.add_argument("--repeats", type=int, default=3)
    options = settled(parser)
    model = conversion.train("lenet", EPOCHS, 0, options.cache / f"lenet-epochs{EPOCHS}.pt")
    batches: list[tuple[Tensor, Tensor]] = []
    for x, y in FashionMNIST(batch_size=BATCH, validation_size=1).train_dataloader():
        batches.append((x, y))
        if len(batches) * BATCH >= options.samples:
            break

    @torch.no_grad()
    def dnn() -> None:
        for x, _ in batches:
            model(x)

    def printed(name: str, timesteps: int, run: Callable[[], object]) -> None:
        ratios = [timed(run) / (timesteps * timed(dnn)) for _ in range(options.repeats)]
        print(line(timesteps, name, median_and_range(ratios)), flush=True)

    print(f"{len(batches) * BATCH} samples\n\n{head('T', '', '/ T × DNN')}")
    dnn()
    for timesteps in options.timesteps:
        for name, method in METHODS.items():
            printed(name, timesteps, lambda t=timesteps, m=method: to_snntorch(model, batches, timesteps=t, **m))
        run = Measurement(trace(model, batches[0][0][:2]), to_snntorch(model, batches[:8], timesteps=timesteps), None)

        def validate(run: Measurement = run) -> None:
            for x, y in batches:
                run.update(x, y)

        validate()
        printed("SpikingValidation", timesteps, validate)
        run.close()


if __name__ == "__main__":
    main()
