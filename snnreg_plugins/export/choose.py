"""Which options ``threshold="auto"`` takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from snnreg_plugins._batches import mean_frame
from snnreg_plugins._models import dtype_of
from snnreg_plugins.export.counted import run_and_count
from snnreg_plugins.export.options import Options
from snnreg_plugins.spiking.network import SpikingNetwork

#: What is tried: cheap in spikes first.
CANDIDATES: tuple[dict[str, Any], ...] = tuple(
    {"threshold": threshold, "percent": percent, "per_channel": per_channel, "correction": correction}
    for per_channel, (threshold, percent), correction in product(
        (False, True),
        (("max", 99.9), ("percentile", 99.9), ("percentile", 99.0), ("mmse", 99.9), ("local", 99.9)),
        ("none", "potential"),
    )
)
#: Samples to run at once.
_BATCH = 128


class Tried(NamedTuple):
    """How a candidate did.

    Args:
        options: The candidate.
        agreement: How well it stands for the DNN on each sample, ``(B,)``.
        sops: Synaptic operations per sample.
    """

    options: Options
    agreement: Tensor
    sops: float


def candidates(options: Options) -> list[dict[str, Any]]:
    """Give what is tried beside what the user has asked for: an option that is not at its default is kept."""
    asked = {
        field.name: value
        for field in fields(Options)
        if field.name in ("percent", "per_channel", "correction")
        and (value := getattr(options, field.name)) != field.default
    }
    tried: list[dict[str, Any]] = []
    for candidate in CANDIDATES:
        merged = {**candidate, **asked}
        if merged not in tried:
            tried.append(merged)
    return tried


class Halves:
    """Samples of calibration data: one half to adjust networks on, and one that is held out to judge them by.

    Args:
        options: All other options.
        convert: From options, and samples to adjust on, to a network.
        dnn: The DNN.
        samples: The samples, ``(B, ...)``, or ``(B, T, ...)`` where they have time.
    """

    def __init__(
        self, options: Options, convert: Callable[[Options, Tensor], SpikingNetwork], dnn: nn.Module, samples: Tensor
    ) -> None:
        half = max(1, len(samples) // 2)
        self.convert, self.dnn, self.adjusted = convert, dnn, samples[:half]
        self.held = None if options.time_dim is None else 1  # dimension of time in the samples
        self.parts = torch.split(samples[half:] if len(samples) > 1 else samples, _BATCH)
        self.scores = self.scores_of(self.parts)

    def scores_of(self, parts: Iterable[Tensor]) -> Tensor:
        """Give the DNN's scores."""
        return torch.cat([self.dnn(mean_frame(part, self.held, dtype_of(self.dnn))) for part in parts])

    def network(self, options: Options) -> SpikingNetwork:
        """Convert, and adjust on the one half."""
        return self.convert(options, self.adjusted).eval()

    def judge(self, options: Options, network: SpikingNetwork) -> Tried:
        """Run a network on the other half."""
        counted = run_and_count(network, self.parts, self.held)
        return Tried(options, agreement(counted.outputs, self.scores), counted.sops)


def choose(
    options: Options, convert: Callable[[Options, Tensor], SpikingNetwork], dnn: nn.Module, samples: Tensor
) -> Options:
    """Take the candidate that agrees best with the DNN on samples that it was not adjusted on; see :func:`cheapest`.

    Args:
        options: All other options.
        convert: As for :class:`Halves`, and so on.
        dnn: The DNN.
        samples: Samples of calibration data.
    """
    halves = Halves(options, convert, dnn, samples)
    tried = [replace(options, **candidate) for candidate in candidates(options)]
    return cheapest([halves.judge(one, halves.network(one)) for one in tried]).options


def cheapest(found: list[Tried]) -> Tried:
    """Of those that are within a standard error of the best one, give the first with the fewest operations."""
    best = max(found, key=lambda one: float(one.agreement.mean())).agreement
    noise = float(best.float().std(correction=0)) / len(best) ** 0.5
    good = [one for one in found if float(one.agreement.mean()) >= float(best.mean()) - noise]
    return min(good, key=lambda one: one.sops)


def agreement(outputs: Tensor, scores: Tensor) -> Tensor:
    """Tell per sample how well outputs stand for the DNN's: by class, or where there is none, by distance."""
    if scores.dim() == 2 and scores.shape[1] > 1:
        return (outputs.argmax(1) == scores.argmax(1)).double()
    return -(outputs - scores).double().square().flatten(1).mean(1)
