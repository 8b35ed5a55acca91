"""Where the labels of a figure's points have room: on no sign, no line and no other label."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from snnreg_plugins.reports.figures import Curve, Plane

#: A place of the drawing; y grows downward.
Place: TypeAlias = tuple[float, float]
#: Left, top, right and bottom.
Box: TypeAlias = tuple[float, float, float, float]

# Where a label stands beside its point, in the order of choice: curves rise to the right, and are left of none of them.
_SIDES = ((1, 1), (-1, -1), (1, 0), (0, 1), (-1, 0), (0, -1), (1, -1), (-1, 1))
# Of the height of the letters: the width of one, half of a curve's sign and half of a DNN's, and what is kept free.
_WIDE, _POINT, _SIGN, _FREE = 0.65, 0.45, 0.65, 0.1


@dataclass(frozen=True)
class Label:
    """The T of a point, and where there is room for it.

    Args:
        text: The T.
        curve: The curve that the point is of.
        point: Which of its points it is.
        strong: Whether it stands out.
        at: The middle of the text; None if there is no room.
    """

    text: str
    curve: Curve
    point: int
    strong: bool
    at: Place | None


def labels(figure: Plane, place: Callable[[float, float], Place], size: float, room: Box) -> list[Label]:
    """Find where the T of a plane's points stand.

    Args:
        figure: What is drawn.
        place: Where something spent and a score are drawn.
        size: The height of the letters.
        room: Where points and labels are seen; points elsewhere have no label.
    """
    curves = [[place(x, y) for x, y in zip(curve.spent, curve.scores, strict=True)] for curve in figure.curves]
    lines = [line for points in curves for line in pairwise(points)]
    signs = [_around(point, _POINT * size, _POINT * size) for points in curves for point in points]
    signs += [_around(place(one.spent, one.score), _SIGN * size, _SIGN * size) for one in figure.points]
    wanted = [
        (curve, index, point, str(step), step == curve.marked)
        for curve, points in zip(figure.curves, curves, strict=True)
        for index, (point, step) in enumerate(zip(points, curve.steps, strict=True))
        if _within(_around(point, 0, 0), room)
    ]
    wanted.sort(key=lambda one: not one[-1])  # those that stand out choose first
    sizes = [(_WIDE * size * len(text), size) for _, _, _, text, _ in wanted]
    found = free_places([one[2] for one in wanted], sizes, _POINT * size + _FREE * size, signs, lines, room)
    return [
        Label(text, curve, index, strong, at) for (curve, index, _, text, strong), at in zip(wanted, found, strict=True)
    ]


def free_places(
    points: Sequence[Place],
    sizes: Sequence[tuple[float, float]],
    away: float,
    signs: Sequence[Box],
    lines: Sequence[tuple[Place, Place]],
    room: Box,
) -> list[Place | None]:
    """Choose a place beside each point for its label, one after the other.

    Args:
        points: The points.
        sizes: Width and height of each label.
        away: How far a label stands from the middle of its point.
        signs: What labels cover nothing of.
        lines: What labels do not cross, each from one place to another.
        room: Where labels stand.

    Returns:
        The middle of each label; None where each place has something else in it.

    Example:
        >>> free_places([(0, 0), (9, 0)], [(4, 4), (4, 4)], 1, [(1, 0, 9, 9)], [], (-20, -20, 20, 20))
        [(-3.0, -3.0), (12.0, 3.0)]
    """
    taken = list(signs)
    found: list[Place | None] = []
    for (x, y), (wide, high) in zip(points, sizes, strict=True):
        places = [(x + side * (away + wide / 2), y + level * (away + high / 2)) for side, level in _SIDES]
        boxes = [(place, _around(place, wide / 2, high / 2)) for place in places]
        free = next(((place, box) for place, box in boxes if _is_free(box, taken, lines, room)), None)
        found.append(None if free is None else free[0])
        if free is not None:
            taken.append(free[1])
    return found


def _around(place: Place, wide: float, high: float) -> Box:
    return place[0] - wide, place[1] - high, place[0] + wide, place[1] + high


def _within(box: Box, room: Box) -> bool:
    return room[0] <= box[0] and room[1] <= box[1] and box[2] <= room[2] and box[3] <= room[3]


def _is_free(box: Box, taken: Iterable[Box], lines: Iterable[tuple[Place, Place]], room: Box) -> bool:
    left, top, right, bottom = box
    return (
        _within(box, room)
        and not any(left < other[2] and other[0] < right and top < other[3] and other[1] < bottom for other in taken)
        and not any(_crosses(line, box) for line in lines)
    )


def _crosses(line: tuple[Place, Place], box: Box) -> bool:
    """Tell whether a line has a piece in a box, by Liang and Barsky 1984."""
    (x, y), (u, v) = line
    first, last = 0.0, 1.0  # the piece, as shares of the line
    for start, along, low, high in ((x, u - x, box[0], box[2]), (y, v - y, box[1], box[3])):
        if along == 0:
            if not low < start < high:
                return False
            continue
        ends = sorted(((low - start) / along, (high - start) / along))
        first, last = max(first, ends[0]), min(last, ends[1])
    return first < last
