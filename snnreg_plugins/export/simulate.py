"""A spiking run of a traced DNN, layer by layer over all time steps: what thresholds are corrected by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from operator import attrgetter, methodcaller
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, fx, nn

from snnreg_plugins.export.forms import ADAPTIVE_MAX_POOLS, MAX_POOLS
from snnreg_plugins.export.rectifiers import RECTIFIERS, Population
from snnreg_plugins.spiking.layers import for_summing


@dataclass(frozen=True)
class Balance:
    """How a population of neurons is set. All in units of its activation, shaped to broadcast over a sample.

    Args:
        level: What a spike is worth.
        threshold: Potential to exceed, and what a spike takes from it.
        potential: The potential to start with.
        current: A constant current in every step.
    """

    level: Tensor
    threshold: Tensor
    potential: Tensor
    current: Tensor


@dataclass(frozen=True)
class Neurons:
    """A population under its currents on calibration data: what an adjustment of its balance goes by.

    Args:
        population: The population.
        currents: What flows in, one ``(B, ...)`` per time step, with the population's sign.
        target: The DNN's activation that the rate is to follow, ``(B, ...)``.
        beta: Decay of the potential per step.
        per_channel: Whether channels may differ.
    """

    population: Population
    currents: list[Tensor]
    target: Tensor
    beta: float
    per_channel: bool

    def fire(self, balance: Balance) -> list[Tensor]:
        """Give the spikes of each step."""
        return list(self._steps(balance, slice(None)))

    def gap(self, balance: Balance, samples: int | None = None) -> Tensor:
        """Give activation minus rate of the first samples, ``(B, ...)``; of half precision, in single."""
        target = for_summing(self.target[:samples])
        counts = torch.zeros_like(target)
        few = max(1, _IN_CACHE // max(1, target[:1].numel()))
        for begin in range(0, len(target), few):
            part = slice(begin, min(begin + few, len(target)))
            for spikes in self._steps(balance, part):
                counts[part] += spikes
        return target - counts.div_(len(self.currents)).mul_(balance.level)

    def _steps(self, balance: Balance, part: slice) -> Iterator[Tensor]:
        """Walk the spikes of the steps, of a part of the samples."""
        first = self.currents[0][part]
        # In the precision that the network computes in.
        threshold, constant = balance.threshold.to(first.dtype), balance.current.to(first.dtype)
        potential = torch.zeros_like(first) + balance.potential.to(first.dtype)
        spikes = (potential > threshold).to(potential.dtype)
        leaks, flows = self.beta != 1, bool(constant.any())
        for current in self.currents:
            # In place, and nothing that changes nothing: nearly all time is spent on memory here.
            if leaks:
                potential.mul_(self.beta)
            potential.add_(current[part])
            if flows:
                potential.add_(constant)
            potential.addcmul_(spikes, threshold, value=-1)
            spikes = torch.gt(potential, threshold, out=torch.empty_like(potential))
            yield spikes


# Elements of a tensor that is worked on for many steps, which is to stay in a cache.
_IN_CACHE = 2**16
#: Changes the balance of a population to suit what it sees.
Adjustment: TypeAlias = Callable[[Neurons, Balance], Balance]


class _Value(NamedTuple):
    """What a node gives: in the DNN, and, where that differs, at each step of the spiking network."""

    exact: Any
    steps: list[Any] | None = None

    def at(self, step: int) -> Any:
        return self.exact if self.steps is None else self.steps[step]


class Simulation(fx.Interpreter):
    """Runs the spiking network of a traced DNN on some samples, and adjusts each layer before the next one runs.

    Everything but neurons and max pooling is the DNN's own, applied to every step; a spike is worth its level.

    Args:
        traced: A network of :func:`~snnreg_plugins.export.trace.trace`.
        timesteps: T.
        beta: Decay of the potential per step.
        per_channel: Whether channels may differ.
        exact: What nodes give in the DNN, of the same inputs; those that are missing are added, None for nothing.
    """

    def __init__(
        self,
        traced: fx.GraphModule,
        timesteps: int,
        beta: float,
        per_channel: bool,
        exact: dict[fx.Node, Any] | None = None,
    ) -> None:
        super().__init__(traced)
        self.timesteps = timesteps
        self.beta = beta
        self.per_channel = per_channel
        self.exact = exact
        self.balances: dict[str, Balance] = {}
        self.adjustments: list[Adjustment] = []
        self.code: Callable[[Tensor], list[Tensor] | None] = lambda inputs: None
        self.step: Callable[[str], None] = lambda name: None

    def adjust(
        self,
        inputs: Tensor,
        balances: dict[str, Balance],
        adjustments: list[Adjustment],
        code: Callable[[Tensor], list[Tensor] | None],
        step: Callable[[str], None] = lambda name: None,
    ) -> dict[str, Balance]:
        """Adjust all balances, in the order in which the layers run.

        Args:
            inputs: Samples, ``(B, ...)``.
            balances: Those to begin with, by population.
            adjustments: What to do at each population, one after the other.
            code: From inputs to what goes in at each step; None for the inputs themselves.
            step: Called with the name of each population as its turn comes.

        Returns:
            The balances, by population.
        """
        self.balances, self.adjustments, self.code, self.step = dict(balances), adjustments, code, step
        self.run(inputs)
        return self.balances

    def run_node(self, n: fx.Node) -> _Value | None:
        if n.op == "output" or n.meta["head"]:
            return None
        if n.op == "placeholder":
            inputs = super().run_node(n)
            return _Value(inputs, self.code(inputs))
        given = [self.env[source] for source in n.all_input_nodes]
        module = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        exact = self._exactly(n)
        if isinstance(module, RECTIFIERS):
            return _Value(exact, self._fire(n.meta["populations"], given[0]))
        if all(value.steps is None for value in given):
            return _Value(exact)
        if isinstance(module, (*MAX_POOLS, *ADAPTIVE_MAX_POOLS)):
            return _Value(exact, _growth(module, given[0].steps))
        return _Value(exact, [self._compute(n, methodcaller("at", t)) for t in range(self.timesteps)])

    def _exactly(self, node: fx.Node) -> Any:
        """Compute what a node gives in the DNN, or take what is known of it."""
        if self.exact is None:
            return self._compute(node, attrgetter("exact"))
        if node not in self.exact:
            self.exact[node] = self._compute(node, attrgetter("exact"))
        return self.exact[node]

    def _compute(self, node: fx.Node, pick: Callable[[_Value], Any]) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: pick(self.env[source]))
        return getattr(self, node.op)(node.target, args, kwargs)

    def _fire(self, populations: dict[str, Population], given: _Value) -> list[Tensor]:
        currents = [given.at(step) for step in range(self.timesteps)]
        total: list[Tensor] = []
        for key, population in populations.items():
            signed = currents if population.sign > 0 else [-current for current in currents]
            self.step(key)
            neurons = Neurons(population, signed, population.rectify(given.exact), self.beta, self.per_channel)
            for adjustment in self.adjustments:
                self.balances[key] = adjustment(neurons, self.balances[key])
            worth = self.balances[key].level * channelwise(population.gain, given.exact.dim())
            fired = [spike.mul_(worth) for spike in neurons.fire(self.balances[key])]
            total = fired if not total else [a.add_(b) for a, b in zip(total, fired, strict=True)]
        return total


def channelwise(values: float | Tensor | None, dims: int) -> Any:
    """Shape ``(C,)`` to broadcast over a sample of a tensor of ``dims`` dimensions; leave a number as it is."""
    return values.reshape(-1, *[1] * (dims - 2)) if isinstance(values, Tensor) and values.dim() == 1 else values


def _growth(pool: nn.Module, steps: list[Tensor]) -> list[Tensor]:
    """Pool each step's growth of the sums so far."""
    total, before, passed = torch.zeros_like(steps[0]), None, []
    for step in steps:
        total = total + step
        highest = pool(total)
        passed.append(highest if before is None else highest - before)
        before = highest
    return passed


