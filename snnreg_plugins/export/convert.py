"""From a traced network and its thresholds to a spiking network; the same for every framework."""

from __future__ import annotations

import operator
from collections.abc import Callable
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from snnreg_plugins.export.calibrate import Calibration, Threshold, batches, run, threshold_function, thresholds
from snnreg_plugins.export.graph import (
    ADAPTIVE_AVERAGE_POOLS,
    AVERAGE_POOLS,
    MAX_POOLS,
    ConversionError,
    add_submodule,
    fold_batch_norms,
    refusal,
    scale_inputs,
    trace,
)
from snnreg_plugins.export.network import InitialState, SpikeMaxPool, SpikingNetwork, SumPool, require_timesteps
from snnreg_plugins.functional.synapses import CONVOLUTIONS, is_synaptic


class Target(Protocol):
    """A framework: how to make its neurons, and how to make them let go of kept states."""

    def neuron(self, threshold: Tensor) -> nn.Module:
        """Make a neuron layer: ``(current, state) -> (spikes, state)``, called as ``neuron(current, state)``."""

    @property
    def release(self) -> Callable[[nn.Module], None]:
        """What to call on every module after a run; a module-level function, so that it pickles."""


def convert(
    model: nn.Module,
    calibration: Calibration,
    target: Target,
    *,
    timesteps: int,
    threshold: str | Threshold,
    percent: float,
    per_channel: bool,
    initial_potential: float,
) -> SpikingNetwork:
    """Export ``model`` to spiking neurons of ``target``; the arguments are those of the target's function."""
    require_timesteps(timesteps)
    method = threshold_function(threshold, percent)
    if not 0 <= initial_potential < 1:
        raise ValueError(f"Expected argument `initial_potential` to be in [0, 1), but got {initial_potential}.")
    traced = trace(model)
    device = _device(traced)
    with (
        # Weights of the result are to be trained, also when it is made in validation; this turns gradients on.
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
        torch.random.fork_rng(devices=[]),  # a DataLoader draws a seed
    ):
        _require_finite(traced)
        inputs = batches(calibration, device)
        first = next(inputs)
        # Two samples: with one, squeeze() would take the batch away.
        samples = first[:1].repeat_interleave(2, 0)
        run(traced, samples)
        ShapeProp(traced).propagate(samples)
        fold_batch_norms(traced)
        levels = thresholds(traced, chain([first], inputs), method, per_channel)
        return _Builder(traced, levels, target, initial_potential).build(timesteps)


def _require_finite(network: nn.Module) -> None:
    for name, values in network.state_dict().items():
        if not values.isfinite().all():
            raise ValueError(f"Expected a model of finite weights, but {name!r} holds NaN or infinity.")


def _device(network: nn.Module) -> torch.device:
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))


def check_neuron_options(beta: float, surrogate_slope: float) -> None:
    """Check the options of a target's neurons.

    Raises:
        ValueError: If one is out of range.
    """
    if not 0 < beta <= 1:
        raise ValueError(f"Expected argument `beta` to be in (0, 1], but got {beta}.")
    if not surrogate_slope > 0:
        raise ValueError(f"Expected argument `surrogate_slope` to be positive, but got {surrogate_slope}.")


