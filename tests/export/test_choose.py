"""What "auto" takes: the cheapest of the best, on samples that candidates were not adjusted on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from snnreg_plugins import to_snntorch
from snnreg_plugins.export.choose import CANDIDATES, Tried, agreement, cheapest, choose
from snnreg_plugins.export.options import Options
from tests import nets

T = 4


def tried(sops, right, samples=100):
    """A candidate that is right on the first so many samples."""
    return Tried(Options(timesteps=T), (torch.arange(samples) < right).double(), sops)


@pytest.mark.parametrize(
    ("candidates", "taken"),
    [
        # The standard error of 90 of 100 is 3 of 100.
        ([(10, 80), (40, 90), (30, 88), (20, 87), (35, 89)], 3),
        ([(10, 86), (20, 90), (30, 90)], 1),
        ([(20, 100), (10, 99)], 0),  # none at all where the best one is always right
        ([(10, 0), (20, 0), (5, 0), (7, 0)], 2),
        ([(10, 50), (10, 50)], 0),
    ],
)
def test_the_cheapest_of_those_within_a_standard_error_of_the_best(candidates, taken):
    found = [tried(sops, right) for sops, right in candidates]
    assert cheapest(found) is found[taken]


def test_candidates_are_judged_on_the_half_that_they_were_not_adjusted_on():
    model, _, _ = nets.make("mlp")
    samples = torch.rand(7, 6, dtype=torch.float64)
    seen = []

    def convert(options, adjusted):
        assert torch.equal(adjusted, samples[:3])
        network = to_snntorch(model, samples, timesteps=T)
        network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        return network

    choose(Options(timesteps=T, threshold="auto"), convert, model, samples)
    assert len(seen) == len(CANDIDATES)
    assert all(torch.equal(x, samples[3:]) for x in seen)


def test_one_sample_is_both_halves():
    model, _, x = nets.make("mlp")
    assert to_snntorch(model, x[:1], timesteps=T, threshold="auto").conversion["threshold"] != "auto"


def test_agreement():
    scores = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert agreement(torch.tensor([[0.0, 5.0], [0.2, 0.3]]), scores).tolist() == [1, 0]
    assert agreement(torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0], [1.0]])).tolist() == [0, -4]


def test_auto_without_classes_goes_by_distance():
    model, _, x = nets.make("mlp")
    model[4] = nn.Linear(7, 1).double()
    network = to_snntorch(model, x, timesteps=T, threshold="auto")
    with torch.no_grad():
        naive = to_snntorch(model, x, timesteps=T, threshold="max")(x) - model(x)
        assert float((network(x) - model(x)).square().mean()) <= float(naive.square().mean())
