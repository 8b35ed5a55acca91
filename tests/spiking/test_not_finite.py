"""NaN and infinity, on which neurons are silent, are not lost."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from snnreg_plugins import SynapticOperations, to_norse, to_snntorch
from tests.nets import make

T = 4
either_way = pytest.mark.parametrize("exact", [False, True], ids=["fast", "exact"])


def exported(name, export=to_snntorch, **options):
    net, _, x = make(name, torch.float32)
    return export(net, x, timesteps=T, **options), x


def broken(scores):
    """The samples all of whose scores are NaN; the scores of all others are finite."""
    nan = scores.isnan()
    assert torch.equal(nan.any(-1), nan.all(-1))
    return nan.all(-1).nonzero().flatten().tolist()


@either_way
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("export", [to_snntorch, to_norse])
@pytest.mark.parametrize("name", ["mlp", "lenet_functional", "lenet_modules", "ends_in_relu"])
def test_scores_of_samples_that_are_not_finite_are_nan(name, export, value, exact):
    network, x = exported(name, export)
    network.exact = exact
    expected = network(x)
    x[3].view(-1)[-1], x[7].view(-1)[-2] = value, value
    scores = network(x)
    assert broken(scores) == [3, 7]
    others = [index for index in range(20) if index not in (3, 7)]
    torch.testing.assert_close(scores[others], expected[others])
    assert all(broken(step) == [3, 7] for step in network(x, per_step=True))
    assert broken(network.step(x)[0]) == broken(network.record(x).scores[-1]) == [3, 7]
    network.exit_margins = [0.0] * T
    with torch.no_grad():
        assert broken(network(x)) == [3, 7]
    assert network.steps_taken[[3, 7]].tolist() == [T, T]


@either_way
def test_a_frame_that_is_not_finite(exact):
    network, x = exported("lenet_functional")
    network.exact = exact
    frames = x.repeat(T, 1, 1, 1, 1)
    frames[2, 5, 0, 3, 3] = torch.nan
    assert broken(network(frames, time_dim=0)) == [5]


@either_way
def test_weights_that_are_not_finite(exact):
    """As after a training that diverged: finite scores would hide it."""
    network, x = exported("lenet_functional")
    network.exact = exact
    with torch.no_grad():
        network.body.conv2.bias[0] = torch.nan
    scores = network(x)
    assert scores.isnan().all()
    assert scores.requires_grad


@either_way
@pytest.mark.parametrize("coding", ["poisson", "latency", "neurons"])
def test_coded_inputs_that_are_not_finite(coding, exact):
    network, x = exported("mlp", coding=coding)
    network.exact = exact
    x[3, 0] = torch.nan
    assert broken(network(x)) == [3]


@either_way
def test_metrics_count_on(exact):
    network, x = exported("lenet_functional")
    network.exact = exact
    x[3] = torch.nan
    with torch.no_grad(), SynapticOperations(network) as sops:
        network(x)
    assert sops.compute() > 0


def test_what_a_part_behind_the_spikes_makes_of_them():
    network, x = exported("mlp", until="1")
    x[3, 0] = torch.nan
    assert broken(network(x)) == [3]


def test_a_network_without_a_state_that_holds_numbers():
    network = to_snntorch(nn.Sequential(nn.ReLU(), nn.Linear(3, 2)), torch.rand(9, 3), timesteps=T)
    assert broken(network(torch.tensor([[0.0, 1.0, torch.nan], [0.0, 1.0, 2.0]]))) == [0]


def test_large_numbers_whose_sum_is_not_finite_are_finite():
    network = to_snntorch(nn.Sequential(nn.ReLU(), nn.Linear(64, 2)), 1e37 * torch.rand(9, 64), timesteps=T)
    assert network(1e37 * torch.rand(9, 64)).isfinite().all()
