"""Lightning's command line with ``export``."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Container, Sequence
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, get_type_hints

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torchmetrics import Metric
from typing_extensions import Unpack, override

# Imported for their names: YAML may then say `class_path: Digits`.
import snnreg_plugins.data
import snnreg_plugins.modules  # noqa: F401
from snnreg_plugins._lightning import own_first
from snnreg_plugins._models import part_of
from snnreg_plugins._weights import load_weights, read_weights
from snnreg_plugins.callbacks import ExportReport, FewBitWeights, QCFSActivations
from snnreg_plugins.cli.help import export_defaults
from snnreg_plugins.cli.links import link_to_data
from snnreg_plugins.cli.messages import quieten_run
from snnreg_plugins.cli.overrides import overridden, split_overrides
from snnreg_plugins.cli.parser import InOneSentence
from snnreg_plugins.cli.recipes import require_filled_in, require_readable
from snnreg_plugins.export.options import ExportOptions
from snnreg_plugins.metrics.scores import Task
from snnreg_plugins.reports.own import exported_within
from snnreg_plugins.watching.layers import spikes_already

# What `ckpt_path` names beside files.
_KNOWN = ("best", "last", "hpc", "registry")
# What Lightning writes to each checkpoint, and needs to read it.
_VERSION = "pytorch-lightning_version"
# Classes that an option takes, in its help, and the longest list of them.
_CLASSES = re.compile(r",\s+known\s+subclasses:([^)]*)\)")
_FEW = 1000
# How the settings of a run begin.
_HEADER = b"# lightning.pytorch=="
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
        timesteps: int | None = None,
        steps: list[int] | None = None,
        calibration_batches: int = 20,
        table: str | list[str] | None = None,
        diagnose: bool = False,
        html: bool = True,
        metric: Metric | Task | None = None,
        network: str | None = None,
        savings: bool = False,
        **options: Unpack[ExportOptions],
    ) -> None:
        """Write the spiking network of a checkpoint, and report what it scores and spends.

        Args:
            model: The LightningModule that was trained.
            datamodule: The data it was trained on.
            ckpt_path: The checkpoint. Only tensors and plain data are read from it; no code is run.
            output_dir: Folder to write spiking.pt, report.json, report.png and so on to.
            timesteps: Time steps T of the written network; 8 if not given, or what a network that spikes already was
                trained with.
            steps: Numbers of time steps to report on.
            calibration_batches: Batches of training data to balance thresholds on.
            table: The model of cost that is shown, or several, such as [lemaire, eflops]; if not given, that of the
                network's weights and those beside it.
            diagnose: Tell too which layer loses the most, and what to try; in diagnosis.json and diagnosis.png.
            html: Write the report as a page too, report.html.
            metric: What is scored: multiclass, binary, multilabel, regression, or a metric of torchmetrics. If not
                given, labels and loss modules tell.
            network: The network within the LightningModule, by name; the module itself if not given.
            savings: Try too what would save the most next, and at what loss; in savings.json and savings.png.
            **options: Options of the export, of a network that does not spike yet.
        """
        if not self.is_global_zero:
            return  # one process does it all
        given = (calibration_batches, table, diagnose, html, metric, network)
        exporter = ExportReport(output_dir, timesteps, steps, *given, savings=savings, **options)
        model.configure_model()
        for callback in self.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, QCFSActivations):
                callback.swap(model)  # the checkpoint holds its thresholds
            if isinstance(callback, FewBitWeights):
                callback.put(model)  # and these weights
        content, weights = read_weights(ckpt_path, "ckpt_path")
        if weights is not content:
            model.on_load_checkpoint(content)
        load_weights(model, weights, ckpt_path)
        whole = part_of(model, network)
        if spikes_already(whole):
            exported, useless = exported_within(whole), dict(options)
            if timesteps is not None and exported is not None:
                exported.timesteps = timesteps
                exporter = ExportReport(output_dir, None, exporter.steps, *given, savings=savings)
            elif timesteps is not None:  # it takes its own
                useless["timesteps"] = timesteps
            if useless:
                name, value = next(iter(useless.items()))
                raise ValueError(
                    f"Expected argument `{name}` not to be given where the network of the checkpoint spikes already, "
                    f"but got {value!r}. Leave it out."
                )
        exporter.run(model, datamodule)


class Parser(InOneSentence, LightningArgumentParser):
    """Lightning's parser, which tells in a sentence what is wrong, and not all options there are."""

    @override
    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """Give the help without lists of more classes than anybody reads, as of all metrics there are."""
        return _CLASSES.sub(
            lambda found: found[0] if len(found[1]) <= _FEW else ")", super().format_help(*args, **kwargs)
        )


