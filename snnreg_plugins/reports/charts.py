"""The figures of the report's page as SVG, drawn by hand."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterator, Sequence

from markupsafe import Markup, escape

from snnreg_plugins._text import one_line
from snnreg_plugins.reports.figures import Bars, Lines, Role, Series, Stacks
from snnreg_plugins.reports.raster import Raster

# Figures are as wide as a phone in CSS pixels, so that their text is readable there, and larger elsewhere.
WIDTH = 320


_LEFT, _RIGHT, _TOP = 46, 4, 14


_PLOT, _BELOW = 170, 36


_CHAR = 6.2  # of a character of the usual size


def tag(element: str, *content: object, **attributes: object) -> Markup:
    """Make an element; text and attributes are escaped, what is markup is not.

    Args:
        element: Its name.
        content: What is in it.
        attributes: ``class_`` is ``class`` and ``stroke_width`` is ``stroke-width``.

    Example:
        >>> print(tag("p", "1 < 2", tag("b"), class_="a b"))
        <p class="a b">1 &lt; 2<b></b></p>
    """
    opening = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(one_line(_number(value)))}"'
        for name, value in attributes.items()
    )
    inside = "".join(part if isinstance(part, Markup) else escape(one_line(part)) for part in content)
    return Markup(f"<{element}{opening}>{inside}</{element}>")


def _number(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


# How a series looks, by its role: its class in the style sheet, and the sign of its points.
_LINES: dict[Role, tuple[str, str | None]] = {
    "snn": ("snn", "circle"),
    "mac": ("mac dotted", "square"),
    "dnn": ("dnn dashed", None),
    "dense": ("dense", None),
}
_FILLS: dict[Role, str] = {"snn": "snn", "mac": "mac hatched", "dnn": "dnn", "dense": "dense"}


def lines(figure: Lines) -> Markup:
    """Draw lines over time steps; on a logarithmic axis what is 0 is left out."""
    shown = [*figure.series, *figure.levels]
    numbers = [value for one in shown for value in one.values if value > 0 or not figure.logarithmic]
    ticks, place = (_decades if figure.logarithmic else _even)(numbers)
    at = _places(figure.steps)
    parts = [
        *_grid(ticks, place, figure.write),
        *_steps_axis(figure.steps, at, figure.marked),
    ]
    if figure.marked in figure.steps:
        parts.append(_guide(at[figure.steps.index(figure.marked)], _TOP, _TOP + _PLOT))
    for one in figure.series:
        style, sign = _LINES[one.role]
        points = [(x, place(y)) for x, y in zip(at, one.values, strict=True) if y > 0 or not figure.logarithmic]
        if points:
            path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
            parts.append(tag("path", d=path, class_=f"line {style}"))
        parts.extend(_sign(sign, x, y, style) for x, y in points if sign)
    parts += [_level(one, place) for one in figure.levels if one.values[0] > 0 or not figure.logarithmic]
    return _drawing(_TOP + _PLOT + _BELOW, figure.said, parts)


def stacks(figure: Stacks) -> Markup:
    """Draw stacked bars over time steps, and levels."""
    totals = figure.totals()
    numbers = [0.0, *(1.08 * total for total in totals), *(level.values[0] for level in figure.levels)]
    ticks, place = _even(numbers)
    slot = (WIDTH - _LEFT - _RIGHT) / len(figure.steps)
    at = [_LEFT + slot * (index + 0.5) for index in range(len(figure.steps))]
    drawn = [
        *_grid(ticks, place, figure.write),
        *_steps_axis(figure.steps, at, figure.marked),
    ]
    for index, x in enumerate(at):
        below = 0.0
        for part in figure.parts:
            top, bottom = place(below + part.values[index]), place(below)
            below += part.values[index]
            style = f"fill {_FILLS[part.role]}"
            drawn.append(tag("rect", x=x - 0.3 * slot, y=top, width=0.6 * slot, height=bottom - top, class_=style))
    drawn += [_level(level, place) for level in figure.levels]
    for x, total in zip(at, totals, strict=True):
        written = figure.write(total)
        if len(written) * _CHAR * 0.85 < slot:
            drawn.append(_text(written, x, place(total) - 4, "middle", "small halo"))
    return _drawing(_TOP + _PLOT + _BELOW, figure.said, drawn)


def bars(figure: Bars) -> Markup:
    """Draw one horizontal bar below the other, each with its name and number above, so that long names fit."""
    most = max((bar.value for bar in figure.bars), default=0.0) or 1.0
    parts = []
    for index, bar in enumerate(figure.bars):
        y = 34 * index
        room = int((WIDTH - 16 - _CHAR * len(bar.written)) / _CHAR)
        width = WIDTH * max(bar.value, 0.0) / most
        parts += [
            _text(_shortened(one_line(bar.name), room), 0, y + 14, "start", "name"),
            _text(bar.written, WIDTH, y + 14, "end", "value"),
            tag("rect", x=0, y=y + 19, width=WIDTH, height=9, class_="track"),
            tag("rect", x=0, y=y + 19, width=width, height=9, class_=f"fill {_FILLS[bar.role]}"),
        ]
    return _drawing(max(34 * len(figure.bars), 10), figure.said, parts)


def spikes(raster: Raster, sample: int, *, label: str, marked: int) -> Markup:
    """Draw when neurons spike: a row for each neuron, a column for each step, layer below layer.

    Args:
        raster: What was recorded.
        sample: Which sample of it.
        label: What is said of the figure to those who do not see it.
        marked: The T of the exported network.
    """
    cell, row = WIDTH / raster.timesteps, 4
    parts, y = [], 0
    for layer in raster.layers:
        height = row * len(layer.shown) + 4
        of = f"{len(layer.shown)} of {layer.neurons:,}"
        room = int((WIDTH - 16 - _CHAR * len(of)) / _CHAR)
        parts += [
            _text(_shortened(one_line(layer.name), room), 0, y + 12, "start", "name"),
            _text(of, WIDTH, y + 12, "end", "muted"),
            tag("rect", x=0, y=y + 17, width=WIDTH, height=height, class_="track"),
        ]
        ticks = "".join(
            f"M{cell * step + 0.1 * cell:.1f} {y + 19 + row * (neuron + 0.5):.0f}h{0.8 * cell:.1f}"
            for neuron, train in enumerate(layer.spikes[sample])
            for step, spike in enumerate(train)
            if spike == "1"
        )
        if ticks:
            parts.append(tag("path", d=ticks, class_="spike"))
        if marked < raster.timesteps:
            parts.append(_guide(cell * marked, y + 17, y + 17 + height))
        y += 17 + height + 8
    written = sorted({1, *(t for t in (marked, raster.timesteps) if t <= raster.timesteps)})
    for t in written:
        x = min(max(cell * (t - 0.5), 4.0), WIDTH - 8.0)
        parts.append(_text(str(t), x, y + 6, "middle", "tick"))
    parts.append(_text("Time step", WIDTH / 2, y + 20, "middle", "tick"))
    return _drawing(y + 26, label, parts)


def swatch(one: Series, filled: bool = False) -> Markup:
    """Draw a series as it is in the figure, for its legend."""
    if filled:
        drawn = [tag("rect", x=2, y=1, width=24, height=12, class_=f"fill {_FILLS[one.role]}")]
    else:
        style, sign = _LINES[one.role]
        drawn = [tag("line", x1=0, x2=28, y1=7, y2=7, class_=f"line {style}")]
        drawn += [_sign(sign, 14, 7, style)] if sign else []
    return tag("svg", *drawn, viewBox="0 0 28 14", width=28, height=14, aria_hidden="true")


def _sign(shape: str, x: float, y: float, style: str) -> Markup:
    """Draw the sign of a point."""
    if shape == "square":
        return tag("rect", x=x - 3.5, y=y - 3.5, width=7, height=7, class_=f"mark {style}")
    return tag("circle", cx=x, cy=y, r=4, class_=f"mark {style}")


def _level(one: Series, place: Callable[[float], float]) -> Markup:
    y = place(one.values[0])
    return tag("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y, class_=f"line {_LINES[one.role][0]}")


def _drawing(height: float, label: str, parts: Sequence[Markup]) -> Markup:
    return tag("svg", *parts, viewBox=f"0 0 {WIDTH} {height:.0f}", role="img", aria_label=label, class_="figure")


def _text(text: str, x: float, y: float, anchor: str, style: str) -> Markup:
    return tag("text", text, x=float(x), y=float(y), text_anchor=anchor, class_=style)


def _shortened(name: str, room: int) -> str:
    """Leave out the middle of a long name: its end tells it from others."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in name) + 0.8 * sum(c in "mwMW@%" for c in name)
    room = int(room * len(name) / (len(name) + wide)) if name else room
    if len(name) <= room:
        return name
    head = room // 3
    return f"{name[:head]}…{name[len(name) - (room - head - 1) :]}"


