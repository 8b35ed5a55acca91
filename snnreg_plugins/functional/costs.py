"""What a layer does, as plain numbers, and what a model of its cost makes of them: the one interface of all models.

- :class:`LayerFacts`: a synaptic layer with the neurons that it drives, per sample; counted in
  :mod:`~snnreg_plugins.watching`, or written by hand.
- :class:`CostModel`: prices it, as a layer of a spiking network (``spiking``) and as one of a DNN (``dnn``). Those that
  come with the package are in :mod:`~snnreg_plugins.functional.cost_models`, by name in ``COST_MODELS``; find one with
  ``cost_model(name)``.
- :class:`Cost`: by what spends it. Costs of one model add up, those of two never do.

What layers of one network cost together::

    model = cost_model("lemaire")
    spent = sum(map(model.spiking, facts), model.nothing())
    spent.total, spent.unit, spent.parts(), spent.unpriced, model.source, model.left_out

and what the DNN beside it does, from the DNN's own facts::

    dense = [model.dnn(one, timesteps=4) for one in facts_of_dnn]            # None: no column for a DNN
    sparse = [model.dnn(one, skipping_zeros=True, timesteps=4) for one in facts_of_dnn]
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

from snnreg_plugins.functional.geometry import Geometry

#: What has to be counted beside SOPs and MACs: at which weights that are zero, or how neurons were found at each step.
Need = Literal["events", "zero_weights", "activity"]


@dataclass(frozen=True)
class LayerFacts:
    """What a synaptic layer and the neurons that it drives do, per sample; or such neurons, or such a layer, alone.

    Numbers are means over samples and sums over all time steps. None stands for what was not counted.

    Args:
        name: The layer's name.
        timesteps: T of the network; 1 for a DNN.
        spiking: Whether it is a layer of a spiking network.
        sops: Synaptic operations.
        effective_macs: MACs of real-valued input that is not zero.
        dense_macs: MACs of the layer computed once, nothing skipped.
        sops_at_zero: Those of the SOPs at weights that are exactly zero.
        effective_macs_at_zero: Those of the effective MACs.
        dense_macs_at_zero: Those of the dense MACs.
        events_in: Events that arrive.
        events_out: Spikes that its neurons emit.
        updates: Updates of its neurons: neurons times steps; 0 where there are none, as at a readout, which adds up.
        receiving: Updates of neurons that received something and had a state of zero.
        active: Updates of neurons that had a state that is not zero, and received nothing.
        active_receiving: Updates of neurons with both.
        leaky: Whether their potential decays.
        neurons: Class of its neurons, such as ``"Leaky"``; empty if there are none.
        uses: How often one step calls the layer: more than once for one that is shared.
        weights: Number of weights, without biases.
        zero_weights: Those that are exactly zero.
        geometry: Sizes of the layer; None for products that no layer makes, or neurons alone.
        weight_bits: Bits of a weight; None for those of all numbers.
        steps: Steps that a sample took on average, fewer than T where some leave early; T if None.
        states: Updates of potentials or of sums; if None, ``updates``, or for a layer without neurons, which adds up,
            one of each output in each step.
        calls: How often a sample is presented to the layer; ``uses`` if None, as where all steps share what is computed
            once.
    """

    name: str
    timesteps: int = 1
    spiking: bool = True
    sops: float = 0.0
    effective_macs: float = 0.0
    dense_macs: float = 0.0
    sops_at_zero: float | None = 0.0
    effective_macs_at_zero: float | None = 0.0
    dense_macs_at_zero: float | None = 0.0
    events_in: float | None = 0.0
    events_out: float = 0.0
    updates: float = 0.0
    receiving: float | None = 0.0
    active: float | None = 0.0
    active_receiving: float | None = 0.0
    leaky: bool = False
    neurons: str = ""
    uses: int = 1
    weights: int = 0
    zero_weights: int = 0
    geometry: Geometry | None = None
    weight_bits: int | None = None
    steps: float | None = None
    states: float | None = None
    calls: float | None = None

    @property
    def operations(self) -> float:
        """SOPs and effective MACs."""
        return self.sops + self.effective_macs

    @property
    def state_updates(self) -> float:
        """Updates of potentials of neurons, or of sums of what adds up."""
        if self.states is not None:
            return self.states
        if self.updates or self.geometry is None:
            return self.updates
        return (self.timesteps if self.steps is None else self.steps) * self.uses * self.geometry.outputs

    def counted(self, name: str) -> float:
        """Give a number that need not have been counted.

        Raises:
            ValueError: If it was not.
        """
        value: float | None = getattr(self, name)
        if value is None:
            raise ValueError(
                f"Expected facts of {self.name!r} with `{name}`, but they were counted without. Count them for the "
                "model that is to price them."
            )
        return value

    def without_zero_weights(self) -> LayerFacts:
        """Take weights that are exactly zero for no synapses, in the MACs of ``geometry``, too.

        Raises:
            ValueError: If operations at them were not counted.

        Example:
            >>> facts = LayerFacts("fc", sops=100, sops_at_zero=40, weights=10, zero_weights=4)
            >>> facts.without_zero_weights().sops
            60
        """
        size = self.geometry
        if size is not None and self.zero_weights:  # each weight has as many of the MACs, with those at padded zeros
            size = replace(size, macs=size.macs // size.weights * (size.weights - self.zero_weights))
        return replace(
            self,
            geometry=size,
            sops=self.sops - self.counted("sops_at_zero"),
            effective_macs=self.effective_macs - self.counted("effective_macs_at_zero"),
            dense_macs=self.dense_macs - self.counted("dense_macs_at_zero"),
            sops_at_zero=0.0,
            effective_macs_at_zero=0.0,
            dense_macs_at_zero=0.0,
            weights=self.weights - self.zero_weights,
            zero_weights=0,
        )


@dataclass(frozen=True)
class Cost:
    """What a layer, or several, cost by one model, by what spends it. Add them up with ``+``.

    Args:
        model: Name of the model.
        unit: Of all numbers: ``"J"``, or ``"EFLOPs"``.
        macs: MACs: of a DNN, or of an analog first layer.
        synapses: Synaptic operations.
        neurons: Updates of neurons.
        weights: Reads of weights.
        potentials: Reads and writes of potentials.
        inputs: Reads of inputs.
        outputs: Writes of outputs.
        unpriced: Operations (SOPs and MACs) that the model has no price for; they are in no number above.

    Example:
        >>> Cost("horowitz_fp32", macs=2e-9) + Cost("lemaire", macs=1e-9)
        Traceback (most recent call last):
            ...
        ValueError: Expected costs of one model, but got 'horowitz_fp32' and 'lemaire', which do not add up.
    """

    model: str
    unit: str = "J"
    macs: float = 0.0
    synapses: float = 0.0
    neurons: float = 0.0
    weights: float = 0.0
    potentials: float = 0.0
    inputs: float = 0.0
    outputs: float = 0.0
    unpriced: float = 0.0

    @property
    def memory(self) -> float:
        """All accesses to memory."""
        return self.weights + self.potentials + self.inputs + self.outputs

    @property
    def total(self) -> float:
        """All of it, but what is unpriced."""
        return self.macs + self.synapses + self.neurons + self.memory

    def parts(self) -> dict[str, float]:
        """Give the four parts that it is shown by."""
        return {name: getattr(self, name) for name in ("macs", "synapses", "neurons", "memory")}

    def details(self) -> dict[str, float]:
        """Give all that is not zero, by what spends it."""
        return {name: value for name in _DETAILS if (value := getattr(self, name))}

    def __add__(self, other: Cost) -> Cost:
        if not isinstance(other, Cost):
            return NotImplemented
        if (self.model, self.unit) != (other.model, other.unit):
            raise ValueError(
                f"Expected costs of one model, but got {self.model!r} and {other.model!r}, which do not add up."
            )
        sums = {name: getattr(self, name) + getattr(other, name) for name in (*_DETAILS, "unpriced")}
        return replace(self, **sums)


_DETAILS = tuple(field.name for field in fields(Cost) if field.name not in ("model", "unit", "unpriced"))


class CostModel(ABC):
    """Prices what layers do; subclass it for a model of your own.

    Attributes:
        name: Its name, in results too.
        title: What it is, for a heading.
        unit: Of its costs.
        source: Where its numbers were published.
        left_out: What it does not price; empty if that is nothing that is known.
        needs: What has to be counted for it beside SOPs, MACs, spikes and updates.
        counts_zero_weights: Whether a weight that is exactly zero is a synapse to it, unless one asks otherwise.
    """

    name: str
    title: str
    source: str
    unit: str = "J"
    left_out: tuple[str, ...] = ()
    needs: ClassVar[frozenset[Need]] = frozenset()
    counts_zero_weights: bool = True

    @abstractmethod
    def spiking(self, facts: LayerFacts) -> Cost:
        """Price a layer of a spiking network."""

    @abstractmethod
    def dnn(self, facts: LayerFacts, *, skipping_zeros: bool = False, timesteps: int | None = None) -> Cost | None:
        """Price a layer of a DNN.

        Args:
            facts: Of the DNN itself; of the layer of a spiking network, where zeros are not skipped.
            skipping_zeros: Whether inputs that are zero cost nothing.
            timesteps: T of the spiking network that it stands beside, for models whose DNN depends on that; that of the
                facts if None.

        Returns:
            None where the model has no price for it.
        """

    def price(self, facts: LayerFacts, count_zero_weights: bool | None = None) -> Cost:
        """Price a layer of the network that it is of: of a DNN as of one that skips zeros, where the model knows one.

        Args:
            facts: What the layer does.
            count_zero_weights: Whether a weight that is exactly zero is a synapse; None for what the model takes it
                for.
        """
        if count_zero_weights is False:
            facts = facts.without_zero_weights()
        if facts.spiking:
            return self.spiking(facts)
        return self.dnn(facts, skipping_zeros=True) or self.dnn(facts) or self.spiking(facts)

    def nothing(self) -> Cost:
        """Give a cost of nothing, to begin a sum with."""
        return Cost(self.name, self.unit)

    def sum(self, costs: Iterable[Cost | None]) -> Cost | None:
        """Add up costs; None if one of them is."""
        total = self.nothing()
        for cost in costs:
            if cost is None:
                return None
            total += cost
        return total

    @property
    def prices_dnns(self) -> bool:
        """Whether it has a price for a DNN at all."""
        return self.dnn(LayerFacts("", spiking=False), timesteps=1) is not None

    def _cost(self, unpriced: float = 0.0, **parts: float) -> Cost:
        return Cost(self.name, self.unit, **parts, unpriced=unpriced)


def require_own(facts: LayerFacts, skipping_zeros: bool) -> None:
    """Raise a ValueError where it is asked which zeros a DNN skips, and the facts are those of a spiking network."""
    if skipping_zeros and facts.spiking:
        raise ValueError(
            f"Expected facts of a DNN, whose inputs tell which zeros it skips, but those of {facts.name!r} are of a "
            "spiking network. Count the DNN itself."
        )
