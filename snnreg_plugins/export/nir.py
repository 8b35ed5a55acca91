"""Spiking networks as NIR files, which come back as the same network in snnTorch or Norse.

A network is described as a plain graph, first: nodes of NIR's types with their fields, and in the metadata of each what
NIR does not say. To write is to describe a network and hand the graph to ``nir``; to read is to build a network from a
graph, to describe that network, and to accept it only if the two graphs are the same, number by number.
"""

from __future__ import annotations

import json
import keyword
import math
import operator
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, fx, nn

from snnreg_plugins._files import atomic
from snnreg_plugins.export.coding import LatencyCoder, PoissonCoder
from snnreg_plugins.export.graph import ConversionError, add_submodule
from snnreg_plugins.export.hdf5 import NAME, Tree, import_h5py, opened
from snnreg_plugins.export.network import SpikingNetwork
from snnreg_plugins.export.parts import ChannelAffine, Current, InitialState, SumOver, SumPool
from snnreg_plugins.export.surrogate import FastSigmoid
from snnreg_plugins.functional.synapses import OneToOne
from snnreg_plugins.probes import is_spiking_neuron

_FORMAT = "snnreg_plugins spiking network 1"
_RESET = "subtract v_threshold, in the step after the spike"
_READOUT = "mean of the outputs over the steps"
_DTYPES = {str(dtype)[6:]: dtype for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}
# The most values of a tensor of one sample, and of a field: 1 GiB of float32.
_ELEMENTS = 2**28
_LARGEST_INT = 2**31 - 1
_LEAVES = 1000

#: What a sum consists of: the name of a node, or two sums.
_Terms: TypeAlias = "str | tuple[_Terms, _Terms]"
_Shape: TypeAlias = tuple[int, ...]


def to_nir(
    network: SpikingNetwork, path: str | os.PathLike[str], *, input_shape: Sequence[int] | None = None
) -> None:
    r"""Write a spiking network as a NIR file (Pedersen et al. 2024), for :func:`from_nir` and for other tools.

    The standard fields have the standard meaning, with a time step of 1: neurons are ``IF`` with r = 1 where β = 1, and
    ``LIF`` with :math:`\tau = r = 1 / (1 - \beta)` otherwise; sum pooling is ``SumPool2d``, one-to-one synapses
    are ``Scale``, a bias that differs from place to place is an ``Affine`` of one weight a neuron, and a node that
    several edges enter gets their sum. What NIR cannot say is in the metadata: neurons of this package
    *subtract* the threshold, a step after the spike, and start from an initial potential; NIR's set the potential to
    ``v_reset``. Where the input is coded into spikes at random or by latency, a network elsewhere expects these spikes.

    Args:
        network: A network of :func:`~snnreg_plugins.to_snntorch` or :func:`~snnreg_plugins.to_norse`; it is not run.
        path: The file; it is there whole or not at all.
        input_shape: Shape of one input, without the batch: ``(C, H, W)``. Not needed where
            ``network.conversion["input_shape"]`` says it.

    Raises:
        ConversionError: If NIR cannot express a layer: max pooling of spikes, concatenation, transposed or
            3d convolution, padding other than by zeros, pools of unequal windows, a head that does not spike, a
            reshape that is no flattening. Names the layer and what to do.
        ValueError: If ``input_shape`` is missing, or does not fit the network.
        ImportError: If nir or h5py is missing.

    Example:
        >>> import tempfile
        >>> from snnreg_plugins import to_snntorch
        >>> model, x = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3)), torch.rand(50, 2)
        >>> network = to_snntorch(model, x, timesteps=4)
        >>> path = os.path.join(tempfile.mkdtemp(), "network.nir")
        >>> to_nir(network, path, input_shape=(2,))
        >>> torch.equal(from_nir(path, target="norse")(x), network(x))
        True
    """
    import_h5py()
    try:
        import nir
    except ImportError as error:
        raise ImportError('NIR files need nir and h5py: pip install "snnreg_plugins[nir]"') from error
    if not isinstance(network, SpikingNetwork):
        raise TypeError(f"Expected argument `network` to be a SpikingNetwork, but got {type(network).__name__}.")
    graph = _Description(network, _input_shape(network, input_shape)).graph
    nodes = {}
    for name, node in graph["nodes"].items():
        fields = {key: value for key, value in node.items() if key not in ("type", "shape")}
        if "shape" in node:
            fields["input_type" if node["type"] == "Input" else "output_type"] = node["shape"]
        nodes[name] = getattr(nir, node["type"])(**fields)
    # The shapes are known; those that nir infers are wrong for grouped convolutions and kernels that are not square.
    whole = nir.NIRGraph(nodes, graph["edges"], graph["metadata"], type_check=False)
    with atomic(path) as temporary:
        nir.write(temporary, whole, compression=None)
        _read(temporary, "snntorch" if "snntorch" in sys.modules else "norse")


def from_nir(path: str | os.PathLike[str], target: str = "snntorch") -> SpikingNetwork:
    """Read a spiking network from a NIR file of :func:`to_nir`.

    The file may come from anyone: no code is run from it, no link in it is followed, it cannot claim more memory than
    it has bytes, and it is taken whole or not at all. It must say the same thing in the standard fields and in the
    metadata.

    A NIR file of another tool is refused: the neurons of NIR set their potential to ``v_reset`` when they fire, and
    say nothing of time steps, which are other dynamics than those of a :class:`~snnreg_plugins.SpikingNetwork`; read
    it with ``norse.torch.from_nir`` or ``snntorch.import_nir.import_from_nir``.

    Args:
        path: The file.
        target: ``"snntorch"`` or ``"norse"``, whichever the network was exported to before.

    Returns:
        The network that was written, on the CPU: spikes, scores, ``state_dict`` (of the same target), time steps and
        ``conversion`` are equal, and it can be trained.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If ``target`` is unknown, or the file is damaged, is not one of :func:`to_nir`, or contradicts
            itself; names the file, the node and what is wrong.
        ImportError: If h5py is missing.

    Example:
        >>> import tempfile
        >>> from snnreg_plugins import to_snntorch
        >>> model, x = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3)), torch.rand(50, 2)
        >>> path = os.path.join(tempfile.mkdtemp(), "network.nir")
        >>> to_nir(to_snntorch(model, x, timesteps=4), path, input_shape=(2,))
        >>> from_nir(path).timesteps
        4
    """
    if target not in ("snntorch", "norse"):
        raise ValueError(f"Expected argument `target` to be 'snntorch' or 'norse', but got {target!r}.")
    return _read(path, target)


