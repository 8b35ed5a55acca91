"""Running thresholds of layers in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from snnreg_plugins.functional.penalties import robust_maximum


class RunningThresholds:
    r"""A threshold λ for each layer: the running mean of each batch's percentile of activity.

    .. math:: \lambda \leftarrow m \lambda + (1 - m) \cdot \mathrm{percentile}

    The first batch that a layer sees starts its λ.

    Args:
        percent: The percentile.
        momentum: m.
        values: λ by layer, of a training that goes on.
    """

    def __init__(self, percent: float, momentum: float, values: Mapping[str, Tensor] | None = None) -> None:
        self.percent, self.momentum = percent, momentum
        self.values: dict[str, Tensor] = dict(values or {})
        self._observed: dict[str, list[Tensor]] = {}
        self._fresh: set[str] = set()  # from the first batch of this process alone

    def look(self, name: str, activity: Tensor, steps: int = 1) -> Tensor:
        """Give the mean percentile of the time steps of what a layer reads; the first starts its λ if it has none."""
        levels = [robust_maximum(step, self.percent / 100) for step in activity.chunk(steps)]
        if name not in self.values:
            self.values[name] = levels[0].clone()
            self._fresh.add(name)
        return torch.stack(levels).mean() if steps > 1 else levels[0]

    def observe(self, name: str, level: Tensor) -> None:
        """Have a percentile count in the next move."""
        self._observed.setdefault(name, []).append(level)

    def of(self, name: str) -> Tensor:
        """Give λ of a layer that was looked at."""
        # A silent layer has λ = 0: nothing to divide by, nothing to push down.
        return self.values[name].clamp_min(torch.finfo(torch.float32).tiny)

    def move(self, names: list[str], sum_over_processes: Callable[[Tensor], Tensor] | None = None) -> None:
        """Move every λ towards the percentiles of this batch.

        Args:
            names: All layers, in the same order in all processes.
            sum_over_processes: Sums a tensor over processes, if there are several; all then have the same λ.
        """
        if not self.values:
            return
        missing = torch.full_like(next(iter(self.values.values())), float("nan"))
        seen = [torch.stack(self._observed[name]).mean() if name in self._observed else missing for name in names]
        levels = torch.stack(seen)
        if sum_over_processes is not None:
            # The mean over the processes that saw the layer.
            sums = torch.stack([levels.nan_to_num(0.0), (~levels.isnan()).to(levels)])
            levels, processes = sum_over_processes(sums)
            levels = levels / processes
        for name, level in zip(names, levels, strict=True):
            starts = name in self._fresh or name not in self.values
            if starts and not level.isnan():
                # Here too if only another process has seen the layer yet: all have the same λ.
                self.values.setdefault(name, level.clone()).copy_(level)
                self._fresh.discard(name)
            elif not starts:
                threshold = self.values[name]
                # In place, so that compiled code keeps its tensor and need not be compiled again.
                threshold.lerp_(torch.where(level.isnan(), threshold, level), 1 - self.momentum)
        self._observed.clear()
