"""From a trained network and calibration data to a spiking network; the same for every framework."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from snnreg_plugins._batches import Calibration, begun, number_of_batches
from snnreg_plugins._console import following, progress
from snnreg_plugins._models import device_of, dtype_of
from snnreg_plugins.export.build import build
from snnreg_plugins.export.calibrate import Statistics, Threshold, example, propagate_shapes, threshold_function
from snnreg_plugins.export.choose import choose
from snnreg_plugins.export.faithful import compared, two_of
from snnreg_plugins.export.fold import fold_batch_norms
from snnreg_plugins.export.input_code import code_for
from snnreg_plugins.export.integers import bring_to_few_bits
from snnreg_plugins.export.options import BY_CHANNEL, CORRECTIONS, Options, code_settings
from snnreg_plugins.export.processes import Processes, Sharded
from snnreg_plugins.export.simulate import Adjustment, Balance, Simulation, channelwise, compensate_leak, spike_norm
from snnreg_plugins.export.structure import Structure
from snnreg_plugins.export.time_axis import TimeAxis
from snnreg_plugins.export.trace import TRACING, trace
from snnreg_plugins.export.within import within_budget
from snnreg_plugins.frameworks.base import Target
from snnreg_plugins.functional.draws import draw
from snnreg_plugins.functional.synapses import OneToOne
from snnreg_plugins.spiking.layers import Current, InitialState
from snnreg_plugins.spiking.network import SpikingNetwork

# Samples that simulations run on; those for means over channels, which take fewer; and the most elements of one tensor
# over all steps that they hold at once.
_SAMPLES, _OF_CHANNELS = 1024, 256
_ELEMENTS = 2**26
_KEPT_EXACT = 128  # samples of which all activations of the DNN are kept, as a step of its training does


def convert(model: nn.Module, calibration: Calibration | Sharded, target: Target, options: Options) -> SpikingNetwork:
    """Export ``model`` to spiking neurons of ``target``."""
    processes = Processes(calibration)
    share = calibration.calibration if isinstance(calibration, Sharded) else calibration
    known = model if isinstance(model, nn.Module) else nn.Identity()  # what is no module is refused where it is traced
    device, dtype = device_of(known), dtype_of(known)
    with (
        TRACING,
        # Weights of the result are to be trained, also when it is made in validation; this turns gradients on.
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
        torch.random.fork_rng(devices=[]),  # a DataLoader draws a seed
    ):
        time = TimeAxis(options.time_dim, options.timesteps, dtype)
        first, inputs = example(time.walk(share, device), processes)
        few, inputs = begun(inputs)
        samples = two_of(time.seen(first.to(device)))
        traced = trace(model, samples, options.until)
        _require_finite(traced)
        propagate_shapes(traced, samples)
        folded = Structure()
        fold_batch_norms(traced, folded, keep=options.batch_norm == "keep")
        auto = options.threshold == "auto"
        searched = auto or options.budget is not None
        kept = 0
        if searched or _adjustments(options):
            kept = _simulated(traced, options.timesteps, _SAMPLES if searched else _needed(options))
        inputs = compared(model, traced, inputs, time.seen)
        with progress("Calibrating, batches", number_of_batches(share)) as step:
            inputs, per_channel = following(inputs, step), auto or options.settled.per_channel
            statistics = Statistics(traced, inputs, per_channel, kept, device, processes, time.seen)
        with _same_random_numbers(processes, device):
            converter = _Converter(traced, statistics, target, folded, samples, time)
            if options.budget is not None and statistics.samples is not None:
                network = within_budget(options, converter.convert, traced, statistics.samples)
                time.require_linear(network, first.to(device) if few is None else few)
                return network
            tried: list[dict[str, Any]] = []
            if auto and statistics.samples is not None:
                options, tried = choose(
                    options, converter.convert, traced, statistics.samples, _needed(options), statistics.count
                )
            network = converter.convert(options)
            if auto:
                network.conversion["tried"] = tried
            time.require_linear(network, first.to(device) if few is None else few)
            return network


@contextmanager
def _same_random_numbers(processes: Processes, device: torch.device) -> Iterator[None]:
    """Let all processes draw what the first one draws."""
    if processes.size <= 1:
        yield
        return
    gpus = [device] if device.type == "cuda" else []
    states = processes.gather(lambda: [torch.get_rng_state(), *map(torch.cuda.get_rng_state, gpus)])[0]
    with torch.random.fork_rng(devices=gpus):
        torch.set_rng_state(states[0])
        for gpu, state in zip(gpus, states[1:], strict=True):
            torch.cuda.set_rng_state(state, gpu)
        yield


def _needed(options: Options) -> int:
    """Tell how many samples are enough for what is adjusted."""
    return _OF_CHANNELS if options.threshold != "spike_norm" and options.settled.correction in BY_CHANNEL else _SAMPLES


def _simulated(traced: fx.GraphModule, timesteps: int, samples: int) -> int:
    """Find how many samples, of those that are enough, a simulation may hold in memory."""
    shapes = [getattr(node.meta.get("tensor_meta"), "shape", ()) for node in traced.graph.nodes]
    largest = max(shape.numel() // 2 for shape in shapes if shape)
    return int(min(samples, max(16, _ELEMENTS // (largest * timesteps))))


def _adjustments(options: Options) -> list[Adjustment]:
    """Give what is adjusted by a simulation."""
    adjustments: list[Adjustment] = [spike_norm] if options.threshold == "spike_norm" else []
    if options.beta < 1 and options.compensate_leak:
        adjustments.append(compensate_leak)
    return adjustments + CORRECTIONS[options.settled.correction]


class _Converter:
    """A traced network with what calibration data shows of it, ready to be converted with some options."""

    def __init__(
        self,
        traced: fx.GraphModule,
        statistics: Statistics,
        target: Target,
        folded: Structure,
        samples: Tensor,
        time: TimeAxis,
    ) -> None:
        self.traced = traced
        self.statistics = statistics
        self.target = target
        self.folded = folded
        self.like = samples
        self.time = time
        self._levels: dict[tuple[Any, ...], dict[str, Tensor]] = {}  # of each method, found once
        self._few: Tensor | None = None
        self._exact: dict[fx.Node, Any] = {}
        self.dims = {
            str(node.target): len(node.meta["tensor_meta"].shape)
            for node in traced.graph.nodes
            if "tensor_meta" in node.meta and hasattr(node.meta["tensor_meta"], "shape")
        }

    def convert(self, options: Options, samples: Tensor | None = None) -> SpikingNetwork:
        """Convert; adjust balances on ``samples``, those that are kept if None."""
        exact = None if samples is None else self._exact_on(samples)
        samples = self.statistics.samples if samples is None else samples
        samples = None if samples is None else samples[: _needed(options)]
        code = code_for(options.coding, self.statistics.inputs, code_settings(options, self.traced, self.like))
        balances = self._balances(options) | code.balances
        adjustments = _adjustments(options)
        if adjustments and samples is not None:
            simulation = Simulation(self.traced, options.timesteps, options.beta, options.settled.per_channel, exact)
            currents = code.currents if self.time.time_dim is None else lambda _: self.time.frames(samples)
            with progress("Adjusting", len(self.statistics.layers)) as step:
                balances = simulation.adjust(self.time.seen(samples), balances, adjustments, currents, step)
        conversion = options.remembered() | {
            "framework": self.target.name,
            "input_shape": list(self.like.shape[1:]),
            "is_deployed": options.is_final,
        }
        structure = Structure()
        structure.written = copy.deepcopy(self.folded.written)
        network = build(self.traced, balances, self.target, options.timesteps, code, structure, conversion)
        network.conversion["any_size"] = (
            self.traced.meta["any_size"]
            and not _has_places(network)
            and "neuron" not in (options.train_thresholds, options.train_beta)
        )
        if options.heterogeneity != "none":
            _draw_apart(network, options)
        if not network.conversion["any_size"]:
            self.statistics.require_one_size("a network that depends on it")
        bring_to_few_bits(network)
        return network

    def _exact_on(self, samples: Tensor) -> dict[fx.Node, Any] | None:
        """Give what the DNN's nodes give on a few samples, which all that is tried is adjusted on."""
        if len(samples) > _KEPT_EXACT:
            return None  # all layers at once are much memory
        if samples is not self._few:
            self._few, self._exact = samples, {}
        return self._exact

    def _balances(self, options: Options) -> dict[str, Balance]:
        settled = options.settled
        given = (settled.percent, options.timesteps, options.initial_potential)
        key = (options.threshold, *given, settled.per_channel)
        if key not in self._levels:
            method: Threshold | None = None
            if options.threshold != "learned":
                # Spike-Norm replaces these layer by layer.
                method = threshold_function("max" if options.threshold == "spike_norm" else options.threshold, *given)
            self._levels[key] = self.statistics.levels(method, settled.per_channel)
        return {name: self._balance(name, level, options) for name, level in self._levels[key].items()}

    def _balance(self, name: str, level: Tensor, options: Options) -> Balance:
        level = channelwise(level, self.dims[self.statistics.layers[name]])
        return Balance(level, level, options.initial_potential * level, torch.zeros_like(level))


