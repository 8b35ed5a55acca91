"""What the callback and the metric cost in time, as ratios against the same run without them.

    python -m tests.benchmarks.overhead

LeNet on random images of 28 × 28 in batches of 128, one thread. The runs that are compared take turns, so that a
machine that changes its speed changes both; printed are the median ratio and its range over the repeats.
"""

from __future__ import annotations

import logging
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch.utils.data import DataLoader, TensorDataset

from snnreg_plugins import ActivityRegularization, SynapticOperations, to_snntorch
from snnreg_plugins.modules import Classifier, LeNet

REPEATS, BATCHES, BATCH = 11, 40, 128


class Stopwatch(Callback):
    """Time from the first batch of an epoch to its end."""

    def on_train_epoch_start(self, trainer, pl_module):
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer, pl_module):
        self.seconds = time.perf_counter() - self.start


def training(*callbacks: Callback) -> Callable[[], float]:
    """One epoch of training, timed."""
    data = DataLoader(
        TensorDataset(torch.rand(BATCHES * BATCH, 1, 28, 28), torch.randint(0, 10, (BATCHES * BATCH,))), BATCH
    )

    def run() -> float:
        seed_everything(0, verbose=False)
        stopwatch = Stopwatch()
        trainer = Trainer(
            max_epochs=1,
            accelerator="cpu",
            callbacks=[stopwatch, *callbacks],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Classifier(LeNet()), data)
        return stopwatch.seconds

    return run


def forward(model: torch.nn.Module, watched: bool, batch: int = BATCH) -> Callable[[], float]:
    """One forward pass in inference mode, timed; the median of 64, of which the metric looks closely at seven."""
    x = torch.rand(batch, 1, 28, 28)

    def once() -> float:
        start = time.perf_counter()
        model(x)
        return time.perf_counter() - start

    def run() -> float:
        metric = SynapticOperations(model) if watched else None
        with torch.inference_mode():
            seconds = statistics.median(once() for _ in range(64))
        if metric is not None:
            metric.close()
        return seconds

    return run


def compare(name: str, plain: Callable[[], float], ours: Callable[[], float]) -> None:
    """Print the ratio of two runs that take turns."""
    plain(), ours()
    ratios = []
    for _ in range(REPEATS):
        before, between, after = plain(), ours(), plain()
        ratios.append(between / ((before + after) / 2))
    print(f"{name:70s} x{statistics.median(ratios):.3f}  ({min(ratios):.3f} to {max(ratios):.3f})", flush=True)


def main() -> None:
    """Print all ratios."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for penalty in ("l1", "expected_rate", "hoyer_square"):
        for weighting in ("uniform", "fan_out"):
            callback = ActivityRegularization(penalty, 0.1, weighting)
            compare(f"training step, {penalty}, {weighting}", training(), training(callback))
    model = LeNet().eval()
    compare("forward of the DNN with SynapticOperations", forward(model, False), forward(model, True))
    network = to_snntorch(model, torch.rand(256, 1, 28, 28), timesteps=8)
    for batch in (1, 8, 32, 128):
        title = f"forward of the SNN, T = 8, batch of {batch}, with SynapticOperations"
        compare(title, forward(network, False, batch), forward(network, True, batch))


if __name__ == "__main__":
    main()
