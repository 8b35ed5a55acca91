"""What a profile tells, and how it looks in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from snnreg_plugins._files import added_later
from snnreg_plugins._pictures import plot_layers
from snnreg_plugins._text import Column, Note, Row, Table, estimate, in_joules, in_percent, in_rate, in_short
from snnreg_plugins.reports.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class LayerProfile:
    """What a layer does, per sample. What does not apply is None.

    Args:
        name: Its name in the model.
        kind: Its class.
        calls: Calls for the whole batch.
        sops: SOPs/sample of integer-valued input.
        effective_macs: MACs/sample of real-valued input, zeros skipped.
        dense_macs: MACs/sample of all input, at every call.
        spike_rate: Spikes/neuron/step of a neuron layer; of real-valued activity, the share that is not zero.
        energy: J/sample; None where the table has no price for the layer's MACs.
        dense_energy: J/sample of the same layer in a DNN that skips no zeros and computes once.
    """

    name: str
    kind: str
    calls: int
    sops: float | None = None
    effective_macs: float | None = None
    dense_macs: float | None = None
    spike_rate: float | None = None
    energy: float | None = None
    dense_energy: float | None = None


@dataclass(frozen=True)
class ModelProfile:
    """What a network costs by one model, per sample.

    Args:
        name: Name of the model.
        title: What it is.
        unit: Of all numbers: ``"J"`` or ``"EFLOPs"``.
        source: Where its numbers were published.
        left_out: What it does not price.
        total: All of it.
        macs: Of it, that of MACs.
        synapses: Of it, that of SOPs.
        neurons: Of it, that of neuron updates.
        memory: Of it, that of accesses to memory.
        dense: The same layers in a DNN that skips no zeros and computes once; None if there is no price for one.
        layers: Of each layer, with the neurons that it drives; None where its operations have no price.
        unpriced: Operations (SOPs and MACs) that have no price, and are in no number above.
    """

    name: str
    title: str
    unit: str
    source: str
    left_out: tuple[str, ...]
    total: float
    macs: float
    synapses: float
    neurons: float
    memory: float
    dense: float | None
    layers: dict[str, float | None]
    unpriced: float = added_later(0.0)

    @property
    def has_none(self) -> bool:
        """Tell whether nothing of what the network does has a price."""
        return not self.total and self.unpriced > 0

    def written(self, value: float) -> str:
        """Write a cost."""
        return in_joules(value) if self.unit == "J" else in_short(value)


@dataclass(frozen=True)
class Profile(Result):
    """What a network spends; plain numbers. Made by :func:`profile`.

    Args:
        model: Class of the network.
        samples: Samples in the batch.
        timesteps: Time steps that the network was stepped through from outside; None if it was called once.
        spiking: Whether it has spiking neurons.
        layers: Its layers, in the order they were first called in; those never called are in ``unused``.
        unused: Names of layers that were not called.
        uncounted: Names of modules whose operations are not counted in full, such as `nn.Bilinear`.
        sops: SOPs/sample.
        effective_macs: MACs/sample of real-valued input, zeros skipped.
        dense_macs: MACs/sample of all input, at every call.
        spike_rate: Spikes/neuron/step over all neuron layers; None if there are none.
        energy: J/sample. With a table that has no price for MACs, that of the SOPs alone.
        dense_energy: J/sample of the same layers in a DNN that skips no zeros and computes once; None if MACs have
            no price.
        left_out: Names of layers that have no price and are not in ``energy``: MACs where the table has none for them,
            products outside of layers where memory access is to be told.
        breakdown: What spends ``energy``, in J/sample, where the model of energy tells.
        table: Name of the model of cost, the first of them if there are several; ``"custom"`` for prices of your own.
            ``energy``, ``dense_energy``, ``left_out`` and ``breakdown`` are by it.
        source: Where its energies were published.
        unit: Of ``energy``: ``"J"``, or ``"EFLOPs"``.
        models: The same by each model.
        count_zero_weights: Whether a weight that is exactly zero is a synapse, in operations and costs; None if that is
            so in operations, and in costs where the model says nothing else.
        zero_weights: Share of the weights that are exactly zero; None if they were not looked at.
    """

    model: str
    samples: int
    timesteps: int | None
    spiking: bool
    layers: tuple[LayerProfile, ...]
    unused: tuple[str, ...]
    uncounted: tuple[str, ...]
    sops: float
    effective_macs: float
    dense_macs: float
    spike_rate: float | None
    energy: float
    dense_energy: float | None
    left_out: tuple[str, ...]
    breakdown: dict[str, float] | None
    table: str
    source: str
    unit: str = added_later("J")
    models: tuple[ModelProfile, ...] = added_later(())
    count_zero_weights: bool | None = added_later(None)
    zero_weights: float | None = added_later(None)

    def shown(self) -> Iterator[Table | Note]:
        """Give a table of the layers with the totals, and what the numbers mean."""
        yield self._by_layer()
        if len(self.models) > 1:
            yield self._by_model()
        yield from (Note(sentence, "small") for sentence in self._notes())

    def panels(self) -> tuple[float, Sequence[Callable[[Axes], None]]]:
        """Give the height of a picture of the energy by layer."""
        energies = {layer.name: layer.energy for layer in self.layers if layer.energy is not None}

        def draw(axes: Axes) -> None:
            plot_layers(energies, f"{self._title} by layer", f"{self.unit} / sample", axes)

        return 1.5 + 0.3 * len(energies), [draw]

    def _by_layer(self) -> Table:
        spiking = self.spiking or self.sops > 0
        columns = (
            Column("Layer"),
            Column("Kind", words=True),
            Column("Calls"),
            Column("Rate", in_rate),
            *([Column("SOPs", in_short)] if spiking else []),
            Column("MACs", in_short),
            Column("Dense\nMACs", in_short),
            Column(self._title, lambda value: value if isinstance(value, str) else self._written(value)),
            Column("Dense\nDNN", self._written),
        )
        rows = [
            Row(
                (layer.name, layer.kind, layer.calls, layer.spike_rate, *_operations(layer, spiking), *_energies(layer))
            )
            for layer in self.layers
        ]
        macs = (self.effective_macs, self.dense_macs)
        counts = (self.spike_rate, *([self.sops] if spiking else []), *macs)
        energy = "no price" if self.models and self.models[0].has_none else self.energy
        rows.append(Row(("total", "", None, *counts, energy, self.dense_energy), group=1))
        stepped = f", {self.timesteps} steps" if self.timesteps else ""
        return Table(f"{self.model}, per sample (mean of {self.samples:,}{stepped})", columns, tuple(rows))

    def _by_model(self) -> Table:
        """Give what the network costs by each model, none of which adds up with another."""
        rows = []
        for model in self.models:
            parts = (model.macs, model.synapses, model.neurons, model.memory)
            cells = (*(part or None for part in parts), model.dense)
            total = "no price" if model.has_none else model.written(model.total)
            rows.append(Row((model.title, total, *(None if cell is None else model.written(cell) for cell in cells))))
        names = ("Total", "MACs", "Synapses", "Neurons", "Memory", "Dense\nDNN")
        return Table("By each model, per sample", (Column("Model"), *map(Column, names)), tuple(rows))

    @property
    def _title(self) -> str:
        return "Energy" if self.unit == "J" else self.unit

    def _written(self, value: float) -> str:
        return in_joules(value) if self.unit == "J" else in_short(value)

    def _notes(self) -> Iterator[str]:
        yield (
            "Rate: spikes/neuron/step, or the share of active units. SOP: one spike at one synapse. MAC: one non-zero "
            "real-valued input at one synapse; dense: every input at every call. Dense DNN: the same layers computed "
            "once, nothing skipped."
        )
        if self.breakdown is not None:
            parts = ", ".join(f"{name} {self._written(value)}" for name, value in self.breakdown.items() if value)
            yield f"Of the energy: {parts}."
        if self.left_out and self._prices_no_macs:
            yield (
                f"Not in the energy: the MACs of {', '.join(self.left_out)}, whose input is real-valued. The table has "
                "no price for MACs."
            )
        elif self.left_out:
            yield f"Not in the energy: the products of {', '.join(self.left_out)}, which are in no synaptic layer."
        yield from (
            f"Not in the total of {model.title}: {in_short(model.unpriced)} operations that it has no price for."
            for model in self.models[1:]
            if model.unpriced
        )
        if self.zero_weights or (self.zero_weights is not None and self.count_zero_weights is not None):
            no = "no " if self.count_zero_weights is False else ""
            yield f"{in_percent(self.zero_weights)} of the weights are exactly zero: {no}synapses in these counts."
        if self.uncounted:
            yield f"Not counted in full: {', '.join(self.uncounted)}."
        if self.unused:
            yield f"Not called as layers: {', '.join(self.unused)}."
        if len(self.models) > 1:
            yield "Estimates from published numbers, not measurements; those of two models never add up."
            yield from (f"{model.title}: {model.source}. {_without(model)}" for model in self.models)
        elif self.unit == "J":
            yield estimate(self.source, *map(_without, self.models))
        else:
            yield f"{self.unit}: {self.source}. {_without(self.models[0])}"

    @property
    def _prices_no_macs(self) -> bool:
        return self.dense_energy is None and self.breakdown is None


def _without(model: ModelProfile) -> str:
    return f"Without {', '.join(model.left_out)}." if model.left_out else ""


def _operations(layer: LayerProfile, spiking: bool) -> tuple[float | None, ...]:
    sops = None if layer.effective_macs and not layer.sops else layer.sops
    return (*([sops] if spiking else []), layer.effective_macs or None, layer.dense_macs)


def _energies(layer: LayerProfile) -> tuple[float | str | None, float | None]:
    unpriced = layer.dense_macs is not None and layer.energy is None
    return "no price" if unpriced else layer.energy, layer.dense_energy
