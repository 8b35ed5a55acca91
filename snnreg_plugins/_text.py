"""Numbers and tables as text: how results are written wherever they are printed or drawn."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

_JOULES = {-4: " pJ", -3: " nJ", -2: " µJ", -1: " mJ", 0: " J"}


@dataclass(frozen=True)
class Column:
    """A column of a :class:`Table`.

    Args:
        title: What is in it, with its unit; empty where that is plain.
        write: Writes a value, such as :func:`in_joules`.
        words: Whether it holds words, which stand to the left, and not numbers.
    """

    title: str
    write: Callable[[Any], str] = str
    words: bool = False


@dataclass(frozen=True)
class Row:
    """A row of a :class:`Table`.

    Args:
        cells: A value for each column; None where there is none.
        marked: Whether it stands out.
        group: Rows of one group stand together, apart from those of the next.
    """

    cells: tuple[Any, ...]
    marked: bool = False
    group: int = 0


@dataclass(frozen=True)
class Table:
    """What a table shows, as values. Terminal and page draw it.

    Args:
        caption: What it is about.
        columns: Its columns; the first one names the rows.
        rows: Its rows.
        sign: What marks a row where there is no bold.

    Example:
        >>> table = Table("Energy", (Column(""), Column("Energy", in_joules)), (Row(("DNN", 2e-9)), Row(("SNN", None))))
        >>> table.written()
        [('DNN', '2.00 nJ'), ('SNN', '')]
    """

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    sign: str = ""

    def written(self) -> list[tuple[str, ...]]:
        """Write the cells of all rows."""
        return [
            tuple(
                "" if cell is None else column.write(cell) for column, cell in zip(self.columns, row.cells, strict=True)
            )
            for row in self.rows
        ]

    def select(self, titles: Sequence[str], caption: str) -> Table:
        """Take the first column and those of some titles, in this order."""
        known = {column.title: index for index, column in enumerate(self.columns)}
        kept = [0, *(known[title] for title in titles)]
        return replace(
            self,
            caption=caption,
            columns=tuple(self.columns[index] for index in kept),
            rows=tuple(replace(row, cells=tuple(row.cells[index] for index in kept)) for row in self.rows),
        )


@dataclass(frozen=True)
class Note:
    """A sentence or more beside tables.

    Args:
        text: The sentences.
        weight: How much they matter.
    """

    text: str
    weight: Literal["plain", "strong", "small"] = "plain"


def one_line(text: object) -> str:
    """Write text in one line; what cannot be seen, as a sign that turns the direction of writing, is replaced.

    Example:
        >>> one_line(f"two{chr(10)}words")
        'two words'
    """
    return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in str(text))


def cut_short(name: str, room: int) -> str:
    """Leave out the middle of a name that needs more room than so many letters: its end tells it from others.

    Example:
        >>> cut_short("a_layer_that_is_long_1", 12)
        'a_la…_long_1'
    """
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in name) + 0.8 * sum(c in "mwMW@%" for c in name)
    room = int(room * len(name) / (len(name) + wide)) if name else room
    if len(name) <= room:
        return name
    head = room // 3
    return f"{name[:head]}…{name[len(name) - (room - head - 1) :]}"


def estimate(source: str, scope: str = "", prices: str = "") -> str:
    """Say what an energy is, wherever one is shown.

    Args:
        source: Where the energies per operation were published.
        scope: What they are energies of.
        prices: The energies per operation themselves.

    Example:
        >>> estimate("a chip's data sheet")
        "Energy is an estimate from published numbers, not a measurement: a chip's data sheet."
    """
    told = f"{prices} ({source})" if prices else source
    return f"Energy is an estimate from published numbers, not a measurement: {told}.{scope and f' {scope}'}"


def scaled(value: float, prefixes: dict[int, str]) -> str:
    """Write a number ≥ 0 with three digits and a prefix for a power of 1000."""
    if not value:
        return f"0{prefixes[0]}"
    digits, exponent = f"{value:.2e}".split("e")  # rounded first: 999.6 is 1.00k
    group = min(max(int(exponent) // 3, min(prefixes)), max(prefixes))
    shown = f"{float(f'{digits}e{int(exponent) - 3 * group}'):#.3g}".rstrip(".")
    return f"{shown}{prefixes[group]}"


def in_short(value: float) -> str:
    """Write a count, such as 1.23k."""
    return scaled(value, {0: "", 1: "k", 2: "M", 3: "G", 4: "T"})


def in_joules(value: float) -> str:
    """Write an energy, such as 1.23 nJ."""
    return scaled(value, _JOULES)


def span(low: float | None, high: float | None) -> str:
    """Write the range of thresholds; nothing if there are none."""
    if low is None or high is None:
        return ""
    return f"{low:.3g}" if low == high else f"{low:.3g}..{high:.3g}"


def in_percent(share: float, sign: str = "") -> str:
    """Write a share, such as 12.34 %.

    Args:
        share: The share; 1 is all.
        sign: ``"+"`` if positive shares get a sign too.
    """
    return f"{100 * share:{sign}.2f} %"


def in_percent_or_none(share: float, sign: str = "") -> str:
    """Write a share as :func:`in_percent` does; one of exactly 0 stands out as "0"."""
    return in_percent(share, sign) if share else "0"


def in_rate(rate: float) -> str:
    """Write a spike rate, in spikes/neuron/step."""
    return f"{rate:.3f}"


def over(value: float | None, reference: float | None) -> float | None:
    """Divide; None where there is nothing to divide, or to divide by."""
    return None if value is None or not reference else value / reference


def times(ratio: float) -> str:
    """Write how many times one number is another."""
    return f"{ratio:.2f}"


def tick_percent(share: float) -> str:
    """Write a share at an axis, such as 95 %."""
    return f"{100 * share:.3g} %"


def joules_of(most: float) -> tuple[str, Callable[[float], str]]:
    """Choose the unit of an axis of energies, and what writes its numbers in it.

    Args:
        most: The largest energy.

    Example:
        >>> unit, write = joules_of(2.5e-7)
        >>> unit, write(1e-7), write(2.5e-9)
        ('nJ', '100', '2.5')
    """
    unit = in_joules(most).split(" ")[1]
    scale = next(10.0 ** (3 * power) for power, name in _JOULES.items() if name == f" {unit}")
    return unit, lambda value: f"{value / scale:.3g}" if value < 999.5 * scale else f"{value / scale:.0f}"


def tick_count(value: float) -> str:
    """Write a count at an axis, such as 20k."""
    written = in_short(value)
    digits = written.rstrip("kMGT")
    return _round(digits) + written[len(digits) :]


def _round(digits: str) -> str:
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def why_not(error: Exception) -> str:
    """Tell why a file cannot be read or written, and what to do where that is known.

    Example:
        >>> why_not(PermissionError(13, "Permission denied", "a.yaml"))
        "this user may not use 'a.yaml'. Change who may (chmod), or name another place"
    """
    if isinstance(error, UnicodeDecodeError):
        return "it is no text in UTF-8"
    if isinstance(error, PermissionError) and error.filename is not None:
        return f"this user may not use {str(error.filename)!r}. Change who may (chmod), or name another place"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror[:1].lower()}{error.strerror[1:]}: {error.filename!r}"
    return str(error).removesuffix(".")
