"""``snnreg front``: what the trainings of a sweep show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from snnreg_plugins._console import say
from snnreg_plugins.cli.parser import Parser

_ABOUT = "Draw score against operations and energy of the results of sweeps, and tell what is best."


def main(words: Sequence[str]) -> None:
    """Run ``snnreg front`` with the words behind it."""
    parser = Parser(prog="snnreg front", description=_ABOUT)
    parser.add_argument("--config", action="config", help="A YAML file with these arguments.")
    parser.add_argument("results", nargs="+", help="Results of one or more sweeps: results.csv or results.parquet.")
    parser.add_argument(
        "--output", type=str, help="The page, such as front.html; beside the first results if not given. A PNG is too."
    )
    parser.add_argument(
        "--count-zero-weights",
        type=bool,
        help="Whether a weight of exactly zero is a synapse; if not given it is, unless a sweep has pruned.",
    )
    given = parser.parse_args(list(words))
    # Here, as it takes seconds: --help and wrong words are answered before.
    from snnreg_plugins.sweeps import find_front, read_results, write_front

    found = find_front(read_results(given.results), given.count_zero_weights)
    path = Path(given.results[0]).with_name("front.html") if given.output is None else Path(given.output)
    found.print()
    say(f"Written: {', '.join(write_front(found, path))}")
