"""The report equals what separate runs measure, changes nothing, and its files are whole."""

from __future__ import annotations

import dataclasses
import io
import json
import runpy
import sys

import pytest
import torch
from rich.console import Console
from torch import nn

from snnreg_plugins._files import atomic
from snnreg_plugins.data import Digits
from snnreg_plugins.export import to_snntorch
from snnreg_plugins.functional import EnergyTable, energy
from snnreg_plugins.metrics import SpikeRate, SynapticOperations
from snnreg_plugins.reports import pictures
from snnreg_plugins.reports.measure import report
from snnreg_plugins.reports.parts import LayerReport
from snnreg_plugins.reports.report import Report

STEPS = (1, 2, 5, 8)


def make_dnn():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.AvgPool2d(2),
        nn.Conv2d(4, 6, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(24, 5),
    ).eval()


def make_data(binary=False):
    """Three batches of unequal size whose labels the DNN gets right three times out of four."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(50, 1, 8, 8, generator=generator) - 0.3
    x = (x > 0.3).float() if binary else x.relu()
    with torch.no_grad():
        y = make_dnn()(x).argmax(1)
    y[::4] = (y[::4] + 1) % 5
    return list(zip(x.split(20), y.split(20), strict=True))


@pytest.fixture(scope="module")
def dnn():
    return make_dnn()


@pytest.fixture(scope="module")
def data():
    return make_data()


@pytest.fixture
def network(dnn, data):
    return to_snntorch(dnn, data, timesteps=5, per_channel=True)


@pytest.fixture(scope="module")
def result(dnn, data):
    return report(dnn, to_snntorch(dnn, data, timesteps=5, per_channel=True), data, steps=STEPS)


def accuracy(module, data):
    with torch.no_grad():
        return sum(int((module(x).argmax(1) == y).sum()) for x, y in data) / sum(len(y) for _, y in data)


@pytest.mark.parametrize("binary", [False, True])
def test_every_step_equals_a_run_of_its_own(dnn, binary):
    data = make_data(binary)
    network = to_snntorch(dnn, data, timesteps=3)
    result = report(dnn, network, data, steps=STEPS)
    assert [step.timesteps for step in result.steps] == list(STEPS)
    for step in result.steps:
        network.timesteps = step.timesteps
        with SynapticOperations(network) as operations, SpikeRate(network) as rate:
            assert step.accuracy == accuracy(network, data)
        assert step.sops == operations.total("sops") > 0
        assert step.effective_macs == operations.total("effective_macs")
        assert (step.effective_macs == 0) == binary  # binary input is events, also at the first layer
        assert step.spike_rate == float(rate.compute()) > 0
        assert step.energy == pytest.approx(1e-12 * (0.9 * step.sops + 4.6 * step.effective_macs))
    assert len({step.accuracy for step in result.steps}) > 1


@pytest.mark.parametrize("binary", [False, True])
def test_the_dnn_equals_what_metrics_measure(dnn, binary):
    data = make_data(binary)
    result = report(dnn, to_snntorch(dnn, data, timesteps=3), data, steps=STEPS)
    with SynapticOperations(dnn) as operations:
        assert result.dnn.accuracy == accuracy(dnn, data) == pytest.approx(0.75, abs=0.02)
    for quantity in ("sops", "effective_macs", "dense_macs"):
        assert getattr(result.dnn, quantity) == operations.total(quantity)
    assert 0 < result.dnn.effective_macs < result.dnn.dense_macs
    assert (result.dnn.sops > 0) == binary
    assert result.dnn.energy == pytest.approx(energy(result.dnn.sops, result.dnn.effective_macs))
    assert result.dnn.dense_energy == pytest.approx(4.6e-12 * result.dnn.dense_macs)
    assert result.samples == 50


@pytest.mark.parametrize(("timesteps", "at"), [(5, 5), (3, 8)])
def test_layers_at_the_networks_own_timesteps_or_the_most(dnn, data, network, timesteps, at):
    network.timesteps = timesteps
    result = report(dnn, network, data, steps=STEPS)
    assert result.timesteps == at
    network.timesteps = at
    with SynapticOperations(network) as operations, SpikeRate(network) as rate:
        accuracy(network, data)
    sops, macs, rates = operations.by_layer("sops"), operations.by_layer("effective_macs"), rate.by_layer()
    parts = dict(zip("013457", ("encoder", "body", "body", "body", "body", "body"), strict=True))
    *layers, readout = result.layers
    assert readout == LayerReport("readout", "sum", updates=5 * at)
    for layer in layers:
        name = f"{parts[layer.name]}.{layer.name}"
        if layer.name in "14":
            threshold = network.get_submodule(name).threshold
            assert (layer.threshold_min, layer.threshold_max) == (float(threshold.min()), float(threshold.max()))
            assert layer.threshold_min < layer.threshold_max
            assert layer.spike_rate == rates[layer.name] > 0
            assert layer.updates == at * {"1": 4 * 8 * 8, "4": 6 * 2 * 2}[layer.name]
            assert layer.sops is layer.effective_macs is layer.energy is None
        else:
            assert (layer.sops, layer.effective_macs) == (sops[layer.name], macs[layer.name])
            assert layer.energy == pytest.approx(energy(layer.sops, layer.effective_macs))
            assert layer.spike_rate is layer.updates is layer.threshold_min is layer.threshold_max is None
    assert [(layer.name, layer.kind) for layer in result.layers] == [
        ("0", "Conv2d"),
        ("1", "Leaky"),
        ("3", "Conv2d"),
        ("4", "Leaky"),
        ("7", "Linear"),
        ("readout", "sum"),
    ]
    assert [bool(layer.effective_macs) for layer in layers] == [True, False, False, False, False]
    total = next(step for step in result.steps if step.timesteps == at)
    assert sum(layer.energy or 0 for layer in result.layers) == pytest.approx(total.energy)
    assert sum(layer.updates or 0 for layer in layers) == total.updates


@pytest.mark.parametrize("dense", [False, True])
def test_at_the_break_even_rate_both_spend_the_same(dnn, data, network, dense):
    result = report(dnn, network, data, steps=STEPS)
    step = next(step for step in result.steps if step.timesteps == result.timesteps)
    factor = result.break_even_rate(dense) / step.spike_rate
    spent = 1e-12 * (factor * step.sops * result.ac + step.effective_macs * result.mac)
    assert spent == pytest.approx(result.dnn.dense_energy if dense else result.dnn.energy)


def test_steps_come_sorted_and_once_and_energy_by_the_given_table(dnn, data, network):
    mine = EnergyTable(mac=10.0, ac=1.0, source="my chip")
    result = report(dnn, network, iter(data), steps=[4, 2, 4], table=mine)
    assert [step.timesteps for step in result.steps] == [2, 4]
    assert (result.table, result.source) == ("custom", "my chip")
    step = result.steps[1]
    assert step.energy == pytest.approx(1e-12 * (step.sops + 10 * step.effective_macs))


def test_empty_batches_count_nothing(dnn, data, network, result):
    empty = (torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.int64))
    assert report(dnn, network, [empty, *data, empty], steps=STEPS) == result


def test_batch_norm_and_dropout_are_measured_in_eval_mode(data):
    torch.manual_seed(2)
    dnn = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(108, 5))
    network = to_snntorch(dnn, data, timesteps=4)
    before = {name: value.clone() for name, value in (network.state_dict() | dnn.state_dict()).items()}
    expected = report(dnn, network, data, steps=(1, 4))
    network.train()
    network.body.training = False
    assert report(dnn.train(), network, data, steps=(1, 4)) == expected
    assert dnn.training
    assert network.training
    assert network.encoder.training
    assert not network.body.training
    for name, value in (network.state_dict() | dnn.state_dict()).items():
        assert torch.equal(value, before[name]), name


def hooks_of(model):
    return [
        hook
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
        for hook in hooks.values()
    ]


def test_leaves_no_trace_and_watchers_of_the_dnn_count_nothing(dnn, data, network):
    calls = []
    handles = [module.register_forward_hook(lambda *_: calls.append(1)) for module in dnn.modules()]
    with SynapticOperations(dnn) as operations:
        before = hooks_of(dnn)
        report(dnn, network, data, steps=STEPS)
        assert hooks_of(dnn) == before
        assert int(operations.samples) == 0
    for handle in handles:
        handle.remove()
    assert len(calls) == len(handles)  # called as its user calls it, once
    assert hooks_of(network) == []
    assert network.timesteps == 5
    assert all(parameter.grad is None for parameter in network.parameters())


def test_an_error_midway_leaves_no_trace(dnn, data, network):
    def broken():
        yield data[0]
        raise OSError("disk gone")

    network.train()
    with pytest.raises(OSError, match="disk gone"):
        report(dnn, network, broken(), steps=STEPS)
    assert network.timesteps == 5
    assert network.training
    assert hooks_of(network) == []


X, Y = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ([], ValueError, "`data` to hold at least one sample"),
        ([(X[:0], Y[:0])], ValueError, "`data` to hold at least one sample"),
        (Digits(), TypeError, r"`data` .* but got Digits, .* pass .*`test_dataloader\(\)`"),
        (7, TypeError, "`data` .* but got 7"),
        (X, TypeError, "`data` .* but got a batch of type Tensor"),
        ([{"image": X, "label": Y}], TypeError, "`data` .* but got a batch of type dict"),
        ([(X,)], TypeError, "`data` .* but got a batch of Tensor"),
        ([(X, Y.tolist())], TypeError, "`data` .* but got a batch of Tensor, list"),
        ([(X, Y[:3])], ValueError, r"what is scored .* targets of shape \(3,\)\. Give `metric`"),
        ([(X, torch.eye(5)[Y].long())], ValueError, r"torch.int64 targets of shape \(4, 5\) .* Give `metric`"),
        ([(X, Y.float())], ValueError, r"torch.float32 targets of shape \(4,\). Give `metric`"),
        ([(X, Y + 2)], ValueError, "class indices below 5, the number of scores, but got 5"),
        ([(X, Y - 1)], ValueError, "class indices below 5, the number of scores, but got -1"),
    ],
)
def test_wrong_data_is_refused(dnn, network, wrong, error, message):
    with pytest.raises(error, match=message):
        report(dnn, network, wrong, steps=(2,))


@pytest.mark.parametrize("steps", [(), (0,), (4, -1), (2.0,), (True,), 8, "48"])
def test_wrong_steps_are_refused(dnn, data, network, steps):
    with pytest.raises(ValueError, match=r"Expected argument `steps` .* but got"):
        report(dnn, network, data, steps=steps)


def test_other_wrong_arguments_are_refused(dnn, data, network):
    with pytest.raises(TypeError, match=r"`network` to be a SpikingNetwork.* but got Sequential"):
        report(network, dnn, data)
    with pytest.raises(ValueError, match=r"`table` to be one of .* but got 'joules'"):
        report(dnn, network, data, table="joules")
    with pytest.raises(ValueError, match=r"outputs of shape \(20, 6, 2, 2\) .* Give `metric`"):
        report(dnn[:4], network, data)


def test_progress_is_shown_unless_it_is_not_wanted(dnn, data, network, terminal):
    report(dnn, network, data, steps=(1,), progress=False)
    assert terminal.getvalue() == ""
    report(dnn, network, data, steps=(1,))
    assert "Measuring" in terminal.getvalue()


def test_json_holds_all_numbers(result, tmp_path):
    result.save_json(tmp_path / "new" / "report.json")
    read = json.loads((tmp_path / "new" / "report.json").read_text(encoding="utf-8"))
    assert read == result.to_dict()
    assert read["steps"][2]["sops"] == result.steps[2].sops
    assert read["layers"][1]["threshold_min"] == result.layers[1].threshold_min
    assert read["dnn"] == json.loads(json.dumps(dataclasses.asdict(result.dnn)))
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["report.json"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.samples = 0


def printed(result: Report, width: int) -> list[str]:
    stream = io.StringIO()
    result.print(Console(file=stream, width=width))
    return stream.getvalue().splitlines()


def test_print_shows_the_numbers(result):
    known = dataclasses.replace(
        result,
        models=(),
        chosen=(),
        dnn=dataclasses.replace(result.dnn, accuracy=0.9, effective_macs=276_960.0, energy=1.274e-6, sops=0.0),
        steps=(dataclasses.replace(result.steps[2], accuracy=0.875, sops=999_700.0, spike_rate=0.1239, energy=2.5e-9),),
        layers=(
            LayerReport("conv", "Conv2d", sops=0.0, effective_macs=12.0, energy=5e-13),
            LayerReport("relu", "Leaky", threshold_min=0.5, threshold_max=2.0, spike_rate=0.25),
            LayerReport("silent", "Linear", sops=0.0, effective_macs=0.0, energy=0.0),
        ),
    )
    rows = {line.split("  ")[0].strip(): line.split() for line in printed(known, 80)}
    assert rows["DNN, sparse"][2:] == ["90.00", "%", "277k", "1.27", "µJ", "1.00"]
    assert rows["SNN, T = 5"][4:-4] == ["87.50", "%", "0.124", "1.00M"]
    assert rows["SNN, T = 5"][-3:] == ["2.50", "nJ", "0.00"]
    assert rows["conv"] == ["conv", "Conv2d", "12.0", "0.500", "pJ"]
    assert rows["relu"] == ["relu", "Leaky", "0.5..2", "0.250"]
    assert rows["silent"] == ["silent", "Linear", "0", "0", "J"]


@pytest.mark.parametrize("width", [80, 100])
def test_print_fits_and_says_what_energy_is(result, width):
    lines = printed(result, width)
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)
    text = " ".join(" ".join(lines).split())
    assert (
        f"estimate from published numbers, not a measurement: 4.6 pJ per MAC and 0.9 pJ per SOP ({result.source}"
        in text
    )
    assert "It leaves out neuron updates, memory access" in text


@pytest.mark.parametrize("name", ["report.png", "report"])
def test_plot_is_a_png(result, tmp_path, name):
    from matplotlib.image import imread

    result.save_plot(tmp_path / "plots" / name)
    image = imread(tmp_path / "plots" / name, format="png")
    assert image.shape[1] == 1920
    assert image.std() > 0.05  # something is drawn
    assert [file.name for file in (tmp_path / "plots").iterdir()] == [name]


def test_plot_shows_the_numbers(result):
    from matplotlib.figure import Figure

    plane, ratios, layers = Figure().subplots(1, 3)
    for draw, axes in zip(result.panels()[1], (plane, ratios, layers), strict=True):
        draw(axes)
    lines = {line.get_label(): line for line in plane.get_lines()}
    for name in ("horowitz_fp32", "lemaire", "bit_matched"):
        curve = lines[f"SNN, {name}"]
        assert list(curve.get_ydata()) == [step.accuracy for step in result.steps]
        assert list(curve.get_xdata()) == [cost.total for cost in result.model(name).steps]
    of_dnn = {float(x) for line in plane.get_lines() if line.get_linestyle() == "None" for x in line.get_xdata()}
    assert {result.dnn.energy, result.dnn.dense_energy} < of_dnn
    shown = [label.get_text().split("\n")[0] for label in ratios.get_yticklabels()]
    assert shown == ["horowitz_fp32", "lemaire", "bit_matched", "eflops"]
    step = result.at_timesteps()
    marks = {float(x) for line in ratios.get_lines() for x in line.get_xdata()}
    assert {step.energy / result.dnn.energy, step.energy / result.dnn.dense_energy} < marks
    widths = [bar.get_width() for bar in layers.patches if bar.get_width()]
    energies = [layer.energy for layer in result.layers if layer.energy]
    assert widths == pytest.approx(energies)  # each layer has MACs or SOPs alone
    assert [label.get_text() for label in layers.get_yticklabels()] == ["0", "3", "7"]


def test_plot_of_a_silent_network(result, tmp_path):
    silent = [dataclasses.replace(step, sops=0.0, effective_macs=0.0) for step in result.steps]
    dataclasses.replace(result, steps=tuple(silent), models=(), chosen=()).save_plot(tmp_path / "silent.png")
    assert (tmp_path / "silent.png").stat().st_size > 10_000


def test_plot_without_matplotlib_says_what_to_install(result, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "snnreg_plugins\[plot\]"'):
        result.save_plot(tmp_path / "report.png")
    assert list(tmp_path.iterdir()) == []


def test_import_needs_neither_matplotlib_nor_rich(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "rich", None)
    assert "report" in runpy.run_path(sys.modules[report.__module__].__file__)


def test_atomic_failure_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "scores.txt"
    path.write_text("old")

    def write():
        with atomic(path) as temporary:
            assert temporary.parent == path.parent
            assert temporary.suffix == ".txt"
            temporary.write_text("half")
            assert path.read_text() == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_replaces_and_writes_through_links(tmp_path):
    real, link = tmp_path / "there" / "real.txt", tmp_path / "link.txt"
    link.symlink_to(real)
    for text in ("first", "second"):
        with atomic(link) as temporary:
            temporary.write_text(text)
        assert real.read_text() == text
    assert link.is_symlink()
    (plain := tmp_path / "plain").touch()
    assert real.stat().st_mode == plain.stat().st_mode  # readable to whom any new file is


def test_a_failing_report_leaves_no_half_file(result, tmp_path, monkeypatch):
    monkeypatch.setattr(json, "dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        result.save_json(tmp_path / "report.json")
    monkeypatch.setattr(pictures, "bars", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        result.save_plot(tmp_path / "report.png")
    assert list(tmp_path.iterdir()) == []
