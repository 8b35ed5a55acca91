"""Price a report: by which models, and which of them its tables are by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from torch import nn

from snnreg_plugins._checks import as_flag
from snnreg_plugins.functional.cost_models import COST_MODELS, Arithmetic, Model, cost_models
from snnreg_plugins.functional.costs import CostModel, LayerFacts, Need
from snnreg_plugins.functional.energy import TABLE_OF_WEIGHTS
from snnreg_plugins.reports.parts import DNNReport, LayerReport, StepReport
from snnreg_plugins.reports.priced import ModelReport, price
from snnreg_plugins.reports.report import Report
from snnreg_plugins.watching.facts import needs_of, require_prices

# Models that a report shows beside that of the network's weights, if nobody asks for others.
_BESIDE = ("lemaire", "bit_matched", "eflops")

# What operations of are told.
Part = TypeVar("Part", DNNReport, StepReport, LayerReport)


class Prices:
    """The models that a report is priced by: those that are asked for, and all that come with the package.

    Args:
        table: What the user asks for; None for the model of the network's weights, and others beside it.
        weights: Name of the model of the network's weights.
        count_zero_weights: Whether a weight of zero is a synapse; as each model has it if None.

    Raises:
        FileNotFoundError: If there is no such file of prices.
        ValueError: If there is no such model.
    """

    def __init__(
        self, table: Model | Sequence[Model] | None, weights: str, count_zero_weights: bool | None = None
    ) -> None:
        self._zeros = None if count_zero_weights is None else as_flag("count_zero_weights", count_zero_weights)
        asked = cost_models((weights, *_BESIDE) if table is None else table)
        self._weights, self.chosen = weights, [model.name for model in asked]
        if table is not None:
            needs_of(asked, self._zeros)  # checks that they go together
        #: Those that have to price what the network does, or else it is refused.
        self._required = [] if table is None else self.chosen
        self.models = [*asked, *(model for name, model in COST_MODELS.items() if name not in self.chosen)]

    @classmethod
    def of(cls, network: nn.Module, table: Model | Sequence[Model] | None, count_zero_weights: bool | None) -> Prices:
        """Find the models for a network."""
        kind = getattr(network, "conversion", {}).get("weights", "float")
        return cls(table, TABLE_OF_WEIGHTS[kind], count_zero_weights)

    @property
    def needs(self) -> frozenset[Need]:
        """What has to be counted for them."""
        return needs_of(tuple(self.models), None if self._zeros else self._zeros)

    def require(self, network: nn.Module) -> None:
        """Raise a ValueError where a model that is asked for cannot price a network that spikes."""
        require_prices(tuple(model for model in self.models if model.name in self._required), network)

    def of_report(
        self,
        *,
        dnn: DNNReport | None,
        steps: Sequence[StepReport],
        timesteps: int,
        layers: Sequence[LayerReport],
    ) -> dict[str, Any]:
        """Give the parts of a report with what they cost, and the fields that say by which models.

        The report's energies are by the first of the chosen models that prices all of it in joules, the DNN too if
        there is one. If none does, the model of the weights comes before them. A model that needs what cannot be
        counted of a network, as the states of recurrent neurons, is left out if nobody asked for it.

        Args:
            dnn: The DNN, not priced yet, as all of these.
            steps: The network at each T.
            timesteps: The T of ``layers``.
            layers: Its layers.
        """
        priced = self._priced(steps, timesteps, None if dnn is None else dnn.facts)
        chosen = [name for name in self.chosen if name in priced]
        able = [name for name in chosen if _prices_all(priced[name], dnn is not None)]
        table = able[0] if able else self._weights
        main, model = priced[table], next(one for one in self.models if one.name == table)
        at = [step.timesteps for step in steps].index(timesteps)
        by_layer = {layer.name: layer.spent.total for layer in main.layers}
        if dnn is not None:
            sparse = main.sparse[at].total if main.sparse else None
            dnn = replace(dnn, energy=sparse, dense_energy=main.dense[at].total)
        arithmetic = model.table if isinstance(model, Arithmetic) else None
        return {
            "dnn": dnn,
            "steps": tuple(replace(step, energy=one.total) for step, one in zip(steps, main.steps, strict=True)),
            "layers": tuple(
                replace(layer, energy=by_layer.get(layer.name, 0.0) or (None if layer.sops is None else 0.0))
                for layer in layers
            ),
            "table": table,
            "mac": None if arithmetic is None or not arithmetic.prices_macs else arithmetic.mac,
            "ac": None if arithmetic is None else arithmetic.ac,
            "source": model.source,
            "models": tuple(priced.values()),
            "chosen": tuple(chosen if able else (table, *(name for name in chosen if name != table))),
        }

    def _priced(
        self, steps: Sequence[StepReport], timesteps: int, dnn: Sequence[LayerFacts] | None
    ) -> dict[str, ModelReport]:
        facts: dict[int, Sequence[LayerFacts]] = {step.timesteps: step.facts for step in steps}
        found = {model.name: self._price(model, facts, timesteps, dnn) for model in self.models}
        return {name: one for name, one in found.items() if one is not None}

    def _price(
        self,
        model: CostModel,
        facts: dict[int, Sequence[LayerFacts]],
        timesteps: int,
        dnn: Sequence[LayerFacts] | None,
    ) -> ModelReport | None:
        try:
            return price(model, facts, timesteps, dnn, self._zeros)
        except ValueError:  # there is something that it needs and that nobody can count
            if model.name in self._required:
                raise
            return None


def _prices_all(model: ModelReport, beside_dnn: bool) -> bool:
    return model.unit == "J" and model.has_all() and (not beside_dnn or bool(model.dense))


def shown_by(report: Report, table: Model | Sequence[Model]) -> Report:
    """Show a report by other models.

    Args:
        report: The report.
        table: The models; those that need more than SOPs and MACs if it kept what its layers do, as reports of earlier
            versions did not.

    Raises:
        FileNotFoundError: If there is no such file of prices.
        ValueError: If there is no such model, or what a model needs was not kept.
    """
    prices = Prices(table, _weights(report), _zeros(report))
    kept = all(step.facts for step in report.steps)
    if not kept:
        lacking = [model.name for model in cost_models(table) if not isinstance(model, Arithmetic)]
        if lacking:
            raise ValueError(
                "Expected argument `table` to name models of SOPs and MACs alone, such as 'horowitz_int8', for a "
                f"report of an earlier version, which kept no more, but got {lacking}. Measure the network again."
            )
        prices.models = [model for model in prices.models if isinstance(model, Arithmetic)]
    dnn, steps = (report.dnn, report.steps) if kept else _with_facts(report)
    found = prices.of_report(dnn=dnn, steps=steps, timesteps=report.timesteps, layers=report.layers)
    names = {model.name for model in found["models"]}
    found["models"] += tuple(model for model in report.models if model.name not in names)
    if not kept:
        found["steps"] = tuple(replace(step, facts=()) for step in found["steps"])
        found["dnn"] = None if report.dnn is None else replace(found["dnn"], facts=())
    return replace(report, **found)


def without_zero_weights(report: Report, table: Model | Sequence[Model] | None = None) -> Report:
    """Take weights that are exactly zero, as of a pruned network, for no synapses: in operations and in all costs.

    Args:
        report: A report that kept what its layers do.
        table: The models that it is of; those of the package among :attr:`Report.chosen` if None.

    Raises:
        ValueError: If operations at such weights were not counted.
    """
    if table is None:
        table = [name for name in report.chosen if name in COST_MODELS]
    if not all(step.facts for step in report.steps):
        raise ValueError(
            "Expected argument `report` to have kept what its layers do, as those of this version do, but it has not. "
            "Measure it again."
        )
    steps = tuple(replace(_stripped(step, step.facts), facts=_none_at_zero(step.facts)) for step in report.steps)
    dnn = report.dnn
    if dnn is not None:
        dense = dnn.dense_macs - sum(one.counted("dense_macs_at_zero") for one in dnn.facts)
        dnn = replace(_stripped(dnn, dnn.facts), dense_macs=dense, facts=_none_at_zero(dnn.facts))
    facts = {one.name: one for one in report.at_timesteps().facts}
    layers = tuple(
        _stripped(layer, [facts[layer.name]]) if layer.name in facts and layer.sops is not None else layer
        for layer in report.layers
    )
    prices = Prices(table, _weights(report), False)
    return replace(report, **prices.of_report(dnn=dnn, steps=steps, timesteps=report.timesteps, layers=layers))


def _stripped(part: Part, facts: Sequence[LayerFacts]) -> Part:
    """Take from what was counted what was so at weights of zero."""
    sops = (part.sops or 0.0) - sum(one.counted("sops_at_zero") for one in facts)
    macs = (part.effective_macs or 0.0) - sum(one.counted("effective_macs_at_zero") for one in facts)
    return replace(part, sops=sops, effective_macs=macs)


def _none_at_zero(facts: Sequence[LayerFacts]) -> tuple[LayerFacts, ...]:
    return tuple(one.without_zero_weights() for one in facts)


def _weights(report: Report) -> str:
    """Name the model of the network's weights."""
    return report.table if report.table in TABLE_OF_WEIGHTS.values() else "horowitz_fp32"


