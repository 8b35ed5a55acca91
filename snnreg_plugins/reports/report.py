"""What an exported network scores and spends, beside the DNN it was exported from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from snnreg_plugins._batches import pairs_of
from snnreg_plugins._files import read_json, write_json
from snnreg_plugins._models import device_of, eval_and_back
from snnreg_plugins._pictures import BLUE, GREY, ORANGE, drawn, legend_below
from snnreg_plugins._text import in_joules, in_short, new_table, span
from snnreg_plugins.export.trace import trace
from snnreg_plugins.functional.energy import EnergyTable, energy, energy_table
from snnreg_plugins.functional.synapses import Synapses, count_events, fan_out, sample_shape
from snnreg_plugins.spiking.network import SpikingNetwork
from snnreg_plugins.watching.hooks import Hooks
from snnreg_plugins.watching.layers import neuron_layers, synaptic_layers
from snnreg_plugins.watching.steps import CallSteps, steps_of_call

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import Console
    from rich.table import Table


@dataclass(frozen=True)
class DNNReport:
    """What the DNN scores and spends.

    Args:
        accuracy: Share of samples classified correctly, in [0, 1].
        sops: SOPs/sample: of layers with integer-valued input, such as a binary image; else 0.
        effective_macs: MACs/sample of real-valued input, zeros skipped.
        dense_macs: MACs/sample, nothing skipped.
        energy: J/sample on hardware that skips zeros.
        dense_energy: J/sample on hardware that skips nothing.
    """

    accuracy: float
    sops: float
    effective_macs: float
    dense_macs: float
    energy: float
    dense_energy: float


@dataclass(frozen=True)
class StepReport:
    """What a run of the spiking network over T time steps scores and spends.

    Args:
        timesteps: T.
        accuracy: Share of samples classified correctly, in [0, 1].
        spike_rate: Spikes/neuron/step, over all neurons and the T steps.
        updates: Neuron updates/sample: neurons times steps. Not part of the energy.
        sops: SOPs/sample.
        effective_macs: MACs/sample of layers with real-valued input, as the analog first layer, which is computed once.
        energy: J/sample, MACs included.
    """

    timesteps: int
    accuracy: float
    spike_rate: float
    updates: float
    sops: float
    effective_macs: float
    energy: float


@dataclass(frozen=True)
class LayerReport:
    """What one layer of the spiking network does: a neuron layer, or a synaptic layer. What does not apply is None.

    Args:
        name: Its name in the DNN.
        kind: Its class.
        threshold_min: Lowest threshold of the layer's channels; the threshold where there is but one.
        threshold_max: Highest threshold of the layer's channels.
        spike_rate: Spikes/neuron/step.
        updates: Neuron updates/sample; of the readout, which sums up the scores, additions.
        sops: SOPs/sample.
        effective_macs: MACs/sample.
        energy: J/sample.
    """

    name: str
    kind: str
    threshold_min: float | None = None
    threshold_max: float | None = None
    spike_rate: float | None = None
    updates: float | None = None
    sops: float | None = None
    effective_macs: float | None = None
    energy: float | None = None

    def cells(self) -> tuple[str, ...]:
        """Write the row of a table: name, kind, threshold, spike rate, updates, SOPs, MACs and energy."""
        return (
            self.name,
            self.kind,
            span(self.threshold_min, self.threshold_max),
            "" if self.spike_rate is None else f"{self.spike_rate:.3f}",
            "" if self.updates is None else in_short(self.updates),
            "" if self.sops is None or (self.effective_macs and not self.sops) else in_short(self.sops),
            in_short(self.effective_macs) if self.effective_macs else "",
            "" if self.energy is None else in_joules(self.energy),
        )


@dataclass(frozen=True)
class Report:
    """What an exported network scores and spends, beside its DNN; plain numbers. Made by :func:`report`.

    Args:
        samples: Number of samples measured.
        dnn: The DNN.
        steps: The spiking network at each T, ascending.
        timesteps: The T of ``layers``.
        layers: The spiking network's layers, in the order they are computed in.
        table: Name of the energy table, or ``"custom"``.
        mac: pJ per MAC.
        ac: pJ per synaptic operation.
        source: Where these energies were published.
    """

    samples: int
    dnn: DNNReport
    steps: tuple[StepReport, ...]
    timesteps: int
    layers: tuple[LayerReport, ...]
    table: str
    mac: float
    ac: float
    source: str

    def to_dict(self) -> dict[str, Any]:
        """Return nested dicts and lists of plain numbers and strings, as JSON has them."""
        plain = asdict(self)
        return plain | {"steps": list(plain["steps"]), "layers": list(plain["layers"])}

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`to_dict` to a JSON file; it appears when it is complete."""
        write_json(path, self.to_dict())

    @classmethod
    def load_json(cls, path: str | os.PathLike[str]) -> Report:
        """Read what :meth:`save_json` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it holds anything else.
        """
        result = read_json(path, cls)
        steps = [step.timesteps for step in result.steps]
        if result.timesteps not in steps or steps != sorted(set(steps)) or steps[0] < 1:
            raise ValueError(
                f"Expected {os.fspath(path)!r} to report on ascending time steps, {result.timesteps} among them, but "
                f"got {steps}."
            )
        return result

    def print(self, console: Console | None = None) -> None:
        """Print a table of DNN and SNN over T, and one of the SNN's layers.

        Args:
            console: Where to print; the terminal if None.
        """
        from rich.console import Console

        console = console or Console()
        console.print(self._overview())
        console.print(self._by_layer())
        console.print(self._break_even(), highlight=False, markup=False)
        console.print(
            "Updates: neurons times steps, and additions of the readout. SOP: one spike at one synapse. MAC: one "
            "real-valued input at one synapse. Sparse: zeros skipped. The SNN's MACs come from real-valued input, as "
            "at its analog first layer, and are part of its energy.\n"
            f"Energy is an estimate from published numbers, not a measurement: {self.mac:.3g} pJ per MAC and "
            f"{self.ac:.3g} pJ per SOP ({self.source}). Arithmetic at synapses only: no neuron updates, memory access "
            "or static power.",
            style="dim",
            highlight=False,
            markup=False,
        )

    def save_plot(self, path: str | os.PathLike[str]) -> None:
        """Draw accuracy and operations over T and the spike rate by layer, to a PNG (or what the suffix says).

        Raises:
            ModuleNotFoundError: If matplotlib is missing.
        """
        height = max(4.0, 1.8 + 0.24 * sum(layer.spike_rate is not None for layer in self.layers))
        with drawn(path, height) as (accuracy, cost, rates):
            self._draw_accuracy(accuracy)
            self._draw_cost(cost)
            self._draw_rates(rates)

    def _overview(self) -> Table:
        dnn = self.dnn
        table = new_table(f"DNN and SNN, per sample (mean of {self.samples:,})")
        table.add_column("")
        for header in ("Accuracy", "Spike rate", "SOPs", "MACs", "Energy", "/ sparse DNN"):
            table.add_column(header, justify="right", no_wrap=True)
        for name, sops, macs, joule in (
            ("DNN, dense", 0.0, dnn.dense_macs, dnn.dense_energy),
            ("DNN, sparse", dnn.sops, dnn.effective_macs, dnn.energy),
        ):
            table.add_row(
                name,
                _percent(dnn.accuracy),
                "",
                in_short(sops) if sops else "",
                in_short(macs),
                in_joules(joule),
                _ratio(joule, dnn.energy),
            )
        table.add_section()
        for step in self.steps:
            table.add_row(
                f"SNN, T = {step.timesteps}",
                _percent(step.accuracy),
                f"{step.spike_rate:.3f}",
                in_short(step.sops),
                in_short(step.effective_macs),
                in_joules(step.energy),
                _ratio(step.energy, dnn.energy),
            )
        return table

    def _break_even(self) -> str:
        step, rates = self.at_timesteps(), (self.break_even_rate(), self.break_even_rate(dense=True))
        if rates[0] is None or rates[1] is None:
            return "No spike reaches a synapse."
        return (
            f"At T = {step.timesteps} the SNN spends as much as the sparse DNN at {rates[0]:.3f} spikes/neuron/step, "
            f"as the dense one at {rates[1]:.3f}; it has {step.spike_rate:.3f}."
        )

    def _by_layer(self) -> Table:
        table = new_table(f"SNN by layer at T = {self.timesteps}, per sample")
        table.add_column("Layer", overflow="fold")
        table.add_column("Kind", overflow="ellipsis", max_width=12)
        for header in ("Threshold", "Spike rate", "Updates", "SOPs", "MACs", "Energy"):
            table.add_column(header, justify="right", no_wrap=True)
        for layer in self.layers:
            table.add_row(*layer.cells())
        table.add_section()
        table.add_row(*self.total_cells("total"))
        return table

    def total_cells(self, title: str) -> tuple[str, ...]:
        """Write the row of a table for all layers, below those of :meth:`LayerReport.cells`."""
        total = self.at_timesteps()
        return (
            title,
            "",
            "",
            f"{total.spike_rate:.3f}",
            in_short(sum(layer.updates or 0 for layer in self.layers)),
            in_short(total.sops),
            in_short(total.effective_macs),
            in_joules(total.energy),
        )

    def break_even_rate(self, dense: bool = False) -> float | None:
        r"""Find the spike rate at which the spiking network spends as much as the DNN, at :attr:`timesteps`.

        .. math:: r^* = r \, \frac{E_\text{DNN} - E_\text{MACs}}{E_\text{SOPs}}

        as SOPs grow with the rate r, while the MACs of an analog first layer stay.

        Args:
            dense: Against a DNN that skips no zeros.

        Returns:
            Spikes/neuron/step; below it the spiking network spends less. None if there are no SOPs.
        """
        step, dnn = self.at_timesteps(), self.dnn
        spent = 1e-12 * step.sops * self.ac
        if not spent:
            return None
        return step.spike_rate * ((dnn.dense_energy if dense else dnn.energy) - (step.energy - spent)) / spent

    def at_timesteps(self) -> StepReport:
        """Find the numbers at the T of :attr:`layers`."""
        return next(step for step in self.steps if step.timesteps == self.timesteps)

    def _draw_accuracy(self, axes: Axes) -> None:
        self._draw_over_steps(axes, [100 * step.accuracy for step in self.steps], label="SNN")
        axes.axhline(100 * self.dnn.accuracy, color=ORANGE, linewidth=1.8, label="DNN")
        axes.set(title="Accuracy", ylabel="Samples correct (%)")
        legend_below(axes)

    def _draw_cost(self, axes: Axes) -> None:
        from matplotlib.ticker import EngFormatter, LogLocator

        dnn = self.dnn
        self._draw_over_steps(axes, [step.sops for step in self.steps], label="SNN, SOPs")
        macs = [step.effective_macs for step in self.steps]
        if any(macs):
            steps = [step.timesteps for step in self.steps]
            axes.plot(steps, macs, color=BLUE, linewidth=1.8, linestyle=(0, (1, 1.5)), label="SNN, analog MACs")
        effective = "DNN, effective MACs" + (" + SOPs" if dnn.sops else "")
        axes.axhline(dnn.effective_macs + dnn.sops, color=ORANGE, linewidth=1.8, label=effective)
        axes.axhline(dnn.dense_macs, color=ORANGE, linewidth=1.8, linestyle=(0, (4, 2)), label="DNN, dense MACs")
        axes.set(title="Operations", ylabel="Operations / sample", yscale="log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        axes.minorticks_off()
        legend_below(axes)

    def _draw_rates(self, axes: Axes) -> None:
        layers = [layer for layer in self.layers if layer.spike_rate is not None]
        rates = [layer.spike_rate or 0.0 for layer in layers]
        bars = axes.barh([layer.name for layer in layers], rates, height=0.6, color=BLUE)
        axes.bar_label(bars, [f"{rate:.3f}" for rate in rates], padding=4, color=GREY)
        axes.set_ylim(max(len(layers), 4) - 0.5, -0.5)
        axes.margins(x=0.18)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set(title=f"Spike rate by layer at T = {self.timesteps}", xlabel="Spikes / neuron / step")

    def _draw_over_steps(self, axes: Axes, values: Sequence[float], label: str) -> None:
        steps = [step.timesteps for step in self.steps]
        axes.plot(steps, values, color=BLUE, linewidth=2, marker="o", markersize=5, label=label, zorder=3)
        axes.set_xscale("log", base=2)
        axes.set_xticks(steps, [str(step) for step in steps])
        axes.minorticks_off()
        axes.set_xlabel("Time steps T")


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
    traced = trace(dnn)
    samples, correct, correct_at = 0, 0, torch.zeros(longest, dtype=torch.int64)
    with (
        torch.no_grad(),
        _Counter([traced]) as of_dnn,
        _Counter([network.encoder, network.body], longest, network.head) as of_snn,
        run_as(network, longest),
    ):
        for inputs, targets in _pairs(data, progress):
            scores = traced(inputs.to(device_of(traced))).cpu()
            labels = _labels(targets, scores)
            running = network(inputs.to(device_of(network)), per_step=True).cpu()
            correct += int((scores.argmax(1) == labels).sum())
            correct_at += (running.argmax(2) == labels).sum(1)
            readout = of_snn.readout or running[0, 0].numel()
            samples += len(labels)
    if not samples:
        raise ValueError("Expected argument `data` to hold at least one sample, but it is empty.")
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
        return LayerReport(
            name,
            kind,
            threshold_min=float(layer.threshold.min()),
            threshold_max=float(layer.threshold.max()),
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


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _ratio(value: float, reference: float) -> str:
    return f"{value / reference:.2f}" if reference else ""
