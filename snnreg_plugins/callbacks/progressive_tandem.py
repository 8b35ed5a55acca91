"""Convert a DNN to a spiking network layer by layer, and train on after each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from typing_extensions import Unpack, override

from snnreg_plugins._checks import as_integer, as_name, as_number, one_of
from snnreg_plugins._lightning import averaging, both, finds_unused_parameters, goes_on_from
from snnreg_plugins._models import part_of, shared_parameter
from snnreg_plugins._weights import load_weights, read_weights
from snnreg_plugins.export import Sharded, SpikingNetwork, deploy, to_norse, to_snntorch
from snnreg_plugins.export.calibrate import OTHER_METHODS, threshold_function
from snnreg_plugins.export.faithful import traced_faithfully
from snnreg_plugins.export.files import described_network, description
from snnreg_plugins.export.options import ExportOptions, Options
from snnreg_plugins.training.calibration import calibration_of
from snnreg_plugins.training.learning_rates import multiply_rates
from snnreg_plugins.training.rebalance import levels_now, rebalance
from snnreg_plugins.training.tandem import TandemNetwork, layers_of

# What is served of the options of the export; the others are at their defaults.
_SERVED = (
    "timesteps",
    "threshold",
    "percent",
    "per_channel",
    "initial_potential",
    "coding",
    "until",
    "surrogate",
    "surrogate_slope",
    "batch_norm",
)
_EXPORTS = {"snntorch": to_snntorch, "norse": to_norse}


class ProgressiveTandem(Callback):
    r"""Turn a trained DNN into a spiking network of few time steps, one layer after the other, training all the time.

    At the start of the fit the DNN within the LightningModule is exported, and the spiking network put in its place;
    its first layer of neurons spikes, and the others compute what the DNN does. The forward pass of a layer that spikes
    is its spike train's, the backward pass that of the coupled DNN layer, which shares its weights and is fed with the
    spike counts of the layer below; :class:`~snnreg_plugins.training.tandem.TandemNetwork` has the formulas. When the
    monitored value has not improved in ``patience`` validations,

    1. the weights of the best validation since the last layer came back,
    2. what leads to the layers that spike is frozen,
    3. the next layer gets new thresholds, of its activations on training data as they are now, and spikes.

    With the last layer of several, learning rates are multiplied by ``last_lr_factor``; when that improves no more,
    training ends. From Wu et al. 2020, Progressive tandem learning for pattern recognition with deep spiking neural
    networks. In the end the LightningModule holds a :class:`~snnreg_plugins.SpikingNetwork` with the weights of the
    best validation of the last layer, which exports, reports and metrics take for any; :attr:`network` is that one too,
    ready to be used: ``save_network(callback.network, "spiking.pt")``.

    ``tandem/spiking_layers``, the number of layers that spike, is logged in every epoch. Each layer's best value begins
    anew: values of a ``ModelCheckpoint(monitor=...)`` are those of different networks, so keep the last one.

    The optimizer's state stays when weights come back; a dropout of the DNN is none in the spiking network. Batch norms
    that are kept (``batch_norm="keep"``) have batch statistics until their layer spikes, and the same ones from then
    on; :attr:`network` has them folded, so it computes what the module does but for rounding.

    Checkpoints hold the weights of the best validation too, so they are about twice as large. A run that reads one,
    to go on, validate, test or predict, needs this callback and the DNN, with any weights; it goes on as if it had
    not been interrupted (but for the validation behind the last batch of an epoch, which Lightning leaves out where the
    checkpoint was written in that batch).

    Works with automatic and manual optimization, gradient accumulation, mixed precision, and DDP (which must find
    unused parameters: ``strategy="ddp_find_unused_parameters_true"``).

    Args:
        timesteps: Time steps T.
        monitor: The logged value that decides.
        mode: Whether it is to be as large (``"max"``) or as small (``"min"``) as can be.
        patience: Validations without a better value until the next layer spikes.
        last_lr_factor: What learning rates are multiplied by when the last layer spikes.
        network: The DNN within the LightningModule, by name, such as ``"net"``. None if the module has one part with
            parameters alone.
        checkpoint: A checkpoint of the trained DNN, or a file of its ``state_dict()``, whose weights to start from; see
            :class:`~snnreg_plugins.modules.SpikingClassifier`. None for the weights that it has.
        calibration_batches: Batches of training data to balance thresholds on, those of all processes together.
        framework: Whose neurons: ``"snntorch"`` or ``"norse"``.
        **options: Options of the export: ``threshold`` (``"percentile"``, ``"max"``, ``"mmse"`` or ``"local"``),
            ``percent``, ``per_channel``, ``initial_potential``, ``coding`` (``"constant"`` or ``"neurons"``),
            ``until``, ``batch_norm`` and ``surrogate_slope``; see :func:`~snnreg_plugins.to_snntorch`.

    Raises:
        ValueError: If an argument is out of range, or an option is not served; on start of a run, if it cannot be told
            which network is meant, or that one spikes already.
        ConversionError: On start of a fit, if the network cannot be exported, or has other activations than ReLU and
            leaky ReLU.
        MisconfigurationException: On start of a fit, without validation, or under a strategy that is not served; at the
            first validation, if the monitored value is not logged.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> callback = ProgressiveTandem(timesteps=4, patience=2)
        >>> trainer = Trainer(max_epochs=40, callbacks=[callback], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        timesteps: int = 8,
        monitor: str = "val/accuracy",
        mode: Literal["max", "min"] = "max",
        patience: int = 6,
        last_lr_factor: float = 0.1,
        network: str | None = None,
        checkpoint: str | None = None,
        calibration_batches: int = 10,
        framework: Literal["snntorch", "norse"] = "snntorch",
        **options: Unpack[ExportOptions],
    ) -> None:
        if not isinstance(monitor, str) or not monitor:
            raise ValueError(f"Expected argument `monitor` to name a logged value, but got {monitor!r}.")
        self.monitor = monitor
        self.mode = one_of("mode", mode, ("max", "min"))
        self.patience = as_integer("patience", patience)
        self.last_lr_factor = as_number("last_lr_factor", last_lr_factor, "(0, inf)")
        self.network_name = as_name("network", network)
        self.checkpoint = checkpoint
        self.calibration_batches = as_integer("calibration_batches", calibration_batches)
        self.framework = one_of("framework", framework, sorted(_EXPORTS))
        given: dict[str, Any] = {"timesteps": as_integer("timesteps", timesteps), "correction": "none", **options}
        self.options = _served(Options(**given))
        self._dnn: nn.Module | None = None
        self._stage = ""  # of the run
        self._hook: Callable[..., Any] | None = None  # in place of the module's on_load_checkpoint, until it is called
        self._own_hook: Callable[..., Any] | None = None  # what the module had in that place
        self._frozen: list[nn.Parameter] = []
        self._start_anew()

    def _start_anew(self) -> None:
        self._tandem: TandemNetwork | None = None
        self._inputs: list[Tensor] | None = None  # to balance thresholds on
        self._best: float | None = None
        self._waited = 0  # validations since the best one
        self._weights: dict[str, Tensor] | None = None  # of the module at the best validation

    @property
    def network(self) -> SpikingNetwork:
        """The spiking network, a copy: all layers spike, batch norms are folded.

        Raises:
            RuntimeError: Before a fit.
        """
        if self._tandem is None:
            raise RuntimeError("There is no spiking network yet: fit first, or load a checkpoint of such a fit.")
        return deploy(self._tandem.plain())

    # What a run starts with

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stage = stage
        name, part = self._part(pl_module)
        goes_on = goes_on_from(trainer) is not None
        if isinstance(part, SpikingNetwork) and stage == "fit" and not goes_on:
            raise ValueError(
                f"Expected {name!r} of {type(pl_module).__name__} to be a DNN, but it is a spiking network: its layers "
                "are converted already. Give a new module with the DNN, or fit without ProgressiveTandem."
            )
        if not isinstance(part, SpikingNetwork):
            self._dnn = part
        if stage == "fit":
            self._start_anew()
        if goes_on:
            self._listen(pl_module, name)
        elif stage == "fit":
            self._convert(trainer, pl_module, name, part)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._listen_no_more(pl_module)

    def _part(self, pl_module: LightningModule) -> tuple[str, nn.Module]:
        """Find the DNN within the module."""
        if self.network_name is not None:
            return self.network_name, part_of(pl_module, self.network_name)
        parts = [name for name, part in pl_module.named_children() if next(part.parameters(), None) is not None]
        if len(parts) != 1 or next(pl_module.parameters(recurse=False), None) is not None:
            raise ValueError(
                f"Expected argument `network` to name the DNN within {type(pl_module).__name__}, but got None, and it "
                f"has {parts}. If its layers are spread over the module, put them into a module of their own, with the "
                'forward() that computes the scores: `self.net = Net()`, network="net".'
            )
        return parts[0], pl_module.get_submodule(parts[0])

    def _convert(self, trainer: Trainer, pl_module: LightningModule, name: str, dnn: nn.Module) -> None:
        if hasattr(pl_module, "export_options"):  # as a SpikingClassifier has
            raise ValueError(
                f"Expected a module around a DNN, but {type(pl_module).__name__} exports its DNN itself, as a whole. "
                "Use Classifier with the same arguments, and ProgressiveTandem(timesteps=..., checkpoint=...)."
            )
        other = shared_parameter(pl_module, name)
        if other is not None:
            raise ValueError(
                f"Expected the weights of {name!r} to be no other part's of {type(pl_module).__name__}, but {other!r} "
                "is one of them. ProgressiveTandem puts a spiking network in its place, with weights of its own: keep "
                "one of the two, or make a copy of the other."
            )
        if self.checkpoint is not None:
            load_weights(dnn, read_weights(self.checkpoint, "checkpoint")[1], self.checkpoint)
        self._inputs = list(calibration_of(trainer, self.calibration_batches))
        calibration = Sharded(self._inputs) if trainer.world_size > 1 else self._inputs
        exported = _EXPORTS[self.framework](dnn, calibration, **vars(self.options))
        shape = (2, *exported.conversion["input_shape"])
        traced = traced_faithfully(dnn, torch.zeros(shape, dtype=next(dnn.parameters()).dtype), self.options.until)
        self._tandem = TandemNetwork(exported, layers_of(traced, exported), spiking_layers=1)
        _put(pl_module, name, self._tandem)

    def _listen(self, pl_module: LightningModule, name: str) -> None:
        """Have the network made as a checkpoint tells, before its weights are read."""
        hook = pl_module.on_load_checkpoint

        def on_load_checkpoint(checkpoint: dict[str, Any]) -> None:
            self._listen_no_more(pl_module)
            hook(checkpoint)
            self._made_again(pl_module, name, checkpoint)

        self._own_hook = vars(pl_module).get("on_load_checkpoint")
        self._hook = on_load_checkpoint
        pl_module.on_load_checkpoint = on_load_checkpoint  # type: ignore[method-assign]

    def _listen_no_more(self, pl_module: LightningModule) -> None:
        if self._hook is not None and vars(pl_module).get("on_load_checkpoint") is self._hook:
            del pl_module.on_load_checkpoint
            if self._own_hook is not None:
                pl_module.on_load_checkpoint = self._own_hook  # type: ignore[method-assign]
        self._hook = self._own_hook = None

    def _made_again(self, pl_module: LightningModule, name: str, checkpoint: Mapping[str, Any]) -> None:
        written = checkpoint.get("callbacks", {}).get(self.state_key, {}).get("network")
        before, weights = f"{name}.", checkpoint["state_dict"]
        own = {key.removeprefix(before): value for key, value in weights.items() if key.startswith(before)}
        if written is None or self._dnn is None:
            if own.keys() == part_of(pl_module, name).state_dict().keys() and self._stage != "fit":
                return  # a DNN's, before any fit of this; or what is there already
            raise ValueError(
                "Expected a checkpoint of a fit with ProgressiveTandem, with the state of its callbacks, and a module "
                "with the DNN. Save it with ModelCheckpoint(save_weights_only=False); to start from a trained DNN, "
                "name its checkpoint as ProgressiveTandem(checkpoint=...)."
            )
        network = described_network({**written, "state_dict": own}, self._dnn, "the checkpoint")
        self._tandem = TandemNetwork(network, written["layers"], written["spiking_layers"])
        finished = self._tandem.all_spike and self._stage != "fit"
        _put(pl_module, name, self._tandem.plain() if finished else self._tandem)

    @override
    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"best": self._best, "waited": self._waited, "weights": self._weights}
        if self._tandem is not None:
            told = {"layers": self._tandem.layers, "spiking_layers": self._tandem.spiking_layers}
            state["network"] = {**description(self._tandem), **told}
        return state

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best, self._waited = state_dict["best"], state_dict["waited"]
        self._weights = state_dict["weights"]

    # When the next layer spikes

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        strategy = trainer.strategy
        if isinstance(strategy, both(DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)):
            raise MisconfigurationException(
                f"ProgressiveTandem cannot serve {type(strategy).__name__}, which splits up the parameters that it "
                "freezes and brings back. Use strategy='ddp_find_unused_parameters_true'."
            )
        if isinstance(strategy, both(DDPStrategy)) and not finds_unused_parameters(strategy):
            raise MisconfigurationException(
                "ProgressiveTandem freezes parameters during the fit, which DDP has to look for in every step. Use "
                "strategy='ddp_find_unused_parameters_true'."
            )
        if averages := averaging(trainer):
            raise MisconfigurationException(
                f"{type(averages[0]).__name__} averages weights over epochs, which under ProgressiveTandem are those "
                "of different networks. Leave it out, and fine-tune the network with it afterwards."
            )
        if not trainer.enable_validation:
            raise MisconfigurationException(
                f"ProgressiveTandem goes by {self.monitor!r} of validations, but this fit has no validation data or no "
                "validation_step(), or the Trainer's `limit_val_batches` is 0."
            )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        tandem = self._converted()
        held = {
            id(one) for optimizer in trainer.optimizers for group in optimizer.param_groups for one in group["params"]
        }
        if not any(id(parameter) in held for parameter in tandem.parameters()):
            raise MisconfigurationException(
                "The optimizers hold no parameter of the network that ProgressiveTandem has put in the place of the "
                "DNN. Make them in configure_optimizers(), of self.parameters()."
            )
        self._freeze()
        if self._inputs is None:  # before the loader is iterated over
            self._inputs = list(calibration_of(trainer, self.calibration_batches))

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._advance_if_due(trainer, pl_module)
        pl_module.log("tandem/spiking_layers", float(self._converted().spiking_layers))

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._advance_if_due(trainer, pl_module)  # of validations within the epoch

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or self._stage != "fit":
            return
        if self.monitor not in trainer.callback_metrics:
            raise MisconfigurationException(
                f"ProgressiveTandem goes by {self.monitor!r}, which is not logged in validation. Logged are "
                f"{sorted(trainer.callback_metrics)}: name one of them as `monitor`, or log it in validation_step()."
            )
        # The same one in all processes, or they would part.
        logged = trainer.callback_metrics[self.monitor].detach().float()
        value = float(trainer.strategy.reduce(logged.to(trainer.strategy.root_device), reduce_op="mean"))
        if self._is_better(value):
            self._best, self._waited = value, 0
            self._weights = {name: one.detach().cpu().clone() for name, one in pl_module.state_dict().items()}
        else:
            self._waited += 1
        if self._converted().all_spike and self._waited >= self.patience:
            trainer.should_stop = True

    def _is_better(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        return self._best is None or (value > self._best if self.mode == "max" else value < self._best)

    def _converted(self) -> TandemNetwork:
        assert self._tandem is not None, "a fit sets it up"
        return self._tandem

    def _advance_if_due(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the next layer spike, if training improves no more."""
        tandem = self._converted()
        left = len(tandem.layers) - tandem.spiking_layers
        if self._waited < self.patience or not left:
            return
        self._bring_back(pl_module)
        self._rebalance(trainer, tandem)
        tandem.spiking_layers += 1
        self._freeze()
        if left == 1:
            schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
            multiply_rates(trainer.optimizers, schedulers, self.last_lr_factor)
        rank_zero_info(f"ProgressiveTandem: {tandem.spiking_layers} of {len(tandem.layers)} layers spike.")

    def _bring_back(self, pl_module: LightningModule) -> None:
        if self._weights is not None:
            pl_module.load_state_dict(self._weights)
        self._best, self._waited, self._weights = None, 0, None

    def _freeze(self) -> None:
        """Freeze what leads to the layers in front of the last one that spikes."""
        tandem = self._converted()
        for parameter in tandem.parameters_before(tandem.spiking_layers - 1):
            if parameter.requires_grad:
                parameter.requires_grad_(False).grad = None
                self._frozen.append(parameter)

    def _rebalance(self, trainer: Trainer, tandem: TandemNetwork) -> None:
        """Give the next layer thresholds of its activations as they are now."""
        layer = tandem.spiking_layers
        chosen: tuple[dict[str, Tensor], Tensor] = {}, torch.empty(0)
        assert self._inputs is not None
        if trainer.is_global_zero:  # which has data in any case
            percent, per_channel, _ = self.options.settled
            method = threshold_function(
                self.options.threshold, percent, self.options.timesteps, self.options.initial_potential
            )
            levels = levels_now(tandem, layer, self._inputs, method, per_channel)
            chosen = {name: level.cpu() for name, level in levels.items()}, self._inputs[0][:2].cpu()
        levels, sample = trainer.strategy.broadcast(chosen)
        name = tandem.layers[layer][0]
        if not levels:
            rank_zero_warn(
                f"Layer {name!r} is silent on the calibration data, and keeps its threshold. A smaller learning rate "
                "or a weaker penalty keeps layers alive."
            )
        elif not rebalance(tandem, levels, sample):
            rank_zero_warn(f"Layer {name!r} keeps its threshold, as its spikes are read by no weights.")

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        tandem, best = self._converted(), self._weights
        if best is not None:
            pl_module.load_state_dict(best)
        if not tandem.all_spike:
            rank_zero_warn(
                f"ProgressiveTandem has trained with {tandem.spiking_layers} of {len(tandem.layers)} layers that "
                "spike when training ended; the others spike now without having been trained for it. Train for more "
                "epochs, or with less `patience`."
            )
            tandem.spiking_layers = len(tandem.layers)
        for parameter in self._frozen:
            parameter.requires_grad_()
        self._frozen = []
        _put(pl_module, self._part(pl_module)[0], tandem.plain().train(tandem.training))


def _served(options: Options) -> Options:
    """Raise a ValueError unless nothing but what is served was chosen."""
    others = Options(timesteps=options.timesteps, correction="none")
    for name, value in vars(options).items():
        if name not in _SERVED and value != getattr(others, name):
            raise ValueError(
                f"Expected argument `{name}` to be {getattr(others, name)!r} with ProgressiveTandem, which converts "
                f"one layer at a time, but got {value!r}. Fine-tune with SpikingClassifier for it."
            )
    if options.threshold in OTHER_METHODS:
        raise ValueError(
            "Expected argument `threshold` to be one of ['local', 'max', 'mmse', 'percentile'] with "
            f"ProgressiveTandem, which balances layers anew, but got {options.threshold!r}."
        )
    if options.coding not in ("constant", "neurons"):
        raise ValueError(
            "Expected argument `coding` to be 'constant' or 'neurons' with ProgressiveTandem, as the DNN that is "
            f"trained along reads the input itself, but got {options.coding!r}."
        )
    return options


def _put(pl_module: LightningModule, name: str, network: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(pl_module.get_submodule(parent), child, network)
