import copy
import inspect
import pickle

import norse.torch
import pytest
import snntorch
import torch
from torch import nn

from snnreg_plugins.watching.hooks import Hooks
from snnreg_plugins.watching.layers import is_spiking_neuron, neuron_layers, synaptic_layers
from snnreg_plugins.watching.samples import SampleCounter

# Hooks.


def hooks(model):
    dicts = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called", "_forward_hooks_with_kwargs")
    return sum(len(getattr(module, name)) for module in model.modules() for name in dicts)


def test_hooks_run_in_order():
    layer, calls = nn.Linear(2, 3), []

    def say(name):
        return lambda *_: calls.append(name)

    handles = [
        layer.register_forward_pre_hook(say("their before")),
        layer.register_forward_hook(say("their after")),
    ]
    with Hooks(before=[(layer, say("before"))], after=[(layer, say("after"))]) as ours:
        ours.around(layer, say("enter"), say("leave"))
        layer(torch.zeros(1, 2))
    assert calls == ["enter", "their before", "before", "after", "their after", "leave"]
    calls.clear()
    layer(torch.zeros(1, 2))
    assert calls == ["their before", "their after"]
    for handle in handles:
        handle.remove()
    assert hooks(layer) == 0


def test_hooks_are_told_arguments_and_output():
    class Net(nn.Module):
        def forward(self, x, *, scale):
            return x * scale

    net, x, told = Net(), torch.ones(2), []
    ours = Hooks(before=[(net, lambda *told_: told.append(told_))], after=[(net, lambda *told_: told.append(told_))])
    ours.around(net, lambda *told_: told.append(told_), lambda *told_: told.append(told_))
    y = net(x, scale=3)
    assert told == [(net, (x,), {"scale": 3}), (net, (x, 3)), (net, (x, 3), y), (net, (x,), {"scale": 3}, y)]


def test_hooks_may_replace_arguments_and_output():
    layer = nn.Identity()
    with Hooks(before=[(layer, lambda _, args: args[0] + 1)], after=[(layer, lambda _, __, output: output * 10)]):
        assert layer(torch.tensor(1.0)) == 20
        assert layer(input=torch.tensor(1.0)) == 20
    with Hooks(before=[(layer, lambda _, args: (args[0] + 2,))]):
        assert layer(torch.tensor(1.0)) == 3
        assert layer(input=torch.tensor(1.0)) == 3


def test_hooks_come_off_after_an_error_and_twice():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    ours, left = Hooks(before=[(model[0], lambda *_: None)]), []
    ours.around(model, lambda *_: None, lambda *told: left.append(told[-1]))
    with pytest.raises(RuntimeError), ours:
        model(torch.zeros(1, 5))
    assert left == [None]
    assert hooks(model) == 0
    ours.remove()
    ours.before(model, lambda *_: left.append("again"))
    model(torch.zeros(1, 2))
    ours.remove()
    assert left == [None, "again"]
    assert hooks(model) == 0


# Which layers are which.


def classes_of(package):
    return {
        name: module
        for name, module in vars(package).items()
        if inspect.isclass(module) and issubclass(module, nn.Module) and module.__module__.startswith(package.__name__)
    }


NOT_SPIKING_IN_SNNTORCH = {"BatchNormTT1d", "BatchNormTT2d", "GradedSpikes"}
SPIKING_IN_NORSE = {
    name
    for name in classes_of(norse.torch)
    if name.startswith(("LIF", "IAF", "LSNN", "Izhikevich", "CobaLIF")) and not name.endswith("State")
}
NOT_SPIKING_IN_NORSE = {"LI", "LICell", "LIBoxCell", "LILinearCell", "Lift", "SequentialState", "RegularizationCell"}


def blank(module_class):
    """An instance without what its arguments make of it."""
    return module_class.__new__(module_class)


@pytest.mark.parametrize("name", sorted(set(classes_of(snntorch)) - NOT_SPIKING_IN_SNNTORCH))
def test_neurons_of_snntorch(name):
    assert is_spiking_neuron(blank(getattr(snntorch, name)))


@pytest.mark.parametrize("name", sorted(SPIKING_IN_NORSE))
def test_neurons_of_norse(name):
    assert is_spiking_neuron(blank(getattr(norse.torch, name)))


@pytest.mark.parametrize("name", sorted(NOT_SPIKING_IN_NORSE))
def test_modules_of_norse_that_do_not_spike(name):
    assert not is_spiking_neuron(blank(getattr(norse.torch, name)))


def test_classes_of_the_users_own():
    class Mine(snntorch.Leaky):
        pass

    class Leaky(nn.Module):
        pass

    assert is_spiking_neuron(Mine(beta=0.9))
    assert not is_spiking_neuron(Leaky())
    assert not is_spiking_neuron(nn.Sequential(Mine(beta=0.9)))


@pytest.mark.parametrize(
    ("package", "base", "spiking"),
    [
        ("spikingjelly.activation_based.neuron", "BaseNode", True),
        ("sinabs.layers.stateful_layer", "StatefulLayer", True),
        ("sinabs.layers.exp_leak", "ExpLeak", False),
        ("mysinabs.layers", "StatefulLayer", False),
    ],
)
def test_neurons_of_packages_that_are_not_installed(package, base, spiking):
    parent = type(base, (nn.Module,), {"__module__": package})
    assert is_spiking_neuron(type("Neuron", (parent,), {"__module__": "somewhere"})()) == spiking


