"""Where an exported network loses what its DNN computes, layer by layer, and which option to try."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils.data import Dataset, IterableDataset

from snnreg_plugins._files import atomic
from snnreg_plugins.export._style import BLUE, GREY, ORANGE, drawn, in_short, legend_below, new_table, span
from snnreg_plugins.export.calibrate import Calibration
from snnreg_plugins.export.graph import trace
from snnreg_plugins.export.network import SpikingNetwork
from snnreg_plugins.export.parts import at_least_float32
from snnreg_plugins.export.rectifiers import RECTIFIERS, Population, populations
from snnreg_plugins.export.report import run_as
from snnreg_plugins.export.simulate import channelwise
from snnreg_plugins.functional.synapses import Synapses, fan_out, sample_shape
from snnreg_plugins.probes import Hooks, neuron_layers, synaptic_layers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import Console
    from rich.table import Table

# Samples that are run at once.
_CHUNK = 128
# The histogram: cells of activation up to some levels, and the most of the rate.
_CELLS, _LEVELS, _RATES = 30, 1.5, 32
# An added error below is no loss to speak of.
_SMALL = 0.01
# Channels differ a lot if the largest maximum is so many times the median one.
_SPREAD = 2.0


@dataclass(frozen=True)
class LayerDiagnosis:
    r"""What one layer of neurons makes of the DNN's activations, over all neurons and samples.

    With the DNN's activation :math:`a`, the spike rate :math:`r` and what a spike is worth, its level
    :math:`\lambda`, errors are relative to the mean activation:

    .. math:: \text{error} = \frac{\sum |\lambda r - a|}{\sum a}

    They are None where the DNN's layer is silent on all data. Of an activation with two populations of neurons,
    such as LeakyReLU, both are weighed by their gains and relate to their common mean, so that they add up.

    Args:
        name: Its name in the DNN.
        kind: Its class.
        threshold_min: Lowest threshold of the layer's channels; the threshold where there is but one.
        threshold_max: Highest threshold of the layer's channels.
        level_min: Lowest level λ: what a spike is worth, and the most that a rate can express.
        level_max: Highest level.
        spread: Largest maximum of a channel of the DNN's, over the median one.
        activation: Mean of a.
        correlation: Pearson's, of a and λ r; None where one of them is constant.
        error: Mean of |λ r - a|.
        bias: Mean of λ r - a.
        clipping: The error that a level below activations makes: mean of max(a - λ, 0).
        rounding: The error that whole numbers of spikes make: what neurons that receive min(a, λ) in every step
            would still be off.
        missing: The error that dead neurons make: the share of the activation that is theirs.
        added: The error less that of the layers which it reads: of several, the largest.
        spike_rate: Spikes/neuron/step.
        sops: SOPs/sample at the synaptic layers that read this layer alone.
        clipped: Share of activations above λ, of all, zeros included.
        dead: Share of neurons that never spike though their activation is not always 0.
        silent: Share of neurons that never spike and have none to express.
        saturated: Share of neurons that spike in every step of every sample.
    """

    name: str
    kind: str
    threshold_min: float
    threshold_max: float
    level_min: float
    level_max: float
    spread: float
    activation: float
    correlation: float | None
    error: float | None
    bias: float | None
    clipping: float | None
    rounding: float | None
    missing: float | None
    added: float | None
    spike_rate: float
    sops: float
    clipped: float
    dead: float
    silent: float
    saturated: float


@dataclass(frozen=True)
class SharedSynapses:
    """A synaptic layer whose events come from no neurons, as from a binary input, or from more than one layer.

    Args:
        name: Its name in the network.
        reads: The neuron layers whose spikes arrive.
        sops: SOPs/sample.
    """

    name: str
    reads: tuple[str, ...]
    sops: float


@dataclass(frozen=True)
class Diagnosis:
    """Where an exported network loses what its DNN computes; plain numbers. Made by :func:`diagnose`.

    Args:
        samples: Number of samples measured.
        timesteps: T.
        layers: The layers of neurons, in the order they are computed in.
        synapses: The synaptic layers whose SOPs belong to no single one of ``layers``.
        worst: The layer that adds the largest error; None if the DNN is silent.
        cause: What most of that is: ``"clipping"``, ``"rounding"``, ``"timing"`` (uneven arrival of spikes),
            ``"leak"`` or ``"dead"``; None if no layer loses much.
        remedies: What to try against it: options of :func:`~snnreg_plugins.to_snntorch`, and others.
        advice: The same as a sentence.
        histogram: Of ``worst``: number of (neuron, sample) pairs by a / λ (rows: 30, up to 1.5 and above) and
            rate (columns: from 0 to 1, T + 1 of them or 33).
    """

    samples: int
    timesteps: int
    layers: tuple[LayerDiagnosis, ...]
    synapses: tuple[SharedSynapses, ...]
    worst: str | None
    cause: str | None
    remedies: tuple[str, ...]
    advice: str
    histogram: tuple[tuple[int, ...], ...] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return nested dicts and lists of plain numbers and strings, as JSON has them."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`to_dict` to a JSON file; it appears when it is complete."""
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    def print(self, console: Console | None = None) -> None:
        """Print a table of the neurons, one of their errors, and the advice.

        Args:
            console: Where to print; the terminal if None.
        """
        from rich.console import Console

        console = console or Console()
        console.print(self._neurons())
        console.print(self._errors())
        console.print(self.advice, highlight=False, markup=False, style="bold")
        console.print(
            "Clipped: activations above what a spike is worth. Dead: never spikes, but the DNN's activation is not "
            "always 0. Silent: neither. Saturated: spikes in every step.\n"
            "Errors are those of rate × level against the DNN's activation, relative to its mean. Clipping, rounding: "
            "what they would be under even currents. Added: above the error of the layers before; > marks the most. "
            f"{self.samples:,} samples.",
            style="dim",
            highlight=False,
            markup=False,
        )

    def save_plot(self, path: str | os.PathLike[str]) -> None:
        """Draw errors by layer, rates of the worst layer, and shares by layer, to a PNG (or what the suffix says).

        Raises:
            ModuleNotFoundError: If matplotlib is missing.
        """
        with drawn(path, max(4.0, 1.8 + 0.4 * len(self.layers))) as (errors, rates, shares):
            self._draw_errors(errors)
            self._draw_rates(rates)
            self._draw_shares(shares)

    def _neurons(self) -> Table:
        table = new_table(f"Neurons at T = {self.timesteps}")
        table.add_column("Layer", overflow="fold")
        for header in ("Threshold", "Rate", "SOPs", "Clipped", "Dead", "Silent", "Saturated"):
            table.add_column(header, justify="right", no_wrap=True)
        for layer in self.layers:
            shares = (layer.clipped, layer.dead, layer.silent, layer.saturated)
            table.add_row(
                self._marked(layer),
                span(layer.threshold_min, layer.threshold_max),
                f"{layer.spike_rate:.3f}",
                in_short(layer.sops),
                *map(_percent, shares),
            )
        if self.synapses:
            table.add_section()
        for synapses in self.synapses:
            reads = " + ".join(synapses.reads) or "input"
            table.add_row(f"  {synapses.name} of {reads}", "", "", in_short(synapses.sops))
        return table

    def _errors(self) -> Table:
        table = new_table("Rate × level beside the DNN's activation")
        table.add_column("Layer", overflow="fold")
        for header in ("Correlation", "Bias", "Error", "Clipping", "Rounding", "Added"):
            table.add_column(header, justify="right", no_wrap=True)
        for layer in self.layers:
            table.add_row(
                self._marked(layer),
                "" if layer.correlation is None else f"{layer.correlation:.4f}",
                _percent(layer.bias, "+"),
                *map(_percent, (layer.error, layer.clipping, layer.rounding)),
                _percent(layer.added, "+"),
            )
        return table

    def _marked(self, layer: LayerDiagnosis) -> str:
        return f"{'>' if layer.name == self.worst else ' '} {layer.name}"

    def _draw_errors(self, axes: Axes) -> None:
        names = [layer.name for layer in self.layers]
        errors = [100 * (layer.error or 0.0) for layer in self.layers]
        added = [
            min(error, max(0.0, 100 * (layer.added or 0.0))) for error, layer in zip(errors, self.layers, strict=True)
        ]
        before = [error - own for error, own in zip(errors, added, strict=True)]
        axes.barh(names, before, height=0.6, color="#BBBBBB", label="that of the layers before")
        bars = axes.barh(names, added, height=0.6, left=before, color=BLUE, label="added here")
        axes.bar_label(bars, [f"{error:.1f}" for error in errors], padding=4, color=GREY)
        axes.margins(x=0.15)
        _by_layer(axes, len(names))
        axes.set(title=f"Error by layer at T = {self.timesteps}", xlabel="Mean |rate × level - activation| (%)")
        legend_below(axes)

    def _draw_rates(self, axes: Axes) -> None:
        from matplotlib.colors import LogNorm

        axes.set(title=f"Rates of layer {self.worst}", xlabel="Activation / level", ylabel="Spikes / step")
        axes.set(xlim=(0, _LEVELS), ylim=(-0.05, 1.05))
        axes.plot([0, 1, _LEVELS], [0, 1, 1], color=ORANGE, linewidth=1.8, label="ideal")
        if self.histogram:
            counts = torch.tensor(self.histogram).T
            rates = len(counts) - 1
            edges = torch.linspace(0, _LEVELS, _CELLS + 1), (torch.arange(rates + 2) - 0.5) / rates
            # Cells without any are left white.
            drawn_counts = torch.where(counts > 0, counts.double(), torch.nan)
            norm = LogNorm(1, max(10, int(counts.max())))
            mesh = axes.pcolormesh(*edges, drawn_counts, norm=norm, cmap="Blues", zorder=-1)
            axes.get_figure().colorbar(mesh, ax=axes, label="Neurons × samples", pad=0.02)  # type: ignore[union-attr]
            axes.set_ylim(float(edges[1][0]), float(edges[1][-1]))
            axes.grid(visible=False)
        legend_below(axes)

    def _draw_shares(self, axes: Axes) -> None:
        drawn_shares: tuple[tuple[str, list[float], dict[str, Any]], ...] = (
            ("clipped, of activations", [layer.clipped for layer in self.layers], {"color": BLUE}),
            ("dead, of neurons", [layer.dead for layer in self.layers], {"color": ORANGE, "hatch": "////"}),
            ("saturated, of neurons", [layer.saturated for layer in self.layers], {"color": GREY}),
        )
        most = max(max(shares) for _, shares, _ in drawn_shares)
        for place, (label, shares, style) in enumerate(drawn_shares):
            at = [index + 0.26 * (place - 1) for index in range(len(shares))]
            percents = [100 * share for share in shares]
            bars = axes.barh(at, percents, height=0.24, edgecolor="white", linewidth=0, label=label, **style)
            axes.bar_label(bars, [_short(share) for share in percents], padding=3, color=GREY, fontsize=8)
        axes.set_yticks(range(len(self.layers)), [layer.name for layer in self.layers])
        axes.set_xlim(0, max(1.0, 118 * most))
        _by_layer(axes, len(self.layers))
        axes.set(title="What rates cannot express", xlabel="Share (%)")
        legend_below(axes)


