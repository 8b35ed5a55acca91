"""What several benchmarks share: networks trained once and kept, and the time of a call."""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import nn

from snnreg_plugins._files import atomic
from snnreg_plugins.modules import Classifier


def settled(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the options of a benchmark that keeps networks under --cache, and let nothing but its table be printed."""
    parser.add_argument("--cache", type=Path, required=True, help="folder of trained weights")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    options.cache.mkdir(parents=True, exist_ok=True)
    return options


def fit(model: nn.Module, data: LightningDataModule, epochs: int, *callbacks: Callback) -> Classifier:
    """Train by Adam with cosine decay from 0.002."""
    classifier = Classifier(
        model,
        lambda parameters: torch.optim.Adam(parameters, lr=2e-3),
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs),
    )
    trained(classifier, data, epochs, *callbacks, limit_val_batches=0)
    return classifier


def trained(
    module: LightningModule, data: LightningDataModule, epochs: int, *callbacks: Callback, **options: Any
) -> Trainer:
    """Train in silence, and give the Trainer, with ``options`` of its own."""
    trainer = Trainer(
        max_epochs=epochs,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, data)
    return trainer


def kept(model: nn.Module, path: Path, train: Callable[[], object]) -> nn.Module:
    """Give the model with the weights at ``path``, which are trained if there are none yet; in eval mode."""
    if not path.exists():
        train()
        with atomic(path) as temporary:
            torch.save(model.state_dict(), temporary)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def head(*columns: str) -> str:
    """Write the first two lines of a table, as the docs have them."""
    return f"{line(*columns)}\n|{' --- |' * len(columns)}"


def line(*cells: object) -> str:
    """Write a line of it."""
    return f"| {' | '.join(map(str, cells))} |"


def spread(values: Sequence[float], digits: int = 1, unit: str = "") -> str:
    """Write the mean, and the standard deviation where there are several.

    Example:
        >>> spread([1.0, 2.0]), spread([3.0], 0, "k")
        ('1.5 ± 0.7', '3k')
    """
    beside = f" ± {statistics.stdev(values):.{digits}f}{unit}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{unit}{beside}"


def median_and_range(ratios: Sequence[float]) -> str:
    """Write ratios of paired runs; nothing of none.

    Example:
        >>> median_and_range([1.2, 1.0, 1.1])
        '1.10 (1.00 to 1.20)'
    """
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else ""


def timed(run: Callable[[], object], device: torch.device | None = None) -> float:
    """Seconds that a call takes, all that it started on ``device`` included."""
    cuda = device is not None and device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    run()
    if cuda:
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin
