"""What a study's trials were at some moment: which count, how many are wanted, and what they found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from snnreg_plugins.sweeps.axes import Value
from snnreg_plugins.sweeps.recipe import label
from snnreg_plugins.sweeps.results import COMPLETE, FAILED, Row
from snnreg_plugins.sweeps.space import BUDGET_OF, PENALTY, SEED, Sweep

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

#: What is kept with a trial.
POINT, ROWS, ERROR, AGAIN, TRY, WHERE = "point", "rows", "error", "again_of", "try", "machine"
# Begins the names of a budget's columns.
BUDGET = "budget_"
_DIED = "The process that ran it ended without a word: it was killed, or the machine was out of memory."


class Look:
    """The trials of a study, read once.

    Args:
        name: Of the study.
        sweep: What it is about.
        trials: All of its trials.
    """

    def __init__(self, name: str, sweep: Sweep, trials: Sequence[FrozenTrial]) -> None:
        self.name, self.sweep, self.trials = name, sweep, trials

    @cached_property
    def current(self) -> list[FrozenTrial]:
        """The trials that count: none that was begun again, and none that was one too many."""
        superseded = {trial.user_attrs[AGAIN] for trial in self.trials if AGAIN in trial.user_attrs}
        return [one for one in self.trials if one.number not in superseded and one.state.name != "PRUNED"]

    @cached_property
    def finished(self) -> list[FrozenTrial]:
        """Those that ended, well or not."""
        return [trial for trial in self.current if trial.state.is_finished()]

    def count(self, state: str) -> int:
        """Count those in a state."""
        return sum(trial.state.name == state for trial in self.current)

    @property
    def wanted(self) -> int:
        """How many trials the study is to have."""
        if self.sweep.search != "grid":
            return self.sweep.trials or 0
        known = len(self.current)
        return known if self.sweep.trials is None else min(self.sweep.trials, known)

    @cached_property
    def rows(self) -> list[Row]:
        """The rows of all trials that ended."""
        return [row for trial in self.finished for row in self._rows(trial)]

    def _rows(self, trial: FrozenTrial) -> Iterator[Row]:
        point: dict[str, Value] = trial.user_attrs.get(POINT, {})
        named = {"study": self.name, "trial": trial.number, **self._columns(point)}
        if trial.state.name == "COMPLETE":
            for row in trial.user_attrs[ROWS]:
                yield {**named, "state": COMPLETE, **row}
        else:
            error = trial.user_attrs.get(ERROR, _DIED)
            yield {**named, "seed": point.get(SEED), "state": FAILED, "error": error}

    def _columns(self, point: Mapping[str, Value]) -> dict[str, Value]:
        """Name what varied as it stands in the results: of the point, as the sweep may have grown since."""
        if not point:
            return {}
        own = f"{point[PENALTY]}."
        before = BUDGET if own.startswith(BUDGET_OF) else ""
        columns: dict[str, Value] = {PENALTY: point[PENALTY]}
        for name, value in point.items():
            if name.startswith(own) and name != f"{own}{PENALTY}":
                columns[before + name.removeprefix(own)] = value
        common = {name: value for name, value in point.items() if name not in (PENALTY, SEED)}
        return columns | {name: value for name, value in common.items() if not name.startswith(own)}

    @cached_property
    def failures(self) -> list[tuple[str, str]]:
        """Which trials failed, and why."""
        failed = [trial for trial in self.finished if trial.state.name == "FAIL"]
        named = [(one, label(one.user_attrs.get(POINT, {PENALTY: "?"}))) for one in failed]
        return [(f"Trial {one.number} ({name})", one.user_attrs.get(ERROR, _DIED)) for one, name in named]
