"""What runs score and spend beside each other: numbers and tables."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snnreg_plugins._text import (
    Column,
    Note,
    Row,
    Table,
    estimate,
    in_rate,
    in_short,
    over,
    times,
)
from snnreg_plugins.reports import beside
from snnreg_plugins.reports.differences import Differences, differences, shortened, told, without_module
from snnreg_plugins.reports.folder import require_page, write_text
from snnreg_plugins.reports.page import COMPARED, rendered
from snnreg_plugins.reports.parts import LayerReport
from snnreg_plugins.reports.priced import ModelReport
from snnreg_plugins.reports.report import Report
from snnreg_plugins.reports.result import Result
from snnreg_plugins.reports.verdict import written

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: The most runs that a table and a picture have room for.
MOST = 6
# Lines of settings that a terminal shows.
_LINES = 12


@dataclass(frozen=True)
class ComparedRun:
    """One of the runs that are compared.

    Args:
        name: Its name; no other one has it.
        report: What its network scores and spends.
        settings: Those of its training and export, by name, as they are shown.
    """

    name: str
    report: Report
    settings: dict[str, str]


@dataclass(frozen=True)
class Comparison(Result):
    """What runs score and spend beside each other; the first one is what the others are compared with.

    Made by :func:`~snnreg_plugins.compare`.

    Args:
        runs: The runs, two to six; all have the same kind of score, and a number of time steps in common.
    """

    runs: tuple[ComparedRun, ...]

    def misfit(self) -> str | None:
        """Tell what keeps the runs from being compared; None if nothing does."""
        if not 2 <= len(self.runs) <= MOST:
            return f"there should be 2 to {MOST} runs to compare, and there are {len(self.runs)}."
        names = [run.name for run in self.runs]
        if len(set(names)) < len(names):
            return f"each run should have a name of its own, and they have {names}."
        for run in self.runs:
            if (wrong := run.report.misfit()) is not None:
                return f"of run {run.name!r} {wrong}"
        scores = {(report.score_name, report.is_accuracy): name for name, report in self._reports()}
        if len(scores) > 1:
            each = " and ".join(f"{name!r} has {score}" for (score, _), name in scores.items())
            return (
                f"they have other scores, which are not comparable: {each}. Measure all by one, such as by "
                "ExportReport(metric=...)."
            )
        if not self.steps():
            had = {name: [step.timesteps for step in report.steps] for name, report in self._reports()}
            each = ", ".join(f"{name!r} has {steps}" for name, steps in had.items())
            return (
                f"they have no number of time steps in common: {each}. Measure all at one, such as by "
                "ExportReport(steps=...)."
            )
        return None

    # What is asked of it.

    def steps(self) -> tuple[int, ...]:
        """Give the T that all runs have, ascending."""
        return tuple(sorted(set.intersection(*({step.timesteps for step in run.report.steps} for run in self.runs))))

    def labels(self) -> tuple[str, ...]:
        """Give what tells the runs' names apart, where they begin or end with the same words."""
        return shortened([run.name for run in self.runs])

    def model(self) -> ModelReport | None:
        """Give the model of cost that all runs are compared by, as the first run has it; None if they share none."""
        first = self.runs[0].report
        for name in first.chosen:
            if len({_identity(report, name) for _, report in self._reports()}) == 1:
                return first.model(name)
        return None

    def differing(self) -> Differences:
        """Give the settings that differ, each with the value of each run; None where it has none."""
        return differences([run.settings for run in self.runs], [run.name for run in self.runs])

    def _reports(self) -> Iterator[tuple[str, Report]]:
        return ((run.name, run.report) for run in self.runs)

    # What is shown.

    def shown(self) -> Iterable[Table | Note]:
        """Give what the runs score and spend, by T and by layer, and what differs in their settings."""
        yield Note("\n".join(self.verdict()), "strong")
        energy = ("Energy", "× energy") if self.model() else ()
        yield self.over_steps().select((self.score_title, "SOPs", "× SOPs", *energy), self.over_steps().caption)
        yield self.by_layer(operations=True).select(("SOPs", "× SOPs", "MACs", *energy), self.by_layer().caption)
        if lines := told(self.differing(), self.labels()):
            more = [] if len(lines) <= _LINES else [f"and {len(lines) - _LINES} more, which a page tells"]
            yield Note("Settings that differ\n" + "\n".join(f"  {line}" for line in [*lines[:_LINES], *more]))
        yield Note("\n".join((*self.apart(), *self.notes())), "small")

    @property
    def score_title(self) -> str:
        """The name of the score as it is shown."""
        return self.runs[0].report.score_title

    def verdict(self) -> tuple[str, ...]:
        """Say of each run what it scores and spends beside the first one, each at the T of its exported network."""
        first, (name, *names) = self.runs[0].report, self.labels()
        return tuple(self._beside(first, name, run.report, own) for run, own in zip(self.runs[1:], names, strict=True))

    def _beside(self, first: Report, name: str, other: Report, own: str) -> str:
        before, now = first.at_timesteps(), other.at_timesteps()
        costs = [f"{in_short(now.sops)} SOPs for {in_short(before.sops)}{_share(now.sops, before.sops)}"]
        if (model := self.model()) is not None:
            spent, spends = (report.model(model.name).steps[report.index].total for report in (first, other))
            told = f"{written(spends, model.unit)} for {written(spent, model.unit)}"
            costs.append(f"{told}{_share(spends, spent)} {model.phrase}")
        return (
            f"{own} at T = {now.timesteps} beside {name} at T = {before.timesteps}: "
            f"{first.score_title if first.score_name == 'mse' else first.score_title.lower()} "
            f"{other.write_score(now.score)} ({self._to_first(first, other, before.score, now.score)}), "
            f"{', '.join(costs)}."
        )

    def _to_first(self, first: Report, other: Report, before: float, now: float) -> str:
        if not first.is_accuracy:
            return f"{now - before:+.3g}".replace("-", "−")
        errors = [_error(report, score) for report, score in ((first, before), (other, now))]
        sure = "" if None in errors else f" ± {100 * math.hypot(*(error or 0.0 for error in errors)):.2f}"
        return f"{100 * (now - before):+.2f}{sure} points".replace("-", "−")

    def over_steps(self) -> Table:
        """Give the table of all runs at each T that they have in common, and of their DNNs."""
        first, rows, model = self.runs[0].report, [], self.model()
        for label, run in zip(self.labels(), self.runs, strict=True):
            if run.report.dnn is not None:
                dnn, spent = run.report.dnn, _spent_by_dnn(run.report, model)
                energy = spent, _times(spent, _spent_by_dnn(first, model))
                rows.append(Row((f"DNN, {label}", dnn.score, None, None, None, None, dnn.effective_macs, *energy)))
        for group, timesteps in enumerate(self.steps(), start=1):
            base = _at(first, timesteps)
            for label, run in zip(self.labels(), self.runs, strict=True):
                step, spent = _at(run.report, timesteps), _spent(run.report, model, timesteps)
                cells = (
                    f"T = {timesteps}, {label}",
                    step.score,
                    None if run is self.runs[0] else step.score - base.score,
                    step.spike_rate,
                    step.sops,
                    over(step.sops, base.sops),
                    step.effective_macs,
                    spent,
                    _times(spent, _spent(first, model, timesteps)),
                )
                rows.append(Row(cells, timesteps == run.report.timesteps, group))
        columns = (
            Column(""),
            Column(self.score_title, first.write_score),
            Column("Points" if first.is_accuracy else "Difference", self._write_difference),
            Column("Spike rate", in_rate),
            Column("SOPs", in_short),
            Column("× SOPs", times),
            Column("MACs", in_short),
            Column("Energy", self._write_spent),
            Column("× energy", times),
        )
        return Table(f"Over T, per sample; ×: over those of {self.labels()[0]}", columns, tuple(rows))

    def _write_difference(self, difference: float) -> str:
        accuracy = self.runs[0].report.is_accuracy
        return (f"{100 * difference:+.2f}" if accuracy else f"{difference:+.3g}").replace("-", "−")

    def by_layer(self, operations: bool = False) -> Table:
        """Give the table of the layers, each of all runs that have it, at the T of the exported networks.

        Args:
            operations: Leave out layers without operations, as of neurons.
        """
        steps = dict.fromkeys(run.report.timesteps for run in self.runs)
        alike, spent = len(steps) == 1, self._spent_by_layer()
        rows = []
        for group, (name, of_runs) in enumerate(self._layers().items()):
            base = of_runs.get(self.labels()[0]) if alike else None
            for label, layer in of_runs.items():
                cells = (
                    f"{name}, {label}",
                    layer.spike_rate,
                    layer.sops,
                    _times(layer.sops, None if base is None else base.sops),
                    layer.effective_macs or None,
                    spent.get((label, layer.name)),
                    None
                    if base is None
                    else _times(spent.get((label, layer.name)), spent.get((self.labels()[0], base.name))),
                )
                if layer.sops or layer.effective_macs or (layer.spike_rate is not None and not operations):
                    rows.append(Row(cells, group=group))
        at = " and ".join(f"T = {step}" for step in steps)
        return Table(
            f"By layer at {at}, per sample" + ("" if alike else ", and so not comparable"),
            (
                Column("Layer"),
                Column("Spike rate", in_rate),
                Column("SOPs", in_short),
                Column("× SOPs", times),
                Column("MACs", in_short),
                Column("Energy", self._write_spent),
                Column("× energy", times),
            ),
            tuple(rows),
        )

    def _spent_by_layer(self) -> dict[tuple[str, str], float]:
        """Give what layers cost by the model, by label of the run and name."""
        model = self.model()
        if model is None:
            return {}
        return {
            (label, layer.name): layer.spent.total
            for label, run in zip(self.labels(), self.runs, strict=True)
            for layer in run.report.model(model.name).layers
        }

    def _write_spent(self, value: float) -> str:
        model = self.model()
        return written(value, "J" if model is None else model.unit)

    def _layers(self) -> dict[str, dict[str, LayerReport]]:
        """Give all layers by name, each by label of the runs that have it, in the order of the first run that has.

        A module around the network is no part of a layer's name, as that of fine-tuning is another one.
        """
        found: dict[str, dict[str, LayerReport]] = {}
        for label, run in zip(self.labels(), self.runs, strict=True):
            names = without_module([layer.name for layer in run.report.layers])
            for name, layer in zip(names, run.report.layers, strict=True):
                found.setdefault(name, {})[label] = layer
        return found

    def settings(self) -> Table:
        """Give the table of settings that differ."""
        columns = (Column("Setting"), *(Column(label, words=True) for label in self.labels()))
        rows = tuple(Row((name, *(value or "not set" for value in values))) for name, values in self.differing())
        return Table("Settings that differ", columns, rows)

    def apart(self) -> tuple[str, ...]:
        """Say what cannot be compared, or not quite."""
        return tuple(self._apart())

    def _apart(self) -> Iterator[str]:
        named = list(zip(self.labels(), (run.report for run in self.runs), strict=True))
        if len({report.samples for _, report in named}) > 1:
            each = ", ".join(f"{label} {report.samples:,}" for label, report in named)
            yield f"Measured on other numbers of samples ({each}): differences are partly those of the data."
        data = [name for name, _ in self.differing() if name.startswith("data.") or name == "data"]
        if data:
            yield f"Their data are set differently ({', '.join(data)}): scores may be of other test data."
        dense = {label: report.dnn.dense_macs for label, report in named if report.dnn is not None}
        if len(set(map(round, dense.values()))) > 1:
            each = ", ".join(f"{label} {in_short(macs)} dense MACs" for label, macs in dense.items())
            yield f"Their DNNs have other sizes: {each}."
        missing: dict[str, list[str]] = {}
        for name, of_runs in self._layers().items():
            if len(of_runs) < len(self.runs):
                missing.setdefault(" and ".join(of_runs), []).append(name)
        for labels, names in missing.items():
            yield f"Layers of {labels} alone: {', '.join(names)}."
        if self.model() is None:
            each = ", ".join(f"{label} by {report.table!r} ({report.source})" for label, report in named)
            yield (
                f"Energies are by other models and not compared: {each}. Measure all by one, such as by "
                "ExportReport(table=...)."
            )

    def notes(self) -> tuple[str, ...]:
        """Say what the numbers mean."""
        first = self.runs[0].report
        sure = "± is the standard error of the difference as if of other samples for each; of the same ones it is less."
        return (
            *([sure] if first.decided is not None else []),
            *([] if (model := self.model()) is None else [_about(model)]),
        )

    def save_page(self, path: str | os.PathLike[str]) -> None:
        """Write all of it as one page of HTML that needs nothing else; it appears when it is complete.

        Args:
            path: The page, a name that ends in .html.

        Raises:
            ValueError: If it is none, or that of a file which is something else.
        """
        require_page(Path(path))
        title = ", ".join(run.name for run in self.runs)
        content = {"title": title, "heading": COMPARED, "comparison": self, "figures": beside.figures(self)}
        write_text(rendered("comparison.html.jinja", content), path)

    # What is drawn.

    def panels(self) -> tuple[float, Sequence[Callable[[Axes], None]]]:
        """Draw the score over SOPs and over energy."""
        return beside.panels(self)

    def below(self) -> float:
        """Give the inches that the legends of the picture take below its panels."""
        return beside.below(self)


