"""The forms that a computation may be written in, and the one form of each that the export knows."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from snnreg_plugins.export.rectifiers import RECTIFIERS
from snnreg_plugins.functional.synapses import SYNAPTIC_LAYERS

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
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
DROPPED = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)
KEPT = (
    *SYNAPTIC_LAYERS,
    *RECTIFIERS,
    *BATCH_NORMS,
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


def _linear(weight: Any, bias: Any = None) -> nn.Module | None:
    if not isinstance(weight, Tensor) or isinstance(bias, fx.Node):
        return None
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    return _with_weights(layer, weight, bias)


def _convolution(
    dims: int,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> nn.Module | None:
    if not isinstance(weight, Tensor) or isinstance(bias, fx.Node):
        return None
    kind: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    layer = kind(
        weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]), stride, padding, dilation, groups,
        bias is not None, device="meta",
    )  # fmt: skip
    return _with_weights(layer, weight, bias)


def _batch_norm(
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> nn.Module | None:
    if training or not isinstance(running_mean, Tensor) or not isinstance(running_var, Tensor):
        return None
    if isinstance(weight, fx.Node) or isinstance(bias, fx.Node):
        return None
    norm = nn.SyncBatchNorm(len(running_mean), eps, momentum)  # the one of any number of dimensions
    norm.running_mean, norm.running_var = running_mean.detach().clone(), running_var.detach().clone()
    weight = torch.ones_like(running_mean) if weight is None else weight
    return _with_weights(norm, weight, torch.zeros_like(running_mean) if bias is None else bias)


def _with_weights(layer: Any, weight: Tensor, bias: Tensor | None) -> nn.Module:
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer  # type: ignore[no-any-return]


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
    F.linear: (_linear, ("weight", "bias")),
    **{
        function: (partial(_convolution, dims), ("weight", "bias", "stride", "padding", "dilation", "groups"))
        for dims, functions in enumerate(((F.conv1d, torch.conv1d), (F.conv2d, torch.conv2d), (F.conv3d,)), start=1)
        for function in functions
    },
    F.batch_norm: (
        _batch_norm,
        ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    ),
    torch.batch_norm: (
        _batch_norm,
        ("weight", "bias", "running_mean", "running_var", "training", "momentum", "eps", "cudnn_enabled"),
    ),
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
#: Functions that become neurons.
ACTIVATION_FUNCTIONS = tuple(
    form
    for form, (kind, _) in AS_MODULE.items()
    if kind in (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, _RELU_IN_PLACE, _clamp)
)
DROPOUT_FUNCTIONS = (
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
    torch.dropout,
)
# What only moves values: functions of torch, which are methods of the same name too.
_MOVES = (
    *("flatten", "unflatten", "reshape", "ravel", "squeeze", "unsqueeze", "narrow", "select", "index_select"),
    *(
        "permute",
        "transpose",
        "swapaxes",
        "swapdims",
        "movedim",
        "moveaxis",
        "flip",
        "fliplr",
        "flipud",
        "rot90",
        "roll",
    ),
    *("chunk", "split", "tensor_split", "hsplit", "vsplit", "dsplit", "unbind", "tile", "repeat_interleave"),
)
_MOVERS = (
    *(getattr(torch, name) for name in _MOVES),
    *_MOVES,
    *("view", "contiguous", "expand", "repeat"),
    *(operator.getitem, F.pixel_shuffle, F.pixel_unshuffle, torch.channel_shuffle),
)
#: What does nothing to a tensor that has the type and place already.
CASTS = ("float", "double", "half", "bfloat16", "to", "type", "type_as", "detach", "clone", "contiguous", torch.clone)
#: What may come last: it is computed once, on the mean of the scores.
LAST = (
    *(F.softmax, F.log_softmax, F.sigmoid, torch.softmax, torch.log_softmax, torch.sigmoid),
    *("softmax", "log_softmax", "sigmoid", nn.Softmax, nn.LogSoftmax, nn.Sigmoid),
)
#: What makes a tensor of the size and type of another, and reads no value of it.
MADE_OF_SIZES = (
    *("new_zeros", "new_ones", "new_full", "new_tensor", "new_empty"),
    *(torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like),
)
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
        (torch.sum, (torch.sum, "sum"), False),
        (torch.amax, (torch.amax, "amax"), False),
    )
    for form in forms
}


def is_value(operand: Any) -> bool:
    """Tell whether an operand depends on the network's input by more than its size."""
    return isinstance(operand, fx.Node) and operand.meta["role"] == "value"


def is_constant(node: fx.Node) -> bool:
    """Tell whether a node is a tensor that depends on no value of the network's input."""
    return bool(node.meta["role"] == "constant")


def is_size(node: fx.Node) -> bool:
    """Tell whether a node is a size or shape, or computed from such alone: whether it gives no tensor."""
    return bool(node.meta["role"] == "size")


def moves_values(node: Any) -> bool:
    """Tell whether a function only moves values."""
    if node.target is F.pad:
        given = dict(zip(("mode", "value"), node.args[2:], strict=False)) | dict(node.kwargs)
        return given.get("mode", "constant") == "constant" and not given.get("value")
    return node.target in _MOVERS


def function_name(node: fx.Node) -> str:
    """Give the name of the function or method that a node calls."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
