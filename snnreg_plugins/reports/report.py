"""What a spiking network scores and spends, beside the DNN that it was exported from: numbers, tables, figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from snnreg_plugins._files import added_later
from snnreg_plugins._text import (
    Column,
    Note,
    Row,
    Table,
    estimate,
    in_joules,
    in_percent,
    in_rate,
    in_short,
    over,
    span,
    tick_count,
    tick_joules,
    tick_percent,
    times,
)
from snnreg_plugins.reports import pictures
from snnreg_plugins.reports.figures import Bar, Bars, Lines, Series, Stacks
from snnreg_plugins.reports.parts import DNNReport, LayerReport, StepReport
from snnreg_plugins.reports.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Report(Result):
    """What a spiking network scores and spends, beside its DNN if it has one; plain numbers.

    Made by :func:`~snnreg_plugins.report`.

    Args:
        samples: Number of samples measured.
        dnn: The DNN; None if the network was measured without one.
        steps: The spiking network at each T, ascending; of a network with a time loop of its own its own T alone.
        timesteps: The T of ``layers``.
        layers: The spiking network's layers, in the order they are computed in.
        table: Name of the energy table, or ``"custom"``.
        mac: pJ per MAC.
        ac: pJ per synaptic operation.
        source: Where these energies were published.
        score_name: What is scored: ``"accuracy"``, ``"mse"``, or a metric of torchmetrics in snake case.
        higher_is_better: Whether a higher score is better; None if that is not known.
        decisions: How many decisions an accuracy is the share of, where there is not one of each sample; else None.
    """

    samples: int
    dnn: DNNReport | None
    steps: tuple[StepReport, ...]
    timesteps: int
    layers: tuple[LayerReport, ...]
    table: str
    mac: float
    ac: float
    source: str
    score_name: str = added_later("accuracy")
    higher_is_better: bool | None = added_later(True)
    decisions: int | None = added_later(None)

    def misfit(self) -> str | None:
        """Tell whether the steps are ascending, with that of the layers among them, and all have a score."""
        parts: list[DNNReport | StepReport] = [*self.steps, *(() if self.dnn is None else (self.dnn,))]
        if not all(math.isfinite(part.score) for part in parts):
            return f"not all its parts have a score ({self.score_name})."
        if len({part.accuracy is None for part in parts}) > 1:
            return "some of its parts have an accuracy and some have none."
        steps = [step.timesteps for step in self.steps]
        if self.timesteps in steps and steps == sorted(set(steps)) and steps[0] >= 1:
            return None
        return f"it should report on ascending time steps, {self.timesteps} among them, and has {steps}."

    def at_timesteps(self) -> StepReport:
        """Find the numbers at the T of :attr:`layers`."""
        return next(step for step in self.steps if step.timesteps == self.timesteps)

    def break_even_rate(self, dense: bool = False) -> float | None:
        r"""Find the spike rate at which the spiking network spends as much as the DNN, at :attr:`timesteps`.

        .. math:: r^* = r \, \frac{E_\text{DNN} - E_\text{MACs}}{E_\text{SOPs}}

        as SOPs grow with the rate r, while the MACs of an analog first layer stay.

        Args:
            dense: Against a DNN that skips no zeros.

        Returns:
            Spikes/neuron/step; below it the spiking network spends less. None if there are no SOPs, or no DNN.
        """
        step, dnn = self.at_timesteps(), self.dnn
        spent = 1e-12 * step.sops * self.ac
        if dnn is None or step.spike_rate is None or not spent:
            return None
        return step.spike_rate * ((dnn.dense_energy if dense else dnn.energy) - (step.energy - spent)) / spent

    # What is shown.

    @property
    def score_title(self) -> str:
        """The name of the score as it is shown."""
        words = "MSE" if self.score_name == "mse" else self.score_name.replace("_", " ")
        return words[:1].upper() + words[1:]

    @property
    def is_accuracy(self) -> bool:
        """Whether the score is an accuracy."""
        return self.at_timesteps().accuracy is not None

    @property
    def decided(self) -> int | None:
        """Of how many samples an accuracy is the share; None if it is none of samples."""
        decisions = self.samples if self.decisions is None else self.decisions
        return decisions if self.is_accuracy and decisions <= self.samples else None

    def write_score(self, score: float) -> str:
        """Write a score."""
        return in_percent(score) if self.is_accuracy else f"{score:.4g}"

    @property
    def networks_title(self) -> str:
        """Which networks are shown."""
        return "SNN" if self.dnn is None else "DNN and SNN"

    def shown(self) -> Iterable[Table | Note]:
        """Give a table of DNN and SNN over T, one of the SNN's layers, and what they mean."""
        columns = (self.score_title, "Spike rate", "SOPs", "MACs", "Energy")
        yield self.networks().select(
            columns if self.dnn is None else (*columns, "/ sparse DNN"),
            f"{self.networks_title}, per sample (mean of {self.samples:,})",
        )
        yield self.by_layer()
        if self.break_even():
            yield Note(self.break_even())
        yield Note("\n".join(self.notes()), "small")

    def networks(self) -> Table:
        """Give the table of DNN and SNN over T, with all that is known of each."""
        dnn = self.dnn
        rows: list[tuple[Any, ...]] = [
            (f"SNN, T = {step.timesteps}", step.score, step.spike_rate, step.sops, step.effective_macs, step.energy)
            for step in self.steps
        ]
        compared: tuple[Column, ...] = ()
        if dnn is not None:
            rows = [
                ("DNN, dense", dnn.score, None, None, dnn.dense_macs, dnn.dense_energy),
                ("DNN, sparse", dnn.score, None, dnn.sops or None, dnn.effective_macs, dnn.energy),
                *rows,
            ]
            rows = [(*row, over(row[-1], dnn.energy), over(row[-1], dnn.dense_energy)) for row in rows]
            compared = Column("/ sparse DNN", times), Column("/ dense DNN", times)
        first = len(rows) - len(self.steps)
        marked = first + [step.timesteps for step in self.steps].index(self.timesteps)
        return Table(
            f"{self.networks_title}, per sample",
            (
                Column(""),
                Column(self.score_title, self.write_score),
                Column("Spike rate", in_rate),
                Column("SOPs", in_short),
                Column("MACs", in_short),
                Column("Energy", in_joules),
                *compared,
            ),
            tuple(Row(row, index == marked, int(index >= first)) for index, row in enumerate(rows)),
        )

    def scores(self) -> Table:
        """Give the table of scores, how sure accuracies are, and how far from that of the DNN (in points, if so)."""
        unit, decided, dnn = 100 if self.is_accuracy else 1, self.decided, self.dnn
        parts = [(f"SNN, T = {step.timesteps}", step.score) for step in self.steps]
        rows: list[tuple[Any, ...]] = [
            (name, score, *(() if decided is None else (interval(score, decided),)))
            for name, score in [*([] if dnn is None else [("DNN", dnn.score)]), *parts]
        ]
        sure = Column("95 % interval", lambda bounds: "{:.1f} to {:.1f} %".format(*(100 * bound for bound in bounds)))
        columns = [Column(""), Column(self.score_title, self.write_score), *([] if decided is None else [sure])]
        if dnn is not None:
            form = "{:+.2f}" if self.is_accuracy else "{:+.3g}"
            columns.append(Column("To DNN", lambda value: form.format(value).replace("-", "−")))
            rows = [(*row, unit * (row[1] - dnn.score) if index else None) for index, row in enumerate(rows)]
        marked = len(rows) - len(parts) + [step.timesteps for step in self.steps].index(self.timesteps)
        between = f", and the {'points' if self.is_accuracy else 'difference'} between them"
        return Table(
            f"{self.score_title} of {self.networks_title}{'' if dnn is None else between}",
            tuple(columns),
            tuple(Row(row, index == marked) for index, row in enumerate(rows)),
        )

    def by_layer(self) -> Table:
        """Give the table of the SNN's layers, and of all of them together."""
        total = self.at_timesteps()
        rows = [
            (
                layer.name,
                layer.kind,
                None if layer.threshold_min is None else (layer.threshold_min, layer.threshold_max),
                layer.spike_rate,
                layer.updates,
                None if layer.effective_macs and not layer.sops else layer.sops,
                layer.effective_macs or None,
                layer.energy,
            )
            for layer in self.layers
        ]
        updates = sum(layer.updates or 0 for layer in self.layers)
        of_all = ("total", None, None, total.spike_rate, updates, total.sops, total.effective_macs, total.energy)
        return Table(
            f"SNN by layer at T = {self.timesteps}, per sample",
            (
                Column("Layer"),
                Column("Kind", words=True),
                Column("Threshold", lambda bounds: span(*bounds)),
                Column("Spike rate", in_rate),
                Column("Updates", in_short),
                Column("SOPs", in_short),
                Column("MACs", in_short),
                Column("Energy", in_joules),
            ),
            (*(Row(row) for row in rows), Row(of_all, marked=True, group=1)),
        )

    def break_even(self) -> str:
        """Say at which spike rate the SNN spends as much as the DNN; nothing if there is none."""
        step, rates = self.at_timesteps(), (self.break_even_rate(), self.break_even_rate(dense=True))
        if not step.sops:
            return "No spike reaches a synapse."
        if rates[0] is None or rates[1] is None or step.spike_rate is None:
            return ""
        return (
            f"At T = {step.timesteps} the SNN spends as much as the sparse DNN at {in_rate(rates[0])} "
            f"spikes/neuron/step, as the dense one at {in_rate(rates[1])}; it has {in_rate(step.spike_rate)}."
        )

    def notes(self) -> tuple[str, ...]:
        """Say what the numbers mean."""
        compared = "" if self.dnn is None else "Dense: every input counted; sparse: zeros skipped. "
        return (
            "Updates: neurons times steps, and additions of the readout. SOP: one spike at one synapse. MAC: one "
            f"real-valued input at one synapse. {compared}The SNN's MACs come from real-valued input, as at its analog "
            "first layer, and are part of its energy.",
            self.estimated(),
        )

    def estimated(self) -> str:
        """Say what the energy is."""
        return estimate(
            self.source,
            "Arithmetic at synapses only: no neuron updates, memory access, communication or static power.",
            f"{self.mac:.3g} pJ per MAC and {self.ac:.3g} pJ per SOP",
        )

    # What is drawn.

    def panels(self) -> tuple[float, Sequence[Callable[[Axes], None]]]:
        """Draw score and operations over T, and the spike rate by layer."""
        figures = (
            partial(pictures.lines, figure=self.score_figure()),
            partial(pictures.lines, figure=self.operations_figure()),
            partial(pictures.bars, figure=self.rates_figure()),
        )
        return max(4.0, 1.8 + 0.24 * len(self.rates_figure().bars)), figures

    def score_figure(self) -> Lines:
        """Give the score over T."""
        first, last, dnn = self.steps[0], self.steps[-1], self.dnn
        better = {True: " (higher is better)", False: " (lower is better)", None: ""}[self.higher_is_better]
        correct = f"{'Labels' if self.decided is None else 'Samples'} correct"
        name = "accuracy" if self.is_accuracy else self.score_title
        return Lines(
            title=self.score_title,
            unit=correct if self.is_accuracy else f"{self.score_title}{better}",
            steps=self._steps(),
            series=(Series("SNN", tuple(step.score for step in self.steps), "snn"),),
            levels=() if dnn is None else (Series("DNN", (dnn.score,), "dnn"),),
            marked=self.timesteps,
            said=f"Line chart. The SNN's {name} goes from {self.write_score(first.score)} at T = {first.timesteps} to "
            f"{self.write_score(last.score)} at T = {last.timesteps}"
            + ("." if dnn is None else f"; the DNN has {self.write_score(dnn.score)}."),
            write=tick_percent if self.is_accuracy else "{:.3g}".format,
        )

    def operations_figure(self) -> Lines:
        """Give operations over T; what is 0 everywhere is left out."""
        step, dnn = self.at_timesteps(), self.dnn
        series = (
            Series("SNN, SOPs", tuple(step.sops for step in self.steps), "snn"),
            Series("SNN, analog MACs", tuple(step.effective_macs for step in self.steps), "mac"),
        )
        levels: tuple[Series, ...] = ()
        if dnn is not None:
            effective = "DNN, effective MACs" + (" + SOPs" if dnn.sops else "")
            levels = (
                Series(effective, (dnn.effective_macs + dnn.sops,), "dnn"),
                Series("DNN, dense MACs", (dnn.dense_macs,), "dense"),
            )
        return Lines(
            title="Operations",
            unit="Operations / sample",
            steps=self._steps(),
            series=_drawn(series),
            levels=_drawn(levels),
            marked=self.timesteps,
            said=f"Line chart with a logarithmic axis. At T = {step.timesteps} the SNN needs {in_short(step.sops)} "
            f"SOPs and {in_short(step.effective_macs)} MACs per sample"
            + (
                "."
                if dnn is None
                else f"; the DNN {in_short(dnn.effective_macs)} MACs if zeros are skipped, {in_short(dnn.dense_macs)} "
                "if not."
            ),
            write=tick_count,
            logarithmic=True,
        )

    def energy_figure(self) -> Stacks:
        """Give energy over T, that of MACs and that of SOPs stacked to the SNN's energy, beside the DNN's."""
        step, dnn = self.at_timesteps(), self.dnn
        parts = (
            Series("SNN, analog MACs", tuple(1e-12 * self.mac * step.effective_macs for step in self.steps), "mac"),
            Series("SNN, SOPs", tuple(1e-12 * self.ac * step.sops for step in self.steps), "snn"),
        )
        levels: tuple[Series, ...] = ()
        if dnn is not None:
            levels = Series("DNN, sparse", (dnn.energy,), "dnn"), Series("DNN, dense", (dnn.dense_energy,), "dense")
        return Stacks(
            title="Energy",
            unit="J / sample",
            steps=self._steps(),
            parts=_drawn(parts),
            levels=levels,
            marked=self.timesteps,
            said=f"Bar chart. At T = {step.timesteps} the SNN spends an estimated {in_joules(step.energy)} per sample"
            + (
                "."
                if dnn is None
                else f"; the DNN {in_joules(dnn.energy)} if zeros are skipped, {in_joules(dnn.dense_energy)} if not."
            ),
            write=tick_joules,
        )

    def layers_figure(self) -> Bars:
        """Give the operations of each synaptic layer."""
        synaptic = [layer for layer in self.layers if layer.sops is not None]
        most = max(synaptic, key=lambda layer: layer.sops or 0.0, default=None)
        bars = tuple(map(_operations, synaptic))
        kinds = (Series("SOPs", (), "snn"), Series("MACs of real-valued input", (), "mac"))
        return Bars(
            title="Operations per sample",
            unit="Operations / sample",
            bars=bars,
            kinds=tuple(kind for kind in kinds if kind.role == "snn" or any(bar.role == "mac" for bar in bars)),
            said="Bar chart of operations by layer."
            + (f" The most SOPs, {in_short(most.sops or 0.0)} per sample, are at {most.name}." if most else ""),
        )

    def rates_figure(self) -> Bars:
        """Give the spike rate of each layer of neurons."""
        rates = [(layer.name, layer.spike_rate) for layer in self.layers if layer.spike_rate is not None]
        fastest = max(rates, key=lambda one: one[1], default=None)
        return Bars(
            title=f"Spike rate by layer at T = {self.timesteps}",
            unit="Spikes / neuron / step",
            bars=tuple(Bar(name, rate, in_rate(rate)) for name, rate in rates),
            kinds=(),
            said="Bar chart of spike rates by layer."
            + (f" The highest, {in_rate(fastest[1])}, is that of {fastest[0]}." if fastest else ""),
        )

    def _steps(self) -> tuple[int, ...]:
        return tuple(step.timesteps for step in self.steps)


def _drawn(series: Iterable[Series]) -> tuple[Series, ...]:
    """Leave out what is 0 everywhere."""
    return tuple(one for one in series if any(one.values))


def _operations(layer: LayerReport) -> Bar:
    sops, macs = layer.sops or 0.0, layer.effective_macs
    if not macs:
        return Bar(layer.name, sops, in_short(sops))
    written = f"{in_short(macs)} MACs" + (f" + {in_short(sops)} SOPs" if sops else "")
    return Bar(layer.name, macs + sops, written, "mac")


def interval(accuracy: float, samples: int) -> tuple[float, float]:
    """Give Wilson's 95 % interval of a share that was counted on some samples.

    Example:
        >>> [round(bound, 3) for bound in interval(0.95, 100)]
        [0.888, 0.978]
    """
    z2 = 1.96**2 / samples
    middle = (accuracy + z2 / 2) / (1 + z2)
    half = math.sqrt(max(accuracy * (1 - accuracy), 0.0) * z2 + z2**2 / 4) / (1 + z2)
    return max(middle - half, 0.0), min(middle + half, 1.0)
