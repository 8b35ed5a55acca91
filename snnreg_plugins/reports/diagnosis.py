"""Where an exported network loses what its DNN computes, layer by layer, and which option to try."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from snnreg_plugins._batches import Calibration, inputs_of
from snnreg_plugins._files import write_json
from snnreg_plugins._models import device_of
from snnreg_plugins._pictures import BLUE, GREY, ORANGE, SKY, drawn, legend_below
from snnreg_plugins._text import in_short, new_table, span
from snnreg_plugins.export.trace import trace
from snnreg_plugins.reports.compare import CELLS, LEVELS, Comparison, Events, comparisons, reads
from snnreg_plugins.reports.remedies import LayerError, advise
from snnreg_plugins.reports.report import run_as
from snnreg_plugins.spiking.network import SpikingNetwork
from snnreg_plugins.watching.hooks import Hooks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import Console
    from rich.table import Table


# Samples that are run at once.
_CHUNK = 64


# An added error below is no loss to speak of.
_SMALL = 0.01


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
        sops: SOPs/sample at the synaptic layers that read this layer alone; None if all that read it are shared.
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
    sops: float | None
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
        write_json(path, self.to_dict())

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
        """Draw errors and shares by layer, and the rates of the worst layer, to a PNG (or what the suffix says).

        Raises:
            ModuleNotFoundError: If matplotlib is missing.
        """
        with drawn(path, max(4.0, 1.8 + 0.4 * len(self.layers))) as (errors, shares, rates):
            self._draw_errors(errors)
            self._draw_shares(shares)
            self._draw_rates(rates)

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
                "" if layer.sops is None else in_short(layer.sops),
                *map(_percent, shares),
            )
        if self.synapses:
            table.add_section()
        for synapses in self.synapses:
            whose = "shared" if synapses.reads else "input"
            table.add_row(f"  {synapses.name} ({whose})", "", "", in_short(synapses.sops))
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
        axes.barh(names, before, height=0.6, color="#BBBBBB", label="of the layers before")
        bars = axes.barh(names, added, height=0.6, left=before, color=BLUE, label="added here")
        axes.bar_label(bars, [f"{error:.1f}" for error in errors], padding=4, color=GREY)
        axes.margins(x=0.15)
        _by_layer(axes, len(names))
        axes.set(title=f"Error by layer at T = {self.timesteps}", xlabel="Mean error / mean activation (%)")
        legend_below(axes)

    def _draw_shares(self, axes: Axes) -> None:
        drawn_shares: tuple[tuple[str, list[float], dict[str, Any]], ...] = (
            ("clipped", [layer.clipped for layer in self.layers], {"color": SKY}),
            ("dead", [layer.dead for layer in self.layers], {"color": ORANGE, "hatch": "////"}),
            ("saturated", [layer.saturated for layer in self.layers], {"color": GREY, "hatch": "...."}),
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
        axes.set(title="What rates cannot express", xlabel="Share of activations (clipped) or neurons (%)")
        axes.tick_params(axis="y", labelleft=False)  # the same layers as in the panel to the left
        legend_below(axes, columns=3)

    def _draw_rates(self, axes: Axes) -> None:
        from matplotlib.colors import LogNorm

        axes.set(
            title="Rates" if self.worst is None else f"Rates of layer {self.worst}",
            xlabel="Activation / level",
            ylabel="Spikes / step",
        )
        axes.set(xlim=(0, LEVELS), ylim=(-0.05, 1.05))
        axes.set_xticks([0, 0.5, 1, LEVELS], ["0", "0.5", "1", f"≥ {LEVELS}"])
        axes.plot([0, 1, LEVELS], [0, 1, 1], color=ORANGE, linewidth=1.8, label="ideal")
        if self.histogram:
            counts = torch.tensor(self.histogram, dtype=torch.float64).T
            rates = len(counts) - 1
            activations, spikes = torch.linspace(0, LEVELS, CELLS + 1), (torch.arange(rates + 2) - 0.5) / rates
            # Cells without any are left white.
            shown = counts.where(counts > 0, torch.nan)
            norm = LogNorm(1, max(10, int(counts.max())))
            mesh = axes.pcolormesh(
                activations.numpy(), spikes.numpy(), shown.numpy(), norm=norm, cmap="Blues", zorder=-1
            )
            axes.get_figure().colorbar(mesh, ax=axes, label="Neurons × samples", pad=0.02)  # type: ignore[union-attr]
            axes.set_ylim(float(spikes[0]), float(spikes[-1]))
            axes.grid(visible=False)
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

    What makes at least half as much is named too. Options that ``network`` was made with already
    (``network.conversion``) are not suggested.

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
        >>> result.remedies
        ('per_channel=True', 'timesteps=8', 'threshold="mmse"')
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
    compared, events = comparisons(traced, network), Events(network)
    hooks = Hooks()
    try:
        for comparison in compared.values():
            comparison.watch(hooks)
        events.watch(hooks)
        with torch.no_grad(), run_as(network, timesteps):
            for inputs in _inputs(data, limit_samples):
                traced(inputs.to(device_of(traced)))
                network(inputs.to(device_of(network)))
                for comparison in compared.values():
                    comparison.add(inputs, timesteps)
                samples += len(inputs)
    finally:
        hooks.remove()
    if not samples:
        raise ValueError("Expected argument `data` to hold at least one sample, but it is empty.")
    layers = _layers(compared, reads(traced), events)
    worst = max((one for one in layers if one.added is not None), key=lambda one: one.added or 0.0, default=None)
    cause, remedies, advice = _advice(worst, network)
    return Diagnosis(
        samples=samples,
        timesteps=timesteps,
        layers=layers,
        synapses=tuple(SharedSynapses(name, read, sops / samples) for name, read, sops in events.shared()),
        worst=None if worst is None else worst.name,
        cause=cause,
        remedies=remedies,
        advice=advice,
        histogram=() if worst is None else tuple(map(tuple, compared[worst.name].counts.tolist())),
    )


def _layers(compared: dict[str, Comparison], before: dict[str, set[str]], events: Events) -> tuple[LayerDiagnosis, ...]:
    """Bring sums into relation."""
    means: dict[str, float] = {}
    errors: dict[str, float] = {}
    for one in compared.values():
        total = one.totals()
        means[one.base] = means.get(one.base, 0.0) + total.weighed
        errors[one.base] = errors.get(one.base, 0.0) + total.error
    given = {
        base: max((errors[name] / means[name] for name in before.get(base, ()) if means.get(name)), default=0.0)
        for base in means
    }
    layers = []
    for name, one in compared.items():
        total, sops = one.totals(), events.of(name)
        relative = partial(_over, means[one.base])
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
                missing=relative(one.missing()),
                # Two populations share what comes in by their parts of the activation.
                added=relative(total.error - given[one.base] * total.weighed),
                spike_rate=total.spikes / (total.pairs * one.timesteps),
                sops=None if sops is None else sops / one.samples,
                clipped=total.clipped / total.pairs,
                dead=_mean(one.dead()),
                silent=_mean((one.spikes == 0) & (one.activity == 0)),
                saturated=_mean(one.spikes == one.samples * one.timesteps),
            )
        )
    return tuple(layers)


def _over(mean: float, value: float) -> float | None:
    return value / mean if mean else None


def _mean(neurons: Tensor) -> float:
    return float(neurons.double().mean())


def _advice(worst: LayerDiagnosis | None, network: SpikingNetwork) -> tuple[str | None, tuple[str, ...], str]:
    """Say why the layer that loses the most does so, and what to try."""
    if worst is None:
        return None, (), "The DNN is silent on this data."
    if (worst.added or 0.0) <= _SMALL:
        return None, (), f"No layer loses much: none adds an error of more than {_SMALL:.0%} of its mean activation."
    given = {**network.conversion, "timesteps": network.timesteps, **asdict(worst)}
    cause, why, remedies = advise(LayerError(**{name: given[name] for name in LayerError._fields if name in given}))
    tried = ", ".join(remedies[:-1]) + " or " * (len(remedies) > 1) + remedies[-1]
    all_of_it = "all" if worst.added == worst.error else f"{worst.added:.1%}"
    return (
        cause,
        remedies,
        f"Layer {worst.name!r} loses the most: it is off by {worst.error:.1%} of its mean activation and adds "
        f"{all_of_it} of that itself, mostly because {why}. Try {tried}.",
    )


def _inputs(data: Calibration, limit: int | None) -> Iterator[Tensor]:
    """Walk the first inputs in small batches."""
    shape, left = None, limit
    for inputs in inputs_of(data, argument="data"):
        shape = inputs.shape[1:] if shape is None else shape
        if inputs.shape[1:] != shape:
            raise ValueError(
                f"Expected argument `data` to hold inputs of one shape, but got {tuple(shape)} and "
                f"{tuple(inputs.shape[1:])}."
            )
        yield from inputs[:left].split(_CHUNK)  # type: ignore[no-untyped-call]
        if left is not None:
            left -= min(left, len(inputs))
            if left == 0:
                return


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
    return f"{percent:#.2g}" if 0 < percent < 10 else f"{percent:.0f}" if percent else ""
