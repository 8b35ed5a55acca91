"""What a network is calibrated on, at the start of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from snnreg_plugins._batches import inputs_of
from snnreg_plugins._lightning import overrides


def calibration_of(trainer: Any, calibration_batches: int) -> Iterator[Tensor]:
    """Give the first batches of the training data; of several processes, the share that this one is to calibrate on.

    They move nobody's random numbers, nor the place of a loader that keeps one.

    Args:
        trainer: The Trainer.
        calibration_batches: How many batches, over all processes.

    Raises:
        ValueError: If there is no training data.
    """
    datamodule = getattr(trainer, "datamodule", None)
    owner = trainer.lightning_module if datamodule is None else datamodule
    if trainer.state.fn != TrainerFn.FITTING and not overrides(owner, "train_dataloader"):
        raise ValueError(
            f"Expected training data to balance thresholds on, but got none in Trainer.{trainer.state.fn.value}(). "
            "Give a LightningDataModule with a train_dataloader(), fit the module first, or give the checkpoint of a "
            "fine-tuned one as `ckpt_path`."
        )
    if datamodule is not None:
        # Its loader would give every process all of the data, so the first process alone reads it.
        batches = calibration_batches if trainer.is_global_zero else 0
    else:
        if trainer.train_dataloader is None:
            trainer.fit_loop.setup_data()  # in all processes: they compare the lengths of their loaders
        batches = -(-calibration_batches // trainer.world_size)

    def read() -> Iterator[Tensor]:
        if not batches:
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            loader = trainer.train_dataloader if datamodule is None else datamodule.train_dataloader()
            with _in_its_place(loader):
                inputs = list(inputs_of(islice(loader, batches), argument="train_dataloader"))
        yield from inputs

    return read()  # when asked for its first batch: an error is then told to the processes that wait for this one


@contextmanager
def _in_its_place(loader: Any) -> Iterator[None]:
    """Have a loader that keeps its place in the data go on from there afterwards."""
    keeps = hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")
    place = loader.state_dict() if keeps else None
    yield
    if keeps:
        loader.load_state_dict(place)
