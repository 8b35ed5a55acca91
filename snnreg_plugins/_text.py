"""Numbers and tables for people to read in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def plain_table(title: str) -> Table:
    """Make an empty table with one rule below its header."""
    from rich import box
    from rich.table import Table

    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )


def scaled(value: float, prefixes: dict[int, str]) -> str:
    """Write a number ≥ 0 with three digits and a prefix for a power of 1000."""
    if not value:
        return f"0{prefixes[0]}"
    digits, exponent = f"{value:.2e}".split("e")  # rounded first: 999.6 is 1.00k
    group = min(max(int(exponent) // 3, min(prefixes)), max(prefixes))
    shown = f"{float(f'{digits}e{int(exponent) - 3 * group}'):#.3g}".rstrip(".")
    return f"{shown}{prefixes[group]}"


def count(value: float) -> str:
    """Write a count.

    Example:
        >>> count(24_700), count(12), count(0)
        ('24.7k', '12.0', '0')
    """
    return scaled(value, {0: "", 1: "k", 2: "M", 3: "G", 4: "T"})


def joule(value: float) -> str:
    """Write an energy in J.

    Example:
        >>> joule(1.17e-7), joule(0)
        ('117 nJ', '0 J')
    """
    return scaled(value, {-4: " pJ", -3: " nJ", -2: " µJ", -1: " mJ", 0: " J"})
