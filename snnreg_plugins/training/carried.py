"""A penalty's gradient, carried into a backward pass that somebody else runs.

A penalty belongs to the backward pass that reaches what it was taken of, which is known when that pass starts: then
:meth:`Carrier.start` walks the graph from the loss and finds the calls of layers that it holds. What no loss uses
counts nothing, and is forgotten with its graph.

There are two ways for one gradient, as neither serves everywhere. :class:`Carry` rides on the activity, so that it is
exact where checkpointing computes the activity again, within the backward pass; but a scale that is held in Python
would be baked into compiled code. So a call in a compiled region keeps its value in the graph, and
:meth:`Carrier.compiled_penalty` is added to the loss that goes into the backward pass.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

from snnreg_plugins._torch import collects, leaf_of


@dataclass(eq=False)
class Call:
    """One call of a layer in a forward pass, and its penalty."""

    name: str
    group: str  # calls of one group share a mean
    amount: float  # how much the call counts in it: its samples, or the synapses that they reach
    strength: float  # of the layer
    value: Tensor  # in a graph only if compiled; the penalty, or what it is a function of the mean of
    level: Tensor | None = None  # a percentile of what the layer read
    activity: Tensor | None = None  # what it read, if compiled
    of_mean: Callable[[Tensor], Tensor] | None = None  # of the mean value of the layer's calls, if a penalty of that
    penalty_of_mean: Tensor | None = None  # while a backward pass brings it
    by_mean: Tensor | None = None  # the derivative of that by the mean
    due: bool = False  # whether the backward pass that runs now brings the penalty
    delivered: bool = False  # whether an earlier one did
    differentiated: bool = False  # whether a gradient of it was taken that has a graph itself

    @property
    def penalty(self) -> Tensor:
        """The penalty that its share is of."""
        return self.value if self.penalty_of_mean is None else self.penalty_of_mean

    def gradient(self, slope: float) -> Tensor:
        """Give the derivative by its value, from that by its penalty times its share."""
        return torch.full_like(self.value, slope) if self.by_mean is None else slope * self.by_mean


class Carrier:
    r"""The backward pass that Lightning runs now: the scale that it runs with, and the calls that it reaches.

    The penalty is

    .. math:: \sum_c s_c \frac{a_c}{\sum_{d \in \text{group of } c} a_d} v_c

    over the calls c that are reached for the first time, with strength s, amount a and value v; or, with the samples of
    the batch below the line, per sample. Where the penalty is a function of a layer's mean, f(m) with
    :math:`m = \sum_c a_c v_c / \sum_c a_c` over its calls, it stands in place of each v.
    """

    def __init__(self) -> None:
        self.compiled: list[Call] = []  # of this batch, not reached yet
        self.ran_without_scale = False  # in this batch
        self.collected_without_scale = False  # and added to what parameters collect
        self.calls: list[Call] = []  # that this backward pass brings the penalty of
        self.fixed: set[str] = set()  # layers that read what depends on no parameter, in any backward pass
        self.twice: set[str] = set()  # layers whose gradient, taken with create_graph=True, is in a loss
        self.samples: int | None = None  # of the batch, where the penalty is a sum per sample and no mean over calls
        # 0 outside of Lightning's own backward pass, so that a user's autograd.grad is clean.
        self._scale = 0.0
        self._gradients: list[float] = []  # of the loss, if the user's code may multiply it once more
        self._amounts: dict[str, float] = {}

    def start_batch(self, samples: int | None = None) -> None:
        """Forget what no backward pass asked for."""
        self.compiled, self.samples = [], samples
        self.ran_without_scale = self.collected_without_scale = False

    def start(self, loss: Tensor, scale: float, multiplied: bool = False) -> Graph:
        """Find what the backward pass of a loss will reach, and let its penalty in times ``scale``.

        Args:
            loss: The loss.
            scale: What it was multiplied by.
            multiplied: Whether it may be multiplied once more on its way, as by a ``backward()`` of the user's or by
                the ``gradient`` of a call of it.
        """
        graph = Graph(loss)
        self._gradients = _gradients_of(loss) if multiplied else []
        self.calls, self._amounts, self._scale = self._reached(graph), {}, scale
        for call in self.calls:
            call.due = True
            self._amounts[call.group] = self._amounts.get(call.group, 0.0) + call.amount
        self._take_of_means()
        return graph

    def _take_of_means(self) -> None:
        """Value the penalties that are functions of a layer's mean, now that it is known which calls count."""
        by_layer: dict[str, list[Call]] = {}
        for call in self.calls:
            if call.of_mean is not None:
                by_layer.setdefault(call.name, []).append(call)
        for name, calls in by_layer.items():
            of_mean, total = calls[0].of_mean, sum(call.amount for call in calls)
            assert of_mean is not None
            if len({call.value.shape for call in calls}) > 1:
                raise MisconfigurationException(
                    f"Layer {name!r} reads other shapes in one call than in another, "
                    f"{[tuple(shape) for shape in dict.fromkeys(call.value.shape for call in calls)]} a sample, so "
                    "that its neurons have no rates. Leave it out by the argument `layers`."
                )
            with torch.enable_grad():
                mean = torch.stack([call.value.detach() * (call.amount / total) for call in calls]).sum(0)
                penalty = of_mean(mean.requires_grad_())
            (by_mean,) = torch.autograd.grad(penalty, mean)
            for call in calls:
                call.penalty_of_mean, call.by_mean = penalty.detach(), by_mean

    def is_in(self, graph: Graph) -> bool:
        """Tell whether a backward pass reaches any call, also one whose penalty an earlier one brought."""
        return any(getattr(node, "carrier", None) is self for node in graph.python_nodes)

    def _reached(self, graph: Graph) -> list[Call]:
        calls: list[Call] = []
        for node in graph.python_nodes:
            if getattr(node, "carrier", None) is self:
                call: Call = node.call
                if call.delivered:
                    continue
                if graph.depends_on_parameters(node.next_functions[0][0]):
                    calls.append(call)
                    if call.differentiated:
                        self.twice.add(call.name)
                else:
                    self.fixed.add(call.name)
            calls += [call for carrier, call in carried_in(node) if carrier is self and not call.delivered]
        waiting, self.compiled = self.compiled, []
        for call in waiting:
            (calls if graph.holds(call.value) or graph.holds(call.activity) else self.compiled).append(call)
        return calls

    def slope(self, call: Call) -> float:
        """Derivative of the penalty by the value of one call."""
        if not call.due:
            return 0.0
        return call.strength * call.amount / (self.samples or self._amounts[call.group])

    def carried_slope(self, call: Call, below: Node | None) -> float:
        """Derivative of the scaled loss by the value of one call, in the backward pass that is under way.

        Args:
            call: The call.
            below: The node that what the layer read comes from.
        """
        if self._scale == 0.0:
            self.ran_without_scale = True
            self.collected_without_scale = self.collected_without_scale or _is_collected(below)
            call.differentiated |= torch.is_grad_enabled()
            return 0.0
        return self._scale * (self._gradients[-1] if self._gradients else 1.0) * self.slope(call)

    def compiled_penalty(self) -> Tensor | None:
        """Penalty of the calls in compiled regions, to be added to the scaled loss."""
        terms = []
        for call in self.calls:
            if call.activity is not None:
                slope, by_mean = self._scale * self.slope(call), call.by_mean
                # Of a mean: the value of the penalty, with the gradient by this call.
                moved = call.value if by_mean is None else (by_mean * (call.value - call.value.detach())).sum()
                terms.append(slope * (moved if by_mean is None else call.penalty + moved))
        return torch.stack(terms).sum() if terms else None

    def end(self) -> None:
        """Let no more of the gradient in; what is differentiated again carries no penalty again."""
        self._scale = 0.0
        for call in self.calls:
            call.due, call.delivered = False, True
        self.calls = []


