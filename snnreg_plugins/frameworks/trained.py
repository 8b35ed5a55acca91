"""Thresholds and decays that are trained, each by a number that may have any value."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from snnreg_plugins.frameworks.surrogate import Surrogate


class Exponential(nn.Module):
    r"""Parametrizes :math:`\lambda = e^p`: it stays above 0, and moves by shares of itself."""

    def forward(self, logarithm: Tensor) -> Tensor:
        """Give the threshold."""
        return logarithm.exp()

    def right_inverse(self, threshold: Tensor) -> Tensor:
        """Give what is trained."""
        return threshold.log()


class Logistic(nn.Module):
    r"""Parametrizes :math:`\beta = \sigma(p)`, which stays in (0, 1); as in Fang et al. 2021 (PLIF)."""

    def forward(self, logit: Tensor) -> Tensor:
        """Give the decay."""
        return logit.sigmoid()

    def right_inverse(self, beta: Tensor) -> Tensor:
        """Give what is trained."""
        return beta.logit()


class ShareOf(nn.Module):
    r"""Parametrizes the slope of a surrogate, :math:`k = \kappa / \lambda`, of a threshold that is trained.

    Args:
        holder: The module with the threshold.
        steepness: κ.
    """

    def __init__(self, holder: nn.Module, steepness: float) -> None:
        super().__init__()
        self.holder = (holder,)  # in a tuple: it is no part of the surrogate
        self.steepness = steepness

    def forward(self, _: Tensor) -> Tensor:
        """Give the slope; no gradient of the threshold comes from it."""
        threshold = self.holder[0].threshold
        assert isinstance(threshold, Tensor)
        return self.steepness / threshold.detach()


def train_threshold(holder: nn.Module, surrogate: Surrogate) -> None:
    """Make the threshold of a neuron, a buffer, the exponential of a parameter; its surrogate's slope follows.

    Args:
        holder: The module with the buffer ``threshold``.
        surrogate: The neuron's.

    Example:
        >>> import torch
        >>> from snnreg_plugins.frameworks.surrogate import FastSigmoid
        >>> holder = nn.Module()
        >>> holder.register_buffer("threshold", torch.tensor(1.0))
        >>> train_threshold(holder, FastSigmoid(5.0, steepness=5.0))
        >>> [name for name, _ in holder.named_parameters()], holder.threshold.item()
        (['parametrizations.threshold.original'], 1.0)
    """
    _train(holder, "threshold", Exponential())
    if surrogate.steepness is not None:
        parametrize.register_parametrization(surrogate, "slope", ShareOf(holder, surrogate.steepness), unsafe=True)


def train_beta(holder: nn.Module) -> None:
    """Make the decay of a neuron, a buffer, the logistic function of a parameter.

    Args:
        holder: The module with the buffer ``beta``.

    Example:
        >>> import torch
        >>> holder = nn.Module()
        >>> holder.register_buffer("beta", torch.tensor(0.5))
        >>> train_beta(holder)
        >>> [name for name, _ in holder.named_parameters()], holder.beta.item()
        (['parametrizations.beta.original'], 0.5)
    """
    _train(holder, "beta", Logistic())


def is_trained(holder: nn.Module) -> bool:
    """Tell whether the threshold or the decay of a neuron is trained."""
    return parametrize.is_parametrized(holder)


def logarithm_of_threshold(holder: nn.Module) -> nn.Parameter | None:
    """Give what is trained of the threshold that a module holds; None if it holds none, or a fixed one."""
    if not parametrize.is_parametrized(holder, "threshold"):
        return None
    parts: Any = holder.parametrizations
    by = parts["threshold"]
    original = by.original if isinstance(by[0], Exponential) else None
    return original if isinstance(original, nn.Parameter) else None


def _train(holder: nn.Module, name: str, by: nn.Module) -> None:
    value = getattr(holder, name)
    delattr(holder, name)
    holder.register_parameter(name, nn.Parameter(value))
    parametrize.register_parametrization(holder, name, by)
