"""``snnreg recipes``: the recipes that come with the package, listed or copied."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from snnreg_plugins._console import say, show
from snnreg_plugins._text import Note
from snnreg_plugins.cli.parser import Parser
from snnreg_plugins.cli.sentences import meant

FOLDER = "recipes"


def packaged_recipes() -> dict[str, Path]:
    """Find the recipes that come with the package, by their names; those of sweeps are in a folder of theirs.

    Example:
        >>> {"digits_lenet_expected_rate", "sweeps/digits_lenet"} <= packaged_recipes().keys()
        True
    """
    package = Path(__file__).parents[1]
    for folder in (package / FOLDER, package.parent / FOLDER):  # where it is installed, or in a checkout
        found = sorted(folder.glob("*.yaml")) + sorted(folder.glob("*/*.yaml"))
        if found:
            return {path.relative_to(folder).with_suffix("").as_posix(): path for path in found}
    return {}


def main(words: Sequence[str]) -> None:
    """Run ``snnreg recipes`` with the words behind it."""
    parser = Parser(
        prog="snnreg recipes",
        usage="snnreg recipes [name] [--output FILE]",
        description="List the recipes that come with the package, or copy one to start from.",
    )
    parser.add_argument("name", nargs="?", type=str, help="The recipe to copy; all are listed if there is none.")
    parser.add_argument("--output", type=str, help="The file to copy it to; name.yaml in this folder if not given.")
    options = parser.parse_args(list(words))
    known = packaged_recipes()
    if options.name is None:
        for name, path in known.items():
            show([Note(name, "strong"), Note(about(path)), Note("")])
        say(
            "Run one in any folder: snnreg fit --config recipes/NAME.yaml, those of sweeps with snnreg sweep. Copy "
            "one to change it: snnreg recipes NAME"
        )
        return
    say(f"Written: {copy(options.name, options.output)}")


def about(recipe: Path) -> str:
    """Give the first sentence of a recipe's header."""
    lines = recipe.read_text(encoding="utf-8").splitlines()
    header = " ".join(line.removeprefix("#").strip() for line in lines[: lines.index("#")])
    return re.split(r"(?<=[.;]) ", header)[0].rstrip(".;")


def copy(name: str, output: str | os.PathLike[str] | None = None) -> Path:
    """Copy a recipe that comes with the package; nothing is written over.

    Args:
        name: Its name; ``recipes/`` before it and ``.yaml`` behind may be left out.
        output: The file; one of its name in the current folder if None.

    Raises:
        ValueError: If there is no such recipe.
        FileExistsError: If there is such a file.
    """
    known = packaged_recipes()
    stem = name.removeprefix(f"{FOLDER}/").removesuffix(".yaml")
    if stem not in known:
        listed = " `snnreg recipes` lists them."
        raise ValueError(f"Expected argument `name` to be a recipe, but got {name!r}.{meant(stem, known) or listed}")
    path = Path(known[stem].name if output is None else output)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(known[stem].read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise type(error)(
            f"Expected argument `output` to be a file in a folder that is there, but got {os.fspath(path)!r}. Make the "
            "folder, or name another file by --output."
        ) from error
    except FileExistsError as error:
        raise FileExistsError(
            f"Expected argument `output` to be a new file, but {os.fspath(path)!r} is there. Name another one by "
            "--output."
        ) from error
    return path
