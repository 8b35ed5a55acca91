"""Labels of points cover no sign, no line and no other label, on the page and in the picture."""

from __future__ import annotations

import random
import re
from itertools import combinations, pairwise

import pytest

from snnreg_plugins._text import tick_percent
from snnreg_plugins.reports import charts, pictures
from snnreg_plugins.reports.figures import Curve, Plane, Point, Ratio, Ratios, Series
from snnreg_plugins.reports.labels import free_places, labels


def box_of(place, size):
    (x, y), (wide, high) = place, size
    return x - wide / 2, y - high / 2, x + wide / 2, y + high / 2


def share_area(one, other):
    return all(max(one[i], other[i]) < min(one[i + 2], other[i + 2]) - 1e-9 for i in (0, 1))


def is_on_line(box, line, pieces=400):
    """Whether one of many places of a line is well within a box."""
    (x, y), (u, v) = line
    at = ((x + (u - x) * share / pieces, y + (v - y) * share / pieces) for share in range(pieces + 1))
    return any(box[0] + 1e-6 < x < box[2] - 1e-6 and box[1] + 1e-6 < y < box[3] - 1e-6 for x, y in at)


@pytest.mark.parametrize("seed", range(30))
def test_labels_stand_where_nothing_else_is(seed):
    chosen = random.Random(seed)
    points = [(chosen.uniform(0, 100), chosen.uniform(0, 60)) for _ in range(12)]
    sizes = [(chosen.choice((5, 10)), 8) for _ in points]
    signs = [box_of(point, (6, 6)) for point in points]
    lines = [*pairwise(points[:6]), ((50, -5), (50, 80)), ((-5, 30), (120, 30))]
    room = (-4, -4, 104, 64)
    found = free_places(points, sizes, 4, signs, lines, room)
    boxes = [box_of(place, size) for place, size in zip(found, sizes, strict=True) if place is not None]
    assert len(boxes) >= 3
    assert not any(share_area(one, other) for one, other in combinations(boxes, 2))
    assert not any(share_area(box, sign) for box in boxes for sign in signs)
    assert not any(is_on_line(box, line) for box in boxes for line in lines)
    assert all(room[0] <= box[0] and room[1] <= box[1] and box[2] <= room[2] and box[3] <= room[3] for box in boxes)
    # Each stands beside its own point, below it to the right where nothing is.
    for (x, y), (wide, high), place in zip(points, sizes, found, strict=True):
        if place is not None:
            assert max(abs(place[0] - x) - wide / 2, abs(place[1] - y) - high / 2) == pytest.approx(4)
    alone = free_places(points[:1], sizes[:1], 4, signs[:1], [], (-50, -50, 150, 150))
    assert alone == [(points[0][0] + 4 + sizes[0][0] / 2, points[0][1] + 8)]


def made(seed, floor=None):
    """A plane of curves that are close, and DNNs on them."""
    chosen = random.Random(seed)
    steps = (1, 2, 4, 8, 16, 32)
    curves = []
    for colour in range(3):
        start = 10 ** chosen.uniform(-9, -8.5)
        spent = tuple(start * step ** chosen.uniform(0.2, 0.9) for step in steps)
        scores = tuple(0.95 - 0.6 * chosen.uniform(0.5, 1) / step for step in steps)
        curves.append(Curve(f"model {colour}", spent, scores, steps, colour, 16))
    points = tuple(Point("DNN", 1.1 * one.spent[3], one.scores[3] - 0.02, "dnn", one.colour) for one in curves)
    return Plane(
        "A title", "J", "Correct", tuple(curves), points, (), floor, "", "said", tick_percent, "{:.1e}".format, 1.0
    )  # fmt: skip


def test_what_stands_out_chooses_first_and_what_is_not_seen_has_no_label():
    near = Curve("near", (10.0, 10.0, 90.0), (10.0, 10.0, 90.0), (1, 2, 4), 0, 2)
    plane = Plane("", "", "", (near,), (), (), None, "", "", str, str)
    found = labels(plane, lambda x, y: (x, y), 10, (9, 4, 40, 16))  # with room to the right alone
    assert [(one.text, one.strong, one.at is None) for one in found] == [("2", True, False), ("1", False, True)]
    assert found[0].at[0] > 10


