"""A budget that the exported network is to meet, in place of the strength of a penalty."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import Unpack, override

from snnreg_plugins._checks import as_flag, as_names, as_number, one_of
from snnreg_plugins._lightning import averaging, loss_scale, put_before
from snnreg_plugins._models import device_of
from snnreg_plugins.callbacks.averages import load_for_good, require_validated_averages
from snnreg_plugins.callbacks.measurement import Measurement, OwnMeasurement
from snnreg_plugins.callbacks.priced import (
    PricedRegularization,
    mean_of,
    progress_of,
    require_an_end_and_validation,
    summed,
    validation_follows,
)
from snnreg_plugins.callbacks.spiking_validation import SpikingValidation
from snnreg_plugins.callbacks.verdict import say_that_nothing_was_counted, say_what_was_scaled, say_whether_it_is_met
from snnreg_plugins.export import SpikingNetwork
from snnreg_plugins.export.options import ExportOptions
from snnreg_plugins.metrics.scores import Score, Task
from snnreg_plugins.training.budget import Budget, Counts, Keeper, Kept
from snnreg_plugins.training.dual_ascent import Controller
from snnreg_plugins.training.trim import Trim


class ActivityBudget(SpikingValidation):
    r"""Train a network whose spiking network meets a budget: SOPs, a share of the dense MACs, or an energy.

    In place of :class:`~snnreg_plugins.ActivityRegularization` with a strength that one has to find. A penalty by
    fan-out is steered so that the count C of the spiking network comes to the budget B: its strength is the price of a
    constraint, which rises while :math:`C > B` and falls while :math:`C < B` (dual ascent; see
    :class:`~snnreg_plugins.training.dual_ascent.DualAscent`). C is estimated in each training batch, and set right by
    what is counted exactly at each validation, in the network that is exported there; in a network that spikes already
    and is fine-tuned, in that network. The budget comes down over a first part of the training, the ``ramp``, from what
    the network costs at the start. Where the network stays below it by itself, there is no penalty.

    This is a :class:`SpikingValidation`, too, and logs all of its figures, unless there is another one beside it; with
    the same options both count the same, but for what ``trim`` does in the last validation. Logged at each validation,
    of the first loader where there are several:

    - ``budget/sops``: the exact count, in SOPs/sample;
    - ``budget/slack``: the share of the budget that is left, below 0 where more is spent;
    - ``budget/strength``: the strength that :class:`~snnreg_plugins.ActivityRegularization` would have;
    - ``budget/price``: what one more SOP/sample would take off the training loss;
    - ``budget/accuracy_per_sop``: the score over the count;
    - ``budget/accuracy_if_met``: the score where the budget is met, that is exceeded by no more than ``tolerance``;
      monitors see the worst value elsewhere. (Of another score, by its name: ``budget/mse_if_met``.)

    When the training ends, the module gets the weights of the best validation that met the budget, by the score (of one
    that spends less than the budget, if it is better by more than 5 %); :attr:`kept` tells which. So what is exported
    after ``trainer.fit`` meets the budget; of a DNN, :attr:`network` does, the network that was exported for that
    validation (None if that was before a training was resumed), to which ``trim`` has brought the last percents.
    ``ModelCheckpoint(monitor="budget/accuracy_if_met", mode="max")`` keeps the best one within the budget in a file.
    Where no network met it, a warning tells by how much the last one exceeds it. The state of the control is saved in
    checkpoints, with those best weights, so a training that is resumed goes on with it. (But ``trim``, and the
    balancing of a DNN, take batches since; where these are others or fewer, counts differ by that much.) Where counts
    jump from validation to validation, at one or two time steps, neurons that read alike, as in the background of
    images, cross their thresholds together: let them begin apart, by ``heterogeneity`` and ``train_thresholds``.

    Args:
        sops: The budget in SOPs/sample; one of the three is given.
        share: The budget as SOPs over the DNN's dense MACs, or over those of one time step of a network that spikes
            already.
        joules: The budget in J/sample, of SOPs and of the MACs of the analog first layer, by ``table``.
        timesteps: Time steps T of the spiking network.
        penalty: ``"expected_rate"`` or ``"l1"``; if None, expected rates of a DNN and L1 of a network that spikes
            already, where it counts SOPs.
        layers: Patterns of the layers to regularize the input of; all of ``network`` if None. See
            :class:`~snnreg_plugins.ActivityRegularization`.
        ramp: Share of the training over which the budget comes down.
        tolerance: By which share of it the budget may be exceeded and counts as met.
        keep_best: At the end of the training, load the weights of the best validation that met the budget.
        trim: Before the last validation, scale all thresholds together where the network spends more or less than the
            budget, by 0.7 to 1.5: of a spiking network that is trained, for good; of a DNN, those of the network that
            is exported there, :attr:`network`, and if that is kept a warning says how to export others like it.
        limit_batches: Validation batches to count on, of each loader; all if None.
        calibration_batches: Training batches to balance thresholds on, of each process.
        table: Energy per operation, a name in ``functional.ENERGY_TABLES``.
        exit_agreement: Count with early exit; see :class:`SpikingValidation`.
        metric: What is scored; see :class:`SpikingValidation`.
        network: The network within the LightningModule, by name; the module itself if None.
        **options: Options of the export, such as ``threshold`` and ``per_channel``; see
            :func:`~snnreg_plugins.to_snntorch`.

    Raises:
        ValueError: If an argument is out of range, or not exactly one budget is given; in the first training batch, if
            the budget is below what the analog first layer costs alone; and as :class:`SpikingValidation`.
        MisconfigurationException: On start of training, if there is no validation, or the Trainer has neither
            ``max_epochs`` nor ``max_steps``, or averages weights that no validation sees; and as
            :class:`~snnreg_plugins.ActivityRegularization`.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> callback = ActivityBudget(sops=200_000, timesteps=4)
        >>> trainer = Trainer(max_epochs=10, callbacks=[callback], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        sops: float | None = None,
        share: float | None = None,
        joules: float | None = None,
        timesteps: int = 8,
        penalty: Literal["expected_rate", "l1"] | None = None,
        layers: str | list[str] | None = None,
        ramp: float = 1 / 3,
        tolerance: float = 0.02,
        keep_best: bool = True,
        trim: bool = True,
        limit_batches: int | None = None,
        calibration_batches: int = 8,
        table: str = "horowitz_fp32",
        exit_agreement: float | None = None,
        metric: Metric | Task | None = None,
        network: str | None = None,
        **options: Unpack[ExportOptions],
    ) -> None:
        self.budget = Budget(sops, share, joules, table)
        if penalty is not None:
            one_of("penalty", penalty, ("expected_rate", "l1"))
        self.penalty = penalty
        self.ramp = as_number("ramp", ramp, "[0, 1]")
        self.tolerance = as_number("tolerance", tolerance, "[0, 1)")
        self.keep_best = as_flag("keep_best", keep_best)
        self.trim = as_flag("trim", trim)
        super().__init__(
            timesteps,
            limit_batches=limit_batches,
            calibration_batches=calibration_batches,
            table=table,
            exit_agreement=exit_agreement,
            metric=metric,
            network=network,
            **options,
        )
        self.layers = as_names("layers", layers)
        self._steer_anew()

    def _steer_anew(self) -> None:
        #: Price, estimate and last count of the training.
        self.controller = Controller(self.budget, self.ramp)
        self._keeper = Keeper(self.budget, self.tolerance)
        self._regularizer: PricedRegularization | None = None  # while a fit runs
        self._thresholds: dict[str, Any] = {"thresholds": {}}  # of a checkpoint
        self._losses: list[Tensor] = []  # of the batch under way
        self._opening: OwnMeasurement | None = None  # of the first batch, of a network that spikes already
        self._trim = Trim(self.calibration_batches)
        self._is_beside = False  # whether another SpikingValidation logs the figures of the network
        self._is_counted = False  # whether the last validation counted anything
        self._batches_since = 0  # that validation
        self._last_score: float | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Go to other processes without what refers to objects of this one."""
        return {**super().__getstate__(), "_regularizer": None, "_opening": None}

    @property
    def kept(self) -> Kept | None:
        """The best validation that met the budget, with its epoch, counts, score and weights; None if none did."""
        return self._keeper.kept

    @property
    @override
    def state_key(self) -> str:
        """Tells callbacks with different budgets apart in a checkpoint."""
        return self._generate_state_key(
            unit=self.budget.unit, amount=self.budget.amount, penalty=self.penalty, network=self.network_name
        )

    @override
    def state_dict(self) -> dict[str, Any]:
        penalty = self._thresholds if self._regularizer is None else self._regularizer.state_dict()
        return {"controller": self.controller.state(), "penalty": penalty, "kept": self._keeper.state()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.controller.load(state_dict["controller"])
        self._thresholds = state_dict["penalty"]
        if "kept" in state_dict:  # not in files of earlier versions
            self._keeper.load(state_dict["kept"])

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":  # the control of an earlier fit ends here; a checkpoint's is read after this
            self._steer_anew()
        put_before(trainer, self, averaging(trainer))  # that the weights which were counted are still there

    # Training.

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        require_an_end_and_validation(trainer)
        require_validated_averages("ActivityBudget", trainer, pl_module)
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        others = [it for it in callbacks if isinstance(it, SpikingValidation) and it is not self]
        if any(isinstance(it, ActivityBudget) for it in others):
            raise MisconfigurationException(
                "ActivityBudget cannot serve beside another one: both would steer and log the same. Give the Trainer "
                "one of them."
            )
        self._is_beside = bool(others)
        inner = None if self.network_name is None else [f"{self.network_name}.*"]
        penalty: Literal["expected_rate", "l1"] = "l1" if self._is_own else "expected_rate"
        regularizer = PricedRegularization(
            self.penalty or penalty,
            self.controller,
            self.layers or inner,
            self.options.get("percent") or 99.9,
        )
        regularizer.load_state_dict(self._thresholds)
        regularizer.on_fit_start(trainer, pl_module)
        self._regularizer = regularizer

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._penalty_of_fit.on_train_start(trainer, pl_module)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._losses = []
        self.controller.progress = progress_of(trainer, batch_idx - 1)  # resumed, it may have another end
        if self.controller.is_new:
            self._count_first(trainer, pl_module, self._unpacked(batch)[0])
        self._penalty_of_fit.on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self.trim and (network := self._own_spiking(trainer, pl_module)) is not None:
            self._trim.watch(network)

    def _count_first(self, trainer: Trainer, pl_module: LightningModule, x: Tensor) -> None:
        """Count what the network costs before it is trained, on the first batch."""
        if self._is_own:
            self._opening = OwnMeasurement(self._network(pl_module), self._warn_missed)
            self._opening.open()
            return
        dnn = self._traced(pl_module, x)
        with self._drawn(trainer, dnn):
            network = self._export(trainer, pl_module, x)
            if network is not None:  # else a layer is silent: validations will tell
                run = Measurement(dnn, network, None)
                run.update(self._frames(x), x, None)
                self.controller.counted(self._counts(trainer, run, run.values(self.models)))
                run.close()

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        super().on_before_backward(trainer, pl_module, loss)
        if self._opening is not None:
            self._opening.stop()  # before anything is computed again in the backward pass
        if self.controller.listens:
            accumulated = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
            self._losses.append(loss.detach().float() * (accumulated / loss_scale(trainer)))
        self._penalty_of_fit.on_before_backward(trainer, pl_module, loss)

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._regularizer is not None:
            self._regularizer.on_after_backward(trainer, pl_module)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._penalty_of_fit.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._trim.unwatch()
        self._batches_since += 1
        x, y = self._unpacked(batch)
        if self.trim and not self._is_own:
            self._trim.add(x)
        samples = self._samples(x, y)
        over_processes = partial(summed, trainer, pl_module.device) if trainer.world_size > 1 else None
        if self._opening is not None:
            run, self._opening = self._opening, None
            self._take_first(trainer, run, samples)
        if self.controller.listens and self._losses:
            loss = torch.stack(self._losses).mean()
            self.controller.hear(float(trainer.strategy.reduce(loss, reduce_op="mean")))
        self.controller.end_batch(samples, progress_of(trainer, batch_idx), over_processes)

    def _take_first(self, trainer: Trainer, run: OwnMeasurement, samples: int) -> None:
        calls = run.calls
        run.close()
        # A step of training that does something else than one of validation tells nothing.
        if calls is None or not calls.returned or run.tally.outside:
            return
        run.add(samples, None, None)
        values = run.values(self.models, partial(trainer.strategy.reduce, reduce_op="sum"))
        self.controller.counted(self._counts(trainer, run, values))

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._penalty_of_fit.on_train_epoch_end(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._keeper.under(self._conditions(trainer, pl_module))  # of the last epoch, after the last validation
        if self.keep_best and self.kept is not None:
            load_for_good(trainer, pl_module, self.kept.weights)
            self.network = self.kept.network
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._say_whether_it_is_met()

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._penalty_of_fit.on_fit_end(trainer, pl_module)
        self._thresholds, self._regularizer = self._penalty_of_fit.state_dict(), None

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        self._trim.unwatch()
        if self._opening is not None:
            self._opening.close()
        if self._regularizer is not None:
            self._regularizer.on_exception(trainer, pl_module, exception)

    @property
    def _penalty_of_fit(self) -> PricedRegularization:
        assert self._regularizer is not None, "between on_fit_start and on_fit_end"
        return self._regularizer

    # Validation.

    def _own_spiking(self, trainer: Trainer, pl_module: LightningModule) -> SpikingNetwork | None:
        """Give the one exported network that is trained; None if there is another number of them."""
        if not self._is_own or averaging(trainer):  # weights that are validated are swapped in later
            return None
        found = [module for module in self._network(pl_module).modules() if isinstance(module, SpikingNetwork)]
        return found[0] if len(found) == 1 else None

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if fitting and (network := self._own_spiking(trainer, pl_module)) is not None:
            self._trim_last(trainer, network)

    @override
    def _export(self, trainer: Trainer, pl_module: LightningModule, x: Tensor) -> SpikingNetwork | None:
        fitting, kept = trainer.state.fn == TrainerFn.FITTING, self.kept
        if not fitting and kept is not None and kept.network is not None and kept.is_of(pl_module):
            return kept.network.to(x.device)  # with what was done to its thresholds
        network = super()._export(trainer, pl_module, x)
        if network is not None and fitting:
            self._trim_last(trainer, network)
        return network

    def _trim_last(self, trainer: Trainer, network: SpikingNetwork) -> None:
        """Scale thresholds before the last validation; down only where a penalty has taken too much."""
        controller, over_processes = self.controller, partial(mean_of, trainer, device_of(network))
        if self.trim and controller.limit is not None and not validation_follows(trainer):
            to_use_it = controller.dual.price > 0
            factors = self._trim.fit(network, controller.limit, self.tolerance, to_use_it, over_processes)
            if factors is not None:
                network.conversion["threshold_factors"] = factors

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._is_counted = bool(self._runs)
        super().on_validation_epoch_end(trainer, pl_module)
        score = self._first.score
        if not self._is_counted and trainer.state.fn == TrainerFn.FITTING:
            self.controller.relent()
        if not self._is_counted and score is not None:
            # Not logged: a logged value would be in the loggers, too.
            trainer.callback_metrics[f"budget/{score.name}_if_met"] = torch.tensor(score.worst)

    @override
    def _show(
        self, pl_module: LightningModule, score: Score | None, values: dict[str, Any], loader: int, loaders: int
    ) -> None:
        if loader == 0:
            self._take(pl_module, score, values)
        if not self._is_beside:
            super()._show(pl_module, score, values, loader, loaders)

    def _take(self, pl_module: LightningModule, score: Score | None, values: dict[str, Any]) -> None:
        """Take what a validation has counted, and log what it says of the budget."""
        trainer = pl_module.trainer
        counts = self._counts(trainer, self._runs[0], values)
        logged = {"budget/sops": counts.sops, "budget/slack": self.budget.slack(counts)}
        if trainer.state.fn == TrainerFn.FITTING:
            self._batches_since = 0
            self.controller.counted(counts)
            network = self._own_spiking(trainer, pl_module) if self._is_own else self.network
            if self.trim and network is not None:
                self._trim.compare(network, counts.sops, partial(mean_of, trainer, device_of(network)))
            logged["budget/strength"] = self.controller.settled_strength
            logged["budget/price"] = self.controller.shadow_price
        if score is not None:
            self._last_score = value = float(values[f"snn/{score.name}"])
            if score.is_accuracy and trainer.state.fn == TrainerFn.FITTING:
                self.controller.scored(value)
            if counts.sops:
                logged[f"budget/{score.name}_per_sop"] = value / counts.sops
            name = f"budget/{score.name}_if_met"
            if self.budget.is_met(counts, self.tolerance):
                logged[name] = value
            else:  # not logged, as above
                trainer.callback_metrics[name] = torch.tensor(score.worst)
        if self.keep_best and trainer.state.fn == TrainerFn.FITTING:
            better = None if score is None else score.higher_is_better
            sign = 0 if better is None else 1 if better else -1
            self._keeper.under(self._conditions(trainer, pl_module))
            self._keeper.see(trainer.current_epoch, counts, self._last_score, sign, pl_module, self.network)
        pl_module.log_dict(logged, sync_dist=True, add_dataloader_idx=False)

    def _counts(self, trainer: Trainer, run: Measurement | OwnMeasurement, values: dict[str, Any]) -> Counts:
        if isinstance(run, Measurement):
            dense = values["dnn/dense_macs"]
        else:
            pair = torch.tensor([float(run.dense_macs_of_a_step()), float(run.samples)])
            total, samples = trainer.strategy.reduce(pair.to(run.device), reduce_op="sum").tolist()
            dense = total / samples
        return Counts(values["snn/sops"], values["snn/effective_macs"], dense)

    def _conditions(self, trainer: Trainer, pl_module: LightningModule) -> str | None:
        """Tell what counts depend on beside the weights: steps may change with the epoch, and all where one resumes."""
        if not self._is_own:
            return f"{self.options}, {self.exit_agreement}, {self.tolerance}, {self.budget.table}"
        steps = [one.timesteps for one in self._network(pl_module).modules() if isinstance(one, SpikingNetwork)]
        if not steps and isinstance(run := self._runs.get(0), OwnMeasurement):
            steps = [int(summed(trainer, pl_module.device, torch.tensor(run.steps())))]
        return f"{steps} steps, {self.tolerance}, {self.budget.table}" if steps else None

    def _say_whether_it_is_met(self) -> None:
        say_what_was_scaled(self.network, self.controller.limit)
        counts, strength, since = self.controller.counts, self.controller.settled_strength, self._batches_since
        if self.keep_best and self.kept is not None:
            counts, since = self.kept.counts, 0
        elif not self._is_counted or counts is None:
            say_that_nothing_was_counted(strength)
            return
        say_whether_it_is_met(self.budget, self.tolerance, counts, self._last_score, strength, since)
