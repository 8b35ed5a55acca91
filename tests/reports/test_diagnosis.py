"""The diagnosis equals what dull code counts, blames what is to blame, and suggests what helps."""

from __future__ import annotations

import dataclasses
import inspect
import io
import json
import math
import runpy
import statistics
import sys
from collections import OrderedDict

import pytest
import torch
from rich.console import Console
from torch import nn

from snnreg_plugins import to_norse, to_snntorch
from snnreg_plugins.callbacks import ExportReport
from snnreg_plugins.data import Digits
from snnreg_plugins.modules import LeNet
from snnreg_plugins.reports.diagnose import diagnose
from snnreg_plugins.reports.diagnosis import SharedSynapses
from snnreg_plugins.reports.remedies import CAUSES, LayerError, advise
from tests.export import test_architectures as architectures
from tests.export.reference import recorded
from tests.helpers import brute_force_operations, soft_reset_neuron
from tests.helpers import recorded as recorded_of

T = 5
ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Hardtanh)


def chain():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.AvgPool2d(2),
        nn.Conv2d(4, 6, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(6, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    )


def make(name):
    return chain().double().eval() if name == "chain" else architectures.NETS[name]()


# Network: what else to export it with; the activations that each one reads; the neurons that each synaptic layer reads.
NETS = {
    "chain": (
        {"threshold": "percentile", "percent": 97.0, "per_channel": True},
        {"2": [], "5": ["2"], "9": ["5"]},
        {"4": "2", "8": "5", "10": "9"},
    ),
    "LeakyReLU": (
        {"threshold": "mmse"},
        {"2": [], "5": ["2"]},
        {"3": "2", "3_1": "2_negative", "7": "5", "7_1": "5_negative"},
    ),
    "PReLU": (
        {"percent": 95.0, "initial_potential": 0.25},
        {"1": [], "3": ["1"]},
        {"2": "1", "2_1": "1_negative", "5": "3", "5_1": "3_negative"},
    ),
    "Hardtanh": ({"per_channel": True}, {"1": [], "3": ["1"]}, {"2": "1", "2_1": "1_negative", "5": "3"}),
    "identity shortcut": (
        {"percent": 90.0},
        {"relu": [], "out": ["relu"]},
        {"conv": "relu", "last": "out"},  # and the shortcut: see below
    ),
    "dense block": (
        {},
        {"relu": [], "r1": ["relu"], "r2": ["relu", "r1"]},
        {"a": "relu", "b": ("relu", "r1"), "last": "r2"},
    ),
}


def inputs():
    return torch.rand(30, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 0.2


def brute_force(dnn, network, x, potential):
    """What a layer of neurons makes of activations, pair by pair with Python's floats, by name."""
    with torch.no_grad(), recorded(network) as (spikes, arriving):
        network(x)
    with torch.no_grad(), recorded_of(dnn, ACTIVATIONS) as seen:
        dnn(x)
    layers = {}
    for name, activation, given in seen:
        for suffix, sign in (("", 1), ("_negative", -1)):
            if f"body.{name}{suffix}" in spikes:
                target = activation(given)
                gain = 1.0
                if isinstance(activation, (nn.LeakyReLU, nn.PReLU)):
                    target = given
                    if sign < 0:
                        gain = getattr(activation, "negative_slope", getattr(activation, "weight", None))
                layers[f"{name}{suffix}"] = (name, (sign * target).clamp(min=0).detach(), gain)
    found = {}
    for key, (base, a, gain) in layers.items():
        steps = spikes[f"body.{key}"]
        count = sum(steps)
        level = network.levels[key].to(a).expand_as(a)
        weight = gain.detach() if isinstance(gain, torch.Tensor) else torch.tensor(gain, dtype=a.dtype)
        weight = (weight.reshape(-1, *[1] * (a.dim() - 2)) if weight.numel() > 1 else weight).expand_as(a)
        even = sum(soft_reset_neuron([a.minimum(level)] * T, level, potential * level))
        columns = [v.flatten().tolist() for v in (a, count, level, weight, even)]
        pairs = list(zip(*columns, strict=True))
        own = list(zip(*(v.flatten(1).T.tolist() for v in (a, count)), strict=True))  # by neuron
        found[key] = {
            "base": base,
            "activation": statistics.fmean(a for a, *_ in pairs),
            "correlation": statistics.correlation([p[0] for p in pairs], [p[1] / T * p[2] for p in pairs]),
            "weighed": math.fsum(a * w for a, _, _, w, _ in pairs),
            "error": math.fsum(w * abs(n / T * level - a) for a, n, level, w, _ in pairs),
            "bias": math.fsum(w * (n / T * level - a) for a, n, level, w, _ in pairs),
            "clipping": math.fsum(w * (a - level) for a, _, level, w, _ in pairs if a > level),
            "rounding": math.fsum(w * abs(m / T * level - min(a, level)) for a, _, level, w, m in pairs),
            "clipped": sum(a > level for a, _, level, *_ in pairs) / len(pairs),
            "spike_rate": sum(n for _, n, *_ in pairs) / len(pairs) / T,
            "dead": sum(not any(n) and any(a) for a, n in own) / len(own),
            "silent": sum(not any(n) and not any(a) for a, n in own) / len(own),
            "saturated": sum(set(n) == {T} for a, n in own) / len(own),
            "missing": math.fsum(
                math.fsum(a) * w for (a, n), w in zip(own, weight[0].flatten().tolist(), strict=True) if not any(n)
            ),
            "peaks": [max(channel) for channel in a.transpose(0, 1).flatten(1).tolist()],
        }
    sops = {
        name.removeprefix("body."): sum(brute_force_operations(network.get_submodule(name), x)[0] for x in given)
        for name, given in arriving.items()
        if name.startswith("body.") and isinstance(network.get_submodule(name), (nn.Linear, nn.Conv2d))
    }
    return found, sops


@pytest.mark.parametrize("name", NETS)
def test_numbers_are_those_of_dull_code(name):
    options, reads, synapses = NETS[name]
    dnn, x = make(name), inputs()
    network = to_snntorch(dnn, x, timesteps=T, **{"threshold": "percentile", "correction": "none", **options})
    result = diagnose(dnn, network, x.split(13))
    expected, sops = brute_force(dnn, network, x, options.get("initial_potential", 0.5))
    assert [layer.name for layer in result.layers] == list(expected)
    assert result.samples == 30
    assert result.timesteps == T
    weighed, errors = {}, {}
    for wanted in expected.values():
        weighed[wanted["base"]] = weighed.get(wanted["base"], 0) + wanted["weighed"]
        errors[wanted["base"]] = errors.get(wanted["base"], 0) + wanted["error"]
    for layer in result.layers:
        wanted = expected[layer.name]
        mean = weighed[wanted["base"]]
        for quantity in ("activation", "correlation", "clipped", "spike_rate", "dead", "silent", "saturated"):
            assert getattr(layer, quantity) == pytest.approx(wanted[quantity], rel=1e-9, abs=1e-12), quantity
        for quantity in ("error", "bias", "clipping", "rounding", "missing"):
            assert getattr(layer, quantity) == pytest.approx(wanted[quantity] / mean, rel=1e-9, abs=1e-12), quantity
        before = max([errors[source] / weighed[source] for source in reads[wanted["base"]]], default=0)
        assert layer.added == pytest.approx((wanted["error"] - before * wanted["weighed"]) / mean, abs=1e-9)
        active = sorted(peak for peak in wanted["peaks"] if peak > 0)
        assert layer.spread == pytest.approx(active[-1] / active[(len(active) - 1) // 2])
        threshold, level = network.body.get_submodule(layer.name).threshold, network.levels[layer.name]
        assert (layer.threshold_min, layer.threshold_max) == (float(threshold.min()), float(threshold.max()))
        assert (layer.level_min, layer.level_max) == (float(level.min()), float(level.max()))
        own = [sops[reader] for reader, read in synapses.items() if read == layer.name]
        if own:
            # The shortcut has one synapse from each neuron.
            shortcut = T * layer.spike_rate * 64 if (name, layer.name) == ("identity shortcut", "relu") else 0
            assert layer.sops == pytest.approx(sum(own) / 30 + shortcut, rel=1e-12)
            assert layer.sops > 0
    shared = [(reader, read, sops[reader] / 30) for reader, read in synapses.items() if isinstance(read, tuple)]
    assert [dataclasses.astuple(synapses) for synapses in result.synapses] == shared
    if name == "dense block":
        assert [layer.sops is None for layer in result.layers] == [False, True, False]
    worst = max(result.layers, key=lambda layer: layer.added)
    assert result.worst == worst.name
    assert sum(map(sum, result.histogram)) == 30 * len(pairs_of(network, worst.name, x))


def pairs_of(network, name, x):
    with torch.no_grad(), recorded(network) as (spikes, _):
        network(x[:1])
    return spikes[f"body.{name}"][0].flatten().tolist()


@pytest.mark.parametrize("name", ["identity shortcut", "concatenation", "LeakyReLU", "chain"])
@pytest.mark.parametrize("coding", ["constant", "neurons"])
def test_all_synaptic_operations_are_somewhere(name, coding):
    from snnreg_plugins import SynapticOperations

    dnn, x = make(name), inputs()
    network = to_snntorch(dnn, x, timesteps=T, coding=coding)
    with SynapticOperations(network) as operations, torch.no_grad():
        network(x)
    result = diagnose(dnn, network, x)
    found = sum(layer.sops or 0 for layer in result.layers) + sum(synapses.sops for synapses in result.synapses)
    assert found == pytest.approx(float(operations.compute()))


def test_events_of_a_binary_input_are_in_a_row_of_their_own():
    dnn, x = make("chain"), (inputs() > 0.3).double()
    result = diagnose(dnn, to_snntorch(dnn, x, timesteps=T), x)
    assert [(synapses.name, synapses.reads) for synapses in result.synapses] == [("0", ())]
    assert result.synapses[0].sops > 0


def test_input_neurons_are_a_layer():
    dnn, x = make("chain"), inputs()
    result = diagnose(dnn, to_snntorch(dnn, x, timesteps=T, coding="neurons"), x)
    assert [layer.name for layer in result.layers] == ["input", "input_negative", "2", "5", "9"]
    of_input, negative, first = result.layers[:3]
    assert of_input.activation == pytest.approx(float(x.clamp(min=0).mean()))
    assert negative.activation == pytest.approx(float((-x).clamp(min=0).mean()))
    assert first.added == pytest.approx(first.error - of_input.error - negative.error)


def test_under_a_constant_current_the_error_is_clipping_and_rounding():
    dnn, x = make("chain"), inputs()
    for options in ({}, {"percent": 80.0, "per_channel": True}, {"correction": "potential", "threshold": "mmse"}):
        first = diagnose(dnn, to_snntorch(dnn, x, timesteps=T, **options), x).layers[0]
        assert first.error == pytest.approx(first.clipping + first.rounding, rel=1e-9)


def test_histogram_counts_pairs_of_activation_and_rate():
    x = torch.tensor([[0.06], [0.31], [0.32], [0.81], [1.0], [1.22], [7.0]], dtype=torch.float64)
    dnn = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    with torch.no_grad():
        dnn[0].weight.fill_(1)
        dnn[0].bias.fill_(0)
    result = diagnose(dnn, to_snntorch(dnn, x[:5], timesteps=4, threshold="max", correction="none"), x)
    found = {(row, column): n for row, cells in enumerate(result.histogram) for column, n in enumerate(cells) if n}
    # 20 cells a level. Of 0.5 + 4 · 0.06 there is no spike, of 0.5 + 4 · 0.31 one, of 0.5 + 4 · 0.81 three.
    assert found == {(1, 0): 1, (6, 1): 2, (16, 3): 1, (20, 4): 1, (24, 4): 1, (29, 4): 1}
    assert result.layers[0].clipped == pytest.approx(2 / 7)
    many = diagnose(dnn, to_snntorch(dnn, x[:5], timesteps=100, threshold="max", correction="none"), x)
    assert {len(row) for row in many.histogram} == {33}


def test_constant_activations_have_no_correlation_and_silent_ones_no_error():
    dnn, x = make("chain"), inputs()
    network = to_snntorch(dnn, x, timesteps=T)
    with torch.no_grad():
        dnn[8].bias.fill_(-100.0)
    result = diagnose(dnn, network, x)
    last = result.layers[-1]
    assert (last.error, last.correlation, last.added, last.spread, last.dead) == (None, None, None, 1.0, 0.0)
    assert result.layers[1].error > 0
    with torch.no_grad():
        dnn[1].bias.fill_(-100.0)
        dnn[4].bias.fill_(-100.0)
    silent = diagnose(dnn, network, x)
    assert (silent.worst, silent.cause, silent.remedies, silent.histogram) == (None, None, (), ())
    assert silent.advice == "The DNN is silent on this data."
    silent.print(Console(file=io.StringIO()))


def test_saturated_neurons():
    dnn = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        dnn[0].weight.copy_(torch.tensor([[0.0], [1.0]]))
        dnn[0].bias.copy_(torch.tensor([9.0, 0.0]))
    result = diagnose(dnn, to_snntorch(dnn, torch.rand(50, 1), timesteps=4, percent=30.0), torch.rand(20, 1))
    assert result.layers[0].saturated == 0.5


def test_norse_and_a_dnn_behind():
    dnn, x = make("chain"), inputs()
    of_snntorch, of_norse = (diagnose(dnn, export(dnn, x, timesteps=T), x) for export in (to_snntorch, to_norse))
    assert [dataclasses.replace(layer, kind="Leaky") for layer in of_norse.layers] == list(of_snntorch.layers)
    part = diagnose(dnn, to_snntorch(dnn, x, timesteps=T, until="8"), x)
    assert part.layers[:2] == of_snntorch.layers[:2]
    assert len(part.layers) == 2


# Causes and remedies


@pytest.fixture(scope="module")
def trained():
    """A network of unlike channels, and data."""
    torch.manual_seed(0)
    dnn = nn.Sequential(
        *(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4))
    ).double()
    return dnn.eval(), torch.rand(200, 8, dtype=torch.float64)


@pytest.mark.parametrize(
    ("cause", "options"),
    [
        ("clipping", {"threshold": "percentile", "percent": 60.0, "timesteps": 32}),
        ("clipping", {"threshold": "percentile", "percent": 92.0, "timesteps": 4}),
        ("rounding", {"threshold": "percentile", "percent": 95.0, "timesteps": 4}),
        ("rounding", {"threshold": "max", "timesteps": 4}),
        ("rounding", {"threshold": "percentile", "percent": 99.9, "timesteps": 4, "initial_potential": 0.0}),
        ("rounding", {"threshold": "mmse", "timesteps": 4, "per_channel": True}),
        ("timing", {"coding": "poisson", "timesteps": 16}),
        ("leak", {"beta": 0.8, "compensate_leak": False, "timesteps": 16}),
    ],
)
def test_the_cause_is_found_and_every_remedy_helps(trained, cause, options):
    dnn, x = trained

    def run(**given):
        torch.manual_seed(0)
        return diagnose(dnn, to_snntorch(dnn, x, **given), x)

    result = run(**options)
    assert result.cause == cause
    assert 1 <= len(result.remedies) <= 3
    for remedy in result.remedies:
        name, value = remedy.split("=")
        assert options.get(name) != eval(value)
        better = run(**options | {name: eval(value)})
        assert sum(layer.error for layer in better.layers) < sum(layer.error for layer in result.layers), remedy
    worst = next(layer for layer in result.layers if layer.name == result.worst)
    assert result.advice.startswith(
        f"Layer {result.worst!r} loses the most: it is off by {100 * worst.error:.1f} % of its mean"
    )
    assert result.advice.endswith(f"{result.remedies[-1]}.")


def test_dead_neurons_are_found(trained):
    dnn, x = trained
    weak = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 4)).double()
    with torch.no_grad():
        weak[0].weight.copy_(dnn[0].weight.abs())
        weak[0].weight[4:] /= 10
        weak[0].bias.fill_(0.0)
    result = diagnose(weak, to_snntorch(weak, x, timesteps=2, correction="none"), x)
    assert result.cause == "dead"
    assert result.layers[0].dead > 0.5
    assert result.remedies == ("per_channel=True", "timesteps=4", 'correction="potential"')
    assert "of its neurons never spike" in result.advice
    better = diagnose(weak, to_snntorch(weak, x, timesteps=2, per_channel=True, correction="none"), x)
    assert better.layers[0].dead < result.layers[0].dead
    assert better.cause != "dead"


@pytest.mark.slow
def test_a_faithful_network_needs_no_advice(trained):
    dnn, x = trained
    result = diagnose(dnn, to_snntorch(dnn, x, timesteps=512, threshold="max", correction="none"), x)
    assert (result.cause, result.remedies) == (None, ())
    assert result.advice == "No layer loses much: none adds an error of more than 1 % of its mean activation."
    assert result.worst is not None


def cases():
    for threshold in ("max", "percentile", "mmse", "local", "spike_norm", "learned", "my_own"):
        for correction in ("none", "potential", "channel_potential", "bias"):
            for more in ({}, {"per_channel": True, "initial_potential": 0.0}, {"beta": 0.9, "coding": "latency"}):
                yield {"threshold": threshold, "correction": correction, "percent": 99.0, **more}


@pytest.mark.parametrize("cause", CAUSES)
def test_remedies_are_options_that_are_not_set(cause):
    known = inspect.signature(to_snntorch).parameters
    blame = {"clipping": {"clipping": 0.8}, "rounding": {"rounding": 0.8}, "dead": {"missing": 0.9}}.get(cause, {})
    for options in cases():
        if (options.get("beta", 1) < 1) != (cause == "leak"):
            continue
        numbers = {"clipping": 0.0, "rounding": 0.0, "missing": 0.0} | blame
        found, _, remedies = advise(LayerError(added=0.9, dead=0.5, spread=3.0, timesteps=8, **numbers, **options))
        assert found == cause
        assert 1 <= len(remedies) <= 3
        for remedy in remedies:
            name, _, value = remedy.partition("=")
            assert (name in known and options.get(name) != eval(value)) if value else " " in name


def test_two_causes_are_named_and_treated():
    options = {"threshold": "percentile", "percent": 99.0}
    _, why, remedies = advise(LayerError(0.5, 0.2, 0.3, 0.0, 0.0, 1.0, 8, **options))
    assert why == "rates are multiples of 1/8 and activations above what a spike is worth are clipped"
    assert remedies == ("timesteps=16", 'threshold="mmse"', 'correction="potential"')
    _, _, remedies = advise(LayerError(0.5, 0.3, 0.2, 0.0, 0.0, 1.0, 8, **options))
    assert remedies == ("percent=99.9", "timesteps=16", 'threshold="mmse"')
    cause, why, _ = advise(LayerError(0.5, 0.1, 0.3, 0.0, 0.0, 1.0, 8, **options))
    assert (cause, why) == ("rounding", "rates are multiples of 1/8")


def test_percent_goes_up_by_nines():
    found = [
        advise(LayerError(0.5, 0.4, 0.1, 0.0, 0.0, 1.0, 8, threshold="percentile", percent=percent))[2][0]
        for percent in (90.0, 99.0, 99.9, 99.95, 100.0)
    ]
    assert found == ["percent=99", "percent=99.9", "percent=99.99", "percent=99.995", 'threshold="mmse"']


# Data, traces, errors


def test_every_form_of_data_gives_the_same():
    dnn, x = make("chain"), inputs()
    network = to_snntorch(dnn, x, timesteps=T)
    expected = diagnose(dnn, network, x)
    empty = x[:0]
    for data in ([x], iter(x.split(7)), [(part, None) for part in x.split(11)], [empty, x, empty]):
        found = diagnose(dnn, network, data)
        assert found.histogram == expected.histogram
        for layer, other in zip(found.layers, expected.layers, strict=True):
            assert dataclasses.astuple(layer)[2:] == pytest.approx(dataclasses.astuple(other)[2:], rel=1e-12)
    assert diagnose(dnn, network, x, limit_samples=12) == diagnose(dnn, network, [x[:12]], limit_samples=None)
    assert diagnose(dnn, network, x.split(5), limit_samples=12).samples == 12


def test_large_data_is_run_in_pieces():
    dnn, x = make("chain"), inputs().repeat(10, 1, 1, 1)
    sizes = []
    network = to_snntorch(dnn, x, timesteps=T)
    network.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    assert diagnose(dnn, network, x).samples == sum(sizes) == 300
    assert max(sizes) == 64


def test_leaves_no_trace():
    dnn, x = make("chain"), inputs()
    network = to_snntorch(dnn, x, timesteps=T)
    expected = diagnose(dnn, network, x)
    calls = []
    handles = [module.register_forward_hook(lambda *_: calls.append(1)) for module in dnn.modules()]
    dnn.train()
    network.eval()
    network.body.training = True
    before = {name: value.clone() for name, value in (dnn.state_dict() | network.state_dict()).items()}
    assert diagnose(dnn, network, x) == expected
    assert dnn.training
    assert (network.training, network.body.training) == (False, True)
    assert len(calls) == len(handles)  # called as its user calls it, once
    assert all(torch.equal(value, before[name]) for name, value in (dnn.state_dict() | network.state_dict()).items())
    for handle in handles:
        handle.remove()
    with pytest.raises(ValueError, match="but the model fails on samples of shape"):
        diagnose(dnn, network, torch.rand(3, 7, 4, 4))
    for model in (dnn, network):
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ([], ValueError, "`data` to hold at least one sample"),
        (Digits(), TypeError, r"`data` .* but got Digits, .* pass .*`test_dataloader\(\)`"),
        (7, TypeError, "`data` .* but got 7"),
        ([{"image": 1}], TypeError, "`data` .* but got a batch of type dict"),
        (torch.utils.data.TensorDataset(torch.rand(3, 1, 4, 4)), TypeError, "DataLoader"),
        (
            [torch.rand(2, 1, 4, 4).double(), torch.rand(2, 1, 5, 5).double()],
            ValueError,
            r"\(1, 4, 4\) and \(1, 5, 5\)",
        ),
    ],
)
def test_wrong_data_is_refused(wrong, error, message):
    dnn = make("chain")
    with pytest.raises(error, match=message):
        diagnose(dnn, to_snntorch(dnn, inputs(), timesteps=2), wrong)


