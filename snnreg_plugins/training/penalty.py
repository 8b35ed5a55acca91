"""A penalty on what layers read, from the first to the last batch of a training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from snnreg_plugins._torch import is_in_backward, is_in_checkpoint_backward, is_in_checkpoint_forward, view_base
from snnreg_plugins.functional.penalties import Penalty, robust_maximum
from snnreg_plugins.functional.synapses import SynapticLayer, fan_out, sample_shape
from snnreg_plugins.training.carried import Call, Carry, Logged, Step
from snnreg_plugins.watching.hooks import Hooks, notice_new_hooks


class RunningThresholds:
    r"""A threshold λ for each layer: the running mean of each batch's percentile of activity.

    .. math:: \lambda \leftarrow m \lambda + (1 - m) \cdot \mathrm{percentile}

    The first batch that a layer sees starts its λ.

    Args:
        percent: The percentile.
        momentum: m.
        values: λ by layer, of a training that goes on.
    """

    def __init__(self, percent: float, momentum: float, values: Mapping[str, Tensor] | None = None) -> None:
        self.percent, self.momentum = percent, momentum
        self.values: dict[str, Tensor] = dict(values or {})
        self._observed: dict[str, list[Tensor]] = {}
        self._fresh: set[str] = set()  # from the first batch of this process alone

    def observe(self, name: str, activity: Tensor) -> None:
        """Look at what a layer reads."""
        level = robust_maximum(activity, self.percent / 100)
        self._observed.setdefault(name, []).append(level)
        if name not in self.values:
            self.values[name] = level.clone()
            self._fresh.add(name)

    def of(self, name: str) -> Tensor:
        """Give λ of a layer that was observed."""
        # A silent layer has λ = 0: nothing to divide by, nothing to push down.
        return self.values[name].clamp_min(torch.finfo(torch.float32).tiny)

    def forget_batch(self) -> None:
        """Leave out what was observed since the last move."""
        self._observed.clear()

    def move(self, names: list[str], sum_over_processes: Callable[[Tensor], Tensor] | None = None) -> None:
        """Move every λ towards the percentiles of this batch.

        Args:
            names: All layers, in the same order in all processes.
            sum_over_processes: Sums a tensor over processes, if there are several; all then have the same λ.
        """
        if not self.values:
            return
        missing = torch.full_like(next(iter(self.values.values())), float("nan"))
        seen = [torch.stack(self._observed[name]).mean() if name in self._observed else missing for name in names]
        levels = torch.stack(seen)
        if sum_over_processes is not None:
            # The mean over the processes that saw the layer.
            sums = torch.stack([levels.nan_to_num(0.0), (~levels.isnan()).to(levels)])
            levels, processes = sum_over_processes(sums)
            levels = levels / processes
        for name, level in zip(names, levels, strict=True):
            if name in self.values:
                threshold = self.values[name]
                momentum = 0.0 if name in self._fresh else self.momentum
                # In place, so that compiled code keeps its tensor and need not be compiled again.
                threshold.lerp_(torch.where(level.isnan(), threshold, level), 1 - momentum)
        self._observed.clear()
        self._fresh.clear()


class ActivityPenalty:
    """The penalty of :class:`~snnreg_plugins.ActivityRegularization`: seen, valued, weighed, carried and summed up.

    Args:
        function: The penalty of one call.
        layers: Name and strength of each layer whose input is to be regularized.
        by_fan_out: Whether layers, and positions within a layer, count by fan-out.
        thresholds: λ of each layer, if the penalty takes one.
    """

    def __init__(
        self,
        function: Penalty,
        layers: dict[SynapticLayer, tuple[str, float]],
        by_fan_out: bool,
        thresholds: RunningThresholds | None,
    ) -> None:
        self.names = [name for name, _ in layers.values()]
        self.active = False  # apart from the factor, whose every change would make compiled code compile again
        self.seen = False  # whether any activity was seen in a forward pass with a backward pass
        self.ran_backward = False  # in this batch
        self._function, self._layers, self._by_fan_out = function, layers, by_fan_out
        self._thresholds = thresholds
        self._fan_outs: dict[tuple[str, tuple[int, ...]], tuple[Tensor, int]] = {}
        self._factor = 0.0
        self._step, self._logged = Step(), Logged()
        notice_new_hooks()
        self._hooks = Hooks(before=[(layer, self._read) for layer in layers])

    def start_batch(self, factor: float) -> None:
        """Have the forward passes to come carry the penalty times a factor."""
        self._factor = factor
        self.active = factor > 0
        self.ran_backward = False
        self._step = Step()
        if self._thresholds is not None:
            self._thresholds.forget_batch()

    def _read(self, layer: SynapticLayer, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Put the penalty of one call of a layer on the way of its gradient."""
        activity = args[0]
        if not self.active or not activity.is_floating_point():
            return None
        compiling = torch.compiler.is_compiling()
        # Else checkpointing computes it a second time, within the backward pass.
        first_time = compiling or not is_in_backward()
        differentiable = torch.is_grad_enabled() and activity.requires_grad
        # Without gradients, a view of anything is a leaf.
        source = activity if compiling or torch.is_grad_enabled() else view_base(activity)
        if activity.requires_grad and source.is_leaf and (first_time or not is_in_checkpoint_backward()):
            return None  # the network's own input, which a user differentiates by
        if not differentiable and (compiling or not first_time or not is_in_checkpoint_forward()):
            return None

        name, strength = self._layers[layer]
        weight, amount = self._weight(name, layer, activity)
        value = self._value(name, activity, weight, first_time)
        group = "" if self._by_fan_out else name
        call = Call(name, group, amount, strength, value if compiling else value.detach(), compiling)
        if first_time:
            self._step.calls.append(call)
        if not differentiable or compiling:
            return None
        return (Carry.apply(activity, value, self._step, call), *args[1:])

    def _weight(self, name: str, layer: SynapticLayer, activity: Tensor) -> tuple[Tensor | None, float]:
        """Weights of the positions, and how much the call counts against others: B, or B·F."""
        shape = sample_shape(layer, activity)
        samples = activity.numel() // max(1, torch.Size(shape).numel())
        if not self._by_fan_out:
            return None, float(samples)
        if (name, shape) not in self._fan_outs:
            self._fan_outs[name, shape] = _fan_out(layer, shape)
        weight, total = self._fan_outs[name, shape]
        if weight.device != activity.device:
            weight = weight.to(activity.device)
            self._fan_outs[name, shape] = weight, total
        return weight, float(samples * total)

    def _value(self, name: str, activity: Tensor, weight: Tensor | None, first_time: bool) -> Tensor:
        if self._thresholds is None:
            return self._function(activity, weight)
        with torch.no_grad():
            if first_time:
                self._thresholds.observe(name, activity)
            threshold = self._thresholds.of(name)
        return self._function(activity, weight, threshold=threshold)

    def start_backward(self, loss: Tensor, scale: float) -> None:
        """Let the penalty's gradient in.

        Args:
            loss: What goes into the backward pass; the penalty of compiled regions is added to it, in place.
            scale: What the loss was multiplied by, and the penalty is to be.
        """
        self.ran_backward = True
        self._step.scale = self._factor * scale
        compiled = self._step.compiled_penalty()
        if compiled is not None:
            with torch.no_grad() if not loss.requires_grad else torch.enable_grad():
                loss.add_(compiled.to(loss.dtype))

    def end_backward(self) -> None:
        """Sum up what is to be logged, and let no more of the gradient in."""
        if self._step.calls:
            self.seen = True
            self._logged.add(self._step, self._factor)
        # What is differentiated again carries no penalty again; a new forward pass starts a new step.
        self._step.scale = 0.0
        self._step = Step()

    @property
    def missed_backward(self) -> bool:
        """Whether there was a backward pass in this batch that :meth:`start_backward` was not told of."""
        return self._step.ran_without_scale and not self.ran_backward

    def end_batch(self, sum_over_processes: Callable[[Tensor], Tensor] | None = None) -> None:
        """Move the thresholds, if there are any; see :meth:`RunningThresholds.move`."""
        if self._thresholds is not None:
            self._thresholds.move(self.names, sum_over_processes)

    def end_epoch(self) -> dict[str, Tensor]:
        """Give the means over the batches since the last call: ``penalty/<layer>`` and ``penalty/total``."""
        means, self._logged = self._logged.means(), Logged()
        return means

    def remove(self) -> None:
        """Look on no longer."""
        self._hooks.remove()
        self._layers, self._fan_outs, self._step = {}, {}, Step()


def _fan_out(layer: SynapticLayer, shape: tuple[int, ...]) -> tuple[Tensor, int]:
    """Weights of the positions of a layer's input, small enough to broadcast, and the sum over all positions."""
    reached = fan_out(layer, shape)
    # All channels have the same fan-out: keep one.
    return reached[:1].to(torch.float32), int(reached.sum())
