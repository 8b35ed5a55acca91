"""One time step after the other: the input of each, the state between them, and a call that runs so."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from snnreg_plugins.spiking.layers import map_tensors
from snnreg_plugins.watching.samples import tensors_in
from snnreg_plugins.watching.steps import CallSteps, holding_steps


class Frames(NamedTuple):
    """An input that differs from step to step, as events do.

    Args:
        values: ``(B, T, ...)``.
        dtype: Type in which whole numbers, such as events in bytes, are computed with.
    """

    values: Tensor
    dtype: torch.dtype

    def of(self, first: int, steps: int = 1) -> Tensor:
        """Give those of some steps, ``(steps * B, ...)``, one step after the other."""
        frames = self.values[:, first : first + steps].transpose(0, 1).flatten(0, 1)
        return frames if frames.is_floating_point() else frames.to(self.dtype)


class NetworkState(NamedTuple):
    """What a step of a network leaves to the next one; made by :meth:`SpikingNetwork.step`, for that network alone.

    Args:
        steps: How many steps led to it.
        values: For each stateful part its potentials, or sums, ``(B, ...)``; None before the first step.
    """

    steps: int
    values: tuple[Any, ...]

    def detach(self) -> NetworkState:
        """Give the same state, through which no gradient flows: for truncated back-propagation through time."""
        return NetworkState(self.steps, map_tensors(Tensor.detach, self.values))

    def require_fitting(self, after: NetworkState) -> None:
        """Raise a ValueError if the step after this state was one of other samples, or of another network."""
        if not self.steps:
            return
        shapes = [tuple(tensor.shape) for tensor in tensors_in(self.values)]
        found = [tuple(tensor.shape) for tensor in tensors_in(after.values)]
        if shapes != found:
            raise ValueError(
                f"Expected argument `state` to be that of the step before, of the same samples, but its tensors are of "
                f"shapes {shapes}, and those of this step of {found}. Begin with state=None for other samples."
            )


class StepByStep:
    """One call of a network: one step after the other, each through all modules as their framework runs them.

    Args:
        encoder: Gives what a step reads of an input.
        body: One time step.
        modules: All modules in it.
        release: What to call on each of them in the end.
    """

    def __init__(
        self,
        encoder: nn.Module,
        body: nn.Module,
        modules: tuple[nn.Module, ...],
        release: Callable[[nn.Module], None],
    ) -> None:
        self.encoder, self.body, self.modules, self.release = encoder, body, modules, release

    def split(self, size: int, steps: int, trained: bool) -> tuple[int, int]:
        """Choose how many samples and steps to run at once."""
        return size, 1

    def least(self, steps: int) -> int:
        """Tell for how many samples it pays at least to run all steps and their gradients."""
        return 2

    def begin(self, given: Any) -> Any:
        """Compute what is the same in all steps."""
        return given if isinstance(given, Frames) else self.encoded(given, CallSteps(1, 0))

    def encoded(self, x: Tensor, held: CallSteps) -> Any:
        """Compute what a step reads of an input."""
        with _holding(held):
            return self.encoder(x)

    def __call__(self, constants: Any, states: Any, steps: int, first_step: int) -> tuple[Tensor, Any]:
        """Run some steps: gives the outputs ``(steps, B, ...)``, and the states."""
        outputs = []
        for step in range(first_step, first_step + steps):
            read = constants
            if isinstance(constants, Frames):
                read = self.encoded(constants.of(step), CallSteps(1, step, events=True))
            # Where a batch runs in parts, calls do not tell the step.
            with _holding(CallSteps(1, step)):
                output, states = self.body(read, states)
            outputs.append(output)
        return torch.stack(outputs), states

    def end(self) -> None:
        """Let modules go of what they kept."""
        # A state kept in a module would hold the graph, and break deepcopy and buffers shared over processes.
        with nullcontext() if torch.compiler.is_compiling() else torch.inference_mode(False):
            for module in self.modules:
                self.release(module)


def _holding(held: CallSteps) -> AbstractContextManager[None]:
    return nullcontext() if torch.compiler.is_compiling() else holding_steps(held)
