"""The surrogate gradient of a spike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class FastSigmoid:
    r"""Spike with the gradient of a fast sigmoid.

    .. math:: s = [u > 0] \qquad \frac{\partial s}{\partial u} \approx \frac{1}{(1 + k |u|)^2}

    From Zenke and Ganguli 2018 (SuperSpike). A class at module level, so that networks with it pickle; keeps the
    dtype of its input.

    Args:
        slope: k, in 1 / potential.

    Example:
        >>> u = torch.tensor([-1.0, 0.5], requires_grad=True)
        >>> spikes = FastSigmoid(slope=1.0)(u)
        >>> spikes.sum().backward()
        >>> spikes.tolist(), [round(g, 3) for g in u.grad.tolist()]
        ([0.0, 1.0], [0.25, 0.444])
    """

    def __init__(self, slope: float) -> None:
        self.slope = slope

    def __call__(self, u: Tensor) -> Tensor:
        """Give spikes for ``u``, the potential above threshold."""
        spikes: Tensor = _Spike.apply(u, self.slope)
        return spikes

    def __repr__(self) -> str:
        return f"FastSigmoid(slope={self.slope:g})"


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, slope: float) -> Tensor:
        ctx.save_for_backward(u)
        ctx.slope = slope
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (u,) = ctx.saved_tensors
        return grads[0] / (1 + ctx.slope * u.abs()).square(), None
