"""A spiking network that tells symbols from received samples, behind a learned input code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from snnreg_plugins._checks import as_flag, as_integer, as_number
from snnreg_plugins._imports import needed
from snnreg_plugins.functional.symbols import bit_error_rate
from snnreg_plugins.modules.classifier import Classifier
from snnreg_plugins.modules.costs import LoggedCosts
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

            from snnreg_plugins.frameworks.snntorch import release
        self._release = release
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
            spikes = spikes.to(current.dtype)
            total = total + self.fc2(spikes)
        self._release(self.neurons)  # else it keeps the last potential, and copies and averages of weights fail
        scores: Tensor = total / self.encoder.timesteps
        return scores


class Equalizer(LoggedCosts, Classifier):
    """Train a network to tell which symbol was sent.

    Logs what :class:`Classifier` does; ``val/ser`` and ``val/ber``, the shares of symbols and of their Gray-coded bits
    that are wrong; and what a sample costs: ``val/sops``, ``val/effective_macs``, and ``val/spike_rate``
    (spikes/neuron/step); or ``test/...``.

    Args:
        network: From samples ``(B, taps)`` to scores ``(B, K)``, a spiking network such as :class:`SpikingEqualizer`.
        optimizer: From parameters to an optimizer; Adam with its defaults if None.
        scheduler: From an optimizer to a learning-rate scheduler.
        loss: From outputs and targets to a loss; cross-entropy if None.
        scheduler_interval: When the scheduler is stepped: every ``"epoch"`` or every ``"step"``.

    Example:
        >>> Equalizer(SpikingEqualizer(taps=5))(torch.zeros(2, 5)).shape
        torch.Size([2, 4])
    """

    @override
    def _log_scores(self, stage: str, outputs: Tensor, y: Tensor, size: int, ending: str = "") -> None:
        super()._log_scores(stage, outputs, y, size, ending)
        decided = outputs.argmax(1)
        rates = {"ser": (decided != y).float().mean(), "ber": bit_error_rate(decided, y, outputs.shape[1])}
        for name, rate in rates.items():
            self.log(f"{stage}/{name}{ending}", rate, prog_bar=True, batch_size=size, sync_dist=True)

    @override
    def _log_cost(self, stage: str) -> None:
        self._log_per_sample(f"{stage}/effective_macs", self._operations.total("effective_macs"))
        super()._log_cost(stage)