def _input_shape(network: SpikingNetwork, given: Sequence[int] | None) -> _Shape:
    found = network.conversion.get("input_shape") if given is None else given
    if found is None:
        raise ValueError("Expected argument `input_shape` to be given, as the network does not say it, but got None.")
    shape = tuple(found)
    if not shape or not all(isinstance(size, int) and size > 0 for size in shape) or math.prod(shape) > _ELEMENTS:
        raise ValueError(f"Expected argument `input_shape` to be positive integers, such as (1, 28, 28), but got {found}.")
    return shape


# From a network to a graph


@dataclass(frozen=True)
class _Value:
    """A tensor of the network: the shape of one sample, and the nodes whose sum it is."""

    shape: _Shape
    terms: _Terms


@dataclass(frozen=True)
class _Initial:
    """The state that a neuron layer starts a step with."""

    state: int
    module: str
    potential: Tensor


@dataclass(frozen=True)
class _State:
    """A state, of that number."""

    number: int


class _Description:
    """What a network is, as a graph of NIR: names, fields as arrays, edges, metadata.

    Args:
        network: The network.
        input_shape: Shape of one input.

    Attributes:
        graph: As ``nir.NIRGraph.to_dict`` gives it.
    """

    def __init__(self, network: SpikingNetwork, input_shape: _Shape) -> None:
        if network.head is not None:
            raise _refusal("head", "only a part of the network spikes", "Export the whole model, without `until`")
        self.dtype = _dtype(network)
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
            raise _refusal("output", "its states are not those of its neurons in their order", _SAVE)
        self._add("output", "Output", {"shape": _ints(output.shape)}, {"kind": "output"}, output)
        self.graph = {
            "type": "NIRGraph",
            "nodes": self.nodes,
            "edges": self.edges,
            "metadata": {
                "format": _FORMAT,
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
                    ones = torch.ones(source.shape, dtype=self.dtype)
                    terms = self._add(f"{terms}_again", "Scale", {"scale": _array(ones)}, {"kind": "identity"},
                                      _Value(source.shape, terms))  # fmt: skip
                steps.append(len(leaves))
                leaves.append(terms)
            if len(leaves) > _LEAVES:
                raise _refusal(reader, f"it reads a sum of more than {_LEAVES} tensors", _SAVE)
        return leaves, steps

    def _get(self, node: fx.Node, value: Any = None) -> _Value:
        """Give the tensor that a node reads."""
        found = self.values.get(node.args[0]) if value is None else value  # type: ignore[arg-type]
        if not isinstance(found, _Value):
            raise _refusal(_name(node), "it reads something that is no tensor of the network", _SAVE)
        return found

    # Modules

    def _module(self, node: fx.Node, module: nn.Module) -> Any:
        name = str(node.target)
        if not is_module_name(name):
            raise _refusal(name, "its name is none that a file may hold", "Use letters, digits and underscores")
        if isinstance(module, InitialState):
            state = self.values[node.args[0]]  # type: ignore[index]
            return _Initial(state.number, name, module.potential)
        if isinstance(module, (PoissonCoder, LatencyCoder)):
            return self._coder(node, module)
        source = self._get(node)
        if is_spiking_neuron(module):
            return self._neuron(node, module, source)
        for base, describe in _MODULES.items():
            if isinstance(module, base) and type(module).forward is base.forward:
                try:
                    kind, fields, metadata, shape = describe(module, source.shape)
                except _Unfit as error:
                    raise _refusal(name, str(error), error.remedy) from None
                added = self._add(name, kind, fields, metadata | {"module": name}, source)
                if isinstance(module, SumOver) and not module.keepdim:
                    fields = {"input_type": _ints(shape), "start_dim": np.int64(0), "end_dim": np.int64(-1)}
                    added = self._add(f"{name}_flatten", "Flatten", fields, {"kind": "squeeze"}, _Value(shape, added))
                    shape = shape[:1]
                return _Value(shape, added)
        raise _refusal(name, f"NIR has no {_what(module)}", _REMEDIES.get(_what(module), _SAVE))

    def _coder(self, node: fx.Node, module: PoissonCoder | LatencyCoder) -> tuple[_Value, _State]:
        source, state = self._get(node), self.values[node.args[1]]  # type: ignore[index]
        alone = source.terms == "input" and len(node.args[0].users) == 1 and not self.edges  # type: ignore[union-attr]
        if not alone or state.number != self.states:
            raise _refusal(str(node.target), "something else reads the input too, uncoded", _SAVE)
        metadata = {"kind": "poisson", "module": str(node.target), "largest": np.float64(module.largest)}
        if isinstance(module, LatencyCoder):
            metadata |= {"kind": "latency", "timesteps": np.int64(module.timesteps)}
        self.nodes["input"]["metadata"] = metadata
        self.states += 1
        return source, state

    def _neuron(self, node: fx.Node, module: Any, source: _Value) -> tuple[_Value, _State]:
        name, initial = str(node.target), self.values[node.args[1]]  # type: ignore[index]
        threshold, beta, slope = _parameters(name, module)
        if not isinstance(initial, _Initial) or initial.state != self.states:
            raise _refusal(name, "its state does not start from an initial potential", _SAVE)
        shape = source.shape
        try:
            full, decay = _full(threshold, shape), _full(beta, shape).double()
            _full(initial.potential, shape), _full(slope, shape)
        except RuntimeError:
            raise ValueError(
                f"Expected argument `input_shape` to fit the network, but {name!r} would get currents of shape {shape}, "
                f"and has thresholds of shape {tuple(threshold.shape)}, potentials of {tuple(initial.potential.shape)}."
            ) from None
        zeros = torch.zeros(shape, dtype=self.dtype)
        fields = {"r": torch.ones_like(zeros)}
        if not bool((decay == 1).all()):
            if not bool(((decay >= 0) & (decay < 1)).all()):
                raise _refusal(name, "its beta is not in [0, 1) for all neurons, nor 1 for all", _SAVE)
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
        }
        kind = "LIF" if "tau" in fields else "IF"
        added = self._add(name, kind, {key: _array(value) for key, value in fields.items()}, metadata, source)
        self.states += 1
        return _Value(shape, added), _State(initial.state)

    # Functions

    def _function(self, node: fx.Node) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), self.values.__getitem__)
        if node.target is operator.getitem or not any(
            isinstance(self.values[source], _Value) for source in node.all_input_nodes
        ):
            return _run(node, args, kwargs)
        values = [arg for arg in args if isinstance(arg, _Value)]
        if node.target is operator.neg:
            return self._elementwise(node, "neg", values[0], torch.tensor(-1.0), torch.tensor(0.0), {})
        if node.target in _ARITHMETIC:
            if len(values) == 1:
                return self._constant(node, *args)
            left, right = values
            if left.shape == right.shape and node.target is operator.sub:
                right = self._elementwise(node, "neg", right, torch.tensor(-1.0), torch.tensor(0.0), {})
            if left.shape != right.shape or node.target not in (operator.add, operator.sub):
                raise _refusal(_name(node), f"a product, or sum of shapes {left.shape} and {right.shape}", _SAVE)
            return _Value(left.shape, (left.terms, right.terms))
        if len(values) == 1 and values[0] is args[0] and node.target in _MOVES:
            return self._moved(node, values[0], args[1:], kwargs)
        raise _refusal(_name(node), f"NIR has no {_name(node).rstrip('_0123456789')}", _SAVE)

    def _constant(self, node: fx.Node, left: Any, right: Any) -> _Value:
        """Describe arithmetic with a number, or a tensor of the network's own."""
        swapped = isinstance(right, _Value)
        source, operand = (right, left) if swapped else (left, right)
        attribute = node.args[0 if swapped else 1]
        metadata: Tree = {"operand": np.float64(operand) if isinstance(operand, (int, float)) else _array(operand)}
        if isinstance(attribute, fx.Node) and attribute.op == "get_attr":
            metadata["attribute"] = str(attribute.target)
        elif isinstance(attribute, fx.Node) and isinstance(operand, Tensor):
            raise _refusal(_name(node), "it computes with a tensor that is none of the network's own", _SAVE)
        c, zero, one = torch.as_tensor(operand, dtype=torch.float64).cpu(), torch.tensor(0.0), torch.tensor(1.0)
        kind = _ARITHMETIC[node.target]
        if kind == "div" and swapped:
            raise _refusal(_name(node), "NIR has no quotient of a number and a tensor", _SAVE)
        weights = {"add": (one, c), "sub": (-one, c) if swapped else (one, -c), "mul": (c, zero), "div": (1 / c, zero)}
        metadata["swapped"] = np.int64(swapped)
        return self._elementwise(node, kind, source, *weights[kind], metadata)

    def _elementwise(
        self, node: fx.Node, kind: str, source: _Value, weight: Tensor, bias: Tensor, metadata: Tree
    ) -> _Value:
        try:
            nir_kind, fields = _affine(weight.to(self.dtype), bias.to(self.dtype), source.shape)
        except _Unfit as error:
            raise _refusal(_name(node), str(error), error.remedy) from None
        return _Value(source.shape, self._add(kind, nir_kind, fields, {"kind": kind} | metadata, source))

    def _moved(self, node: fx.Node, source: _Value, args: Any, kwargs: Any) -> Any:
        """Describe what flattens, and see through what does nothing; sizes are numbers."""
        samples = torch.empty((2, *source.shape), device="meta")
        try:
            found = _run(node, (samples, *args), kwargs)
        except RuntimeError as error:
            raise ValueError(f"Expected argument `input_shape` to fit the network, but at {_name(node)!r}: {error}") from None
        if not isinstance(found, Tensor):
            return found
        shape = tuple(found.shape[1:])
        if found.shape[0] != 2 or (shape != source.shape and _merged(source.shape, shape) is None):
            raise _refusal(_name(node), f"NIR has no reshaping of {source.shape} to {shape}, only flattening", _SAVE)
        if shape == source.shape:
            return source
        return self._flatten("flatten", source, shape)

    def _flatten(self, name: str, source: _Value, shape: _Shape) -> _Value:
        start, end = _merged(source.shape, shape) or (0, -1)
        fields = {"input_type": _ints(source.shape), "start_dim": np.int64(start), "end_dim": np.int64(end)}
        return _Value(shape, self._add(name, "Flatten", fields, {"kind": "flatten"}, source))


