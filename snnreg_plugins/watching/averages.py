"""Over how many positions averages go."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

#: Why a pool is not undone.
SEVERAL_SIZES = "what reads its averages of events, over windows of several sizes, counts as MACs"

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
