"""Spikes and potentials of all layers over the time steps of a call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from snnreg_plugins.watching.hooks import Hooks, uncompiled_calls
from snnreg_plugins.watching.layers import neuron_layers
from snnreg_plugins.watching.simulated import names_in_dnn


@dataclass(frozen=True)
class Recording:
    """What happened in a call of a :class:`~snnreg_plugins.SpikingNetwork`; made by its ``record``.

    Args:
        spikes: Spikes ``(T, B, ...)`` of each layer of neurons, by the layer's name in the DNN. Of a LeakyReLU or PReLU
            there are two, the second for negative input.
        potentials: Their potentials ``(T, B, ...)``, before the spike takes its threshold away; in units of the
            layer's currents, as its ``threshold`` is. What codes an input without a neuron has none.
        outputs: What the last layer gives in each step, ``(T, B, K)``.
        scores: What is read out of the outputs so far, ``(T, B, K)``: their mean, or what ``network.readout`` says;
            where a part of the DNN comes behind the spikes (``until``), what that makes of it.
    """

    spikes: dict[str, Tensor]
    potentials: dict[str, Tensor]
    outputs: Tensor
    scores: Tensor


class Recorder:
    """Records one call of a network, which takes one step at a time for that.

    Args:
        network: A :class:`~snnreg_plugins.SpikingNetwork`.
        keep: From a layer's name and the spikes of a step, ``(B, ...)``, to what to keep of them.
        potentials: Whether to keep potentials.
    """

    def __init__(
        self, network: Any, keep: Callable[[str, Tensor], Tensor] = lambda name, spikes: spikes, potentials: bool = True
    ) -> None:
        self.network, self._keep, self._potentials = network, keep, potentials
        self._spikes: dict[str, list[Tensor]] = {}
        self._states: dict[str, list[Tensor]] = {}
        self._outputs: list[Tensor] = []

    def run(self, *args: Any, **kwargs: Any) -> Recording:
        """Call the network with these arguments."""
        names = names_in_dnn(self.network)
        checkpointing, self.network.checkpointing = self.network.checkpointing, False  # all is kept anyway
        try:
            with uncompiled_calls(), Hooks() as hooks:
                for path, module in neuron_layers(self.network).items():
                    if not path.startswith("head."):
                        hooks.after(module, partial(self._emitted, names[path]))
                hooks.after(self.network.body, self._stepped)
                scores = self.network(*args, per_step=True, **kwargs)
        finally:
            self.network.checkpointing = checkpointing
        spikes, potentials = (
            {name: torch.stack(steps) for name, steps in found.items()} for found in (self._spikes, self._states)
        )
        return Recording(spikes, potentials, torch.stack(self._outputs), scores)

    def _emitted(self, name: str, _: nn.Module, __: Any, output: Any) -> None:
        spikes, state = output
        self._spikes.setdefault(name, []).append(self._keep(name, spikes))
        if self._potentials and isinstance(state, Tensor):
            self._states.setdefault(name, []).append(state)

    def _stepped(self, _: nn.Module, __: Any, output: Any) -> None:
        self._outputs.append(output[0])
