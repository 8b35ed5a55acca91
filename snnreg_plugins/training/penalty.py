"""A penalty on what layers read, from the first to the last batch of a training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from snnreg_plugins._torch import (
    checkpoint_in_backward,
    checkpoint_in_forward,
    is_in_backward,
    is_transformed,
    view_base,
)
from snnreg_plugins.functional.penalties import ON_SPIKES, Penalty, are_spikes, neuron_rates, out_of_bounds
from snnreg_plugins.functional.synapses import SynapticLayer, fan_out, sample_shape
from snnreg_plugins.spiking.layers import for_summing
from snnreg_plugins.training.carried import Call, Carrier, Carry, Logged, carried_in, carry_in
from snnreg_plugins.training.sightings import Sightings
from snnreg_plugins.training.thresholds import RunningThresholds
from snnreg_plugins.watching.hooks import Hooks, notice_new_hooks
from snnreg_plugins.watching.layers import FanOutKey, as_called, fan_out_key, is_spiking_neuron, is_unbatched
from snnreg_plugins.watching.steps import steps_of_call


@dataclass(frozen=True)
class Means:
    """What a penalty was on average over backward passes.

    Args:
        total: As it was added to the loss; None if it never was.
        loss: The magnitude of that loss without it.
        layers: The penalty of each layer, without strength.
    """

    total: Tensor | None = None
    loss: Tensor | float = 0.0
    layers: Mapping[str, Tensor] = field(default_factory=dict)


class ActivityPenalty:
    """The penalty of :class:`~snnreg_plugins.ActivityRegularization`: seen, valued, weighed, carried and summed up.

    Args:
        function: The penalty of one call.
        model: The model. Where it has spiking neurons, layers may read spikes.
        layers: Name and strength of each layer whose input is to be regularized, from when :meth:`watch` is told of it.
        by_fan_out: Whether layers, and positions within a layer, count by fan-out.
        thresholds: λ of each layer, if the penalty takes one.
        bounds: Lowest and highest rate of a neuron, if the penalty is of those and not of single calls.

    Raises:
        ValueError: If there are bounds, and the model has no spiking neurons.
    """

    def __init__(
        self,
        function: Penalty,
        model: nn.Module,
        layers: Mapping[SynapticLayer, tuple[str, float]],
        by_fan_out: bool,
        thresholds: RunningThresholds | None,
        bounds: tuple[float, float] | None = None,
    ) -> None:
        spikes = any(map(is_spiking_neuron, model.modules()))
        if bounds is not None and not spikes:
            raise ValueError(
                f"Penalty 'rate_bounds' takes spikes/neuron/step, but {type(model).__name__} has no spiking neurons of "
                "snnTorch, Norse, SpikingJelly or sinabs. Take penalty='expected_rate' for a DNN, or train the spiking "
                "network that `to_snntorch` or `SpikingClassifier` makes of it."
            )
        self.names = [name for name, _ in layers.values()]
        self.active = False  # apart from the factor, whose every change would make compiled code compile again
        self.ran_backward = False  # in this batch
        self.sightings = Sightings({name: layer for layer, (name, _) in layers.items()}, model)
        self._function, self._layers, self._by_fan_out = function, dict(layers), by_fan_out
        self._on_spikes = ON_SPIKES.get(function) if spikes else None
        self._thresholds, self._bounds = thresholds, bounds
        self._fan_outs: dict[FanOutKey, tuple[Tensor, int]] = {}
        self._factor = 0.0
        self._carrier, self._logged = Carrier(), Logged()
        self._loss: Tensor | None = None  # of the backward pass under way, without the penalty
        self._losses: Tensor | float = 0.0  # summed over those that brought some
        self._hooks = Hooks(many_steps=True)

    def watch(self, names: set[str]) -> None:
        """Regularize these layers from now on."""
        notice_new_hooks()
        for layer, (name, _) in self._layers.items():
            if name in names:
                self._hooks.before(layer, self._read)
                self.sightings.expect(name)

    def start_batch(self, factor: float, samples: int | None = None) -> None:
        """Have the forward passes to come carry the penalty times a factor.

        Args:
            factor: The factor.
            samples: Samples of the batch, if the penalty is the sum over calls per sample; else it is their mean.
        """
        self._factor = factor
        self.active = factor > 0
        self.ran_backward = False
        self._carrier.start_batch(samples)

    def _read(self, layer: SynapticLayer, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Put the penalty of one call of a layer on the way of its gradient."""
        activity = args[0]
        if not self.active or not activity.is_floating_point():
            return None
        if not activity.numel():  # such as of an expert that no token was sent to
            self.sightings.without_samples(self._layers[layer][0])
            return None
        differentiable = torch.is_grad_enabled() and activity.requires_grad
        if torch.compiler.is_compiling():
            if differentiable and (not activity.is_leaf or isinstance(activity, nn.Parameter)):
                self._carrier.compiled.append(self._call(layer, args)[0])
            return None
        if differentiable and is_transformed():
            raise MisconfigurationException(
                f"ActivityRegularization cannot serve layer {self._layers[layer][0]!r} within a transform of "
                "torch.func (grad, vmap, jacrev). Use torch.autograd.grad there, or leave the layer out by the "
                "argument `layers`."
            )
        if differentiable and activity.layout is not torch.strided:
            raise MisconfigurationException(
                f"ActivityRegularization cannot serve layer {self._layers[layer][0]!r}, which reads a tensor of layout "
                f"{activity.layout}. Give it a dense one, or leave the layer out by the argument `layers`."
            )
        if is_in_backward():
            return self._read_again(layer, args) if differentiable else None
        name, _ = self._layers[layer]
        self.sightings.called(name)
        # Without gradients, a view of a leaf is one too, and so is a view of what is none.
        source = view_base(activity) if activity.is_leaf else activity
        if activity.requires_grad and source.is_leaf and not isinstance(source, nn.Parameter):
            return None  # the network's own input, which a user differentiates by
        region = None if differentiable else checkpoint_in_forward()
        if not differentiable and region is None:
            return None
        call, value = self._call(layer, args)
        self._require_spikes(name, activity)
        self.sightings.depends(name, activity, partial(self._acts, layer, args))
        if region is None:
            return (Carry.apply(activity, value, self._carrier, call), *args[1:])
        carry_in(region, self._carrier, call)
        return None

    def _read_again(self, layer: SynapticLayer, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Read within the backward pass, where checkpointing computes it a second time."""
        name, _ = self._layers[layer]
        region = checkpoint_in_backward()
        if region is None:
            # For its place among what is saved; its gradient is that of the first time.
            if args[0].is_leaf:
                return None
            self.sightings.called_again(name)
            call, value = self._call(layer, args, again=True)
        else:
            calls = [call for carrier, call in carried_in(region) if carrier is self._carrier and call.name == name]
            if not calls:
                return None  # the network's own input
            call, value = self._call(layer, args, again=True)
            call.due, call.by_mean = calls[0].due, calls[0].by_mean
        return (Carry.apply(args[0], value, self._carrier, call), *args[1:])

    def _call(self, layer: SynapticLayer, args: tuple[Any, ...], again: bool = False) -> tuple[Call, Tensor]:
        """Describe a call, and give its penalty in the graph."""
        name, strength = self._layers[layer]
        activity: Tensor = args[0]
        weight, amount = self._weight(name, layer, args)
        level = None
        if self._thresholds is not None and not again:
            held = steps_of_call()
            with torch.no_grad():
                level = self._thresholds.look(name, activity, 1 if held is None else held.steps)
        value, of_mean = self._value(name, layer, activity, weight)
        group = "" if self._by_fan_out else name
        if torch.compiler.is_compiling():
            return Call(name, group, amount, strength, value, level, activity, of_mean), value
        return Call(name, group, amount, strength, value.detach(), level, of_mean=of_mean), value

    def _weight(self, name: str, layer: SynapticLayer, args: tuple[Any, ...]) -> tuple[Tensor | None, float]:
        """Weights of the positions, and how much the call counts against others: B, or B·F."""
        activity: Tensor = args[0]
        shape = sample_shape(layer, activity)
        samples = activity.numel() // max(1, torch.Size(shape).numel())
        if not self._by_fan_out:
            return None, float(samples)
        layer = as_called(layer, args)
        key = fan_out_key(name, layer, shape)
        if key not in self._fan_outs:
            self._fan_outs[key] = _fan_out(layer, shape)
        weight, total = self._fan_outs[key]
        if weight.device != activity.device:
            weight = weight.to(activity.device)
            self._fan_outs[key] = weight, total
        return weight, float(samples * total)

    def _value(
        self, name: str, layer: SynapticLayer, activity: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, Callable[[Tensor], Tensor] | None]:
        """Give the penalty of a call, or the rates of its neurons and what the penalty is of their mean."""
        if self._bounds is not None:
            low, high = self._bounds
            rates = neuron_rates(activity.reshape(-1, *sample_shape(layer, activity)))
            return rates, partial(out_of_bounds, weight=weight, low=low, high=high)
        arguments = {}
        activity = activity.unsqueeze(0) if is_unbatched(layer, activity) else activity
        if self._thresholds is not None:
            with torch.no_grad():
                arguments["threshold"] = self._thresholds.of(name)
        value = self._function(activity, weight, **arguments)
        if self._on_spikes is not None:
            of_spikes = self._on_spikes(activity, weight, **arguments)
            value = torch.where(are_spikes(activity), of_spikes.to(value.dtype), value)
        return value, None

    def _require_spikes(self, name: str, activity: Tensor) -> None:
        """Refuse to take what a layer reads in the first batch for rates of spikes where it is something else."""
        if self._bounds is not None and self.sightings.looking and not are_spikes(activity):
            raise MisconfigurationException(
                f"Penalty 'rate_bounds' takes spikes/neuron/step, but layer {name!r} reads values that are no spikes, "
                "counts of them or constant multiples. Leave it out by the argument `layers`."
            )

    def _acts(self, layer: SynapticLayer, args: tuple[Any, ...]) -> bool:
        """Tell whether the penalty has a gradient by an activity, or will have one."""
        if self._bounds is not None:  # within them it has none, as it should
            return True
        name, _ = self._layers[layer]
        activity: Tensor = args[0]
        weight, _ = self._weight(name, layer, args)
        # Hooks that do nothing, on top of those of a checkpoint around, which must not see these tensors.
        with torch.enable_grad(), saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
            activity = activity.detach().requires_grad_()
            value, _ = self._value(name, layer, activity, weight)
            if not value.requires_grad:
                return False
            gradient: Tensor | None = torch.autograd.grad(value, activity, allow_unused=True)[0]
        if gradient is None:
            return False
        # Where a penalty does not see the scale, gradients of equal values cancel but for rounding.
        rounding = 1e-5 * value.detach().abs() if self._function in ON_SPIKES else 0.0
        return bool(gradient.abs().sum() * activity.detach().abs().amax() > rounding)

    def start_backward(self, loss: Tensor, scale: float, multiplied: bool = False) -> None:
        """Let the penalty's gradient in.

        Args:
            loss: What goes into the backward pass; the penalty of compiled regions is added to it, in place.
            scale: What the loss was multiplied by, and the penalty is to be.
            multiplied: Whether it may be multiplied once more on its way.
        """
        self.ran_backward = True
        self._loss = for_summing(loss.detach()).mean().abs() / scale
        graph = self._carrier.start(loss, self._factor * scale, multiplied)
        if self.active and self.sightings.looking:
            self.sightings.reached(self._carrier, graph)
            for call in self._carrier.calls:
                if call.activity is not None:
                    self._require_spikes(call.name, call.activity)
        compiled = self._carrier.compiled_penalty()
        if compiled is not None:
            with torch.no_grad() if not loss.requires_grad else torch.enable_grad():
                loss.add_(compiled.to(loss.dtype))

    def end_backward(self) -> None:
        """Sum up what is to be logged, and let no more of the gradient in."""
        self._logged.add(self._carrier, self._factor)
        if self._carrier.calls and self._loss is not None:
            self._losses = self._losses + self._loss
        if self._thresholds is not None:
            for call in self._carrier.calls:
                if call.level is not None:
                    self._thresholds.observe(call.name, call.level)
        self._carrier.end()

    @property
    def calls(self) -> list[Call]:
        """The calls that the backward pass brings the penalty of, until :meth:`end_backward`."""
        return self._carrier.calls

    @property
    def missed_backward(self) -> bool:
        """Whether there was a backward pass in this batch that :meth:`start_backward` was not told of."""
        return self._carrier.ran_without_scale and not self.ran_backward

    @property
    def went_past(self) -> bool:
        """Whether there was one in this batch, beside others, that gave gradients to parameters."""
        return self._carrier.collected_without_scale

    def end_batch(self, sum_over_processes: Callable[[Tensor], Tensor] | None = None) -> None:
        """Move the thresholds, if there are any; see :meth:`RunningThresholds.move`."""
        if self._thresholds is not None:
            self._thresholds.move(self.names, sum_over_processes)

    def end_epoch(self) -> Means:
        """Give the means over the backward passes since the last call that brought any."""
        passes = self._logged.passes.get("", 0)
        layers, self._logged = self._logged.means(), Logged()
        losses, self._losses = self._losses, 0.0
        return Means(layers.pop("", None), losses / max(1, passes), layers)

    def remove(self) -> None:
        """Look on no longer."""
        self._hooks.remove()
        self._layers, self._fan_outs, self._carrier = {}, {}, Carrier()


def to_log(parts: list[tuple[str, Means]]) -> dict[str, Tensor]:
    """What to log of all callbacks, from the name of the penalty and the means of each."""
    logged: dict[str, Tensor] = {}
    totals = [means.total for _, means in parts if means.total is not None]
    if totals:
        logged["penalty/total"] = total = torch.stack(totals).sum()
        logged["penalty/share"] = total.abs() / (total.abs() + max(means.loss for _, means in parts))
    shared = Counter(layer for _, means in parts for layer in means.layers)
    for penalty, means in parts:
        for layer, mean in means.layers.items():
            key = name = f"penalty/{penalty}/{layer}" if shared[layer] > 1 else f"penalty/{layer}"
            for count in range(2, len(parts) + 2):
                if key not in logged:
                    break
                key = f"{name}_{count}"
            logged[key] = mean
    return logged


def _fan_out(layer: SynapticLayer, shape: tuple[int, ...]) -> tuple[Tensor, int]:
    """Weights of the positions of a layer's input, small enough to broadcast, and the sum over all positions."""
    reached = fan_out(layer, shape)
    # All channels have the same fan-out: keep one.
    return reached[:1].to(torch.float32), int(reached.sum())
