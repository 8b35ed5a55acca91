from itertools import pairwise

import pytest
import torch

from snnreg_plugins.functional import bit_error_rate, gray_code


def test_neighbours_differ_in_one_bit_and_all_codes_differ():
    codes = gray_code(torch.arange(64)).tolist()
    assert all((a ^ b).bit_count() == 1 for a, b in pairwise(codes))
    assert sorted(codes) == list(range(64))


@pytest.mark.parametrize("symbols", [2, 4, 5, 16])
def test_bits_are_counted_one_by_one(symbols):
    decided, sent = torch.randint(symbols, (2, 300))
    bits = {2: 1, 4: 2, 5: 3, 16: 4}[symbols]
    gray = lambda k: format(k ^ (k >> 1), f"0{bits}b")  # noqa: E731
    pairs = zip(decided.tolist(), sent.tolist(), strict=True)
    wrong = sum(a != b for one, other in pairs for a, b in zip(gray(one), gray(other), strict=True))
    assert bit_error_rate(decided, sent, symbols).item() == pytest.approx(wrong / (300 * bits))
