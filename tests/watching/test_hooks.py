"""Who looks on: called in the order of hooks, however a module is computed; left behind by copies."""

from __future__ import annotations

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from snnreg_plugins import SpikeRate, SpikeStatistics, SynapticOperations, TimeSteps, to_snntorch
from snnreg_plugins.watching.hooks import Hooks, is_watched, sees_many_steps, watched_call
from snnreg_plugins.watching.steps import steps_of_call
from tests.nets import make

T = 4


def called(layer, x):
    return layer(x)


def computed(layer, x):
    return watched_call(layer, layer.forward, x)


either_way = pytest.mark.parametrize("run", [called, computed])


class Witness:
    """Writes down what its hooks are called with."""

    def __init__(self, name, seen):
        self.name, self.seen, self.fails = name, seen, False

    def before(self, module, args):
        self.seen.append((self.name, "before", *map(float, args)))

    def after(self, module, args, output):
        self.seen.append((self.name, "after", float(output)))

    def enter(self, module, args, kwargs):
        self.seen.append((self.name, "enter", *map(float, args), *kwargs))

    def leave(self, module, args, kwargs, output):
        self.seen.append((self.name, "leave", None if output is None else float(output)))
        if self.fails:
            raise ArithmeticError(self.name)

    def watch(self, module, many_steps=True):
        hooks = Hooks([(module, self.before)], [(module, self.after)], many_steps)
        hooks.around(module, self.enter, self.leave)
        return hooks


class Double(nn.Module):
    def forward(self, x):
        return 2 * x


@either_way
def test_order(run):
    module, seen = Double(), []
    with Witness("first", seen).watch(module), Witness("second", seen).watch(module):
        assert run(module, torch.tensor(3.0)) == 6
    names = [(kind, name) for name, kind, _ in seen]
    assert names == [
        *[("enter", "second"), ("enter", "first"), ("before", "first"), ("before", "second")],
        *[("after", "second"), ("after", "first"), ("leave", "first"), ("leave", "second")],
    ]
    assert {value for *_, value in seen[:4]} == {3.0}
    assert {value for *_, value in seen[4:]} == {6.0}
    assert run(module, torch.tensor(3.0)) == 6
    assert len(seen) == 8


@either_way
def test_what_hooks_replace(run):
    module, seen = Double(), []
    witness = Witness("", seen)
    with Hooks([(module, lambda module, args: args[0] + 1)], many_steps=True) as hooks:
        hooks.before(module, witness.before)
        hooks.after(module, witness.after)
        hooks.after(module, lambda module, args, output: output + args[0])  # runs first
        assert run(module, torch.tensor(3.0)) == 12
    assert seen == [("", "before", 4.0), ("", "after", 12.0)]


@either_way
@pytest.mark.parametrize("where", ["before", "forward", "after"])
def test_who_is_always_called(run, where, monkeypatch):
    module, seen = Double(), []

    def fail(*_):
        raise ArithmeticError(where)

    inner, outer = Witness("inner", seen), Witness("outer", seen)
    with Hooks(many_steps=True) as hooks, inner.watch(module), outer.watch(module):
        if where == "before":
            hooks.before(module, fail)
        elif where == "after":
            hooks.after(module, fail)
        else:
            monkeypatch.setattr(module, "forward", fail)
        with pytest.raises(ArithmeticError, match=where):
            run(module, torch.tensor(3.0))
        left = [(name, output) for name, kind, output in seen if kind == "leave"]
        output = 6.0 if where == "after" else None
        assert left == [("inner", output), ("outer", output)]
        assert not [name for name, kind, _ in seen if kind == "after"]
        # An error there hides neither the first one nor who comes next.
        seen.clear()
        inner.fails = True
        with pytest.raises(ArithmeticError, match=where), pytest.warns(UserWarning, match="raise"):
            run(module, torch.tensor(3.0))
        assert [name for name, kind, _ in seen if kind == "leave"] == ["inner", "outer"]


@either_way
def test_each_is_called_once_where_a_later_one_raises(run):
    module, seen = Double(), []

    def fail(*_):
        raise ArithmeticError("late")

    with Witness("", seen).watch(module), Hooks(many_steps=True) as hooks:
        hooks.around(module, lambda *_: None, fail)
        with pytest.raises(ArithmeticError, match="late"):
            run(module, torch.tensor(3.0))
    assert [kind for _, kind, _ in seen] == ["enter", "before", "after", "leave"]


def test_arguments_by_keyword():
    module, seen = Double(), []
    with Hooks(before=[(module, Witness("", seen).before)]):
        module(x=torch.tensor(3.0))
    with Hooks(before=[(module, lambda module, args: 5 * args[0])]):
        assert module(x=torch.tensor(3.0)) == 30
    assert seen == [("", "before", 3.0)]


def test_who_may_see_many_steps():
    module, seen = Double(), []
    assert sees_many_steps(module)
    assert not is_watched(module)
    with Witness("", seen).watch(module) as hooks:
        assert is_watched(module)
        assert sees_many_steps(module)
        with hooks.one_step_at_a_time():
            assert not sees_many_steps(module)
        assert sees_many_steps(module)
        for register, arguments in (
            (module.register_forward_hook, {}),
            (module.register_forward_pre_hook, {"with_kwargs": True}),
            (module.register_full_backward_hook, {}),
            (module.register_full_backward_pre_hook, {}),
        ):
            handle = register(lambda *_: None, **arguments)
            assert not sees_many_steps(module)
            handle.remove()
            assert sees_many_steps(module)
        with Witness("", seen).watch(module, many_steps=False):
            assert not sees_many_steps(module)
        assert sees_many_steps(module)
    assert not is_watched(module)


