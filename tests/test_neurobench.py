"""NeuroBench's harness on our networks: the same counts as ours, and where they part."""

from __future__ import annotations

import copy
import pickle
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import snnreg_plugins.neurobench
from snnreg_plugins import SpikeRate, SynapticOperations, to_norse, to_snntorch
from snnreg_plugins.functional import OneToOne
from snnreg_plugins.spiking.layers import SumPool

TIMESTEPS = 4


def dnn(*layers):
    torch.manual_seed(0)
    return nn.Sequential(*layers).eval()


def plain():
    return dnn(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, padding_mode="circular"),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 3),
    )


def pooled():
    torch.manual_seed(1)  # with which no layer is silent
    return dnn(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 3, 3), nn.ReLU(), nn.Flatten())


def transposed():
    return dnn(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.ConvTranspose2d(2, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))


class Shortcut(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.inner, self.act, self.last = nn.Linear(64, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)

    def forward(self, x):
        x = self.act(self.first(x.flatten(1)))
        return self.last(torch.relu(self.inner(x) + x))


def data():
    torch.manual_seed(1)
    return torch.rand(10, 1, 8, 8), torch.randint(3, (10,))


def both(network):
    """What NeuroBench and what our metrics say, over batches of 4, 4 and 2."""
    benchmarks = pytest.importorskip("neurobench.benchmarks")
    workload = pytest.importorskip("neurobench.metrics.workload")
    model = snnreg_plugins.neurobench.NeuroBenchNetwork(network)
    loader = DataLoader(TensorDataset(*data()), batch_size=4)
    metrics = [workload.SynapticOperations, workload.ActivationSparsity, workload.ClassificationAccuracy]
    benchmark = benchmarks.Benchmark(model, loader, [], [lambda scores: scores.argmax(1)], [[], metrics])
    theirs = benchmark.run(quiet=True)
    benchmark.workload_metric_manager.cleanup_hooks(model)
    with SynapticOperations(network) as ours, SpikeRate(network) as rate:
        for x, _ in loader:
            network(x)
    return theirs, ours, rate


@pytest.mark.parametrize("export", [to_snntorch, to_norse])
def test_the_counts_are_the_same(export):
    network = export(plain(), data()[0], timesteps=TIMESTEPS)
    theirs, ours, rate = both(network)
    assert ours.compute() > 0
    assert theirs["SynapticOperations"] == {
        "Effective_ACs": ours.compute(),
        "Effective_MACs": ours.total("effective_macs"),
        "Dense": ours.total("dense_macs"),
    }
    assert theirs["ActivationSparsity"] == pytest.approx(1 - rate.compute().item())
    x, y = data()
    assert theirs["ClassificationAccuracy"] == pytest.approx((network(x).argmax(1) == y).float().mean().item())


def test_sums_of_spikes_are_macs_to_neurobench():
    network = to_snntorch(pooled(), data()[0], timesteps=TIMESTEPS)
    assert any(isinstance(module, SumPool) for module in network.modules())
    theirs, ours, rate = both(network)
    counts = theirs["SynapticOperations"]
    assert counts["Effective_ACs"] < ours.compute()
    assert counts["Effective_MACs"] > ours.total("effective_macs")
    assert counts["Dense"] == ours.total("dense_macs")
    assert theirs["ActivationSparsity"] == pytest.approx(1 - rate.compute().item())


def test_neurobench_does_not_see_transposed_convolutions():
    network = to_snntorch(transposed(), data()[0], timesteps=TIMESTEPS)
    theirs, ours, _ = both(network)
    missed = {name for name in ours.layers if "2" in name}
    assert len(missed) == 1
    for theirs_name, quantity in (("Effective_ACs", "sops"), ("Dense", "dense_macs")):
        seen = sum(value for name, value in ours.by_layer(quantity).items() if name not in missed)
        assert theirs["SynapticOperations"][theirs_name] == pytest.approx(seen)
        assert seen < ours.total(quantity)


def test_neurobench_does_not_see_identity_shortcuts():
    network = to_snntorch(Shortcut().eval(), data()[0], timesteps=TIMESTEPS)
    shortcuts = {name for name, module in network.named_modules() if isinstance(module, OneToOne)}
    assert shortcuts
    theirs, ours, _ = both(network)
    seen = sum(value for name, value in ours.by_layer().items() if name not in shortcuts)
    assert theirs["SynapticOperations"]["Effective_ACs"] == pytest.approx(seen)
    assert seen < ours.compute()


def test_weights_of_zero_are_no_synapses_to_neurobench():
    network = to_snntorch(plain(), data()[0], timesteps=TIMESTEPS)
    last = next(module for module in network.body.modules() if isinstance(module, nn.Linear))
    with torch.no_grad():
        last.weight[0] = 0
    theirs, ours, _ = both(network)
    assert theirs["SynapticOperations"]["Effective_ACs"] < ours.compute()
    assert theirs["SynapticOperations"]["Dense"] == ours.total("dense_macs")


def test_metrics_of_both_may_watch_at_once():
    pytest.importorskip("neurobench")
    network = to_snntorch(plain(), data()[0], timesteps=TIMESTEPS)
    _, alone, _ = both(network)
    with SynapticOperations(network) as beside:
        both(network)
    assert beside.compute() == alone.compute()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_copies():
    pytest.importorskip("neurobench")
    model = snnreg_plugins.neurobench.NeuroBenchNetwork(to_snntorch(plain(), data()[0], timesteps=TIMESTEPS))
    x = data()[0]
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))


def test_other_networks_are_refused():
    pytest.importorskip("neurobench")
    with pytest.raises(TypeError, match="`network`.*SpikingNetwork.*Linear"):
        snnreg_plugins.neurobench.NeuroBenchNetwork(nn.Linear(2, 3))


def test_without_neurobench_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "neurobench", None)
    monkeypatch.setitem(sys.modules, "neurobench.hooks.neuron", None)
    with pytest.raises(ModuleNotFoundError, match=r"snnreg_plugins\[neurobench\]"):
        snnreg_plugins.neurobench.make()
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = snnreg_plugins.neurobench.no_such_name
