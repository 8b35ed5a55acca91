"""The figures of a result as panels of a picture, by matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from snnreg_plugins._pictures import BLUE, GREEN, GREY, LIGHT, ORANGE, PURPLE, SKY, legend_below, literal
from snnreg_plugins._text import cut_short, times
from snnreg_plugins.reports.figures import Bars, Lines, Plane, Ratios, Role
from snnreg_plugins.reports.labels import Place, labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backend_bases import RendererBase

_LOOKS: dict[Role, dict[str, Any]] = {
    "snn": {"color": BLUE, "linewidth": 2, "marker": "o", "markersize": 5, "zorder": 3},
    "mac": {"color": BLUE, "linewidth": 1.8, "linestyle": (0, (1, 1.5))},
    "dnn": {"color": ORANGE, "linewidth": 1.8},
    "dense": {"color": ORANGE, "linewidth": 1.8, "linestyle": (0, (4, 2))},
}
_FILLS: dict[Role, str] = {
    "snn": BLUE, "mac": SKY, "dnn": ORANGE, "dense": GREY, "neurons": GREEN, "memory": "#BBBBBB",
}  # fmt: skip
# What a DNN's sign looks like, by what it does with zeros.
_SIGNS: dict[Role, dict[str, Any]] = {
    "dnn": {"marker": "D", "markersize": 7},
    "dense": {"marker": "s", "markersize": 7, "markerfacecolor": "white", "markeredgewidth": 1.8},
}
_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, GREY)
_DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))
# Bars that a panel has room for at least, so that few are not thick.
_ROOM = 4
# Letters of a name in a legend, in the width of a panel.
_ROOM_OF_NAMES = 40
# Size of the letters at points, in points.
_SMALL = 8


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


def plane(axes: Axes, figure: Plane) -> None:
    """Draw scores over what is spent: a curve for each model or run, and DNNs as points."""
    from matplotlib.ticker import LogLocator

    for curve in figure.curves:
        colour = _COLOURS[curve.colour % len(_COLOURS)]
        line = _DASHES[curve.colour % len(_DASHES)]
        how = {"color": colour, "linestyle": line, "marker": "o", "markersize": 5, "zorder": 3}
        axes.plot(curve.spent, curve.scores, label=literal(cut_short(curve.label, _ROOM_OF_NAMES)), **how)
    for point in figure.points:
        sign, colour = _SIGNS[point.role], _COLOURS[point.colour % len(_COLOURS)]
        axes.plot(point.spent, point.score, color=colour, linestyle="none", zorder=4, **sign)
    for one in figure.kinds:
        axes.plot([], [], color=GREY, linestyle="none", label=one.label, **_SIGNS[one.role])
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter(lambda value, _: figure.write_spent(value))
    axes.yaxis.set_major_formatter(lambda value, _: figure.write(value))
    axes.minorticks_off()
    axes.margins(x=0.08, y=0.1)
    spent, scores = figure.shown()
    if figure.floor is not None and spent:
        beside = max(1.1, (max(spent) / min(spent)) ** 0.08)
        axes.set_xlim(min(spent) / beside, max(spent) * beside)
        axes.set_ylim(figure.floor, max(scores) + 0.1 * (max(scores) - figure.floor))
    if figure.most is not None:
        axes.set_ylim(top=min(axes.get_ylim()[1], figure.most + 0.02 * (figure.most - axes.get_ylim()[0])))
    axes.set(title=figure.title, xlabel=f"{figure.unit}; numbers are T", ylabel=figure.score)
    _label_when_drawn(axes, figure)
    legend_below(axes, _columns(figure))


def below(figure: Plane) -> float:
    """Give the inches that the legend of :func:`plane` takes."""
    return 0.2 + 0.21 * -(-(len(figure.curves) + len(figure.kinds)) // _columns(figure))


def _columns(figure: Plane) -> int:
    """Choose the columns of a plane's legend: one where names are long."""
    return 2 if all(len(one.label) <= _ROOM_OF_NAMES // 2 for one in figure.curves) else 1


def _label_when_drawn(axes: Axes, figure: Plane) -> None:
    """Label points where there is room, which is known when the panel is drawn: then it has its place and size."""
    from matplotlib.artist import Artist

    texts = {
        (curve, index): axes.annotate(
            str(step), at, (0, 0), textcoords="offset points", ha="center", va="center_baseline", fontsize=_SMALL,
            color=_COLOURS[curve.colour % len(_COLOURS)], fontweight="bold" if step == curve.marked else "normal",
            path_effects=_halo(), zorder=5, in_layout=False, visible=False,
        )
        for curve in figure.curves
        for index, (at, step) in enumerate(zip(zip(curve.spent, curve.scores, strict=True), curve.steps, strict=True))
    }  # fmt: skip

    def place(spent: float, score: float) -> Place:
        x, y = axes.transData.transform((spent, score))
        return float(x), -float(y)

    class Placing(Artist):
        def draw(self, renderer: RendererBase) -> None:
            room = axes.bbox
            point: Any = renderer.points_to_pixels(1.0)
            box = room.x0, -room.y1, room.x1, -room.y0
            for one in labels(figure, place, _SMALL * point, box):
                text = texts[one.curve, one.point]
                text.set_visible(one.at is not None)
                if one.at is not None:
                    x, y = place(one.curve.spent[one.point], one.curve.scores[one.point])
                    text.xyann = (one.at[0] - x) / point, (y - one.at[1]) / point

    placing = Placing()
    placing.set_in_layout(False)
    axes.add_artist(placing)  # drawn before the texts, which stand above all


def ratios(axes: Axes, figure: Ratios) -> None:
    """Draw what the network spends over what DNNs do, around the line where both spend the same."""
    from matplotlib.ticker import LogLocator

    values = [value for row in figure.rows for _, value in row.values]
    axes.set_xscale("log")
    low, high = min([*values, 1.0]) / 2.2, max([*values, 1.0]) * 2.2
    axes.axvspan(low, 1, color=LIGHT, zorder=0)
    axes.axvline(1, color=GREY, linewidth=1.2)
    for place, row in enumerate(figure.rows):
        axes.plot([value for _, value in row.values], [place] * len(row.values), color="#BBBBBB", zorder=1)
        for above, (role, value) in zip((True, False), row.values, strict=False):
            colour = ORANGE if role == "dnn" else GREY
            axes.plot(value, place, color=colour, linestyle="none", zorder=3, **_SIGNS[role])
            # Beside the line at 1, which would cross it.
            side = "center" if not 0.7 < value < 1.4 else "right" if value < 1 else "left"
            shift = ({"center": 0, "right": -3, "left": 3}[side], 7 if above else -7)
            start = value if side == "center" else 1.0
            axes.annotate(
                times(value) if value >= 0.1 else f"{value:.2g}", (start, place), shift, textcoords="offset points",
                ha=side, va="bottom" if above else "top", color=colour, fontsize=9,
            )  # fmt: skip
    for one in figure.kinds:
        colour = ORANGE if one.role == "dnn" else GREY
        axes.plot([], [], color=colour, linestyle="none", label=f"over the {one.label}", **_SIGNS[one.role])
    axes.set_xlim(low, high)
    axes.set_ylim(max(len(figure.rows), _ROOM - 1) - 0.2, -0.6)
    axes.set_yticks(range(len(figure.rows)), [_rows(row.name) for row in figure.rows])
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set(title=figure.title, xlabel=figure.unit)
    axes.annotate("SNN spends less", (1, 0), (-6, 4), xycoords=("data", "axes fraction"), textcoords="offset points",
                  ha="right", va="bottom", color=GREY, fontsize=8)  # fmt: skip
    legend_below(axes, 1)


def bars(axes: Axes, figure: Bars) -> None:
    """Draw one horizontal bar below the other, the first on top."""
    places = range(len(figure.bars))
    starts = [0.0] * len(figure.bars)
    roles = dict.fromkeys(role for bar in figure.bars for role, _ in bar.parts)
    names = {one.role: one.label for one in figure.kinds}
    drawn = None
    for role in roles:
        values = [dict(bar.parts).get(role, 0.0) for bar in figure.bars]
        drawn = axes.barh(places, values, height=0.6, left=starts, color=_FILLS[role], label=names.get(role))
        starts = [start + value for start, value in zip(starts, values, strict=True)]
    if drawn is not None:
        for place, (end, bar) in enumerate(zip(starts, figure.bars, strict=True)):
            axes.annotate(bar.written, (end, place), (4, 0), textcoords="offset points", va="center", color=GREY)
    axes.set_yticks(places, [literal(bar.name) for bar in figure.bars])
    axes.set_ylim(max(len(figure.bars), _ROOM) - 0.5, -0.5)
    axes.set_xlim(0, 1.28 * max(starts, default=0.0) or 1.0)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set(title=figure.title, xlabel=figure.unit)
    axes.xaxis.set_major_formatter(lambda value, _: figure.write(value))
    if figure.kinds:
        legend_below(axes, 2)


def _halo() -> list[Any]:
    """Make what keeps a text readable where lines are behind it."""
    from matplotlib import patheffects

    return [patheffects.withStroke(linewidth=2.5, foreground="white")]


def _rows(name: str) -> str:
    return "\n".join(map(literal, name.split("\n")))
