"""The surrogate gradients of a spike, by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

_KEEPS_DERIVATIVE = ContextVar("_KEEPS_DERIVATIVE", default=False)


@contextmanager
def derivatives_kept(keep: bool = True) -> Iterator[None]:
    """Have spikes keep the derivative of their surrogate for the backward pass, in place of the potential.

    Gradients are linear in it, and so right on average where it is rounded at random; in the potential they are not.
    """
    token = _KEEPS_DERIVATIVE.set(keep)
    try:
        yield
    finally:
        _KEEPS_DERIVATIVE.reset(token)


def keeps_derivative() -> bool:
    """Tell whether spikes are to keep the derivative of their surrogate."""
    return _KEEPS_DERIVATIVE.get()


class Surrogate(nn.Module):
    r"""Spike with a gradient that falls off on both sides of the threshold.

    .. math:: s = [u > 0] \qquad \frac{\partial s}{\partial u} \approx h \, g(k |u|)

    A module, so that networks with it pickle and k goes with their state_dict and device; keeps the dtype of its input.
    A further surrogate is a subclass with :meth:`times`, and a name in :data:`SURROGATES`.

    Args:
        slope: k, in 1 / potential; a number, or a tensor that broadcasts over a sample of the potential.
        steepness: κ, where :math:`k = \kappa / \lambda`: then h is 1 / λ, so that the gradient is that of the potential
            as a share of the threshold. If None, h is 1.
    """

    #: How steep it is by default, κ.
    STEEPNESS: ClassVar[float]
    #: Number of its compiled loop; None if it has none.
    COMPILED: ClassVar[int | None] = None

    slope: Tensor

    def __init__(self, slope: float | Tensor, steepness: float | None = None) -> None:
        super().__init__()
        self.steepness = steepness
        self.register_buffer("slope", torch.as_tensor(slope))

    @staticmethod
    def times(given: Tensor, x: Tensor) -> Tensor:
        """Multiply a gradient by g(x), for x = k |u|; ``x`` may be overwritten."""
        raise NotImplementedError

    def backward(self, given: Tensor, u: Tensor) -> Tensor:
        """Give the gradient of the potential ``u``, above the threshold, from that of the spikes."""
        return _backward(type(self).times, given, u, self.slope, self.steepness)

    def derivative(self, u: Tensor) -> Tensor:
        """Give what :meth:`backward` multiplies a gradient by."""
        return self.backward(torch.ones_like(u), u)

    def forward(self, u: Tensor) -> Tensor:
        """Give spikes for ``u``, the potential above threshold."""
        spikes: Tensor = _Spike.apply(u, self.slope, self.steepness, type(self).times, keeps_derivative())
        return spikes

    def fixed(self, unit: float | Tensor = 1.0) -> Surrogate:
        """Give one of the same values, that follows no threshold, for potentials in this unit."""
        kind: Any = parametrize.type_before_parametrizations(self)
        made: Surrogate = kind(self.slope.detach() * unit, self.steepness)
        return made


class FastSigmoid(Surrogate):
    r"""The fast sigmoid of Zenke and Ganguli 2018 (SuperSpike).

    .. math:: g(x) = \frac{1}{(1 + x)^2}

    Example:
        >>> u = torch.tensor([-1.0, 0.5], requires_grad=True)
        >>> spikes = FastSigmoid(slope=1.0)(u)
        >>> spikes.sum().backward()
        >>> spikes.tolist(), [round(g, 3) for g in u.grad.tolist()]
        ([0.0, 1.0], [0.25, 0.444])
    """

    STEEPNESS = 5.0
    COMPILED = 0

    @staticmethod
    def times(given: Tensor, x: Tensor) -> Tensor:
        """Multiply a gradient by g(x)."""
        return given / x.add_(1).square_()


class Triangular(Surrogate):
    r"""The triangle of Esser et al. 2016 and Bellec et al. 2018.

    .. math:: g(x) = \max(0, 1 - x)

    Example:
        >>> u = torch.tensor([-1.0, 0.5], requires_grad=True)
        >>> Triangular(slope=1.0)(u).sum().backward()
        >>> u.grad.tolist()
        [0.0, 0.5]
    """

    STEEPNESS = 1.0
    COMPILED = 1

    @staticmethod
    def times(given: Tensor, x: Tensor) -> Tensor:
        """Multiply a gradient by g(x)."""
        return given * x.neg_().add_(1).clamp_(min=0)


class Arctan(Surrogate):
    r"""The derivative of an arc tangent, of Fang et al. 2021.

    .. math:: g(x) = \frac{1}{1 + x^2}

    Example:
        >>> u = torch.tensor([-1.0, 0.5], requires_grad=True)
        >>> Arctan(slope=1.0)(u).sum().backward()
        >>> [round(g, 3) for g in u.grad.tolist()]
        [0.5, 0.8]
    """

    STEEPNESS = math.pi
    COMPILED = 2

    @staticmethod
    def times(given: Tensor, x: Tensor) -> Tensor:
        """Multiply a gradient by g(x)."""
        return given / x.square_().add_(1)


class Rectangular(Surrogate):
    r"""The window of Wu et al. 2018 (STBP): a straight-through gradient near the threshold.

    .. math:: g(x) = [x < 1]

    Example:
        >>> u = torch.tensor([-1.0, 0.5], requires_grad=True)
        >>> Rectangular(slope=1.0)(u).sum().backward()
        >>> u.grad.tolist()
        [0.0, 1.0]
    """

    STEEPNESS = 2.0
    COMPILED = 3

    @staticmethod
    def times(given: Tensor, x: Tensor) -> Tensor:
        """Multiply a gradient by g(x)."""
        return torch.where(x < 1, given, 0)


class Sigmoid(Surrogate):
    r"""The derivative of a logistic sigmoid, with a peak of 1.

    .. math:: g(x) = 4 \sigma(x) (1 - \sigma(x))

    Example:
        >>> u = torch.tensor([-1.0, 0.0], requires_grad=True)
        >>> Sigmoid(slope=1.0)(u).sum().backward()
        >>> [round(g, 3) for g in u.grad.tolist()]
        [0.786, 1.0]
    """

    STEEPNESS = 4.0

    @staticmethod
    def times(given: Tensor, x: Tensor) -> Tensor:
        """Multiply a gradient by g(x)."""
        rate = x.neg_().sigmoid_()  # the small one, which keeps its digits
        return given * (4 * rate * (1 - rate))


class Gaussian(Surrogate):
    r"""A bell curve, with a peak of 1.

    .. math:: g(x) = e^{-x^2 / 2}

    Example:
        >>> u = torch.tensor([-1.0, 0.0], requires_grad=True)
        >>> Gaussian(slope=1.0)(u).sum().backward()
        >>> [round(g, 3) for g in u.grad.tolist()]
        [0.607, 1.0]
    """

    STEEPNESS = 2.0

    @staticmethod
    def times(given: Tensor, x: Tensor) -> Tensor:
        """Multiply a gradient by g(x)."""
        return given * x.square_().mul_(-0.5).exp_()


#: The surrogates by name, as options and files say it.
SURROGATES: dict[str, type[Surrogate]] = {
    "arctan": Arctan,
    "fast_sigmoid": FastSigmoid,
    "gaussian": Gaussian,
    "rectangular": Rectangular,
    "sigmoid": Sigmoid,
    "triangular": Triangular,
}


def surrogate_of(module: nn.Module) -> str | None:
    """Give the name of a surrogate of this package; None for any other module."""
    kind = parametrize.type_before_parametrizations(module)
    return next((name for name, known in SURROGATES.items() if known is kind), None)


def _backward(
    times: Callable[[Tensor, Tensor], Tensor], given: Tensor, u: Tensor, slope: Tensor, steepness: float | None
) -> Tensor:
    if steepness is not None:
        given = given * (slope / steepness)
    return times(given, u.abs() * slope)


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        slope: Tensor,
        steepness: float | None,
        times: Callable[[Tensor, Tensor], Tensor],
        keep: bool,
    ) -> Tensor:
        kept = _backward(times, torch.ones_like(u), u, slope, steepness) if keep else u
        ctx.save_for_backward(kept, slope)
        ctx.steepness, ctx.times, ctx.is_derivative = steepness, times, keep
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        kept, slope = ctx.saved_tensors
        given = grads[0] * kept if ctx.is_derivative else _backward(ctx.times, grads[0], kept, slope, ctx.steepness)
        return given, None, None, None, None
