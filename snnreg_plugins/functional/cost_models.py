"""The models of cost that come with the package, by name, and how one is found.

========================  ==========================================================  =====================
name                      prices                                                      a DNN beside it
========================  ==========================================================  =====================
``horowitz_*``            SOPs and MACs, at one width of numbers                      dense, zero-skipping
``lemaire``               operations of int32, neurons, memory of any size            dense
``bit_matched``           operations, weights in DRAM, potentials on chip             of ⌈log2(T + 1)⌉ bits,
                                                                                      dense, zero-skipping
``eflops``                operations on what is not zero, weights and neurons too     dense, zero-skipping
``truenorth``, ...        SOPs on a chip, as published                                none
========================  ==========================================================  =====================
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from snnreg_plugins._checks import as_integer, shown
from snnreg_plugins.functional.costs import Cost, CostModel, LayerFacts, Need, require_own
from snnreg_plugins.functional.energy import ENERGY_TABLES, EnergyTable
from snnreg_plugins.functional.geometry import Geometry
from snnreg_plugins.functional.lemaire import LEMAIRE_SOURCE, lemaire_dense_parts, lemaire_parts
from snnreg_plugins.functional.prices import PriceList

_J = 1e-12  # of a pJ


class Arithmetic(CostModel):
    r"""SOPs and MACs at their prices, and nothing else.

    .. math:: E = 10^{-12} \left(\text{SOPs} \cdot e_{AC} + \text{MACs} \cdot e_{MAC}\right)

    A DNN spends its dense MACs, or, where it skips zeros, its effective ones and the SOPs of a binary image. A table
    without a price for MACs, as of chips, has none for a DNN, and leaves MACs of real-valued input unpriced.

    Args:
        name: Its name.
        table: The prices.
        title: What it is, for a heading; made of the name if None.

    Example:
        >>> model = COST_MODELS["horowitz_fp32"]
        >>> layer = LayerFacts("fc", timesteps=4, sops=1000, effective_macs=10)
        >>> f"{model.spiking(layer).total:.3g} {model.unit}"  # 1000 · 0.9 pJ + 10 · 4.6 pJ
        '9.46e-10 J'
    """

    def __init__(self, name: str, table: EnergyTable, title: str | None = None) -> None:
        self.name, self.table, self.source = name, table, table.source
        self.title = _TITLES.get(name, name) if title is None else title
        updates = ("neuron updates", "memory access", "communication", "static power")
        self.left_out = updates if table.prices_macs else ("MACs of real-valued input", "static power")

    def spiking(self, facts: LayerFacts) -> Cost:
        """Price a layer of a spiking network."""
        synapses = _J * facts.sops * self.table.ac
        if self.table.prices_macs:
            return self._cost(macs=_J * facts.effective_macs * self.table.mac, synapses=synapses)
        return self._cost(unpriced=facts.effective_macs, synapses=synapses)

    def dnn(self, facts: LayerFacts, *, skipping_zeros: bool = False, timesteps: int | None = None) -> Cost | None:
        """Price a layer of a DNN; None without a price for MACs."""
        require_own(facts, skipping_zeros)
        if not self.table.prices_macs:
            return None
        if not skipping_zeros:
            return self._cost(macs=_J * facts.dense_macs * self.table.mac)
        return self._cost(macs=_J * facts.effective_macs * self.table.mac, synapses=_J * facts.sops * self.table.ac)


class Lemaire(CostModel):
    """Operations and memory accesses, as of :func:`~snnreg_plugins.functional.lemaire_energy`, from exact counts.

    SOPs take the place of those that the publication estimates. A synaptic layer without neurons adds up: its sums
    count as potentials. Neurons that no layer drives, as those that code an input, cost their updates, accesses and
    spikes. Products that no layer makes (attention, recurrent cells) have no price, as their sizes in memory are not
    told. A DNN skips no zeros.

    Example:
        >>> from torch import nn
        >>> from snnreg_plugins.functional import Geometry
        >>> size = Geometry.of(nn.Linear(100, 10), (100,))
        >>> facts = LayerFacts("fc", timesteps=4, sops=400, events_in=40, events_out=8, updates=40, geometry=size)
        >>> f"{COST_MODELS['lemaire'].spiking(facts).total:.2e}"
        '1.77e-08'
    """

    name, title, source = "lemaire", "with memory (Lemaire)", LEMAIRE_SOURCE
    left_out = ("biases", "addressing", "communication", "static power")
    needs: ClassVar[frozenset[Need]] = frozenset({"events"})

    def spiking(self, facts: LayerFacts) -> Cost:
        """Price a layer of a spiking network, with its neurons."""
        size = facts.geometry
        if size is None:
            alone = Geometry(0, round(facts.updates / facts.timesteps), 0, 0, 0, 0)
            given: dict[str, Any] = {"updates": facts.updates, "events_out": facts.events_out, "leaky": facts.leaky}
            return self._cost(unpriced=facts.operations, **lemaire_parts(alone, events_in=0, **given))
        return self._cost(
            **lemaire_parts(
                size,
                updates=facts.state_updates,
                events_in=facts.counted("events_in"),
                events_out=facts.events_out,
                sops=facts.sops,
                effective_macs=facts.effective_macs,
                leaky=facts.leaky,
                weight_bits=facts.weight_bits,
            )
        )

    def dnn(self, facts: LayerFacts, *, skipping_zeros: bool = False, timesteps: int | None = None) -> Cost | None:
        """Price a layer of a DNN; None for one that skips zeros."""
        require_own(facts, skipping_zeros)
        if skipping_zeros:
            return None
        if facts.geometry is None:
            return self._cost(unpriced=facts.dense_macs)
        parts = lemaire_dense_parts(facts.geometry, weight_bits=facts.weight_bits)
        return self._cost(**{name: facts.uses * value for name, value in parts.items()})


class BitMatched(CostModel):
    r"""A spiking network with its weights in DRAM, beside the DNN of few bits that tells as many values apart.

    .. math::
        E_\text{SNN} &= \text{SOPs} \left(e_{ACC} + 8 \cdot 20\right)
            + T N \left(e_{CMP} + 2 \cdot 8 \cdot 0.25\right) + \text{spikes} \cdot e_{SUB} \\
        E_\text{DNN} &= \text{MACs} \left(e_{MAC}(b) + b \cdot 20\right) + \text{inputs} \cdot b \cdot 0.25
            \qquad b = \lceil \log_2(T + 1) \rceil

    in pJ, with 20 pJ/bit of a weight from DRAM, 0.25 pJ/bit on chip, weights and potentials of 8 bits, and
    :math:`e_{ACC} = e_{CMP} = e_{SUB} = 0.05448` pJ (22 nm). :math:`e_{MAC}(b) = 3.7 (b/32)^2 + 0.9 \, b/32` scales
    what Horowitz has for 32 bits. Both spend as much near a spike rate of :math:`b / (8 T)`.

    Ours, as not published: with real-valued input, as of an analog first layer, a layer costs what a DNN's of 8 bits
    does each time it is computed; what adds up without neurons has no threshold; weights count with the bits that the
    network's have, if they are fewer; a DNN that skips zeros computes its effective MACs, and moves all inputs.

    Source:
        Yan, Bai and Wong 2024, "Reconsidering the energy efficiency of spiking neural networks", arXiv 2409.08290.

    Example:
        >>> model = COST_MODELS["bit_matched"]
        >>> layer = LayerFacts("fc", timesteps=8, sops=1000, events_out=20, updates=80, dense_macs=2000)
        >>> f"{model.spiking(layer).total:.3g} {model.dnn(layer).total:.3g}"  # of 8 bits, and of 4
        '1.6e-07 1.6e-07'
    """

    name, title = "bit_matched", "weights in DRAM, DNN of as few bits (Yan)"
    source = (
        "Yan, Bai and Wong 2024, arXiv 2409.08290: operations at 22 nm, weights in DRAM (20 pJ/bit), the rest on chip "
        "(0.25 pJ/bit); a DNN of ceil(log2(T + 1)) bits; analytical, not measured"
    )
    left_out = ("routing of spikes", "biases", "static power")
    needs: ClassVar[frozenset[Need]] = frozenset({"events"})

    operation, dram, on_chip, bits = 0.05448, 20.0, 0.25, 8

    @staticmethod
    def bits_of_dnn(timesteps: int) -> int:
        """Give the bits of an activation that tells as many values apart as spikes of T steps do.

        Example:
            >>> [BitMatched.bits_of_dnn(T) for T in (1, 3, 4, 8, 15)]
            [1, 2, 3, 4, 4]
        """
        return as_integer("timesteps", timesteps).bit_length()

    @staticmethod
    def mac(bits: int) -> float:
        """Give the price of a MAC, in pJ."""
        return 3.7 * (bits / 32) ** 2 + 0.9 * bits / 32

    def spiking(self, facts: LayerFacts) -> Cost:
        """Price a layer of a spiking network, with its neurons."""
        bits = min(self.bits, facts.weight_bits or self.bits)
        calls = facts.uses if facts.calls is None else facts.calls
        inputs = calls * facts.geometry.inputs if facts.geometry is not None and facts.effective_macs else 0
        return self._cost(
            macs=_J * facts.effective_macs * self.mac(self.bits),
            synapses=_J * facts.sops * self.operation,
            neurons=_J * (facts.updates + facts.events_out) * self.operation,
            weights=_J * facts.operations * bits * self.dram,
            potentials=_J * facts.state_updates * 2 * self.bits * self.on_chip,
            inputs=_J * inputs * self.bits * self.on_chip,
        )

    def dnn(self, facts: LayerFacts, *, skipping_zeros: bool = False, timesteps: int | None = None) -> Cost | None:
        """Price a layer of a DNN of as few bits.

        Raises:
            ValueError: If no T is told, as for the facts of a DNN alone.
        """
        require_own(facts, skipping_zeros)
        if timesteps is None and not facts.spiking:
            raise ValueError(
                "Expected argument `timesteps` to tell how many steps a DNN is to match in bits, but got None. "
                "'bit_matched' prices a DNN beside a spiking network alone, as report() and SpikingValidation have it."
            )
        bits = self.bits_of_dnn(facts.timesteps if timesteps is None else timesteps)
        macs = facts.operations if skipping_zeros else facts.dense_macs
        inputs = 0 if facts.geometry is None else facts.uses * facts.geometry.inputs
        return self._cost(
            macs=_J * macs * self.mac(bits),
            weights=_J * macs * bits * self.dram,
            inputs=_J * inputs * bits * self.on_chip,
        )


class EFLOPs(CostModel):
    r"""Effective floating-point operations: those whose operands are not zero, weights and states of neurons too.

    A spike at a weight that is not zero is one. A MAC of real-valued input is taken for two, its product and its sum.
    A neuron that leaks costs at each step

    ===================  =============  ===============
    its state before     gets nothing   gets something
    ===================  =============  ===============
    zero                 0              3
    not zero             5              6
    ===================  =============  ===============

    as published for LIF. Those six are: the decay of the current, what is added to it, the decay of the potential, the
    current's gain, their sum, and the reset. A neuron without leak has what is added and the reset alone: 1 where it
    gets something or has a state, 2 where both. A DNN that skips nothing has two for each dense MAC at a weight that is
    not zero. Weights of zero are never synapses.

    Ours, as not in what we have of the publication: the two of a MAC, neurons without leak, and that others that leak
    cost as LIF do.

    Source:
        Narduzzi, Zenke, Liu and Dunbar 2025, "EFLOP: a sparsity-aware metric for evaluating computational cost in
        spiking and non-spiking neural networks", Neuromorphic Computing and Engineering 5(3).

    Example:
        >>> states = {"receiving": 2, "active": 5, "active_receiving": 3}
        >>> layer = LayerFacts("fc", sops=100, sops_at_zero=20, updates=20, leaky=True, **states)
        >>> cost = COST_MODELS["eflops"].spiking(layer)  # 80 spikes at weights, 2 · 3 + 5 · 5 + 3 · 6
        >>> cost.synapses, cost.neurons, cost.unit
        (80, 49.0, 'EFLOPs')
    """

    name, title, unit = "eflops", "effective operations (EFLOPs)", "EFLOPs"
    source = "Narduzzi et al. 2025, doi 10.1088/2634-4386/addee8: operations on what is not zero; no energy"
    left_out = ("memory access", "activations of a DNN", "biases")
    needs: ClassVar[frozenset[Need]] = frozenset({"zero_weights", "activity"})
    counts_zero_weights = False

    #: Operations of a neuron that gets something with a state of zero, that has a state, and both; by whether it leaks.
    of_neuron: ClassVar[dict[bool, tuple[int, int, int]]] = {True: (3, 5, 6), False: (1, 1, 2)}

    def spiking(self, facts: LayerFacts) -> Cost:
        """Count a layer of a spiking network, with its neurons."""
        facts = facts.without_zero_weights()
        if facts.receiving is None or facts.active is None or facts.active_receiving is None:
            raise ValueError(
                f"Expected neurons whose states can be followed, for {self.name!r}, but those of {facts.name!r}"
                f"{facts.neurons and f' ({facts.neurons})'} drive each other or hold all steps in the batch, or were "
                f"counted without. Leave {self.name!r} out of `table`."
            )
        states = facts.receiving, facts.active, facts.active_receiving
        return self._cost(
            macs=2 * facts.effective_macs,
            synapses=facts.sops,
            neurons=float(sum(n * price for n, price in zip(states, self.of_neuron[facts.leaky], strict=True))),
        )

    def dnn(self, facts: LayerFacts, *, skipping_zeros: bool = False, timesteps: int | None = None) -> Cost | None:
        """Count a layer of a DNN."""
        require_own(facts, skipping_zeros)
        facts = facts.without_zero_weights()
        if skipping_zeros:
            return self._cost(macs=2 * facts.effective_macs, synapses=facts.sops)
        return self._cost(macs=2 * facts.dense_macs)


_TITLES = {
    "horowitz_fp32": "arithmetic, fp32 (Horowitz)",
    "horowitz_fp16": "arithmetic, fp16 (Horowitz)",
    "horowitz_int32": "arithmetic, int32 (Horowitz)",
    "horowitz_int8": "arithmetic, int8 (Horowitz)",
    "horowitz_int8_int32": "arithmetic, int8 added up in int32 (Horowitz)",
    "horowitz_shift": "arithmetic, shifts added up in int32 (Horowitz)",
    "truenorth": "TrueNorth, published",
    "loihi": "Loihi, published",
    "anp_i": "ANP-I, published",
}

#: All models, by name.
COST_MODELS: dict[str, CostModel] = {
    **{name: Arithmetic(name, table) for name, table in ENERGY_TABLES.items()},
    **{model.name: model for model in (Lemaire(), BitMatched(), EFLOPs())},
}

#: What is taken for a model: a name in :data:`COST_MODELS`, a YAML file, a table, or a model.
Model: TypeAlias = str | EnergyTable | CostModel


def cost_model(table: Model) -> CostModel:
    """Find a model by name, read it from a YAML file, or make it of a table; a model passes through.

    Args:
        table: A name in :data:`COST_MODELS`; a YAML file as of :meth:`PriceList.from_yaml`, in its simplest form with
            ``ac``, ``mac`` and ``source``; an :class:`EnergyTable`; or a :class:`CostModel` of your own.

    Raises:
        FileNotFoundError: If ``table`` ends in ``.yaml`` or ``.yml`` and there is no such file.
        ValueError: If it is an unknown name, or the file holds no prices.

    Example:
        >>> cost_model("lemaire").name, cost_model(EnergyTable(4.6, 0.9, "mine")).name
        ('lemaire', 'custom')
    """
    if isinstance(table, CostModel):
        return table
    if isinstance(table, EnergyTable):
        name = next((name for name, known in ENERGY_TABLES.items() if known is table), None)
        return Arithmetic("custom", table, "own prices") if name is None else COST_MODELS[name]
    if isinstance(table, str) and table.endswith((".yaml", ".yml")):
        return PriceList.from_yaml(table, "table")
    if not isinstance(table, str) or table not in COST_MODELS:
        raise ValueError(
            f"Expected argument `table` to be one of {sorted(COST_MODELS)}, a YAML file, or a model or table of your "
            f"own, but got {shown(table)}."
        )
    return COST_MODELS[table]


def cost_models(table: Model | Sequence[Model]) -> tuple[CostModel, ...]:
    """Find one model or several, in their order; several names, on a command line, may be one text with commas.

    Raises:
        FileNotFoundError: As of :func:`cost_model`.
        ValueError: As of :func:`cost_model`; or if there is none, or two have one name.

    Example:
        >>> [model.name for model in cost_models(["horowitz_int8", "eflops"])]
        ['horowitz_int8', 'eflops']
        >>> [model.name for model in cost_models("horowitz_int8, eflops")]
        ['horowitz_int8', 'eflops']
    """
    if isinstance(table, str) and "," in table and not Path(table).exists():
        table = [name.strip() for name in table.split(",")]
    several: list[Any] = list(table) if isinstance(table, (list, tuple)) else [table]
    models = tuple(cost_model(one) for one in several)
    names = [model.name for model in models]
    if not models or len(set(names)) < len(names):
        raise ValueError(f"Expected argument `table` to be one or more models of different names, but got {names}.")
    return models
