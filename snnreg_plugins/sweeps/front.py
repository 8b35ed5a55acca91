"""The front of score and cost that the trials of a sweep reach: means over seeds, and what is best."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from snnreg_plugins._checks import as_flag, shown
from snnreg_plugins._files import added_later
from snnreg_plugins._text import (
    Column,
    Note,
    Row,
    Table,
    estimate,
    in_joules,
    in_percent,
    in_short,
    joules_of,
    over,
    tick_count,
    tick_percent,
    times,
)
from snnreg_plugins.functional.cost_models import COST_MODELS
from snnreg_plugins.functional.energy import ENERGY_TABLES
from snnreg_plugins.reports.result import Result
from snnreg_plugins.reports.tables import DENSE, SPARSE
from snnreg_plugins.sweeps import results, scatter
from snnreg_plugins.sweeps.points import FrontPoint, Mean, points_of
from snnreg_plugins.sweeps.results import FAILED, NONE, NONZERO
from snnreg_plugins.sweeps.scatter import Cloud, Scatter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Losses of accuracy, in points, at which penalties are compared.
LOSSES = (0.25, 0.5, 1.0)
# How far below the reference accuracies are drawn: what lost more is of no use, and takes the room of the others.
_SHOWN = 0.06


class _At(NamedTuple):
    """A point of a figure: where it is, and how far seeds are spread there."""

    x: float
    y: float
    x_spread: float
    y_spread: float


@dataclass(frozen=True)
class Front(Result):
    """What the trials of a sweep score and spend; plain numbers. Made by :func:`find_front`.

    Args:
        points: All that was trained, exported and run.
        reference: The score that losses are told from.
        reference_is_none: Whether that is the DNN's without a penalty; else it is the best one of all DNNs (without a
            DNN, of all spiking networks).
        score_name: What is scored.
        higher_is_better: Whether a higher score is better.
        tables: Names of the energy tables.
        failed: How many trials failed.
        counts_zero_weights: Whether a weight of exactly zero is a synapse in operations and costs.
    """

    points: tuple[FrontPoint, ...]
    reference: float
    reference_is_none: bool
    score_name: str
    higher_is_better: bool
    tables: tuple[str, ...]
    failed: int
    counts_zero_weights: bool = added_later(True)

    @property
    def labels(self) -> list[str]:
        """The ways to train, in their order."""
        return list(dict.fromkeys(point.label for point in self.points))

    @property
    def is_accuracy(self) -> bool:
        """Whether the score is an accuracy, so that losses are points."""
        return self.score_name == "accuracy"

    def best(self, cost: str = "sops") -> list[FrontPoint]:
        """Give the Pareto front: what no other point beats in mean score and cost; the cheapest first."""
        return self._best(self.points, cost)

    def best_of(self, label: str, cost: str = "sops") -> list[FrontPoint]:
        """Give the Pareto front of one way to train."""
        return self._best([point for point in self.points if point.label == label], cost)

    def _best(self, points: Iterable[FrontPoint], cost: str) -> list[FrontPoint]:
        known = [point for point in points if getattr(point, cost) is not None]
        return _pareto(known, lambda point: (getattr(point, cost).value, self._gain(point.score)))

    def _gain(self, score: Mean) -> float:
        """Give a score, the larger the better."""
        return score.value if self.higher_is_better else -score.value

    def cheapest(self, label: str, loss: float) -> FrontPoint | None:
        """Find what needs the fewest SOPs at a loss of that many points at most; measured, not interpolated."""
        near = [point for point in self._within(loss) if point.label == label]
        return min(near, key=lambda point: point.sops.value, default=None)

    def _within(self, loss: float) -> list[FrontPoint]:
        # An accuracy is a share of samples: what is lost by rounding is none of them.
        return [point for point in self.points if point.score.value >= self.reference - loss / 100 - 1e-9]

    # What is shown.

    def write_score(self, score: float) -> str:
        """Write a score."""
        return in_percent(score) if self.is_accuracy else f"{score:.4g}"

    @property
    def score_title(self) -> str:
        """The name of the score as it is shown."""
        words = "MSE" if self.score_name == "mse" else self.score_name.replace("_", " ")
        return words[:1].upper() + words[1:]

    def shown(self) -> Iterable[Table | Note]:
        """Give the SOPs of each penalty at some losses, the front, and what they mean."""
        if self.is_accuracy:
            yield self.at_losses()
        yield self.short_table()
        if self.is_accuracy and (table := self.by_model()).rows:
            yield table.select(("SNN", "/ none", SPARSE, DENSE, "Penalty", "T"), table.caption)
        yield Note("\n".join(self.notes()), "small")

    def at_losses(self) -> Table:
        """Give the fewest SOPs of each penalty at some losses of accuracy."""
        rows = [(label, *(self.cheapest(label, loss) for loss in LOSSES)) for label in self.labels]
        return Table(
            f"Fewest SOPs per sample at a loss to {self.reference_title}, {self.write_score(self.reference)}",
            (Column("Penalty"), *(Column(_in_points(loss), _sops) for loss in LOSSES)),
            tuple(Row(row, row[2] is not None and row[2] == self.least(LOSSES[1])) for row in rows),
        )

    def choices(self) -> Table:
        """Give what the fewest SOPs of :meth:`at_losses` are reached with."""
        found = [(label, loss, self.cheapest(label, loss)) for label in self.labels for loss in LOSSES]
        rows = [
            (f"{label}, {_in_points(loss)}", *self._cells(point)) for label, loss, point in found if point is not None
        ]
        columns = ("Setting", "Export", "T", self.score_title, "SOPs", "Energy")
        return Table(
            "What they are reached with",
            (Column("Penalty, loss"), *(Column(name, words=name in ("Setting", "Export")) for name in columns)),
            tuple(Row(row, group=self.labels.index(one[0])) for row, one in zip(rows, _known(found), strict=True)),
        )

    def _cells(self, point: FrontPoint) -> tuple[Any, ...]:
        """Give what a point is reached with, and what it scores and spends."""
        spent = (point.sops.written(in_short), point.energy.written(in_joules))
        return (point.setting, point.export, point.timesteps, self._spread(point.score), *spent)

    def by_model(self, losses: Sequence[float] = LOSSES[1:2]) -> Table:
        """Give what costs the least by each model, over the unpenalised network, and over its own DNN."""
        models = dict.fromkeys(cost.model for point in self.points for cost in point.costs)
        found = [(loss, model, self._least_by(model, loss)) for loss in losses for model in models]
        rows = [
            Row((f"{cells[0]}, {_in_points(loss)}" if len(losses) > 1 else cells[0], *cells[1:]), group=int(100 * loss))
            for loss, model, cells in found
            if cells
        ]
        words = ("Penalty", "Setting", "Export")
        said = f" at {_in_points(losses[0])} of loss" if len(losses) == 1 else ""
        return Table(
            f"The least by each model of cost{said}, per sample",
            (
                Column("Model"),
                Column("SNN"),
                *(Column(title, times) for title in ("/ none", SPARSE, DENSE)),
                *(Column(title, words=title in words) for title in (*words, "T", self.score_title)),
            ),
            tuple(rows),
        )

    def _least_by(self, model: str, loss: float) -> tuple[Any, ...]:
        """Give the cells of what costs the least by a model at a loss; none where nothing is within it."""
        costs = [(point, cost) for point in self._within(loss) if (cost := point.cost(model)) is not None]
        if not costs:
            return ()
        point, cost = min(costs, key=lambda one: one[1].snn.value)
        unit = COST_MODELS[model].unit if model in COST_MODELS else "J"
        none = min((one.snn.value for other, one in costs if other.label == NONE), default=None)
        dnns = [dnn and over(cost.snn.value, dnn.value) for dnn in (cost.sparse, cost.dense)]
        return (
            model if unit == "J" else f"{model}, in {unit}",
            cost.snn.written(in_joules if unit == "J" else in_short),
            over(cost.snn.value, none),
            *dnns,
            *(point.label, point.setting, point.export, point.timesteps, self._spread(point.score)),
        )

    def least(self, loss: float) -> FrontPoint | None:
        """Find what needs the fewest SOPs of all at a loss of that many points at most."""
        found = [point for label in self.labels if (point := self.cheapest(label, loss)) is not None]
        return min(found, key=lambda point: point.sops.value, default=None)

    def short_table(self, most: int | None = None) -> Table:
        """Give the front without energies, as a terminal has room for it; ``most`` is that of :meth:`front_table`."""
        columns = ("Setting", "Export", "T", self.score_title, "SOPs")
        return self.front_table(most).select(columns, self.front_title)

    def front_table(self, most: int | None = None) -> Table:
        """Give the Pareto front of score and SOPs; of accuracies, those that figures show, if there are any.

        Args:
            most: How many rows at most, evenly taken; all if None.
        """
        best = self.best()
        if self.is_accuracy:
            best = [point for point in best if point.score.value >= self.reference - _SHOWN] or best
        if most is not None and len(best) > most:
            kept = {round(index * (len(best) - 1) / (most - 1)) for index in range(most)} if most > 1 else {0}
            best = [best[index] for index in sorted(kept)]
        rows = [(point.label, *self._cells(point)) for point in best]
        columns = ("Setting", "Export", "T", self.score_title, "SOPs", "Energy")
        return Table(
            self.front_title,
            (Column("Penalty"), *(Column(name, words=name in ("Setting", "Export")) for name in columns)),
            tuple(map(Row, rows)),
        )

    @property
    def front_title(self) -> str:
        """What the front is of."""
        return f"Front of {'MSE' if self.score_name == 'mse' else self.score_title.lower()} and SOPs, per sample"

    def _spread(self, score: Mean) -> str:
        if not self.is_accuracy or score.spread is None:
            return score.written(self.write_score)
        return f"{100 * score.value:.2f} ± {100 * score.spread:.2f} %"

    @property
    def reference_title(self) -> str:
        """What losses are told from."""
        of_dnn = [point for point in self.points if point.dnn_score is not None]
        if not of_dnn:
            return "the best SNN"
        if all(point.is_of_snn for point in of_dnn):
            return "the DNN that trainings began from"
        return "the DNN without a penalty" if self.reference_is_none else "the best DNN"

    def notes(self) -> Iterator[str]:
        """Say what the numbers mean."""
        seeds = {point.seeds for point in self.points}
        told = f"{min(seeds)} to {max(seeds)} seeds" if len(seeds) > 1 else f"{min(seeds)} seed{'s' * (max(seeds) > 1)}"
        spread = "; ±: their standard deviation" if max(seeds) > 1 else ""
        yield (
            f"Means over {told}{spread}. All points were measured, none is interpolated. The front was chosen on the "
            "samples that it is told of, so that what is on it is somewhat flattered."
        )
        sources = {name: ENERGY_TABLES[name].source for name in self.tables if name in ENERGY_TABLES}
        if len(self.tables) == 1:
            yield estimate("; ".join(sources.values()) or self.tables[0])
        elif self.tables:
            yield f"Energies are of several tables, {', '.join(self.tables)}: compare none across them."
        if self.is_accuracy and self.by_model().rows:
            yield (
                "Models never add up. / none: over the least of the networks without a penalty at that loss. "
                f"{SPARSE}, {DENSE}: over the DNN that the network was exported from, zeros skipped or not; that of "
                "bit_matched has ceil(log2(T + 1)) bits, and was not measured at so few."
            )
        if not self.counts_zero_weights:
            yield "Weights of zero, as pruned ones, are no synapses in these operations and costs."
        elif any("% pruned" in label for label in self.labels):
            yield "Weights of zero, as pruned ones, are synapses in these operations and costs."
        if self.failed:
            yield f"{self.failed} trial{'s' * (self.failed > 1)} failed; the column `error` of the results tells why."

    # What is drawn.

    def below(self) -> float:
        """Give the inches that are kept free below the panels: none, as the layout finds room for the one legend."""
        return 0.0

    def panels(self) -> tuple[float, Sequence[Callable[[Axes], None]]]:
        """Draw the score against SOPs, effective MACs of the DNN, and energy."""
        return 5.0, [partial(scatter.draw, figure=one) for one in self.figures()]

    def figures(self) -> list[Scatter]:
        """Give the figures: SNN against SOPs, DNN against effective MACs, SNN against energy."""
        most = max((point.energy.value for point in self.points if point.energy is not None), default=0.0)
        joules, write = joules_of(most)
        costs = [
            ("sops", "score", "SNN against SOPs", "SOPs / sample", tick_count),
            ("dnn_effective_macs", "dnn_score", "DNN against effective MACs", "Effective MACs / sample", tick_count),
            ("energy", "score", "SNN against energy", f"{joules} / sample", write),
        ]
        return [figure for cost in costs if (figure := self._figure(*cost)) is not None]

    def _figure(self, cost: str, score: str, title: str, unit: str, write: Callable[[float], str]) -> Scatter | None:
        def at(point: FrontPoint) -> _At:
            x, y = getattr(point, cost), getattr(point, score)
            return _At(x.value, y.value, x.spread or 0.0, y.spread or 0.0)

        def key(place: _At) -> tuple[float, float]:
            return place.x, place.y if self.higher_is_better else -place.y

        clouds, every = [], []
        for label, style in scatter.styles_of(self.labels).items():
            own = [point for point in self.points if point.label == label and getattr(point, cost) is not None]
            places = list(dict.fromkeys(at(point) for point in own if getattr(point, score) is not None))
            places = [place for place in places if place.x > 0]
            best = _pareto(places, key)
            every += places
            if places:
                others = tuple((place.x, place.y) for place in places if place not in best)
                clouds.append(Cloud(label, tuple(best), others, style))
        if not clouds:
            return None
        front = tuple((place.x, place.y) for place in _pareto(every, key))
        last, low = front[-1], self.reference - _SHOWN
        every.sort(key=lambda place: place.y)
        named = "sops" if all(point.dnn_effective_macs is None for point in self.points) else "dnn_effective_macs"
        return Scatter(
            title=title,
            x_unit=unit,
            y_unit="Samples correct" if self.is_accuracy else self.score_title,
            clouds=tuple(clouds),
            front=front,
            level=self.reference,
            low=low if self.is_accuracy and every[0].y < low < front[-1][1] else None,
            named=cost == named,
            level_label=f"{self.reference_title[:1].upper()}{self.reference_title[1:]}",
            said=f"Points and lines, {title}. The front goes from {self.write_score(front[0][1])} at "
            f"{write(front[0][0])} to {self.write_score(last[1])} at {write(last[0])} ({unit}).",
            write_x=write,
            write_y=tick_percent if self.is_accuracy else "{:.3g}".format,
        )


def _known(found: Iterable[tuple[str, float, FrontPoint | None]]) -> list[tuple[str, float, FrontPoint]]:
    return [(label, loss, point) for label, loss, point in found if point is not None]


def _sops(point: FrontPoint) -> str:
    return in_short(point.sops.value)


def _in_points(loss: float) -> str:
    return f"{loss:g} point{'s' * (loss != 1)}"


def _pareto(items: Iterable[Any], key: Callable[[Any], tuple[float, float]]) -> list[Any]:
    """Give those that no other beats in cost (the first, the lower) and gain (the second, the higher)."""
    best: list[Any] = []
    for item in sorted(items, key=lambda one: (key(one)[0], -key(one)[1])):
        if not best or key(item)[1] > key(best[-1])[1]:
            best.append(item)
    return best


def find_front(rows: Iterable[results.Row], count_zero_weights: bool | None = None) -> Front:
    """Find what the trials of a sweep, or of several, score and spend.

    Args:
        rows: As :func:`~snnreg_plugins.sweeps.read_results` reads them. Of two rows of the same settings and seed the
            later one counts.
        count_zero_weights: Whether a weight of exactly zero is a synapse in operations and costs; if None it is, unless
            there are such, as of a sweep that prunes, and no row is of an earlier version, which did not tell.

    Raises:
        ValueError: If no trial was measured, several scores were, or ``count_zero_weights`` is False for rows of an
            earlier version.

    Example:
        >>> row = {"penalty": "none", "seed": 0, "export": "default", "timesteps": 4, "score": 0.9, "sops": 2e5}
        >>> row |= {"energy": 2e-7, "dnn_score": 0.91, "dnn_effective_macs": 1e5, "strength": None}
        >>> l1 = {**row, "penalty": "l1", "strength": 0.1, "sops": 1e5}
        >>> found = find_front([row, l1])
        >>> found.cheapest("l1", 1.0).setting, found.cheapest("none", 0.5)
        ('strength 0.1', None)
    """
    rows = list(rows)
    failed = sum(row.get("state") == FAILED for row in rows)
    rows = [row for row in rows if row.get("state") != FAILED]
    if not rows:
        raise ValueError(
            f"Expected argument `results` to hold trials that were measured, but got none; {failed} failed. The column "
            "`error` tells why."
        )
    scores = {(row.get("score_name") or "accuracy", row.get("higher_is_better") is not False) for row in rows}
    if len(scores) > 1:
        names = ", ".join(sorted(name for name, _ in scores))
        raise ValueError(f"Expected argument `results` to hold one score, but got {names}. Draw them one by one.")
    ((name, higher),) = scores
    counts = _counts_zero_weights(rows, count_zero_weights)
    points = tuple(points_of(rows, counts))
    reference, is_none = _reference(points, higher)
    tables = tuple(dict.fromkeys(row["energy_table"] for row in rows if row.get("energy_table")))
    return Front(points, reference, is_none, name, higher, tables, failed, counts)


def _counts_zero_weights(rows: Sequence[results.Row], asked: bool | None) -> bool:
    lacking = next((row for row in rows if row.get(f"{NONZERO}sops") is None), None)
    if asked is None:  # by what was spent: a recipe may prune with a callback of its own
        return lacking is not None or not any(row["sops"] > row[f"{NONZERO}sops"] * (1 + 1e-9) for row in rows)
    if not as_flag("count_zero_weights", asked) and lacking is not None:
        raise ValueError(
            f"Expected argument `count_zero_weights` not to be False for results of an earlier version, but trial "
            f"{lacking.get('trial')} of {shown(lacking.get('study'))} has no {NONZERO}sops. Leave it out, or run that "
            "sweep again under another `output`."
        )
    return asked


def _reference(points: Sequence[FrontPoint], higher: bool) -> tuple[float, bool]:
    """Give the score that losses are told from, and whether it is that of a DNN without a penalty."""
    choose = max if higher else min
    none = [point for point in points if point.label == NONE and not point.is_of_snn]
    of_none = [point.dnn_score.value for point in none if point.dnn_score is not None]
    if of_none:
        return choose(of_none), True
    of_dnn = [point.dnn_score.value for point in points if point.dnn_score is not None]
    return choose(of_dnn or [point.score.value for point in points]), False
