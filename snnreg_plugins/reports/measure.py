"""Measure what an exported network scores and spends, beside the DNN it was exported from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from snnreg_plugins._batches import begun, pairs_of
from snnreg_plugins._models import device_of, eval_and_back
from snnreg_plugins.export.faithful import traced_faithfully
from snnreg_plugins.functional.energy import EnergyTable, energy, energy_table
from snnreg_plugins.functional.synapses import Synapses, count_events, fan_out, sample_shape
from snnreg_plugins.reports.report import DNNReport, LayerReport, Report, StepReport
from snnreg_plugins.spiking.network import SpikingNetwork
from snnreg_plugins.watching.hooks import Hooks
from snnreg_plugins.watching.layers import is_spiking_neuron, neuron_layers, synaptic_layers
from snnreg_plugins.watching.steps import CallSteps, steps_of_call


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
        _Counter([traced]) as of_dnn,
        _Counter([network.encoder, network.body], longest, network.head) as of_snn,
        run_as(network, longest),
    ):
        for inputs, targets in pairs:
            scores = traced(inputs.to(device_of(traced))).cpu()
            labels = _labels(targets, scores)
            running = network(inputs.to(device_of(network)), per_step=True).cpu()
            correct += int((scores.argmax(1) == labels).sum())
            correct_at += (running.argmax(2) == labels).sum(1)
            readout = of_snn.readout or running[0, 0].numel()
            samples += len(labels)
    return Report(
        samples=samples,
        dnn=_dnn_report(correct, of_dnn.total(1), samples, prices),
        steps=tuple(_step_report(T, int(correct_at[T - 1]), of_snn.total(T), samples, prices) for T in ascending),
        timesteps=at,
        layers=(
            *(_layer_report(name, layer, counts, samples, prices) for name, layer, counts in of_snn.by_layer(at)),
            LayerReport("readout", "sum", updates=float(readout * at)),
        ),
        table=table if isinstance(table, str) else "custom",
        mac=prices.mac,
        ac=prices.ac,
        source=prices.source,
    )


class _Counts(NamedTuple):
    """What layers did, summed over samples."""

    sops: int
    effective_macs: int
    dense_macs: int
    spikes: int
    neuron_steps: int


class _Counter:
    """Counts what the layers of traced networks do in each time step, exactly.

    Args:
        parts: The networks, in the order they run in. The last one's runs are the time steps; what the others do
            belongs to the first step.
        steps: Time steps of a forward pass.
        head: What reads the sum of the steps' outputs, if anything does.
    """

    def __init__(self, parts: Sequence[fx.GraphModule], steps: int = 1, head: nn.Module | None = None) -> None:
        self.layers: dict[str, nn.Module] = {}
        self.hooks = Hooks(many_steps=True)
        self._step = 0
        self.readout = 0  # values that the head reads of a sample
        self._synapses: dict[tuple[str, tuple[int, ...]], Synapses] = {}
        for part in parts:
            synapses, neurons = synaptic_layers(part), neuron_layers(part)
            for name in dict.fromkeys(str(node.target) for node in part.graph.nodes if node.op == "call_module"):
                if name in synapses:
                    self.layers[name] = synapses[name]
                    self.hooks.before(synapses[name], partial(self._arrive, name, len(self.layers) - 1))
                elif name in neurons:
                    self.layers[name] = neurons[name]
                    self.hooks.after(neurons[name], partial(self._emit, len(self.layers) - 1))
        self.hooks.after(parts[-1], self._advance)
        if head is not None:
            self.hooks.before(head, self._read)
        self._counts = torch.zeros(steps, len(self.layers), len(_Counts._fields), dtype=torch.int64)

    def _arrive(self, name: str, index: int, layer: Any, args: tuple[Tensor, ...]) -> None:
        key = name, sample_shape(layer, args[0])
        if key not in self._synapses:
            self._synapses[key] = Synapses(layer, fan_out(layer, key[1]))
        fold = self._fold()
        for step, counts in enumerate(self._synapses[key].count_steps(args[0], fold.steps), start=fold.first_step):
            self._counts[step, index, :3] += torch.tensor(counts)

    def _emit(self, index: int, _: nn.Module, __: Any, output: Any) -> None:
        fold, spikes = self._fold(), output[0] if isinstance(output, tuple) else output
        for step, part in enumerate(spikes.tensor_split(fold.steps), start=fold.first_step):
            self._counts[step, index, 3:] += torch.tensor((count_events(part), part.numel()))

    def _fold(self) -> CallSteps:
        return steps_of_call() or CallSteps(1, self._step)

    def _advance(self, *_: Any) -> None:
        self._step = (self._step + 1) % len(self._counts)

    def _read(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.readout = args[0][0].numel()

    def total(self, timesteps: int) -> _Counts:
        """Sum over all layers and the first time steps."""
        return _Counts(*self._counts[:timesteps].sum((0, 1)).tolist())

    def by_layer(self, timesteps: int) -> Iterator[tuple[str, nn.Module, _Counts]]:
        """Walk the layers in the order they run in, with the sums over the first time steps."""
        for (name, layer), counts in zip(self.layers.items(), self._counts[:timesteps].sum(0).tolist(), strict=True):
            yield name, layer, _Counts(*counts)

    def __enter__(self) -> _Counter:
        return self

    def __exit__(self, *_: object) -> None:
        self.hooks.remove()


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
