"""One table of frameworks: a further one is a row and a few functions, and a broken one hurts nobody else."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from snnreg_plugins import (
    SpikeRate,
    SynapticOperations,
    from_nir,
    load_network,
    save_network,
    to_nir,
    to_snntorch,
)
from snnreg_plugins.export.convert import convert
from snnreg_plugins.export.options import Options
from snnreg_plugins.frameworks.base import Dynamics, Framework, Neurons
from snnreg_plugins.frameworks.registry import FRAMEWORKS, exported_to, framework_of, neurons_of
from snnreg_plugins.frameworks.surrogate import Triangular
from snnreg_plugins.watching.layers import (
    forget_states,
    is_spiking_neuron,
    leaks,
    neuron_layers,
    one_to_one_layers,
    time_dim,
)
from tests import nets


class ToyNeuron(nn.Module):
    """The neuron of a framework that nobody knows."""

    def __init__(self, threshold, beta, surrogate):
        super().__init__()
        self.register_buffer("threshold", threshold.clone())
        self.register_buffer("decay", beta.clone())
        self.spike = surrogate

    def forward(self, current, v):
        v = self.decay * v + current - (v > self.threshold).to(v.dtype) * self.threshold
        return self.spike(v - self.threshold), v


def describe(module):
    if type(module) is not ToyNeuron:
        return None
    return Dynamics(module.threshold, module.decay, module.spike)


TOY = Neurons("tests", ToyNeuron, describe)


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(FRAMEWORKS, "tests", Framework("tests", stateful={"ToyNeuron"}, load=lambda: TOY))


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("options", [{}, {"per_channel": True, "beta": 0.9}], ids=str)
def test_a_further_framework_is_a_row(toy, options, exact, tmp_path):
    model, _, x = nets.make("lenet_functional")
    options = Options(timesteps=5, **options)
    network = convert(model, x, options.target("tests"), options)
    expected = convert(model, x, options.target("snntorch"), options)
    network.exact = expected.exact = exact
    assert torch.equal(network(x, per_step=True), expected(x, per_step=True))
    neurons = [name for name, module in network.body.named_modules() if is_spiking_neuron(module)]
    assert len(neurons) == 3
    with SynapticOperations(network) as ours, SynapticOperations(expected) as theirs, SpikeRate(network) as rate:
        network(x)
        expected(x)
    assert ours.by_layer() == theirs.by_layer()
    assert 0 < float(rate.compute()) < 1
    save_network(network, tmp_path / "spiking.pt")
    to_nir(network, tmp_path / "network.nir", input_shape=x.shape[1:])
    loaded = load_network(tmp_path / "spiking.pt", model)
    read = [from_nir(tmp_path / "network.nir", target) for target in ("tests", "snntorch", "norse")]
    for other in (loaded, *read, pickle.loads(pickle.dumps(network)), copy.deepcopy(network)):
        assert torch.equal(other(x), network(x))
    assert loaded.conversion["framework"] == read[0].conversion["framework"] == "tests"
    assert {type(module) for module in read[0].body.modules() if is_spiking_neuron(module)} == {ToyNeuron}


@pytest.mark.parametrize("framework", ["snntorch", "norse", "tests"])
def test_neurons_are_described_as_made_and_share_no_memory(toy, framework):
    neurons = neurons_of(framework)
    given, surrogate = (torch.tensor([[0.5], [1.5]]), torch.tensor([[0.9], [0.25]])), Triangular(2.0)
    cell = neurons.make(*given, surrogate)
    for values in given:
        values.add_(1)
    *found, kept = neurons.describe(cell)
    assert all(torch.equal(values, other - 1) for values, other in zip(found, given, strict=True))
    assert kept is surrogate
    assert framework_of(cell).name == neurons.name == framework
    assert neurons.describe(nn.ReLU()) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("framework", ["snntorch", "norse"])
def test_potentials_are_summed_in_the_order_that_is_promised(framework, dtype):
    torch.manual_seed(0)
    threshold, beta = torch.rand(7, 1, dtype=dtype) + 0.1, torch.tensor(0.9, dtype=dtype)
    currents = torch.rand(40, 3, 7, 11, dtype=dtype)
    cell = neurons_of(framework).make(threshold, beta, Triangular(1.0))
    v = state = torch.zeros_like(currents[0])
    for current in currents:
        v = (beta * v + current) - (v > threshold).to(dtype) * threshold
        spikes, state = cell(current, state)
        assert torch.equal(state, v)
        assert torch.equal(spikes, (v > threshold).to(dtype))


def test_a_beta_that_training_has_pushed_out_of_range_counts_as_snntorch_counts_it():
    leaky = neurons_of("snntorch").make(torch.tensor(1.0), torch.tensor(1.5), Triangular(1.0))
    assert float(neurons_of("snntorch").describe(leaky).beta) == 1.0
    _, state = leaky(torch.tensor([0.5]), torch.tensor([0.4]))
    assert float(state) == float(torch.tensor(0.5) + 0.4)


@pytest.mark.parametrize("all_to_all", [False, True])
def test_synapses_of_one_target_within_recurrent_neurons(all_to_all):
    import snntorch

    neuron = snntorch.RLeaky(beta=0.9, **({"linear_features": 3} if all_to_all else {"all_to_all": False, "V": 1.0}))
    assert list(one_to_one_layers(nn.Sequential(neuron))) == ([] if all_to_all else ["0.recurrent"])


CHANGES = {
    "reset to zero": lambda leaky: setattr(leaky, "state_function", leaky._base_zero),
    "value of the reset": lambda leaky: leaky.reset_mechanism_val.fill_(1),
    "reset at once": lambda leaky: setattr(leaky, "reset_delay", False),
    "hidden state": lambda leaky: setattr(leaky, "init_hidden", True),
    "inhibition": lambda leaky: setattr(leaky, "inhibition", True),
    "quantized state": lambda leaky: setattr(leaky, "state_quant", lambda mem: mem.round()),
    "graded spikes": lambda leaky: leaky.graded_spikes_factor.fill_(2),
    "another surrogate": lambda leaky: setattr(leaky, "spike_grad", nn.Hardtanh()),
    "a subclass": lambda leaky: setattr(leaky, "__class__", type("Mine", (type(leaky),), {})),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_leaky_that_does_something_else_is_not_described(change):
    model, _, x = nets.make("mlp")
    network = to_snntorch(model, x, timesteps=4)
    describe, leaky = neurons_of("snntorch").describe, network.body.get_submodule("1")
    assert describe(leaky) is not None
    CHANGES[change](leaky)
    assert describe(leaky) is None


def test_what_nobody_exports_to_is_refused():
    for name in ("brian", "sinabs"):
        with pytest.raises(ValueError, match=rf"a framework of \['norse', 'snntorch'\], but got '{name}'"):
            neurons_of(name)
    assert exported_to() == ["norse", "snntorch"]


def classes(package, **bases):
    """Stand-ins for classes of a package that need not be installed."""
    return {name: type(name, base, {"__module__": f"{package}.layers"}) for name, base in bases.items()}


def test_steps_that_a_neuron_takes_at_a_call():
    import norse.torch
    import snntorch

    def blank(kind):
        return kind.__new__(kind)

    base = classes("sinabs", StatefulLayer=(nn.Module,), SqueezeMixin=())
    squeezed = type("Squeezed", (base["SqueezeMixin"], base["StatefulLayer"]), {})
    node = classes("spikingjelly", BaseNode=(nn.Module,))["BaseNode"]()
    assert time_dim(base["StatefulLayer"]()) == 1
    assert time_dim(squeezed()) is None
    assert time_dim(node) is None
    node.step_mode = "m"
    assert time_dim(node) == 0
    assert [time_dim(blank(kind)) for kind in (norse.torch.LIF, norse.torch.LIFCell)] == [0, None]
    kinds = snntorch.LeakyParallel, snntorch.StateLeaky, snntorch.LinearLeaky, snntorch.AssociativeLeaky, snntorch.Leaky
    assert [time_dim(blank(kind)) for kind in kinds] == [0, 0, 0, 0, None]
    assert time_dim(nn.ReLU()) is None


def test_which_neurons_leak():
    import norse.torch
    import snntorch

    jelly = classes("spikingjelly", BaseNode=(nn.Module,))
    nodes = {
        name: type(name, (jelly["BaseNode"],), {"__module__": "spikingjelly.neuron"}) for name in ("IFNode", "LIFNode")
    }
    one, slope = torch.ones(()), Triangular(1.0)
    expected = {
        False: [
            *(neurons_of(name).make(one, one, slope) for name in ("snntorch", "norse")),
            norse.torch.IAFCell(), nodes["IFNode"](), type("Mine", (nodes["IFNode"],), {})(), snntorch.Leaky(beta=1.0),
        ],
        True: [
            *(neurons_of(name).make(one, one * 0.9, slope) for name in ("snntorch", "norse")),
            norse.torch.LIFCell(), nodes["LIFNode"](), snntorch.Leaky(beta=0.9), nn.ReLU(),
        ],
    }  # fmt: skip
    for leaking, neurons in expected.items():
        assert [leaks(neuron) for neuron in neurons] == [leaking] * len(neurons)


@pytest.mark.parametrize(("package", "method"), [("spikingjelly", "reset"), ("sinabs", "reset_states")])
def test_states_are_forgotten(package, method):
    called = []
    names = {"__module__": f"{package}.x", method: lambda self: called.append(self)}
    neuron = type("Neuron", (nn.Module,), names)()
    other = type("Neuron", (nn.Module,), names | {"__module__": "elsewhere"})()
    forget_states(nn.Sequential(nn.Linear(2, 2), neuron, other))
    assert called == [neuron]


def test_states_of_snntorch_are_forgotten():
    import snntorch

    leaky = snntorch.Leaky(beta=0.9, init_hidden=True)
    leaky(torch.ones(2))
    forget_states(nn.Sequential(leaky))
    assert not leaky.mem.any()


def test_a_neuron_lets_go_of_its_state_after_steps():
    model, _, x = nets.make("mlp")
    network = to_snntorch(model, x, timesteps=4)
    network.exact = True
    network(x).sum().backward()
    for leaky in (network.body.get_submodule("1"), network.body.get_submodule("3")):
        assert leaky.mem.numel() == 0
        assert leaky.reset is None
    copy.deepcopy(network)


def test_activity_of_our_own():
    model, _, x = nets.make("mlp")
    for coding in ("poisson", "latency"):
        found = neuron_layers(to_snntorch(model, x, timesteps=4, coding=coding).body)
        assert len(found) == 3
