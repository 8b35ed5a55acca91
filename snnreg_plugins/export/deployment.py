"""The end of training: batch norms folded, neurons fixed, weights of few bits rounded, as on a chip."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx, nn

from snnreg_plugins.export.copies import add_submodule
from snnreg_plugins.export.fold import gain_and_shift, scale_outputs
from snnreg_plugins.export.integers import bring_to_few_bits, fix_synapses
from snnreg_plugins.frameworks.trained import is_trained
from snnreg_plugins.spiking.layers import BatchNorm
from snnreg_plugins.spiking.network import SpikingNetwork, require_network


def deploy(network: SpikingNetwork) -> SpikingNetwork:
    """Fold the batch norms that ``batch_norm="keep"`` left in a network, and fix trained thresholds and decays.

    Weights of few bits become whole numbers, see ``weights`` of :func:`~snnreg_plugins.to_snntorch`; thresholds,
    potentials and biases are rounded to the same units then, which those of a network in training are not.

    Args:
        network: The network; it is left as it is.

    Returns:
        A network that computes what this one does in eval mode, up to rounding, of neurons and synapses alone.

    Raises:
        TypeError: If it is no spiking network.

    Example:
        >>> from snnreg_plugins import to_snntorch
        >>> model = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
        >>> network = to_snntorch(model, torch.rand(100, 2), timesteps=4, batch_norm="keep", train_thresholds="channel")
        >>> x = torch.rand(5, 2)
        >>> torch.allclose(deploy(network)(x), network.eval()(x), atol=1e-6)
        True
        >>> sorted(name for name, _ in deploy(network).named_parameters())
        ['body.3.bias', 'body.3.weight', 'encoder.0.bias', 'encoder.0.weight']
    """
    require_network(network)
    network = copy.deepcopy(network)
    if network.conversion.get("is_deployed"):
        return network
    fix_synapses(network)
    _fold_batch_norms(network.encoder)
    _fold_batch_norms(network.body)
    neurons = network.neurons
    for name, module in list(network.body.named_modules()):
        dynamics = neurons.describe(module)
        if dynamics is not None and is_trained(neurons.holder(module)):
            # A new one: copies of a parametrized module share its class.
            fixed = neurons.make(dynamics.threshold.detach(), dynamics.beta.detach(), dynamics.surrogate.fixed())
            add_submodule(network.body, name, fixed.train(module.training))
    network.parts_changed()
    for decisions in network.conversion.get("structure", {}).values():
        decisions.update({"kept": False} if decisions.get("kept") else {})
    network.conversion["is_deployed"] = True
    bring_to_few_bits(network)
    return network


def _fold_batch_norms(part: fx.GraphModule) -> None:
    modules = dict(part.named_modules())
    for node in list(part.graph.nodes):
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(norm, (BatchNorm, nn.SyncBatchNorm)):
            gain, shift = gain_and_shift(norm)
            first, *others = _layers_of(node.args[0], modules)  # whose sum is normalized
            scale_outputs(first, gain, shift)
            for layer in others:
                scale_outputs(layer, gain, torch.zeros_like(gain))
                layer.bias = None
            node.replace_all_uses_with(node.args[0])
            part.graph.erase_node(node)
            part.delete_submodule(str(node.target))
    part.recompile()


def _layers_of(node: Any, modules: dict[str, nn.Module]) -> list[Any]:
    """List the synaptic layers whose outputs are added up in a node."""
    if node.op == "call_module":
        return [modules[str(node.target)]]
    return [layer for source in node.all_input_nodes for layer in _layers_of(source, modules)]
