"""Spike rate of a model's neurons."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from snnreg_plugins._checks import one_of
from snnreg_plugins.metrics.base import WatchingMetric
from snnreg_plugins.watching.tally import Tally


class SpikeRate(WatchingMetric):
    r"""Spikes per neuron and time step; exact.

    .. math:: r = \frac{\sum_\text{layers} \text{spikes}}{\sum_\text{layers} \text{neurons} \cdot \text{steps}}

    The metric is built on a model, watches the output of its neuron layers (spiking neurons of snnTorch, Norse,
    SpikingJelly and sinabs; activation modules such as ReLU in a DNN) and counts by itself: just run the model.
    Of real-valued activity the non-zero entries count, so for a DNN this is the share of active units. Every pass
    counts, that of a training batch too: to log it in validation, reset it in ``on_validation_epoch_start``,
    or call it once a batch, see :meth:`update`.

    - ``compute()``: spikes/neuron/step over all neurons, a float64 scalar.
    - ``by_layer()``: the same for each layer, by its name in the DNN; ``by_layer(steps=T)`` for the first T time steps.

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
    plot_unit = "Spikes / neuron / step"
    watch: Tally

    def __init__(self, model: nn.Module, **kwargs: Any) -> None:
        tally = Tally(model, operations=False)
        if not tally.neurons:
            raise ValueError(
                "Expected argument `model` to have a neuron layer (a spiking neuron or an activation module), but "
                f"{type(model).__name__} has none. Functional activations such as F.relu cannot be watched."
            )
        super().__init__(tally, **kwargs)

    def compute(self) -> Tensor:
        """Return spikes/neuron/step over all layers."""
        totals, _ = self._totals()
        return totals["spikes"].sum() / totals["neuron_steps"].sum()

    def by_layer(self, quantity: str = "rate", steps: int | None = None) -> dict[str, float]:
        """Return spikes/neuron/step for each layer by name; nan for one that was not run.

        Args:
            quantity: ``"rate"``, or ``"spikes"`` or ``"neuron_steps"`` per sample.
            steps: Number of time steps to count, the first ones; all if None.

        Raises:
            ValueError: If an argument is out of range.
            RuntimeError: If no forward pass was seen.
        """
        totals, samples = self._totals(steps)
        values = {name: total / samples for name, total in totals.items()}
        values["rate"] = totals["spikes"] / totals["neuron_steps"]
        found = values[one_of("quantity", quantity, sorted(values))]
        return dict(zip(self.layers, found.tolist(), strict=True))
