"""What a report shows as figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from snnreg_plugins._text import in_joules, in_rate, in_short, joules_of, tick_count, tick_percent, times
from snnreg_plugins.reports import pictures
from snnreg_plugins.reports.figures import (
    Bar,
    Bars,
    Curve,
    Lines,
    Plane,
    Point,
    Ratio,
    Ratios,
    Role,
    Series,
    Stacks,
)
from snnreg_plugins.reports.verdict import compared, written

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from snnreg_plugins.reports.priced import ModelReport, Spent
    from snnreg_plugins.reports.report import Report

# What each part of a cost stands for.
_ROLES: dict[str, Role] = {"macs": "mac", "synapses": "snn", "neurons": "neurons", "memory": "memory"}
_NAMES: dict[Role, str] = {
    "mac": "analog MACs",
    "snn": "SOPs",
    "neurons": "neuron updates",
    "memory": "memory",
}
_DNNS: dict[str, tuple[Role, str]] = {
    "zero-skipping": ("dnn", "DNN, zero-skipping"),
    "dense": ("dense", "DNN, dense"),
}
#: Accuracies this far below the best one are not shown where what matters is above.
SHOWN = 0.12


def panels(report: Report) -> tuple[float, Sequence[Callable[[Axes], None]]]:
    """Draw score over energy, what the network spends over the DNN by model, and energy by layer."""
    plane, ratios, layers = score_over_energy(report), over_dnns(report), energy_by_layer(report, report.primary)
    second: Callable[[Axes], None] = partial(pictures.ratios, figure=ratios)
    if not ratios.rows:
        second = partial(pictures.bars, figure=rates(report))
    drawn = (partial(pictures.plane, figure=plane), second, partial(pictures.bars, figure=layers))
    return max(4.4, 2.2 + 0.24 * len(layers.bars)), drawn


def below(report: Report) -> float:
    """Give the inches that the legends of :func:`panels` take; that of the second one has two lines."""
    return max(pictures.below(score_over_energy(report)), 0.62)


def score_over_energy(report: Report) -> Plane:
    """Give the score over energy, a curve for each model of energy that is shown, and DNNs as points."""
    models = [model for model in report.shown_models if model.unit == "J" and model.has_all()] or [report.primary]
    scores = [step.score for step in report.steps]
    curves: list[Curve] = []
    points: list[Point] = []
    for colour, model in enumerate(models):
        curves += curve(report, f"SNN, {model.name}", [cost.total for cost in model.steps], colour)
        if report.dnn is not None:
            bits = model.bits(report.timesteps)
            few = "" if bits is None else f", {bits} bits"
            for how, cost in model.baselines(report.index).items():
                role, name = _DNNS[how]
                points.append(Point(f"{name}{few}", cost.total, report.dnn.score, role, colour))
    best = max((*scores, *(point.score for point in points)))
    floor, hidden = None, [step for step in report.steps if step.score < best - SHOWN]
    if report.is_accuracy and 0 < len(hidden) < len(report.steps) - 1:
        floor = best - SHOWN
    else:
        hidden = []
    below = ", ".join(f"T = {step.timesteps} ({tick_percent(round(step.score, 3))})" for step in hidden)
    first, last = report.steps[0], report.steps[-1]
    costs = [cost for one in curves for cost in one.spent] + [point.spent for point in points]
    unit, write = axis_of("J", costs)
    return Plane(
        title=f"{report.score_title} over energy",
        unit=f"{unit} / sample",
        score=score_unit(report),
        curves=tuple(curves),
        points=tuple(points),
        kinds=_kinds(report, {point.role for point in points}),
        floor=floor,
        below=f"Below what is shown: {below}" if below else "",
        said=f"Chart of {report.score_title} over energy, with a logarithmic axis. By {models[0].title} the SNN goes "
        f"from {report.write_score(first.score)} at {in_joules(models[0].steps[0].total)} and T = {first.timesteps} to "
        f"{report.write_score(last.score)} at {in_joules(models[0].steps[-1].total)} and T = {last.timesteps}.",
        write=score_tick(report),
        write_spent=write,
        most=1.0 if report.is_accuracy else None,
    )


def curve(report: Report, name: str, costs: Sequence[float], colour: int) -> list[Curve]:
    """Give the score over what each step of a report spends; none where that is 0, which is on no logarithmic axis."""
    at = [(cost, step.score, step.timesteps) for cost, step in zip(costs, report.steps, strict=True) if cost]
    if not at:
        return []
    spent, scores, steps = zip(*at, strict=True)
    return [Curve(name, spent, scores, steps, colour, report.timesteps)]


def over_dnns(report: Report) -> Ratios:
    """Give what the network spends over what DNNs do, by each model that is shown, at the report's T."""
    rows = []
    for model in report.shown_models:
        values = tuple((_DNNS[how][0], value) for how, value in compared(report, model).items() if value)
        if values:
            bits = model.bits(report.timesteps)
            few = "" if bits is None else f"\n({bits}-bit DNN)"
            rows.append(Ratio(f"{model.name}{few}", values))
    roles = {role for row in rows for role, _ in row.values}
    said = "; ".join(f"{row.name}: {', '.join(times(value) for _, value in row.values)}" for row in rows)
    return Ratios(
        title=f"SNN over DNN at T = {report.timesteps}",
        unit="Spent by the SNN / spent by the DNN",
        rows=tuple(rows),
        kinds=_kinds(report, roles),
        said=f"Chart of what the SNN spends over what DNNs spend, by model. {said}.",
    )


