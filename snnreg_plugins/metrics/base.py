"""What the cost metrics share: watching a model, integer state per layer, the samples seen."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from copy import deepcopy
from operator import add
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from typing_extensions import Self

from snnreg_plugins._pictures import plot_layers
from snnreg_plugins.watching.hooks import Hooks
from snnreg_plugins.watching.samples import SampleCounter


class WatchingMetric(Metric):
    """A metric that is built on a model and counts in its forward passes by itself.

    A subclass names the ``quantities`` that it counts in each layer and counts them with hooks that add to
    ``self._pending``. Passes add up as integers of Python, which takes next to no time, and are written to the state
    when that is read. It is int64 and of fixed shape, so it adds up exactly over processes, also over one that saw
    no batch.

    Args:
        model: The model to watch. It is not made part of the metric's own state or parameters.
        layers: Watched layers by name.
        batch_dim: Dimension of the batch in the model's input; 1 for input of shape ``(T, B, ...)``.
        owners: Further modules by name that have a row of counts, and that no hook watches.
        kwargs: See ``torchmetrics.Metric``.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    plot_lower_bound = 0.0

    quantities: ClassVar[tuple[str, ...]]
    #: Whether the hooks know that a call may hold several time steps.
    many_steps: ClassVar[bool] = False

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Module],
        batch_dim: int,
        owners: Mapping[str, nn.Module] | None = None,
        **kwargs: Any,
    ) -> None:
        # Without the cache of computed values: a process that saw no new batch would use it where the others add up.
        super().__init__(**kwargs | {"compute_with_cache": False})
        # Hidden from nn.Module in tuples: the model is no part of the metric.
        self._watched = (model, tuple(layers.items()), batch_dim)
        rows = dict(layers) | dict(owners or {})
        self._rows = tuple(rows)
        self._index = {layer: index for index, layer in enumerate(rows.values())}
        self._forget()
        self.add_state("counts", torch.zeros(len(rows), len(self.quantities), dtype=torch.int64), "sum")
        self.add_state("samples", torch.tensor(0), "sum")
        self._watch()

    def _watch(self) -> None:
        model, layers, batch_dim = self._watched
        self._counter = self._count_samples(model, dict(layers), batch_dim)
        for _, layer in layers:
            self._attach(self._counter.hooks, layer)

    def _count_samples(self, model: nn.Module, layers: dict[str, nn.Module], batch_dim: int) -> SampleCounter:
        return SampleCounter(model, layers, self._on_pass, batch_dim, many_steps=self.many_steps)

    def _forget(self) -> None:
        """Forget all that is not yet written."""
        self._pending = self._nothing()  # of the pass under way
        self._passed: tuple[list[list[int]], int] | None = None  # counts and samples of the passes before it

    def _nothing(self) -> list[list[int]]:
        return [[0] * len(self.quantities) for _ in self._index]

    @abstractmethod
    def _attach(self, hooks: Hooks, layer: Any) -> None:
        """Hook what counts in a layer."""

    @property
    def layers(self) -> list[str]:
        """Names of the watched layers."""
        return [name for name, _ in self._watched[1]]

    def _on_pass(self, samples: int | None) -> None:
        if samples is not None:
            counts, before = self._passed or (self._nothing(), 0)
            for row, new in zip(counts, self._pending, strict=True):
                row[:] = map(add, row, new)
            self._passed = counts, before + samples
        self._pending = self._nothing()

    def _write(self) -> None:
        if self._passed is not None:
            (counts, samples), self._passed = self._passed, None
            self.update(counts, samples)

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
        return self._passed is not None or super().update_called

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
        self._forget()
        super().reset()
        self._counter.reset()

    def clone(self) -> Self:
        """Copy the metric; the copy watches the same model, where a deep copy takes a copy of the model along."""
        shared = (self._watched, self._index, self._counter)
        copy: Self = deepcopy(self, {id(part): part for part in shared})
        copy._watch()
        return copy

    def close(self) -> None:
        """Stop watching the model and take all hooks off it; what was counted stays."""
        self._counter.hooks.remove()

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
        values: Any = getattr(self, "by_layer")()  # noqa: B009
        return plot_layers(values, f"{type(self).__name__} by layer", getattr(self, "plot_unit", ""), ax)

    def _gathered(self, value: Any) -> list[Any]:
        """Collect what each process has, of what is no tensor of fixed shape."""
        if not self._to_sync or not self.distributed_available_fn():
            return [value]
        values = [None] * torch.distributed.get_world_size(self.process_group)
        torch.distributed.all_gather_object(values, value, group=self.process_group)
        return values

    def _totals(self) -> tuple[dict[str, Tensor], Tensor]:
        """Each quantity of every layer (float64 holds counts below 2**53), and the samples; over all processes."""
        if self._is_synced:  # as it is within compute()
            counts, samples = self.counts, self.samples
        else:
            with self.sync_context(self.dist_sync_fn, should_sync=self._to_sync):
                counts, samples = self.counts, self.samples
        if not counts.any() and not samples:
            raise RuntimeError(
                f"{type(self).__name__} has seen no forward pass of its model since it was built or reset. Run the "
                "model it was built on; if that was compiled before, call torch._dynamo.reset() first."
            )
        if counts.device.type == "mps":  # which has no float64
            counts, samples = counts.cpu(), samples.cpu()
        return dict(zip(self.quantities, counts.double().unbind(1), strict=True)), samples
