"""The spike trains of a model's neurons: how often each one spikes, when first, and how long until its next."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from operator import add
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from snnreg_plugins._models import as_module
from snnreg_plugins.watching.hooks import uncompiled
from snnreg_plugins.watching.layers import is_spiking_neuron, time_dim
from snnreg_plugins.watching.simulated import SimulatedNetwork, names_in_dnn
from snnreg_plugins.watching.steps import steps_of_call
from snnreg_plugins.watching.watch import Watch


class Neurons(NamedTuple):
    """Neurons of a layer, for inputs of one size.

    Args:
        counts: How often each of them spiked.
        steps: In how many steps, summed over the samples.
    """

    counts: Tensor
    steps: int


#: By row and shape.
ByShape: TypeAlias = dict[tuple[int, tuple[int, ...]], Neurons]


class Trains(Watch):
    """Follows the spikes of each neuron through time; what is not 0 is a spike.

    Steps are counted from 0, in the calls of a neuron within a pass (or along the time axis of one that takes all steps
    at once) and on through passes that go on with the state of the last one.

    Args:
        model: The model to watch.
    """

    _kept: tuple[ByShape, list[list[int]]]  # of windows before

    quantities = ("spikes", "neuron_steps", "first_spikes", "first_steps", "intervals", "interval_steps")

    def __init__(self, model: nn.Module) -> None:
        names = names_in_dnn(as_module("model", model))
        layers = {names[path]: module for path, module in model.named_modules() if is_spiking_neuron(module)}
        super().__init__(model, layers, layers)

    def _attach(self) -> None:
        for layer in self.layers.values():
            self.hooks.after(layer, self._observe)

    def _forget(self) -> None:
        super()._forget()
        self._forget_earlier()
        # Of the samples under way, by layer: the next step, and the step of each neuron's last spike (-1: none).
        self._state: dict[int, tuple[int, Tensor]] = {}
        # Of the pass under way, by layer and step: the spikes, in parts of the batch.
        self._seen: dict[int, list[list[Tensor]]] = {}

    def _forget_window(self) -> None:
        super()._forget_window()
        self._neurons: ByShape = {}
        self._histograms: list[list[int]] = [[] for _ in self.names]

    def _keep_window(self) -> None:
        kept = self.neurons, self.histograms
        super()._keep_window()
        self._kept = kept

    def _forget_earlier(self) -> None:
        super()._forget_earlier()
        self._kept = {}, [[] for _ in self.names]

    @property
    def neurons(self) -> ByShape:
        """What each neuron did, by row and shape."""
        return all_merged([neurons for neurons, _ in self._spiked()])

    @property
    def histograms(self) -> list[list[int]]:
        """How often an interval of n steps occurred, at index n, by row."""
        by_row = zip(*(histograms for _, histograms in self._spiked()), strict=True)
        return [list(map(sum, zip_longest(*rows, fillvalue=0))) for rows in by_row] or [[] for _ in self.names]

    def _spiked(self) -> list[tuple[ByShape, list[list[int]]]]:
        parts = [self._kept] if self._shows_earlier else []
        return [*parts, (self._neurons, self._histograms)] if self._counts_now() else parts

    @uncompiled
    def _observe(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        spikes = output[0] if isinstance(output, tuple) else output
        dim = time_dim(layer)
        spikes = spikes.detach() != 0
        seen, held = self._seen.setdefault(self.index[layer], []), steps_of_call()
        if held is None:
            seen.extend([part] for part in ([spikes] if dim is None else spikes.unbind(dim)))
        else:
            for step, part in enumerate(spikes.tensor_split(held.steps), start=held.first_step):
                seen.extend([] for _ in range(step + 1 - len(seen)))
                seen[step].append(part)
        self._called(layer, args)

    def _ended(self, samples: int | None) -> None:
        seen, self._seen = self._seen, {}
        for row, steps in seen.items() if samples is not None else ():
            step, last = self._state.get(row, (0, None)) if self.continues else (0, None)
            for index, parts in enumerate(steps):
                if not parts:  # of a step that an earlier pass took
                    continue
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
        super()._ended(samples)

    def _running(self, step: int, samples: int) -> Tensor | None:
        """Tell which samples of the pass took a step, where a network lets some leave early."""
        for module in self.model.modules():
            taken = module.steps_taken if isinstance(module, SimulatedNetwork) else None
            if taken is not None and len(taken) == samples:
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
        for column, number in enumerate(numbers):
            self._counts.add(row, column, 0, [number])
        key = row, tuple(spikes.shape[1:])
        counts, steps = spikes.sum(0).cpu(), len(spikes)
        self._neurons = all_merged([self._neurons, {key: Neurons(counts, steps)}])
        return torch.where(spikes, step, last)


def all_merged(parts: Sequence[ByShape]) -> ByShape:
    """Put together what the same neurons did in different steps, samples or processes."""
    result: ByShape = {}
    for part in parts:
        for key, (counts, steps) in part.items():
            before = result.get(key)
            result[key] = Neurons(counts, steps) if before is None else Neurons(before[0] + counts, before[1] + steps)
    return result