def _kinds(report: Report, roles: set[Role]) -> tuple[Series, ...]:
    """Say what the signs of DNNs stand for."""
    return tuple(
        Series(name if report.dnn is not None else f"{how} DNN of the same layers", (), role)
        for how, (role, name) in _DNNS.items()
        if role in roles
    )


def energy_by_layer(report: Report, model: ModelReport) -> Bars:
    """Give what each layer, with the neurons that it drives, costs by a model: MACs, SOPs, neurons and memory."""
    layers = [layer for layer in model.layers if layer.spent.total]
    bars = tuple(Bar(layer.name, _parts(layer.spent), written(layer.spent.total, model.unit)) for layer in layers)
    roles = {role for bar in bars for role, _ in bar.parts}
    most = max(layers, key=lambda layer: layer.spent.total, default=None)
    unit, write = axis_of(model.unit, [bar.value for bar in bars])
    what = "Energy" if model.unit == "J" else "Cost"
    return Bars(
        title=f"{what} by layer at T = {report.timesteps}",
        unit=f"{unit} / sample, {model.phrase}",
        bars=bars,
        kinds=tuple(Series(_NAMES[role], (), role) for role in _ROLES.values() if role in roles),
        said=f"Bar chart of cost by layer, by {model.title}."
        + (f" The most, {written(most.spent.total, model.unit)}, is at {most.name}." if most else ""),
        write=write,
    )


def _parts(spent: Spent) -> tuple[tuple[Role, float], ...]:
    return tuple((role, value) for part, role in _ROLES.items() if (value := getattr(spent, part)))


def score(report: Report) -> Lines:
    """Give the score over T."""
    first, last, dnn = report.steps[0], report.steps[-1], report.dnn
    name = "accuracy" if report.is_accuracy else report.score_title
    return Lines(
        title=f"{report.score_title} over time steps",
        unit=score_unit(report),
        steps=_steps(report),
        series=(Series("SNN", tuple(step.score for step in report.steps), "snn"),),
        levels=() if dnn is None else (Series("DNN", (dnn.score,), "dnn"),),
        marked=report.timesteps,
        said=f"Line chart. The SNN's {name} goes from {report.write_score(first.score)} at T = {first.timesteps} to "
        f"{report.write_score(last.score)} at T = {last.timesteps}"
        + ("." if dnn is None else f"; the DNN has {report.write_score(dnn.score)}."),
        write=score_tick(report),
    )


def axis_of(unit: str, costs: Sequence[float]) -> tuple[str, Callable[[float], str]]:
    """Choose the unit of an axis of costs, of energies with a prefix, and what writes its numbers in it."""
    return joules_of(max(costs, default=0.0)) if unit == "J" else (unit, tick_count)


def score_unit(report: Report) -> str:
    """Say what a score is the number of, and whether more of it is better."""
    better = {True: " (higher is better)", False: " (lower is better)", None: ""}[report.higher_is_better]
    correct = f"{'Labels' if report.decided is None else 'Samples'} correct"
    return correct if report.is_accuracy else f"{report.score_title}{better}"


def score_tick(report: Report) -> Callable[[float], str]:
    """Give what writes a score at an axis."""
    return tick_percent if report.is_accuracy else "{:.3g}".format


