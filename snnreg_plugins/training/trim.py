"""The last percents of a budget: thresholds scaled together at the end of a training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from snnreg_plugins.export.rebalance import Rebalance
from snnreg_plugins.metrics import SynapticOperations
from snnreg_plugins.spiking.network import SpikingNetwork
from snnreg_plugins.watching.hooks import Hooks, uncompiled


class Trim:
    r"""What a spiking network spends on some samples of training, and its thresholds, scaled until that fits.

    Counts of these samples differ from those of validation by a ratio g, which is told at each validation that counts
    the same weights. So thresholds are scaled until :math:`g C = B`, with C counted on the samples.

    Args:
        batches: Batches of samples to keep, the first ones of the training.
    """

    #: Least and largest factor of thresholds.
    RANGE = (0.7, 1.5)

    def __init__(self, batches: int) -> None:
        self.batches = batches
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.ratio = 1.0
        self._hooks: Hooks | None = None

    def watch(self, network: nn.Module) -> None:
        """Keep what a network is called with, until :meth:`unwatch`; does nothing where there is enough."""
        if len(self.calls) < self.batches:
            self._hooks = Hooks(many_steps=True)
            self._hooks.around(network, self._called, _nothing)

    @uncompiled
    def _called(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.add(*args, **kwargs)

    def add(self, *args: Any, **kwargs: Any) -> None:
        """Keep what a network is called with."""
        if len(self.calls) < self.batches:
            self.calls.append((tuple(map(_detached, args)), {name: _detached(it) for name, it in kwargs.items()}))

    def unwatch(self) -> None:
        """Look on no longer."""
        if self._hooks is not None:
            self._hooks.remove()
            self._hooks = None

    def count(self, network: SpikingNetwork) -> float:
        """Count SOPs/sample; the network is left as it is, and those who watch it see nothing."""
        return _count(copy.deepcopy(network).eval(), self.calls)

    def compare(self, network: SpikingNetwork, sops: float, over_processes: Callable[[float], float]) -> None:
        """Take what a validation has counted of a network.

        Args:
            network: The network.
            sops: SOPs/sample there.
            over_processes: Mean of a number over them.
        """
        if self.calls:
            here = over_processes(self.count(network))
            self.ratio = sops / here if here else 1.0

    def fit(
        self,
        network: SpikingNetwork,
        limit: float,
        tolerance: float,
        to_use_it: bool,
        over_processes: Callable[[float], float],
    ) -> dict[str, float] | None:
        """Scale the thresholds of a network, in place, where it spends more than a limit, or leaves much of it.

        Args:
            network: The network.
            limit: SOPs/sample of a validation.
            tolerance: Share of the limit within which it is left as it is.
            to_use_it: Whether it is to spend what it leaves.
            over_processes: Mean of a number over them.

        Returns:
            The factors by layer; None if the network is left as it is.
        """
        tried = copy.deepcopy(network).eval()
        rebalance = Rebalance(tried)
        if not (self.calls and rebalance.layers) or network.conversion.get("weights", "float") != "float":
            return None  # integers are made for the thresholds as they are

        def count() -> float:
            return self.ratio * over_processes(_count(tried, self.calls))

        excess = count() / limit - 1
        if excess <= tolerance and not (to_use_it and excess < -tolerance):
            return None
        # Its middle, as the ratio is not that of these thresholds.
        factors = rebalance.fit(count, (1 - tolerance / 3) * limit, *self.RANGE)
        if factors is not None:
            Rebalance(network).scale(factors)
        return factors


def _count(network: nn.Module, calls: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> float:
    # Of this process alone: others may have had fewer batches.
    with torch.no_grad(), torch.random.fork_rng(devices=[]), SynapticOperations(network, sync_on_compute=False) as sops:
        for args, kwargs in calls:
            network(*args, **kwargs)
        return float(sops.total("sops"))


def _detached(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def _nothing(*_: Any) -> None:
    """Look at no output."""
