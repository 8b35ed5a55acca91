"""Measure what an exported network scores and spends, beside the DNN it was exported from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from snnreg_plugins._batches import begun, pairs_of
from snnreg_plugins._models import device_of, eval_and_back
from snnreg_plugins.export.faithful import traced_faithfully
from snnreg_plugins.functional.energy import EnergyTable, energy, energy_table
from snnreg_plugins.reports.report import DNNReport, LayerReport, Report, StepReport
from snnreg_plugins.spiking.network import SpikingNetwork
from snnreg_plugins.watching.hooks import Hooks
from snnreg_plugins.watching.layers import is_spiking_neuron
from snnreg_plugins.watching.tally import Tally


def report(
    dnn: nn.Module,
    network: SpikingNetwork,
    data: Iterable[Any],
    *,
    steps: Sequence[int] = (1, 2, 4, 8, 16, 32),
    table: str | EnergyTable = "horowitz_fp32",
    progress: bool = False,
) -> Report:
    r"""Measure what an exported network scores and spends at every T, beside the DNN it was exported from.

    One pass over the data. The spiking network runs for max(steps) time steps: its first T steps are its run of T
    steps, so that accuracy, SOPs and energy at each T are exactly those of a run of its own. Energy is

    .. math:: E = 10^{-12} \left(\text{SOPs} \cdot e_{AC} + \text{MACs} \cdot e_{MAC}\right)

    an estimate from published energies per operation: synaptic arithmetic alone. MACs are those of layers with
    real-valued input, as the analog first layer has; they are part of the spiking network's energy. The same rule
    holds for the DNN: integer-valued input (a binary image) is events and gives SOPs.

    Both networks are measured in eval mode and left as they were. The DNN is measured on a copy, so that what
    watches it counts nothing; metrics that watch ``network`` count this pass too. Batches are moved to where the
    networks are. In distributed runs each process reports on its own data.

    Args:
        dnn: The DNN, a classifier: input ``(B, ...)`` to scores ``(B, K)``.
        network: The spiking network exported from it.
        data: (input, target) batches, such as a DataLoader: input ``(B, ...)``, target class indices ``(B,)``.
        steps: The numbers of time steps to report.
        table: pJ per operation: a name in ``functional.ENERGY_TABLES``, or an ``EnergyTable`` of your own.
        progress: Show a progress bar over the batches.

    Returns:
        The numbers, with ``print()``, ``save_json(path)`` and ``save_plot(path)``. Its numbers by layer are at
        ``network.timesteps`` if that is one of ``steps``, else at the largest of them.

    Raises:
        ValueError: If ``steps`` are not positive integers, ``data`` holds no sample or its targets are no class
            indices, or ``table`` is an unknown name.
        TypeError: If ``network`` is no SpikingNetwork, or ``data`` does not give (input, target) pairs.
        ConversionError: If ``dnn`` cannot be traced.

    Example:
        >>> from snnreg_plugins import to_snntorch
        >>> model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> x, y = torch.rand(100, 2), torch.randint(3, (100,))
        >>> result = report(model, to_snntorch(model, x, timesteps=4), [(x, y)], steps=(1, 2, 4))
        >>> [step.timesteps for step in result.steps]
        [1, 2, 4]
        >>> result.dnn.dense_macs, result.steps[-1].effective_macs  # 2 · 16 + 16 · 3; of the analog layer 2 · 16
        (80.0, 32.0)
    """
    ascending = _ascending(steps)
    prices = energy_table(table)
    if not isinstance(network, SpikingNetwork):
        raise TypeError(
            "Expected argument `network` to be a SpikingNetwork, such as to_snntorch() makes, but got "
            f"{type(network).__name__}."
        )
    longest = ascending[-1]
    at = network.timesteps if network.timesteps in ascending else longest
    first, pairs = begun(_pairs(data, progress))
    if first is None:
        raise ValueError("Expected argument `data` to hold at least one sample, but it is empty.")
    traced = traced_faithfully(dnn, first[0], network.conversion.get("until"))
    samples, correct, correct_at = 0, 0, torch.zeros(longest, dtype=torch.int64)
    with (
        torch.no_grad(),
        Tally(traced) as of_dnn,
        Tally(network, products=False) as of_snn,
        (behind := _Readout(network)).hooks,
        run_as(network, longest),
    ):
        for inputs, targets in pairs:
            scores = traced(inputs.to(device_of(traced))).cpu()
            labels = _labels(targets, scores)
            running = network(inputs.to(device_of(network)), per_step=True).cpu()
            correct += int((scores.argmax(1) == labels).sum())
            correct_at += (running.argmax(2) == labels).sum(1)
            readout = behind.values or running[0, 0].numel()
            samples += len(labels)
    spiking = _layers_that_spike(network, of_snn)
    by_steps = {T: _Counts.of(of_snn, spiking, T) for T in ascending}
    return Report(
        samples=samples,
        dnn=_dnn_report(correct, _Counts.of(of_dnn, of_dnn.names), samples, prices),
        steps=tuple(_step_report(T, int(correct_at[T - 1]), by_steps[T], samples, prices) for T in ascending),
        timesteps=at,
        layers=(
            *(
                _layer_report(name, layer, _Counts.of(of_snn, [name], at), samples, prices)
                for name, layer in spiking.items()
            ),
            LayerReport("readout", "sum", updates=float(readout * at)),
        ),
        table=table if isinstance(table, str) else "custom",
        mac=prices.mac,
        ac=prices.ac,
        source=prices.source,
    )


class _Counts(NamedTuple):
    """What layers did, summed over samples; the quantities of a :class:`Tally`."""

    sops: int
    effective_macs: int
    dense_macs: int
    spikes: int
    neuron_steps: int

    @classmethod
    def of(cls, tally: Tally, names: Iterable[str], timesteps: int | None = None) -> _Counts:
        """Sum up some rows, over the first time steps."""
        names = tuple(names)
        return cls(*(sum(map(tally.by_layer(quantity, timesteps).__getitem__, names)) for quantity in cls._fields))


def _layers_that_spike(network: SpikingNetwork, tally: Tally) -> dict[str, nn.Module]:
    """Give the layers of the spiking part, in the order they run in."""
    found = {}
    for part in (network.encoder, network.body):
        modules = dict(part.named_modules())
        for node in part.graph.nodes:
            module = modules.get(str(node.target)) if node.op == "call_module" else None
            if module in tally.index:
                found[tally.names[tally.index[module]]] = module
    return found


class _Readout:
    """How many values what comes behind the spikes reads of a sample."""

    def __init__(self, network: SpikingNetwork) -> None:
        self.hooks = Hooks(many_steps=True)
        self.values: int | None = None
        if network.head is not None:
            self.hooks.before(network.head, self._read)

    def _read(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.values = args[0][0].numel()


def _dnn_report(correct: int, counts: _Counts, samples: int, prices: EnergyTable) -> DNNReport:
    return DNNReport(
        accuracy=correct / samples,
        sops=counts.sops / samples,
        effective_macs=counts.effective_macs / samples,
        dense_macs=counts.dense_macs / samples,
        energy=energy(counts.sops, counts.effective_macs, prices) / samples,
        dense_energy=energy(0, counts.dense_macs, prices) / samples,
    )


def _step_report(timesteps: int, correct: int, counts: _Counts, samples: int, prices: EnergyTable) -> StepReport:
    return StepReport(
        timesteps=timesteps,
        accuracy=correct / samples,
        spike_rate=counts.spikes / counts.neuron_steps,
        updates=counts.neuron_steps / samples,
        sops=counts.sops / samples,
        effective_macs=counts.effective_macs / samples,
        energy=energy(counts.sops, counts.effective_macs, prices) / samples,
    )


def _layer_report(name: str, layer: Any, counts: _Counts, samples: int, prices: EnergyTable) -> LayerReport:
    kind = type(layer).__name__
    if counts.neuron_steps:
        spiking = is_spiking_neuron(layer)  # what codes an input spikes too, by no threshold
        return LayerReport(
            name,
            kind,
            threshold_min=float(layer.threshold.min()) if spiking else None,
            threshold_max=float(layer.threshold.max()) if spiking else None,
            spike_rate=counts.spikes / counts.neuron_steps,
            updates=counts.neuron_steps / samples,
        )
    return LayerReport(
        name,
        kind,
        sops=counts.sops / samples,
        effective_macs=counts.effective_macs / samples,
        energy=energy(counts.sops, counts.effective_macs, prices) / samples,
    )


def _ascending(steps: Sequence[int]) -> list[int]:
    """Check and sort ``steps``, each once."""
    whole = isinstance(steps, Iterable) and all(isinstance(T, int) and not isinstance(T, bool) for T in steps)
    if not whole or not steps or min(steps) < 1:
        raise ValueError(
            f"Expected argument `steps` to be one or more integers of at least 1, such as (1, 2, 4, 8), but got "
            f"{steps!r}."
        )
    return sorted(set(steps))


@contextmanager
def run_as(network: SpikingNetwork, timesteps: int) -> Iterator[None]:
    """Let a network run for some time steps in eval mode, and be as it was afterwards."""
    before = network.timesteps
    try:
        network.timesteps = timesteps
        with eval_and_back(network):
            yield
    finally:
        network.timesteps = before


def _pairs(data: Iterable[Any], progress: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Walk the batches that hold a sample."""
    pairs = pairs_of(data)
    if progress:
        from rich.progress import track

        pairs = iter(track(pairs, "Measuring DNN and SNN", total=len(data) if isinstance(data, Sized) else None))
    return pairs


def _labels(targets: Tensor, scores: Tensor) -> Tensor:
    """Check the targets of a batch against the DNN's scores."""
    if scores.dim() != 2:
        raise ValueError(
            f"Expected argument `dnn` to be a classifier with scores of shape (B, K), but got {tuple(scores.shape)}."
        )
    if targets.shape != scores.shape[:1] or targets.is_floating_point():
        raise ValueError(
            f"Expected argument `data` to give targets of shape ({len(scores)},), integers as class indices, but got "
            f"{tuple(targets.shape)} of {targets.dtype}. Of one-hot targets give `target.argmax(1)`."
        )
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= scores.shape[1]:
        raise ValueError(
            f"Expected argument `data` to give targets from 0 to {scores.shape[1] - 1}, the classes that the DNN "
            f"scores, but got {low if low < 0 else high}."
        )
    return targets.cpu()
