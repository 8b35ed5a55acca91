"""When a sample needs no more time steps."""

from __future__ import annotations

import torch
from torch import Tensor

from snnreg_plugins._batches import Calibration, inputs_of
from snnreg_plugins._checks import as_number
from snnreg_plugins._models import device_of
from snnreg_plugins.spiking.network import SpikingNetwork, margin


def exit_margins(network: SpikingNetwork, calibration: Calibration, agreement: float = 0.99) -> tuple[float, ...]:
    r"""Find margins at which a sample may leave, such that its class is that of all T steps nearly always.

    Step by step, of the calibration samples that are still running, those whose margin

    .. math:: \text{scores}_t^{(1)} - \text{scores}_t^{(2)} \ge m_t

    leave, with the smallest :math:`m_t` at which the share of them that have the class of step T by then is at least
    ``agreement``. The same is expected of other data of that kind, within the noise of so many samples.

    Args:
        network: The spiking network; margins are for its ``timesteps``.
        calibration: Inputs that the network was not trained on, as for :func:`~snnreg_plugins.to_snntorch`.
        agreement: Share of the samples that leave at a step that are to keep their class, in (0, 1].

    Returns:
        :math:`m_1, \dots, m_{T-1}`; infinite where nobody may leave. To be set as ``network.exit_margins``.

    Raises:
        ValueError: If ``agreement`` is out of range, the network has fewer than two scores, or there is no sample.

    Example:
        >>> from torch import nn
        >>> from snnreg_plugins import TimeSteps, to_snntorch
        >>> x = torch.rand(200, 2)
        >>> network = to_snntorch(nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3)), x, timesteps=8)
        >>> network.exit_margins = exit_margins(network, x, agreement=0.95)
        >>> with torch.no_grad(), TimeSteps(network) as steps:
        ...     scores = network(x)
        >>> bool(1 <= steps.compute() <= 8)
        True
    """
    agreement = as_number("agreement", agreement, "(0, 1]")
    device = device_of(network)
    margins, agrees = [], []
    with torch.no_grad():
        for batch in inputs_of(calibration, device):
            running = network(batch, per_step=True)
            margins.append(torch.stack([margin(scores) for scores in running]))
            agrees.append(running.argmax(2) == running[-1].argmax(1))
    if not margins:
        raise ValueError("Expected argument `calibration` to hold at least one sample, but it is empty.")
    found, left = [], torch.ones_like(torch.cat(agrees, 1)[0])
    for of_step, right in zip(torch.cat(margins, 1)[:-1], torch.cat(agrees, 1)[:-1], strict=True):
        least = _least(of_step[left], right[left], agreement)
        found.append(least)
        left &= of_step < least
    return tuple(found)


def _least(margins: Tensor, right: Tensor, agreement: float) -> float:
    """Give the smallest margin at and above which at least that share is right."""
    ordered, order = margins.sort(descending=True)
    shares = right[order].cumsum(0).double() / torch.arange(1, len(order) + 1, device=order.device)
    # Only at the last of equal margins is the share that of all with at least this margin.
    last = torch.ones_like(ordered, dtype=torch.bool)
    last[:-1] = ordered[:-1] != ordered[1:]
    safe = ordered[last & (shares >= agreement)]
    return float(safe[-1]) if len(safe) else torch.inf
