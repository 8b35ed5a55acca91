"""Symbols of several bits each, and their errors."""

from __future__ import annotations

import torch
from torch import Tensor


def gray_code(symbols: Tensor) -> Tensor:
    r"""Give the bits of symbols, as integers: those of neighbours differ in one bit.

    .. math:: g(k) = k \oplus \lfloor k / 2 \rfloor

    Args:
        symbols: k, int64, of any shape.

    Example:
        >>> [f"{bits:02b}" for bits in gray_code(torch.arange(4)).tolist()]
        ['00', '01', '11', '10']
    """
    return symbols ^ (symbols >> 1)


def bit_error_rate(decided: Tensor, sent: Tensor, symbols: int) -> Tensor:
    r"""Share of the bits of Gray-coded symbols that are wrong.

    .. math:: \text{BER} = \frac{1}{N \lceil \log_2 K \rceil} \sum_n
        \mathrm{popcount}\left(g(\hat{k}_n) \oplus g(k_n)\right)

    Args:
        decided: What was decided for, int64 ``(N,)``.
        sent: What was sent, alike.
        symbols: K, how many different ones there are.

    Example:
        >>> bit_error_rate(torch.tensor([0, 1, 3, 2]), torch.tensor([0, 1, 2, 0]), symbols=4)
        tensor(0.3750)
    """
    bits = (symbols - 1).bit_length()
    wrong = gray_code(decided) ^ gray_code(sent)
    return torch.stack([wrong >> bit & 1 for bit in range(bits)]).float().mean()
