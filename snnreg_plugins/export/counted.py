"""What a network gives on some samples, and what it spends there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from snnreg_plugins.spiking.network import SpikingNetwork


class Counted(NamedTuple):
    """A run of a network.

    Args:
        outputs: What it gave, ``(B, ...)``.
        sops: Synaptic operations per sample.
        steps: Of these, those of each time step.
    """

    outputs: Tensor
    sops: float
    steps: list[float]


def run_and_count(network: SpikingNetwork, batches: Iterable[Tensor], time_dim: int | None = None) -> Counted:
    """Run a network, and count exactly; in this process alone, as others run the same samples or none.

    Args:
        network: The network; as it is set, with early exit too.
        batches: Inputs, in at least one batch.
        time_dim: Their dimension of time; None for that of the network.
    """
    from snnreg_plugins.metrics import SynapticOperations  # which knows more than an export needs

    with torch.no_grad(), SynapticOperations(network, sync_on_compute=False) as operations:
        outputs = torch.cat([network(batch, time_dim=time_dim) for batch in batches])
        return Counted(outputs, float(operations.total("sops")), operations.by_step())


def largest_within(
    count: Callable[[float], float],
    budget: float,
    low: float = 1.0,
    high: float = 2.0,
    start: float = 1.0,
    tolerance: float = 0.01,
    tries: int = 16,
) -> float | None:
    r"""Find a factor whose count is within a budget and uses it up to a share.

    The count is to fall with the factor, more or less; the search goes by its logarithm over that of the factor, in
    which counts of spikes over thresholds are nearly straight.

    Args:
        count: From a factor to a count; steps and small rises do no harm.
        budget: What the count is to be at most.
        low: Least factor.
        high: Largest factor.
        start: The factor to try first.
        tolerance: Share of the budget that may be left.
        tries: How often to count.

    Returns:
        The factor, with the most that was found to be counted within the budget; None if even the largest factor
        counts more.

    Example:
        >>> round(largest_within(lambda factor: 100 / factor, budget=80.0), 2)
        1.25
        >>> largest_within(lambda factor: 100 / factor, budget=200.0)
        1.0
        >>> largest_within(lambda factor: 100 / factor, budget=20.0) is None
        True
    """
    above: tuple[float, float] | None = None  # factor and count: of too many, with the largest factor
    best: tuple[float, float] | None = None  # of what is within the budget, with the most
    factor = start
    for _ in range(tries):
        found = count(factor)
        if found > budget:
            above = (factor, found) if above is None else max(above, (factor, found))
        elif best is None or found > best[1]:
            best = factor, found
        if best is not None and (best[1] >= (1 - tolerance) * budget or best[0] <= low):
            break
        if factor == high and best is None:
            return None
        factor = _next(above, best, budget, low, high)
        if best is not None and above is not None and best[0] / above[0] < 1 + 1e-4:
            break  # as close as it gets
    return None if best is None else best[0]


def _next(
    above: tuple[float, float] | None, best: tuple[float, float] | None, budget: float, low: float, high: float
) -> float:
    """Give the factor to try next."""
    if best is None:
        assert above is not None
        return min(high, above[0] * max(1.02, math.pow(above[1] / budget, 1.2)))
    if above is None or above[0] >= best[0]:
        return max(low, best[0] * min(0.98, math.pow(max(best[1] / budget, 0.1), 1.2)))
    share = 0.5
    if best[1]:
        aim = 0.998 * budget if best[1] < 0.998 * budget else budget
        share = math.log(above[1] / aim) / math.log(above[1] / best[1])
    share = min(0.9, max(0.1, share))
    return above[0] * math.pow(best[0] / above[0], share)
