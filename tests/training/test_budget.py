"""Budgets, what they leave for SOPs, and the price that brings a cost to them."""

from __future__ import annotations

import math

import pytest
import torch

from snnreg_plugins.functional import energy
from snnreg_plugins.training.budget import Budget, Counts, Keeper
from snnreg_plugins.training.dual_ascent import Controller, DualAscent, Meter, ramped

COUNTS = Counts(sops=40_000.0, macs=5_000.0, dense_macs=200_000.0)


def test_a_budget_leaves_the_sops_that_spend_it():
    for budget in (Budget(sops=30_000), Budget(share=0.1), Budget(joules=100e-9), Budget(joules=1e-9, table="loihi")):
        counts = COUNTS if budget.table.prices_macs else Counts(40_000.0, 0.0, 200_000.0)
        at_limit = Counts(budget.limit(counts), counts.macs, counts.dense_macs)
        assert budget.spent(at_limit) == pytest.approx(budget.amount)
        assert budget.slack(at_limit) == pytest.approx(0.0)
        assert budget.slack(Counts(2 * at_limit.sops, counts.macs, counts.dense_macs)) < 0
    assert Budget(joules=100e-9).limit(COUNTS) == pytest.approx((100e-9 - energy(0, 5_000)) / 0.9e-12)
    assert Budget(share=0.1).limit(COUNTS) == 20_000


def test_a_budget_that_the_first_layer_spends_is_refused():
    assert energy(0, 5_000) == pytest.approx(23e-9)
    with pytest.raises(ValueError, match=r"`joules` to be above 2\.3e-08, which 5\.00k MACs.*but got 2\.2e-08"):
        Budget(joules=22e-9).limit(COUNTS)
    assert Budget(joules=24e-9).limit(COUNTS) > 0
    with pytest.raises(ValueError, match="price for MACs"):
        Budget(joules=1.0, table="loihi").limit(COUNTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "one of the arguments `sops`, `share` and `joules`.*none"),
        (dict(sops=1e3, share=0.5), "`sops` and `share`"),
        (dict(sops=0), "`sops`.*above 0, but got 0"),
        (dict(share="a quarter"), "`share`"),
        (dict(joules=float("inf")), "`joules`"),
        (dict(joules=1e-9, table="horowitz"), "`table`"),
    ],
)
def test_bad_budgets(arguments, message):
    with pytest.raises(ValueError, match=message):
        Budget(**arguments)


def test_the_price_is_that_of_the_formula():
    dual = DualAscent(gain=40.0, proportional=10.0, unit=0.05)
    price = 0.0
    for excess, share in [(0.2, 0.01), (3.0, 0.001), (0.1, 0.2), (-0.4, 0.01), (-5.0, 0.005), (-1.0, 0.1), (0.3, 0.01)]:
        dual.update(excess, share)
        price = max(0.0, price + min(40 * share, 0.5) * (price + 0.05) * min(max(excess, -1.0), 0.5))
        assert dual.price == pytest.approx(price)
        expected = max(0.0, price + 10 * (price + 0.05) * min(max(excess, -1.0), 0.3))
        assert dual.effective(excess) == pytest.approx(expected)
    dual.update(-1.0, 1.0)
    dual.update(-1.0, 1.0)
    dual.update(-1.0, 1.0)
    assert 0.0 <= dual.price < price


def test_a_meter_reads_the_mean_of_a_window_and_its_trend():
    meter = Meter(window=4)
    mean = slow = 0.0
    for batch, value in enumerate([1.0, 3.0, 2.0, 8.0, 5.0, 4.0, 6.0, 7.0, 9.0, 3.0, 1.0, 2.0, 5.0], start=1):
        for amount in (10.0, 30.0):  # two layers
            meter.add(amount, torch.tensor(value))
        meter.end_batch(samples=2)
        mean += (20 * value - mean) / min(batch, 4)
        slow += (20 * value - slow) / min(batch, 12)
    assert (meter.mean, meter.slow, meter.synapses) == (pytest.approx(mean), pytest.approx(slow), 20)
    assert meter.trend == pytest.approx(math.log(mean / slow) / 8)
    assert meter.cost is None


def test_a_count_is_compared_with_the_batches_that_begin_with_its_weights():
    meter = Meter(window=4)

    def see(*values):
        for value in values:
            meter.add(10.0, torch.tensor(value))
            meter.end_batch(samples=1)

    meter.set_right(300.0)
    assert meter.cost is None
    see(1.0)
    assert meter.ratio == pytest.approx(30.0)  # the first one is needed at once
    see(1.2, 0.8, 0.4)
    meter.set_right(40.0)
    see(0.2, 0.2, 0.2)
    assert meter.ratio == pytest.approx(30.0)
    see(0.2)
    assert meter.ratio == pytest.approx(math.sqrt(30.0 * 20.0))  # between what both counts tell
    assert meter.cost == pytest.approx(meter.ratio * meter.mean)
    before = meter.mean
    meter.end_batch(samples=2)  # that no backward pass reached a layer in
    assert meter.mean == before


def test_a_meter_of_two_processes_reads_what_one_would():
    def read(parts, sum_over_processes=None):
        meter = Meter()
        for amount, value in parts:
            meter.add(amount, torch.tensor(value))
        meter.end_batch(len(parts), sum_over_processes)
        return meter.mean, meter.synapses

    other = torch.tensor([20.0 * 0.5, 20.0, 1.0])
    assert read([(20.0, 0.25)], lambda values: values + other) == read([(20.0, 0.25), (20.0, 0.5)])


