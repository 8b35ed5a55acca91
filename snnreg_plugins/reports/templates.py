"""What pages of HTML are made of: templates and style sheets, which lie in the rooms that write pages."""

from __future__ import annotations

from functools import partial
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from snnreg_plugins._text import one_line


def environment(*rooms: str) -> Environment:
    """Give what renders templates: text in them is escaped and on one line, and no name is undefined.

    Args:
        rooms: Packages that the templates are in, the first ones first.
    """
    return Environment(
        loader=FunctionLoader(partial(resource, rooms=rooms)),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else one_line(value),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def resource(name: str, rooms: tuple[str, ...]) -> str:
    """Read a file that lies in one of some packages.

    Raises:
        FileNotFoundError: If it lies in none.
    """
    for room in rooms:
        place = files(room).joinpath(name)
        if place.is_file():
            return place.read_text(encoding="utf-8")
    raise FileNotFoundError(name)