def _draw_apart(network: SpikingNetwork, options: Options) -> None:
    """Draw what is trained of the neurons from a distribution, around what it is."""
    neurons = network.neurons
    for module in network.body.modules():
        if neurons.describe(module) is None:
            continue
        holder: Any = neurons.holder(module)
        if options.threshold_std > 0:
            share = draw(options.heterogeneity, 1.0, options.threshold_std, holder.threshold.shape)
            holder.threshold = holder.threshold.detach() * share.to(holder.threshold)
        if options.beta_std > 0:
            beta = draw(options.heterogeneity, options.beta, options.beta_std, holder.beta.shape, within="(0, 1)")
            holder.beta = beta.to(holder.beta)


def _has_places(network: SpikingNetwork) -> bool:
    """Tell whether neurons or synapses of one channel differ by place, so that inputs of another size fit none."""
    parts = [module for module in network.body.modules() if isinstance(module, (Current, InitialState, OneToOne))]
    own = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
    scales = [buffer for name, buffer in network.body.named_buffers() if "." not in name]
    return any(tensor.shape[1:].numel() > 1 for tensor in own) or any(scale.shape[2:].numel() > 1 for scale in scales)


def _require_finite(network: nn.Module) -> None:
    for name, values in network.state_dict().items():
        if not values.isfinite().all():
            raise ValueError(f"Expected a model of finite weights, but {name!r} holds NaN or infinity.")
