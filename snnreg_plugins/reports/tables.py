"""What a report shows as tables, and what their numbers mean."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from snnreg_plugins._text import (
    Column,
    Row,
    Table,
    estimate,
    in_joules,
    in_rate,
    in_short,
    over,
    span,
    times,
)
from snnreg_plugins.reports.verdict import compared

if TYPE_CHECKING:
    from snnreg_plugins.reports.priced import ModelReport
    from snnreg_plugins.reports.report import Report

# Columns of what the network spends over what a DNN does.
SPARSE, DENSE = "/ sparse DNN", "/ dense DNN"


def networks_title(report: Report) -> str:
    """Say which networks are shown."""
    return "SNN" if report.dnn is None else "DNN and SNN"


def networks(report: Report) -> Table:
    """Give the table of DNN and SNN over T, with all that is known of each."""
    dnn = report.dnn
    rows: list[tuple[Any, ...]] = [
        (f"SNN, T = {step.timesteps}", step.score, step.spike_rate, step.sops, step.effective_macs, step.energy)
        for step in report.steps
    ]
    columns: tuple[Column, ...] = ()
    if dnn is not None:
        rows = [
            ("DNN, dense", dnn.score, None, None, dnn.dense_macs, dnn.dense_energy),
            ("DNN, sparse", dnn.score, None, dnn.sops or None, dnn.effective_macs, dnn.energy),
            *rows,
        ]
        rows = [(*row, over(row[-1], dnn.energy), over(row[-1], dnn.dense_energy)) for row in rows]
        columns = Column(SPARSE, times), Column(DENSE, times)
    first = len(rows) - len(report.steps)
    return Table(
        f"{networks_title(report)}, per sample",
        (
            Column(""),
            Column(report.score_title, report.write_score),
            Column("Spike rate", in_rate),
            Column("SOPs", in_short),
            Column("MACs", in_short),
            Column("Energy", in_joules),
            *columns,
        ),
        tuple(Row(row, index == first + report.index, int(index >= first)) for index, row in enumerate(rows)),
    )


def over_dnn(report: Report) -> tuple[str, ...]:
    """Name the columns of what the network spends over what the DNNs do, that the report's table has prices for."""
    dnn = report.dnn
    return () if dnn is None else (DENSE,) if dnn.energy is None else (SPARSE, DENSE)


def over_steps(report: Report) -> Table:
    """Give the table of DNN and SNN over T that is printed."""
    return networks(report).select(
        (report.score_title, "Spike rate", "SOPs", "MACs", "Energy", *over_dnn(report)[:1]),
        f"{networks_title(report)}, per sample (mean of {report.samples:,}), {report.primary.phrase}",
    )


def models_printed(report: Report) -> Table:
    """Give the table of models of cost that is printed."""
    table = by_model(report)
    titles = [column.title for column in table.columns if column.title in ("SNN", SPARSE, DENSE, "Not priced")]
    return table.select(titles, table.caption)


def by_model(report: Report, others: bool = False) -> Table:
    """Give the table of what the network spends by each model, at the report's T, and over what DNNs do.

    Args:
        report: The report.
        others: Show the models that were not chosen instead.
    """
    models = [model for model in report.models if model.name not in report.chosen] if others else report.shown_models
    rows = [_of_model(report, model) for model in models]
    columns = [
        Column("Model"),
        Column("SNN", _cost),
        Column("Sparse DNN", _cost),
        Column("Dense DNN", _cost),
        Column(SPARSE, times),
        Column(DENSE, times),
        Column("Not priced", in_short),
    ]
    kept = [0, 1, *(index for index in range(2, 7) if any(row[index] is not None for row in rows))]
    return Table(
        f"By model of cost, at T = {report.timesteps}, per sample",
        tuple(columns[index] for index in kept),
        tuple(
            Row(tuple(row[index] for index in kept), model.name == report.table)
            for model, row in zip(models, rows, strict=True)
        ),
    )


def _cost(cost: tuple[float, str]) -> str:
    value, unit = cost
    return in_joules(value) if unit == "J" else in_short(value)


def _of_model(report: Report, model: ModelReport) -> tuple[Any, ...]:
    spent, dnns, ratios = model.steps[report.index], model.baselines(report.index), compared(report, model)
    costs = [(dnns[how].total, model.unit) if how in dnns else None for how in ("zero-skipping", "dense")]
    return (
        model.name if model.unit == "J" else f"{model.name}, in {model.unit}",
        (spent.total, model.unit),
        *costs,
        ratios.get("zero-skipping"),
        ratios.get("dense"),
        spent.unpriced or None,
    )


