"""Recurrent weights around adaptive neurons."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from snnreg_plugins._checks import as_integer
from snnreg_plugins.neurons.alif import AdaptiveNeuron, ALIFState


class Recurrent(nn.Module):
    r"""Neurons that read each other's spikes of the step before.

    .. math:: I_t = x_t + W z_{t-1}

    with an orthogonal W to begin with, and no bias. What W multiplies counts as synaptic operations, as any layer's.

    Args:
        neuron: An ``ALIF`` of snnTorch that does not keep its state, or an ``ALIFCell`` of Norse.
        features: Number of neurons N.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If the neuron is another one.

    Example:
        >>> import torch
        >>> from snnreg_plugins.neurons import ALIFParameters
        >>> from snnreg_plugins.neurons.norse import ALIFCell
        >>> layer = Recurrent(ALIFCell(ALIFParameters((4,))), 4)
        >>> spikes, state = layer(torch.rand(2, 4))
        >>> spikes, state = layer(torch.rand(2, 4), state)
        >>> spikes.shape
        torch.Size([2, 4])
    """

    def __init__(self, neuron: nn.Module, features: int) -> None:
        super().__init__()
        if not isinstance(neuron, AdaptiveNeuron):
            raise TypeError(
                f"Expected argument `neuron` to be an ALIF of snnreg_plugins.neurons.snntorch or an ALIFCell of "
                f"snnreg_plugins.neurons.norse, but got {type(neuron).__name__}. For Leaky take snntorch.RLeaky."
            )
        if getattr(neuron, "init_hidden", False):
            raise ValueError(
                "Expected argument `neuron` to take its state from this layer, but got one with `init_hidden=True`. "
                "Make it without."
            )
        features = as_integer("features", features)
        self.neuron: Any = neuron
        self.synapses = nn.Linear(features, features, bias=False)
        nn.init.orthogonal_(self.synapses.weight)

    def forward(self, x: Tensor, state: ALIFState | None = None) -> tuple[Tensor, ALIFState]:
        """Take a step.

        Args:
            x: Input current ``(B, N)``.
            state: What the last step left; None begins anew.

        Returns:
            Spikes ``(B, N)``, and the state.
        """
        z = x.new_zeros(x.shape) if state is None else state.z
        spikes, state = self.neuron.advance(x + self.synapses(z), state)
        return spikes, state
