"""A spiking network that tells symbols from received samples, behind a learned input code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from snnreg_plugins._checks import as_flag, as_integer, as_number
from snnreg_plugins._imports import needed
from snnreg_plugins.spiking.encoder import TableEncoder


class SpikingEqualizer(nn.Module):
    r"""A learned input code, a layer of snnTorch's leaky neurons, and a readout that does not spike.

    In step t the hidden neurons read the patterns of all taps and, where ``recurrent``, their own spikes of the step
    before; scores are the mean over the steps of what the last layer gives:

    .. math:: c_t = W x_t + V s_{t-1} \qquad y = \frac{1}{T} \sum_t U s_t

    Args:
        taps: Received samples around a symbol.
        classes: Different symbols K.
        hidden: Hidden neurons.
        lines: Input lines of a tap.
        timesteps: Time steps T.
        bits: Bits that a sample is quantized to.
        limit: Samples are quantized between -limit and limit.
        pattern_bits: Bits of an entry of the table: 1 for spikes; real-valued if None.
        beta: Decay of the potential in a step, to begin with; learned for each neuron.
        recurrent: Whether hidden neurons read each other's spikes.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> SpikingEqualizer()(torch.randn(5, 41)).shape
        torch.Size([5, 4])
    """

    def __init__(
        self,
        taps: int = 41,
        classes: int = 4,
        hidden: int = 80,
        lines: int = 8,
        timesteps: int = 10,
        bits: int = 8,
        limit: float = 4.0,
        pattern_bits: int | None = None,
        beta: float = 0.8,
        recurrent: bool = True,
    ) -> None:
        super().__init__()
        taps, classes, hidden = as_integer("taps", taps), as_integer("classes", classes), as_integer("hidden", hidden)
        limit, beta = as_number("limit", limit, "(0, inf)"), as_number("beta", beta, "[0, 1]")
        with needed("SpikingEqualizer", "snntorch", "snntorch"):
            import snntorch
        self.encoder = TableEncoder(lines, timesteps, bits, -limit, limit, pattern_bits=pattern_bits)
        self.fc1 = nn.Linear(taps * self.encoder.lines, hidden)
        self.recurrent = nn.Linear(hidden, hidden, bias=False) if as_flag("recurrent", recurrent) else None
        self.neurons = snntorch.Leaky(torch.full((hidden,), beta), learn_beta=True)
        self.fc2 = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Give scores ``(B, K)`` for received samples ``(B, taps)``."""
        spikes = potential = x.new_zeros(len(x), self.fc1.out_features, dtype=self.fc1.weight.dtype)
        total: Any = 0.0
        for pattern in self.encoder(x):
            current = self.fc1(pattern)
            if self.recurrent is not None:
                current = current + self.recurrent(spikes)
            spikes, potential = self.neurons(current, potential)
            total = total + self.fc2(spikes)
        scores: Tensor = total / self.encoder.timesteps
        return scores
