"""From a spiking network to a graph of NIR, as plain data."""

from __future__ import annotations

import json
import keyword
import math
import operator
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, fx, nn

from snnreg_plugins.export.refusals import ConversionError
from snnreg_plugins.frameworks.base import Dynamics
from snnreg_plugins.frameworks.registry import framework_of
from snnreg_plugins.functional.synapses import OneToOne
from snnreg_plugins.nir.hdf5 import NAME, Tree
from snnreg_plugins.spiking.coding import LatencyCoder, PoissonCoder
from snnreg_plugins.spiking.layers import ChannelAffine, Current, InitialState, SumOver, SumPool
from snnreg_plugins.spiking.network import SpikingNetwork
from snnreg_plugins.watching.layers import is_spiking_neuron

FORMAT = "snnreg_plugins spiking network 1"


_RESET = "subtract v_threshold, in the step after the spike"


_READOUT = "mean of the outputs over the steps"


DTYPES = {str(dtype)[6:]: dtype for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}


# The most values of a tensor of one sample, and of a field: 1 GiB of float32.
ELEMENTS = 2**28


LEAVES = 1000


#: What a sum consists of: the name of a node, or two sums.
_Terms: TypeAlias = "str | tuple[_Terms, _Terms]"


Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class _Value:
    """A tensor of the network: the shape of one sample, and the nodes whose sum it is."""

    shape: Shape
    terms: _Terms


@dataclass(frozen=True)
class _Initial:
    """The state that a neuron layer starts a step with."""

    state: int
    module: str
    potential: Tensor
    level: Tensor


@dataclass(frozen=True)
class _State:
    """A state, of that number."""

    number: int


