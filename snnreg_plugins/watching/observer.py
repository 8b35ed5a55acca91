"""Who looks over the shoulder of a tally."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from snnreg_plugins.watching.steps import CallSteps


class Observer:
    """Who wants more of what a tally sees than its numbers; override what is wanted."""

    def arrived(self, name: str, layer: Any, x: Tensor, shape: tuple[int, ...], cost: tuple[int, int, int]) -> None:
        """See a synaptic layer's call.

        Args:
            name: The layer's name.
            layer: The layer.
            x: What counts as its input: the events, where that is an average of some.
            shape: Shape of one sample of it.
            cost: SOPs, effective and dense MACs.
        """

    def emitted(self, name: str, layer: nn.Module, spikes: Tensor, steps: CallSteps | None) -> None:
        """See what a neuron layer's call emits."""

    def multiplied(self, name: str) -> None:
        """See a product outside of layers."""

    def ended(self, counts: bool) -> None:
        """See the end of a pass, and whether it counts."""
