"""The surrogate gradient of a spike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class FastSigmoid(nn.Module):
    r"""Spike with the gradient of a fast sigmoid.

    .. math:: s = [u > 0] \qquad \frac{\partial s}{\partial u} \approx \frac{1}{(1 + k |u|)^2}

    From Zenke and Ganguli 2018 (SuperSpike). A module, so that networks with it pickle and k goes with their
    state_dict and device; keeps the dtype of its input.

    Args:
        slope: k, in 1 / potential; a number, or a tensor that broadcasts over a sample of the potential.

    Example:
        >>> u = torch.tensor([-1.0, 0.5], requires_grad=True)
        >>> spikes = FastSigmoid(slope=1.0)(u)
        >>> spikes.sum().backward()
        >>> spikes.tolist(), [round(g, 3) for g in u.grad.tolist()]
        ([0.0, 1.0], [0.25, 0.444])
    """

    slope: Tensor

    def __init__(self, slope: float | Tensor) -> None:
        super().__init__()
        self.register_buffer("slope", torch.as_tensor(slope))

    def forward(self, u: Tensor) -> Tensor:
        """Give spikes for ``u``, the potential above threshold."""
        spikes: Tensor = _Spike.apply(u, self.slope)
        return spikes


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(u, slope)
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        u, slope = ctx.saved_tensors
        return grads[0] / (1 + slope * u.abs()).square(), None
