"""What figures show, as plain data; the picture and the page draw it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from snnreg_plugins._text import tick_count

#: What a line, bar or part of a bar stands for; how that looks is up to who draws it.
Role = Literal["snn", "mac", "dnn", "dense", "neurons", "memory"]


@dataclass(frozen=True)
class Series:
    """Numbers over T, or one that is compared with all of them.

    Args:
        label: What they are.
        values: The numbers.
        role: What they stand for.
    """

    label: str
    values: tuple[float, ...]
    role: Role


@dataclass(frozen=True)
class Lines:
    """Lines over time steps, and levels to compare them with.

    Args:
        title: What they show.
        unit: Of the numbers.
        steps: The T.
        series: The lines.
        levels: What they are compared with, one number each.
        marked: The T of the exported network.
        said: The same in words.
        write: Writes a number of the axis.
        logarithmic: Whether powers of ten stand evenly.
    """

    title: str
    unit: str
    steps: tuple[int, ...]
    series: tuple[Series, ...]
    levels: tuple[Series, ...]
    marked: int
    said: str
    write: Callable[[float], str]
    logarithmic: bool = False


@dataclass(frozen=True)
class Curve:
    """What a network scores and spends over T.

    Args:
        label: Which network it is, and by which model.
        spent: What it spends, a number > 0 for each step.
        scores: What it scores.
        steps: The T.
        colour: Which of the colours it has.
        marked: The T of the exported network.
    """

    label: str
    spent: tuple[float, ...]
    scores: tuple[float, ...]
    steps: tuple[int, ...]
    colour: int
    marked: int


@dataclass(frozen=True)
class Point:
    """What a DNN scores and spends.

    Args:
        label: Which DNN it is.
        spent: What it spends.
        score: What it scores.
        role: What it does with zeros: ``"dnn"`` skips them, ``"dense"`` does not.
        colour: Which of the colours it has: that of the curve it belongs to.
    """

    label: str
    spent: float
    score: float
    role: Role
    colour: int


@dataclass(frozen=True)
class Plane:
    """Scores over what is spent, on a logarithmic axis.

    Args:
        title: What it shows.
        unit: Of what is spent.
        score: What is scored.
        curves: A curve for each spiking network, or for each model.
        points: DNNs.
        kinds: What their signs stand for.
        floor: The lowest score that is shown; None for all.
        below: What is not shown for it, in words.
        said: The same in words.
        write: Writes a score at the axis.
        write_spent: Writes what is spent at the axis.
        most: The highest score that there can be; None if there is no such.
    """

    title: str
    unit: str
    score: str
    curves: tuple[Curve, ...]
    points: tuple[Point, ...]
    kinds: tuple[Series, ...]
    floor: float | None
    below: str
    said: str
    write: Callable[[float], str]
    write_spent: Callable[[float], str]
    most: float | None = None

    def shown(self) -> tuple[list[float], list[float]]:
        """Give what is spent and scored at all points that are shown, and where curves come from below."""
        floor = -math.inf if self.floor is None else self.floor
        ends = [(point.spent, point.score) for point in self.points]
        for curve in self.curves:
            own = list(zip(curve.spent, curve.scores, strict=True))
            ends += own
            for (x, y), (u, v) in pairwise(own):
                if min(y, v) < floor < max(y, v):
                    ends.append((x * (u / x) ** ((floor - y) / (v - y)), floor))
        ends = [(x, y) for x, y in ends if y >= floor]
        return [x for x, _ in ends], [y for _, y in ends]


@dataclass(frozen=True)
class Stacks:
    """Stacked bars over time steps, and levels to compare them with.

    Args:
        title: What they show.
        unit: Of the numbers.
        steps: The T.
        parts: What is stacked, from below.
        levels: What the stacks are compared with, one number each.
        marked: The T of the exported network.
        said: The same in words.
        write: Writes a number.
    """

    title: str
    unit: str
    steps: tuple[int, ...]
    parts: tuple[Series, ...]
    levels: tuple[Series, ...]
    marked: int
    said: str
    write: Callable[[float], str]

    def totals(self) -> list[float]:
        """Add up each stack."""
        return [sum(part.values[index] for part in self.parts) for index in range(len(self.steps))]


@dataclass(frozen=True)
class Bar:
    """A number with a name, and what it is the sum of.

    Args:
        name: Its name, such as a layer's.
        parts: What it is the sum of, from the left, and what each part stands for.
        written: The number as text.
    """

    name: str
    parts: tuple[tuple[Role, float], ...]
    written: str

    @property
    def value(self) -> float:
        """The number."""
        return sum(value for _, value in self.parts)


@dataclass(frozen=True)
class Bars:
    """One bar below the other.

    Args:
        title: What they show.
        unit: Of the numbers.
        bars: The bars.
        kinds: What the roles of the bars stand for; empty where names tell.
        said: The same in words.
        write: Writes a number at the axis.
    """

    title: str
    unit: str
    bars: tuple[Bar, ...]
    kinds: tuple[Series, ...]
    said: str
    write: Callable[[float], str] = tick_count


@dataclass(frozen=True)
class Ratio:
    """What the network spends by a model over what DNNs do.

    Args:
        name: Of the model.
        values: By DNN: what it does with zeros, and the number.
    """

    name: str
    values: tuple[tuple[Role, float], ...]


@dataclass(frozen=True)
class Ratios:
    """What the network spends over what DNNs do, a row for each model, on a logarithmic axis around 1.

    Args:
        title: What they show.
        unit: Of the numbers.
        rows: The models.
        kinds: The DNNs.
        said: The same in words.
    """

    title: str
    unit: str
    rows: tuple[Ratio, ...]
    kinds: tuple[Series, ...]
    said: str
