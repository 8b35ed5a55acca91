"""One trial of a sweep: train a network once, export it in all ways, and measure it at all T."""

from __future__ import annotations

import gc
import logging
import math
import re
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import nn

from snnreg_plugins._models import part_of
from snnreg_plugins.callbacks import ActivityBudget, ExportReport
from snnreg_plugins.export import SpikingNetwork
from snnreg_plugins.sweeps.axes import Value
from snnreg_plugins.sweeps.recipe import for_trial
from snnreg_plugins.sweeps.results import DNN, SNN, Row, rows_of, versions
from snnreg_plugins.sweeps.space import PENALTY, SEED, Sweep
from snnreg_plugins.watching.layers import spikes_already

#: Among the exports: the network that a budget was met with, at its T.
OF_BUDGET = "of the budget"


@dataclass(frozen=True)
class Made:
    """What a recipe is made into.

    Args:
        model: The LightningModule.
        datamodule: The data.
        trainer: The Trainer.
    """

    model: LightningModule
    datamodule: LightningDataModule
    trainer: Trainer


#: Makes objects of a recipe's names and values; only checks them, and gives None, if told so.
Make = Callable[[dict[str, Any], bool], "Made | None"]


@dataclass(frozen=True)
class Job:
    """A sweep with all that its processes need; goes to others by pickle.

    Args:
        sweep: What is trained and measured.
        recipe: The names and values of its recipe.
        make: Makes objects of them.
    """

    sweep: Sweep
    recipe: Mapping[str, Any]
    make: Make

    def check(self) -> None:
        """Check every value that something varies over against the recipe, before anything is trained.

        Raises:
            ValueError: If a value is none for its option.
        """
        sweep = self.sweep
        for variant in sweep.variants:
            axes = {**variant.named(), **sweep.common}
            tried = {name: axis.points() or (axis.low, axis.high) for name, axis in axes.items()}  # type: ignore[union-attr]
            first = {PENALTY: variant.name, **{name: values[0] for name, values in tried.items()}}
            points = [first] + [{**first, name: value} for name, values in tried.items() for value in values[1:]]
            for point in points if variant is sweep.variants[0] else points[:1]:
                self.make(for_trial(self.recipe, sweep, point, sweep.all_seeds[0], "."), True)

    def run(self, point: Mapping[str, Value], seeds: tuple[int, ...], folder: Path) -> list[Row]:
        """Run a trial, once for each seed.

        Args:
            point: The values of all that varies.
            seeds: Seeds.
            folder: Of the trial; its log and its networks are written there.

        Returns:
            A row for each seed, export and T.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with _logged(folder / "log.txt"):
            return [row for seed in seeds for row in self._run(point, seed, folder / f"seed_{seed}")]

    def _run(self, point: Mapping[str, Value], seed: int, folder: Path) -> list[Row]:
        begun = time.monotonic()
        made = self.make(for_trial(self.recipe, self.sweep, point, seed, folder), False)
        assert made is not None  # it was not to be checked only
        trainer, callbacks = made.trainer, list(made.trainer.callbacks)  # type: ignore[attr-defined]
        exporters = [one for one in callbacks if isinstance(one, ExportReport)]
        trainer.callbacks = [one for one in callbacks if one not in exporters]  # type: ignore[attr-defined]
        trainer.fit(made.model, datamodule=made.datamodule)
        if trainer.interrupted:
            raise KeyboardInterrupt
        trained = time.monotonic() - begun
        rows: list[Row] = []
        limit = None if trainer.limit_test_batches == 1.0 else trainer.limit_test_batches
        for name, options in self.sweep.all_exports.items():
            torch.manual_seed(seed)  # of the batches to balance on, and of options that draw
            exporter = self._exporter(folder / _as_folder(name), options, exporters, made.model)
            report = exporter.run(made.model, made.datamodule, limit)
            rows += rows_of(report, name, exporter.table)
        of_dnn = {column: value for column, value in rows[0].items() if column.startswith("dnn_")}
        for budget in (one for one in callbacks if isinstance(one, ActivityBudget) and one.network is not None):
            # What met the budget: an export anew is balanced on other batches, and its thresholds are not trimmed.
            network = cast(SpikingNetwork, budget.network)
            exporter = self._exporter(folder / _as_folder(OF_BUDGET), {}, exporters, network, [network.timesteps])
            report = exporter.run(network, made.datamodule, limit)
            rows += [{**row, **of_dnn} for row in rows_of(report, OF_BUDGET, exporter.table)]
        spiking = spikes_already(part_of(made.model, exporters[0].network_name if exporters else None))
        here = {"seed": seed, "trained_as": SNN if spiking else DNN, "device": _device(made.model)}
        more = {**here, "seconds": round(trained, 3), **versions()}
        gc.collect()  # networks and what watches them refer to each other
        return [{**row, **more} for row in rows]

    def _exporter(
        self,
        folder: Path,
        options: Mapping[str, Any],
        others: list[ExportReport],
        model: nn.Module,
        steps: list[int] | None = None,
    ) -> ExportReport:
        """Make what exports and measures; the network within the module, and what is scored, are as in the recipe."""
        own: dict[str, Any] = {}
        if others:
            kept = ("metric", "table", "input_events", "count_zero_weights")
            own = {name: getattr(others[0], name) for name in kept}
            own["network"] = others[0].network_name if isinstance(model, LightningModule) else None
        if self.sweep.table is not None:
            own["table"] = self.sweep.table
        spiking = spikes_already(part_of(model, own.get("network")))
        given = {} if spiking else {"timesteps": max(self.sweep.all_steps), **options}
        steps, batches = steps or list(self.sweep.all_steps), self.sweep.calibration_batches
        return ExportReport(str(folder), steps=steps, calibration_batches=batches, html=False, **own, **given)


def _device(model: LightningModule) -> str:
    device = model.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _as_folder(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip(".") or "export"


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Write what a trial prints, and why it fails, to a file."""
    loggers = {name: logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")}
    before = {name: logger.level for name, logger in loggers.items()}
    with path.open("a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        try:
            for logger in loggers.values():
                logger.setLevel(logging.ERROR)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*does not have many workers.*")
                yield
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            for name, logger in loggers.items():
                logger.setLevel(before[name])


def values_of(rows: list[Row], sweep: Sweep) -> tuple[float, float]:
    """Give what a search goes by: the score, the larger the better, and the cost, as means over the seeds.

    Raises:
        ValueError: If a score is no number.
    """
    judged = [row for row in rows if row["export"] == sweep.judged_export and row["timesteps"] == sweep.judged_at]
    if not judged:  # a network with a time loop of its own has its own T
        judged = rows
    for row in rows:
        if row["score"] is None or not math.isfinite(row["score"]):
            raise ValueError(
                f"Expected a score that is a number, but it is {row['score']} at T = {row['timesteps']} of the export "
                f"{row['export']!r}, seed {row['seed']}. See the log of the trial: the training, or the metric of "
                "ExportReport, gives none."
            )
    sign = -1.0 if judged[0]["higher_is_better"] is False else 1.0
    score = sum(row["score"] for row in judged) / len(judged)
    return sign * score, sum(row[sweep.cost] or 0.0 for row in judged) / len(judged)


def seeds_of(point: Mapping[str, Value], sweep: Sweep) -> tuple[int, ...]:
    """Give the seeds of a trial."""
    seed = point.get(SEED)
    return sweep.all_seeds if seed is None else (int(seed),)