def _places(steps: Sequence[int]) -> list[float]:
    """Place time steps so that doubling them is the same way everywhere."""
    low, high = math.log2(steps[0]), math.log2(steps[-1])
    left, room = _LEFT + 12, WIDTH - _LEFT - _RIGHT - 24
    if low == high:
        return [left + room / 2]
    return [left + room * (math.log2(step) - low) / (high - low) for step in steps]


def _steps_axis(steps: Sequence[int], at: Sequence[float], marked: int) -> Iterator[Markup]:
    y, free = _TOP + _PLOT, -math.inf
    for step, x in zip(steps, at, strict=True):
        half = 3.5 * len(str(step)) + 2
        if x - half > free:
            free = x + half
            yield _text(str(step), x, y + 15, "middle", "tick strong" if step == marked else "tick")
    yield _text("Time steps T", (_LEFT + WIDTH - _RIGHT) / 2, y + 31, "middle", "tick")


def _guide(x: float, top: float, bottom: float) -> Markup:
    return tag("line", x1=x, x2=x, y1=top, y2=bottom, class_="line guide")


def _grid(ticks: Sequence[float], place: Callable[[float], float], write: Callable[[float], str]) -> Iterator[Markup]:
    for tick in ticks:
        y = place(tick)
        yield tag("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y, class_="grid")
        yield _text(write(tick), _LEFT - 5, y + 4, "end", "tick")


def _even(numbers: Sequence[float]) -> tuple[list[float], Callable[[float], float]]:
    """Choose about five round ticks, and where numbers are drawn."""
    low, high = min(numbers, default=0.0), max(numbers, default=0.0)
    span = high - low or abs(high) or 1.0
    rough = span / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil((high if high > low else low + span) / step - 1e-9)
    ticks = [step * index for index in range(first, last + 1)]

    def place(value: float) -> float:
        return _TOP + _PLOT * (1 - (value - ticks[0]) / (ticks[-1] - ticks[0]))

    return ticks, place


def _decades(numbers: Sequence[float]) -> tuple[list[float], Callable[[float], float]]:
    """Choose ticks at powers of ten, with 3 between them where these are few, and where numbers are drawn."""
    low, high = math.log10(min(numbers, default=1.0)), math.log10(max(numbers, default=10.0))
    bottom, top = math.floor(low + 1e-9), math.ceil(high - 1e-9)
    top = max(top, bottom + 1)
    every = max(1, math.ceil((top - bottom) / 6))
    ticks = [10.0**power for power in range(bottom, top + 1, every)]
    if top - bottom <= 2:
        ticks = sorted([*ticks, *(3 * tick for tick in ticks[:-1])])

    def place(value: float) -> float:
        return _TOP + _PLOT * (1 - (math.log10(value) - bottom) / (top - bottom))

    return ticks, place