def test_other_wrong_arguments_are_refused():
    dnn, x = make("chain"), inputs()
    network = to_snntorch(dnn, x, timesteps=2)
    with pytest.raises(TypeError, match=r"`network` to be a SpikingNetwork.* but got Sequential"):
        diagnose(network, dnn, x)
    with pytest.raises(ValueError, match="`data` to hold inputs of the model, but the model fails on samples"):
        diagnose(make("LeakyReLU")[3:], network, x)
    other = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 3), nn.ReLU()).to(x.dtype)
    with pytest.raises(ValueError, match=r"`network` to be exported from `dnn`, .* there is no activation"):
        diagnose(other, network, x)
    for wrong in (0, -1, True):
        with pytest.raises(ValueError, match=r"`limit_samples` to be an integer of at least 1, but got"):
            diagnose(dnn, network, x, limit_samples=wrong)


# Files and print


@pytest.fixture(scope="module")
def result():
    dnn, x = make("chain"), inputs()
    return diagnose(dnn, to_snntorch(dnn, x, timesteps=T, percent=95.0, per_channel=True), x)


def test_json_holds_all_numbers(result, tmp_path):
    result.save_json(tmp_path / "new" / "diagnosis.json")
    read = json.loads((tmp_path / "new" / "diagnosis.json").read_text(encoding="utf-8"))
    assert read == result.to_dict()
    assert read["layers"][1] == dataclasses.asdict(result.layers[1])
    assert read["advice"] == result.advice
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.samples = 0


