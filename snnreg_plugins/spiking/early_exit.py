"""When a sample needs no more time steps: who leaves within a call, by margins that say so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from snnreg_plugins.spiking.layers import map_tensors


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
