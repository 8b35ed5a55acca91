"""What would the spiking network cost and score, shown at every validation."""

from __future__ import annotations

import math
import weakref
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import Unpack, override

from snnreg_plugins._checks import as_flag, as_integer, as_number
from snnreg_plugins._console import quiet
from snnreg_plugins._pictures import histograms_figure, layers_figure
from snnreg_plugins.callbacks.measurement import Calls, Measurement, OwnMeasurement, no_values
from snnreg_plugins.callbacks.measuring import MeasuringCallback
from snnreg_plugins.export import Sharded, SpikingNetwork, exit_margins, to_snntorch
from snnreg_plugins.export.calibrate import SilentLayerError
from snnreg_plugins.export.options import ExportOptions, Options
from snnreg_plugins.functional.cost_models import cost_models
from snnreg_plugins.metrics.scores import Score, Task
from snnreg_plugins.watching.facts import require_prices
from snnreg_plugins.watching.layers import spikes_already

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SpikingValidation(MeasuringCallback):
    """Export the network at validation, run it on the validation data, and log what it costs and scores.

    Thresholds are balanced on the last batches of training (on the first validation batch, if there was no training
    yet), those of all processes, so no data is read a second time. The model is only read: weights, random state and
    metrics of the user's own are left alone, and training goes on as it would without this callback.

    Logged, each over all validation batches and processes: ``snn/accuracy``, ``snn/spike_rate`` (spikes/neuron/step),
    ``snn/sops`` and ``snn/effective_macs`` (per sample; the MACs are those of the analog first layer), ``snn/energy``
    (J/sample), ``snn/sops/<layer>``, ``snn/spike_rate/<layer>``; and ``dnn/accuracy``, ``dnn/effective_macs``,
    ``dnn/dense_macs``, ``dnn/energy`` (of a DNN that skips zeros). ``snn/accuracy`` and ``snn/sops`` are on the
    progress bar. Of several validation loaders each has its own numbers, named as Lightning names them:
    ``snn/accuracy/dataloader_idx_0``.

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

    A network that spikes already, the user's own of snnTorch, Norse, SpikingJelly or sinabs, or an exported one that is
    fine-tuned, is measured as it is, in the module's own ``validation_step``, however that calls it: once, or in a loop
    over time steps. The same ``snn/...`` are logged and no ``dnn/...``; ``timesteps`` and the options of the export
    play no role. Scored is what the network returns for a batch, if that is one tensor of scores ``(B, ...)``; override
    :meth:`readout` where it is not, as for spikes and potentials over time. ``network`` names the network where the
    step does not go through the module's own forward.

    Args:
        timesteps: Time steps T of the spiking network.
        every_n_epochs: Run in every n-th epoch.
        limit_batches: Validation batches to run it on, of each loader; all if None.
        calibration_batches: Training batches to balance thresholds on, of each process.
        table: What operations cost: a name in ``functional.COST_MODELS``, a YAML file of your own prices, or several of
            these. ``snn/energy`` and ``dnn/energy`` are by the first one that gives joules; of several, each is logged
            as ``snn/energy/lemaire`` and so on. ``"eflops"`` is logged as ``snn/eflops``. A DNN skips zeros where the
            model knows such a DNN, and is dense where not; ``"bit_matched"`` takes one of as few bits as T has.
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
        input_events: Whether whole numbers that a network which spikes already is given are events. If False, as for
            images of 0 to 255, they cost MACs. If None they are taken for events, and a warning says so.
        **options: Options of the export, such as ``threshold`` and ``per_channel``; see
            :func:`~snnreg_plugins.to_snntorch`. With ``time_dim``, batches have a dimension of time, of ``timesteps``:
            the spiking network reads them step by step, and the DNN is given the mean over the steps.

    Raises:
        ValueError: If an argument is out of range; in the first training batch, if it cannot be told what is scored.
        TypeError: If ``metric`` is none; in the first training batch, if the batch is none of (input, label), or a
            network that spikes already returns something else than a tensor.
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
        table: str | list[str] = "horowitz_fp32",
        figures: bool = False,
        exit_agreement: float | None = None,
        metric: Metric | Task | None = None,
        network: str | None = None,
        input_events: bool | None = None,
        **options: Unpack[ExportOptions],
    ) -> None:
        self.every_n_epochs = as_integer("every_n_epochs", every_n_epochs)
        self.limit_batches = None if limit_batches is None else as_integer("limit_batches", limit_batches)
        self.calibration_batches = as_integer("calibration_batches", calibration_batches)
        self.exit_agreement = None if exit_agreement is None else as_number("exit_agreement", exit_agreement, "(0, 1]")
        self.models = cost_models(table)
        self.figures = as_flag("figures", figures)
        self.input_events = None if input_events is None else as_flag("input_events", input_events)
        given: dict[str, Any] = {"timesteps": as_integer("timesteps", timesteps), **options}
        Options(**given)  # checks them
        super().__init__(metric, network, given)

    def _start_anew(self, pl_module: LightningModule | None = None) -> None:
        super()._start_anew()
        #: The spiking network that was exported for the last validation; None for one that spikes already.
        self.network: SpikingNetwork | None = None
        self._recent: deque[Tensor] = deque(maxlen=self.calibration_batches)
        self._runs: dict[int, Measurement | OwnMeasurement] = {}
        self._due = False
        self._is_compared = False  # whether the inputs of the module's own step were looked at
        self._step: Calls | None = None  # under way
        self._is_own = False  # whether the network spikes already
        self._has_value = False
        # Whose training batches these are: validation alone may follow, of this module or of another one.
        self._trained = None if pl_module is None else weakref.ref(pl_module)

    def __getstate__(self) -> dict[str, Any]:
        """Go to other processes without what refers to objects of this one."""
        return {**super().__getstate__(), "_trained": None, "_runs": {}, "_step": None}

    # Training.

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_anew(pl_module)
        self._is_own = spikes_already(self._network(pl_module))
        if self._is_own:
            require_prices(self.models, self._network(pl_module))
        if self._is_own and self.exit_agreement is not None:
            raise ValueError(
                f"Expected argument `exit_agreement` to be None for a network that spikes already, but got "
                f"{self.exit_agreement}. Set its `exit_margins` to what exit_margins() finds, if it is a "
                "SpikingNetwork."
            )
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
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if not self._is_own:
            self._recent.append(self._unpacked(batch)[0].detach())

    def _decide(self, pl_module: LightningModule) -> bool:
        if not super()._decide(pl_module):
            return False
        score = self._first.score
        if self.exit_agreement is not None and not (score is None or score.by_class):
            raise ValueError(
                f"Expected argument `exit_agreement` to be None where it is not the highest score that decides, but "
                f"got {self.exit_agreement} for {score.name} of one logit, labels or values."
            )
        return True

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
        self._is_own = spikes_already(self._network(pl_module))

    @override
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not (self._is_own or self._is_compared):
            self._is_compared = True
            self._step = Calls(self._network(pl_module))
        if not (self._is_own and self._is_measured(batch_idx)):
            return
        run = self._runs.get(dataloader_idx)
        if run is None:
            figures = self.figures and trainer.is_global_zero
            run = OwnMeasurement(self._network(pl_module), self._warn_missed, figures, self.input_events, self.models)
            self._runs[dataloader_idx] = run
        assert isinstance(run, OwnMeasurement), "one network in a validation"
        run.open()

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
        if self._step is not None:
            self._compare(self._step, self._frames(self._unpacked(batch)[0]))
        if not self._is_measured(batch_idx):
            return
        x, y = self._unpacked(batch)
        run = self._runs.get(dataloader_idx)
        if isinstance(run, OwnMeasurement):
            self._add(run, pl_module, x, y)
            return
        if run is None:
            run = self._next(trainer, pl_module, x, y)
            if run is None:
                self._due = False
                return
            self._runs[dataloader_idx] = run
        with self._drawn(trainer, run.snn):
            run.update(self._frames(x), x, y)

    def _compare(self, calls: Calls, x: Tensor) -> None:
        """Say it where the module's own step calls the network on something else than it is measured on."""
        calls.close()
        self._step = None
        if len(calls.given) != 1 or not isinstance(given := calls.given[0], Tensor):
            return
        alike = given.numel() == x.numel() and torch.equal(given.detach().flatten().to(x.dtype), x.detach().flatten())
        if not alike:
            rank_zero_warn(
                "SpikingValidation runs the networks on other inputs than validation_step() does, which gives the "
                "network something else than is in the batch, such as a normalized image. Override "
                "SpikingValidation.unpack(batch) to return what the step gives it."
            )

    def _is_measured(self, batch_idx: int) -> bool:
        return self._due and (self.limit_batches is None or batch_idx < self.limit_batches)

    def _add(self, run: OwnMeasurement, pl_module: LightningModule, x: Tensor, y: Any) -> None:
        """Add what a step of the module made of a network that spikes already."""
        calls = run.calls
        run.close()
        if calls is None:
            return
        if run.tally.outside:
            raise ValueError(
                f"SpikingValidation measures the calls of {self.network_name or 'forward()'!r}, but the module's "
                f"validation_step() calls {', '.join(map(repr, run.tally.outside))} beside it. Name the network that "
                'is to be measured, such as SpikingValidation(network="net").'
            )
        if self._first.is_due:  # no training yet
            self._see(calls, y, "validation_step")
            self._decide(pl_module)
        if run.score is None and self._first.score is not None:
            run.score = self._first.score.fresh()
        scores = None if run.score is None else self._scores(calls, y, "validation_step")
        run.add(self._samples(x, y), scores, y)

    def _samples(self, x: Tensor, y: Any) -> int:
        """Number of samples in a batch."""
        return len(y) if isinstance(y, Tensor) and y.dim() else x.shape[int(self._time_dim == 0)]

    def _warn_missed(self, name: str, what: str) -> None:
        rank_zero_warn(f"SpikingValidation does not count all: {name!r} ({what}).")

    def _next(self, trainer: Trainer, pl_module: LightningModule, x: Tensor, y: Any) -> Measurement | None:
        """Begin to measure on a loader; None if the network cannot be exported now."""
        if self._runs:
            self._close()  # the same networks are to be watched for one loader at a time
            before = next(iter(self._runs.values()))
            assert isinstance(before, Measurement), "one network in a validation"
            return Measurement(before.dnn, before.snn, before.score, models=self.models)
        dnn = self._traced(pl_module, x)
        if self._first.is_due:  # no training yet
            with torch.no_grad():
                self._first.see(dnn(self._frames(x)), y)
            self._decide(pl_module)
        with self._drawn(trainer, dnn):
            network = self._export(trainer, pl_module, x)
        if network is None:
            return None
        self.network = network
        figures = self.figures and trainer.is_global_zero
        return Measurement(dnn, network, self._first.score, figures, self.models)

    @quiet()  # Lightning's bar is there
    def _export(self, trainer: Trainer, pl_module: LightningModule, x: Tensor) -> SpikingNetwork | None:
        model = self._network(pl_module)
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

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        loaders = len(trainer.num_val_batches)
        if not self._runs:
            if trainer.state.fn == TrainerFn.FITTING and not self._has_value:
                # Not logged: a logged value would be in the loggers, too.
                networks = ("snn",) if self._is_own else ("dnn", "snn")
                for loader in range(loaders):
                    nothing = _named(no_values(self._first.score, networks, self.models), loader, loaders)
                    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in nothing.items()})
                self._has_value = True
            return
        for loader, run in self._runs.items():
            if isinstance(run, OwnMeasurement):
                values = run.values(self.models, partial(trainer.strategy.reduce, reduce_op="sum"))
            else:
                values = run.values(self.models)
            run.close()
            if run.spikes is not None:
                self._log_figures(trainer, values, run.spikes.rates())
            self._show(pl_module, run.score, values, loader, loaders)
        self._runs = {}
        self._has_value = True

    def _show(
        self, pl_module: LightningModule, score: Score | None, values: dict[str, Any], loader: int, loaders: int
    ) -> None:
        """Log the figures of a loader."""
        names = [*([] if score is None else [f"snn/{score.name}"]), "snn/sops"]
        shown = {name: values.pop(name) for name in names if name in values}
        pl_module.log_dict(_named(shown, loader, loaders), prog_bar=True, sync_dist=True, add_dataloader_idx=False)
        pl_module.log_dict(_named(values, loader, loaders), sync_dist=True, add_dataloader_idx=False)

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
        super().on_exception(trainer, pl_module, exception)
        self._close()

    def _close(self) -> None:
        if self._step is not None:
            self._step.close()
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
