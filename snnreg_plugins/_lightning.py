"""The one door to what Lightning and torchmetrics do not offer in public; each function says what breaks without it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from torchmetrics import Metric


def loss_scale(trainer: Trainer) -> float:
    """Give what mixed precision in 16 bits multiplies the loss by before the backward pass; 1 if nothing does.

    Without it, a penalty that is added from outside counts for nothing next to a loss that is 65,536 times as large.
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return float(scaler.get_scale()) if scaler is not None else 1.0


def is_synced(metric: Metric) -> bool:
    """Tell whether a metric's state holds the sums over all processes by now, as it does within ``compute()``.

    Without it, ``compute()`` of several processes would add up what is added up already.
    """
    return metric._is_synced


def syncs(metric: Metric) -> bool:
    """Tell whether a metric adds up over processes when it is read; ``sync_on_compute=False`` forbids it.

    Without it, a metric that is to tell its own process's counts waits for the others.
    """
    return metric._to_sync
