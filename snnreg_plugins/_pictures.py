"""The look of results as pictures."""

from __future__ import annotations

import itertools
import math
import os
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from snnreg_plugins._files import atomic
from snnreg_plugins._imports import needed
from snnreg_plugins._text import in_joules, in_rate, in_short, joules_of, one_line, tick_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito 2008: distinct for every kind of colour vision.
BLUE, SKY, ORANGE, GREY = "#0072B2", "#56B4E9", "#D55E00", "#555555"
GREEN, PURPLE, LIGHT = "#009E73", "#CC79A7", "#EEF5FA"
# Characters of a line of the sentence above a picture, and the height of one, in inches.
_LINE, _ROW = 125, 0.25
#: What a PNG says of who drew it.
SOFTWARE = "snnreg_plugins"
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
def drawn(
    path: str | os.PathLike[str],
    height: float,
    panels: int = 3,
    heading: tuple[str, str] = ("", ""),
    below: float = 0.5,
) -> Iterator[list[Axes]]:
    """Draw panels side by side to a PNG (or what the suffix says); it appears when it is complete.

    Args:
        path: The file.
        height: Of the picture, in inches.
        panels: How many.
        heading: A title, and a sentence below it.
        below: What is kept free for the legends below the panels, in inches.

    Yields:
        The panels.

    Raises:
        ModuleNotFoundError: If matplotlib is missing.
    """
    rc_context, figure_class = _matplotlib("save_plot")
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with rc_context(_PLOT_STYLE), atomic(path) as temporary:
        title, sentence = heading[0], textwrap.fill(heading[1], _LINE)
        above = _ROW * ((title != "") + len(sentence.splitlines())) + (0.15 if title or sentence else 0.0)
        height += above
        # The legends stand below the panels and take no part in the layout, which they would squeeze.
        layout = ConstrainedLayoutEngine(rect=(0, below / height, 1, 1 - (below + above) / height), wspace=0.04)
        figure = figure_class(figsize=(12, height), layout=layout)  # not by pyplot, which keeps it and wants a display
        if title:
            figure.text(0.01, 1 - 0.12 / height, literal(title), va="top", fontsize=13, fontweight="bold")
        if sentence:
            top = 1 - (0.14 + _ROW * (title != "")) / height
            figure.text(0.01, top, "\n".join(map(literal, sentence.splitlines())), va="top", fontsize=11, color=GREY)
        yield list(figure.subplots(1, panels, squeeze=False).flatten())
        kind = temporary.suffix[1:] or "png"
        metadata = {"Software": SOFTWARE} if kind == "png" else None
        figure.savefig(temporary, format=kind, dpi=160, metadata=metadata)


def plot_layers(values: Mapping[str, float], title: str, unit: str, ax: Axes | None = None) -> tuple[Any, Axes]:
    """Draw a horizontal bar for each layer, the first on top.

    Args:
        values: Numbers ≥ 0 by layer; nan for a layer that was not run.
        title: Of the picture.
        unit: Of the numbers.
        ax: Where to draw; on a new figure of pyplot if None.

    Returns:
        The figure and the axes.

    Raises:
        ModuleNotFoundError: If matplotlib is missing.
    """
    rc_context, _ = _matplotlib("plot")
    written = _WRITTEN.get(unit, in_short)
    with rc_context(_PLOT_STYLE):
        ax = ax or _new_axes(1.4 + 0.3 * max(len(values), 3))
        numbers = [0.0 if math.isnan(value) else value for value in values.values()]
        labels = ["not run" if math.isnan(value) else written(value) for value in values.values()]
        bars = ax.barh(range(len(values)), numbers, height=0.6, color=BLUE)
        ax.bar_label(bars, labels, padding=4, color=GREY)
        ax.set_yticks(range(len(values)), [literal(name) for name in values])
        ax.set_ylim(max(len(values), 3) - 0.5, -0.5)
        ax.set_xlim(0, 1.2 * max(numbers, default=0.0) or 1.0)
        ax.grid(visible=False, axis="y")
        ax.tick_params(axis="y", length=0)
        write: Callable[[float], str] = tick_count
        if unit == "J / sample":  # once, and not at each tick
            prefixed, write = joules_of(max(numbers, default=0.0))
            unit = f"{prefixed} / sample"
        ax.set(title=title, xlabel=unit)
        ax.xaxis.set_major_formatter(lambda value, _: write(value))
    return ax.get_figure(), ax


