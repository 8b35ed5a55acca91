"""Exact sums over the neurons of an exported network and the activations that they stand for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from snnreg_plugins.export.rectifiers import RECTIFIERS, Population, both_signs
from snnreg_plugins.export.simulate import channelwise
from snnreg_plugins.reports.diagnosis import CELLS, LEVELS, RATES
from snnreg_plugins.spiking.layers import for_summing
from snnreg_plugins.spiking.network import SpikingNetwork
from snnreg_plugins.watching.hooks import Hooks
from snnreg_plugins.watching.layers import is_spiking_neuron, neuron_layers, synaptic_layers
from snnreg_plugins.watching.tally import Tally


class Totals(NamedTuple):
    """Sums over neurons and samples, with the activation a and what stands for it, b = λ r.

    Errors are weighed by the gain of the population; ``weighed`` is the sum of a, weighed in the same way.
    """

    pairs: float
    a: float
    b: float
    aa: float
    bb: float
    ab: float
    weighed: float
    error: float
    bias: float
    clipping: float
    rounding: float
    clipped: float
    spikes: float


class Comparison:
    """A population of neurons beside the activation that it stands for: sums over batches, in float64.

    Args:
        base: Name of the activation.
        population: The population.
        activation: The DNN's module; None if the input itself is coded.
        neurons: The neurons.
        potential: The potential that they start with.
        level: What a spike is worth.
    """

    def __init__(
        self,
        base: str,
        population: Population,
        activation: nn.Module | None,
        neurons: Any,
        potential: Tensor,
        level: Tensor,
    ) -> None:
        self.base = base
        self.population = population
        self.activation = activation
        self.neurons = neurons
        self.level = level
        self.share = potential.double() / neurons.threshold.double()
        # Of the batch under way.
        self._target: Tensor | None = None
        self._spikes: Any = 0
        # Over all batches; the first three of each neuron.
        self.spikes: Any = 0
        self.activity: Any = 0
        self.peaks: Any = 0
        self.counts: Any = 0
        self._totals: Any = 0
        self.samples = self.timesteps = 0

    def watch(self, hooks: Hooks) -> None:
        """Follow both networks."""
        if self.activation is not None:
            hooks.after(self.activation, self._observe)
        hooks.after(self.neurons, self._count)

    def _observe(self, _: nn.Module, args: tuple[Tensor, ...], __: Tensor) -> None:
        self._target = self.population.rectify(args[0])

    def _count(self, _: nn.Module, __: Any, output: tuple[Tensor, Any]) -> None:
        self._spikes = self._spikes + for_summing(output[0])

    def add(self, inputs: Tensor, timesteps: int) -> None:
        """Add the batch that both networks have run on."""
        spikes = self._spikes.double()
        a = (self.population.rectify(inputs) if self._target is None else self._target).to(spikes)
        self._target, self._spikes = None, 0
        level, gain = self.level.to(spikes), self._gain(a)
        b = level * spikes / timesteps
        # A neuron that receives a in every step spikes whenever its potential exceeds the threshold.
        even = ((timesteps * a / level + self.share.to(spikes)).ceil() - 1).clamp(0, timesteps)
        within = a.minimum(level)
        totals = Totals(
            pairs=a.numel(),
            a=float(a.sum()),
            b=float(b.sum()),
            aa=float((a * a).sum()),
            bb=float((b * b).sum()),
            ab=float((a * b).sum()),
            weighed=float((gain * a).sum()),
            error=float((gain * (b - a).abs()).sum()),
            bias=float((gain * (b - a)).sum()),
            clipping=float((gain * (a - within)).sum()),
            rounding=float((gain * (level * even / timesteps - within).abs()).sum()),
            clipped=float((a > level).sum()),
            spikes=float(spikes.sum()),
        )
        self._totals = self._totals + torch.tensor(totals, dtype=torch.float64)
        self.spikes = self.spikes + spikes.sum(0)
        self.activity = self.activity + a.sum(0)
        self.peaks = a.amax(0).maximum(torch.as_tensor(self.peaks).to(a))
        self.samples += len(a)
        self.timesteps = timesteps
        rates = min(timesteps, RATES)
        rows = (a / level * (CELLS / LEVELS)).long().clamp(max=CELLS - 1)
        columns = (spikes * rates / timesteps).round().long()
        cells = torch.bincount((rows * (rates + 1) + columns).flatten(), minlength=CELLS * (rates + 1))
        self.counts = self.counts + cells.reshape(CELLS, rates + 1)

    def _gain(self, like: Tensor) -> Tensor:
        gain = torch.as_tensor(self.population.gain, dtype=like.dtype, device=like.device).abs()
        shaped: Tensor = channelwise(gain, like.dim())
        return shaped

    def totals(self) -> Totals:
        """Give the sums."""
        return Totals(*self._totals.tolist())

    def correlation(self) -> float | None:
        """Give Pearson's correlation of a and λ r; None if one of them is constant."""
        t = self.totals()
        covariance, of_a, of_b = t.pairs * t.ab - t.a * t.b, t.pairs * t.aa - t.a**2, t.pairs * t.bb - t.b**2
        # Of a constant, rounding errors are all that is left.
        if of_a <= 1e-12 * t.pairs * t.aa or of_b <= 1e-12 * t.pairs * t.bb:
            return None
        return float(covariance / (of_a * of_b) ** 0.5)

    def dead(self) -> Tensor:
        """Tell which neurons never spike though their activation is not always 0."""
        dead: Tensor = (self.spikes == 0) & (self.activity > 0)
        return dead

    def missing(self) -> float:
        """Sum up the activation of dead neurons, weighed."""
        lost = (self.activity * self.dead()).unsqueeze(0)
        return float((self._gain(lost) * lost).sum())

    def spread(self) -> float:
        """Give the largest maximum of a channel over the median one, of those that are active."""
        peaks = self.peaks.flatten(1).amax(1) if self.peaks.dim() > 1 else self.peaks
        active = peaks[peaks > 0]
        return float(active.max() / active.median()) if len(active) else 1.0