class SaveConfig(SaveConfigCallback):
    """Keep the settings of a run in its folder; those of an earlier run are replaced, and nothing else."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        path = Path(trainer.log_dir or "") / self.config_filename
        if path.is_file() and not path.read_bytes().startswith(_HEADER):
            raise ValueError(
                f"The settings of the run are written to {os.fspath(path)!r}, which no run wrote. Name that file "
                "otherwise, or write to another folder by --trainer.default_root_dir or a logger."
            )
        super().setup(trainer, pl_module, stage)


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
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
            parser_class=Parser,
            parser_kwargs={"prog": "snnreg", **about},
        )

    @override
    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """List what is the subcommand's own before what all of them take, with the defaults of an export."""
        parser: LightningArgumentParser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        own = {*signature(getattr(klass, subcommand)).parameters, *get_type_hints(ExportOptions)}
        own_first(parser, own - self.subcommands()[subcommand], export_defaults())
        needs = " --ckpt_path FILE" if subcommand == "export" else ""
        parser.usage = f"snnreg {subcommand} --config RECIPE{needs} [options]"
        return parser

    @override
    def before_instantiate_classes(self) -> None:
        """Make the network for the data of the recipe."""
        for told in link_to_data(self.config[self.subcommand], _class_of):
            rank_zero_info(told)

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the Trainer, which leaves out what nobody needs."""
        given = self._get(self.config_init, "trainer")["callbacks"]  # the Trainer adds its own to this list
        given = list(given) if isinstance(given, list) else [given]
        trainer = super().instantiate_trainer(**kwargs)
        quieten_run(trainer, given, getattr(self.model, "example_input_array", None) is not None)
        return trainer

    @staticmethod
    @override
    def subcommands() -> dict[str, set[str]]:
        """Add ``export`` to Lightning's subcommands."""
        return {**LightningCLI.subcommands(), "export": {"model", "datamodule"}}

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Read recipe, options and overrides of callbacks; and refuse files that LightningCLI would not."""
        words, overrides = split_overrides(sys.argv[1:])
        words = _with_default_data(words, self.subcommands())
        require_readable(words)
        if overrides:
            words += overridden(self._callbacks(parser, words), overrides)
        self.config = parser.parse_args(words)
        require_filled_in(self.config[self.config.subcommand].as_dict())
        path = self.config[self.config.subcommand].get("ckpt_path")
        self._checkpoint: dict[str, Any] = {}
        if path is not None and "://" not in path and path.partition(":")[0] not in _KNOWN:
            self._checkpoint, _ = read_weights(path, "ckpt_path")
            if self.config.subcommand != "export" and _VERSION not in self._checkpoint:
                raise ValueError(
                    f"Expected argument `ckpt_path` to name a checkpoint that Lightning wrote, but {path!r} holds "
                    "weights alone, which `snnreg export` takes, and `checkpoint` of a SpikingClassifier."
                )

    def _parse_ckpt_path(self) -> None:
        """Take hyper-parameters from the checkpoint, as Lightning does; also those that no command line has written.

        Without it, those of a module that was trained in Python are refused, and a checkpoint of another class takes
        the place of the recipe's model.
        """
        hyper_parameters = self._checkpoint.get("hyper_parameters", {})
        config = self.config[self.config.subcommand]
        own, path = config.model.class_path, config.get("ckpt_path")
        written = hyper_parameters.get("_class_path", own)
        if _class_of(written) is not _class_of(own):
            raise ValueError(
                f"Expected argument `ckpt_path` to name a checkpoint of the recipe's model, {own}, but {path!r} is of "
                f"{written}. A SpikingClassifier takes the DNN to start from as --model.init_args.checkpoint."
            )
        given = config.model.as_dict().get("init_args", {})
        known = {name: value for name, value in hyper_parameters.items() if name in given}
        others = [f"{name}={value!r:.50}" for name, value in known.items() if value != given[name]]
        if others:
            rank_zero_warn(f"The model has {', '.join(others)} of the checkpoint {path!r}, not of recipe or options.")
        if known:
            model = {"class_path": own, "init_args": known}
            self.config = self.parser.parse_object({self.config.subcommand: {"model": model}}, self.config)

    def _callbacks(self, parser: LightningArgumentParser, words: Sequence[str]) -> list[dict[str, Any]]:
        """The callbacks of recipe and options, as plain data."""
        config = parser.parse_args([word for word in words if not word.startswith("--print_config")])
        callbacks = json.loads(parser.dump(config, format="json"))[config.subcommand]["trainer"].get("callbacks")
        return callbacks if isinstance(callbacks, list) else [] if callbacks is None else [callbacks]


def _with_default_data(words: Sequence[str], subcommands: Container[str]) -> list[str]:
    """Make the embedded digits the data where nobody names others.

    As a default of the parser they would leave others their own arguments, such as the size of the validation set.
    """
    begins = bool(words) and words[0] in subcommands  # behind options, there is a recipe of several commands
    return [words[0], "--data=Digits", *words[1:]] if begins else list(words)


def _class_of(path: str) -> Any:
    """The class that a recipe or a checkpoint names; None if there is none of that name."""
    home, _, name = path.rpartition(".")
    try:
        return getattr(import_module(home), name, None)
    except ImportError:
        return None