def _about(model: ModelReport) -> str:
    """Say what is called energy here."""
    left_out = f" It leaves out {', '.join(model.left_out)}." if model.left_out else ""
    if model.unit == "J":
        return estimate(model.source) + left_out
    return f"Energy stands for {model.unit}: {model.source}.{left_out}"


def _share(value: float, reference: float) -> str:
    ratio = over(value, reference)
    return "" if ratio is None else f" ({times(ratio)} of that)"


def _at(report: Report, timesteps: int) -> Any:
    return next(step for step in report.steps if step.timesteps == timesteps)


def _identity(report: Report, name: str) -> tuple[Any, ...] | None:
    """Tell what a model of cost is, so that two of one name are not taken for one; None if a report has none."""
    model = next((model for model in report.models if model.name == name), None)
    if model is None:
        return None
    prices = (report.mac, report.ac) if name == "custom" else ()
    return model.title, model.unit, model.source, model.left_out, model.counts_zero_weights, *prices


def _spent(report: Report, model: ModelReport | None, timesteps: int) -> float | None:
    """Give what a network costs by a model at a T."""
    index = [step.timesteps for step in report.steps].index(timesteps)
    return None if model is None else report.model(model.name).steps[index].total


def _spent_by_dnn(report: Report, model: ModelReport | None) -> float | None:
    """Give what the DNN that skips zeros costs by a model; None where it has no price for it."""
    sparse = () if model is None else report.model(model.name).sparse
    return sparse[report.index].total if sparse else None


def _times(value: float | None, reference: float | None) -> float | None:
    return None if value is None or reference is None else over(value, reference)


def _error(report: Report, accuracy: float) -> float | None:
    """Give the standard error of an accuracy; None if it is none of samples."""
    decided = report.decided
    return None if decided is None else math.sqrt(max(accuracy * (1 - accuracy), 0.0) / decided)
