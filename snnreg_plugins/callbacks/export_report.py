"""Export the trained network at the end of a fit, and report what it scores and spends."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from torch import Tensor, nn
from typing_extensions import Unpack, override

from snnreg_plugins._files import atomic
from snnreg_plugins.export import ConversionError, SpikingNetwork, to_snntorch
from snnreg_plugins.export.files import save_network
from snnreg_plugins.export.options import CHOSEN, ExportOptions, Options
from snnreg_plugins.export.trace import trace
from snnreg_plugins.functional.energy import energy_table
from snnreg_plugins.nir.files import to_nir
from snnreg_plugins.reports.diagnosis import Diagnosis, diagnose
from snnreg_plugins.reports.page import write_page
from snnreg_plugins.reports.raster import record
from snnreg_plugins.reports.report import Report, report

# Time steps of the spikes that the page shows; more are too many for its width.
_LONGEST = 64


class ExportReport(Callback):
    """Export the network when training ends: write the spiking network and a report, in print and as files.

    Thresholds are balanced on training data, accuracy and cost are measured on test data; of several processes, the
    first one does it, on all of the data. Written to ``output_dir``:

    - ``spiking.pt``: the spiking network, for :func:`~snnreg_plugins.export.files.load_network`;
    - ``spiking.nir``: the same for other tools and hardware, where NIR can express it (and is installed);
    - ``report.json``: all figures;
    - ``report.png``: accuracy and SOPs over T, and spike rate by layer (if matplotlib is there);
    - ``report.html``: all of it with figures and tables on one page, see
      :func:`~snnreg_plugins.reports.page.write_page`; with ``raster.json``, the spikes that it shows, and
      ``report.yaml``, a copy of the command line's ``config.yaml``;
    - ``diagnosis.json`` and ``diagnosis.png``, if asked for: what each layer loses, see
      :func:`~snnreg_plugins.reports.diagnosis.diagnose`.

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
        if not isinstance(getattr(pl_module, "network", None), SpikingNetwork):
            trace(pl_module, self.options.get("until"))

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
            model: The trained DNN or a LightningModule around it; or one whose ``network`` is a
                :class:`~snnreg_plugins.SpikingNetwork` already, exported from its ``dnn``, as that of a
                :class:`~snnreg_plugins.modules.SpikingClassifier`.
            datamodule: Gives ``train_dataloader`` and ``test_dataloader`` of (input, label) batches.
            limit_batches: Test batches to measure on: a number (int), a share (float), or None for all.
            recipe: The settings of the training, a YAML file, for the page.
        """
        datamodule.prepare_data()
        datamodule.setup("test")
        calibration = self._calibration(datamodule)
        dnn: Any = model
        network = getattr(model, "network", None)
        if isinstance(network, SpikingNetwork):
            dnn = dnn.dnn
        else:
            network = to_snntorch(dnn, calibration, **self.options)
        if self.options.get("threshold") == "auto":
            chosen = {name: network.conversion[name] for name in CHOSEN}
            print(f"threshold='auto' chose {', '.join(f'{name}={value!r}' for name, value in chosen.items())}")
        loader = datamodule.test_dataloader()
        limit = limit_batches if isinstance(limit_batches, int) else int((limit_batches or 1.0) * len(loader))
        batches = [batch for batch, _ in zip(loader, range(limit), strict=False)]
        result = report(dnn, network, batches, steps=self.steps, table=self.table, progress=True)
        save_network(network, os.path.join(self.output_dir, "spiking.pt"))
        written = ["spiking.pt", *self._write_nir(network), *self._write(result, "report")]
        if self.diagnose:
            written += self._write(diagnose(dnn, network, batches), "diagnosis")
        written += self._write_page(network, batches, recipe)
        print(f"Written to {self.output_dir}: {', '.join(written)}")
        return result

    def _write_nir(self, network: SpikingNetwork) -> list[str]:
        """Write the network as NIR, where NIR can express it; give the file's name."""
        try:
            to_nir(network, os.path.join(self.output_dir, "spiking.nir"))
        except (ImportError, ConversionError) as error:
            print(f"No NIR file: {error}")
            return []
        return ["spiking.nir"]

    def _write(self, result: Report | Diagnosis, name: str) -> list[str]:
        """Print a result and write its files; give their names."""
        result.save_json(os.path.join(self.output_dir, f"{name}.json"))
        result.print()
        try:
            result.save_plot(os.path.join(self.output_dir, f"{name}.png"))
        except ModuleNotFoundError as error:
            print(f"No picture: {error}")
            return [f"{name}.json"]
        return [f"{name}.json", f"{name}.png"]

    def _write_page(
        self, network: SpikingNetwork, batches: list[Any], recipe: str | os.PathLike[str] | None
    ) -> list[str]:
        """Write the page and what it is made of; give the names."""
        folder = Path(self.output_dir)
        (folder / "raster.json").unlink(missing_ok=True)  # that of an earlier run is not of this network
        if not self.html:
            return []
        longest = max(min(max(self.steps), _LONGEST), network.timesteps)
        inputs, targets = next(batch for batch in batches if len(batch[0]))
        record(network, inputs, targets, timesteps=longest).save_json(folder / "raster.json")
        written = ["raster.json"]
        if recipe is not None and os.path.isfile(recipe):
            with atomic(folder / "report.yaml") as temporary:
                shutil.copyfile(recipe, temporary)
            written.append("report.yaml")
        try:
            write_page(folder)
        except ValueError as error:  # of another file in the folder, which is no reason to end a training so
            print(f"No page: {error}")
            return written
        return ["report.html", *written]

    def _calibration(self, datamodule: Any) -> list[Tensor]:
        batches = zip(datamodule.train_dataloader(), range(self.calibration_batches), strict=False)
        return [batch[0] for batch, _ in batches]
