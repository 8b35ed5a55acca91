"""Callbacks of a recipe by name: ``--callback.ActivityRegularization.strength 2``.

A recipe holds its callbacks in a list, and options of a command line have no way to name one in a list but the last.
So the list is read first, and then given again as options, each callback followed by what is to be changed in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_PREFIX = "--callback."


@dataclass(frozen=True)
class Override:
    """An argument of a callback.

    Args:
        target: The callback's class and the argument, as in ``ActivityRegularization.strength``.
        value: The value, as it stands on the command line.
    """

    target: str
    value: str


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[Override]]:
    """Part the words of a command line into those of its parser, and overrides of callbacks.

    Raises:
        ValueError: If an override has no value.

    Example:
        >>> split_overrides(["fit", "--callback.ExportReport.timesteps", "2", "--seed_everything=1"])
        (['fit', '--seed_everything=1'], [Override(target='ExportReport.timesteps', value='2')])
    """
    others, overrides = [], []
    left = list(words)
    while left:
        word = left.pop(0)
        if not word.startswith(_PREFIX):
            others.append(word)
            continue
        target, equals, value = word.removeprefix(_PREFIX).partition("=")
        if not equals:
            if not left or left[0].startswith("--"):
                raise ValueError(f"Expected option `{word}` to have a value, as in {word} 2.")
            value = left.pop(0)
        overrides.append(Override(target, value))
    return others, overrides


def overridden(callbacks: Sequence[Mapping[str, Any]], overrides: Sequence[Override]) -> list[str]:
    """Give the words that make a list of callbacks anew, with overrides.

    Args:
        callbacks: ``class_path`` and ``init_args`` of each.
        overrides: What to change.

    Raises:
        ValueError: If an override names no callback, or one of several.

    Example:
        >>> overridden([{"class_path": "snnreg_plugins.ExportReport"}], [Override("ExportReport.timesteps", "2")])
        ['--trainer.callbacks=[{"class_path": "snnreg_plugins.ExportReport"}]', '--trainer.callbacks.timesteps=2']
    """
    found = [_found(override, callbacks) for override in overrides]
    words = []
    for index, callback in enumerate(callbacks):
        words.append(f"--trainer.callbacks{'+' if index else ''}={json.dumps([callback])}")
        for (place, argument), override in zip(found, overrides, strict=True):
            if place == index:
                words.append(f"--trainer.callbacks.{argument}={override.value}")
    return words


def _found(override: Override, callbacks: Sequence[Mapping[str, Any]]) -> tuple[int, str]:
    """Find the callback of an override, and the argument."""
    paths = [str(callback["class_path"]) for callback in callbacks]
    option = _PREFIX + override.target
    for name in dict.fromkeys(name for path in paths for name in (path, _class(path))):
        if not override.target.startswith(f"{name}."):
            continue
        places = [index for index, path in enumerate(paths) if name in (path, _class(path))]
        argument = override.target.removeprefix(f"{name}.")
        number, _, rest = argument.partition(".")
        if number.isdecimal() and rest:
            if 1 <= int(number) <= len(places):
                return places[int(number) - 1], rest
            raise ValueError(f"Expected option `{option}` to say 1 to {len(places)} of {name}, but got {number}.")
        if len(places) > 1:
            raise ValueError(
                f"Expected option `{option}` to say which {name} it is for, as there are {len(places)}: "
                f"{_PREFIX}{name}.1.{argument} is for the first."
            )
        return places[0], argument
    names = ", ".join(dict.fromkeys(_class(path) for path in paths)) or "none"
    raise ValueError(
        f"Expected option `{option}` to name a callback of the recipe and one of its arguments, but the callbacks are "
        f"{names}. --trainer.callbacks+=NAME adds one."
    )


def _class(path: str) -> str:
    return path.rpartition(".")[2]
