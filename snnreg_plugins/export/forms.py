"""The forms that a computation may be written in, and the one form of each that the export knows."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from snnreg_plugins.export.rectifiers import RECTIFIERS
from snnreg_plugins.functional.synapses import SYNAPTIC_LAYERS

AVERAGE_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
ADAPTIVE_AVERAGE_POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
ADAPTIVE_MAX_POOLS = (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
#: Modules that only move values.
MOVERS = (
    nn.Flatten,
    nn.Unflatten,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ChannelShuffle,
    nn.ZeroPad1d,
    nn.ZeroPad2d,
    nn.ZeroPad3d,
    nn.Upsample,  # to the nearest
)
DROPPED = (nn.Identity, _DropoutNd)
KEPT = (
    *SYNAPTIC_LAYERS,
    *RECTIFIERS,
    _BatchNorm,
    *AVERAGE_POOLS,
    *MAX_POOLS,
    *ADAPTIVE_AVERAGE_POOLS,
    *ADAPTIVE_MAX_POOLS,
    *MOVERS,
)
_MAX_POOL = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_AVERAGE_POOL = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
_RELU_IN_PLACE = partial(nn.ReLU, inplace=True)


def _clamp(min: float | None = None, max: float | None = None) -> nn.Module | None:
    if min != 0 or isinstance(max, (Tensor, fx.Node)):
        return None
    return nn.ReLU() if max is None else nn.Hardtanh(0.0, max)


def _upsample(size: Any = None, scale_factor: Any = None, mode: str = "nearest", *_: Any, **__: Any) -> nn.Module:
    return nn.Upsample(size, scale_factor, mode)


# Functions that are a module in disguise: what they become, and the names of their arguments after the input.
# A factory may give None: not in this form.
AS_MODULE: dict[Any, tuple[Callable[..., nn.Module | None], tuple[str, ...]]] = {
    F.relu: (nn.ReLU, ("inplace",)),
    torch.relu: (nn.ReLU, ()),
    "relu": (nn.ReLU, ()),
    F.relu_: (_RELU_IN_PLACE, ()),
    torch.relu_: (_RELU_IN_PLACE, ()),
    "relu_": (_RELU_IN_PLACE, ()),
    F.relu6: (nn.ReLU6, ("inplace",)),
    F.hardtanh: (nn.Hardtanh, ("min_val", "max_val", "inplace")),
    F.leaky_relu: (nn.LeakyReLU, ("negative_slope", "inplace")),
    torch.clamp: (_clamp, ("min", "max")),
    torch.clip: (_clamp, ("min", "max")),
    "clamp": (_clamp, ("min", "max")),
    "clip": (_clamp, ("min", "max")),
    torch.clamp_min: (_clamp, ("min",)),
    "clamp_min": (_clamp, ("min",)),
    F.interpolate: (_upsample, ("size", "scale_factor", "mode")),
    F.max_pool1d: (nn.MaxPool1d, _MAX_POOL),
    F.max_pool2d: (nn.MaxPool2d, _MAX_POOL),
    F.max_pool3d: (nn.MaxPool3d, _MAX_POOL),
    torch.max_pool1d: (nn.MaxPool1d, _MAX_POOL),
    torch.max_pool2d: (nn.MaxPool2d, _MAX_POOL),
    torch.max_pool3d: (nn.MaxPool3d, _MAX_POOL),
    F.avg_pool1d: (nn.AvgPool1d, _AVERAGE_POOL),
    F.avg_pool2d: (nn.AvgPool2d, _AVERAGE_POOL),
    F.avg_pool3d: (nn.AvgPool3d, _AVERAGE_POOL),
    F.adaptive_avg_pool1d: (nn.AdaptiveAvgPool1d, ("output_size",)),
    F.adaptive_avg_pool2d: (nn.AdaptiveAvgPool2d, ("output_size",)),
    F.adaptive_avg_pool3d: (nn.AdaptiveAvgPool3d, ("output_size",)),
    F.adaptive_max_pool1d: (nn.AdaptiveMaxPool1d, ("output_size", "return_indices")),
    F.adaptive_max_pool2d: (nn.AdaptiveMaxPool2d, ("output_size", "return_indices")),
    F.adaptive_max_pool3d: (nn.AdaptiveMaxPool3d, ("output_size", "return_indices")),
}
DROPOUT_FUNCTIONS = (
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
    torch.dropout,
)
# What only moves values.
_SHAPE_FUNCTIONS = (
    torch.flatten,
    torch.reshape,
    torch.permute,
    torch.transpose,
    torch.squeeze,
    torch.unsqueeze,
    torch.chunk,
    torch.split,
    operator.getitem,
)
_SHAPE_METHODS = (
    "view",
    "reshape",
    "flatten",
    "unflatten",
    "contiguous",
    "permute",
    "transpose",
    "squeeze",
    "unsqueeze",
    "chunk",
    "split",
)
_SIZE_METHODS = ("size", "dim", "numel")
_SIZE_ATTRIBUTES = ("shape", "ndim")
_SIZE_ARITHMETIC = (operator.add, operator.sub, operator.mul, operator.floordiv)
# Arithmetic on values, in every form that Python has for it: the one form it gets, and whether it writes to its input.
ARITHMETIC: dict[Any, tuple[Callable[..., Any], bool]] = {
    form: (function, in_place)
    for function, forms, in_place in (
        (operator.add, (operator.add, torch.add, "add"), False),
        (operator.add, (operator.iadd, "add_"), True),
        (operator.sub, (operator.sub, torch.sub, torch.subtract, "sub"), False),
        (operator.sub, (operator.isub, "sub_"), True),
        (operator.mul, (operator.mul, torch.mul, torch.multiply, "mul"), False),
        (operator.mul, (operator.imul, "mul_"), True),
        (operator.truediv, (operator.truediv, torch.div, torch.divide, torch.true_divide, "div"), False),
        (operator.truediv, (operator.itruediv, "div_"), True),
        (operator.neg, (operator.neg, torch.neg, torch.negative, "neg"), False),
        (torch.cat, (torch.cat, torch.concat, torch.concatenate), False),
        (torch.mean, (torch.mean, "mean"), False),
    )
    for form in forms
}


def is_value(operand: Any) -> bool:
    """Tell whether an operand depends on the network's input by more than its size."""
    return isinstance(operand, fx.Node) and operand.op != "get_attr" and not is_size(operand)


def moves_values(node: Any) -> bool:
    """Tell whether a function only moves values, or reads or computes sizes."""
    if node.target is getattr:
        return node.args[1] in _SIZE_ATTRIBUTES
    if node.target in _SIZE_ARITHMETIC:
        return all(not isinstance(arg, fx.Node) or is_size(arg) for arg in node.args)
    if node.target is F.pad:
        given = dict(zip(("mode", "value"), node.args[2:], strict=False)) | dict(node.kwargs)
        return given.get("mode", "constant") == "constant" and not given.get("value")
    return node.target in (*_SHAPE_FUNCTIONS, *_SHAPE_METHODS, *_SIZE_METHODS)


def is_size(node: fx.Node) -> bool:
    """Tell whether a node is a size or shape, or computed from such alone."""
    if node.target in _SIZE_METHODS or node.target is getattr:
        return True
    sources = node.all_input_nodes
    return node.op == "call_function" and bool(sources) and all(is_size(source) for source in sources)


def function_name(node: fx.Node) -> str:
    """Give the name of the function or method that a node calls."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
