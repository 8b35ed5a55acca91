"""What a spiking network and its DNN cost by each model, as plain numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from snnreg_plugins.functional.cost_models import BitMatched
from snnreg_plugins.functional.costs import Cost, CostModel, LayerFacts

#: Parts of a cost, in the order that they are stacked in.
PARTS = ("macs", "synapses", "neurons", "memory")
# What a model prices in a word or two, by name; of others their titles say it.
_PHRASES = {"lemaire": "with memory", "bit_matched": "with weights in DRAM", "eflops": "in effective operations"}
_ARITHMETIC = "horowitz_"


@dataclass(frozen=True)
class Spent:
    """What a layer, or a network, costs by one model, per sample; in the unit of the model.

    Args:
        macs: MACs.
        synapses: Synaptic operations.
        neurons: Updates of neurons.
        memory: Accesses to memory.
        unpriced: Operations that the model has no price for; in no number above.
    """

    macs: float = 0.0
    synapses: float = 0.0
    neurons: float = 0.0
    memory: float = 0.0
    unpriced: float = 0.0

    @classmethod
    def of(cls, cost: Cost) -> Spent:
        """Take the parts of a cost."""
        return cls(**{part: float(getattr(cost, part)) for part in (*PARTS, "unpriced")})

    @property
    def total(self) -> float:
        """All of it, but what is unpriced."""
        return self.macs + self.synapses + self.neurons + self.memory


@dataclass(frozen=True)
class LayerSpent:
    """What a layer costs by one model, per sample.

    Args:
        name: Its name in the DNN.
        spent: What it costs.
    """

    name: str
    spent: Spent


@dataclass(frozen=True)
class ModelReport:
    """What a spiking network and its DNN cost by one model. Numbers of two models never add up.

    Args:
        name: Name of the model.
        title: What it is.
        unit: Of its numbers: ``"J"``, or ``"EFLOPs"``.
        source: Where its prices were published.
        left_out: What it does not price.
        counts_zero_weights: Whether a weight that is exactly zero is a synapse.
        steps: The spiking network, at each of the report's steps.
        layers: Its layers, each with the neurons that it drives, at the report's T.
        dense: A DNN that skips nothing, beside the network at each of the steps: the DNN, or where there is none, one
            of the same layers; empty where the model has no price for it.
        sparse: The DNN, zeros skipped; empty where there is none, or the model has no price for it.
    """

    name: str
    title: str
    unit: str
    source: str
    left_out: tuple[str, ...]
    counts_zero_weights: bool
    steps: tuple[Spent, ...]
    layers: tuple[LayerSpent, ...]
    dense: tuple[Spent, ...] = ()
    sparse: tuple[Spent, ...] = ()

    @property
    def phrase(self) -> str:
        """What it prices, in words for the middle of a sentence."""
        if self.name.startswith(_ARITHMETIC):
            return "by arithmetic"
        return _PHRASES.get(self.name, f"by {self.title}")

    def bits(self, timesteps: int) -> int | None:
        """Give the bits of the DNN that it puts beside a network of T steps; None if they do not depend on that."""
        return BitMatched.bits_of_dnn(timesteps) if self.name == BitMatched.name else None

    def baselines(self, index: int) -> dict[str, Spent]:
        """Give what DNNs cost beside the network at one of the steps, by what they do with zeros."""
        found = {"zero-skipping": self.sparse, "dense": self.dense}
        return {how: costs[index] for how, costs in found.items() if costs and costs[index].total}

    def has_all(self) -> bool:
        """Tell whether it has a price for all that the network does."""
        return not any(step.unpriced for step in self.steps)


def price(
    model: CostModel,
    steps: Mapping[int, Sequence[LayerFacts]],
    timesteps: int,
    dnn: Sequence[LayerFacts] | None,
    count_zero_weights: bool | None = None,
) -> ModelReport:
    """Price a spiking network, and the DNN beside it.

    Args:
        model: The model.
        steps: What the network's layers do, at each T.
        timesteps: The T that its layers are told of.
        dnn: What the DNN's layers do; None if there is no DNN.
        count_zero_weights: Whether a weight of zero is a synapse, to a model that has it for one.

    Raises:
        ValueError: If the facts lack what the model needs.
    """
    counted = model.counts_zero_weights and count_zero_weights is not False

    def counting(facts: Sequence[LayerFacts]) -> list[LayerFacts]:
        return list(facts) if counted else [one.without_zero_weights() for one in facts]

    by_steps = {T: counting(facts) for T, facts in steps.items()}
    own = None if dnn is None else counting(dnn)

    def beside(skipping_zeros: bool) -> tuple[Spent, ...]:
        sums = [
            model.sum(
                model.dnn(one, skipping_zeros=skipping_zeros, timesteps=T) for one in (facts if own is None else own)
            )
            for T, facts in by_steps.items()
        ]
        return tuple(Spent.of(cost) for cost in sums if cost is not None)

    total = {T: sum(map(model.spiking, facts), model.nothing()) for T, facts in by_steps.items()}
    return ModelReport(
        name=model.name,
        title=model.title,
        unit=model.unit,
        source=model.source,
        left_out=tuple(model.left_out),
        counts_zero_weights=counted,
        steps=tuple(map(Spent.of, total.values())),
        layers=tuple(LayerSpent(one.name, Spent.of(model.spiking(one))) for one in by_steps[timesteps]),
        dense=beside(False),
        sparse=() if own is None else beside(True),
    )