class Description:
    """What a network is, as a graph of NIR: names, fields as arrays, edges, metadata.

    Args:
        network: The network.
        input_shape: Shape of one input.
        values: The most values that all fields may have together: a small file may ask for many.

    Attributes:
        graph: As ``nir.NIRGraph.to_dict`` gives it.
    """

    def __init__(self, network: SpikingNetwork, input_shape: Shape, values: int | None = None) -> None:
        if network.head is not None:
            raise RefusalError("head", "only a part of the network spikes", "Export the whole model, without `until`")
        self.dtype = _dtype(network)
        self.left = sys.maxsize if values is None else values
        self.stored = _array(torch.empty((), dtype=self.dtype)).dtype
        self.nodes: dict[str, Tree] = {}
        self.edges: list[tuple[str, str]] = []
        self.states = 0
        self.part = network.encoder
        self.once = True
        self.values: dict[fx.Node, Any] = {}
        self.nodes["input"] = {"type": "Input", "shape": _ints(input_shape), "metadata": {"kind": "input"}}
        (constants,) = self._walk(network.encoder, _Value(input_shape, "input"))
        self.part, self.once = network.body, False
        output, states = self._walk(network.body, constants, tuple(_State(i) for i in range(network._states)))[0]
        if tuple(states) != tuple(_State(i) for i in range(self.states)) or not isinstance(output, _Value):
            raise RefusalError("output", "its states are not those of its neurons in their order", _SAVE)
        if isinstance(output.terms, tuple):  # those who read NIR return what enters an output one by one
            output = _Value(output.shape, self._same("output_sum", output))
        self._add("output", "Output", {"shape": _ints(output.shape)}, {"kind": "output"}, output)
        self.graph = {
            "type": "NIRGraph",
            "nodes": self.nodes,
            "edges": self.edges,
            "metadata": {
                "format": FORMAT,
                "timesteps": np.int64(network.timesteps),
                "dt": np.float64(1),
                "reset": _RESET,
                "readout": _READOUT,
                "dtype": str(self.dtype)[6:],
                "conversion": _as_json(network.conversion),
            },
        }

    def _walk(self, part: fx.GraphModule, *inputs: Any) -> Any:
        given = iter(inputs)
        for node in part.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = next(given)
            elif node.op == "get_attr":
                self.values[node] = operator.attrgetter(str(node.target))(part)
            elif node.op == "call_module":
                self.values[node] = self._module(node, part.get_submodule(str(node.target)))
            elif node.op == "output":
                return fx.map_arg(node.args, self.values.__getitem__)
            else:
                self.values[node] = self._function(node)
        raise AssertionError  # a graph has an output

    def _add(self, name: str, kind: str, fields: Tree, metadata: Tree, source: _Value) -> str:
        """Add a node that reads a tensor, and give its name."""
        leaves, steps = self._leaves(source, name)
        plain = re.sub(r"\W", "_", name, flags=re.ASCII)
        unique, number = plain, 1
        while unique in self.nodes:
            unique, number = f"{plain}_{number}", number + 1
        # All of one dtype, also what is no parameter.
        fields = {key: value.astype(self.stored) if _is_real(value) else value for key, value in fields.items()}
        metadata = {"order": np.int64(len(self.nodes)), "once": np.int64(self.once)} | metadata
        if len(steps) > 1:
            metadata["sum"] = _ints(steps)
        self.left -= sum(value.size for value in fields.values() if _is_real(value))
        self.nodes[unique] = {"type": kind} | fields | {"metadata": metadata}
        self.edges += [(leaf, unique) for leaf in leaves]
        return unique

    def _leaves(self, source: _Value, reader: str) -> tuple[list[str], list[int]]:
        """Give the nodes of a sum, each once, and the sum in postfix order: the number of a node, or -1 to add two."""
        leaves: list[str] = []
        steps: list[int] = []
        todo: list[Any] = [source.terms]
        while todo:
            terms = todo.pop()
            if isinstance(terms, tuple):
                todo += [-1, terms[1], terms[0]]
            elif terms == -1:
                steps.append(-1)
            else:
                if terms in leaves:  # NIR has no edge twice
                    terms = self._same(f"{terms}_again", _Value(source.shape, terms))
                steps.append(len(leaves))
                leaves.append(terms)
            if len(leaves) > LEAVES:
                raise RefusalError(reader, f"it reads a sum of more than {LEAVES} tensors", _SAVE)
        return leaves, steps

    def _most(self) -> int:
        """Give how many values a field may have."""
        return min(ELEMENTS, self.left)

    def _same(self, name: str, source: _Value) -> str:
        """Add a node that does nothing."""
        ones = torch.ones(source.shape, dtype=self.dtype)
        return self._add(name, "Scale", {"scale": _array(ones)}, {"kind": "identity"}, source)

    def _get(self, node: fx.Node, value: Any = None) -> _Value:
        """Give the tensor that a node reads."""
        found = self.values.get(node.args[0]) if value is None else value  # type: ignore[arg-type]
        if not isinstance(found, _Value):
            raise RefusalError(_name(node), "it reads something that is no tensor of the network", _SAVE)
        return found

    # Modules

    def _module(self, node: fx.Node, module: nn.Module) -> Any:
        name = str(node.target)
        if not is_module_name(name):
            raise RefusalError(name, "its name is none that a file may hold", "Use letters, digits and underscores")
        if isinstance(module, InitialState):
            state = self.values[node.args[0]]  # type: ignore[index]
            return _Initial(state.number, name, module.potential, module.level)
        if isinstance(module, (PoissonCoder, LatencyCoder)):
            return self._coder(node, module)
        source = self._get(node)
        if is_spiking_neuron(module):
            return self._neuron(node, module, source)
        for base, describe in _MODULES.items():
            if isinstance(module, base) and type(module).forward is base.forward:
                try:
                    kind, fields, metadata, shape = describe(module, source.shape, self._most())
                    if math.prod(shape) > ELEMENTS:
                        raise _UnfitError(f"its output has shape {shape}, which is more than {ELEMENTS} values", _CHECK)
                except _UnfitError as error:
                    raise RefusalError(name, str(error), error.remedy) from None
                added = self._add(name, kind, fields, metadata | {"module": name}, source)
                if isinstance(module, SumOver) and not module.keepdim:
                    fields = {"input_type": _ints(shape), "start_dim": np.int64(0), "end_dim": np.int64(-1)}
                    added = self._add(f"{name}_flatten", "Flatten", fields, {"kind": "squeeze"}, _Value(shape, added))
                    shape = shape[:1]
                return _Value(shape, added)
        raise RefusalError(name, f"NIR has no {_what(module)}", _REMEDIES.get(_what(module), _SAVE))

    def _coder(self, node: fx.Node, module: PoissonCoder | LatencyCoder) -> tuple[_Value, _State]:
        source, state = self._get(node), self.values[node.args[1]]  # type: ignore[index]
        alone = source.terms == "input" and len(node.args[0].users) == 1 and not self.edges  # type: ignore[union-attr]
        if not alone or state.number != self.states:
            raise RefusalError(str(node.target), "something else reads the input too, uncoded", _SAVE)
        metadata = {"kind": "poisson", "module": str(node.target), "largest": np.float64(module.largest)}
        if isinstance(module, LatencyCoder):
            metadata |= {"kind": "latency", "timesteps": np.int64(module.timesteps)}
        self.nodes["input"]["metadata"] = metadata
        self.states += 1
        return source, state

    def _neuron(self, node: fx.Node, module: Any, source: _Value) -> tuple[_Value, _State]:
        name, initial = str(node.target), self.values[node.args[1]]  # type: ignore[index]
        threshold, beta, slope = _dynamics(name, module)
        if not isinstance(initial, _Initial) or initial.state != self.states:
            raise RefusalError(name, "its state does not start from an initial potential", _SAVE)
        shape = source.shape
        if 5 * math.prod(shape) > self._most():
            raise RefusalError(name, f"its currents have shape {shape}, more than {self._most() // 5} values", _CHECK)
        try:
            full, decay = _full(threshold, shape), _full(beta, shape).double()
            _full(initial.potential, shape), _full(initial.level, shape), _full(slope, shape)
        except RuntimeError:
            raise RefusalError(
                name,
                f"its currents have shape {shape}, its thresholds {tuple(threshold.shape)} and its potentials "
                f"{tuple(initial.potential.shape)}",
                _CHECK,
            ) from None
        zeros = torch.zeros(shape, dtype=self.dtype)
        fields = {"r": torch.ones_like(zeros)}
        if not bool((decay == 1).all()):
            if not bool(((decay >= 0) & (decay < 1)).all()):
                raise RefusalError(name, "its beta is not in [0, 1) for all neurons, nor 1 for all", _SAVE)
            tau = (1 / (1 - decay)).to(self.dtype).cpu()
            fields = {"tau": tau, "r": tau, "v_leak": zeros}
        fields |= {"v_threshold": full, "v_reset": zeros}
        metadata = {
            "kind": "neuron",
            "module": name,
            "initial": initial.module,
            "threshold": _array(threshold),
            "beta": _array(beta),
            "slope": _array(slope),
            "potential": _array(initial.potential),
            "level": _array(initial.level),
        }
        kind = "LIF" if "tau" in fields else "IF"
        added = self._add(name, kind, {key: _array(value) for key, value in fields.items()}, metadata, source)
        self.states += 1
        return _Value(shape, added), _State(initial.state)

    # Functions

    def _function(self, node: fx.Node) -> Any:
        found: Any = fx.map_arg((node.args, node.kwargs), self.values.__getitem__)
        args, kwargs = found
        if node.target is operator.getitem or not any(
            isinstance(self.values[source], _Value) for source in node.all_input_nodes
        ):
            return _run(node, args, kwargs)
        values = [arg for arg in args if isinstance(arg, _Value)]
        if node.target is operator.neg:
            return self._elementwise(node, "neg", values[0], torch.tensor(-1.0), torch.tensor(0.0), {})
        if node.target in ARITHMETIC:
            if len(values) == 1:
                return self._constant(node, *args)
            left, right = values
            if left.shape == right.shape and node.target is operator.sub:
                right = self._elementwise(node, "neg", right, torch.tensor(-1.0), torch.tensor(0.0), {})
            if left.shape != right.shape or node.target not in (operator.add, operator.sub):
                raise RefusalError(_name(node), f"a product, or sum of shapes {left.shape} and {right.shape}", _SAVE)
            return _Value(left.shape, (left.terms, right.terms))
        if len(values) == 1 and values[0] is args[0] and node.target in _MOVES:
            return self._moved(node, values[0], args[1:], kwargs)
        raise RefusalError(_name(node), f"NIR has no {_name(node).rstrip('_0123456789')}", _SAVE)

    def _constant(self, node: fx.Node, left: Any, right: Any) -> _Value:
        """Describe arithmetic with a number, or a tensor of the network's own."""
        swapped = isinstance(right, _Value)
        source, operand = (right, left) if swapped else (left, right)
        attribute = node.args[0 if swapped else 1]
        metadata: Tree = {"operand": np.float64(operand) if isinstance(operand, (int, float)) else _array(operand)}
        if isinstance(attribute, fx.Node) and attribute.op == "get_attr":
            metadata["attribute"] = str(attribute.target)
        elif isinstance(attribute, fx.Node) and isinstance(operand, Tensor):
            raise RefusalError(_name(node), "it computes with a tensor that is none of the network's own", _SAVE)
        c, zero, one = torch.as_tensor(operand, dtype=torch.float64).cpu(), torch.tensor(0.0), torch.tensor(1.0)
        kind = ARITHMETIC[node.target]
        if kind == "div" and swapped:
            raise RefusalError(_name(node), "NIR has no quotient of a number and a tensor", _SAVE)
        weights = {"add": (one, c), "sub": (-one, c) if swapped else (one, -c), "mul": (c, zero), "div": (1 / c, zero)}
        metadata["swapped"] = np.int64(swapped)
        return self._elementwise(node, kind, source, *weights[kind], metadata)

    def _elementwise(
        self, node: fx.Node, kind: str, source: _Value, weight: Tensor, bias: Tensor, metadata: Tree
    ) -> _Value:
        try:
            nir_kind, fields = _affine(weight.to(self.dtype), bias.to(self.dtype), source.shape, self._most())
        except _UnfitError as error:
            raise RefusalError(_name(node), str(error), error.remedy) from None
        return _Value(source.shape, self._add(kind, nir_kind, fields, {"kind": kind} | metadata, source))

    def _moved(self, node: fx.Node, source: _Value, args: Any, kwargs: Any) -> Any:
        """Describe what flattens, and see through what does nothing; sizes are numbers."""
        samples = torch.empty((2, *source.shape), device="meta")
        try:
            found = _run(node, (samples, *args), kwargs)
        except RuntimeError as error:
            raise RefusalError(
                _name(node), f"it does not fit an input of shape {source.shape} ({error})", _CHECK
            ) from None
        if not isinstance(found, Tensor):
            return found
        shape = tuple(found.shape[1:])
        if found.shape[0] != 2 or (shape != source.shape and _merged(source.shape, shape) is None):
            raise RefusalError(
                _name(node), f"NIR has no reshaping of {source.shape} to {shape}, only flattening", _SAVE
            )
        if shape == source.shape:
            return source
        return self._flatten("flatten", source, shape)

    def _flatten(self, name: str, source: _Value, shape: Shape) -> _Value:
        start, end = _merged(source.shape, shape) or (0, -1)
        fields = {"input_type": _ints(source.shape), "start_dim": np.int64(start), "end_dim": np.int64(end)}
        return _Value(shape, self._add(name, "Flatten", fields, {"kind": "flatten"}, source))


