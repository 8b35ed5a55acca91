"""From a traced network and the balance of its neurons to a spiking network; the same for every framework."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from snnreg_plugins._models import device_of
from snnreg_plugins.export.arithmetic import Arithmetic
from snnreg_plugins.export.copies import add_submodule
from snnreg_plugins.export.fold import gain_and_shift, scale_inputs
from snnreg_plugins.export.forms import (
    ADAPTIVE_AVERAGE_POOLS,
    ADAPTIVE_MAX_POOLS,
    AVERAGE_POOLS,
    BATCH_NORMS,
    MAX_POOLS,
    is_value,
)
from snnreg_plugins.export.input_code import InputCode
from snnreg_plugins.export.names import Names
from snnreg_plugins.export.rectifiers import ENDINGS, RECTIFIERS, Population
from snnreg_plugins.export.refusals import ConversionError, refusal
from snnreg_plugins.export.simulate import Balance, channelwise
from snnreg_plugins.export.step_graph import StepGraph, name_of
from snnreg_plugins.export.structure import Structure
from snnreg_plugins.export.sums import Layout, Sum, Term, compact, is_by_channel, is_one, layout_of, of_channels
from snnreg_plugins.frameworks.base import Target
from snnreg_plugins.frameworks.trained import train_beta, train_threshold
from snnreg_plugins.functional.synapses import CONVOLUTIONS, OneToOne, is_synaptic
from snnreg_plugins.spiking.layers import (
    AdaptiveSumPool,
    BatchNorm,
    Current,
    InitialState,
    SpikeMaxPool,
    SumOver,
    SumPool,
)
from snnreg_plugins.spiking.network import SpikingNetwork


def build(
    traced: fx.GraphModule,
    balances: Mapping[str, Balance],
    target: Target,
    timesteps: int,
    code: InputCode,
    structure: Structure,
    conversion: Mapping[str, Any],
) -> SpikingNetwork:
    """Build the spiking network.

    Args:
        traced: A network of :func:`~snnreg_plugins.export.trace.trace` with shapes of two samples; it is left as it is.
        balances: How each population of neurons is set; none where the structure is given.
        target: The framework.
        timesteps: T.
        code: How the input arrives.
        structure: Which parts there are: is decided here and written down, or read. Where it is read, values of
            weights and thresholds are to be put in by the caller.
        conversion: What to remember of how the network was made, beside the structure.

    Raises:
        ConversionError: If nothing would spike, or thresholds cannot be folded into weights.
        KeyError: If the structure is not that of this network.
    """
    return _Builder(traced, balances, target, code, structure).build(timesteps, conversion)


class _Builder(Arithmetic):
    """Splits a traced graph into what is computed once, in every step, and at the end, and swaps in spiking parts.

    Every tensor of the DNN is a sum of what nodes of the step give, each at its scale: a neuron layer's spikes are
    worth their level, and the synaptic layer that reads them takes the scale into its weights, so that its currents
    are in units of activation again.
    """

    def __init__(
        self,
        traced: fx.GraphModule,
        balances: Mapping[str, Balance],
        target: Target,
        code: InputCode,
        structure: Structure,
    ) -> None:
        super().__init__(traced, StepGraph(traced, _names(traced)), structure, device_of(traced))
        self.balances = balances
        self.target = target
        self.code = code
        self.modules = dict(traced.named_modules())
        self.cut = next((node for node in traced.graph.nodes if node.meta.get("cut")), None)
        self.neurons = 0
        self.trained, self.trained_beta, self.is_deployed = "none", "none", False

    def build(self, timesteps: int, conversion: Mapping[str, Any]) -> SpikingNetwork:
        self.trained, self.trained_beta = conversion["train_thresholds"], conversion["train_beta"]
        self.is_deployed = conversion["is_deployed"]
        for node in self.source.graph.nodes:
            if node.op == "output":
                self._end(node.args[0])
            elif node.meta["head"]:
                self._in_head(node)
            elif node.op == "placeholder":
                self._begin(node)
            elif node.op == "get_attr":
                self.known[node] = operator.attrgetter(str(node.target))(self.source)
            elif not is_value(node):
                self._size(node)
            elif self._is_neural(node):
                self._in_step(node)
            else:
                self.graph.compute_once(node, self._is_kept(node))
        if not self.neurons:
            raise ConversionError("The model has no ReLU, so there is nothing to turn into spiking neurons.")
        graph = self.graph
        graph.once.output(tuple(graph.nodes[node] for node in graph.exports))
        encoder, body = graph.module(graph.once, "Encoder"), graph.module(graph.step, "Step")
        head = None if self.cut is None else graph.module(graph.last, "Head")
        conversion = {**conversion, "structure": self.structure.written}
        network = SpikingNetwork(encoder, body, timesteps, len(graph.states), self.target.neurons, head, conversion)
        return network.train()  # as any new module

    def _in_head(self, node: fx.Node) -> None:
        for source in node.all_input_nodes:
            if source is self.cut:
                self.graph.mean_of(source)
            elif not source.meta["head"] and source.op != "get_attr":
                raise ConversionError(
                    f"Layer {self.cut.target if self.cut else None!r} does not separate the network: {node} reads "
                    f"{source} too. Choose an `until` that all paths go through."
                )
        self.graph.compute_at_the_end(node)

    # What is computed in every step

    def _is_neural(self, node: fx.Node) -> bool:
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        return isinstance(module, RECTIFIERS) or any(source in self.sums for source in node.all_input_nodes)

    def _is_kept(self, node: fx.Node) -> bool:
        """Tell of a batch norm that is to be trained."""
        return bool(self.structure.written.get(node.name, {}).get("kept"))

    def _in_step(self, node: Any) -> None:
        if node.target is torch.mean:
            self.sums[node] = self._mean(node)
            return
        if node.op != "call_module":
            self.sums[node] = self._function(node)
            return
        module, source = self.modules[str(node.target)], node.args[0]
        given = self._sum(source)
        if isinstance(module, RECTIFIERS):
            self.sums[node] = self._neurons(node, given, node.meta["populations"])
        elif is_synaptic(module):
            self.sums[node] = self._synapses(node, given, module)
        elif isinstance(module, BATCH_NORMS) and self._is_kept(node):
            self.sums[node] = self._batch_norm(node, given, module)
        elif isinstance(module, BATCH_NORMS):
            gain, shift = gain_and_shift(module)
            dims = self._sample(node).dim()
            self.sums[node] = given.times(channelwise(gain, dims), channelwise(shift, dims))
        elif isinstance(module, (*MAX_POOLS, *ADAPTIVE_MAX_POOLS)):
            self.sums[node] = self._max_pool(node, given, module)
        elif isinstance(module, (*AVERAGE_POOLS, *ADAPTIVE_AVERAGE_POOLS)):
            self.sums[node] = self._average(node, given, module, self._sum_pool(node, module))
        else:
            terms = tuple(
                replace(term, node=self.graph.call(node, copy.deepcopy(module), term.node), scale=module(term.scale))
                for term in given.terms
            )
            self.sums[node] = Sum(terms, module(given.shift))

    def _neurons(self, node: fx.Node, given: Sum, kinds: Mapping[str, Population]) -> Sum:
        """Put in populations of neurons."""
        term = self._one_current(node, given)
        source = node.args[0] if node.args else None
        unit = compact(term.scale, self._decide(node, "unit", lambda: layout_of(term.scale)))
        shape = torch.empty_like(given.shift)
        terms = []
        for key, kind in kinds.items():
            balance = self._balance(node, key)
            current = term.node if kind.sign > 0 else self.step.call_function(operator.neg, (term.node,))
            constant = (balance.current.to(shape) + kind.sign * given.shift).expand_as(shape)

            def layout(constant: Tensor = constant) -> Layout | None:
                return layout_of(constant) if bool(constant.any()) else None

            flows = self._decide(node, f"{key} current", layout)
            if flows is not None:
                constant = compact(constant, flows) / unit
                if not (len(kinds) == 1 and self._absorbed(source, constant)):
                    current = self.graph.call(node, Current(constant), current, f"{kind.suffix}_current")
            threshold, potential = balance.threshold.to(shape) / unit, balance.potential.to(shape) / unit
            add_submodule(self.graph.root, key, self._neuron(threshold, shape))
            initial = InitialState(potential, balance.level.to(shape).clone())
            add_submodule(self.graph.root, f"{key}_initial", initial)
            state = self.step.call_module(f"{key}_initial", (self.graph.state(), current))
            scale = (balance.level.to(shape) * channelwise(kind.gain, shape.dim())).expand_as(shape)
            terms.append(Term(self.graph.call_stateful(key, current, state), scale, spikes=True))
            self.neurons += 1
        return Sum(tuple(terms), torch.zeros_like(shape))

    def _neuron(self, threshold: Tensor, shape: Tensor) -> nn.Module:
        """Make a neuron layer, with as many thresholds and decays as are trained."""
        places = {
            "neuron": tuple(shape.shape[1:]),
            "channel": (shape.shape[1], *[1] * (shape.dim() - 2)),
            "layer": (),
            "none": (),
        }
        own = torch.broadcast_shapes(threshold.shape, places[self.trained])  # type: ignore[no-untyped-call]
        neuron = self.target.neuron(threshold.expand(own), places[self.trained_beta])
        neurons = self.target.neurons
        dynamics = neurons.describe(neuron)
        assert dynamics is not None
        if self.trained != "none" and not self.is_deployed:
            train_threshold(neurons.holder(neuron), dynamics.surrogate)
        if self.trained_beta != "none" and not self.is_deployed:
            train_beta(neurons.holder(neuron))
        return neuron

    def _balance(self, node: fx.Node, key: str) -> Balance:
        """Give the balance of a population, or, where only the structure is known, one of its shape."""
        names = ("level", "threshold", "potential", "current")
        shapes = self._decide(
            node, f"{key} shapes", lambda: [list(getattr(self.balances[key], name).shape) for name in names]
        )
        if not self.structure.is_given:
            return self.balances[key]
        return Balance(*(torch.ones(shape, device=self.device) for shape in shapes))

    def _absorbed(self, source: Any, constant: Tensor) -> bool:
        """Add a constant current to the bias of the layer that it comes from, if that layer gives nothing else."""
        if source is None or source.op != "call_module":
            return False
        layer: Any = self.modules[str(source.target)]
        if not (is_synaptic(layer) or self._is_kept(source)):
            return False
        layer = self.graph.root.get_submodule(str(source.target))
        channels = constant.dim() == 0 or constant.numel() == constant.shape[0]
        if len(source.users) > 1 or not channels or (isinstance(layer, nn.Linear) and self._sample(source).dim() > 2):
            return False
        bias = constant.flatten().expand(self._sample(source).shape[1])
        layer.bias = nn.Parameter(bias.clone() if layer.bias is None else layer.bias + bias)
        return True

    def _synapses(self, node: fx.Node, given: Sum, module: Any) -> Sum:
        if len(given.terms) > 1 and not all(term.spikes for term in given.terms):
            given = Sum((self._one_current(node, given),), given.shift)
        shift, bias = torch.zeros_like(self._sample(node)), module.bias

        def becomes() -> str | None:
            if not bool(given.shift.any()):
                return None
            by_channel = _by_channel(module, _without_bias(module)(given.shift))
            return "bias" if bool((by_channel == by_channel[:1]).all()) else "shift"

        became = self._decide(node, "shift", becomes)
        if became is not None:
            shift = _without_bias(module)(given.shift)
        if became == "bias":
            by_channel = _by_channel(module, shift)[0]
            bias = nn.Parameter(by_channel if bias is None else bias + by_channel)
            shift = torch.zeros_like(shift)
        nodes = []
        for index, term in enumerate(given.terms):
            layer = copy.deepcopy(module)
            layer.bias = None if index or bias is None else nn.Parameter(bias.clone())
            dim = 1 if isinstance(module, CONVOLUTIONS) else term.scale.dim() - 1
            if not self.structure.is_given and not is_by_channel(term.scale, dim):
                raise refusal(
                    node,
                    "thresholds that differ along a dimension which the weights share",
                    name_of(node),
                    "use per_channel=False, and pools whose windows are all of one size",
                )
            scale_inputs(layer, of_channels(term.scale, dim))
            nodes.append(self.graph.call(node, layer, term.node))
        return Sum((Term(self.graph.added(nodes), torch.ones_like(shift), spikes=False),), shift)

    def _batch_norm(self, node: fx.Node, given: Sum, module: Any) -> Sum:
        """Keep a batch norm, of the currents of the layer in front."""
        if not self.structure.is_given and bool(given.shift.any()):
            raise refusal(node, "a batch norm of shifted currents", name_of(node), 'use batch_norm="fold"')
        (term,) = given.terms
        return Sum((replace(term, node=self.graph.call(node, BatchNorm(module), term.node)),), given.shift)

    def _max_pool(self, node: fx.Node, given: Sum, module: nn.Module) -> Sum:
        term, shift = given.terms[0], given.shift

        def commutes() -> bool:
            return is_by_channel(term.scale) and is_by_channel(shift) and bool((term.scale > 0).all())

        if len(given.terms) > 1 or not self._decide(node, "commutes", commutes):
            term = self._one_current(node, given, unscaled=True)
            flows = self._decide(node, "current", lambda: layout_of(shift) if bool(shift.any()) else None)
            if flows is not None:
                current = self.graph.call(node, Current(compact(shift, flows)), term.node, "_current")
                term, shift = replace(term, node=current), torch.zeros_like(shift)
        name = self.graph.put(node, SpikeMaxPool(copy.deepcopy(module)))
        shape = self._sample(node)
        scale, shift = (channelwise(of_channels(values), shape.dim()) for values in (term.scale, shift))
        passed = self.graph.call_stateful(name, term.node, self.graph.state())
        return Sum((Term(passed, scale.expand_as(shape), term.spikes),), shift.expand_as(shape))

    def _sum_pool(self, node: Any, module: Any) -> nn.Module:
        """Replace an average pooling by the sum over its windows."""
        if isinstance(module, AVERAGE_POOLS):
            return SumPool(module)
        sizes, pooled = tuple(self._sample(node.args[0]).shape[2:]), tuple(self._sample(node).shape[2:])
        if any(size % out for size, out in zip(sizes, pooled, strict=True)):
            return AdaptiveSumPool(sizes, pooled).to(self.device)
        kernel: Any = tuple(size // out for size, out in zip(sizes, pooled, strict=True))
        return SumPool(AVERAGE_POOLS[len(kernel) - 1](kernel))

    def _average(
        self, node: fx.Node, given: Sum, average: Callable[[Tensor], Tensor], sums: nn.Module, channels: bool = False
    ) -> Sum:
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
        for index, term in enumerate(given.terms):

            def sums_up(scale: Tensor = term.scale) -> bool:
                worth = of_channels(scale)
                return is_by_channel(scale) and not (channels and bool((worth != worth[0]).any()))

            if not self._decide(node, f"sums up {index}", sums_up):
                term = self._one_current(node, Sum((term,), given.shift), f"term {index} ", unscaled=True)
            worth = of_channels(term.scale)
            scale = share * (worth[0] if channels else channelwise(worth, share.dim()))
            terms.append(replace(term, node=self.graph.call(node, copy.deepcopy(sums), term.node), scale=scale))
        return Sum(tuple(terms), average(given.shift))

    def _mean(self, node: Any) -> Sum:
        dims = tuple(dim % self._sample(node.args[0]).dim() for dim in node.args[1])
        keepdim = bool(node.kwargs["keepdim"])
        sums = SumOver(dims, keepdim)
        return self._average(node, self._sum(node.args[0]), lambda x: x.mean(dims, keepdim=keepdim), sums, 1 in dims)

    # Input and output

    def _begin(self, node: fx.Node) -> None:
        """Let the input spike, where it is coded."""
        self.graph.nodes[node] = self.graph.once.node_copy(node)
        code = self.code
        self.structure.decide(name_of(node), "code", code.written)
        if code.module is not None:
            given = self._sum(node)
            name = name_of(node)
            add_submodule(self.graph.root, name, copy.deepcopy(code.module))
            spikes = self.graph.call_stateful(name, given.terms[0].node, self.graph.state())
            self.sums[node] = Sum((Term(spikes, code.worth * given.terms[0].scale, spikes=True),), given.shift)
        elif code.populations:
            given = self._sum(node)
            one = OneToOne(torch.ones((), dtype=given.shift.dtype, device=given.shift.device))
            current = replace(given.terms[0], node=self.graph.call(node, one, given.terms[0].node, "_synapse"))
            self.sums[node] = self._neurons(node, Sum((current,), given.shift), code.populations)

    def _end(self, source: fx.Node) -> None:
        """Return the step's output on the DNN's scale, and the states; and from the head, its output."""
        if self.cut is not None:
            self.graph.last.output(self.graph.mean_of(source) if source is self.cut else self.graph.behind[source])
        given = self.sums.get(source if self.cut is None else self.cut)
        if not isinstance(given, Sum):
            raise ConversionError("The model's output does not depend on any ReLU: nothing would spike.")
        outputs = []
        for index, term in enumerate(given.terms):
            outputs.append(term.node)
            if not self._decide(source, f"output as it is {index}", partial(is_one, term.scale)):
                held = self._held(source, "output_scale", term.scale, f" {index}")
                outputs[-1] = self.step.call_function(operator.mul, (term.node, held))
        output = self.graph.added(outputs)
        if self._decide(source, "output shift", lambda: bool(given.shift.any())):
            held = self._held(source, "output_shift", given.shift)
            output = self.step.call_function(operator.add, (output, held))
        self.step.output((output, tuple(self.graph.states)))

    def _held(self, source: fx.Node, name: str, values: Tensor, which: str = "") -> fx.Node:
        layout = self._decide(source, f"{name}{which} layout", lambda: layout_of(values))
        small = compact(values, layout)
        return self.graph.held(name, small.reshape(1, *(small.shape or [1] * (values.dim() - 1))))


def _names(traced: fx.GraphModule) -> Names:
    """Give the names that parts must not have."""
    names = Names(name for name, _ in traced.named_modules())
    for node in traced.graph.nodes:
        populations = node.meta.get("populations", {})
        names.taken |= {key + ending for key in populations for ending in ("", "_initial")}
        if node.op == "placeholder":
            names.taken |= {node.meta["name"] + ending for ending in ENDINGS}
    return names


def _without_bias(layer: Any) -> Any:
    layer = copy.deepcopy(layer)
    layer.bias = None
    return layer


def _by_channel(layer: nn.Module, values: Tensor) -> Tensor:
    """Give what a synaptic layer makes of one sample by place, ``(places, channels)``."""
    by_channel = values[0] if isinstance(layer, nn.Linear) else values[0].flatten(1).T
    return by_channel.reshape(-1, by_channel.shape[-1])
