"""Weights of few bits: the nearest of what a format has, again and again."""

from __future__ import annotations

import pytest
import torch

from snnreg_plugins.functional.fewbits import (
    FEW_BITS,
    checked_bits,
    magnitudes,
    outputs_first,
    round_weights,
    straight_through,
    unit_of,
)

FORMATS = [(weights, bits) for weights, (allowed, _) in FEW_BITS.items() for bits in allowed]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("weights", "bits"), FORMATS)
def test_each_weight_is_the_nearest_of_all_and_stays_it(weights, bits, dtype):
    torch.manual_seed(0)
    weight = torch.randn(3, 400).to(dtype)
    unit = unit_of(weight.abs().amax(1, keepdim=True).float(), weights, bits).to(dtype)
    rounded = round_weights(weight, unit, weights, bits)
    assert rounded.dtype == dtype
    steps = magnitudes(weights, bits)
    assert len(steps) == 2 ** (bits - 1)
    every = torch.cat([-steps.flip(0), steps]).double()
    exact = weight.double() / unit.double()
    least = (exact.unsqueeze(-1) - every).abs().amin(-1)
    slack = 1e-9 + 4 * torch.finfo(dtype).eps * steps[-1]
    assert ((exact - rounded.double()).abs() <= least + (0 if dtype == torch.float64 else slack)).all()
    assert set(rounded.abs().flatten().tolist()) <= set(steps.tolist())
    assert (rounded.abs().amax(1) == steps[-1]).all()
    if dtype != torch.bfloat16:
        again = rounded * unit * torch.tensor([[0.37], [1.0], [1e5]], dtype=dtype)
        found = unit_of(again.abs().amax(1, keepdim=True), weights, bits)
        assert torch.equal(round_weights(again, found, weights, bits), rounded)


def test_what_formats_are():
    assert magnitudes("int8", 8).tolist() == list(range(128))
    assert magnitudes("int8", 4).tolist() == [16 * k for k in range(8)]
    assert magnitudes("power_of_two", 4).tolist() == [0, 1, 2, 4, 8, 16, 32, 64]
    assert magnitudes("power_of_two", 3).tolist() == [0, 16, 32, 64]
    assert magnitudes("power_of_two", 5).tolist() == [0, *(2**k for k in range(15))]


def test_zeros_and_what_is_not_finite():
    assert unit_of(torch.zeros(2), "int8", 8).tolist() == [1, 1]
    for weights in FEW_BITS:
        rounded = round_weights(torch.tensor([0.0, -0.0, torch.nan]), torch.tensor(1.0), weights, 4)
        assert rounded[:2].tolist() == [0, 0]
        assert not rounded[:2].signbit().any()
        assert rounded[2].isnan()


@pytest.mark.parametrize(
    ("weights", "bits", "message"),
    [
        ("int8", 9, r"`bits` to be one of \[2, 3, 4, 5, 6, 7, 8\], but got 9"),
        ("power_of_two", 8, r"`bits` to be one of \[2, 3, 4, 5\], but got 8"),
        ("int8", 1.5, "`bits`.*1.5"),
        ("int4", None, r"`weights` to be one of \['int8', 'power_of_two'\], but got 'int4'"),
    ],
)
def test_refused(weights, bits, message):
    with pytest.raises((ValueError, TypeError), match=message):
        checked_bits(weights, bits)


def test_gradients_pass_as_if_nothing_was_rounded():
    weight = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    rounded = (10 * weight.detach()).round() / 10
    given = torch.randn(4, 3, dtype=torch.float64)
    (straight_through(weight, rounded) * given).sum().backward()
    assert torch.equal(straight_through(weight, rounded), rounded)
    assert torch.equal(weight.grad, given)


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_outputs_first(groups):
    layer = torch.nn.ConvTranspose2d(6, 12, (3, 2), groups=groups, bias=False).double()
    x, factor = torch.rand(2, 6, 4, 4, dtype=torch.float64), torch.rand(12, 1, 1, 1, dtype=torch.float64)
    before, weight = layer(x), outputs_first(layer.weight.detach(), groups)
    assert torch.equal(outputs_first(weight, groups), layer.weight)
    layer.weight.data = outputs_first(weight * factor, groups)
    torch.testing.assert_close(layer(x), before * factor.reshape(-1, 1, 1))
