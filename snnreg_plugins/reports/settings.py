"""The settings of a run as names and values; what sounds like a secret is left out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

#: Names and values, as they are shown.
Settings = Sequence[tuple[str, str]]

# Settings that are shown of a file at most, how deep they may be nested, and how much of a value is shown.
_MOST, _DEEPEST, _LONGEST = 400, 12, 400

# Loggers are left out, as their settings hold keys; so is what else sounds like one.
_SECRET = re.compile(r"(^|[._])(logger|(api_?)?key|token|password|passwd|secret|credentials?)($|[._])", re.IGNORECASE)


def flat(value: Any) -> Settings:
    """Write nested settings as names and values.

    Example:
        >>> flat({"model": {"class_path": "LeNet", "init_args": {"size": 8}}, "logger": {"api_key": "..."}})
        [('model', 'LeNet'), ('model.size', '8')]
    """
    return list(islice(_leaves(value, "", _DEEPEST), _MOST))


def _leaves(value: Any, name: str, depth: int) -> Iterator[tuple[str, str]]:
    """Walk nested settings; a class's arguments come after it, and what is None is left out.

    Of several classes, as callbacks are, each goes by its name, as on the command line: others may be added before it.
    """
    if value is None or _SECRET.search(name.split(" ")[0]):
        return
    if depth == 0:
        yield name, "..."
    elif isinstance(value, dict) and value:
        if "class_path" in value:
            yield name, _shortened(str(value["class_path"]))
            value = {**(value["init_args"] if isinstance(value.get("init_args"), dict) else {}), "": None}
        for key, item in value.items():
            shown = _shortened(str(key))
            yield from _leaves(item, f"{name}.{shown}" if name else shown, depth - 1)
    elif isinstance(value, (list, tuple)) and any(isinstance(item, (dict, list, tuple)) for item in value):
        seen: Counter[str] = Counter()
        for index, item in enumerate(value):
            where = f"[{index}]"
            if isinstance(item, dict) and "class_path" in item:
                own = _shortened(str(item["class_path"]).rpartition(".")[2])
                seen[own] += 1
                where = f".{own}" if seen[own] == 1 else f".{own}.{seen[own]}"
            yield from _leaves(item, f"{name}{where}", depth - 1)
    elif isinstance(value, (list, tuple)):
        yield name, _shortened(f"[{', '.join(_shortened(str(item)) for item in islice(value, _MOST))}]")
    else:
        yield name, f"{value:.6g}" if isinstance(value, float) else _shortened(str(value))


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
