"""Which options ``threshold="auto"`` takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from snnreg_plugins._batches import mean_frame
from snnreg_plugins._console import progress
from snnreg_plugins._models import dtype_of
from snnreg_plugins.export.counted import run_and_count
from snnreg_plugins.export.options import CHOSEN, Options, Settled
from snnreg_plugins.spiking.network import SpikingNetwork

#: What is tried, beside the correction that an export has by itself: from low thresholds to high ones, and what is
#: mostly the best first, so that much of the rest is seen to be hopeless at once.
CANDIDATES: tuple[dict[str, Any], ...] = tuple(
    {"threshold": threshold, "percent": percent, "per_channel": per_channel}
    for per_channel, low in ((True, "local"), (False, "mmse"))
    for threshold, percent in ((low, 99.9), ("percentile", 99.0), ("percentile", 99.9), ("max", 99.9))
)
#: Samples to run at once.
BATCH = 128
_FIRST = 64  # samples that tell what is hopeless
# Samples that tell close ones apart: so many, but no more than a share of few, which is of all that there are in time,
# and no less than a share of many: as for corrections, not all pay for themselves.
_LAST, _OF_FEW, _OF_MANY = 512, 1 / 4, 1 / 8
_LEAST_ADJUSTED, _ADJUSTED = 32, 1 / 8  # samples that thresholds are compared on, of those that a correction takes
_FINALISTS = 3
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

    def is_behind(self, best: Tried, tolerance: float) -> bool:
        """Tell whether it is surely further behind the best than by the tolerance, in points."""
        return self.behind(best, _DOUBT) > tolerance / 100

    def and_by(self, more: Tried) -> Tried:
        """Add how it did on other samples."""
        few, many = len(self.kept), len(self.kept) + len(more.kept)
        sops = (few * self.sops + (many - few) * more.sops) / many
        return Tried(self.options, torch.cat([self.kept, more.kept]), sops)

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
    """Samples of calibration data: some to adjust networks on, and others that are held out to judge them by.

    Args:
        options: All other options.
        convert: From options, and samples to adjust on, to a network.
        dnn: The DNN.
        samples: The samples, ``(B, ...)``, or ``(B, T, ...)`` where they have time.
        adjusted: How many samples to adjust on, at most one half; that if None.
        held_out: How many samples to judge by, at most; all others if None.
    """

    def __init__(
        self,
        options: Options,
        convert: Callable[[Options, Tensor], SpikingNetwork],
        dnn: nn.Module,
        samples: Tensor,
        adjusted: int | None = None,
        held_out: int | None = None,
    ) -> None:
        half = max(1, len(samples) // 2)
        half = half if adjusted is None else min(half, adjusted)
        self.convert, self.dnn, self.adjusted = convert, dnn, samples[:half]
        self.held = None if options.time_dim is None else 1  # dimension of time in the samples
        others = samples[half:] if len(samples) > 1 else samples
        others = others[:held_out]
        self.parts = (others[:_FIRST], *torch.split(others[_FIRST:], BATCH)) if len(others) > _FIRST else (others,)
        self.scores = self.scores_of(self.parts)

    def scores_of(self, parts: Iterable[Tensor]) -> Tensor:
        """Give the DNN's scores."""
        return torch.cat([self.dnn(mean_frame(part, self.held, dtype_of(self.dnn))) for part in parts])

    def network(self, options: Options) -> SpikingNetwork:
        """Convert, and adjust on the ones."""
        return self.convert(options, self.adjusted).eval()

    def judge(self, options: Options, network: SpikingNetwork, first: int = 0, last: int | None = None) -> Tried:
        """Run a network on the others, or on some of their parts."""
        counted = run_and_count(network, self.parts[first:last], self.held)
        begin = sum(map(len, self.parts[:first]))
        scores = self.scores[begin : begin + len(counted.outputs)]
        return Tried(options, kept(counted.outputs, scores), counted.sops)


