"""Which options ``threshold="auto"`` takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from snnreg_plugins._batches import mean_frame
from snnreg_plugins._models import dtype_of
from snnreg_plugins.export.counted import run_and_count
from snnreg_plugins.export.options import CHOSEN, Options, Settled
from snnreg_plugins.spiking.network import SpikingNetwork

#: What is tried, beside the correction that an export has by itself.
CANDIDATES: tuple[dict[str, Any], ...] = tuple(
    {"threshold": threshold, "percent": percent, "per_channel": per_channel}
    for per_channel, (threshold, percent) in product(
        (False, True),
        (("max", 99.9), ("percentile", 99.9), ("percentile", 99.0), ("mmse", 99.9), ("local", 99.9)),
    )
)
#: Samples to run at once.
_BATCH = 128
# All candidates are tried on few samples, some of them on more, so that all of it takes about three times T forward
# passes of the DNN over all samples: 10 candidates and 3 * 3 times 1 / 64, adjusted and run.
_SHARE, _MORE, _FINALISTS = 1 / 64, 3, 3
_LEAST, _LEAST_LAST = 32, 256  # samples that say something, and that tell close ones apart
_DOUBT = 2.0  # standard errors that a candidate may be behind on few samples


class Tried(NamedTuple):
    """How a candidate did.

    Args:
        options: The candidate.
        kept: What it keeps of the DNN on each sample, ``(B,)``; see :func:`kept`.
        sops: Synaptic operations per sample.
    """

    options: Options
    kept: Tensor
    sops: float

    @property
    def mean(self) -> float:
        """What it keeps on average."""
        return float(self.kept.mean())

    def behind(self, other: Tried, errors: float) -> float:
        """Give how much more another one keeps, less standard errors of that difference."""
        difference = other.kept - self.kept
        error = float(difference.std(correction=0)) / math.sqrt(len(difference))
        return float(difference.mean()) - errors * error

    def told(self) -> dict[str, Any]:
        """Give it as plain data."""
        chosen = {name: getattr(self.options, name) for name in CHOSEN}
        return chosen | {"kept": self.mean, "sops": self.sops, "samples": len(self.kept)}


class Choice(NamedTuple):
    """What was chosen.

    Args:
        options: The options.
        tried: All that was tried, as plain data: what is chosen of the options, what it ``"kept"``, SOPs/sample, and
            the number of samples that these are of.
    """

    options: Options
    tried: list[dict[str, Any]]


def candidates(options: Options) -> list[dict[str, Any]]:
    """Give what is tried beside what the user has asked for, which is kept."""
    asked = {name: getattr(options, name) for name in Settled._fields} | {"correction": options.settled.correction}
    tried: list[dict[str, Any]] = []
    for candidate in CANDIDATES:
        merged = {**candidate, **{name: value for name, value in asked.items() if value is not None}}
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
        return Tried(options, kept(counted.outputs, self.scores), counted.sops)


def choose(
    options: Options,
    convert: Callable[[Options, Tensor], SpikingNetwork],
    dnn: nn.Module,
    samples: Tensor,
    seen: int | None = None,
) -> Choice:
    """Take the cheapest candidate that keeps as much of the DNN as the best one does, within the tolerance.

    All are tried on few samples. Those that are surely behind the best one there, or keep no more than one that
    is cheaper, are left out; the best and the cheapest of the others are tried on more; and :func:`cheapest` of these
    is taken. All are judged on samples that they were not adjusted on.

    Args:
        options: All other options.
        convert: As for :class:`Halves`, and so on.
        dnn: The DNN.
        samples: Samples of calibration data.
        seen: How many there were in all, in proportion to which samples are tried; None for as many as there are here.
    """
    few = max(_LEAST, int(_SHARE * (len(samples) if seen is None else seen)))

    def tried(candidates: list[Options], count: int) -> list[Tried]:
        halves = Halves(options, convert, dnn, samples[: 2 * count])
        return [halves.judge(one, halves.network(one)) for one in candidates]

    first = tried([replace(options, **candidate) for candidate in candidates(options)], few)
    last = finalists(first, options.auto_tolerance)
    if len(last) > 1 and len(samples) > 2 * few:
        last = tried([one.options for one in last], max(_LEAST_LAST, _MORE * few))
    told = [one.told() for one in first if all(one.options is not other.options for other in last)]
    return Choice(cheapest(last, options.auto_tolerance).options, told + [one.told() for one in last])


def finalists(found: list[Tried], tolerance: float) -> list[Tried]:
    """Give the best one, and the cheapest of those that may be within the tolerance of it, in points."""
    best = max(found, key=lambda one: one.mean)
    able = [one for one in found if one is not best and one.behind(best, _DOUBT) <= tolerance / 100]
    cheap = [one for one in able if not any(other.sops < one.sops and other.mean >= one.mean for other in found)]
    return [*sorted(cheap, key=lambda one: one.sops)[: _FINALISTS - 1], best]


def cheapest(found: list[Tried], tolerance: float = 0.0) -> Tried:
    """Give the first with the fewest operations of those behind the best by the tolerance or a standard error at most.

    Args:
        found: What was tried, on the same samples.
        tolerance: In points.
    """
    best = max(found, key=lambda one: one.mean)
    good = [one for one in found if one.behind(best, 0.0) <= tolerance / 100 or one.behind(best, 1.0) <= 0]
    return min(good, key=lambda one: one.sops)


def kept(outputs: Tensor, scores: Tensor) -> Tensor:
    r"""Tell per sample how much outputs keep of what the DNN's scores are worth.

    Of classes, with :math:`p` the softmax of the scores, :math:`1 - (\max_k p_k - p_{k^*})` where :math:`k^*` is the
    class of the outputs: by the DNN's own probabilities, the mean falls short of 1 by the accuracy that is lost. So
    another class counts little where the DNN wavers between both. Of what is no class, 1 less the squared distance
    over the variance of the scores, so that the mean is the share of it that outputs explain, R².

    Args:
        outputs: Of the spiking network, ``(B, ...)``.
        scores: Of the DNN.
    """
    if has_classes(scores):
        p = scores.double().softmax(1)
        return 1 - (p.amax(1) - p.gather(1, outputs.argmax(1, keepdim=True)).squeeze(1))
    scores = scores.double().flatten(1)
    distance = (outputs.double().flatten(1) - scores).square().mean(1)
    variance = (scores - scores.mean(0)).square().mean()
    return 1 - distance / (variance if variance > 0 else scores.square().mean().clamp_min(1e-12))


def has_classes(scores: Tensor) -> bool:
    """Tell whether scores are those of classes."""
    return scores.dim() == 2 and scores.shape[1] > 1
