"""Numbers and tables as text: how results are written wherever they are printed or drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def new_table(title: str) -> Table:
    """Make an empty table."""
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


def in_short(value: float) -> str:
    """Write a count, such as 1.23k."""
    return scaled(value, {0: "", 1: "k", 2: "M", 3: "G", 4: "T"})


def in_joules(value: float) -> str:
    """Write an energy, such as 1.23 nJ."""
    return scaled(value, {-4: " pJ", -3: " nJ", -2: " µJ", -1: " mJ", 0: " J"})


def span(low: float | None, high: float | None) -> str:
    """Write the range of thresholds; nothing if there are none."""
    if low is None or high is None:
        return ""
    return f"{low:.3g}" if low == high else f"{low:.3g}..{high:.3g}"
