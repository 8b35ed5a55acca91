"""Thresholds of a traced network from calibration data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from itertools import accumulate, chain, islice
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from snnreg_plugins.export.input_code import Inputs
from snnreg_plugins.export.processes import Processes
from snnreg_plugins.export.refusals import misfit, where
from snnreg_plugins.functional.thresholds import ActivationHistogram, local, maximum, mmse, percentile
from snnreg_plugins.watching.hooks import Hooks

#: From the histogram of a layer's activations, and whether to go by channel, to its threshold(s).
Threshold: TypeAlias = Callable[[ActivationHistogram, bool], Tensor]
# Methods that take more than a histogram of activations.
OTHER_METHODS = ("auto", "learned", "spike_norm")
# All single-precision numbers are multiples of 2 ** -_FRACTION, and of 24 bits: the smallest exponent is -148.
_FRACTION = 148 + 24
# A channel with a threshold this small beside its layer's is silent on the calibration data: with a threshold of
# its own it would fire on nothing.
_DEAD = 1e-2


class SilentLayerError(ValueError):
    """A layer that is never active on the calibration data, so that it has no threshold; the message names it."""


def threshold_function(
    threshold: str | Threshold, percent: float, timesteps: int = 1, initial_potential: float = 0.5
) -> Threshold:
    """Look up a threshold method by name; a function passes through.

    Raises:
        ValueError: If the name is unknown.
    """
    if callable(threshold):
        return threshold
    methods: dict[str, Threshold] = {
        "max": maximum,
        "percentile": partial(percentile, percent=percent),
        "mmse": partial(mmse, timesteps=timesteps, initial_potential=initial_potential),
        "local": local,
    }
    if not isinstance(threshold, str) or threshold not in methods:
        raise ValueError(
            f"Expected argument `threshold` to be a function or one of {sorted({*methods, *OTHER_METHODS})}, but got "
            f"{threshold!r}."
        )
    return methods[threshold]


def example(inputs: Iterator[Tensor], processes: Processes) -> tuple[Tensor, Iterator[Tensor]]:
    """Take a look at the first sample.

    Args:
        inputs: Batches; of several processes, the share of this one, which may be none.
        processes: Those that calibrate together.

    Returns:
        The first sample of all processes, ``(1, ...)``, on the CPU; and the batches of this one from the first on.

    Raises:
        ValueError: If there is no sample at all.
    """
    begun: list[Tensor] = []

    def begin() -> Tensor | None:
        begun.extend(islice(inputs, 1))
        return begun[0][:1].cpu().clone() if begun else None

    for sample in processes.gather(begin):
        if sample is not None:
            return sample, chain(begun, inputs)
    raise ValueError("Expected argument `calibration` to hold at least one sample, but it is empty.")


def run_on_calibration(network: nn.Module, inputs: Tensor, argument: str = "calibration") -> Any:
    """Run a network on calibration data, or on that of another argument.

    Raises:
        ValueError: If the data does not fit the network.
    """
    try:
        return network(inputs)
    except (RuntimeError, IndexError) as error:
        raise misfit(network, inputs, argument, error) from error


def propagate_shapes(network: fx.GraphModule, inputs: Tensor) -> None:
    """Leave the shape of each node's tensor in ``node.meta["tensor_meta"]``.

    Raises:
        ValueError: If the inputs do not fit the network.
    """
    run_on_calibration(network, inputs)
    ShapeProp(network).propagate(inputs)


@dataclass
class _Seen:
    """What one process saw: inputs, and channels and range of each histogram."""

    largest: float = 0.0
    smallest: float = 0.0
    count: int = 0
    total: int = 0  # of magnitudes, in units of 2 ** -_FRACTION
    active: int = 0
    histograms: dict[str, tuple[int, float]] = field(default_factory=dict)


class Statistics:
    """What calibration data shows of a network: activations of every population of neurons, and samples to simulate.

    All of it is the same for any order and split of the samples over batches and processes, exactly, but for which
    samples are kept.

    Args:
        network: A network of :func:`~snnreg_plugins.export.trace.trace`.
        inputs: Batches of what the network was trained on; of several processes, the share of this one.
        per_channel: Whether to keep the activations of channels apart.
        samples: Number of samples to keep, the first ones that are of the size of the very first one; those of several
            processes take turns.
        device: Where the network is.
        processes: Those that calibrate together.
        see: From a batch to what the network sees of it.

    Raises:
        ValueError: If an input or an activation is not finite, or the data does not fit the network; in any process.
    """

    def __init__(
        self,
        network: fx.GraphModule,
        inputs: Iterable[Tensor],
        per_channel: bool,
        samples: int,
        device: torch.device,
        processes: Processes,
        see: Callable[[Tensor], Tensor] = lambda batch: batch,
    ) -> None:
        self.device, self._given = device, see
        (first,) = (node.meta["tensor_meta"].shape for node in network.graph.nodes if node.op == "placeholder")
        self._first_shape = tuple(first[1:])  # of a sample, which all that are simulated have
        self.places = {str(node.target): where(node) for node in network.graph.nodes}
        self.histograms: dict[str, ActivationHistogram] = {}
        self.shapes: dict[tuple[int, ...], None] = {}  # of a sample
        modules = dict(network.named_modules())
        neural = {
            str(node.target): node.meta["populations"]
            for node in network.graph.nodes
            if "populations" in node.meta and not node.meta["head"]
        }
        self.layers = {key: name for name, kinds in neural.items() for key in kinds}
        self.populations = {key: kind for kinds in neural.values() for key, kind in kinds.items()}
        kept: list[Tensor] = []
        with Hooks(after=[(modules[name], partial(self._observe, name, per_channel)) for name in neural]):
            seen = processes.gather(partial(self._see, network, inputs, samples, kept))
        largest, smallest = max(each.largest for each in seen), min(each.smallest for each in seen)
        self.count = sum(each.count for each in seen)  # of samples
        total, active = sum(each.total for each in seen), sum(each.active for each in seen)
        mean = float(Fraction(total, max(1, active) << _FRACTION))
        self.inputs = Inputs(max(largest, -smallest), mean, signed=smallest < 0)
        self._reduce([each.histograms for each in seen], processes)
        self.samples = _first(kept, samples, processes).to(device) if samples else None

    def _see(self, network: fx.GraphModule, inputs: Iterable[Tensor], samples: int, kept: list[Tensor]) -> _Seen:
        """Run the network on the data of this process, whose first samples are added to ``kept``."""
        seen = _Seen()
        for batch in inputs:
            given = self._given(batch)
            run_on_calibration(network, given)
            magnitudes = given.detach().abs().float()
            if not magnitudes.isfinite().all():
                raise ValueError("Expected argument `calibration` to hold finite inputs, but it has NaN or infinity.")
            seen.largest = max(seen.largest, float(given.max()))
            seen.smallest = min(seen.smallest, float(given.min()))
            seen.total, seen.active = seen.total + _exact_sum(magnitudes), seen.active + int(given.count_nonzero())
            seen.count += len(given)
            shape = tuple(given.shape[1:])
            self.shapes[shape] = None
            missing = samples - sum(map(len, kept))
            if missing > 0 and shape == self._first_shape:
                kept.append(batch[:missing])
        seen.histograms = {name: (len(each.counts), each.range) for name, each in self.histograms.items()}
        return seen

    def require_one_size(self, why: str) -> None:
        """Raise a ValueError if inputs are of several sizes."""
        if len(self.shapes) > 1:
            shapes = " and ".join(str(("B", *shape)).replace("'", "") for shape in list(self.shapes)[:2])
            raise ValueError(
                f"Expected argument `calibration` to hold inputs of one size, for {why}, but got shapes {shapes}."
            )

    def _reduce(self, seen: list[dict[str, tuple[int, float]]], processes: Processes) -> None:
        """Add up the histograms of all processes, one of which may have seen none of the layers."""
        channels = {name: count for each in seen for name, (count, _) in each.items()}
        own, self.histograms = self.histograms, {}
        for name in self.populations:
            if name not in channels:
                continue
            histogram = own[name] if name in own else ActivationHistogram(channels[name], device=self.device)
            histogram.widen(max(each[name][1] for each in seen if name in each))
            histogram.counts = processes.sum(histogram.counts)
            histogram.largest = processes.maximum(histogram.largest)
            self.histograms[name] = histogram

    def _observe(
        self, name: str, per_channel: bool, module: nn.Module, args: tuple[Tensor, ...], output: Tensor
    ) -> None:
        for key, population in self.populations.items():
            if self.layers[key] != name:
                continue
            if key not in self.histograms:
                channels = output.shape[1] if per_channel else 1
                self.histograms[key] = ActivationHistogram(channels, device=self.device)
            try:
                self.histograms[key].update(population.rectify(args[0]))
            except ValueError as error:
                raise ValueError(f"Layer {name!r}: {error}") from error

    def levels(self, threshold: Threshold | None, per_channel: bool) -> dict[str, Tensor]:
        """Balance thresholds: one (or one per channel) for each population, from its activations.

        Args:
            threshold: The method; None for thresholds that were learned.
            per_channel: One threshold per channel instead of one per layer.

        Returns:
            Thresholds by population: scalars, or ``(C,)``.

        Raises:
            ValueError: If a layer has learned no threshold.
            SilentLayerError: If a layer is silent on all of the data.
        """
        return {name: self._level(name, threshold, per_channel) for name in self.histograms}

    def _level(self, name: str, threshold: Threshold | None, per_channel: bool) -> Tensor:
        histogram, limit, place = self.histograms[name], self.populations[name].limit, self.places[self.layers[name]]
        if self.populations[name].learned or (threshold is None and limit < float("inf")):
            return torch.tensor(limit, device=histogram.largest.device)
        if threshold is None:
            raise ValueError(
                f"Layer {self.layers[name]!r}{place} has learned no threshold. Train with QCFSActivations, or choose "
                'another `threshold`, such as "percentile".'
            )
        level = level_of(histogram, threshold, per_channel)
        if level is None:
            if self.populations[name].sign < 0:
                return torch.tensor(1.0, device=histogram.largest.device)  # no input is ever negative
            raise SilentLayerError(
                f"Layer {self.layers[name]!r}{place} is silent on all calibration data, so it has no threshold. Check "
                "that the network is trained and the calibration data is what it was trained on; a weaker penalty "
                "keeps layers alive."
            )
        return level


def level_of(histogram: ActivationHistogram, threshold: Threshold, per_channel: bool) -> Tensor | None:
    """Choose the threshold of a layer, a scalar, or of its channels, ``(C,)``; None if all of them are silent."""
    level = threshold(histogram, False)
    if not level > 0:
        level = maximum(histogram)
    if not level > 0:
        return None
    if per_channel:
        channels = threshold(histogram, True)
        level = torch.where(channels > _DEAD * level, channels, level)
    return level


def _exact_sum(values: Tensor) -> int:
    """Add up non-negative numbers in single precision without rounding, so that their order makes no difference.

    Returns:
        The sum in units of ``2 ** -_FRACTION``, in which all such numbers are whole.
    """
    mantissas, exponents = values.cpu().flatten().frexp()
    shifts = exponents.long() + (_FRACTION - 24)
    sums = torch.zeros(_FRACTION + 128, dtype=torch.int64).index_add_(0, shifts, (mantissas * 2.0**24).long())
    return sum(number << shift for shift, number in enumerate(sums.tolist()))


def _first(kept: list[Tensor], samples: int, processes: Processes) -> Tensor:
    """Give the first samples of all processes, which take turns."""
    held = processes.gather(lambda: sum(map(len, kept)))
    turns = sorted((turn, rank) for rank, count in enumerate(held) for turn in range(count))[:samples]
    share = sum(rank == processes.rank for _, rank in turns)
    shares = processes.gather(lambda: torch.cat(kept)[:share].cpu().clone() if share else None)
    before = [0, *accumulate(0 if each is None else len(each) for each in shares)]
    joined = torch.cat([each for each in shares if each is not None])
    return joined[[before[rank] + turn for turn, rank in turns]].contiguous()
