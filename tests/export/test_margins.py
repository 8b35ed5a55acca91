"""Margins within a budget: what samples cost that leave by them, counted by hand."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from snnreg_plugins import SynapticOperations, exit_margins, to_snntorch
from snnreg_plugins.export.counted import largest_within
from tests.helpers import brute_force_fan_out, recorded
from tests.nets import pooled

T = 6


def exported(**options):
    torch.manual_seed(0)
    net = pooled()
    x = torch.rand(120, 1, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        net[-1].bias -= net(x).mean(0)  # samples of all classes
    return to_snntorch(net, x, **({"timesteps": T, "correction": "none"} | options)), x


def by_hand(network, x, margins):
    """SOPs, steps and class of each sample: what all spikes of its steps reach, up to where its margin is safe."""
    network.exact = True
    with torch.no_grad(), recorded(network.body, (nn.Conv2d, nn.Linear)) as record:
        running = network(x, per_step=True)
    network.exact = False
    steps_of = {}
    for _, layer, given in record:
        cost = (given * brute_force_fan_out(layer, given.shape[1:])).flatten(1).sum(1)
        steps_of.setdefault(layer, []).append(cost)
    cost = torch.stack([torch.stack(steps) for steps in steps_of.values()]).sum(0)
    assert cost.shape == (T, len(x))
    spent, taken, classes = [], [], []
    for sample in range(len(x)):
        step = T
        for number, least in enumerate(margins, start=1):
            first, second = sorted(running[number - 1, sample].tolist(), reverse=True)[:2]
            if first - second >= least:
                step = number
                break
        spent.append(float(cost[:step, sample].sum()))
        taken.append(step)
        classes.append(int(running[step - 1, sample].argmax()))
    same = torch.tensor(classes) == running[-1].argmax(1)
    return sum(spent) / len(x), sum(taken) / len(x), float(same.double().mean())


def test_margins_cost_no_more_than_their_budget():
    network, x = exported()
    one, _, _ = by_hand(network, x, [0.0])
    every, _, _ = by_hand(network, x, [])
    agreements = []
    for share in (0.0, 0.1, 0.3, 0.5, 1.0):
        budget = one + share * (every - one)
        found = exit_margins(network, x.split(50), 1.0, sops=budget)
        assert network.exit_margins is None
        assert len(found) == T - 1
        spent, steps, agreement = by_hand(network, x, found)
        assert spent <= budget
        assert (found.sops, found.timesteps, found.agreement) == pytest.approx((spent, steps, agreement))
        agreements.append(agreement)
        if share in (0.1, 0.3):  # nothing else stops it: the budget is used
            assert spent >= 0.95 * budget
    assert agreements == sorted(agreements)
    assert agreements[0] < 0.95 < agreements[-1] == 1


def test_what_is_enough_may_cost_less():
    network, x = exported()
    plain = exit_margins(network, x, 0.9)
    spent, steps, agreement = by_hand(network, x, plain)
    assert (plain.timesteps, plain.agreement, plain.sops) == (
        pytest.approx(steps),
        pytest.approx(agreement),
        None,
    )
    with_budget = exit_margins(network, x, 0.9, sops=10 * spent)
    assert tuple(with_budget) == tuple(plain)
    assert with_budget.sops == pytest.approx(spent)


def test_a_budget_below_one_step_is_refused_with_what_that_costs():
    network, x = exported()
    one, _, _ = by_hand(network, x, [0.0])
    with pytest.raises(
        ValueError, match=r"Expected argument `sops` to be at least ([0-9.e+]+), which one time"
    ) as told:
        exit_margins(network, x, sops=0.9 * one)
    least = float(str(told.value).split("at least ")[1].split(",")[0])
    assert least == pytest.approx(one, rel=1e-5)
    assert exit_margins(network, x, sops=1.00001 * least).sops == pytest.approx(one)
    assert exit_margins(network, x[:1], sops=1e9).agreement == 1.0


@pytest.mark.parametrize("sops", [0, -1, "many", float("nan"), float("inf"), True])
def test_what_is_no_budget(sops):
    network, x = exported()
    with pytest.raises(ValueError, match="Expected argument `sops` to be finite and above 0, but got"):
        exit_margins(network, x, sops=sops)


def test_margins_that_are_set_are_left_as_they_are():
    network, x = exported()
    network.exit_margins = [0.5]
    exit_margins(network, x, sops=1e6)
    with pytest.raises(ValueError, match="`sops`"):
        exit_margins(network, x, sops=1e-3)
    assert network.exit_margins == (0.5,)


def test_what_spikes_by_chance_has_no_budget():
    network, x = exported(coding="poisson")
    with pytest.raises(ValueError, match=r'coding="poisson".*Ask for an `agreement`'):
        exit_margins(network, x, sops=1e6)
    assert len(exit_margins(network, x, agreement=0.9)) == T - 1


def test_what_margins_do_goes_to_other_processes():
    network, x = exported()
    found = exit_margins(network, x, sops=1e5)
    copied = pickle.loads(pickle.dumps(found))
    assert copied == found
    assert vars(copied) == vars(found)
    network.exit_margins = found
    with torch.no_grad(), SynapticOperations(network) as sops:
        network(x)
    assert float(sops.compute()) == found.sops


@pytest.mark.parametrize(
    ("count", "budget", "expected"),
    [
        (lambda c: 100 / c, 200.0, 1.0),
        (lambda c: 100 / c**2, 64.0, 1.25),
        (lambda c: float(int(100 / c)), 70.0, 10 / 7),
        (lambda c: 100.0 if c < 1.3 else 60.0, 80.0, 1.3),  # a step that leaves more
        (lambda c: 100 / c + 3 * ((100 * c) % 2 > 1), 70.0, 10 / 7),  # not quite falling
        (lambda c: 100 / c, 49.0, None),
        (lambda c: 100 * (2 - c), 0.5, 1.995),
    ],
)
def test_a_factor_that_uses_its_budget(count, budget, expected):
    counted = []

    def spy(factor):
        counted.append(factor)
        return count(factor)

    found = largest_within(spy, budget)
    assert len(counted) <= 16
    if expected is None:
        assert found is None
        return
    assert count(found) <= budget
    assert found == pytest.approx(expected, rel=0.1)


def test_a_factor_may_be_below_one():
    assert largest_within(lambda c: 100 / c, 160.0, low=0.5) == pytest.approx(0.625, rel=0.02)
    assert largest_within(lambda c: 100 / c, 500.0, low=0.5) == 0.5
