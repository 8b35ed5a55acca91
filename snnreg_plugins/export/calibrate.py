"""Thresholds of a traced network from calibration data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.utils.data import Dataset, IterableDataset

from snnreg_plugins.export.graph import where
from snnreg_plugins.functional.thresholds import ActivationHistogram, maximum, percentile
from snnreg_plugins.probes import Hooks

#: A tensor of inputs, or any iterable of batches or (input, target) pairs, such as a DataLoader.
Calibration: TypeAlias = Tensor | Iterable[Any]
#: From the histogram of a layer's activations, and whether to go by channel, to its threshold(s).
Threshold: TypeAlias = Callable[[ActivationHistogram, bool], Tensor]

_CHUNK = 256
# A channel with a threshold this small beside its layer's is silent on the calibration data: with a threshold of
# its own it would fire on nothing.
_DEAD = 1e-2


class SilentLayerError(ValueError):
    """A layer that is never active on the calibration data, so that it has no threshold; the message names it."""


def threshold_function(threshold: str | Threshold, percent: float) -> Threshold:
    """Look up a threshold method by name; a function passes through.

    Raises:
        ValueError: If the name is unknown, or ``percent`` out of range.
    """
    if callable(threshold):
        return threshold
    methods: dict[str, Threshold] = {"max": maximum, "percentile": partial(percentile, percent=percent)}
    if threshold not in list(methods):
        raise ValueError(
            f"Expected argument `threshold` to be a function or one of {sorted(methods)}, but got {threshold!r}."
        )
    if not 0 < percent <= 100:
        raise ValueError(f"Expected argument `percent` to be in (0, 100], but got {percent}.")
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


def thresholds(
    network: fx.GraphModule, inputs: Iterable[Tensor], threshold: Threshold, per_channel: bool
) -> dict[str, Tensor]:
    """Balance thresholds: one (or one per channel) for each ReLU, from its activations on calibration data.

    Args:
        network: A network of :func:`~snnreg_plugins.export.graph.trace`.
        inputs: Batches of what the network was trained on.
        threshold: The method.
        per_channel: One threshold per channel instead of one per layer.

    Returns:
        Thresholds by layer: scalars, or ``(C,)``.

    Raises:
        ValueError: If an activation is not finite.
        SilentLayerError: If a layer is silent on all of the data.
    """
    histograms: dict[str, ActivationHistogram] = {}

    def observe(name: str, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if name not in histograms:
            histograms[name] = ActivationHistogram(output.shape[1], device=output.device)
        try:
            histograms[name].update(output)
        except ValueError as error:
            raise ValueError(f"Layer {name!r}: {error}") from error

    relus = {name: module for name, module in network.named_modules() if isinstance(module, nn.ReLU)}
    with Hooks(after=[(module, partial(observe, name)) for name, module in relus.items()]):
        for batch in inputs:
            run(network, batch)

    places = {str(node.target): where(node) for node in network.graph.nodes}
    balanced: dict[str, Tensor] = {}
    for name, histogram in histograms.items():
        level = threshold(histogram, False)
        if not level > 0:
            level = maximum(histogram)
        if not level > 0:
            raise SilentLayerError(
                f"Layer {name!r}{places[name]} is silent on all calibration data, so it has no threshold. Check that "
                "the network is trained and the calibration data is what it was trained on; a weaker penalty keeps "
                "layers alive."
            )
        if per_channel:
            channels = threshold(histogram, True)
            level = torch.where(channels > _DEAD * level, channels, level)
        balanced[name] = level
    return balanced
