"""What any network spends, layer by layer: a DNN, or a spiking network of snnTorch, Norse, SpikingJelly or sinabs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from snnreg_plugins._checks import as_integer
from snnreg_plugins._models import as_module, device_of, eval_and_back
from snnreg_plugins.functional.energy import EnergyTable, energy, energy_table
from snnreg_plugins.functional.lemaire import LEMAIRE_SOURCE, LemaireEnergy, lemaire_dense_energy, lemaire_energy
from snnreg_plugins.functional.synapses import count_events, is_synaptic
from snnreg_plugins.profile.result import LEMAIRE, LayerProfile, Profile
from snnreg_plugins.spiking.network import SpikingNetwork
from snnreg_plugins.watching.inputs import warn_of_whole_numbers
from snnreg_plugins.watching.layers import forget_states, leaks, spikes_already
from snnreg_plugins.watching.observer import Observer
from snnreg_plugins.watching.stepped import outputs_of_steps
from snnreg_plugins.watching.steps import CallSteps
from snnreg_plugins.watching.tally import Tally


def profile(
    model: nn.Module,
    inputs: Tensor,
    *,
    timesteps: int | None = None,
    table: str | EnergyTable = "horowitz_fp32",
    batch_dim: int = 0,
    input_events: bool | None = None,
) -> Profile:
    """Run a network on a batch and count what each of its layers does: operations, spikes, energy.

    The network need not come from this package: a plain DNN, or modules of snnTorch, Norse, SpikingJelly and sinabs.
    One whose time loop is inside is called once. One that takes a step at a time is called ``timesteps`` times with
    the same inputs; states that it returns (``output, state``) and takes as a further argument are handed back to it.
    States kept inside its neurons are reset before and after, its mode is eval, and both hooks and mode are as they
    were afterwards.

    Operations are those of :class:`~snnreg_plugins.SynapticOperations`, and spikes those of
    :class:`~snnreg_plugins.SpikeRate`, exact: synaptic layers, and products with weights or of two activities that no
    layer makes (attention, recurrent cells, ``F.linear``), under the name of the module that makes them. What cannot be
    counted is named.

    Args:
        model: The network.
        inputs: A batch, as the network takes it.
        timesteps: Number of calls of a network that takes a step at a time; None for one call.
        table: pJ per operation: a name in ``functional.ENERGY_TABLES``, a YAML file, an ``EnergyTable`` of your own,
            or ``"lemaire"`` for :func:`~snnreg_plugins.functional.lemaire_energy`, which has memory access too. For
            that, weights have the ``weight_bits`` of an exported network, SOPs are the exact ones, and spikes of a
            neuron layer are the output of the synaptic layer called last before it; what leaks is told by a neuron's
            ``beta`` or its class's name.
        batch_dim: Dimension of the batch in ``inputs``; 1 for ``(T, B, ...)``.
        input_events: Whether whole numbers in ``inputs`` are counts of events, or cost MACs, as those of images of 0 to
            255 do; see :class:`~snnreg_plugins.SynapticOperations`.

    Returns:
        The numbers, with ``print()`` and ``save_json(path)``.

    Raises:
        TypeError: If ``model`` is no module or ``inputs`` no tensor.
        ValueError: If the network cannot take ``inputs``, has no synaptic layer and no other weights, multiplies by
            none of them, or an argument is out of range.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> result = profile(net, torch.rand(2, 4))
        >>> [layer.name for layer in result.layers], result.dense_macs
        (['0', '1', '2'], 56.0)
    """
    timesteps = None if timesteps is None else as_integer("timesteps", timesteps)
    batch_dim = as_integer("batch_dim", batch_dim, at_least=0)
    _require_fitting(model, inputs, timesteps, batch_dim)
    prices = None if table == LEMAIRE else energy_table(table)
    context = _Context()
    tally = Tally(
        model,
        batch_dim=batch_dim,
        input_events=input_events,
        observer=context,
        on_doubt=partial(warn_of_whole_numbers, "profile"),
    )
    tally.require_operations()
    with torch.no_grad(), tally, _at_rest(model):
        try:
            _run(model, inputs.to(device_of(model, inputs.device)), timesteps)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"Expected argument `inputs` to be a batch that {type(model).__name__} takes, but for one of shape "
                f"{tuple(inputs.shape)} it raised {type(error).__name__}: {reason}"
            ) from error
    if not tally.total("dense_macs") and not tally.missed:
        raise ValueError(
            f"Expected argument `model` to multiply activity by its weights, but {type(model).__name__} called none of "
            f"{sorted(tally.synapses)} and made no other product."
        )
    spiking = spikes_already(model)
    weight_bits = model.conversion.get("weight_bits") if isinstance(model, SpikingNetwork) else None
    pricing = _Pricing(tally, context, prices, inputs.shape[batch_dim], timesteps, spiking, weight_bits)
    layers = tuple(_layer(name, pricing) for name in tally.called)
    return Profile(
        model=type(model).__name__,
        samples=pricing.samples,
        timesteps=timesteps,
        spiking=spiking,
        layers=layers,
        unused=tuple(name for name in tally.layers if name not in tally.called),
        uncounted=tuple(dict.fromkeys(name for name, _ in tally.missed)),
        **_totals(layers, pricing),
        left_out=tuple(layer.name for layer in layers if layer.dense_macs is not None and layer.energy is None),
        breakdown=asdict(pricing.breakdown) if prices is None else None,
        table=table if isinstance(table, str) else "custom",
        source=LEMAIRE_SOURCE if prices is None else prices.source,
    )


def _require_fitting(model: nn.Module, inputs: Tensor, timesteps: int | None, batch_dim: int) -> None:
    """Raise an error where the arguments do not fit each other."""
    as_module("model", model)
    if not isinstance(inputs, Tensor):
        raise TypeError(f"Expected argument `inputs` to be a tensor, but got {type(inputs).__name__}.")
    if not batch_dim < inputs.dim() or not inputs.numel():
        raise ValueError(
            f"Expected argument `inputs` to hold a batch of samples along dimension {batch_dim}, but got the shape "
            f"{tuple(inputs.shape)}."
        )
    if timesteps is not None and isinstance(model, SpikingNetwork):
        raise ValueError(
            f"Expected argument `timesteps` to be None for a SpikingNetwork, whose time loop is inside, but got "
            f"{timesteps}. Set `network.timesteps` instead."
        )


def _run(model: nn.Module, inputs: Tensor, timesteps: int | None) -> None:
    if timesteps is None:
        model(inputs)
        return
    for _ in outputs_of_steps(model, repeat(inputs, timesteps)):
        pass


@contextmanager
def _at_rest(model: nn.Module) -> Iterator[None]:
    """Run a model in eval mode with fresh states, and leave neither of them behind."""
    with eval_and_back(model):
        try:
            forget_states(model)
            yield
        finally:
            forget_states(model)


@dataclass
class _Input:
    """What a synaptic layer was given.

    Args:
        behind_neurons: Whether neurons were called before it was.
        shape: Shape of one sample, of the last call.
        presented: How often a sample was presented to it.
        events: Events that arrived, in input that holds nothing else.
        is_real: Whether some of it was real-valued.
        neurons: The neurons called next.
    """

    behind_neurons: bool
    shape: tuple[int, ...] = ()
    presented: int = 0
    events: int = 0
    is_real: bool = False
    neurons: list[str] = field(default_factory=list)


class _Context(Observer):
    """Follows which neurons a synaptic layer drives, and how often and with what it is called."""

    def __init__(self) -> None:
        self.inputs: dict[str, _Input] = {}
        self._last: _Input | None = None
        self._assigned: set[str] = set()

    def arrived(self, name: str, layer: Any, x: Tensor, shape: tuple[int, ...], cost: tuple[int, int, int]) -> None:
        given = self._last = self.inputs.setdefault(name, _Input(bool(self._assigned)))
        given.shape = shape
        given.presented += x.numel() // math.prod(shape)
        given.is_real |= cost[1] > 0
        given.events += 0 if cost[1] else count_events(x)

    def emitted(self, name: str, layer: nn.Module, spikes: Tensor, steps: CallSteps | None) -> None:
        if name not in self._assigned and self._last is not None:
            self._last.neurons.append(name)
        self._assigned.add(name)

    def timesteps(self, samples: int) -> int:
        """Find T of a network with its loop inside: how often the layer behind neurons that is called least is."""
        behind = [given.presented for given in self.inputs.values() if given.behind_neurons and not given.is_real]
        presented = behind or [given.presented for given in self.inputs.values()]
        return max(1, min(presented, default=1) // samples)


class _Pricing:
    """What was counted, and what it costs.

    Args:
        tally: The counts.
        context: What layers were called with.
        prices: Energies per operation; None for the model with memory access.
        samples: Samples in the batch.
        timesteps: Calls of the network; None for one that has its loop inside.
        spiking: Whether the network has spiking neurons.
        weight_bits: Bits of a weight in memory; None for those of all numbers.
    """

    def __init__(
        self,
        tally: Tally,
        context: _Context,
        prices: EnergyTable | None,
        samples: int,
        timesteps: int | None,
        spiking: bool,
        weight_bits: int | None = None,
    ) -> None:
        self.weight_bits = weight_bits
        self.tally, self.context, self.prices, self.samples, self.spiking = tally, context, prices, samples, spiking
        self.counts = {quantity: tally.by_layer(quantity) for quantity in tally.quantities}
        self.passes = timesteps
        self.steps = timesteps or (context.timesteps(samples) if spiking else 1)
        self.breakdown = LemaireEnergy()

    def uses(self, name: str) -> float:
        """Tell what share of a row's dense MACs one pass of a DNN has: 1 over it."""
        if name in self.context.inputs:
            presented = max(1, self.context.inputs[name].presented)
            return presented / max(1, round(presented / self.samples / self.steps))
        return self.samples * (self.passes or self.tally.steps_of(name))

    def of_layer(self, name: str) -> tuple[float | None, float | None]:
        """Give the energy of a row that multiplies, and that of the same in a DNN, in J/sample; None if unknown."""
        if self.prices is None:
            return self._with_memory(name)
        sops, macs = self.counts["sops"][name], self.counts["effective_macs"][name]
        if macs and not self.prices.prices_macs:
            return None, None
        dense = self.counts["dense_macs"][name] / self.uses(name)
        spent = energy(sops, macs, self.prices) / self.samples
        return spent, energy(0.0, dense, self.prices) if self.prices.prices_macs else None

    def _with_memory(self, name: str) -> tuple[float | None, float | None]:
        given, layer = self.context.inputs.get(name), self.tally.modules[name]
        if given is None or not is_synaptic(layer):
            return None, None
        times = max(1, round(given.presented / self.samples / self.steps))
        dense = sum(times * [lemaire_dense_energy(layer, given.shape, weight_bits=self.weight_bits)], LemaireEnergy())
        parts = dense
        if self.spiking:
            spikes = sum(self.counts["spikes"][neurons] for neurons in given.neurons)
            parts = lemaire_energy(
                layer,
                given.shape,
                # An analog layer drives its neurons in all steps.
                timesteps=max(self.steps, round(given.presented / self.samples)),
                events_in=given.events / self.samples,
                events_out=spikes / self.samples,
                sops=self.counts["sops"][name] / self.samples,
                effective_macs=self.counts["effective_macs"][name] / self.samples,
                leaky=any(leaks(self.tally.modules[neurons]) for neurons in given.neurons),
                weight_bits=self.weight_bits,
            )
        self.breakdown += parts
        return parts.total, dense.total


