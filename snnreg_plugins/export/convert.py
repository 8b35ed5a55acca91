"""From a trained network and calibration data to a spiking network; the same for every framework."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from snnreg_plugins._batches import Calibration, inputs_of
from snnreg_plugins._models import device_of, dtype_of
from snnreg_plugins.export.build import Coder, build
from snnreg_plugins.export.calibrate import Statistics, Threshold, example, run_on_calibration, threshold_function
from snnreg_plugins.export.fold import fold_batch_norms
from snnreg_plugins.export.options import CORRECTIONS, Options
from snnreg_plugins.export.processes import Processes, Sharded
from snnreg_plugins.export.rectifiers import Population
from snnreg_plugins.export.simulate import (
    Adjustment,
    Balance,
    Neurons,
    Simulation,
    channelwise,
    compensate_leak,
    spike_norm,
)
from snnreg_plugins.export.trace import trace
from snnreg_plugins.frameworks.base import Target
from snnreg_plugins.frameworks.registry import target_of
from snnreg_plugins.spiking.coding import LatencyCoder, PoissonCoder
from snnreg_plugins.spiking.network import SpikingNetwork

# What "auto" tries: cheap in spikes first.
_CANDIDATES: tuple[dict[str, Any], ...] = tuple(
    {"threshold": threshold, "percent": percent, "per_channel": per_channel, "correction": correction}
    for per_channel, (threshold, percent), correction in product(
        (False, True),
        (("max", 99.9), ("percentile", 99.9), ("percentile", 99.0), ("mmse", 99.9), ("local", 99.9)),
        ("none", "potential"),
    )
)
# Samples that simulations run on, and the most elements of one tensor over all steps that they hold at once.
_SAMPLES = 1024
_ELEMENTS = 2**26


def convert(model: nn.Module, calibration: Calibration | Sharded, target: Target, options: Options) -> SpikingNetwork:
    """Export ``model`` to spiking neurons of ``target``."""
    processes = Processes(calibration)
    share = calibration.calibration if isinstance(calibration, Sharded) else calibration
    traced = trace(model, options.until)
    device = device_of(traced)
    with (
        # Weights of the result are to be trained, also when it is made in validation; this turns gradients on.
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
        torch.random.fork_rng(devices=[]),  # a DataLoader draws a seed
    ):
        _require_finite(traced)
        first, inputs = example(inputs_of(share, device), processes)
        # Two samples: with one, squeeze() would take the batch away.
        samples = first.to(device).repeat_interleave(2, 0)
        run_on_calibration(traced, samples)
        ShapeProp(traced).propagate(samples)
        fold_batch_norms(traced)
        auto = options.threshold == "auto"
        kept = _simulated(traced, options.timesteps) if auto or _adjustments(options) else 0
        statistics = Statistics(traced, inputs, auto or options.per_channel, kept, device, processes)
        with _same_random_numbers(processes, device):
            converter = _Converter(traced, statistics, target, samples.shape[1:])
            return converter.choose(options) if auto else converter.convert(options)


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


def restore(model: nn.Module, conversion: dict[str, Any], tensors: dict[str, Tensor]) -> SpikingNetwork:
    """Rebuild a spiking network around the DNN that it was made from.

    Args:
        model: The DNN, with any weights.
        conversion: How the network was made.
        tensors: The network's ``state_dict()``.

    Raises:
        KeyError: If ``conversion`` lacks something.
        ValueError: If ``tensors`` are not those of the network.
    """
    given = {field.name: conversion[field.name] for field in fields(Options)}
    # How thresholds were chosen makes no difference to the structure, and "custom" cannot be chosen again.
    options = Options(**{**given, "threshold": "max", "correction": "none"})
    traced = trace(model, options.until)
    device = device_of(traced)
    with torch.inference_mode(False), torch.no_grad():
        # Any input gives the shapes.
        samples = torch.zeros((2, *conversion["input_shape"]), device=device, dtype=dtype_of(traced))
        run_on_calibration(traced, samples)
        ShapeProp(traced).propagate(samples)
        fold_batch_norms(traced)
        levels = {
            name.removeprefix("body.").removesuffix("_initial.level"): level.to(device)
            for name, level in tensors.items()
            if name.endswith("_initial.level")
        }
        balances = {
            # A current that is not 0 has a part of its own, or is in a bias.
            name: Balance(level, level, level, torch.ones_like(level) * (f"body.{name}_current.bias" in tensors))
            for name, level in levels.items()
        }
        coder = None
        if options.coding in ("poisson", "latency"):
            module = PoissonCoder(1.0) if options.coding == "poisson" else LatencyCoder(1.0, options.timesteps)
            coder = Coder(2.0, module.to(device))
        elif options.coding == "neurons":
            coder = Coder(populations=tuple(kind for kind in _both_signs() if f"input{kind.suffix}" in levels))
        target = target_of(conversion["framework"], options.beta, options.surrogate_slope)
        network = build(traced, balances, target, options.timesteps, coder, conversion)
        _assign(network, tensors)
    return network


def _assign(network: SpikingNetwork, tensors: dict[str, Tensor]) -> None:
    """Put tensors of any shape in the place of a network's own, which must have the same names."""
    for name in network.state_dict().keys() | tensors.keys():
        *path, last = name.split(".")
        try:
            module = network.get_submodule(".".join(path))
        except AttributeError as error:
            raise ValueError(f"The network has no {name!r}.") from error
        if name not in tensors:
            raise ValueError(f"{name!r} is missing.")
        value = tensors[name].clone()
        if last in module._buffers:
            module._buffers[last] = value.to(module._buffers[last].device)  # type: ignore[union-attr]
        elif last in module._parameters:
            before = module._parameters[last]
            device = device_of(network) if before is None else before.device
            module._parameters[last] = nn.Parameter(value.to(device))
        else:
            raise ValueError(f"The network has no {name!r}.")


