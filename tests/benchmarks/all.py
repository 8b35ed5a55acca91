"""Run the benchmarks whose tables the docs print, and say which figures differ by more than their noise.

    python -m tests.benchmarks.all                      # all of docs/benchmarks.md: hours
    python -m tests.benchmarks.all conversion energy    # these
    python -m tests.benchmarks.all --quick              # five minutes of each; what was printed by then
    python -m tests.benchmarks.all energy --update      # and put its table into its page
    python -m tests.benchmarks.all --output printed     # keep what each printed, as printed/NAME.md

``docs/benchmarks.md`` says which command belongs to which page, and how noisy its figures are: ``0.5 points, 5 %`` is
half a point for what is written in percent, and 5 % of all other numbers. A table that is printed is compared with the
table of that page that has the same columns, row by row; one that has none is left out. Commands run in the current
folder, where what they train is kept.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from snnreg_plugins._console import show
from snnreg_plugins._text import Column, Row, Table

DOCS = Path(__file__).parents[2] / "docs"
HOME = "benchmarks.md"
QUICK = 300  # seconds
KEYS = ("T", "strength")  # columns that, with the first one, tell the rows of a table apart
_PLAIN = r"[-+]?\d[\d,]*(?:\.\d+)?[kM]?"
_NUMBER = re.compile(rf"(?<![\w.])({_PLAIN})(?: ± ({_PLAIN}))?(?![\w.])( %)?")
_FACTORS = {"k": 1e3, "M": 1e6}


class Noise(NamedTuple):
    """How far figures are from run to run: those in percent by so many points, all others by a share."""

    points: float
    share: float


class Number(NamedTuple):
    """A number of a cell, with half of what its last digit is worth; the spread behind ± is none of its own."""

    value: float
    half: float
    spread: float
    is_percent: bool


@dataclass(frozen=True)
class Benchmark:
    """A command, and the page with its table.

    Args:
        name: Of its module; with a number from the second command of that on.
        command: Words behind ``python``.
        page: Name of the page; empty if none prints its figures.
        noise: Of its figures.
    """

    name: str
    command: tuple[str, ...]
    page: str
    noise: Noise


@dataclass(frozen=True)
class Figures:
    """A table: its lines, the names of its columns, and its rows by what tells them apart."""

    text: str
    columns: tuple[str, ...]
    rows: dict[tuple[str, ...], list[str]]


def benchmarks(text: str) -> dict[str, Benchmark]:
    """Read which there are from the first table of their page."""
    table = next(tables_of(text))
    found = {}
    for cells in table.rows.values():
        row = dict(zip(table.columns, cells, strict=True))
        words = shlex.split(row["command"].strip("`"))
        module = words[2].rpartition(".")[2]
        before = sum(one.command[1] == words[2] for one in found.values())
        name = f"{module}-{before + 1}" if before else module
        page = row["table"].strip("[]()")
        found[name] = Benchmark(name, tuple(words[1:]), HOME if page == "below" else page, noise_of(row["noise"]))
    return found


def noise_of(text: str) -> Noise:
    """Read how noisy figures are.

    Example:
        >>> noise_of("0.5 points, 5 %")
        Noise(points=0.5, share=0.05)
    """
    found = re.fullmatch(r"(?:(\S+) points?, )?(\S+) %", text)
    if found is None:
        raise ValueError(f"Expected noise such as '0.5 points, 5 %', but {HOME} has {text!r}.")
    points, share = found.groups(default="0")
    return Noise(float(points), float(share) / 100)


def tables_of(text: str) -> Iterator[Figures]:
    """Walk the Markdown tables in a text; rows are told apart by their first cell and those of ``KEYS``."""
    for is_table, lines in groupby(text.splitlines(), lambda line: line.startswith("|")):
        if is_table:
            own = list(lines)
            header, _, *rows = [[cell.strip() for cell in line.strip()[1:-1].split("|")] for line in own]
            marks = [index for index, column in enumerate(header) if index == 0 or column in KEYS]
            named = {tuple(row[index] for index in marks): row for row in rows}
            yield Figures("\n".join(own), tuple(header), named)


def numbers(cell: str) -> list[Number]:
    """Read the numbers of a cell.

    Example:
        >>> [(it.value, it.is_percent) for it in numbers("88.2 ± 0.3 % / 1,493k")]
        [(88.2, True), (1493000.0, False)]
    """
    found = []
    for value, spread, percent in _NUMBER.findall(cell):
        places = len(value.rstrip("kM").partition(".")[2])
        half = 0.5 * 10.0**-places * _FACTORS.get(value[-1], 1.0)
        found.append(Number(_worth(value), half, _worth(spread or "0"), bool(percent)))
    return found


def _worth(text: str) -> float:
    return float(text.replace(",", "").rstrip("kM")) * _FACTORS.get(text[-1], 1.0)


def differ(told: str, found: str, noise: Noise) -> bool:
    """Tell whether the numbers of two cells differ by more than their noise; where there are none, the words."""
    before, after = numbers(told), numbers(found)
    if len(before) != len(after) or not before:
        return len(before) != len(after) or told != found
    for one, other in zip(before, after, strict=True):
        much = noise.points if one.is_percent else noise.share * abs(one.value)
        far = max(abs(one.value - other.value), abs(one.spread - other.spread))
        if far > much + one.half + other.half or one.is_percent != other.is_percent:
            return True
    return False


def pairs(page: str, printed: str) -> Iterator[tuple[Figures, Figures]]:
    """Match each printed table with that of a page which has the same columns and the most rows alike."""
    for found in tables_of(printed):
        alike = [table for table in tables_of(page) if table.columns == found.columns]
        told = max(alike, key=partial(_likeness, found), default=None)
        if told is not None and told.rows.keys() & found.rows.keys():
            yield told, found


def _likeness(found: Figures, told: Figures) -> tuple[int, int]:
    """Tell how many rows two tables share, and then how few the second has beside."""
    return len(told.rows.keys() & found.rows.keys()), -len(told.rows)


def compared(page: str, printed: str, noise: Noise, whole: bool = True) -> tuple[int, list[tuple[str, ...]]]:
    """Compare the tables that were printed with those of a page.

    Args:
        page: The page's text.
        printed: What a benchmark printed.
        noise: Of its figures.
        whole: It printed all that it has; a row of the page that is missing then differs.

    Returns:
        How many cells were compared; and of those that differ the row, the column, what the page says, and what was
        found.
    """
    count, differing = 0, []
    for told, found in pairs(page, printed):
        for key in {**told.rows, **found.rows}:
            if key not in found.rows and not whole:
                continue
            before, after = (table.rows.get(key, [""] * len(found.columns)) for table in (told, found))
            for column, one, other in zip(found.columns[1:], before[1:], after[1:], strict=True):
                if column not in KEYS and (one or other):
                    count += 1
                    if differ(one, other, noise):
                        differing.append((", ".join(key), column, one, other))
    return count, differing


def run(benchmark: Benchmark, limit: float | None) -> str:
    """Run a command, and give what it printed, until it was stopped."""
    try:
        done = subprocess.run([sys.executable, *benchmark.command], stdout=subprocess.PIPE, timeout=limit, check=True)
    except subprocess.TimeoutExpired as stopped:
        return (stopped.stdout or b"").decode()
    return done.stdout.decode()


def main() -> None:
    """Run benchmarks, and print what differs."""
    known = benchmarks((DOCS / HOME).read_text())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=f"which: {', '.join(known)}; all if none is given")
    parser.add_argument("--quick", action="store_true", help=f"stop each after {QUICK} s")
    parser.add_argument("--update", action="store_true", help="put the tables that differ into the pages")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="keep what each printed in FOLDER/NAME.md")
    options = parser.parse_args()
    if options.quick and options.update:
        parser.error("--update needs whole tables; leave --quick out")
    unknown = [name for name in options.names if name not in known]
    if unknown:
        parser.error(f"there is no benchmark {', '.join(unknown)}. There are {', '.join(known)}")
    failed = False
    for name in options.names or known:
        benchmark = known[name]
        print(f"{name}: python {shlex.join(benchmark.command)}", flush=True)
        try:
            printed = run(benchmark, QUICK if options.quick else None)
        except subprocess.CalledProcessError as error:
            print(f"It failed, with exit code {error.returncode}.")
            failed = True
            continue
        if options.output:
            options.output.mkdir(parents=True, exist_ok=True)
            (options.output / f"{name}.md").write_text(printed)
        page = (DOCS / benchmark.page).read_text() if benchmark.page else ""
        count, differing = compared(page, printed, benchmark.noise, not options.quick)
        if not count:
            print(f"No figure of it stands in a table of {benchmark.page or 'the docs'}. It printed:\n{printed}")
            continue
        print(f"{count - len(differing)} of {count} figures are as {benchmark.page} has them.")
        if differing and options.update:
            for told, found in pairs(page, printed):
                page = page.replace(told.text, found.text)
            (DOCS / benchmark.page).write_text(page)
        if differing:
            columns = ("Row", "Column", benchmark.page, "now")
            show([Table("These differ", tuple(map(Column, columns)), tuple(map(Row, differing)))])
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
