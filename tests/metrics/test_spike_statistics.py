"""Spike statistics against brute force: the trains of all neurons, one by one."""

import copy
import math
from itertools import pairwise

import norse.torch as norse
import pytest
import snntorch
import torch
from torch import nn

from snnreg_plugins import SpikeStatistics, to_snntorch
from snnreg_plugins.watching.layers import is_spiking_neuron
from tests.helpers import name_in_dnn
from tests.metrics.styles import STYLES


def ratio(a, b):
    return a / b if b else math.nan


def brute_force(trains):
    """Statistics of a list of {neuron: [train of each sample]}, each train a list of 0 and 1."""
    neurons = {}
    for part in trains:
        for neuron, its in part.items():
            neurons.setdefault(neuron, []).extend(its)
    everything = [train for its in neurons.values() for train in its]
    times = [[step for step, spike in enumerate(train) if spike] for train in everything]
    firsts = [each[0] for each in times if each]
    intervals = [b - a for each in times for a, b in pairwise(each)]
    whole = [[spike for train in its for spike in train] for its in neurons.values()]
    statistics = {
        "rate": ratio(sum(map(sum, whole)), sum(map(len, whole))),
        "silent": ratio(sum(not any(train) for train in whole), len(whole)),
        "saturated": ratio(sum(all(train) for train in whole), len(whole)),
        "first_spike": ratio(sum(firsts), len(firsts)),
        "interval": ratio(sum(intervals), len(intervals)),
    }
    return statistics, [intervals.count(n) for n in range(max(intervals) + 1)] if intervals else []


def trains_of(layer, outputs):
    """Outputs (T, B, ...) as a dict from neuron to one train a sample."""
    steps = torch.stack(outputs).flatten(2).ne(0).int()
    return {(layer, n): steps[:, :, n].t().tolist() for n in range(steps.shape[2])}


def check(metric, trains):
    """Compare with the trains of each batch: a list of dicts."""
    statistics, histogram = brute_force(trains)
    assert {name: value.item() for name, value in metric.compute().items()} == pytest.approx(statistics, nan_ok=True)
    assert metric.intervals().tolist() == histogram
    for name in metric.layers:
        mine = [{neuron: its for neuron, its in part.items() if neuron[0] == name} for part in trains]
        statistics, histogram = brute_force(mine)
        assert metric.by_layer()[name] == pytest.approx(statistics, nan_ok=True)
        assert metric.intervals(name).tolist() == histogram


TIMED = [name for name in STYLES if name.startswith(("exported", "snntorch", "norse"))]


@pytest.mark.parametrize("name", TIMED)
def test_networks_of_every_style(name):
    torch.manual_seed(0)
    model, run, _ = STYLES[name]()
    names = {module: name_in_dnn(model, name) for name, module in model.named_modules() if is_spiking_neuron(module)}
    outputs, trains = {}, []

    def keep(module, args, output):
        spikes = (output[0] if isinstance(output, tuple) else output).detach()
        whole = isinstance(module, (norse.LIF, norse.LIFRecurrent))
        outputs.setdefault(names[module], []).extend(spikes.clone().unbind(0) if whole else [spikes.clone()])

    for module in names:
        module.register_forward_hook(keep)
    with SpikeStatistics(model) as metric:
        for size in (5, 5, 2):
            outputs.clear()
            run((torch.rand(size, 6) * 2).clamp(max=1))
            trains.append({key: its for each, steps in outputs.items() for key, its in trains_of(each, steps).items()})
    check(metric, trains)
    assert set(metric.layers) == set(names.values())


def neuron_that_emits(trains):
    """A network whose neurons spike where told: its input, which is above the threshold or not."""
    model = nn.Sequential(snntorch.Leaky(beta=0.0, threshold=0.5, init_hidden=True, reset_mechanism="none"))
    metric = SpikeStatistics(model)
    for train in trains:
        model[0].reset_mem()
        for spikes in train:
            model(spikes)
    return model, metric


def random_trains(seed, steps=12):
    torch.manual_seed(seed)
    rates = torch.tensor([0.0, 1.0, 0.2, 0.5, 0.8])
    return [torch.bernoulli(rates.expand(steps, batch, 5)) for batch in (3, 4, 4)]


@pytest.mark.parametrize("seed", range(3))
def test_trains_at_random(seed):
    trains = random_trains(seed)
    _, metric = neuron_that_emits(trains)
    check(metric, [trains_of("0", list(train)) for train in trains])
    assert metric.compute()["silent"] == metric.compute()["saturated"] == 0.2
    check(copy.deepcopy(metric), [trains_of("0", list(train)) for train in trains])


def test_a_neuron_is_silent_only_if_it_is_so_in_all_samples():
    zeros, ones = torch.zeros(2, 1, 1), torch.ones(2, 1, 1)
    _, metric = neuron_that_emits([zeros])
    assert metric.compute()["silent"] == 1
    assert metric.compute()["first_spike"].isnan()
    assert metric.intervals().tolist() == []
    _, metric = neuron_that_emits([zeros, ones])
    assert metric.compute()["silent"] == metric.compute()["saturated"] == 0


def test_reset_and_failed_passes():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.neuron = snntorch.Leaky(beta=0.0, threshold=0.5, init_hidden=True, reset_mechanism="none")

        def forward(self, x, fail=False):
            spikes = self.neuron(x)
            if fail:
                raise ZeroDivisionError
            return spikes

    model = Net()
    with SpikeStatistics(model) as metric:
        with pytest.raises(ZeroDivisionError):
            model(torch.ones(2, 3), fail=True)
        with pytest.raises(RuntimeError, match="no forward pass"):
            metric.compute()
        model.neuron.reset_mem()
        model(torch.ones(2, 3))
        metric.reset()
        model.neuron.reset_mem()
        model(torch.zeros(2, 3))
    check(metric, [trains_of("neuron", [torch.zeros(2, 3)])])


def test_no_neuron():
    with pytest.raises(ValueError, match="`model`.*spiking neuron.*Linear has none"):
        SpikeStatistics(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="`layer`.*'x'"):
        SpikeStatistics(snntorch.Leaky(beta=0.9)).intervals("x")


def test_plot_is_the_histogram_of_intervals():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    network = to_snntorch(model, torch.rand(50, 4), timesteps=8)
    metric = SpikeStatistics(network)
    network(torch.rand(50, 4))
    _, axes = metric.plot()
    for line, name in zip(axes.lines, metric.layers, strict=True):
        counts = metric.intervals(name)
        assert line.get_label() == name
        assert list(line.get_ydata()) == pytest.approx((100 * counts / counts.sum()).tolist())
    metric.plot(metric.compute())
    matplotlib.pyplot.close("all")
