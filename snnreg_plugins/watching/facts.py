"""From what a tally counted to the facts that models of cost price."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from snnreg_plugins.functional.costs import CostModel, LayerFacts, Need
from snnreg_plugins.functional.geometry import Geometry
from snnreg_plugins.functional.synapses import is_synaptic, sample_shape_of
from snnreg_plugins.watching.counts import Table, total
from snnreg_plugins.watching.details import QUANTITIES, unfollowed
from snnreg_plugins.watching.fan_outs import fan_out_of
from snnreg_plugins.watching.layers import emits_spikes, leaks, spikes_already
from snnreg_plugins.watching.simulated import SimulatedNetwork
from snnreg_plugins.watching.tally import Tally
from snnreg_plugins.watching.wiring import Wiring


def needs_of(models: tuple[CostModel, ...], count_zero_weights: bool | None = None) -> frozenset[Need]:
    """Give what is to be counted for some models; see :class:`Tally`.

    Args:
        models: The models.
        count_zero_weights: Whether a weight of zero is a synapse; None for what each model takes it for.

    Raises:
        ValueError: If it is to be one, and a model takes it for none.
    """
    strict = [model.name for model in models if not model.counts_zero_weights]
    if count_zero_weights and strict:
        raise ValueError(
            f"Expected argument `count_zero_weights` to be False or None for {', '.join(map(repr, strict))}, to which "
            "a weight of zero is no synapse, but got True."
        )
    needs = frozenset().union(*(model.needs for model in models))
    return needs if count_zero_weights in (None, True) else needs | {"zero_weights"}


def require_prices(models: tuple[CostModel, ...], model: nn.Module) -> None:
    """Raise a ValueError where a model of cost cannot price a network, whatever it does.

    Args:
        models: The models of cost.
        model: The network.
    """
    spiking = spikes_already(model)
    for each in models:
        if not spiking:
            each.dnn(LayerFacts("", spiking=False))
        elif "activity" in each.needs:
            modules = dict(model.named_modules())
            for name in sorted(unfollowed(modules)):
                unknown = LayerFacts(name, neurons=type(modules[name]).__name__, receiving=None, active=None)
                each.spiking(replace(unknown, active_receiving=None))


def layer_facts(
    tally: Tally,
    *,
    steps: int | None = None,
    timesteps: int | None = None,
    weight_bits: int | None = None,
    table: Table | None = None,
    samples: int | None = None,
    wiring: Wiring | None = None,
) -> list[LayerFacts]:
    """Give the facts of each layer that a tally saw, per sample: synaptic ones with the neurons that they drive.

    In the order of the first calls. Neurons that no layer drives, and products that none makes, have a row of their
    own.

    Args:
        tally: What counted, of one network.
        steps: Number of time steps to take, the first ones: what a run of so many does. All if None.
        timesteps: T of the network; None for ``steps``, or that of a simulated network, or else how often the layer
            behind neurons that is called least is.
        weight_bits: Bits of a weight; None for those of an exported network, or else of all numbers.
        table: What it counted in all processes; its own if None.
        samples: How many samples those are; its own if None.
        wiring: What the calls told, of any process; its own if None.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> with Tally(model) as tally:
        ...     _ = model(torch.tensor([[0.0, 1.5, 0.0, 1.0], [0.5, 0.0, 0.0, 0.0]]))
        >>> first, last = layer_facts(tally)
        >>> first.name, first.effective_macs, first.dense_macs
        ('0', 12.0, 32.0)
    """
    facts = _Facts(
        tally,
        tally.table() if table is None else table,
        max(1, tally.samples if samples is None else samples),
        tally.wiring if wiring is None else wiring,
        steps,
    )
    facts.timesteps = timesteps or steps or facts.timesteps
    facts.weight_bits = facts.weight_bits if weight_bits is None else weight_bits
    return facts.all()


class _Facts:
    """What is known of a network.

    Args:
        tally: See :func:`layer_facts`, for these and all others.
        table: The same.
        samples: The same.
        wiring: The same.
        steps: The same.
    """

    def __init__(self, tally: Tally, table: Table, samples: int, wiring: Wiring, steps: int | None) -> None:
        self.tally, self.table, self.samples, self.wiring, self.steps = tally, table, samples, wiring, steps
        self.spiking = spikes_already(tally.model)
        simulated = [it for it in tally.model.modules() if isinstance(it, SimulatedNetwork)]
        self.taken = self._taken() if self.spiking else 1.0
        self.timesteps = simulated[0].timesteps if len(simulated) == 1 else max(1, int(self.taken))
        self.weight_bits = simulated[0].weight_bits if len(simulated) == 1 else None
        self.unfollowed = unfollowed({name: tally.modules[name] for name in tally.neurons})

    def all(self) -> list[LayerFacts]:
        neurons: dict[str | None, list[str]] = {}
        for name, driver in self.wiring.drivers.items():
            if emits_spikes(self.tally.modules[name]):
                neurons.setdefault(driver, []).append(name)
        facts = []
        for name in self.wiring.called:
            if name in self.wiring.shapes or self._of(name, "dense_macs"):
                facts.append(self._with_neurons(self._layer(name), neurons.get(name, [])))
            if name in neurons.get(None, ()):
                facts.append(self._with_neurons(self._row(name), [name]))
        return facts

    def _of(self, name: str, quantity: str) -> float:
        """Give a number per sample."""
        row, column = self.tally.names.index(name), self.tally.quantities.index(quantity)
        return total(self.table, row, column, self.steps) / self.samples

    def _if_counted(self, name: str, quantity: str) -> float | None:
        return self._of(name, quantity) if quantity in self.tally.quantities else None

    def _calls(self, name: str) -> float:
        """Count how often a sample was presented to a synaptic layer; of products, in how many steps."""
        dense = self._of(name, "dense_macs")
        if name not in self.wiring.shapes:
            steps = self.tally.steps_of(name)
            return max(1, steps if self.steps is None else min(steps, self.steps))
        layer: Any = self.tally.modules[name]
        return dense / max(1, int(fan_out_of(layer, self._shape(name)).sum()))

    def _shape(self, name: str) -> tuple[int, ...]:
        """Give the shape of one sample of a synaptic layer's input."""
        return sample_shape_of(self.tally.modules[name], self.wiring.shapes[name])

    def _taken(self) -> float:
        """Find how many steps a sample took, as often as the layer behind neurons that is called least is."""
        calls = {name: self._calls(name) for name in self.wiring.shapes}
        behind = [n for name, n in calls.items() if name in self.wiring.behind and not self._of(name, "effective_macs")]
        return max(1.0, min(behind or calls.values(), default=1.0))

    def _row(self, name: str) -> LayerFacts:
        return LayerFacts(name, self.timesteps, self.spiking, steps=min(self.taken, self.timesteps))

    def _layer(self, name: str) -> LayerFacts:
        layer, row = self.tally.modules[name], self._row(name)
        calls = self._calls(name)
        uses = max(1, round(calls / self.timesteps)) if name in self.wiring.shapes else 1
        share = uses / calls if calls else 0.0  # of all that was counted, what one step has
        at_zero = {name_of: self._if_counted(name, name_of) for name_of in QUANTITIES["zero_weights"]}
        dense_at_zero = at_zero.pop("dense_macs_at_zero")
        weights = _weights(layer)
        return replace(
            row,
            sops=self._of(name, "sops"),
            effective_macs=self._of(name, "effective_macs"),
            dense_macs=self._of(name, "dense_macs") * share,
            dense_macs_at_zero=None if dense_at_zero is None else dense_at_zero * share,
            sops_at_zero=at_zero["sops_at_zero"],
            effective_macs_at_zero=at_zero["effective_macs_at_zero"],
            events_in=self._if_counted(name, "events"),
            uses=uses,
            weights=sum(weight.numel() for weight in weights),
            zero_weights=sum(int((weight == 0).sum()) for weight in weights),
            geometry=Geometry.of(layer, self._shape(name)) if is_synaptic(layer) else None,
            weight_bits=self.weight_bits,
            states=0.0 if self.wiring.is_within_neurons(name) else None,
            calls=calls if name in self.wiring.shapes else None,
        )

    def _with_neurons(self, facts: LayerFacts, names: list[str]) -> LayerFacts:
        """Add what neurons do to the facts of the layer that drives them."""
        if not names:
            return facts
        states: dict[str, float | None] = {}
        for state in QUANTITIES["activity"]:
            counted = [None if name in self.unfollowed else self._if_counted(name, state) for name in names]
            known = [number for number in counted if number is not None]
            states[state] = sum(known) if len(known) == len(counted) else None
        return replace(
            facts,
            events_out=sum(self._of(name, "spikes") for name in names),
            updates=sum(self._of(name, "neuron_steps") for name in names),
            leaky=any(leaks(self.tally.modules[name]) for name in names),
            neurons=type(self.tally.modules[names[0]]).__name__,
            receiving=states["receiving"],
            active=states["active"],
            active_receiving=states["active_receiving"],
        )


def _weights(module: nn.Module) -> list[Tensor]:
    """Give what a module multiplies by."""
    if is_synaptic(module):
        return [module.weight]
    return [parameter for parameter in module.parameters(recurse=False) if parameter.dim() > 1]
