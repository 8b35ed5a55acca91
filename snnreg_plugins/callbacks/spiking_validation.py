"""What would the spiking network cost and score, shown at every validation."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, fx, nn
from torchmetrics import MeanMetric
from typing_extensions import Unpack, override

from snnreg_plugins._models import device_of
from snnreg_plugins._pictures import histograms_figure, layers_figure
from snnreg_plugins.export import Sharded, SpikingNetwork, exit_margins, to_snntorch
from snnreg_plugins.export.calibrate import SilentLayerError
from snnreg_plugins.export.options import ExportOptions, Options
from snnreg_plugins.export.trace import trace
from snnreg_plugins.functional.energy import energy, energy_table
from snnreg_plugins.metrics import SpikeRate, SynapticOperations, TimeSteps
from snnreg_plugins.watching.steps import CallSteps
from snnreg_plugins.watching.tally import Observer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SpikingValidation(Callback):
    """Export the network at validation, run it on the validation data, and log what it costs and scores.

    Thresholds are balanced on the last batches of training (on the first validation batch, if there was no training
    yet), those of all processes, so no data is read a second time. The model is only read: weights, random state and
    metrics of the user's own are left alone, and training goes on as it would without this callback.

    Logged, each over all validation batches and processes: ``snn/accuracy``, ``snn/spike_rate`` (spikes/neuron/step),
    ``snn/sops`` and ``snn/effective_macs`` (per sample; the MACs are those of the analog first layer), ``snn/energy``
    (J/sample), ``snn/sops/<layer>``, ``snn/spike_rate/<layer>``; and ``dnn/accuracy``, ``dnn/effective_macs``,
    ``dnn/dense_macs``, ``dnn/energy`` (of a DNN that skips zeros). ``snn/accuracy`` is on the progress bar.

    With ``figures``, two pictures are logged too: ``snn/sops_by_layer``, and ``snn/spike_rates``, how the rates of each
    layer's neurons are spread (over the batches of the first process). They go to loggers that take pictures, such as
    TensorBoard and WandB; one that cannot, or fails to, is left out with a warning.

    Where a layer is silent on the calibration data, as a strong penalty may make it, that validation is left out with
    a warning.

    Batches are ``(input, label)``; override :meth:`unpack` for others.

    Args:
        timesteps: Time steps T of the spiking network.
        every_n_epochs: Run in every n-th epoch.
        limit_batches: Validation batches to run it on, all if None.
        calibration_batches: Training batches to balance thresholds on, of each process.
        table: Energy per operation, a name in ``functional.ENERGY_TABLES``.
        figures: Log pictures too; needs matplotlib.
        exit_agreement: Let samples leave before T steps, at margins at which that share of the calibration samples has
            its class by then; see :func:`~snnreg_plugins.export.exit_margins`. ``snn/timesteps``, the mean number of
            steps, is logged too.
        **options: Options of the export, such as ``threshold`` and ``per_channel``; see
            :func:`~snnreg_plugins.to_snntorch`.

    Raises:
        ValueError: If an argument is out of range.
        ConversionError: On start of a run, if the network cannot be exported.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[SpikingValidation(timesteps=4)], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        timesteps: int = 8,
        every_n_epochs: int = 1,
        limit_batches: int | None = None,
        calibration_batches: int = 8,
        table: str = "horowitz_fp32",
        figures: bool = False,
        exit_agreement: float | None = None,
        **options: Unpack[ExportOptions],
    ) -> None:
        counts = {
            "timesteps": timesteps,
            "every_n_epochs": every_n_epochs,
            "limit_batches": 1 if limit_batches is None else limit_batches,
            "calibration_batches": calibration_batches,
        }
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"Expected argument `{name}` to be at least 1, but got {value}.")
        if exit_agreement is not None and not 0 < exit_agreement <= 1:
            raise ValueError(f"Expected argument `exit_agreement` to be in (0, 1], but got {exit_agreement}.")
        self.exit_agreement = exit_agreement
        self.every_n_epochs = every_n_epochs
        self.limit_batches = limit_batches
        self.table = energy_table(table)
        self.figures = figures
        self.options: dict[str, Any] = {"timesteps": timesteps, **options}
        Options(**self.options)  # checks them
        #: The spiking network of the last validation.
        self.network: SpikingNetwork | None = None
        self._recent: deque[Tensor] = deque(maxlen=calibration_batches)
        self._run: Measurement | None = None
        self._due = False

    def unpack(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return the inputs and the labels of a batch; override for batches that are not ``(input, label)``."""
        if isinstance(batch, (tuple, list)) and len(batch) == 2:
            return batch[0], batch[1]
        raise TypeError(
            f"SpikingValidation expects batches of (input, label), but got {type(batch).__name__}. Override "
            "SpikingValidation.unpack(batch) to return both."
        )

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trace(
            pl_module, self.options.get("until")
        )  # what cannot be exported is said before training, not after its first epoch

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._recent.append(self.unpack(batch)[0].detach())

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        in_turn = (trainer.current_epoch + 1) % self.every_n_epochs == 0
        self._due = not trainer.sanity_checking and (in_turn or trainer.state.fn != TrainerFn.FITTING)
        self._run = None

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not self._due or (self.limit_batches is not None and batch_idx >= self.limit_batches):
            return
        x, y = self.unpack(batch)
        if self._run is None:
            self._run = self._export(trainer, pl_module, x)
        if self._run is None:
            self._due = False
        else:
            self._run.update(x, y)

    def _export(self, trainer: Trainer, pl_module: LightningModule, x: Tensor) -> Measurement | None:
        dnn = trace(pl_module)
        seen = list(self._recent) or [x]
        try:
            # Each process saw other batches; all get the network that is balanced on all of them.
            network = to_snntorch(dnn, Sharded(seen) if trainer.world_size > 1 else seen, **self.options)
        except SilentLayerError as error:  # raised in all processes or none
            # A layer may fall silent under a strong penalty and wake again: no reason to end the training.
            rank_zero_warn(f"SpikingValidation is left out in epoch {trainer.current_epoch}. {error}")
            return None
        if self.exit_agreement is not None:
            # Of the first process's samples, in all.
            network.exit_margins = trainer.strategy.broadcast(exit_margins(network, seen, self.exit_agreement))
        self.network = network
        return Measurement(dnn, network, self.figures and trainer.is_global_zero)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._run is None:
            return
        values = self._run.values(self.table)
        if self._run.spikes is not None:
            self._log_figures(trainer, values, self._run.spikes.rates())
        self._run.close()
        self._run = None
        pl_module.log("snn/accuracy", values.pop("snn/accuracy"), prog_bar=True, rank_zero_only=False)
        pl_module.log_dict(values)

    def _log_figures(self, trainer: Trainer, values: dict[str, Any], rates: dict[str, Tensor]) -> None:
        at = f"epoch {trainer.current_epoch}"
        prefix = "snn/sops/"
        sops = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
        try:
            figures = {
                "snn/sops_by_layer": layers_figure(sops, f"SOPs by layer, {at}", "SOPs / sample"),
                "snn/spike_rates": histograms_figure(rates, f"Spike rates, {at}", "Spikes / step"),
            }
            for logger in trainer.loggers:
                for name, figure in figures.items():
                    _log_figure(logger, name, figure, trainer.global_step)
        except Exception as error:  # whatever it is, no picture is worth a training
            rank_zero_warn(f"SpikingValidation could not log its figures. {type(error).__name__}: {error}")

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._run = None


class Measurement:
    """Both networks with their metrics, over one validation."""

    def __init__(self, dnn: fx.GraphModule, snn: SpikingNetwork, figures: bool = False) -> None:
        self.dnn, self.snn = dnn, snn
        device = device_of(snn)
        self.correct = {"dnn": MeanMetric().to(device), "snn": MeanMetric().to(device)}
        self.operations = {"dnn": SynapticOperations(dnn).to(device), "snn": SynapticOperations(snn).to(device)}
        self.rate = SpikeRate(snn).to(device)
        self.steps = TimeSteps(snn).to(device)
        self.spikes = NeuronRates() if figures else None
        self.rate.watch.observer = self.spikes

    def update(self, x: Tensor, y: Tensor) -> None:
        with torch.no_grad():
            for name, network in (("dnn", self.dnn), ("snn", self.snn)):
                self.correct[name].update((network(x).argmax(1) == y).float())

    def values(self, table: Any) -> dict[str, Any]:
        """All figures, over all processes."""
        logged: dict[str, Any] = {}
        for name, operations in self.operations.items():
            counts = {quantity: float(operations.total(quantity)) for quantity in operations.quantities}
            logged[f"{name}/accuracy"] = self.correct[name].compute()
            logged[f"{name}/effective_macs"] = counts["effective_macs"]
            logged[f"{name}/energy"] = energy(counts["sops"], counts["effective_macs"], table)
        logged["dnn/dense_macs"] = float(self.operations["dnn"].total("dense_macs"))
        logged["snn/sops"] = float(self.operations["snn"].total("sops"))
        logged["snn/spike_rate"] = self.rate.compute().float()
        if self.snn.exit_margins is not None:
            logged["snn/timesteps"] = self.steps.compute().float()
        logged |= {f"snn/sops/{layer}": sops for layer, sops in self.operations["snn"].by_layer().items()}
        logged |= {f"snn/spike_rate/{layer}": rate for layer, rate in self.rate.by_layer().items()}
        return logged

    def close(self) -> None:
        for metric in (*self.operations.values(), self.rate, self.steps):
            metric.close()


class NeuronRates(Observer):
    """Spikes of each neuron, summed over samples and steps."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def emitted(self, name: str, layer: nn.Module, spikes: Tensor, steps: CallSteps | None) -> None:
        """Add the spikes of a call."""
        total = spikes.abs().sum(0, dtype=torch.float32).flatten()
        before = self._sums.get(name)
        if before is not None and before.shape != total.shape:  # inputs of another size have other neurons
            return
        self._sums[name] = total if before is None else before + total
        self._counts[name] = self._counts.get(name, 0) + len(spikes)

    def rates(self) -> dict[str, Tensor]:
        """Give the spikes per step of each neuron, by layer."""
        return {name: (total / max(self._counts[name], 1)).cpu() for name, total in self._sums.items()}


def _log_figure(logger: Any, name: str, figure: Figure, step: int) -> None:
    """Give a figure to a logger that takes figures or images."""
    if callable(getattr(logger.experiment, "add_figure", None)):
        logger.experiment.add_figure(name, figure, global_step=step)
    elif callable(getattr(logger, "log_image", None)):
        import numpy as np
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        canvas: Any = FigureCanvasAgg(figure)
        canvas.draw()
        logger.log_image(name, [np.asarray(canvas.buffer_rgba())[..., :3]], step=step)
