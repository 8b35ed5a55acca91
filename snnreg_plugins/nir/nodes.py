"""Modules as nodes of NIR and back: both ways of each kind beside each other.

One way takes a module, the shape that comes in, and the most values that a field may have. The other takes the fields
of a node and its metadata, of which nothing is taken for granted, and the dtype; it raises a ValueError or what torch
raises.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from snnreg_plugins.functional.synapses import OneToOne
from snnreg_plugins.nir.fields import ELEMENTS, LARGEST_INT, Fields, Shape, array_of, ints
from snnreg_plugins.nir.hdf5 import Tree
from snnreg_plugins.spiking.layers import ChannelAffine, Current, SumOver, SumPool

CHECK = "Check `input_shape`"
SAVE = "Keep the network in a file of `snnreg_plugins.save_network` instead"


class UnfitError(Exception):
    """Says why a module is none of NIR.

    Args:
        reason: Why.
        remedy: What to do.
    """

    def __init__(self, reason: str, remedy: str = SAVE) -> None:
        super().__init__(reason)
        self.remedy = remedy


class Described(NamedTuple):
    """A module as a node.

    Args:
        type: Which of NIR's nodes.
        fields: Its fields.
        metadata: What these do not say of the module.
        shape: The shape that comes out.
    """

    type: str
    fields: Tree
    metadata: Tree
    shape: Shape


@dataclass(frozen=True)
class Kind:
    """A kind of module.

    Args:
        modules: Its classes.
        describe: From a module to a node.
        rebuild: From a node to the module.
    """

    modules: tuple[type[nn.Module], ...]
    describe: Callable[[Any, Shape, int], Described]
    rebuild: Callable[[Fields, Fields, torch.dtype], nn.Module]


def full(values: Tensor, shape: Shape) -> Tensor:
    """Give a value for each neuron."""
    return torch.broadcast_to(values.detach().cpu(), (1, *shape))[0]


def _linear(module: nn.Linear, shape: Shape, _: int = ELEMENTS) -> Described:
    if shape != (module.in_features,):
        raise UnfitError(f"its input has shape {shape}, and an affine node of NIR takes ({module.in_features},)")
    # A `Linear` node, which has no bias, is not known to all that read NIR.
    bias = torch.zeros(module.out_features, dtype=module.weight.dtype) if module.bias is None else module.bias
    fields = {"weight": array_of(module.weight), "bias": array_of(bias)}
    return Described("Affine", fields, {"has_bias": np.int64(module.bias is not None)}, (module.out_features,))


def _read_linear(node: Fields, metadata: Fields, dtype: torch.dtype) -> nn.Module:
    weight = node.tensor("weight", dtype, 2)
    outputs, inputs = weight.shape
    has_bias = bool(metadata.integer("has_bias", 0, 1))
    layer = nn.Linear(inputs, outputs, bias=has_bias, device="meta")
    layer.weight = nn.Parameter(weight)
    if has_bias:
        layer.bias = nn.Parameter(_sized(node.tensor("bias", dtype, 1), outputs, "bias"))
    return layer


def _conv(module: nn.Conv1d | nn.Conv2d, shape: Shape, _: int = ELEMENTS) -> Described:
    dims = len(module.kernel_size)
    if module.padding_mode != "zeros":
        raise UnfitError(
            f"NIR pads by zeros, and not by padding_mode={module.padding_mode!r}", "Use padding_mode='zeros'"
        )
    if len(shape) != 1 + dims or shape[0] != module.in_channels:
        raise UnfitError(f"its input has shape {shape}, which does not fit {module}", CHECK)
    reach = [dilation * (size - 1) for dilation, size in zip(module.dilation, module.kernel_size, strict=True)]
    padding: Any = (0,) * dims if module.padding == "valid" else module.padding
    if padding == "same" and not any(one % 2 for one in reach):
        padding = tuple(one // 2 for one in reach)
    around = reach if padding == "same" else [2 * one for one in padding]
    sizes = tuple(
        (size + more - one - 1) // stride + 1 if size + more > one else 0
        for size, more, one, stride in zip(shape[1:], around, reach, module.stride, strict=True)
    )
    if min(sizes) < 1:
        raise UnfitError(f"its kernel is larger than its input of shape {shape}", CHECK)
    bias = torch.zeros(module.out_channels, dtype=module.weight.dtype) if module.bias is None else module.bias

    def number(values: tuple[int, ...]) -> Any:
        return ints(values) if dims == 2 else np.int64(values[0])

    fields = {
        "input_shape": number(shape[1:]),
        "weight": array_of(module.weight),
        "stride": number(module.stride),
        "padding": padding if isinstance(padding, str) else number(padding),
        "dilation": number(module.dilation),
        "groups": np.int64(module.groups),
        "bias": array_of(bias),
    }
    metadata = {"has_bias": np.int64(module.bias is not None)}
    return Described(f"Conv{dims}d", fields, metadata, (module.out_channels, *sizes))


def _read_conv(node: Fields, metadata: Fields, dtype: torch.dtype) -> nn.Module:
    dims = {"Conv1d": 1, "Conv2d": 2}.get(node.string("type"))
    if dims is None:
        raise ValueError(f"is a convolution, but of type {node.string('type')!r}.")
    weight = node.tensor("weight", dtype, 2 + dims)
    groups = node.integer("groups", 1)
    same = isinstance(node.values.get("padding"), str)
    options: Any = {
        "stride": node.integers("stride", 1, dims),
        "padding": node.string("padding") if same else node.integers("padding", 0, dims),
        "dilation": node.integers("dilation", 1, dims),
        "groups": groups,
        "bias": bool(metadata.integer("has_bias", 0, 1)),
    }
    if same and options["padding"] != "same":
        raise ValueError(f"has a padding of {options['padding'][:200]!r}.")
    if weight.shape[1] * groups > LARGEST_INT:
        raise ValueError(f"has {groups} groups.")
    sizes: Any = tuple(weight.shape[2:])
    layer: Any = (nn.Conv1d, nn.Conv2d)[dims - 1](
        weight.shape[1] * groups, len(weight), sizes, device="meta", **options
    )
    layer.weight = nn.Parameter(weight)
    if options["bias"]:
        layer.bias = nn.Parameter(_sized(node.tensor("bias", dtype, 1), len(weight), "bias"))
    return layer  # type: ignore[no-any-return]


def _sized(values: Tensor, size: int, name: str) -> Tensor:
    if len(values) != size:
        raise ValueError(f"has a {name!r} of {len(values)} values, but it should be {size}.")
    return values


def elementwise(weight: Tensor, bias: Tensor, shape: Shape, most: int) -> tuple[str, Tree]:
    """Describe a map of each value by itself, ``weight * x + bias``."""
    try:
        every, shift = full(weight, shape), full(bias, shape)
    except RuntimeError:
        raise UnfitError(
            f"values of shape {tuple(weight.shape)}, {tuple(bias.shape)} for a tensor of {shape}"
        ) from None
    channels, dims, values = shape[0], len(shape) - 1, math.prod(shape)
    by_channel = all(
        one.numel() == 1 or (one.dim() > dims and one.numel() == one.shape[-dims - 1] == channels)
        for one in (weight, bias)
    )
    if bool(bias.any()) and dims in (1, 2) and by_channel:
        conv = nn.Conv1d if dims == 1 else nn.Conv2d
        layer: Any = conv(channels, channels, 1, groups=channels, device="meta")
        first: Any = (slice(None), *[0] * dims)
        layer.weight = nn.Parameter(every[first].reshape(-1, 1, *[1] * dims))
        layer.bias = nn.Parameter(shift[first].contiguous())
        return _conv(layer, shape)[:2]
    values *= shape[-1] if bool(bias.any()) else 1
    if values > most:
        raise UnfitError(f"on an input of shape {shape}, NIR has it as {values} values only, which is more than {most}")
    if not bool(bias.any()):
        return "Scale", {"scale": array_of(every)}
    return "Affine", {"weight": array_of(torch.diag_embed(every)), "bias": array_of(shift)}


def _synapse(module: OneToOne, shape: Shape, most: int) -> Described:
    kind, fields = elementwise(module.weight, torch.zeros_like(module.weight), shape, most)
    return Described(kind, fields, {"weight": array_of(module.weight)}, shape)


def _read_synapse(_: Fields, metadata: Fields, dtype: torch.dtype) -> nn.Module:
    return OneToOne(metadata.tensor("weight", dtype))


def _current(module: Current, shape: Shape, most: int) -> Described:
    kind, fields = elementwise(torch.ones_like(module.bias), module.bias, shape, most)
    return Described(kind, fields, {"bias": array_of(module.bias)}, shape)


def _read_current(_: Fields, metadata: Fields, dtype: torch.dtype) -> nn.Module:
    return Current(metadata.tensor("bias", dtype))


def _channel_affine(module: ChannelAffine, shape: Shape, most: int) -> Described:
    sizes = (-1, *[1] * (len(shape) - 1))
    kind, fields = elementwise(module.weight.reshape(sizes), module.bias.reshape(sizes), shape, most)
    return Described(kind, fields, {"weight": array_of(module.weight), "bias": array_of(module.bias)}, shape)


def _read_channel_affine(_: Fields, metadata: Fields, dtype: torch.dtype) -> nn.Module:
    return ChannelAffine(metadata.tensor("weight", dtype, 1), metadata.tensor("bias", dtype, 1))


def _pooled(shape: Shape, kernel: Any, stride: Any, padding: Any, ceil_mode: bool) -> Shape:
    if len(shape) != 1 + len(kernel):
        raise UnfitError(f"its input has shape {shape}, which is not (C, *spatial)")
    windows = list(zip(shape[1:], kernel, stride, padding, strict=True))
    spans = [size + 2 * pad - window for size, window, _, pad in windows]
    if min(spans) < 0 or any(2 * pad > window for _, window, _, pad in windows):
        raise UnfitError(f"its windows do not fit an input of shape {shape}", CHECK)
    if ceil_mode and any(span % step for span, step in zip(spans, stride, strict=True)):
        raise UnfitError(f"NIR has no ceil_mode, which matters for an input of shape {shape}", "Use ceil_mode=False")
    return (shape[0], *(span // step + 1 for span, step in zip(spans, stride, strict=True)))


def _sums(shape: Shape, kernel: Any, stride: Any, padding: Any, dtype: torch.dtype) -> tuple[str, Tree]:
    """Describe sums over windows: in one dimension, as a convolution with ones."""
    if len(kernel) == 2:
        return "SumPool2d", {"kernel_size": ints(kernel), "stride": ints(stride), "padding": ints(padding)}
    channels = shape[0]
    options: Any = {"stride": stride, "padding": padding, "groups": channels, "bias": False, "device": "meta"}
    layer = nn.Conv1d(channels, channels, kernel, **options)
    layer.weight = nn.Parameter(torch.ones((channels, 1, *kernel), dtype=dtype))
    return _conv(layer, shape)[:2]


def _window(metadata: Fields, fields: Fields) -> Any:
    """Read an average pooling."""
    dims = fields.array("kernel_size").size
    pool: Any = {1: nn.AvgPool1d, 2: nn.AvgPool2d}.get(dims)
    if pool is None:
        raise ValueError(f"pools over {dims} dimensions.")
    window = (fields.integers(name, name != "padding", dims) for name in ("kernel_size", "stride", "padding"))
    return pool(*window, ceil_mode=bool(metadata.integer("ceil_mode", 0, 1)))


def _sum_pool(module: SumPool, shape: Shape, _: int = ELEMENTS) -> Described:
    window = (module.kernel_size, module.stride, module.padding)
    if module.dims == 3:
        raise UnfitError("NIR has no 3d pooling")
    pooled = _pooled(shape, *window, module.ceil_mode)
    kind, fields = _sums(shape, *window, torch.float32)
    names = ("kernel_size", "stride", "padding")
    metadata: Tree = {name: ints(value) for name, value in zip(names, window, strict=True)}
    metadata |= {"ceil_mode": np.int64(module.ceil_mode)}
    return Described(kind, fields, metadata, pooled)


def _read_sum_pool(_: Fields, metadata: Fields, dtype: torch.dtype) -> nn.Module:
    return SumPool(_window(metadata, metadata))


def _sum_over(module: SumOver, shape: Shape, _: int = ELEMENTS) -> Described:
    if len(shape) not in (2, 3) or module.dims != tuple(range(2, 1 + len(shape))):
        raise UnfitError(f"NIR has no sum over dimensions {module.dims} of {(-1, *shape)}, only over all spatial ones")
    ones, zeros = (1,) * (len(shape) - 1), (0,) * (len(shape) - 1)
    kind, fields = _sums(shape, shape[1:], ones, zeros, torch.float32)
    metadata = {"dims": ints(module.dims), "keepdim": np.int64(module.keepdim)}
    return Described(kind, fields, metadata, (shape[0], *ones))


def _read_sum_over(_: Fields, metadata: Fields, __: torch.dtype) -> nn.Module:
    return SumOver(tuple(metadata.numbers("dims", 2)), bool(metadata.integer("keepdim", 0, 1)))


def _avg_pool(module: nn.AvgPool2d, shape: Shape, _: int = ELEMENTS) -> Described:
    window: Any = [
        (one, one) if isinstance(one, int) else one for one in (module.kernel_size, module.stride, module.padding)
    ]
    if module.divisor_override or (any(window[2]) and not module.count_include_pad):
        raise UnfitError("NIR has no divisor_override, and counts what pads", "Use its defaults")
    names = ("kernel_size", "stride", "padding")
    fields = {name: ints(value) for name, value in zip(names, window, strict=True)}
    pooled = _pooled(shape, window[0], window[1], window[2], module.ceil_mode)
    return Described("AvgPool2d", fields, {"ceil_mode": np.int64(module.ceil_mode)}, pooled)


def _read_avg_pool(node: Fields, metadata: Fields, dtype: torch.dtype) -> nn.Module:
    return _window(metadata, node)  # type: ignore[no-any-return]


def _flatten(module: nn.Flatten, shape: Shape, _: int = ELEMENTS) -> Described:
    start, end = (dim % (len(shape) + 1) - 1 for dim in (module.start_dim, module.end_dim))
    if start < 0:
        raise UnfitError("it flattens the batch")
    flat = (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :])
    last = -1 if end == len(shape) - 1 else end
    fields = {"input_type": ints(shape), "start_dim": np.int64(start), "end_dim": np.int64(last)}
    return Described("Flatten", fields, {}, flat)


def _read_flatten(node: Fields, metadata: Fields, dtype: torch.dtype) -> nn.Module:
    end = node.integer("end_dim", -1)
    return nn.Flatten(node.integer("start_dim", 0) + 1, end if end < 0 else end + 1)


#: By the name in the metadata.
KINDS = {
    "linear": Kind((nn.Linear,), _linear, _read_linear),
    "conv": Kind((nn.Conv1d, nn.Conv2d), _conv, _read_conv),
    "synapse": Kind((OneToOne,), _synapse, _read_synapse),
    "current": Kind((Current,), _current, _read_current),
    "affine": Kind((ChannelAffine,), _channel_affine, _read_channel_affine),
    "sum_pool": Kind((SumPool,), _sum_pool, _read_sum_pool),
    "sum_over": Kind((SumOver,), _sum_over, _read_sum_over),
    "avg_pool": Kind((nn.AvgPool2d,), _avg_pool, _read_avg_pool),
    "flatten_module": Kind((nn.Flatten,), _flatten, _read_flatten),
}