def exported(name="lenet_modules"):
    net, _, x = make(name, torch.float64)
    return to_snntorch(net, x, timesteps=T), x


def saved(x):
    buffer = io.BytesIO()
    torch.save(x, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def pickled(x):
    return pickle.loads(pickle.dumps(x))


def is_layerwise(network, x):
    """Whether layers are called on all steps at once."""
    last = [module for module in network.body.modules() if isinstance(module, nn.Linear)][-1]
    steps = []
    with Hooks(before=[(last, lambda *_: steps.append(steps_of_call().steps))], many_steps=True):
        network(x)
    return set(steps) == {T}


duplicates = pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled, saved])


@duplicates
def test_a_copied_network_is_watched_by_nobody(duplicate):
    network, x = exported()
    metrics = [make(network) for make in (SynapticOperations, SpikeRate, SpikeStatistics, TimeSteps)]
    network(x)
    copied = duplicate(network)
    assert not any(map(is_watched, copied.modules()))
    assert torch.equal(copied(x), network(x))
    assert [int(metric.samples) for metric in metrics] == [2 * len(x)] * len(metrics)  # of the network alone
    assert is_layerwise(copied, x)
    with SynapticOperations(copied) as anew:
        copied(x)
    assert anew.compute() == metrics[0].compute()
    assert is_layerwise(duplicate(copied), x)
    handle = copied.body.register_forward_hook(lambda *_: None)
    assert not is_layerwise(copied, x)
    handle.remove()
    assert is_layerwise(network, x)


@duplicates
def test_a_copied_network_does_not_carry_who_watched_it(duplicate):
    module, seen = nn.Linear(2, 2), []
    unwatched = len(pickle.dumps(module))
    with Hooks(before=[(module, lambda *_: seen.append(len(large)))]):  # which cannot be pickled
        large = torch.zeros(10**6)
        copied = duplicate(module)
        assert len(pickle.dumps(module)) < unwatched + 1000
    copied(torch.rand(1, 2))
    assert not seen


@duplicates
@pytest.mark.parametrize("watcher_first", [False, True])
def test_who_is_copied_along_watches_the_copy(duplicate, watcher_first):
    network, x = exported()
    metric = SynapticOperations(network)
    network(x)
    both = duplicate([metric, network] if watcher_first else [network, metric])
    copied_metric, copied = both if watcher_first else reversed(both)
    assert is_layerwise(copied, x)
    assert (int(metric.samples), int(copied_metric.samples)) == (len(x), 2 * len(x))
    assert copied_metric.compute() == metric.compute()
    copied_metric.close()
    assert not any(map(is_watched, copied.modules()))
    assert is_watched(network)


def test_hooks_come_and_go_between_calls():
    network, x = exported()
    layers = [module for module in network.body.modules() if isinstance(module, nn.Linear)]
    with torch.no_grad():
        expected = network(x)
        for layer in layers:
            seen = []
            with Hooks(after=[(layer, lambda *call, seen=seen: seen.append(len(call[2])))], many_steps=True):
                torch.testing.assert_close(network(x), expected)
            assert sum(seen) == T * len(x)
            handle = layer.register_forward_hook(lambda *call, seen=seen: seen.append(len(call[2])))
            seen.clear()
            network(x)
            assert seen == [len(x)] * T
            handle.remove()
            network(x)
            assert len(seen) == T


def test_a_watcher_may_replace_what_a_layer_reads_and_gives():
    network, x = exported()
    layer = [module for module in network.body.modules() if isinstance(module, nn.Linear)][-1]
    found = []
    with torch.no_grad(), Hooks([(layer, lambda module, args: 0 * args[0])], many_steps=True) as hooks:
        for network.exact in (False, True):
            found.append(network(x))
        torch.testing.assert_close(found[0], layer.bias.expand_as(found[0]))
        assert torch.equal(*found)
        hooks.after(layer, lambda module, args, output: output + 1)
        network.exact = False
        torch.testing.assert_close(network(x), found[0] + 1)


def test_threads_watch_a_network_that_they_share():
    network, x = exported()
    neurons = [module for module in network.body.modules() if type(module).__name__ == "Leaky"]
    with torch.no_grad():
        expected = network(x)

    def run(number):
        wrong = 0
        with torch.no_grad():
            for _ in range(10):
                seen = []

                def observe(*call, seen=seen):
                    seen.append((steps_of_call(), call))

                # It sees the calls of others too, each with the steps that the call holds.
                with Hooks(after=[(neurons[number % 2], observe)], many_steps=True):
                    wrong += not torch.allclose(network(x), expected)
                wrong += any(held is None or len(call[2][0]) % held.steps for held, call in seen)
                wrong += sum(len(call[2][0]) for _, call in seen) < T * len(x)
        return wrong

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(run, range(4))) == [0] * 4
    assert not any(map(is_watched, network.modules()))
