"""Weights of few bits in a model that somebody else made: put behind its layers, and left in them in the end."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.nn.utils import parametrize

from snnreg_plugins._checks import matching
from snnreg_plugins._torch import hooks_before
from snnreg_plugins.export.copies import is_folded
from snnreg_plugins.export.few_bits import fix_few_bits, has_few_bits, train_few_bits
from snnreg_plugins.functional.synapses import OneToOne, is_synaptic
from snnreg_plugins.spiking.network import SpikingNetwork
from snnreg_plugins.watching.hooks import notice_new_hooks


def layers_in_few_bits(model: nn.Module) -> dict[str, nn.Module]:
    """Find the layers of a model whose weights are trained in few bits, by name."""
    return {name: layer for name, layer in model.named_modules() if has_few_bits(layer)}


def put_few_bits(model: nn.Module, weights: str, bits: int, patterns: list[str] | None = None) -> dict[str, nn.Module]:
    """Train the weights of the synaptic layers of a model in few bits, and return the layers by name.

    Args:
        model: Changed in place; layers that are trained so already stay as they are.
        weights: The format.
        bits: Of a weight.
        patterns: Of the names of the layers, all if None.

    Raises:
        ValueError: If there is no such layer, a pattern matches none, a layer computes its weight already, or the model
            is an exported spiking network.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> list(put_few_bits(model, "int8", 8))
        ['0', '2']
    """
    for module in model.modules():
        if isinstance(module, SpikingNetwork):
            raise ValueError(
                f"Expected a model that is not exported yet, but {type(model).__name__} holds a SpikingNetwork, whose "
                'weights are in few bits if it is exported so: to_snntorch(..., weights="int8", train_weights=True).'
            )
    layers = {
        name: layer for name, layer in model.named_modules() if is_synaptic(layer) and not isinstance(layer, OneToOne)
    }
    if not layers:
        raise ValueError(
            f"Expected layers with weights (Linear, Conv or ConvTranspose), but {type(model).__name__} has none. Make "
            "them in __init__, not in setup() or configure_model()."
        )
    for name in matching("layers", patterns, list(layers), "a layer with weights"):
        layer = layers[name]
        if has_few_bits(layer):
            continue
        if parametrize.is_parametrized(layer, "weight") or any(map(is_folded, hooks_before(layer))):
            raise ValueError(
                f"Expected layer {name!r} to own its weight, but it is computed already, by a parametrization, weight "
                "norm or pruning. Remove that first, or leave the layer out by `layers`."
            )
        if isinstance(layer.weight, nn.UninitializedParameter):
            raise ValueError(f"Expected layer {name!r} to have weights, but it is lazy. Run the model once before.")
        train_few_bits(weights, bits, layer)
    notice_new_hooks()
    return layers_in_few_bits(model)


def leave_few_bits(layers: Iterable[nn.Module], rounded: bool = True) -> None:
    """Leave layers with plain weights, in place.

    Args:
        layers: Layers that are trained in few bits.
        rounded: Whether to leave them with the weights that they compute with; else with those that are trained.
    """
    for layer in layers:
        fix_few_bits(layer, rounded)
    notice_new_hooks()
