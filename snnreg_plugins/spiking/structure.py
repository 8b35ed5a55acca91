"""What can be told of a spiking network by how it is built."""

from __future__ import annotations

import operator

import torch
from torch import fx, nn

from snnreg_plugins.frameworks.base import Describe
from snnreg_plugins.functional.synapses import is_synaptic
from snnreg_plugins.spiking.layers import AdaptiveSumPool, SpikeMaxPool, SumOver, SumPool
from snnreg_plugins.watching.simulated import Known

# What makes whole numbers of whole numbers, and none that is negative.
_MODULES = (AdaptiveSumPool, SpikeMaxPool, SumOver, SumPool, nn.Flatten, nn.Identity)
_FUNCTIONS = (operator.add, operator.getitem, torch.cat, torch.flatten)
_METHODS = ("contiguous", "flatten", "permute", "reshape", "transpose", "unflatten", "view")


def events_in(body: fx.GraphModule, describe: Describe) -> Known:
    """Follow spikes, which are 0 or 1, through the time step of a network.

    Args:
        body: The time step.
        describe: From a neuron to its dynamics; None for one whose output is not known.
    """
    _, read, emitted = _followed(body, describe)
    readers, sources_of = (frozenset(it for it, known in found.items() if known) for found in (read, emitted))
    return Known(readers, sources_of)


def worth_of_outputs(body: fx.GraphModule, describe: Describe) -> str | None:
    """Find what the spikes are worth that a time step gives.

    Args:
        body: The time step.
        describe: As for :func:`events_in`.

    Returns:
        Name of the tensor in the body that they are multiplied by, empty if by none; None if it gives no spikes.
    """
    holds, _, _ = _followed(body, describe)
    output = next(node for node in body.graph.nodes if node.op == "output").args[0][0]
    if output in holds:
        return ""
    if output.target is operator.mul and output.args[0] in holds and output.args[1].op == "get_attr":
        return str(output.args[1].target)
    return None


def _followed(
    body: fx.GraphModule, describe: Describe
) -> tuple[set[fx.Node], dict[nn.Module, bool], dict[nn.Module, bool]]:
    """Give the nodes that hold events, and for layers whether they read them, for neurons whether they emit them."""
    modules = dict(body.named_modules(remove_duplicate=False))
    read: dict[nn.Module, bool] = {}  # a layer may be called at several places
    emitted: dict[nn.Module, bool] = {}
    holds: set[fx.Node] = set()
    for node in body.graph.nodes:
        sources = [source in holds for source in _tensors_of(node, modules)]
        whole = bool(sources) and all(sources)
        if node.op == "call_module":
            module = modules[str(node.target)]
            if is_synaptic(module):
                read[module] = read.get(module, True) and whole
                continue
            if len(node.args) == 2 and not isinstance(module, SpikeMaxPool):
                whole = describe(module) is not None
                emitted[module] = emitted.get(module, True) and whole
            elif not isinstance(module, _MODULES):
                continue
        elif node.target is operator.getitem and node.args[1] != 0:
            continue  # a state
        elif not (
            (node.op == "call_function" and node.target in _FUNCTIONS)
            or (node.op == "call_method" and node.target in _METHODS)
        ):
            continue
        if whole:
            holds.add(node)
    return holds, read, emitted


def _tensors_of(node: fx.Node, modules: dict[str, nn.Module]) -> list[fx.Node]:
    """List what a node computes with: of a module with a state, its input alone."""
    if node.op == "call_module" and isinstance(modules[str(node.target)], SpikeMaxPool):
        return [source for source in node.args[:1] if isinstance(source, fx.Node)]
    return node.all_input_nodes
