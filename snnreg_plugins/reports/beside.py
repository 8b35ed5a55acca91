"""What a comparison shows as figures: what runs score over what they spend, each with its T."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from snnreg_plugins._text import in_short, tick_count, tick_percent
from snnreg_plugins.reports import pictures
from snnreg_plugins.reports.figures import Curve, Plane, Point, Series
from snnreg_plugins.reports.verdict import written
from snnreg_plugins.reports.views import SHOWN, axis_of, curve, score_tick, score_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from snnreg_plugins.reports.comparison import Comparison
    from snnreg_plugins.reports.report import Report

_DNN = "DNN, zero-skipping"


def panels(found: Comparison) -> tuple[float, Sequence[Callable[[Axes], None]]]:
    """Draw score over SOPs, and over energy."""
    return 3.6 + below(found), [partial(pictures.plane, figure=one) for one in figures(found)]


def below(found: Comparison) -> float:
    """Give the inches that the legends of :func:`panels` take."""
    return max(map(pictures.below, figures(found)))


def figures(found: Comparison) -> list[Plane]:
    """Give score over SOPs, and over what all runs are compared by, if they share that."""
    return [score_over_sops(found), *([] if found.model() is None else [score_over_energy(found)])]


def score_over_sops(found: Comparison) -> Plane:
    """Give the score over SOPs, a curve for each run."""
    spent = [tuple(step.sops for step in run.report.steps) for run in found.runs]
    return _plane(found, "SOPs", spent, (), ("SOPs", tick_count), in_short)


def score_over_energy(found: Comparison) -> Plane:
    """Give the score over energy, or over what else the shared model counts, a curve for each run; DNNs as points."""
    model = found.model()
    if model is None:
        raise ValueError("Expected argument `found` to be of runs that share a model of cost, but these share none.")
    spent, points = [], []
    for colour, (label, run) in enumerate(zip(found.labels(), found.runs, strict=True)):
        own = run.report.model(model.name)
        spent.append(tuple(cost.total for cost in own.steps))
        dnn = own.baselines(run.report.index).get("zero-skipping")
        if dnn is not None and run.report.dnn is not None:
            points.append(Point(f"{_DNN}, {label}", dnn.total, run.report.dnn.score, "dnn", colour))
    unit, write = axis_of(model.unit, [*(cost for costs in spent for cost in costs), *(one.spent for one in points)])
    name = f"energy, {model.phrase}" if model.unit == "J" else model.unit
    return _plane(found, name, spent, points, (unit, write), lambda value: written(value, model.unit))


def _plane(
    found: Comparison,
    name: str,
    spent: Sequence[tuple[float, ...]],
    points: Sequence[Point],
    axis: tuple[str, Callable[[float], str]],
    write: Callable[[float], str],
) -> Plane:
    """Give the score over something that each run spends at each of its steps."""
    first, said = found.runs[0].report, []
    curves: list[Curve] = []
    for colour, (label, run, costs) in enumerate(zip(found.labels(), found.runs, spent, strict=True)):
        report = run.report
        curves += curve(report, label, costs, colour)
        own = report.write_score(report.at_timesteps().score)
        said.append(f"{label} {own} at {write(costs[report.index])} and T = {report.timesteps}")
    floor = _floor([run.report for run in found.runs])
    unit, write_spent = axis
    return Plane(
        title=f"{found.score_title} over {name}",
        unit=f"{unit} / sample",
        score=score_unit(first),
        curves=tuple(curves),
        points=tuple(points),
        kinds=(Series(_DNN, (), "dnn"),) if points else (),
        floor=floor,
        below="" if floor is None else f"Below what is shown: {'; '.join(_hidden(found, floor))}",
        said=f"Chart of {found.score_title} over {name}, with a logarithmic axis: {'; '.join(said)}.",
        write=score_tick(first),
        write_spent=write_spent,
        most=1.0 if first.is_accuracy else None,
    )


def _hidden(found: Comparison, floor: float) -> Iterator[str]:
    """Tell of each run at which T it scores less."""
    for label, run in zip(found.labels(), found.runs, strict=True):
        steps = [step for step in run.report.steps if step.score < floor]
        if steps:
            told = ", ".join(f"T = {step.timesteps} ({tick_percent(round(step.score, 3))})" for step in steps)
            yield f"{label} at {told}"


def _floor(reports: Sequence[Report]) -> float | None:
    """Choose the lowest accuracy that is shown: what each run was exported at, and all that is near; None for all."""
    scores = [step.score for report in reports for step in report.steps]
    if not reports[0].is_accuracy:
        return None
    floor = min(max(scores) - SHOWN, min(report.at_timesteps().score for report in reports) - SHOWN / 4)
    return floor if any(score < floor for score in scores) else None
