"""Energy, or another cost, of a model's forward passes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from snnreg_plugins._checks import as_flag, one_of
from snnreg_plugins.functional.cost_models import Arithmetic, Model, cost_models
from snnreg_plugins.functional.costs import Cost, CostModel, LayerFacts
from snnreg_plugins.functional.energy import EnergyTable, energy
from snnreg_plugins.metrics.operations import SynapticOperations
from snnreg_plugins.watching.counts import added
from snnreg_plugins.watching.facts import layer_facts, needs_of, require_prices
from snnreg_plugins.watching.layers import spikes_already


class Energy(SynapticOperations):
    r"""Energy of the synaptic arithmetic, in J per sample.

    .. math:: E = 10^{-12} \sum_\text{layers} \left(\text{SOPs} \cdot e_{AC} + \text{MACs} \cdot e_{MAC}\right)

    An estimate from published energies per operation: no memory access, no neuron updates, no static power. A table
    without a price for MACs (``"truenorth"``, ``"loihi"``, ``"anp_i"``) gives the energy of the SOPs alone: layers
    with real-valued input, such as an analog first layer, are nan in ``by_layer()``, the total leaves their MACs out,
    and a warning says so.

    Other models price more (memory access, neuron updates), or something else: ``"lemaire"``, ``"bit_matched"``,
    ``"eflops"``, which are no joules, and your own, see ``functional.COST_MODELS``. A layer then costs what it does
    with the neurons that it drives; a DNN costs what one does that skips zeros, where the model knows such, else a
    dense one. With several models ``compute()`` gives a dict, by their names; they never add up.

    Args:
        model: The model to watch.
        table: What operations cost: a name in ``functional.COST_MODELS``, a YAML file of your own prices, an
            ``EnergyTable`` or another model of your own; or several of these.
        dense: Count dense instead of effective MACs: hardware that skips no zeros. SOPs are then 0. Models of memory
            price a dense DNN alone so, and no spiking network.
        batch_dim: Dimension of the batch in the model's input; 1 for input of shape ``(T, B, ...)``.
        input_events: Whether whole numbers that a layer reads from the model's input are counts of events. If False,
            as for images of 0 to 255, they cost MACs, unless all of them are 0 or 1. If None they are taken for events,
            and a warning says so where some are above 1.
        count_zero_weights: Whether a weight that is exactly zero when its layer is called is a synapse; None for what a
            model takes it for, which is one but for ``"eflops"``.
        kwargs: See ``torchmetrics.Metric``.

    Raises:
        ValueError: If the model has no synaptic layer, the table's name is unknown, the table has no price for the MACs
            that ``dense`` asks for, or a model cannot price the network: ``"bit_matched"`` no DNN alone, ``"eflops"``
            no neurons whose states cannot be followed, as those that drive each other.
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
        table: Model | Sequence[Model] = "horowitz_fp32",
        dense: bool = False,
        batch_dim: int = 0,
        input_events: bool | None = None,
        count_zero_weights: bool | None = None,
        **kwargs: Any,
    ) -> None:
        models, dense = cost_models(table), as_flag("dense", dense)
        if count_zero_weights is not None:
            count_zero_weights = as_flag("count_zero_weights", count_zero_weights)
        arithmetic = isinstance(models[0], Arithmetic) and len(models) == 1
        if dense:
            _require_dense(model, models, arithmetic)
        if isinstance(model, nn.Module):
            self._require_prices(models, model)
        # Arithmetic needs no more than operations, which are summed up as tensors.
        needs = frozenset() if arithmetic else needs_of(models, count_zero_weights)
        counts_all = count_zero_weights is not False
        self._build(model, batch_dim, input_events, counts_all, needs, not arithmetic, **kwargs)
        self.models, self.dense, self._arithmetic, self._zero_weights = models, dense, arithmetic, count_zero_weights

    def _require_prices(self, models: tuple[CostModel, ...], model: nn.Module) -> None:
        require_prices(models, model)

    @property
    def table(self) -> EnergyTable | CostModel:
        """What operations cost: of arithmetic the table, else the (first) model."""
        model = self.models[0]
        return model.table if isinstance(model, Arithmetic) else model

    def compute(self) -> Any:
        """Return J/sample (or EFLOPs); of several models a dict by name."""
        return self.total()

    def left_out(self, model: str | None = None) -> dict[str, float]:
        """Return the operations/sample that a model has no price for, for each layer by name that has any.

        Args:
            model: Name of one of several models; the first one if None.
        """
        number = self._number(model)
        if not self._arithmetic:
            return {name: cost.unpriced for name, cost in self._costs()[number].items() if cost.unpriced}
        assert isinstance(self.table, EnergyTable)
        if self.table.prices_macs:
            return {}
        return {name: macs for name, macs in super().by_layer("effective_macs").items() if macs}

    def parts(self, model: str | None = None) -> dict[str, dict[str, float]]:
        """Return what spends it, for each layer by name: MACs, synapses, neurons, memory, per sample.

        Args:
            model: Name of one of several models; the first one if None.
        """
        costs = self._costs()[self._number(model)]
        return {name: cost.parts() for name, cost in costs.items()}

    def total(self, quantity: str = "energy") -> Any:
        """Return J/sample (or, as :class:`SynapticOperations`, a count) over all layers; a dict of several models."""
        if quantity != "energy":
            return super().total(quantity)
        if not self._arithmetic:
            totals = {}
            for model, costs in zip(self.models, self._costs(), strict=True):
                self._warn([name for name, cost in costs.items() if cost.unpriced], model)
                totals[model.name] = torch.tensor(sum(cost.total for cost in costs.values()), dtype=torch.float64)
            return totals if len(totals) > 1 else totals[self.models[0].name]
        found = super().total(quantity)
        if not found.isnan():
            return found
        self._warn(_unknown(super().by_layer(quantity)), self.models[0])
        assert isinstance(self.table, EnergyTable)
        return energy(super().total("sops"), torch.zeros_like(found), self.table)

    def by_layer(
        self, quantity: str = "energy", steps: int | None = None, model: str | None = None
    ) -> dict[str, float]:
        """Return J/sample (or, as :class:`SynapticOperations`, a count) for each layer by name.

        Args:
            quantity: What to return.
            steps: Number of time steps to count, the first ones; all if None.
            model: Name of one of several models; the first one if None.
        """
        number = self._number(model)
        if quantity == "energy" and not self._arithmetic:
            costs = self._costs(steps)[number]
            found = {name: math.nan if cost.unpriced else cost.total for name, cost in costs.items()}
        else:
            found = super().by_layer(quantity, steps)
        self._warn(_unknown(found), self.models[number])
        return found

    def _number(self, model: str | None) -> int:
        names = [each.name for each in self.models]
        return 0 if model is None else names.index(one_of("model", model, names))

    def facts(self, steps: int | None = None) -> list[LayerFacts]:
        """Return what each layer does, per sample, as models price it; with what they need counted.

        Args:
            steps: Number of time steps to take, the first ones; all if None.

        Raises:
            RuntimeError: If no forward pass was seen.
        """
        super()._totals(steps)  # was anything seen
        watch = self.watch
        parts = self._gathered((watch.table(), watch.samples, watch.wiring))
        tables, samples, wirings = zip(*parts, strict=True)
        wiring = max(wirings, key=lambda one: len(one.called))
        return layer_facts(watch, steps=steps, table=added(tables), samples=sum(samples), wiring=wiring)

    def _costs(self, steps: int | None = None) -> list[dict[str, Cost]]:
        """Price each layer by each model, over all processes."""
        facts = self.facts(steps)
        if not self.dense:
            return [{one.name: model.price(one, self._zero_weights) for one in facts} for model in self.models]
        facts = facts if self._zero_weights is not False else [one.without_zero_weights() for one in facts]
        return [{one.name: cost for one in facts if (cost := model.dnn(one))} for model in self.models]

    def _warn(self, names: list[str], model: CostModel) -> None:
        if names and model.prices_dnns:
            left_out = f"the operations of {names}: {model.name!r} has no price for what no layer makes"
        else:
            left_out = f"the MACs of {names}, whose input is real-valued: the table has no price for them"
        if names:
            which = "" if model is self.models[0] else repr(model.name)
            warnings.warn(
                f"The energy leaves out {left_out} ({model.source}). left_out({which}) tells how many.", stacklevel=4
            )

    def _totals(self, steps: int | None = None) -> tuple[dict[str, Tensor], Tensor]:
        totals, samples = super()._totals(steps)
        if not self._arithmetic:
            return totals, samples
        assert isinstance(self.table, EnergyTable)
        sops, macs = totals["sops"], totals["effective_macs"]
        if self.dense:
            sops, macs = torch.zeros_like(sops), totals["dense_macs"]
        if self.table.prices_macs:
            return totals | {"energy": energy(sops, macs, self.table)}, samples
        joule = energy(sops, torch.zeros_like(macs), self.table)
        return totals | {"energy": torch.where(macs > 0, math.nan, joule)}, samples


def _unknown(layers: dict[str, float]) -> list[str]:
    return [name for name, joule in layers.items() if math.isnan(joule)]


def _require_dense(model: nn.Module, models: tuple[CostModel, ...], arithmetic: bool) -> None:
    for each in models:
        if not each.prices_dnns:
            raise ValueError(
                "Expected argument `table` to have a price for MACs, which `dense=True` counts alone, but got one "
                f"without: {each.source}."
            )
    if not arithmetic and spikes_already(model):
        raise ValueError(
            f"Expected argument `dense` to be False for a spiking network and {models[0].name!r}, which prices a DNN "
            "that skips no zeros, but got True. Measure the DNN."
        )
