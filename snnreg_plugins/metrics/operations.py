"""Synaptic operations of a model's forward passes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from operator import add
from typing import Any

from torch import Tensor, nn

from snnreg_plugins._checks import as_flag, one_of
from snnreg_plugins.functional.costs import Need
from snnreg_plugins.metrics.base import WatchingMetric
from snnreg_plugins.watching.counts import Table, added
from snnreg_plugins.watching.details import AT_ZERO
from snnreg_plugins.watching.inputs import warn_of_whole_numbers
from snnreg_plugins.watching.labels import ByLabel, Labels
from snnreg_plugins.watching.tally import Tally


def _warn(metric: str, name: str, what: str) -> None:
    warnings.warn(f"{metric} does not count all: {name!r} ({what}).", stacklevel=2)


class SynapticOperations(WatchingMetric):
    r"""Synaptic operations per sample, with effective and dense MACs beside them; exact.

    .. math:: \text{SOPs} = \frac{1}{N} \sum_\text{layers} \sum_i \text{events}_i \cdot \text{fan\_out}_i

    The metric is built on a model, watches the input of every synaptic layer (Linear, Conv1d/2d/3d,
    ConvTranspose1d/2d/3d, one-to-one recurrence of snnTorch) and counts by itself: just run the model. Integer-valued
    input is a count of events and gives SOPs. Any other input (the first layer's image, a DNN's activations) is real
    and gives effective MACs: one per non-zero input and synapse; so is what an exported network reads as a constant
    current, images of 0 to 255 too, unless all of it is 0 or 1. Dense MACs count every input at every call of a
    layer. Events that a model averages over windows of one size (``nn.AvgPool2d``, ``F.avg_pool2d``, a mean) are
    counted before the average, as if 1/k² were part of the weights that read it.

    Spikes times a constant are events too, as if that were part of the weights: graded spikes, networks that others
    converted, dropout in training, a factor of each channel. What spiking neurons emit and what comparisons give is
    followed through products with numbers and weights, copies, pools, and sums at one scale, by the close look that is
    told of below. Events that cannot be followed, or that are added at several scales, count as MACs, and a warning
    says so. The activity of a DNN is multiplied, also where a single unit is active. Whole numbers, however they came
    to be, count as that many events.

    Products that no such layer makes (``F.linear``, ``@``, ``einsum``, recurrent cells of Norse, attention) are found
    by a close look at the first pass, and at ever rarer ones after it; a model that has some is looked at in every
    pass, which takes time. With weights they cost what a layer would, under the name of the module whose forward makes
    them. A product of two activities, as queries with keys, costs one effective MAC for each pair of non-zero operands
    that meet, and no SOPs. Attention in one operation counts as if written out: all queries with all keys, then the
    softmax without its dropout, 0 where masked, with the values. Element-wise products are no synapses, unless they
    spread an activity over weights; nor are the decays of neurons, however they are computed. What ``nn.LSTM``,
    ``nn.GRU`` and ``nn.RNN`` multiply is told by what they read and give, step by step. What multiplies and cannot be
    counted is named in a warning.

    Stepping the model through time from outside counts each sample once, if its states are reset between batches.
    Every pass counts, that of a training batch too: to log it in validation, reset it in
    ``on_validation_epoch_start``, or call it once a batch, see :meth:`update`.

    - ``compute()``: SOPs/sample, a float64 scalar.
    - ``total(quantity)``: the same for ``"sops"``, ``"effective_macs"`` or ``"dense_macs"``.
    - ``by_layer(quantity)``: the same for each layer, by its name in the DNN, and for modules that make products of
      their own; ``by_layer(quantity, steps=T)`` for the first T time steps alone.
    - ``by_step(quantity)``: the same at each time step.
    - ``by_label(quantity)``: the same for the samples of each label, where :meth:`labelled` told them.

    Args:
        model: The model to watch. It may be compiled, but not with ``fullgraph=True``.
        batch_dim: Dimension of the batch in the model's input; 1 for input of shape ``(T, B, ...)``.
        input_events: Whether whole numbers that a layer reads from the model's input are counts of events. If False,
            as for images of 0 to 255, they cost MACs, unless all of them are 0 or 1. If None they are taken for events,
            and a warning says so where some are above 1.
        count_zero_weights: Whether a weight that is exactly zero when its layer is called, as in a pruned network, is a
            synapse.
        kwargs: See ``torchmetrics.Metric``.

    Raises:
        ValueError: If the model has no synaptic layer and no other weights.
        RuntimeError: On ``compute()``, if no forward pass was seen.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> with SynapticOperations(model) as sops:
        ...     _ = model(torch.tensor([[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]]))
        >>> sops.by_layer()["0"]  # (2 + 1) events to 8 outputs each, for 2 samples
        12.0
        >>> sops.total("dense_macs")
        tensor(56., dtype=torch.float64)
    """

    quantities = ("sops", "effective_macs", "dense_macs")
    plot_unit = "SOPs / sample"
    watch: Tally

    def __init__(
        self,
        model: nn.Module,
        batch_dim: int = 0,
        input_events: bool | None = None,
        count_zero_weights: bool = True,
        **kwargs: Any,
    ) -> None:
        self._build(model, batch_dim, input_events, as_flag("count_zero_weights", count_zero_weights), **kwargs)

    def _build(
        self,
        model: nn.Module,
        batch_dim: int,
        input_events: bool | None,
        count_zero_weights: bool,
        counting: frozenset[Need] = frozenset(),
        spikes: bool = False,
        **kwargs: Any,
    ) -> None:
        """Begin to watch, and count at neurons and what else is needed."""
        name = type(self).__name__
        tally = Tally(
            model,
            spikes=spikes,
            counting=counting if count_zero_weights else counting | {"zero_weights"},
            batch_dim=batch_dim,
            input_events=input_events,
            on_miss=partial(_warn, name),
            on_doubt=partial(warn_of_whole_numbers, name),
        )
        tally.require_operations()
        super().__init__(
            tally, counted=self.quantities if count_zero_weights else (*self.quantities, *AT_ZERO), **kwargs
        )
        self.count_zero_weights = count_zero_weights
        self._labels = Labels(batch_dim)

    def reset(self) -> None:
        """Forget all counts; the next forward pass brings new samples."""
        super().reset()
        self._labels.forget()

    # Break-downs.

    @contextmanager
    def labelled(self, labels: Tensor | Sequence[Any]) -> Iterator[None]:
        """Tell the labels of the samples whose passes run inside, so that :meth:`by_label` can split their cost.

        Args:
            labels: One label for each sample of the batch: integers, or any keys of a dict.

        Raises:
            ValueError: In the pass, if a layer's input cannot be split into that many samples.

        Example:
            >>> import torch
            >>> model = torch.nn.Linear(2, 5)
            >>> with SynapticOperations(model) as sops, sops.labelled([3, 7, 7]):
            ...     _ = model(torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]]))
            >>> sops.by_label()
            {3: 10.0, 7: 2.5}
        """
        self._labels.tell(labels)
        self.watch.observer = self._labels
        try:
            with self.watch.hooks.one_step_at_a_time():  # which samples a call holds is plain then
                yield
        finally:
            self.watch.observer = None

    def by_label(self, quantity: str = "sops") -> dict[Any, float]:
        """Return ``"sops"``, ``"effective_macs"`` or ``"dense_macs"`` per sample of each label.

        Raises:
            RuntimeError: If no pass was labelled, or if one had products outside of layers, which do not split; or
                where weights of zero are no synapses.
        """
        if not self.count_zero_weights:
            raise RuntimeError(f"{type(self).__name__} splits by label with `count_zero_weights=True` alone.")
        column = 1 + self._column(quantity)
        parts = self._gathered((self._labels.by_label, self._labels.unsplit))
        tallies: ByLabel = {}
        for by_label, _ in parts:
            for label, tally in by_label.items():
                tallies[label] = list(map(add, tallies.get(label, [0] * len(tally)), tally))
        unsplit = any(each for _, each in parts)
        if unsplit or not tallies:
            why = "products outside of layers (attention, recurrent cells) do not split" if unsplit else "none did"
            raise RuntimeError(
                f"{type(self).__name__} splits by label what runs inside `with metric.labelled(labels)`; {why}."
            )
        return {label: tally[column] / tally[0] for label, tally in tallies.items()}

    def by_step(self, quantity: str = "sops") -> list[float]:
        """Return ``"sops"``, ``"effective_macs"`` or ``"dense_macs"`` per sample at each time step.

        The n-th call of a layer in a pass is the n-th step of that pass, and a pass that goes on with the states of
        the last one begins where that ended. So a layer that is called once in a pass (analog, or on all steps at
        once) costs at its first step alone, and one that a network calls twice in each step has twice the steps. The
        steps of ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` are those of their sequence, in both directions.

        Raises:
            RuntimeError: If layers were called one by one from outside, or a recurrent layer has projections or a
                forward of its own: no step can be told.
        """
        column = self._column(quantity)
        table, samples = self._steps()
        longest = max(map(len, table.values()), default=0)
        sums = [0] * longest
        signs = {column: 1} if self.count_zero_weights else {column: 1, self.watch.column(f"{quantity}_at_zero"): -1}
        for (_, of), values in table.items():
            if of in signs:
                sums[: len(values)] = map(add, sums, (signs[of] * value for value in values))
        return [number / samples for number in sums]

    def _steps(self) -> tuple[Table, int]:
        """Gather the counts by time step, and the samples, of all processes."""
        parts = self._gathered((self.watch.table(), self.watch.alone, self.watch.samples, self.watch.without_steps))
        tables, alone, samples, without = zip(*parts, strict=True)
        if any(without):
            names = sorted({name for each in without for name in each})
            raise RuntimeError(
                f"{type(self).__name__} cannot tell the time steps of {names}: recurrent layers with projections, or "
                "of classes of their own, run all of them at once. What they cost in all is in by_layer()."
            )
        if any(alone) or not sum(samples):
            why = "its layers were called one by one" if any(alone) else "has seen none"
            raise RuntimeError(f"{type(self).__name__} can tell time steps in passes of a whole model, but {why}.")
        return added(tables), sum(samples)

    def _column(self, quantity: str) -> int:
        return self.quantities.index(one_of("quantity", quantity, sorted(self.quantities)))

    def compute(self) -> Tensor:
        """Return SOPs/sample."""
        return self.total("sops")

    def total(self, quantity: str = "sops") -> Tensor:
        """Return ``"sops"``, ``"effective_macs"`` or ``"dense_macs"`` per sample, over all layers."""
        totals, samples = self._totals()
        return _of(totals, quantity).sum() / samples

    def by_layer(self, quantity: str = "sops", steps: int | None = None) -> dict[str, float]:
        """Return ``"sops"``, ``"effective_macs"`` or ``"dense_macs"`` per sample, for each layer by name.

        Args:
            quantity: What to return.
            steps: Number of time steps to count, the first ones: what a run of so many steps costs. All if None.

        Raises:
            ValueError: If an argument is out of range.
            RuntimeError: If no forward pass was seen, or ``steps`` is given and no step can be told; see
                :meth:`by_step`.
        """
        totals, samples = self._totals(steps)
        if steps is not None:
            self._steps()  # can be told
        values = (_of(totals, quantity) / samples).tolist()
        layers, active = len(self.watch.synapses), (self._totals()[0]["dense_macs"] > 0).tolist()
        return {name: values[row] for row, name in enumerate(self.watch.names) if row < layers or active[row]}

    def _totals(self, steps: int | None = None) -> tuple[dict[str, Tensor], Tensor]:
        totals, samples = super()._totals(steps)
        if self.count_zero_weights:
            return totals, samples
        return {name: totals[name] - totals[at] for name, at in zip(self.quantities, AT_ZERO, strict=True)}, samples


def _of(totals: dict[str, Tensor], quantity: str) -> Tensor:
    return totals[one_of("quantity", quantity, sorted(totals))]
