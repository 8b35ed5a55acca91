"""Synaptic operations and energy of a model's forward passes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from snnreg_plugins.functional.energy import EnergyTable, energy, energy_table
from snnreg_plugins.functional.synapses import Synapses, SynapticLayer, fan_out, sample_shape
from snnreg_plugins.metrics.base import WatchingMetric
from snnreg_plugins.probes import Hooks, synaptic_layers

# Input shapes of a layer, on average, whose fan-out is kept at most.
_SHAPES = 8


class SynapticOperations(WatchingMetric):
    r"""Synaptic operations per sample, with effective and dense MACs beside them; exact.

    .. math:: \text{SOPs} = \frac{1}{N} \sum_\text{layers} \sum_i \text{events}_i \cdot \text{fan\_out}_i

    The metric is built on a model, watches the input of every synaptic layer (Linear, Conv1d/2d/3d,
    ConvTranspose1d/2d/3d) and counts by itself: just run the model. Integer-valued input is a count of events
    and gives SOPs. Any other input (the first layer's image, a DNN's activations, averaged spikes) is real and
    gives effective MACs: one per non-zero input and synapse. Dense MACs count every input at every call of a
    layer. Weights inside other modules (Norse's recurrent cells, attention) are not counted.

    Stepping the model through time from outside counts each sample once, if its states are reset between batches.
    Every pass counts, that of a training batch too: to log it in validation, reset it in
    ``on_validation_epoch_start``.

    - ``compute()``: SOPs/sample, a float64 scalar.
    - ``total(quantity)``: the same for ``"sops"``, ``"effective_macs"`` or ``"dense_macs"``.
    - ``by_layer(quantity)``: the same for each layer, by name.

    Args:
        model: The model to watch.
        batch_dim: Dimension of the batch in the model's input; 1 for input of shape ``(T, B, ...)``.
        kwargs: See ``torchmetrics.Metric``.

    Raises:
        ValueError: If the model has no synaptic layer.
        RuntimeError: On ``compute()``, if no forward pass was seen.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> with SynapticOperations(model) as sops:
        ...     _ = model(torch.tensor([[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]]))
        >>> sops.by_layer()["0"]  # (2 + 1) events to 8 outputs each, for 2 samples
        12.0
        >>> sops.total("dense_macs")
        tensor(56., dtype=torch.float64)
    """

    quantities = ("sops", "effective_macs", "dense_macs")
    plot_unit = "SOPs / sample"

    def __init__(self, model: nn.Module, batch_dim: int = 0, **kwargs: Any) -> None:
        layers = synaptic_layers(model)
        if not layers:
            raise ValueError(
                "Expected argument `model` to have a synaptic layer (Linear, Conv1d/2d/3d, ConvTranspose1d/2d/3d), "
                f"but {type(model).__name__} has none."
            )
        self._synapses: dict[Any, Synapses] = {}
        self._real = [True] * len(layers)
        super().__init__(model, layers, batch_dim, **kwargs)

    def _attach(self, hooks: Hooks, layer: SynapticLayer) -> None:
        hooks.before(layer, self._observe)

    def _observe(self, layer: SynapticLayer, args: tuple[Tensor, ...]) -> None:
        x = args[0]
        index = self._index[layer]
        key = (index, sample_shape(layer, x))
        if key not in self._synapses:
            if len(self._synapses) >= _SHAPES * len(self._index):  # inputs of ever new sizes
                self._synapses.clear()
            self._synapses[key] = Synapses(layer, fan_out(layer, key[1]))
        numbers = self._synapses[key].count(x, real=self._real[index])
        self._real[index] = numbers[1] > 0
        for quantity, number in enumerate(numbers):
            self._pending[index][quantity] += number
        self._counter.called(layer, args)

    def compute(self) -> Tensor:
        """Return SOPs/sample."""
        return self._per_sample("sops")[1]

    def total(self, quantity: str = "sops") -> Tensor:
        """Return ``"sops"``, ``"effective_macs"`` or ``"dense_macs"`` per sample, over all layers."""
        return self._per_sample(quantity)[1]

    def by_layer(self, quantity: str = "sops") -> dict[str, float]:
        """Return ``"sops"``, ``"effective_macs"`` or ``"dense_macs"`` per sample, for each layer by name."""
        return dict(zip(self.layers, self._per_sample(quantity)[0].tolist(), strict=True))

    def _per_sample(self, quantity: str) -> tuple[Tensor, Tensor]:
        """A quantity of each layer, and of all."""
        totals, samples = self._totals()
        if quantity not in totals:
            raise ValueError(f"Expected argument `quantity` to be one of {sorted(totals)}, but got {quantity!r}.")
        return totals[quantity] / samples, totals[quantity].sum() / samples


class Energy(SynapticOperations):
    r"""Energy of the synaptic arithmetic, in J per sample.

    .. math:: E = 10^{-12} \sum_\text{layers} \left(\text{SOPs} \cdot e_{AC} + \text{MACs} \cdot e_{MAC}\right)

    An estimate from published energies per operation: no memory access, no neuron updates, no static power.

    Args:
        model: The model to watch.
        table: pJ per operation: a name in ``functional.ENERGY_TABLES``, or an ``EnergyTable`` of your own.
        dense: Count dense instead of effective MACs: hardware that skips no zeros. SOPs are then 0.
        batch_dim: Dimension of the batch in the model's input; 1 for input of shape ``(T, B, ...)``.
        kwargs: See ``torchmetrics.Metric``.

    Raises:
        ValueError: If the model has no synaptic layer, or the table's name is unknown.
        RuntimeError: On ``compute()``, if no forward pass was seen.

    Example:
        >>> import torch
        >>> model = nn.Linear(10, 100)
        >>> with Energy(model, table="horowitz_fp32") as joule:
        ...     _ = model(torch.full((1, 10), 0.5))
        >>> f"{joule.compute():.2e}"  # 1000 MACs of 4.6 pJ
        '4.60e-09'
    """

    plot_unit = "J / sample"

    def __init__(
        self,
        model: nn.Module,
        table: str | EnergyTable = "horowitz_fp32",
        dense: bool = False,
        batch_dim: int = 0,
        **kwargs: Any,
    ) -> None:
        self.table = energy_table(table)
        self.dense = dense
        super().__init__(model, batch_dim, **kwargs)

    def compute(self) -> Tensor:
        """Return J/sample."""
        return self.total()

    def total(self, quantity: str = "energy") -> Tensor:
        """Return J/sample (or, as :class:`SynapticOperations`, a count) over all layers."""
        return super().total(quantity)

    def by_layer(self, quantity: str = "energy") -> dict[str, float]:
        """Return J/sample (or, as :class:`SynapticOperations`, a count) for each layer by name."""
        return super().by_layer(quantity)

    def _totals(self) -> tuple[dict[str, Tensor], Tensor]:
        totals, samples = super()._totals()
        sops, macs = totals["sops"], totals["effective_macs"]
        if self.dense:
            sops, macs = torch.zeros_like(sops), totals["dense_macs"]
        return totals | {"energy": energy(sops, macs, self.table)}, samples
