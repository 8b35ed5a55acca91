"""Which command is meant, and how what went wrong is told."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from importlib.util import find_spec
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import trainer

from snnreg_plugins import profile
from snnreg_plugins.cli.commands import CLI, run_report
from snnreg_plugins.cli.recipes import packaged

_SUBCOMMANDS = (*CLI.subcommands(), "report")
# How torch begins when weights are not those of a module.
_MISFIT = "Error(s) in loading state_dict"


def run() -> None:
    """Run the command that the words of the command line give."""
    words = sys.argv[1:]
    profiles = words[:1] == ["profile"]
    if words and not profiles and words[0] not in _SUBCOMMANDS and not words[0].startswith("-"):
        _pass_on()
    # In place: processes that are started for other devices read it too.
    sys.argv[1:] = packaged(words) or ["--help"]
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # the user's own modules are found, as `python -m` does
    # Data in memory needs no workers, and the other warning is Lightning's own to heed.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    try:
        if profiles:
            profile.main(words[1:])
        elif words[:1] == ["report"]:
            run_report(words[1:])
        else:
            CLI()
    except Exception as error:
        # What this package refuses is told in a line; a bug, here or elsewhere, keeps its traceback.
        refusal = _refusal(error)
        if refusal is None:
            raise
        sys.exit(f"error: {refusal}")


def _refusal(error: BaseException | None) -> str | None:
    """What this package has refused, also where a parser has wrapped it, and what its settings or files have."""
    while error is not None:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        ours = raised_in.is_relative_to(Path(__file__).parents[1])
        if ours and isinstance(error, (ValueError, TypeError, OSError, ImportError)):
            return str(error)
        # Lightning refuses settings so; and files are outside of any program.
        of_settings = raised_in.is_relative_to(Path(trainer.__file__).parent) and isinstance(
            error, (ValueError, KeyError)
        )
        if of_settings or isinstance(error, MisconfigurationException):
            return " ".join(str(error.args[0]).split())
        if isinstance(error, OSError) and error.filename is not None:
            return str(error)
        if isinstance(error, RuntimeError) and str(error).startswith(_MISFIT):
            return f"The checkpoint does not fit the model of the recipe. {' '.join(str(error).split())}"
        error = error.__cause__ or error.__context__
    return None


def _pass_on() -> None:
    """Leave commands that are none of ours to Lightning's SDK, whose script has the same name as ours."""
    if Path(sys.argv[0]).stem == "lightning" and find_spec("lightning_sdk") is not None:
        from lightning_sdk.cli.entrypoint import main_cli

        sys.exit(main_cli())
