"""``snnreg sweep``: many trainings of one recipe."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from typing_extensions import override

# Imported for their names: YAML may then say `class_path: Digits`.
import snnreg_plugins.callbacks
import snnreg_plugins.data
import snnreg_plugins.modules  # noqa: F401
from snnreg_plugins._checks import require_known
from snnreg_plugins._console import say
from snnreg_plugins._files import read_yaml
from snnreg_plugins.cli.commands import Parser as TrainingParser
from snnreg_plugins.cli.parser import Parser
from snnreg_plugins.cli.recipes import packaged, require_filled_in, require_readable
from snnreg_plugins.cli.sentences import in_one_sentence
from snnreg_plugins.sweeps import Job, Made, Sweep, find_front, run_sweep, write_front
from snnreg_plugins.sweeps.run import failures

_SWEEP = "Train one recipe with many penalties, strengths and settings; export each network in several ways."


class _Recipe(LightningCLI):
    """Reads a recipe as ``snnreg fit`` does, from names and values.

    Args:
        config: Names and values.
        only_checked: Whether nothing is to be made of them.
    """

    def __init__(self, config: dict[str, Any], only_checked: bool) -> None:
        self._only_checked = only_checked
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            parser_class=TrainingParser,
            parser_kwargs={"exit_on_error": False},
            args=config,
            run=False,
        )

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        self.config = parser.parse_object(args)
        require_filled_in(self.config.as_dict())

    @override
    def instantiate_classes(self) -> None:
        if not self._only_checked:
            super().instantiate_classes()


def make(config: dict[str, Any], only_checked: bool) -> Made | None:
    """Make objects of a recipe's names and values.

    Args:
        config: Names and values, as of a trial.
        only_checked: Give None, and only check them.

    Raises:
        ValueError: If a value is none for its option.
    """
    config = {"data": "Digits", **config}
    if only_checked:
        config = {**config, "seed_everything": False}
    try:
        made = _Recipe(config, only_checked)
    except ArgumentError as error:
        raise ValueError(f"The recipe does not take what the sweep gives it. {in_one_sentence(str(error))}") from error
    return None if only_checked else Made(made.model, made.datamodule, _trainer(made))


def _trainer(made: LightningCLI) -> Trainer:
    trainer: Trainer = made.trainer
    return trainer


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
