"""Stepping a network through time that takes one time step a call."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from snnreg_plugins.watching.hooks import Hooks
from snnreg_plugins.watching.layers import is_spiking_neuron, synaptic_layers, time_dim
from snnreg_plugins.watching.samples import SampleCounter

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def outputs_of_steps(model: nn.Module, frames: Iterable[Tensor]) -> Iterator[Any]:
    """Call a network once a time step, and give what it returns.

    Where its forward takes a state, as ``forward(x, state=None)`` or with several, it gets back what it returned behind
    its output in the step before: ``(output, state)``.

    Args:
        model: The network.
        frames: What each step reads.

    Example:
        >>> class Sum(nn.Module):
        ...     def forward(self, x, state=0):
        ...         return x + state, x + state
        >>> [output[0] for output in outputs_of_steps(Sum(), [1, 2, 3])]
        [1, 3, 6]
    """
    takes = states_taken(model)
    state: tuple[Any, ...] = ()
    for frame in frames:
        output = model(frame, *state)
        state = output[1 : 1 + takes] if isinstance(output, tuple) else ()
        yield output


def states_taken(model: nn.Module) -> int:
    """Count the states that a network's forward takes behind its input."""
    return sum(one.kind in _POSITIONAL for one in inspect.signature(model.forward).parameters.values()) - 1


class StepsSeen:
    """Tells whether the calls of a network go on from each other, while it is stepped; a context manager.

    Args:
        network: The network.
    """

    def __init__(self, network: nn.Module) -> None:
        self._new: list[int] = []
        self._counter = SampleCounter(network, synaptic_layers(network), self._ended, many_steps=True)

    def _ended(self, samples: int | None) -> None:
        self._new += [] if samples is None else [samples]

    @property
    def begin_anew(self) -> bool:
        """Whether some call but the first began from fresh states."""
        return any(self._new[1:])

    def __enter__(self) -> StepsSeen:
        return self

    def __exit__(self, *_: object) -> None:
        self._counter.hooks.remove()


class CallsSeen:
    """Tells how often a network calls its neurons; a context manager.

    Args:
        network: The network.
    """

    def __init__(self, network: nn.Module) -> None:
        self._calls: dict[nn.Module, int] = {}
        self._hooks = Hooks(many_steps=True)
        for module in network.modules():
            if is_spiking_neuron(module):
                self._hooks.after(module, self._called)

    def _called(self, module: nn.Module, *_: Any) -> None:
        steps = 2 if time_dim(module) is not None else 1  # as many as its input holds
        self._calls[module] = self._calls.get(module, 0) + steps

    @property
    def at_most_one(self) -> bool:
        """Whether none of them took more than one time step."""
        return max(self._calls.values(), default=2) == 1

    def __enter__(self) -> CallsSeen:
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.remove()
