r"""Weights of few bits: small integers, or powers of two, in units of their own for each output channel.

A format has :math:`2^{b-1}` magnitudes m of b bits with the sign, the largest of them M, and a channel of weights w
whose largest magnitude is a has the unit a / M:

.. math::
    u_c = a_c / M \qquad \hat w = u_c \cdot \mathrm{sign}(w) \cdot m^*
    \qquad m^* = \operatorname{arg\,min}_m \left| |w| / u_c - m \right|

- ``"int8"``: signed integers, :math:`m = k \cdot 2^{8-b}` for :math:`k = 0, \ldots, 2^{b-1} - 1`;
- ``"power_of_two"``: zero and :math:`m = 2^k \cdot r` for :math:`k = 0, \ldots, 2^{b-1} - 2`: a product is a shift.

The largest magnitude is its own nearest value, so that weights of few bits stay what they are when they are rounded
again, whatever a channel was multiplied with. The factors :math:`2^{8-b}` and r (which makes M at least 64) are shifts
of a whole channel: they give few-bit weights a unit that is as fine as that of 8 bits, in which thresholds, biases and
potentials are whole numbers, too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from snnreg_plugins._checks import as_integer, one_of

#: Formats by name: the bits that a weight may have, and those it has unless told.
FEW_BITS: dict[str, tuple[range, int]] = {"int8": (range(2, 9), 8), "power_of_two": (range(2, 6), 4)}

# Of the largest weight of a channel, at least.
_FINE = 64


def checked_bits(weights: str, bits: Any, argument: str = "bits") -> int:
    """Give the bits of a weight.

    Args:
        weights: The format, a name in :data:`FEW_BITS`.
        bits: How many, its sign among them; None for the format's own: 8 for integers, 4 for powers of two.
        argument: Name of the argument, for the error.

    Raises:
        ValueError: If there is no such format, or it has no weights of so many bits.

    Example:
        >>> checked_bits("power_of_two", None)
        4
    """
    allowed, default = FEW_BITS[one_of("weights", weights, FEW_BITS)]
    return default if bits is None else one_of(argument, as_integer(argument, bits), allowed)


def magnitudes(weights: str, bits: int) -> Tensor:
    """List what a weight may be in units of its channel, from 0 up, ``(2 ** (bits - 1),)`` whole numbers.

    Args:
        weights: The format.
        bits: Of a weight.

    Raises:
        ValueError: If there is no such format, or it has no weights of so many bits.

    Example:
        >>> magnitudes("int8", 3).tolist(), magnitudes("power_of_two", 4).tolist()
        ([0, 32, 64, 96], [0, 1, 2, 4, 8, 16, 32, 64])
    """
    return torch.tensor(_magnitudes(weights, checked_bits(weights, bits)))


def _magnitudes(weights: str, bits: int) -> list[int]:
    if weights == "int8":
        return [k * 2 ** (8 - bits) for k in range(2 ** (bits - 1))]
    powers = [0, *(2**k for k in range(2 ** (bits - 1) - 1))]
    return [power * max(1, _FINE // powers[-1]) for power in powers]


def unit_of(largest: Tensor, weights: str, bits: int) -> Tensor:
    r"""Give the unit of channels, :math:`u = a / M`; 1 for a channel of zeros.

    Args:
        largest: a, the largest magnitude of each channel's weights, of any shape.
        weights: The format.
        bits: Of a weight.

    Example:
        >>> unit_of(torch.tensor([254.0, 0.0]), "int8", 8).tolist()
        [2.0, 1.0]
    """
    unit = largest / _magnitudes(weights, bits)[-1]
    return torch.where(unit == 0, 1.0, unit)


def round_weights(weight: Tensor, unit: Tensor, weights: str, bits: int) -> Tensor:
    """Round weights to the nearest that a format has, in units.

    Args:
        weight: Weights, of any shape.
        unit: Of each, shaped to broadcast.
        weights: The format.
        bits: Of a weight.

    Returns:
        Whole numbers, in the dtype of ``weight``.

    Example:
        >>> round_weights(torch.tensor([0.9, -3.0, 2.9, 80.0]), torch.tensor(1.0), "power_of_two", 4).tolist()
        [1.0, -4.0, 2.0, 64.0]
    """
    steps = _magnitudes(weights, bits)
    least, most = steps[1], steps[-1]
    given = weight.to(torch.promote_types(weight.dtype, torch.float32))
    size = (given / unit).abs() / least
    if weights == "int8":
        nearest = size.round()
    else:
        share, exponent = torch.frexp(size)  # size = share * 2 ** exponent, share in [0.5, 1)
        nearest = torch.ldexp(torch.where(share < 0.75, 0.5, torch.ones_like(size)), exponent)
        nearest = torch.where(size < 0.5, 0.0, nearest.clamp_min(1.0))
        nearest = torch.where(size.isnan(), size, nearest)
    # Adding 0 leaves no -0.0.
    return torch.copysign(nearest.mul(least).clamp_max(most), given).add(0.0).to(weight.dtype)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, rounded: Tensor) -> Tensor:
        return rounded.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def straight_through(weight: Tensor, rounded: Tensor) -> Tensor:
    r"""Compute with rounded weights, and train those behind them: :math:`\partial \hat w / \partial w = 1`.

    Args:
        weight: w.
        rounded: What it was rounded to, of the same shape.

    Returns:
        ``rounded``, whose gradient is that of ``weight``.

    Example:
        >>> weight = torch.tensor([0.4, 2.6], requires_grad=True)
        >>> (straight_through(weight, weight.detach().round()) ** 2).sum().backward()
        >>> weight.grad.tolist()
        [0.0, 6.0]
    """
    out: Tensor = _StraightThrough.apply(weight, rounded)
    return out


def outputs_first(weight: Tensor, transposed_groups: int | None = None) -> Tensor:
    """Give the weight of a layer with its outputs first: ``(C_out, C_in / groups, *kernel)``. It undoes itself.

    Args:
        weight: That of Linear or Conv, which has them first; or of ConvTranspose, ``(C_in, C_out / groups, *kernel)``.
        transposed_groups: Groups of a transposed convolution; None for other layers.

    Example:
        >>> outputs_first(torch.zeros(4, 3, 5, 5), transposed_groups=2).shape
        torch.Size([6, 2, 5, 5])
    """
    if transposed_groups is None:
        return weight
    grouped: Tensor = weight.unflatten(0, (transposed_groups, -1))  # type: ignore[no-untyped-call]
    return grouped.transpose(1, 2).flatten(0, 1)
