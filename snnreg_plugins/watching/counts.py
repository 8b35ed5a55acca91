"""Whole numbers by row and time step, kept where the pass that made them counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

#: By row and column the numbers of each time step.
Table: TypeAlias = dict[tuple[int, int], list[int]]

# Calls that are added up at once: adding up takes time in each pass, and waiting takes memory.
_AT_ONCE = 4096


class StepCounts:
    """Numbers by row, column and time step; Python's integers, so they are exact.

    Example:
        >>> counts = StepCounts()
        >>> counts.add(0, 0, 0, [1, 2])
        >>> counts.keep()
        >>> counts.add(0, 0, 0, [10])  # of a pass that does not count
        >>> counts.drop()
        >>> counts.table()
        {(0, 0): [1, 2]}
    """

    def __init__(self) -> None:
        self._pass: list[tuple[int, int, int, Sequence[int]]] = []  # of the one under way
        self._told: list[tuple[int, int, int, Sequence[int]]] = []  # the same, of steps that count from the first pass
        self._kept: list[tuple[int, int, int, Sequence[int]]] = []
        self._table: Table = {}

    def add(self, row: int, column: int, first_step: int, values: Sequence[int], told: bool = False) -> None:
        """Add numbers of the pass under way, of a step and of those after it.

        Args:
            row: Row.
            column: Column.
            first_step: The step: of the pass, or, if it was ``told``, of all passes that the samples take.
            values: A number for each step.
            told: Whether who runs the steps tells which they are.
        """
        (self._told if told else self._pass).append((row, column, first_step, values))

    def steps(self, before: int = 0) -> int:
        """Count the time steps of the pass under way, whose samples took some before it."""
        own = max((first + len(values) for _, _, first, values in self._pass), default=0)
        told = max((first + len(values) for _, _, first, values in self._told), default=0)
        return max(own, told - before)

    def keep(self, before: int = 0) -> None:
        """Let the pass under way count.

        Args:
            before: Time steps that its samples took in passes before it.
        """
        if before:
            self._pass = [(row, column, first + before, values) for row, column, first, values in self._pass]
        self._kept.extend(self._pass)
        self._kept.extend(self._told)
        self.drop()
        if len(self._kept) > _AT_ONCE:
            self.table()

    def drop(self) -> None:
        """Forget the pass under way."""
        self._pass.clear()
        self._told.clear()

    def add_table(self, table: Mapping[tuple[int, int], list[int]]) -> None:
        """Add the sums of passes that count."""
        self._kept.extend((row, column, 0, list(values)) for (row, column), values in table.items())

    def table(self) -> Table:
        """Give the sums of all passes that count; not to be written to."""
        alike: dict[tuple[int, int, int, int], list[Sequence[int]]] = {}
        for row, column, first, values in self._kept:
            alike.setdefault((row, column, first, len(values)), []).append(values)
        for (row, column, first, size), lists in alike.items():
            sums = self._table.setdefault((row, column), [])
            sums.extend([0] * (first + size - len(sums)))
            for step, values in enumerate(zip(*lists, strict=True), start=first):
                sums[step] += sum(values)
        self._kept.clear()
        return self._table


def added(tables: Sequence[Mapping[tuple[int, int], list[int]]]) -> Table:
    """Add up tables, such as those of several processes."""
    counts = StepCounts()
    for table in tables:
        counts.add_table(table)
    return counts.table()


def total(table: Table, row: int, column: int, steps: int | None = None) -> int:
    """Sum up a row's numbers, of the first time steps or of all."""
    return sum(table.get((row, column), ())[:steps])
