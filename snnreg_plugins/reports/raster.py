"""When some neurons of an exported network spike, on some samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from snnreg_plugins._files import added_later
from snnreg_plugins._pictures import BLUE, GREY, literal
from snnreg_plugins._text import Column, Note, Row, Table
from snnreg_plugins.reports.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class RasterLayer:
    """Spikes of some neurons of a layer.

    Args:
        name: Its name in the DNN.
        neurons: How many neurons it has.
        shown: Which of them are recorded, by flat index.
        spikes: For each sample and recorded neuron one character per time step: ``"1"`` for a spike, else ``"0"``.
        active: How many of its neurons spike on any of the samples; None if that was not recorded, when those shown
            were chosen active or not.
    """

    name: str
    neurons: int
    shown: tuple[int, ...]
    spikes: tuple[tuple[str, ...], ...]
    active: int | None = added_later(None)


@dataclass(frozen=True)
class Raster(Result):
    """When some neurons spike on some samples. Made by :func:`~snnreg_plugins.record`.

    Args:
        timesteps: T.
        labels: The class of each sample; empty where samples have none, as in a regression.
        decisions: For each sample the class of the highest score after 1, 2, ..., T steps; empty like ``labels``.
        layers: The layers of neurons, in the order they run in.
    """

    timesteps: int
    labels: tuple[int, ...]
    decisions: tuple[tuple[int, ...], ...]
    layers: tuple[RasterLayer, ...]

    _indent = None

    def misfit(self) -> str | None:
        """Tell whether there is a train for every sample and neuron, and a decision for every step."""
        trains = [train for layer in self.layers for sample in layer.spikes for train in sample]
        fits = (
            len(self.decisions) == len(self.labels)
            and all(len(decisions) == self.timesteps for decisions in self.decisions)
            and all(len(layer.spikes) == self.samples for layer in self.layers)
            and all(len(sample) == len(layer.shown) for layer in self.layers for sample in layer.spikes)
            and all(len(train) == self.timesteps and set(train) <= {"0", "1"} for train in trains)
        )
        return None if fits else "its parts do not fit each other."

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return len(self.labels) or (len(self.layers[0].spikes) if self.layers else 0)

    def shown(self) -> Iterable[Table | Note]:
        """Give a table of decisions over time, and one of spikes by layer."""
        if self.labels:
            yield self.decided([2**power for power in range(self.timesteps.bit_length())])
        yield self.counts()
        yield Note(self.chosen(), "small")

    def chosen(self) -> str:
        """Say which neurons are shown."""
        if any(layer.active is None for layer in self.layers):
            return "Neurons are taken evenly spaced from each layer, active or not."
        return "Neurons are taken evenly spaced from those of each layer that spike on one of the samples."

    def decided(self, steps: Sequence[int]) -> Table:
        """Give the table of what each sample is taken for after some numbers of steps."""
        return Table(
            "Decision over time steps",
            (Column(""), Column("Class"), *(Column(f"T = {step}") for step in steps)),
            tuple(
                Row((f"Sample {sample + 1}", label, *(self.decisions[sample][step - 1] for step in steps)))
                for sample, label in enumerate(self.labels)
            ),
        )

    def counts(self) -> Table:
        """Give the table of spikes by layer and sample."""
        return Table(
            f"Spikes of the neurons shown, in {self.timesteps} steps",
            (
                Column("Layer"),
                Column("Neurons shown", lambda some: "{:,} of {:,}".format(*some)),
                Column("That spike", "{:,}".format),
                *(Column(f"Sample {sample + 1}") for sample in range(self.samples)),
            ),
            tuple(
                Row((layer.name, (len(layer.shown), layer.neurons), layer.active, *map(spikes_of, layer.spikes)))
                for layer in self.layers
            ),
        )

    def panels(self) -> tuple[float, Sequence[Callable[[Axes], None]]]:
        """Draw a panel for each sample: a row for each neuron, a mark for each spike."""
        rows = sum(len(layer.shown) for layer in self.layers)
        return max(4.0, 1.8 + 0.03 * rows), [partial(self._draw, sample) for sample in range(self.samples)]

    def _draw(self, sample: int, axes: Axes) -> None:
        trains = [
            [step for step, spike in enumerate(train, start=1) if spike == "1"]
            for layer in self.layers
            for train in layer.spikes[sample]
        ]
        axes.eventplot(trains, colors=BLUE, linelengths=0.8)
        starts = list(accumulate((len(layer.shown) for layer in self.layers), initial=0))
        axes.set_yticks(
            [(first + last - 1) / 2 for first, last in pairwise(starts)], [literal(layer.name) for layer in self.layers]
        )
        for start in starts[1:-1]:
            axes.axhline(start - 0.5, color=GREY, linewidth=0.6)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(0.5, self.timesteps + 0.5)
        axes.set_ylim(max(len(trains), 1) - 0.5, -0.5)
        of_class = f", of class {self.labels[sample]}" if self.labels else ""
        axes.set(title=f"Sample {sample + 1}{of_class}", xlabel="Time step")


def spikes_of(trains: Iterable[str]) -> int:
    """Count the spikes of trains."""
    return sum(train.count("1") for train in trains)
