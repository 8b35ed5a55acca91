"""Which currents of a spiking network have a unit in common: those that meet at a neuron, channel by channel.

A soft-reset neuron does the same whatever unit its currents, threshold and potential are in. So each output channel of
a synaptic layer may have a unit of its own, as long as all that is added up has the same one. Where that is follows
from the graph of the network alone, not from its values.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from snnreg_plugins.export.forms import MOVERS, moves_values
from snnreg_plugins.export.refusals import ConversionError
from snnreg_plugins.functional.synapses import OneToOne, is_synaptic
from snnreg_plugins.spiking.coding import LatencyCoder, PoissonCoder
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

# In the place of a channel: spikes, which are counted; what is computed of the input alone; and what has left its unit.
_EVENTS, _REAL, _LEFT = -1, -2, -3

# What makes each channel of what it reads of that channel alone.
_WITHIN_CHANNELS = (
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(AdaptiveSumPool, SumPool, SpikeMaxPool, nn.Upsample, nn.SyncBatchNorm, BatchNorm),
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
)


@dataclass(frozen=True)
class _Value:
    """A tensor of the network, as the channel that each element of a sample is in, ``(1, ...)``."""

    channels: Tensor

    @property
    def has_unit(self) -> bool:
        return bool((self.channels >= 0).any())


class Outputs(NamedTuple):
    """The channels of a synaptic layer, one for each of its outputs.

    Args:
        first: The first of them.
        number: How many.
        behind: Dimensions of a sample behind that of the outputs.
    """

    first: int
    number: int
    behind: int

    @property
    def channels(self) -> slice:
        """Where they are among all."""
        return slice(self.first, self.first + self.number)


@dataclass
class Units:
    """The channels of a network, and where they are.

    Args:
        network: The network.

    Attributes:
        synapses: The channels of each synaptic layer, by name.
        read: Channels ``(...)`` of a sample of the currents that a neuron, its initial state or a constant current
            reads; by name. None where those are computed of the input alone.
        real: Channels that are left in units of activation, as nothing in the network takes a unit over from them.
        left: Where currents leave their unit: nodes of the body, each before one of its users, and the channels.
        normalized: Names of batch norms, and the channels of what they read.

    Raises:
        ConversionError: If something reads currents, or adds to them, that does not take their unit over.
    """

    network: SpikingNetwork
    synapses: dict[str, Outputs] = field(default_factory=dict)
    read: dict[str, Tensor | None] = field(default_factory=dict)
    left: list[tuple[fx.Node, fx.Node, Tensor]] = field(default_factory=list)
    normalized: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._parents: list[int] = []
        self._real: set[int] = set()
        shape = tuple(self.network.conversion["input_shape"])
        with torch.no_grad():
            x = _Value(torch.full((1, *shape), _REAL))
            constants = _Walk(self.network.encoder, self, in_step=False).run(x)
            _Walk(self.network.body, self, in_step=True).run(constants, [None] * self.network._states)

    def groups(self) -> Tensor:
        """Number the units: the one of each channel, ``(channels,)``; channels that are added up have the same one."""
        roots = [self._root(channel) for channel in range(len(self._parents))]
        numbers = {root: number for number, root in enumerate(dict.fromkeys(roots))}
        return torch.tensor([numbers[root] for root in roots], dtype=torch.long)

    @property
    def real(self) -> Tensor:
        """Tell of each channel whether it is left in units of activation, ``(channels,)``."""
        real = {self._root(channel) for channel in self._real}
        return torch.tensor([self._root(channel) in real for channel in range(len(self._parents))], dtype=torch.bool)

    def _root(self, channel: int) -> int:
        while self._parents[channel] != channel:
            self._parents[channel] = channel = self._parents[self._parents[channel]]
        return channel

    def new(self, name: str, count: int, behind: int) -> Tensor:
        """Give a synaptic layer channels of its own, those that it has if it is called again."""
        if name not in self.synapses:
            self.synapses[name] = Outputs(len(self._parents), count, behind)
            self._parents += range(len(self._parents), len(self._parents) + count)
        return torch.arange(count) + self.synapses[name].first

    def join(self, some: Tensor, others: Tensor) -> None:
        """Let channels have the same unit, element by element."""
        for one, other in set(zip(some.flatten().tolist(), others.flatten().tolist(), strict=True)):
            self._parents[self._root(one)] = self._root(other)

    def leave(self, value: _Value) -> _Value:
        """Leave currents that are computed once in units of activation."""
        self._real |= set(value.channels[value.channels >= 0].tolist())
        return _Value(torch.full_like(value.channels, _REAL))


class _Walk(fx.Interpreter):
    """Goes through a part of the network with the channels of its tensors."""

    def __init__(self, part: fx.GraphModule, units: Units, in_step: bool) -> None:
        super().__init__(part)
        self.extra_traceback = False
        self.units, self.in_step = units, in_step
        self.like = next(iter(units.network.parameters()))

    def run_node(self, n: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if n.op == "call_module":
            return self._module(n, self.fetch_attr(str(n.target)), args)
        if n.op == "output" and self.in_step:
            return (self._leave(n, n.args[0][0], args[0][0]), args[0][1])  # type: ignore[index]
        values = [arg for arg in _flat((args, kwargs)) if isinstance(arg, _Value)]
        picks = n.target is operator.getitem and not isinstance(args[0], _Value)
        if n.op not in ("call_function", "call_method") or not values or picks:
            return super().run_node(n)
        if n.target is operator.neg:
            return values[0]
        if n.target in (operator.add, operator.sub) and len(values) == 2:
            return self._added(n, *values)
        if n.target is F.pad:
            padded = F.pad(self._zeros(values[0]), *args[1:], **kwargs)
            return self._by_channel(str(n), values[0], tuple(padded.shape))
        if n.target in (torch.cat, "size", "dim", getattr) or moves_values(n):
            return self._moved(n, args, kwargs)
        return self._computed(n, args, kwargs, values)

    # Modules

    def _module(self, node: fx.Node, module: Any, args: tuple[Any, ...]) -> Any:
        name = str(node.target)
        if isinstance(module, InitialState):
            value = args[1]
            self.units.read[name] = self._of_neurons(name, value)
            return value
        value = args[0]
        if isinstance(module, (PoissonCoder, LatencyCoder)):
            return _Value(torch.full_like(value.channels, _EVENTS)), None
        if self.in_step and self.units.network.neurons.describe(module) is not None:
            self.units.read[name] = self._of_neurons(name, value)
            return _Value(torch.full_like(value.channels, _EVENTS)), None
        if is_synaptic(module):
            return self._synapses(name, module, value)
        if isinstance(module, Current):
            self.units.read[name] = self._of_neurons(name, value)
            return value
        if isinstance(module, SumOver):
            return self._summed(module, value)
        if isinstance(module, _WITHIN_CHANNELS):
            if isinstance(module, (BatchNorm, nn.SyncBatchNorm)) and value.has_unit:
                self.units.normalized[name] = value.channels
            pooled = self._by_channel(name, value, self._shape(module, value))
            return (pooled, None) if isinstance(module, SpikeMaxPool) else pooled
        if isinstance(module, MOVERS):
            return _Value(module(value.channels))
        if not self.in_step:  # computed once, of whatever kind
            return _Value(torch.full(self._shape(module, self.units.leave(value)), _REAL))
        raise _refusal(name, f"{type(module).__name__} does not take over the units of currents")

    def _zeros(self, value: _Value) -> Tensor:
        return torch.zeros(value.channels.shape, dtype=self.like.dtype, device=self.like.device)

    def _shape(self, module: Any, value: _Value) -> tuple[int, ...]:
        """Find the shape of what a module makes of a sample."""
        zeros = self._zeros(value)
        if isinstance(module, (BatchNorm, nn.SyncBatchNorm)):  # which would take note of them
            return tuple(zeros.shape)
        return tuple((module(zeros, None)[0] if isinstance(module, SpikeMaxPool) else module(zeros)).shape)

    def _synapses(self, name: str, module: Any, value: _Value) -> _Value:
        if not self.in_step:
            value = self.units.leave(value)
        fed = set(value.channels.flatten().tolist())
        if self.in_step and fed != {_EVENTS} and not (isinstance(module, OneToOne) and fed == {_REAL}):
            raise _refusal(name, "it reads currents, not spikes", "put an nn.ReLU in front of it")
        shape = tuple(value.channels.shape) if isinstance(module, OneToOne) else self._shape(module, value)
        dim = len(shape) - 1 if isinstance(module, nn.Linear) else 1
        behind = len(shape) - 1 - dim
        return _Value(self.units.new(name, shape[dim], behind).reshape(-1, *[1] * behind).expand(shape))

    def _by_channel(self, name: str, value: _Value, shape: tuple[int, ...]) -> _Value:
        """Give what pools or pads within channels the channels that it has found."""
        channels = value.channels
        if bool((channels == channels.flatten()[0]).all()):
            return _Value(channels.flatten()[:1].expand(shape))
        first = channels.flatten(2)[..., :1] if channels.dim() > 2 else channels.unsqueeze(2)
        if shape[1] == channels.shape[1] and bool((channels.flatten(2) == first).all()):
            return _Value(first.reshape(1, -1, *[1] * (len(shape) - 2)).expand(shape))
        if not self.in_step:
            self.units.leave(value)
            return _Value(torch.full(shape, _REAL))
        raise _refusal(name, "it pools or pads currents that are not those of one layer by channel")

    def _summed(self, module: SumOver, value: _Value) -> _Value:
        channels = value.channels
        for dim in module.dims:
            if value.has_unit and channels.shape[dim] > 1:
                size = channels.shape[dim] - 1
                self.units.join(channels.narrow(dim, 0, size), channels.narrow(dim, 1, size))
        return _Value(channels.amax(module.dims, keepdim=module.keepdim))

    def _of_neurons(self, name: str, value: _Value) -> Tensor | None:
        """Give the channels of what neurons read; None for what is computed of the input alone."""
        if bool((value.channels >= 0).all()):
            return value.channels[0]
        if bool((value.channels == _REAL).all()):
            return None
        raise _refusal(name, "what it reads is added up of currents and values of the input without weights")

    # Functions

    def _added(self, node: fx.Node, left: _Value, right: _Value) -> _Value:
        shape = torch.broadcast_shapes(left.channels.shape, right.channels.shape)  # type: ignore[no-untyped-call]
        some, others = left.channels.expand(shape), right.channels.expand(shape)
        both = (some >= 0) & (others >= 0)
        if bool((both | (some == others)).all()):
            self.units.join(some[both], others[both])
            return _Value(some)
        left, right = (self._leave(node, *both) for both in zip(node.args, (left, right), strict=True))
        return _Value(torch.minimum(left.channels.expand(shape), right.channels.expand(shape)))

    def _moved(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """Move channels as the tensors are."""
        args, kwargs = _mapped((args, kwargs), lambda it: it.channels if isinstance(it, _Value) else it)
        found = getattr(self, node.op)(node.target, args, kwargs)
        return _mapped(found, lambda it: _Value(it) if isinstance(it, Tensor) else it)

    def _computed(self, node: fx.Node, args: Any, kwargs: Any, values: list[_Value]) -> Any:
        """Compute with tensors of the network's own: outputs in the end, or what is computed once."""
        if self.in_step:
            (source,) = (one for one in node.all_input_nodes if isinstance(self.env[one], _Value))
            return self._leave(node, source, values[0])
        for value in values:
            self.units.leave(value)

        def zeros(it: Any) -> Any:
            return self._zeros(it) if isinstance(it, _Value) else it

        args, kwargs = _mapped((args, kwargs), zeros)
        found = getattr(self, node.op)(node.target, args, kwargs)
        return _mapped(found, lambda it: _Value(torch.full(it.shape, _REAL)) if isinstance(it, Tensor) else it)

    def _leave(self, node: fx.Node, source: Any, value: _Value) -> _Value:
        """Let currents leave their unit in front of a node."""
        if not value.has_unit:
            return value
        if not self.in_step:
            return self.units.leave(value)
        if not bool((value.channels >= 0).all()):
            raise _refusal(str(node), "what it reads is only in parts of a layer's currents")
        self.units.left.append((node, source, value.channels[0]))
        return _Value(torch.full_like(value.channels, _LEFT))


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Change all that is nested in tuples, lists, dicts and slices."""
    return fx.node.map_aggregate(value, change)


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _flat(item)
    else:
        yield value


def _refusal(name: str, what: str, remedy: str = "change the model there") -> ConversionError:
    name = name.removesuffix("_initial").removesuffix("_synapse")  # parts that stand in front of a layer
    return ConversionError(f'Cannot bring layer {name!r} to few bits: {what}. Use weights="float", or {remedy}.')
