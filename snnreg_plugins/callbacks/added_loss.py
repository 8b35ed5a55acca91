"""What callbacks share that add to a loss whose backward pass Lightning runs."""

from __future__ import annotations

from typing import TypeVar

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from snnreg_plugins._checks import as_integer
from snnreg_plugins._lightning import both, loss_scale, overrides

Running = TypeVar("Running")


class AddedLossCallback(Callback):
    """Base of callbacks that add to the loss: when, with which scale, and where that cannot be exact.

    Args:
        start_epoch: First epoch to add in.
        warmup_epochs: Epochs over which what is added rises linearly to its full value.
    """

    #: What is added, for errors.
    added = "penalty"

    def __init__(self, start_epoch: int, warmup_epochs: int) -> None:
        self.start_epoch = as_integer("start_epoch", start_epoch, at_least=0)
        self.warmup_epochs = as_integer("warmup_epochs", warmup_epochs, at_least=0)
        self._told_of_past = False  # that a backward pass went past Lightning
        self._own_backward = False  # whether the user's code may multiply a loss on its way

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._remove()  # of a fit that this one runs within
        self._refuse(trainer.strategy)
        self._told_of_past = False
        # manual_backward(loss, gradient=...) does so, too.
        self._own_backward = overrides(pl_module, "backward") or not pl_module.automatic_optimization

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        name = type(self).__name__
        for optimizer in trainer.optimizers:
            if isinstance(optimizer, torch.optim.LBFGS) and optimizer.param_groups[0]["line_search_fn"]:
                raise MisconfigurationException(
                    f"{name} cannot serve LBFGS with line_search_fn='strong_wolfe': the search compares "
                    f"losses, and the {self.added} is not in them. Use line_search_fn=None or another optimizer."
                )
        if 0 <= (trainer.max_epochs or -1) <= self.start_epoch:
            rank_zero_warn(
                f"{name} will never act: start_epoch is {self.start_epoch}, and epochs 0 to "
                f"{trainer.max_epochs} - 1 are trained."
            )

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._remove()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._remove()

    def _remove(self) -> None:
        """Look on no longer; a fit may have ended before it began."""
        raise NotImplementedError

    def _factor(self, trainer: Trainer) -> float:
        """How much of what is added counts in this epoch.

        To be asked at every batch: a run that is resumed within an epoch does not see its start.
        """
        epochs = trainer.current_epoch - self.start_epoch + 1
        return min(1.0, max(0.0, epochs / (self.warmup_epochs + 1)))

    @staticmethod
    def _scale(trainer: Trainer, pl_module: LightningModule) -> float:
        """What a loss that goes backward was multiplied by: divided by the accumulated batches, and by the scaler."""
        accumulated = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
        return loss_scale(trainer) / accumulated

    def _of_this_fit(self, running: Running | None) -> Running:
        """Give what a fit made when it started.

        Raises:
            MisconfigurationException: If another one has begun and ended since.
        """
        if running is None:
            raise MisconfigurationException(
                f"{type(self).__name__} was used by another fit while this one ran. Give each Trainer a callback of "
                "its own."
            )
        return running

    def _judge_backward(self, missed: bool, went_past: bool) -> None:
        """Refuse a batch without a backward pass of Lightning's, and say once where there are others.

        Args:
            missed: Whether there was a backward pass, and none of Lightning's.
            went_past: Whether one gave gradients to parameters beside Lightning's.
        """
        name = type(self).__name__
        if missed:
            raise MisconfigurationException(
                f"{name} saw a backward pass that did not go through Lightning, and could not add the "
                f"{self.added}. Call self.manual_backward(loss) instead of loss.backward()."
            )
        if went_past and not self._told_of_past:
            self._told_of_past = True
            rank_zero_warn(
                f"{name} saw a backward pass that gave gradients to parameters and did not go through "
                f"Lightning, beside others that did: they hold no {self.added}. If an optimizer is to use them, call "
                "self.manual_backward(loss) instead of loss.backward(); if they are thrown away, as by an attack, "
                "torch.autograd.grad takes those alone that are wanted."
            )

    def _refuse(self, strategy: Strategy) -> None:
        name = type(self).__name__
        if isinstance(strategy, both(DeepSpeedStrategy)):
            raise MisconfigurationException(
                f"{name} cannot serve DeepSpeed, which scales the loss where no callback sees it. Use strategy='ddp'."
            )
        if isinstance(strategy, both(FSDPStrategy, ModelParallelStrategy)):
            rank_zero_warn(f"{name} has not been checked for exact gradients under {type(strategy).__name__}.")