class Graph:
    """What a backward pass from a loss reaches."""

    def __init__(self, loss: Tensor) -> None:
        start = [] if loss.grad_fn is None else [loss.grad_fn]
        # In a dict for its order. Nodes must be kept to stay equal to themselves.
        self._nodes: dict[Node, None] = dict.fromkeys(start)
        ahead = list(start)
        while ahead:
            for node, _ in ahead.pop().next_functions:
                if node is not None and node not in self._nodes:
                    self._nodes[node] = None
                    ahead.append(node)
        self._without_parameters: set[Node] = set()

    @property
    def python_nodes(self) -> list[Any]:
        """Nodes of autograd functions written in Python, each of which is the function's ``ctx``."""
        nodes: Iterable[Any] = self._nodes
        return [node for node in nodes if isinstance(node, BackwardCFunction)]

    def holds(self, tensor: Tensor | None) -> bool:
        """Tell whether the backward pass reaches what made a tensor."""
        return tensor is not None and tensor.grad_fn in self._nodes

    def shares_with(self, other: Graph) -> bool:
        """Tell whether both reach the same result of an operation, and not only the same parameters."""
        return any(node in other._nodes for node in self._nodes if leaf_of(node) is None)

    def leaves(self) -> list[Tensor]:
        """List the leaves that it collects the gradients of."""
        return [leaf for leaf in map(leaf_of, self._nodes) if leaf is not None]

    def depends_on_parameters(self, node: Node | None) -> bool:
        """Tell whether there may be a parameter below a node; usually a few nodes away."""
        ahead = deque([] if node is None else [node])
        seen = set(ahead)
        while ahead:
            node = ahead.popleft()
            # Functions in Python may hide parameters, as those of checkpointing do.
            if isinstance(leaf_of(node), nn.Parameter) or _is_foreign(node):
                return True
            for below, _ in node.next_functions:
                if below is not None and below not in seen and below not in self._without_parameters:
                    seen.add(below)
                    ahead.append(below)
        self._without_parameters |= seen
        return False


