"""Thresholds that bring a network to its budget, counted on samples of the training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from snnreg_plugins import SynapticOperations, to_snntorch
from snnreg_plugins.training.trim import Trim


def exported(**options):
    torch.manual_seed(0)
    dnn = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3)).double()
    x = torch.rand(64, 6, dtype=torch.float64)
    return to_snntorch(dnn, x, timesteps=4, **options), x


def counted(network, x):
    with torch.no_grad(), SynapticOperations(network) as sops:
        network(x)
    return float(sops.compute())


def alone(value):
    return value


@pytest.mark.parametrize("options", [{}, {"train_thresholds": "layer"}])
@pytest.mark.parametrize("share", [0.8, 0.95, 1.1])
def test_a_network_comes_to_spend_its_budget(share, options):
    network, x = exported(**options)
    trim, free = Trim(batches=3), counted(network, x)
    for part in x.split(16):
        trim.add(part)
    assert trim.count(network) == counted(network, x[:48])  # the first three batches
    trim.compare(network, 1.2 * free, alone)  # validation samples spend more
    weights = network.body.get_submodule("2").weight
    factors = trim.fit(network, share * 1.2 * free, 0.02, True, alone)
    assert set(factors) == {"1", "3"}
    assert all((factor > 1) == (share < 1) for factor in factors.values())
    assert 0.95 * share < counted(network, x[:48]) / trim.count(exported(**options)[0]) <= share
    assert network.body.get_submodule("2").weight is weights  # which an optimizer holds


def test_what_needs_no_trim_is_left_as_it_is():
    network, x = exported()
    trim, free = Trim(batches=3), counted(network, x)
    before = network.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    assert trim.fit(network, 0.5 * free, 0.02, True, alone) is None  # nothing to count on
    trim.add(x)
    assert trim.fit(network, 1.01 * free, 0.02, True, alone) is None
    assert trim.fit(network, 2.0 * free, 0.02, False, alone) is None  # below the budget by itself
    assert trim.fit(network, 1e-3 * free, 0.02, True, alone) is None  # further away than that
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    integers, x = exported(weights="int8")
    assert trim.fit(integers, 0.8 * free, 0.02, True, alone) is None


def test_who_watches_sees_nothing_of_it():
    network, x = exported()
    trim = Trim(batches=3)
    with torch.no_grad(), SynapticOperations(network) as sops:
        trim.watch(network)
        network(x[:10])
        network(x=x[10:20])
        trim.unwatch()
        network(x)
        trim.compare(network, 100.0, alone)
        trim.fit(network, 80.0, 0.02, True, alone)
    assert int(sops.samples) == 84
    assert [len(calls) for calls in (trim.calls[0][0], trim.calls[1][1])] == [1, 1]
    assert len(trim.calls) == 2
    assert trim.count(network) == counted(network, x[:20])


def test_processes_go_by_the_mean_of_their_counts():
    network, x = exported()
    free = counted(network, x)
    trim = Trim(batches=1)
    trim.add(x)
    trim.fit(network, 0.8 * free, 0.02, True, lambda value: value + 0.1 * free)  # others spend more
    assert counted(network, x) <= 0.7 * free
