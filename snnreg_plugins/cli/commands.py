"""Lightning's command line with ``export``, and ``snnreg report``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from torchmetrics import Metric
from typing_extensions import Unpack, override

# Imported for their names: YAML may then say `class_path: Digits`.
import snnreg_plugins.data
import snnreg_plugins.modules  # noqa: F401
from snnreg_plugins._files import read_tensors
from snnreg_plugins.callbacks import ExportReport, QCFSActivations
from snnreg_plugins.cli.overrides import overridden, split_overrides
from snnreg_plugins.cli.recipes import require_filled_in, require_readable
from snnreg_plugins.cli.sentences import in_one_sentence
from snnreg_plugins.export.options import ExportOptions
from snnreg_plugins.metrics.scores import Task
from snnreg_plugins.reports.run import Run, write_page

_DESCRIPTION = "Train sparse networks, export them to spiking neurons, and see what every spike costs."
_EPILOG = (
    "Two more commands need no recipe: `snnreg report RUN_DIR` writes the report of a run as a page, and `snnreg "
    "profile module.path:factory --input-shape 1 28 28` tells what any network spends, layer by layer."
)
_OF_ALL = (
    "Modules in the current folder are found: --model my_module.Net. An argument of a callback in the recipe: "
    "--callback.ActivityRegularization.strength 2; of the second of that class: "
    "--callback.ActivityRegularization.2.strength 2. One callback more: --trainer.callbacks+=ExportReport. A second "
    "--config changes what it names, and lists as a whole; `callbacks+:` in it adds to the list."
)


class ExportTrainer(Trainer):
    """Lightning's Trainer, which also exports."""

    def export(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        ckpt_path: str,
        output_dir: str = "exported",
        timesteps: int = 8,
        steps: list[int] | None = None,
        calibration_batches: int = 20,
        table: str = "horowitz_fp32",
        diagnose: bool = False,
        html: bool = True,
        metric: Metric | Task | None = None,
        network: str | None = None,
        **options: Unpack[ExportOptions],
    ) -> None:
        """Write the spiking network of a checkpoint, and report what it scores and spends.

        Args:
            model: The LightningModule that was trained.
            datamodule: The data it was trained on.
            ckpt_path: The checkpoint. Only tensors and plain data are read from it; no code is run.
            output_dir: Folder to write spiking.pt, report.json, report.png and so on to.
            timesteps: Time steps T of the written network.
            steps: Numbers of time steps to report on.
            calibration_batches: Batches of training data to balance thresholds on.
            table: Energy per operation.
            diagnose: Tell too which layer loses the most, and what to try; in diagnosis.json and diagnosis.png.
            html: Write the report as a page too, report.html.
            metric: What is scored: multiclass, binary, multilabel, regression, or a metric of torchmetrics. If not
                given, labels and loss modules tell.
            network: The network within the LightningModule, by name; the module itself if not given.
            **options: Options of the export.
        """
        if not self.is_global_zero:
            return  # one process does it all
        given = (output_dir, timesteps, steps, calibration_batches, table, diagnose, html, metric, network)
        exporter = ExportReport(*given, **options)
        for callback in self.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, QCFSActivations):
                callback.swap(model)  # the checkpoint holds its thresholds
        load_checkpoint(model, ckpt_path)
        exporter.run(model, datamodule)


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a checkpoint, running no code from the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no checkpoint.
    """
    content = read_tensors(path, "ckpt_path")
    if not isinstance(content.get("state_dict"), dict):
        raise ValueError(f"Expected argument `ckpt_path` to name a checkpoint, but {path!r} holds no state_dict.")
    return content


def load_checkpoint(model: LightningModule, path: str) -> None:
    """Read a checkpoint's weights into a module, running no code from the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no checkpoint, or its weights do not fit.
    """
    try:
        model.load_state_dict(read_checkpoint(path)["state_dict"])
    except RuntimeError as error:
        raise ValueError(f"The weights in {path!r} do not fit the model of the recipe. {error}") from error


class Parser(LightningArgumentParser):
    """Lightning's parser, which tells in a sentence what is wrong, and not all options there are."""

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a parser within, whose caller goes on
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        program = parser.prog.replace(" [options]", "")
        self.exit(2, f"error: {in_one_sentence(message)}\nAll options: {program} --help\n")
        raise AssertionError("exit() has returned")


class CLI(LightningCLI):
    """LightningCLI with ``export``, callbacks by name, and the Digits as default data."""

    def __init__(self) -> None:
        about = {command: {"epilog": _OF_ALL} for command in self.subcommands()}
        super().__init__(
            LightningModule,
            LightningDataModule,
            trainer_class=ExportTrainer,
            subclass_mode_model=True,
            subclass_mode_data=True,
            # A second run of the same recipe replaces the first one's config.yaml.
            save_config_kwargs={"overwrite": True},
            parser_class=Parser,
            parser_kwargs={"description": _DESCRIPTION, "epilog": _EPILOG, **about},
        )

    @staticmethod
    @override
    def subcommands() -> dict[str, set[str]]:
        """Add ``export`` to Lightning's subcommands."""
        return {**LightningCLI.subcommands(), "export": {"model", "datamodule"}}

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Make the embedded digits the default data."""
        parser.set_defaults({"data": {"class_path": "snnreg_plugins.data.Digits"}})

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Read recipe, options and overrides of callbacks; and refuse files that LightningCLI would not."""
        words, overrides = split_overrides(sys.argv[1:])
        require_readable(words)
        if overrides:
            words += overridden(self._callbacks(parser, words), overrides)
        self.config = parser.parse_args(words)
        require_filled_in(self.config[self.config.subcommand].as_dict())
        path = self.config[self.config.subcommand].get("ckpt_path")
        if path is not None and os.path.isfile(path):  # and not "last" or "best"
            read_checkpoint(path)

    def _callbacks(self, parser: LightningArgumentParser, words: Sequence[str]) -> list[dict[str, Any]]:
        """The callbacks of recipe and options, as plain data."""
        config = parser.parse_args([word for word in words if not word.startswith("--print_config")])
        callbacks = json.loads(parser.dump(config, format="json"))[config.subcommand]["trainer"].get("callbacks")
        return callbacks if isinstance(callbacks, list) else [] if callbacks is None else [callbacks]


def write_report(run: str, output: str | None = None) -> None:
    """Write a run as one page of HTML, with a PNG beside it.

    Args:
        run: The folder that ExportReport or ``snnreg export`` wrote to.
        output: The page, a name that ends in .html; report.html in that folder if not given.
    """
    folder = Run(run)
    path = write_page(run, output)
    written = [str(path)]
    try:
        picture = folder.picture_path(path)
        folder.read().report.save_plot(picture)
        written.append(str(picture))
    except (ModuleNotFoundError, FileExistsError) as error:
        print(f"No picture: {error}")
    print(f"Written: {', '.join(written)}")


def run_report(words: list[str]) -> None:
    """Run ``snnreg report``, which needs no model and no data."""
    parser = ArgumentParser(prog="snnreg report", description="Write a run as one page of HTML, with a PNG beside it.")
    parser.add_argument("--config", action="config", help="A YAML file with these arguments.")
    parser.add_function_arguments(write_report, as_positional=True)
    arguments = parser.parse_args(words).as_dict()
    write_report(arguments["run"], arguments["output"])
