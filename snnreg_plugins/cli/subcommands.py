"""All subcommands: what each is for, and where it lives. Nothing of them is imported before one is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module


@dataclass(frozen=True)
class Subcommand:
    """A subcommand of ``snnreg``.

    Args:
        about: What it does, in the list of all.
        home: Where it lives, ``package.module:function``: a function that takes the words behind the name.
    """

    about: str
    home: str

    def run(self, words: Sequence[str]) -> None:
        """Run it with the words behind its name."""
        module, _, function = self.home.partition(":")
        main: Callable[[Sequence[str]], None] = getattr(import_module(module), function)
        main(words)


# Those of Lightning, which read the whole command line, and take seconds to import.
TRAINING = {
    "fit": "train a network as a recipe says, export it and report on it",
    "validate": "run the validation of a recipe on a checkpoint",
    "test": "run the test of a recipe on a checkpoint",
    "predict": "give what a checkpoint answers",
    "export": "write the spiking network of a checkpoint, and report on it",
}
# The others, in the order in which they are listed. To add one is a row here.
OTHERS = {
    "report": Subcommand("write a run as a page", "snnreg_plugins.cli.report:main"),
    "compare": Subcommand("put runs beside each other", "snnreg_plugins.cli.compare:main"),
    "sweep": Subcommand("train one recipe with many penalties and strengths", "snnreg_plugins.cli.sweep:main"),
    "front": Subcommand("draw what a sweep found, and tell what is best", "snnreg_plugins.cli.front:main"),
    "recipes": Subcommand("list the recipes that come with the package, or copy one", "snnreg_plugins.cli.shelf:main"),
    "profile": Subcommand("tell what any network spends, layer by layer", "snnreg_plugins.cli.profile:main"),
}


def listed() -> str:
    """List all subcommands, a line each.

    Example:
        >>> print(listed().splitlines()[0])
          fit        train a network as a recipe says, export it and report on it
    """
    about = {**TRAINING, **{name: command.about for name, command in OTHERS.items()}}
    return "\n".join(f"  {name:<10} {text}" for name, text in about.items())
