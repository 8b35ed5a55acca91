"""The front of a sweep as one page of HTML that needs nothing else, with a picture beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from markupsafe import Markup

from snnreg_plugins._console import say
from snnreg_plugins._files import atomic
from snnreg_plugins._text import in_short
from snnreg_plugins.reports.templates import environment, resource
from snnreg_plugins.sweeps import scatter
from snnreg_plugins.sweeps.front import LOSSES, Front

#: What the page is called; a file tells by it that it is one.
HEADING = "Accuracy and cost of a sweep"
# Rooms that templates and style sheets are in.
_ROOMS = ("snnreg_plugins.sweeps", "snnreg_plugins.reports")


def page(front: Front, title: str = "") -> str:
    """Write a front as HTML.

    Args:
        front: What the trials score and spend.
        title: Name of the sweep.
    """
    made = environment(*_ROOMS)
    made.globals |= {"chart": scatter.chart, "swatch": scatter.swatch}
    return made.get_template("front.html.jinja").render(
        title=title,
        heading=HEADING,
        style=Markup(f"{resource('page.css', _ROOMS)}\n{resource('front.css', _ROOMS)}"),
        front=front,
        facts=list(_facts(front)),
        figures=front.figures(),
        legend=scatter.styles_of(front.labels),
        losses=LOSSES,
    )


def _facts(front: Front) -> Iterator[tuple[str, str, str]]:
    """Give the few numbers that matter most: name, value, and what belongs to it."""
    title = front.reference_title
    yield f"{front.score_title} of {title}", front.write_score(front.reference), f"{len(front.labels)} ways to train"
    for loss in (0.5, 1.0) if front.is_accuracy else ():
        found = front.least(loss)
        name = f"Fewest SOPs at {loss:g} point{'s' * (loss != 1)} of loss"
        if found is None:
            yield name, "none", "nothing measured comes as near"
        else:
            how = ", ".join(part for part in (found.label, found.setting, f"T = {found.timesteps}") if part)
            yield name, in_short(found.sops.value), how


def require_page(path: Path) -> None:
    """Raise a ValueError unless a page of a sweep, and the picture beside it, may be written to a path."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(
            f"Expected argument `output` to name a page, such as 'front.html', but got {os.fspath(path)!r}."
        )
    if path.exists() and not (path.is_file() and HEADING.encode() in path.read_bytes()[: 1 << 13]):
        raise ValueError(
            f"Expected argument `output` to name a new file or a page of a sweep, but {os.fspath(path)!r} is neither."
        )


def write_front(front: Front, path: str | os.PathLike[str]) -> list[str]:
    """Write a front as one page of HTML, with a PNG beside it.

    Args:
        front: What the trials score and spend.
        path: The page, a name that ends in .html.

    Returns:
        The files; without matplotlib there is no picture.

    Raises:
        ValueError: If ``path`` is no name of a page, or one of a file that is something else.
    """
    path = Path(path)
    require_page(path)
    with atomic(path) as temporary:
        temporary.write_text(page(front, path.absolute().parent.name), encoding="utf-8")
    try:
        front.save_plot(path.with_suffix(".png"))
    except ModuleNotFoundError as error:
        say(f"No picture: {error}")
        return [str(path)]
    return [str(path), str(path.with_suffix(".png"))]