def diagnose(
    dnn: nn.Module, network: SpikingNetwork, data: Calibration, *, limit_samples: int | None = 1024
) -> Diagnosis:
    r"""Tell where an exported network loses what its DNN computes, and which option of the export to try.

    Compares, for each layer of neurons, the rate at ``network.timesteps`` times what a spike is worth to the DNN's
    activation. All sums are exact, over all neurons and samples; no activations are kept. The layer that loses the
    most is the one that adds the largest error to that of the layers it reads, and why is the largest of

    - clipping: activations above what a spike is worth;
    - rounding: rates are multiples of 1/T;
    - what is left: spikes that arrive unevenly, and what leaks if ``beta`` is below 1;
    - dead neurons, if those make more than half of the added error.

    Options that ``network`` was made with already are not suggested (``network.conversion``).

    Both networks are run in eval mode and left as they were; metrics that watch ``network`` count this pass too. A
    network that was fine-tuned is free to leave the DNN's activations, and its errors tell by how much it does.

    Args:
        dnn: The DNN.
        network: The spiking network exported from it.
        data: Inputs: a tensor, or an iterable of batches or (input, target) pairs, such as a DataLoader. Others than
            those of the calibration show what thresholds miss.
        limit_samples: Samples to measure on, the first ones; all if None.

    Returns:
        The numbers and the advice, with ``print()``, ``save_json(path)`` and ``save_plot(path)``.

    Raises:
        TypeError: If ``network`` is no SpikingNetwork, or ``data`` gives something else than inputs.
        ValueError: If ``network`` was not made from ``dnn``, ``data`` holds no sample or inputs of different shapes,
            or ``limit_samples`` is not positive.
        ConversionError: If ``dnn`` cannot be traced.

    Example:
        >>> from snnreg_plugins import to_snntorch
        >>> _ = torch.manual_seed(0)
        >>> model, x = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3)), torch.rand(100, 2)
        >>> result = diagnose(model, to_snntorch(model, x, timesteps=4, threshold="max"), x)
        >>> result.worst, result.cause, result.layers[0].clipped
        ('1', 'rounding', 0.0)
        >>> result.remedies[0]
        'timesteps=8'
    """
    if not isinstance(network, SpikingNetwork):
        raise TypeError(
            "Expected argument `network` to be a SpikingNetwork, such as to_snntorch() makes, but got "
            f"{type(network).__name__}."
        )
    if limit_samples is not None and (isinstance(limit_samples, bool) or limit_samples < 1):
        raise ValueError(f"Expected argument `limit_samples` to be at least 1 or None, but got {limit_samples!r}.")
    traced = trace(dnn, network.conversion.get("until"))
    timesteps, samples = network.timesteps, 0
    sums = _all_sums(traced, network)
    events = _Events(network)
    hooks = Hooks()
    try:
        for one in sums.values():
            one.watch(hooks)
        events.watch(hooks)
        with torch.no_grad(), run_as(network, timesteps):
            for inputs in _inputs(data, limit_samples):
                traced(inputs.to(_device(traced)))
                network(inputs.to(_device(network)))
                for one in sums.values():
                    one.add(inputs, timesteps)
                samples += len(inputs)
    finally:
        hooks.remove()
    if not samples:
        raise ValueError("Expected argument `data` to hold at least one sample, but it is empty.")
    layers = _layers(sums, _reads(traced), {name: sops / samples for name, sops in events.by_neurons().items()})
    return _diagnosis(
        layers,
        tuple(SharedSynapses(name, reads, sops / samples) for name, reads, sops in events.shared()),
        {**network.conversion, "timesteps": timesteps},
        samples,
        sums,
    )


