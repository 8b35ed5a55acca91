"""Find out where an exported network loses what its DNN computes, layer by layer, and which option to try."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial

import torch
from torch import Tensor, nn

from snnreg_plugins._batches import Calibration, begun, inputs_of, mean_frame, number_of_batches
from snnreg_plugins._checks import as_integer
from snnreg_plugins._console import following, progress
from snnreg_plugins._models import as_module, device_of, dtype_of, eval_and_back
from snnreg_plugins.export.faithful import traced_faithfully
from snnreg_plugins.reports.diagnosis import Diagnosis, LayerDiagnosis, SharedSynapses
from snnreg_plugins.reports.measure import run_as
from snnreg_plugins.reports.pairs import Comparison, Events, comparisons, reads
from snnreg_plugins.reports.remedies import LayerError, advise
from snnreg_plugins.spiking.network import SpikingNetwork
from snnreg_plugins.watching.hooks import Hooks
from snnreg_plugins.watching.tally import Tally

# Samples that are run at once.
_CHUNK = 64

# An added error below is no loss to speak of.
_SMALL = 0.01


def diagnose(
    dnn: nn.Module, network: SpikingNetwork, data: Calibration, *, limit_samples: int | None = 1024
) -> Diagnosis:
    r"""Tell where an exported network loses what its DNN computes, and which option of the export to try.

    Compares, for each layer of neurons, the rate at ``network.timesteps`` times what a spike is worth to the DNN's
    activation. All sums are exact, over all neurons and samples; no activations are kept. The layer that loses the
    most is the one that adds the largest error to that of the layers it reads, and why is the largest of

    - clipping: activations above what a spike is worth;
    - rounding: rates are multiples of 1/T;
    - what is left: spikes that arrive unevenly, and what leaks if ``beta`` is below 1;
    - dead neurons, if those make more than half of the added error.

    What makes at least half as much is named too. Options that ``network`` was made with already
    (``network.conversion``) are not suggested.

    Both networks are run in eval mode and left as they were; metrics that watch ``network`` count this pass too. A
    network that was fine-tuned is free to leave the DNN's activations, and its errors tell by how much it does.

    Args:
        dnn: The DNN.
        network: The spiking network exported from it.
        data: Inputs: a tensor, or an iterable of batches or (input, target) pairs, such as a DataLoader. Others than
            those of the calibration show what thresholds miss.
        limit_samples: Samples to measure on, the first ones; all if None.

    Returns:
        The numbers and the advice, with ``print()``, ``save_json(path)`` and ``save_plot(path)``.

    Raises:
        TypeError: If ``network`` is no SpikingNetwork, ``dnn`` is None, or ``data`` gives something else than inputs.
        ValueError: If ``network`` was not made from ``dnn``, ``data`` holds no sample or inputs of different shapes,
            or ``limit_samples`` is not positive.
        ConversionError: If ``dnn`` cannot be traced.

    Example:
        >>> from snnreg_plugins import to_snntorch
        >>> _ = torch.manual_seed(0)
        >>> model, x = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3)), torch.rand(100, 2)
        >>> result = diagnose(model, to_snntorch(model, x, timesteps=4, threshold="max"), x)
        >>> result.worst, result.cause, result.layers[0].clipped
        ('1', 'rounding', 0.0)
        >>> result.remedies
        ('per_channel=True', 'timesteps=8', 'threshold="mmse"')
    """
    without = "report(None, network, data) tells what a network spends that was exported from none."
    if not isinstance(network, SpikingNetwork):
        raise TypeError(
            "Expected argument `network` to be a SpikingNetwork, such as to_snntorch() makes, but got "
            f"{type(network).__name__}. {without}"
        )
    if dnn is None:
        raise TypeError(f"Expected argument `dnn` to be what the network was exported from, but got None. {without}")
    as_module("dnn", dnn)
    limit_samples = None if limit_samples is None else as_integer("limit_samples", limit_samples)
    time = network.time_dim
    batch_dim = int(time == 0)
    batches = [data] if isinstance(data, Tensor) and time is not None else data
    first, walk = begun(_inputs(batches, limit_samples, batch_dim))
    if first is None:
        raise ValueError("Expected argument `data` to hold at least one sample, but it is empty.")
    see = partial(mean_frame, time_dim=time, dtype=dtype_of(dnn))
    traced = traced_faithfully(dnn, see(first), network.conversion.get("until"))
    timesteps, samples = network.timesteps, 0
    total = number_of_batches(batches)
    if total is not None and limit_samples is not None:
        total = min(total, -(-limit_samples // first.shape[batch_dim]))
    compared = comparisons(traced, network)
    with (
        torch.no_grad(),
        Tally(network, spikes=False, products=False) as tally,
        Hooks() as hooks,
        run_as(network, timesteps),
        eval_and_back(network),
        progress("Comparing layers, batches", total) as step,
    ):
        for comparison in compared.values():
            comparison.watch(hooks)
        for inputs in following(walk, step):
            traced(see(inputs).to(device_of(traced)))
            network(inputs.to(device_of(network)))
            for comparison in compared.values():
                comparison.add(see(inputs), timesteps)
            samples += inputs.shape[batch_dim]
    events = Events(network, tally)
    layers = _layers(compared, reads(traced), events)
    worst = max((one for one in layers if one.added is not None), key=lambda one: one.added or 0.0, default=None)
    cause, remedies, advice = _advice(worst, network)
    return Diagnosis(
        samples=samples,
        timesteps=timesteps,
        layers=layers,
        synapses=tuple(SharedSynapses(name, read, sops / samples) for name, read, sops in events.shared()),
        worst=None if worst is None else worst.name,
        cause=cause,
        remedies=remedies,
        advice=advice,
        histogram=() if worst is None else tuple(map(tuple, compared[worst.name].counts.tolist())),
    )


def _layers(compared: dict[str, Comparison], before: dict[str, set[str]], events: Events) -> tuple[LayerDiagnosis, ...]:
    """Bring sums into relation."""
    means: dict[str, float] = {}
    errors: dict[str, float] = {}
    for one in compared.values():
        total = one.totals()
        means[one.base] = means.get(one.base, 0.0) + total.weighed
        errors[one.base] = errors.get(one.base, 0.0) + total.error
    given = {
        base: max((errors[name] / means[name] for name in before.get(base, ()) if means.get(name)), default=0.0)
        for base in means
    }
    layers = []
    for name, one in compared.items():
        total, sops = one.totals(), events.of(name)
        relative = partial(_over, means[one.base])
        layers.append(
            LayerDiagnosis(
                name=name,
                kind=type(one.neurons).__name__,
                threshold_min=float(one.neurons.threshold.min()),
                threshold_max=float(one.neurons.threshold.max()),
                level_min=float(one.level.min()),
                level_max=float(one.level.max()),
                spread=one.spread(),
                activation=total.a / total.pairs,
                correlation=one.correlation(),
                error=relative(total.error),
                bias=relative(total.bias),
                clipping=relative(total.clipping),
                rounding=relative(total.rounding),
                missing=relative(one.missing()),
                # Two populations share what comes in by their parts of the activation.
                added=relative(total.error - given[one.base] * total.weighed),
                spike_rate=total.spikes / (total.pairs * one.timesteps),
                sops=None if sops is None else sops / one.samples,
                clipped=total.clipped / total.pairs,
                dead=_mean(one.dead()),
                silent=_mean((one.spikes == 0) & (one.activity == 0)),
                saturated=_mean(one.spikes == one.samples * one.timesteps),
            )
        )
    return tuple(layers)


def _over(mean: float, value: float) -> float | None:
    return value / mean if mean else None


def _mean(neurons: Tensor) -> float:
    return float(neurons.double().mean())


def _advice(worst: LayerDiagnosis | None, network: SpikingNetwork) -> tuple[str | None, tuple[str, ...], str]:
    """Say why the layer that loses the most does so, and what to try."""
    if worst is None:
        return None, (), "The DNN is silent on this data."
    if (worst.added or 0.0) <= _SMALL:
        return (
            None,
            (),
            f"No layer loses much: none adds an error of more than {100 * _SMALL:.0f} % of its mean activation.",
        )
    given = {**network.conversion, "timesteps": network.timesteps, **asdict(worst)}
    cause, why, remedies = advise(LayerError(**{name: given[name] for name in LayerError._fields if name in given}))
    tried = ", ".join(remedies[:-1]) + " or " * (len(remedies) > 1) + remedies[-1]
    off = 100 * (worst.error or 0.0)
    all_of_it = "all" if worst.added == worst.error else f"{100 * (worst.added or 0.0):.1f} %"
    return (
        cause,
        remedies,
        f"Layer {worst.name!r} loses the most: it is off by {off:.1f} % of its mean activation and adds "
        f"{all_of_it} of that itself, mostly because {why}. Try {tried}.",
    )


def _inputs(data: Calibration, limit: int | None, batch_dim: int) -> Iterator[Tensor]:
    """Walk the first inputs in small batches."""
    shape, left = None, limit
    for inputs in inputs_of(data, argument="data"):
        own = torch.Size([*inputs.shape[:batch_dim], *inputs.shape[batch_dim + 1 :]])
        shape = own if shape is None else shape
        if own != shape:
            raise ValueError(
                f"Expected argument `data` to hold inputs of one shape, but got {tuple(shape)} and {tuple(own)}."
            )
        size = inputs.shape[batch_dim]
        taken = inputs if left is None else inputs.narrow(batch_dim, 0, min(left, size))
        yield from taken.split(_CHUNK, batch_dim)  # type: ignore[no-untyped-call]
        if left is not None:
            left -= min(left, size)
            if left == 0:
                return
