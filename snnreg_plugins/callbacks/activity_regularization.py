"""Regularize the activity of a network in training, from outside its LightningModule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction
from typing_extensions import override

from snnreg_plugins.functional.penalties import PENALTIES, Penalty, expected_rate, robust_maximum
from snnreg_plugins.functional.synapses import SynapticLayer, fan_out, sample_shape
from snnreg_plugins.training.carried import Carry, Logged, Step, called_from
from snnreg_plugins.watching.hooks import Hooks, notice_new_hooks
from snnreg_plugins.watching.layers import synaptic_layers


class ActivityRegularization(Callback):
    r"""Add a penalty on activity to the training loss of an unchanged LightningModule.

    The activity is what the synaptic layers (Linear, Conv, ConvTranspose) read: there it costs operations, in the
    network and in the spiking network made from it. So functional activations are seen too; the network's own
    input, which training cannot change, is left out. With f the penalty of one call of layer l on a batch of B
    samples,

    .. math::
        \text{uniform: } \sum_l s_l \frac{\sum_\text{calls} B f_l}{\sum_\text{calls} B} \qquad
        \text{fan\_out: } \frac{\sum_l s_l \sum_\text{calls} B F_l f_l}{\sum_l \sum_\text{calls} B F_l}

    where :math:`F_l` is the number of synapses that the layer's input reaches, and with ``"fan_out"`` positions
    within a layer count by fan-out too. So L1 with ``"fan_out"`` is Σ a·fan-out / Σ fan-out: the mean activity at a
    synapse. A layer that is called more than once counts with its mean.

    The gradient is exactly that of the penalty added to the loss by hand: with gradient accumulation, mixed precision
    (bf16 and fp16 with loss scaling), manual optimization (through ``manual_backward``), both kinds of activation
    checkpointing, DDP, and ``torch.compile``. The value of the loss that the module returns and logs is left as it
    is (but in compiled regions). Logged each epoch: ``penalty/<layer>`` and ``penalty/total``, where ``total``
    includes strength and warm-up.

    Args:
        penalty: ``"l1"``, ``"l2"``, ``"hoyer"``, ``"hoyer_square"``, ``"transformed_l1"``, ``"expected_rate"``, or a
            function ``(activity, weight) -> scalar`` that is a mean over the samples of ``activity`` of shape
            ``(B, ...)``; ``weight`` is None or the fan-out, broadcastable to a sample.
        strength: Factor of the penalty. A mapping from patterns to factors sets it by layer (the first pattern that
            matches counts) and leaves layers without a match alone.
        weighting: How layers and positions count: ``"uniform"`` or by ``"fan_out"``.
        layers: Patterns of the layers to regularize the input of, all if None. A pattern matches a layer's name
            (``"features.*"``) or its type (``"Conv2d"``).
        start_epoch: First epoch with a penalty.
        warmup_epochs: Epochs over which the strength rises linearly to its full value.
        percent: For ``"expected_rate"``: the percentile of activity that is the threshold λ, as in threshold
            balancing. λ is kept for each layer as a running mean of the batches' percentiles.
        momentum: For ``"expected_rate"``: share of the old λ in the running mean.

    Raises:
        ValueError: If an argument is out of range, or on start of training, if a pattern matches no layer.
        MisconfigurationException: In training, where the penalty could not be exact (LBFGS with line search,
            DeepSpeed, ``loss.backward()`` in place of ``manual_backward``), or where no activity was seen.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> callback = ActivityRegularization("expected_rate", strength=1.0, weighting="fan_out")
        >>> trainer = Trainer(callbacks=[callback], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        penalty: Literal["l1", "l2", "hoyer", "hoyer_square", "transformed_l1", "expected_rate"] | Penalty = "l1",
        strength: float | dict[str, float] = 1e-2,
        weighting: Literal["uniform", "fan_out"] = "uniform",
        layers: str | list[str] | None = None,
        start_epoch: int = 0,
        warmup_epochs: int = 0,
        percent: float = 99.9,
        momentum: float = 0.9,
    ) -> None:
        if not callable(penalty) and penalty not in PENALTIES:
            raise ValueError(
                f"Expected argument `penalty` to be a function or one of {list(PENALTIES)}, but got {penalty!r}."
            )
        for factor in strength.values() if isinstance(strength, Mapping) else [strength]:
            if not isinstance(factor, (int, float)) or not 0 <= factor < float("inf"):
                raise ValueError(f"Expected argument `strength` to be finite and at least 0, but got {strength!r}.")
        if weighting not in ("uniform", "fan_out"):
            raise ValueError(f"Expected argument `weighting` to be 'uniform' or 'fan_out', but got {weighting!r}.")
        for name, epochs in (("start_epoch", start_epoch), ("warmup_epochs", warmup_epochs)):
            if epochs < 0:
                raise ValueError(f"Expected argument `{name}` to be at least 0, but got {epochs}.")
        if not 0 < percent <= 100:
            raise ValueError(f"Expected argument `percent` to be in (0, 100], but got {percent}.")
        if not 0 <= momentum < 1:
            raise ValueError(f"Expected argument `momentum` to be in [0, 1), but got {momentum}.")
        self.penalty = penalty
        self.strength = strength
        self.weighting = weighting
        self.layers = [layers] if isinstance(layers, str) else layers
        self.start_epoch = start_epoch
        self.warmup_epochs = warmup_epochs
        self.percent = percent
        self.momentum = momentum

        self._function = PENALTIES[penalty] if isinstance(penalty, str) else penalty
        self._balances = self._function is expected_rate
        self._hooks = Hooks()
        self._watched: dict[nn.Module, tuple[str, float]] = {}
        self._fan_outs: dict[tuple[str, tuple[int, ...]], tuple[Tensor, int]] = {}
        self._thresholds: dict[str, Tensor] = {}
        self._observed: dict[str, list[Tensor]] = {}
        self._fresh: set[str] = set()  # thresholds from the first batch of this process alone
        self._step = Step()
        self._logged = Logged()
        self._factor = 0.0
        self._active = False  # apart from the factor, whose every change would make compiled code compile again
        self._seen = False
        self._backward_in_batch = False

    @property
    @override
    def state_key(self) -> str:
        """Tells callbacks with different settings apart in a checkpoint."""
        penalty = self.penalty if isinstance(self.penalty, str) else self.penalty.__qualname__
        return self._generate_state_key(penalty=penalty, weighting=self.weighting, layers=self.layers)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"thresholds": {name: value.detach().cpu() for name, value in self._thresholds.items()}}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._thresholds = dict(state_dict["thresholds"])

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._refuse_strategy(trainer)
        self._watched = self._choose(synaptic_layers(pl_module))
        self._thresholds = {name: value.to(pl_module.device) for name, value in self._thresholds.items()}
        self._seen = False
        notice_new_hooks()
        self._hooks = Hooks(before=[(layer, self._observe) for layer in self._watched])

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for optimizer in trainer.optimizers:
            if isinstance(optimizer, torch.optim.LBFGS) and optimizer.param_groups[0]["line_search_fn"]:
                raise MisconfigurationException(
                    "ActivityRegularization cannot serve LBFGS with line_search_fn='strong_wolfe': the search compares "
                    "losses, and the penalty is not in them. Use line_search_fn=None or another optimizer."
                )

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Not at the start of the epoch, which a run that is resumed within one does not see.
        epochs = trainer.current_epoch - self.start_epoch + 1
        self._factor = min(1.0, max(0.0, epochs / (self.warmup_epochs + 1)))
        self._active = self._factor > 0
        self._step = Step()
        self._observed.clear()
        self._backward_in_batch = False

    def _observe(self, layer: SynapticLayer, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Put the penalty of one call of a layer on the way of its gradient."""
        activity = args[0]
        if not self._active or not activity.is_floating_point():
            return None
        compiling = torch.compiler.is_compiling()
        # Else checkpointing computes it a second time, within the backward pass.
        first_time = compiling or torch._C._current_graph_task_id() == -1
        differentiable = torch.is_grad_enabled() and activity.requires_grad
        if activity.requires_grad and activity.is_leaf and (first_time or not called_from(CheckpointFunction.backward)):
            return None  # the network's own input, which a user differentiates by
        if not differentiable and (compiling or not first_time or not called_from(CheckpointFunction.forward)):
            return None

        name, strength = self._watched[layer]
        weight, amount = self._weight(name, layer, activity)
        group = name if self.weighting == "uniform" else ""
        value = self._value(name, activity, weight, first_time)
        if first_time:
            self._step.record(name, group, amount, strength, value, compiling)
        if not differentiable or compiling:
            return None
        return (Carry.apply(activity, value, self._step, group, amount * strength), *args[1:])

    def _weight(self, name: str, layer: SynapticLayer, activity: Tensor) -> tuple[Tensor | None, float]:
        """Weights of the positions, and how much the call counts against others: B, or B·F."""
        shape = sample_shape(layer, activity)
        samples = activity.numel() // max(1, torch.Size(shape).numel())
        if self.weighting == "uniform":
            return None, float(samples)
        if (name, shape) not in self._fan_outs:
            self._fan_outs[name, shape] = _fan_out(layer, shape)
        weight, total = self._fan_outs[name, shape]
        if weight.device != activity.device:
            weight = weight.to(activity.device)
            self._fan_outs[name, shape] = weight, total
        return weight, float(samples * total)

    def _value(self, name: str, activity: Tensor, weight: Tensor | None, first_time: bool) -> Tensor:
        if not self._balances:
            return self._function(activity, weight)
        with torch.no_grad():
            if first_time:
                level = robust_maximum(activity, self.percent / 100)
                self._observed.setdefault(name, []).append(level)
                if name not in self._thresholds:
                    self._thresholds[name] = level.clone()
                    self._fresh.add(name)
            # A silent layer has λ = 0: nothing to divide by, nothing to push down.
            threshold = self._thresholds[name].clamp_min(torch.finfo(torch.float32).tiny)
        return self._function(activity, weight, threshold=threshold)

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._backward_in_batch = True
        # The loss comes divided by the accumulated batches and multiplied by the scaler; so must the penalty.
        scale = self._factor / (trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._step.scale = scale * (scaler.get_scale() if scaler is not None else 1.0)
        compiled = self._step.compiled_penalty()
        if compiled is not None:
            with torch.no_grad() if not loss.requires_grad else torch.enable_grad():
                loss.add_(compiled.to(loss.dtype))

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._step.records:
            self._seen = True
            self._logged.add(self._step, self._factor)
        # What is differentiated again carries no penalty again; a new forward pass starts a new step.
        self._step.scale = 0.0
        self._step = Step()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._step.ran_without_scale and not self._backward_in_batch:
            raise MisconfigurationException(
                "ActivityRegularization saw a backward pass that did not go through Lightning, and could not add the "
                "penalty. Call self.manual_backward(loss) instead of loss.backward()."
            )
        if self._active and self._backward_in_batch and not self._seen:
            raise MisconfigurationException(
                f"ActivityRegularization saw no activity in the first batch: none of {self._names()} received an input "
                "that depends on parameters. Only what nn.Linear, nn.Conv and nn.ConvTranspose modules read is seen, "
                "not F.linear or a module that was never called; a network compiled before training is not seen either."
            )
        self._balance(trainer)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Summed up here and logged once: Lightning's own summing costs more than the penalty.
        pl_module.log_dict(self._logged.means(), sync_dist=True)
        self._logged = Logged()

    def _balance(self, trainer: Trainer) -> None:
        """Move the thresholds towards the percentiles of this batch, alike in all processes."""
        if not self._thresholds:
            return
        names = self._names()
        missing = torch.full_like(next(iter(self._thresholds.values())), float("nan"))
        seen = [torch.stack(self._observed[name]).mean() if name in self._observed else missing for name in names]
        levels = torch.stack(seen)
        if trainer.world_size > 1:
            # The mean over the processes that saw the layer.
            sums = torch.stack([levels.nan_to_num(0.0), (~levels.isnan()).to(levels)])
            levels, processes = trainer.strategy.reduce(sums, reduce_op="sum")
            levels = levels / processes
        for name, level in zip(names, levels, strict=True):
            if name in self._thresholds:
                threshold = self._thresholds[name]
                momentum = 0.0 if name in self._fresh else self.momentum
                # In place, so that compiled code keeps its tensor and need not be compiled again.
                threshold.lerp_(torch.where(level.isnan(), threshold, level), 1 - momentum)
        self._observed.clear()
        self._fresh.clear()

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._remove()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._remove()

    def _remove(self) -> None:
        self._hooks.remove()
        self._watched = {}
        self._fan_outs = {}
        self._step = Step()

    def _choose(self, layers: dict[str, nn.Module]) -> dict[nn.Module, tuple[str, float]]:
        """Find the layers to regularize and the strength of each."""
        if not layers:
            raise ValueError("The model has no Linear, Conv or ConvTranspose module, so no activity can be seen.")

        def matching(pattern: str, argument: str) -> set[str]:
            names = {
                name for name, layer in layers.items() if fnmatchcase(name, pattern) or type(layer).__name__ == pattern
            }
            if not names:
                raise ValueError(
                    f"Expected every pattern of argument `{argument}` to match the name or the type of a layer, but "
                    f"{pattern!r} matches none of {list(layers)}."
                )
            return names

        chosen = set(layers) if self.layers is None else set().union(*(matching(p, "layers") for p in self.layers))
        if isinstance(self.strength, Mapping):
            strengths: dict[str, float] = {}
            for pattern, factor in self.strength.items():
                strengths = dict.fromkeys(matching(pattern, "strength"), factor) | strengths
        else:
            strengths = dict.fromkeys(layers, self.strength)
        return {
            layer: (name, strengths[name]) for name, layer in layers.items() if name in chosen and name in strengths
        }

    def _names(self) -> Sequence[str]:
        return [name for name, _ in self._watched.values()]

    @staticmethod
    def _refuse_strategy(trainer: Trainer) -> None:
        strategy = type(trainer.strategy).__name__
        if "DeepSpeed" in strategy:
            raise MisconfigurationException(
                "ActivityRegularization cannot serve DeepSpeed, which scales the loss where no callback sees it. Use "
                "strategy='ddp'."
            )
        if "FSDP" in strategy or "ModelParallel" in strategy:
            rank_zero_warn(f"ActivityRegularization has not been checked for exact gradients under {strategy}.")


def _fan_out(layer: SynapticLayer, shape: tuple[int, ...]) -> tuple[Tensor, int]:
    """Weights of the positions of a layer's input, small enough to broadcast, and the sum over all positions."""
    reached = fan_out(layer, shape)
    # All channels have the same fan-out: keep one.
    return reached[:1].to(torch.float32), int(reached.sum())
