"""Norse: a soft-reset cell on Norse's own base class, which has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from norse.torch.module.snn import SNNCell
from torch import Tensor, nn

from snnreg_plugins.frameworks.base import Dynamics, Neurons
from snnreg_plugins.frameworks.surrogate import Surrogate, surrogate_of


class SoftResetParameters(nn.Module):
    """Parameters of a :class:`SoftResetCell`: a module, so that they are saved, moved and trained with it.

    Args:
        threshold: λ, a scalar or shaped to broadcast over a sample.
        beta: Decay of the potential per step; shaped alike.
        surrogate: From the potential above threshold to spikes.
    """

    threshold: Tensor
    beta: Tensor

    def __init__(self, threshold: Tensor, beta: float | Tensor, surrogate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.register_buffer("threshold", threshold)
        self.register_buffer("beta", torch.as_tensor(beta, dtype=threshold.dtype, device=threshold.device))
        self.surrogate = surrogate


def soft_reset_step(current: Tensor, v: Tensor, p: SoftResetParameters, dt: float = 1.0) -> tuple[Tensor, Tensor]:
    r"""One step of a leaky integrate-and-fire neuron with soft reset, a step after the spike.

    .. math:: v_t = \beta v_{t-1} + I_t - \lambda [v_{t-1} > \lambda] \qquad s_t = [v_t > \lambda]

    Args:
        current: I, shape ``(B, ...)``.
        v: The potential that the last step left.
        p: The parameters.
        dt: Not used: a step is a step.

    Returns:
        Spikes and potential, both of the shape of ``current``.
    """
    # No gradient flows through the reset, and the order of the sums is that of snntorch.Leaky.
    fired = (v > p.threshold).to(v.dtype)
    v = p.beta * v + current - fired * p.threshold
    return p.surrogate(v - p.threshold), v


class SoftResetCell(SNNCell):  # type: ignore[misc]
    r"""Leaky integrate-and-fire cell with soft reset, bit-equal to ``snntorch.Leaky``; see :func:`soft_reset_step`.

    Use it as any Norse cell, also within ``norse.torch.SequentialState``.

    Args:
        p: The parameters.

    Example:
        >>> from snnreg_plugins.frameworks.surrogate import FastSigmoid
        >>> cell = SoftResetCell(SoftResetParameters(torch.tensor(1.0), 1.0, FastSigmoid(5.0)))
        >>> state, spikes = None, []
        >>> for _ in range(4):
        ...     s, state = cell(torch.tensor([0.6]), state)
        ...     spikes.append(int(s))
        >>> spikes
        [0, 1, 0, 1]
    """

    def __init__(self, p: SoftResetParameters) -> None:
        super().__init__(soft_reset_step, torch.zeros_like, p, dt=1.0)

    @property
    def threshold(self) -> Tensor:
        """λ, under the name that all neurons of exported networks have."""
        threshold: Tensor = self.p.threshold
        return threshold


def make(threshold: Tensor, beta: Tensor, surrogate: Surrogate) -> nn.Module:
    """Make a :class:`SoftResetCell` of these dynamics."""
    return SoftResetCell(SoftResetParameters(threshold.clone(), beta.clone(), surrogate))


def describe(module: nn.Module) -> Dynamics | None:
    """Give the dynamics of a :class:`SoftResetCell`; None for any other module."""
    if type(module) is not SoftResetCell or surrogate_of(module.p.surrogate) is None:
        return None
    return Dynamics(module.p.threshold, module.p.beta, module.p.surrogate)


def holder(module: Any) -> nn.Module:
    """Give the parameters of a :class:`SoftResetCell`."""
    parameters: nn.Module = module.p
    return parameters


NEURONS = Neurons("norse", make, describe, holder=holder)
