"""Linear maps folded into the weights of their neighbours: batch norm, the worth of a spike, 1/k² of pooling."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from snnreg_plugins.export.forms import AVERAGE_POOLS, BATCH_NORMS, MAX_POOLS
from snnreg_plugins.export.refusals import refusal
from snnreg_plugins.export.structure import Structure
from snnreg_plugins.functional.synapses import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS, is_synaptic


def fold_batch_norms(traced: fx.GraphModule, structure: Structure, keep: bool = False) -> None:
    """Fold the batch norms of a traced network that follow a synaptic layer into its weights, in place.

    Pools may stand between. What is left is an affine map of channels, see :func:`gain_and_shift`.

    Args:
        traced: A network of :func:`~snnreg_plugins.export.trace.trace`, in which ``ShapeProp`` has left shapes.
        structure: Into which layer each is folded, and whether it is kept for now: is decided here, or read.
        keep: Whether to keep those that have nothing between them and their layer.

    Raises:
        ConversionError: If a batch norm has no statistics.
    """
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        norm = modules[str(node.target)] if node.op == "call_module" else None
        if not isinstance(norm, BATCH_NORMS):
            continue
        if norm.running_mean is None or norm.running_var is None:
            name = str(node.target)
            raise refusal(node, "batch norm without running statistics", name, "use track_running_stats=True")
        gain, shift = gain_and_shift(norm)
        into = structure.decide(node.name, "folded into", partial(_layer_before, node, modules, gain))
        if into is not None and not structure.decide(node.name, "kept", partial(_is_kept, keep, norm=node, into=into)):
            scale_outputs(modules[into], gain, shift)
            node.replace_all_uses_with(node.args[0])
            node.args[0].meta["cut"] = node.args[0].meta.get("cut") or node.meta.get("cut")
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()


def _is_kept(keep: bool, norm: Any, into: str) -> bool:
    return keep and into == str(norm.args[0].target)


def _layer_before(norm: Any, modules: dict[str, nn.Module], gain: Tensor) -> str | None:
    """Find the synaptic layer whose weights can take in a batch norm; pools may stand between."""
    source = norm.args[0]
    layer = modules.get(str(source.target))
    while len(source.users) == 1 and _commutes(layer, gain):
        source = source.args[0]
        layer = modules.get(str(source.target))
    # Channels are dimension 1, also behind a Linear, which has its features in the last.
    same_channels = not isinstance(layer, nn.Linear) or len(source.meta["tensor_meta"].shape) == 2
    fits = layer is not None and is_synaptic(layer) and same_channels and len(source.users) == 1
    return str(source.target) if fits else None


def _commutes(layer: Any, gain: Tensor) -> bool:
    """Tell whether a pooling of affine maps is the affine map of a pooling."""
    if isinstance(layer, MAX_POOLS):
        return bool((gain > 0).all())
    if not isinstance(layer, AVERAGE_POOLS) or getattr(layer, "divisor_override", None):
        return False
    return not layer.count_include_pad or not torch.as_tensor(layer.padding).any()


def gain_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    r"""Write a batch norm in eval mode as an affine map of channels, :math:`y_c = g_c x_c + s_c`.

    Returns:
        g and s, each ``(C,)``.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = torch.rsqrt(norm.running_var + norm.eps)
    gain = gain if norm.weight is None else gain * norm.weight
    shift = -norm.running_mean * gain
    return gain.detach(), (shift if norm.bias is None else shift + norm.bias).detach()


def scale_outputs(layer: Any, gain: Tensor, shift: Tensor) -> None:
    """Change a synaptic layer in place so that channel c gives ``gain[c] * output + shift[c]``."""
    weight = layer.weight
    if isinstance(layer, TRANSPOSED_CONVOLUTIONS):
        grouped = weight.unflatten(0, (layer.groups, -1))  # groups, in, out, *kernel
        factor = gain.reshape(layer.groups, 1, -1, *[1] * (weight.dim() - 2))
        layer.weight = nn.Parameter((grouped * factor).flatten(0, 1))
    else:
        layer.weight = nn.Parameter(weight * gain.reshape(-1, *[1] * (weight.dim() - 1)))
    layer.bias = nn.Parameter(shift if layer.bias is None else layer.bias * gain + shift)


def scale_inputs(layer: Any, scale: Tensor) -> None:
    """Change a synaptic layer in place so that it gives for input x what it gave for ``scale[c] * x``."""
    weight = layer.weight
    if isinstance(layer, TRANSPOSED_CONVOLUTIONS):
        factor = scale.reshape(-1, *[1] * (weight.dim() - 1))
        layer.weight = nn.Parameter(weight * factor)
    elif isinstance(layer, CONVOLUTIONS):
        grouped = weight.unflatten(0, (layer.groups, -1))  # groups, out, in, *kernel
        factor = scale.reshape(layer.groups, 1, -1, *[1] * (weight.dim() - 2))
        layer.weight = nn.Parameter((grouped * factor).flatten(0, 1))
    else:
        layer.weight = nn.Parameter(weight * scale)
