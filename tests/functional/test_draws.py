"""Values drawn from a distribution of a name: their moments, their range, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from snnreg_plugins.functional import DISTRIBUTIONS, draw


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# Skewness by its textbook formula in c = std / mean.
SKEWNESS = {
    "gamma": lambda c: 2 * c,
    "lognormal": lambda c: c**3 + 3 * c,
    "normal": lambda c: 0.0,
    "uniform": lambda c: 0.0,
}
KURTOSIS = {"normal": 3.0, "uniform": 1.8}


@pytest.mark.parametrize(("mean", "std"), [(20.0, 5.0), (0.5, 0.1)])
@pytest.mark.parametrize("distribution", sorted(DISTRIBUTIONS))
def test_mean_standard_deviation_and_shape_are_those_asked_for(distribution, mean, std):
    values = draw(distribution, mean, std, (400, 500), seeded()).double()
    assert values.shape == (400, 500)
    assert values.mean().item() == pytest.approx(mean, rel=0.003)
    assert values.std().item() == pytest.approx(std, rel=0.01)
    z = (values - mean) / std
    assert z.pow(3).mean().item() == pytest.approx(SKEWNESS[distribution](std / mean), abs=0.04)
    if distribution in KURTOSIS:
        assert z.pow(4).mean().item() == pytest.approx(KURTOSIS[distribution], abs=0.05)


def test_a_gamma_of_a_shape_below_1_is_one_too():
    values = draw("gamma", 3.0, 4.0, (200_000,), seeded()).double()
    assert values.mean().item() == pytest.approx(3, rel=0.02)
    assert values.std().item() == pytest.approx(4, rel=0.02)
    # Shape 9/16, scale 16/3: the share below the mean, by its distribution function.
    share = torch.special.gammainc(torch.tensor(9 / 16), torch.tensor(9 / 16)).item()
    assert (values < 3).double().mean().item() == pytest.approx(share, abs=0.004)


@pytest.mark.parametrize("distribution", sorted(DISTRIBUTIONS))
def test_values_out_of_range_are_drawn_again(distribution):
    values = draw(distribution, 0.9, 0.3, (5000,), seeded(), within="(0, 1)")
    assert 0 < values.min() < values.max() < 1
    assert values.unique().numel() > 4500  # none is moved to an end of the range
    closed = draw(distribution, 0.9, 0.3, (5000,), seeded(), within="[0.9, 0.95]")
    assert closed.min() >= 0.9
    assert closed.max() <= 0.95


def test_a_generator_repeats_and_leaves_torchs_own_alone():
    before = torch.get_rng_state()
    first, second, other = (draw("gamma", 1.0, 0.5, (9,), seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(3)
    assert torch.equal(draw("gamma", 1.0, 0.5, (9,)), first)


def test_no_spread_gives_the_mean_and_an_empty_shape_one_value():
    assert torch.equal(draw("normal", 2.0, 0.0, (3,)), torch.full((3,), 2.0))
    assert draw("uniform", 2.0, 0.1, ()).shape == ()
    assert draw("uniform", 2.0, 0.1, (0, 4)).shape == (0, 4)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("cauchy", 1.0, 1.0, (2,)), r"`distribution` to be one of \['gamma', 'lognormal', 'normal', 'uniform'\]"),
        (("normal", -1.0, 1.0, (2,)), "`mean` to be finite and above 0, but got -1"),
        (("normal", 1.0, -1.0, (2,)), "`std` to be finite and at least 0, but got -1"),
        (("normal", 1.0, math.nan, (2,)), "`std`"),
        (("normal", 1.0, 1.0, 2), "`shape`"),
        (("gamma", 0.0, 1.0, (2,), None, "[0, inf)"), "`mean` to be finite and above 0"),
        (("normal", 0.5, 1e6, (99,), None, "(0, 1)"), r"`std` to leave values .* in \(0, 1\), but got 1e\+06"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments, error):
    with pytest.raises(ValueError, match=error):
        draw(*arguments)
