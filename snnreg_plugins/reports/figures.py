"""What figures show, as plain data; the picture and the page draw it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

#: What a line, bar or part of a bar stands for; how that looks is up to who draws it.
Role = Literal["snn", "mac", "dnn", "dense"]


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
    """A number with a name.

    Args:
        name: Its name, such as a layer's.
        value: The number.
        written: The number as text.
        role: What it stands for.
    """

    name: str
    value: float
    written: str
    role: Role = "snn"


@dataclass(frozen=True)
class Bars:
    """One bar below the other.

    Args:
        title: What they show.
        unit: Of the numbers.
        bars: The bars.
        kinds: What the roles of the bars stand for.
        said: The same in words.
    """

    title: str
    unit: str
    bars: tuple[Bar, ...]
    kinds: tuple[Series, ...]
    said: str
