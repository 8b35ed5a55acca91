"""The penalty of a budget, and how much of a training is over."""

from __future__ import annotations

import math
from typing import Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from snnreg_plugins.callbacks.activity_regularization import ActivityRegularization
from snnreg_plugins.training.dual_ascent import Controller


class PricedRegularization(ActivityRegularization):
    """The penalty of a budget: of a strength that a controller steers, whose meter sees what it is taken of."""

    def __init__(
        self,
        penalty: Literal["expected_rate", "l1"],
        controller: Controller,
        layers: list[str] | None,
        percent: float,
    ) -> None:
        super().__init__(penalty, 1.0, "fan_out", layers, percent=percent)
        self._controller = controller

    @override
    def _factor(self, trainer: Trainer) -> float:
        return self._controller.strength

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for call in self._running.calls:
            self._controller.meter.add(call.amount, call.value)
        super().on_after_backward(trainer, pl_module)


def summed(trainer: Trainer, device: torch.device, values: Tensor) -> Tensor:
    """Sum over processes, whose group may take tensors of the device alone."""
    total: Tensor = trainer.strategy.reduce(values.to(device), reduce_op="sum")
    return total


def require_an_end_and_validation(trainer: Trainer) -> None:
    """Raise a MisconfigurationException unless the training has an end, and validations."""
    if not trainer.enable_validation:
        raise MisconfigurationException(
            "ActivityBudget counts in validation what the network spends, but this fit has no validation data or no "
            "validation_step(), or the Trainer's `limit_val_batches` is 0."
        )
    if math.isnan(progress_of(trainer, 0)):
        raise MisconfigurationException(
            "ActivityBudget steers by how much of the training is over, but the Trainer has neither `max_epochs` nor "
            "`max_steps`. Give one of them."
        )


def progress_of(trainer: Trainer, batch_idx: int) -> float:
    """Share of the training that is over at the end of a batch; nan if it has no end."""
    shares = []
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        batches = trainer.num_training_batches
        within = (batch_idx + 1) / batches if batches and math.isfinite(batches) else 0.0
        shares.append((trainer.current_epoch + within) / trainer.max_epochs)
    if trainer.max_steps > 0:
        shares.append(trainer.global_step / trainer.max_steps)
    return max(shares, default=math.nan)


def validation_follows(trainer: Trainer) -> bool:
    """Tell, in a validation of a fit, whether the training goes on to another one, unless it is stopped early.

    The last one is not always at the end: ``max_steps`` ends an epoch in its middle, half of an odd number of batches
    is rounded down, and 10 is no multiple of ``check_val_every_n_epoch=3``.
    """
    loop, batches, every = trainer.fit_loop.epoch_loop, trainer.num_training_batches, trainer.val_check_batch
    epoch, period, done = trainer.current_epoch, trainer.check_val_every_n_epoch, loop.batch_idx + 1
    if every is None:  # by the clock
        return progress_of(trainer, loop.batch_idx) < 1 - 1e-9
    epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs > 0 else math.inf
    if not math.isfinite(batches):  # how long an epoch is, is not known
        return trainer.max_steps > trainer.global_step or epoch + (period or 1) < epochs
    every = min(every, batches) if period else every
    if period is None:
        ahead = every - (loop.total_batch_idx + 1) % every
    elif (done // every + 1) * every <= batches:
        ahead = (done // every + 1) * every - done
    else:
        ahead = (period - (epoch + 1) % period) * batches - done + every
    if ahead > (epochs - epoch) * batches - done:
        return False
    steps = trainer.global_step / (loop.total_batch_idx + 1)  # in a batch; more than one of several optimizers
    return trainer.max_steps <= 0 or trainer.global_step + (ahead - 1) * steps < trainer.max_steps - 1e-6


def mean_of(trainer: Trainer, device: torch.device, value: float) -> float:
    """Give the mean of a number over processes."""
    if trainer.world_size <= 1:
        return value
    return float(trainer.strategy.reduce(torch.tensor(value, device=device), reduce_op="mean"))
