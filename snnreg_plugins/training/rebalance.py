"""New thresholds for a layer of a network that is trained: of activations as they are now."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from snnreg_plugins._models import device_of, dtype_of, eval_and_back
from snnreg_plugins.export.calibrate import Threshold, level_of
from snnreg_plugins.export.fold import scale_inputs
from snnreg_plugins.export.simulate import channelwise
from snnreg_plugins.functional.synapses import CONVOLUTIONS, OneToOne, is_synaptic
from snnreg_plugins.functional.thresholds import ActivationHistogram
from snnreg_plugins.training.tandem import Coupled, TandemNetwork

# What rounding may change of scores, in units of their largest: a thousand roundings of single precision.
_ROUNDING = 1e-4


@torch.no_grad()
def levels_now(
    network: TandemNetwork, layer: int, inputs: Iterable[Tensor], threshold: Threshold, per_channel: bool
) -> dict[str, Tensor]:
    """Choose what a spike of a layer is to be worth, from the activations that it has now.

    Args:
        network: The network, of which the layers in front of it spike.
        layer: Index of the layer.
        inputs: Batches.
        threshold: The method.
        per_channel: Whether to go by channel.

    Returns:
        A level, in activation of the DNN, for each population of the layer that is not silent.
    """
    seen = _Activations(network, network.layers[layer], per_channel)
    with eval_and_back(network):
        for batch in inputs:
            x = _as_given(network, batch)
            seen.rates = network.rates(x)
            seen.give(network.encoder(x))
    chosen = {name: level_of(histogram, threshold, per_channel) for name, histogram in seen.histograms.items()}
    return {name: level for name, level in chosen.items() if level is not None}


@torch.no_grad()
def rebalance(network: TandemNetwork, levels: Mapping[str, Tensor], sample: Tensor) -> bool:
    r"""Give neurons other thresholds, and scale what reads their spikes such that the DNN stays the same.

    With :math:`\rho` the new level over the old one, thresholds and initial potentials become :math:`\rho` times what
    they were, and so do the weights of their spikes.

    Args:
        network: The network; changed in place, its parameters stay the same objects.
        levels: What a spike of a neuron layer is to be worth, by its name: a number, or one per channel.
        sample: One or more inputs, on which it is made sure that the DNN is the same.

    Returns:
        Whether it was done; where spikes are not read by weights, such as by an output that is their mean, the network
        is left as it was.
    """
    held = {name: values.clone() for name, values in network.state_dict().items()}
    with eval_and_back(network):
        x = _as_given(network, sample[:2])
        constants = network.encoder(x)
        before = Coupled(network, {}).give(constants)
        ratios = {name: _scaled_neurons(network, name, level) for name, level in levels.items()}
        plain, scaled = _Reads(network, {}), _Reads(network, ratios)
        plain.give(constants)
        scaled.give(constants)
        for reader, read in plain.found.items():
            _scale(network, reader, torch.where(read != 0, scaled.found[reader] / read, 1.0))
        after = Coupled(network, {}).give(constants)
    if float((after - before).abs().max()) <= _ROUNDING * float(before.abs().max()):
        return True
    network.load_state_dict(held)
    return False


def _scaled_neurons(network: TandemNetwork, name: str, level: Tensor) -> Tensor:
    """Scale thresholds of neurons, and give the factor."""
    initial, dynamics = network.initial_state(name), network.dynamics(name)
    dims = max(initial.level.dim() + 1, 2)
    ratio: Tensor = channelwise(level.to(initial.level), dims).reshape(-1, *[1] * (dims - 2)) / initial.level
    ratio = ratio.reshape(()) if initial.level.dim() == 0 else ratio
    for values, factor in (
        (initial.level, ratio),
        (initial.potential, ratio),
        (dynamics.threshold, ratio),
        (dynamics.surrogate.slope, 1 / ratio),
    ):
        values.copy_(values * factor)
    return ratio


class _Activations(Coupled):
    """Counts the activations of a layer."""

    def __init__(self, network: TandemNetwork, names: list[str], per_channel: bool) -> None:
        super().__init__(network, {})
        self.names, self.per_channel = names, per_channel
        self.histograms: dict[str, ActivationHistogram] = {}

    def neurons(self, name: str, current: Tensor, threshold: Tensor) -> Tensor:
        if name in self.names:
            channels = current.shape[1] if self.per_channel else 1
            histogram = self.histograms.setdefault(name, ActivationHistogram(channels, device=current.device))
            level = self.network.initial_state(name).level
            histogram.update(current.relu() / threshold * level)
        return super().neurons(name, current, threshold)


class _Reads(Coupled):
    """What readers of spikes read of neurons that all give 1, or what is given for some of them."""

    def __init__(self, network: TandemNetwork, gives: Mapping[str, Tensor]) -> None:
        super().__init__(network, {})
        self.gives = gives
        self.found: dict[str, Tensor] = {}

    def neurons(self, name: str, current: Tensor, threshold: Tensor) -> Tensor:
        return torch.ones_like(current) * self.gives.get(name, 1.0)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        if not is_synaptic(self.fetch_attr(target)):
            return super().call_module(target, args, kwargs)
        self.found[str(target)] = args[0][:1]
        # The same whatever was read.
        return torch.ones_like(super().call_module(target, args, kwargs))

    def run_node(self, n: fx.Node) -> Any:
        held = n.args[1] if n.target is operator.mul else None
        if isinstance(held, fx.Node) and held.op == "get_attr":  # the scale of an output
            self.found[str(held.target)] = self.fetch_args_kwargs_from_env(n)[0][0][:1]
        return super().run_node(n)


def _scale(network: TandemNetwork, reader: str, ratio: Tensor) -> None:
    """Have a layer, or a scale, give for what it reads what it gave for that times the ratio ``(1, ...)``."""
    if bool((ratio == 1).all()):
        return
    try:
        layer: Any = network.body.get_submodule(reader)
    except AttributeError:
        held = network.body.get_buffer(reader)
        held.copy_(held * _like(ratio, held))
        return
    if isinstance(layer, OneToOne):
        layer.weight.copy_(layer.weight * _like(ratio[0], layer.weight))
        return
    channels = ratio.movedim(1 if isinstance(layer, CONVOLUTIONS) else -1, 0).flatten(1)
    changed = copy.copy(layer)
    changed._parameters = dict(layer._parameters)
    scale_inputs(changed, channels.gather(1, (channels - 1).abs().argmax(1, keepdim=True)).squeeze(1))
    layer.weight.copy_(changed.weight)


def _as_given(network: TandemNetwork, x: Tensor) -> Tensor:
    """Give a batch of a loader as the Trainer gives it, on the device and in the precision of the network."""
    return x.to(device_of(network), dtype_of(network) if x.is_floating_point() else x.dtype)


def _like(ratio: Tensor, values: Tensor) -> Tensor:
    """Reduce a ratio to the shape of what it is to scale, by the value that differs from 1 the most."""
    while ratio.dim() > values.dim():
        ratio = ratio[0]
    for dim, size in enumerate(values.shape):
        if ratio.shape[dim] != size:
            ratio = ratio.gather(dim, (ratio - 1).abs().argmax(dim, keepdim=True))
    return ratio
