"""What would the spiking network cost and score, shown at every validation."""

from __future__ import annotations

import math
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, fx, nn
from torchmetrics import Metric
from typing_extensions import Unpack, override

from snnreg_plugins._checks import as_flag, as_integer, as_number
from snnreg_plugins._models import device_of, part_of
from snnreg_plugins._pictures import histograms_figure, layers_figure
from snnreg_plugins.callbacks.measurement import Measurement, Randomness, no_values
from snnreg_plugins.export import Sharded, SpikingNetwork, exit_margins, to_snntorch
from snnreg_plugins.export.calibrate import SilentLayerError
from snnreg_plugins.export.faithful import traced_faithfully
from snnreg_plugins.export.options import ExportOptions, Options
from snnreg_plugins.functional.energy import energy_table
from snnreg_plugins.metrics.scores import Task, require_metric
from snnreg_plugins.training.first_batch import FirstBatch

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
    ``dnn/dense_macs``, ``dnn/energy`` (of a DNN that skips zeros). ``snn/accuracy`` is on the progress bar. Of several
    validation loaders each has its own numbers, named as Lightning names them: ``snn/accuracy/dataloader_idx_0``.

    What is scored is told by the labels and by the training loss of the first batch: accuracy for classes, for one
    logit and for multi-label outputs; ``snn/mse`` and ``dnn/mse``, the mean squared error, for a regression. Where that
    leaves it open, as for a loss written by hand, training does not start, and ``metric`` says it. In
    ``trainer.validate`` alone labels and loss modules tell.

    With ``figures``, two pictures are logged too: ``snn/sops_by_layer``, and ``snn/spike_rates``, how the rates of each
    layer's neurons are spread (over the batches of the first process). They go to loggers that take pictures, such as
    TensorBoard and WandB; one that cannot, or fails to, is left out with a warning.

    Where a layer is silent on the calibration data, as a strong penalty may make it, that validation is left out with
    a warning. A monitor, such as that of a ModelCheckpoint, then sees the worst value there is (an accuracy of 0), as
    it does before the first of every n epochs; in the epochs between, it sees the last value. Loggers get neither.

    Batches are ``(input, label)``; override :meth:`unpack` for others.

    Args:
        timesteps: Time steps T of the spiking network.
        every_n_epochs: Run in every n-th epoch.
        limit_batches: Validation batches to run it on, of each loader; all if None.
        calibration_batches: Training batches to balance thresholds on, of each process.
        table: Energy per operation, a name in ``functional.ENERGY_TABLES``.
        figures: Log pictures too; needs matplotlib.
        exit_agreement: Let samples leave before T steps, at margins at which that share of the calibration samples has
            its class by then; see :func:`~snnreg_plugins.export.exit_margins`. ``snn/timesteps``, the mean number of
            steps, is logged too.
        metric: What is scored: ``"multiclass"``, ``"binary"`` (logits; above 0 is a yes), ``"multilabel"`` (the same),
            ``"regression"``, or a metric of torchmetrics, which gets outputs and labels and names the score:
            ``snn/mean_absolute_error``. If None, labels and loss tell.
        network: The network within the LightningModule, by name, such as ``"net"``, where the module's own forward is
            none of one input and one tensor of scores (as in a GAN, or with outputs in a tuple); the module itself if
            None.
        **options: Options of the export, such as ``threshold`` and ``per_channel``; see
            :func:`~snnreg_plugins.to_snntorch`.

    Raises:
        ValueError: If an argument is out of range; in the first training batch, if it cannot be told what is scored.
        TypeError: If ``metric`` is none; in the first training batch, if the batch is none of (input, label).
        ConversionError: In the first training batch, if the network cannot be exported.

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
        metric: Metric | Task | None = None,
        network: str | None = None,
        **options: Unpack[ExportOptions],
    ) -> None:
        self.every_n_epochs = as_integer("every_n_epochs", every_n_epochs)
        self.limit_batches = None if limit_batches is None else as_integer("limit_batches", limit_batches)
        self.calibration_batches = as_integer("calibration_batches", calibration_batches)
        self.exit_agreement = None if exit_agreement is None else as_number("exit_agreement", exit_agreement, "(0, 1]")
        self.table = energy_table(table)
        self.figures = as_flag("figures", figures)
        require_metric(metric)
        self.metric = metric
        self.network_name = network
        self.options: dict[str, Any] = {"timesteps": as_integer("timesteps", timesteps), **options}
        Options(**self.options)  # checks them
        self._start_anew()

    def _start_anew(self, pl_module: LightningModule | None = None) -> None:
        """Forget all of an earlier run: fold loops, tuners and notebooks use a callback again."""
        #: The spiking network of the last validation.
        self.network: SpikingNetwork | None = None
        self._recent: deque[Tensor] = deque(maxlen=self.calibration_batches)
        self._first = FirstBatch(self.metric)
        self._runs: dict[int, Measurement] = {}
        self._due = False
        self._has_value = False
        self._randomness: Randomness | None = None
        # Whose training batches these are: validation alone may follow, of this module or of another one.
        self._trained = None if pl_module is None else weakref.ref(pl_module)

    def __getstate__(self) -> dict[str, Any]:
        """Go to other processes without what refers to objects of this one."""
        return {**vars(self), "_trained": None, "_runs": {}}

    def unpack(self, batch: Any) -> tuple[Tensor, Any]:
        """Return the inputs and the labels of a batch; override for batches that are not ``(input, label)``.

        It may also choose one of several targets, or do to the inputs what the module's steps do before they call
        the network, such as normalization: the exported network gets what is returned here. Labels may be None where
        there are none; nothing is scored then.

        Args:
            batch: A batch of the training or validation data, on the module's device.
        """
        if isinstance(batch, (tuple, list)) and len(batch) == 2:
            return batch[0], batch[1]
        raise TypeError(
            f"SpikingValidation expects batches of (input, label), but got {type(batch).__name__}. Override "
            "SpikingValidation.unpack(batch) to return both."
        )

    def _unpacked(self, batch: Any) -> tuple[Tensor, Any]:
        x, y = self.unpack(batch)
        if not isinstance(x, Tensor):
            raise TypeError(
                f"SpikingValidation expects the input to be a tensor, but got {type(x).__name__}. Override "
                "SpikingValidation.unpack(batch) to return the tensor that the network is called with, and the labels."
            )
        return x, y

    def _traced(self, pl_module: LightningModule, x: Tensor) -> fx.GraphModule:
        return traced_faithfully(part_of(pl_module, self.network_name), x, self.options.get("until"))

    # Training.

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_anew(pl_module)
        part_of(pl_module, self.network_name)
        if not trainer.enable_validation:
            rank_zero_warn(
                "SpikingValidation has nothing to run on: this fit has no validation data or no validation_step(), or "
                "the Trainer's `limit_val_batches` is 0."
            )
        period, epochs = math.lcm(self.every_n_epochs, trainer.check_val_every_n_epoch or 1), trainer.max_epochs
        if epochs is not None and 0 <= epochs < period and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_warn(
                f"SpikingValidation runs in every {self.every_n_epochs}-th epoch in which there is a validation, but "
                f"there is none within the Trainer's {epochs} epochs."
            )

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._first.is_due:
            x, y = self._unpacked(batch)
            dnn = self._traced(pl_module, x)
            with self._drawn(trainer, dnn), torch.no_grad():
                self._first.see(dnn(x), y)

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._first.hear(loss)

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self._decide(pl_module)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._decide(pl_module)  # also where no optimizer steps
        self._recent.append(self._unpacked(batch)[0].detach())

    def _decide(self, pl_module: LightningModule) -> None:
        """Choose the score, once."""
        if not self._first.decide(pl_module):
            return
        score = self._first.score
        if self.exit_agreement is not None and not (score is None or score.by_class):
            raise ValueError(
                f"Expected argument `exit_agreement` to be None where it is not the highest score that decides, but "
                f"got {self.exit_agreement} for {score.name} of one logit, labels or values."
            )

    # Validation.

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        alone = trainer.state.fn != TrainerFn.FITTING
        if alone and (self._trained is None or self._trained() is not pl_module):
            self._start_anew()
        in_turn = (trainer.current_epoch + 1) % self.every_n_epochs == 0 or bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        self._due = not trainer.sanity_checking and (in_turn or alone)
        self._close()
        self._runs = {}

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
        x, y = self._unpacked(batch)
        run = self._runs.get(dataloader_idx)
        if run is None:
            run = self._next(trainer, pl_module, x, y)
            if run is None:
                self._due = False
                return
            self._runs[dataloader_idx] = run
        with self._drawn(trainer, run.snn):
            run.update(x, y)

    def _next(self, trainer: Trainer, pl_module: LightningModule, x: Tensor, y: Any) -> Measurement | None:
        """Begin to measure on a loader; None if the network cannot be exported now."""
        if self._runs:
            self._close()  # the same networks are to be watched for one loader at a time
            before = next(iter(self._runs.values()))
            return Measurement(before.dnn, before.snn, before.score)
        dnn = self._traced(pl_module, x)
        if self._first.is_due:  # no training yet
            with torch.no_grad():
                self._first.see(dnn(x), y)
            self._decide(pl_module)
        with self._drawn(trainer, dnn):
            network = self._export(trainer, pl_module, x)
        if network is None:
            return None
        self.network = network
        return Measurement(dnn, network, self._first.score, self.figures and trainer.is_global_zero)

    def _export(self, trainer: Trainer, pl_module: LightningModule, x: Tensor) -> SpikingNetwork | None:
        model = part_of(pl_module, self.network_name)
        seen = list(self._recent) or [x]
        try:
            # Each process saw other batches; all get the network that is balanced on all of them.
            network = to_snntorch(model, Sharded(seen) if trainer.world_size > 1 else seen, **self.options)
        except SilentLayerError as error:  # raised in all processes or none
            # A layer may fall silent under a strong penalty and wake again: no reason to end the training.
            rank_zero_warn(f"SpikingValidation is left out in epoch {trainer.current_epoch}. {error}")
            self._has_value = False
            return None
        if self.exit_agreement is not None:
            # Of the first process's samples, in all.
            network.exit_margins = trainer.strategy.broadcast(exit_margins(network, seen, self.exit_agreement))
        return network

    def _drawn(self, trainer: Trainer, network: nn.Module) -> Any:
        """Draw random numbers, as an input code does, that move nobody else's."""
        if self._randomness is None:
            self._randomness = Randomness(trainer.global_rank)
        return self._randomness.drawn(device_of(network))

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        loaders = len(trainer.num_val_batches)
        if not self._runs:
            if trainer.state.fn == TrainerFn.FITTING and not self._has_value:
                # Not logged: a logged value would be in the loggers, too.
                for loader in range(loaders):
                    nothing = _named(no_values(self._first.score), loader, loaders)
                    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in nothing.items()})
                self._has_value = True
            return
        for loader, run in self._runs.items():
            values = run.values(self.table)
            run.close()
            if run.spikes is not None:
                self._log_figures(trainer, values, run.spikes.rates())
            shown = {} if run.score is None else {name: values.pop(name) for name in [f"snn/{run.score.name}"]}
            pl_module.log_dict(_named(shown, loader, loaders), prog_bar=True, sync_dist=True, add_dataloader_idx=False)
            pl_module.log_dict(_named(values, loader, loaders), sync_dist=True, add_dataloader_idx=False)
        self._runs = {}
        self._has_value = True

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
        self._close()

    def _close(self) -> None:
        for run in self._runs.values():
            run.close()


def _named(values: dict[str, Any], loader: int, loaders: int) -> dict[str, Any]:
    """Name figures as Lightning does: of several loaders each has its own."""
    return values if loaders == 1 else {f"{name}/dataloader_idx_{loader}": value for name, value in values.items()}


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
