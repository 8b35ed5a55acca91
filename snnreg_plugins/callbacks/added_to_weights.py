"""Add losses of weights alone, from outside the LightningModule."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from snnreg_plugins._checks import as_number
from snnreg_plugins._lightning import scale_of_gradients
from snnreg_plugins.callbacks.added_loss import AddedLossCallback


class Term(NamedTuple):
    """A term of a loss that depends on one parameter.

    Args:
        weight: The parameter.
        value: Gives the term, with its gradient.
        logged: Gives what is logged of it; the term if None.
    """

    weight: nn.Parameter
    value: Callable[[], Tensor]
    logged: Callable[[], Tensor] | None = None


class AddedToWeights(AddedLossCallback):
    """Adds ``strength`` times a sum of terms, each of which depends on one parameter alone.

    The gradient is added to that of the parameter just before an optimizer's step, and before gradients are clipped:
    exactly what comes of adding the sum to each loss by hand, with gradient accumulation, mixed precision, DDP,
    checkpointing and ``torch.compile``. In manual optimization it is added once for each step of an optimizer. A
    parameter without a gradient, which no loss of the step depends on, is left alone.

    Args:
        strength: Factor of the sum.
        start_epoch: First epoch to add it in.
        warmup_epochs: Epochs over which it rises linearly to its full value.
    """

    #: What is logged is called so, with the name of the term behind it.
    log_name: str

    def __init__(self, strength: float, start_epoch: int, warmup_epochs: int) -> None:
        super().__init__(start_epoch, warmup_epochs)
        self.strength = as_number("strength", strength, "[0, inf)")
        self._terms: dict[str, Term] = {}  # while a fit runs
        self._stepped = False
        self._losses = 0  # that went backward since the last step

    @abstractmethod
    def _find(self, pl_module: LightningModule) -> dict[str, Term]:
        """Give the terms by name, or raise a ValueError if there is none."""

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        self._terms, self._stepped, self._losses = self._find(pl_module), False, 0

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._losses += 1

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        factor = self._factor(trainer) * self.strength * scale_of_gradients(trainer, optimizer)
        if pl_module.automatic_optimization:  # at the end of an epoch, there may be fewer batches to a step
            factor *= self._losses / trainer.accumulate_grad_batches
        self._stepped, self._losses = True, 0
        if factor == 0:
            return
        stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for term in self._terms.values():
            gradient: Tensor | None = term.weight.grad
            if id(term.weight) in stepped and gradient is not None:
                with torch.enable_grad():
                    added = torch.autograd.grad(term.value(), term.weight)[0]
                gradient.add_(added, alpha=factor)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._stepped:
            raise MisconfigurationException(
                f"{type(self).__name__} saw no step of an optimizer in a whole epoch, and could not add the "
                f"{self.added}. In manual optimization, step what self.optimizers() gives; and train on more batches "
                "than are accumulated."
            )
        with torch.no_grad():
            values = {f"{self.log_name}/{name}": (term.logged or term.value)() for name, term in self._terms.items()}
        pl_module.log_dict(values, sync_dist=True)

    @override
    def _remove(self) -> None:
        self._terms = {}
