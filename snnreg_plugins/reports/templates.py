"""What pages of HTML are made of: templates and style sheets, which lie in the rooms that write pages."""

from __future__ import annotations

import re
from functools import partial
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from snnreg_plugins._text import one_line

# The end of a part of a name, before another one.
_PART = re.compile(r"[._/](?=[^\W\d_])")


def environment(*rooms: str) -> Environment:
    """Give what renders templates: text in them is escaped and on one line, and no name is undefined.

    Args:
        rooms: Packages that the templates are in, the first ones first.
    """
    made = Environment(
        loader=FunctionLoader(partial(resource, rooms=rooms)),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else one_line(value),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["breakable"] = breakable
    return made


def breakable(name: object) -> Markup:
    """Escape a name, and say that a line may end behind the dots and dashes of its parts.

    Example:
        >>> print(breakable("layer1.0.relu_<1>"), breakable("layer1.0.relu_a"))
        layer1.0.<wbr>relu_&lt;1&gt; layer1.0.<wbr>relu_<wbr>a
    """
    return Markup(_PART.sub(r"\g<0><wbr>", str(escape(one_line(name)))))


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
