"""Counts split by the labels of samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import add
from typing import Any, TypeAlias

from torch import Tensor

from snnreg_plugins.watching.fan_outs import fan_out_of
from snnreg_plugins.watching.observer import Observer

#: By label: samples, SOPs, effective and dense MACs.
ByLabel: TypeAlias = dict[Any, list[int]]


class Labels(Observer):
    """Splits what a tally counts by label, in the passes that it observes.

    Args:
        batch_dim: Dimension of the batch in a layer's input.
    """

    def __init__(self, batch_dim: int) -> None:
        self.batch_dim = batch_dim
        self.forget()

    def forget(self) -> None:
        """Forget all, the labels too."""
        self.labels: list[Any] = []
        self.by_label: ByLabel = {}
        #: Whether there was something that does not split.
        self.unsplit = False
        self._costs: list[list[int]] = []  # of each sample in the pass under way

    def tell(self, labels: Tensor | Sequence[Any]) -> None:
        """Tell the labels of the samples in the passes to come."""
        self.labels = labels.tolist() if isinstance(labels, Tensor) else list(labels)
        for label in self.labels:
            self.by_label.setdefault(label, [0] * 4)[0] += 1

    def arrived(self, name: str, layer: Any, x: Tensor, shape: tuple[int, ...], cost: tuple[int, int, int]) -> None:
        """Split the cost of a layer's input."""
        samples = len(self.labels)
        inputs = x.numel() // max(1, math.prod(shape))
        if not samples or inputs % samples:
            raise ValueError(
                f"Expected argument `labels` to have a label for each sample, but got {samples} and a layer's input of "
                f"shape {tuple(x.shape)}."
            )
        is_real = cost[1] > 0
        magnitudes = (x != 0).double() if is_real else x.detach().abs().double()
        costs = (magnitudes * fan_out_of(layer, shape).to(x.device)).reshape(inputs, -1).sum(1)
        costs = costs.reshape(samples, -1).sum(1) if self.batch_dim == 0 else costs.reshape(-1, samples).sum(0)
        self._costs.extend([0] * 3 for _ in range(samples - len(self._costs)))
        for row, number in zip(self._costs, costs.tolist(), strict=True):
            row[is_real] += int(number)
            row[2] += cost[2] // samples

    def multiplied(self, name: str) -> None:
        """Remember that something does not split."""
        self.unsplit = True

    def ended(self, counts: bool) -> None:
        """Keep what the pass cost, if it counts."""
        for label, costs in zip(self.labels, self._costs, strict=False) if counts else ():
            tally = self.by_label[label]
            tally[1:] = map(add, tally[1:], costs)
        self._costs = []
