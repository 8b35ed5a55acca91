"""The points of a front: one for each way to train, export and run a network, as means over its seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from snnreg_plugins._files import added_later
from snnreg_plugins.sweeps import results
from snnreg_plugins.sweeps.results import COST, DENSE_COST, DNN_COST, NONZERO, models_of, varied_columns

# What tells ways to train apart, and not only how strongly.
_OF_LABEL = ("weighting", "pruning")


@dataclass(frozen=True)
class Mean:
    """A number over seeds.

    Args:
        value: The mean.
        spread: Standard deviation of the seeds (of a sample: over n - 1); None of one seed.
    """

    value: float
    spread: float | None

    @staticmethod
    def of(values: Sequence[float]) -> Mean:
        """Give mean and spread."""
        return Mean(fmean(values), stdev(values) if len(values) > 1 else None)

    def written(self, write: Callable[[float], str]) -> str:
        """Write both, the spread as a share."""
        if self.spread is None or not self.value:
            return write(self.value)
        return f"{write(self.value)} ± {100 * self.spread / abs(self.value):.2g} %"


@dataclass(frozen=True)
class PointCost:
    """What a network costs by one model, per sample in the unit of the model, beside its own DNN.

    Args:
        model: Name of the model.
        snn: Of the spiking network.
        sparse: Of the DNN, zeros skipped; None where the model has no price for it.
        dense: Of a DNN that skips nothing; None likewise.
    """

    model: str
    snn: Mean
    sparse: Mean | None
    dense: Mean | None


@dataclass(frozen=True)
class FrontPoint:
    """One way to train, export and run a network, over its seeds.

    Args:
        label: The penalty, and what else tells ways to train apart.
        setting: What varies in it, such as its strength.
        export: Name of the options of the export.
        timesteps: T.
        seeds: How many.
        score: Of the spiking network.
        sops: SOPs/sample of the spiking network.
        energy: J/sample of the spiking network.
        dnn_score: Of the DNN; None without one.
        dnn_effective_macs: MACs/sample of the DNN, zeros skipped; None without one.
        costs: What it costs by each model that can price it.
        is_of_snn: Whether it was trained as a spiking network, so that its DNN is the one that it began from.
    """

    label: str
    setting: str
    export: str
    timesteps: int
    seeds: int
    score: Mean
    sops: Mean
    energy: Mean
    dnn_score: Mean | None
    dnn_effective_macs: Mean | None
    costs: tuple[PointCost, ...] = added_later(())
    is_of_snn: bool = added_later(False)

    def cost(self, model: str) -> PointCost | None:
        """Find what it costs by a model; None where that was not priced."""
        return next((cost for cost in self.costs if cost.model == model), None)


def points_of(rows: Sequence[results.Row], count_zero_weights: bool) -> Iterator[FrontPoint]:
    """Give the means over seeds of all that was trained, exported and run.

    Args:
        rows: Of trials that did not fail. Of two of the same settings and seed the later one counts.
        count_zero_weights: Whether a weight of exactly zero is a synapse.
    """
    varied, models = varied_columns(rows), models_of(rows)
    before = "" if count_zero_weights else NONZERO
    groups: dict[tuple[Any, ...], dict[int, results.Row]] = {}
    differing: dict[tuple[str, str], set[Any]] = {}
    for row in rows:
        key = (row["penalty"], *(row.get(name) for name in varied), row["export"], row["timesteps"])
        groups.setdefault(key, {})[row["seed"]] = row
        for name in varied:
            differing.setdefault((row["penalty"], name), set()).add(row.get(name))
    for seeds in groups.values():
        first, several = next(iter(seeds.values())), list(seeds.values())
        shown = {
            name: first[name]
            for name in varied
            if first.get(name) is not None and (name == "strength" or len(differing[first["penalty"], name]) > 1)
        }
        parts = [_written(name, value) for name, value in shown.items() if name in _OF_LABEL]
        spent = {name: _mean(f"{before}{name}", several) for name in ("sops", "energy", "dnn_effective_macs")}
        costs = (_cost(model, several, before) for model in models)
        yield FrontPoint(
            label=", ".join([first["penalty"], *(part for part in parts if part)]),
            setting=", ".join(_written(name, value) for name, value in shown.items() if name not in _OF_LABEL),
            export=first["export"],
            timesteps=int(first["timesteps"]),
            seeds=len(several),
            score=Mean.of([row["score"] for row in several]),
            dnn_score=_mean("dnn_score", several),
            costs=tuple(cost for cost in costs if cost is not None),
            is_of_snn=first.get("trained_as") == results.SNN,
            **spent,  # type: ignore[arg-type]
        )


def _written(name: str, value: Any) -> str:
    short = name.rpartition(".")[2].replace("_", " ")
    if name == "weighting":
        return str(value).replace("_", "-")
    if name == "pruning":
        return f"{100 * value:g} % pruned" if value else ""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return f"{short} {value:g}" if is_number else f"{short} {value}"


def _mean(name: str, rows: Iterable[results.Row]) -> Mean | None:
    values = [row.get(name) for row in rows]
    known = [value for value in values if value is not None]
    return Mean.of(known) if len(known) == len(values) else None


def _cost(model: str, rows: Sequence[results.Row], before: str) -> PointCost | None:
    snn, sparse, dense = (_mean(f"{before}{part}{model}", rows) for part in (COST, DNN_COST, DENSE_COST))
    return None if snn is None else PointCost(model, snn, sparse, dense)