def _simulated(traced: fx.GraphModule, timesteps: int) -> int:
    """Find how many samples a simulation may hold in memory."""
    shapes = [getattr(node.meta.get("tensor_meta"), "shape", ()) for node in traced.graph.nodes]
    largest = max(shape.numel() // 2 for shape in shapes if shape)
    return int(min(_SAMPLES, max(16, _ELEMENTS // (largest * timesteps))))


def _adjustments(options: Options) -> list[Adjustment]:
    """Give what is adjusted by a simulation."""
    adjustments: list[Adjustment] = [spike_norm] if options.threshold == "spike_norm" else []
    if options.beta < 1 and options.compensate_leak:
        adjustments.append(compensate_leak)
    return adjustments + CORRECTIONS[options.correction]


class _Converter:
    """A traced network with what calibration data shows of it, ready to be converted with some options."""

    def __init__(
        self, traced: fx.GraphModule, statistics: Statistics, target: Target, input_shape: tuple[int, ...]
    ) -> None:
        self.traced = traced
        self.statistics = statistics
        self.target = target
        self.input_shape = input_shape
        self.dims = {
            str(node.target): len(node.meta["tensor_meta"].shape)
            for node in traced.graph.nodes
            if "tensor_meta" in node.meta and hasattr(node.meta["tensor_meta"], "shape")
        }

    def convert(self, options: Options, samples: Tensor | None = None) -> SpikingNetwork:
        """Convert; adjust balances on ``samples``, all that are kept if None."""
        samples = self.statistics.samples if samples is None else samples
        coder, code = self._coder(options)
        balances = self._balances(options) | code.balances
        adjustments = _adjustments(options)
        if adjustments and samples is not None:
            simulation = Simulation(self.traced, options.timesteps, options.beta, options.per_channel)
            balances = simulation.adjust(samples, balances, adjustments, None if coder is None else code)
        conversion = options.remembered() | {"framework": self.target.name, "input_shape": list(self.input_shape)}
        return build(self.traced, balances, self.target, options.timesteps, coder, conversion)

    def _balances(self, options: Options) -> dict[str, Balance]:
        method: Threshold | None = None
        if options.threshold != "learned":
            # Spike-Norm replaces these layer by layer.
            name = "max" if options.threshold == "spike_norm" else options.threshold
            method = threshold_function(name, options.percent, options.timesteps, options.initial_potential)
        levels = self.statistics.levels(method, options.per_channel)
        return {name: self._balance(name, level, options) for name, level in levels.items()}

    def _balance(self, name: str, level: Tensor, options: Options) -> Balance:
        layer = name.removesuffix(self.statistics.populations[name].suffix)
        level = channelwise(level, self.dims[layer])
        return Balance(level, level, options.initial_potential * level, torch.zeros_like(level))

    def _coder(self, options: Options) -> tuple[Coder | None, _Code]:
        largest = max(self.statistics.largest_input, -self.statistics.smallest_input)
        if options.coding == "constant":
            return None, _Code(options, None, {}, 1.0)
        if not largest > 0:
            raise ValueError(f"Expected inputs that are not all 0 to code by {options.coding!r}.")
        if options.coding == "neurons":
            kinds = _both_signs() if self.statistics.smallest_input < 0 else _both_signs()[:1]
            level = torch.tensor(largest, device=device_of(self.traced))
            own = Balance(level, level, options.initial_potential * level, torch.zeros_like(level))
            coder = Coder(populations=tuple(kinds))
            return coder, _Code(options, None, {f"input{kind.suffix}": own for kind in kinds}, 1.0, coder.populations)
        if options.coding == "poisson":
            poisson = PoissonCoder(largest).to(device_of(self.traced), dtype_of(self.traced))
            return Coder(largest, poisson), _Code(options, poisson, {}, largest)
        # A spike carries on average what the input is over all steps.
        worth = self.statistics.mean_input * options.timesteps
        latency = LatencyCoder(largest, options.timesteps).to(device_of(self.traced), dtype_of(self.traced))
        return Coder(worth, latency), _Code(options, latency, {}, worth)

    def choose(self, options: Options) -> SpikingNetwork:
        """Take the candidate that agrees best with the DNN on samples that it was not adjusted on.

        Of those within a standard error of the best, the one with the fewest synaptic operations.
        """
        from snnreg_plugins.metrics import SynapticOperations

        samples = self.statistics.samples
        assert samples is not None
        half = max(1, len(samples) // 2)
        adjusted, held_out = samples[:half], samples[half:] if len(samples) > 1 else samples
        scores = torch.cat([self.traced(part) for part in held_out.tensor_split(_parts(held_out))])
        found: list[tuple[Tensor, float, Options]] = []
        for candidate in _CANDIDATES:
            tried = replace(options, **candidate)
            network = self.convert(tried, adjusted)
            # Of this process alone: others run the same samples, or none.
            with SynapticOperations(network, sync_on_compute=False) as operations:
                outputs = torch.cat([network(part) for part in held_out.tensor_split(_parts(held_out))])
                sops = float(operations.total("sops"))
            found.append((_agreement(outputs, scores), sops, tried))
        best = max(found, key=lambda one: float(one[0].mean()))[0]
        noise = float(best.float().std(correction=0)) / len(best) ** 0.5
        good = [one for one in found if float(one[0].mean()) >= float(best.mean()) - noise]
        return self.convert(min(good, key=lambda one: one[1])[2])


_BATCH = 128


def _parts(samples: Tensor) -> int:
    return -(-len(samples) // _BATCH)


def _agreement(outputs: Tensor, scores: Tensor) -> Tensor:
    """Tell per sample how well outputs stand for the DNN's: by class, or where there is none, by distance."""
    if scores.dim() == 2 and scores.shape[1] > 1:
        return (outputs.argmax(1) == scores.argmax(1)).double()
    return -(outputs - scores).double().square().flatten(1).mean(1)


@dataclass(frozen=True)
class _Code:
    """From inputs to what goes into a simulation at each step."""

    options: Options
    module: nn.Module | None
    balances: dict[str, Balance]
    worth: float
    populations: tuple[Population, ...] = ()

    def __call__(self, inputs: Tensor) -> list[Tensor]:
        if self.module is not None:
            steps, state = [], None
            for _ in range(self.options.timesteps):
                spikes, state = self.module(inputs, state)
                steps.append(self.worth * spikes)
            return steps
        total = [torch.zeros_like(inputs)] * self.options.timesteps
        for kind in self.populations:
            currents = [kind.sign * inputs] * self.options.timesteps
            balance = self.balances[f"input{kind.suffix}"]
            fired = Neurons(kind, currents, inputs, self.options.beta, per_channel=False).fire(balance)
            total = [a + kind.sign * balance.level * b for a, b in zip(total, fired, strict=True)]
        return total


def _require_finite(network: nn.Module) -> None:
    for name, values in network.state_dict().items():
        if not values.isfinite().all():
            raise ValueError(f"Expected a model of finite weights, but {name!r} holds NaN or infinity.")


def _both_signs() -> list[Population]:
    return [Population("", 1, 1.0, torch.inf), Population("_negative", -1, -1.0, torch.inf)]
