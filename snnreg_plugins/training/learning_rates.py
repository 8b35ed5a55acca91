"""Learning rates of a fit, changed beside what its schedulers do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch.optim import Optimizer

# What an optimizer's group holds of them, and schedulers go by.
_RATES = ("lr", "initial_lr", "max_lr", "min_lr")


def multiply_rates(optimizers: Iterable[Optimizer], schedulers: Iterable[Any], factor: float) -> None:
    """Multiply the learning rates of optimizers, and those that their schedulers begin with.

    Args:
        optimizers: The optimizers.
        schedulers: Their schedulers.
        factor: The factor.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
        >>> scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)
        >>> multiply_rates([optimizer], [scheduler], 0.1)
        >>> optimizer.step(), scheduler.step(), optimizer.param_groups[0]["lr"]
        (None, None, 0.05)
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.update({name: group[name] * factor for name in _RATES if name in group})
    for scheduler in _all_of(schedulers):
        if hasattr(scheduler, "base_lrs"):
            scheduler.base_lrs = [rate * factor for rate in scheduler.base_lrs]


def _all_of(schedulers: Iterable[Any]) -> Iterator[Any]:
    """Walk schedulers, and those that they are made of."""
    for scheduler in schedulers:
        yield scheduler
        yield from _all_of(getattr(scheduler, "_schedulers", ()))
