"""An export that spends no more than a budget: fewer time steps, higher thresholds, or samples that leave early."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from snnreg_plugins._checks import shown
from snnreg_plugins._console import progress
from snnreg_plugins._models import eval_and_back
from snnreg_plugins.export.choose import BATCH, Halves, Tried, candidates, cheapest, has_classes
from snnreg_plugins.export.counted import run_and_count
from snnreg_plugins.export.margins import exit_margins
from snnreg_plugins.export.options import Options
from snnreg_plugins.export.rebalance import Rebalance
from snnreg_plugins.spiking.network import SpikingNetwork

#: Largest factor of thresholds: at one step and half a threshold to begin with, no spike is left beyond it.
MOST = 2.0


class Way(NamedTuple):
    """A way to spend no more than the budget.

    Args:
        tried: How it did.
        leaves_early: Whether samples leave early, in place of higher thresholds.
    """

    tried: Tried
    leaves_early: bool


def within_budget(
    options: Options, convert: Callable[[Options, Tensor], SpikingNetwork], dnn: nn.Module, samples: Tensor
) -> SpikingNetwork:
    """Export the network that agrees best with the DNN among those that spend no more than ``options.budget``.

    Time steps are those of the options, and half of them, down to 1. What spends too much there is tried with higher
    thresholds, and with margins at which samples leave. The ways are judged, by :func:`cheapest`, on samples that they
    were not adjusted on; the one that is taken is then adjusted on all, until the count of all is within the budget.

    Args:
        options: The options; with ``threshold="auto"`` all of its candidates are tried.
        convert: From options, and samples to adjust on, to a network.
        dnn: The DNN.
        samples: Samples of calibration data, as for :class:`Halves`.

    Raises:
        ValueError: If no way is within the budget; it tells the least that was counted.
    """
    return _Search(options, convert, dnn, samples).run()


class _Search:
    def __init__(
        self, options: Options, convert: Callable[[Options, Tensor], SpikingNetwork], dnn: nn.Module, samples: Tensor
    ) -> None:
        assert options.budget is not None
        self.options, self.budget, self.samples = options, options.budget, samples
        self.halves = Halves(options, convert, dnn, samples)
        self.least = torch.inf  # that was counted

    def run(self) -> SpikingNetwork:
        steps = self._timesteps()
        with progress("Within the budget", len(steps) * len(self._candidates(self.options)) + 1) as step:
            return self._cheapest([way for timesteps in steps for way in self._ways(timesteps, step)], step)

    def _cheapest(self, ways: list[Way], step: Callable[[str], None]) -> SpikingNetwork:
        while ways:
            best = cheapest([way.tried for way in ways])
            way = next(way for way in ways if way.tried is best)
            step(f"T = {way.tried.options.timesteps} on all samples")
            network = self._made(way)
            if network is not None:
                return network
            ways = [other for other in ways if other is not way]  # a few samples more were too much for it
        steps = self.options.timesteps
        raise ValueError(
            f"Expected argument `budget` to be at least {self.least:.6g}, the fewest SOPs/sample on calibration data "
            f"that time steps from {steps} down to 1 and thresholds up to {MOST:g} times theirs were found to leave, "
            f"but got {shown(self.budget)}. Raise it, or train with ActivityBudget(sops=...)."
        )

    def _timesteps(self) -> list[int]:
        steps = [self.options.timesteps]
        while steps[-1] > 1 and self.options.time_dim is None:  # else the data say it
            steps.append(steps[-1] // 2)
        return steps

    @staticmethod
    def _candidates(options: Options) -> list[Options]:
        if options.threshold != "auto":
            return [options]
        return [replace(options, **candidate) for candidate in candidates(options)]

    def _ways(self, timesteps: int, step: Callable[[str], None]) -> list[Way]:
        """Find ways at so many time steps."""
        judged = []
        for one in self._candidates(replace(self.options, timesteps=timesteps)):
            step(f"T = {timesteps}, {one.in_words()}")
            judged.append(self.halves.judge(one, self.halves.network(one)))
        ways = []
        for plain in judged:
            if any(other.sops < plain.sops and other.mean >= plain.mean for other in judged):
                continue  # there is a better one that is cheaper, too
            if plain.sops <= self.budget:
                ways.append(Way(plain, leaves_early=False))
                continue
            for leaves_early in (False, True):
                network = self.halves.network(plain.options)
                if self._brought(network, list(self.halves.parts), leaves_early):
                    ways.append(Way(self.halves.judge(plain.options, network), leaves_early))
        return ways

    def _brought(self, network: SpikingNetwork, parts: list[Tensor], leaves_early: bool) -> bool:
        """Bring a network within the budget on some samples; tell whether that worked."""
        if leaves_early:
            if network.timesteps == 1 or network.head is not None or not _has_classes(network, parts, self.halves.held):
                return False
            dim = network.time_dim
            try:
                network.exit_margins = exit_margins(
                    network, [part if dim is None else part.movedim(1, dim) for part in parts], 1.0, sops=self.budget
                )
            except ValueError:  # even one step costs more
                return False
            return True

        def count() -> float:
            spent = run_and_count(network, parts, self.halves.held).sops
            self.least = min(self.least, spent)
            return spent

        factors = Rebalance(network).fit(count, self.budget, 1.0, MOST)
        if factors is not None:
            network.conversion["threshold_factors"] = factors
        return factors is not None

    def _made(self, way: Way) -> SpikingNetwork | None:
        """Make the network of a way, adjusted on all samples; None if it spends too much there."""
        network = self.halves.convert(way.tried.options, self.samples)
        parts = list(torch.split(self.samples, BATCH))
        with eval_and_back(network):
            if not self._brought(network, parts, way.leaves_early):
                return None
            counted = run_and_count(network, parts, self.halves.held)
        scores = self.halves.scores_of(parts)
        network.conversion["sops"] = counted.sops
        if has_classes(scores):
            same = counted.outputs.argmax(1) == scores.argmax(1)
            network.conversion["agreement"] = float(same.double().mean())
        return network


def _has_classes(network: SpikingNetwork, parts: list[Tensor], held: int | None) -> bool:
    return has_classes(network(parts[0][:2], time_dim=held))
