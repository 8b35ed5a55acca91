"""Exports within a budget: what they spend is counted by hand, and what they took is written down."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from snnreg_plugins import SynapticOperations, to_norse, to_snntorch
from snnreg_plugins.export.files import load_network, save_network
from snnreg_plugins.export.rebalance import Rebalance
from tests.helpers import brute_force_fan_out, recorded, soft_reset_neuron
from tests.nets import pooled

T = 4


def trained():
    """A network that tells apart where the light is, and images."""
    torch.manual_seed(0)
    x = torch.rand(160, 1, 6, 6, dtype=torch.float64)
    y = x.flatten(2).reshape(160, 4, 9).mean(2).argmax(1)
    net = pooled()
    optimizer = torch.optim.Adam(net.parameters(), 2e-2)
    for _ in range(80):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval(), x


@pytest.fixture(scope="module")
def case():
    return trained()


def spent(network, x):
    """SOPs/sample of all steps, from what the layers read."""
    network.exact = True
    with torch.no_grad(), recorded(network.body, (nn.Conv2d, nn.Linear)) as record:
        network(x)
    network.exact = False
    costs = [float((given * brute_force_fan_out(layer, given.shape[1:])).sum()) for _, layer, given in record]
    return sum(costs) / len(x)


def agreement(network, net, x):
    with torch.no_grad():
        return float((network(x).argmax(1) == net(x).argmax(1)).double().mean())


SLOW = [pytest.param(share, marks=pytest.mark.slow) for share in (0.8, 0.3, 0.15)]


@pytest.mark.parametrize("share", [2.0, 0.5, *SLOW])
def test_an_export_spends_no_more_than_its_budget(share, case):
    net, x = case
    free = spent(to_snntorch(net, x, timesteps=T), x)
    network = to_snntorch(net, x, timesteps=T, budget=share * free)
    with torch.no_grad(), SynapticOperations(network) as sops:
        network(x)
    assert float(sops.compute()) <= share * free
    assert network.conversion["sops"] == float(sops.compute())
    if network.exit_margins is None:
        assert network.conversion["sops"] == pytest.approx(spent(network, x))
    assert network.conversion["agreement"] == agreement(network, net, x)
    assert network.conversion["timesteps"] == network.timesteps <= T
    assert network.conversion["budget"] == share * free
    if share == 2.0:  # nothing is taken away
        assert (network.timesteps, network.exit_margins) == (T, None)
        plain = to_snntorch(net, x, timesteps=T)
        assert torch.equal(network(x), plain(x))
    else:
        assert network.conversion["sops"] >= 0.6 * share * free
    if share >= 0.5:
        assert agreement(network, net, x) > 0.65  # 0.25 by chance


def test_higher_thresholds_are_those_that_are_said(case):
    """A plain simulation of the DNN's own weights at the thresholds of the export, each times its factor."""
    net, x = case
    plain = to_snntorch(net, x, timesteps=T, correction="none")
    network = to_snntorch(net, x, timesteps=T, correction="none")
    factors = {"1": 1.25, "5": 1.5}
    Rebalance(network).scale(factors)
    first, second = (plain.levels[name] * factors[name] for name in ("1", "5"))
    with torch.no_grad():
        current = net[0](x)
        spikes = soft_reset_neuron([current] * T, first, first / 2)
        hidden = [net[4](nn.functional.avg_pool2d(first * each, 2).flatten(1)) for each in spikes]
        spikes = soft_reset_neuron(hidden, second, second / 2)
        expected = torch.stack([net[6](second * each) for each in spikes]).mean(0)
        torch.testing.assert_close(network(x), expected)
        assert not torch.allclose(plain(x), expected)
    Rebalance(network).scale({"1": 1 / 1.25, "5": 1 / 1.5})
    torch.testing.assert_close(network(x), plain(x))


