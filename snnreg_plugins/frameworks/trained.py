"""Thresholds that are trained, by their logarithm: so that they stay above 0, and move by shares of themselves."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils import parametrize


class Exponential(nn.Module):
    r"""Parametrizes :math:`\lambda = e^p`."""

    def forward(self, logarithm: Tensor) -> Tensor:
        """Give the threshold."""
        return logarithm.exp()

    def right_inverse(self, threshold: Tensor) -> Tensor:
        """Give what is trained."""
        return threshold.log()


def train_threshold(holder: nn.Module) -> None:
    """Make the threshold of a neuron, a buffer, the exponential of a parameter.

    Args:
        holder: The module with the buffer ``threshold``.

    Example:
        >>> import torch
        >>> holder = nn.Module()
        >>> holder.register_buffer("threshold", torch.tensor(1.0))
        >>> train_threshold(holder)
        >>> [name for name, _ in holder.named_parameters()], holder.threshold.item()
        (['parametrizations.threshold.original'], 1.0)
    """
    threshold = holder.threshold
    assert isinstance(threshold, Tensor)
    del holder.threshold
    holder.threshold = nn.Parameter(threshold)
    parametrize.register_parametrization(holder, "threshold", Exponential())


def is_trained(holder: nn.Module) -> bool:
    """Tell whether the threshold of a neuron is trained."""
    return parametrize.is_parametrized(holder, "threshold")