class _Totals(NamedTuple):
    """Sums over neurons and samples: of activation a, estimate b = λ r, their products, and weighed errors."""

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


class _Sums:
    """Exact sums over a population of neurons and the activation that it stands for.

    Args:
        base: Name of the activation.
        population: The population.
        activation: The DNN's module; None if it is the input that is coded.
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
        # Over all batches: of everything, and of each neuron.
        self._totals: Any = 0
        self.spikes: Any = 0
        self.activity: Any = 0
        self.peaks: Any = 0
        self.counts: Any = 0  # the histogram
        self.samples = self.timesteps = 0

    def watch(self, hooks: Hooks) -> None:
        """Follow both networks."""
        if self.activation is not None:
            hooks.after(self.activation, self._observe)
        hooks.after(self.neurons, self._count)

    def _observe(self, _: nn.Module, args: tuple[Tensor, ...], __: Tensor) -> None:
        self._target = self.population.rectify(args[0])

    def _count(self, _: nn.Module, __: Any, output: tuple[Tensor, Any]) -> None:
        self._spikes = self._spikes + at_least_float32(output[0])

    def add(self, inputs: Tensor, timesteps: int) -> None:
        """Add the batch that both networks have run on."""
        spikes = self._spikes.double()
        target = self.population.rectify(inputs) if self._target is None else self._target
        a, level = target.to(spikes), self.level.to(spikes)
        self._target, self._spikes = None, 0
        b = level * spikes / timesteps
        gain = torch.as_tensor(channelwise(self.population.gain, a.dim())).to(spikes).abs()
        # A neuron that receives a in every step spikes whenever its potential exceeds the threshold.
        even = ((timesteps * a / level + self.share.to(spikes)).ceil() - 1).clamp(0, timesteps)
        rounding = (level * even / timesteps - a.minimum(level)).abs()
        clipped = a > level
        parts = (
            torch.ones_like(a),
            *(a, b, a * a, b * b, a * b, gain * a, gain * (b - a).abs(), gain * (b - a)),
            *(gain * (a - level).clamp_min(0), gain * rounding, clipped.to(spikes), spikes),
        )
        self._totals = self._totals + torch.stack([part.sum() for part in parts])
        self.spikes = self.spikes + spikes.sum(0)
        self.activity = self.activity + a.sum(0)
        self.peaks = a.amax(0).maximum(torch.as_tensor(self.peaks).to(a))
        self.samples += len(a)
        self.timesteps = timesteps
        rates = min(timesteps, _RATES)
        rows = (a / level * (_CELLS / _LEVELS)).long().clamp(max=_CELLS - 1)
        columns = (spikes * rates / timesteps).round().long()
        cells = (rows * (rates + 1) + columns).flatten()
        self.counts = self.counts + torch.bincount(cells, minlength=_CELLS * (rates + 1))

    def totals(self) -> _Totals:
        """Give the sums."""
        return _Totals(*self._totals.tolist())

    def correlation(self) -> float | None:
        """Give Pearson's correlation."""
        t = self.totals()
        covariance, of_a, of_b = t.pairs * t.ab - t.a * t.b, t.pairs * t.aa - t.a**2, t.pairs * t.bb - t.b**2
        # Of a constant, rounding errors are all that is left.
        if of_a <= 1e-12 * t.pairs * t.aa or of_b <= 1e-12 * t.pairs * t.bb:
            return None
        return float(covariance / (of_a * of_b) ** 0.5)

    def spread(self) -> float:
        """Give the largest maximum of a channel over the median one, of those that are active."""
        peaks = self.peaks.flatten(1).amax(1) if self.peaks.dim() > 1 else self.peaks
        active = peaks[peaks > 0]
        return float(active.max() / active.median()) if len(active) else 1.0


