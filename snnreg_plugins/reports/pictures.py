"""The figures of a result as panels of a picture, by matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from snnreg_plugins._pictures import BLUE, GREY, ORANGE, SKY, legend_below, literal
from snnreg_plugins.reports.figures import Bars, Lines, Role

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LOOKS: dict[Role, dict[str, Any]] = {
    "snn": {"color": BLUE, "linewidth": 2, "marker": "o", "markersize": 5, "zorder": 3},
    "mac": {"color": BLUE, "linewidth": 1.8, "linestyle": (0, (1, 1.5))},
    "dnn": {"color": ORANGE, "linewidth": 1.8},
    "dense": {"color": ORANGE, "linewidth": 1.8, "linestyle": (0, (4, 2))},
}
_FILLS: dict[Role, str] = {"snn": BLUE, "mac": SKY, "dnn": ORANGE, "dense": GREY}
# Bars that a panel has room for at least, so that few are not thick.
_ROOM = 4


def lines(axes: Axes, figure: Lines) -> None:
    """Draw lines over time steps."""
    for one in figure.series:
        axes.plot(figure.steps, one.values, label=one.label, **_LOOKS[one.role])
    for one in figure.levels:
        axes.axhline(one.values[0], label=one.label, **_LOOKS[one.role])
    axes.set_xscale("log", base=2)
    axes.set_xticks(figure.steps, [str(step) for step in figure.steps])
    axes.set(title=figure.title, xlabel="Time steps T", ylabel=figure.unit)
    if figure.logarithmic and any(value > 0 for one in (*figure.series, *figure.levels) for value in one.values):
        from matplotlib.ticker import LogLocator

        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.yaxis.set_major_formatter(lambda value, _: figure.write(value))
    axes.minorticks_off()
    legend_below(axes)


def bars(axes: Axes, figure: Bars) -> None:
    """Draw one horizontal bar below the other, the first on top."""
    places = range(len(figure.bars))
    drawn = axes.barh(
        places,
        [bar.value for bar in figure.bars],
        height=0.6,
        color=[_FILLS[bar.role] for bar in figure.bars] or BLUE,
    )
    axes.bar_label(drawn, [bar.written for bar in figure.bars], padding=4, color=GREY)
    axes.set_yticks(places, [literal(bar.name) for bar in figure.bars])
    axes.set_ylim(max(len(figure.bars), _ROOM) - 0.5, -0.5)
    axes.margins(x=0.18)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set(title=figure.title, xlabel=figure.unit)
