"""A recipe as a trial of a sweep has it, from names and values to objects."""

from __future__ import annotations

from typing import Any

from jsonargparse import ArgumentError
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from typing_extensions import override

# Imported for their names: YAML may then say `class_path: Digits`.
import snnreg_plugins.callbacks
import snnreg_plugins.data
import snnreg_plugins.modules  # noqa: F401
from snnreg_plugins.cli.commands import Parser
from snnreg_plugins.cli.recipes import require_filled_in
from snnreg_plugins.cli.sentences import in_one_sentence
from snnreg_plugins.sweeps import Made


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
            parser_class=Parser,
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
