"""Small inputs that are known to hold events, held to be counted at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from snnreg_plugins.watching.steps import CallSteps

# Values of inputs that are held at most, to be counted at once: small ones take as long as large ones.
_HELD = 2**18


class Alike(NamedTuple):
    """Inputs of one layer, shape and steps.

    Args:
        row: The layer's row.
        call: The steps that each holds.
        inputs: The inputs.
    """

    row: int
    call: CallSteps
    inputs: list[Tensor]


class Held:
    """Inputs of passes that count, and of the one under way."""

    def __init__(self) -> None:
        self._pass: list[tuple[int, CallSteps, Tensor]] = []
        self._before: list[tuple[int, CallSteps, Tensor]] = []
        self._size = 0

    def add(self, row: int, call: CallSteps, x: Tensor) -> bool:
        """Hold an input of the pass under way; False if it is too large."""
        if x.numel() * 8 > _HELD:
            return False
        self._pass.append((row, call, x.detach()))
        return True

    def end_pass(self, counts: bool) -> bool:
        """End the pass, and tell whether it is time to count."""
        if self._pass and counts:
            self._before += self._pass
            self._size += sum(x.numel() for _, _, x in self._pass)
        self._pass.clear()
        return self._size > _HELD

    def take(self) -> Iterator[Alike]:
        """Give what is held of passes that count, and hold it no longer."""
        alike: dict[tuple[int, CallSteps, torch.Size], list[Tensor]] = {}
        for row, call, x in self._before:
            alike.setdefault((row, call, x.shape), []).append(x)
        self._before, self._size = [], 0
        for (row, call, _), inputs in alike.items():
            yield Alike(row, call, inputs)