def spike_norm(neurons: Neurons, balance: Balance) -> Balance:
    r"""Set level and threshold to the largest current under spiking input (Sengupta et al. 2019, Spike-Norm).

    .. math:: \lambda = \max_{t, i} I_i(t)

    A current can be far above the activation that it has on average, so rates are low and need many steps.
    """
    peaks = torch.stack([current.amax(0) for current in neurons.currents]).amax(0)
    if neurons.per_channel:
        peak = channelwise(peaks.flatten(1).amax(1) if peaks.dim() > 1 else peaks, neurons.target.dim())
        peak = torch.where(peak > 1e-2 * peaks.amax(), peak, peaks.amax())
    else:
        peak = peaks.amax()
    peak = torch.where(peak > 0, peak.clamp_max(neurons.population.limit), balance.level)
    share = balance.potential / balance.threshold
    return replace(balance, level=peak, threshold=peak, potential=share * peak)


def correct_potential(neurons: Neurons, balance: Balance, per_neuron: bool = True) -> Balance:
    r"""Move the initial potential by the charge that spikes lack on average (Li et al. 2021).

    .. math:: v_0 \leftarrow v_0 + T \cdot \frac{\theta}{\lambda} \, \mathbb{E}\left[a - \lambda r\right]

    for each neuron or each channel, a few times over, where it lowers the mean squared error of the rates.
    """
    steps = len(neurons.currents)
    worth = balance.threshold / balance.level

    def moved(current: Balance, gap: Tensor) -> Balance:
        potential = current.potential + steps * worth * gap
        # Above the threshold the first reset would take charge without a spike.
        return replace(current, potential=torch.minimum(potential, balance.threshold.expand_as(potential)))

    return _descend(neurons, balance, moved, per_neuron)