def _all_sums(traced: fx.GraphModule, network: SpikingNetwork) -> dict[str, _Sums]:
    """Pair the populations of the network with the activations of the DNN, in the order they are computed in."""
    modules, neurons = dict(traced.named_modules()), neuron_layers(network.body)
    found: dict[str, tuple[str, Population, nn.Module | None]] = {}
    for sign, suffix in ((1, ""), (-1, "_negative")):
        found[f"input{suffix}"] = "input", Population(suffix, sign, float(sign), torch.inf), None
    for name in _reads(traced):
        for kind in populations(modules[name]) or ():
            found[name + kind.suffix] = name, kind, modules[name]
    sums = {}
    for node in network.body.graph.nodes:
        name = str(node.target)
        if node.op == "call_module" and name in neurons:
            if name not in found or name not in network.levels:
                raise ValueError(
                    f"Expected argument `network` to be exported from `dnn`, but of its neurons {name!r} there is no "
                    "activation or level."
                )
            initial: Any = network.body.get_submodule(f"{name}_initial")
            sums[name] = _Sums(*found[name], neurons[name], initial.potential, network.levels[name])
    return sums


def _reads(traced: fx.GraphModule) -> dict[str, set[str]]:
    """Find the layers of activations that each one reads; the input is ``"input"``."""
    modules = dict(traced.named_modules())
    sources: dict[fx.Node, set[str]] = {}
    reads: dict[str, set[str]] = {}
    for node in traced.graph.nodes:
        sources[node] = set().union(*(sources[source] for source in node.all_input_nodes))
        if node.op == "placeholder":
            sources[node] = {"input"}
        elif node.op == "call_module" and isinstance(modules[node.target], RECTIFIERS) and not node.meta["head"]:
            reads[str(node.target)] = sources[node]
            sources[node] = {str(node.target)}
    return reads