def printed(result, width):
    stream = io.StringIO()
    result.print(Console(file=stream, width=width))
    return stream.getvalue().splitlines()


def test_print_shows_the_numbers(result):
    layer = dataclasses.replace(
        result.layers[0],
        name="conv",
        threshold_min=0.5,
        threshold_max=2.0,
        correlation=0.98765,
        error=0.1234,
        bias=-0.01,
        clipping=0.02,
        rounding=0.0,
        added=0.05,
        spike_rate=0.25,
        sops=12_345.0,
        clipped=0.004,
        dead=0.1,
        silent=0.0,
        saturated=1.0,
    )
    known = dataclasses.replace(
        result,
        layers=(layer, dataclasses.replace(layer, name="last", sops=None, error=None, correlation=None)),
        synapses=(SharedSynapses("both", ("conv", "last"), 7.0), SharedSynapses("first", (), 9.0)),
        worst="conv",
    )
    rows = [" ".join(line.split()) for line in printed(known, 80)]
    assert "> conv 0.5..2 0.250 12.3k 0.40 % 10.00 % 0 100.00 %" in rows
    assert "> conv 0.9877 -1.00 % 12.34 % 2.00 % 0 +5.00 %" in rows
    assert "last 0.5..2 0.250 0.40 % 10.00 % 0 100.00 %" in rows
    assert "both (shared) 7.00" in rows
    assert "first (input) 9.00" in rows


