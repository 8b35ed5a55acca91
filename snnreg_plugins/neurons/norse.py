"""Adaptive neurons for Norse."""

from __future__ import annotations

from norse.torch.module.snn import SNNCell
from torch import Tensor

from snnreg_plugins.neurons.alif import AdaptiveNeuron, ALIFParameters, ALIFState, alif_step, as_parameters


class ALIFCell(AdaptiveNeuron, SNNCell):  # type: ignore[misc]
    """Adaptive leaky integrate-and-fire cell, bit-equal to the one for snnTorch; see :func:`alif_step`.

    Use it as any Norse cell, also within ``norse.torch.SequentialState``.

    Args:
        p: The parameters.

    Raises:
        TypeError: If they are something else.

    Example:
        >>> import torch
        >>> cell = ALIFCell(ALIFParameters(tau_m=5.0, tau_adp=10.0, adaptation=4.0))
        >>> state, spikes = None, []
        >>> for _ in range(16):
        ...     z, state = cell(torch.tensor([4.0]), state)
        ...     spikes.append(int(z))
        >>> spikes
        [0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]
    """

    def __init__(self, p: ALIFParameters) -> None:
        super().__init__(alif_step, as_parameters(p).fresh_state, p, dt=1.0)

    def advance(self, current: Tensor, state: ALIFState | None) -> tuple[Tensor, ALIFState]:
        stepped: tuple[Tensor, ALIFState] = self(current, state)
        return stepped
