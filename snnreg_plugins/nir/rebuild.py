"""From a graph of NIR, of which nothing is taken for granted, to a spiking network."""

from __future__ import annotations

import json
import operator
import re
from graphlib import CycleError, TopologicalSorter
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from snnreg_plugins.export.copies import add_submodule
from snnreg_plugins.frameworks.registry import neurons_of
from snnreg_plugins.frameworks.surrogate import SURROGATES
from snnreg_plugins.nir.describe import ARITHMETIC, Description, RefusalError
from snnreg_plugins.nir.fields import DTYPES, Fields, is_module_name
from snnreg_plugins.nir.hdf5 import Tree
from snnreg_plugins.nir.nodes import KINDS
from snnreg_plugins.spiking.coding import LatencyCoder, PoissonCoder
from snnreg_plugins.spiking.layers import InitialState
from snnreg_plugins.spiking.network import SpikingNetwork


def rebuild(tree: Tree, target: str, size: int) -> SpikingNetwork:
    """Build the network of a file, if all that the file says is what the network is.

    Args:
        tree: What the file says.
        target: The framework.
        size: Size of the file in bytes.

    Raises:
        ValueError: If it says no network, or contradicts itself.
    """
    _require_keys(tree, {"version", "node"}, "the file")
    if not isinstance(tree["version"], str) or not re.fullmatch(r"1\.[\w.+]{1,40}", tree["version"], re.ASCII):
        raise ValueError(f"it is of NIR version {tree['version']!r}, but 1.x is read.")
    graph = tree["node"]
    _require_keys(graph, {"type", "nodes", "edges", "metadata"}, "'node'")
    if not isinstance(graph["nodes"], dict) or not isinstance(graph["edges"], list):
        raise ValueError("'node' has no nodes, or no edges.")
    built = _Builder(graph, target)
    try:
        expected = Description(built.network, built.input_shape, size).graph
    except RefusalError as error:
        raise ValueError(f"layer {error.layer!r} cannot be: {error.what}.") from error
    wanted, given = expected["metadata"].pop("digest"), graph["metadata"].pop("digest", None)
    _require_equal(graph, expected, "")
    if given not in (wanted, None):  # None: in version 0.1
        raise ValueError("it is damaged: its numbers, names or edges are not those that were written.")
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
        metadata = Fields(graph["metadata"], "the graph")
        timesteps, dtype = metadata.integer("timesteps", 1), metadata.string("dtype")
        if dtype not in DTYPES:
            raise ValueError(f"the graph has dtype {dtype!r}, which is none of {sorted(DTYPES)}.")
        self.dtype, self.target = DTYPES[dtype], target
        self.root, self.once, self.step = nn.Module(), fx.Graph(), fx.Graph()
        self.constants, self.given = self.step.placeholder("constants"), self.step.placeholder("states")
        self.x = self.once.placeholder("input")
        self.exports: dict[fx.Node, fx.Node] = {}
        self.added: dict[tuple[fx.Node, fx.Node], fx.Node] = {}
        self.values: dict[str, fx.Node] = {}
        self.names: set[str] = set()  # of modules and tensors
        self.holders: set[str] = set()  # of what holds them
        self.tensors: dict[str, Tensor] = {}
        self.states: list[fx.Node] = []
        self.sources: dict[str, list[str]] = {}
        for name in self._ordered(graph["nodes"], graph["edges"]):
            node = graph["nodes"][name]
            try:
                self._node(name, Fields(node, f"node {name!r}"))
            except ValueError as error:
                text = str(error)
                raise ValueError(text if repr(name) in text else f"node {name!r}: {text}") from error
            except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError) as error:
                raise ValueError(f"node {name!r} cannot be built: {error}") from error
        self.once.output(tuple(self.exports))
        conversion = metadata.plain("conversion")
        if "exit_margins" in conversion:  # where they were in version 0.1
            margins = json.dumps(conversion.pop("exit_margins"))
            metadata.values |= {"conversion": json.dumps(conversion), "exit_margins": margins}
        encoder, body = (fx.GraphModule(self.root, part) for part in (self.once, self.step))
        kind = neurons_of(self.target)
        self.network = SpikingNetwork(encoder, body, timesteps, len(self.states), kind, None, conversion)
        if "exit_margins" in metadata:
            self.network.exit_margins = metadata.margins("exit_margins")

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
            raise ValueError(
                f"node {error.args[1][0]!r} feeds back ({loop}); recurrent networks are not read."
            ) from None
        kinds = [Fields(node, f"node {name!r}").kind() for name, node in nodes.items()]
        if kinds.count("input") + kinds.count("poisson") + kinds.count("latency") != 1 or kinds.count("output") != 1:
            raise ValueError("the graph has not one input and one output.")
        for name in nodes:
            if not self.sources[name] and not (name == "input"):
                raise ValueError(f"node {name!r} reads nothing.")
        orders = {name: Fields(node["metadata"], f"node {name!r}").integer("order", 1)
                  for name, node in nodes.items() if name != "input"}  # fmt: skip
        order = sorted(nodes, key=lambda name: orders.get(name, 0))
        places = {name: place for place, name in enumerate(order)}
        for name in order:
            if any(places[source] >= places[name] for source in self.sources[name]):
                raise ValueError(f"node {name!r} comes before one that it reads.")
        return order

    # Graphs

    def _node(self, name: str, node: Fields) -> None:
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
        elif kind in ARITHMETIC.values():
            self.values[name] = self._arithmetic(kind, metadata, source, graph)
        elif kind in KINDS:
            module = KINDS[kind].rebuild(node, metadata, self.dtype)
            self.values[name] = graph.call_module(self._named(metadata.string("module"), module), (source,))
        else:
            raise ValueError(f"is of the unknown kind {kind[:200]!r}.")

    def _read(self, name: str, metadata: Fields) -> fx.Node:
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
        if (
            not is_module_name(name)
            or hasattr(fx.GraphModule, parts[0])
            or any(hasattr(nn.Module(), part) for part in parts)
        ):
            raise ValueError(f"has a module of the name {name[:200]!r}, which no module may have.")
        holders = {".".join(parts[:end]) for end in range(1, len(parts))}
        if name in self.names or name in self.holders or not holders.isdisjoint(self.names):
            raise ValueError(f"has a module of the name {name[:200]!r}, which another has.")
        self.names.add(name)
        self.holders |= holders
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

    def _input(self, kind: str, metadata: Fields) -> fx.Node:
        if kind == "input":
            return self.x
        largest = metadata.number("largest")
        if not largest > 0:
            raise ValueError(f"has a largest input of {largest}.")
        coder: nn.Module = PoissonCoder(largest)
        if kind == "latency":
            coder = LatencyCoder(largest, metadata.integer("timesteps", 1))
        coder = coder.to(self.dtype)
        return self._stateful(self._named(metadata.string("module"), coder), self._in(self.x, self.step), self._state())

    def _neuron(self, metadata: Fields, source: fx.Node) -> fx.Node:
        if source.graph is not self.step:
            raise ValueError("is computed once, but has a state.")
        threshold, beta, slope, potential, level = (
            metadata.tensor(name, self.dtype) for name in ("threshold", "beta", "slope", "potential", "level")
        )
        if not bool((slope > 0).all()):
            raise ValueError("has a surrogate slope that is not positive.")
        if not bool((threshold > 0).all()):
            raise ValueError("has a threshold that is not positive.")
        if not bool(((beta >= 0) & (beta <= 1)).all()):
            raise ValueError("has a beta that is not in [0, 1].")
        surrogate, steepness = "fast_sigmoid", None  # in version 0.1, when no other was known
        if "surrogate" in metadata:
            surrogate, steepness = metadata.string("surrogate"), metadata.number("steepness") or None
            if surrogate not in SURROGATES or not (steepness is None or steepness > 0):
                raise ValueError(f"has a surrogate {surrogate!r} of steepness {steepness}.")
        cell = neurons_of(self.target).make(threshold, beta, SURROGATES[surrogate](slope, steepness))
        name = self._named(metadata.string("module"), cell)
        initial = self._named(metadata.string("initial"), InitialState(potential, level))
        return self._stateful(name, source, self.step.call_module(initial, (self._state(), source)))

    def _arithmetic(self, kind: str, metadata: Fields, source: fx.Node, graph: fx.Graph) -> fx.Node:
        operand: Any = metadata.number("operand") if "attribute" not in metadata else None
        if operand is None:
            name, values = metadata.string("attribute"), metadata.tensor("operand", self.dtype)
            if name not in self.tensors:
                self.tensors[self._named(name, values)] = values
            operand = graph.get_attr(name)
        function = {name: function for function, name in ARITHMETIC.items()}[kind]
        args = (operand, source) if metadata.integer("swapped", 0, 1) else (source, operand)
        return graph.call_function(function, args)
