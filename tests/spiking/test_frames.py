"""Inputs with a dimension of time, such as events: each step reads its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from snnreg_plugins import (
    Energy,
    SpikeRate,
    SpikeStatistics,
    SynapticOperations,
    TimeSteps,
    exit_margins,
    to_norse,
    to_snntorch,
)
from tests.export.reference import max_thresholds, simulate
from tests.helpers import brute_force_costs, recorded
from tests.nets import make

T = 6
NAMES = ["mlp", "lenet_functional", "norm_on_input", "ends_in_relu", "reshapes", "viewed", "three_dimensions"]


def exported(name, dtype=torch.float64, export=to_snntorch, **options):
    net, layers, x = make(name, dtype)
    events = (torch.rand(T, *x.shape) < 0.4).to(dtype) * torch.randint(1, 4, (T, *x.shape))
    return export(net, x, timesteps=T, threshold="max", correction="none", **options), layers, x, events


@pytest.mark.parametrize("exact", [False, True], ids=["fast", "exact"])
@pytest.mark.parametrize("name", NAMES)
def test_each_step_reads_its_own_frame(name, exact):
    network, layers, x, events = exported(name)
    network.exact = exact
    _, running = simulate(layers, max_thresholds(layers, x, False), events, T, frames=True)
    torch.testing.assert_close(network(events, per_step=True, time_dim=0), running)
    torch.testing.assert_close(network(events, time_dim=0), running[-1])
    assert torch.equal(network(events.transpose(0, 1), time_dim=1), network(events, time_dim=0))


@pytest.mark.parametrize("export", [to_snntorch, to_norse])
def test_frames_that_are_all_the_same_are_a_constant_input(export):
    network, _, x, _ = exported("lenet_functional", export=export)
    for network.exact in (False, True):
        assert torch.equal(network(x.expand(T, *x.shape), time_dim=0), network(x))


def test_the_dimension_of_time_may_be_set_once():
    network, _, x, events = exported("lenet_functional")
    expected = network(events, time_dim=0)
    network.time_dim = 0
    assert torch.equal(network(events), expected)
    assert torch.equal(network(events.transpose(0, 1), time_dim=1), expected)
    network.time_dim = None
    assert network(x).shape == expected.shape


@pytest.mark.parametrize("name", ["lenet_functional", "viewed"])
def test_gradients_are_those_of_one_step_at_a_time(name):
    network, _, _, events = exported(name)
    found = []
    for network.exact in (False, True):
        given = events.clone().requires_grad_()
        network(given, time_dim=0).square().sum().backward()
        found.append([given.grad, *[parameter.grad for parameter in network.parameters()]])
        network.zero_grad()
    for fast, exact in zip(*found, strict=True):
        torch.testing.assert_close(fast, exact)
    network.exact = False
    network.checkpointing = True
    given = events.clone().requires_grad_()
    network(given, time_dim=0).square().sum().backward()
    torch.testing.assert_close(given.grad, found[0][0])


@pytest.mark.parametrize("exact", [False, True], ids=["fast", "exact"])
@pytest.mark.parametrize("name", ["lenet_functional", "viewed"])
def test_events_cost_operations_in_the_first_layer_too(name, exact):
    network, _, _, events = exported(name)
    with recorded(network, (nn.Linear, nn.Conv2d)) as record, torch.no_grad():
        network(events, time_dim=0)
    costs = brute_force_costs(record)
    network.exact = exact
    with torch.no_grad(), SynapticOperations(network) as sops, SpikeRate(network) as rate, Energy(network) as energy:
        for part in events.split((15, 5), 1):
            network(part, time_dim=0)
        network(events, time_dim=0)
    batch = events.shape[1]
    assert {layer: value * batch for layer, value in sops.by_layer().items()} == {
        layer: cost[0] for layer, cost in costs.items()
    }
    assert sops.total("effective_macs") == 0
    assert energy.compute() > 0
    assert 0 < rate.compute() < 1
    first = next(iter(sops.by_layer()))
    by_step = [float(step) * batch for step in sops.by_step()]
    assert len(by_step) == T
    assert sum(by_step) == pytest.approx(sum(cost[0] for cost in costs.values()))
    assert costs[first][0] > 0


def test_frames_of_real_values_cost_macs_in_every_step():
    network, _, x, _ = exported("lenet_functional")
    with torch.no_grad(), SynapticOperations(network) as sops:
        network(torch.rand(T, *x.shape, dtype=x.dtype) + 1, time_dim=0)
    first, *_ = sops.by_layer("effective_macs").values()
    with torch.no_grad(), SynapticOperations(network) as once:
        network(torch.rand(*x.shape, dtype=x.dtype) + 1)
    constant, *_ = once.by_layer("effective_macs").values()
    assert first == T * constant > 0


def test_samples_are_told_from_steps_by_all_who_count():
    network, _, _, events = exported("lenet_functional", dtype=torch.float32)
    network.time_dim = 0
    with torch.no_grad(), SynapticOperations(network) as alone:
        network(events)

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x):
            return self.network(x).softmax(1)

    around = Around()
    with (
        torch.no_grad(),
        SynapticOperations(around) as sops,
        SpikeStatistics(network) as statistics,
        TimeSteps(network) as steps,
    ):
        around(events)
    assert sops.compute() == alone.compute() > 0
    assert steps.compute() == T
    assert len(statistics.by_layer()) == 3


def test_samples_leave_early():
    network, _, _, events = exported("mlp")
    running = network(events, per_step=True, time_dim=0)
    network.time_dim = 0
    assert len(exit_margins(network, [events])) == T - 1
    best = running.topk(2, dim=2).values
    network.exit_margins = (best[..., 0] - best[..., 1]).quantile(0.7, 1).tolist()
    with torch.no_grad():
        scores = network(events)
    taken = network.steps_taken
    assert len(taken.unique()) > 2
    torch.testing.assert_close(scores, torch.stack([running[step - 1, at] for at, step in enumerate(taken)]))


@pytest.mark.slow
def test_a_compiled_network_reads_frames():
    network, _, _, events = exported("lenet_functional")
    network.exact = True
    compiled = torch.compile(network, backend="eager")
    assert torch.equal(compiled(events, time_dim=0), network(events, time_dim=0))


@pytest.mark.parametrize(
    ("shape", "time_dim", "told"),
    [
        ((T, 3, 1, 8, 8), None, r"\(B, 1, 8, 8\).*\(6, 3, 1, 8, 8\).*pass `time_dim`"),
        (
            (4, 3, 1, 8, 8),
            0,
            r"hold the 6 time steps of the network along dimension 0, but got shape \(4, 3, 1, 8, 8\)",
        ),
        ((3, 4, 1, 8, 8), 1, r"along dimension 1.*Set `timesteps`"),
        ((T, 3, 8, 8), 0, r"\(T, B, 1, 8, 8\).*\(6, 3, 8, 8\)"),
        ((T, 1, 8, 8), 0, r"\(T, B, 1, 8, 8\).*set `time_dim` of the network to None"),
        ((T, 3, 1, 8, 8), 2, r"`time_dim` to be one of \[0, 1\], but got 2"),
        ((T, 3, 1, 8, 8), True, r"`time_dim` to be one of \[0, 1\], but got True"),
    ],
)
def test_what_does_not_fit_is_refused_with_both_shapes(shape, time_dim, told):
    network, _, _, _ = exported("lenet_modules")
    with pytest.raises(ValueError, match=told):
        network(torch.rand(shape, dtype=torch.float64), time_dim=time_dim)


@pytest.mark.parametrize("coding", ["poisson", "latency", "neurons"])
def test_an_input_that_is_coded_holds_no_time(coding):
    network, _, _, events = exported("mlp", coding=coding)
    with pytest.raises(ValueError, match=f"constant over time with coding='{coding}'"):
        network(events, time_dim=0)
