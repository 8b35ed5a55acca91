"""Add the sparsity loss of learned input codes, from outside the LightningModule."""

from __future__ import annotations

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from snnreg_plugins._checks import as_number
from snnreg_plugins._lightning import scale_of_gradients
from snnreg_plugins.callbacks.added_loss import AddedLossCallback
from snnreg_plugins.spiking.encoder import TableEncoder


class TableSparsity(AddedLossCallback):
    r"""Train the tables of :class:`~snnreg_plugins.TableEncoder` to send little; the LightningModule stays as it is.

    With w the warm-up factor of the epoch, the loss becomes

    .. math:: \text{loss} + w \, s \sum_\text{encoders} \frac{1}{\text{rows}} \sum_q
        \frac{\lVert W_q \rVert_1}{\lVert W_q \rVert_2}

    A paper's :math:`(1 - \alpha) \, \text{loss} + \alpha R` is the same up to a factor, with s = α / (1 - α).

    As the sum depends on the tables alone, its gradient is added to theirs just before an optimizer's step, and before
    gradients are clipped: exactly what comes of adding it to each loss by hand, with gradient accumulation, mixed
    precision, DDP, checkpointing and ``torch.compile``. In manual optimization it is added once for each step of an
    optimizer. A table without a gradient, which no loss of the step depends on, is left alone. The value of the loss
    that the module returns and logs stays the user's own.

    Logged each epoch: ``table_sparsity/<encoder>``, the mean of L1 over L2 norm at its end.

    Args:
        strength: s.
        start_epoch: First epoch to add it in.
        warmup_epochs: Epochs over which it rises linearly to its full value.

    Raises:
        ValueError: If an argument is out of range, or on start of training, if the module has no such encoder, or none
            that is trained.
        MisconfigurationException: In training, where the gradient could not be exact (LBFGS with line search,
            DeepSpeed), or no optimizer's step went through Lightning.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[TableSparsity(strength=1e-3)], logger=False, enable_checkpointing=False)
    """

    added = "sparsity loss"

    def __init__(self, strength: float = 1e-3, start_epoch: int = 0, warmup_epochs: int = 0) -> None:
        super().__init__(start_epoch, warmup_epochs)
        self.strength = as_number("strength", strength, "[0, inf)")
        self._encoders: dict[str, TableEncoder] = {}  # while a fit runs
        self._stepped = False
        self._losses = 0  # that went backward since the last step

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        found = {name: part for name, part in pl_module.named_modules() if isinstance(part, TableEncoder)}
        if not found:
            raise ValueError(
                f"TableSparsity finds no TableEncoder in {type(pl_module).__name__}. Put one in front of the network, "
                "or leave the callback out."
            )
        self._encoders, self._stepped, self._losses = found, False, 0

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
        for encoder in self._encoders.values():
            gradient: Tensor | None = encoder.weight.grad
            if id(encoder.weight) in stepped and gradient is not None:
                with torch.enable_grad():
                    added = torch.autograd.grad(encoder.sparsity(), encoder.weight)[0]
                gradient.add_(added, alpha=factor)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._stepped:
            raise MisconfigurationException(
                "TableSparsity saw no step of an optimizer in a whole epoch, and could not add the sparsity loss. In "
                "manual optimization, step what self.optimizers() gives; and train on more batches than are "
                "accumulated."
            )
        with torch.no_grad():
            values = {f"table_sparsity/{name}": encoder.sparsity() for name, encoder in self._encoders.items()}
        pl_module.log_dict(values, sync_dist=True)

    @override
    def _remove(self) -> None:
        self._encoders = {}
