"""What a report holds of the DNN, of each number of time steps, and of each layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from snnreg_plugins._files import added_later
from snnreg_plugins.functional.costs import LayerFacts


@dataclass(frozen=True)
class About:
    """What was measured, and when; empty where that is not known.

    Args:
        network: Class of the DNN, or of the network that spikes already.
        data: Class of the data module, or of the data set.
        penalty: How activity was shaped in training.
        date: The day of the measurement, ``"2026-11-26"``.
        version: That of this package.
    """

    network: str = added_later("")
    data: str = added_later("")
    penalty: str = added_later("")
    date: str = added_later("")
    version: str = added_later("")

    def title(self) -> str:
        """Say what was measured."""
        what = " on ".join(part for part in (self.network, self.data) if part)
        return ", ".join(part for part in (what, self.penalty) if part)

    def lines(self) -> tuple[str, str]:
        """Say what was measured, and when and by which version."""
        version = f"snnreg_plugins {self.version}" if self.version else ""
        return self.title(), ", ".join(part for part in (self.date, version) if part)


@dataclass(frozen=True)
class DNNReport:
    """What the DNN scores and spends.

    Args:
        accuracy: Share of samples classified correctly (of labels given rightly, where a sample has several), in
            [0, 1]; None if the score is none.
        sops: SOPs/sample: of layers with integer-valued input, such as a binary image; else 0.
        effective_macs: MACs/sample of real-valued input, zeros skipped.
        dense_macs: MACs/sample, nothing skipped.
        energy: J/sample on hardware that skips zeros, by the report's :attr:`~Report.table`; None where that has no
            price for such.
        dense_energy: J/sample on hardware that skips nothing.
        score: The score, see :attr:`Report.score_name`; an accuracy is that.
        facts: What each of its layers does, for models of cost; empty if that was not kept.
    """

    accuracy: float | None
    sops: float
    effective_macs: float
    dense_macs: float
    energy: float | None
    dense_energy: float
    score: float = added_later(math.nan)
    facts: tuple[LayerFacts, ...] = added_later(())

    def __post_init__(self) -> None:
        """An accuracy is the score."""
        _fill_in(self)


@dataclass(frozen=True)
class StepReport:
    """What a run of the spiking network over T time steps scores and spends.

    Args:
        timesteps: T.
        accuracy: Share of samples classified correctly, or of labels, in [0, 1]; None if the score is none.
        spike_rate: Spikes/neuron/step, over all neurons and the T steps; None if there are no neurons.
        updates: Neuron updates/sample: neurons times steps. Not part of the energy.
        sops: SOPs/sample.
        effective_macs: MACs/sample of layers with real-valued input, as the analog first layer, which is computed once.
        energy: J/sample by the report's :attr:`~Report.table`, MACs included.
        score: The score, see :attr:`Report.score_name`; an accuracy is that.
        facts: What each layer does, for models of cost; empty if that was not kept.
    """

    timesteps: int
    accuracy: float | None
    spike_rate: float | None
    updates: float
    sops: float
    effective_macs: float
    energy: float
    score: float = added_later(math.nan)
    facts: tuple[LayerFacts, ...] = added_later(())

    def __post_init__(self) -> None:
        """An accuracy is the score."""
        _fill_in(self)


def _fill_in(part: DNNReport | StepReport) -> None:
    if part.accuracy is not None:
        object.__setattr__(part, "score", part.accuracy)


@dataclass(frozen=True)
class LayerReport:
    """What one layer of the spiking network does: a neuron layer, a synaptic layer, or a recurrent one that is both.

    What does not apply is None.

    Args:
        name: Its name in the DNN.
        kind: Its class.
        threshold_min: Lowest threshold of the layer's channels; the threshold where there is but one.
        threshold_max: Highest threshold of the layer's channels.
        spike_rate: Spikes/neuron/step.
        updates: Neuron updates/sample; of the readout, which sums up the scores, additions.
        sops: SOPs/sample.
        effective_macs: MACs/sample.
        energy: J/sample.
    """

    name: str
    kind: str
    threshold_min: float | None = None
    threshold_max: float | None = None
    spike_rate: float | None = None
    updates: float | None = None
    sops: float | None = None
    effective_macs: float | None = None
    energy: float | None = None
