import math

import pytest
import torch

from snnreg_plugins.functional import midrise, normalized_rows, rounded_pattern


@pytest.mark.parametrize(("bits", "low", "high"), [(1, -1.0, 1.0), (3, -4.0, 4.0), (8, -4.0, 4.0), (4, 0.5, 2.0)])
def test_a_code_is_that_of_the_interval_that_a_value_lies_in(bits, low, high):
    width = (high - low) / 2**bits
    x = torch.linspace(low - 1, high + 1, 999, dtype=torch.float64)
    expected = [min(max(math.floor((value - low) / width), 0), 2**bits - 1) for value in x.tolist()]
    assert midrise(x, bits, low, high).tolist() == expected


def test_bytes_are_their_own_codes_and_what_is_no_number_has_its_own():
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(midrise(every, 8, 0, 256), every.long())
    odd = torch.tensor([math.inf, -math.inf, math.nan])
    assert midrise(odd, 8, -4.0, 4.0).tolist() == [255, 0, 256]
    with pytest.raises(TypeError, match="`x` to be real, but got torch.complex64"):
        midrise(odd + 1j, 8, -4.0, 4.0)
    # In half precision 0.999 · 256 would round up to a level of its own.
    assert midrise(torch.tensor([3.99], dtype=torch.bfloat16), 8, -4.0, 4.0).item() <= 255


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_rows_are_normalized_once_and_for_all(dtype):
    rows = torch.randn(50, 3, 7).to(dtype)
    rows[3] = 0
    once = normalized_rows(rows)
    assert torch.equal(normalized_rows(once), once)
    largest = once.abs().flatten(1).amax(1)
    assert largest[3] == 0
    assert (largest[torch.arange(50) != 3] == 1).all()
    torch.testing.assert_close(once[0], rows[0] / rows[0].abs().max())


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_entries_are_the_nearest_of_few_values_and_gradients_pass(bits):
    rows = normalized_rows(torch.randn(20, 30, dtype=torch.float64)).requires_grad_()
    rounded = rounded_pattern(rows, bits)
    values = (
        [0.0, 1.0] if bits == 1 else [k / (2 ** (bits - 1) - 1) for k in range(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1))]
    )
    grid = torch.tensor(values, dtype=torch.float64)
    nearest = grid[(rows.detach().flatten()[:, None] - grid).abs().argmin(1)].view_as(rows)
    assert torch.equal(rounded.detach(), nearest)
    slope = torch.randn(20, 30, dtype=torch.float64)
    rounded.backward(slope)
    assert torch.equal(rows.grad, slope)
