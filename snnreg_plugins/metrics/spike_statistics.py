"""How the spikes of a model's neurons are spread over neurons and time."""

from __future__ import annotations

from operator import add
from typing import Any

import torch
from torch import Tensor, nn

from snnreg_plugins._pictures import plot_counts
from snnreg_plugins.metrics.base import WatchingMetric
from snnreg_plugins.watching.hooks import Hooks, uncompiled
from snnreg_plugins.watching.layers import is_spiking_neuron, time_dim
from snnreg_plugins.watching.steps import steps_of_call


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
    it in ``on_validation_epoch_start``.

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

    many_steps = True
    quantities = ("spikes", "neuron_steps", "first_spikes", "first_steps", "intervals", "interval_steps")

    def __init__(self, model: nn.Module, **kwargs: Any) -> None:
        layers = {name: module for name, module in model.named_modules() if is_spiking_neuron(module)}
        if not layers:
            raise ValueError(
                "Expected argument `model` to have a spiking neuron of snnTorch, Norse, SpikingJelly or sinabs, but "
                f"{type(model).__name__} has none."
            )
        super().__init__(model, layers, 0, **kwargs)

    def _attach(self, hooks: Hooks, layer: nn.Module) -> None:
        hooks.after(layer, self._observe)

    def _forget(self) -> None:
        super()._forget()
        # By layer and shape: how often each neuron spiked, and in how many steps; and intervals, by layer.
        self._neurons: dict[tuple[int, tuple[int, ...]], tuple[Tensor, int]] = {}
        self._histograms: list[list[int]] = [[] for _ in self._index]
        # Of the samples under way, by layer: the next step, and the step of each neuron's last spike (-1: none).
        self._state: dict[int, tuple[int, Tensor]] = {}
        # Of the pass under way, by layer and step: the spikes, in parts of the batch.
        self._seen: dict[int, list[list[Tensor]]] = {}

    @uncompiled
    def _observe(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        spikes = output[0] if isinstance(output, tuple) else output
        dim = time_dim(layer)
        spikes = spikes.detach() != 0
        seen, fold = self._seen.setdefault(self._index[layer], []), steps_of_call()
        if fold is None:
            seen.extend([part] for part in ([spikes] if dim is None else spikes.unbind(dim)))
        else:
            for step, part in enumerate(spikes.tensor_split(fold.steps), start=fold.first_step):
                seen.extend([] for _ in range(step + 1 - len(seen)))
                seen[step].append(part)
        self._counter.called(layer, args)

    def _on_pass(self, samples: int | None) -> None:
        seen, self._seen = self._seen, {}
        for row, steps in seen.items() if samples is not None else ():
            step, last = self._state.get(row, (0, None)) if self._counter.continues else (0, None)
            for index, parts in enumerate(steps):
                spikes = torch.cat(parts)
                running = None if last is None or len(spikes) == len(last) else self._running(index, len(last))
                if last is not None and running is not None:
                    last[running] = self._add(row, spikes, step, last[running])
                else:
                    if last is None or last.shape != spikes.shape:
                        step, last = 0, torch.full_like(spikes, -1, dtype=torch.int64)
                    last = self._add(row, spikes, step, last)
                step += 1
            if last is not None:
                self._state[row] = step, last
        super()._on_pass(samples)

    def _running(self, step: int, samples: int) -> Tensor | None:
        """Tell which samples of the pass took a step, where a network lets some leave early."""
        for module in self._watched[0].modules():
            taken = getattr(module, "steps_taken", None)
            if isinstance(taken, Tensor) and len(taken) == samples:
                return taken > step
        return None

    def _add(self, row: int, spikes: Tensor, step: int, last: Tensor) -> Tensor:
        """Count the spikes of one step; returns the steps of the last spikes."""
        first, later = spikes & (last < 0), spikes & (last >= 0)
        histogram = torch.bincount((step - last)[later]).tolist()
        total = self._histograms[row]
        total.extend([0] * (len(histogram) - len(total)))
        total[: len(histogram)] = map(add, total, histogram)
        firsts = int(first.sum())
        numbers = (
            int(spikes.sum()),
            spikes.numel(),
            firsts,
            firsts * step,
            sum(histogram),
            sum(interval * number for interval, number in enumerate(histogram)),
        )
        self._pending[row] = list(map(add, self._pending[row], numbers))
        key = row, tuple(spikes.shape[1:])
        counts, steps = self._neurons.get(key, (0, 0))
        self._neurons[key] = counts + spikes.sum(0).cpu(), steps + len(spikes)
        return torch.where(spikes, step, last)

    def compute(self) -> dict[str, Tensor]:
        """Return all statistics over all neurons."""
        totals, _ = self._totals()
        shares = [sum(numbers) for numbers in zip(*self._shares(), strict=True)]
        return _statistics({quantity: total.sum() for quantity, total in totals.items()}, shares)

    def by_layer(self) -> dict[str, dict[str, float]]:
        """Return all statistics for each layer by name; nan where a layer was not run."""
        totals, _ = self._totals()
        result = {}
        for row, (name, shares) in enumerate(zip(self.layers, self._shares(), strict=True)):
            statistics = _statistics({quantity: total[row] for quantity, total in totals.items()}, shares)
            result[name] = {each: value.item() for each, value in statistics.items()}
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
        histograms = [histograms[row] for histograms in self._gathered(self._histograms) for row in rows]
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
        neurons: dict[tuple[int, tuple[int, ...]], tuple[Any, int]] = {}
        for part in self._gathered(self._neurons):
            for key, (counts, steps) in part.items():
                before, steps_before = neurons.get(key, (0, 0))
                neurons[key] = before + counts, steps_before + steps
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
