"""Copies of a user's modules that share nothing with them."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

from torch import nn

from snnreg_plugins._torch import hooks_before
from snnreg_plugins.functional.synapses import SYNAPTIC_LAYERS, TRANSPOSED_CONVOLUTIONS, is_synaptic


def bare_copy(module: nn.Module) -> nn.Module:
    """Copy a layer without its hooks, so that what watches it (and all that this holds) stays behind."""
    if is_synaptic(module):
        return _plain(module)
    bare = copy.copy(module)
    for name, value in vars(module).items():
        if "_hooks" in name and isinstance(value, dict):
            vars(bare)[name] = OrderedDict()
    bare = copy.deepcopy(bare)
    return bare.eval()


def _plain(layer: Any) -> nn.Module:
    """Rebuild a synaptic layer with the weights it computes with: parametrized, normed and pruned ones too."""
    set_weights(layer)
    base, has_bias = synaptic_base(layer), layer.bias is not None
    plain: Any
    if base is nn.Linear:
        plain = nn.Linear(layer.in_features, layer.out_features, has_bias, device="meta")
    else:
        sizes = dict.fromkeys(("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"))
        arguments = {name: getattr(layer, name) for name in sizes}
        if issubclass(base, TRANSPOSED_CONVOLUTIONS):
            arguments["output_padding"] = layer.output_padding
        plain = base(**arguments, padding_mode=layer.padding_mode, bias=has_bias, device="meta")
    plain.weight = nn.Parameter(layer.weight.detach().clone())
    if has_bias:
        plain.bias = nn.Parameter(layer.bias.detach().clone())
    plain.eval()
    return plain  # type: ignore[no-any-return]


def set_weights(layer: nn.Module) -> None:
    """Set the weight of a layer that computes it in a hook of torch: old weight norm and pruning; :func:`is_folded`."""
    for hook in hooks_before(layer):
        if is_folded(hook):
            hook(layer, ())


def is_folded(hook: Any) -> bool:
    """Tell whether a hook sets a weight, in a way that the export takes over."""
    return type(hook).__module__.startswith("torch.nn.utils")


def synaptic_base(layer: nn.Module) -> Any:
    """Give the class of torch that a synaptic layer is, or derives from."""
    return next(base for base in SYNAPTIC_LAYERS if isinstance(layer, base))


def add_submodule(root: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Put a module at a dotted name, making plain modules on the way; give back the one that is there already."""
    *path, last = name.split(".")
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    if type(module) is nn.Module and hasattr(root, last):
        return getattr(root, last)  # type: ignore[no-any-return]
    root.add_module(last, module)
    return module


def unwrapped(model: nn.Module) -> nn.Module:
    """Look inside torch.compile and data parallelism."""
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        return unwrapped(model.module)
    inner = getattr(model, "_orig_mod", None)
    return unwrapped(inner) if isinstance(inner, nn.Module) else model