_CHECK = "Check `input_shape`"


_SAVE = "Keep the network in a file of `snnreg_plugins.save_network` instead"


_REMEDIES = {
    "max pooling of spikes": "Use average pooling in the model",
    "MaxPool2d": "Use average pooling in the model",
    "MaxPool1d": "Use average pooling in the model",
    "pooling of unequal windows": "Use an average pooling whose windows are all of one size",
}


ARITHMETIC: dict[Any, str] = {
    operator.add: "add", operator.sub: "sub", operator.mul: "mul", operator.truediv: "div"
}  # fmt: skip


_MOVES: set[Any] = {
    "view", "reshape", "flatten", "squeeze", "contiguous", "expand", "size", "dim", torch.flatten, torch.squeeze,
    torch.reshape, getattr,
}  # fmt: skip


def _run(node: fx.Node, args: Any, kwargs: Any) -> Any:
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


class _UnfitError(Exception):
    """Says why a module is none of NIR."""

    def __init__(self, reason: str, remedy: str = _SAVE) -> None:
        super().__init__(reason)
        self.remedy = remedy


class RefusalError(ConversionError):
    """A layer that is none of NIR.

    Args:
        layer: Its name.
        what: Why.
        remedy: What to do.
    """

    def __init__(self, layer: str, what: str, remedy: str) -> None:
        super().__init__(f"Cannot write layer {layer!r} to NIR: {what}. {remedy}.")
        self.layer, self.what = layer, what


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else node.name


