"""Energy with memory access: the analytical model of Lemaire et al. 2022."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from snnreg_plugins._checks import as_flag, as_integer, as_number
from snnreg_plugins.functional.energy import ENERGY_TABLES
from snnreg_plugins.functional.geometry import Geometry
from snnreg_plugins.functional.synapses import SynapticLayer

#: Where the model was published.
LEMAIRE_SOURCE = (
    "Lemaire et al. 2022, arXiv 2210.13107: operations (int32, Horowitz, ISSCC 2014) and memory accesses, without "
    "biases and addressing; analytical, not measured"
)

_PRICES = ENERGY_TABLES["horowitz_int32"]


@dataclass(frozen=True)
class LemaireEnergy:
    """Energy of a layer, or of several, by what spends it; in J. Add them up with ``+``.

    Args:
        operations: Accumulates and multiply-accumulates, at synapses and in neurons.
        potentials: Reads and writes of membrane potentials.
        weights: Reads of weights.
        inputs: Reads of input: spikes, or a DNN's activations.
        outputs: Writes of output.
    """

    operations: float = 0.0
    potentials: float = 0.0
    weights: float = 0.0
    inputs: float = 0.0
    outputs: float = 0.0

    @property
    def memory(self) -> float:
        """Energy of all memory accesses, in J."""
        return self.potentials + self.weights + self.inputs + self.outputs

    @property
    def total(self) -> float:
        """Energy of operations and memory accesses, in J."""
        return self.operations + self.memory

    @classmethod
    def of(cls, parts: Mapping[str, float]) -> LemaireEnergy:
        """Sum up the operations among parts of a cost."""
        memory = {name: parts.get(name, 0.0) for name in ("potentials", "weights", "inputs", "outputs")}
        return cls(sum(parts.get(name, 0.0) for name in ("macs", "synapses", "neurons")), **memory)

    def __add__(self, other: LemaireEnergy) -> LemaireEnergy:
        return LemaireEnergy(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(self)))


def ram_access(elements: float, bits: int = 32) -> float:
    r"""Energy of one access to a memory, in J.

    .. math:: E = 10^{-12} \left(1.09 \cdot 10^{-5} \cdot \text{elements} \cdot \text{bits} + 13.2\right)

    Args:
        elements: Numbers in the memory.
        bits: Width of one.

    Raises:
        ValueError: If a number is negative.

    Example:
        >>> f"{ram_access(1000):.4g}"
        '1.355e-11'
    """
    elements, bits = _count("elements", elements), as_integer("bits", bits)
    return 1e-12 * (1.09e-5 * elements * bits + 13.2)


def lemaire_energy(
    layer: SynapticLayer,
    input_shape: Sequence[int],
    *,
    timesteps: int,
    events_in: float,
    events_out: float,
    sops: float | None = None,
    effective_macs: float = 0.0,
    leaky: bool = False,
    bits: int = 32,
    weight_bits: int | None = None,
) -> LemaireEnergy:
    r"""Energy of a spiking layer, a synaptic layer with the neurons behind it, with its memory accesses.

    With :math:`\theta` the spikes of an inference over all T steps, N the layer's outputs, and for a convolution
    :math:`f = \lceil K_h/S \rceil \lceil K_w/S \rceil C_\text{out}`, :math:`k = K_h K_w C_\text{out}`, for a fully
    connected layer :math:`f = k = N`:

    .. math::
        \text{ACs} &= \theta_\text{in} f + T N + \theta_\text{out} \qquad \text{MACs} = T N \text{ if leaky} \\
        \text{potential reads} &= \text{potential writes} = \theta_\text{in} k + T N \\
        \text{weight reads} &= \theta_\text{in} k \qquad \text{input reads} = \theta_\text{in} \qquad
        \text{output writes} = \theta_\text{out}

    Every access costs :func:`ram_access` to a memory that holds the layer's potentials, weights, inputs or outputs;
    one operation costs what ``"horowitz_int32"`` says. Where ``sops`` are given they replace :math:`\theta_\text{in} f`
    and :math:`\theta_\text{in} k`, which count synapses beyond the border too. Groups divide f and k.

    Real-valued input, as of an analog first layer, is computed once and not T times: give its ``effective_macs``.
    They are MACs and weight reads each, and input reads as in :func:`lemaire_dense_energy`; the current is then added
    to the potentials in every step.

    Biases and the computation of addresses are left out, in :func:`lemaire_dense_energy` alike.

    Args:
        layer: A synaptic layer.
        input_shape: Shape of one input without the batch.
        timesteps: T.
        events_in: Spikes/sample that arrive at the layer, over all T steps.
        events_out: Spikes/sample that its neurons emit, over all T steps; 0 where none spike, as in a readout.
        sops: The layer's SOPs/sample, for exact counts of synapses in place of the model's.
        effective_macs: MACs/sample of real-valued input.
        leaky: Whether potentials leak: a multiplication per neuron and step.
        bits: Width of the numbers in memory.
        weight_bits: That of a weight, if it is another.

    Returns:
        Energy per sample, by what spends it.

    Raises:
        TypeError: If ``layer`` is no synaptic layer.
        ValueError: If ``input_shape`` does not fit the layer, or a number is negative.

    Source:
        Lemaire et al. 2022, "An Analytical Estimation of Spiking Neural Networks Energy Efficiency", arXiv 2210.13107.

    Example:
        >>> from torch import nn
        >>> spent = lemaire_energy(nn.Linear(100, 10), (100,), timesteps=4, events_in=40, events_out=8)
        >>> f"{1e12 * spent.operations:.1f}"  # pJ of 40 · 10 + 4 · 10 + 8 accumulates
        '44.8'
        >>> f"{spent.total:.2e}"
        '1.77e-08'
    """
    size = Geometry.of(layer, input_shape)
    timesteps, leaky = as_integer("timesteps", timesteps), as_flag("leaky", leaky)
    return LemaireEnergy.of(
        lemaire_parts(
            size,
            updates=timesteps * size.outputs,
            events_in=_count("events_in", events_in),
            events_out=_count("events_out", events_out),
            sops=None if sops is None else _count("sops", sops),
            effective_macs=_count("effective_macs", effective_macs),
            leaky=leaky,
            bits=bits,
            weight_bits=weight_bits,
        )
    )


def lemaire_parts(
    size: Geometry,
    *,
    updates: float,
    events_in: float,
    events_out: float,
    sops: float | None = None,
    effective_macs: float = 0.0,
    leaky: bool = False,
    bits: int = 32,
    weight_bits: int | None = None,
) -> dict[str, float]:
    """Give the same by the names of a :class:`~snnreg_plugins.functional.Cost`, for the sizes of a layer.

    Args:
        size: Sizes of the layer.
        updates: T N.
        events_in: As in :func:`lemaire_energy`, and so all below.
        events_out: The same.
        sops: The same.
        effective_macs: The same.
        leaky: The same.
        bits: The same.
        weight_bits: The same.
    """
    summed = events_in * size.reached if sops is None else sops
    read = events_in * size.taps if sops is None else sops
    return {
        "macs": 1e-12 * effective_macs * _PRICES.mac,
        "synapses": 1e-12 * summed * _PRICES.ac,
        "neurons": 1e-12 * ((updates + events_out) * _PRICES.ac + (updates * _PRICES.mac if leaky else 0)),
        "weights": (read + effective_macs) * ram_access(size.weights, _width(bits, weight_bits)),
        "potentials": 2 * (read + updates) * ram_access(size.outputs, bits),
        "inputs": (events_in + effective_macs / size.macs_per_read) * ram_access(size.inputs, bits),
        "outputs": events_out * ram_access(size.outputs, bits),
    }


def lemaire_dense_energy(
    layer: SynapticLayer, input_shape: Sequence[int], *, bits: int = 32, weight_bits: int | None = None
) -> LemaireEnergy:
    r"""Energy of the same layer in a DNN that skips no zeros, with its memory accesses.

    .. math::
        \text{MACs} &= N \cdot C_\text{in} K_h K_w \qquad \text{ACs} = N \\
        \text{weight reads} &= \text{MACs} \qquad \text{input reads} = \text{MACs} \qquad \text{output writes} = N

    for a convolution with N outputs; of a fully connected layer there are :math:`N_\text{in} N` MACs and every input
    is read once. MACs with padded zeros count, as in the publication. See :func:`lemaire_energy`.

    Args:
        layer: A synaptic layer.
        input_shape: Shape of one input without the batch.
        bits: Width of the numbers in memory.
        weight_bits: That of a weight, if it is another.

    Returns:
        Energy per sample, by what spends it.

    Raises:
        TypeError: If ``layer`` is no synaptic layer.
        ValueError: If ``input_shape`` does not fit the layer.

    Source:
        Lemaire et al. 2022, "An Analytical Estimation of Spiking Neural Networks Energy Efficiency", arXiv 2210.13107.

    Example:
        >>> from torch import nn
        >>> f"{lemaire_dense_energy(nn.Linear(100, 10), (100,)).total:.2e}"
        '1.82e-08'
    """
    return LemaireEnergy.of(lemaire_dense_parts(Geometry.of(layer, input_shape), bits, weight_bits))


def lemaire_dense_parts(size: Geometry, bits: int = 32, weight_bits: int | None = None) -> dict[str, float]:
    """Give the same by the names of a :class:`~snnreg_plugins.functional.Cost`, for the sizes of a layer."""
    return {
        "macs": 1e-12 * size.macs * _PRICES.mac,
        "neurons": 1e-12 * size.outputs * _PRICES.ac,
        "weights": size.macs * ram_access(size.weights, _width(bits, weight_bits)),
        "inputs": (size.macs if size.macs_per_read == 1 else size.inputs) * ram_access(size.inputs, bits),
        "outputs": size.outputs * ram_access(size.outputs, bits),
    }


def _width(bits: int, weight_bits: int | None) -> int:
    return bits if weight_bits is None else as_integer("weight_bits", weight_bits)


def lemaire_break_even_rate(
    layer: SynapticLayer, input_shape: Sequence[int], timesteps: int, *, leaky: bool = False, bits: int = 32
) -> float:
    """Spike rate at which a spiking layer spends as much as a dense DNN's, memory included.

    Its inputs and its neurons are taken to spike at the same rate. The energy is linear in that rate.

    Args:
        layer: A synaptic layer.
        input_shape: Shape of one input without the batch.
        timesteps: T.
        leaky: Whether potentials leak.
        bits: Width of the numbers in memory.

    Returns:
        Spikes/neuron/step; nan where even a silent layer spends more than the DNN's.

    Raises:
        TypeError: If ``layer`` is no synaptic layer.
        ValueError: If ``input_shape`` does not fit the layer, or ``timesteps`` is no integer of at least 1.

    Example:
        >>> from torch import nn
        >>> f"{lemaire_break_even_rate(nn.Conv2d(32, 64, 3, padding=1), (32, 16, 16), timesteps=4):.3f}"
        '0.167'
    """
    size, timesteps = Geometry.of(layer, input_shape), as_integer("timesteps", timesteps)

    def spent(rate: float) -> float:
        spikes = rate * timesteps
        return lemaire_energy(
            layer,
            input_shape,
            timesteps=timesteps,
            events_in=spikes * size.inputs,
            events_out=spikes * size.outputs,
            leaky=leaky,
            bits=bits,
        ).total

    silent, dense = spent(0.0), lemaire_dense_energy(layer, input_shape, bits=bits).total
    return (dense - silent) / (spent(1.0) - silent) if dense >= silent else math.nan


def _count(argument: str, value: float) -> float:
    return as_number(argument, value, "[0, inf)")
