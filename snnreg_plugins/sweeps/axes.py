"""What varies in a sweep: values in a list, or in a range."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from snnreg_plugins._checks import as_flag, as_integer, as_number, require_known, shown

if TYPE_CHECKING:
    from optuna.trial import Trial

#: A value that varies.
Value = bool | int | float | str | None


@dataclass(frozen=True)
class Choices:
    """Values in a list.

    Args:
        values: Each once, in the order of the list.
    """

    values: tuple[Value, ...]

    def points(self) -> tuple[Value, ...]:
        """Give the values that a grid has."""
        return self.values

    def suggest(self, trial: Trial, name: str) -> Value:
        """Have a search choose one."""
        value: Value = trial.suggest_categorical(name, self.values)
        return value


@dataclass(frozen=True)
class Range:
    """Numbers between two.

    Args:
        low: The lowest.
        high: The highest.
        log: Whether factors count alike, and not differences.
        steps: How many a grid has; None if it has none.
    """

    low: float
    high: float
    log: bool
    steps: int | None

    def points(self) -> tuple[float, ...]:
        """Give the values that a grid has."""
        if self.steps is None:
            return ()
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        between = [low + (high - low) * index / max(self.steps - 1, 1) for index in range(self.steps)]
        inner = [math.exp(value) if self.log else value for value in between[1:-1]]
        return (self.low, *(float(f"{value:.6g}") for value in inner), self.high)

    def suggest(self, trial: Trial, name: str) -> float:
        """Have a search choose one."""
        return trial.suggest_float(name, self.low, self.high, log=self.log)


def as_axis(argument: str, value: Any) -> Choices | Range:
    """Read what a value varies over: a list, a range such as ``{low: 0.1, high: 10, log: true}``, or not at all.

    Args:
        argument: Name of the argument, for the error.
        value: What the file says.

    Raises:
        ValueError: If it is neither.

    Example:
        >>> as_axis("strength", [0.1, 1]).points(), as_axis("strength", 2).points()
        ((0.1, 1), (2,))
        >>> as_axis("strength", {"low": 0.1, "high": 10, "log": True, "steps": 3}).points()
        (0.1, 1.0, 10.0)
    """
    if isinstance(value, Mapping):
        return _range(argument, value)
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if not values or any(one is not None and not isinstance(one, (bool, int, float, str)) for one in values):
        raise ValueError(
            f"Expected `{argument}` to be a value, a list of values, or a range such as {{low: 0.1, high: 10, log: "
            f"true}}, but got {shown(value)}."
        )
    numbers = [_number(one) for one in values]
    return Choices(tuple(dict.fromkeys(numbers)))


def _number(value: Value) -> Value:
    """Take the texts for numbers that YAML has for 1e-3."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _range(argument: str, given: Mapping[str, Any]) -> Range:
    require_known(argument, given, ("low", "high", "log", "steps"))
    if "low" not in given or "high" not in given:
        raise ValueError(f"Expected `{argument}` to have `low` and `high`, as it is a range, but got {shown(given)}.")
    log = as_flag(f"{argument}.log", given.get("log", False))
    low = as_number(f"{argument}.low", given["low"], "(0, inf)" if log else "(-inf, inf)")
    high = as_number(f"{argument}.high", given["high"], f"({low}, inf)")
    steps = given.get("steps")
    return Range(float(low), float(high), log, None if steps is None else as_integer(f"{argument}.steps", steps, 2))


def crossed(axes: Mapping[str, Choices | Range]) -> Iterator[dict[str, Value]]:
    """Walk all combinations of values, the first axis slowest."""
    for values in itertools.product(*(axis.points() for axis in axes.values())):
        yield dict(zip(axes, values, strict=True))


def in_turn(lists: Sequence[Sequence[Any]]) -> Iterator[Any]:
    """Walk several lists side by side: the first of each, then the second of each, and so on."""
    nothing = object()
    for row in itertools.zip_longest(*lists, fillvalue=nothing):
        yield from (one for one in row if one is not nothing)
