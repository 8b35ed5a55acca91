"""Export the trained network at the end of a fit, and report what it scores and spends."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torchmetrics import Metric
from typing_extensions import Unpack, override

from snnreg_plugins._checks import as_flag, as_integer, shown
from snnreg_plugins._console import say
from snnreg_plugins._lightning import both, end_bar, overrides
from snnreg_plugins._models import device_of, part_of
from snnreg_plugins.callbacks.activity_regularization import ActivityRegularization
from snnreg_plugins.callbacks.measurement import Calls
from snnreg_plugins.callbacks.measuring import MeasuringCallback
from snnreg_plugins.export.options import ExportOptions, Options
from snnreg_plugins.functional.cost_models import cost_models
from snnreg_plugins.metrics.scores import Task
from snnreg_plugins.reports.exported import export_run
from snnreg_plugins.reports.measure import require_steps
from snnreg_plugins.reports.own import exported_within, require_around
from snnreg_plugins.reports.report import Report
from snnreg_plugins.reports.run import Run
from snnreg_plugins.watching.facts import needs_of, require_prices
from snnreg_plugins.watching.layers import spikes_already

# Time steps of an export, if nobody said.
_TIMESTEPS = 8


class ExportReport(MeasuringCallback):
    """Export the network when training ends: write the spiking network and a report, in print and as files.

    Thresholds are balanced on training data, score and cost are measured on test data, both with the transfer hooks of
    data module or LightningModule, as in a test; of several processes, the first one does it, on all of the data. What
    is scored is told by labels and loss of the first training batch, as :class:`SpikingValidation` explains, or by
    ``metric``. What cannot be exported or scored is said then, or before; the network is written first, and what
    cannot be measured after all is said in a warning. A ``fast_dev_run`` tries it all and keeps nothing.

    A network that spikes already is reported on as it is, with no DNN beside it (but that of a
    :class:`~snnreg_plugins.modules.SpikingClassifier`): an exported one that was fine-tuned, at all ``steps``; the
    user's own, at the time steps that its forward takes. :meth:`readout` says what its scores are. There is no file for
    the user's own. ``timesteps`` and the options of the export are refused, then.

    Batches are ``(input, label)``; override :meth:`unpack` for others. Written to ``output_dir``:

    - ``spiking.pt``: the spiking network, for :func:`~snnreg_plugins.export.files.load_network`;
    - ``spiking.nir``: the same for other tools and hardware, where NIR can express it (and is installed);
    - ``report.json``: all figures;
    - ``report.png``: score over energy, what the network spends over the DNN, and energy by layer (if matplotlib is
      there);
    - ``report.html``: all of it with figures and tables on one page, see
      :func:`~snnreg_plugins.write_page`; with ``raster.json``, the spikes that it shows, and
      ``report.yaml``, a copy of the command line's ``config.yaml``;
    - ``diagnosis.json`` and ``diagnosis.png``, if asked for: what each layer loses, see
      :func:`~snnreg_plugins.diagnose`;
    - ``savings.json`` and ``savings.png``, if asked for: what would save the most next, at what loss, by trying, see
      :func:`~snnreg_plugins.savings`; margins of early exit are found on validation data, where there are some.

    Args:
        output_dir: Folder to write to; it is made.
        timesteps: Time steps T of the written network, 8 if None.
        steps: Numbers of time steps to report on.
        calibration_batches: Batches of training data to balance thresholds on.
        table: The model of cost that is shown, or several: names in ``functional.COST_MODELS`` or YAML files of prices;
            see :func:`~snnreg_plugins.report`. The report holds all that come with the package.
        diagnose: Tell too which layer loses the most of the DNN's activations, and what to try.
        html: Write the page.
        metric: What is scored: ``"multiclass"``, ``"binary"`` (logits), ``"multilabel"``, ``"regression"``, or a metric
            of torchmetrics. If None, labels and loss tell.
        network: The network within the LightningModule, by name, such as ``"net"``; the module itself if None.
        input_events: Whether whole numbers that a network which spikes already is given are events; see
            :class:`SpikingValidation`.
        savings: Try too what would save the most of the SOPs, and tell what it costs of the score.
        count_zero_weights: Whether a weight that is exactly zero, as of a pruned network, is a synapse in what models
            price; None for what each has it for.
        **options: Options of the export, such as ``threshold`` and ``per_channel``; see
            :func:`~snnreg_plugins.to_snntorch`.

    Files of these names that no run wrote are left alone: training does not start.

    Raises:
        TypeError: If ``output_dir`` names no folder, or ``metric`` is none.
        ValueError: If an argument is out of range; on start of a fit, if there is no data module or no test data, or
            an option is given for a network that spikes already.
        OSError: On start of a fit, if ``output_dir`` cannot be written to.
        ConversionError: In the first training batch, if the network cannot be exported.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[ExportReport("exported")], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        output_dir: str = "exported",
        timesteps: int | None = None,
        steps: list[int] | None = None,
        calibration_batches: int = 20,
        table: str | list[str] | None = None,
        diagnose: bool = False,
        html: bool = True,
        metric: Metric | Task | None = None,
        network: str | None = None,
        input_events: bool | None = None,
        savings: bool = False,
        count_zero_weights: bool | None = None,
        **options: Unpack[ExportOptions],
    ) -> None:
        if not isinstance(output_dir, (str, os.PathLike)) or not os.fspath(output_dir):
            raise TypeError(f"Expected argument `output_dir` to name a folder, but got {output_dir!r}.")
        given: dict[str, Any] = {"timesteps": _TIMESTEPS if timesteps is None else as_integer("timesteps", timesteps)}
        steps = [1, 2, 4, 8, 16, 32, given["timesteps"]] if steps is None else steps
        self.count_zero_weights = (
            None if count_zero_weights is None else as_flag("count_zero_weights", count_zero_weights)
        )
        if table is not None:
            needs_of(cost_models(table), self.count_zero_weights)  # checks both
        self.output_dir = output_dir
        self.steps = require_steps(steps)
        self.calibration_batches = as_integer("calibration_batches", calibration_batches)
        self.table = table
        self.diagnose = as_flag("diagnose", diagnose)
        self.input_events = None if input_events is None else as_flag("input_events", input_events)
        self.html = as_flag("html", html)
        self.savings = as_flag("savings", savings)
        # Of no use for a network that spikes already.
        self._of_an_export: dict[str, Any] = {**({} if timesteps is None else given), **options}
        given |= options
        Options(**given)  # checks them
        super().__init__(metric, network, given)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # What cannot be exported or measured is said before training.
        self._start_anew()
        datamodule = getattr(trainer, "datamodule", None)
        if datamodule is None:
            raise ValueError("ExportReport needs a LightningDataModule: pass one to Trainer.fit as `datamodule`.")
        if not overrides(datamodule, "test_dataloader"):
            raise ValueError(
                f"ExportReport measures on test data, but {type(datamodule).__name__} has none. Give it a "
                "test_dataloader(), which may be that of validation."
            )
        if trainer.limit_test_batches == 0:
            raise ValueError("ExportReport measures on test data, but the Trainer's `limit_test_batches` is 0.")
        self._require_an_export(pl_module)
        if self.table is not None and spikes_already(network := self._network(pl_module)):
            require_prices(cost_models(self.table), network)
        Run(self.output_dir).claim(self.diagnose, self.html, self.savings)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._calls is not None and (network := exported_within(whole := self._network(pl_module))) is not None:
            require_around(whole, network, self._unpacked(batch)[0])

    def _see(self, calls: Calls, targets: Any, step: str) -> None:
        if len(calls.returned) > 1:
            raise ValueError(
                f"ExportReport calls the network once for a batch, but the module's {step}() calls it "
                f"{len(calls.returned)} times. Put the loop over time steps into forward() of a network and name that "
                "by `network`, or let SpikingValidation measure it in the module's own steps."
            )
        super()._see(calls, targets, step)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = trainer.log_dir  # asked of all processes, as it is sent from the first
        if not trainer.is_global_zero or trainer.interrupted:
            return
        command_line = [one for one in trainer.callbacks if isinstance(one, both(SaveConfigCallback))]  # type: ignore[attr-defined]
        recipe = Path(folder or "") / command_line[0].config_filename if command_line else None
        if not trainer.global_step:
            rank_zero_warn(
                "ExportReport exports a network that was not trained: no optimizer took a step. With max_epochs=0 that "
                "is what was asked for; of a network that was trained before, its weights have to be loaded."
            )
        end_bar(trainer)
        trial = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        with tempfile.TemporaryDirectory() if trial else nullcontext(self.output_dir) as place:
            run = Run(place)
            try:
                with _testing(trainer):
                    limit, penalty = trainer.limit_test_batches, _penalties(trainer)
                    self._export(run, pl_module, trainer.datamodule, limit, recipe, penalty)  # type: ignore[attr-defined]
            except Exception as error:  # whatever it is, the trained network is worth more than its figures
                done = f"wrote {', '.join(run.written)} to {place}, and no more" if run.written else "wrote nothing"
                rank_zero_warn(f"ExportReport {done}. {type(error).__name__}: {error}")
            if trial:
                say("Nothing of this is kept, as it was a fast_dev_run")

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

        Raises:
            ValueError: If ``timesteps`` or an option of the export was given, and the network spikes already.
        """
        self._require_an_export(model)
        return self._export(Run(self.output_dir), model, datamodule, limit_batches, recipe)

    def _require_an_export(self, model: nn.Module) -> None:
        """Raise a ValueError where what is for an export was given, and the network spikes already."""
        network = part_of(model, self.network_name)
        if self._of_an_export and spikes_already(network):
            name, value = next(iter(self._of_an_export.items()))
            raise ValueError(
                f"Expected argument `{name}` of ExportReport not to be given for {type(network).__name__}, which "
                f"spikes already, but got {shown(value)}. Leave it out; "
                "of an export, give it to that or to the SpikingClassifier."
            )

    def _export(
        self,
        run: Run,
        model: nn.Module,
        datamodule: Any,
        limit_batches: float | None,
        recipe: str | os.PathLike[str] | None,
        penalty: str = "",
    ) -> Report:
        return export_run(
            model,
            datamodule,
            run,
            options=self.options,
            steps=self.steps,
            calibration_batches=self.calibration_batches,
            table=self.table,
            count_zero_weights=self.count_zero_weights,
            diagnosed=self.diagnose,
            html=self.html,
            limit_batches=limit_batches,
            recipe=recipe,
            unpack=lambda batch: self.unpack(_transferred(batch, model, datamodule)),
            readout=self.readout,
            input_events=self.input_events,
            metric=self._first.score or self.metric,
            part=self.network_name,
            penalty=penalty,
            saving=self.savings,
            held_out=_held_out(datamodule),
        )


def _penalties(trainer: Trainer) -> str:
    """Say how activity was penalized in a fit."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return " and ".join(one.told() for one in callbacks if isinstance(one, ActivityRegularization)) or "no penalty"


def _held_out(datamodule: Any) -> Callable[[], Iterable[Any]] | None:
    """Give what makes batches of validation data; None if there are none."""
    if isinstance(datamodule, both(LightningDataModule)) and not overrides(datamodule, "val_dataloader"):
        return None
    return getattr(datamodule, "val_dataloader", None)


@contextmanager
def _testing(trainer: Trainer) -> Iterator[None]:
    """Let hooks that ask for it see a test, so that they leave out what is for training, such as augmentation."""
    before = trainer.state.stage
    trainer.state.stage = RunningStage.TESTING
    try:
        yield
    finally:
        trainer.state.stage = before


def _transferred(batch: Any, model: nn.Module, datamodule: Any) -> Any:
    """Do to a batch what data module, or else LightningModule, do to it on its way to the network."""
    for name in ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"):
        owner: Any = next((one for one in (datamodule, model) if overrides(one, name)), None)
        if owner is not None:
            device = [device_of(model)] if name == "transfer_batch_to_device" else []
            batch = getattr(owner, name)(batch, *device, 0)
    return batch
