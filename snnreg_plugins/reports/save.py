"""Find out by trying what would save the most of what a spiking network spends, at what loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from snnreg_plugins._batches import Calibration, pairs_of
from snnreg_plugins._checks import as_integer, as_number, shown
from snnreg_plugins._console import progress
from snnreg_plugins._models import device_of, eval_and_back
from snnreg_plugins._text import over
from snnreg_plugins.export.counted import run_and_count
from snnreg_plugins.export.margins import exit_margins
from snnreg_plugins.export.rebalance import Rebalance
from snnreg_plugins.functional.cost_models import Model
from snnreg_plugins.metrics.scores import Loss, Score, Task, choose_score, loss_of_modules
from snnreg_plugins.reports.measure import report
from snnreg_plugins.reports.pairs import Events
from snnreg_plugins.reports.parts import StepReport
from snnreg_plugins.reports.report import Report
from snnreg_plugins.reports.savings import Saving, Savings
from snnreg_plugins.spiking.network import SpikingNetwork, require_network
from snnreg_plugins.watching.tally import Tally

# What is tried: factors of all thresholds, and of those of one layer; how many layers, those whose spikes cost the
# most; shares of samples that are to keep their class where they leave early; and T below that of the network.
_FACTORS, _OF_A_LAYER, _LAYERS = (1.25, 1.5, 2.0), (1.5, 2.0), 4
_AGREEMENTS = (0.95, 0.98, 0.995)
_STEPS = tuple(sorted({1, 3, *(2**n for n in range(1, 11)), *(3 * 2**n for n in range(1, 10))}))
_LEAST = 0.01  # share of the SOPs below which nothing is saved to speak of


def savings(
    network: SpikingNetwork,
    data: Iterable[Any],
    calibration: Calibration | None = None,
    *,
    at_most: float = 0.01,
    table: Model | Sequence[Model] | None = None,
    metric: Metric | Task | Score | None = None,
    loss: Loss | None = None,
    limit_samples: int | None = 1024,
) -> Savings:
    r"""Try what would save the most of what a spiking network spends, and tell what each way saves and loses.

    Tried, each on the same samples and counted exactly, are

    - fewer time steps;
    - thresholds times 1.25, 1.5 and 2, of all layers, at every T that is tried: rates of activation a become
      :math:`a / (c \lambda)`, with each spike worth c times as much;
    - thresholds times 1.5 and 2 of one layer, for the four layers whose spikes cause the most operations;
    - early exit, of samples whose margin says that the class stays, with margins found on ``calibration``.

    The standard error is that of the difference of two accuracies on the same n samples,
    :math:`\sigma(c_i - c'_i) / \sqrt n` with :math:`c_i` whether sample i is right.

    The network is left as it was; :meth:`~snnreg_plugins.reports.savings.Saving.apply` does one of the ways to it, or
    to one that was loaded. A network that reads a dimension of time has its T from the data, and one of few bits its
    thresholds from its weights; those are not tried there.

    Args:
        network: The spiking network.
        data: (input, target) batches, other ones than those of the training.
        calibration: Inputs to find margins of early exit on, other ones than ``data``, as for
            :func:`~snnreg_plugins.exit_margins`; None to try no early exit.
        at_most: What the score may fall by where a way is suggested: of an accuracy as a share (0.01 is a point), of
            another score in shares of it.
        table: Model of cost, as for :func:`~snnreg_plugins.report`; of several the first one.
        metric: What is scored, as there.
        loss: What the training loss tells of the task, as there.
        limit_samples: Samples to measure on, the first ones; all if None.

    Returns:
        All that was tried and what is suggested, with ``print()``, ``save_json(path)`` and ``save_plot(path)``.

    Raises:
        TypeError: If ``network`` is no SpikingNetwork, or ``data`` does not give (input, target) pairs.
        ValueError: If an argument is out of range, ``data`` or ``calibration`` holds no sample, or it cannot be told
            what is scored.

    Example:
        >>> from torch import nn
        >>> from snnreg_plugins import to_snntorch
        >>> _ = torch.manual_seed(0)
        >>> x = torch.rand(200, 2)
        >>> model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> network = to_snntorch(model, x, timesteps=4)
        >>> found = savings(network, [(x, model(x).argmax(1))], at_most=0.05)
        >>> sorted({way.kind for way in found.tried})
        ['both', 'thresholds', 'timesteps']
    """
    require_network(network)
    if network.exit_margins is not None:
        raise ValueError(
            f"Expected argument `network` to have no `exit_margins`, so that all ways begin at the same, but got "
            f"{shown(network.exit_margins)}. Set network.exit_margins = None; margins are among what is tried."
        )
    at_most = as_number("at_most", at_most, "[0, inf)")
    limit = None if limit_samples is None else as_integer("limit_samples", limit_samples)
    pairs = list(_first(network, data, limit))
    if not pairs:
        raise ValueError("Expected argument `data` to hold at least one sample, but it is empty.")
    devices = [device_of(network)] if device_of(network).type == "cuda" else []
    with torch.random.fork_rng(devices):
        trial = _Trial(network, pairs, table, metric, loss)
        with progress("Trying to save", trial.number_of_tries(calibration is not None)) as step:
            trial.measure(step)
            tried = tuple(trial.ways(calibration))
    dearest = max(trial.base.layers, key=lambda layer: layer.energy or 0.0)
    plain, energy = trial.plain, trial.base.at_timesteps().energy
    return Savings(
        samples=trial.base.samples,
        timesteps=network.timesteps,
        score_name=trial.base.score_name,
        is_accuracy=trial.base.is_accuracy,
        score=plain.score,
        sops=plain.sops,
        energy=energy,
        unit=trial.base.primary.unit,
        source=trial.base.source,
        at_most=at_most,
        dearest=dearest.name,
        dearest_share=over(dearest.energy or 0.0, energy) or 0.0,
        dearest_macs=not dearest.sops,
        tried=tried,
        suggested=_suggested(tried, trial.base, at_most),
    )


def _first(network: SpikingNetwork, data: Iterable[Any], limit: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Walk the first samples."""
    left = limit
    for inputs, targets in pairs_of(data):
        dim = network.batch_dim_of(inputs)
        size = inputs.shape[dim] if left is None else min(left, inputs.shape[dim])
        yield inputs.narrow(dim, 0, size), targets[:size]
        if left is not None:
            left -= size
            if left == 0:
                return


