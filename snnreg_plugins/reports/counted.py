"""From what was counted to what a report holds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from operator import add
from typing import Any, NamedTuple

import torch
from torch import Tensor

from snnreg_plugins.functional.costs import LayerFacts
from snnreg_plugins.metrics.scores import Score
from snnreg_plugins.reports.parts import DNNReport, LayerReport, StepReport
from snnreg_plugins.watching.layers import is_spiking_neuron
from snnreg_plugins.watching.tally import Tally


class Counts(NamedTuple):
    """What layers did, summed over samples; the quantities of a :class:`Tally`."""

    sops: int
    effective_macs: int
    dense_macs: int
    spikes: int
    neuron_steps: int

    @classmethod
    def of(cls, tally: Tally, names: Iterable[str], timesteps: int | None = None) -> Counts:
        """Sum up some rows, over the first time steps."""
        names = tuple(names)
        return cls(*(sum(map(tally.by_layer(quantity, timesteps).__getitem__, names)) for quantity in cls._fields))

    def plus(self, more: Counts) -> Counts:
        """Add what others did."""
        return Counts(*map(add, self, more))


class Answers:
    """How often each class, or each of two labels, is right."""

    def __init__(self) -> None:
        self._found: Counter[int] | None = Counter()

    def add(self, targets: Tensor) -> None:
        """Add targets of a batch; those below 0 are none."""
        if targets.is_floating_point() or targets.is_complex():
            self._found = None
        elif self._found is not None:
            self._found.update(targets[targets >= 0].int().tolist())

    def chance(self) -> float | None:
        """Give how often the most frequent answer is right, a share; None where targets are no classes or labels."""
        return max(self._found.values()) / self._found.total() if self._found else None


def _scored(score: Score) -> dict[str, Any]:
    value = score.compute()
    if not math.isfinite(value):
        raise ValueError(f"Expected a finite score, but the {score.name} of the outputs on `data` is {value}.")
    return {"accuracy": value if score.is_accuracy else None, "score": value}


def dnn_report(score: Score, counts: Counts, samples: int, facts: Sequence[LayerFacts]) -> DNNReport:
    """Say what a DNN did with some samples; what it spent is not told yet."""
    return DNNReport(
        **_scored(score),
        sops=counts.sops / samples,
        effective_macs=counts.effective_macs / samples,
        dense_macs=counts.dense_macs / samples,
        energy=None,
        dense_energy=0.0,
        facts=tuple(facts),
    )


def step_report(timesteps: int, score: Score, counts: Counts, samples: int, facts: Sequence[LayerFacts]) -> StepReport:
    """Say what a run of a spiking network over some time steps did with some samples; not yet what it spent."""
    return StepReport(
        timesteps=timesteps,
        **_scored(score),
        spike_rate=counts.spikes / counts.neuron_steps if counts.neuron_steps else None,
        updates=counts.neuron_steps / samples,
        sops=counts.sops / samples,
        effective_macs=counts.effective_macs / samples,
        energy=0.0,
        facts=tuple(facts),
    )


def layer_report(name: str, layer: Any, counts: Counts, samples: int) -> LayerReport:
    """Say what a layer did with some samples; not yet what it spent."""
    emits = bool(counts.neuron_steps)
    # What codes an input spikes too, by no threshold; other frameworks call it otherwise.
    threshold = getattr(layer, "threshold", None) if emits and is_spiking_neuron(layer) else None
    thresholds = None if threshold is None else torch.as_tensor(threshold)
    multiplies = not emits or counts.dense_macs > 0  # recurrent neurons do both
    return LayerReport(
        name,
        type(layer).__name__,
        threshold_min=None if thresholds is None else float(thresholds.min()),
        threshold_max=None if thresholds is None else float(thresholds.max()),
        spike_rate=counts.spikes / counts.neuron_steps if emits else None,
        updates=counts.neuron_steps / samples if emits else None,
        sops=counts.sops / samples if multiplies else None,
        effective_macs=counts.effective_macs / samples if multiplies else None,
    )
