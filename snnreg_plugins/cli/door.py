"""Which command is meant, and how what went wrong is told."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from io import TextIOWrapper
from pathlib import Path

from snnreg_plugins import __version__
from snnreg_plugins._text import why_not
from snnreg_plugins.cli.sentences import meant
from snnreg_plugins.cli.subcommands import OTHERS, TRAINING, listed

_USAGE = """\
usage: snnreg SUBCOMMAND [options]

Train sparse networks, make them spike, and see what every spike costs.

subcommands:
{subcommands}

  snnreg SUBCOMMAND --help   options of a subcommand
  snnreg --version           version of this package, and of what it stands on
"""
_OPTIONS = ("--help", "--version")
# What tells most about a run, beside this package.
_STANDS_ON = ("torch", "lightning", "snntorch", "norse")
# How torch begins when weights are not those of a module.
_MISFIT = "Error(s) in loading state_dict"


def run() -> None:
    """Run the command that the words of the command line give."""
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")  # a sign that an output has none for, as in Lightning's bar, is a "?"
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(_USAGE.format(subcommands=listed()), end="")
        return
    if words[0] == "--version":
        print(_versions())
        return
    if words[0] not in (*TRAINING, *OTHERS) and not words[0].startswith("-"):
        _pass_on()
        sys.exit(_unknown(words[0]))
    if like := meant(words[0], _OPTIONS):
        sys.exit(f"error: There is no option `{words[0][:50]}`.{like}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # the user's own modules are found, as `python -m` does
    try:
        if words[0] in OTHERS:
            OTHERS[words[0]].run(words[1:])
        else:
            _train(words)
    except Exception as error:
        # What this package refuses is told in a line; a bug, here or elsewhere, keeps its traceback.
        refusal = _refusal(error)
        if refusal is None:
            raise
        sys.exit(f"error: {refusal}")


def _train(words: Sequence[str]) -> None:
    """Run a subcommand of Lightning."""
    from snnreg_plugins.cli.commands import CLI
    from snnreg_plugins.cli.messages import quieten
    from snnreg_plugins.cli.recipes import packaged

    # In place: processes that are started for other devices read it too.
    sys.argv[1:] = packaged(words)
    quieten()
    CLI()


def _versions() -> str:
    """Give the versions of this package, and of what it stands on, as a bug report wants them."""
    python = ".".join(map(str, sys.version_info[:3]))
    others = ", ".join(f"{name} {_version(name)}" for name in _STANDS_ON)
    return f"snnreg_plugins {__version__} (Python {python}, {others})"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _unknown(word: str) -> str:
    """Say that there is no such subcommand, and which ones there are."""
    names = [*TRAINING, *OTHERS]
    return f"error: There is no subcommand {word[:50]!r}.{meant(word, names)} There are {', '.join(names)}."


def _refusal(error: BaseException | None) -> str | None:
    """What this package has refused, also where a parser has wrapped it, and what its settings or files have."""
    while error is not None:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        ours = raised_in.is_relative_to(Path(__file__).parents[1])
        if isinstance(error, OSError) and error.filename is not None:  # of the system: files are outside of any program
            reason = why_not(error)
            return f"{reason[:1].upper()}{reason[1:]}."
        if ours and isinstance(error, (ValueError, TypeError, OSError, ImportError)):
            return str(error)
        if _is_of_lightning(error, raised_in):
            return " ".join(str(error.args[0]).split())
        if isinstance(error, RuntimeError) and str(error).startswith(_MISFIT):
            return f"The checkpoint does not fit the model of the recipe. {' '.join(str(error).split())}"
        error = error.__cause__ or error.__context__
    return None


def _is_of_lightning(error: BaseException, raised_in: Path) -> bool:
    """Tell whether Lightning refused settings."""
    if "lightning.pytorch" not in sys.modules:
        return False
    from lightning.fabric import accelerators
    from lightning.fabric.utilities import seed
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch import trainer

    of_trainer = raised_in.is_relative_to(Path(trainer.__file__).parent) and isinstance(error, (ValueError, KeyError))
    of_devices = raised_in.is_relative_to(Path(accelerators.__file__).parent) and isinstance(error, TypeError)
    of_seed = raised_in == Path(seed.__file__) and isinstance(error, ValueError)
    return isinstance(error, MisconfigurationException) or of_trainer or of_devices or of_seed


def _pass_on() -> None:
    """Leave commands that are none of ours to Lightning's SDK, whose script has the same name as ours."""
    if Path(sys.argv[0]).stem == "lightning" and find_spec("lightning_sdk") is not None:
        from lightning_sdk.cli.entrypoint import main_cli

        sys.exit(main_cli())