class _Events:
    """Counts the synaptic operations of a network, and finds out whose spikes cause them.

    Args:
        network: The network.
    """

    def __init__(self, network: SpikingNetwork) -> None:
        self.layers = synaptic_layers(network.encoder) | synaptic_layers(network.body)
        self.sops = dict.fromkeys(self.layers, 0)
        self.reads: dict[str, tuple[str, ...]] = {}
        self._synapses: dict[str, Synapses] = {}
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

    def watch(self, hooks: Hooks) -> None:
        """Follow the network."""
        for name, layer in self.layers.items():
            hooks.before(layer, partial(self._arrive, name))

    def _arrive(self, name: str, layer: Any, args: tuple[Tensor, ...]) -> None:
        if name not in self._synapses:
            self._synapses[name] = Synapses(layer, fan_out(layer, sample_shape(layer, args[0])))
        self.sops[name] += self._synapses[name].count(args[0])[0]

    def by_neurons(self) -> dict[str, int]:
        """Give the SOPs at layers that read one layer of neurons alone, by those neurons."""
        found: dict[str, int] = {}
        for name, reads in self.reads.items():
            if len(reads) == 1:
                found[reads[0]] = found.get(reads[0], 0) + self.sops[name]
        return found

    def shared(self) -> Iterator[tuple[str, tuple[str, ...], int]]:
        """Walk the layers whose SOPs belong to no neurons alone."""
        for name, sops in self.sops.items():
            reads = self.reads.get(name, ())
            if len(reads) != 1 and sops:
                yield name, reads, sops


