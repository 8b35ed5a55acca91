r"""Spiking networks in whole numbers: weights of few bits, and all that meets their currents in the same units.

With the unit u of a channel, :math:`W = u \hat W`, and :math:`v = u \hat v`, :math:`\lambda = u \hat\lambda`,
:math:`b = u \hat b`, a soft-reset neuron without leak is the same neuron in units:

.. math::
    \hat v_t = \hat v_{t-1} + \hat W s_t + \hat b - \hat\lambda [\hat v_{t-1} > \hat\lambda]
    \qquad s_t = [\hat v_t > \hat\lambda]

and exact in whole numbers once all hats are rounded, in floats too as long as no sum leaves the range in which they
hold every whole number. What a spike is worth has no part in it.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from snnreg_plugins._models import device_of, dtype_of
from snnreg_plugins.export.copies import add_submodule, bare_copy
from snnreg_plugins.export.few_bits import Synapse, has_few_bits, train_few_bits, transposed_groups
from snnreg_plugins.export.refusals import ConversionError
from snnreg_plugins.export.units import Outputs, Units
from snnreg_plugins.functional.fewbits import outputs_first, round_weights, unit_of
from snnreg_plugins.functional.synapses import OneToOne
from snnreg_plugins.spiking.layers import Current, InitialState, SpikeMaxPool
from snnreg_plugins.spiking.network import SpikingNetwork

# Name of the units by which the outputs are multiplied.
_OUTPUT = "output_unit"


def bring_to_few_bits(network: SpikingNetwork, is_new: bool = True) -> None:
    """Do what the options of a network say of its weights, in place: train them in few bits, or round them.

    Args:
        network: The network, as it was built of floats.
        is_new: Whether values are to be right; False where tensors of a file are to be put in.

    Raises:
        ConversionError: If a part of the network has no few bits.
    """
    weights = network.conversion.get("weights", "float")
    if weights == "float":
        return
    if network.conversion["is_deployed"]:
        to_integers(network, weights, network.conversion["weight_bits"], is_new)
    else:
        train_in_few_bits(network, weights, network.conversion["weight_bits"])


def train_in_few_bits(network: SpikingNetwork, weights: str, bits: int) -> None:
    """Train the synapses of a network in few bits, in place; synapses from one neuron to one other stay as they are.

    Args:
        network: The network, of floats.
        weights: The format.
        bits: Of a weight.

    Raises:
        ConversionError: If a part of the network has no few bits.
    """
    units, layers = Units(network), _layers(network)
    groups = units.groups()
    found = {name: groups[outputs.channels] for name, outputs in units.synapses.items()}
    found = {name: channels for name, channels in found.items() if not isinstance(layers[name], OneToOne)}
    for name, channels in found.items():
        others = [key for key in found if key != name and bool(torch.isin(channels, found[key]).any())]
        for norm, normalized in units.normalized.items():
            if others and bool(torch.isin(channels, groups[normalized.flatten()]).any()):
                raise ConversionError(
                    f"Cannot train layer {name!r} in few bits beside batch norm {norm!r}: {others[0]!r} adds to the "
                    "same currents, in the same units, which the batch norm would scale apart. Use "
                    'batch_norm="fold", or weights="float".'
                )
        alone = not others and len(set(channels.tolist())) == len(channels)
        shared = [Synapse(layers[key], found[key]) for key in others]
        train_few_bits(weights, bits, layers[name], *shared, channels=None if alone else channels)
    network.parts_changed()


def fix_synapses(network: SpikingNetwork) -> None:
    """Leave the synapses of a network with the weights of few bits that they compute with, in place."""
    for part in (network.encoder, network.body):
        for name, layer in list(part.named_modules()):
            if has_few_bits(layer):
                # A new one: copies of a parametrized module share its class.
                add_submodule(part, name, bare_copy(layer).train(layer.training))
    network.parts_changed()


@torch.no_grad()
def to_integers(network: SpikingNetwork, weights: str, bits: int, is_new: bool = True) -> None:
    """Bring a network to whole numbers, in place: weights of few bits, and thresholds, potentials and biases.

    Scores leave their units by a factor for each output. What reads the input itself stays as real as that is: its
    weights are whole numbers where its currents go straight to neurons, and in few bits in any case.

    Args:
        network: The network, of floats, without batch norms and with thresholds that are not trained.
        weights: The format.
        bits: Of a weight.
        is_new: Whether values are to be right; False where tensors of a file are to be put in.

    Raises:
        ConversionError: If a part of the network has no few bits; if a threshold is less than half a unit; if sums may
            be beyond the whole numbers that the network's dtype holds.
    """
    units, layers = Units(network), _layers(network)
    unit = _unit_of_channels(units, layers, weights, bits)
    real = units.real.to(unit.device)
    for name, outputs in units.synapses.items():
        _set_synapse(layers[name], outputs, unit[outputs.channels], real[outputs.channels], weights, bits)
    unit = torch.where(real, 1.0, unit)
    for name, channels in units.read.items():
        if channels is not None:
            _set_neurons(network, name, _smallest(unit, channels), is_new)
    for user, source, channels in units.left:
        _multiply(network.body, user, source, _smallest(unit, channels).unsqueeze(0))
    network.body.recompile()
    network.parts_changed()
    if is_new and not _leaks(network):
        network.conversion["exact_timesteps"] = _exact_timesteps(network)


def _layers(network: SpikingNetwork) -> dict[str, Any]:
    """List the layers of a network by their names in the part that they are in; names are of one part alone."""
    return dict(network.encoder.named_modules()) | dict(network.body.named_modules())


def _unit_of_channels(units: Units, layers: dict[str, Any], weights: str, bits: int) -> Tensor:
    """Give the unit of each channel: the one that its largest weight asks for, of all synapses that add to it."""
    own = {name: _largest(layers[name], outputs.number) for name, outputs in units.synapses.items()}
    some = next(iter(own.values()), torch.zeros(0))
    groups = units.groups().to(some.device)
    # Synapses from one neuron to one other have the unit of what they are added to, if there is anything; and a
    # channel of zeros has that of its layer.
    singles = [name for name in own if isinstance(layers[name], OneToOne)]
    largest = some.new_zeros(len(groups))
    for names, of_layer in (
        (own.keys() - singles, False), (own.keys() - singles, True), (singles, False), (singles, True)
    ):  # fmt: skip
        found = torch.zeros_like(largest)
        for name in names:
            values = own[name].max().expand_as(own[name]) if of_layer else own[name]
            found.scatter_reduce_(0, groups[units.synapses[name].channels], values, "amax")
        largest = torch.where(largest > 0, largest, found)
    return unit_of(largest, weights, bits)[groups]


def _largest(layer: Any, count: int) -> Tensor:
    """Give the largest weight of each output."""
    if isinstance(layer, OneToOne):
        weight: Tensor = layer.weight.abs()
        return (weight.flatten(1).amax(1) if weight.dim() > 1 else weight).expand(count)
    return outputs_first(layer.weight, transposed_groups(layer)).flatten(1).abs().amax(1)


def _set_synapse(layer: Any, outputs: Outputs, unit: Tensor, real: Tensor, weights: str, bits: int) -> None:
    """Bring the weights of a layer to few bits, in units but where those are left."""
    kept = torch.where(real, unit, 1.0)
    if isinstance(layer, OneToOne):
        by_place = unit.reshape(-1, *[1] * outputs.behind)
        layer.weight = nn.Parameter((layer.weight / by_place).round() * kept.reshape(by_place.shape))
        return
    groups = transposed_groups(layer)
    weight = outputs_first(layer.weight, groups)
    by_output = [-1, *[1] * (weight.dim() - 1)]
    rounded = round_weights(weight, unit.reshape(by_output), weights, bits) * kept.reshape(by_output)
    layer.weight = nn.Parameter(outputs_first(rounded, groups).contiguous())
    if layer.bias is not None:
        layer.bias = nn.Parameter(torch.where(real, layer.bias, (layer.bias / unit).round()))


def _set_neurons(network: SpikingNetwork, name: str, unit: Tensor, is_new: bool) -> None:
    """Bring neurons, their initial potentials, or a constant current, to whole numbers of units."""
    module: Any = network.body.get_submodule(name)
    if isinstance(module, InitialState):
        module.potential = (module.potential / unit).round()
    elif isinstance(module, Current):
        module.bias = nn.Parameter((module.bias / unit).round())
    else:
        dynamics = network.neurons.describe(module)
        assert dynamics is not None
        threshold = (dynamics.threshold / unit).round()
        if is_new and not bool((threshold >= 1).all()):
            raise ConversionError(
                f"Cannot bring layer {name!r} to few bits: a threshold of it is less than half a unit of its largest "
                'weight. Use more bits, weights="float", or a larger threshold.'
            )
        fixed = network.neurons.make(threshold, dynamics.beta, dynamics.surrogate.fixed(unit))
        add_submodule(network.body, name, fixed.train(module.training))


def _smallest(unit: Tensor, channels: Tensor) -> Tensor:
    """Give the units of a sample as the smallest tensor that broadcasts over it."""
    for dim in range(channels.dim()):
        if bool((channels == channels.narrow(dim, 0, 1)).all()):
            channels = channels.narrow(dim, 0, 1)
    return unit[channels.to(unit.device)]


def _multiply(body: fx.GraphModule, user: fx.Node, source: fx.Node, unit: Tensor) -> None:
    """Multiply what a node reads."""
    name = _OUTPUT
    while hasattr(body, name):
        name += "_"
    body.register_buffer(name, unit)
    with body.graph.inserting_before(user):
        product = body.graph.call_function(operator.mul, (source, body.graph.get_attr(name)))
    user.replace_input_with(source, product)


def _leaks(network: SpikingNetwork) -> bool:
    every = map(network.neurons.describe, network.body.modules())
    return any(dynamics is not None and bool((dynamics.beta != 1).any()) for dynamics in every)


def _exact_timesteps(network: SpikingNetwork) -> int:
    """Find for how many time steps no potential can leave the whole numbers that floats hold.

    Raises:
        ConversionError: If they are fewer than the network takes.
    """
    limit = 2 / torch.finfo(dtype_of(network)).eps
    bounds = _Bounds(network)
    shape = network.conversion["input_shape"]
    x = torch.zeros(2, *shape, dtype=dtype_of(network), device=device_of(network))
    bounds.run(network.encoder(x), [None] * network._states)
    steps = {name: int((limit - start) // max(most, 1e-30)) for name, (start, most) in bounds.found.items()}
    steps |= {name: 0 for name, most in bounds.currents.items() if most > limit}
    name = min(steps, key=steps.__getitem__, default="")
    if name and steps[name] < network.timesteps:
        raise ConversionError(
            f"Cannot bring layer {name!r} to few bits: in {network.timesteps} time steps its potentials may go beyond "
            f"{limit:,.0f}, up to which {dtype_of(network)} holds every whole number. Use "
            f"{f'at most {steps[name]} time steps, ' * (steps[name] > 0)}fewer bits, or a model of torch.float64 "
            "(model.double())."
        )
    return min(steps.values(), default=network.timesteps)


class _Bounds(fx.Interpreter):
    """Adds up what the currents of a step can be at most, and at least, if all spikes come: of two samples.

    The first is of what is positive, the second of the magnitudes of what is negative. What is computed of the input
    alone is left out: it is real in general.

    Attributes:
        found: Of what adds up over the steps, the largest initial potential, and the largest magnitude of a current.
        currents: Of each synaptic layer, that magnitude.
    """

    def __init__(self, network: SpikingNetwork) -> None:
        super().__init__(network.body)
        self.extra_traceback = False
        self.neurons = network.neurons
        self.found: dict[str, tuple[float, float]] = {}
        self.currents: dict[str, float] = {}

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        given = super().placeholder(target, args, kwargs)
        return tuple(map(torch.zeros_like, given)) if isinstance(given, tuple) else given

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module: Any = self.fetch_attr(str(target))
        x, name = args[0], str(target)
        if isinstance(module, InitialState):
            return module.potential.abs().max()
        if isinstance(module, SpikeMaxPool):
            self.found[name] = (0.0, float(x.abs().max()))
            return module(x, None)[0], None
        if self.neurons.describe(module) is not None:
            self.found[name] = (float(args[1]), float(x.abs().max()))
            return torch.ones_like(x), None
        if len(args) == 2:  # codes the input
            return torch.ones_like(x), None
        parts = []
        for sign, part in zip((1, -1), x.split(1), strict=True):
            one_sided = {key: (sign * value).clamp_min(0) for key, value in module.named_parameters()}
            parts.append(functional_call(module, one_sided, (part,)))
        self.currents[name] = float(max(part.max() for part in parts))
        return torch.cat(parts)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is operator.neg:
            return args[0].flip(0)
        if target is operator.sub:
            return args[0] + args[1].flip(0)
        return super().call_function(target, args, kwargs)
