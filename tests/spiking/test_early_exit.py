"""Samples that leave early: their scores, steps and cost are those of a run that is stopped by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from snnreg_plugins import SpikeStatistics, SynapticOperations, TimeSteps, to_snntorch
from snnreg_plugins.export import exit_margins
from snnreg_plugins.export.files import load_network, save_network
from snnreg_plugins.spiking.early_exit import margin
from tests.nets import make

T = 8
VARIED = ["mlp", "lenet_functional", "lenet_modules", "norm_on_input"]


def exported(name, **options):
    net, _, x = make(name, torch.float64)
    return to_snntorch(net, x, timesteps=T, **options), x


def stopped_by_hand(network, x, margins):
    """Scores and steps of each sample, run alone for as many steps as it takes."""
    scores, steps = [], []
    for sample in x.split(1):
        running = network(sample.expand(2, *sample.shape[1:]), per_step=True)[:, 0]
        taken = T
        for step in range(1, T):
            first, second = sorted(running[step - 1].tolist(), reverse=True)[:2]
            if step <= len(margins) and first - second >= margins[step - 1]:
                taken = step
                break
        scores.append(running[taken - 1])
        steps.append(taken)
    return torch.stack(scores), torch.tensor(steps)


@pytest.mark.parametrize("exact", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("coding", ["constant", "latency", "neurons"])
@pytest.mark.parametrize("name", VARIED)
def test_scores_and_steps(name, coding, exact):
    network, x = exported(name, coding=coding)
    network.exact = exact
    with torch.no_grad():
        running = network(x, per_step=True)
        middle = float(margin(running[T // 2]).median())
        for margins in ([middle] * (T - 1), [torch.inf, 0.5 * middle], [0.0], [], [torch.inf] * T):
            network.exit_margins = None
            expected, steps = stopped_by_hand(network, x, margins)
            network.exit_margins = margins
            torch.testing.assert_close(network(x), expected)
            assert torch.equal(network.steps_taken, steps)
            assert torch.equal(network(x, per_step=True), running)  # all steps
            assert network.steps_taken is None
    assert steps.float().mean() > 1


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", ["mlp", "lenet_modules"])
def test_cost_is_that_of_the_steps_taken(name, exact):
    network, x = exported(name)
    network.exact = exact
    with torch.no_grad():
        margins = [torch.inf, *[float(margin(network(x, per_step=True)[3]).median())] * (T - 2)]
        network.exit_margins = margins
        with SynapticOperations(network) as operations, TimeSteps(network) as steps:
            network(x)
            network(x[:5])
            taken = network.steps_taken
        network.exit_margins = None
        cost, expected_steps = 0.0, []
        for sample in (*x.split(1), *x[:5].split(1)):
            network.timesteps = T
            _, (number,) = stopped_by_hand(network, sample, margins)
            network.timesteps = int(number)
            expected_steps.append(int(number))
            with SynapticOperations(network) as alone:
                network(sample)
            cost += float(alone.compute())
    assert len(set(expected_steps)) > 1
    assert operations.compute() == cost / (len(x) + 5)
    assert steps.compute() == sum(expected_steps) / (len(x) + 5)
    assert taken.tolist() == expected_steps[len(x) :]


def test_training_takes_all_steps():
    network, x = exported("mlp")
    expected = network(x)
    network.exit_margins = [0.0]
    assert torch.equal(network(x), expected)
    network(x).sum().backward()
    assert network.steps_taken is None


def test_time_steps_without_margins_are_all():
    network, x = exported("mlp")
    with TimeSteps(network) as steps:
        network(x)
        network(x[:3])
    assert steps.compute() == T
    assert steps.by_layer() == {"network": T}


def test_margins_are_kept(tmp_path):
    net, _, x = make("mlp", torch.float64)
    network = to_snntorch(net, x, timesteps=T)
    network.exit_margins = exit_margins(network, x, 0.9)
    save_network(network, tmp_path / "network.pt")
    for copied in (load_network(tmp_path / "network.pt", net), copy.deepcopy(network)):
        assert copied.exit_margins == network.exit_margins
        with torch.no_grad():
            assert torch.equal(copied(x), network(x))


@pytest.mark.parametrize("agreement", [0.8, 0.95, 1.0])
def test_found_margins_keep_the_class(agreement):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)).double()
    x = torch.rand(400, 4, dtype=torch.float64)
    network = to_snntorch(net, x, timesteps=T)
    margins = exit_margins(network, x.split(150), agreement)
    assert len(margins) == T - 1
    with torch.no_grad():
        last = network(x).argmax(1)
        network.exit_margins = margins
        left_early = network(x).argmax(1)
    for step in range(1, T):
        left = network.steps_taken == step
        assert (left_early[left] == last[left]).double().mean() >= agreement or not left.any()
    if agreement < 1:
        assert network.steps_taken.double().mean() < T


def test_least_margin_against_all_candidates():
    from snnreg_plugins.export.margins import _least

    torch.manual_seed(0)
    for _ in range(50):
        margins = torch.randint(0, 6, (20,)).double()
        right = torch.rand(20) < 0.8
        safe = [m for m in set(margins.tolist()) if right[margins >= m].double().mean() >= 0.85]
        assert _least(margins, right, 0.85) == min(safe, default=torch.inf)
    assert _least(torch.empty(0), torch.empty(0, dtype=torch.bool), 0.9) == torch.inf


@pytest.mark.parametrize("agreement", [0, -1, 1.1, float("nan")])
def test_agreement_is_checked(agreement):
    network, x = exported("mlp")
    with pytest.raises(ValueError, match="Expected argument `agreement` to be in"):
        exit_margins(network, x, agreement)


def test_what_cannot_leave_is_refused():
    network, _ = exported("mlp")
    for margins in ([float("nan")], "abc", 0.5, [None]):
        with pytest.raises(ValueError, match="Expected argument `exit_margins` to be numbers"):
            network.exit_margins = margins
    assert network.exit_margins is None
    with pytest.raises(ValueError, match="Expected argument `calibration` to hold at least one sample"):
        exit_margins(network, torch.zeros(0, 4))
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    single = to_snntorch(net, torch.rand(9, 3), timesteps=T)
    single.exit_margins = [0.1]
    with torch.no_grad(), pytest.raises(ValueError, match="at least two classes"):
        single(torch.rand(9, 3))
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    partial = to_snntorch(net, torch.rand(9, 3), timesteps=T, until="2")
    with pytest.raises(ValueError, match="`until`"):
        partial.exit_margins = [0.1]
    with pytest.raises(TypeError, match="Expected argument `network` to be a SpikingNetwork, but got Linear"):
        TimeSteps(nn.Linear(2, 2))


class Viewed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.out = nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Linear(8, 3)

    def forward(self, x):
        batch = x.size(0)
        return self.out(self.relu(self.conv(x)).view(batch, -1))


def test_a_network_that_reads_the_size_of_its_batch():
    x, net = torch.rand(9, 1, 4, 4), Viewed()
    nn.init.constant_(net.conv.bias, 1.0)  # active on all samples
    network = to_snntorch(net, x, timesteps=T)
    network.exit_margins = [0.1]
    with torch.no_grad(), pytest.raises(ValueError, match=r"Write x.flatten\(1\)"):
        network(x)


def test_scores_that_are_no_numbers_take_all_steps():
    network, x = exported("mlp")
    with torch.no_grad():
        last = [module for module in network.body.modules() if isinstance(module, nn.Linear)][-1]
        last.bias[0] = torch.nan
        expected = network(x)
        network.exit_margins = [0.1] * (T - 1)
        torch.testing.assert_close(network(x), expected, equal_nan=True)
    assert network.steps_taken.tolist() == [T] * len(x)


@pytest.mark.parametrize("exact", [False, True])
def test_times_of_spikes_go_on_where_samples_leave(exact):
    network, x = exported("lenet_modules")
    network.exact = exact
    with torch.no_grad():
        middle = float(margin(network(x, per_step=True)[T // 2]).median())
        network.exit_margins = [torch.inf, *[middle] * (T - 2)]
        with SpikeStatistics(network) as found:
            network(x)
            steps = network.steps_taken.tolist()
            network(x[:3])
        network.exit_margins = None
        with SpikeStatistics(network) as expected:
            for sample, network.timesteps in zip([*x.split(1), *x[:3].split(1)], [*steps, *steps[:3]], strict=True):
                network(sample)
    for name, value in expected.compute().items():
        torch.testing.assert_close(found.compute()[name], value)
    assert found.compute()["interval"] > 1
