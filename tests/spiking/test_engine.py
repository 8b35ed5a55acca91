"""Layer by layer against one step at a time: the same spikes, counts and gradients."""

from __future__ import annotations

import contextlib
import copy
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import snntorch
import torch
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from snnreg_plugins import SpikeRate, SpikeStatistics, SpikingNetwork, SynapticOperations, to_norse, to_snntorch
from snnreg_plugins.frameworks.surrogate import SURROGATES, FastSigmoid
from snnreg_plugins.spiking import engine as engine_module
from snnreg_plugins.spiking import firing
from snnreg_plugins.spiking.layers import SpikeMaxPool, channels_last
from snnreg_plugins.watching.hooks import Hooks
from snnreg_plugins.watching.layers import is_spiking_neuron
from snnreg_plugins.watching.steps import CallSteps, steps_of_call
from tests.helpers import soft_reset_neuron
from tests.nets import NETS, make, one_in

T = 6
VARIED = ["mlp", "lenet_functional", "lenet_modules", "norm_on_input", "ends_in_relu", "reshapes", "three_dimensions"]
without_kernels = pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "torch"])


def neurons_of(network):
    return {name: module for name, module in network.named_modules() if is_spiking_neuron(module)}


@pytest.fixture
def compiled_or_not(compiled, monkeypatch):
    if compiled:
        pytest.importorskip("numba")
    else:
        monkeypatch.setattr(firing, "kernels", lambda: None)
        monkeypatch.setattr("snnreg_plugins.spiking.events.kernels", lambda: None)


def exported(name, dtype=torch.float32, export=to_snntorch, **options):
    net, _, x = make(name, dtype)
    return export(net, x, timesteps=T, **options), x


def both(network, run):
    """What ``run()`` gives layer by layer, and one step at a time."""
    found = []
    for network.exact in (False, True):
        found.append(run())
    network.exact = False
    return found


def spikes_of(network, x):
    """The spikes of each neuron layer, (T, B, ...)."""
    parts = {name: [] for name in neurons_of(network)}  # of the batch: lists of steps

    def record(name):
        def hook(module, args, output):
            held = steps_of_call() or CallSteps(1, 0 if not parts[name] else len(parts[name][-1]))
            if held.first_step == 0:
                parts[name].append([])
            parts[name][-1].extend(output[0].detach().unflatten(0, (held.steps, -1)))

        return hook

    with Hooks(many_steps=True) as hooks:
        for name, neuron in neurons_of(network).items():
            hooks.after(neuron, record(name))
        network(x)
    return {name: torch.cat([torch.stack(steps) for steps in of_layer], 1) for name, of_layer in parts.items()}


