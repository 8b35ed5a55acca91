"""How values become patterns of spikes: quantization, and the rows of a table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def midrise(x: Tensor, bits: int, low: float, high: float) -> Tensor:
    r"""Quantize to :math:`2^\text{bits}` equal intervals between two ends (midrise: 0 is a border where low = -high).

    .. math:: q = \mathrm{clip}\left(\left\lfloor \frac{x - \text{low}}{\Delta} \right\rfloor, 0, 2^\text{bits} -
        1\right), \quad \Delta = \frac{\text{high} - \text{low}}{2^\text{bits}}

    Args:
        x: Values of any shape and type. An infinite one is clipped.
        bits: Bits of a code.
        low: Lower end; what is below has code 0.
        high: Upper end; what is above has the last code.

    Returns:
        Codes, int64, of the same shape; :math:`2^\text{bits}`, a code that no number has, for NaN.

    Raises:
        TypeError: If values are complex.

    Example:
        >>> midrise(torch.tensor([-9.0, -0.1, 0.0, 0.6, 9.0, float("nan")]), bits=2, low=-1.0, high=1.0)
        tensor([0, 1, 2, 3, 3, 4])
        >>> midrise(torch.tensor([0, 17, 255], dtype=torch.uint8), bits=8, low=0, high=256)
        tensor([  0,  17, 255])
    """
    if x.is_complex():
        raise TypeError(f"Expected argument `x` to be real, but got {x.dtype}. Pass x.abs(), or its two parts.")
    levels = 2**bits
    values = x.to(torch.promote_types(x.dtype, torch.float32)) if x.is_floating_point() else x.float()
    codes: Tensor = ((values - low) * (levels / (high - low))).floor().clamp(0, levels - 1)
    return torch.nan_to_num(codes, nan=float(levels)).long()


def normalized_rows(rows: Tensor) -> Tensor:
    r"""Divide each row by its largest magnitude; rows of zeros stay.

    .. math:: w_r \leftarrow \frac{w_r}{\max_i |w_{ri}|}

    The largest entry is then 1 or -1, exactly, so that doing it twice changes nothing.

    Args:
        rows: Shape ``(R, ...)``.

    Example:
        >>> normalized_rows(torch.tensor([[1.0, -2.0], [0.0, 0.0]]))
        tensor([[ 0.5000, -1.0000],
                [ 0.0000,  0.0000]])
    """
    largest = rows.abs().flatten(1).amax(1).reshape(-1, *[1] * (rows.dim() - 1))
    return rows / largest.where(largest > 0, torch.ones_like(largest))


def rounded_pattern(rows: Tensor, bits: int) -> Tensor:
    r"""Round entries of at most 1 to few bits, with the gradient of no rounding (straight through).

    .. math:: s = \begin{cases} [w > 1/2] & \text{bits} = 1 \\
        \mathrm{round}(m w) / m, \; m = 2^{\text{bits} - 1} - 1 & \text{bits} \ge 2 \end{cases}

    One bit gives spikes of 0 and 1. More give multiples of 1/m from -1 to 1: what is small is 0, and costs nothing.

    Args:
        rows: Any shape.
        bits: Bits of an entry.

    Source:
        Bengio, Léonard and Courville 2013, "Estimating or Propagating Gradients Through Stochastic Neurons for
        Conditional Computation", `arXiv 1308.3432 <https://arxiv.org/abs/1308.3432>`_.

    Example:
        >>> rows = torch.tensor([-1.0, 0.2, 0.3, 0.7], requires_grad=True)
        >>> rounded_pattern(rows, 1).tolist(), rounded_pattern(rows, 2).tolist()
        ([0.0, 0.0, 0.0, 1.0], [-1.0, 0.0, 0.0, 1.0])
        >>> rounded_pattern(rows, 1).sum().backward()
        >>> rows.grad
        tensor([1., 1., 1., 1.])
    """
    rounded: Tensor = _Rounded.apply(rows, bits)
    return rounded


class _Rounded(torch.autograd.Function):
    """Rounding to which the gradient is blind; exact, which w + (round(w) - w).detach() is not."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, bits: int) -> Tensor:
        if bits == 1:
            return (rows > 0.5).to(rows.dtype)
        largest = 2 ** (bits - 1) - 1
        rounded: Tensor = (rows * largest).round() / largest
        return rounded + torch.zeros_like(rounded)  # makes 0 of -0

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
