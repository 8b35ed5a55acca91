"""Packing loses nothing, and rounding no more than it says, for tensors at random."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snnreg_plugins.functional import bits as module
from snnreg_plugins.functional import (
    dequantize,
    dequantize_packed,
    pack_bits,
    quantize,
    quantize_at_random,
    unpack_bits,
    whole_codes,
)

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
bounded = settings(max_examples=150, deadline=None, derandomize=True)
ODD = [-0.0, float("nan"), float("inf"), -float("inf"), 0.3, 1e-40, 128.0, 1e30, -129.0, 2.0**-24]


def raw(x):
    return x.view(module._PATTERNS[x.dtype])


@bounded
@given(st.sampled_from([1, 2, 4]), st.integers(0, 70), st.integers(0, 9), st.integers(1, 3), st.integers(0, 99))
def test_packed_codes_come_back(bits, numel, offset, stride, seed):
    torch.manual_seed(seed)
    codes = torch.randint(0, 2**bits, (offset + numel * stride,), dtype=torch.uint8)[offset::stride]
    packed = pack_bits(codes, bits)
    # Byte by byte with Python's integers.
    per = 8 // bits
    groups = [codes[i : i + per].tolist() for i in range(0, len(codes), per)]
    assert packed.tolist() == [sum(code << bits * i for i, code in enumerate(group)) for group in groups]
    assert torch.equal(unpack_bits(packed, bits, len(codes)), codes)


@bounded
@given(st.data(), st.sampled_from(FLOATS))
def test_whole_codes_are_exact_or_none(data, dtype):
    unit = data.draw(st.sampled_from([1.0, 0.25, 1.25, 1 / 9, 3.0, 1e-3, 20.0]))
    codes = data.draw(st.lists(st.integers(-3, 17), min_size=1, max_size=300))
    # As code that scales spikes does, in the dtype.
    x = torch.tensor(codes, dtype=dtype) * torch.tensor(unit, dtype=dtype)
    x = x.abs() if data.draw(st.booleans()) else x + 0.0
    odd = data.draw(st.sampled_from([None, None, *ODD]))
    if odd is not None:
        x[data.draw(st.integers(0, len(x) - 1))] = odd
    found = whole_codes(x)
    if found is None:
        return
    codes, u, bits = found
    again = codes.to(dtype) if u is None else codes.to(dtype) * u
    assert torch.equal(raw(again), raw(x))
    assert codes.dtype == torch.int8
    assert all(0 <= code < 2**bits for code in codes.tolist()) or bits == 8
    assert bits == 1 or not all(0 <= code < 2 ** (bits // 2) for code in codes.tolist())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("values", "bits"),
    [
        ([0.0, 1.0], 1),
        ([0.0], 1),
        ([1.0], 1),
        ([0.0, 1.25], 1),
        ([0.0, 0.25, 0.5, 0.75, 1.0], 4),
        ([0.0, 2.0, 3.0], 2),
        ([0.0, 255.0], 1),
        ([0.0, 1.0, 15.0], 4),
        ([0.0, 1.0, 16.0], 8),
        ([-1.0, 0.0, 1.0], 8),
    ],
)
def test_spikes_and_counts_are_found(values, bits, dtype):
    torch.manual_seed(0)
    x = torch.tensor(values, dtype=dtype)[torch.randint(0, len(values), (5000,))]
    assert whole_codes(x)[2] == bits


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("dtype", FLOATS)
def test_one_element_among_many_spikes_is_seen(odd, dtype):
    torch.manual_seed(0)
    x = (torch.rand(4097) < 0.1).to(dtype)
    x[4096] = odd  # where no sample is taken
    expected = None if raw(x[-1:]) != 0 else 1  # half precision rounds the smallest to 0
    found = whole_codes(x)
    assert found is None if expected is None else found[2] == expected


def test_few_spikes_of_a_unit_are_found_where_the_sample_is_silent():
    x = torch.zeros(10_000)
    x[[4321, 9999]] = 0.3
    codes, unit, bits = whole_codes(x)
    assert (codes.sum(), unit, bits) == (2, torch.tensor(0.3), 1)


def test_of_another_device_no_sample_is_taken(monkeypatch):
    # What runs on a GPU, run here: always with a unit.
    monkeypatch.setattr(module, "_look", lambda x: (None,))
    for values, bits in (([0.0, 1.0], 1), ([0.0], 1), ([0.0, 2.0, 3.0], 2), ([0.0, 0.25, 0.5], 2), ([-1.0, 0.0], 8)):
        assert whole_codes(torch.tensor(values * 99))[2] == bits
    for odd in (0.3, float("nan"), float("inf"), -0.0):
        assert whole_codes(torch.tensor([0.0, 1.0, odd])) is None


@bounded
@given(st.data(), st.sampled_from(FLOATS))
def test_quantized_values_are_within_the_bound(data, dtype):
    numel = data.draw(st.sampled_from([1, 5, 1023, 1024, 1025, 3000]))
    scale, shift = data.draw(st.sampled_from([1e-6, 1.0, 3e3])), data.draw(st.sampled_from([-50.0, 0.0, 7.0]))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    x = (torch.randn(numel, dtype=torch.float64) * scale + shift).to(dtype)
    if data.draw(st.booleans()):
        x = x.relu()
    codes, low, step = quantize(x)
    again = dequantize(codes, low, step, dtype)
    assert again.dtype == dtype
    assert codes.nbytes == numel
    for start in range(0, numel, 1024):
        block, came = x[start : start + 1024].double(), again[start : start + 1024].double()
        bound = float(block.max() - block.min()) / 510
        rounding = float(block.abs().max()) * 2 * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps ** 2)
        assert float((came - block).abs().max()) <= bound * (1 + 1e-4) + rounding
        assert torch.equal(came[block == block.min()], block[block == block.min()])


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_what_has_no_finite_range_is_not_quantized(odd):
    assert quantize(torch.tensor([-3e38, 0.0, odd])) is None


@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("dtype", FLOATS)
def test_rounding_at_random_is_right_on_average(bits, dtype):
    torch.manual_seed(0)
    x = torch.randn(300, dtype=torch.float64).to(dtype)  # more than a group, and an odd end
    draws = 500
    packed, low, step = zip(*(quantize_at_random(x, bits) for _ in range(draws)), strict=True)
    wide = torch.float32 if dtype.itemsize < 8 else dtype
    values = torch.stack([dequantize_packed(p, low[0], step[0], bits, 300, wide) for p in packed]).double()
    groups = [x[:256], x[256:]]
    steps = torch.cat([(g.double().max() - g.double().min()).expand(len(g)) for g in groups]) / (2**bits - 1)
    assert float(((values - x.double()).abs() / steps).max()) < 1 + 1e-5  # to a neighbour
    assert float(((values.mean(0) - x.double()).abs() / steps).max()) < 5 * 0.5 / draws**0.5
    ends = torch.stack([values[:, :256].amax(1), values[:, :256].amin(1)])
    assert torch.allclose(ends, torch.stack([x[:256].max(), x[:256].min()]).double().unsqueeze(1), rtol=1e-6)


def test_bad_arguments():
    with pytest.raises(ValueError, match="`bits`.*3"):
        pack_bits(torch.zeros(3, dtype=torch.uint8), 3)
    with pytest.raises(ValueError, match="`codes`.*float32"):
        pack_bits(torch.zeros(3), 1)
    with pytest.raises(ValueError, match="`packed`.*\\(1, 1\\)"):
        unpack_bits(torch.zeros(1, 1, dtype=torch.uint8), 1, 8)
    with pytest.raises(ValueError, match="`numel`.*9"):
        unpack_bits(torch.zeros(1, dtype=torch.uint8), 1, 9)
    with pytest.raises(ValueError, match="`x`.*int64"):
        whole_codes(torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="`bits`.*8"):
        quantize_at_random(torch.rand(3), bits=8)