def _what(module: nn.Module) -> str:
    names = {"SpikeMaxPool": "max pooling of spikes", "AdaptiveSumPool": "pooling of unequal windows"}
    return names.get(type(module).__name__, type(module).__name__)


def is_module_name(name: str) -> bool:
    """Tell whether a file may name a module so: what it names becomes an attribute, and stands in generated code."""
    parts = name.split(".")
    return all(NAME.fullmatch(part) and not keyword.iskeyword(part) and part[:2] != "__" for part in parts)


def _dtype(network: SpikingNetwork) -> torch.dtype:
    found = {
        values.dtype
        for name, values in network.state_dict().items()
        if values.is_floating_point() and not name.endswith("graded_spikes_factor")
    }
    for name, values in network.state_dict().items():
        if not bool(values.isfinite().all()):
            raise ValueError(f"Expected argument `network` to hold finite values, but {name!r} holds NaN or infinity.")
    if len(found) != 1 or not found <= set(DTYPES.values()):
        names = sorted(str(dtype) for dtype in found)
        raise ValueError(f"Expected argument `network` to be of one dtype of {sorted(DTYPES)}, but got {names}.")
    dtype: torch.dtype = found.pop()
    return dtype


def _as_json(conversion: Mapping[str, Any]) -> str:
    try:
        return json.dumps(conversion, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Expected argument `network` to have a `conversion` of plain data, but got {conversion!r}: {error}"
        ) from error


