"""How an input becomes spikes."""

from __future__ import annotations

import torch
from torch import Tensor

from snnreg_plugins.watching.layers import ActivityLayer


class PoissonCoder(ActivityLayer):
    r"""Spikes at random, as often as the input is large (rate coding).

    .. math:: s_t \sim \text{sign}(x) \, \text{Bernoulli}(\min(|x| / x_{\max}, 1))

    A negative input gives spikes of -1. The same spikes as those of ``snntorch.spikegen.rate`` from the same seed.

    Args:
        largest: :math:`x_{\max}`.

    Example:
        >>> coder, x = PoissonCoder(largest=2.0), torch.tensor([[0.0, 2.0, -2.0]])
        >>> coder(x, None)[0]
        tensor([[ 0.,  1., -1.]])
    """

    largest: Tensor

    def __init__(self, largest: float) -> None:
        super().__init__()
        self.register_buffer("largest", torch.tensor(largest))

    def forward(self, x: Tensor, state: None) -> tuple[Tensor, None]:
        """Give the spikes of a step for ``(B, ...)``; there is no state."""
        drawn = torch.bernoulli((x.abs() / self.largest).clamp_max(1).nan_to_num())
        return drawn * x.sign() + (x - x), None  # NaN, if it is not finite

    def extra_repr(self) -> str:
        """Show the largest input."""
        return f"largest={float(self.largest):.4g}"


class LatencyCoder(ActivityLayer):
    r"""One spike for each input, the sooner the larger it is (time to first spike).

    .. math:: t = \left\lfloor (T - 1) (1 - |x| / x_{\max}) \right\rceil

    The times are those of ``snntorch.spikegen.latency`` with ``linear=True, normalize=True``, but inputs of 0 never
    spike, and a negative one gives a spike of -1. Rates do not tell inputs apart any more: a network that reads such
    spikes is to be fine-tuned.

    Args:
        largest: :math:`x_{\max}`.
        timesteps: T, the steps that the spikes spread over.

    Example:
        >>> coder, state = LatencyCoder(largest=1.0, timesteps=3), None
        >>> for _ in range(3):
        ...     spikes, state = coder(torch.tensor([[0.0, 0.5, 1.0]]), state)
        ...     print(spikes.tolist())
        [[0.0, 0.0, 1.0]]
        [[0.0, 1.0, 0.0]]
        [[0.0, 0.0, 0.0]]
    """

    largest: Tensor

    def __init__(self, largest: float, timesteps: int) -> None:
        super().__init__()
        self.register_buffer("largest", torch.tensor(largest))
        self.timesteps = timesteps

    def forward(self, x: Tensor, state: tuple[Tensor, int] | None) -> tuple[Tensor, tuple[Tensor, int]]:
        """Give the spikes of a step for ``(B, ...)``; the state is when each is due, and the step."""
        if state is None:
            due = ((self.timesteps - 1) * (1 - (x.abs() / self.largest).clamp_max(1))).round()
            state = due.masked_fill(x == 0, -1), 0
        due, step = state
        return (due == step).to(x.dtype) * x.sign(), (due, step + 1)

    def extra_repr(self) -> str:
        """Show the largest input and the steps."""
        return f"largest={float(self.largest):.4g}, timesteps={self.timesteps}"
