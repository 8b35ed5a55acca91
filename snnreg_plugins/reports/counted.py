"""From what was counted to what a report holds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from operator import add
from typing import Any, NamedTuple

import torch

from snnreg_plugins.functional.energy import EnergyTable, energy
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


def _scored(score: Score) -> dict[str, Any]:
    value = score.compute()
    if not math.isfinite(value):
        raise ValueError(f"Expected a finite score, but the {score.name} of the outputs on `data` is {value}.")
    return {"accuracy": value if score.is_accuracy else None, "score": value}


def dnn_report(score: Score, counts: Counts, samples: int, prices: EnergyTable) -> DNNReport:
    """Say what a DNN did with some samples."""
    return DNNReport(
        **_scored(score),
        sops=counts.sops / samples,
        effective_macs=counts.effective_macs / samples,
        dense_macs=counts.dense_macs / samples,
        energy=energy(counts.sops, counts.effective_macs, prices) / samples,
        dense_energy=energy(0, counts.dense_macs, prices) / samples,
    )


def step_report(timesteps: int, score: Score, counts: Counts, samples: int, prices: EnergyTable) -> StepReport:
    """Say what a run of a spiking network over some time steps did with some samples."""
    return StepReport(
        timesteps=timesteps,
        **_scored(score),
        spike_rate=counts.spikes / counts.neuron_steps if counts.neuron_steps else None,
        updates=counts.neuron_steps / samples,
        sops=counts.sops / samples,
        effective_macs=counts.effective_macs / samples,
        energy=energy(counts.sops, counts.effective_macs, prices) / samples,
    )


def layer_report(name: str, layer: Any, counts: Counts, samples: int, prices: EnergyTable) -> LayerReport:
    """Say what a layer did with some samples."""
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
        energy=energy(counts.sops, counts.effective_macs, prices) / samples if multiplies else None,
    )