def _layer(name: str, pricing: _Pricing) -> LayerProfile:
    tally, counts = pricing.tally, pricing.counts
    kind, calls = type(tally.modules[name]).__name__, tally.called[name]
    neuron_steps = counts["neuron_steps"][name]
    rate = counts["spikes"][name] / neuron_steps if neuron_steps else None
    if name in tally.neurons and not counts["dense_macs"][name]:
        return LayerProfile(name, kind, calls, spike_rate=rate)
    spent, dense_spent = pricing.of_layer(name)
    return LayerProfile(
        name,
        kind,
        calls,
        sops=counts["sops"][name] / pricing.samples,
        effective_macs=counts["effective_macs"][name] / pricing.samples,
        dense_macs=counts["dense_macs"][name] / pricing.samples,
        spike_rate=rate,
        energy=spent,
        dense_energy=dense_spent,
    )


def _totals(layers: tuple[LayerProfile, ...], pricing: _Pricing) -> dict[str, Any]:
    """Sum up all layers."""
    sums = {quantity: sum(pricing.counts[quantity].values()) for quantity in pricing.tally.quantities}
    sops = sums["sops"] / pricing.samples
    unpriced = any(layer.dense_macs is not None and layer.energy is None for layer in layers)
    known = [layer.dense_energy for layer in layers if layer.dense_macs is not None]
    total = sum(layer.energy or 0.0 for layer in layers)
    if unpriced and pricing.prices is not None:
        total = energy(sops, 0.0, pricing.prices)
    return {
        "sops": sops,
        "effective_macs": sums["effective_macs"] / pricing.samples,
        "dense_macs": sums["dense_macs"] / pricing.samples,
        "spike_rate": sums["spikes"] / sums["neuron_steps"] if sums["neuron_steps"] else None,
        "energy": total,
        "dense_energy": None if None in known else sum(value for value in known if value is not None),
    }
