"""A run as one page of HTML: no script, nothing loaded, good on a phone and in the dark."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from jinja2 import Environment
from markupsafe import Markup

from snnreg_plugins._text import in_joules, in_rate, in_short
from snnreg_plugins.reports import charts, tables, views
from snnreg_plugins.reports.diagnosis import Diagnosis
from snnreg_plugins.reports.priced import ModelReport
from snnreg_plugins.reports.raster import Raster, spikes_of
from snnreg_plugins.reports.report import Report
from snnreg_plugins.reports.settings import Settings
from snnreg_plugins.reports.templates import environment, resource
from snnreg_plugins.reports.verdict import baseline, compared, ratio

#: What pages are called, of a run and of several; a file tells by it that it is one.
HEADING, COMPARED = HEADINGS = "Spiking network report", "Spiking networks compared"

# Settings that are shown without being asked for.
_FEW = 20
# Where templates and style sheets are.
_ROOMS = (__package__,)


class _Fact(NamedTuple):
    name: str
    value: str
    more: str


class _Sample(NamedTuple):
    label: int | None
    decided: int | None
    drawing: Markup


def page(
    report: Report,
    *,
    title: str = "",
    raster: Raster | None = None,
    diagnosis: Diagnosis | None = None,
    settings: Mapping[str, Settings] | None = None,
) -> str:
    """Write a report as HTML.

    Args:
        report: What the network scores and spends.
        title: Name of the run.
        raster: When some neurons spike.
        diagnosis: What each layer loses.
        settings: Tables of names and values, by heading.
    """
    stop = report.timesteps if raster is None else min(report.timesteps, raster.timesteps)
    content: dict[str, Any] = {
        "title": title,
        "heading": HEADING,
        "about": [] if report.about is None else [part for part in report.about.lines() if part],
        "report": report,
        "facts": list(_facts(report)),
        "tables": tables,
        "views": views,
        "layers": [views.energy_by_layer(report, model) for model in _by_layer(report)],
        "raster": raster,
        "stop": stop,
        "trains": [] if raster is None or not raster.layers else list(_samples(raster, stop)),
        "decided_at": [step.timesteps for step in report.steps if raster and step.timesteps <= raster.timesteps],
        "diagnosis": diagnosis,
        "settings": settings or {},
        "few": _FEW,
    }
    return rendered("page.html.jinja", content)


def rendered(template: str, content: Mapping[str, Any]) -> str:
    """Write a page by its template.

    Args:
        template: Its name.
        content: What the template reads; that and text in it are escaped, what is markup is not.
    """
    return _environment().get_template(template).render(style=Markup(resource("page.css", _ROOMS)), **content)


def _facts(report: Report) -> Iterator[_Fact]:
    dnn, step = report.dnn, report.at_timesteps()
    beside = "" if dnn is None else f"DNN: {report.write_score(dnn.score)}"
    yield _Fact(f"{report.score_title} at T = {step.timesteps}", report.write_score(step.score), beside)
    if report.is_accuracy and dnn is not None and report.dnn_is_worth_it:
        close = report.within_a_point()
        yield _Fact(
            "Within a point of the DNN",
            "at no T measured" if close is None else f"from T = {close.timesteps}",
            f"{report.samples:,} test samples",
        )
    else:
        better = {True: "a higher score is better", False: "a lower score is better", None: ""}
        yield _Fact("Test samples", f"{report.samples:,}", better[report.higher_is_better])
    rate = "no neurons" if step.spike_rate is None else f"{in_rate(step.spike_rate)} spikes/neuron/step"
    yield _Fact("SOPs per sample", in_short(step.sops), rate)
    model = report.primary
    ratios = [f"{ratio(value)} {baseline(report, model, how)}" for how, value in compared(report, model).items()]
    yield _Fact("Energy per sample, estimated", in_joules(step.energy), ", ".join(ratios))


def _by_layer(report: Report) -> list[ModelReport]:
    """Choose the models whose costs are shown by layer: that of the table, and the first that tells of memory."""
    others = [model for model in report.shown_models if model.name != report.table and model.steps[report.index].memory]
    return [report.primary, *others[:1]]


def _samples(raster: Raster, stop: int) -> Iterator[_Sample]:
    shown = sum(len(layer.shown) for layer in raster.layers)
    for sample in range(raster.samples):
        spikes = sum(spikes_of(layer.spikes[sample]) for layer in raster.layers)
        said = f"Raster of sample {sample + 1}: {spikes} spikes of {shown} neurons in {raster.timesteps} time steps."
        drawing = charts.spikes(raster, sample, label=said, marked=stop)
        if raster.labels:
            yield _Sample(raster.labels[sample], raster.decisions[sample][stop - 1], drawing)
        else:
            yield _Sample(None, None, drawing)


@cache
def _environment() -> Environment:
    made = environment(*_ROOMS)
    made.globals |= {
        "lines": charts.lines,
        "stacks": charts.stacks,
        "bars": charts.bars,
        "swatch": charts.swatch,
        "plane": charts.plane,
        "ratios": charts.ratios,
        "sign": charts.sign,
        "curve": charts.curve,
    }
    return made