def plot_counts(counts: Mapping[str, list[int]], title: str, unit: str, ax: Axes | None = None) -> tuple[Any, Axes]:
    """Draw a line for each layer: the share of all that each number, from 0 on, has.

    Args:
        counts: How often each number occurred, by layer.
        title: Of the picture.
        unit: Of the numbers.
        ax: Where to draw; on a new figure of pyplot if None.

    Returns:
        The figure and the axes.

    Raises:
        ModuleNotFoundError: If matplotlib is missing.
    """
    rc_context, _ = _matplotlib("plot")
    with rc_context(_PLOT_STYLE):
        ax = ax or _new_axes(4)
        for (name, numbers), marker in zip(counts.items(), itertools.cycle("os^vDP*X"), strict=False):
            shares = [100 * number / max(1, sum(numbers)) for number in numbers]
            ax.plot(range(len(shares)), shares, marker=marker, markersize=4, linewidth=1.4, label=name)
        if counts:
            ax.legend(fontsize=8)
        ax.set(title=title, xlabel=unit, ylabel="Share (%)")
        ax.set_ylim(bottom=0)
    return ax.get_figure(), ax


def _new_axes(height: float) -> Axes:
    from matplotlib import pyplot

    axes: Axes = pyplot.subplots(figsize=(6.4, height), layout="constrained")[1]
    return axes


def layers_figure(values: Mapping[str, float], title: str, unit: str) -> Figure:
    """Draw as :func:`plot_layers` on a figure that nothing but the caller keeps."""
    rc_context, figure_class = _matplotlib("A figure")
    with rc_context(_PLOT_STYLE):
        figure: Figure = figure_class(figsize=(6.4, 1.4 + 0.3 * max(len(values), 3)), layout="constrained")
        plot_layers(values, title, unit, figure.subplots())
    return figure


def histograms_figure(values: Mapping[str, Any], title: str, unit: str, bins: int = 20) -> Figure:
    """Draw for each layer how its numbers in [0, 1], such as rates, are spread.

    Args:
        values: Tensors by layer.
        title: Of the picture.
        unit: Of the numbers.
        bins: Number of bins.

    Raises:
        ModuleNotFoundError: If matplotlib is missing.
    """
    rc_context, figure_class = _matplotlib("A figure")
    columns = min(len(values), 4)
    rows = -(-len(values) // columns)
    with rc_context(_PLOT_STYLE):
        figure: Figure = figure_class(figsize=(3 * columns, 0.5 + 2.2 * rows), layout="constrained")
        figure.suptitle(title, fontsize=11, fontweight="bold")
        panels = figure.subplots(rows, columns, squeeze=False).flatten()
        for ax, (name, numbers) in zip(panels, values.items(), strict=False):
            numbers = numbers.flatten().tolist()
            ax.hist(numbers, bins, range=(0, 1), color=BLUE, weights=[100 / len(numbers)] * len(numbers))
            ax.set_title(name, fontsize=9)
            ax.set(xlim=(0, 1), xlabel=unit, ylabel="Neurons (%)")
        for ax in panels[len(values) :]:
            ax.remove()
    return figure


def _matplotlib(what: str) -> tuple[Callable[..., Any], Any]:
    with needed(what, "matplotlib", "snnreg_plugins[plot]"):
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    return rc_context, Figure


def literal(text: str) -> str:
    """Write text so that matplotlib reads no formula in it."""
    return one_line(text).replace("$", r"\$")


def legend_below(axes: Axes, columns: int = 2) -> None:
    """Put the legend of a panel below it, if there is something to tell of."""
    if not axes.get_legend_handles_labels()[0]:
        return
    legend = axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        borderaxespad=3.8,
        ncols=columns,
        columnspacing=1.2,
        handlelength=2.2,
    )
    legend.set_in_layout(False)


# How numbers are written, by their unit; counts, and what is like them, otherwise.
_WRITTEN: dict[str, Callable[[float], str]] = {"J / sample": in_joules, "Spikes / neuron / step": in_rate}
