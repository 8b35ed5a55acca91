"""Arithmetic and moves between the layers of a spiking network in the making, on sums."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from snnreg_plugins.export.step_graph import StepGraph
from snnreg_plugins.export.structure import Structure
from snnreg_plugins.export.sums import Layout, Sum, Term, compact, is_one, layout_of
from snnreg_plugins.functional.synapses import OneToOne


class Arithmetic:
    """The tensors of the DNN as sums of what the step gives; adds, scales, joins and moves them.

    Whatever values decide goes through :meth:`_decide`, so that it is in the structure.

    Args:
        traced: The traced network, with shapes of two samples.
        graph: The graphs to add to.
        structure: Which parts there are.
        device: Where the network is.
    """

    def __init__(self, traced: fx.GraphModule, graph: StepGraph, structure: Structure, device: torch.device) -> None:
        self.source = traced
        self.graph = graph
        self.step = graph.step
        self.structure = structure
        self.device = device
        self.known: dict[fx.Node, Any] = {}  # sizes and constants, as values
        self.sums: dict[fx.Node, Sum | list[Sum]] = {}  # the tensors of the step

    def _decide(self, node: fx.Node, question: str, answer: Callable[[], Any]) -> Any:
        return self.structure.decide(node.name, question, answer)

    def _sample(self, node: fx.Node) -> Tensor:
        """Two empty samples of a node's shape."""
        meta = node.meta["tensor_meta"]
        return torch.empty(meta.shape, dtype=meta.dtype, device=self.device)

    def _size(self, node: fx.Node) -> None:
        """Copy a node that computes sizes, and know what it gives."""
        in_step = any(source in self.sums or self.graph.is_in_step(source) for source in node.all_input_nodes)
        copied = self.graph.step if in_step else self.graph.once
        self.graph.nodes[node] = copied.node_copy(node, self._first if in_step else self.graph.nodes.__getitem__)
        self.known[node] = self._run(node, lambda arg: self.known[arg] if arg in self.known else self._sample(arg))

    def _run(self, node: fx.Node, value_of: Callable[[fx.Node], Any]) -> Any:
        """Compute a function or method on other values."""
        args, kwargs = fx.map_arg((node.args, node.kwargs), value_of)
        return getattr(fx.Interpreter(self.source), node.op)(node.target, args, kwargs)

    def _first(self, source: fx.Node) -> fx.Node:
        """Give a node of the step that has the shape, or is the size, of one of the source."""
        found = self.sums.get(source)
        if isinstance(found, Sum):
            return found.terms[0].node
        return self.graph.nodes[source] if self.graph.is_in_step(source) else self.graph.exported(source)

    def _sum(self, source: Any) -> Sum:
        """Give a tensor of the DNN as the step has it: what is computed once is a constant current."""
        found = self.sums.get(source)
        if found is None:
            one = torch.ones_like(self._sample(source))
            return Sum((Term(self.graph.exported(source), one, spikes=False),), torch.zeros_like(one))
        assert isinstance(found, Sum)
        return found

    def _function(self, node: Any) -> Any:
        if node.target is torch.cat:
            return self._cat(node)
        if node.target is operator.neg:
            return self._sum(node.args[0]).times(-1)
        if node.target not in (operator.add, operator.sub, operator.mul, operator.truediv):
            return self._moved(node)
        left, right = (self._operand(operand, self._sample(node)) for operand in node.args)
        if node.target is operator.sub:
            right = right.times(-1) if isinstance(right, Sum) else -right
        if node.target in (operator.add, operator.sub):
            if isinstance(left, Sum) and isinstance(right, Sum):
                return self._collected(node, left.plus(right))
            return left.times(1, right) if isinstance(left, Sum) else right.times(1, left)
        if isinstance(left, Sum):
            return left.times(1 / right if node.target is operator.truediv else right)
        return right.times(left)

    def _operand(self, operand: Any, shape: Tensor) -> Any:
        """Give a number or constant tensor, or a sum in the shape of the result."""
        if not isinstance(operand, fx.Node) or operand in self.known:
            value = self.known.get(operand, operand)
            return value.to(shape) if isinstance(value, Tensor) else value
        given = self._sum(operand)
        if given.shift.shape == shape.shape:
            return given
        sizes = (-1, *shape.shape[1:])
        terms = tuple(
            replace(term, node=self.step.call_method("expand", (term.node, *sizes)), scale=term.scale.expand_as(shape))
            for term in given.terms
        )
        return Sum(terms, given.shift.expand_as(shape))

    def _collected(self, node: fx.Node, given: Sum) -> Sum:
        """Add up currents of the same scale."""
        terms: list[Term] = []
        for term, into in zip(given.terms, self._decide(node, "terms", lambda: _alike(given.terms)), strict=True):
            if into == len(terms):
                terms.append(term)
            else:
                terms[into] = replace(terms[into], node=self.graph.added((terms[into].node, term.node)))
        return Sum(tuple(terms), given.shift)

    def _moved(self, node: Any) -> Any:
        """Move values, and their scales and shifts alike."""
        source = node.args[0]
        parts = self.sums.get(source)
        if isinstance(parts, list):  # an item of what was split
            return parts[node.args[1]]
        given = self._sum(source)
        sizes = {arg: self._first(arg) for arg in node.all_input_nodes if arg is not source}

        def run(values: Tensor) -> Any:
            values = values.contiguous()  # `view` wants no expanded tensor
            return self._run(node, lambda arg: values if arg is source else self.known[arg])

        def moved(term: Term) -> fx.Node:
            return self.step.node_copy(node, lambda arg: term.node if arg is source else sizes[arg])

        shift, nodes, scales = (
            run(given.shift),
            [moved(term) for term in given.terms],
            [run(term.scale) for term in given.terms],
        )
        if isinstance(shift, Tensor):
            terms = zip(given.terms, nodes, scales, strict=True)
            return Sum(tuple(replace(term, node=n, scale=scale) for term, n, scale in terms), shift)
        split = []
        for index, part in enumerate(shift):
            items = [self.step.call_function(operator.getitem, (n, index)) for n in nodes]
            terms = zip(given.terms, items, scales, strict=True)
            split.append(Sum(tuple(replace(term, node=n, scale=scale[index]) for term, n, scale in terms), part))
        return split

    def _cat(self, node: Any) -> Sum:
        tensors, dim = node.args
        given = [self._sum(tensor) for tensor in tensors]
        spikes = all(len(part.terms) == 1 and part.terms[0].spikes for part in given)
        # Beside currents, spikes are delivered one to one.
        terms = [
            part.terms[0] if spikes else self._one_current(node, part, f"tensor {index} ")
            for index, part in enumerate(given)
        ]
        value = self.step.call_function(torch.cat, ([term.node for term in terms], dim))
        scale = torch.cat([term.scale for term in terms], dim)
        return Sum((Term(value, scale, spikes),), torch.cat([part.shift for part in given], dim))

    def _one_current(self, node: fx.Node, given: Sum, which: str = "", unscaled: bool = False) -> Term:
        """Make a sum one term of currents with a positive scale, by one synapse from each neuron to its own target.

        Args:
            node: What reads it.
            given: The sum.
            which: Tells apart what one node reads.
            unscaled: Whether the scale is to be 1.
        """
        first = given.terms[0]
        if len(given.terms) == 1 and not first.spikes:

            def fits() -> bool:
                return is_one(first.scale) if unscaled else bool((first.scale > 0).all())

            if self._decide(node, f"{which}as it is", fits):
                return first
        nodes = []
        for index, term in enumerate(given.terms):

            def synapse(term: Term = term) -> Layout | None:
                return None if not term.spikes and is_one(term.scale) else layout_of(term.scale)

            layout = self._decide(node, f"{which}synapse {index}", synapse)
            if layout is None:
                nodes.append(term.node)
            else:
                nodes.append(self.graph.call(node, OneToOne(compact(term.scale, layout)), term.node, "_synapse"))
        return Term(self.graph.added(nodes), torch.ones_like(given.shift), spikes=False)


def _alike(terms: tuple[Term, ...]) -> list[int]:
    """Give, for each term, the index among those that are left of the one that it is added to, or its own."""
    kept: list[Term] = []
    into = []
    for term in terms:
        same = [
            index
            for index, other in enumerate(kept)
            if not term.spikes and not other.spikes and torch.equal(term.scale, other.scale)
        ]
        into.append(same[0] if same else len(kept))
        if not same:
            kept.append(term)
    return into
