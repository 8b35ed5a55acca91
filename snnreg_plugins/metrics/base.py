"""What the cost metrics share: watching a model, integer state per layer, the samples seen."""

from __future__ import annotations

from abc import abstractmethod
from copy import deepcopy
from operator import sub
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import Self

from snnreg_plugins import _lightning
from snnreg_plugins._checks import as_integer
from snnreg_plugins._pictures import plot_layers
from snnreg_plugins.watching.counts import added, total
from snnreg_plugins.watching.watch import Watch


class WatchingMetric(Metric):
    """A metric that is built on a model and counts in its forward passes by itself.

    What counts is a :class:`~snnreg_plugins.watching.watch.Watch`, in integers of Python; they are written to the
    state when that is read. The state is int64 and of fixed shape, so it adds up exactly over processes, also over one
    that saw no batch.

    Args:
        watch: Who watches the model. Neither is made part of the metric's own state or parameters.
        kwargs: See ``torchmetrics.Metric``.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    plot_lower_bound = 0.0
    plot_unit = ""

    #: What is counted of each layer: quantities of the watch.
    quantities: ClassVar[tuple[str, ...]]

    def __init__(self, watch: Watch, **kwargs: Any) -> None:
        # Without the cache of computed values: a process that saw no new batch would use it where the others add up.
        super().__init__(**kwargs | {"compute_with_cache": False})
        self.watch = watch
        self._columns = [watch.column(quantity) for quantity in self.quantities]
        self._start()
        self.add_state("counts", torch.zeros(len(watch.names), len(self.quantities), dtype=torch.int64), "sum")
        self.add_state("samples", torch.tensor(0), "sum")
        watch.open()

    def _start(self) -> None:
        """Begin with what the watch has not counted yet."""
        self._written = [[0] * len(self.quantities) for _ in self.watch.names], 0, 0

    @property
    def layers(self) -> list[str]:
        """Names of the watched layers."""
        return list(self.watch.layers)

    def _write(self) -> None:
        counts, samples, passes = self._written
        if self.watch.passes > passes:
            now = [[row[column] for column in self._columns] for row in self.watch.totals()]
            self._written = now, self.watch.samples, self.watch.passes
            new = [list(map(sub, *rows)) for rows in zip(now, counts, strict=True)]
            self.update(new, self.watch.samples - samples)

    def update(self, counts: list[list[int]], samples: int) -> None:
        """Add what forward passes counted; this happens by itself.

        Args:
            counts: One row per layer with one integer per quantity.
            samples: New samples.
        """
        # Not in place: a state that was reset in inference mode cannot be written to after it.
        self.counts = self.counts + torch.tensor(counts, device=self.counts.device)
        self.samples = self.samples + samples

    @property
    def update_called(self) -> bool:
        """Whether a forward pass was seen since the metric was built or reset."""
        return self.watch.passes > 0 or super().update_called

    @property
    def counts(self) -> Tensor:
        """One row per layer with one integer per quantity."""
        self._write()
        return self._counts

    @counts.setter
    def counts(self, value: Tensor) -> None:
        self._counts = value

    @property
    def samples(self) -> Tensor:
        """Number of samples."""
        self._write()
        return self._samples

    @samples.setter
    def samples(self, value: Tensor) -> None:
        self._samples = value

    def reset(self) -> None:
        """Forget all counts; the next forward pass brings new samples."""
        self.watch.reset()
        self._start()
        super().reset()

    def clone(self) -> Self:
        """Copy the metric; the copy watches the same model, where a deep copy takes a copy of the model along."""
        copy: Self = deepcopy(self, self.watch.shared())
        copy.watch.open()
        return copy

    def close(self) -> None:
        """Stop watching the model and take all hooks off it; what was counted stays."""
        self.watch.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def set_dtype(self, dst_type: str | torch.dtype) -> Self:
        """Do nothing: counts are integers."""
        return self

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw each layer as a bar; or one value or a list of them, as torchmetrics does.

        Args:
            val: What ``compute()`` gave, once or several times; None for the layers.
            ax: Axes of matplotlib to draw on; new ones if None.

        Returns:
            The figure and the axes.

        Raises:
            ModuleNotFoundError: If matplotlib is missing.
        """
        if val is not None:
            return self._plot(val, ax)
        return plot_layers(self.by_layer(), f"{type(self).__name__} by layer", self.plot_unit, ax)

    @abstractmethod
    def by_layer(self, quantity: str = "") -> dict[str, Any]:
        """Return what was counted of each layer, by name."""

    def _gathered(self, value: Any) -> list[Any]:
        """Collect what each process has, of what is no tensor of fixed shape."""
        if not _lightning.syncs(self) or not self.distributed_available_fn():
            return [value]
        values = [None] * torch.distributed.get_world_size(self.process_group)
        torch.distributed.all_gather_object(values, value, group=self.process_group)
        return values

    def _totals(self, steps: int | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """Each quantity of every row (float64 holds counts below 2**53), and the samples; over all processes.

        Args:
            steps: Number of time steps to take, the first ones; all if None.
        """
        if _lightning.is_synced(self):  # as it is within compute()
            counts, samples = self.counts, self.samples
        else:
            with self.sync_context(self.dist_sync_fn, should_sync=_lightning.syncs(self)):
                counts, samples = self.counts, self.samples
        if not counts.any() and not samples:
            raise RuntimeError(
                f"{type(self).__name__} has seen no forward pass of its model since it was built or reset. Run the "
                "model it was built on; if that was compiled before, call torch._dynamo.reset() first."
            )
        if counts.device.type == "mps":  # which has no float64
            counts, samples = counts.cpu(), samples.cpu()
        if steps is not None:
            steps = as_integer("steps", steps)
            table = added(self._gathered(self.watch.table()))
            rows = range(len(self.watch.names))
            firsts = [[total(table, row, column, steps) for column in self._columns] for row in rows]
            counts = torch.tensor(firsts, device=counts.device)
        return dict(zip(self.quantities, counts.double().unbind(1), strict=True)), samples
