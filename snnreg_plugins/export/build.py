"""From a traced network and the balance of its neurons to a spiking network; the same for every framework."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from snnreg_plugins._models import device_of
from snnreg_plugins.export.copies import add_submodule
from snnreg_plugins.export.fold import gain_and_shift, scale_inputs
from snnreg_plugins.export.forms import ADAPTIVE_AVERAGE_POOLS, ADAPTIVE_MAX_POOLS, AVERAGE_POOLS, MAX_POOLS, is_value
from snnreg_plugins.export.rectifiers import RECTIFIERS, Population, populations
from snnreg_plugins.export.refusals import ConversionError, refusal
from snnreg_plugins.export.simulate import Balance, channelwise
from snnreg_plugins.frameworks.base import Target
from snnreg_plugins.functional.synapses import CONVOLUTIONS, OneToOne, is_synaptic
from snnreg_plugins.spiking.layers import (
    AdaptiveSumPool,
    ChannelAffine,
    Current,
    InitialState,
    SpikeMaxPool,
    SumOver,
    SumPool,
)
from snnreg_plugins.spiking.network import SpikingNetwork


@dataclass(frozen=True)
class Coder:
    """How the input becomes spikes: a module on it, or populations of neurons.

    Args:
        worth: What a spike of the module is worth.
        module: ``(input, state) -> (spikes, state)``.
        populations: Neurons that read the input.
    """

    worth: float = 1.0
    module: nn.Module | None = None
    populations: tuple[Population, ...] = ()


@dataclass(frozen=True)
class _Term:
    """A part of a tensor: ``scale`` times what a node of the time step gives."""

    node: fx.Node
    scale: Tensor  # what one unit (one spike, say) is worth in activation; shaped like two samples
    spikes: bool  # whole numbers of them


@dataclass(frozen=True)
class _Sum:
    """A tensor of the DNN, as the time step has it: the sum of its terms, plus ``shift``."""

    terms: tuple[_Term, ...]
    shift: Tensor  # shaped like two samples

    def plus(self, other: _Sum) -> _Sum:
        return _Sum(self.terms + other.terms, self.shift + other.shift)

    def times(self, factor: Any, shift: Any = 0.0) -> _Sum:
        terms = tuple(replace(term, scale=term.scale * factor) for term in self.terms)
        return _Sum(terms, self.shift * factor + shift)


def build(
    traced: fx.GraphModule,
    balances: Mapping[str, Balance],
    target: Target,
    timesteps: int,
    coder: Coder | None,
    conversion: Mapping[str, Any],
) -> SpikingNetwork:
    """Build the spiking network.

    Args:
        traced: A network of :func:`~snnreg_plugins.export.trace.trace` with shapes of two samples; it is left as it is.
        balances: How each population of neurons is set.
        target: The framework.
        timesteps: T.
        coder: How the input becomes spikes; None for a constant current.
        conversion: What to remember of how the network was made.

    Raises:
        ConversionError: If nothing would spike, or thresholds cannot be folded into weights.
    """
    return _Builder(traced, balances, target, coder).build(timesteps, conversion)


class _Builder:
    """Splits a traced graph into what is computed once, in every step, and at the end, and swaps in spiking parts.

    Every tensor of the DNN is a sum of what nodes of the step give, each at its scale: a neuron layer's spikes are
    worth their level, and the synaptic layer that reads them takes the scale into its weights, so that its currents
    are in units of activation again.
    """

    def __init__(
        self, traced: fx.GraphModule, balances: Mapping[str, Balance], target: Target, coder: Coder | None
    ) -> None:
        self.source = traced
        self.balances = balances
        self.target = target
        self.coder = coder
        self.modules = dict(traced.named_modules())
        self.cut = next((node for node in traced.graph.nodes if node.meta.get("cut")), None)
        self.root, self.once, self.step, self.last = nn.Module(), fx.Graph(), fx.Graph(), fx.Graph()
        self.nodes: dict[fx.Node, fx.Node] = {}  # nodes of the source in the graph that computes them
        self.behind: dict[fx.Node, fx.Node] = {}  # those of the head
        self.exports: dict[fx.Node, fx.Node] = {}  # constants that the step reads
        self.constants, self.given = self.step.placeholder("constants"), self.step.placeholder("states")
        self.known: dict[fx.Node, Any] = {}  # sizes and constants, as values
        self.sums: dict[fx.Node, _Sum | list[_Sum]] = {}  # the tensors of the step
        self.states: list[fx.Node] = []
        self.names: set[str] = set()
        self.neurons = 0

    def build(self, timesteps: int, conversion: Mapping[str, Any]) -> SpikingNetwork:
        for node in self.source.graph.nodes:
            if node.op == "output":
                self._end(node.args[0])
            elif node.meta["head"]:
                self._in_head(node)
            elif node.op == "placeholder":
                self.nodes[node] = self.once.node_copy(node)
                if self.coder is not None:
                    self._code(node, self.coder)
            elif node.op == "get_attr":
                self.known[node] = operator.attrgetter(str(node.target))(self.source)
            elif not is_value(node):
                self._size(node)
            elif self._is_neural(node):
                self._in_step(node)
            else:
                self._in_encoder(node)
        if not self.neurons:
            raise ConversionError("The model has no ReLU, so there is nothing to turn into spiking neurons.")
        self.once.output(tuple(self.nodes[node] for node in self.exports))
        name = type(self.source).__name__
        encoder = self._module(self.once, f"{name}Encoder")
        body = self._module(self.step, f"{name}Step")
        head = None if self.cut is None else self._module(self.last, f"{name}Head")
        network = SpikingNetwork(encoder, body, timesteps, len(self.states), self.target.neurons, head, conversion)
        return network.train()  # as any new module; nothing in it depends on the mode

    def _module(self, graph: fx.Graph, name: str) -> fx.GraphModule:
        graph.lint()
        return fx.GraphModule(self.root, graph, class_name=name)

    # What is computed once, and what at the end

    def _in_encoder(self, node: fx.Node) -> None:
        self._add_own(node)
        self.nodes[node] = self.once.node_copy(node, lambda source: self._get(source, self.nodes, self.once))

    def _in_head(self, node: fx.Node) -> None:
        for source in node.all_input_nodes:
            if source is self.cut:
                if source not in self.behind:
                    self.behind[source] = self.last.placeholder("mean")
            elif not source.meta["head"] and source.op != "get_attr":
                raise ConversionError(
                    f"Layer {self.cut.target if self.cut else None!r} does not separate the network: {node} reads "
                    f"{source} too. Choose an `until` that all paths go through."
                )
        self._add_own(node)
        self.behind[node] = self.last.node_copy(node, lambda source: self._get(source, self.behind, self.last))

    def _add_own(self, node: fx.Node) -> None:
        """Take over a layer of the DNN."""
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        if module is not None:
            module = ChannelAffine(*gain_and_shift(module)) if isinstance(module, _BatchNorm) else module
            add_submodule(self.root, str(node.target), copy.deepcopy(module))

    def _get(self, source: Any, nodes: dict[fx.Node, fx.Node], graph: fx.Graph) -> fx.Node:
        """Find a node in the graph that computes it, and a tensor of the model's own in any."""
        if source.op != "get_attr":
            return nodes[source]
        holder, name = str(source.target).split(".")
        add_submodule(self.root, holder, nn.Module()).register_buffer(
            name, operator.attrgetter(source.target)(self.source)
        )
        return graph.get_attr(str(source.target))

    # What is computed in every step

    def _is_neural(self, node: fx.Node) -> bool:
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        return isinstance(module, RECTIFIERS) or any(source in self.sums for source in node.all_input_nodes)

    def _size(self, node: fx.Node) -> None:
        """Copy a node that computes sizes, and know what it gives."""
        in_step = any(source in self.sums or self._is_in(source, self.step) for source in node.all_input_nodes)
        graph = self.step if in_step else self.once
        self.nodes[node] = graph.node_copy(node, self._first if in_step else self.nodes.__getitem__)
        args = fx.map_arg((node.args, node.kwargs), lambda arg: self.known[arg] if arg in self.known else _sample(arg))
        self.known[node] = _run(node, *args)

    def _is_in(self, node: fx.Node, graph: fx.Graph) -> bool:
        return node in self.nodes and self.nodes[node].graph is graph

    def _first(self, source: fx.Node) -> fx.Node:
        """Give a node of the step that has the shape, or is the size, of one of the source."""
        found = self.sums.get(source)
        if isinstance(found, _Sum):
            return found.terms[0].node
        return self.nodes[source] if self._is_in(source, self.step) else self._exported(source)

    def _exported(self, source: fx.Node) -> fx.Node:
        if source not in self.exports:
            self.exports[source] = self.step.call_function(operator.getitem, (self.constants, len(self.exports)))
        return self.exports[source]

    def _sum(self, source: Any) -> _Sum:
        """Give a tensor of the DNN as the step has it: what is computed once is a constant current."""
        found = self.sums.get(source)
        if found is None:
            one = torch.ones_like(_sample(source))
            return _Sum((_Term(self._exported(source), one, spikes=False),), torch.zeros_like(one))
        assert isinstance(found, _Sum)
        return found

    def _in_step(self, node: Any) -> None:
        if node.op != "call_module":
            self.sums[node] = self._function(node)
            return
        module, source = self.modules[str(node.target)], node.args[0]
        given = self._sum(source)
        if isinstance(module, RECTIFIERS):
            self.sums[node] = self._neurons(node, given, tuple(populations(module) or ()))
        elif is_synaptic(module):
            self.sums[node] = self._synapses(node, given, module)
        elif isinstance(module, _BatchNorm):
            gain, shift = gain_and_shift(module)
            dims = _sample(node).dim()
            self.sums[node] = given.times(channelwise(gain, dims), channelwise(shift, dims))
        elif isinstance(module, (*MAX_POOLS, *ADAPTIVE_MAX_POOLS)):
            self.sums[node] = self._max_pool(node, given, module)
        elif isinstance(module, (*AVERAGE_POOLS, *ADAPTIVE_AVERAGE_POOLS)):
            self.sums[node] = self._average(node, given, module, self._sum_pool(node, module))
        else:
            terms = tuple(
                replace(
                    term, node=self._call(str(node.target), copy.deepcopy(module), term.node), scale=module(term.scale)
                )
                for term in given.terms
            )
            self.sums[node] = _Sum(terms, module(given.shift))

    def _function(self, node: Any) -> Any:
        shape = _sample(node) if "tensor_meta" in node.meta and hasattr(node.meta["tensor_meta"], "shape") else None
        if node.target is torch.cat:
            return self._cat(node)
        if node.target is torch.mean:
            dims = tuple(dim % _sample(node.args[0]).dim() for dim in node.args[1])
            keepdim = bool(node.kwargs["keepdim"])
            sums = SumOver(dims, keepdim)
            return self._average(
                node, self._sum(node.args[0]), lambda x: x.mean(dims, keepdim=keepdim), sums, 1 in dims
            )
        if node.target is operator.neg:
            return self._sum(node.args[0]).times(-1)
        if node.target in (operator.add, operator.sub, operator.mul, operator.truediv):
            assert shape is not None
            left, right = (self._operand(operand, shape) for operand in node.args)
            if node.target is operator.sub:
                right = right.times(-1) if isinstance(right, _Sum) else -right
            if node.target in (operator.add, operator.sub):
                if isinstance(left, _Sum) and isinstance(right, _Sum):
                    return self._collected(left.plus(right))
                return left.times(1, right) if isinstance(left, _Sum) else right.times(1, left)
            if isinstance(left, _Sum):
                return left.times(1 / right if node.target is operator.truediv else right)
            return right.times(left)
        return self._moved(node)

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
        return _Sum(terms, given.shift.expand_as(shape))

    def _collected(self, given: _Sum) -> _Sum:
        """Add up currents of the same scale."""
        terms: list[_Term] = []
        for term in given.terms:
            same = [i for i, other in enumerate(terms) if not term.spikes and _alike(term, other)]
            if same:
                node = self.step.call_function(operator.add, (terms[same[0]].node, term.node))
                terms[same[0]] = replace(terms[same[0]], node=node)
            else:
                terms.append(term)
        return _Sum(tuple(terms), given.shift)

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
            args = fx.map_arg((node.args, node.kwargs), lambda arg: values if arg is source else self.known[arg])
            return _run(node, *args)

        def moved(term: _Term) -> fx.Node:
            return self.step.node_copy(node, lambda arg: term.node if arg is source else sizes[arg])

        shift, nodes, scales = (
            run(given.shift),
            [moved(term) for term in given.terms],
            [run(term.scale) for term in given.terms],
        )
        if isinstance(shift, Tensor):
            terms = zip(given.terms, nodes, scales, strict=True)
            return _Sum(tuple(replace(term, node=n, scale=scale) for term, n, scale in terms), shift)
        split = []
        for index, part in enumerate(shift):
            items = [self.step.call_function(operator.getitem, (n, index)) for n in nodes]
            terms = zip(given.terms, items, scales, strict=True)
            split.append(_Sum(tuple(replace(term, node=n, scale=scale[index]) for term, n, scale in terms), part))
        return split

    def _cat(self, node: Any) -> _Sum:
        tensors, dim = node.args
        given = [self._sum(tensor) for tensor in tensors]
        spikes = all(len(part.terms) == 1 and part.terms[0].spikes for part in given)
        # Beside currents, spikes are delivered one to one.
        terms = [part.terms[0] if spikes else self._one_current(node, part) for part in given]
        value = self.step.call_function(torch.cat, ([term.node for term in terms], dim))
        scale = torch.cat([term.scale for term in terms], dim)
        return _Sum((_Term(value, scale, spikes),), torch.cat([part.shift for part in given], dim))

    def _one_current(self, node: fx.Node, given: _Sum, unscaled: bool = False) -> _Term:
        """Make a sum one term of currents with a positive scale, by one synapse from each neuron to its own target."""
        first = given.terms[0]
        if (
            len(given.terms) == 1
            and not first.spikes
            and bool((first.scale == 1 if unscaled else first.scale > 0).all())
        ):
            return first
        nodes = []
        for term in given.terms:
            if not term.spikes and bool((term.scale == 1).all()):
                nodes.append(term.node)
            else:
                nodes.append(self._call(f"{_name(node)}_synapse", OneToOne(_compact(term.scale)), term.node))
        return _Term(self._added(nodes), torch.ones_like(given.shift), spikes=False)

    def _added(self, nodes: list[fx.Node]) -> fx.Node:
        return reduce(lambda a, b: self.step.call_function(operator.add, (a, b)), nodes)

    def _neurons(self, node: fx.Node, given: _Sum, kinds: tuple[Population, ...]) -> _Sum:
        """Put in populations of neurons."""
        name = _name(node)
        term = self._one_current(node, given)
        source = node.args[0] if node.args else None
        unit = _compact(term.scale)
        shape = torch.empty_like(given.shift)
        terms = []
        for kind in kinds:
            key = name + kind.suffix
            balance = self.balances[key]
            self.names.add(key)
            current = term.node if kind.sign > 0 else self.step.call_function(operator.neg, (term.node,))
            constant = _compact((balance.current.to(shape) + kind.sign * given.shift).expand_as(shape)) / unit
            if constant.any() and not (len(kinds) == 1 and self._absorbed(source, constant)):
                current = self._call(f"{key}_current", Current(constant), current)
            threshold, potential = balance.threshold.to(shape) / unit, balance.potential.to(shape) / unit
            add_submodule(self.root, key, self.target.neuron(threshold))
            add_submodule(self.root, f"{key}_initial", InitialState(potential, balance.level.to(shape).clone()))
            state = self.step.call_module(f"{key}_initial", (self._state(), current))
            scale = (balance.level.to(shape) * channelwise(kind.gain, shape.dim())).expand_as(shape)
            terms.append(_Term(self._stateful(key, current, state), scale, spikes=True))
            self.neurons += 1
        return _Sum(tuple(terms), torch.zeros_like(shape))

    def _absorbed(self, source: Any, constant: Tensor) -> bool:
        """Add a constant current to the bias of the layer that it comes from, if that layer gives nothing else."""
        if source is None or source.op != "call_module" or not is_synaptic(self.modules[str(source.target)]):
            return False
        layer: Any = self.root.get_submodule(str(source.target))
        channels = constant.dim() == 0 or constant.numel() == constant.shape[0]
        if len(source.users) > 1 or not channels or (isinstance(layer, nn.Linear) and _sample(source).dim() > 2):
            return False
        bias = constant.flatten().expand(_sample(source).shape[1])
        layer.bias = nn.Parameter(bias.clone() if layer.bias is None else layer.bias + bias)
        return True

    def _synapses(self, node: fx.Node, given: _Sum, module: Any) -> _Sum:
        if len(given.terms) > 1 and not all(term.spikes for term in given.terms):
            given = _Sum((self._one_current(node, given),), given.shift)
        # What a shift becomes: a bias, where it is the same everywhere.
        shift, bias = torch.zeros_like(_sample(node)), module.bias
        if given.shift.any():
            without = copy.deepcopy(module)
            without.bias = None
            shift = without(given.shift)
            by_channel = shift[0] if isinstance(module, nn.Linear) else shift[0].flatten(1).T
            by_channel = by_channel.reshape(-1, by_channel.shape[-1])
            if bool((by_channel == by_channel[:1]).all()):
                bias = nn.Parameter(by_channel[0] if bias is None else bias + by_channel[0])
                shift = torch.zeros_like(shift)
        nodes = []
        for index, term in enumerate(given.terms):
            layer = copy.deepcopy(module)
            layer.bias = None if index or bias is None else nn.Parameter(bias.clone())
            channels = self._channels(node, term.scale, 1 if isinstance(module, CONVOLUTIONS) else term.scale.dim() - 1)
            if not bool((channels == 1).all()):
                scale_inputs(layer, channels)
            nodes.append(self._call(str(node.target), layer, term.node))
        return _Sum((_Term(self._added(nodes), torch.ones_like(shift), spikes=False),), shift)

    def _max_pool(self, node: fx.Node, given: _Sum, module: nn.Module) -> _Sum:
        name, term, shift = str(node.target), given.terms[0], given.shift
        uniform = _by_channel(term.scale) is not None and _by_channel(shift) is not None
        if len(given.terms) > 1 or not uniform or not bool((term.scale > 0).all()):
            term = self._one_current(node, given, unscaled=True)
            if shift.any():
                term = replace(term, node=self._call(f"{name}_current", Current(_compact(shift)), term.node))
                shift = torch.zeros_like(shift)
        add_submodule(self.root, name, SpikeMaxPool(copy.deepcopy(module)))
        shape = _sample(node)
        scale, shift = (channelwise(_by_channel(values), shape.dim()) for values in (term.scale, shift))
        passed = self._stateful(name, term.node, self._state())
        return _Sum((_Term(passed, scale.expand_as(shape), term.spikes),), shift.expand_as(shape))

    def _sum_pool(self, node: Any, module: Any) -> nn.Module:
        """Replace an average pooling by the sum over its windows."""
        if isinstance(module, AVERAGE_POOLS):
            return SumPool(module)
        sizes, pooled = tuple(_sample(node.args[0]).shape[2:]), tuple(_sample(node).shape[2:])
        if any(size % out for size, out in zip(sizes, pooled, strict=True)):
            return AdaptiveSumPool(sizes, pooled).to(_sample(node).device)
        kernel: Any = tuple(size // out for size, out in zip(sizes, pooled, strict=True))
        return SumPool(AVERAGE_POOLS[len(kernel) - 1](kernel))

    def _average(
        self, node: fx.Node, given: _Sum, average: Callable[[Tensor], Tensor], sums: nn.Module, channels: bool = False
    ) -> _Sum:
        """Sum up spikes, which stay whole numbers that are worth less each.

        Args:
            node: The averaging node.
            given: What it reads.
            average: What it does.
            sums: Sums up what it averages.
            channels: Whether it averages over channels.
        """
        # Windows at a border, or of an adaptive pooling, have divisors of their own.
        ones = torch.ones_like(given.shift)
        share = average(ones) / sums(ones)
        terms = []
        for term in given.terms:
            worth = _by_channel(term.scale)
            if worth is None or (channels and bool((worth != worth[0]).any())):
                term = self._one_current(node, _Sum((term,), given.shift), unscaled=True)
                worth = torch.ones_like(ones[0].flatten(1)[:, 0] if ones.dim() > 2 else ones[0])
            scale = share * (worth[0] if channels else channelwise(worth, share.dim()))
            terms.append(replace(term, node=self._call(_name(node), copy.deepcopy(sums), term.node), scale=scale))
        return _Sum(tuple(terms), average(given.shift))

    # Input, output and states

    def _code(self, node: fx.Node, coder: Coder) -> None:
        """Let the input spike."""
        given = self._sum(node)
        if coder.module is not None:
            add_submodule(self.root, "input", copy.deepcopy(coder.module))
            spikes = self._stateful("input", given.terms[0].node, self._state())
            self.sums[node] = _Sum((_Term(spikes, coder.worth * given.terms[0].scale, spikes=True),), given.shift)
            return
        one = OneToOne(torch.ones((), dtype=given.shift.dtype, device=given.shift.device))
        current = replace(given.terms[0], node=self._call("input_synapse", one, given.terms[0].node))
        self.sums[node] = self._neurons(node, _Sum((current,), given.shift), coder.populations)

    def _end(self, source: fx.Node) -> None:
        """Return the step's output on the DNN's scale, and the states; and from the head, its output."""
        if self.cut is not None:
            self.last.output(self.behind[source] if source is not self.cut else self.last.placeholder("mean"))
        given = self.sums.get(source if self.cut is None else self.cut)
        if not isinstance(given, _Sum):
            raise ConversionError("The model's output does not depend on any ReLU: nothing would spike.")
        outputs = []
        for index, term in enumerate(given.terms):
            outputs.append(term.node)
            if not bool((term.scale == 1).all()):
                name = "output_scale" + (f"_{index}" if index else "")
                outputs[-1] = self.step.call_function(operator.mul, (term.node, self._output(name, term.scale)))
        output = self._added(outputs)
        if given.shift.any():
            output = self.step.call_function(operator.add, (output, self._output("output_shift", given.shift)))
        self.step.output((output, tuple(self.states)))

    def _output(self, name: str, values: Tensor) -> fx.Node:
        self.root.register_buffer(name, values[:1].clone(memory_format=torch.contiguous_format))
        return self.step.get_attr(name)

    def _call(self, name: str, module: nn.Module, source: fx.Node) -> fx.Node:
        """Put a module of the step at a name that is free, and call it."""
        unique, number = name, 1
        while unique in self.names:
            unique, number = f"{name}_{number}", number + 1
        self.names.add(unique)
        add_submodule(self.root, unique, module)
        return self.step.call_module(unique, (source,))

    def _state(self) -> fx.Node:
        return self.step.call_function(operator.getitem, (self.given, len(self.states)))

    def _stateful(self, name: str, *args: fx.Node) -> fx.Node:
        """Call a module that gives (output, state); keep the state for the next step."""
        both = self.step.call_module(name, args)
        self.states.append(self.step.call_function(operator.getitem, (both, 1)))
        return self.step.call_function(operator.getitem, (both, 0))

    def _channels(self, node: fx.Node, scale: Tensor, dim: int) -> Tensor:
        """Read one scale per channel, where the scale depends on nothing else."""
        channels = _by_channel(scale, dim)
        if channels is None:
            raise self._differ(node)
        return channels

    def _differ(self, node: fx.Node) -> ConversionError:
        return refusal(
            node,
            "thresholds that differ along a dimension which the weights share",
            _name(node),
            "use per_channel=False, and pools whose windows are all of one size",
        )


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else "input" if node.op == "placeholder" else node.name


def _sample(node: fx.Node) -> Tensor:
    """Two empty samples of a node's shape."""
    meta = node.meta["tensor_meta"]
    device = device_of(node.graph.owning_module)  # type: ignore[arg-type]
    return torch.empty(meta.shape, dtype=meta.dtype, device=device)


def _run(node: fx.Node, args: Any, kwargs: Any) -> Any:
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _alike(term: _Term, other: _Term) -> bool:
    return not other.spikes and torch.equal(term.scale, other.scale)


def _by_channel(values: Tensor, dim: int = 1) -> Tensor | None:
    """Give one value per channel, if all of a channel are the same; zeros, where padding put them, stand for any."""
    by_channel = values.movedim(dim, 0).flatten(1)
    peaks = by_channel.gather(1, by_channel.abs().argmax(1, keepdim=True))
    return peaks.squeeze(1) if bool(((by_channel == peaks) | (by_channel == 0)).all()) else None


def _compact(values: Tensor) -> Tensor:
    """Give values of two equal samples as the smallest tensor that broadcasts over one."""
    channels = values.movedim(1, 0).flatten(1)
    if not bool((channels == channels[:, :1]).all()):
        return values[0].clone()
    if bool((channels == channels[0, 0]).all()):
        return channels[0, 0].clone()
    return channels[:, 0].reshape(-1, *[1] * (values.dim() - 2)).clone()
