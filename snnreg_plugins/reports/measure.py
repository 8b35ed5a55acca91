"""Measure what a spiking network scores and spends, beside the DNN that it was exported from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from snnreg_plugins._batches import begun, mean_frame, number_of_batches, pairs_of
from snnreg_plugins._checks import as_integers
from snnreg_plugins._console import following
from snnreg_plugins._console import progress as working
from snnreg_plugins._models import as_module, device_of, dtype_of, eval_and_back
from snnreg_plugins.export.faithful import traced_faithfully
from snnreg_plugins.functional.cost_models import Model
from snnreg_plugins.functional.costs import LayerFacts, Need
from snnreg_plugins.metrics.scores import Loss, Score, Task, choose_score, loss_of_modules
from snnreg_plugins.reports.counted import Answers, Counts, dnn_report, layer_report, step_report
from snnreg_plugins.reports.own import Readout, as_it_is, measure_own
from snnreg_plugins.reports.parts import LayerReport
from snnreg_plugins.reports.pricing import Prices
from snnreg_plugins.reports.report import Report
from snnreg_plugins.spiking.network import SpikingNetwork
from snnreg_plugins.watching.facts import layer_facts
from snnreg_plugins.watching.hooks import Hooks
from snnreg_plugins.watching.layers import spikes_already
from snnreg_plugins.watching.tally import Tally


def report(
    dnn: nn.Module | None,
    network: nn.Module,
    data: Iterable[Any],
    *,
    steps: Sequence[int] = (1, 2, 4, 8, 16, 32),
    table: Model | Sequence[Model] | None = None,
    count_zero_weights: bool | None = None,
    metric: Metric | Task | Score | None = None,
    loss: Loss | None = None,
    readout: Readout = as_it_is,
    input_events: bool | None = None,
    progress: bool = True,
) -> Report:
    r"""Measure what a spiking network scores and spends at every T, beside the DNN it was exported from.

    One pass over the data. The spiking network runs for max(steps) time steps: its first T steps are its run of T
    steps, so that score, SOPs and energy at each T are exactly those of a run of its own. Energy is an estimate from
    published prices, by each model of :data:`~snnreg_plugins.functional.COST_MODELS`; by arithmetic alone

    .. math:: E = 10^{-12} \left(\text{SOPs} \cdot e_{AC} + \text{MACs} \cdot e_{MAC}\right)

    MACs are those of layers with real-valued input, as the analog first layer has; they are part of the spiking
    network's energy. The same rule holds for the DNN: integer-valued input (a binary image) is events and gives SOPs.

    Both networks are measured in eval mode and left as they were. The DNN is measured on a copy, so that what
    watches it counts nothing; metrics that watch ``network`` count this pass too. Batches are moved to where the
    networks are. In distributed runs each process reports on its own data.

    Without a DNN, ``report(None, network, data)``, the tables are of the spiking network alone. That may be any one
    that spikes already, such as your own of snnTorch or Norse: it is called once a batch, from fresh states, and
    reported at the time steps that it takes by itself, the most that the calls of all its layers have in common that
    are called repeatedly.

    Args:
        dnn: The DNN: input ``(B, ...)`` to one tensor of outputs; None to report on ``network`` alone.
        network: The spiking network exported from it; or with no DNN any network with spiking neurons.
        data: (input, target) batches, such as a DataLoader: input ``(B, ...)``, targets such as class indices ``(B,)``.
        steps: The numbers of time steps to report; of no use for a network with a time loop of its own. Where inputs
            have a dimension of time (``network.time_dim``), those up to the steps that they have, which are added; the
            DNN sees the mean over them.
        table: The model of cost that is shown, or several: names in ``functional.COST_MODELS``, YAML files of prices,
            or models of your own. Energies of the report are by the first one that prices all of it in joules; where
            none does, the one of the network's weights comes before them: ``"horowitz_fp32"``, or of few bits
            ``"horowitz_int8_int32"`` or ``"horowitz_shift"``, for the DNN too. If None, that one, ``"lemaire"``,
            ``"bit_matched"`` and ``"eflops"``. The report holds all that come with the package.
        count_zero_weights: Whether a weight that is exactly zero is a synapse; None for what each model has it for.
        metric: What is scored: ``"multiclass"``, ``"binary"`` (logits; above 0 is a yes), ``"multilabel"`` (the same),
            ``"regression"``, or a metric of torchmetrics, which gets outputs and targets. If None, the targets tell,
            and the loss modules of ``dnn``: accuracy where they are classes or labels, the mean squared error where
            they are values.
        loss: What the training loss tells of the task, where it is no module of ``dnn``.
        readout: Of a network that is none of an export: from what it returns for a batch to its scores ``(B, ...)``,
            such as ``lambda outputs: outputs[0].sum(0)`` for spikes and potentials ``(T, B, K)``.
        input_events: Of such a network: whether whole numbers in its input are events. If False, as for images of 0 to
            255, they cost MACs. If None they are taken for events, and a warning says so.
        progress: Show a progress bar over the batches, in a terminal.

    Returns:
        The numbers, with ``print()``, ``save_json(path)`` and ``save_plot(path)``. Its numbers by layer are at
        ``network.timesteps`` if that is one of ``steps``, else at the largest of them.

    Raises:
        ValueError: If ``steps`` are not positive integers, ``data`` holds no sample, it cannot be told what is scored
            or targets do not fit that, or ``table`` is an unknown name.
        TypeError: If ``network`` is no SpikingNetwork (without a DNN: has no spiking neurons), it does not take a
            batch alone or gives no tensor of scores, or ``data`` does not give (input, target) pairs.
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
    ascending = require_steps(steps)
    prices = Prices.of(network, table, count_zero_weights)
    _require_spiking(dnn, network)
    first, pairs = begun(pairs_of(data))
    if first is None:
        raise ValueError("Expected argument `data` to hold at least one sample, but it is empty.")
    loss = loss or loss_of_modules(network if dnn is None else dnn)
    total = number_of_batches(data)
    if not isinstance(network, SpikingNetwork):
        given: dict[str, Any] = {"metric": metric, "loss": loss, "readout": readout, "input_events": input_events}
        with working("Measuring, batches", total, progress) as step:
            return measure_own(network, following(pairs, step), prices, **given)
    time = network.time_dim
    if time is not None:
        held = first[0].shape[time]
        ascending = sorted({held, *(step for step in ascending if step < held)})
    longest = ascending[-1]
    at = network.timesteps if network.timesteps in ascending else longest
    see = partial(mean_frame, time_dim=time, dtype=torch.float32 if dnn is None else dtype_of(dnn))
    traced = None if dnn is None else traced_faithfully(dnn, see(first[0]), network.conversion.get("until"))
    samples, scores = 0, _Scores(ascending)
    with (
        torch.no_grad(),
        nullcontext() if traced is None else Tally(traced, input_events=False, counting=prices.needs) as of_dnn,
        Tally(network, products=False, counting=prices.needs) as of_snn,
        (behind := _Behind(network, ascending, prices.needs)).hooks,
        run_as(network, longest),
        working("Measuring, batches", total, progress) as step,
    ):
        for inputs, targets in following(pairs, step):
            running = network(inputs.to(device_of(network)), per_step=True).cpu()
            outputs = running[-1] if traced is None else traced(see(inputs).to(device_of(traced))).cpu()
            if not samples:
                scores.begin(choose_score(outputs, targets, loss, metric))
            behind.count()
            scores.add(outputs, running, targets)
            summed = behind.values or running[0, 0].numel()
            samples += running.shape[1]
    spiking = _layers_that_spike(network, of_snn)
    by_steps = {T: Counts.of(of_snn, spiking, T).plus(behind.counts(T)) for T in ascending}
    facts_of_dnn = [] if of_dnn is None else layer_facts(of_dnn, weight_bits=network.weight_bits)
    priced = prices.of_report(
        dnn=None if of_dnn is None else dnn_report(scores.dnn, Counts.of(of_dnn, of_dnn.names), samples, facts_of_dnn),
        steps=tuple(
            step_report(T, score, by_steps[T], samples, [*_facts_of_spikes(network, of_snn, T), *behind.facts(T)])
            for T, score in scores.at.items()
        ),
        timesteps=at,
        layers=(
            *(layer_report(name, layer, Counts.of(of_snn, [name], at), samples) for name, layer in spiking.items()),
            _readout_report(network.readout, summed * at),
            *(layer_report(name, layer, counts, samples) for name, layer, counts in behind.layers(at)),
        ),
    )
    return Report(
        **priced,
        samples=samples,
        timesteps=at,
        score_name=scores.dnn.name,
        higher_is_better=scores.dnn.higher_is_better,
        decisions=None if scores.dnn.decisions == samples else scores.dnn.decisions,
        chance=scores.answers.chance() if scores.dnn.is_accuracy else None,
    )