def correct_bias(neurons: Neurons, balance: Balance) -> Balance:
    r"""Add to each channel's current what spikes lack on average (Li et al. 2021).

    .. math:: c \leftarrow c + \frac{\theta}{\lambda} \, \mathbb{E}\left[a - \lambda r\right]

    a few times over, where it lowers the mean squared error of the rates.
    """
    worth = balance.threshold / balance.level

    def moved(current: Balance, gap: Tensor) -> Balance:
        return replace(current, current=current.current + worth * gap)

    return _descend(neurons, balance, moved, per_neuron=False)


def _descend(
    neurons: Neurons, balance: Balance, moved: Callable[[Balance, Tensor], Balance], per_neuron: bool
) -> Balance:
    """Move by the mean gap as long as the error of each neuron or channel gets smaller; keep the best of each."""

    def mean(values: Tensor) -> Tensor:
        values = values.mean(0)
        if per_neuron or values.dim() == 1:
            return values
        return values.mean(tuple(range(1, values.dim())), keepdim=True)

    gap = neurons.gap(balance)
    best, error, current = balance, mean(gap.square()), balance
    for _ in range(_ROUNDS):
        current = moved(current, mean(gap))
        gap = neurons.gap(current)
        found = mean(gap.square())
        better = found < error
        best = replace(
            best,
            potential=torch.where(better, current.potential, best.potential),
            current=torch.where(better, current.current, best.current),
        )
        error = torch.minimum(found, error)
    return best


_ROUNDS = 3
_FEW = 64  # samples are enough for a handful of numbers per layer
_LEAK_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1)
_LEAK_POTENTIALS = (0.25, 0.5, 0.75)
_LEAK_CURRENTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def compensate_leak(neurons: Neurons, balance: Balance) -> Balance:
    r"""Choose threshold, initial potential and a constant current for neurons that leak.

    A leaky neuron loses :math:`(1 - \beta) v` in every step. A constant current of :math:`(1 - \beta) v^*` makes
    :math:`v^*` its resting potential instead of 0, and a lower threshold makes up for what leaks above it. Of
    combinations

    .. math:: \theta = f \lambda \qquad v_0 = p \, \theta \qquad c = (1 - \beta) \, q \, \theta

    takes the one with the least mean squared error of the layer's rates on calibration data.
    """
    best, least = balance, torch.inf
    for f in _LEAK_THRESHOLDS:
        for p in _LEAK_POTENTIALS:
            for q in _LEAK_CURRENTS:
                threshold = f * balance.level
                current = (1 - neurons.beta) * q * threshold
                tried = replace(balance, threshold=threshold, potential=p * threshold, current=current)
                error = float(neurons.gap(tried, _FEW).square().mean())
                if error < least:
                    best, least = tried, error
    return best
