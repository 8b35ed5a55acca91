"""What would save the most of what a spiking network spends: what was tried, and what each try saves and loses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from snnreg_plugins._pictures import BLUE, GREY, ORANGE, SKY, legend_below, literal
from snnreg_plugins._text import (
    Column,
    Note,
    Row,
    Table,
    estimate,
    in_percent,
    in_short,
    tick_count,
    tick_percent,
)
from snnreg_plugins.reports.result import Result
from snnreg_plugins.reports.verdict import written

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from snnreg_plugins.spiking.network import SpikingNetwork

#: Kinds of what is tried, and what they are in a picture.
KINDS = {
    "timesteps": "fewer steps",
    "thresholds": "thresholds",
    "both": "both",
    "layer": "of one layer",
    "exit": "early exit",
}
# Of accuracy, below which a picture shows no way: it would show no difference between the others.
_SHOWN = 0.1
_LOOKS: dict[str, dict[str, Any]] = {
    "timesteps": {"color": BLUE, "marker": "o"},
    "thresholds": {"color": ORANGE, "marker": "^"},
    "both": {"color": SKY, "marker": "D"},
    "layer": {"color": "#009E73", "marker": "s"},
    "exit": {"color": "#CC79A7", "marker": "P"},
}


@dataclass(frozen=True)
class Saving:
    """One way to spend less, with what it saves and loses on the samples it was measured on.

    Args:
        kind: One of :data:`KINDS`.
        timesteps: T.
        factors: Factors of thresholds, by layer; what a spike is worth grows as much, so that rates mean the same.
        margins: Margins of early exit, None where no sample may leave at a step; empty without.
        agreement: Share of the calibration samples that keep their class where margins let them leave; else None.
        score: The score.
        difference: To that of the network as it is.
        error: Standard error of that difference, of the same samples; None if the score is no accuracy of samples.
        sops: SOPs/sample.
        energy: What is spent on a sample, in the result's unit; None if that could not be priced.
        saved_sops: Share of the SOPs that is saved; 0 if there are none.
        saved_energy: Share of the energy that is saved; None if that could not be priced.
    """

    kind: str
    timesteps: int
    factors: dict[str, float]
    margins: tuple[float | None, ...]
    agreement: float | None
    score: float
    difference: float
    error: float | None
    sops: float
    energy: float | None
    saved_sops: float
    saved_energy: float | None

    @property
    def remedy(self) -> str:
        """What to do, in words."""
        if self.kind == "exit":
            return f"early exit, where {100 * (self.agreement or 0.0):.4g} % keep their class"
        steps = [f"T = {self.timesteps}"] if self.kind in ("timesteps", "both") else []
        factors = dict.fromkeys(self.factors.values())
        whose = f"thresholds of {next(iter(self.factors))}" if self.kind == "layer" else "thresholds"
        return ", ".join([*steps, *(f"{whose} × {factor:g}" for factor in factors)])

    def apply(self, network: SpikingNetwork) -> None:
        """Do it, to the network as it was when it was measured, in place.

        Args:
            network: The network.

        Raises:
            ValueError: If the network has no layers of such names.
        """
        # Here, as results are read without what runs networks.
        from snnreg_plugins.export.rebalance import Rebalance
        from snnreg_plugins.spiking.network import require_network

        require_network(network)
        if self.factors:
            rebalance = Rebalance(network)
            unknown = sorted(set(self.factors) - set(rebalance.layers))
            if unknown:
                raise ValueError(
                    f"Expected argument `network` to have layers of neurons named {unknown}, but it has "
                    f"{rebalance.layers}. Give the network that was measured."
                )
            rebalance.scale(self.factors)
            before = network.conversion.get("threshold_factors", {})
            network.conversion["threshold_factors"] = before | {
                name: before.get(name, 1.0) * factor for name, factor in self.factors.items()
            }
        if self.timesteps != network.timesteps:
            network.timesteps = self.timesteps
        if self.margins:
            network.exit_margins = [math.inf if margin is None else margin for margin in self.margins]


@dataclass(frozen=True)
class Savings(Result):
    """What would save the most next, by trying. Made by :func:`~snnreg_plugins.savings`.

    Args:
        samples: Number of samples that all was measured on.
        timesteps: T of the network as it is.
        score_name: What is scored.
        is_accuracy: Whether that is an accuracy.
        score: That of the network as it is.
        sops: SOPs/sample of the network as it is.
        energy: What it spends on a sample as it is, in ``unit``.
        unit: Of what is spent, ``"J"`` unless the model of cost has another one.
        source: Where the prices of that were published.
        at_most: What the score may fall by: of an accuracy as a share (0.01 is a point), of others in shares of it.
        dearest: The layer that spends the most energy.
        dearest_share: Its share.
        dearest_macs: Whether that is of MACs of real-valued input, which nothing that is tried changes.
        tried: All that was tried.
        suggested: Which of them save the most at no larger fall: of each kind one, the best first.
    """

    samples: int
    timesteps: int
    score_name: str
    is_accuracy: bool
    score: float
    sops: float
    energy: float
    unit: str
    source: str
    at_most: float
    dearest: str
    dearest_share: float
    dearest_macs: bool
    tried: tuple[Saving, ...]
    suggested: tuple[int, ...]

    def misfit(self) -> str | None:
        """Tell whether all that is suggested was tried."""
        if all(0 <= index < len(self.tried) for index in self.suggested):
            return None
        return f"it suggests {list(self.suggested)} of {len(self.tried)} that were tried."

    @property
    def suggestions(self) -> tuple[Saving, ...]:
        """What saves the most, of each kind one, the best first; each has ``apply(network)``."""
        return tuple(self.tried[index] for index in self.suggested)

    def shown(self) -> Iterable[Table | Note]:
        """Give the advice, what is suggested, and what it means."""
        yield Note(self.advice(), "strong")
        if self.suggested:
            yield self.table(self.suggestions, f"What saves the most at a fall of at most {self._allowed()}")
        yield Note("\n".join(self.notes()), "small")

    def advice(self) -> str:
        """Say what to try next, and what it saves and costs."""
        floor = (
            f" Layer {self.dearest!r} spends {_whole(self.dearest_share)} of the energy, on MACs of real-valued input, "
            "which nothing of this changes."
            if self.dearest_macs
            else f" Layer {self.dearest!r} spends the most energy, {_whole(self.dearest_share)}."
        )
        if not self.suggested:
            return f"None of {len(self.tried)} ways saves anything at a fall of at most {self._allowed()}.{floor}"
        best = self.suggestions[0]
        energy = "" if best.saved_energy is None else f" and {_whole(best.saved_energy)} of the energy"
        return (
            f"Next: {best.remedy}. It saves {_whole(best.saved_sops)} of the SOPs{energy}, {self._fall(best)}.{floor}"
        )

    def table(self, some: Sequence[Saving], caption: str) -> Table:
        """Give the table of some ways."""
        rows = [
            ("as it is", self.score, None, self.sops, None, self.energy, None),
            *(
                (s.remedy, s.score, (s.difference, s.error), s.sops, s.saved_sops, s.energy, s.saved_energy)
                for s in some
            ),
        ]
        return Table(
            caption,
            (
                Column(""),
                Column(self.score_name.replace("_", " ").capitalize(), self._write),
                Column("Points" if self.is_accuracy else "Difference", lambda pair: self._difference(*pair)),
                Column("SOPs", in_short),
                Column("Saved", _whole),
                Column("Energy" if self.unit == "J" else self.unit, lambda value: written(value, self.unit)),
                Column("Saved energy", _whole),
            ),
            tuple(Row(row, index == 1, min(index, 1)) for index, row in enumerate(rows)),
        )

    def notes(self) -> tuple[str, ...]:
        """Say what the numbers mean."""
        return (
            f"Each of {len(self.tried)} ways was run on the same {self.samples:,} samples, and counted; ± is the "
            "standard error of the difference. What is best of many on some samples is a little worse on others. "
            "`suggestions[0].apply(network)` does the first.",
            estimate(self.source),
        )

    def _write(self, score: float) -> str:
        return in_percent(score) if self.is_accuracy else f"{score:.4g}"

    def _difference(self, difference: float, error: float | None) -> str:
        if not self.is_accuracy:
            return f"{difference:+.3g}".replace("-", "−")
        sure = "" if error is None else f" ± {100 * error:.2f}"
        return f"{100 * difference:+.2f}{sure}".replace("-", "−")

    def _fall(self, saving: Saving) -> str:
        unit = " points" if self.is_accuracy else f" of {self.score_name}"
        return f"at {self._difference(saving.difference, saving.error)}{unit}"

    def _allowed(self) -> str:
        if self.is_accuracy:
            return f"{100 * self.at_most:g} points" if self.at_most != 0.01 else "a point"
        return f"{self.at_most:.3g} of the {self.score_name}"

    # What is drawn.

    def panels(self) -> tuple[float, Sequence[Callable[[Axes], None]]]:
        """Draw scores over SOPs of all that was tried, and what suggestions save."""
        return max(4.0, 2.0 + 0.5 * len(self.suggested)), (self._draw_tried, self._draw_saved)

    def _draw_tried(self, axes: Axes) -> None:
        for kind, label in KINDS.items():
            some = [one for one in self.tried if one.kind == kind]
            if some:
                x, y = [one.sops for one in some], [one.score for one in some]
                axes.plot(x, y, linestyle="none", markersize=5, alpha=0.8, label=label, **_LOOKS[kind])
        axes.plot([self.sops], [self.score], marker="*", markersize=13, color=GREY, linestyle="none", label="as it is")
        for saving in self.suggestions:
            axes.plot([saving.sops], [saving.score], marker="o", markersize=12, markerfacecolor="none", color=GREY)
        lower = [one for one in self.tried if self.is_accuracy and one.score < self.score - _SHOWN]
        if lower:
            axes.set_ylim(bottom=self.score - _SHOWN - 0.005)
        more = f"; {len(lower)} score lower" if lower else ""
        axes.set(
            title=f"{len(self.tried)} ways that were tried{more}",
            xlabel="SOPs / sample",
            ylabel=self.score_name.replace("_", " "),
        )
        axes.xaxis.set_major_formatter(lambda value, _: tick_count(max(value, 0.0)))
        axes.yaxis.set_major_formatter(lambda value, _: tick_percent(value) if self.is_accuracy else f"{value:.3g}")
        axes.set_xlim(left=0)
        legend_below(axes, columns=3)

    def _draw_saved(self, axes: Axes) -> None:
        places = range(len(self.suggested))
        for shift, label, shares, colour in (
            (-0.2, "SOPs", [one.saved_sops for one in self.suggestions], BLUE),
            (0.2, "energy", [one.saved_energy or 0.0 for one in self.suggestions], SKY),
        ):
            bars = axes.barh([place + shift for place in places], shares, height=0.36, color=colour, label=label)
            axes.bar_label(bars, list(map(_whole, shares)), padding=3, color=GREY)
        names = [f"{literal(one.remedy)}\n{self._difference(one.difference, one.error)}" for one in self.suggestions]
        axes.set_yticks(list(places), names)
        axes.set_ylim(max(len(self.suggested), 3) - 0.5, -0.5)
        axes.set_xlim(0, 1.12)
        axes.xaxis.set_major_formatter(lambda value, _: tick_percent(value))
        axes.grid(visible=False, axis="y")
        unit = "points" if self.is_accuracy else self.score_name
        axes.set(title=f"Saved at a fall of at most {self._allowed()}", xlabel=f"Share saved; below the names: {unit}")
        legend_below(axes)


def _whole(share: float) -> str:
    return f"{100 * share:.0f} %"
