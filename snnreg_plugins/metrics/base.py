"""What the cost metrics share: watching a model, integer state per layer, the samples seen."""

from __future__ import annotations

import weakref
from abc import abstractmethod
from copy import deepcopy
from operator import sub
from typing import Any, ClassVar
from uuid import uuid4

import torch
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import Self

from snnreg_plugins import _lightning
from snnreg_plugins._checks import as_integer
from snnreg_plugins._models import is_copied_along
from snnreg_plugins._pictures import plot_layers
from snnreg_plugins.watching.counts import added, total
from snnreg_plugins.watching.watch import Watch


class WatchingMetric(Metric):
    """A metric that is built on a model and counts in its forward passes by itself.

    It does what other metrics of torchmetrics do, in collections and trackers too: predictions and targets that are
    given to it are ignored, as what counts are the passes of the model. A deep copy watches the same model, or the copy
    of it where that is copied along. One that is dropped without :meth:`close` comes off its model.

    What counts is a :class:`~snnreg_plugins.watching.watch.Watch`, in integers of Python; they are written to the
    state when that is read. The state is int64 and of fixed shape, so it adds up exactly over processes, also over one
    that saw no batch.

    Args:
        watch: Who watches the model. Neither is made part of the metric's own state or parameters.
        counted: Quantities of the watch that are counted; those of the class if None.
        kwargs: See ``torchmetrics.Metric``.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    plot_lower_bound = 0.0
    plot_unit = ""

    #: What is counted of each layer: quantities of the watch.
    quantities: ClassVar[tuple[str, ...]]
    _counts: Tensor
    _samples: Tensor

    def __init__(self, watch: Watch, counted: tuple[str, ...] | None = None, **kwargs: Any) -> None:
        # Without the cache of computed values: a process that saw no new batch would use it where the others add up.
        super().__init__(**kwargs | {"compute_with_cache": False})
        self.watch = watch
        self._counted = self.quantities if counted is None else counted
        self._columns = [watch.column(quantity) for quantity in self._counted]
        self._start()
        self.add_state("counts", torch.zeros(len(watch.names), len(self._counted), dtype=torch.int64), "sum")
        self.add_state("samples", torch.tensor(0), "sum")
        # A collection takes metrics for one whose states are the same by name and value, as those of two models may be.
        self.add_state(f"only_of_{uuid4().hex}", torch.tensor(0), "sum")
        watch.open()
        self._be_droppable()

    def _be_droppable(self) -> None:
        """Have the model let go of this when nobody else holds it."""
        for wrapper in ("update", "compute"):  # they hold the metric, which would be dropped only some time later
            vars(self).pop(wrapper, None)
        weakref.finalize(self, self.watch.close).atexit = False

    def _start(self) -> None:
        """Begin with what the watch has not counted yet."""
        self._written = [[0] * len(self._counted) for _ in self.watch.names], 0, self.watch.version

    @property
    def layers(self) -> list[str]:
        """Names of the watched layers."""
        return list(self.watch.layers)

    def _write(self) -> None:
        counts, samples, version = self._written
        if self.watch.version != version:
            now = [[row[column] for column in self._columns] for row in self.watch.totals()]
            self._written = now, self.watch.samples, self.watch.version
            new = [list(map(sub, *rows)) for rows in zip(now, counts, strict=True)]
            # Not in place: a state that was reset in inference mode cannot be written to after it.
            self._counts = self._counts + torch.tensor(new, device=self._counts.device)
            self._samples = self._samples + (self.watch.samples - samples)

    def update(self, *_: Any, **__: Any) -> None:
        """Tell that a batch is over; arguments are ignored.

        There is no need to: forward passes count by themselves, all of them. From the first call of this on, those
        count that ran since any metric on the model was told before: a metric that is told of training batches, and
        another one of those in validation, have numbers of their own.
        """
        self.watch.claim()

    def forward(self, *_: Any, **__: Any) -> Any:
        """Tell that a batch is over, as :meth:`update` does, and return the value of its passes.

        Raises:
            RuntimeError: If there was no new sample: of a model that is stepped from outside, call this once a batch.
        """
        self.update()
        kept, to_sync = (self.counts, self.samples), _lightning.syncs(self)
        try:
            with self.watch.only_this_window():
                now = [[row[column] for column in self._columns] for row in self.watch.totals()]
                self.counts = torch.tensor(now, device=kept[0].device).reshape(kept[0].shape)
                self.samples = torch.tensor(self.watch.samples, device=kept[1].device)
                if not self.watch.samples:
                    raise RuntimeError(
                        f"{type(self).__name__} has seen no new sample of its model since the last batch. Run the "
                        "model before you call the metric, for all of its time steps."
                    )
                self._to_sync = self.dist_sync_on_step
                self._forward_cache = self.compute()
        finally:
            self.counts, self.samples = kept
            self._to_sync = to_sync
        return self._forward_cache

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
        """Copy the metric; the copy watches the same model."""
        copy = deepcopy(self)
        if not copy.watch.is_open:
            copy.watch.open()
        return copy

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        along = is_copied_along(self.watch.model, memo, WatchingMetric)
        state = deepcopy(self.__getstate__(), memo if along else memo | self.watch.shared())
        copy: Self = type(self).__new__(type(self))
        memo[id(self)] = copy
        copy.__setstate__(state)
        done = None if along else _lightning.tracked_before()
        for metric in done or ():
            if isinstance(metric, WatchingMetric):
                metric.close()
        if done is not None:  # a step of its own
            copy.reset()
        if not along and (self.watch.is_open or done is not None):
            copy.watch.open()
        return copy

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._be_droppable()

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
        return dict(zip(self._counted, counts.double().unbind(1), strict=True)), samples
