"""The one door to what Lightning and torchmetrics do not offer in public; each function says what breaks without it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from torch import nn
    from torchmetrics import Metric


def loss_scale(trainer: Trainer) -> float:
    """Give what mixed precision in 16 bits multiplies the loss by before the backward pass; 1 if nothing does.

    Without it, a penalty that is added from outside counts for nothing next to a loss that is 65,536 times as large.
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return float(scaler.get_scale()) if scaler is not None else 1.0


def scale_of_gradients(trainer: Trainer, optimizer: Any) -> float:
    """Give what gradients are multiplied by in ``on_before_optimizer_step``; 1 where Lightning unscaled them.

    Fused optimizers unscale them on their own, in their step. Without it, what is added to their gradients
    there counts for nothing.
    """
    return loss_scale(trainer) if getattr(optimizer, "_step_supports_amp_scaling", False) else 1.0


def runs_a_step(module: nn.Module) -> bool:
    """Tell, in a hook before its forward, whether a LightningModule is called to run one of its steps.

    Wrappers such as DDP call it so. Without it, what a training step returns is taken for the network's output.
    """
    from lightning.pytorch.strategies.strategy import _ForwardRedirection

    code = getattr(vars(module).get("forward"), "__code__", None)
    return code is not None and code in _ForwardRedirection.__call__.__code__.co_consts


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


def tracked_before() -> list[nn.Module] | None:
    """Give the metrics of earlier steps of the tracker that is copying its metric for a new one; None if none is.

    Without it, metrics that count by themselves go on when a tracker is done with them, and all its values are wrong.
    """
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == "torchmetrics.wrappers.tracker" and frame.f_code.co_name == "increment":
            tracker = frame.f_locals["self"]
            return [metric for step in tracker if step is not tracker._base_metric for metric in step.modules()]
        frame = frame.f_back
    return None