def test_layers_are_found_by_name_and_shared_ones_once():
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict(
        {
            "a": shared,
            "b": nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.ReLU(), snntorch.Leaky(beta=0.9)),
            "c": shared,
            "d": norse.torch.SequentialState(norse.torch.LIFCell(), norse.torch.LICell(), nn.GELU()),
            "e": snntorch.RLeaky(beta=0.9, linear_features=2),
        }
    )
    assert synaptic_layers(model) == {"a": shared, "b.0": model["b"][0], "e.recurrent": model["e"].recurrent}
    assert list(neuron_layers(model)) == ["b.2", "b.3", "d.0", "d.2", "e"]
    assert list(synaptic_layers(nn.Linear(2, 2))) == [""]
    assert synaptic_layers(nn.ReLU()) == neuron_layers(nn.Linear(2, 2)) == {}


# Samples. The styles of networks are in metrics/test_counting.py.


def counter_of(model, batch_dim=0):
    passes = []
    return SampleCounter(model, synaptic_layers(model), passes.append, batch_dim), passes


def test_passes_and_their_new_samples():
    model = nn.Sequential(nn.Linear(2, 3), snntorch.Leaky(beta=0.9, init_hidden=True))
    counter, passes = counter_of(model)
    for size in (4, 4, 3):
        model(torch.zeros(size, 2))
    model[1].reset_mem()
    model(torch.zeros(3, 2))
    with pytest.raises(RuntimeError):
        model(torch.zeros(3, 5))
    assert passes == [4, 0, 3, 3, None]
    assert counter.samples() == 10
    counter.reset()
    assert counter.samples() == 0
    model(torch.zeros(3, 2))
    assert counter.samples() == 3
    counter.hooks.remove()
    model(torch.zeros(3, 2))
    assert counter.samples() == 3
    assert hooks(model) == 0


def test_an_output_that_is_the_only_input_of_the_next_pass_is_a_new_sample():
    model = nn.Sequential(nn.Linear(2, 2))
    _, passes = counter_of(model)
    model(model(torch.zeros(4, 2)))
    assert passes == [4, 4]


def test_a_pass_with_a_reset_in_its_middle_is_none():
    class Resets(nn.Identity):
        def forward(self, x):
            if len(x) == 3:
                counter.reset()
            return x

    model = nn.Sequential(nn.Linear(2, 3), Resets(), nn.Linear(3, 2))
    counter, passes = counter_of(model)
    for size in (3, 4, 3, 3, 4):
        model(torch.zeros(size, 2))
    assert passes == [4, 4]


@pytest.mark.parametrize(
    ("batch_dim", "args", "kwargs", "samples"),
    [
        (0, (torch.zeros(4, 2),), {}, 4),
        (1, (torch.zeros(7, 4, 2),), {}, 4),
        (0, ([torch.zeros(4, 2), torch.zeros(9)], 3), {}, 4),
        (0, ({"x": torch.zeros(4, 2)},), {}, 4),
        (0, (), {"x": torch.zeros(4, 2)}, 4),
        (0, (0.5,), {"x": torch.zeros(4, 2)}, 4),
        (0, (torch.tensor(1.0),), {}, 1),
        (0, (), {}, 1),
    ],
    ids=["tensor", "time_first", "list", "dict", "keyword", "number_first", "scalar", "nothing"],
)
def test_where_the_batch_size_is_found(batch_dim, args, kwargs, samples):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 3)

        def forward(self, *args, **kwargs):
            return self.layer(torch.zeros(1, 2))

    model = Net()
    _, passes = counter_of(model, batch_dim)
    model(*args, **kwargs)
    assert passes == [samples]


class BaseNode(nn.Module):
    """Keeps its potential as SpikingJelly's neurons do."""

    def __init__(self):
        super().__init__()
        self._memories = {"v": 0.0}

    def forward(self, x):
        self._memories["v"] = self._memories["v"] + x
        return (self._memories["v"] > 1).float()


class StatefulLayer(nn.Module):
    """Keeps its potential as the layers of sinabs do."""

    def __init__(self):
        super().__init__()
        self.register_buffer("v_mem", torch.zeros(0))
        self.register_buffer("threshold", torch.tensor(1.0))

    def forward(self, x):
        self.v_mem = x + (self.v_mem if self.v_mem.shape == x.shape else torch.zeros_like(x))
        return (self.v_mem > self.threshold).float()


@pytest.mark.parametrize(("package", "base"), [("spikingjelly.neuron", BaseNode), ("sinabs.layers", StatefulLayer)])
def test_states_kept_as_other_packages_keep_them(package, base):
    neuron = type(base.__name__, (base,), {"__module__": package})()
    model = nn.Sequential(nn.Linear(2, 3), neuron)
    _, passes = counter_of(model)
    for size in (4, 3):
        for _ in range(3):
            model(torch.zeros(size, 2))
        if base is BaseNode:
            neuron._memories["v"] = 0.0
        else:
            neuron.v_mem = torch.zeros_like(neuron.v_mem)
    model(torch.zeros(3, 2))
    assert passes == [4, 0, 0, 3, 0, 0, 3]


def test_memory_is_not_kept_alive():
    model = nn.Sequential(nn.Linear(2, 3), snntorch.Leaky(beta=0.9))
    counter, _ = counter_of(model)
    spikes, mem = model(torch.zeros(4, 2))
    storages = {reference for identities in counter._returned.values() for reference, _ in identities}
    assert not any(reference.expired() for reference in storages)
    model[1].mem = model[1].reset = torch.zeros(0)
    del spikes, mem
    assert all(reference.expired() for reference in storages)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_a_copied_counter_keeps_its_samples_and_counts_on_with_the_copied_model(duplicate):
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    counter = SampleCounter(model, synaptic_layers(model), print)
    model(torch.zeros(4, 2))
    twin, twin_model = duplicate((counter, model))
    assert twin.samples() == 4
    twin_model(torch.zeros(3, 2))
    assert (twin.samples(), counter.samples()) == (7, 4)
    twin.hooks.remove()
    assert hooks(twin_model) == 0
    assert hooks(model) > 0
