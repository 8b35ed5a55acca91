"""Prune weights once, as an axis of a sweep."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelPruning
from typing_extensions import override

from snnreg_plugins._checks import as_number
from snnreg_plugins.functional.synapses import is_synaptic


class PrunedOnce(ModelPruning):
    """Set the smallest weights of all synaptic layers together to 0, halfway through the training, for good.

    Lightning's callback prunes in every epoch that share of the weights that are left.

    Args:
        share: Of the weights, in [0, 1).
    """

    def __init__(self, share: float) -> None:
        self.share = as_number("share", share, "[0, 1)")
        self._is_done = False
        super().__init__(
            "l1_unstructured", parameter_names=["weight"], amount=self.share, use_lottery_ticket_hypothesis=False
        )

    @override
    def filter_parameters_to_prune(self, parameters_to_prune: Any = ()) -> Any:
        return [(module, name) for module, name in parameters_to_prune if is_synaptic(module)]

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_done = False

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epochs = trainer.max_epochs or 1
        if not self._is_done and trainer.current_epoch + 1 >= max(epochs // 2, 1):
            self._is_done = True
            super().on_train_epoch_end(trainer, pl_module)