def sops(report: Report) -> Lines:
    """Give SOPs over T; of a DNN those at layers with integer-valued input."""
    step, dnn = report.at_timesteps(), report.dnn
    return Lines(
        title="SOPs over time steps",
        unit="SOPs / sample",
        steps=_steps(report),
        series=_drawn([Series("SNN", tuple(step.sops for step in report.steps), "snn")]),
        levels=() if dnn is None else _drawn([Series("DNN, at integer-valued input", (dnn.sops,), "dnn")]),
        marked=report.timesteps,
        said=f"Line chart with a logarithmic axis. At T = {step.timesteps} the SNN needs {in_short(step.sops)} SOPs "
        "per sample.",
        write=tick_count,
        logarithmic=True,
    )


def macs(report: Report) -> Bars:
    """Give MACs: those of the DNN, and of real-valued input of the SNN, which do not grow with T."""
    step, dnn = report.at_timesteps(), report.dnn
    rows: list[tuple[str, Role, float]] = [("SNN, at real-valued input", "mac", step.effective_macs)]
    if dnn is not None:
        rows = [("DNN, dense", "dense", dnn.dense_macs), ("DNN, zero-skipping", "dnn", dnn.effective_macs), *rows]
    return Bars(
        title="MACs",
        unit="MACs / sample",
        bars=tuple(Bar(name, ((role, value),), in_short(value)) for name, role, value in rows),
        kinds=(),
        said="Bar chart of MACs per sample: " + ", ".join(f"{name} {in_short(value)}" for name, _, value in rows) + ".",
    )


def energy(report: Report) -> Stacks:
    """Give energy over T by the report's table: its parts, stacked to the SNN's energy, beside the DNN's."""
    step, model, dnn = report.at_timesteps(), report.primary, report.dnn
    parts = [
        Series(f"SNN, {_NAMES[role]}", tuple(getattr(cost, part) for cost in model.steps), role)
        for part, role in _ROLES.items()
    ]
    levels = [
        Series(_DNNS[how][1], (cost.total,), _DNNS[how][0])
        for how, cost in ({} if dnn is None else model.baselines(report.index)).items()
    ]
    unit, write = axis_of("J", [*(cost.total for cost in model.steps), *(level.values[0] for level in levels)])
    beside = "; ".join(f"{level.label} {in_joules(level.values[0])}" for level in levels)
    return Stacks(
        title=f"Energy over time steps, {model.phrase}",
        unit=f"{unit} / sample",
        steps=_steps(report),
        parts=_drawn(parts),
        levels=tuple(levels),
        marked=report.timesteps,
        said=f"Bar chart. At T = {step.timesteps} the SNN spends an estimated {in_joules(step.energy)} per sample"
        + (f"; {beside}." if beside else "."),
        write=write,
    )


def sops_by_layer(report: Report) -> Bars:
    """Give the SOPs of each synaptic layer that has some."""
    rows = [(layer.name, layer.sops) for layer in report.layers if layer.sops]
    most = max(rows, key=lambda row: row[1], default=None)
    return Bars(
        title=f"SOPs by layer at T = {report.timesteps}",
        unit="SOPs / sample",
        bars=tuple(Bar(name, (("snn", value),), in_short(value)) for name, value in rows),
        kinds=(),
        said="Bar chart of SOPs by layer."
        + (f" The most, {in_short(most[1])} per sample, are at {most[0]}." if most else ""),
    )


def rates(report: Report) -> Bars:
    """Give the spike rate of each layer of neurons."""
    rows = [(layer.name, layer.spike_rate) for layer in report.layers if layer.spike_rate is not None]
    fastest = max(rows, key=lambda one: one[1], default=None)
    return Bars(
        title=f"Spike rate by layer at T = {report.timesteps}",
        unit="Spikes / neuron / step",
        bars=tuple(Bar(name, (("snn", rate),), in_rate(rate)) for name, rate in rows),
        kinds=(),
        said="Bar chart of spike rates by layer."
        + (f" The highest, {in_rate(fastest[1])}, is that of {fastest[0]}." if fastest else ""),
        write="{:g}".format,
    )


def _steps(report: Report) -> tuple[int, ...]:
    return tuple(step.timesteps for step in report.steps)


def _drawn(series: Iterable[Series]) -> tuple[Series, ...]:
    """Leave out what is 0 everywhere."""
    return tuple(one for one in series if any(one.values))
