"""Averages of events, known by their memory, and over how many positions each goes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from snnreg_plugins.functional.synapses import is_integer_valued
from snnreg_plugins.watching.samples import Identity, identities

SEVERAL_SIZES = "what reads its averages of events, over windows of several sizes, counts as MACs"
# Over how many positions, and whether no module made it, so that only a close look finds it.
Average = tuple[int, bool]


class Averages:
    """Averages of events, known by their memory, with the number of positions that each was averaged over."""

    def __init__(self) -> None:
        self._known: dict[Identity, Average] = {}

    def __len__(self) -> int:
        return len(self._known)

    def remember(self, x: Tensor, output: Tensor, size: int | None, hidden: bool) -> bool:
        """Remember that ``output`` is the mean of ``size`` positions of ``x``, if that holds events or means of them.

        Returns:
            False if the size is None, which is not known how to undo.
        """
        before = self.find(x)
        if not is_integer_valued(self.events(x)):
            return True
        if size is not None and size * (before or (1,))[0] > 1:
            self._add(output, size * (before or (1,))[0], hidden or (before is not None and before[1]))
        return size is not None

    def _add(self, output: Tensor, size: int, hidden: bool) -> None:
        expired = [identity for identity in self._known if identity[0].expired()]
        for identity in expired:
            del self._known[identity]
        for identity in identities(output):
            self._known[identity] = size, hidden

    def find(self, x: Tensor) -> Average | None:
        """Tell what is known about a tensor."""
        for identity in identities(x) if self._known else ():
            return self._known.get(identity)
        return None

    def sizes(self) -> set[int]:
        """Return the numbers of positions that were averaged over."""
        return {size for size, _ in self._known.values()}

    def events(self, x: Tensor) -> Tensor:
        """Return the events whose average ``x`` is; ``x`` itself if it is none."""
        known = self.find(x)
        return x if known is None else (x.detach() * known[0]).round()

    def __getstate__(self) -> dict[str, Any]:
        return {"_known": {}}  # memory is of this process alone


#: Modules that average over windows.
AVERAGE_POOLS = (
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
)


def averaged_over(pool: nn.Module, x: Tensor, output: Tensor) -> int | None:
    """Count the positions that each output of an average pool is the mean of; None if that differs."""
    return positions_of(x, output, vars(pool), 1 + AVERAGE_POOLS.index(_first_of(AVERAGE_POOLS, pool)) % 3)


def _first_of(classes: tuple[type[nn.Module], ...], module: nn.Module) -> type[nn.Module]:
    return next(each for each in classes if isinstance(module, each))


def positions_of(x: Tensor, output: Tensor, given: Mapping[str, Any], spatial: int) -> int | None:
    """Count the same of an operation with these arguments, over so many spatial dimensions; a plain mean has none."""
    if "kernel_size" in given:
        return _window(given, spatial)
    if spatial:  # adaptive, not a plain mean
        dims = range(-min(3, x.dim()), 0)
        if any(x.shape[dim] % output.shape[dim] for dim in dims):
            return None
    return x.numel() // max(1, output.numel())


def _window(given: Mapping[str, Any], spatial: int) -> int | None:
    if given.get("divisor_override"):
        return int(given["divisor_override"])
    kernel, padding = given["kernel_size"], given["padding"]
    pads = any(padding) if isinstance(padding, (tuple, list)) else padding > 0
    if given["ceil_mode"] or (pads and not given["count_include_pad"]):
        return None
    sizes = [int(size) for size in kernel] if isinstance(kernel, (tuple, list)) else [int(kernel)]
    return math.prod(sizes * spatial if len(sizes) == 1 else sizes)
