"""Spike rate of a model's neurons."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from snnreg_plugins.functional.synapses import count_events
from snnreg_plugins.metrics.base import WatchingMetric
from snnreg_plugins.watching.hooks import Hooks, uncompiled
from snnreg_plugins.watching.layers import neuron_layers


class SpikeRate(WatchingMetric):
    r"""Spikes per neuron and time step; exact.

    .. math:: r = \frac{\sum_\text{layers} \text{spikes}}{\sum_\text{layers} \text{neurons} \cdot \text{steps}}

    The metric is built on a model, watches the output of its neuron layers (spiking neurons of snnTorch, Norse,
    SpikingJelly and sinabs; activation modules such as ReLU in a DNN) and counts by itself: just run the model.
    Of real-valued activity the non-zero entries count, so for a DNN this is the share of active units. Every pass
    counts, that of a training batch too: to log it in validation, reset it in ``on_validation_epoch_start``.

    - ``compute()``: spikes/neuron/step over all neurons, a float64 scalar.
    - ``by_layer()``: the same for each layer, by name.

    Args:
        model: The model to watch.
        kwargs: See ``torchmetrics.Metric``.

    Raises:
        ValueError: If the model has no neuron layer. Functional activations (``F.relu``) are none: use modules, or
            measure the exported network.
        RuntimeError: On ``compute()``, if no forward pass was seen.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.ReLU())
        >>> with SpikeRate(model) as rate:
        ...     _ = model(torch.tensor([[-1.0, 2.5, -3.0, -4.0]]))
        >>> rate.compute()
        tensor(0.2500, dtype=torch.float64)
    """

    quantities = ("spikes", "neuron_steps")
    many_steps = True  # a sum over samples and steps is the same
    plot_unit = "Spikes / neuron / step"

    def __init__(self, model: nn.Module, **kwargs: Any) -> None:
        layers = neuron_layers(model)
        if not layers:
            raise ValueError(
                "Expected argument `model` to have a neuron layer (a spiking neuron or an activation module), but "
                f"{type(model).__name__} has none. Functional activations such as F.relu cannot be watched."
            )
        super().__init__(model, layers, 0, **kwargs)

    def _attach(self, hooks: Hooks, layer: nn.Module) -> None:
        hooks.after(layer, self._observe)

    @uncompiled
    def _observe(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        spikes = output[0] if isinstance(output, tuple) else output
        row = self._pending[self._index[layer]]
        row[0] += count_events(spikes)
        row[1] += spikes.numel()
        self._counter.called(layer, args)

    def compute(self) -> Tensor:
        """Return spikes/neuron/step over all layers."""
        totals, _ = self._totals()
        return totals["spikes"].sum() / totals["neuron_steps"].sum()

    def by_layer(self) -> dict[str, float]:
        """Return spikes/neuron/step for each layer by name; nan for one that was not run."""
        totals, _ = self._totals()
        return dict(zip(self.layers, (totals["spikes"] / totals["neuron_steps"]).tolist(), strict=True))
