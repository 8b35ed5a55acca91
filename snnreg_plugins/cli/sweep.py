"""``snnreg sweep``: many trainings of one recipe."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from snnreg_plugins._checks import require_known
from snnreg_plugins._console import say
from snnreg_plugins._files import read_yaml
from snnreg_plugins.cli.parser import Parser
from snnreg_plugins.cli.recipes import packaged, require_readable
from snnreg_plugins.sweeps import Sweep

_SWEEP = "Train one recipe with many penalties, strengths and settings; export each network in several ways."


def main(words: Sequence[str]) -> None:
    """Run ``snnreg sweep`` with the words behind it."""
    words = packaged(words)
    parser = Parser(prog="snnreg sweep", description=_SWEEP)
    parser.add_argument("--config", action="config", help="A YAML file with these arguments.")
    parser.add_class_arguments(Sweep, fail_untyped=False)
    parser.add_argument("--workers", type=int, default=1, help="How many processes run trials on this machine.")
    known = [*(field.name for field in dataclasses.fields(Sweep)), "workers"]
    files = _configs(words)
    require_readable(words)
    for file in files:
        require_known(os.fspath(file), read_yaml(file, "config"), known)
    given = parser.parse_args(words).as_dict()
    # Here, as it takes seconds: --help and wrong words are answered before.
    from snnreg_plugins.cli.trial import make
    from snnreg_plugins.sweeps import Job, find_front, run_sweep, write_front
    from snnreg_plugins.sweeps.run import failures

    workers = given.pop("workers")
    given.pop("config", None)
    given["name"] = given["name"] or (Path(files[0]).stem if files else None)
    sweep = Sweep(**given)
    recipe = packaged(["--config", sweep.recipe])[1]
    require_readable(["--config", recipe])
    try:
        study = run_sweep(Job(sweep, read_yaml(recipe, "recipe"), make), workers)
    except KeyboardInterrupt:
        print("The same command goes on with this sweep.", file=sys.stderr)
        raise
    look = study.look()
    told = failures(look)
    if told is not None:
        print(told.text, file=sys.stderr)
    written = [str(path) for path in study.write(look)]
    found = find_front(look.rows)
    found.print()
    written += write_front(found, Path(sweep.output) / "front.html")
    say(f"Written: {', '.join(written)}")


def _configs(words: Sequence[str]) -> list[str]:
    """The files that a command line names."""
    named = [word for before, word in zip(["", *words], words, strict=False) if before == "--config"]
    return named + [word.partition("=")[2] for word in words if word.startswith("--config=")]
