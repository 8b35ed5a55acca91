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


def mean_of(trainer: Trainer, device: torch.device, value: float) -> float:
    """Give the mean of a number over processes."""
    if trainer.world_size <= 1:
        return value
    return float(trainer.strategy.reduce(torch.tensor(value, device=device), reduce_op="mean"))
