"""What is counted beside operations and spikes where it is asked for: events, weights of zero, states of neurons."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from snnreg_plugins._checks import one_of
from snnreg_plugins.frameworks.registry import framework_of
from snnreg_plugins.functional.costs import Need
from snnreg_plugins.functional.synapses import count_events_by_step, is_synaptic
from snnreg_plugins.functional.zero_weights import of_zeros
from snnreg_plugins.watching.layers import (
    FanOutKey,
    fan_out_key,
    is_spiking_neuron,
    one_to_one_layers,
    synaptic_layers,
    time_dim,
)
from snnreg_plugins.watching.products import Cost
from snnreg_plugins.watching.simulated import SimulatedNetwork
from snnreg_plugins.watching.steps import CallSteps

#: What is counted for each need.
QUANTITIES: dict[str, tuple[str, ...]] = {
    "events": ("events",),
    "zero_weights": ("sops_at_zero", "effective_macs_at_zero", "dense_macs_at_zero"),
    "activity": ("receiving", "active", "active_receiving"),
}

#: SOPs, effective and dense MACs at weights of zero.
AT_ZERO = QUANTITIES["zero_weights"]

#: What to call as ``add(row, quantity, first_step, values, told)``.
Add: TypeAlias = Callable[[int, str, int, Sequence[int], bool], None]


class Details:
    """Counts, for a tally, what not everybody needs.

    - ``events``: events that arrive at a synaptic layer.
    - ``..._at_zero``: operations at weights that are exactly zero when the layer is called.
    - ``receiving``, ``active``, ``active_receiving``: updates of spiking neurons that got something and had a state of
      zero, had a state and got nothing, and both. A state is zero until something comes, and at no time where neurons
      begin with a potential. (That of a neuron whose spike sets it back to zero is not, for that.) Neurons that are
      driven by each other, too, or that squeeze time into the batch, have no such numbers.

    Args:
        model: The model.
        counting: What is needed.
        add: What keeps the numbers of a row, from a step on; whether who runs the steps tells which they are.
    """

    def __init__(self, model: nn.Module, counting: Iterable[Need], add: Add) -> None:
        self._add = add
        self.needs = frozenset(one_of("counting", need, QUANTITIES) for need in counting)
        self.quantities = tuple(name for need in QUANTITIES if need in self.needs for name in QUANTITIES[need])
        self._networks = [it for it in model.modules() if isinstance(it, SimulatedNetwork)]
        self._zeros: dict[FanOutKey, tuple[Tensor, Tensor]] = {}
        self._got: dict[nn.Module, Tensor] = {}  # where neurons got something, in the call under way
        self._had: dict[nn.Module, Tensor] = {}  # where they have a state

    # Synaptic layers.

    def arrived(
        self,
        row: int,
        layer: Any,
        x: Tensor,
        shape: tuple[int, ...],
        costs: Sequence[Cost],
        first_step: int,
        told: bool,
    ) -> None:
        """Count at a layer's input, whose costs in each step are known.

        Args:
            row: The layer's number.
            layer: The layer.
            x: Its input, ``(steps * B, ...)``.
            shape: Shape of one sample of it.
            costs: SOPs, effective and dense MACs of each step.
            first_step: The first of them.
            told: Whether who runs the steps tells which they are.
        """
        steps = len(costs)
        if "events" in self.needs and any(sops for sops, _, _ in costs):
            events = count_events_by_step(x, steps)
            values = [number if cost[0] else 0 for number, cost in zip(events, costs, strict=True)]
            self._add(row, "events", first_step, values, told)
        if self.counts_zeros:
            for name, values in self._at_zero(row, layer, x.detach(), shape, costs).items():
                self._add(row, name, first_step, values, told)

    def multiplied(self, row: int, step: int, at_zero: Cost) -> None:
        """Add what a product outside of layers costs at weights of zero."""
        if at_zero[2]:
            for name, value in zip(AT_ZERO, at_zero, strict=True):
                self._add(row, name, step, [value], False)

    def _at_zero(
        self, row: int, layer: Any, x: Tensor, shape: tuple[int, ...], costs: Sequence[Cost]
    ) -> dict[str, list[int]]:
        reached = self._reached_at_zero(row, layer, shape)
        if reached is None:
            return {}
        parts = x.reshape(len(costs), -1, *shape)
        dense = round(float(reached.sum())) * parts.shape[1]
        sops, macs = [], []
        for part, (_, effective, _) in zip(parts, costs, strict=True):
            counted = (part != 0) if effective else part.abs()
            summed = counted.to(reached.device).sum(0, dtype=torch.float64)
            cost = round(float((summed * reached).sum()))
            sops.append(0 if effective else cost)
            macs.append(cost if effective else 0)
        return dict(zip(AT_ZERO, (sops, macs, [dense] * len(costs)), strict=True))

    def _reached_at_zero(self, row: int, layer: Any, shape: tuple[int, ...]) -> Tensor | None:
        """Give the fan-out at weights of zero; None if there are no such weights."""
        # A weight may be a number, and be made anew at each call.
        weight = torch.as_tensor(layer.weight if is_synaptic(layer) else layer.V).detach()
        zeros = weight == 0
        if not bool(zeros.any()):
            return None
        key = fan_out_key(row, layer, shape)
        known = self._zeros.get(key)
        if known is None or known[0].shape != zeros.shape or not torch.equal(known[0], zeros):
            reached = of_zeros(layer, zeros, shape) if is_synaptic(layer) else zeros.double().expand(shape)
            known = self._zeros[key] = zeros, reached
        return known[1]

    @property
    def counts_zeros(self) -> bool:
        """Whether it counts at weights of zero."""
        return "zero_weights" in self.needs

    # Neurons.

    @property
    def watches_neurons(self) -> bool:
        """Whether it is to see what neurons get."""
        return "activity" in self.needs

    def got(self, neuron: nn.Module, args: tuple[Any, ...]) -> None:
        """See what neurons are given, before they write to it."""
        if args and isinstance(args[0], Tensor):
            self._got[neuron] = args[0].detach() != 0

    def emitted(
        self,
        row: int,
        neuron: nn.Module,
        spikes: Tensor,
        steps: int,
        first_step: int,
        begins: bool,
        call: CallSteps | None,
    ) -> None:
        """Count what neurons were found as in a call's steps.

        Args:
            row: The layer's number.
            neuron: The layer.
            spikes: What it gives, one step after the other along the first dimension.
            steps: Number of steps.
            first_step: The first of them.
            begins: Whether that is the first of all.
            call: What the call holds, of a simulated network.
        """
        got = self._got.pop(neuron, None)
        if got is None or not has_states(neuron):
            return
        dim = time_dim(neuron) if call is None else None
        if dim is not None and got.dim() > dim:
            got = got.movedim(dim, 0)
        else:
            samples = len(spikes) // steps
            got = got.reshape(steps, samples, *got.shape[1:]) if len(got) == len(spikes) else got.expand(
                steps, *got.shape
            )  # fmt: skip
        had = self._had.get(neuron)
        if begins or had is None or had.shape != got.shape[1:]:
            had = self._at_start(neuron, got)
        numbers = []
        for now in got:
            numbers.append([int((now & ~had).sum()), int((had & ~now).sum()), int((had & now).sum())])
            had = had | now
        self._had[neuron] = had
        for name, values in zip(QUANTITIES["activity"], zip(*numbers, strict=True), strict=True):
            self._add(row, name, first_step, values, call is not None)

    def _at_start(self, neuron: nn.Module, got: Tensor) -> Tensor:
        """Tell where neurons have a state before the first step."""
        for network in self._networks:
            potential = network.initial_potentials().get(neuron)
            if potential is not None:
                return (potential != 0).to(got.device).expand(got.shape[1:])
        return torch.zeros_like(got[0])


def has_states(neuron: nn.Module) -> bool:
    """Tell whether the states of a neuron can be followed from outside: see :class:`Details`."""
    if not is_spiking_neuron(neuron):
        return False
    framework = framework_of(neuron)
    squeezes = framework is not None and framework.name == "sinabs" and time_dim(neuron) is None
    own = synaptic_layers(neuron) or one_to_one_layers(neuron)
    drives_itself = own or any("recurrent_weights" in name for name, _ in neuron.named_parameters())
    return not (squeezes or drives_itself)


def unfollowed(modules: Mapping[str, nn.Module]) -> set[str]:
    """Name the spiking neurons whose states cannot be followed."""
    return {name for name, module in modules.items() if is_spiking_neuron(module) and not has_states(module)}
