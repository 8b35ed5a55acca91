"""How far outputs are from others, against class by class and step by step."""

from __future__ import annotations

import pytest
import torch

from snnreg_plugins.functional import kl_of_logits, l2_of_logits, mean_square, prefix_means
from tests.helpers import kl_by_hand


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kl_is_that_of_every_class(temperature):
    z, wanted = torch.randn(5, 4, dtype=torch.float64) * 3, torch.randn(5, 4, dtype=torch.float64) * 3
    torch.testing.assert_close(kl_of_logits(z, wanted, temperature), kl_by_hand(z, wanted, temperature))
    assert kl_of_logits(z, z + 7, temperature).abs() < 1e-12


def test_gradient_of_kl_is_the_difference_of_probabilities():
    z, wanted = torch.randn(5, 4, dtype=torch.float64, requires_grad=True), torch.randn(5, 4, dtype=torch.float64)
    kl_of_logits(z, wanted, 3.0).backward()
    expected = 3.0 * ((z / 3).softmax(1) - (wanted / 3).softmax(1)) / 5
    torch.testing.assert_close(z.grad, expected.detach())


def test_classes_that_are_ruled_out_count_nothing():
    z = torch.tensor([[1.0, 2.0, -torch.inf]], requires_grad=True)
    wanted = torch.tensor([[0.5, 1.0, -torch.inf]])
    kl = kl_of_logits(z, wanted)
    kl.backward()
    torch.testing.assert_close(kl, kl_of_logits(z[:, :2], wanted[:, :2]))
    assert z.grad.isfinite().all()


def test_squares():
    z, wanted = torch.randn(5, 4), torch.randn(5, 4)
    assert float(l2_of_logits(z, wanted)) == pytest.approx(float(((z - wanted) ** 2).mean()))
    assert float(mean_square(z)) == pytest.approx(float((z**2).mean()))


def test_prefix_means_are_those_of_fewer_steps():
    outputs = torch.randn(6, 2, 3, dtype=torch.float64)
    expected = torch.stack([outputs[: t + 1].mean(0) for t in range(6)])
    torch.testing.assert_close(prefix_means(outputs), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised(dtype):
    z, wanted = (torch.randn(5, 4) * 8).to(dtype), (torch.randn(5, 4) * 8).to(dtype)
    for function in (kl_of_logits, l2_of_logits):
        assert torch.equal(function(z, wanted), function(z.float(), wanted.float()))
    assert torch.equal(mean_square(z), mean_square(z.float()))
    assert torch.equal(prefix_means(z), prefix_means(z.float()))
