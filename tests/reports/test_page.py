"""The page holds the run's numbers, nothing of a run becomes markup, and a browser shows it well."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from html.parser import HTMLParser
from itertools import pairwise

import pytest
import torch
import yaml
from torch import nn

from snnreg_plugins import to_snntorch
from snnreg_plugins._text import in_joules, in_short
from snnreg_plugins.export.files import save_network
from snnreg_plugins.functional import COST_MODELS
from snnreg_plugins.reports import views
from snnreg_plugins.reports.diagnose import diagnose
from snnreg_plugins.reports.folder import write_page
from snnreg_plugins.reports.measure import report
from snnreg_plugins.reports.page import page
from snnreg_plugins.reports.parts import About, LayerReport
from snnreg_plugins.reports.raster import Raster
from snnreg_plugins.reports.record import record
from snnreg_plugins.reports.report import Report
from snnreg_plugins.reports.settings import flat
from tests.browser import CHROMIUM, Browser

VOID = {"meta", "br", "link"}
HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>&lt;\x00\u202e{}</style>"


class Reader(HTMLParser):
    """Reads a page strictly: every element is closed, in order."""

    def __init__(self, content):
        super().__init__()
        self.open, self.elements, self.words, self.tables, self.charts = [], [], [], [], {}
        self.feed(content.replace("<wbr>", ""))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes)
        self.elements.append((tag, dict(attributes)))
        if tag == "svg":
            self._chart = self.charts.setdefault(" ".join(dict(attributes).get("aria-label", "").split(" ")[:3]), [])
        elif "svg" in self.open:
            self._chart.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open and self.open[-1] != "style":
            self.words.append(text)
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += text

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def dnn():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, 5))


@pytest.fixture(scope="module")
def data(dnn):
    x = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return x, dnn(x).argmax(1)


@pytest.fixture(scope="module")
def network(dnn, data):
    return to_snntorch(dnn, data[0], timesteps=4, per_channel=True)


@pytest.fixture(scope="module")
def result(dnn, data, network):
    return report(dnn, network, [data], steps=(1, 2, 4, 8))


@pytest.fixture
def run(dnn, data, network, result, tmp_path):
    """A folder as a run leaves it."""
    folder = tmp_path / "my run"
    result.save_json(folder / "report.json")
    save_network(network, folder / "spiking.pt")
    record(network, *data, timesteps=8).save_json(folder / "raster.json")
    diagnose(dnn, network, data[0]).save_json(folder / "diagnosis.json")
    settings = {
        "seed_everything": 7,
        "model": {"class_path": "Classifier", "init_args": {"lr": 0.1, "none": None}},
        "trainer": {
            "logger": {"api_key": "hidden"},
            "callbacks": [{"class_path": "Mine", "init_args": {"token": "no"}}],
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


def read(path):
    return Reader(path.read_text(encoding="utf-8"))


def test_page_of_a_run_holds_its_numbers(run, result):
    assert write_page(run) == run / "report.html"
    shown = read(run / "report.html")
    assert {file.suffix for file in run.iterdir()} == {".json", ".pt", ".yaml", ".html"}  # nothing half-written
    models, others, accuracy, energy, operations, layers, decisions, spikes, losses = shown.tables
    assert [row[0] for row in models[1:]] == ["horowitz_fp32", "lemaire", "bit_matched", "eflops, in EFLOPs"]
    for row, model in zip(models[1:], result.shown_models, strict=True):
        spent = model.steps[2].total
        assert row[1] == (in_joules if model.unit == "J" else in_short)(spent)
        ratios = [cost[2].total for cost in (model.sparse, model.dense) if cost]
        assert [cell for cell in row[4:] if cell] == [f"{spent / cost:.2f}" for cost in ratios]
    assert {row[0] for row in [*models[1:], *others[1:]]} == {*COST_MODELS, "eflops, in EFLOPs"} - {"eflops"}
    assert next(row for row in others if row[0] == "loihi")[-1] == in_short(result.steps[2].effective_macs)
    assert result.verdict()[0] in shown.text
    assert [row[0] for row in accuracy[1:]] == ["DNN", "SNN, T = 1", "SNN, T = 2", "SNN, T = 4", "SNN, T = 8"]
    assert [row[1] for row in accuracy[2:]] == [f"{100 * step.accuracy:.2f} %" for step in result.steps]
    assert [row[2] for row in operations[3:]] == [in_short(step.sops) for step in result.steps]
    assert [row[1] for row in energy[3:]] == [in_joules(step.energy) for step in result.steps]
    assert [row[0] for row in layers[1:]] == [layer.name for layer in result.layers] + ["total"]
    assert len(decisions) == 1 + 3
    assert [row[0] for row in spikes[1:]] == ["1", "4"]
    assert [row[0] for row in losses[1:]] == ["1", "4"]
    for said in (
        "not a measurement",
        "4.6 pJ per MAC and 0.9 pJ per SOP",
        result.source,
        "my run",
        "seed_everything 7",
    ):
        assert said in shown.text
    for said in ("per_channel True", "model Classifier", "model.lr 0.1", "trainer.callbacks.Mine Mine"):
        assert said in shown.text
    assert "hidden" not in shown.text
    assert "none" not in shown.text.split("model.lr")[1]
    assert "token" not in shown.text


def test_page_needs_nothing_else(run):
    shown = read(write_page(run))
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & {tag for tag, _ in shown.elements}
    for _, attributes in shown.elements:
        assert not {"src", "href", "style"} & set(attributes)
        assert not any(name.startswith("on") for name in attributes)
    content = (run / "report.html").read_text(encoding="utf-8")
    assert "http" not in content.replace("http-equiv", "")
    assert "@import" not in content
    assert content.count("url(") == content.count("url(#hatch)") == 1
    policy = next(meta["content"] for meta in shown.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_page_is_accessible(run):
    shown = read(write_page(run))
    headings = [int(tag[1]) for tag, _ in shown.elements if tag in {"h1", "h2", "h3"}]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(headings))
    assert shown.all("html") == [{"lang": "en"}]
    assert "width=device-width" in str(shown.all("meta"))
    for figure in shown.all("svg"):
        assert figure.get("aria-hidden") == "true" or (figure["role"] == "img" and len(figure["aria-label"]) > 20)
    assert len([figure for figure in shown.all("svg") if "role" in figure]) == 10 + 3
    assert len(shown.all("caption")) == len(shown.all("table")) == 9
    assert {header.get("scope") for header in shown.all("th")} == {"col", "row"}
    assert all("aria-label" in box for box in shown.all("div") if box.get("tabindex"))


def test_figures_show_the_numbers(result):
    drawn = Reader(page(result))
    bars = [rect for _, rect in drawn.charts["Bar chart of"] if rect.get("height") == "9" and "fill" in rect["class"]]
    macs = [result.dnn.dense_macs, result.dnn.effective_macs, result.steps[2].effective_macs]
    sops = [layer.sops for layer in result.layers if layer.sops]
    rates = [layer.spike_rate for layer in result.layers if layer.spike_rate is not None]
    groups = [[[value] for value in values] for values in (macs, sops, rates)]
    for name in ("lemaire", "horowitz_fp32"):
        spent = [layer.spent for layer in result.model(name).layers]
        parts = [[one.macs, one.synapses, one.neurons, one.memory] for one in spent]
        groups.insert(1, [[part for part in of_layer if part] for of_layer in parts])
    expected = [320 * part / max(map(sum, group)) for group in groups for bar in group for part in bar]
    assert [float(rect["width"]) for rect in bars] == pytest.approx(expected, abs=0.01)
    points = [mark for _, mark in drawn.charts["Line chart. The"] if mark.get("r") == "4"]
    heights = [float(mark["cy"]) for mark in points]
    assert len(heights) == len(result.steps)
    best = sorted(range(len(heights)), key=lambda i: heights[i])
    assert [result.steps[i].accuracy for i in best] == sorted((step.accuracy for step in result.steps), reverse=True)


def energy_bars(drawn, result):
    """Give the energies that the heights of the bars stand for, from below, by the levels of the DNN."""
    chart = drawn.charts["Bar chart. At"]
    sparse, dense = (float(line["y1"]) for _, line in chart if line.get("class") in ("line dnn dashed", "line dense"))
    joules = (result.dnn.dense_energy - result.dnn.energy) / (sparse - dense)
    ground = sparse + result.dnn.energy / joules
    found = {}
    for _, rect in chart:
        if rect.get("class", "").startswith("fill"):
            top, height = float(rect["y"]), float(rect["height"])
            found.setdefault(rect["class"], []).append((joules * (ground - top - height), joules * (ground - top)))
    return found


def test_energy_bars_are_that_of_macs_and_on_top_of_it_that_of_sops(result):
    figure = views.energy(result)
    assert figure.totals() == pytest.approx([step.energy for step in result.steps])
    bars = energy_bars(Reader(page(result)), result)
    macs = [4.6e-12 * step.effective_macs for step in result.steps]
    assert list(bars) == ["fill mac hatched", "fill snn"]
    most = max(step.energy for step in result.steps)
    for (bottom, top), energy in zip(bars["fill mac hatched"], macs, strict=True):
        assert (bottom, top) == pytest.approx((0, energy), abs=0.003 * most)
    for (bottom, top), energy, step in zip(bars["fill snn"], macs, result.steps, strict=True):
        assert (bottom, top) == pytest.approx((energy, step.energy), abs=0.003 * most)
        assert top - bottom == pytest.approx(0.9e-12 * step.sops, abs=0.003 * most)


def test_tables_show_ratios_intervals_and_differences(result):
    _, _, accuracy, energy, *_ = Reader(page(result)).tables
    sparse, dense = result.dnn.energy, result.dnn.dense_energy
    spent = [dense, sparse, *(step.energy for step in result.steps)]
    assert [row[2:] for row in energy[1:]] == [[f"{value / sparse:.2f}", f"{value / dense:.2f}"] for value in spent]
    for row, step in zip(accuracy[2:], result.steps, strict=True):
        share, n = step.accuracy, result.samples
        # Wilson's bounds b solve (share - b)² = 1.96² b (1 - b) / n.
        for bound in row[2].removesuffix(" %").split(" to "):
            b = float(bound) / 100
            assert (share - b) ** 2 == pytest.approx(1.96**2 * b * (1 - b) / n, abs=2e-3)
        assert float(row[3].replace("−", "-")) == pytest.approx(100 * (share - result.dnn.accuracy), abs=0.006)


def test_nothing_of_a_run_becomes_markup(run, result):
    layers = tuple(dataclasses.replace(layer, name=HOSTILE + layer.name, kind=HOSTILE) for layer in result.layers)
    hostile = dataclasses.replace(result, layers=layers, source=HOSTILE, table=HOSTILE, models=(), chosen=())
    dataclasses.replace(hostile, about=About(*[HOSTILE] * 5)).save_json(run / "report.json")
    raster = Raster.load_json(run / "raster.json")
    spiking = tuple(dataclasses.replace(layer, name=HOSTILE) for layer in raster.layers)
    dataclasses.replace(raster, layers=spiking).save_json(run / "raster.json")
    diagnosis = json.loads((run / "diagnosis.json").read_text())
    diagnosis["advice"] = HOSTILE + "\ud800"
    for layer in diagnosis["layers"]:
        layer["name"] = HOSTILE + layer["name"]
    (run / "diagnosis.json").write_text(json.dumps(diagnosis))
    (run / "config.yaml").write_text(yaml.safe_dump({HOSTILE: {"class_path": HOSTILE, "init_args": [HOSTILE]}}))
    torch.save({"conversion": {HOSTILE: HOSTILE}}, run / "spiking.pt")
    plain = Reader(page(result))
    hostile_run = run.rename(run.with_name("<script>alert(3)<!--"))
    shown = read(write_page(hostile_run))
    assert {tag for tag, _ in shown.elements} - {tag for tag, _ in plain.elements} <= {"details", "summary"}
    assert not any(name.startswith("on") for _, attributes in shown.elements for name in attributes)
    assert shown.text.count("<script>alert(1)</script>") > 15
    assert "What each layer loses" in shown.text
    content = (hostile_run / "report.html").read_bytes()
    assert b"\0" not in content
    assert "\u202e" not in content.decode()
    assert content.count(b"</style>") == 1


def test_settings_hide_secrets_and_stay_short():
    secrets = dict.fromkeys(("api_key", "key", "token", "password", "my_secret", "credentials", "logger"), "hidden")
    shown = flat({**secrets, "deep": [{"auth.token": "hidden"}, {"init": {"passwd": "hidden"}}], "keys": 3, "lr": 0.1})
    assert shown == [("keys", "3"), ("lr", "0.1")]
    assert flat({"class_path": "A", "init_args": {"b": None, "c": [1, 2]}}) == [("", "A"), ("c", "[1, 2]")]
    assert len(str(flat({"long": list(range(10**6)), "x" * 10**6: "y" * 10**6}))) < 3000


def test_yaml_that_grows_without_end_is_cut_short(run):
    lines = ["a0: &a0 [x, [y]]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    (run / "config.yaml").write_text("\n".join([*lines, "self: &self {again: *self}"]))
    assert len(write_page(run).read_text(encoding="utf-8")) < 300_000


def test_the_diagnosis_of_another_network_is_left_out(run, result, dnn, data):
    diagnose(dnn, to_snntorch(dnn, data[0], timesteps=4, percent=90), data[0]).save_json(run / "diagnosis.json")
    assert "What each layer loses" not in read(write_page(run)).text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("report.json", "{", "report.json' to hold a Report, but"),
        ("report.json", "[]", r"but Report is \[\]"),
        ("report.json", '{"samples": 3}', "but Report lacks dnn, steps"),
        ("report.json", '{"samples": NaN}', "report.json"),
        ("raster.json", '{"timesteps": 1, "labels": [1], "decisions": [], "layers": []}', "do not fit"),
        ("diagnosis.json", "{}", "hold a Diagnosis, but Diagnosis lacks"),
        ("config.yaml", "a: [", r"config\.yaml' cannot be read: while parsing"),
        (
            "config.yaml",
            "a: !!python/object/apply:os.system [ls]",
            "cannot be read: could not determine",
        ),
        ("spiking.pt", "no tensors", "tensors and plain data"),
    ],
)
def test_files_that_hold_something_else_are_refused(run, name, content, message):
    write_page(run)
    before = (run / "report.html").read_bytes()
    (run / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        write_page(run)
    assert (run / "report.html").read_bytes() == before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "3", None, True, [1.0]])
def test_numbers_that_are_none_are_refused(run, value):
    plain = json.loads((run / "report.json").read_text())
    plain["steps"][0]["sops"] = value
    (run / "report.json").write_text(json.dumps(plain))
    with pytest.raises(ValueError, match=r"Report\.steps\[0\]\.sops is"):
        write_page(run)


def test_wrong_arguments_are_refused(result, tmp_path):
    with pytest.raises(FileNotFoundError, match="`run` to name a folder .* no report.json"):
        write_page(tmp_path)
    with pytest.raises(ValueError, match="`path` to name the page"):
        write_page(result)
    broken = dataclasses.replace(result, timesteps=3)
    broken.save_json(tmp_path / "report.json")
    with pytest.raises(ValueError, match="ascending time steps, 3 among them"):
        write_page(tmp_path)


def test_a_report_reads_back_as_it_was(result, tmp_path):
    result.save_json(tmp_path / "report.json")
    assert Report.load_json(tmp_path / "report.json") == result
    assert write_page(tmp_path, tmp_path / "new" / "page.html").is_file()
    assert write_page(result, tmp_path / "one.html").read_text(encoding="utf-8") == page(result)


def zeros(step):
    return dataclasses.replace(step, accuracy=0.0, sops=0.0, effective_macs=0.0, energy=0.0, spike_rate=0.0)


def test_pages_of_extreme_reports(result):
    dead = dataclasses.replace(result.dnn, accuracy=0.0, sops=0.0, effective_macs=0.0, energy=0.0)
    replace = partial(dataclasses.replace, result, models=(), chosen=())  # priced by what it holds
    silent = replace(steps=tuple(map(zeros, result.steps)), dnn=dead)
    one = replace(steps=result.steps[2:3])
    none = replace(layers=())
    many = replace(
        layers=tuple(LayerReport(f"network.block{i}." + 20 * "long.", "Conv2d", sops=1e15 / 3**i) for i in range(60)),
        steps=tuple(dataclasses.replace(result.steps[2], timesteps=T) for T in range(1, 65)),
    )
    for extreme in (silent, one, none, many):
        shown = Reader(page(extreme))
        assert "nan" not in shown.text
        for attributes in shown.all("line") + shown.all("rect") + shown.all("circle"):
            for name in {"x", "y", "x1", "y1", "x2", "y2", "cx", "cy", "width", "height"} & set(attributes):
                assert -1 <= float(attributes[name]) < 3000


# The raster.


def test_raster_is_what_the_network_does(network, data):
    spikes = []
    handles = [
        network.body.get_submodule(name).register_forward_hook(lambda m, a, out, n=name: spikes.append((n, out[0])))
        for name in "14"
    ]
    network.timesteps = 8
    with torch.no_grad():
        scores = network(data[0][:2], per_step=True)
    network.timesteps = 4
    for handle in handles:
        handle.remove()
    state = torch.random.get_rng_state()
    raster = record(network, *data, timesteps=8, samples=2, rows=12)
    assert torch.equal(state, torch.random.get_rng_state())
    assert network.timesteps == 4
    assert raster.labels == tuple(data[1][:2].tolist())
    assert raster.decisions == tuple(map(tuple, scores.argmax(2).T.tolist()))
    assert [(layer.name, layer.neurons) for layer in raster.layers] == [("1", 144), ("4", 8)]
    for layer in raster.layers:
        steps = torch.stack([out for name, out in spikes if name == layer.name], -1).flatten(1, -2)
        assert len(layer.shown) == 6
        for sample, trains in enumerate(layer.spikes):
            expected = ["".join(str(int(spike)) for spike in steps[sample, neuron]) for neuron in layer.shown]
            assert list(trains) == expected
    assert any("1" in train for layer in raster.layers for train in layer.spikes[0])


@pytest.mark.parametrize("coding", ["poisson", "latency", "neurons"])
def test_raster_of_coded_input(dnn, data, coding):
    raster = record(to_snntorch(dnn, data[0], timesteps=3, coding=coding), *data, samples=1, rows=12)
    assert len(raster.layers) == 3
    assert any("1" in train for train in raster.layers[0].spikes[0])


@pytest.mark.parametrize("argument", ["timesteps", "samples", "rows"])
def test_raster_refuses_less_than_one(network, data, argument):
    with pytest.raises(ValueError, match=f"`{argument}` to be .*at least 1, but got 0"):
        record(network, *data, **{argument: 0})


# In a browser.

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")


@pytest.fixture(scope="module")
def crowded(tmp_path_factory, dnn, data, network, result):
    """A run with names that are long, and hostile."""
    folder = tmp_path_factory.mktemp("crowded")
    names = [HOSTILE, "verylong" * 12, "電力" * 40, "W" * 40, "m" * 40, "readout"]
    layers = tuple(dataclasses.replace(layer, name=name) for layer, name in zip(result.layers, names, strict=True))
    dataclasses.replace(result, layers=layers, source=HOSTILE).save_json(folder / "report.json")
    record(network, *data, timesteps=8).save_json(folder / "raster.json")
    diagnose(dnn, network, data[0]).save_json(folder / "diagnosis.json")
    save_network(network, folder / "spiking.pt")
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"path" * 40: "/" + "x" * 200}}))
    return write_page(folder)


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1200])
def test_a_browser_shows_the_page(crowded, width, dark):
    with Browser(width, dark) as browser:
        browser.open(crowded)
        browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert browser.evaluate("document.documentElement.scrollWidth") == width
        requests = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
        assert requests == [crowded.resolve().as_uri()]
        bad = {"Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Page.javascriptDialogOpening"}
        assert [event for event in browser.events if event["method"] in bad] == []
        assert browser.evaluate("document.scripts.length + document.images.length") == 0
        # Nothing is cut off but what scrolls.
        cut = """[...document.querySelectorAll('main *')].filter(element =>
            !element.parentElement.closest('.scroll, .figure') && element.getBoundingClientRect().right > innerWidth
        ).map(element => element.outerHTML.slice(0, 80))"""
        assert browser.evaluate(cut) == []
        # Text of figures stays within them, and is large enough to be read.
        outside = """[...document.querySelectorAll('.figure text')].filter(text => {
            const box = text.getBoundingClientRect(), around = text.ownerSVGElement.getBoundingClientRect();
            return box.left < around.left - 2 || box.right > around.right + 2 || box.height < 9;
        }).map(text => text.textContent)"""
        assert browser.evaluate(outside) == []
        overlapping = """[...document.querySelectorAll('.figure .name')].filter(name =>
            name.getBoundingClientRect().right > name.nextElementSibling.getBoundingClientRect().left
        ).map(name => name.textContent)"""
        assert browser.evaluate(overlapping) == []
        brightness = browser.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")
        assert (sum(brightness) < 200) == dark
        assert (sum(brightness) > 600) != dark