def _ints(values: Sequence[int]) -> Any:
    return np.array(values, dtype=np.int64)


def _is_real(field: Any) -> bool:
    return isinstance(field, np.ndarray) and field.dtype.kind == "f"


def _array(values: Tensor) -> Any:
    """Give values for a file, which knows no bfloat16; all of them are float32 too."""
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).contiguous().numpy()


def _full(values: Tensor, shape: Shape) -> Tensor:
    """Give a value for each neuron."""
    return torch.broadcast_to(values.detach().cpu(), (1, *shape))[0]


def _merged(shape: Shape, flat: Shape) -> tuple[int, int] | None:
    """Find the first and last dimension that are merged from one shape to the other; the last, where it is, as -1."""
    for start in range(len(shape)):
        for end in range(start + 1, len(shape)):
            if (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]) == flat:
                return start, -1 if end == len(shape) - 1 else end
    return None


def _dynamics(name: str, module: nn.Module) -> Dynamics:
    """Read what the neurons of a layer do."""
    framework = framework_of(module)
    dynamics = framework.load().describe(module) if framework is not None and framework.load is not None else None
    if dynamics is None:
        raise RefusalError(name, "its neurons are not those that this package makes", _SAVE)
    return dynamics


# Modules as nodes: each function takes the shape that comes in and the most values that a field may have, and gives the
# type, the fields, the metadata, and the shape that comes out.

_Node: TypeAlias = tuple[str, Tree, Tree, Shape]


def _linear(module: nn.Linear, shape: Shape, _: int = ELEMENTS) -> _Node:
    if shape != (module.in_features,):
        raise _UnfitError(f"its input has shape {shape}, and an affine node of NIR takes ({module.in_features},)")
    # A `Linear` node, which has no bias, is not known to all that read NIR.
    bias = torch.zeros(module.out_features, dtype=module.weight.dtype) if module.bias is None else module.bias
    fields = {"weight": _array(module.weight), "bias": _array(bias)}
    return "Affine", fields, {"kind": "linear", "has_bias": np.int64(module.bias is not None)}, (module.out_features,)