def _layers(sums: dict[str, _Sums], reads: dict[str, set[str]], sops: dict[str, float]) -> tuple[LayerDiagnosis, ...]:
    """Bring sums into relation."""
    weighed: dict[str, float] = {}
    error: dict[str, float] = {}
    for one in sums.values():
        total = one.totals()
        weighed[one.base] = weighed.get(one.base, 0.0) + total.weighed
        error[one.base] = error.get(one.base, 0.0) + total.error
    before = {
        base: max((error[name] / weighed[name] for name in reads.get(base, ()) if weighed.get(name)), default=0.0)
        for base in weighed
    }
    layers = []
    for name, one in sums.items():
        total, mean = one.totals(), weighed[one.base]
        dead = (one.spikes == 0) & (one.activity > 0)
        gain = torch.as_tensor(channelwise(one.population.gain, one.spikes.dim() + 1)).to(one.activity).abs()
        missing = float((gain * one.activity * dead).sum())

        def relative(value: float, mean: float = mean) -> float | None:
            return value / mean if mean else None

        layers.append(
            LayerDiagnosis(
                name=name,
                kind=type(one.neurons).__name__,
                threshold_min=float(one.neurons.threshold.min()),
                threshold_max=float(one.neurons.threshold.max()),
                level_min=float(one.level.min()),
                level_max=float(one.level.max()),
                spread=one.spread(),
                activation=total.a / total.pairs,
                correlation=one.correlation(),
                error=relative(total.error),
                bias=relative(total.bias),
                clipping=relative(total.clipping),
                rounding=relative(total.rounding),
                missing=relative(missing),
                # Two populations share what comes in by their parts of the activation.
                added=relative(total.error - before[one.base] * total.weighed),
                spike_rate=total.spikes / (total.pairs * one.timesteps),
                sops=sops.get(name, 0.0),
                clipped=total.clipped / total.pairs,
                dead=float(dead.double().mean()),
                silent=float(((one.spikes == 0) & (one.activity == 0)).double().mean()),
                saturated=float((one.spikes == one.samples * one.timesteps).double().mean()),
            )
        )
    return tuple(layers)