@without_kernels
@pytest.mark.usefixtures("compiled_or_not")
@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize("export", [to_snntorch, pytest.param(to_norse, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NETS)
def test_spikes_are_those_of_one_step_at_a_time(name, export):
    # In float64 a difference by rounding moves no spike of these networks.
    network, x = exported(name, torch.float64, export)
    with torch.no_grad():
        layerwise, stepped = both(network, lambda: spikes_of(network, x))
        scores = both(network, lambda: network(x, per_step=True))
    for layer, spikes in stepped.items():
        assert torch.equal(layerwise[layer], spikes), layer
    torch.testing.assert_close(*scores)


@without_kernels
@pytest.mark.usefixtures("compiled_or_not")
@pytest.mark.parametrize("beta", [1.0, 0.9])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("name", VARIED)
def test_spikes_in_float32(name, per_channel, beta):
    network, x = exported(name, per_channel=per_channel, beta=beta)
    with torch.no_grad():
        layerwise, stepped = both(network, lambda: spikes_of(network, x))
    different = sum(int((layerwise[layer] != spikes).sum()) for layer, spikes in stepped.items())
    assert different <= 1e-4 * sum(spikes.numel() for spikes in stepped.values())


@without_kernels
@pytest.mark.usefixtures("compiled_or_not")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("beta", [1.0, 0.9])
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("shape", [(5, 7), (5, 3, 4, 2), (1, 1, 1, 1), (2, 3, 4, 5, 2)])
def test_neurons_against_the_plain_reference(shape, constant, beta, dtype):
    torch.manual_seed(0)
    currents = torch.rand(1 if constant else T, *shape).mul(0.8).to(dtype)
    threshold = torch.rand(shape[1], *[1] * (len(shape) - 2)).add(0.5).to(dtype)
    dynamics = firing.Dynamics(threshold, torch.tensor(beta, dtype=dtype), FastSigmoid(torch.tensor(5.0, dtype=dtype)))
    v0 = 0.5 * threshold.expand(shape)
    expected = torch.stack(soft_reset_neuron(list(currents.expand(T, *shape)), threshold, v0, dynamics.beta))
    for layout in (torch.contiguous_format, torch.channels_last):
        if layout is torch.channels_last and len(shape) != 4:
            continue
        given = (currents[0] if constant else currents.flatten(0, 1)).clone()
        given, v = (value.contiguous(memory_format=layout) for value in (given, v0.clone()))
        kept = given.clone()
        spikes = firing.Firing(dynamics)(given, v, T)
        assert torch.equal(spikes.unflatten(0, (T, -1)), expected)
        assert torch.equal(given, kept)  # was not to be written over
        # In two parts, the second with the potentials of the first.
        v, parts = v0.clone().contiguous(memory_format=layout), []
        for first, last in ((0, 2), (2, T)):
            part = currents[0] if constant else currents[first:last].flatten(0, 1)
            parts.append(firing.Firing(dynamics)(part.contiguous(memory_format=layout), v, last - first))
        assert torch.equal(torch.cat(parts), spikes)
        again = firing.Firing(dynamics)(given, v0.clone().contiguous(memory_format=layout), T, overwrite=True)
        assert torch.equal(again, spikes)


@without_kernels
@pytest.mark.usefixtures("compiled_or_not")
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("beta", [1.0, 0.9])
@pytest.mark.parametrize("with_potentials", [False, True])
@pytest.mark.parametrize(
    ("export", "surrogate"),
    [(to_snntorch, name) for name in sorted(SURROGATES)] + [(to_norse, "triangular")],
)
def test_gradients_of_neurons_are_those_of_the_framework(export, surrogate, with_potentials, beta, constant):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 2))
    options = {"surrogate": surrogate, "beta": beta, "compensate_leak": False, "per_channel": True}
    network = export(net, torch.rand(8, 1, 6, 6), timesteps=T, **options)
    (neuron,) = neurons_of(network).values()
    dynamics = network.neurons.describe(neuron)
    # One sample, so that no sum has an order.
    currents = torch.rand(1 if constant else T, 1, 3, 4, 4)
    weights = torch.rand(T, 1, 3, 4, 4)
    of_last = torch.rand(1, 3, 4, 4) if with_potentials else torch.zeros(())
    found = []
    for stepped in (True, False):
        leaf = currents.clone().requires_grad_()
        v0 = (0.5 * dynamics.threshold.expand(1, 3, 4, 4)).detach().requires_grad_(with_potentials)
        if stepped:
            state, outputs = v0, []
            for step in range(T):
                spikes, state = neuron(leaf[0 if constant else step], state)
                outputs.append(spikes)
            spikes = torch.stack(outputs)
        else:
            given = leaf[0] if constant else leaf.flatten(0, 1)
            spikes, state = firing.Firing(dynamics).with_gradient(given, v0, T)
            spikes = spikes.unflatten(0, (T, -1))
        ((spikes * weights).sum() + (of_last * state).sum()).backward()
        found.append((spikes.detach(), leaf.grad, v0.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][2] is found[1][2] is None or torch.equal(found[0][2], found[1][2])
    if constant:  # a sum over steps, in another order
        torch.testing.assert_close(found[0][1], found[1][1])
    else:
        assert torch.equal(found[0][1], found[1][1])
    assert found[0][1].any()


@without_kernels
@pytest.mark.usefixtures("compiled_or_not")
@pytest.mark.parametrize("beta", [1.0, 0.9])
@pytest.mark.parametrize("threshold", [(), (3, 1, 1), (3, 4, 2)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_of_thresholds_are_summed_over_threads_samples_and_steps(layout, threshold, beta, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr("snnreg_plugins.spiking.kernels._WORTH_A_THREAD", 1, raising=False)
    torch.manual_seed(0)
    threshold = torch.rand(threshold, dtype=torch.float64).add(0.5).requires_grad_()
    beta, slope = torch.tensor(beta, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64)
    dynamics = firing.Dynamics(threshold, beta, FastSigmoid(slope))
    currents, weights = torch.rand(2, T, 7, 3, 4, 2, dtype=torch.float64)
    found = []
    for starts in (torch.rand(1, 3, 4, 2), 2 * torch.rand(7, 3, 4, 2)):  # of all samples; some above the threshold
        v = start = starts.double().expand(7, 3, 4, 2)
        outputs = []
        for current in currents:
            v = beta * v + current - (v > threshold) * threshold
            outputs.append(dynamics.surrogate(v - threshold))
        (expected,) = torch.autograd.grad((torch.stack(outputs) * weights).sum(), threshold)
        given = currents.flatten(0, 1).contiguous(memory_format=layout)
        spikes, _ = firing.Firing(dynamics).with_gradient(given, start, T)
        assert torch.equal(spikes.unflatten(0, (T, -1)), torch.stack(outputs))
        found.append(torch.autograd.grad((spikes * weights.flatten(0, 1)).sum(), threshold)[0])
        torch.testing.assert_close(found[-1], expected)
    assert found[0].any()
    assert not torch.equal(*found)


def gradients(network, x, **settings):
    kept = {name: getattr(network, name) for name in settings}
    for name, value in settings.items():
        setattr(network, name, value)
    network.zero_grad(set_to_none=True)
    x = x.clone().requires_grad_()
    network(x).square().sum().backward()
    for name, value in kept.items():
        setattr(network, name, value)
    return {"input": x.grad} | {name: parameter.grad for name, parameter in network.named_parameters()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=lambda text, name=name: f"{name}: {text}")


@without_kernels
@pytest.mark.usefixtures("compiled_or_not")
@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize("name", one_in(4, NETS))
def test_gradients_are_those_of_one_step_at_a_time(name):
    network, x = exported(name, torch.float64)
    expected = gradients(network, x, exact=True)
    assert any(gradient.any() for gradient in expected.values())
    assert_same(gradients(network, x), expected)
    assert_same(gradients(network, x, checkpointing=True), expected)
    assert_same(gradients(network, x, checkpointing=True, exact=True), expected)


@pytest.mark.parametrize("exact", [False, True])
def test_checkpointing_keeps_the_input_alone_and_an_eighth_of_the_batch_at_a_time(exact, monkeypatch):
    network, x = exported("lenet_modules", torch.float64)
    network(x)  # which shows how large its tensors are
    network.exact = exact
    monkeypatch.setattr(engine_module, "_LEAST_ELEMENTS", 1)
    kept, samples = [], []
    neuron = list(neurons_of(network).values())[-1]

    def keep(tensor):
        kept[-1] += tensor.numel()
        return tensor

    def observe(module, args, output):
        samples[-1].append(len(output[0]) // steps_of_call().steps)

    for network.checkpointing in (False, True):
        kept.append(0)
        samples.append([])
        with Hooks(after=[(neuron, observe)], many_steps=True):
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                scores = network(x)
            scores.sum().backward()
    assert kept[1] <= x.numel() < kept[0] / 10
    assert max(samples[0]) == len(x)
    assert max(samples[1]) <= -(-len(x) // 8) + 1  # none is left alone


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 4, T, T + 3])
def test_truncated_backpropagation(steps, exact):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    x = torch.rand(10, 3, dtype=torch.float64)
    network = to_snntorch(net, x, timesteps=T)
    found = gradients(network, x, truncation=steps, exact=exact)

    # The same by hand: potentials are detached before every step that begins a part.
    constants, states, total = network.encoder(x), (None,) * 2, 0
    network.zero_grad(set_to_none=True)
    for step in range(T):
        if step % steps == 0:
            states = tuple(None if state is None else state.detach() for state in states)
        output, states = network.body(constants, states)
        total = total + output
    (total / T).square().sum().backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)
    if steps < T:
        assert not torch.equal(found["body.2.weight"], gradients(network, x)["body.2.weight"])


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2.5"])
def test_truncation_is_checked(value):
    network, _ = exported("mlp")
    with pytest.raises(ValueError, match="Expected argument `truncation` to be an integer of at least 1, but got"):
        network.truncation = value
    assert network.truncation is None


@without_kernels
@pytest.mark.usefixtures("compiled_or_not")
@pytest.mark.parametrize("name", one_in(4, NETS))
@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
def test_metrics_count_the_same(name):
    network, x = exported(name, torch.float64)

    def counted():
        statistics = SpikeStatistics(network)
        with torch.no_grad(), statistics, SynapticOperations(network) as operations, SpikeRate(network) as rate:
            for batch in (x, x, x[:7], x):
                network(batch)
            found = [rate.compute(), rate.by_layer(), int(operations.samples), statistics.intervals().tolist()]
            found += [{name: str(value) for name, value in statistics.compute().items()}]  # nan is nan
            for quantity in operations.quantities:
                found += [operations.total(quantity), operations.by_layer(quantity), operations.by_step(quantity)]
            with operations.labelled(torch.arange(len(x)) % 3):
                network(x)
            return [*found, operations.by_label()]

    layerwise, stepped = both(network, counted)
    assert layerwise == stepped


@pytest.mark.parametrize("exact", [False, True])
def test_metrics_count_each_step_of_a_checkpointed_batch(exact):
    network, x = exported("lenet_modules", torch.float64)
    found = []
    for network.checkpointing, network.exact in ((False, True), (True, exact)):
        with SynapticOperations(network) as operations, SpikeRate(network) as rate:
            network(x).sum().backward()
            found.append([operations.by_layer(), operations.by_step(), rate.compute(), int(operations.samples)])
    assert found[0] == found[1]


def test_threads_share_a_network():
    network, x = exported("lenet_modules", torch.float64)
    with torch.no_grad():
        expected = network(x)

    def run(_):
        with torch.no_grad():
            return [network(x) for _ in range(20)]

    with ThreadPoolExecutor(4) as threads:
        for scores in threads.map(run, range(4)):
            torch.testing.assert_close(scores, [expected] * 20)


def test_batches_are_split(monkeypatch):
    network, x = exported("lenet_modules", torch.float64)
    with torch.no_grad():
        whole = network(x)
        for elements in (1, 2000, 10**5, 2**30):
            monkeypatch.setitem(engine_module._ELEMENTS, "cpu", elements)
            for shape_is_known in (False, True):
                if not shape_is_known:
                    network._plan = None
                torch.testing.assert_close(network(x), whole)
                torch.testing.assert_close(network(x, per_step=True)[-1], whole)
    expected = gradients(network, x, exact=True)
    for elements in (1, 2000, 10**5):
        monkeypatch.setitem(engine_module._ELEMENTS, "cpu", elements)
        assert_same(gradients(network, x), expected)
        assert_same(gradients(network, x, checkpointing=True), expected)


def test_no_sample_is_left_alone(monkeypatch):
    """A DNN that squeezes its tensors takes a batch of one for none."""
    network, x = exported("lenet_modules", torch.float64)
    monkeypatch.setitem(engine_module._ELEMENTS, "cpu", 1)
    samples = []

    def observe(module, args, output):
        samples.append(len(output[0]) // steps_of_call().steps)

    with torch.no_grad(), Hooks(after=[(next(iter(neurons_of(network).values())), observe)], many_steps=True):
        network(x[:5])
        network(x[:5])
    assert set(samples) == {2, 3}


@pytest.mark.parametrize("elements", [1, 2000])
def test_metrics_know_the_steps_of_each_part(elements, monkeypatch):
    network, x = exported("lenet_modules", torch.float64)
    monkeypatch.setitem(engine_module._ELEMENTS, "cpu", elements)
    found = []
    with torch.no_grad():
        network(x)
        for network.exact in (True, False):
            with SynapticOperations(network) as operations:
                network(x)
            found.append((operations.by_step(), operations.by_layer()))
    assert found[0] == found[1]


def few_spikes():
    """A network whose layers are computed event by event."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256))
    x = torch.rand(256, 256) * (torch.rand(256, 256) < 0.05)
    return to_snntorch(net, x, timesteps=T, coding="poisson"), x


def forgets(network, x):
    """Whether each step calls the modules of the body."""
    calls = []
    handle = network.body.register_forward_hook(lambda *_: calls.append(None))
    network(x)
    handle.remove()
    return len(calls) == network.timesteps


def test_who_looks_on_sees_one_step_at_a_time():
    network, x = exported("lenet_modules")
    assert forgets(network, x)
    neuron = next(iter(neurons_of(network).values()))
    shapes = []
    handle = neuron.register_forward_hook(lambda module, args, output: shapes.append(len(output[0])))
    with torch.no_grad():
        network(x)
    assert shapes == [len(x)] * T
    handle.remove()
    shapes.clear()
    with Hooks(before=[(neuron, lambda module, args: shapes.append(len(args[0])))]):
        network(x)
    assert shapes == [len(x)] * T


def max_pooled():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3 * 9, 2)).double()
    x = torch.rand(8, 1, 8, 8, dtype=torch.float64)
    network = to_snntorch(net, x, timesteps=T)
    return network, x, next(module for module in network.body.modules() if isinstance(module, SpikeMaxPool))


def test_max_pools_are_watched():
    network, x, pool = max_pooled()

    def seen():
        spikes = []

        def observe(module, args, output):
            held = steps_of_call()
            sums = [part[0].unflatten(0, (held.steps, -1)).sum((0, 2, 3, 4)) for part in (args, output)]
            spikes.append(torch.stack(sums, 1))

        with torch.no_grad(), Hooks(after=[(pool, observe)], many_steps=True):
            network(x)
        return torch.cat(spikes).unflatten(0, (-1, len(x))).sum(0)

    layerwise, stepped = both(network, seen)
    assert torch.equal(layerwise, stepped)
    assert layerwise.any()


def test_a_max_pool_with_a_forward_of_its_own():
    network, x, pool = max_pooled()
    with torch.no_grad():
        before = network(x)
        pool.forward = lambda spikes, state, own=pool.forward: own(0 * spikes, state)
        layerwise, stepped = both(network, lambda: network(x))
    torch.testing.assert_close(layerwise, stepped)
    assert not torch.equal(layerwise, before)


class SameInAllSteps(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = nn.Identity()

    def forward(self, constants, states):
        return self.part(constants[0]), states


def passing_on(timesteps=T):
    """A network whose output in every step is its input."""
    encoder, body = fx.symbolic_trace(nn.Sequential(nn.Identity())), fx.symbolic_trace(SameInAllSteps())
    encoder.graph.output_node().args = ((encoder.graph.output_node().args[0],),)
    encoder.recompile()
    return SpikingNetwork(encoder, body, timesteps, 0, exported("mlp")[0].neurons)


@pytest.mark.parametrize("exact", [False, True])
def test_sums_over_many_steps_of_few_bits(exact):
    network = passing_on(timesteps=600)  # bfloat16 counts to 256
    network.exact = exact
    assert network(torch.ones(2, 3, dtype=torch.bfloat16)).tolist() == [[1.0] * 3] * 2
    spikes = torch.ones(600, 1, 2, 2, dtype=torch.bfloat16)
    passed, _ = SpikeMaxPool(nn.MaxPool2d(2)).over_steps(spikes, 600, None)
    assert passed.tolist() == [[[[1.0]]]] * 600


def test_who_watches_what_is_the_same_in_all_steps_sees_it_in_each():
    network, x = passing_on(), torch.rand(5, 3)
    body = network.body
    seen = []

    def observe(module, args, output):
        seen.append((steps_of_call().steps, len(output)))

    torch.testing.assert_close(network(x), x)
    with Hooks(after=[(body.part, observe)], many_steps=True):
        both(network, lambda: network(x))
    assert seen[:-T] == [(T, T * len(x))]
    assert seen[-T:] == [(1, len(x))] * T


@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_hooks_of_the_backward_pass_are_called(register):
    network, x = exported("lenet_modules")
    calls = []
    layer = next(module for module in network.body.modules() if isinstance(module, nn.Linear))
    handle = getattr(layer, register)(lambda *_: calls.append("own"))
    network(x).sum().backward()
    handle.remove()
    with contextlib.ExitStack() as stack:
        name = f"register_module{register.removeprefix('register')}"
        hook = getattr(nn.modules.module, name)(lambda module, *_: calls.append("global") if module is layer else None)
        stack.callback(hook.remove)
        network(x).sum().backward()
    assert calls == ["own"] * T + ["global"] * T


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("export", [to_snntorch, to_norse])
def test_buffers_may_be_all_that_is_trained(export, exact):
    network, x = exported("mlp", torch.float64, export)
    trained = [buffer.requires_grad_() for name, buffer in network.named_buffers() if name.endswith("potential")]
    expected = torch.autograd.grad(network(x).square().sum(), trained)
    network.requires_grad_(False)
    network.exact = exact
    torch.testing.assert_close(torch.autograd.grad(network(x).square().sum(), trained), expected)


@pytest.mark.parametrize("frozen", [False, True])
def test_derivatives_of_second_order(frozen):
    network, x = exported("mlp", torch.float64)
    network.requires_grad_(not frozen)
    x.requires_grad_()

    def second():
        (gradient,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
        # With a term that a penalty which is silently left out would leave.
        return torch.autograd.grad(gradient.square().sum() + x.sum(), x)[0]

    with pytest.raises(RuntimeError, match=r"cannot be differentiated again: set `exact = True`"):
        second()
    scores = network(x).square().sum()
    once = torch.autograd.grad(scores, x, create_graph=True)  # which may be asked for in vain
    network.exact = True
    torch.testing.assert_close(once, torch.autograd.grad(network(x).square().sum(), x))
    assert (second() - 1).any()


def test_forward_derivatives_are_not_lost_in_silence():
    network, x = exported("starts_with_relu")
    with torch.no_grad(), torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError):
        network(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))


def test_transforms_reach_the_neurons_of_the_framework():
    network, x = exported("mlp")
    with torch.no_grad(), pytest.raises(RuntimeError, match="setup_context"):  # which these do not have
        torch.func.vmap(lambda sample: network(sample[None])[0])(x)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace")
def test_a_traced_network_computes_other_inputs():
    network, x = exported("mlp", torch.float64)
    with torch.no_grad():
        traced = torch.jit.trace(network, torch.zeros_like(x), check_trace=False)
        torch.testing.assert_close(traced(x), network(x))


def test_export_with_batches_of_any_size():
    network, x = exported("lenet_modules", torch.float64)
    sizes = ({0: torch.export.Dim("samples", min=2, max=64)},)
    with torch.no_grad():
        program = torch.export.export(network, (x,), dynamic_shapes=sizes, strict=False).module()
        for batch in (x, x[:7]):
            torch.testing.assert_close(program(batch), network(batch))


def test_currents_are_written_over_where_nothing_else_reads_them():
    network, x = exported("lenet_modules")
    network(x)
    plan = network._plan
    neurons = [node for node, how, _ in plan.nodes if how == "neurons"]
    assert [plan.may_overwrite(node.args[0]) for node in neurons] == [False, True]  # the first is computed once


class Counter(TorchDispatchMode):
    """Counts the products of linear layers."""

    products = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.products += function is torch.ops.aten.addmm.default
        return function(*args, **(kwargs or {}))


def test_modes_that_see_every_operation():
    network, x = few_spikes()
    with torch.no_grad(), Counter() as counter:
        network(x)
    assert counter.products == 2 * T


def test_flops():
    network, x = few_spikes()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(x)
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    assert counter.get_total_flops() == T * sum(2 * len(x) * layer.weight.numel() for layer in layers)


class TernaryCell(nn.Module):
    """A neuron that nobody knows."""

    def forward(self, current, state):
        v = state + current
        spikes = (v > 1).to(v.dtype) - (v < -1).to(v.dtype)
        return spikes, v - spikes


def test_a_neuron_of_an_unknown_kind_is_called_step_by_step():
    network, x = exported("mlp", torch.float64)
    network(x)
    name = next(iter(neurons_of(network)))
    network.set_submodule(name, TernaryCell())
    with torch.no_grad():
        layerwise, stepped = both(network, lambda: network(x, per_step=True))
    torch.testing.assert_close(layerwise, stepped)


@pytest.mark.parametrize(
    ("setting", "value"), [("graded_spikes_factor", torch.tensor(2.0)), ("inhibition", True), ("reset_delay", False)]
)
def test_a_leaky_with_other_settings_is_called_step_by_step(setting, value):
    network, x = exported("mlp", torch.float64)
    neuron = next(iter(neurons_of(network).values()))
    with torch.no_grad():
        before = network(x)
        setattr(neuron, setting, value)
        layerwise, stepped = both(network, lambda: network(x, per_step=True))
    torch.testing.assert_close(layerwise, stepped)
    if setting != "reset_delay":  # which makes no difference to neurons that seldom spike
        assert not torch.equal(layerwise[-1], before)


class Leaky(snntorch.Leaky):
    """Another neuron of the same name."""

    def forward(self, *args):
        spikes, potential = super().forward(*args)
        return 2 * spikes, potential


@pytest.mark.parametrize("export", [to_snntorch, to_norse])
def test_a_neuron_with_a_forward_of_its_own(export):
    network, x = exported("mlp", torch.float64, export)
    with torch.no_grad():
        before = network(x)
        for neuron in neurons_of(network).values():
            if export is to_snntorch:
                neuron.__class__ = Leaky
            else:
                neuron.forward = lambda *args, forward=neuron.forward: (2 * forward(*args)[0], forward(*args)[1])
        layerwise, stepped = both(network, lambda: network(x))
    torch.testing.assert_close(layerwise, stepped)
    assert not torch.equal(layerwise, before)


def test_thresholds_that_are_trained():
    network, x = exported("mlp", torch.float64)
    for neuron in neurons_of(network).values():
        neuron.threshold = nn.Parameter(neuron.threshold.clone())
    found, expected = gradients(network, x), gradients(network, x, exact=True)
    assert_same(found, expected)
    assert any(name.endswith("threshold") and gradient.any() for name, gradient in found.items())


@pytest.mark.parametrize("export", [to_snntorch, to_norse])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, export):
    network, x = exported("lenet_modules", torch.float32, export)
    network, x = network.to(dtype), x.to(dtype)
    with torch.no_grad():
        layerwise, stepped = both(network, lambda: spikes_of(network, x))
        scores = both(network, lambda: network(x))
    assert scores[0].dtype == dtype
    different = sum(int((layerwise[layer] != spikes).sum()) for layer, spikes in stepped.items())
    assert different <= 0.02 * sum(spikes.numel() for spikes in stepped.values())
    with torch.autocast("cpu", torch.bfloat16):
        assert exported("lenet_modules")[0](x.float()).isfinite().all()


def test_autocast_chooses_the_dtype_of_layers_that_few_spikes_reach():
    network, x = few_spikes()
    layers = [module for module in network.body.modules() if isinstance(module, nn.Linear)]

    def dtypes():
        found = []
        with Hooks(after=[(layer, lambda *call: found.append(call[2].dtype)) for layer in layers], many_steps=True):
            network(x)
        return set(found)

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert both(network, dtypes) == [{torch.bfloat16}] * 2


@pytest.mark.parametrize("mode", [torch.no_grad, contextlib.nullcontext])
def test_shapes_on_the_meta_device(mode):
    network, x = exported("lenet_modules")
    with mode():
        layerwise, stepped = both(network.to("meta"), lambda: network(x.to("meta")))
    assert layerwise.shape == stepped.shape == (len(x), 10)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, contextlib.nullcontext])
def test_modes_of_gradients(mode):
    network, x = exported("lenet_modules", torch.float64)
    expected = network(x).detach()
    with mode():
        torch.testing.assert_close(network(x), expected)
    network(x).sum().backward()  # and no tensor of inference is in the way
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_copies_plan_anew():
    network, x = exported("lenet_modules", torch.float64)
    with torch.no_grad():
        expected = network(x)
        for copied in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
            for parameter in copied.parameters():
                parameter.zero_()
            assert not torch.equal(copied(x), expected)
        assert torch.equal(network(x), expected)


@pytest.mark.parametrize("seed", range(3))
def test_poisson_spikes_are_drawn_as_one_step_at_a_time_draws_them(seed):
    network, x = exported("lenet_modules", torch.float64, coding="poisson")
    scores = []
    with torch.no_grad():
        for network.exact in (False, True):
            torch.manual_seed(seed)
            scores.append(network(x, per_step=True))
    torch.testing.assert_close(*scores)


@pytest.mark.parametrize("export", [to_snntorch, pytest.param(to_norse, marks=pytest.mark.slow)])
def test_compile(export):
    network, x = exported("lenet_modules", torch.float64, export)
    with torch.no_grad():
        expected = network(x)
        network.compile(backend="eager", fullgraph=True)
        torch.testing.assert_close(network(x), expected)
        again = copy.deepcopy(network)  # without what was compiled
        for parameter in again.parameters():
            parameter.zero_()
        assert not torch.equal(again(x), expected)
    torch._dynamo.reset()


def test_the_first_call_rounds_like_any_other():
    for seed in range(4):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 16, 3), nn.ReLU())
        net.extend([nn.Flatten(), nn.Linear(16 * 36, 10)])
        x = torch.rand(64, 3, 16, 16)
        network = to_snntorch(net, x, timesteps=4)
        with torch.no_grad(), SynapticOperations(network) as sops:
            first = network(x)
        with torch.no_grad(), SynapticOperations(network) as again:
            assert torch.equal(network(x), first)
        assert sops.by_layer() == again.by_layer()  # of what was tried before, nothing is counted


@pytest.mark.parametrize(("error", "said"), [(OSError("libtbb.so: no such file"), True), (ImportError("numba"), False)])
def test_numba_that_cannot_be_imported_is_done_without(error, said, monkeypatch, recwarn):
    class Broken:
        def find_spec(self, name, *_):
            if name == "numba":
                raise error

    for name in [name for name in sys.modules if name.partition(".")[0] == "numba" or name.endswith("spiking.kernels")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("snnreg_plugins.spiking.kernels", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    firing.kernels.cache_clear()
    try:
        network, x = exported("mlp")
        network(x)
        network(x).sum().backward()
    finally:
        firing.kernels.cache_clear()
    warnings = [str(warning.message) for warning in recwarn if "numba" in str(warning.message)]
    assert len(warnings) == said
    assert all("run without numba" in warning and "libtbb.so" in warning for warning in warnings)


class Turned(nn.Module):
    """Pools what has been transposed, and takes a view of that."""

    def __init__(self, pool, turn):
        super().__init__()
        self.conv, self.pool, self.turn = nn.Conv2d(2, 3, 3, padding=1), pool, turn
        self.fc = nn.LazyLinear(4)

    def forward(self, x):
        x = self.pool(self.turn(self.conv(x).relu()))
        return self.fc(x.view(x.size(0), -1))


@pytest.mark.parametrize("turn", [lambda x: x.transpose(2, 3), lambda x: x.permute(0, 2, 3, 1)], ids=["turned", "last"])
@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool2d(2),
        nn.AvgPool2d((1, 3), (2, 1), (0, 1)),
        nn.AdaptiveAvgPool2d((2, 3)),
        nn.MaxPool2d((2, 1)),
        nn.AdaptiveMaxPool2d((4, 1)),
    ],
    ids=lambda pool: type(pool).__name__,
)
def test_pools_lay_out_as_those_of_the_dnn(pool, turn):
    net, x = Turned(pool, turn), torch.rand(9, 2, 8, 8)
    net(x)
    network = to_snntorch(net, x, timesteps=T)
    layerwise, stepped = both(network, lambda: network(x))
    torch.testing.assert_close(layerwise, stepped)
    with torch.no_grad():
        torch.testing.assert_close(to_snntorch(net, x, timesteps=256)(x), net(x), atol=0.05, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pooled", [1, 2, 3])
def test_adaptive_pooling_of_volumes_in_half_precision(pooled, dtype):
    net = nn.Sequential(nn.Conv3d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(pooled), nn.Flatten())
    net.append(nn.Linear(2 * pooled**3, 3))
    x = torch.rand(6, 1, 6, 6, 6)
    network = to_snntorch(net, x, timesteps=T)
    expected = network(x)
    for half in (copy.deepcopy(network).to(dtype), to_snntorch(net.to(dtype), x.to(dtype), timesteps=T)):
        scores = half(x.to(dtype))
        assert scores.dtype == dtype
        torch.testing.assert_close(scores.float(), expected, atol=0.1, rtol=0.1)
        scores.sum().backward()


@pytest.mark.parametrize("given", [torch.contiguous_format, torch.channels_last])
def test_gradients_of_images_are_laid_out_as_the_images_were(given):
    x = torch.rand(2, 3, 4, 5).contiguous(memory_format=given).requires_grad_()
    y, weights = channels_last(x), torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert torch.equal(y, x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    (gradient,) = torch.autograd.grad(y, x, weights)
    assert torch.equal(gradient, weights)
    assert gradient.is_contiguous(memory_format=given)