def _conv(module: nn.Conv1d | nn.Conv2d, shape: Shape, _: int = ELEMENTS) -> _Node:
    dims = len(module.kernel_size)
    if module.padding_mode != "zeros":
        raise _UnfitError(
            f"NIR pads by zeros, and not by padding_mode={module.padding_mode!r}", "Use padding_mode='zeros'"
        )
    if len(shape) != 1 + dims or shape[0] != module.in_channels:
        raise _UnfitError(f"its input has shape {shape}, which does not fit {module}", _CHECK)
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
        raise _UnfitError(f"its kernel is larger than its input of shape {shape}", _CHECK)
    bias = torch.zeros(module.out_channels, dtype=module.weight.dtype) if module.bias is None else module.bias

    def number(values: tuple[int, ...]) -> Any:
        return _ints(values) if dims == 2 else np.int64(values[0])

    fields = {
        "input_shape": number(shape[1:]),
        "weight": _array(module.weight),
        "stride": number(module.stride),
        "padding": padding if isinstance(padding, str) else number(padding),
        "dilation": number(module.dilation),
        "groups": np.int64(module.groups),
        "bias": _array(bias),
    }
    metadata = {"kind": "conv", "has_bias": np.int64(module.bias is not None)}
    return f"Conv{dims}d", fields, metadata, (module.out_channels, *sizes)