_SAVE = "Keep the network in a file of `snnreg_plugins.export.files.save_network` instead"
_REMEDIES = {
    "max pooling of spikes": "Use average pooling in the model",
    "MaxPool2d": "Use average pooling in the model",
    "MaxPool1d": "Use average pooling in the model",
    "pooling of unequal windows": "Use an average pooling whose windows are all of one size",
}
_ARITHMETIC: dict[Any, str] = {
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


class _Unfit(Exception):
    """Says why a module is none of NIR."""

    def __init__(self, reason: str, remedy: str = _SAVE) -> None:
        super().__init__(reason)
        self.remedy = remedy


def _refusal(name: str, what: str, remedy: str) -> ConversionError:
    return ConversionError(f"Cannot write layer {name!r} to NIR: {what}. {remedy}.")


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
    if len(found) != 1 or not found <= set(_DTYPES.values()):
        names = sorted(str(dtype) for dtype in found)
        raise ValueError(f"Expected argument `network` to be of one dtype of {sorted(_DTYPES)}, but got {names}.")
    return found.pop()


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


def _full(values: Tensor, shape: _Shape) -> Tensor:
    """Give a value for each neuron."""
    return torch.broadcast_to(values.detach().cpu(), (1, *shape))[0]


def _merged(shape: _Shape, flat: _Shape) -> tuple[int, int] | None:
    """Find the first and last dimension that are merged from one shape to the other; the last, where it is, as -1."""
    for start in range(len(shape)):
        for end in range(start + 1, len(shape)):
            if (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]) == flat:
                return start, -1 if end == len(shape) - 1 else end
    return None