class _Case(NamedTuple):
    """What a remedy goes by: the layer that loses the most, and the options that the network was made with."""

    layer: LayerDiagnosis
    timesteps: int
    threshold: str | None = None
    percent: float = 100.0
    per_channel: bool = False
    initial_potential: float = 0.5
    correction: str = "none"
    beta: float = 1.0
    compensate_leak: bool = True
    coding: str = "constant"

    @property
    def twice(self) -> int:
        return 2 * self.timesteps

    @property
    def higher(self) -> str:
        """A tenth of what is above the percentile."""
        return f"{100 - (100 - self.percent) / 10:.8g}"


_EXACT = ("max", "spike_norm", "learned")  # clip nothing on the calibration data


def _own_channels(case: _Case) -> bool:
    return not case.per_channel and case.threshold != "learned" and case.layer.spread >= _SPREAD


def _always(_: _Case) -> bool:
    return True


#: What a cause does, and what to try: when it applies, and the option.
_CAUSES: dict[str, tuple[str, list[tuple[Callable[[_Case], bool], str]]]] = {
    "clipping": (
        "activations above what a spike is worth are clipped",
        [
            (lambda case: case.threshold == "percentile" and case.percent < 100, "percent={case.higher}"),
            (lambda case: case.threshold not in ("mmse", *_EXACT), 'threshold="mmse"'),
            (lambda case: case.threshold == "mmse", "timesteps={case.twice}"),
            (lambda case: case.threshold in _EXACT, "calibration data with such inputs"),
        ],
    ),
    "rounding": (
        "rates are multiples of 1/{case.timesteps}",
        [
            (_own_channels, "per_channel=True"),
            (_always, "timesteps={case.twice}"),
            (lambda case: case.threshold in ("max", "spike_norm"), 'threshold="mmse"'),
            (lambda case: case.initial_potential != 0.5 and case.correction == "none", "initial_potential=0.5"),
            (lambda case: case.correction == "none", 'correction="potential"'),
        ],
    ),
    "timing": (
        "spikes arrive unevenly",
        [
            (lambda case: case.coding != "constant", 'coding="constant"'),
            (lambda case: case.correction not in ("potential", "channel_potential"), 'correction="potential"'),
            (_always, "timesteps={case.twice}"),
        ],
    ),
    "leak": (
        "potentials leak",
        [
            (_always, "beta=1.0"),
            (lambda case: not case.compensate_leak, "compensate_leak=True"),
            (lambda case: case.correction == "none", 'correction="bias"'),
        ],
    ),
    "dead": (
        "{case.layer.dead:.1%} of its neurons never spike, though the DNN's are active",
        [
            (_own_channels, "per_channel=True"),
            (_always, "timesteps={case.twice}"),
            (lambda case: case.correction == "none", 'correction="potential"'),
            (_always, "a weaker penalty in training"),
        ],
    ),
}
_MOST_REMEDIES = 3


