r"""Thresholds of a spiking network scaled after it was made, so that it spends what it may.

With every threshold λ of a layer, its initial potential and what a spike is worth times c, and the weights that read
its spikes times c, rates of activation a are :math:`a / (c \lambda)`, and what they stand for is the same: about
:math:`1 / c` of the spikes, each worth c times as much.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from snnreg_plugins.export.counted import largest_within
from snnreg_plugins.frameworks.trained import is_trained
from snnreg_plugins.functional.synapses import is_synaptic
from snnreg_plugins.spiking.layers import InitialState, SpikeMaxPool
from snnreg_plugins.spiking.network import SpikingNetwork


class Rebalance:
    """The thresholds of a network, to be scaled layer by layer, in place, and as often as one likes.

    A layer that reads spikes of several layers at different factors, or of an input code too, keeps its weights, and so
    does one whose weights are parametrized.

    Args:
        network: The network; its neurons are those of an export.

    Example:
        >>> from snnreg_plugins import to_snntorch
        >>> model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> network = to_snntorch(model, torch.rand(100, 2), timesteps=4)
        >>> rebalance = Rebalance(network)
        >>> rebalance.layers
        ['1']
        >>> before = network.levels["1"].clone()
        >>> rebalance.scale({"1": 2.0})
        >>> bool(network.levels["1"] == 2 * before)
        True
    """

    def __init__(self, network: SpikingNetwork) -> None:
        self.network = network
        modules = dict(network.body.named_modules(remove_duplicate=False))
        neurons = network.neurons
        found = {name: neurons.describe(module) for name, module in modules.items()}
        self._dynamics = {name: dynamics for name, dynamics in found.items() if dynamics is not None}
        #: Names of the layers of neurons, in the order in which they run.
        self.layers = [
            str(node.target)
            for node in network.body.graph.nodes
            if node.op == "call_module" and str(node.target) in self._dynamics
        ]
        self._scaled: list[tuple[Tensor, Tensor, frozenset[str | None], bool]] = []
        for name in self.layers:
            holder, own = neurons.holder(modules[name]), frozenset({name})
            if is_trained(holder):  # by the logarithm
                self._add(holder.get_parameter("parametrizations.threshold.original"), own, logarithm=True)
            else:
                self._add(holder.get_buffer("threshold"), own)
            initial = modules.get(f"{name}_initial")
            if isinstance(initial, InitialState):
                self._add(initial.potential, own)
                self._add(initial.level, own)
        for tensor, sources in _readers(network.body, modules, set(self.layers)):
            self._add(tensor, sources)

    def _add(self, tensor: Tensor, sources: frozenset[str | None], logarithm: bool = False) -> None:
        self._scaled.append((tensor, tensor.detach().clone(), sources, logarithm))

    def scale(self, factors: Mapping[str, float]) -> None:
        """Set the factors of layers; those that are not named have 1.

        Args:
            factors: By name of the layer.
        """
        with torch.no_grad():
            for tensor, before, sources, logarithm in self._scaled:
                given = {factors.get(str(source), 1.0) for source in sources if source is not None}
                factor = given.pop() if len(given) == 1 and None not in sources else 1.0
                change = torch.tensor(factor, dtype=torch.float64)
                tensor.copy_(before + change.log() if logarithm else (before if factor == 1 else before * factor))
        self.network.parts_changed()

    def fit(
        self, count: Callable[[], float], budget: float, low: float, high: float, tolerance: float = 0.01
    ) -> dict[str, float] | None:
        """Scale all thresholds by one factor, so that a count is within a budget and uses it.

        Counts jump where many neurons read the same, such as the background of images. Where that leaves more of the
        budget, the thresholds of all layers but the first one are lowered further; then those of all but two, and so
        on.

        Args:
            count: Counts the network as it is.
            budget: What the count is to be at most.
            low: Least factor.
            high: Largest factor.
            tolerance: Share of the budget that may be left.

        Returns:
            The factors by layer, which are set; None if the count is above the budget at the largest one too: then all
            are 1.
        """
        factors: dict[str, float] = {}
        for first in range(min(len(self.layers), _STARTS)):
            layers, before = self.layers[first:], factors

            def counted(tried: float, layers: list[str] = layers, before: dict[str, float] = before) -> float:
                self.scale({**before, **{name: before.get(name, 1.0) * tried for name in layers}})
                return count()

            factor = largest_within(counted, budget, low, high if first == 0 else 1.0, tolerance=tolerance)
            if factor is None:
                break
            factors = {**before, **{name: before.get(name, 1.0) * factor for name in layers}}
            self.scale(factors)
            if count() >= (1 - 2 * tolerance) * budget:
                break
        self.scale(factors)
        return factors or None


_STARTS = 4  # layers from which on thresholds are lowered


def _readers(
    body: fx.GraphModule, modules: dict[str, nn.Module], layers: set[str]
) -> list[tuple[Tensor, frozenset[str | None]]]:
    """Give what multiplies spikes, and whose they are; None stands for those of an input code and others.

    Args:
        body: The time step.
        modules: Its modules by name.
        layers: Names of the neurons.
    """
    held: dict[fx.Node, frozenset[str | None]] = {}
    found: dict[Any, frozenset[str | None]] = {}
    nothing: frozenset[str | None] = frozenset()
    for node in body.graph.nodes:
        sources = frozenset().union(*(held.get(source, nothing) for source in node.all_input_nodes))
        if node.op == "call_module":
            module, name = modules[str(node.target)], str(node.target)
            if is_synaptic(module):
                key = nothing if parametrize.is_parametrized(module, "weight") else module
                found[key] = found.get(key, nothing) | sources
                sources = nothing
            elif name in layers:
                sources = frozenset({name})
            elif isinstance(module, SpikeMaxPool):
                sources = held.get(node.args[0], nothing)
            elif isinstance(module, InitialState):
                sources = nothing
            elif len(node.args) == 2:
                sources = frozenset({None})
        elif node.target is operator.getitem and node.args[1] != 0:
            sources = nothing  # a state
        elif node.target is operator.mul and sources:  # spikes that are read out, times what they are worth
            scale = next((it for it in node.all_input_nodes if it.op == "get_attr"), None)
            if scale is not None:
                found[str(scale.target)] = sources
                sources = nothing
        held[node] = sources
    tensors = []
    for key, sources in found.items():
        if isinstance(key, nn.Module):
            tensors.append((key.weight, sources))
        elif isinstance(key, str):
            tensors.append((operator.attrgetter(key)(body), sources))
    return [(tensor, sources) for tensor, sources in tensors if sources]
