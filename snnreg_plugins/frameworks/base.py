"""What is to be said of a framework: how its neurons are recognised, and how those of an export are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from snnreg_plugins.frameworks.surrogate import SURROGATES, Surrogate


class Dynamics(NamedTuple):
    r"""What a soft-reset neuron does, for code that runs many steps of it.

    .. math:: v_t = (\beta v_{t-1} + I_t) - \lambda [v_{t-1} > \lambda] \qquad s_t = [v_t > \lambda]

    in this order of the sums, with the gradient of a surrogate.

    Args:
        threshold: λ.
        beta: β.
        surrogate: From potentials above the threshold to spikes. All three broadcast over a sample.
    """

    threshold: Tensor
    beta: Tensor
    surrogate: Surrogate


#: From a neuron to what it does; None for one that is to be called step by step.
Describe: TypeAlias = Callable[[nn.Module], Dynamics | None]


def itself(neuron: nn.Module) -> nn.Module:
    """Give the neuron: for those that keep their threshold in themselves."""
    return neuron


def release_nothing(_: nn.Module) -> None:
    """Release nothing: for neurons that keep no state in themselves."""


@dataclass(frozen=True)
class Neurons:
    """The neurons that an export to a framework is made of; module-level functions, so that networks pickle.

    Args:
        name: Name of the framework.
        make: From threshold, beta and surrogate, as in :class:`Dynamics`, to a neuron layer of these dynamics:
            ``(current, state) -> (spikes, state)``, called as ``neuron(current, state)``, with ``threshold`` for an
            attribute. It shares no memory with the tensors, and takes the surrogate for its own.
        describe: From a module to its dynamics; None unless it does just what ``make`` makes.
        release: What to call on every module after steps, to let go of states it kept.
        holder: From a neuron to the module whose buffers its threshold and beta are.
    """

    name: str
    make: Callable[[Tensor, Tensor, Surrogate], nn.Module]
    describe: Describe
    release: Callable[[nn.Module], None] = release_nothing
    holder: Callable[[nn.Module], nn.Module] = itself


@dataclass(frozen=True)
class Target:
    """What an export puts in the place of activations.

    Args:
        neurons: Those of the framework.
        beta: Decay of the potential per step.
        surrogate: Name of the surrogate gradient.
        surrogate_slope: Its slope, in 1 / λ.
    """

    neurons: Neurons
    beta: float
    surrogate: str
    surrogate_slope: float

    @property
    def name(self) -> str:
        """Name of the framework."""
        return self.neurons.name

    def neuron(self, threshold: Tensor, places: Sequence[int] = ()) -> nn.Module:
        """Make a neuron layer of a threshold, which may differ from place to place; with decays of shape ``places``."""
        beta = torch.full(tuple(places), self.beta, dtype=threshold.dtype, device=threshold.device)
        surrogate = SURROGATES[self.surrogate](self.surrogate_slope / threshold, self.surrogate_slope)
        return self.neurons.make(threshold, beta, surrogate)


def one_step(_: nn.Module) -> None:
    """Tell that a neuron takes one time step at a call."""


@dataclass(frozen=True)
class Framework:
    """A framework, told by its own names: nothing is imported to recognise its neurons.

    Args:
        name: Its name, which is that of its package.
        stateful: Names of the classes from which all of its modules derive that keep a state over time steps.
        non_spiking: Of these, classes that give no spikes.
        parallel: Of the stateful ones, classes that take all steps in one call, and begin each from a fresh state.
        decaying: Of these, classes whose own products are decays alone, and no synapses.
        one_to_one: Classes of synapses, each of which has one target.
        without_leak: Classes of neurons that keep their whole potential.
        time_dim: From a neuron to the dimension of time in its output; None if it takes one step at a call.
        forget: Name of the method by which a module forgets its state; empty if it keeps none in itself.
        states: Names of tensors that a step leaves in a module, and that are empty before the first one.
        load: Imports the framework, and gives the neurons of an export to it; None if there is no export to it.
    """

    name: str
    stateful: Set[str]
    non_spiking: Set[str] = frozenset()
    parallel: Set[str] = frozenset()
    decaying: Set[str] = frozenset()
    one_to_one: Set[str] = frozenset()
    without_leak: Set[str] = frozenset()
    time_dim: Callable[[nn.Module], int | None] = one_step
    forget: str = ""
    states: Set[str] = frozenset()
    load: Callable[[], Neurons] | None = None

    def has(self, module: nn.Module, names: Set[str]) -> bool:
        """Tell whether a module is of one of these classes of the framework, or derives from one."""
        return any(base.__name__ in names and package_of(base) == self.name for base in type(module).__mro__)


def package_of(kind: type) -> str:
    """Give the name of the package that a class is from."""
    return kind.__module__.partition(".")[0]
