"""A run as one page of HTML: no script, nothing loaded, good on a phone and in the dark."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from snnreg_plugins._files import atomic, read_json, read_tensors
from snnreg_plugins._text import in_joules, in_short
from snnreg_plugins.reports import charts
from snnreg_plugins.reports.charts import Markup, Series, join, tag
from snnreg_plugins.reports.diagnosis import Diagnosis
from snnreg_plugins.reports.raster import Raster
from snnreg_plugins.reports.report import LayerReport, Report, StepReport

# Settings that are shown of a file at most, and how deep they may be nested.
_MOST, _DEEPEST = 400, 12


# Settings that are shown without being asked for.
_FEW = 20


# Loggers are left out, as their settings hold keys; so is what else sounds like one.
_SECRET = re.compile(r"(^|[._])(logger|(api_?)?key|token|password|passwd|secret|credentials?)($|[._])", re.IGNORECASE)


Settings = Sequence[tuple[str, str]]


def write_page(run: str | os.PathLike[str] | Report, path: str | os.PathLike[str] | None = None) -> Path:
    """Write a run as one page of HTML that needs nothing else: accuracy, operations and energy, spikes, settings.

    Args:
        run: The folder that :class:`~snnreg_plugins.callbacks.ExportReport` wrote to. Its ``report.json`` is read, and
            where they are there ``raster.json``, ``diagnosis.json`` (if it is of the same network), ``spiking.pt``
            (for the options of the export) and ``report.yaml`` or ``config.yaml``. Or a report.
        path: The page; ``report.html`` in the run's folder if None. It appears when it is complete.

    Returns:
        Where the page is.

    Raises:
        FileNotFoundError: If the folder has no ``report.json``.
        ValueError: If one of the files cannot be read, or a report comes without a ``path``.

    Example:
        >>> import tempfile, torch
        >>> from snnreg_plugins import to_snntorch
        >>> from snnreg_plugins import report
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
        >>> x, y = torch.rand(100, 2), torch.randint(3, (100,))
        >>> result = report(model, to_snntorch(model, x, timesteps=4), [(x, y)], steps=(1, 2, 4))
        >>> page = write_page(result, Path(tempfile.mkdtemp()) / "report.html")
        >>> page.read_text(encoding="utf-8").splitlines()[0]
        '<!DOCTYPE html>'
    """
    if isinstance(run, Report):
        if path is None:
            raise ValueError("Expected argument `path` to name the page, as the report is in no folder, but got None.")
        content = page(run)
    else:
        folder = Path(run)
        path = folder / "report.html" if path is None else path
        content = _page_of(folder)
    with atomic(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
    return Path(path)


def _page_of(folder: Path) -> str:
    if not (folder / "report.json").is_file():
        raise FileNotFoundError(
            f"Expected argument `run` to name a folder that ExportReport wrote to, but there is no report.json in "
            f"{os.fspath(folder)!r}."
        )
    report = Report.load_json(folder / "report.json")
    raster, diagnosis = folder / "raster.json", folder / "diagnosis.json"
    network = folder / "spiking.pt"
    settings: dict[str, Settings] = {}
    if network.is_file():
        conversion = read_tensors(network, "run").get("conversion", {})
        if isinstance(conversion, dict):
            conversion.pop("structure", None)  # as long as the network is deep, and no setting
        settings["Export (spiking.pt)"] = _flat(conversion)
    for name in ("report.yaml", "config.yaml"):
        if (folder / name).is_file():
            settings[f"Training ({name})"] = _flat(_yaml(folder / name))
            break
    return page(
        report,
        title=folder.resolve().name,
        raster=Raster.load_json(raster) if raster.is_file() else None,
        diagnosis=_fitting(read_json(diagnosis, Diagnosis), report) if diagnosis.is_file() else None,
        settings=settings,
    )


def page(
    report: Report,
    *,
    title: str = "",
    raster: Raster | None = None,
    diagnosis: Diagnosis | None = None,
    settings: dict[str, Settings] | None = None,
) -> str:
    """Write a report as HTML.

    Args:
        report: What the network scores and spends.
        title: Name of the run.
        raster: When some neurons spike.
        diagnosis: What each layer loses.
        settings: Tables of names and values, by heading.
    """
    heading = "Spiking network report"
    step = report.at_timesteps()
    sections = [
        _section("Accuracy over time steps", _accuracy(report)),
        _section("Operations over time steps", _operations(report)),
        _section("Energy over time steps", _energy(report)),
        _section(f"By layer, at T = {report.timesteps}", _layers(report)),
    ]
    if raster is not None and raster.labels and raster.layers:
        sections.append(_section("Spikes", _spikes(raster, report)))
    if diagnosis is not None:
        sections.append(_section(f"What each layer loses, at T = {diagnosis.timesteps}", _diagnosis(diagnosis)))
    if settings:
        sections.append(_section("Settings", _settings(settings)))
    sections.append(_section("What is counted", _notes(report)))
    body = tag(
        "main",
        tag("header", tag("h1", heading), tag("p", title, class_="run") if title else "", _summary(report, step)),
        *sections,
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        # Nothing is loaded and nothing runs, whatever a run's files hold.
        tag("meta", http_equiv="Content-Security-Policy", content="default-src 'none'; style-src 'unsafe-inline'"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title}: {heading}" if title else heading),
        tag("style", Markup(_CSS)),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', Markup(_PATTERNS), body), lang='en')}\n"


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


def _summary(report: Report, step: StepReport) -> Markup:
    dnn = report.dnn
    close = next((one.timesteps for one in report.steps if one.accuracy >= dnn.accuracy - 0.01), None)
    facts = [
        (f"Accuracy at T = {step.timesteps}", _percent(step.accuracy), f"DNN: {_percent(dnn.accuracy)}"),
        (
            "Within a point of the DNN",
            "at no T measured" if close is None else f"from T = {close}",
            f"{report.samples:,} test samples",
        ),
        ("SOPs per sample", in_short(step.sops), f"{step.spike_rate:.3f} spikes/neuron/step"),
        ("Energy per sample, estimated", in_joules(step.energy), _compared(step.energy, report)),
    ]
    return tag(
        "dl",
        *(
            tag("div", tag("dt", name), tag("dd", tag("strong", value), tag("span", more)))
            for name, value, more in facts
        ),
        class_="facts",
    )


def _compared(energy: float, report: Report) -> str:
    ratios = [
        f"{energy / of:.2f} × {name} DNN"
        for name, of in (("sparse", report.dnn.energy), ("dense", report.dnn.dense_energy))
        if of
    ]
    return ", ".join(ratios)


def _accuracy(report: Report) -> Markup:
    steps, dnn = report.steps, report.dnn
    series = [
        Series("SNN", [step.accuracy for step in steps], "snn", "circle"),
        Series("DNN", [dnn.accuracy], "dnn dashed"),
    ]
    first, last = steps[0], steps[-1]
    said = (
        f"Line chart. The SNN's accuracy goes from {_percent(first.accuracy)} at T = {first.timesteps} to "
        f"{_percent(last.accuracy)} at T = {last.timesteps}; the DNN has {_percent(dnn.accuracy)}."
    )
    drawing = charts.lines(_steps(report), series, label=said, shown=charts.in_percent, marked=report.timesteps)
    rows = [("DNN", dnn.accuracy), *((f"SNN, T = {step.timesteps}", step.accuracy) for step in steps)]
    table = _table(
        "Accuracy of DNN and SNN, and the points between them",
        ("", "Accuracy", "95 % interval", "To DNN"),
        [
            (
                name,
                _percent(accuracy),
                "{:.1f} to {:.1f} %".format(*(100 * bound for bound in interval(accuracy, report.samples))),
                f"{100 * (accuracy - dnn.accuracy):+.2f}".replace("-", "−") if index else "",
            )
            for index, (name, accuracy) in enumerate(rows)
        ],
        marked=1 + _steps(report).index(report.timesteps),
    )
    return _figure(drawing, _legend(series), table)


def _operations(report: Report) -> Markup:
    steps, dnn = report.steps, report.dnn
    effective = "DNN, effective MACs" + (" + SOPs" if dnn.sops else "")
    series = [
        Series("SNN, SOPs", [step.sops for step in steps], "snn", "circle"),
        Series("SNN, analog MACs", [step.effective_macs for step in steps], "mac dotted", "square"),
        Series(effective, [dnn.effective_macs + dnn.sops], "dnn dashed"),
        Series("DNN, dense MACs", [dnn.dense_macs], "dense"),
    ]
    series = [one for one in series if any(one.values)]
    step = report.at_timesteps()
    said = (
        f"Line chart with a logarithmic axis. At T = {step.timesteps} the SNN needs {in_short(step.sops)} SOPs and "
        f"{in_short(step.effective_macs)} MACs per sample; the DNN {in_short(dnn.effective_macs)} MACs if zeros are "
        f"skipped, {in_short(dnn.dense_macs)} if not."
    )
    drawing = charts.lines(
        _steps(report), series, label=said, shown=charts.short_count, marked=report.timesteps, logarithmic=True
    )
    table = _table(
        "Operations per sample",
        ("", "Spike rate", "SOPs", "MACs"),
        [
            ("DNN, dense", "", "", in_short(dnn.dense_macs)),
            ("DNN, sparse", "", in_short(dnn.sops) if dnn.sops else "", in_short(dnn.effective_macs)),
            *(
                (f"SNN, T = {one.timesteps}", f"{one.spike_rate:.3f}", in_short(one.sops), in_short(one.effective_macs))
                for one in steps
            ),
        ],
        marked=2 + _steps(report).index(report.timesteps),
    )
    return _figure(drawing, _legend(series), table)


def _energy(report: Report) -> Markup:
    steps, dnn = report.steps, report.dnn
    macs = [1e-12 * report.mac * step.effective_macs for step in steps]
    parts = [
        Series("SNN, analog MACs", macs, "mac hatched"),
        Series("SNN, SOPs", [max(step.energy - part, 0.0) for step, part in zip(steps, macs, strict=True)], "snn"),
    ]
    parts = [one for one in parts if any(one.values)]
    levels = [
        Series("DNN, sparse", [dnn.energy], "dnn dashed"),
        Series("DNN, dense", [dnn.dense_energy], "dense"),
    ]
    step = report.at_timesteps()
    said = (
        f"Bar chart. At T = {step.timesteps} the SNN spends an estimated {in_joules(step.energy)} per sample; the DNN "
        f"{in_joules(dnn.energy)} if zeros are skipped, {in_joules(dnn.dense_energy)} if not."
    )
    drawing = charts.stacks(
        _steps(report), parts, levels, label=said, shown=charts.short_joules, marked=report.timesteps
    )
    rows = [("DNN, dense", dnn.dense_energy), ("DNN, sparse", dnn.energy)]
    rows += [(f"SNN, T = {one.timesteps}", one.energy) for one in steps]
    table = _table(
        "Energy per sample, estimated, and over that of the DNN",
        ("", "Energy", "/ sparse", "/ dense"),
        [
            (name, in_joules(energy), _ratio(energy, dnn.energy), _ratio(energy, dnn.dense_energy))
            for name, energy in rows
        ],
        marked=2 + _steps(report).index(report.timesteps),
    )
    note = tag(
        "p",
        f"An estimate from published numbers, not a measurement: {report.mac:.3g} pJ per MAC and {report.ac:.3g} pJ "
        f"per SOP.{_break_even(report)}",
        class_="note",
    )
    return _figure(drawing, join(_legend(parts, filled=True), _legend(levels)), join(table, note))


def _break_even(report: Report) -> str:
    sparse, dense = report.break_even_rate(), report.break_even_rate(dense=True)
    if sparse is None or dense is None:
        return ""
    return (
        f" At T = {report.timesteps} the SNN would spend as much as the sparse DNN at a spike rate of {sparse:.3f}, as "
        f"the dense one at {dense:.3f}."
    )


def _layers(report: Report) -> Markup:
    synaptic = [layer for layer in report.layers if layer.sops is not None]
    neurons = [layer for layer in report.layers if layer.spike_rate is not None]
    rows = [_operations_bar(layer) for layer in synaptic]
    kinds = [Series("SOPs", [1], "snn")]
    if any(style != "snn" for *_, style in rows):
        kinds.append(Series("MACs of real-valued input", [1], "mac hatched"))
    most = max(synaptic, key=lambda layer: layer.sops or 0.0, default=None)
    said = "Bar chart of operations by layer." + (
        f" The most SOPs, {in_short(most.sops or 0.0)} per sample, are at {charts.clean(most.name)}." if most else ""
    )
    operations = tag(
        "figure", tag("h3", "Operations per sample"), charts.bars(rows, label=said), _legend(kinds, filled=True)
    )
    fastest = max(neurons, key=lambda layer: layer.spike_rate or 0.0, default=None)
    said = "Bar chart of spike rates by layer." + (
        f" The highest, {fastest.spike_rate:.3f}, is that of {charts.clean(fastest.name)}." if fastest else ""
    )
    rates = tag(
        "figure",
        tag("h3", "Spike rate, spikes/neuron/step"),
        charts.bars(
            [(layer.name, f"{layer.spike_rate:.3f}", layer.spike_rate or 0.0, "snn") for layer in neurons], label=said
        ),
    )
    table = _table(
        "Layers of the SNN, per sample",
        ("Layer", "Kind", "Threshold", "Spike rate", "Updates", "SOPs", "MACs", "Energy"),
        [
            *(layer.cells() for layer in report.layers),
            report.total_cells("Total"),
        ],
        marked=len(report.layers),
        texts=2,
    )
    return join(tag("div", operations, rates, class_="pair"), table)


def _operations_bar(layer: LayerReport) -> tuple[str, str, float, str]:
    if layer.effective_macs:
        number = layer.effective_macs + (layer.sops or 0.0)
        written = f"{in_short(layer.effective_macs)} MACs" + (f" + {in_short(layer.sops)} SOPs" if layer.sops else "")
        return layer.name, written, number, "mac hatched"
    return layer.name, in_short(layer.sops or 0.0), layer.sops or 0.0, "snn"


def _spikes(raster: Raster, report: Report) -> Markup:
    marked, last = min(report.timesteps, raster.timesteps), raster.timesteps
    figures = []
    for sample, label in enumerate(raster.labels):
        some = sum(train.count("1") for layer in raster.layers for train in layer.spikes[sample])
        shown = sum(len(layer.shown) for layer in raster.layers)
        said = f"Raster of sample {sample + 1}: {some} spikes of {shown} neurons in {last} time steps."
        decided = raster.decisions[sample][marked - 1]
        told = f"class {decided}" + ("" if decided == label else ", which is wrong")
        figures.append(
            tag(
                "figure",
                tag("h3", f"Sample {sample + 1}, of class {label}"),
                tag("p", f"Decision at T = {marked}: {told}", class_="note"),
                charts.spikes(raster, sample, label=said, marked=marked),
            )
        )
    steps = [step for step in _steps(report) if step <= last]
    decisions = _table(
        "Decision over time steps",
        ("", "Class", *(f"T = {step}" for step in steps)),
        [
            (f"Sample {sample + 1}", str(label), *(str(raster.decisions[sample][step - 1]) for step in steps))
            for sample, label in enumerate(raster.labels)
        ],
    )
    counts = _table(
        f"Spikes of the neurons shown, in {last} steps",
        ("Layer", "Neurons shown", *(f"Sample {sample + 1}" for sample in range(len(raster.labels)))),
        [
            (
                layer.name,
                f"{len(layer.shown):,} of {layer.neurons:,}",
                *(str(sum(train.count("1") for train in trains)) for trains in layer.spikes),
            )
            for layer in raster.layers
        ],
    )
    note = tag(
        "p",
        "A row is a neuron, a column a time step, a mark a spike. The first test samples; neurons are taken evenly "
        "spaced from each layer, active or not."
        + (f" The dashed line is T = {marked}, where the exported network stops." if marked < last else ""),
        class_="note",
    )
    return join(note, tag("div", *figures, class_="pair"), decisions, counts)


def _diagnosis(diagnosis: Diagnosis) -> Markup:
    table = _table(
        f"Rate × level beside the DNN's activation, {diagnosis.samples:,} samples",
        ("Layer", "Error", "Added here", "Clipping", "Rounding", "Dead", "Saturated"),
        [
            (
                layer.name,
                *(
                    "" if share is None else f"{100 * share:.1f} %".replace("-", "−")
                    for share in (layer.error, layer.added, layer.clipping, layer.rounding, layer.dead, layer.saturated)
                ),
            )
            for layer in diagnosis.layers
        ],
        marked=next((i for i, layer in enumerate(diagnosis.layers) if layer.name == diagnosis.worst), None),
    )
    note = tag(
        "p",
        "Errors are relative to the layer's mean activation. Dead: neurons that never spike, though the DNN's "
        "activation is not always 0. Saturated: neurons that spike in every step. The layer in bold adds the most.",
        class_="note",
    )
    return join(tag("p", diagnosis.advice, class_="advice"), table, note)


def _fitting(diagnosis: Diagnosis, report: Report) -> Diagnosis | None:
    """Leave out the diagnosis of another network, as an earlier run may have left it: thresholds tell."""
    thresholds = {layer.name: (layer.threshold_min, layer.threshold_max) for layer in report.layers}
    same = [
        thresholds[layer.name] == (layer.threshold_min, layer.threshold_max)
        for layer in diagnosis.layers
        if layer.name in thresholds
    ]
    return diagnosis if same and all(same) else None


def _settings(settings: dict[str, Settings]) -> Markup:
    return join(
        *(
            tag(
                "details",
                tag("summary", heading),
                tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in rows), class_="settings"),
                open=True if len(rows) <= _FEW else None,
            )
            for heading, rows in settings.items()
        )
    )


def _notes(report: Report) -> Markup:
    notes = [
        f"All numbers are means over {report.samples:,} test samples, counted, not estimated, except energy. The 95 % "
        "interval of accuracy is Wilson's; it covers the choice of test samples, not that of the seed.",
        "SOP: one spike at one synapse. MAC: one real-valued input at one synapse. Dense counts every input, sparse "
        "(effective) skips zeros.",
        "The SNN's MACs come from real-valued input, as at its analog first layer, which is computed once per sample. "
        "They are part of its energy.",
        f"Energy is an estimate from published numbers, not a measurement: {report.mac:.3g} pJ per MAC and "
        f"{report.ac:.3g} pJ per SOP ({report.source}). It is that of arithmetic at synapses only: no neuron updates, "
        "memory access, communication or static power.",
        "Compare with the sparse DNN: hardware that skips zeros helps it too.",
    ]
    return tag("ul", *(tag("li", note) for note in notes))


def _steps(report: Report) -> list[int]:
    return [step.timesteps for step in report.steps]


def _section(heading: str, content: Markup) -> Markup:
    return tag("section", tag("h2", heading), content)


def _figure(drawing: Markup, legend: Markup, table: Markup) -> Markup:
    return tag("div", tag("figure", drawing, legend), tag("div", table), class_="pair")


def _legend(series: Sequence[Series], filled: bool = False) -> Markup:
    return tag("ul", *(tag("li", charts.swatch(one, filled), " ", one.label) for one in series), class_="legend")


def _table(
    caption: str,
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    marked: int | None = None,
    texts: int = 1,
) -> Markup:
    """Make a table; it scrolls by itself where it is too wide."""
    head = tag(
        "tr",
        *(
            tag("th", name, scope="col", class_="text" if index < texts else None) if name else tag("td")
            for index, name in enumerate(headers)
        ),
    )
    lines = [
        tag(
            "tr",
            tag("th", row[0], scope="row"),
            *(tag("td", cell, class_="text" if index < texts else None) for index, cell in enumerate(row[1:], 1)),
            class_="marked" if index == marked else None,
        )
        for index, row in enumerate(rows)
    ]
    style = "names" if headers[0] else None  # those of layers may be long
    table = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *lines), class_=style)
    return tag("div", table, class_="scroll", role="region", aria_label=caption, tabindex=0)


def _flat(value: Any) -> Settings:
    return list(islice(_leaves(value, "", _DEEPEST), _MOST))


def _leaves(value: Any, name: str, depth: int) -> Iterator[tuple[str, str]]:
    """Walk nested settings; a class's arguments come after it, and what is None is left out."""
    if value is None or _SECRET.search(name.split(" ")[0]):
        return
    if depth == 0:
        yield name, "..."
    elif isinstance(value, dict) and value:
        if "class_path" in value:
            yield name, str(value["class_path"])
            value = {**(value["init_args"] if isinstance(value.get("init_args"), dict) else {}), "": None}
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key), depth - 1)
    elif isinstance(value, (list, tuple)) and any(isinstance(item, (dict, list, tuple)) for item in value):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{name}[{index}]", depth - 1)
    elif isinstance(value, (list, tuple)):
        yield name, f"[{', '.join(map(str, value))}]"
    else:
        yield name, f"{value:.6g}" if isinstance(value, float) else str(value)


