"""The command line: ``lightning fit --config recipes/x.yaml``, the same as ``snnreg ...``; ``snnreg profile``."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from torchmetrics import Metric
from typing_extensions import Unpack

# Imported for their names: YAML may then say `class_path: Digits`.
import snnreg_plugins.data
import snnreg_plugins.modules  # noqa: F401
from snnreg_plugins import profile
from snnreg_plugins._files import read_tensors
from snnreg_plugins.callbacks import ExportReport, QCFSActivations
from snnreg_plugins.export.options import ExportOptions
from snnreg_plugins.metrics.scores import Task
from snnreg_plugins.reports.run import Run, write_page

_SUBCOMMANDS = ("fit", "validate", "test", "predict", "export", "report")
_EPILOG = (
    "`snnreg report RUN_DIR` writes the report of a run as a page. `snnreg profile module.path:factory --input-shape "
    "1 28 28` tells what any network spends, layer by layer; see `snnreg profile --help`."
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


class CLI(LightningCLI):
    """LightningCLI with ``export``, and the Digits as default data."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Add ``export`` to Lightning's subcommands."""
        return {**LightningCLI.subcommands(), "export": {"model", "datamodule"}}

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Read a checkpoint before LightningCLI does, which tells of a damaged one by a bare traceback."""
        super().parse_arguments(parser, args)
        path = self.config[self.config.subcommand].get("ckpt_path")
        if path is not None and os.path.isfile(path):  # and not "last" or "best"
            read_checkpoint(path)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Make the embedded digits the default data."""
        parser.set_defaults({"data": {"class_path": "snnreg_plugins.data.Digits"}})


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


def _report(words: list[str]) -> None:
    """Run ``snnreg report``, which needs no model and no data."""
    parser = ArgumentParser(prog="snnreg report", description="Write a run as one page of HTML, with a PNG beside it.")
    parser.add_argument("--config", action="config", help="A YAML file with these arguments.")
    parser.add_function_arguments(write_report, as_positional=True)
    arguments = parser.parse_args(words).as_dict()
    write_report(arguments["run"], arguments["output"])


def main() -> None:
    """Run the command line."""
    words = sys.argv[1:]
    profiles = words[:1] == ["profile"]
    if words and not profiles and words[0] not in _SUBCOMMANDS and not words[0].startswith("-"):
        _pass_on()
    # In place, as LightningCLI reads it.
    sys.argv[1:] = [_packaged(word, before) for before, word in zip(["", *words], words, strict=False)]
    # Data in memory needs no workers, and the other warning is Lightning's own to heed.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    try:
        if profiles:
            profile.main(words[1:])
            return
        if words[:1] == ["report"]:
            _report(words[1:])
            return
        CLI(
            LightningModule,
            LightningDataModule,
            trainer_class=ExportTrainer,
            subclass_mode_model=True,
            subclass_mode_data=True,
            # A second run of the same recipe replaces the first one's config.yaml.
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"epilog": _EPILOG},
        )
    except (ValueError, TypeError, OSError, ImportError, MisconfigurationException) as error:
        # What this package refuses is told in a line; a bug, here or elsewhere, keeps its traceback.
        refusal = _refusal(error)
        if refusal is None:
            raise
        sys.exit(f"error: {refusal}")


def _refusal(error: BaseException | None) -> BaseException | None:
    """Find the error that this package itself raised, also where a parser has wrapped it."""
    while error is not None:
        innermost = traceback.extract_tb(error.__traceback__)[-1]
        if Path(innermost.filename).is_relative_to(Path(__file__).parent):
            return error
        error = error.__cause__ or error.__context__
    return None


def _pass_on() -> None:
    """Leave commands that are none of ours to Lightning's SDK, whose script has the same name as ours."""
    if Path(sys.argv[0]).stem == "lightning" and find_spec("lightning_sdk") is not None:
        from lightning_sdk.cli.entrypoint import main_cli

        sys.exit(main_cli())


def _packaged(word: str, before: str) -> str:
    """Find the packaged copy of a recipe that is not on disk: ``recipes/x.yaml`` works from any folder."""
    option, equals, value = word.partition("=")
    path = value if equals and option in ("--config", "-c") else word if before in ("--config", "-c") else ""
    if not path.startswith("recipes/") or os.path.exists(path):
        return word
    for home in (Path(__file__).parent, Path(__file__).parents[1]):
        if (home / path).is_file():
            found = str(home / path)
            return f"{option}={found}" if equals else found
    return word