@dataclass
class Logged:
    """Sums over backward passes of what is to be logged."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    passes: dict[str, int] = field(default_factory=dict)

    def add(self, carrier: Carrier, factor: float) -> None:
        """Add each layer's mean over its calls, or sum per sample, and the penalty as it is added to the loss."""
        amounts: dict[str, float] = {}
        for call in carrier.calls:
            amounts[call.name] = amounts.get(call.name, 0.0) + call.amount
        for call in carrier.calls:
            value = call.penalty.detach()
            self._add(call.name, value, call.amount / (carrier.samples or amounts[call.name]))
            self._add("", value, factor * carrier.slope(call))
        for name in [*amounts, ""] if amounts else ():
            self.passes[name] = self.passes.get(name, 0) + 1

    def _add(self, name: str, value: Tensor, share: float) -> None:
        if name not in self.sums:
            self.sums[name] = torch.zeros_like(value)
        self.sums[name].add_(value, alpha=share)

    def means(self) -> dict[str, Tensor]:
        """Mean by layer, and in total under the name ``""``, over the backward passes that brought any."""
        return {name: value / self.passes[name] for name, value in self.sums.items()}


class Carry(torch.autograd.Function):
    """Identity on an activity that gives a penalty its gradient when the activity gets its own.

    Where a call gives several tensors, it is one on all of them: a gradient of any of them brings the penalty.
    """

    @staticmethod
    def forward(ctx: Any, activity: Tensor, value: Tensor, carrier: Carrier, call: Call, *others: Tensor) -> Any:
        ctx.carrier, ctx.call = carrier, call
        views = tuple(tensor.view_as(tensor) for tensor in (activity, *others))
        return views if others else views[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        slope = ctx.call.gradient(ctx.carrier.carried_slope(ctx.call, ctx.next_functions[0][0]))
        return grads[0], slope, None, None, *grads[1:]


def _gradients_of(loss: Tensor) -> list[float]:
    """Give a list that will hold the gradient that a loss gets, before the hooks of others change it.

    Of a loss for each sample, to each of which a penalty is added, it is their sum.
    """
    found: list[float] | None = getattr(loss, "_snnreg_gradients", None)
    if found is None:
        found = loss._snnreg_gradients = []  # type: ignore[attr-defined]
        if loss.requires_grad:
            register: Any = loss.register_hook
            register(lambda gradient: found.append(float(gradient.sum())))
    return found


def _is_collected(node: Node | None) -> bool:
    """Tell whether the backward pass under way adds to the gradient of a parameter below a node."""
    ahead = deque([] if node is None else [node])
    seen = set(ahead)
    while ahead:
        node = ahead.popleft()
        if isinstance(leaf_of(node), nn.Parameter):
            return collects(node)
        for below, _ in node.next_functions:
            if below is not None and below not in seen:
                seen.add(below)
                ahead.append(below)
    return False


def _is_foreign(node: Any) -> bool:
    return isinstance(node, BackwardCFunction) and not hasattr(node, "carrier")


def carry_in(region: Any, carrier: Carrier, call: Call) -> None:
    """Have the node of a region that is computed again in the backward pass know of a call within it."""
    if not hasattr(region, "carried"):
        region.carried = []
    region.carried.append((carrier, call))


def carried_in(region: Any) -> Iterable[tuple[Carrier, Call]]:
    """Give the calls within a region, and whose they are."""
    carried: Iterable[tuple[Carrier, Call]] = getattr(region, "carried", ())
    return carried