def _require_spiking(dnn: nn.Module | None, network: Any) -> None:
    """Raise a TypeError unless there is something to report on."""
    if dnn is not None:
        as_module("dnn", dnn)
    if isinstance(network, SpikingNetwork):
        return
    own = isinstance(network, nn.Module) and spikes_already(network)
    if dnn is None and not own:
        raise TypeError(
            f"Expected argument `network` to have spiking neurons, but got {type(network).__name__}. Export it with "
            "to_snntorch(), or see what a DNN spends with profile()."
        )
    if not own:
        raise TypeError(
            "Expected argument `network` to be a SpikingNetwork, such as to_snntorch() makes, but got "
            f"{type(network).__name__}."
        )
    if dnn is not None:
        raise TypeError(
            f"Expected argument `dnn` to be None for a network that was exported from none, but got "
            f"{type(dnn).__name__} beside {type(network).__name__}. Report on that as report(None, network, data)."
        )


def _readout_report(readout: str, additions: int) -> LayerReport:
    """Give the row of the readout; it adds up nothing, where outputs are only compared, or one of them is taken."""
    kind = {"mean": "sum", "spike_count": "spike count"}.get(readout, readout)
    return LayerReport("readout", kind, updates=None if readout in ("last", "max") else float(additions))


class _Scores:
    """The scores of the DNN, and of the spiking network after some numbers of steps.

    Args:
        steps: The numbers.
    """

    dnn: Score

    def __init__(self, steps: Sequence[int]) -> None:
        self._steps = steps
        self.at: dict[int, Score] = {}
        self.answers = Answers()

    def begin(self, score: Score) -> None:
        """Take what is scored; of this process alone."""
        self.dnn = score.fresh(sync=False)
        self.at = {step: score.fresh(sync=False) for step in self._steps}

    def add(self, outputs: Tensor, running: Tensor, targets: Tensor) -> None:
        """Add a batch: outputs of the DNN, and those of the spiking network after each step."""
        self.dnn.update(outputs, targets)
        self.answers.add(targets)
        for step, score in self.at.items():
            score.update(running[step - 1], targets)


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