def choose(
    options: Options,
    convert: Callable[[Options, Tensor], SpikingNetwork],
    dnn: nn.Module,
    samples: Tensor,
    enough: int,
    seen: int,
) -> Choice:
    """Take the cheapest candidate that keeps as much of the DNN as the best one does, within the tolerance.

    All are adjusted on few samples, and judged by a few others. Those that are surely behind the best one there, or
    keep no more than one that is cheaper, are left out, and so is what spikes still less; the best and the cheapest of
    the others are judged by more and more, until it is decided between them or there are enough; and :func:`cheapest`
    of these is taken.

    What is kept is measured against the DNN, :func:`kept`, and not against labels: the DNN was trained on these samples
    and is right on nearly all of them, and one label more or less is more noise than its own probability of it.

    Args:
        options: All other options.
        convert: As for :class:`Halves`, and so on.
        dnn: The DNN.
        samples: Samples of calibration data.
        enough: How many of them a network is adjusted on in the end.
        seen: How many there were in all, in proportion to which they may take time.
    """
    halves = Halves(
        options,
        convert,
        dnn,
        samples,
        max(_LEAST_ADJUSTED, int(_ADJUSTED * enough)),
        held_out_of(seen),
    )
    found: list[Tried] = []
    last: list[Tried] = []
    networks: dict[Options, SpikingNetwork] = {}  # of the finalists so far, as there may be no memory for all
    wanted = candidates(options)
    with progress("Trying thresholds", len(wanted) + 1) as step:
        for candidate in wanted:
            tried = replace(options, **candidate)
            step(tried.in_words())
            if any(
                one.is_behind(best_of(found), options.auto_tolerance) and has_higher(tried, one.options)
                for one in found
            ):
                continue
            networks[tried] = halves.network(tried)
            found.append(halves.judge(tried, networks[tried], 0, 1))
            last = finalists(found, options.auto_tolerance)
            networks = {one.options: networks[one.options] for one in last if one.options in networks}
        step("the best, on more samples")
        told = [one for one in found if all(one is not other for other in last)]
        for part in range(1, len(halves.parts)):
            if is_decided(last, options.auto_tolerance):
                break
            for index, one in enumerate(last):
                network = networks[one.options] = networks.get(one.options) or halves.network(one.options)
                last[index] = one.and_by(halves.judge(one.options, network, part, part + 1))
            best = best_of(last)
            told += [one for one in last if one.is_behind(best, options.auto_tolerance)]
            last = [one for one in last if not one.is_behind(best, options.auto_tolerance)]
    return Choice(cheapest(last, options.auto_tolerance).options, [one.told() for one in told + last])


def held_out_of(seen: int) -> int:
    """Tell how many samples the finalists are judged by at most, of so many that calibrate."""
    return max(_FIRST, min(_LAST, int(_OF_FEW * seen)), int(_OF_MANY * seen))


def is_decided(found: list[Tried], tolerance: float) -> bool:
    """Tell whether the cheapest is surely no further behind any other than by the tolerance, in points."""
    least = min(found, key=lambda one: one.sops)
    return all(one is least or least.behind(one, -_DOUBT) <= tolerance / 100 for one in found)


def has_higher(one: Options, other: Options) -> bool:
    """Tell whether all thresholds of one are those of another or above, as percentiles of the same activations are."""
    percents = [{"max": 100.0, "percentile": each.settled.percent}.get(str(each.threshold)) for each in (one, other)]
    known = [percent for percent in percents if percent is not None]
    return len(known) == 2 and known[0] >= known[1] and one.per_channel == other.per_channel


def best_of(found: list[Tried]) -> Tried:
    """Give what keeps the most."""
    return max(found, key=lambda one: one.mean)


def finalists(found: list[Tried], tolerance: float) -> list[Tried]:
    """Give the best one, and the cheapest of those that may be within the tolerance of it, in points."""
    best = best_of(found)
    able = [one for one in found if one is not best and not one.is_behind(best, tolerance)]
    cheap = [one for one in able if not any(other.sops < one.sops and other.mean >= one.mean for other in found)]
    return [*sorted(cheap, key=lambda one: one.sops)[: _FINALISTS - 1], best]


def cheapest(found: list[Tried], tolerance: float = 0.0) -> Tried:
    """Give the first with the fewest operations of those that are behind the best by the tolerance at most.

    Where that is less than a standard error, it may be as much again: what cannot be told apart is not worth
    operations, but few samples do not excuse more.

    Args:
        found: What was tried, on the same samples.
        tolerance: In points.
    """
    best, most = best_of(found), tolerance / 100

    def is_good(one: Tried) -> bool:
        return one.behind(best, 0.0) <= most or (one.behind(best, 1.0) <= 0 and one.behind(best, 0.0) <= 2 * most)

    return min(filter(is_good, found), key=lambda one: one.sops)


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