def _zeros(report: Report) -> bool | None:
    """Tell whether it was said that weights of zero are no synapses."""
    said_none = any(
        not model.counts_zero_weights and COST_MODELS[model.name].counts_zero_weights
        for model in report.models
        if model.name in COST_MODELS
    )
    return False if said_none else None


def _with_facts(report: Report) -> tuple[DNNReport | None, tuple[StepReport, ...]]:
    """Take SOPs and MACs of an earlier version's report for what its layers do."""
    dnn = report.dnn
    if dnn is not None:
        whole = LayerFacts(
            "all", spiking=False, sops=dnn.sops, effective_macs=dnn.effective_macs, dense_macs=dnn.dense_macs
        )
        dnn = replace(dnn, facts=(whole,))
    layers = [layer for layer in report.layers if layer.sops is not None]
    of_layers = [
        LayerFacts(layer.name, report.timesteps, sops=layer.sops or 0.0, effective_macs=layer.effective_macs or 0.0)
        for layer in layers
    ]

    def facts(step: StepReport) -> tuple[LayerFacts, ...]:
        whole = LayerFacts("all", step.timesteps, sops=step.sops, effective_macs=step.effective_macs)
        return tuple(of_layers) if step.timesteps == report.timesteps else (whole,)

    return dnn, tuple(replace(step, facts=facts(step)) for step in report.steps)
