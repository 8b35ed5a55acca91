"""When a sample needs no more time steps: who leaves within a call, and the margins that say so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from snnreg_plugins._batches import Calibration, inputs_of
from snnreg_plugins._checks import as_number
from snnreg_plugins._models import device_of, eval_and_back
from snnreg_plugins.spiking.layers import map_tensors
from snnreg_plugins.watching.simulated import SimulatedNetwork


def margin(scores: Tensor) -> Tensor:
    r"""Give how far the best score of each sample is ahead of the second best.

    Args:
        scores: ``(B, K)``, with K of at least 2.

    Returns:
        ``(B,)``; not below 0.

    Raises:
        ValueError: If there are not two scores to compare.

    Example:
        >>> margin(torch.tensor([[0.25, 1.0, 0.5], [2.0, 2.0, 0.0]]))
        tensor([0.5000, 0.0000])
    """
    if scores.dim() != 2 or scores.shape[1] < 2:
        raise ValueError(
            f"Expected scores of at least two classes, (B, K), to tell a margin, but got shape {tuple(scores.shape)}."
        )
    best = scores.topk(2, dim=1).values
    return best[:, 0] - best[:, 1]


class EarlyExit:
    """The samples of one call that still run, and the scores of those that left.

    Args:
        margins: At step n, samples leave whose best score is ahead of the second best by the n-th of them; at further
            steps nobody does.
        timesteps: At this step, all leave.
        samples: Number of samples.
        device: Where they are.
    """

    scores: Tensor

    def __init__(self, margins: Sequence[float], timesteps: int, samples: int, device: torch.device) -> None:
        self.margins, self.timesteps = margins, timesteps
        self._running = torch.arange(samples, device=device)
        self.steps_taken = torch.zeros_like(self._running)

    @property
    def samples(self) -> int:
        """Number of samples that still run."""
        return len(self._running)

    def require_samples(self, constants: Any) -> None:
        """Raise a ValueError unless all that a step reads has a row for each sample."""
        if not all(isinstance(constant, Tensor) for constant in constants):
            raise ValueError(
                "Expected a network that takes any batch to use `exit_margins`, but this one reads the size of its "
                "input, which stays as samples leave. Write x.flatten(1) for x.view(x.size(0), -1) in the DNN."
            )

    def leave(self, mean: Tensor, step: int, values: Any) -> Any:
        """Let those samples leave whose margin is safe.

        Args:
            mean: Scores of those that run, ``(B, K)``.
            step: The step that they took, from 1.
            values: What steps read of them: tensors ``(B, ...)``, nested in tuples and alike.

        Returns:
            The values of those that go on.
        """
        last = step == self.timesteps
        if step > len(self.margins) and not last:
            return values
        if self.samples == len(self.steps_taken):  # nobody has left before
            self.scores = torch.empty_like(mean)
        ahead = margin(mean)
        # At the last step all leave, those whose margin is no number too.
        sure = torch.ones_like(ahead, dtype=torch.bool) if last else ahead >= self.margins[step - 1]
        leaving = self._running[sure]
        self.scores[leaving], self.steps_taken[leaving] = mean[sure], step
        if not len(leaving):
            return values
        self._running = self._running[~sure]
        return map_tensors(lambda rows: rows[~sure], values)


def checked_margins(value: Sequence[float]) -> tuple[float, ...]:
    """Give margins as numbers, or raise a ValueError."""
    try:
        margins = tuple(float(margin) for margin in value)
    except (TypeError, ValueError):
        margins = (torch.nan,)
    if any(margin != margin for margin in margins):
        raise ValueError(
            f"Expected argument `exit_margins` to be numbers, one for each step, but got {value!r}. "
            "export.exit_margins() finds some."
        )
    return margins


def exit_margins(network: SimulatedNetwork, calibration: Calibration, agreement: float = 0.99) -> tuple[float, ...]:
    r"""Find margins at which a sample may leave, such that its class is that of all T steps nearly always.

    Step by step, of the calibration samples that are still running, those whose margin

    .. math:: \text{scores}_t^{(1)} - \text{scores}_t^{(2)} \ge m_t

    leave, with the smallest :math:`m_t` at which the share of them that have the class of step T by then is at least
    ``agreement``. The same is expected of other data of that kind, within the noise of so many samples.

    Args:
        network: A :class:`~snnreg_plugins.SpikingNetwork`; margins are for its ``timesteps``.
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
    if not isinstance(network, SimulatedNetwork):
        raise TypeError(f"Expected argument `network` to be a SpikingNetwork, but got {type(network).__name__}.")
    device = device_of(network)
    margins, agrees = [], []
    with torch.no_grad(), eval_and_back(network):
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
