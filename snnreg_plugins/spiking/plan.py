"""Plans, once a network, how each part of its time step is computed for many steps at once."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from snnreg_plugins._torch import children
from snnreg_plugins.frameworks.base import Describe
from snnreg_plugins.functional.synapses import SYNAPTIC_LAYERS, OneToOne
from snnreg_plugins.spiking.coding import PoissonCoder
from snnreg_plugins.spiking.layers import (
    AdaptiveSumPool,
    BatchNorm,
    ChannelAffine,
    Current,
    InitialState,
    SpikeMaxPool,
    SumOver,
    SumPool,
)

# Modules for which steps can be further samples: that treat each sample alone, or take statistics over all of them.
_SAMPLEWISE = (
    *SYNAPTIC_LAYERS,
    AdaptiveSumPool,
    BatchNorm,
    ChannelAffine,
    Current,
    SumOver,
    SumPool,
    nn.Flatten,
    nn.Identity,
    nn.SyncBatchNorm,
    nn.Upsample,
)
_POINTWISE = (operator.add, operator.sub, operator.mul, operator.truediv, operator.neg)
# Modules whose output is a tensor of its own, which may be written over.
_FRESH = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, OneToOne, Current)


class Computed(NamedTuple):
    """How a node of the time step is computed.

    Args:
        node: The node.
        how: The method of :class:`~snnreg_plugins.spiking.engine.Chunk` that computes it.
        unused: Nodes whose values nothing needs any more then.
    """

    node: fx.Node
    how: str
    unused: list[fx.Node]


def all_modules(module: nn.Module) -> list[nn.Module]:
    """List a module and all in it; ``module.modules()`` takes a while in a network that takes a millisecond."""
    found = [module]
    for part in found:
        found.extend(child for child in children(part) if child is not None)
    return found


class Plan:
    """How to run the time step of a network for many steps: each layer for all of them, then the next layer.

    Synaptic layers take the steps as further samples. Neurons go through the steps in one compiled loop, or with
    operations in place; neurons of an unknown kind, and whatever else may not take steps for samples, step by step.

    Args:
        body: One time step, ``(constants, states) -> (output, states)``.
        describe: From a neuron module to its :class:`Dynamics`.
    """

    def __init__(self, body: fx.GraphModule, describe: Describe) -> None:
        self.body = body
        self.describe = describe
        self.parts = all_modules(body)
        self.modules = dict(body.named_modules(remove_duplicate=False))
        # Spikes that are drawn at random are drawn for a whole batch, as one step at a time draws them.
        self.draws = any(isinstance(module, PoissonCoder) for module in self.modules.values())
        self.sizes: dict[tuple[int, ...], int] = {}  # of the largest tensor of a sample, by the input's shape
        self.reads_tensors = False  # whether nothing but tensors of the input's frames is read, as far as it is known
        last_use = {source: node for node in body.graph.nodes for source in node.all_input_nodes}
        unused: dict[fx.Node, list[fx.Node]] = {}
        for source, node in last_use.items():
            unused.setdefault(node, []).append(source)
        self._fresh = {node for node in body.graph.nodes if self._is_fresh(node)}
        self.nodes = [Computed(node, self._how(node), unused.get(node, [])) for node in body.graph.nodes]

    def is_of(self, body: fx.GraphModule) -> bool:
        """Tell whether the body still has the modules that this was planned for."""
        parts = all_modules(body)
        return len(parts) == len(self.parts) and all(map(operator.is_, parts, self.parts))

    def _how(self, node: fx.Node) -> str:
        if node.op in ("placeholder", "get_attr", "output"):
            return node.op
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            if isinstance(module, InitialState):
                return "initial_state"
            if len(node.args) == 1:
                return "samplewise" if isinstance(module, _SAMPLEWISE) else "step_by_step"
            return "max_pool" if isinstance(module, SpikeMaxPool) else "neurons"
        if node.op == "call_function" and node.target in _POINTWISE:
            return "pointwise"
        if node.target in (torch.flatten, "flatten") and len(node.args) == 2 and not node.kwargs:
            return "flatten" if isinstance(node.args[1], int) and node.args[1] > 0 else "step_by_step"
        if node.target is operator.getitem:
            return "item"
        return "cat" if node.target is torch.cat else "step_by_step"

    def may_overwrite(self, source: Any) -> bool:
        """Tell whether a node's tensor is read once, and no view of another one."""
        return source in self._fresh

    def _is_fresh(self, source: fx.Node) -> bool:
        # Initial states look at the shape alone, before neurons write.
        if sum(self._how(user) != "initial_state" for user in source.users) > 1:
            return False
        if source.op == "call_module":
            return isinstance(self.modules[str(source.target)], _FRESH)
        return source.op == "call_function" and source.target in _POINTWISE
