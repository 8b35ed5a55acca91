"""The one door to what Lightning does not offer in public; each function says what breaks without it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def loss_scale(trainer: Trainer) -> float:
    """Give what mixed precision in 16 bits multiplies the loss by before the backward pass; 1 if nothing does.

    Without it, a penalty that is added from outside counts for nothing next to a loss that is 65,536 times as large.
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return float(scaler.get_scale()) if scaler is not None else 1.0
