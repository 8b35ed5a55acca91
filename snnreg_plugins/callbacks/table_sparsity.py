"""Add the sparsity loss of learned input codes, from outside the LightningModule."""

from __future__ import annotations

from lightning.pytorch import LightningModule
from typing_extensions import override

from snnreg_plugins.callbacks.added_to_weights import AddedToWeights, Term
from snnreg_plugins.spiking.encoder import TableEncoder


class TableSparsity(AddedToWeights):
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
    log_name = "table_sparsity"

    def __init__(self, strength: float = 1e-3, start_epoch: int = 0, warmup_epochs: int = 0) -> None:
        super().__init__(strength, start_epoch, warmup_epochs)

    @override
    def _find(self, pl_module: LightningModule) -> dict[str, Term]:
        found = {name: part for name, part in pl_module.named_modules() if isinstance(part, TableEncoder)}
        if not found:
            raise ValueError(
                f"TableSparsity finds no TableEncoder in {type(pl_module).__name__}. Put one in front of the network, "
                "or leave the callback out."
            )
        return {name: Term(part.weight, part.sparsity) for name, part in found.items()}