def _parameters(name: str, module: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Read threshold, beta and surrogate slope of a neuron layer."""
    snntorch, norse = sys.modules.get("snntorch"), sys.modules.get("snnreg_plugins.export.norse")
    if norse is not None and type(module) is norse.SoftResetCell:
        plain, beta, surrogate = True, module.p.beta, module.p.surrogate
    elif snntorch is not None and type(module) is snntorch.Leaky:
        beta, surrogate = module.beta, module.spike_grad
        unusual = (module.init_hidden, module.inhibition, module.state_quant, not module.reset_delay)
        factor, reset = module.graded_spikes_factor, module.reset_mechanism_val
        plain = not any(unusual) and bool((factor == 1).all()) and int(reset) == 0
    else:
        plain = False
    if not plain or type(surrogate) is not FastSigmoid:
        raise _refusal(name, "its neurons are not those that this package makes", _SAVE)
    return module.threshold, beta, surrogate.slope


# Modules as nodes: each function gives the type, the fields, the metadata, and the shape that comes out.

_Node: TypeAlias = tuple[str, Tree, Tree, _Shape]


def _linear(module: nn.Linear, shape: _Shape) -> _Node:
    if shape != (module.in_features,):
        raise _Unfit(f"its input has shape {shape}, and an affine node of NIR takes ({module.in_features},)")
    fields = {"weight": _array(module.weight)}
    if module.bias is not None:
        fields["bias"] = _array(module.bias)
    return "Linear" if module.bias is None else "Affine", fields, {"kind": "linear"}, (module.out_features,)


def _conv(module: nn.Conv1d | nn.Conv2d, shape: _Shape) -> _Node:
    dims = len(module.kernel_size)
    if module.padding_mode != "zeros":
        raise _Unfit(f"NIR pads by zeros, and not by padding_mode={module.padding_mode!r}", "Use padding_mode='zeros'")
    if len(shape) != 1 + dims or shape[0] != module.in_channels:
        raise _Unfit(f"its input has shape {shape}, which does not fit {module}", "Check `input_shape`")
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
        raise _Unfit(f"its kernel is larger than its input of shape {shape}", "Check `input_shape`")
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


def _affine(weight: Tensor, bias: Tensor, shape: _Shape) -> tuple[str, Tree]:
    """Describe a map of each value by itself, ``weight * x + bias``."""
    try:
        full, shift = _full(weight, shape), _full(bias, shape)
    except RuntimeError:
        raise _Unfit(f"values of shape {tuple(weight.shape)}, {tuple(bias.shape)} for a tensor of {shape}") from None
    if not bool(shift.any()):
        return "Scale", {"scale": _array(full)}
    channels, dims = shape[0], len(shape) - 1
    by_channel = [values.reshape(channels, -1) for values in (full, shift)]
    if dims in (1, 2) and all(bool((values == values[:, :1]).all()) for values in by_channel):
        conv = nn.Conv1d if dims == 1 else nn.Conv2d
        layer: Any = conv(channels, channels, 1, groups=channels, device="meta")
        layer.weight = nn.Parameter(by_channel[0][:, 0].reshape(-1, 1, *[1] * dims))
        layer.bias = nn.Parameter(by_channel[1][:, 0].contiguous())
        kind, fields, _, _ = _conv(layer, shape)
        return kind, fields
    if math.prod(shape) * shape[-1] > _ELEMENTS:
        raise _Unfit(f"NIR has no bias that differs from place to place on {shape} values, but as a huge matrix")
    return "Affine", {"weight": _array(torch.diag_embed(full)), "bias": _array(shift)}


def _synapse(module: OneToOne, shape: _Shape) -> _Node:
    kind, fields = _affine(module.weight, torch.zeros_like(module.weight), shape)
    return kind, fields, {"kind": "synapse", "weight": _array(module.weight)}, shape


def _current(module: Current, shape: _Shape) -> _Node:
    kind, fields = _affine(torch.ones_like(module.bias), module.bias, shape)
    return kind, fields, {"kind": "current", "bias": _array(module.bias)}, shape


def _channel_affine(module: ChannelAffine, shape: _Shape) -> _Node:
    sizes = (-1, *[1] * (len(shape) - 1))
    kind, fields = _affine(module.weight.reshape(sizes), module.bias.reshape(sizes), shape)
    return kind, fields, {"kind": "affine", "weight": _array(module.weight), "bias": _array(module.bias)}, shape


def _pooled(shape: _Shape, kernel: Any, stride: Any, padding: Any, ceil_mode: bool) -> _Shape:
    if len(shape) != 1 + len(kernel):
        raise _Unfit(f"its input has shape {shape}, which is not (C, *spatial)")
    windows = list(zip(shape[1:], kernel, stride, padding, strict=True))
    spans = [size + 2 * pad - window for size, window, _, pad in windows]
    if min(spans) < 0 or any(2 * pad > window for _, window, _, pad in windows):
        raise _Unfit(f"its windows do not fit an input of shape {shape}", "Check `input_shape`")
    if ceil_mode and any(span % step for span, step in zip(spans, stride, strict=True)):
        raise _Unfit(f"NIR has no ceil_mode, which matters for an input of shape {shape}", "Use ceil_mode=False")
    return (shape[0], *(span // step + 1 for span, step in zip(spans, stride, strict=True)))


def _sums(shape: _Shape, kernel: Any, stride: Any, padding: Any, dtype: torch.dtype) -> tuple[str, Tree]:
    """Describe sums over windows: in one dimension, as a convolution with ones."""
    if len(kernel) == 2:
        return "SumPool2d", {"kernel_size": _ints(kernel), "stride": _ints(stride), "padding": _ints(padding)}
    channels = shape[0]
    options: Any = {"stride": stride, "padding": padding, "groups": channels, "bias": False, "device": "meta"}
    layer = nn.Conv1d(channels, channels, kernel, **options)
    layer.weight = nn.Parameter(torch.ones((channels, 1, *kernel), dtype=dtype))
    kind, fields, _, _ = _conv(layer, shape)
    return kind, fields


def _sum_pool(module: SumPool, shape: _Shape) -> _Node:
    window = (module.kernel_size, module.stride, module.padding)
    if module.dims == 3:
        raise _Unfit("NIR has no 3d pooling")
    pooled = _pooled(shape, *window, module.ceil_mode)
    kind, fields = _sums(shape, *window, torch.float32)
    names = ("kernel_size", "stride", "padding")
    metadata: Tree = {name: _ints(value) for name, value in zip(names, window, strict=True)}
    metadata |= {"kind": "sum_pool", "ceil_mode": np.int64(module.ceil_mode)}
    return kind, fields, metadata, pooled


def _sum_over(module: SumOver, shape: _Shape) -> _Node:
    if len(shape) not in (2, 3) or module.dims != tuple(range(2, 1 + len(shape))):
        raise _Unfit(f"NIR has no sum over dimensions {module.dims} of {(-1, *shape)}, only over all spatial ones")
    ones, zeros = (1,) * (len(shape) - 1), (0,) * (len(shape) - 1)
    kind, fields = _sums(shape, shape[1:], ones, zeros, torch.float32)
    metadata = {"kind": "sum_over", "dims": _ints(module.dims), "keepdim": np.int64(module.keepdim)}
    return kind, fields, metadata, (shape[0], *ones)


def _avg_pool(module: nn.AvgPool2d, shape: _Shape) -> _Node:
    window = tuple((one, one) if isinstance(one, int) else one
                   for one in (module.kernel_size, module.stride, module.padding))  # fmt: skip
    if module.divisor_override or (any(window[2]) and not module.count_include_pad):
        raise _Unfit("NIR has no divisor_override, and counts what pads", "Use its defaults")
    names = ("kernel_size", "stride", "padding")
    fields = {name: _ints(value) for name, value in zip(names, window, strict=True)}
    metadata: Tree = {"kind": "avg_pool", "ceil_mode": np.int64(module.ceil_mode)}
    return "AvgPool2d", fields, metadata, _pooled(shape, *window, module.ceil_mode)


def _flatten(module: nn.Flatten, shape: _Shape) -> _Node:
    start, end = (dim % (len(shape) + 1) - 1 for dim in (module.start_dim, module.end_dim))
    if start < 0:
        raise _Unfit("it flattens the batch")
    flat = (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :])
    last = -1 if end == len(shape) - 1 else end
    fields = {"input_type": _ints(shape), "start_dim": np.int64(start), "end_dim": np.int64(last)}
    return "Flatten", fields, {"kind": "flatten_module"}, flat


_MODULES: dict[Any, Callable[[Any, _Shape], _Node]] = {
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


# From a graph to a network


def _read(path: str | os.PathLike[str], target: str) -> SpikingNetwork:
    with opened(path) as file:
        if file.string("node", "metadata", "format") != _FORMAT:
            raise ValueError(
                "it is none of `to_nir`. NIR of other tools has neurons that set their potential to v_reset when they "
                "fire, which networks of this package do not; read it with norse.torch.from_nir or snnTorch's "
                "import_from_nir."
            )
        return _network(file.read(), target)


def _network(tree: Tree, target: str) -> SpikingNetwork:
    """Build the network of a file, if all that the file says is what the network is."""
    _require_keys(tree, {"version", "node"}, "the file")
    if not isinstance(tree["version"], str) or not re.fullmatch(r"1\.[\w.+]{1,40}", tree["version"], re.ASCII):
        raise ValueError(f"it is of NIR version {tree['version']!r}, but 1.x is read.")
    graph = tree["node"]
    _require_keys(graph, {"type", "nodes", "edges", "metadata"}, "'node'")
    if not isinstance(graph["nodes"], dict) or not isinstance(graph["edges"], list):
        raise ValueError("'node' has no nodes, or no edges.")
    built = _Builder(graph, target)
    _require_equal(graph, _Description(built.network, built.input_shape).graph, "")
    return built.network


def _require_keys(found: Any, expected: set[str], what: str) -> None:
    if not isinstance(found, dict) or set(found) != expected:
        names = sorted(found) if isinstance(found, dict) else type(found).__name__
        raise ValueError(f"{what} should hold {sorted(expected)}, but holds {str(names)[:200]}.")


def _require_equal(found: Any, expected: Any, where: str) -> None:
    """Compare what a file says with what the network that was built from it is."""
    if isinstance(expected, dict):
        _require_keys(found, set(expected), repr(where.lstrip("/") or "node"))
        for key, value in expected.items():
            _require_equal(found[key], value, f"{where}/{key}")
    elif isinstance(expected, (str, list)):
        if found != expected:
            raise ValueError(f"{where[1:]!r} should be {str(expected)[:200]!r}, but is {str(found)[:200]!r}.")
    else:
        wanted, given = np.asarray(expected), found
        if not isinstance(given, np.ndarray) or given.dtype != wanted.dtype or given.shape != wanted.shape:
            what = f"{given.dtype} of shape {given.shape}" if isinstance(given, np.ndarray) else type(given).__name__
            raise ValueError(f"{where[1:]!r} should be {wanted.dtype} of shape {wanted.shape}, but is {what}.")
        if not np.array_equal(given, wanted):
            raise ValueError(f"{where[1:]!r} contradicts the rest of the file.")


class _Builder:
    """Builds the network of a graph.

    Args:
        graph: The graph, of which nothing is taken for granted.
        target: The framework.
    """

    def __init__(self, graph: Tree, target: str) -> None:
        metadata = _Fields(graph["metadata"], "the graph")
        timesteps, dtype = metadata.integer("timesteps", 1), metadata.string("dtype")
        if dtype not in _DTYPES:
            raise ValueError(f"the graph has dtype {dtype!r}, which is none of {sorted(_DTYPES)}.")
        self.dtype, self.target = _DTYPES[dtype], target
        self.root, self.once, self.step = nn.Module(), fx.Graph(), fx.Graph()
        self.constants, self.given = self.step.placeholder("constants"), self.step.placeholder("states")
        self.x = self.once.placeholder("input")
        self.exports: dict[fx.Node, fx.Node] = {}
        self.added: dict[tuple[fx.Node, fx.Node], fx.Node] = {}
        self.values: dict[str, fx.Node] = {}
        self.names: set[str] = set()
        self.states: list[fx.Node] = []
        self.sources: dict[str, list[str]] = {}
        for name in self._ordered(graph["nodes"], graph["edges"]):
            node = graph["nodes"][name]
            try:
                self._node(name, _Fields(node, f"node {name!r}"))
            except ValueError as error:
                text = str(error)
                raise ValueError(text if repr(name) in text else f"node {name!r}: {text}") from error
            except (ArithmeticError, AssertionError, AttributeError, KeyError, RuntimeError, TypeError) as error:
                raise ValueError(f"node {name!r} cannot be built: {error}") from error
        self.once.output(tuple(self.exports))
        conversion = metadata.plain("conversion")
        encoder, body = (fx.GraphModule(self.root, part) for part in (self.once, self.step))
        release = self._framework().release
        self.network = SpikingNetwork(encoder, body, timesteps, len(self.states), release, None, conversion)

    def _ordered(self, nodes: Tree, edges: list[tuple[str, str]]) -> list[str]:
        """Give the nodes, each behind all that it reads."""
        self.sources = {name: [] for name in nodes}
        for source, reader in edges:
            for name in (source, reader):
                if name not in nodes:
                    raise ValueError(f"an edge names {name[:200]!r}, which is no node.")
            self.sources[reader].append(source)
        try:
            tuple(TopologicalSorter(self.sources).static_order())
        except CycleError as error:
            loop = " -> ".join(error.args[1])
            raise ValueError(f"node {error.args[1][0]!r} feeds back ({loop}); recurrent networks are not read.") from None
        kinds = [_Fields(node, f"node {name!r}").kind() for name, node in nodes.items()]
        if kinds.count("input") + kinds.count("poisson") + kinds.count("latency") != 1 or kinds.count("output") != 1:
            raise ValueError("the graph has not one input and one output.")
        for name in nodes:
            if not self.sources[name] and not (name == "input"):
                raise ValueError(f"node {name!r} reads nothing.")
        orders = {name: _Fields(node["metadata"], f"node {name!r}").integer("order", 1)
                  for name, node in nodes.items() if name != "input"}  # fmt: skip
        order = sorted(nodes, key=lambda name: orders.get(name, 0))
        places = {name: place for place, name in enumerate(order)}
        for name in order:
            if any(places[source] >= places[name] for source in self.sources[name]):
                raise ValueError(f"node {name!r} comes before one that it reads.")
        return order

    # Graphs

    def _node(self, name: str, node: _Fields) -> None:
        kind, metadata = node.kind(), node.metadata()
        if kind in ("input", "poisson", "latency"):
            self.input_shape = node.shape("shape")
            self.values[name] = self._input(kind, metadata)
            return
        if kind == "output":
            self.step.output((self._in(self._read(name, metadata), self.step), tuple(self.states)))
            return
        graph = self.once if metadata.integer("once", 0, 1) else self.step
        source = self._in(self._read(name, metadata), graph)
        if kind == "neuron":
            self.values[name] = self._neuron(metadata, source)
        elif kind in ("identity", "squeeze"):
            self.values[name] = source
        elif kind == "neg":
            self.values[name] = graph.call_function(operator.neg, (source,))
        elif kind == "flatten":
            start, end = node.integer("start_dim", 0), node.integer("end_dim", -1)
            args = (source, start + 1, end if end < 0 else end + 1)
            self.values[name] = graph.call_function(torch.flatten, args)
        elif kind in _ARITHMETIC.values():
            self.values[name] = self._arithmetic(kind, metadata, source, graph)
        elif kind in _LAYERS:
            module = _LAYERS[kind](node, metadata, self.dtype)
            self.values[name] = graph.call_module(self._named(metadata.string("module"), module), (source,))
        else:
            raise ValueError(f"is of the unknown kind {kind[:200]!r}.")

    def _read(self, name: str, metadata: _Fields) -> fx.Node:
        """Sum up what a node reads, in the order that it says."""
        sources = self.sources[name]
        steps = [0] if len(sources) == 1 else metadata.numbers("sum")
        stack: list[fx.Node] = []
        for step in steps:
            if step >= 0:
                stack.append(self.values[sources[step]])
            else:
                right, left = stack.pop(), stack.pop()
                stack.append(self._sum(left, right))
        if len(stack) != 1 or sorted(step for step in steps if step >= 0) != list(range(len(sources))):
            raise ValueError(f"does not say how to sum up the {len(sources)} nodes that it reads.")
        return stack[0]

    def _sum(self, left: fx.Node, right: fx.Node) -> fx.Node:
        graph = self.once if left.graph is right.graph is self.once else self.step
        terms = self._in(left, graph), self._in(right, graph)
        if terms not in self.added:
            self.added[terms] = graph.call_function(operator.add, terms)
        return self.added[terms]

    def _in(self, node: fx.Node, graph: fx.Graph) -> fx.Node:
        """Give a value in a graph; what is computed once is a constant of the step."""
        if node.graph is graph:
            return node
        if graph is self.once:
            raise ValueError("is computed once, but reads what changes with every step.")
        if node not in self.exports:
            self.exports[node] = self.step.call_function(operator.getitem, (self.constants, len(self.exports)))
        return self.exports[node]

    def _named(self, name: str, module: nn.Module | Tensor) -> str:
        """Put a module, or a tensor, where it belongs."""
        parts = name.split(".")
        if not is_module_name(name) or hasattr(fx.GraphModule, parts[0]) or any(
            hasattr(nn.Module(), part) for part in parts
        ):
            raise ValueError(f"has a module of the name {name[:200]!r}, which no module may have.")
        if name in self.names or any(other.startswith(f"{name}.") or name.startswith(f"{other}.") for other in self.names):
            raise ValueError(f"has a module of the name {name[:200]!r}, which another has.")
        self.names.add(name)
        if isinstance(module, nn.Module):
            add_submodule(self.root, name, module)
        else:
            holder = add_submodule(self.root, ".".join(parts[:-1]), nn.Module()) if len(parts) > 1 else self.root
            holder.register_buffer(parts[-1], module)
        return name

    def _stateful(self, name: str, *args: fx.Node) -> fx.Node:
        both = self.step.call_module(name, args)
        self.states.append(self.step.call_function(operator.getitem, (both, 1)))
        return self.step.call_function(operator.getitem, (both, 0))

    def _state(self) -> fx.Node:
        return self.step.call_function(operator.getitem, (self.given, len(self.states)))

    # Nodes

    def _input(self, kind: str, metadata: _Fields) -> fx.Node:
        if kind == "input":
            return self.x
        largest = metadata.number("largest")
        if not largest > 0:
            raise ValueError(f"has a largest input of {largest}.")
        coder: nn.Module = PoissonCoder(largest)
        if kind == "latency":
            coder = LatencyCoder(largest, metadata.integer("timesteps", 1))
        return self._stateful(self._named(metadata.string("module"), coder), self._in(self.x, self.step), self._state())

    def _neuron(self, metadata: _Fields, source: fx.Node) -> fx.Node:
        if source.graph is not self.step:
            raise ValueError("is computed once, but has a state.")
        threshold, beta, slope, potential = (
            metadata.tensor(name, self.dtype) for name in ("threshold", "beta", "slope", "potential")
        )
        if not bool((slope > 0).all()):
            raise ValueError("has a surrogate slope that is not positive.")
        cell = self._framework().neuron(threshold)
        if self.target == "snntorch":
            cell.beta, cell.spike_grad = beta, FastSigmoid(slope)
        else:
            cell.p.beta, cell.p.surrogate = beta, FastSigmoid(slope)
        name = self._named(metadata.string("module"), cell)
        initial = self._named(metadata.string("initial"), InitialState(potential))
        return self._stateful(name, source, self.step.call_module(initial, (self._state(), source)))

    def _framework(self) -> Any:
        if self.target == "snntorch":
            from snnreg_plugins.export.snntorch import _SnnTorch

            return _SnnTorch(1.0, 1.0)
        from snnreg_plugins.export.norse import _Norse

        return _Norse(1.0, 1.0)

    def _arithmetic(self, kind: str, metadata: _Fields, source: fx.Node, graph: fx.Graph) -> fx.Node:
        operand: Any = metadata.number("operand") if "attribute" not in metadata else None
        if operand is None:
            name = self._named(metadata.string("attribute"), metadata.tensor("operand", self.dtype))
            operand = graph.get_attr(name)
        function = {name: function for function, name in _ARITHMETIC.items()}[kind]
        args = (operand, source) if metadata.integer("swapped", 0, 1) else (source, operand)
        return graph.call_function(function, args)


class _Fields:
    """The fields of a node, or its metadata: each is what is asked for, or a ValueError says what is wrong."""

    def __init__(self, values: Any, owner: str) -> None:
        if not isinstance(values, dict):
            raise ValueError(f"{owner} is no group.")
        self.values, self.owner = values, owner

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def _get(self, name: str, kind: type, what: str) -> Any:
        if name not in self.values:
            raise ValueError(f"{self.owner} has no {name!r}.")
        if not isinstance(self.values[name], kind):
            raise ValueError(f"{self.owner} has a {name!r} that is no {what}.")
        return self.values[name]

    def metadata(self) -> _Fields:
        return _Fields(self._get("metadata", dict, "group"), self.owner)

    def kind(self) -> str:
        """Read the kind of a node of a type that NIR has."""
        if (kind := self.string("type")) not in _TYPES:
            raise ValueError(f"{self.owner} is of type {kind[:200]!r}, but only {sorted(_TYPES)} are read.")
        return self.metadata().string("kind")

    def string(self, name: str) -> str:
        return str(self._get(name, str, "string"))

    def plain(self, name: str) -> dict[str, Any]:
        """Read a dictionary of plain data."""
        try:
            found = json.loads(self.string(name))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.owner} has a {name!r} that is no JSON: {error}") from None
        if not isinstance(found, dict):
            raise ValueError(f"{self.owner} has a {name!r} that is no dictionary.")
        return found

    def array(self, name: str) -> Any:
        return self._get(name, np.ndarray, "array")

    def number(self, name: str) -> float:
        array = self.array(name)
        if array.shape != () or array.dtype != np.float64:
            raise ValueError(f"{self.owner} has a {name!r} that is no number, but {array.dtype} of shape {array.shape}.")
        return float(array)

    def numbers(self, name: str, least: int = -1) -> list[int]:
        """Read a row of integers."""
        array = self.array(name)
        if array.ndim != 1 or array.dtype != np.int64 or not 0 < array.size <= 2 * _LEAVES:
            raise ValueError(f"{self.owner} has a {name!r} that is no row of integers, but of shape {array.shape}.")
        if array.min() < least or array.max() > _LARGEST_INT:
            raise ValueError(f"{self.owner} has a {name!r} that is not in {least} to {_LARGEST_INT}.")
        return [int(value) for value in array]

    def integer(self, name: str, least: int, most: int = _LARGEST_INT) -> int:
        array = self.array(name)
        if array.shape != () or array.dtype != np.int64 or not least <= array <= most:
            what = int(array) if array.shape == () and array.dtype == np.int64 else f"{array.dtype} of {array.shape}"
            raise ValueError(f"{self.owner} has a {name!r} of {what}, but it should be an integer in {least} to {most}.")
        return int(array)

    def integers(self, name: str, least: int, dims: int) -> tuple[int, ...]:
        """Read one integer for each of ``dims`` dimensions: in one dimension, just an integer."""
        values = [self.integer(name, least)] if dims == 1 and self.array(name).ndim == 0 else self.numbers(name, least)
        if len(values) != dims:
            raise ValueError(f"{self.owner} has a {name!r} of {len(values)} integers, but it should be {dims}.")
        return tuple(values)

    def shape(self, name: str) -> _Shape:
        shape = tuple(self.numbers(name, 1))
        if math.prod(shape) > _ELEMENTS:
            raise ValueError(f"{self.owner} has a {name!r} of {shape}, which is more than {_ELEMENTS} values.")
        return shape

    def tensor(self, name: str, dtype: torch.dtype, dims: int | None = None) -> Tensor:
        """Read a tensor, of the dtype that all have."""
        array, stored = self.array(name), torch.float32 if dtype == torch.bfloat16 else dtype
        values = torch.from_numpy(array.copy())
        if values.dtype != stored or (dims is not None and values.dim() != dims) or not values.numel():
            raise ValueError(f"{self.owner} has a {name!r} of {array.dtype} and shape {array.shape}, which is not fit.")
        return values.to(dtype)


def _read_linear(node: _Fields, _: _Fields, dtype: torch.dtype) -> nn.Module:
    weight = node.tensor("weight", dtype, 2)
    outputs, inputs = weight.shape
    layer = nn.Linear(inputs, outputs, bias="bias" in node, device="meta")
    layer.weight = nn.Parameter(weight)
    if "bias" in node:
        layer.bias = nn.Parameter(_sized(node.tensor("bias", dtype, 1), outputs, "bias"))
    return layer


def _read_conv(node: _Fields, metadata: _Fields, dtype: torch.dtype) -> nn.Module:
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
    if weight.shape[1] * groups > _LARGEST_INT:
        raise ValueError(f"has {groups} groups.")
    sizes = tuple(weight.shape[2:])
    layer: Any = (nn.Conv1d, nn.Conv2d)[dims - 1](weight.shape[1] * groups, len(weight), sizes, device="meta", **options)
    layer.weight = nn.Parameter(weight)
    if options["bias"]:
        layer.bias = nn.Parameter(_sized(node.tensor("bias", dtype, 1), len(weight), "bias"))
    return layer  # type: ignore[no-any-return]


def _sized(values: Tensor, size: int, name: str) -> Tensor:
    if len(values) != size:
        raise ValueError(f"has a {name!r} of {len(values)} values, but it should be {size}.")
    return values


def _read_pool(metadata: _Fields, fields: _Fields) -> Any:
    dims = fields.array("kernel_size").size
    pool: Any = {1: nn.AvgPool1d, 2: nn.AvgPool2d}.get(dims)
    if pool is None:
        raise ValueError(f"pools over {dims} dimensions.")
    window = (fields.integers(name, name != "padding", dims) for name in ("kernel_size", "stride", "padding"))
    return pool(*window, ceil_mode=bool(metadata.integer("ceil_mode", 0, 1)))


def _read_sum_over(_: _Fields, metadata: _Fields, __: torch.dtype) -> nn.Module:
    return SumOver(tuple(metadata.numbers("dims", 2)), bool(metadata.integer("keepdim", 0, 1)))


_LAYERS: dict[str, Callable[[_Fields, _Fields, torch.dtype], nn.Module]] = {
    "linear": _read_linear,
    "conv": _read_conv,
    "synapse": lambda _, metadata, dtype: OneToOne(metadata.tensor("weight", dtype)),
    "current": lambda _, metadata, dtype: Current(metadata.tensor("bias", dtype)),
    "affine": lambda _, metadata, dtype: ChannelAffine(
        metadata.tensor("weight", dtype, 1), metadata.tensor("bias", dtype, 1)
    ),
    "sum_pool": lambda _, metadata, dtype: SumPool(_read_pool(metadata, metadata)),
    "sum_over": _read_sum_over,
    "avg_pool": lambda node, metadata, dtype: _read_pool(metadata, node),  # type: ignore[no-any-return]
    "flatten_module": lambda node, metadata, dtype: nn.Flatten(
        node.integer("start_dim", 0) + 1, _behind_batch(node.integer("end_dim", -1))
    ),
}
_TYPES = {
    "Input", "Output", "Affine", "Linear", "Conv1d", "Conv2d", "Scale", "SumPool2d", "AvgPool2d", "Flatten", "IF", "LIF"
}  # fmt: skip


def _behind_batch(dim: int) -> int:
    return dim if dim < 0 else dim + 1