@pytest.mark.parametrize("options", [{}, {"train_thresholds": "channel"}, {"coding": "latency"}])
def test_thresholds_are_scaled_however_they_are_kept(options, case):
    net, x = case
    network = to_snntorch(net, x, timesteps=T, **options)
    rebalance, before = Rebalance(network), network(x)
    rebalance.scale(dict.fromkeys(rebalance.layers, 2.0))
    assert not torch.equal(network(x), before)
    assert rebalance.layers == ["1", "5"]
    for neuron in (network.body.get_submodule(name) for name in rebalance.layers):
        name = "1" if neuron is network.body.get_submodule("1") else "5"
        assert torch.allclose(neuron.threshold, to_snntorch(net, x, timesteps=T, **options).levels[name] * 2)
    rebalance.scale({})
    assert torch.equal(network(x), before)


def test_shared_weights_and_sums_are_followed():
    torch.manual_seed(0)

    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.relu1, self.relu2 = (
                nn.Linear(4, 6),
                nn.Linear(6, 6),
                nn.Linear(6, 3),
                nn.ReLU(),
                nn.ReLU(),
            )

        def forward(self, x):
            h = self.relu1(self.a(x))
            return self.c(self.relu2(self.b(h) + h))

    net, x = Skip().double(), torch.rand(50, 4, dtype=torch.float64)
    network = to_snntorch(net, x, timesteps=64, threshold="max", correction="none")
    exact = net(x)
    near = (network(x) - exact).abs().max()
    Rebalance(network).scale({"relu1": 1.5, "relu2": 1.5})
    assert (network(x) - exact).abs().max() < 3 * near + 0.02
    with SynapticOperations(network) as sops:
        network(x)
    with SynapticOperations(to_snntorch(net, x, timesteps=64, threshold="max", correction="none")) as before:
        before.watch.model(x)
    assert float(sops.compute()) == pytest.approx(float(before.compute()) / 1.5, rel=0.05)


@pytest.mark.slow
def test_auto_is_searched_within_a_budget_too(case):
    net, x = case
    free = spent(to_snntorch(net, x, timesteps=T), x)
    network = to_norse(net, x[:60], timesteps=2, threshold="auto", budget=0.4 * free)
    assert network.conversion["sops"] <= 0.4 * free
    assert network.conversion["threshold"] != "auto"
    assert network.conversion["framework"] == "norse"


def test_a_budget_that_nothing_meets_is_refused_with_the_least_there_is(case):
    net, x = case
    nn.init.constant_(net[0].bias, 0.2)
    with pytest.raises(
        ValueError, match=r"Expected argument `budget` to be at least .*Raise it, or train with"
    ) as told:
        to_snntorch(net, x, timesteps=2, budget=1e-3)
    least = float(str(told.value).split("at least ")[1].split(",")[0])
    assert least > 1e-3
    assert to_snntorch(net, x, timesteps=2, budget=1.001 * least).conversion["sops"] <= 1.001 * least


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(budget=0), "Expected argument `budget` to be finite and above 0"),
        (dict(budget="a quarter"), "Expected argument `budget` to be finite"),
        (dict(budget=100, coding="poisson"), 'None with coding="poisson"'),
        (dict(budget=100, weights="int8"), "None with weights='int8'"),
    ],
)
def test_what_is_no_budget(options, message, case):
    with pytest.raises(ValueError, match=message):
        to_snntorch(*case, timesteps=2, **options)


def test_what_was_chosen_is_saved(tmp_path, case):
    net, x = case
    free = spent(to_snntorch(net, x, timesteps=2), x)
    network = to_snntorch(net, x, timesteps=2, budget=0.6 * free)
    save_network(network, tmp_path / "network.pt")
    loaded = load_network(tmp_path / "network.pt", net)
    assert loaded.conversion == network.conversion
    assert loaded.exit_margins == network.exit_margins
    with torch.no_grad():
        assert torch.equal(loaded(x), network(x))


def test_events_are_counted_over_their_own_steps(case):
    _, x = case
    events = (torch.rand(T, *x.shape, dtype=torch.float64) < x).double()
    linear = nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 4)).double()
    free = to_snntorch(linear, events, timesteps=T, time_dim=0)
    with torch.no_grad(), SynapticOperations(free) as before:
        free(events)
    budget = 0.9 * float(before.compute())
    network = to_snntorch(linear, events, timesteps=T, time_dim=0, budget=budget)
    with torch.no_grad(), SynapticOperations(network) as sops:
        network(events)
    assert network.timesteps == T
    assert float(sops.compute()) == network.conversion["sops"] <= budget