def _yaml(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"Expected {os.fspath(path)!r} to hold YAML, but {str(error).splitlines()[0]}") from error


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _ratio(value: float, reference: float) -> str:
    return f"{value / reference:.2f}" if reference else ""


_PATTERNS = (
    '<svg width="0" height="0" aria-hidden="true" class="defs"><defs><pattern id="hatch" width="5" height="5" '
    'patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="5" height="5" class="hatch-ground">'
    '</rect><rect width="2" height="5" class="hatch-line"></rect></pattern></defs></svg>'
)


# Colours of Okabe and Ito, with a lighter member of the same hue in the dark; lines, marks and hatches tell apart too.
_CSS = """
:root { --ground: #fff; --card: #fff; --text: #1a1a1a; --muted: #555; --edge: #ddd; --grid: #e6e6e6; --track: #f0f0f0;
  --snn: #0072b2; --dnn: #d55e00; --mac: #a84a00; --dense: #555; --soft: #eef5fa; color-scheme: light dark; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ground: #121416; --card: #1b1e21; --text: #e8e8e8; --muted: #b0b0b0; --edge: #3a3f44; --grid: #32373c;
    --track: #282c30; --snn: #56b4e9; --dnn: #e69f00; --mac: #e69f00; --dense: #b0b0b0; --soft: #1d2b36; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text); font: 16px/1.5 system-ui, sans-serif;
  -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
main { max-width: 1080px; margin: 0 auto; padding: 8px; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 8px 0; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 0 0 12px; text-wrap: balance; }
h3 { font-size: 1rem; margin: 0 0 4px; }
.run { color: var(--muted); margin: 0 0 16px; }
section { background: var(--card); border: 1px solid var(--edge); border-radius: 8px; padding: 12px; margin: 12px 0;
  overflow-x: clip; }
@media (min-width: 600px) { main { padding: 16px; } section { padding: 20px; margin: 16px 0; } }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 0; }
.facts > div { background: var(--soft); border-radius: 8px; padding: 10px 12px; }
.facts dt { font-size: .8rem; color: var(--muted); }
.facts dd { margin: 0; font-size: .8rem; color: var(--muted); }
.facts strong { display: block; font-size: 1.3rem; line-height: 1.3; color: var(--text); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(290px, 100%), 1fr)); gap: 16px 32px;
  align-items: start; }
.pair > * { min-width: 0; }
figure { margin: 0; }
.pair + .scroll { margin-top: 16px; }
.figure { display: block; width: 100%; max-width: 440px; height: auto; overflow: visible; }
.figure text { font: 11px system-ui, sans-serif; fill: var(--text); }
.figure .tick, .figure .muted { fill: var(--muted); }
.figure .strong { fill: var(--text); font-weight: 700; }
.figure .small { font-size: 10px; }
.figure .halo { stroke: var(--card); stroke-width: 3px; paint-order: stroke; }
.grid { stroke: var(--grid); stroke-width: 1; }
.line { fill: none; stroke-width: 2; }
.guide { stroke: var(--muted); stroke-width: 1; stroke-dasharray: 2 3; }
.line.snn { stroke: var(--snn); } .line.dnn { stroke: var(--dnn); }
.line.mac { stroke: var(--mac); } .line.dense { stroke: var(--dense); }
.dashed { stroke-dasharray: 7 4; } .dotted { stroke-dasharray: 2 3; }
.mark { stroke: var(--card); stroke-width: 1; } .mark.snn { fill: var(--snn); } .mark.mac { fill: var(--mac); }
.fill.snn { fill: var(--snn); } .fill.mac { fill: url(#hatch); stroke: var(--mac); stroke-width: 1; }
.hatch-ground { fill: var(--card); } .hatch-line { fill: var(--mac); }
.track { fill: var(--track); }
.spike { stroke: var(--snn); stroke-width: 3; fill: none; }
.defs { position: absolute; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 8px 0 0; padding: 0;
  font-size: .85rem; }
.legend svg { vertical-align: -2px; }
.legend + .legend { margin-top: 4px; }
.scroll { overflow-x: auto; margin: 0 0 8px; }
.scroll:focus-visible { outline: 2px solid var(--snn); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: .85rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
caption { text-align: left; font-weight: 600; padding: 4px; max-width: calc(100vw - 48px); }
th, td { padding: 4px 0 4px 12px; text-align: right; border-bottom: 1px solid var(--edge); white-space: nowrap; }
th:first-child, td:first-child, .text { text-align: left; }
tbody th { font-weight: 400; position: sticky; left: 0; background: var(--card); }
.names tbody th { min-width: min(7.5rem, 35vw); max-width: min(45vw, 20rem); white-space: normal;
  overflow-wrap: anywhere; }
th:first-child, td:first-child { padding-left: 4px; }
th:last-child, td:last-child { padding-right: 4px; }
@media (max-width: 599px) { table { font-size: .8rem; } th, td { padding-left: 9px; } }
thead th { color: var(--muted); font-weight: 600; }
.marked > * { background: var(--soft); font-weight: 700; }
.note { font-size: .85rem; color: var(--muted); margin: 4px 0 8px; }
.advice { border-left: 4px solid var(--snn); padding-left: 12px; margin: 0 0 12px; }
summary { font-weight: 600; cursor: pointer; padding: 6px 0; }
summary:focus-visible { outline: 2px solid var(--snn); }
.settings { margin: 0 0 12px; columns: 2 300px; column-gap: 32px; font-size: .85rem; }
.settings > div { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 12px; padding: 3px 0;
  break-inside: avoid; border-bottom: 1px solid var(--edge); }
.settings dt { color: var(--muted); } .settings dd { margin: 0; max-width: 100%; }
@media print { details::details-content { content-visibility: visible; display: block; }
  figure, table { break-inside: avoid; } h2, h3 { break-after: avoid; } table { font-size: .7rem; }
  .scroll { overflow: visible; } main { max-width: none; padding: 0; } }
"""
