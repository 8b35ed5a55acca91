"""What a spiking network scores and spends, beside the DNN that it was exported from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from snnreg_plugins._files import added_later
from snnreg_plugins._text import Note, Table, in_percent
from snnreg_plugins.reports import tables, views
from snnreg_plugins.reports.parts import About, DNNReport, LayerReport, StepReport
from snnreg_plugins.reports.priced import LayerSpent, ModelReport, Spent
from snnreg_plugins.reports.result import Result
from snnreg_plugins.reports.verdict import verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POINT = 0.01  # of accuracy


@dataclass(frozen=True)
class Report(Result):
    """What a spiking network scores and spends, beside its DNN if it has one; plain numbers.

    Made by :func:`~snnreg_plugins.report`.

    Args:
        samples: Number of samples measured.
        dnn: The DNN; None if the network was measured without one.
        steps: The spiking network at each T, ascending; of a network with a time loop of its own its own T alone.
        timesteps: The T of ``layers``.
        layers: The spiking network's layers, in the order they are computed in.
        table: Name of the model that the energies of ``dnn``, ``steps`` and ``layers`` are by.
        mac: pJ per MAC; None where the model has no such price, as it tells more than operations.
        ac: pJ per synaptic operation; None likewise.
        source: Where these prices were published.
        score_name: What is scored: ``"accuracy"``, ``"mse"``, or a metric of torchmetrics in snake case.
        higher_is_better: Whether a higher score is better; None if that is not known.
        decisions: How many decisions an accuracy is the share of, where there is not one of each sample; else None.
        models: What network and DNN cost by each model of cost.
        chosen: Names of the models that are shown, ``table`` among them.
        chance: How often the most frequent answer is right, a share; None if that is not known.
        about: What was measured, and when.
    """

    samples: int
    dnn: DNNReport | None
    steps: tuple[StepReport, ...]
    timesteps: int
    layers: tuple[LayerReport, ...]
    table: str
    mac: float | None
    ac: float | None
    source: str
    score_name: str = added_later("accuracy")
    higher_is_better: bool | None = added_later(True)
    decisions: int | None = added_later(None)
    models: tuple[ModelReport, ...] = added_later(())
    chosen: tuple[str, ...] = added_later(())
    chance: float | None = added_later(None)
    about: About | None = added_later(None)

    def __post_init__(self) -> None:
        """Make the one model of a report of earlier versions, which had prices of SOPs and MACs alone."""
        if not self.models and self.mac is not None and self.ac is not None:
            object.__setattr__(self, "models", (self._priced_by_table(self.mac, self.ac),))
        if not self.chosen:
            object.__setattr__(self, "chosen", (self.table,))

    def misfit(self) -> str | None:
        """Tell whether the steps are ascending, with that of the layers among them, and all have a score and costs."""
        parts: list[DNNReport | StepReport] = [*self.steps, *(() if self.dnn is None else (self.dnn,))]
        if not all(math.isfinite(part.score) for part in parts):
            return f"not all its parts have a score ({self.score_name})."
        if len({part.accuracy is None for part in parts}) > 1:
            return "some of its parts have an accuracy and some have none."
        steps = [step.timesteps for step in self.steps]
        if self.timesteps not in steps or steps != sorted(set(steps)) or steps[0] < 1:
            return f"it should report on ascending time steps, {self.timesteps} among them, and has {steps}."
        names = [model.name for model in self.models]
        if self.table not in names or not set(self.chosen) <= set(names) or len(set(names)) < len(names):
            return f"its models of cost should be those of {[self.table, *self.chosen]}, each once, and are {names}."
        for model in self.models:
            given = {len(model.steps), *(len(costs) for costs in (model.dense, model.sparse) if costs)}
            if given != {len(steps)}:
                return f"its model {model.name!r} should have a cost for each of its {len(steps)} time steps."
        return None

    # What is asked of it.

    @property
    def index(self) -> int:
        """Where the T of :attr:`layers` stands among the steps."""
        return [step.timesteps for step in self.steps].index(self.timesteps)

    def at_timesteps(self) -> StepReport:
        """Find the numbers at the T of :attr:`layers`."""
        return self.steps[self.index]

    def model(self, name: str) -> ModelReport:
        """Find what network and DNN cost by a model.

        Raises:
            ValueError: If the report has none of that name.
        """
        found = {model.name: model for model in self.models}
        if name not in found:
            raise ValueError(f"Expected argument `name` to be one of {sorted(found)}, but got {name!r}.")
        return found[name]

    @property
    def primary(self) -> ModelReport:
        """The model of :attr:`table`."""
        return self.model(self.table)

    @property
    def shown_models(self) -> list[ModelReport]:
        """The models that are shown, in the order that they were asked for."""
        return [self.model(name) for name in self.chosen]

    def break_even_rate(self, dense: bool = False) -> float | None:
        r"""Find the spike rate at which the spiking network spends as much as the DNN, at :attr:`timesteps`.

        .. math:: r^* = r \, \frac{E_\text{DNN} - E_\text{MACs}}{E_\text{SOPs}}

        as SOPs grow with the rate r, while the MACs of an analog first layer stay. By arithmetic alone: what neurons
        and memory spend is not proportional to the rate.

        Args:
            dense: Against a DNN that skips no zeros.

        Returns:
            Spikes/neuron/step; below it the spiking network spends less, above 1 it always does, and below 0 never.
            None if there are no SOPs, no DNN, or :attr:`table` is not arithmetic alone.
        """
        step, dnn = self.at_timesteps(), self.dnn
        if dnn is None or step.spike_rate is None or not self.ac:
            return None
        energy, spent = dnn.dense_energy if dense else dnn.energy, self.primary.steps[self.index].synapses
        return None if energy is None or not spent else step.spike_rate * (energy - (step.energy - spent)) / spent

    @property
    def dnn_is_worth_it(self) -> bool:
        """Whether the DNN is right more often than the most frequent answer, as far as that can be told."""
        if self.dnn is None or self.chance is None or self.decided is None:
            return self.dnn is not None
        return tables.interval(self.dnn.score, self.decided)[0] > self.chance

    def within_a_point(self) -> StepReport | None:
        """Find the fewest steps whose accuracy is within a point of the DNN's; None if there are none, or no DNN."""
        if self.dnn is None or not self.is_accuracy or not self.dnn_is_worth_it:
            return None
        return next((step for step in self.steps if step.score >= self.dnn.score - _POINT), None)

    # What is shown.

    @property
    def score_title(self) -> str:
        """The name of the score as it is shown."""
        words = "MSE" if self.score_name == "mse" else self.score_name.replace("_", " ")
        return words[:1].upper() + words[1:]

    @property
    def is_accuracy(self) -> bool:
        """Whether the score is an accuracy."""
        return self.at_timesteps().accuracy is not None

    @property
    def decided(self) -> int | None:
        """Of how many samples an accuracy is the share; None if it is none of samples."""
        decisions = self.samples if self.decisions is None else self.decisions
        return decisions if self.is_accuracy and decisions <= self.samples else None

    def write_score(self, score: float) -> str:
        """Write a score."""
        return in_percent(score) if self.is_accuracy else f"{score:.4g}"

    def verdict(self) -> tuple[str, ...]:
        """Say whether the network pays: one sentence, and what else has to be known with it."""
        return verdict(self)

    def shown(self) -> Iterable[Table | Note]:
        """Give the verdict, a table of DNN and SNN over T, one by model, one of the layers, and what they mean."""
        first, *more = self.verdict()
        yield Note(first, "strong")
        if more:
            yield Note(" ".join(more))
        yield tables.over_steps(self)
        if len(self.chosen) > 1:
            yield tables.models_printed(self)
        yield tables.by_layer(self)
        if tables.break_even(self):
            yield Note(tables.break_even(self))
        yield Note("\n".join(tables.notes(self)), "small")

    def panels(self) -> tuple[float, Sequence[Callable[[Axes], None]]]:
        """Draw score over energy, what the network spends over the DNN by model, and energy by layer."""
        return views.panels(self)

    def below(self) -> float:
        """Give the inches that the legends of the picture take below its panels."""
        return views.below(self)

    def heading(self) -> tuple[str, str]:
        """Give what stands above the picture: what was measured, and the verdict."""
        return "" if self.about is None else self.about.title(), self.verdict()[0]

    def _priced_by_table(self, mac: float, ac: float) -> ModelReport:
        """Price what was counted by SOPs and MACs."""

        def spent(macs: float | None, sops: float | None) -> Spent:
            return Spent(macs=1e-12 * mac * (macs or 0.0), synapses=1e-12 * ac * (sops or 0.0))

        dnn, steps = self.dnn, self.steps
        dense = () if dnn is None else (Spent(macs=dnn.dense_energy),)
        sparse = () if dnn is None else (spent(dnn.effective_macs, dnn.sops),)
        return ModelReport(
            name=self.table,
            title="arithmetic",
            unit="J",
            source=self.source,
            left_out=("neuron updates", "memory access", "communication", "static power"),
            counts_zero_weights=True,
            steps=tuple(spent(step.effective_macs, step.sops) for step in steps),
            layers=tuple(
                LayerSpent(layer.name, spent(layer.effective_macs, layer.sops))
                for layer in self.layers
                if layer.sops is not None
            ),
            dense=dense * len(steps),
            sparse=sparse * len(steps),
        )