class _Builder:
    """Splits a traced graph into what is computed once and what in every step, and swaps in spiking parts.

    ``scale`` holds for every tensor of the graph what one unit of it (one spike, say) is worth in activation,
    shaped like two samples: a neuron layer's output has its threshold for scale, and the synaptic layer that
    reads it takes the scale into its weights, so that its currents are in units of activation again.
    """

    def __init__(
        self, traced: fx.GraphModule, levels: dict[str, Tensor], target: Target, initial_potential: float
    ) -> None:
        self.source = traced
        self.levels = levels
        self.target = target
        self.initial_potential = initial_potential
        self.modules = dict(traced.named_modules())
        self.root, self.once, self.step = nn.Module(), fx.Graph(), fx.Graph()
        self.values: dict[fx.Node, fx.Node] = {}  # nodes of the source in the graph that computes them
        self.exports: dict[fx.Node, fx.Node] = {}  # constants that the step reads
        self.constants, self.given = self.step.placeholder("constants"), self.step.placeholder("states")
        self.scale: dict[fx.Node, Any] = {}
        self.states: list[fx.Node] = []

    def build(self, timesteps: int) -> SpikingNetwork:
        for node in self.source.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = self.once.node_copy(node)
                self.scale[node] = torch.ones_like(self._sample(node))
            elif node.op == "output":
                self._readout(node.args[0])
            else:
                self._convert(node)
        if not self.states:
            raise ConversionError("The model has no ReLU, so there is nothing to turn into spiking neurons.")
        self.once.output(tuple(self.values[node] for node in self.exports))
        for graph in (self.once, self.step):
            graph.lint()
        name = type(self.source).__name__
        network = SpikingNetwork(
            fx.GraphModule(self.root, self.once, class_name=f"{name}Encoder"),
            fx.GraphModule(self.root, self.step, class_name=f"{name}Step"),
            timesteps,
            states=len(self.states),
            release=self.target.release,
        )
        return network.train()  # as any new module; nothing in it depends on the mode

    def _convert(self, node: fx.Node) -> None:
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        spiking = isinstance(module, nn.ReLU) or any(self._in_step(source) for source in node.all_input_nodes)
        if not spiking:
            self.values[node] = self.once.node_copy(node, self.values.__getitem__)
            self.scale[node] = self._run(node) if module is None else torch.ones_like(self._sample(node))
            if module is not None:
                add_submodule(self.root, str(node.target), module)
            return
        for source in node.all_input_nodes:
            if not self._in_step(source) and source not in self.exports:
                index = len(self.exports)
                self.exports[source] = self.step.call_function(operator.getitem, (self.constants, index))
        if module is None:
            self.values[node] = self.step.node_copy(node, self._step_value)
            self.scale[node] = self._run(node)
        else:
            self._spiking_module(node, node.args[0], module)

    def _spiking_module(self, node: fx.Node, source: Any, module: nn.Module) -> None:
        """Put a module into the time step."""
        name, current, scale = str(node.target), self._step_value(source), self.scale[source]
        shape = self._sample(node)
        if isinstance(module, nn.ReLU):
            # In units of the incoming current, which is not always activation (ReLU after pooled spikes).
            level, unit = self.levels[name].to(shape.dtype), self._channels(node, scale, 1)
            if level.dim():
                level, unit = (channels.reshape(-1, *[1] * (shape.dim() - 2)) for channels in (level, unit))
            threshold = level / (unit if level.dim() else unit[0])
            add_submodule(self.root, name, self.target.neuron(threshold))
            add_submodule(self.root, f"{name}_initial", InitialState(self.initial_potential * threshold))
            state = self.step.call_module(f"{name}_initial", (self._state(), current))
            self.values[node] = self._stateful(name, current, state)
            self.scale[node] = level.expand_as(shape)
        elif is_synaptic(module):
            add_submodule(self.root, name, module)
            channels = self._channels(node, scale, 1 if isinstance(module, CONVOLUTIONS) else scale.dim() - 1)
            if not bool((channels == 1).all()):
                scale_inputs(module, channels)
            self.values[node] = self.step.call_module(name, (current,))
            self.scale[node] = torch.ones_like(shape)
        elif isinstance(module, MAX_POOLS):
            add_submodule(self.root, name, SpikeMaxPool(module))
            self.values[node] = self._stateful(name, current, self._state())
            self.scale[node] = self._pooled_scale(node, scale)
        elif isinstance(module, (*AVERAGE_POOLS, *ADAPTIVE_AVERAGE_POOLS)):
            pool = self._sum_pool(node, source, module)
            add_submodule(self.root, name, pool)
            self.values[node] = self.step.call_module(name, (current,))
            self.scale[node] = self._pooled_scale(node, scale) / pool.window
        else:  # moves values only
            add_submodule(self.root, name, module)
            self.values[node] = self.step.call_module(name, (current,))
            self.scale[node] = module(scale)

    def _sum_pool(self, node: fx.Node, source: fx.Node, module: Any) -> SumPool:
        """Replace average pooling, where every window has the same divisor, by sum pooling."""
        if isinstance(module, ADAPTIVE_AVERAGE_POOLS):
            sizes, pooled = self._sample(source).shape[2:], self._sample(node).shape[2:]
            if any(size % out for size, out in zip(sizes, pooled, strict=True)):
                raise refusal(
                    node,
                    f"adaptive average pooling from {tuple(sizes)} to {tuple(pooled)}",
                    str(node.target),
                    "choose an output size that divides the input size",
                )
            kernel = tuple(size // out for size, out in zip(sizes, pooled, strict=True))
            return SumPool(AVERAGE_POOLS[len(kernel) - 1](kernel))  # type: ignore[arg-type]
        pool = SumPool(module)
        padded_differently = any(pool.padding) and not module.count_include_pad
        if module.ceil_mode or padded_differently or getattr(module, "divisor_override", None):
            raise refusal(
                node,
                "average pooling whose windows have different divisors",
                str(node.target),
                "use ceil_mode=False, no divisor_override, and padding=0 or count_include_pad=True",
            )
        return pool

    def _readout(self, source: fx.Node) -> None:
        """Return the step's output on the DNN's scale, and the states."""
        if not self._in_step(source):
            raise ConversionError("The model's output does not depend on any ReLU: nothing would spike.")
        output, scale = self._step_value(source), self.scale[source]
        if not bool((scale == 1).all()):
            self.root.register_buffer("output_scale", scale[:1].clone(memory_format=torch.contiguous_format))
            output = self.step.call_function(operator.mul, (output, self.step.get_attr("output_scale")))
        self.step.output((output, tuple(self.states)))

    def _state(self) -> fx.Node:
        return self.step.call_function(operator.getitem, (self.given, len(self.states)))

    def _stateful(self, name: str, *args: fx.Node) -> fx.Node:
        """Call a module that gives (output, state); keep the state for the next step."""
        both = self.step.call_module(name, args)
        self.states.append(self.step.call_function(operator.getitem, (both, 1)))
        return self.step.call_function(operator.getitem, (both, 0))

    def _in_step(self, node: fx.Node) -> bool:
        return node in self.values and self.values[node].graph is self.step

    def _step_value(self, node: fx.Node) -> fx.Node:
        return self.exports.get(node) or self.values[node]

    def _sample(self, node: fx.Node) -> Tensor:
        """Two empty samples of a node's shape."""
        meta = node.meta["tensor_meta"]
        return torch.empty(meta.shape, dtype=meta.dtype, device=_device(self.source))

    def _run(self, node: fx.Node) -> Any:
        """Move scales as a shape operation moves values; compute sizes."""

        def dense(source: fx.Node) -> Any:
            scale = self.scale[source]
            return scale.contiguous() if isinstance(scale, Tensor) else scale  # `view` wants no expanded tensor

        args, kwargs = fx.map_arg((node.args, node.kwargs), dense)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _channels(self, node: fx.Node, scale: Tensor, dim: int) -> Tensor:
        """Read one scale per channel, where the scale depends on nothing else."""
        channels = scale.movedim(dim, 0).flatten(1)
        if not bool((channels == channels[:, :1]).all()):
            raise refusal(
                node,
                "thresholds that differ along a dimension which the weights share",
                str(node.target),
                "use per_channel=False",
            )
        return channels[:, 0]

    def _pooled_scale(self, node: fx.Node, scale: Tensor) -> Tensor:
        shape = self._sample(node)
        return self._channels(node, scale, 1).reshape(1, -1, *[1] * (shape.dim() - 2)).expand_as(shape)