@pytest.mark.parametrize("width", [80, 120])
def test_print_fits(result, width):
    lines = printed(result, width)
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)
    assert result.advice in " ".join(" ".join(lines).split())


def test_plot_is_a_png(result, tmp_path):
    from matplotlib.image import imread

    result.save_plot(tmp_path / "plots" / "diagnosis.png")
    image = imread(tmp_path / "plots" / "diagnosis.png", format="png")
    assert image.shape[1] == 1920
    assert image.std() > 0.05
    dataclasses.replace(result, worst=None, histogram=()).save_plot(tmp_path / "silent.png")
    assert (tmp_path / "silent.png").stat().st_size > 10_000


def test_plot_shows_the_numbers(result):
    from matplotlib.figure import Figure

    errors, rates, shares = Figure().subplots(1, 3)
    result._draw_errors(errors)
    result._draw_rates(rates)
    result._draw_shares(shares)
    layers = result.layers
    before, added = ([bar.get_width() for bar in errors.containers[kind]] for kind in (0, 1))
    assert [a + b for a, b in zip(before, added, strict=True)] == pytest.approx([100 * layer.error for layer in layers])
    assert added == pytest.approx([100 * max(0.0, layer.added) for layer in layers])
    drawn = torch.tensor(rates.collections[0].get_array().filled(0)).long()
    assert drawn.T.tolist() == [list(row) for row in result.histogram]
    for bars, kind in zip(shares.containers, ("clipped", "dead", "saturated"), strict=True):
        assert [bar.get_width() for bar in bars] == pytest.approx([100 * getattr(layer, kind) for layer in layers])
    assert [label.get_text() for label in errors.get_yticklabels()] == ["2", "5", "9"]
    assert errors.get_ylim() == shares.get_ylim()  # rows stand side by side
    assert list(shares.get_yticks()) == [0, 1, 2]


