"""How the spikes of a model's neurons are spread over neurons and time."""

from __future__ import annotations

from operator import add
from typing import Any

import torch
from torch import Tensor, nn

from snnreg_plugins._checks import one_of
from snnreg_plugins._pictures import plot_counts
from snnreg_plugins.metrics.base import WatchingMetric
from snnreg_plugins.watching.trains import Trains, all_merged


class SpikeStatistics(WatchingMetric):
    r"""Spike rate, silent and saturated neurons, first spikes and inter-spike intervals; exact.

    The metric is built on a model, watches the output of its spiking neurons (those of snnTorch, Norse, SpikingJelly
    and sinabs) and counts by itself: just run the model. What is not 0 is a spike. Steps are counted from 0, in the
    calls of a neuron within a pass (or along the time axis of one that takes all steps at once) and on through passes
    that go on with the state of the last one.

    - ``rate``: spikes/neuron/step.
    - ``silent``: share of neurons that never spiked, over all samples seen.
    - ``saturated``: share of neurons that spiked at every step of every sample.
    - ``first_spike``: mean step of the first spike, over the neurons and samples that have one; else nan.
    - ``interval``: mean number of steps from one spike of a neuron to its next; nan without two.

    ``compute()`` returns these over all neurons, a dict of float64 scalars; ``by_layer()`` the same for each layer;
    ``intervals()`` the whole histogram. Every pass counts, that of a training batch too: to log it in validation, reset
    it in ``on_validation_epoch_start``, or call it once a batch, see :meth:`update`.

    Args:
        model: The model to watch.
        kwargs: See ``torchmetrics.Metric``.

    Raises:
        ValueError: If the model has no spiking neuron.
        RuntimeError: On ``compute()``, if no forward pass was seen.

    Example:
        >>> import snntorch
        >>> neuron = snntorch.Leaky(beta=1.0, threshold=1.0, init_hidden=True)
        >>> with SpikeStatistics(neuron) as statistics:
        ...     for _ in range(6):  # the first neuron spikes at every second step, from step 1 on; the second never
        ...         _ = neuron(torch.tensor([[0.55, 0.0]]))
        >>> {name: round(value.item(), 2) for name, value in statistics.compute().items()}
        {'rate': 0.25, 'silent': 0.5, 'saturated': 0.0, 'first_spike': 1.0, 'interval': 2.0}
        >>> statistics.intervals()
        tensor([0, 0, 2])
    """

    quantities = Trains.quantities
    watch: Trains

    def __init__(self, model: nn.Module, **kwargs: Any) -> None:
        trains = Trains(model)
        if not trains.layers:
            raise ValueError(
                "Expected argument `model` to have a spiking neuron of snnTorch, Norse, SpikingJelly or sinabs, but "
                f"{type(model).__name__} has none."
            )
        super().__init__(trains, **kwargs)

    def compute(self) -> dict[str, Tensor]:
        """Return all statistics over all neurons."""
        totals, _ = self._totals()
        shares = [sum(numbers) for numbers in zip(*self._shares(), strict=True)]
        return _statistics({quantity: total.sum() for quantity, total in totals.items()}, shares)

    def by_layer(self, quantity: str = "") -> dict[str, Any]:
        """Return all statistics for each layer by name; nan where a layer was not run.

        Args:
            quantity: One of them, to return that alone.

        Raises:
            ValueError: If there is none of that name.
        """
        totals, _ = self._totals()
        result: dict[str, Any] = {}
        for row, (name, shares) in enumerate(zip(self.layers, self._shares(), strict=True)):
            statistics = _statistics({quantity: total[row] for quantity, total in totals.items()}, shares)
            plain = {each: value.item() for each, value in statistics.items()}
            result[name] = plain[one_of("quantity", quantity, sorted(plain))] if quantity else plain
        return result

    def intervals(self, layer: str | None = None) -> Tensor:
        """Return how often each number of steps from a spike to the neuron's next occurred.

        Args:
            layer: Name of a layer; all by default.

        Returns:
            Integers (int64); the number at index n is that of intervals of n steps. Empty if there was none.

        Raises:
            ValueError: If there is no such layer.
        """
        if layer is not None and layer not in self.layers:
            raise ValueError(f"Expected argument `layer` to be one of {self.layers}, but got {layer!r}.")
        rows = range(len(self.layers)) if layer is None else [self.layers.index(layer)]
        histograms = [histograms[row] for histograms in self._gathered(self.watch.histograms) for row in rows]
        result = torch.zeros(max(map(len, histograms)), dtype=torch.int64)
        for histogram in histograms:
            result[: len(histogram)] += torch.tensor(histogram, dtype=torch.int64)
        return result

    def plot(self, val: dict[str, Any] | None = None, ax: Any = None) -> Any:
        """Draw the histogram of inter-spike intervals of each layer; or what ``compute()`` gave, as torchmetrics does.

        Args:
            val: What ``compute()`` gave; None for the intervals.
            ax: Axes of matplotlib to draw on; new ones if None.

        Returns:
            The figure and the axes.

        Raises:
            ModuleNotFoundError: If matplotlib is missing.
        """
        if val is not None:
            return self._plot(val, ax)
        intervals = {name: self.intervals(name).tolist() for name in self.layers}
        intervals = {name: numbers for name, numbers in intervals.items() if any(numbers)}
        return plot_counts(intervals, "Inter-spike intervals by layer", "Steps from spike to spike", ax)

    def _shares(self) -> list[tuple[int, int, int]]:
        """Count, for each layer, its neurons, and the silent and the saturated ones of them."""
        neurons = all_merged(self._gathered(self.watch.neurons))
        shares = [(0, 0, 0)] * len(self.layers)
        for (row, _), (counts, steps) in neurons.items():
            numbers = counts.numel(), int((counts == 0).sum()), int((counts == steps).sum())
            shares[row] = tuple(map(add, shares[row], numbers))
        return shares


def _statistics(totals: dict[str, Tensor], shares: Any) -> dict[str, Tensor]:
    neurons, silent, saturated = (torch.tensor(float(number), dtype=torch.float64) for number in shares)
    return {
        "rate": totals["spikes"] / totals["neuron_steps"],
        "silent": silent / neurons,
        "saturated": saturated / neurons,
        "first_spike": totals["first_steps"] / totals["first_spikes"],
        "interval": totals["interval_steps"] / totals["intervals"],
    }
