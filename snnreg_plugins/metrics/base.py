"""What the cost metrics share: watching a model, integer state per layer, the samples seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from typing_extensions import Self

from snnreg_plugins.probes import SampleCounter


class WatchingMetric(Metric):
    """A metric that is built on a model and counts in its forward passes by itself.

    A subclass names the ``quantities`` that it counts in each layer and counts them with hooks that add to
    ``self._pending``. State is int64 and of fixed shape, so it adds up exactly over passes and processes, also
    over one that saw no batch.

    Args:
        model: The model to watch. It is not made part of the metric's own state or parameters.
        layers: Watched layers by name.
        batch_dim: Dimension of the batch in the model's input; 1 for input of shape ``(T, B, ...)``.
        kwargs: See ``torchmetrics.Metric``.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    plot_lower_bound = 0.0

    quantities: ClassVar[tuple[str, ...]]
    counts: Tensor
    samples: Tensor

    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Module], batch_dim: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Hidden from nn.Module in a tuple: the model is no part of the metric.
        self._layers = tuple(layers.items())
        self._index = {layer: index for index, (_, layer) in enumerate(self._layers)}
        self._pending = [[0] * len(self.quantities) for _ in self._layers]
        self._seen = 0
        self.add_state("counts", torch.zeros(len(layers), len(self.quantities), dtype=torch.int64), "sum")
        self.add_state("samples", torch.tensor(0), "sum")
        self._counter = SampleCounter(model, layers, self._on_pass, batch_dim)

    @property
    def layers(self) -> list[str]:
        """Names of the watched layers."""
        return [name for name, _ in self._layers]

    def _on_pass(self) -> None:
        seen = self._counter.samples()
        self.update(self._pending, seen - self._seen)
        self._seen = seen
        self._pending = [[0] * len(self.quantities) for _ in self._layers]

    def update(self, counts: list[list[int]], samples: int) -> None:
        """Add what a forward pass counted; the hooks call this.

        Args:
            counts: One row per layer with one integer per quantity.
            samples: New samples.
        """
        self.counts += torch.tensor(counts, device=self.counts.device)
        self.samples += samples

    def reset(self) -> None:
        """Forget all counts; the next forward pass brings new samples."""
        super().reset()
        self._counter.reset()
        self._seen = 0

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

    def _column(self, quantity: str) -> Tensor:
        """One quantity of every layer, over all processes; float64, which holds every count below 2**53."""
        if quantity not in self.quantities:
            raise ValueError(f"Expected argument `quantity` to be one of {self.quantities}, but got {quantity!r}.")
        self._require_samples()
        return self.counts[:, self.quantities.index(quantity)].double()

    def _require_samples(self) -> None:
        if not self.counts.any() and not self.samples:
            raise RuntimeError(
                f"{type(self).__name__} has seen no forward pass of its model since it was built or reset. Run the "
                "model it was built on; if that was compiled before, call torch._dynamo.reset() first."
            )
