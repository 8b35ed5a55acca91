"""Callbacks that find the best weights, beside Lightning's callbacks that average weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging

from snnreg_plugins._lightning import averaged_by, averaging


def require_validated_averages(name: str, trainer: Trainer, pl_module: LightningModule) -> None:
    """Refuse averages that no validation sees.

    Args:
        name: Of the callback that needs them to be seen, for the error.
        trainer: The Trainer.
        pl_module: The module that is trained.

    Raises:
        MisconfigurationException: If the weights of the end are such averages.
    """
    swa = any(isinstance(one, StochasticWeightAveraging) for one in averaging(trainer))
    if swa and not StochasticWeightAveraging.pl_module_contains_batch_norm(pl_module):
        raise MisconfigurationException(
            f"{name} cannot serve StochasticWeightAveraging of a module without batch norms: it loads its averages "
            "when the last validation is over, so nobody counts what they spend. Use WeightAveraging or "
            "EMAWeightAveraging of lightning.pytorch.callbacks (from 2.6 on), whose averages every validation sees."
        )


def load_for_good(trainer: Trainer, pl_module: LightningModule, weights: Mapping[str, Any]) -> None:
    """Load weights at the end of a training, into the averages too: these may be loaded, or saved, later."""
    averages = [average for average in map(averaged_by, averaging(trainer)) if average is not None]
    for module in (pl_module, *averages):
        module.load_state_dict(weights)
