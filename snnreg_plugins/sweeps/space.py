"""What a sweep trains and measures: penalties, strengths, budgets, settings, seeds, and options of the export."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal

from snnreg_plugins._checks import as_integer, as_integers, as_number, one_of, require_known, shown
from snnreg_plugins.export.options import ExportOptions, Options
from snnreg_plugins.functional.cost_models import cost_models
from snnreg_plugins.functional.penalties import PENALTIES
from snnreg_plugins.sweeps.axes import Choices, Range, Value, as_axis, crossed, in_turn
from snnreg_plugins.sweeps.results import NONE

#: How trials are chosen.
SEARCHES = ("grid", "random", "tpe", "nsga2")
#: What a search makes small.
COSTS = ("sops", "energy", "effective_macs", "dnn_effective_macs", "nonzero_sops", "nonzero_energy")
#: What is the penalty of the recipe.
OF_RECIPE = "recipe"
#: Axes of a point beside the arguments of callbacks, and options of the command line.
PENALTY, SEED, PRUNED = "penalty", "seed", "pruning"
#: Begins the name of a budget among the penalties.
BUDGET_OF = "budget of "
#: Arguments of a grid whose values may become more; each trial has those that it was run with.
GROWS = ("penalties", "budgets", "regularization", "seeds")
_UNITS = ("sops", "share", "joules")


@dataclass(frozen=True)
class Variant:
    """A way to train for few operations, with what varies in it.

    Args:
        name: Its name.
        kind: The callback that does it; None if none does.
        axes: Arguments of the callback.
    """

    name: str
    kind: Literal["ActivityRegularization", "ActivityBudget"] | None
    axes: Mapping[str, Choices | Range]

    def named(self) -> dict[str, Choices | Range]:
        """Give the axes by the names that they have in a point."""
        return {f"{self.name}.{argument}": axis for argument, axis in self.axes.items()}

    def arguments(self, point: Mapping[str, Value]) -> dict[str, Value]:
        """Give the arguments of the callback at a point."""
        return {argument: point[f"{self.name}.{argument}"] for argument in self.axes}


@dataclass(frozen=True)
class Sweep:
    """A sweep over one recipe.

    Args:
        recipe: The recipe, as ``snnreg fit --config`` takes it. Its callbacks ActivityRegularization and
            ActivityBudget make room for those of the sweep; ModelCheckpoint and ExportReport, which write, and
            SpikingValidation, unless another one monitors what it logs, are left out, and so is its logger.
        penalties: Arguments of ActivityRegularization by penalty: a value, a list of values, or a range such as
            ``{low: 0.1, high: 10, log: true}``, which in a grid has ``steps`` too. ``none`` trains without. Another
            name than that of a penalty has one by ``penalty``.
        budgets: Arguments of ActivityBudget: ``sops``, ``share`` or ``joules``, and others.
        regularization: Arguments of ActivityRegularization that all penalties have.
        pruning: Shares of the weights to prune, halfway through the training, by magnitude over all layers.
        settings: Options of the command line that are not those of the recipe, such as ``trainer.max_epochs: 8`` or
            ``callback.Distillation.temperature: [1, 4]``; a list varies.
        seeds: A grid has a trial for each; in a search each trial trains with all, and is judged by the means.
            A grid may grow: with more seeds, or other values of penalties and budgets, the same study goes on.
        exports: Options of the export by a name of yours; each trained network is exported with all of them.
        steps: Numbers of time steps T at which each export is measured.
        calibration_batches: Batches of training data to balance thresholds on.
        table: The model of cost that energies are by, or several, each of which has columns of its own: names in
            ``functional.COST_MODELS`` or YAML files of prices. Those of the recipe's ExportReport if not given, else
            that of the weights, ``lemaire``, ``bit_matched`` and ``eflops``.
        search: ``grid``: all combinations. ``random``, ``tpe`` (tree-structured Parzen estimators) and ``nsga2`` (a
            genetic algorithm) choose ``trials`` of them; the last two those that promise a better front of score and
            cost.
        trials: How many trials the study is to have in all; of a grid all its combinations if not given.
        cost: What a search makes small: ``sops`` or ``energy`` of the spiking network, or ``effective_macs`` (of its
            analog layers), or ``dnn_effective_macs``; or ``nonzero_sops`` or ``nonzero_energy``, where a weight of zero
            is no synapse.
        at: T at which a search judges; the last of ``steps`` if not given.
        judged: The export that a search judges; the first if not given.
        name: Of the study; that of the sweep's file if not given.
        output: Folder of the results.
        storage: Where the study is kept: a URL such as postgresql+psycopg://user@host/name, so that many machines work
            on it; a file in ``output`` if not given.
        retry_failed: Whether to try those trials again that have failed.
    """

    recipe: str
    penalties: dict[str, dict[str, Any] | None] | None = None
    budgets: dict[str, Any] | None = None
    regularization: dict[str, Any] | None = None
    pruning: list[float] | dict[str, Any] | None = None
    settings: dict[str, Any] | None = None
    seeds: list[int] | None = None
    exports: dict[str, dict[str, Any] | None] | None = None
    steps: list[int] | None = None
    calibration_batches: int = 20
    table: str | list[str] | None = None
    search: Literal["grid", "random", "tpe", "nsga2"] = "grid"
    trials: int | None = None
    cost: Literal["sops", "energy", "effective_macs", "dnn_effective_macs", "nonzero_sops", "nonzero_energy"] = "sops"
    at: int | None = None
    judged: str | None = None
    name: str | None = None
    output: str = "runs/sweep"
    storage: str | None = None
    retry_failed: bool = False

    def __post_init__(self) -> None:
        """Check all that can be checked without the recipe.

        Raises:
            ValueError: If an argument, or a value that something varies over, is out of range.
        """
        one_of("search", self.search, SEARCHES)
        one_of("cost", self.cost, COSTS)
        as_integer("calibration_batches", self.calibration_batches)
        if self.table is not None:
            cost_models(self.table)
        if self.trials is not None:
            as_integer("trials", self.trials)
        as_integers("seeds", self.all_seeds, (0, 1, 2), at_least=0)
        one_of("at", self.judged_at, self.all_steps)
        if self.judged is not None:
            require_known("exports", [self.judged], self.all_exports)
        if self.budgets is not None and self.penalties is None:
            raise ValueError(
                "Expected argument `penalties` to be given beside `budgets`, but got None. What budgets are compared "
                "with is trained without a penalty: penalties: {none: }."
            )
        for variant in self.variants:
            _require_valid(variant)
        for name, options in self.all_exports.items():
            Options(**{"timesteps": max(self.all_steps), **options})
            if options.get("budget") is not None:
                raise ValueError(
                    f"Expected `exports.{name}` to have no budget, which chooses T by itself, but got "
                    f"{shown(options['budget'])}. Choose among T by `steps`, or give a budget in `budgets`."
                )
        for axis in self._pruned.values():
            for share in axis.points() or ends_of(axis):
                as_number("pruning", share, "[0, 1)")
            if self.budgets and self.budgets.get("keep_best") is not False:
                raise ValueError(
                    "Expected `budgets` to have keep_best: false beside `pruning`, as the best weights may be those of "
                    f"an epoch before the pruning, but got {shown(self.budgets.get('keep_best', True))}."
                )
        if self.search == "grid":
            axes = [self.common, *(variant.named() for variant in self.variants)]
            for name, axis in ((name, axis) for some in axes for name, axis in some.items()):
                if not axis.points():
                    raise ValueError(
                        f"Expected the range of `{name}` to have `steps`, as search is 'grid', but got none. Give "
                        "steps: 5, a list of values, or another `search`."
                    )
        elif self.trials is None:
            raise ValueError(
                f"Expected argument `trials` to be given, as search is {self.search!r}, which has no end of its own, "
                "but got None."
            )

    # What varies.

    @cached_property
    def variants(self) -> tuple[Variant, ...]:
        """The ways to train, by name."""
        if not self.penalties:
            return (Variant(OF_RECIPE, None, {}),)
        return (*(self._penalty(name, given or {}) for name, given in self.penalties.items()), *self._budgets())

    def _penalty(self, name: str, given: Mapping[str, Any]) -> Variant:
        if name == NONE and not given:
            return Variant(name, None, {})
        arguments = {"penalty": name, **(self.regularization or {}), **given}
        if name not in (*PENALTIES, "rate_bounds") and "penalty" not in given:
            require_known("penalties", [name], [NONE, *PENALTIES, "rate_bounds"])
        known = inspect.signature(_callback("ActivityRegularization")).parameters
        for place, names in (("regularization", self.regularization or {}), (f"penalties.{name}", given)):
            require_known(place, names, known)
        axes = {argument: as_axis(f"penalties.{name}.{argument}", value) for argument, value in arguments.items()}
        return Variant(name, "ActivityRegularization", axes)

    def _budgets(self) -> tuple[Variant, ...]:
        if not self.budgets:
            return ()
        known = [name for name in inspect.signature(_callback("ActivityBudget")).parameters if name != "options"]
        require_known("budgets", self.budgets, [*known, *ExportOptions.__annotations__])
        units = [name for name in _UNITS if name in self.budgets]
        if not units:
            raise ValueError(f"Expected `budgets` to have one of {list(_UNITS)}, but got {shown(self.budgets)}.")
        others = {name: value for name, value in self.budgets.items() if name not in units}
        return tuple(
            Variant(
                f"{BUDGET_OF}{unit}",
                "ActivityBudget",
                {
                    name: as_axis(f"budgets.{name}", value)
                    for name, value in {unit: self.budgets[unit], **others}.items()
                },
            )
            for unit in units
        )

    @cached_property
    def _pruned(self) -> dict[str, Choices | Range]:
        return {} if self.pruning is None else {PRUNED: as_axis(PRUNED, self.pruning)}

    @cached_property
    def common(self) -> dict[str, Choices | Range]:
        """What varies whichever the variant is."""
        varied = {
            name: as_axis(f"settings.{name}", value)
            for name, value in (self.settings or {}).items()
            if isinstance(value, list) or (isinstance(value, Mapping) and "low" in value and "high" in value)
        }
        return {**varied, **self._pruned}

    @cached_property
    def fixed(self) -> dict[str, Any]:
        """Settings that do not vary."""
        return {name: value for name, value in (self.settings or {}).items() if name not in self.common}

    @cached_property
    def all_seeds(self) -> tuple[int, ...]:
        """The seeds."""
        seeds = as_integers("seeds", (0,) if self.seeds is None else self.seeds, (0, 1, 2), at_least=0)
        if len(set(seeds)) < len(seeds):
            raise ValueError(
                f"Expected argument `seeds` to name each seed once, as the same one twice is no second sample, but got "
                f"{list(seeds)}. Give {sorted(set(seeds))}, or others."
            )
        return seeds

    @cached_property
    def all_steps(self) -> tuple[int, ...]:
        """The time steps, ascending."""
        steps = (1, 2, 4, 8, 16, 32) if self.steps is None else self.steps
        return tuple(sorted(set(as_integers("steps", steps, (1, 2, 4, 8)))))

    @cached_property
    def all_exports(self) -> dict[str, dict[str, Any]]:
        """Options of the export, by name."""
        exports = {name: dict(options or {}) for name, options in (self.exports or {"default": {}}).items()}
        for name, options in exports.items():
            require_known(f"exports.{name}", options, ["timesteps", *ExportOptions.__annotations__])
        return exports

    @property
    def judged_at(self) -> int:
        """T at which a search judges."""
        return self.all_steps[-1] if self.at is None else self.at

    @property
    def judged_export(self) -> str:
        """The export that a search judges."""
        return next(iter(self.all_exports)) if self.judged is None else self.judged

    def variant(self, point: Mapping[str, Value]) -> Variant:
        """Find the variant of a point."""
        return next(one for one in self.variants if one.name == point[PENALTY])

    def grid(self) -> list[dict[str, Value]]:
        """List all points of a grid so that those that ran make a whole picture whenever it is stopped.

        Seed after seed, and the penalties in turn: the first strength of each, the second of each, and so on.
        """
        of_each = [
            [{PENALTY: one.name, **point} for point in crossed({**one.named(), **self.common})] for one in self.variants
        ]
        return [{SEED: seed, **point} for seed in self.all_seeds for point in in_turn(of_each)]

    def space(self) -> dict[str, Any]:
        """Give what makes two sweeps the same study, as plain data; of a grid, but for what it :data:`GROWS` by."""
        others = ("trials", "name", "output", "storage", "retry_failed")
        given = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in others}
        if self.table is None:  # as studies of earlier versions have it
            del given["table"]
        seeds, steps = list(self.all_seeds), list(self.all_steps)
        return {**given, "seeds": seeds, "steps": steps, "exports": self.all_exports}


def ends_of(axis: Choices | Range) -> tuple[Value, ...]:
    """Give the ends of a range, or all values of a list."""
    return (axis.low, axis.high) if isinstance(axis, Range) else axis.values


def _require_valid(variant: Variant) -> None:
    """Make the callback of a variant at the values that it is given, which checks them."""
    if variant.kind is None:
        return
    tried = {name: axis.points() or ends_of(axis) for name, axis in variant.axes.items()}
    first = {name: values[0] for name, values in tried.items()}
    for name, values in tried.items():
        for value in values:
            _make(_callback(variant.kind), {**first, name: value}, variant)


def _callback(kind: str) -> type:
    """Give a callback by its name; it takes seconds to import, which ``--help`` does without."""
    from snnreg_plugins import callbacks

    found: type = getattr(callbacks, kind)
    return found


def _make(kind: type, arguments: Mapping[str, Any], variant: Variant) -> None:
    try:
        kind(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Expected {variant.name!r} to be what {variant.kind} takes. {error}") from error
