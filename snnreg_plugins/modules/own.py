"""Running a spiking network of the user's own, of snnTorch or Norse: from fresh states, over all of its time steps."""

from __future__ import annotations

from itertools import repeat
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from snnreg_plugins.functional.readout import running_scores
from snnreg_plugins.functional.synapses import is_integer_valued
from snnreg_plugins.watching.layers import forget_states
from snnreg_plugins.watching.stepped import CallsSeen, StepsSeen, outputs_of_steps, states_taken


class OwnRun:
    """Calls a spiking network of the user's, and reads scores out of what it gives.

    Args:
        readout: How scores are read out of outputs over time; None for those that the network gives by itself.
        decay: β of the readout ``"potential"``.
        index: Which of several things that a call gives is its output; None if it gives one tensor.
        time_dim: Dimension of time in inputs; None if they have none.
    """

    def __init__(self, readout: str | None, decay: float, index: int | None, time_dim: int | None) -> None:
        self.readout, self.decay, self.index, self.time_dim = readout, decay, index, time_dim
        self._seen: set[str] = set()  # what was looked at once

    def settings(self) -> dict[str, Any]:
        """Give what :meth:`fill_in` takes, as plain data."""
        return {"readout": self.readout, "decay": self.decay, "index": self.index, "time_dim": self.time_dim}

    def fill_in(self, readout: str | None, decay: float, index: int | None, time_dim: int | None) -> None:
        """Take from a file what nobody said."""
        if self.readout is None:
            self.readout, self.decay = readout, decay
        self.index = index if self.index is None else self.index
        self.time_dim = time_dim if self.time_dim is None else self.time_dim

    def __call__(self, network: nn.Module, x: Tensor, timesteps: int | None) -> tuple[Tensor, Tensor | None]:
        """Run all time steps of a batch.

        Args:
            network: The network.
            x: ``(B, ...)``; with a dimension of time, a step reads its own part.
            timesteps: How often to call the network; None for one that runs all steps in one call.

        Returns:
            The scores ``(B, ...)``; and the outputs of single steps, ``(T, B, ...)``, if there are any.
        """
        forget_states(network)
        try:
            outputs = self._whole(network, x) if timesteps is None else self._stepped(network, x, timesteps)
        finally:
            forget_states(network)  # which would hold the graph
        if self.readout is None and timesteps is None:
            return outputs, None
        readout = self.readout or "mean"
        if readout == "spike_count" and "outputs" not in self._seen and not is_integer_valued(outputs):
            raise ValueError(
                "Expected a network whose outputs are spikes, 0 or 1, or counts of them, for readout='spike_count', "
                "but it gives other values. Use 'potential' or 'mean'; of outputs that are pooled, "
                "PopulationCode(pooled='sum')."
            )
        self._seen.add("outputs")
        return self.scores(outputs)[-1], outputs

    def scores(self, outputs: Tensor) -> Tensor:
        """Give the scores after 1, 2, ..., T steps."""
        return running_scores(outputs, self.readout or "mean", self.decay)

    def _whole(self, network: nn.Module, x: Tensor) -> Tensor:
        if "call" in self._seen:
            given = network(x)
        else:
            with CallsSeen(network) as seen:
                given = network(x)
            if seen.at_most_one:
                rank_zero_warn(
                    f"{type(network).__name__} takes a single time step in a call, which its scores are of. Give "
                    "`timesteps` to have it called once a step."
                )
            self._seen.add("call")
        outputs = self._output(given)
        samples = x.shape[int(self.time_dim == 0)]
        if self.readout is not None and (outputs.dim() < 3 or outputs.shape[1] != samples):
            time_first = outputs.dim() > 2 and self.time_dim is None and outputs.shape[:2] == x.shape[:2]
            raise ValueError(
                f"Expected {type(network).__name__} to give the outputs of all time steps, (T, B, ...), for "
                f"readout={self.readout!r}, but got the shape {tuple(outputs.shape)} for {samples} samples. "
                + ("Give time_dim=0 if inputs are (T, B, ...), too; else leave " if time_first else "Leave ")
                + "`readout` out if these are scores, or give `timesteps` if it takes one step a call."
            )
        return outputs

    def _stepped(self, network: nn.Module, x: Tensor, timesteps: int) -> Tensor:
        frames = repeat(x, timesteps) if self.time_dim is None else iter(self._frames(x, timesteps))
        takes = states_taken(network) > 0

        def read(output: Any) -> Tensor:
            # What is handed back to a network is none of its outputs.
            of_states = takes and self.index is None and isinstance(output, tuple) and len(output) > 1
            return self._output(output[0] if of_states else output)

        if "outputs" in self._seen:
            return torch.stack([read(output) for output in outputs_of_steps(network, frames)])
        with StepsSeen(network) as seen:
            outputs = torch.stack([read(output) for output in outputs_of_steps(network, frames)])
        if seen.begin_anew:
            raise ValueError(
                f"Expected {type(network).__name__} to go on from its last time step in each of {timesteps} calls, but "
                "it begins from fresh states. Keep the states in the neurons (init_hidden=True in snnTorch), or let "
                "forward take and return them, (x, state=None) -> (output, state); or run all steps in forward and "
                "leave `timesteps` out."
            )
        return outputs

    def _frames(self, x: Tensor, timesteps: int) -> tuple[Tensor, ...]:
        assert self.time_dim is not None
        if x.shape[self.time_dim] != timesteps:
            raise ValueError(
                f"Expected argument `timesteps` to be {x.shape[self.time_dim]}, the time steps of the data along "
                f"dimension {self.time_dim}, but got {timesteps}."
            )
        return x.unbind(self.time_dim)

    def _output(self, given: Any) -> Tensor:
        """Pick the output of a call."""
        if self.index is not None:
            if not isinstance(given, (tuple, list)) or self.index >= len(given):
                got = f"{len(given)} things" if isinstance(given, (tuple, list)) else type(given).__name__
                raise ValueError(
                    f"Expected the network to give at least {self.index + 1} things for output_index={self.index}, but "
                    f"got {got}. Count from 0; leave it out for a network that gives one tensor."
                )
            given = given[self.index]
        if not isinstance(given, Tensor):
            raise TypeError(
                f"Expected the network to give a tensor for a batch, but got {type(given).__name__}. Of several things "
                "name one by `output_index`, such as 0 for the spikes of (spikes, potentials)."
            )
        return given
