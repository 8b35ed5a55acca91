r"""Tensors in few bits: spikes and counts exactly, anything else with a bound on the error, or without one on average.

All work on flat tensors, in one dtype of torch, on any device.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from snnreg_plugins._checks import one_of

BLOCK = 1024  # elements that share a range in `quantize`
GROUP = 256  # and in `quantize_at_random`: the narrower the range, the less noise

# Of the same size as a float type, so that bit patterns can be compared: == takes -0.0 for 0.0.
_PATTERNS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
# Codes of 1, 2 or 4 bits, as many as go into a byte, seen as one integer. Times the factor, its highest byte has them
# side by side: code i, at bit 8 i, is moved to where the shift leaves it at bit `bits` · i.
_WORDS = {1: torch.int64, 2: torch.int32, 4: torch.int16}
_FACTORS = {1: 0x0102040810204080, 2: 0x01041040, 4: 0x0110}
_SAMPLE = 32
# Numbers from here on are taken for multiples of a unit, even if they are whole.
_LARGE = 16


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    r"""Put codes of 1, 2 or 4 bits side by side, the first lowest.

    .. math:: p_j = \sum_{i=0}^{8/b - 1} 2^{b i} c_{j \cdot 8/b + i}

    Args:
        codes: Shape ``(N,)``, uint8, each below :math:`2^b`; higher ones corrupt their neighbours.
        bits: b.

    Returns:
        Shape ``(⌈N b / 8⌉,)``, uint8. Missing codes of the last byte are 0.

    Raises:
        ValueError: If ``bits`` is none of 1, 2 and 4, or ``codes`` is not a flat tensor of uint8.

    Example:
        >>> pack_bits(torch.tensor([1, 0, 1, 1, 0, 0, 0, 0, 1], dtype=torch.uint8), bits=1)
        tensor([13,  1], dtype=torch.uint8)
    """
    _check(codes, "codes", bits)
    if not len(codes):
        return codes.new_empty(0)
    short = -len(codes) % (8 // bits)
    codes = torch.cat((codes, codes.new_zeros(short))) if short else codes.contiguous()
    words = codes.clone() if codes.storage_offset() % 8 else codes
    # Narrowing an integer keeps its lowest byte.
    return (words.view(_WORDS[bits]) * _FACTORS[bits]).bitwise_right_shift_(64 // bits - 8).to(torch.uint8)


def unpack_bits(packed: Tensor, bits: int, numel: int) -> Tensor:
    r"""Take apart what :func:`pack_bits` put together.

    .. math:: c_i = \lfloor p_{\lfloor i b / 8 \rfloor} / 2^{i b \bmod 8} \rfloor \bmod 2^b

    Args:
        packed: Shape ``(⌈N b / 8⌉,)``, uint8.
        bits: b.
        numel: N.

    Returns:
        Shape ``(N,)``, uint8.

    Raises:
        ValueError: If ``bits`` is none of 1, 2 and 4, ``packed`` is not a flat tensor of uint8, or ``numel`` is not
            what it holds.

    Example:
        >>> unpack_bits(torch.tensor([13, 1], dtype=torch.uint8), bits=1, numel=9)
        tensor([1, 0, 1, 1, 0, 0, 0, 0, 1], dtype=torch.uint8)
    """
    _check(packed, "packed", bits)
    if -(-numel * bits // 8) != len(packed):
        raise ValueError(
            f"Expected argument `numel` to be a number of {bits}-bit codes that take {len(packed)} bytes, but got "
            f"{numel}."
        )
    return _table(bits, packed.device).index_select(0, packed.int()).view(torch.uint8)[:numel]


def whole_codes(x: Tensor) -> tuple[Tensor, Tensor | None, int] | None:
    r"""Find small whole numbers of which a tensor consists, up to one factor, if it does exactly.

    .. math:: x_i = u \, c_i \qquad c_i \in \{-128, \ldots, 127\}

    to the bit: -0.0, NaN and infinity are no whole numbers. So spikes are found, weighted spikes, spikes behind
    dropout, and spikes summed or averaged by pooling. On a GPU, the answer is waited for once.

    Args:
        x: Shape ``(N,)``, float16, bfloat16, float32 or float64.

    Returns:
        None, or the codes c (int8, shape ``(N,)``), the unit u (scalar tensor, None if it is 1), and the bits that
        the codes need: 1, 2, 4 or, from code 16 on or for negative ones, 8.

    Raises:
        ValueError: If ``x`` is of another dtype.

    Example:
        >>> whole_codes(torch.tensor([0.0, 1.0, 1.0]))
        (tensor([0, 1, 1], dtype=torch.int8), None, 1)
        >>> whole_codes(torch.tensor([0.0, 0.75, 0.25]))
        (tensor([0, 3, 1], dtype=torch.int8), tensor(0.2500), 2)
        >>> whole_codes(torch.tensor([0.0, 0.3, 1.0])) is None
        True
    """
    if x.dtype not in _PATTERNS:
        raise ValueError(f"Expected argument `x` to be of one of {list(_PATTERNS)}, but got {x.dtype}.")
    if not len(x):
        return x.to(torch.int8), None, 1
    # Nearly all tensors of real numbers are told by a few of them. On a GPU, a look would cost more than the rest.
    for unit in _look(x) if x.device.type == "cpu" else (None,):
        found = _codes(x, unit)
        if found is not None:
            return found
    return None


def quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    r"""Round each element to one of 256 values between the least and the greatest of its block of 1024.

    .. math:: c_i = \mathrm{round}\left(\frac{x_i - l}{s}\right) - 128 \qquad l = \min x \qquad
        s = \frac{\max x - \min x}{255}

    Args:
        x: Shape ``(N,)``, floating, N at least 1.

    Returns:
        The codes c (int8, shape ``(N,)``), and l and s of each block (shape ``(⌈N / 1024⌉, 1)``, in the dtype of
        ``x``, float32 for half precision). None if a block's range is not finite.

    Example:
        >>> codes, low, step = quantize(torch.tensor([0.0, 0.25, 1.0]))
        >>> codes.tolist(), low.item(), round(step.item(), 5)
        ([-128, -64, 127], 0.0, 0.00392)
    """
    scaled = _scaled(x, BLOCK, 255)
    if scaled is None:
        return None
    values, low, step = scaled
    return values.round_().sub_(128).to(torch.int8).flatten()[: len(x)], low, step


def dequantize(codes: Tensor, low: Tensor, step: Tensor, dtype: torch.dtype) -> Tensor:
    r"""Give the values that the codes of :func:`quantize` stand for.

    .. math:: x'_i = l + s \, (c_i + 128) \qquad |x'_i - x_i| \le \frac{\max x - \min x}{510}

    where the maximum and minimum are those of the block; the bound is that of exact arithmetic, to which the rounding
    of ``dtype`` adds. A block's least element is kept exactly: where none is negative, zeros stay zeros.

    Args:
        codes: Shape ``(N,)``, int8.
        low: l, shape ``(⌈N / 1024⌉, 1)``.
        step: s, of the same shape.
        dtype: Of the result.

    Returns:
        Shape ``(N,)``.

    Example:
        >>> codes, low, step = quantize(torch.tensor([0.0, 0.3, 1.0]))
        >>> dequantize(codes, low, step, torch.float32)
        tensor([0.0000, 0.2980, 1.0000])
    """
    values = _blocks(codes, BLOCK).to(low.dtype).add_(128).mul_(step).add_(low)
    return values.flatten()[: len(codes)].to(dtype)


def quantize_at_random(
    x: Tensor, bits: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor] | None:
    r"""Round each element up or down to one of :math:`2^b` values, at random so that the mean is right.

    .. math:: c_i = \left\lfloor \frac{x_i - l}{s} + r_i \right\rfloor \qquad l = \min x \qquad
        s = \frac{\max x - \min x}{2^b - 1}

    with :math:`r_i` uniform in [0, 1), and minimum and maximum those of the element's group of 256. Then

    .. math:: \mathrm{E}[l + s \, c_i] = x_i \qquad \mathrm{Var}[l + s \, c_i] \le \frac{s^2}{4}

    Args:
        x: Shape ``(N,)``, floating, N at least 1.
        bits: b, 4 or 2.
        generator: Of r, on the device of ``x``; that of torch if None.

    Returns:
        The codes c, packed by :func:`pack_bits`, and l and s of each group (shape ``(⌈N / 256⌉, 1)``, in the dtype of
        ``x``, float32 for half precision). None if a group's range is not finite.

    Raises:
        ValueError: If ``bits`` is neither 4 nor 2.

    Example:
        >>> packed, low, step = quantize_at_random(torch.tensor([0.0, 1.0, 3.0, 2.0]), bits=2)
        >>> unpack_bits(packed, bits=2, numel=4).tolist(), low.item(), step.item()
        ([0, 1, 3, 2], 0.0, 1.0)
    """
    highest = 2 ** one_of("bits", bits, (4, 2)) - 1
    scaled = _scaled(x, GROUP, highest)
    if scaled is None:
        return None
    values, low, step = scaled
    draws = torch.rand(values.shape, generator=generator, dtype=values.dtype, device=values.device)
    # Rounding of the sum may reach one more than the highest.
    codes = values.add_(draws).floor_().clamp_(max=highest).to(torch.uint8)
    return pack_bits(codes.flatten()[: len(x)], bits), low, step


def dequantize_packed(packed: Tensor, low: Tensor, step: Tensor, bits: int, numel: int, dtype: torch.dtype) -> Tensor:
    r"""Give the values that the codes of :func:`quantize_at_random` stand for.

    .. math:: x'_i = l + s \, c_i

    A group's least and greatest elements come back as they were, but for rounding.

    Args:
        packed: The packed codes.
        low: l, shape ``(⌈N / 256⌉, 1)``.
        step: s, of the same shape.
        bits: b, 4 or 2.
        numel: N.
        dtype: Of the result.

    Returns:
        Shape ``(N,)``.

    Raises:
        ValueError: If ``packed`` does not hold ``numel`` codes.

    Example:
        >>> x = torch.tensor([0.5, 1.0, 2.0, 1.5])
        >>> dequantize_packed(*quantize_at_random(x, bits=2), bits=2, numel=4, dtype=x.dtype)
        tensor([0.5000, 1.0000, 2.0000, 1.5000])
    """
    values = _blocks(unpack_bits(packed, bits, numel), GROUP).to(low.dtype).mul_(step).add_(low)
    return values.flatten()[:numel].to(dtype)


def _check(packed: Tensor, name: str, bits: int) -> None:
    one_of("bits", bits, _WORDS)
    if packed.dtype != torch.uint8 or packed.dim() != 1:
        raise ValueError(
            f"Expected argument `{name}` to be a flat tensor of torch.uint8, but got {packed.dtype} of shape "
            f"{tuple(packed.shape)}."
        )


@cache
def _table(bits: int, device: torch.device) -> Tensor:
    """The codes in each of the 256 bytes, as one integer that is as long as they are."""
    with torch.inference_mode(False):
        every = torch.arange(256, device=device)[:, None] >> torch.arange(0, 8, bits, device=device)
        codes: Tensor = every & (2**bits - 1)
        return codes.to(torch.uint8).view(_WORDS[bits]).flatten()


def _look(x: Tensor) -> tuple[float | None, ...]:
    """Tell from a few elements which units are worth a try; None is one that is still to be found."""
    sample = set(x[:: max(1, len(x) // _SAMPLE)].tolist()) - {0.0}
    if not sample:
        return (1.0, None)
    if not all(map(math.isfinite, sample)):
        return ()
    unit = min(map(abs, sample))
    if unit < _LARGE and all(value.is_integer() for value in sample):
        return (1.0,)
    factors = [value / unit for value in sample]
    # Low precision rounds the multiples.
    near = all(abs(factor) <= 128 and abs(factor - round(factor)) < 0.01 * abs(factor) for factor in factors)
    return (unit, None) if near else ()


def _codes(x: Tensor, guess: float | None) -> tuple[Tensor, Tensor | None, int] | None:
    """Find codes with this unit, or with the smallest magnitude as the unit."""
    patterns = x.view(_PATTERNS[x.dtype])
    unit = None
    if guess != 1:
        unit = _unit(patterns, x.dtype) if guess is None else x.new_tensor(guess)
    # What does not fit into int8 gives any code at all, which the comparison finds.
    codes = _to_int8(x if unit is None else (x / unit).round_())
    again = codes.to(x.dtype)
    if unit is not None:
        again.mul_(unit)
    least, most = again.view(patterns.dtype).bitwise_xor_(patterns).aminmax()
    highest = codes.view(torch.uint8).amax()
    wrong_low, wrong_high, code = torch.stack([least, most, highest.to(least.dtype)]).tolist()
    if wrong_low or wrong_high:
        return None
    return codes, unit, next((bits for bits in (1, 2, 4) if code < 2**bits), 8)


def _unit(patterns: Tensor, dtype: torch.dtype) -> Tensor:
    """Smallest magnitude but 0, or 1 if that is a small whole number. Magnitudes are in the order of their patterns."""
    largest = torch.iinfo(patterns.dtype).max
    # A zero wraps around to the largest.
    smallest = ((patterns - 1).bitwise_and_(largest).amin() + 1).view(dtype)
    whole = (smallest < _LARGE) & (smallest == smallest.round())
    # If all are zeros, or none is finite, any unit will do.
    return torch.where(whole | ~smallest.isfinite(), 1.0, smallest).to(dtype)


def _to_int8(x: Tensor) -> Tensor:
    # On a CPU, only these conversions of torch are vectorised.
    return x.to(torch.int8) if x.dtype in (torch.float32, torch.float64) else x.float().to(torch.int8)


def _scaled(x: Tensor, size: int, highest: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Scale each block to the range from 0 to ``highest``; with its least element, and the unit. None if not finite."""
    blocks = _blocks(x if x.dtype == torch.float64 else x.float(), size)
    low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
    step = (high - low) / highest
    if not bool(step.isfinite().all()):
        return None
    step = torch.where(step > 0, step, 1.0)
    return (blocks - low).div_(step), low, step


def _blocks(x: Tensor, size: int) -> Tensor:
    """Rows of a block each, the last filled up with its last element."""
    short = -len(x) % size
    return (torch.cat((x, x[-1:].expand(short))) if short else x).view(-1, size)
