"""Time steps that samples take in a network that stops early."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from snnreg_plugins.metrics.base import WatchingMetric
from snnreg_plugins.watching.hooks import uncompiled
from snnreg_plugins.watching.simulated import SimulatedNetwork
from snnreg_plugins.watching.watch import Watch


class TimeSteps(WatchingMetric):
    r"""Time steps per sample of a spiking network, fewer than its T where samples leave early.

    .. math:: \bar T = \frac{1}{N} \sum_n T_n

    The metric is built on an exported network and counts by itself: just run the network. Every call counts, that of a
    training batch too.

    - ``compute()``: steps/sample, a float64 scalar.

    Args:
        network: A :class:`~snnreg_plugins.SpikingNetwork`.
        kwargs: See ``torchmetrics.Metric``.

    Raises:
        TypeError: If the model is none.
        RuntimeError: On ``compute()``, if no forward pass was seen.

    Example:
        >>> import torch
        >>> from snnreg_plugins import to_snntorch
        >>> x = torch.rand(100, 2)
        >>> network = to_snntorch(nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3)), x, timesteps=8)
        >>> network.exit_margins = [torch.inf, 0.0]  # at the second step, all may leave
        >>> with torch.no_grad(), TimeSteps(network) as steps:
        ...     scores = network(x)
        >>> steps.compute()
        tensor(2., dtype=torch.float64)
    """

    quantities = ("steps",)
    plot_unit = "Steps / sample"

    def __init__(self, network: nn.Module, **kwargs: Any) -> None:
        if not isinstance(network, SimulatedNetwork):
            raise TypeError(f"Expected argument `network` to be a SpikingNetwork, but got {type(network).__name__}.")
        super().__init__(_Taken(network, {"network": network}, {"network": network}), **kwargs)

    def compute(self) -> Tensor:
        """Return the mean number of time steps of a sample."""
        totals, samples = self._totals()
        return totals["steps"].sum() / samples

    def by_layer(self, quantity: str = "steps") -> dict[str, float]:
        """Return the same, for :meth:`plot`."""
        return {"network": float(self.compute())}


class _Taken(Watch):
    """Counts the steps that samples take."""

    quantities = ("steps",)

    def _attach(self) -> None:
        self.hooks.after(self.model, self._observe)

    @uncompiled
    def _observe(self, network: SimulatedNetwork, args: tuple[Any, ...], output: Any) -> None:
        taken = network.steps_taken
        assert self._counter is not None
        steps = 1 if isinstance(output, tuple) else network.timesteps  # of a step there is a state, too
        self._counts.add(0, 0, 0, [steps * self._counter.size if taken is None else int(taken.sum())])
