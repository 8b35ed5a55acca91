"""Export the trained network at the end of a fit, and report what it scores and spends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from torch import nn
from typing_extensions import Unpack, override

from snnreg_plugins._batches import inputs_of
from snnreg_plugins.export import SpikingNetwork
from snnreg_plugins.export.faithful import traced_faithfully
from snnreg_plugins.export.options import ExportOptions, Options
from snnreg_plugins.functional.energy import energy_table
from snnreg_plugins.reports.exported import export_run
from snnreg_plugins.reports.report import Report
from snnreg_plugins.reports.run import Run


class ExportReport(Callback):
    """Export the network when training ends: write the spiking network and a report, in print and as files.

    Thresholds are balanced on training data, accuracy and cost are measured on test data; of several processes, the
    first one does it, on all of the data. Written to ``output_dir``:

    - ``spiking.pt``: the spiking network, for :func:`~snnreg_plugins.export.files.load_network`;
    - ``spiking.nir``: the same for other tools and hardware, where NIR can express it (and is installed);
    - ``report.json``: all figures;
    - ``report.png``: accuracy and SOPs over T, and spike rate by layer (if matplotlib is there);
    - ``report.html``: all of it with figures and tables on one page, see
      :func:`~snnreg_plugins.write_page`; with ``raster.json``, the spikes that it shows, and
      ``report.yaml``, a copy of the command line's ``config.yaml``;
    - ``diagnosis.json`` and ``diagnosis.png``, if asked for: what each layer loses, see
      :func:`~snnreg_plugins.diagnose`.

    Args:
        output_dir: Folder to write to; it is made.
        timesteps: Time steps T of the written network.
        steps: Numbers of time steps to report on.
        calibration_batches: Batches of training data to balance thresholds on.
        table: Energy per operation, a name in ``functional.ENERGY_TABLES``.
        diagnose: Tell too which layer loses the most of the DNN's activations, and what to try.
        html: Write the page.
        **options: Options of the export, such as ``threshold`` and ``per_channel``; see
            :func:`~snnreg_plugins.to_snntorch`.

    Files of these names that no run wrote are left alone: training does not start.

    Raises:
        ValueError: If an argument is out of range.
        ConversionError: If the network cannot be exported.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[ExportReport("exported")], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        output_dir: str = "exported",
        timesteps: int = 8,
        steps: list[int] | None = None,
        calibration_batches: int = 20,
        table: str = "horowitz_fp32",
        diagnose: bool = False,
        html: bool = True,
        **options: Unpack[ExportOptions],
    ) -> None:
        steps = sorted({1, 2, 4, 8, 16, 32, timesteps}) if steps is None else steps
        for name, values in (
            ("timesteps", [timesteps]),
            ("calibration_batches", [calibration_batches]),
            ("steps", steps),
        ):
            if not values or min(values) < 1:
                raise ValueError(f"Expected argument `{name}` to be at least 1, but got {values}.")
        if not energy_table(table).prices_macs:
            raise ValueError(
                f"Expected argument `table` to have a price for MACs, which the DNN is measured in, but got {table!r}."
            )
        self.output_dir = output_dir
        self.steps = steps
        self.calibration_batches = calibration_batches
        self.table = table
        self.diagnose = diagnose
        self.html = html
        self.options: dict[str, Any] = {"timesteps": timesteps, **options}
        Options(**self.options)  # checks them

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # What cannot be exported or measured is said before training.
        if getattr(trainer, "datamodule", None) is None:
            raise ValueError("ExportReport needs a LightningDataModule: pass one to Trainer.fit as `datamodule`.")
        if trainer.limit_test_batches == 0:
            raise ValueError("ExportReport measures on test data, but the Trainer's `limit_test_batches` is 0.")
        Run(self.output_dir).claim(self.diagnose, self.html)

        self._is_checked = isinstance(getattr(pl_module, "network", None), SpikingNetwork)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self._is_checked:
            traced_faithfully(pl_module, next(inputs_of([batch])), self.options.get("until"))
            self._is_checked = True

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = trainer.log_dir  # asked of all processes, as it is sent from the first
        if trainer.is_global_zero and not trainer.interrupted:
            command_line = [one for one in trainer.callbacks if isinstance(one, SaveConfigCallback)]  # type: ignore[attr-defined]
            recipe = Path(folder or "") / command_line[0].config_filename if command_line else None
            self.run(pl_module, trainer.datamodule, trainer.limit_test_batches, recipe)  # type: ignore[attr-defined]

    def run(
        self,
        model: nn.Module,
        datamodule: Any,
        limit_batches: float | None = None,
        recipe: str | os.PathLike[str] | None = None,
    ) -> Report:
        """Export ``model``, write the files, print the report and return it.

        Args:
            model: The trained DNN, a LightningModule around it, or one around a spiking network; see
                :func:`~snnreg_plugins.reports.exported.export_run`.
            datamodule: Gives ``train_dataloader`` and ``test_dataloader`` of (input, label) batches.
            limit_batches: Test batches to measure on: a number (int), a share (float), or None for all.
            recipe: The settings of the training, a YAML file, for the page.
        """
        return export_run(
            model,
            datamodule,
            Run(self.output_dir),
            options=self.options,
            steps=self.steps,
            calibration_batches=self.calibration_batches,
            table=self.table,
            diagnosed=self.diagnose,
            html=self.html,
            limit_batches=limit_batches,
            recipe=recipe,
        )
