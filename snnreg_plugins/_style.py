"""The look of results in print and as pictures, and how they write numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from snnreg_plugins._files import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

# Okabe and Ito 2008: distinct for every kind of colour vision.
BLUE, SKY, ORANGE, GREY = "#0072B2", "#56B4E9", "#D55E00", "#555555"
_PLOT_STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.edgecolor": "#999999",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "axes.labelcolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "legend.frameon": False,
    "figure.facecolor": "white",
}


@contextmanager
def drawn(path: str | os.PathLike[str], height: float) -> Iterator[list[Axes]]:
    """Draw three panels side by side to a PNG (or what the suffix says); it appears when it is complete.

    Args:
        path: The file.
        height: Of the picture, in inches.

    Yields:
        The panels.

    Raises:
        ModuleNotFoundError: If matplotlib is missing.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise ModuleNotFoundError('save_plot needs matplotlib: pip install "snnreg_plugins[plot]"') from error

    with rc_context(_PLOT_STYLE), atomic(path) as temporary:
        # The legends stand below the panels and take no part in the layout, which they would squeeze.
        layout = ConstrainedLayoutEngine(rect=(0, 0.5 / height, 1, 1 - 0.5 / height), wspace=0.04)
        figure = Figure(figsize=(12, height), layout=layout)  # not by pyplot, which keeps it and wants a display
        yield list(figure.subplots(1, 3))
        figure.savefig(temporary, format=temporary.suffix[1:] or "png", dpi=160)


def legend_below(axes: Axes, columns: int = 2) -> None:
    """Put the legend of a panel below it."""
    legend = axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        borderaxespad=3.8,
        ncols=columns,
        columnspacing=1.2,
        handlelength=2.2,
    )
    legend.set_in_layout(False)


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