def _facts_of_spikes(network: SpikingNetwork, tally: Tally, timesteps: int) -> list[LayerFacts]:
    """Give what the layers of the spiking part do in a run; what is behind it, :class:`_Behind` counts."""
    behind = set() if network.head is None else set(network.head.modules())
    return [facts for facts in layer_facts(tally, steps=timesteps) if tally.modules[facts.name] not in behind]


class _Behind:
    """What comes behind the spikes, where a part stays a DNN: what it reads, and does in a run of so many steps.

    The network calls it for each number of steps, each time as a run of so many steps does once. Those that are
    reported are counted on a copy, which nobody else watches.

    Args:
        network: The network.
        steps: The numbers of steps that are reported.
        needs: What is counted beside operations.
    """

    def __init__(self, network: SpikingNetwork, steps: Sequence[int], needs: Iterable[Need]) -> None:
        self.hooks = Hooks(many_steps=True)
        self.values: int | None = None
        self._means: list[Tensor] = []
        self._copy = deepcopy(network.head)
        self._tallies = {} if self._copy is None else {step: Tally(self._copy, counting=needs) for step in steps}
        if network.head is not None:
            self.hooks.before(network.head, self._read)

    def _read(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.values = args[0][0].numel()
        self._means.append(args[0])

    def count(self) -> None:
        """Count for the batch that was run."""
        for step, tally in self._tallies.items():
            with tally:
                tally.model(self._means[step - 1])
        self._means.clear()

    def counts(self, timesteps: int) -> Counts:
        """Give what all of it does in a run."""
        tally = self._tallies.get(timesteps)
        return Counts(0, 0, 0, 0, 0) if tally is None else Counts.of(tally, tally.names)

    def facts(self, timesteps: int) -> list[LayerFacts]:
        """Give what each of its layers does in a run."""
        tally = self._tallies.get(timesteps)
        return [] if tally is None else layer_facts(tally)

    def layers(self, timesteps: int) -> Iterator[tuple[str, nn.Module, Counts]]:
        """Walk its layers with what each does in a run."""
        tally = self._tallies.get(timesteps)
        if tally is not None:
            for layer, row in tally.index.items():
                name, counts = tally.names[row], Counts.of(tally, [tally.names[row]])
                if any(counts):  # and not of what might have multiplied, and did not
                    yield name or type(layer).__name__, layer, counts


def require_steps(steps: Any) -> list[int]:
    """Check and sort numbers of time steps, each once.

    Raises:
        ValueError: If they are not positive integers, or none.
    """
    return sorted(set(as_integers("steps", steps, (1, 2, 4, 8))))


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
