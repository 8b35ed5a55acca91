"""Thresholds of a traced network from calibration data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.utils.data import Dataset, IterableDataset

from snnreg_plugins.export.graph import where
from snnreg_plugins.export.rectifiers import RECTIFIERS, Population, populations
from snnreg_plugins.functional.thresholds import ActivationHistogram, local, maximum, mmse, percentile
from snnreg_plugins.probes import Hooks

#: A tensor of inputs, or any iterable of batches or (input, target) pairs, such as a DataLoader.
Calibration: TypeAlias = Tensor | Iterable[Any]
#: From the histogram of a layer's activations, and whether to go by channel, to its threshold(s).
Threshold: TypeAlias = Callable[[ActivationHistogram, bool], Tensor]

# Methods that take more than a histogram of activations.
OTHER_METHODS = ("auto", "learned", "spike_norm")
_CHUNK = 256
# A channel with a threshold this small beside its layer's is silent on the calibration data: with a threshold of
# its own it would fire on nothing.
_DEAD = 1e-2


class SilentLayerError(ValueError):
    """A layer that is never active on the calibration data, so that it has no threshold; the message names it."""


def threshold_function(
    threshold: str | Threshold, percent: float, timesteps: int = 1, initial_potential: float = 0.5
) -> Threshold:
    """Look up a threshold method by name; a function passes through.

    Raises:
        ValueError: If the name is unknown, or ``percent`` out of range.
    """
    if callable(threshold):
        return threshold
    if not 0 < percent <= 100:
        raise ValueError(f"Expected argument `percent` to be in (0, 100], but got {percent}.")
    methods: dict[str, Threshold] = {
        "max": maximum,
        "percentile": partial(percentile, percent=percent),
        "mmse": partial(mmse, timesteps=timesteps, initial_potential=initial_potential),
        "local": local,
    }
    if not isinstance(threshold, str) or threshold not in methods:
        raise ValueError(
            f"Expected argument `threshold` to be a function or one of {sorted({*methods, *OTHER_METHODS})}, but got "
            f"{threshold!r}."
        )
    return methods[threshold]


def batches(calibration: Calibration, device: torch.device | str) -> Iterator[Tensor]:
    """Walk the input tensors of calibration data.

    Raises:
        TypeError: If it gives something else than tensors, or tuples or lists that start with one.
        ValueError: If there is no sample at all.
    """
    expected = "Expected argument `calibration` to be a tensor, or to give tensors or (input, target) pairs, but got"
    data: Any = calibration
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        raise TypeError(f"{expected} a dataset, which gives single samples. Wrap it in a DataLoader.")
    if not isinstance(data, Iterable) or (isinstance(data, Tensor) and data.dim() == 0):
        raise TypeError(f"{expected} {data!r}.")
    if isinstance(data, Tensor):
        data = [data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)]
    empty = True
    for batch in data:
        inputs = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
        if not isinstance(inputs, Tensor):
            raise TypeError(f"{expected} a batch of type {type(inputs).__name__}.")
        if inputs.dim() == 0:
            raise TypeError(f"{expected} a batch that is a single number.")
        if len(inputs):
            empty = False
            yield inputs.to(device)
    if empty:
        raise ValueError("Expected argument `calibration` to hold at least one sample, but it is empty.")


def run(network: nn.Module, inputs: Tensor) -> None:
    """Run a network on calibration data.

    Raises:
        ValueError: If the data does not fit the network.
    """
    try:
        network(inputs)
    except (RuntimeError, IndexError) as error:
        raise ValueError(
            "Expected argument `calibration` to hold inputs of the model, but the model fails on samples of shape "
            f"{tuple(inputs.shape[1:])} and {inputs.dtype}: {error}"
        ) from error


class Statistics:
    """What calibration data shows of a network: activations of every population of neurons, and samples to simulate.

    Args:
        network: A network of :func:`~snnreg_plugins.export.graph.trace`.
        inputs: Batches of what the network was trained on.
        per_channel: Whether to keep the activations of channels apart.
        samples: Number of samples to keep, the first ones.

    Raises:
        ValueError: If an activation is not finite, or the data does not fit the network.
    """

    def __init__(self, network: fx.GraphModule, inputs: Iterable[Tensor], per_channel: bool, samples: int) -> None:
        self.places = {str(node.target): where(node) for node in network.graph.nodes}
        self.populations: dict[str, Population] = {}
        self.histograms: dict[str, ActivationHistogram] = {}
        modules = dict(network.named_modules())
        neural = [
            str(node.target)
            for node in network.graph.nodes
            if node.op == "call_module" and isinstance(modules[node.target], RECTIFIERS) and not node.meta["head"]
        ]
        self.largest_input = self.smallest_input = 0.0
        total, active = 0.0, 0
        kept: list[Tensor] = []
        with Hooks(after=[(modules[name], partial(self._observe, name, per_channel)) for name in neural]):
            for batch in inputs:
                run(network, batch)
                self.largest_input = max(self.largest_input, float(batch.max()))
                self.smallest_input = min(self.smallest_input, float(batch.min()))
                total, active = total + float(batch.abs().sum()), active + int(batch.count_nonzero())
                missing = samples - sum(map(len, kept))
                if missing > 0:
                    kept.append(batch[:missing])
        self.mean_input = total / max(1, active)  # of those that are not 0
        self.samples = torch.cat(kept)
        self.shape = self.samples.shape[1:]

    def _observe(
        self, name: str, per_channel: bool, module: nn.Module, args: tuple[Tensor, ...], output: Tensor
    ) -> None:
        for population in populations(module) or ():
            key = name + population.suffix
            if key not in self.histograms:
                self.populations[key] = population
                channels = output.shape[1] if per_channel else 1
                self.histograms[key] = ActivationHistogram(channels, device=output.device)
            try:
                self.histograms[key].update(population.rectify(args[0]))
            except ValueError as error:
                raise ValueError(f"Layer {name!r}: {error}") from error

    def levels(self, threshold: Threshold | None, per_channel: bool) -> dict[str, Tensor]:
        """Balance thresholds: one (or one per channel) for each population, from its activations.

        Args:
            threshold: The method; None for thresholds that were learned.
            per_channel: One threshold per channel instead of one per layer.

        Returns:
            Thresholds by population: scalars, or ``(C,)``.

        Raises:
            ValueError: If a layer has learned no threshold.
            SilentLayerError: If a layer is silent on all of the data.
        """
        return {name: self._level(name, threshold, per_channel) for name in self.histograms}

    def _level(self, name: str, threshold: Threshold | None, per_channel: bool) -> Tensor:
        histogram, limit = self.histograms[name], self.populations[name].limit
        if self.populations[name].learned or (threshold is None and limit < float("inf")):
            return torch.tensor(limit, device=histogram.largest.device)
        if threshold is None:
            raise ValueError(
                f"Layer {name!r}{self.places.get(name, '')} has learned no threshold. Train with QCFSActivations, or "
                'choose another `threshold`, such as "percentile".'
            )
        level = threshold(histogram, False)
        if not level > 0:
            level = maximum(histogram)
        if not level > 0:
            if self.populations[name].sign < 0:
                return torch.tensor(1.0, device=level.device)  # no input is ever negative: it fires on nothing
            raise SilentLayerError(
                f"Layer {name!r}{self.places[name]} is silent on all calibration data, so it has no threshold. Check "
                "that the network is trained and the calibration data is what it was trained on; a weaker penalty "
                "keeps layers alive."
            )
        if per_channel:
            channels = threshold(histogram, True)
            level = torch.where(channels > _DEAD * level, channels, level)
        return level
