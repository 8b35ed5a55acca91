"""The export to Norse is that to snnTorch, spike for spike."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from norse.torch import SequentialState
from norse.torch.module.snn import SNNCell
from torch import nn

from snnreg_plugins import SpikeRate, SynapticOperations, to_norse, to_snntorch
from snnreg_plugins.frameworks.norse import SoftResetCell, SoftResetParameters
from snnreg_plugins.frameworks.surrogate import FastSigmoid
from snnreg_plugins.watching.hooks import Hooks
from snnreg_plugins.watching.layers import is_spiking_neuron
from tests.export import test_architectures
from tests.helpers import soft_reset_neuron
from tests.nets import make, one_in

OPTIONS = {
    "layer": dict(timesteps=12),
    "channel": dict(timesteps=12, per_channel=True),
    "max, from rest": dict(timesteps=12, threshold="max", correction="none", initial_potential=0.0),
    "leaky": dict(timesteps=12, per_channel=True, beta=0.9),
}


def spikes(network, x):
    """All spikes of all neuron layers, in order."""
    found = []
    neurons = [module for module in network.modules() if is_spiking_neuron(module)]
    with Hooks(after=[(neuron, lambda module, args, output: found.append(output[0])) for neuron in neurons]):
        scores = network(x, per_step=True)
    return found, scores


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", OPTIONS)
def test_spikes_and_scores_equal_those_of_snntorch(options, dtype):
    net, _, x = make("lenet_functional", dtype)
    ours, scores = spikes(to_norse(net, x, **OPTIONS[options]), x)
    theirs, expected = spikes(to_snntorch(net, x, **OPTIONS[options]), x)
    assert len(ours) == len(theirs) > 0
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert torch.equal(scores, expected)
    assert any(s.any() for s in ours)


@pytest.mark.parametrize("name", one_in(3, test_architectures.NETS))
def test_every_architecture_equals_that_of_snntorch(name):
    model, x = test_architectures.NETS[name](), test_architectures.inputs()
    # Not by channel where channels become positions, which is refused.
    options = {"per_channel": name != "pixel shuffle", "correction": "potential", "coding": "neurons"}
    ours, scores = spikes(to_norse(model, x, timesteps=6, **options), x)
    theirs, expected = spikes(to_snntorch(model, x, timesteps=6, **options), x)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert torch.equal(scores, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LeakyReLU", "two blocks", "a maximum of a sum"])
@pytest.mark.parametrize("to", [to_norse, to_snntorch])
def test_a_network_compiles_in_one_graph(name, to):
    model, x = test_architectures.NETS[name](), test_architectures.inputs()
    network = to(model, x, timesteps=4)
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), network(x))
    assert torch.equal(compiled(x, per_step=True), network(x, per_step=True))
    compiled(x).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("beta", [1.0, 0.9])
def test_a_cell_is_the_plain_reference(beta):
    torch.manual_seed(0)
    threshold = torch.tensor([[0.5], [1.5], [1.0]])
    currents = list(torch.rand(30, 4, 3, 2) * 1.5)
    cell, state, found = SoftResetCell(SoftResetParameters(threshold, beta, FastSigmoid(5.0))), None, []
    for current in currents:
        out, state = cell(current, state)
        found.append(out)
    expected = soft_reset_neuron(currents, threshold, 0.0, torch.tensor(beta))
    assert torch.equal(torch.stack(found), torch.stack(expected))


def test_gradients_equal_those_of_snntorch():
    net, _, x = make("lenet_functional")
    gradients = []
    for export in (to_norse, to_snntorch):
        network = export(net, x, timesteps=5)
        network(x).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        assert ours.abs().sum() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_pickle_deepcopy_and_state_dict():
    net, _, x = make("lenet_functional")
    network = to_norse(net, x, timesteps=5, per_channel=True)
    expected = network(x)
    expected.sum().backward()
    other = to_norse(net, x[:1] * 0.5, timesteps=5, per_channel=True)
    other.load_state_dict(network.state_dict())
    for copied in (pickle.loads(pickle.dumps(network)), copy.deepcopy(network), other):
        assert torch.equal(copied(x), expected)
    assert any("threshold" in key for key in network.state_dict())


def test_thresholds_follow_the_module():
    net, _, x = make("mlp", torch.float32)
    network = to_norse(net, x, timesteps=5).double()
    assert network(x.double()).dtype == torch.float64
    assert {buffer.dtype for buffer in network.buffers()} == {torch.float64}


def test_a_cell_compiles_in_one_graph():
    cell = SoftResetCell(SoftResetParameters(torch.tensor(1.0), 1.0, FastSigmoid(5.0)))

    def run(x):
        state, total = None, torch.zeros_like(x)
        for _ in range(4):
            s, state = cell(x, state)
            total = total + s
        return total

    x = torch.rand(3, 5) * 2
    assert torch.equal(torch.compile(run, fullgraph=True, backend="aot_eager")(x), run(x))


def test_a_cell_within_norses_sequential_state():
    net = SequentialState(nn.Linear(4, 6), SoftResetCell(SoftResetParameters(torch.tensor(0.2), 1.0, FastSigmoid(5.0))))
    x, state = torch.rand(3, 4), None
    with SynapticOperations(net) as operations, SpikeRate(net) as rate:
        for _ in range(5):
            out, state = net(x, state)
    assert isinstance(net[1], SNNCell)
    assert set(out.unique().tolist()) <= {0.0, 1.0}
    assert int(operations.samples) == 3
    assert 0 < float(rate.compute()) < 1


@pytest.mark.parametrize(("argument", "value"), [("beta", 0.0), ("surrogate_slope", -1.0), ("timesteps", 0)])
def test_arguments_are_checked(argument, value):
    net, _, x = make("mlp")
    with pytest.raises(ValueError, match=f"`{argument}`"):
        to_norse(net, x, **({"timesteps": 2} | {argument: value}))
