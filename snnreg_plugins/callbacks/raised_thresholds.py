"""Push trained thresholds up, from outside the LightningModule."""

from __future__ import annotations

from functools import partial

from lightning.pytorch import LightningModule
from torch import Tensor, nn
from typing_extensions import override

from snnreg_plugins.callbacks.added_to_weights import AddedToWeights, Term
from snnreg_plugins.frameworks.trained import logarithm_of_threshold


class RaisedThresholds(AddedToWeights):
    r"""Train thresholds to be high, so that neurons fire less; the LightningModule stays as it is.

    With w the warm-up factor of the epoch, the loss becomes

    .. math:: \text{loss} - w \, s \sum_\text{layers} \frac{1}{n} \sum_i \ln \lambda_i

    for thresholds that are trained: of networks exported with ``train_thresholds``, also within a
    :class:`~snnreg_plugins.modules.SpikingClassifier`. As their logarithms are what is trained, each is pushed by the
    same force whatever its scale, and the loss says where spikes are worth more. After Bu et al. 2025, who raise
    learned thresholds by the loss.

    As the sum depends on the thresholds alone, its gradient is added to theirs just before an optimizer's step, and
    before gradients are clipped: exactly what comes of adding it to each loss by hand, with gradient accumulation,
    mixed precision, DDP and ``torch.compile``. In manual optimization it is added once for each step of an optimizer.
    Thresholds without a gradient are left alone. The value of the loss that the module returns and logs stays the
    user's own.

    Logged each epoch: ``raised_thresholds/<layer>``, the geometric mean of the thresholds of a layer at its end.

    Args:
        strength: s.
        start_epoch: First epoch to add it in.
        warmup_epochs: Epochs over which it rises linearly to its full value.

    Raises:
        ValueError: If an argument is out of range, or on start of training, if no thresholds are trained.
        MisconfigurationException: In training, where the gradient could not be exact (LBFGS with line search,
            DeepSpeed), or no optimizer's step went through Lightning.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[RaisedThresholds(strength=1e-2)], logger=False, enable_checkpointing=False)
    """

    added = "loss of thresholds"
    log_name = "raised_thresholds"

    def __init__(self, strength: float = 1e-2, start_epoch: int = 0, warmup_epochs: int = 0) -> None:
        super().__init__(strength, start_epoch, warmup_epochs)

    @override
    def _find(self, pl_module: LightningModule) -> dict[str, Term]:
        found: dict[str, Term] = {}
        for name, module in pl_module.named_modules():
            weight = logarithm_of_threshold(module)
            if weight is not None:
                found[name] = Term(weight, partial(_lowness, weight), partial(_height, weight))
        if not found:
            raise ValueError(
                f"RaisedThresholds finds no thresholds that are trained in {type(pl_module).__name__}. Export with "
                "train_thresholds='channel', or give that to the SpikingClassifier; or leave the callback out."
            )
        return found


def _lowness(logarithm: nn.Parameter) -> Tensor:
    return -logarithm.mean()


def _height(logarithm: nn.Parameter) -> Tensor:
    return logarithm.mean().exp()
