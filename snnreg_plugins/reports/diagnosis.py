"""What each layer of an exported network loses of what its DNN computes: numbers, tables, figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from snnreg_plugins._pictures import BLUE, GREY, ORANGE, SKY, legend_below, literal
from snnreg_plugins._text import Column, Note, Row, Table, in_percent_or_none, in_rate, in_short, span
from snnreg_plugins.reports.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: The histogram: cells of activation / level up to some levels and above, and the most cells of the rate.
CELLS, LEVELS, RATES = 30, 1.5, 32


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
class Diagnosis(Result):
    """Where an exported network loses what its DNN computes; plain numbers. Made by :func:`~snnreg_plugins.diagnose`.

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

    def shown(self) -> Iterable[Table | Note]:
        """Give a table of the neurons, one of their errors, the advice, and what they mean."""
        yield self.neurons()
        yield self.errors().select(
            ("Correlation", "Bias", "Error", "Clipping", "Rounding", "Added"),
            "Rate × level beside the DNN's activation",
        )
        yield Note(self.advice, "strong")
        yield Note("\n".join(self.notes()), "small")

    def neurons(self) -> Table:
        """Give the table of neurons: how often they spike, and which of them cannot express what they should."""
        rows = [
            Row(
                (
                    layer.name,
                    (layer.threshold_min, layer.threshold_max),
                    layer.spike_rate,
                    layer.sops,
                    layer.clipped,
                    layer.dead,
                    layer.silent,
                    layer.saturated,
                ),
                layer.name == self.worst,
            )
            for layer in self.layers
        ]
        for synapses in self.synapses:
            whose = "shared" if synapses.reads else "input"
            name = f"{synapses.name} ({whose})"
            rows.append(Row((name, None, None, synapses.sops, None, None, None, None), group=1))
        return Table(
            f"Neurons at T = {self.timesteps}",
            (
                Column("Layer"),
                Column("Threshold", lambda bounds: span(*bounds)),
                Column("Rate", in_rate),
                Column("SOPs", in_short),
                *(Column(title, in_percent_or_none) for title in ("Clipped", "Dead", "Silent", "Saturated")),
            ),
            tuple(rows),
            sign=">",
        )

    def errors(self) -> Table:
        """Give the table of what layers lose, and of the neurons that cannot express what they should."""
        signed = partial(in_percent_or_none, sign="+")
        return Table(
            f"Rate × level beside the DNN's activation, {self.samples:,} samples",
            (
                Column("Layer"),
                Column("Correlation", "{:.4f}".format),
                Column("Bias", signed),
                Column("Error", in_percent_or_none),
                Column("Clipping", in_percent_or_none),
                Column("Rounding", in_percent_or_none),
                Column("Added", signed),
                Column("Dead", in_percent_or_none),
                Column("Saturated", in_percent_or_none),
            ),
            tuple(
                Row(
                    (
                        layer.name,
                        layer.correlation,
                        layer.bias,
                        layer.error,
                        layer.clipping,
                        layer.rounding,
                        layer.added,
                        layer.dead,
                        layer.saturated,
                    ),
                    layer.name == self.worst,
                )
                for layer in self.layers
            ),
            sign=">",
        )

    def notes(self) -> tuple[str, ...]:
        """Say what the numbers mean."""
        return (
            "Clipped: activations above what a spike is worth. Dead: never spikes, but the DNN's activation is not "
            "always 0. Silent: neither. Saturated: spikes in every step.",
            "Errors are those of rate × level against the DNN's activation, relative to its mean. Clipping, rounding: "
            "what they would be under even currents. Added: above the error of the layers before; the layer that adds "
            f"the most is marked. {self.samples:,} samples.",
        )

    def panels(self) -> tuple[float, Sequence[Callable[[Axes], None]]]:
        """Draw errors and shares by layer, and the rates of the worst layer."""
        return max(4.0, 1.8 + 0.4 * len(self.layers)), (self._draw_errors, self._draw_shares, self._draw_rates)

    def _draw_errors(self, axes: Axes) -> None:
        names = range(len(self.layers))
        errors = [100 * (layer.error or 0.0) for layer in self.layers]
        added = [
            min(error, max(0.0, 100 * (layer.added or 0.0))) for error, layer in zip(errors, self.layers, strict=True)
        ]
        before = [error - own for error, own in zip(errors, added, strict=True)]
        axes.barh(names, before, height=0.6, color="#BBBBBB", label="of the layers before")
        bars = axes.barh(names, added, height=0.6, left=before, color=BLUE, label="added here")
        axes.bar_label(bars, [f"{error:.1f}" for error in errors], padding=4, color=GREY)
        axes.set_yticks(names, [literal(layer.name) for layer in self.layers])
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
        axes.set_yticks(range(len(self.layers)), [literal(layer.name) for layer in self.layers])
        axes.set_xlim(0, max(1.0, 118 * most))
        _by_layer(axes, len(self.layers))
        axes.set(title="What rates cannot express", xlabel="Share of activations (clipped) or neurons (%)")
        axes.tick_params(axis="y", labelleft=False)  # the same layers as in the panel to the left
        legend_below(axes, columns=3)

    def _draw_rates(self, axes: Axes) -> None:
        from matplotlib.colors import LogNorm

        axes.set(
            title="Rates" if self.worst is None else f"Rates of layer {literal(self.worst)}",
            xlabel="Activation / level",
            ylabel="Spikes / step",
        )
        axes.set(xlim=(0, LEVELS), ylim=(-0.05, 1.05))
        axes.set_xticks([0, 0.5, 1, LEVELS], ["0", "0.5", "1", f"≥ {LEVELS}"])
        axes.plot([0, 1, LEVELS], [0, 1, 1], color=ORANGE, linewidth=1.8, label="ideal")
        if self.histogram:
            counts = list(zip(*self.histogram, strict=True))
            rates = len(counts) - 1
            activations = [LEVELS * cell / CELLS for cell in range(CELLS + 1)]
            spikes = [(row - 0.5) / rates for row in range(rates + 2)]
            # Cells without any are left white.
            shown = [[count or float("nan") for count in row] for row in counts]
            norm = LogNorm(1, max(10, *map(max, counts)))
            mesh = axes.pcolormesh(activations, spikes, shown, norm=norm, cmap="Blues", zorder=-1)
            axes.get_figure().colorbar(mesh, ax=axes, label="Neurons × samples", pad=0.02)  # type: ignore[union-attr]
            axes.set_ylim(spikes[0], spikes[-1])
            axes.grid(visible=False)
        legend_below(axes)


def _by_layer(axes: Axes, layers: int) -> None:
    """Let the first layer stand on top."""
    axes.set_ylim(max(layers, 3) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def _short(percent: float) -> str:
    """Write a share next to its bar; nothing next to none."""
    return f"{percent:#.2g}" if 0 < percent < 10 else f"{percent:.0f}" if percent else ""
