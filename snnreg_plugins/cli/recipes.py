"""Recipes: which files they are, and what may stand in them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from snnreg_plugins._files import read_yaml
from snnreg_plugins.cli.sentences import as_in, meant
from snnreg_plugins.cli.shelf import FOLDER, packaged_recipes

_OPTIONS = ("--config", "-c")
# In an address, and in a recipe that stands on the command line itself.
_NO_NAMES = (":", "{")
_PLACEHOLDER = re.compile(r"\$\{.*?\}")


def packaged(words: Sequence[str]) -> list[str]:
    """Put the packaged copies of recipes in the place of those not on disk: ``recipes/x.yaml`` works in any folder."""
    return [_packaged(word, before) for before, word in zip(["", *words], words, strict=False)]


def _packaged(word: str, before: str) -> str:
    path = _recipe(word, before)
    if not path.startswith(f"{FOLDER}/") or os.path.exists(path):
        return word
    known = packaged_recipes().get(path.removeprefix(f"{FOLDER}/").removesuffix(".yaml"))
    if known is not None and path.endswith(".yaml"):
        return word.removesuffix(path) + str(known)
    return word


def _recipe(word: str, before: str) -> str:
    """The recipe that a word names, or nothing."""
    option, equals, value = word.partition("=")
    return value if equals and option in _OPTIONS else word if before in _OPTIONS else ""


def require_readable(words: Sequence[str]) -> None:
    """Check that the recipes of a command line are files of plain data, and not too many of them.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no YAML of names and values, or no file is named.
    """
    for before, word in zip(["", *words], words, strict=False):
        path = os.path.expanduser(_recipe(word, before))
        if path.startswith("-") or word in [f"{option}=" for option in _OPTIONS]:
            raise ValueError(
                f"Expected argument `config` to name a file, but nothing stands behind {_OPTIONS[0]}. Give one, as in "
                f"{as_in(_OPTIONS[0])}."
            )
        is_elsewhere = not os.path.exists(path) and any(sign in path for sign in _NO_NAMES)
        if path.startswith(f"{FOLDER}/") and not os.path.exists(path):
            names = [f"{FOLDER}/{name}.yaml" for name in packaged_recipes()]
            like = meant(path, names) or " `snnreg recipes` lists those that come with the package."
            raise FileNotFoundError(f"Expected argument `config` to name a file, but there is no {path!r}.{like}")
        if path and not is_elsewhere and not isinstance(read_yaml(path, "config"), dict):
            raise ValueError(f"Expected argument `config` to name a recipe, but {path!r} holds no names and values.")


def require_filled_in(config: Any) -> None:
    """Check that no value waits to be filled in: ``${HOME}/runs`` would be a folder of that name.

    Args:
        config: Names and values, nested.

    Raises:
        ValueError: If a value holds ``${...}``.

    Example:
        >>> require_filled_in({"fit": {"trainer": {"default_root_dir": "${HOME}/runs"}}})
        Traceback (most recent call last):
            ...
        ValueError: Expected `fit.trainer.default_root_dir` to be a value, but got '${HOME}/runs', and nothing is ...
    """
    for name, value in _values(config, ""):
        if isinstance(value, str) and _PLACEHOLDER.search(value):
            raise ValueError(
                f"Expected `{name}` to be a value, but got {value!r}, and nothing is filled in in a recipe. Write it "
                "out, or give it as an option on the command line, where the shell fills in variables."
            )


def _values(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _values(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(value):
            yield from _values(part, f"{name}[{index}]")
    else:
        yield name, value