def _affine(weight: Tensor, bias: Tensor, shape: Shape, most: int) -> tuple[str, Tree]:
    """Describe a map of each value by itself, ``weight * x + bias``."""
    try:
        full, shift = _full(weight, shape), _full(bias, shape)
    except RuntimeError:
        raise _UnfitError(
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
        layer.weight = nn.Parameter(full[first].reshape(-1, 1, *[1] * dims))
        layer.bias = nn.Parameter(shift[first].contiguous())
        kind, fields, _, _ = _conv(layer, shape)
        return kind, fields
    values *= shape[-1] if bool(bias.any()) else 1
    if values > most:
        raise _UnfitError(
            f"on an input of shape {shape}, NIR has it as {values} values only, which is more than {most}"
        )
    if not bool(bias.any()):
        return "Scale", {"scale": _array(full)}
    return "Affine", {"weight": _array(torch.diag_embed(full)), "bias": _array(shift)}


def _synapse(module: OneToOne, shape: Shape, most: int) -> _Node:
    kind, fields = _affine(module.weight, torch.zeros_like(module.weight), shape, most)
    return kind, fields, {"kind": "synapse", "weight": _array(module.weight)}, shape


def _current(module: Current, shape: Shape, most: int) -> _Node:
    kind, fields = _affine(torch.ones_like(module.bias), module.bias, shape, most)
    return kind, fields, {"kind": "current", "bias": _array(module.bias)}, shape


def _channel_affine(module: ChannelAffine, shape: Shape, most: int) -> _Node:
    sizes = (-1, *[1] * (len(shape) - 1))
    kind, fields = _affine(module.weight.reshape(sizes), module.bias.reshape(sizes), shape, most)
    return kind, fields, {"kind": "affine", "weight": _array(module.weight), "bias": _array(module.bias)}, shape


def _pooled(shape: Shape, kernel: Any, stride: Any, padding: Any, ceil_mode: bool) -> Shape:
    if len(shape) != 1 + len(kernel):
        raise _UnfitError(f"its input has shape {shape}, which is not (C, *spatial)")
    windows = list(zip(shape[1:], kernel, stride, padding, strict=True))
    spans = [size + 2 * pad - window for size, window, _, pad in windows]
    if min(spans) < 0 or any(2 * pad > window for _, window, _, pad in windows):
        raise _UnfitError(f"its windows do not fit an input of shape {shape}", _CHECK)
    if ceil_mode and any(span % step for span, step in zip(spans, stride, strict=True)):
        raise _UnfitError(f"NIR has no ceil_mode, which matters for an input of shape {shape}", "Use ceil_mode=False")
    return (shape[0], *(span // step + 1 for span, step in zip(spans, stride, strict=True)))


def _sums(shape: Shape, kernel: Any, stride: Any, padding: Any, dtype: torch.dtype) -> tuple[str, Tree]:
    """Describe sums over windows: in one dimension, as a convolution with ones."""
    if len(kernel) == 2:
        return "SumPool2d", {"kernel_size": _ints(kernel), "stride": _ints(stride), "padding": _ints(padding)}
    channels = shape[0]
    options: Any = {"stride": stride, "padding": padding, "groups": channels, "bias": False, "device": "meta"}
    layer = nn.Conv1d(channels, channels, kernel, **options)
    layer.weight = nn.Parameter(torch.ones((channels, 1, *kernel), dtype=dtype))
    kind, fields, _, _ = _conv(layer, shape)
    return kind, fields


def _sum_pool(module: SumPool, shape: Shape, _: int = ELEMENTS) -> _Node:
    window = (module.kernel_size, module.stride, module.padding)
    if module.dims == 3:
        raise _UnfitError("NIR has no 3d pooling")
    pooled = _pooled(shape, *window, module.ceil_mode)
    kind, fields = _sums(shape, *window, torch.float32)
    names = ("kernel_size", "stride", "padding")
    metadata: Tree = {name: _ints(value) for name, value in zip(names, window, strict=True)}
    metadata |= {"kind": "sum_pool", "ceil_mode": np.int64(module.ceil_mode)}
    return kind, fields, metadata, pooled


def _sum_over(module: SumOver, shape: Shape, _: int = ELEMENTS) -> _Node:
    if len(shape) not in (2, 3) or module.dims != tuple(range(2, 1 + len(shape))):
        raise _UnfitError(f"NIR has no sum over dimensions {module.dims} of {(-1, *shape)}, only over all spatial ones")
    ones, zeros = (1,) * (len(shape) - 1), (0,) * (len(shape) - 1)
    kind, fields = _sums(shape, shape[1:], ones, zeros, torch.float32)
    metadata = {"kind": "sum_over", "dims": _ints(module.dims), "keepdim": np.int64(module.keepdim)}
    return kind, fields, metadata, (shape[0], *ones)


def _avg_pool(module: nn.AvgPool2d, shape: Shape, _: int = ELEMENTS) -> _Node:
    window: Any = [
        (one, one) if isinstance(one, int) else one for one in (module.kernel_size, module.stride, module.padding)
    ]
    if module.divisor_override or (any(window[2]) and not module.count_include_pad):
        raise _UnfitError("NIR has no divisor_override, and counts what pads", "Use its defaults")
    names = ("kernel_size", "stride", "padding")
    fields = {name: _ints(value) for name, value in zip(names, window, strict=True)}
    metadata: Tree = {"kind": "avg_pool", "ceil_mode": np.int64(module.ceil_mode)}
    return "AvgPool2d", fields, metadata, _pooled(shape, window[0], window[1], window[2], module.ceil_mode)


def _flatten(module: nn.Flatten, shape: Shape, _: int = ELEMENTS) -> _Node:
    start, end = (dim % (len(shape) + 1) - 1 for dim in (module.start_dim, module.end_dim))
    if start < 0:
        raise _UnfitError("it flattens the batch")
    flat = (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :])
    last = -1 if end == len(shape) - 1 else end
    fields = {"input_type": _ints(shape), "start_dim": np.int64(start), "end_dim": np.int64(last)}
    return "Flatten", fields, {"kind": "flatten_module"}, flat


_MODULES: dict[Any, Callable[[Any, Shape, int], _Node]] = {
    nn.Linear: _linear,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    OneToOne: _synapse,
    Current: _current,
    ChannelAffine: _channel_affine,
    SumPool: _sum_pool,
    SumOver: _sum_over,
    nn.AvgPool2d: _avg_pool,
    nn.Flatten: _flatten,
}
