"""Thresholds of a traced network from calibration data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

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


def threshold_function(threshold: str | Threshold, percent: float) -> Threshold:
    """Look up a threshold method by name; a function passes through.

    Raises:
        ValueError: If the name is unknown, or ``percent`` out of range.
    """
    if callable(threshold):
        return threshold
    methods: dict[str, Threshold] = {"max": maximum, "percentile": partial(percentile, percent=percent)}
    if threshold not in methods:
        raise ValueError(
            f"Expected argument `threshold` to be a function or one of {sorted(methods)}, but got {threshold!r}."
        )
    if not 0 < percent <= 100:
        raise ValueError(f"Expected argument `percent` to be in (0, 100], but got {percent}.")
    return methods[threshold]


def batches(calibration: Calibration, device: torch.device | str) -> Iterator[Tensor]:
    """Walk the input tensors of calibration data.

    Raises:
        TypeError: If a batch is neither a tensor nor a tuple or list that starts with one.
        ValueError: If there is no sample at all.
    """
    if isinstance(calibration, Tensor):
        calibration = calibration.split(_CHUNK)
    empty = True
    for batch in calibration:
        inputs = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
        if not isinstance(inputs, Tensor):
            raise TypeError(
                "Expected argument `calibration` to be a tensor, or to give tensors or (input, target) pairs, but got "
                f"a batch of type {type(batch).__name__}."
            )
        if len(inputs):
            empty = False
            yield inputs.to(device)
    if empty:
        raise ValueError("Expected argument `calibration` to hold at least one sample, but it is empty.")


def thresholds(
    network: fx.GraphModule, calibration: Calibration, threshold: Threshold, per_channel: bool
) -> tuple[dict[str, Tensor], Tensor]:
    """Balance thresholds: one (or one per channel) for each ReLU, from its activations on calibration data.

    Args:
        network: A network of :func:`~snnreg_plugins.export.graph.trace`.
        calibration: Data the network was trained on.
        threshold: The method.
        per_channel: One threshold per channel instead of one per layer.

    Returns:
        Thresholds by layer, shaped to broadcast over a sample's activations; and one sample of the data, which
        shapes can be read from.

    Raises:
        ValueError: If an activation is not finite, or a layer is silent on all of the data.
    """
    histograms: dict[str, ActivationHistogram] = {}
    shapes: dict[str, torch.Size] = {}

    def observe(name: str, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if name not in histograms:
            histograms[name] = ActivationHistogram(output.shape[1], device=output.device)
            shapes[name] = output.shape[1:]
        try:
            histograms[name].update(output)
        except ValueError as error:
            raise ValueError(f"Layer {name!r}: {error}") from error

    relus = {name: module for name, module in network.named_modules() if isinstance(module, nn.ReLU)}
    sample = torch.empty(0)
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    with torch.no_grad(), Hooks(after=[(module, partial(observe, name)) for name, module in relus.items()]):
        for inputs in batches(calibration, device):
            sample = inputs[:1]
            network(inputs)

    balanced: dict[str, Tensor] = {}
    for name, histogram in histograms.items():
        level = threshold(histogram, False)
        if not level > 0:
            level = maximum(histogram)
        if not level > 0:
            raise ValueError(
                f"Layer {name!r} is silent on all calibration data, so it has no threshold. Check that the network is "
                "trained and the calibration data is what it was trained on; a weaker penalty keeps layers alive."
            )
        if per_channel:
            channels = threshold(histogram, True)
            channels = torch.where(channels > _DEAD * level, channels, level)
            level = channels.reshape(-1, *[1] * (len(shapes[name]) - 1))
        balanced[name] = level
    return balanced, sample