@dataclass
class _Measured:
    """What a way scores and spends, and which samples are right; None if that is not told of each."""

    score: float
    sops: float
    energy: float | None
    right: Tensor | None


class _Trial:
    """Runs ways to spend less, all on the same samples."""

    def __init__(
        self,
        network: SpikingNetwork,
        pairs: list[tuple[Tensor, Tensor]],
        table: Model | Sequence[Model] | None,
        metric: Metric | Task | Score | None,
        loss: Loss | None,
    ) -> None:
        self.network, self.pairs, self.table = network, pairs, table
        loss = loss or loss_of_modules(network)
        with torch.no_grad(), eval_and_back(network):
            outputs = network(pairs[0][0].to(device_of(network))).cpu()
        self.score = choose_score(outputs, pairs[0][1], loss, metric)
        steps = [] if network.time_dim is not None else [step for step in _STEPS if step < network.timesteps]
        self.steps = [*steps, network.timesteps]
        self.layers = Rebalance(deepcopy(network)).layers if self._may_scale() else []

    def number_of_tries(self, calibrated: bool) -> int:
        """Tell how often something is run: by :meth:`measure`, and by :meth:`ways`, with a calibration or without."""
        scaled = len(_FACTORS) if self.layers else 0
        of_a_layer = len(_OF_A_LAYER) * min(len(self.layers), _LAYERS) if len(self.layers) > 1 else 0
        return 1 + scaled + of_a_layer + (len(_AGREEMENTS) if calibrated and self._may_leave() else 0)

    def measure(self, step: Callable[[str], None]) -> None:
        """Run the network as it is, which all else is compared with; ``step`` is called before all that is run."""
        self.step = step
        self.step("nothing, to compare with")
        self.base, self.measured = self._run(self.network, self.steps)
        self.plain = self.measured[max(self.measured)]

    def ways(self, calibration: Calibration | None) -> Iterator[Saving]:
        """Try all of them."""
        last = max(self.measured)
        for steps, found in self.measured.items():
            if steps != last:
                yield self._saving("timesteps", steps, found)
        for factor in _FACTORS if self.layers else ():
            self.step(f"thresholds × {factor:g}")
            factors = dict.fromkeys(self.layers, factor)
            for steps, found in self._scaled(factors, self.steps).items():
                yield self._saving("thresholds" if steps == last else "both", steps, found, factors)
        for layer in self._costly(self.layers) if len(self.layers) > 1 else ():
            for factor in _OF_A_LAYER:
                self.step(f"thresholds of {layer} × {factor:g}")
                factors = {layer: factor}
                one = self._scaled(factors, [self.network.timesteps])[last]
                yield self._saving("layer", last, one, factors)
        if calibration is not None and self._may_leave():
            yield from self._leaving(calibration)

    def _may_scale(self) -> bool:
        return bool(self.network.conversion.get("weights", "float") == "float")

    def _may_leave(self) -> bool:
        network = self.network
        return self.score.by_class and network.timesteps > 1 and network.head is None

    def _costly(self, layers: list[str]) -> list[str]:
        """Give the layers whose spikes cause the most operations."""
        network = deepcopy(self.network)
        with torch.no_grad(), eval_and_back(network), Tally(network, spikes=False, products=False) as tally:
            network(self.pairs[0][0].to(device_of(network)))
        events = Events(network, tally)
        caused = {name: events.of(name) or 0 for name in layers}
        return sorted(layers, key=lambda name: -caused[name])[:_LAYERS]

    def _scaled(self, factors: Mapping[str, float], steps: list[int]) -> dict[int, _Measured]:
        network = deepcopy(self.network)
        Rebalance(network).scale(factors)
        return self._run(network, steps)[1]

    def _run(self, network: SpikingNetwork, steps: list[int]) -> tuple[Report, dict[int, _Measured]]:
        """Measure a network after some numbers of steps, which one run gives."""
        seen: list[Tensor] = []
        hook = network.register_forward_hook(lambda _, __, outputs: seen.append(outputs.cpu()))
        try:
            found = report(None, network, self.pairs, steps=steps, table=self.table, metric=self.score)
        finally:
            hook.remove()
        kept = {step.timesteps: step for step in found.steps}
        # Of inputs with a dimension of time, the data tell T.
        wanted = [step for step in kept if step in steps] or [max(kept)]
        return found, {T: self._of_step(kept[T], T, seen) for T in wanted}

    def _of_step(self, step: StepReport, timesteps: int, seen: list[Tensor]) -> _Measured:
        right = self._right([outputs[timesteps - 1] for outputs in seen])
        return _Measured(step.score, step.sops, step.energy, right)

    def _right(self, outputs: list[Tensor]) -> Tensor | None:
        """Tell which samples are right; None where decisions are not one of each sample."""
        if not self.score.is_accuracy:
            return None
        found = [self.score.right(some, targets) for some, (_, targets) in zip(outputs, self.pairs, strict=True)]
        alike = all(right.numel() == len(targets) for right, (_, targets) in zip(found, self.pairs, strict=True))
        return torch.cat(found).double() if alike else None

    def _leaving(self, calibration: Calibration) -> Iterator[Saving]:
        network, batches = deepcopy(self.network), None
        for agreement in _AGREEMENTS:
            self.step(f"early exit, where {100 * agreement:g} % keep their class")
            if batches is None:
                batches = calibration if isinstance(calibration, (Tensor, list, tuple)) else list(calibration)
            network.exit_margins = None
            margins = exit_margins(network, batches, agreement)
            network.exit_margins = margins
            device = device_of(network)
            with eval_and_back(network):
                counted = [run_and_count(network, [inputs.to(device)]) for inputs, _ in self.pairs]
            sizes = [len(targets) for _, targets in self.pairs]
            sops = sum(one.sops * size for one, size in zip(counted, sizes, strict=True)) / sum(sizes)
            score = self.score.fresh(sync=False)
            for one, (_, targets) in zip(counted, self.pairs, strict=True):
                score.update(one.outputs.cpu(), targets)
            right = self._right([one.outputs.cpu() for one in counted])
            found = _Measured(score.compute(), sops, self._energy(sops), right)
            kept = tuple(None if margin == torch.inf else float(margin) for margin in margins)
            yield self._saving("exit", network.timesteps, found, margins=kept, agreement=agreement)

    def _energy(self, sops: float) -> float | None:
        """Price fewer SOPs beside the same MACs; None where MACs are of every step, or SOPs have no one price."""
        steps = self.base.steps
        if self.base.ac is None or len({round(step.effective_macs, 6) for step in steps}) > 1:
            return None
        return self.base.at_timesteps().energy - 1e-12 * self.base.ac * (self.plain.sops - sops)

    def _saving(
        self,
        kind: str,
        timesteps: int,
        found: _Measured,
        factors: Mapping[str, float] | None = None,
        margins: tuple[float | None, ...] = (),
        agreement: float | None = None,
    ) -> Saving:
        plain, error = self.plain, None
        if found.right is not None and plain.right is not None:
            error = float((found.right - plain.right).std(correction=0)) / len(plain.right) ** 0.5
        saved = None
        if found.energy is not None and plain.energy:
            saved = 1 - found.energy / plain.energy
        return Saving(
            kind=kind,
            timesteps=timesteps,
            factors=dict(factors or {}),
            margins=margins,
            agreement=agreement,
            score=found.score,
            difference=found.score - plain.score,
            error=error,
            sops=found.sops,
            energy=found.energy,
            saved_sops=1 - found.sops / plain.sops if plain.sops else 0.0,
            saved_energy=saved,
        )


def _suggested(tried: tuple[Saving, ...], base: Report, at_most: float) -> tuple[int, ...]:
    """Choose of each kind what saves the most SOPs at no larger fall; the best first."""
    allowed = at_most if base.is_accuracy else at_most * abs(base.at_timesteps().score)
    best: dict[str, int] = {}
    for index, saving in enumerate(tried):
        fall = {True: -saving.difference, False: saving.difference, None: abs(saving.difference)}[base.higher_is_better]
        if fall > allowed + 1e-9 or saving.saved_sops < _LEAST:
            continue
        if saving.kind not in best or _saves(saving) > _saves(tried[best[saving.kind]]):
            best[saving.kind] = index
    return tuple(sorted(best.values(), key=lambda index: _saves(tried[index]), reverse=True))


def _saves(saving: Saving) -> tuple[float, float]:
    return saving.saved_sops, saving.difference
