"""Scores against costs, as a figure: what it shows as plain data, and how picture and page draw it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from snnreg_plugins._pictures import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, literal
from snnreg_plugins.reports import charts
from snnreg_plugins.reports.charts import tag

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Of Okabe and Ito 2008 (see `_pictures`), with brown for yellow, which is too light for lines; signs tell apart too.
COLORS = (GREY, BLUE, ORANGE, GREEN, PURPLE, SKY, "#E69F00", "#8B5A2B")
_MARKERS = "os^Dv*PX"
_DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (8, 2)))


@dataclass(frozen=True)
class Style:
    """How points look that belong together.

    Args:
        kind: Gives them a colour and a sign.
        variant: Of those of that kind, gives them a dash.
    """

    kind: int
    variant: int

    @property
    def names(self) -> str:
        """The classes of the style sheet."""
        return f"c{self.kind % len(COLORS)} d{self.variant % len(_DASHES)}"


def styles_of(labels: Iterable[str]) -> dict[str, Style]:
    """Give a style to each label; what differs in what stands behind the first comma is of one kind.

    Example:
        >>> styles_of(["none", "l1, uniform", "l1, fan-out"])["l1, fan-out"]
        Style(kind=1, variant=1)
    """
    kinds: dict[str, list[str]] = {}
    for label in labels:
        kinds.setdefault(label.partition(",")[0], []).append(label)
    return {label: Style(kind, n) for kind, of_kind in enumerate(kinds.values()) for n, label in enumerate(of_kind)}


@dataclass(frozen=True)
class Cloud:
    """Points that belong together in a :class:`Scatter`.

    Args:
        label: What they are.
        best: Those that a line joins: x, y, and how far they are spread in x and y.
        others: x and y of the others.
        style: How they look.
    """

    label: str
    best: tuple[tuple[float, float, float, float], ...]
    others: tuple[tuple[float, float], ...]
    style: Style


@dataclass(frozen=True)
class Scatter:
    """What things score against what they cost; the costs on a logarithmic axis.

    Args:
        title: What it shows.
        x_unit: Of the costs.
        y_unit: Of the scores.
        clouds: The points.
        front: x and y of those that no other beats, by x.
        level: A score to compare with.
        level_label: What has it.
        low: The lowest score that is drawn; all if None.
        named: Whether it has a legend.
        said: The same in words.
        write_x: Writes a cost at the axis.
        write_y: Writes a score at the axis.
    """

    title: str
    x_unit: str
    y_unit: str
    clouds: tuple[Cloud, ...]
    front: tuple[tuple[float, float], ...]
    level: float
    level_label: str
    low: float | None
    named: bool
    said: str
    write_x: Callable[[float], str]
    write_y: Callable[[float], str]

    @property
    def shown(self) -> tuple[list[float], list[float]]:
        """X and y of all that is drawn: what scores too little is not, and takes no room in x either."""
        points = [point[:2] for cloud in self.clouds for point in (*cloud.best, *cloud.others)]
        points = [(x, y) for x, y in points if self.low is None or y >= self.low]
        return [x for x, _ in points], [*(y for _, y in points), self.level]


def draw(axes: Axes, figure: Scatter) -> None:
    """Draw scores against costs."""
    for cloud in figure.clouds:
        kind, dash = cloud.style.kind, _DASHES[cloud.style.variant % len(_DASHES)]
        color, marker = COLORS[kind % len(COLORS)], _MARKERS[kind % len(_MARKERS)]
        if cloud.others:
            x, y = zip(*cloud.others, strict=True)
            axes.scatter(x, y, s=7, color=color, alpha=0.3, linewidths=0, zorder=2)
        x, y, x_spread, y_spread = zip(*cloud.best, strict=True)
        how: dict[str, Any] = {
            "color": color,
            "linewidth": 1.4,
            "linestyle": dash,
            "elinewidth": 0.8,
            "marker": marker,
            "markersize": 4.5,
            "zorder": 3,
        }
        axes.errorbar(x, y, y_spread, x_spread, label=literal(cloud.label), **how)
    x, y = zip(*figure.front, strict=True)
    axes.plot(x, y, color="black", linewidth=5, alpha=0.15, solid_capstyle="round", label="Pareto front", zorder=1)
    axes.axhline(figure.level, color=GREY, linewidth=1, linestyle=(0, (4, 2)), label=literal(figure.level_label))
    axes.set_xscale("log")
    axes.set(title=figure.title, xlabel=figure.x_unit, ylabel=figure.y_unit)
    from matplotlib.ticker import LogLocator

    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter(lambda value, _: figure.write_x(value))
    axes.yaxis.set_major_formatter(lambda value, _: figure.write_y(value))
    axes.minorticks_off()
    xs, ys = figure.shown
    if figure.low is not None:
        axes.set_xlim(min(xs) / 1.2, max(xs) * 1.2)
        axes.set_ylim(figure.low, max(ys) + 0.05 * (max(ys) - figure.low))
    if figure.named:  # below all panels, where no line is
        whole: Any = axes.figure
        handles, labels = axes.get_legend_handles_labels()
        columns = max(1, min(6, _LETTERS // (max(map(len, labels)) + 6)))
        whole.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8.5)


# Of a line of the legend.
_LETTERS = 150
# As pictures have them, drawn around (0, 0).
_SIGNS = (
    "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0",
    "M-3.2 -3.2h6.4v6.4h-6.4z",
    "M0 -4l4 7h-8z",
    "M0 -4.2l4.2 4.2l-4.2 4.2l-4.2 -4.2z",
    "M0 4l4 -7h-8z",
    "M0 -4.5l1.3 3.2h3.3l-2.6 2.1l1 3.4l-3 -2l-3 2l1 -3.4l-2.6 -2.1h3.3z",
    "M-1.3 -4h2.6v2.7h2.7v2.6h-2.7v2.7h-2.6v-2.7h-2.7v-2.6h2.7z",
    "M-3.5 -2.2l1.3 -1.3l2.2 2.2l2.2 -2.2l1.3 1.3l-2.2 2.2l2.2 2.2l-1.3 1.3l-2.2 -2.2l-2.2 2.2l-1.3 -1.3l2.2 -2.2z",
)
_LEFT, _TOP, _WIDE, _HIGH, _BELOW = 46, 10, charts.WIDTH - 50, 200, 36


def swatch(style: Style) -> Markup:
    """Draw a line with its sign, for the legend."""
    line = tag("line", x1=0, x2=28, y1=7, y2=7, class_=f"line {style.names}")
    return tag("svg", line, _sign(style, 14, 7), viewBox="0 0 28 14", width=28, height=14, aria_hidden="true")


def chart(figure: Scatter) -> Markup:
    """Draw scores against costs as SVG."""
    xs, ys = figure.shown
    ticks, place_y = _even(ys)
    places, place_x = _logarithmic(xs)
    floor = ticks[0] if figure.low is None else figure.low

    def at(x: float, y: float) -> str:
        return f"{place_x(x):.1f} {place_y(max(y, floor)):.1f}"

    parts = list(_axes(figure, ticks, place_y, places, place_x))
    front = [at(x, y) for x, y in figure.front if y >= floor]
    if front:
        parts.append(tag("path", d="M" + "L".join(front), class_="front"))
    level = place_y(figure.level)
    parts.append(tag("line", x1=_LEFT, x2=_LEFT + _WIDE, y1=level, y2=level, class_="line dense dashed"))
    for cloud in figure.clouds:
        dots = "".join(f"M{at(x, y)}h.01" for x, y in cloud.others if y >= floor)
        if dots:
            parts.append(tag("path", d=dots, class_=f"dots {cloud.style.names}"))
        best = [point for point in cloud.best if point[1] >= floor]
        if not best:
            continue
        bars = "".join(
            f"M{at(x, y - dy)}L{at(x, min(y + dy, ticks[-1]))}M{at(max(x - dx, x / 2), y)}L{at(x + dx, y)}"
            for x, y, dx, dy in best
            if dx or dy
        )
        if bars:
            parts.append(tag("path", d=bars, class_=f"bars {cloud.style.names}"))
        parts.append(tag("path", d="M" + "L".join(at(x, y) for x, y, _, _ in best), class_=f"line {cloud.style.names}"))
        parts += [_sign(cloud.style, place_x(x), place_y(y)) for x, y, _, _ in best]
    height = _TOP + _HIGH + _BELOW
    box = f"0 0 {charts.WIDTH} {height}"
    return tag("svg", *parts, viewBox=box, role="img", aria_label=figure.said, class_="figure scatter")


def _sign(style: Style, x: float, y: float) -> Markup:
    place = f"translate({x:.1f} {y:.1f})"
    return tag("path", d=_SIGNS[style.kind % len(_SIGNS)], transform=place, class_=f"sign {style.names}")


def _axes(
    figure: Scatter,
    ticks: list[float],
    place_y: Callable[[float], float],
    places: list[float],
    place_x: Callable[[float], float],
) -> Iterator[Markup]:
    bottom = _TOP + _HIGH
    for tick in ticks:
        y = place_y(tick)
        yield tag("line", x1=_LEFT, x2=_LEFT + _WIDE, y1=y, y2=y, class_="grid")
        yield tag("text", figure.write_y(tick), x=_LEFT - 5, y=y + 4, text_anchor="end", class_="tick")
    for tick in places:
        x = place_x(tick)
        yield tag("line", x1=x, x2=x, y1=_TOP, y2=bottom, class_="grid")
        yield tag("text", figure.write_x(tick), x=x, y=bottom + 15, text_anchor="middle", class_="tick")
    middle = _LEFT + _WIDE / 2
    yield tag("text", figure.x_unit, x=middle, y=bottom + 31, text_anchor="middle", class_="tick")


def _even(numbers: list[float]) -> tuple[list[float], Callable[[float], float]]:
    """Choose about five round ticks, and where numbers are drawn."""
    low, high = min(numbers), max(numbers)
    step = charts.round_step(high - low or abs(high) or 1.0)
    first, last = math.floor(low / step + 1e-9), math.ceil((high if high > low else low + step) / step - 1e-9)
    ticks = [step * index for index in range(first, last + 1)]
    return ticks, lambda value: _TOP + _HIGH * (1 - (value - ticks[0]) / (ticks[-1] - ticks[0]))


def _logarithmic(numbers: list[float]) -> tuple[list[float], Callable[[float], float]]:
    """Choose ticks at 1, 2 and 5 times powers of ten, or fewer, and where numbers are drawn."""
    low, high = math.log10(min(numbers)), math.log10(max(numbers))
    low, high = (low - 0.06 * (high - low or 1), high + 0.06 * (high - low or 1))
    for factors in ((1, 2, 5), (1, 3), (1,)):
        powers = range(math.floor(low), math.ceil(high) + 1)
        ticks = [factor * 10.0**power for power in powers for factor in factors]
        ticks = [tick for tick in ticks if low <= math.log10(tick) <= high]
        if len(ticks) <= 5:
            break
    return ticks, lambda value: _LEFT + _WIDE * (math.log10(value) - low) / (high - low)