def scores(report: Report) -> Table:
    """Give the table of scores, how sure accuracies are, and how far from that of the DNN (in points, if so)."""
    unit, decided, dnn = 100 if report.is_accuracy else 1, report.decided, report.dnn
    parts = [(f"SNN, T = {step.timesteps}", step.score) for step in report.steps]
    rows: list[tuple[Any, ...]] = [
        (name, score, *(() if decided is None else (interval(score, decided),)))
        for name, score in [*([] if dnn is None else [("DNN", dnn.score)]), *parts]
    ]
    sure = Column("95 % interval", lambda bounds: "{:.1f} to {:.1f} %".format(*(100 * bound for bound in bounds)))
    columns = [Column(""), Column(report.score_title, report.write_score), *([] if decided is None else [sure])]
    if dnn is not None:
        form = "{:+.2f}" if report.is_accuracy else "{:+.3g}"
        columns.append(Column("To DNN", lambda value: form.format(value).replace("-", "−")))
        rows = [(*row, unit * (row[1] - dnn.score) if index else None) for index, row in enumerate(rows)]
    marked = len(rows) - len(parts) + report.index
    between = f", and the {'points' if report.is_accuracy else 'difference'} between them"
    return Table(
        f"{report.score_title} of {networks_title(report)}{'' if dnn is None else between}",
        tuple(columns),
        tuple(Row(row, index == marked) for index, row in enumerate(rows)),
    )


def by_layer(report: Report) -> Table:
    """Give the table of the SNN's layers, and of all of them together."""
    total = report.at_timesteps()
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
        for layer in report.layers
    ]
    updates = sum(layer.updates or 0 for layer in report.layers)
    of_all = ("total", None, None, total.spike_rate, updates, total.sops, total.effective_macs, total.energy)
    return Table(
        f"SNN by layer at T = {report.timesteps}, per sample",
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


def break_even(report: Report) -> str:
    """Say at which spike rate the SNN spends as much as the DNN, where it can be had; nothing if that is not known."""
    step = report.at_timesteps()
    if not step.sops:
        return "No spike reaches a synapse."
    rates = {
        how: rate
        for how, dense in (("zero-skipping", False), ("dense", True))
        if (rate := report.break_even_rate(dense)) is not None
    }
    if not rates or step.spike_rate is None:
        return ""
    within = {how: rate for how, rate in rates.items() if 0 <= rate <= 1}
    said = []
    if within:
        rates_said = " and as the ".join(f"{how} one at {in_rate(rate)}" for how, rate in within.items())
        first = rates_said.replace(" one", " DNN", 1)
        said.append(f"spends as much as the {first} spikes/neuron/step; it has {in_rate(step.spike_rate)}")
    always, never = ([how for how, rate in rates.items() if test(rate)] for test in (_above, _below))
    if always:
        said.append(f"spends less than the {' and the '.join(always)} DNN at any spike rate")
    if never:
        said.append(f"spends more than the {' and the '.join(never)} DNN even if no neuron spikes")
    return f"By arithmetic, at T = {step.timesteps} the SNN {'. It '.join(said)}."


def _above(rate: float) -> bool:
    return rate > 1


def _below(rate: float) -> bool:
    return rate < 0


def notes(report: Report) -> tuple[str, ...]:
    """Say what the numbers mean."""
    compared_with = "" if report.dnn is None else "Dense: every input counted; sparse: zeros skipped. "
    pruned = "" if report.primary.counts_zero_weights else " SOPs and MACs count weights of zero, the energy does not."
    return (
        "Updates: neurons times steps, and additions of the readout. SOP: one spike at one synapse. MAC: one "
        f"real-valued input at one synapse. {compared_with}The SNN's MACs come from real-valued input, as at its "
        f"analog first layer, and are part of its energy.{pruned}",
        estimated(report),
        *([models_note(report)] if len(report.chosen) > 1 else []),
    )


def estimated(report: Report) -> str:
    """Say what the energy is."""
    model = report.primary
    prices = "" if report.mac is None else f"{report.mac:.3g} pJ per MAC and {report.ac:.3g} pJ per SOP"
    left_out = f"It leaves out {_listed(model.left_out)}. " if model.left_out else ""
    return estimate(model.source, left_out + _zero_weights(model), prices)


def models_note(report: Report) -> str:
    """Say what each other model that is shown prices."""
    others = [model for model in report.shown_models if model.name != report.table]
    beside = (
        " No DNN was measured: the dense one has the same layers, all inputs counted." if report.dnn is None else ""
    )
    return f"Models never add up.{beside} " + " ".join(f"{model.name}: {about_model(model)}" for model in others)


def about_model(model: ModelReport) -> str:
    """Say what a model prices, where that was published, and what it leaves out."""
    left_out = f" It leaves out {_listed(model.left_out)}." if model.left_out else ""
    return f"{model.source}.{left_out} {_zero_weights(model)}"


def _zero_weights(model: ModelReport) -> str:
    return f"A weight of zero is {'a' if model.counts_zero_weights else 'no'} synapse."


def _listed(words: tuple[str, ...]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


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
