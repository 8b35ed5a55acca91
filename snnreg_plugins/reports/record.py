"""Record when some neurons of an exported network spike."""

from __future__ import annotations

import torch
from torch import Tensor

from snnreg_plugins._checks import as_integer
from snnreg_plugins._models import device_of
from snnreg_plugins.reports.measure import run_as
from snnreg_plugins.reports.raster import Raster, RasterLayer
from snnreg_plugins.spiking.network import SpikingNetwork
from snnreg_plugins.spiking.recording import Recorder
from snnreg_plugins.watching.layers import neuron_layers

# Rows of a layer at least, however many layers there are.
_FEWEST = 4


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

    Neurons are taken evenly spaced from those of each layer that spike on any of the samples, as most of a sparse
    network are silent; from all of a layer where none spikes. It is told how many spike at all. The network runs in
    eval mode, twice, and is left as it was, as is the random state.

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
        >>> raster.layers[0].name, raster.layers[0].neurons, len(raster.layers[0].shown)
        ('1', 16, 4)
        >>> [len(train) for train in raster.layers[0].spikes[0]]
        [4, 4, 4, 4]
    """
    samples, rows = as_integer("samples", samples), as_integer("rows", rows)
    longest = network.timesteps if timesteps is None else as_integer("timesteps", timesteps)
    dim = network.batch_dim_of(inputs)
    inputs = inputs.narrow(dim, 0, min(samples, inputs.shape[dim]))
    targets = None if targets is None else targets[:samples]
    each = max(rows // max(len(neuron_layers(network.body)), 1), _FEWEST)
    spiked: dict[str, Tensor] = {}

    def see(name: str, spikes: Tensor) -> Tensor:
        found = (spikes.flatten(1) != 0).any(0)
        spiked[name] = found | spiked[name] if name in spiked else found
        return found[:0]

    def some_of(name: str, spikes: Tensor) -> Tensor:
        return (spikes.flatten(1) != 0)[:, shown[name]].cpu()

    device = device_of(network)
    devices = [device] if device.type == "cuda" else []
    with torch.no_grad(), run_as(network, longest):
        with torch.random.fork_rng(devices):  # both runs draw the same numbers
            Recorder(network, see, potentials=False).run(inputs.to(device))
        shown = {name: _some(found, each) for name, found in spiked.items()}
        with torch.random.fork_rng(devices):
            recording = Recorder(network, some_of, potentials=False).run(inputs.to(device))
    running = recording.scores
    classes = None if targets is None or running.dim() != 3 or running.shape[2] < 2 else targets
    return Raster(
        timesteps=longest,
        labels=() if classes is None else tuple(int(target) for target in classes),
        decisions=() if classes is None else tuple(map(tuple, running.argmax(2).T.tolist())),
        layers=tuple(
            RasterLayer(
                name, len(spiked[name]), tuple(shown[name].tolist()), _trains(spikes), active=int(spiked[name].sum())
            )
            for name, spikes in recording.spikes.items()
        ),
    )


def _some(spiked: Tensor, most: int) -> Tensor:
    """Choose some neurons, evenly spaced, of those that spike, or of all if none does."""
    found = spiked.nonzero().flatten()
    found = found if len(found) else torch.arange(len(spiked), device=spiked.device)
    return found[torch.linspace(0, len(found) - 1, min(most, len(found))).round().long().to(found.device)]


def _trains(spikes: Tensor) -> tuple[tuple[str, ...], ...]:
    """Write spikes (T, samples, neurons) as a character per step."""
    trains = spikes.permute(1, 2, 0).int().tolist()
    return tuple(tuple("".join(map(str, train)) for train in sample) for sample in trains)