def _diagnosis(
    layers: tuple[LayerDiagnosis, ...],
    synapses: tuple[SharedSynapses, ...],
    conversion: dict[str, Any],
    samples: int,
    sums: dict[str, _Sums],
) -> Diagnosis:
    """Find the layer that loses the most, why, and what to try."""
    timesteps = conversion["timesteps"]
    known = {name: value for name, value in conversion.items() if name in _Case._fields}
    worst = max(
        (layer for layer in layers if layer.added is not None), key=lambda layer: layer.added or 0.0, default=None
    )
    cause: str | None = None
    remedies: tuple[str, ...] = ()
    histogram: tuple[tuple[int, ...], ...] = ()
    if worst is None:
        advice = "The DNN is silent on this data."
    elif (worst.added or 0.0) <= _SMALL:
        largest = max(layer.error or 0.0 for layer in layers)
        advice = (
            f"No layer loses much: none adds more than {_SMALL:.0%} of its mean activation; the largest error is "
            f"{largest:.1%}."
        )
    else:
        case = _Case(worst, **known)
        cause = _cause(case)
        why, table = _CAUSES[cause]
        remedies = tuple(text.format(case=case) for applies, text in table if applies(case))[:_MOST_REMEDIES]
        tried = ", ".join(remedies[:-1]) + " or " * (len(remedies) > 1) + remedies[-1]
        advice = (
            f"Layer {worst.name!r} loses the most: it is off by {worst.error:.1%} of its mean activation, of which it "
            f"adds {worst.added:.1%}, mostly because {why.format(case=case)}. Try {tried}."
        )
    if worst is not None:
        columns = min(timesteps, _RATES) + 1
        histogram = tuple(map(tuple, sums[worst.name].counts.reshape(-1, columns).tolist()))
    name = None if worst is None else worst.name
    return Diagnosis(samples, timesteps, layers, synapses, name, cause, remedies, advice, histogram)


def _cause(case: _Case) -> str:
    layer = case.layer
    added, clipping, rounding = layer.added or 0.0, layer.clipping or 0.0, layer.rounding or 0.0
    parts = {"clipping": clipping, "rounding": rounding}
    parts["leak" if case.beta < 1 else "timing"] = added - clipping - rounding
    largest = max(parts, key=lambda cause: parts[cause])
    return "dead" if largest != "clipping" and (layer.missing or 0.0) > added / 2 else largest


def _inputs(data: Any, limit: int | None) -> Iterator[Tensor]:
    """Walk the first inputs in small batches."""
    expected = "Expected argument `data` to be a tensor, or to give tensors or (input, target) pairs, but got"
    if isinstance(data, Tensor):
        data = [data]
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        raise TypeError(f"{expected} a dataset, which gives single samples. Wrap it in a DataLoader.")
    if not isinstance(data, Iterable):
        loader = ", which is none itself: pass its `test_dataloader()`" if hasattr(data, "test_dataloader") else ""
        raise TypeError(f"{expected} {type(data).__name__}{loader}.")
    shape, left = None, limit
    for batch in data:
        inputs = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
        if not isinstance(inputs, Tensor) or inputs.dim() == 0:
            raise TypeError(f"{expected} a batch of type {type(inputs).__name__}.")
        inputs = inputs[:left]
        if not len(inputs):
            continue
        shape = inputs.shape[1:] if shape is None else shape
        if inputs.shape[1:] != shape:
            raise ValueError(
                f"Expected argument `data` to hold inputs of one shape, but got {tuple(shape)} and "
                f"{tuple(inputs.shape[1:])}."
            )
        yield from inputs.split(_CHUNK)  # type: ignore[no-untyped-call]
        if left is not None:
            left -= len(inputs)
            if left == 0:
                return


def _device(module: nn.Module) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def _by_layer(axes: Axes, layers: int) -> None:
    """Let the first layer stand on top."""
    axes.set_ylim(max(layers, 3) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def _percent(share: float | None, sign: str = "") -> str:
    if share is None:
        return ""
    return f"{100 * share:{sign}.2f} %" if share else "0"


def _short(percent: float) -> str:
    """Write a share next to its bar; nothing next to none."""
    return f"{percent:.2g}" if 0 < percent < 10 else f"{percent:.0f}" if percent else ""