def test_plot_without_matplotlib_says_what_to_install(result, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "snnreg_plugins\[plot\]"'):
        result.save_plot(tmp_path / "diagnosis.png")
    assert list(tmp_path.iterdir()) == []


def test_import_needs_neither_matplotlib_nor_rich(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "rich", None)
    assert "diagnose" in runpy.run_path(sys.modules[diagnose.__module__].__file__)


@pytest.mark.parametrize("asked", [False, True])
def test_export_report_diagnoses_on_demand(asked, tmp_path, capsys):
    torch.manual_seed(0)
    exporter = ExportReport(str(tmp_path), timesteps=2, steps=[2], calibration_batches=2, diagnose=asked)
    exporter.run(LeNet((1, 8, 8)), Digits(), 1)
    written = {"spiking.pt", "spiking.nir", "report.json", "report.png", "report.html", "raster.json"}
    written |= {"diagnosis.json", "diagnosis.png"} if asked else set()
    assert {path.name for path in tmp_path.iterdir()} == written
    out = capsys.readouterr().out
    assert ("loses the most" in out) == asked
    assert all(name in out for name in written)


def test_neurons_are_paired_by_the_names_that_tracing_gave():
    torch.manual_seed(0)
    layers = {"fc": nn.Linear(5, 12), "act": nn.LeakyReLU(0.2), "fc2": nn.Linear(12, 12), "act_negative": nn.ReLU()}
    dnn = nn.Sequential(OrderedDict(layers | {"input": nn.Linear(12, 3)}))  # two names that neurons would get
    x = torch.rand(30, 5)
    found = diagnose(dnn, to_snntorch(dnn, x, timesteps=16, coding="neurons"), x)
    assert {layer.name.removesuffix("_1") for layer in found.layers} == {"input", "act", "act_negative"}
    assert len(found.layers) == 4
    assert all(layer.correlation > 0.9 for layer in found.layers)
