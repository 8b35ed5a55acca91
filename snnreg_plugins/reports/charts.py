"""The figures of the report's page as SVG, drawn by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from markupsafe import Markup, escape

from snnreg_plugins._text import cut_short, one_line, times
from snnreg_plugins.reports.figures import Bars, Lines, Plane, Ratios, Role, Series, Stacks
from snnreg_plugins.reports.labels import Place, labels
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
_FILLS: dict[Role, str] = {
    "snn": "snn", "mac": "mac hatched", "dnn": "dnn", "dense": "dense", "neurons": "neurons", "memory": "memory",
}  # fmt: skip
# The sign of a DNN, by what it does with zeros, and how many colours curves have.
_SIGNS: dict[Role, str] = {"dnn": "diamond", "dense": "square"}
_COLOURS = 6


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
        style, shape = _LINES[one.role]
        points = [(x, place(y)) for x, y in zip(at, one.values, strict=True) if y > 0 or not figure.logarithmic]
        if points:
            path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
            parts.append(tag("path", d=path, class_=f"line {style}"))
        parts.extend(_sign(shape, x, y, style) for x, y in points if shape)
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
            y = _clear(place(total) - 4, [place(level.values[0]) for level in figure.levels])
            drawn.append(_text(written, x, y, "middle", "small halo"))
    return _drawing(_TOP + _PLOT + _BELOW, figure.said, drawn)


def _clear(y: float, crossing: Sequence[float]) -> float:
    """Move the foot of a text up until no horizontal line crosses it."""
    for line in sorted(crossing, reverse=True):
        if y - 10 < line < y + 3:
            y = line - 4
    return y


def plane(figure: Plane) -> Markup:
    """Draw scores over what is spent: a curve for each model with its T, and DNNs as points."""
    spent, scores = figure.shown()
    ticks, place = _even(scores if figure.floor is None else [figure.floor, *scores], figure.floor)
    floor = ticks[0] if figure.floor is None else figure.floor
    marks, across = _wide(spent)
    parts = [*_grid(ticks, place, figure.write)]
    for mark in marks:
        x = across(mark)
        parts.append(tag("line", x1=x, x2=x, y1=_TOP, y2=_TOP + _PLOT, class_="grid"))
        parts.append(_text(figure.write_spent(mark), x, _TOP + _PLOT + 15, "middle", "tick"))
    parts.append(_text(figure.unit, (_LEFT + WIDTH - _RIGHT) / 2, _TOP + _PLOT + 31, "middle", "tick"))
    for curve in figure.curves:
        style = f"curve{curve.colour % _COLOURS}"
        at = [(across(x), place(y), y) for x, y in zip(curve.spent, curve.scores, strict=True)]
        seen = [
            _cut(before[:2], after[:2], place(floor))
            for before, after in pairwise(at)
            if max(before[2], after[2]) >= floor
        ]
        path = "".join(f"M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" for (x1, y1), (x2, y2) in seen)
        if path:
            parts.append(tag("path", d=path, class_=f"line {style}"))
        for x, y, score in at:
            if score >= floor:
                parts.append(_sign("circle", x, y, style))
    for point in figure.points:
        style = f"curve{point.colour % _COLOURS}{' open' if point.role == 'dense' else ''}"
        parts.append(_sign(_SIGNS[point.role], across(point.spent), place(point.score), style))
    room = _LEFT, 0.0, WIDTH, place(floor) + 0.1
    for one in labels(figure, lambda x, y: (across(x), place(y)), 9.5, room):
        if one.at is not None:
            style = f"small halo curve{one.curve.colour % _COLOURS}{' strong' if one.strong else ''}"
            parts.append(_text(one.text, one.at[0], one.at[1] + 3.5, "middle", style))
    return _drawing(_TOP + _PLOT + _BELOW, figure.said, parts)


def _cut(before: Place, after: Place, bottom: float) -> tuple[Place, Place]:
    """Cut a line off where it falls below the bottom."""
    ends = [before, after]
    for one, other in ((0, 1), (1, 0)):
        (x, y), (u, v) = ends[one], ends[other]
        if y > bottom > v:
            ends[one] = x + (u - x) * (y - bottom) / (y - v), bottom
    return ends[0], ends[1]


def ratios(figure: Ratios) -> Markup:
    """Draw what the network spends over what DNNs do: a row for each model, around a line where both are one."""
    values = [value for row in figure.rows for _, value in row.values]
    low, high = math.log10(min([*values, 1.0])) - 0.25, math.log10(max([*values, 1.0])) + 0.25
    left, right = 12, WIDTH - 12

    def across(value: float) -> float:
        return left + (right - left) * (math.log10(value) - low) / (high - low)

    height, one = 52 * len(figure.rows), across(1.0)
    parts = [
        tag("rect", x=0, y=0, width=one, height=height + 4, class_="less"),
        tag("line", x1=one, x2=one, y1=0, y2=height + 4, class_="line even"),
    ]
    for index, row in enumerate(figure.rows):
        y = 52 * index + 30
        parts.append(_text(" ".join(row.name.split()), 2, y - 15, "start", "halo"))
        ends = sorted(across(value) for _, value in row.values)
        parts.append(tag("line", x1=ends[0], x2=ends[-1], y1=y, y2=y, class_="line grid"))
        beside = [(across(value), role, value) for role, value in row.values]
        for x, role, value in beside:
            parts.append(_sign(_SIGNS[role], x, y, role + (" open" if role == "dense" else "")))
            written = times(value) if value >= 0.1 else f"{value:.2g}"
            close = max(ends) - min(ends) < 34 and len(ends) > 1
            # Away from the other one, and beside the line at 1.
            anchor = "middle" if abs(x - one) > 16 else "end" if x < one else "start"
            anchor = ("end" if x == min(ends) else "start") if close else anchor
            start = x + {"middle": 0, "end": 4, "start": -4}[anchor]
            if abs(x - one) <= 16:
                start = min(start, one - 3) if anchor == "end" else max(start, one + 3)
            parts.append(_text(written, start, y + 17, anchor, "small halo"))
    parts.append(_text("spends less", max(one - 4, 60.0), height + 18, "end", "tick"))
    parts.append(_text("more than the DNN", one + 4, height + 18, "start", "tick"))
    return _drawing(height + 24, figure.said, parts)


def bars(figure: Bars) -> Markup:
    """Draw one horizontal bar below the other, each with its name and number above, so that long names fit."""
    most = max((bar.value for bar in figure.bars), default=0.0) or 1.0
    drawn = []
    for index, bar in enumerate(figure.bars):
        y = 34 * index
        room = int((WIDTH - 16 - _CHAR * len(bar.written)) / _CHAR)
        drawn += [
            _text(cut_short(one_line(bar.name), room), 0, y + 14, "start", "name"),
            _text(bar.written, WIDTH, y + 14, "end", "value"),
            tag("rect", x=0, y=y + 19, width=WIDTH, height=9, class_="track"),
        ]
        x = 0.0
        for role, value in bar.parts:
            width = WIDTH * max(value, 0.0) / most
            drawn.append(tag("rect", x=x, y=y + 19, width=width, height=9, class_=f"fill {_FILLS[role]}"))
            x += width
    return _drawing(max(34 * len(figure.bars), 10), figure.said, drawn)


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
        if layer.active is not None:
            of = f"{len(layer.shown)} of {layer.active:,} that spike"
        room = int((WIDTH - 16 - _CHAR * len(of)) / _CHAR)
        parts += [
            _text(cut_short(one_line(layer.name), room), 0, y + 12, "start", "name"),
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
    return _swatch(_swatch_of(one, filled))


def sign(role: Role, grey: bool = False) -> Markup:
    """Draw the sign of a DNN, for a legend; grey where its colour tells something else."""
    return _swatch([_sign(_SIGNS[role], 14, 7, ("key" if grey else role) + (" open" if role == "dense" else ""))])


def curve(colour: int) -> Markup:
    """Draw a piece of a curve, for a legend."""
    style = f"curve{colour % _COLOURS}"
    return _swatch([tag("line", x1=0, x2=28, y1=7, y2=7, class_=f"line {style}"), _sign("circle", 14, 7, style)])


def _swatch_of(one: Series, filled: bool) -> list[Markup]:
    if filled:
        return [tag("rect", x=2, y=1, width=24, height=12, class_=f"fill {_FILLS[one.role]}")]
    style, shape = _LINES[one.role]
    drawn = [tag("line", x1=0, x2=28, y1=7, y2=7, class_=f"line {style}")]
    return drawn + ([_sign(shape, 14, 7, style)] if shape else [])


def _swatch(drawn: Sequence[Markup]) -> Markup:
    return tag("svg", *drawn, viewBox="0 0 28 14", width=28, height=14, aria_hidden="true")


def _sign(shape: str, x: float, y: float, style: str) -> Markup:
    """Draw the sign of a point."""
    if shape == "square":
        return tag("rect", x=x - 3.5, y=y - 3.5, width=7, height=7, class_=f"mark {style}")
    if shape == "diamond":
        return tag("path", d=f"M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z", class_=f"mark {style}")
    return tag("circle", cx=x, cy=y, r=4, class_=f"mark {style}")


def _level(one: Series, place: Callable[[float], float]) -> Markup:
    y = place(one.values[0])
    return tag("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y, class_=f"line {_LINES[one.role][0]}")


def _drawing(height: float, label: str, parts: Sequence[Markup]) -> Markup:
    return tag("svg", *parts, viewBox=f"0 0 {WIDTH} {height:.0f}", role="img", aria_label=label, class_="figure")


def _text(text: str, x: float, y: float, anchor: str, style: str) -> Markup:
    return tag("text", text, x=float(x), y=float(y), text_anchor=anchor, class_=style)


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


def round_step(span: float) -> float:
    """Choose the step of about five round ticks over a span."""
    rough = span / 4
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)


def _even(numbers: Sequence[float], floor: float | None = None) -> tuple[list[float], Callable[[float], float]]:
    """Choose about five round ticks, and where numbers are drawn; from the lowest tick on, or from ``floor``."""
    low, high = min(numbers, default=0.0), max(numbers, default=0.0)
    span = high - low or abs(high) or 1.0
    step = round_step(span)
    first, last = math.floor(low / step + 1e-9), math.ceil((high if high > low else low + span) / step - 1e-9)
    ticks = [step * index for index in range(first, last + 1)]
    bottom = ticks[0] if floor is None else floor
    ticks = [tick for tick in ticks if tick >= bottom]

    def place(value: float) -> float:
        return _TOP + _PLOT * (1 - (value - bottom) / (ticks[-1] - bottom))

    return ticks, place


def _wide(numbers: Sequence[float]) -> tuple[list[float], Callable[[float], float]]:
    """Choose ticks of a logarithmic axis from left to right, and where numbers are drawn."""
    low, high = math.log10(min(numbers, default=1.0)), math.log10(max(numbers, default=10.0))
    low, high = low - 0.05 * (high - low) - 0.02, high + 0.08 * (high - low) + 0.05
    left, room = _LEFT + 6, WIDTH - _LEFT - _RIGHT - 12

    def across(value: float) -> float:
        return left + room * (math.log10(value) - low) / (high - low)

    powers = range(math.floor(low), math.ceil(high) + 1)
    factors = (1, 2, 5) if high - low < 1.2 else (1, 3) if high - low < 2.5 else (1,)
    every = [10.0**power * factor for power in powers for factor in factors]
    ticks: list[float] = []
    for tick in every:
        if low <= math.log10(tick) <= high and (not ticks or across(tick) - across(ticks[-1]) > 44):
            ticks.append(tick)
    return ticks, across


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
