"""From a spiking network to a graph of NIR, as plain data."""

from __future__ import annotations

import json
import math
import operator
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, fx, nn

from snnreg_plugins._files import digest
from snnreg_plugins.export.refusals import ConversionError
from snnreg_plugins.frameworks.base import Dynamics
from snnreg_plugins.frameworks.registry import framework_of
from snnreg_plugins.frameworks.surrogate import surrogate_of
from snnreg_plugins.nir.fields import DTYPES, ELEMENTS, LEAVES, Shape, array_of, ints, is_module_name
from snnreg_plugins.nir.hdf5 import Tree
from snnreg_plugins.nir.nodes import CHECK, KINDS, SAVE, UnfitError, elementwise, full
from snnreg_plugins.spiking.coding import LatencyCoder, PoissonCoder
from snnreg_plugins.spiking.layers import AdaptiveSumPool, InitialState, SpikeMaxPool, SumOver
from snnreg_plugins.spiking.network import SpikingNetwork
from snnreg_plugins.watching.layers import is_spiking_neuron

FORMAT = "snnreg_plugins spiking network 1"


_RESET = "subtract v_threshold, in the step after the spike"


_READOUT = "mean of the outputs over the steps"


#: What a sum consists of: the name of a node, or two sums.
_Terms: TypeAlias = "str | tuple[_Terms, _Terms]"


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
        self.stored = array_of(torch.empty((), dtype=self.dtype)).dtype
        self.nodes: dict[str, Tree] = {}
        self.edges: list[tuple[str, str]] = []
        self.states = 0
        self.once = True
        self.nodes["input"] = {"type": "Input", "shape": ints(input_shape), "metadata": {"kind": "input"}}
        constants = self._walk(network.encoder, _Value(input_shape, "input"))
        self.once = False
        output, states = self._walk(network.body, constants, tuple(_State(i) for i in range(network._states)))
        if tuple(states) != tuple(_State(i) for i in range(self.states)) or not isinstance(output, _Value):
            raise RefusalError("output", "its states are not those of its neurons in their order", SAVE)
        if isinstance(output.terms, tuple):  # those who read NIR return what enters an output one by one
            output = _Value(output.shape, self._same("output_sum", output))
        self._add("output", "Output", {"shape": ints(output.shape)}, {"kind": "output"}, output)
        margins = network.exit_margins
        self.graph: Tree = {
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
                **({} if margins is None else {"exit_margins": json.dumps(margins)}),
            },
        }
        self.graph["metadata"]["digest"] = digest(self.graph)

    def _walk(self, part: fx.GraphModule, *inputs: Any) -> Any:
        walk = _Walk(part, self)
        walk.extra_traceback = False
        return walk.run(*inputs)

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
            metadata["sum"] = ints(steps)
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
                raise RefusalError(reader, f"it reads a sum of more than {LEAVES} tensors", SAVE)
        return leaves, steps

    def _most(self) -> int:
        """Give how many values a field may have."""
        return min(ELEMENTS, self.left)

    def _same(self, name: str, source: _Value) -> str:
        """Add a node that does nothing."""
        ones = torch.ones(source.shape, dtype=self.dtype)
        return self._add(name, "Scale", {"scale": array_of(ones)}, {"kind": "identity"}, source)

    # Modules

    def module(self, node: fx.Node, module: nn.Module, args: tuple[Any, ...]) -> Any:
        """Describe a call of a module; gives what stands for its output."""
        name, source = str(node.target), args[0]
        if not is_module_name(name):
            raise RefusalError(name, "its name is none that a file may hold", "Use letters, digits and underscores")
        if isinstance(module, InitialState):
            return _Initial(source.number, name, module.potential, module.level)
        if not isinstance(source, _Value):
            raise RefusalError(name, "it reads something that is no tensor of the network", SAVE)
        if isinstance(module, (PoissonCoder, LatencyCoder)):
            return self._coder(node, module, source, args[1])
        if is_spiking_neuron(module):
            return self._neuron(name, module, source, args[1])
        for kind, row in KINDS.items():
            if any(isinstance(module, base) and type(module).forward is base.forward for base in row.modules):
                return self._layer(name, module, source, kind)
        raise RefusalError(name, f"NIR has no {_what(module)}", _REMEDIES.get(_what(module), SAVE))

    def _layer(self, name: str, module: nn.Module, source: _Value, kind: str) -> _Value:
        try:
            of, fields, metadata, shape = KINDS[kind].describe(module, source.shape, self._most())
            if math.prod(shape) > ELEMENTS:
                raise UnfitError(f"its output has shape {shape}, which is more than {ELEMENTS} values", CHECK)
        except UnfitError as error:
            raise RefusalError(name, str(error), error.remedy) from None
        added = self._add(name, of, fields, {"kind": kind} | metadata | {"module": name}, source)
        if isinstance(module, SumOver) and not module.keepdim:
            fields = {"input_type": ints(shape), "start_dim": np.int64(0), "end_dim": np.int64(-1)}
            added = self._add(f"{name}_flatten", "Flatten", fields, {"kind": "squeeze"}, _Value(shape, added))
            shape = shape[:1]
        return _Value(shape, added)

    def _coder(
        self, node: fx.Node, module: PoissonCoder | LatencyCoder, source: _Value, state: _State
    ) -> tuple[_Value, _State]:
        alone = source.terms == "input" and len(node.args[0].users) == 1 and not self.edges  # type: ignore[union-attr]
        if not alone or state.number != self.states:
            raise RefusalError(str(node.target), "something else reads the input too, uncoded", SAVE)
        metadata = {"kind": "poisson", "module": str(node.target), "largest": np.float64(module.largest)}
        if isinstance(module, LatencyCoder):
            metadata |= {"kind": "latency", "timesteps": np.int64(module.timesteps)}
        self.nodes["input"]["metadata"] = metadata
        self.states += 1
        return source, state

    def _neuron(self, name: str, module: nn.Module, source: _Value, initial: Any) -> tuple[_Value, _State]:
        threshold, beta, surrogate = _dynamics(name, module)
        if not isinstance(initial, _Initial) or initial.state != self.states:
            raise RefusalError(name, "its state does not start from an initial potential", SAVE)
        shape = source.shape
        if 5 * math.prod(shape) > self._most():
            raise RefusalError(name, f"its currents have shape {shape}, more than {self._most() // 5} values", CHECK)
        try:
            every, decay = full(threshold, shape), full(beta, shape).double()
            full(initial.potential, shape), full(initial.level, shape), full(surrogate.slope, shape)
        except RuntimeError:
            raise RefusalError(
                name,
                f"its currents have shape {shape}, its thresholds {tuple(threshold.shape)} and its potentials "
                f"{tuple(initial.potential.shape)}",
                CHECK,
            ) from None
        zeros = torch.zeros(shape, dtype=self.dtype)
        fields = {"r": torch.ones_like(zeros)}
        if not bool((decay == 1).all()):
            if not bool(((decay >= 0) & (decay < 1)).all()):
                raise RefusalError(name, "its beta is not in [0, 1) for all neurons, nor 1 for all", SAVE)
            tau = (1 / (1 - decay)).to(self.dtype).cpu()
            fields = {"tau": tau, "r": tau, "v_leak": zeros}
        fields |= {"v_threshold": every, "v_reset": zeros}
        metadata = {
            "kind": "neuron",
            "module": name,
            "initial": initial.module,
            "threshold": array_of(threshold),
            "beta": array_of(beta),
            "slope": array_of(surrogate.slope),
            "potential": array_of(initial.potential),
            "level": array_of(initial.level),
        }
        told = surrogate_of(surrogate), surrogate.steepness
        if told != ("fast_sigmoid", None):
            metadata |= {"surrogate": told[0], "steepness": np.float64(told[1] or 0)}
        kind = "LIF" if "tau" in fields else "IF"
        added = self._add(name, kind, {key: array_of(value) for key, value in fields.items()}, metadata, source)
        self.states += 1
        return _Value(shape, added), _State(initial.state)

    # Functions

    def function(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Describe a call of a function or method on tensors; gives what stands for its output."""
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
                raise RefusalError(_name(node), f"a product, or sum of shapes {left.shape} and {right.shape}", SAVE)
            return _Value(left.shape, (left.terms, right.terms))
        if len(values) == 1 and values[0] is args[0] and node.target in _MOVES:
            return self._moved(node, values[0], args[1:], kwargs)
        what = "indexing" if node.target is operator.getitem else _name(node).rstrip("_0123456789")
        raise RefusalError(_name(node), f"NIR has no {what}", SAVE)

    def _constant(self, node: fx.Node, left: Any, right: Any) -> _Value:
        """Describe arithmetic with a number, or a tensor of the network's own."""
        swapped = isinstance(right, _Value)
        source, operand = (right, left) if swapped else (left, right)
        attribute = node.args[0 if swapped else 1]
        metadata: Tree = {"operand": np.float64(operand) if isinstance(operand, (int, float)) else array_of(operand)}
        if isinstance(attribute, fx.Node) and attribute.op == "get_attr":
            metadata["attribute"] = str(attribute.target)
        elif isinstance(attribute, fx.Node) and isinstance(operand, Tensor):
            raise RefusalError(_name(node), "it computes with a tensor that is none of the network's own", SAVE)
        c, zero, one = torch.as_tensor(operand, dtype=torch.float64).cpu(), torch.tensor(0.0), torch.tensor(1.0)
        kind = ARITHMETIC[node.target]
        if kind == "div" and swapped:
            raise RefusalError(_name(node), "NIR has no quotient of a number and a tensor", SAVE)
        weights = {"add": (one, c), "sub": (-one, c) if swapped else (one, -c), "mul": (c, zero), "div": (1 / c, zero)}
        metadata["swapped"] = np.int64(swapped)
        return self._elementwise(node, kind, source, *weights[kind], metadata)

    def _elementwise(
        self, node: fx.Node, kind: str, source: _Value, weight: Tensor, bias: Tensor, metadata: Tree
    ) -> _Value:
        try:
            nir_kind, fields = elementwise(weight.to(self.dtype), bias.to(self.dtype), source.shape, self._most())
        except UnfitError as error:
            raise RefusalError(_name(node), str(error), error.remedy) from None
        return _Value(source.shape, self._add(kind, nir_kind, fields, {"kind": kind} | metadata, source))

    def _moved(self, node: fx.Node, source: _Value, args: Any, kwargs: Any) -> Any:
        """Describe what flattens, and see through what does nothing; sizes are numbers."""
        samples = torch.empty((2, *source.shape), device="meta")
        try:
            found = _call(node, (samples, *args), kwargs)
        except RuntimeError as error:
            raise RefusalError(
                _name(node), f"it does not fit an input of shape {source.shape} ({error})", CHECK
            ) from None
        if not isinstance(found, Tensor):
            return found
        shape = tuple(found.shape[1:])
        if found.shape[0] != 2 or (shape != source.shape and _merged(source.shape, shape) is None):
            raise RefusalError(_name(node), f"NIR has no reshaping of {source.shape} to {shape}, only flattening", SAVE)
        if shape == source.shape:
            return source
        return self._flatten("flatten", source, shape)

    def _flatten(self, name: str, source: _Value, shape: Shape) -> _Value:
        start, end = _merged(source.shape, shape) or (0, -1)
        fields = {"input_type": ints(source.shape), "start_dim": np.int64(start), "end_dim": np.int64(end)}
        return _Value(shape, self._add(name, "Flatten", fields, {"kind": "flatten"}, source))


_REMEDIES = {
    "max pooling of spikes": "Use average pooling in the model",
    "BatchNorm": "Fold it by snnreg_plugins.deploy(network)",
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


def _call(node: fx.Node, args: Any, kwargs: Any) -> Any:
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


class _Walk(fx.Interpreter):
    """Goes through a part of the network with what stands for its tensors."""

    def __init__(self, part: fx.GraphModule, description: Description) -> None:
        super().__init__(part)
        self.description = description

    def run_node(self, n: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if n.op == "call_module":
            return self.description.module(n, self.fetch_attr(str(n.target)), args)
        reads_tensor = any(isinstance(self.env[source], _Value) for source in n.all_input_nodes)
        if n.op in ("call_function", "call_method") and reads_tensor:
            return self.description.function(n, args, kwargs)
        return super().run_node(n)


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
    names = {SpikeMaxPool: "max pooling of spikes", AdaptiveSumPool: "pooling of unequal windows"}
    return names.get(type(module), type(module).__name__)


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


def _is_real(field: Any) -> bool:
    return isinstance(field, np.ndarray) and field.dtype.kind == "f"


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
        raise RefusalError(name, "its neurons are not those that this package makes", SAVE)
    return dynamics
