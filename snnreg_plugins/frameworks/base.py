"""What a framework must say of its neurons."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeAlias

from torch import Tensor, nn


class Dynamics(NamedTuple):
    r"""What a soft-reset neuron does, for code that runs many steps of it.

    .. math:: v_t = (\beta v_{t-1} + I_t) - \lambda [v_{t-1} > \lambda] \qquad s_t = [v_t > \lambda]

    in this order of the sums, with the surrogate gradient :math:`1 / (1 + k |v_t - \lambda|)^2`.

    Args:
        threshold: λ.
        beta: β.
        slope: k. All three broadcast over a sample.
    """

    threshold: Tensor
    beta: Tensor
    slope: Tensor


#: From a neuron to what it does; None for one that is to be called step by step.
Describe: TypeAlias = Callable[[nn.Module], Dynamics | None]


class NeuronTraits(NamedTuple):
    """What to know of a framework's neurons; module-level functions, so that they pickle.

    Args:
        release: What to call on every module after steps, to let go of states it kept.
        describe: From a neuron to its dynamics.
    """

    release: Callable[[nn.Module], None]
    describe: Describe


def release_nothing(_: nn.Module) -> None:
    """Release nothing: for neurons that keep no state in themselves."""


class Target(Protocol):
    """A framework: how to make its neurons, and how to make them let go of kept states."""

    name: str

    def neuron(self, threshold: Tensor) -> nn.Module:
        """Make a neuron layer: ``(current, state) -> (spikes, state)``, called as ``neuron(current, state)``."""

    @property
    def kind(self) -> NeuronTraits:
        """What to know of the neurons."""