def test_what_is_shown_are_points_above_the_floor_and_where_curves_come_from_below():
    low = Curve("a", (1.0, 100.0, 1000.0), (0.2, 0.6, 0.8), (1, 2, 4), 0, 4)
    plane = Plane("", "", "", (low,), (Point("DNN", 5.0, 0.3, "dnn", 0),), (), 0.4, "", "", str, str)
    spent, scores = plane.shown()
    # Half the way from 1 to 100, which is 10 on a logarithmic axis.
    assert sorted(zip(spent, scores, strict=True)) == [(pytest.approx(10), 0.4), (100, 0.6), (1000, 0.8)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("floor", [None, 0.83])
def test_labels_of_the_page_cover_nothing(seed, floor):
    drawn = str(charts.plane(made(seed, floor)))
    texts = re.findall(
        r'<text x="([\d.-]+)" y="([\d.-]+)" text-anchor="middle" class="small halo[^"]*">(\d+)</text>', drawn
    )
    boxes = [box_of((float(x), float(y) - 3.5), (6 * len(T), 8)) for x, y, T in texts]
    signs = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.-]+)" cy="([\d.-]+)"', drawn)]
    signs += [(float(x), float(y) + 5) for x, y in re.findall(r"M([\d.-]+) ([\d.-]+)l5 5", drawn)]
    lines = [
        ((float(x), float(y)), (float(u), float(v)))
        for x, y, u, v in re.findall(r"M([\d.-]+) ([\d.-]+)L([\d.-]+) ([\d.-]+)", drawn)
    ]
    assert len(boxes) > 6
    assert len(lines) > 6
    assert all(46 <= x <= charts.WIDTH and y <= 185 for line in lines for x, y in line)  # none leaves the axes
    assert "16" in [T for _, _, T in texts]
    assert not any(share_area(one, other) for one, other in combinations(boxes, 2))
    assert not any(share_area(box, box_of(sign, (8, 8))) for box in boxes for sign in signs)
    assert not any(is_on_line(box, line) for box in boxes for line in lines)


@pytest.mark.parametrize("value", [0.96, 1.0, 1.02, 1.09])
def test_the_line_where_both_spend_the_same_crosses_no_number(value):
    kinds = (Series("DNN", (), "dnn"),)
    figure = Ratios("", "", (Ratio("a", (("dnn", value),)), Ratio("b", (("dnn", 9.0),))), kinds, "said")
    drawn = str(charts.ratios(figure))
    line = float(re.search(r'<line x1="([\d.]+)" [^>]*class="line even"', drawn)[1])
    x, anchor = re.search(rf'<text x="([\d.]+)" y="[\d.]+" text-anchor="(\w+)"[^>]*>{value:.2f}<', drawn).groups()
    assert float(x) >= line + 2 if anchor == "start" else (anchor, float(x) <= line - 2) == ("end", True)
    axes = pytest.importorskip("matplotlib.figure").Figure().subplots()
    pictures.ratios(axes, figure)
    number = next(text for text in axes.texts if text.get_text() == f"{value:.2f}")
    assert (number.xy[0], number.get_ha()) == (1.0, "left" if value >= 1 else "right")


@pytest.mark.parametrize(("seed", "size"), [(0, (12, 4.4)), (1, (5, 3))])
def test_labels_of_the_picture_cover_nothing_at_the_size_that_it_gets(seed, size):
    agg = pytest.importorskip("matplotlib.backends.backend_agg")
    from matplotlib.figure import Figure

    figure = Figure(size, dpi=160, layout="constrained")
    canvas = agg.FigureCanvasAgg(figure)
    axes, _ = figure.subplots(1, 2)
    plane = made(seed)
    pictures.plane(axes, plane)
    canvas.draw()
    renderer = canvas.get_renderer()
    shown = [text for text in axes.texts if text.get_visible()]
    boxes = [text.get_window_extent(renderer).padded(-2).extents for text in shown]
    assert len(boxes) > 6
    curves = [axes.transData.transform(list(zip(one.spent, one.scores, strict=True))) for one in plane.curves]
    lines = [line for points in curves for line in pairwise(map(tuple, points))]
    signs = [box_of(point, (10, 10)) for points in curves for point in points]
    assert not any(share_area(one, other) for one, other in combinations(boxes, 2))
    assert not any(share_area(box, sign) for box in boxes for sign in signs)
    assert not any(is_on_line(box, line) for box in boxes for line in lines)
