"""The graphs of a spiking network in the making: what is computed once, in every step, and at the end."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable
from functools import reduce
from typing import Any

from torch import Tensor, fx, nn

from snnreg_plugins.export.copies import add_submodule
from snnreg_plugins.export.fold import gain_and_shift
from snnreg_plugins.export.forms import BATCH_NORMS
from snnreg_plugins.export.names import Names
from snnreg_plugins.spiking.layers import BatchNorm, ChannelAffine


class StepGraph:
    """Three graphs on the modules of one root, and the states that the step passes on.

    Args:
        source: The traced network; nodes of it are copied.
        names: Those that are taken.
    """

    def __init__(self, source: fx.GraphModule, names: Names) -> None:
        self.source = source
        self.modules = dict(source.named_modules())
        self.names = names
        self.own: set[str] = set()  # layers of the source that have a part at their name
        self.root, self.once, self.step, self.last = nn.Module(), fx.Graph(), fx.Graph(), fx.Graph()
        self.nodes: dict[fx.Node, fx.Node] = {}  # nodes of the source in the graph that computes them
        self.behind: dict[fx.Node, fx.Node] = {}  # those of the head
        self.exports: dict[fx.Node, fx.Node] = {}  # constants that the step reads
        self.constants, self.given = self.step.placeholder("constants"), self.step.placeholder("states")
        self.states: list[fx.Node] = []

    # What the source computes itself

    def compute_once(self, node: fx.Node, kept: bool = False) -> None:
        """Compute a node of the source before the first step; ``kept`` is for a batch norm that is to be trained."""
        self._take_over(node, kept)
        self.nodes[node] = self.once.node_copy(node, lambda source: self._get(source, self.nodes, self.once))

    def compute_at_the_end(self, node: fx.Node) -> None:
        """Compute a node of the source from the mean of the steps."""
        self._take_over(node)
        self.behind[node] = self.last.node_copy(node, lambda source: self._get(source, self.behind, self.last))

    def mean_of(self, node: fx.Node) -> fx.Node:
        """Let the head read the mean of a node of the step."""
        if node not in self.behind:
            self.behind[node] = self.last.placeholder("mean")
        return self.behind[node]

    def exported(self, source: fx.Node) -> fx.Node:
        """Let the step read what is computed once, or a tensor of the model's own."""
        if source.op == "get_attr":
            return self._get(source, self.nodes, self.step)
        if source not in self.exports:
            self.exports[source] = self.step.call_function(operator.getitem, (self.constants, len(self.exports)))
        return self.exports[source]

    def is_in_step(self, node: fx.Node) -> bool:
        """Tell whether the step computes a node as it is."""
        return node in self.nodes and self.nodes[node].graph is self.step

    def _take_over(self, node: fx.Node, kept: bool = False) -> None:
        """Copy a layer of the DNN."""
        if node.op != "call_module":
            return
        module: Any = self.modules[str(node.target)]
        if isinstance(module, BATCH_NORMS):
            module = BatchNorm(module) if kept else ChannelAffine(*gain_and_shift(module))
        add_submodule(self.root, str(node.target), copy.deepcopy(module))

    def _get(self, source: fx.Node, nodes: dict[fx.Node, fx.Node], graph: fx.Graph) -> fx.Node:
        """Find a node in the graph that computes it, and a tensor of the model's own in any."""
        if source.op != "get_attr":
            return nodes[source]
        holder, name = str(source.target).split(".")
        held = operator.attrgetter(str(source.target))(self.source)
        add_submodule(self.root, holder, nn.Module()).register_buffer(name, held)
        return graph.get_attr(str(source.target))

    # What the step computes

    def put(self, node: fx.Node, module: nn.Module, part: str = "") -> str:
        """Put a module at the name of a node, or at a free one like it.

        Args:
            node: A node of the source.
            module: The module.
            part: An ending, for a part beside what is at the node's own name.

        Returns:
            The name.
        """
        name = name_of(node)
        if not part and node.op == "call_module" and name not in self.own:
            self.own.add(name)
        else:
            name = self.names.free(name + part)
        add_submodule(self.root, name, module)
        return name

    def call(self, node: fx.Node, module: nn.Module, source: fx.Node, part: str = "") -> fx.Node:
        """Put a module of the step, see :meth:`put`, and call it."""
        return self.step.call_module(self.put(node, module, part), (source,))

    def call_stateful(self, name: str, *args: fx.Node) -> fx.Node:
        """Call a module that gives (output, state); keep the state for the next step."""
        both = self.step.call_module(name, args)
        self.states.append(self.step.call_function(operator.getitem, (both, 1)))
        return self.step.call_function(operator.getitem, (both, 0))

    def state(self) -> fx.Node:
        """Give the state of the next module that is called with one."""
        return self.step.call_function(operator.getitem, (self.given, len(self.states)))

    def added(self, nodes: Iterable[fx.Node]) -> fx.Node:
        """Add up nodes of the step."""
        return reduce(lambda a, b: self.step.call_function(operator.add, (a, b)), nodes)

    def held(self, name: str, values: Tensor) -> fx.Node:
        """Give the step a tensor of the network's own."""
        name = self.names.free(name)
        self.root.register_buffer(name, values)
        return self.step.get_attr(name)

    def module(self, graph: fx.Graph, part: str) -> fx.GraphModule:
        """Make a module of a graph that is complete."""
        graph.lint()
        return fx.GraphModule(self.root, graph, class_name=f"{type(self.source).__name__}{part}")


def name_of(node: Any) -> str:
    """Give the name of a node of the source by which its parts go."""
    name: str = node.meta["name"] if node.op == "placeholder" else node.name
    return str(node.target) if node.op == "call_module" else name