def comparisons(traced: fx.GraphModule, network: SpikingNetwork) -> dict[str, Comparison]:
    """Pair the neurons of a network with the activations of its DNN, in the order they are computed in.

    Args:
        traced: The DNN, by :func:`~snnreg_plugins.export.trace.trace`.
        network: What was exported from it.

    Raises:
        ValueError: If there is no activation to some neurons.
    """
    modules = dict(traced.named_modules())
    neurons = {name: module for name, module in network.body.named_modules() if is_spiking_neuron(module)}
    found: dict[str, tuple[str, Population, nn.Module | None]] = {}
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            for population in both_signs(-1.0):
                found[node.meta["name"] + population.suffix] = "input", population, None
        elif node.op == "call_module" and not node.meta["head"]:
            for key, population in node.meta.get("populations", {}).items():
                found[key] = str(node.target), population, modules[str(node.target)]
    paired = {}
    for node in network.body.graph.nodes:
        name = str(node.target)
        if node.op == "call_module" and name in neurons:
            if name not in found or name not in network.levels:
                raise ValueError(
                    f"Expected argument `network` to be exported from `dnn`, but for its neurons {name!r} there is no "
                    "activation or level."
                )
            initial: Any = network.body.get_submodule(f"{name}_initial")
            paired[name] = Comparison(*found[name], neurons[name], initial.potential, network.levels[name])
    return paired


def reads(traced: fx.GraphModule) -> dict[str, set[str]]:
    """Find the activations that each activation reads, through whatever is between; the input is ``"input"``."""
    modules = dict(traced.named_modules())
    sources: dict[fx.Node, set[str]] = {}
    found: dict[str, set[str]] = {}
    for node in traced.graph.nodes:
        sources[node] = set().union(*(sources[source] for source in node.all_input_nodes))
        if node.op == "placeholder":
            sources[node] = {"input"}
        elif node.op == "call_module" and isinstance(modules[node.target], RECTIFIERS) and not node.meta["head"]:
            found[str(node.target)] = sources[node]
            sources[node] = {str(node.target)}
    return found


class Events:
    """Knows whose spikes cause the synaptic operations of a network.

    Args:
        network: The network.
        tally: Who counts them, in the network.
    """

    def __init__(self, network: SpikingNetwork, tally: Tally) -> None:
        self._tally = tally
        self.layers = synaptic_layers(network.encoder) | synaptic_layers(network.body)
        self.reads: dict[str, tuple[str, ...]] = dict.fromkeys(self.layers, ())
        neurons = neuron_layers(network.body)
        sources: dict[fx.Node, dict[str, None]] = {}  # in order
        for node in network.body.graph.nodes:
            name = str(node.target)
            sources[node] = {name: None for source in node.all_input_nodes for name in sources[source]}
            if node.op == "call_module" and name in neurons:
                sources[node] = {name: None}
            elif node.op == "call_module" and name in self.layers:
                self.reads[name] = tuple(sources[node])
                sources[node] = {}

    def sops(self) -> dict[str, int]:
        """Give the SOPs at each synaptic layer so far."""
        tally = self._tally
        counted = tally.by_layer("sops")
        return {name: counted[tally.names[tally.index[layer]]] for name, layer in self.layers.items()}

    def of(self, neurons: str) -> int | None:
        """Give the SOPs at synaptic layers that read these neurons alone; None if all that read them are shared."""
        sops = self.sops()
        own = [sops[name] for name, read in self.reads.items() if read == (neurons,)]
        return sum(own) if own or not any(neurons in read for read in self.reads.values()) else None

    def shared(self) -> Iterator[tuple[str, tuple[str, ...], int]]:
        """Walk the synaptic layers whose SOPs belong to no neurons alone: name, the neurons, SOPs."""
        sops = self.sops()
        for name, read in self.reads.items():
            if len(read) != 1 and sops[name]:
                yield name, read, sops[name]