def test_the_limit_comes_down_evenly_and_stays():
    assert [ramped(400.0, 100.0, share) for share in (0.0, 0.5, 1.0, 7.0)] == [
        400.0,
        pytest.approx(200.0),
        100.0,
        100.0,
    ]
    assert ramped(50.0, 100.0, 0.1) == 100.0


class Plant:
    """A network of which the penalty pushes the cost down, and the loss up again."""

    def __init__(self, controller, start, steps, seed=0):
        self.controller, self.share, self.start, self.steps = controller, 0.5, start, steps
        self.noise = torch.Generator().manual_seed(seed)

    def cost(self):
        return self.start * self.share / 0.5

    def train(self, validations, counted=True):
        controller = self.controller
        controller.counted(Counts(self.cost(), 0.0, 1e5))
        for step in range(1, self.steps + 1):
            strength = controller.strength
            noise = 1 + 0.02 * float(torch.randn((), generator=self.noise))
            controller.meter.add(64e3, torch.tensor(self.share * noise))
            if controller.listens:
                controller.hear(1.0)
            controller.end_batch(64, step / self.steps)
            self.share *= math.exp(20 / self.steps * (0.2 * (1 - self.share / 0.5) - 0.5 * strength * self.share))
            if counted and step % (self.steps // validations) == 0:
                controller.counted(Counts(self.cost(), 0.0, 1e5))


@pytest.mark.parametrize("steps", [400, 4000])
@pytest.mark.parametrize("part", [0.75, 0.5, 0.25])
def test_a_controller_brings_a_cost_to_its_budget(part, steps):
    plant = Plant(Controller(Budget(sops=part * 4e4), ramp=1 / 3), 4e4, steps)
    plant.train(validations=20)
    assert plant.cost() == pytest.approx(part * 4e4, rel=0.03)


def test_the_excess_looks_ahead():
    controller = Controller(Budget(sops=1e4), ramp=0.0)
    controller.counted(Counts(4e4, 0.0, 1e5))
    for value in (0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15):
        controller.meter.add(64.0, torch.tensor(value))
        controller.end_batch(1, progress=0.0)
    assert controller.excess == pytest.approx(math.log(controller.meter.cost / 9900))  # all in one window
    controller.meter.window = 4
    for value in (0.14, 0.12, 0.1, 0.1):
        controller.meter.add(64.0, torch.tensor(value))
        controller.end_batch(1, progress=0.0)
    ahead = 8 * controller.meter.trend
    assert ahead < -0.1
    assert controller.excess == pytest.approx(math.log(controller.meter.cost / 9900) + ahead)


def test_a_controller_leaves_a_network_alone_that_is_below_its_budget():
    controller = Controller(Budget(sops=5e4), ramp=1 / 3)
    plant = Plant(controller, 4e4, 400)
    plant.train(validations=20)
    assert (controller.dual.price, controller.settled_strength) == (0.0, 0.0)
    assert controller.strength == controller.LEAST


def test_a_controller_that_is_loaded_goes_on_bit_by_bit():
    first = Controller(Budget(sops=1e4), ramp=1 / 3)
    Plant(first, 4e4, 200).train(validations=10)
    second = Controller(Budget(sops=1e4), ramp=1 / 3)
    second.load(first.state())
    assert second.state() == first.state()
    assert (second.strength, second.shadow_price) == (first.strength, first.shadow_price) != (first.LEAST, 0.0)


def test_the_price_breaks_down_with_the_accuracy():
    controller = Controller(Budget(sops=1e4), ramp=0.0)
    controller.dual.price = 8.0
    for accuracy, price in [(0.9, 8.0), (0.46, 8.0), (0.44, 2.0)]:
        controller.scored(accuracy)
        assert controller.dual.price == price


def test_what_is_kept_has_its_own_weights():
    keeper = Keeper(Budget(sops=100.0), tolerance=0.02)
    layer = torch.nn.Linear(2, 3)
    before = layer.weight.detach().clone()
    keeper.see(0, Counts(99.0, 0.0, 1.0), 0.5, -1, layer)
    torch.nn.init.zeros_(layer.weight)
    keeper.see(1, Counts(103.0, 0.0, 1.0), 0.1, -1, layer)  # too many
    for epoch, error in ((2, 0.6), (3, float("nan"))):  # a larger error, and none
        keeper.see(epoch, Counts(99.0, 0.0, 1.0), error, -1, layer)
    assert keeper.kept is not None
    assert keeper.kept.epoch == 0
    assert torch.equal(keeper.kept.weights["weight"], before)
    keeper.see(4, Counts(50.0, 0.0, 1.0), 0.4, -1, layer)  # better, and cheaper
    assert keeper.kept.epoch == 4


def test_where_nothing_is_scored_the_closest_to_the_budget_is_kept():
    keeper, layer = Keeper(Budget(sops=100.0), tolerance=0.02), torch.nn.Linear(2, 3)
    for epoch, sops in enumerate([60.0, 97.0, 80.0, 120.0]):
        keeper.see(epoch, Counts(sops, 0.0, 1.0), None, 0, layer)
    assert keeper.kept.epoch == 1
