"""When some neurons of an exported network spike, on some samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from snnreg_plugins._checks import as_integer
from snnreg_plugins._models import device_of
from snnreg_plugins._pictures import BLUE, GREY, literal
from snnreg_plugins._text import Column, Note, Row, Table
from snnreg_plugins.reports.measure import run_as
from snnreg_plugins.reports.result import Result
from snnreg_plugins.spiking.network import SpikingNetwork
from snnreg_plugins.spiking.recording import Recorder
from snnreg_plugins.watching.layers import neuron_layers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Rows of a layer at least, however many layers there are.
_FEWEST = 4


@dataclass(frozen=True)
class RasterLayer:
    """Spikes of some neurons of a layer.

    Args:
        name: Its name in the DNN.
        neurons: How many neurons it has.
        shown: Which of them are recorded, by flat index.
        spikes: For each sample and recorded neuron one character per time step: ``"1"`` for a spike, else ``"0"``.
    """

    name: str
    neurons: int
    shown: tuple[int, ...]
    spikes: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Raster(Result):
    """When some neurons spike on some samples. Made by :func:`record`.

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
        yield Note("Neurons are taken evenly spaced from each layer, active or not.", "small")

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
                *(Column(f"Sample {sample + 1}") for sample in range(self.samples)),
            ),
            tuple(
                Row((layer.name, (len(layer.shown), layer.neurons), *(spikes_of(trains) for trains in layer.spikes)))
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


def record(
    network: SpikingNetwork,
    inputs: Tensor,
    targets: Tensor | None,
    *,
    timesteps: int | None = None,
    samples: int = 3,
    rows: int = 120,
) -> Raster:
    """Record when some neurons spike.

    Neurons are taken evenly spaced from each layer, active or not, so that what is seen is typical. The network runs
    in eval mode and is left as it was, as is the random state.

    Args:
        network: The spiking network.
        inputs: Inputs ``(B, ...)``, or with a dimension of time as the network takes them.
        targets: Class indices ``(B,)``; None where samples have no class, as there is none either if a network gives
            one score alone.
        timesteps: T; that of the network if None.
        samples: How many of the inputs to record, the first ones.
        rows: How many neurons to record in all, spread over the layers; at least four of each layer.

    Raises:
        ValueError: If ``timesteps``, ``samples`` or ``rows`` is not positive.

    Example:
        >>> from snnreg_plugins import to_snntorch
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model, x = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3)), torch.rand(100, 2)
        >>> raster = record(to_snntorch(model, x, timesteps=4), x, torch.zeros(100), samples=1, rows=4)
        >>> raster.layers[0].name, raster.layers[0].shown
        ('1', (0, 5, 10, 15))
        >>> [len(train) for train in raster.layers[0].spikes[0]]
        [4, 4, 4, 4]
    """
    samples, rows = as_integer("samples", samples), as_integer("rows", rows)
    longest = network.timesteps if timesteps is None else as_integer("timesteps", timesteps)
    dim = network.batch_dim_of(inputs)
    inputs = inputs.narrow(dim, 0, min(samples, inputs.shape[dim]))
    targets = None if targets is None else targets[:samples]
    each = max(rows // max(len(neuron_layers(network.body)), 1), _FEWEST)
    shown: dict[str, Tensor] = {}
    sizes: dict[str, int] = {}

    def some_of(name: str, spikes: Tensor) -> Tensor:
        spikes = spikes.flatten(1) != 0
        if name not in shown:
            sizes[name] = spikes.shape[1]
            shown[name] = torch.linspace(0, sizes[name] - 1, min(each, sizes[name])).round().long()
        return spikes[:, shown[name].to(spikes.device)].cpu()

    device = device_of(network)
    devices = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices), run_as(network, longest):
        recording = Recorder(network, some_of, potentials=False).run(inputs.to(device))
    running = recording.scores
    classes = None if targets is None or running.dim() != 3 or running.shape[2] < 2 else targets
    return Raster(
        timesteps=longest,
        labels=() if classes is None else tuple(int(target) for target in classes),
        decisions=() if classes is None else tuple(map(tuple, running.argmax(2).T.tolist())),
        layers=tuple(
            RasterLayer(name, sizes[name], tuple(shown[name].tolist()), _trains(spikes))
            for name, spikes in recording.spikes.items()
        ),
    )


def _trains(spikes: Tensor) -> tuple[tuple[str, ...], ...]:
    """Write spikes (T, samples, neurons) as a character per step."""
    trains = spikes.permute(1, 2, 0).int().tolist()
    return tuple(tuple("".join(map(str, train)) for train in sample) for sample in trains)
