"""Synaptic operations and energy of a model's forward passes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import add
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from snnreg_plugins.functional.energy import EnergyTable, energy, energy_table
from snnreg_plugins.functional.synapses import (
    CONVOLUTIONS,
    Synapses,
    SynapticLayer,
    fan_out,
    is_synaptic,
    sample_shape,
)
from snnreg_plugins.metrics.base import WatchingMetric
from snnreg_plugins.watching.hooks import Hooks, uncompiled
from snnreg_plugins.watching.layers import one_to_one_layers, synaptic_layers
from snnreg_plugins.watching.products import AVERAGE_POOLS, SEVERAL_SIZES, Averages, Products, averaged_over
from snnreg_plugins.watching.samples import SampleCounter
from snnreg_plugins.watching.steps import steps_of_call

# Input shapes of a layer, on average, whose fan-out is kept at most.
_SHAPES = 8
# Passes from the first on that are all looked at closely.
_ALL_LOOKED_AT = 2
# Modules whose weights scale, shift or look up, and do not multiply as synapses do.
_SCALING = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.PReLU, nn.Embedding)


class SynapticOperations(WatchingMetric):
    r"""Synaptic operations per sample, with effective and dense MACs beside them; exact.

    .. math:: \text{SOPs} = \frac{1}{N} \sum_\text{layers} \sum_i \text{events}_i \cdot \text{fan\_out}_i

    The metric is built on a model, watches the input of every synaptic layer (Linear, Conv1d/2d/3d,
    ConvTranspose1d/2d/3d, one-to-one recurrence of snnTorch) and counts by itself: just run the model. Integer-valued
    input is a count of events and gives SOPs. Any other input (the first layer's image, a DNN's activations) is real
    and gives effective MACs: one per non-zero input and synapse. Dense MACs count every input at every call of a
    layer. Events that a model averages over windows of one size (``nn.AvgPool2d``, ``F.avg_pool2d``, a mean) are
    counted before the average, as if 1/k² were part of the weights that read it.

    Products that no such layer makes (``F.linear``, ``@``, ``einsum``, recurrent cells of Norse, attention) are found
    by a close look at the first pass, and at ever rarer ones after it; a model that has some is looked at in every
    pass, which takes time. With weights they cost what a layer would, under the name of the module whose forward makes
    them. A product of two activities, as queries with keys, costs one effective MAC for each pair of non-zero operands
    that meet, and no SOPs. Attention in one operation counts as if written out: all queries with all keys, then the
    softmax without its dropout, 0 where masked, with the values. Element-wise products are no synapses, unless they
    spread an activity over weights. What multiplies and cannot be counted is named in a warning.

    Stepping the model through time from outside counts each sample once, if its states are reset between batches.
    Every pass counts, that of a training batch too: to log it in validation, reset it in
    ``on_validation_epoch_start``.

    - ``compute()``: SOPs/sample, a float64 scalar.
    - ``total(quantity)``: the same for ``"sops"``, ``"effective_macs"`` or ``"dense_macs"``.
    - ``by_layer(quantity)``: the same for each layer, by name, and for modules that make products of their own.
    - ``by_step(quantity)``: the same at each time step.
    - ``by_label(quantity)``: the same for the samples of each label, where :meth:`labelled` told them.

    Args:
        model: The model to watch. It may be compiled, but not with ``fullgraph=True``.
        batch_dim: Dimension of the batch in the model's input; 1 for input of shape ``(T, B, ...)``.
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
    many_steps = True
    plot_unit = "SOPs / sample"

    def __init__(self, model: nn.Module, batch_dim: int = 0, **kwargs: Any) -> None:
        layers = synaptic_layers(model) | one_to_one_layers(model)
        # Modules whose products are looked for, since no input of theirs tells what they multiply.
        owners = {name: module for name, module in model.named_modules() if name not in layers}
        if not layers and not any(_may_multiply(module) for module in owners.values()):
            raise ValueError(
                "Expected argument `model` to have a synaptic layer (Linear, Conv1d/2d/3d, ConvTranspose1d/2d/3d) or "
                f"other weights, but {type(model).__name__} has none."
            )
        self._synapses: dict[Any, Synapses] = {}
        self._real = [True] * len(layers)
        self._averages = Averages()
        self._products: Products | None = None  # while a pass is looked at closely
        self._looks: dict[tuple[int, bool], int] = {}  # passes by outermost module and its mode
        self._passes = 0  # of the module that began this one
        self._always = False  # to look at every pass
        self._missed: set[tuple[int, str]] = set()
        super().__init__(model, layers, batch_dim, owners=owners, **kwargs)

    def _count_samples(self, model: nn.Module, layers: dict[str, nn.Module], batch_dim: int) -> SampleCounter:
        others = [
            module
            for row, module in enumerate(self._index)
            if (_is_derived(module) if row < len(layers) else _may_multiply(module))
        ]
        return SampleCounter(model, layers, self._on_pass, batch_dim, self._begin, self._leave, others, self.many_steps)

    def _watch(self) -> None:
        self._products = None
        super()._watch()
        for module in self._index:
            if isinstance(module, AVERAGE_POOLS):
                self._counter.hooks.after(module, self._observe_average)

    def _attach(self, hooks: Hooks, layer: SynapticLayer) -> None:
        hooks.before(layer, self._observe)

    # Passes.

    def _forget(self) -> None:
        super()._forget()
        self._labels: list[Any] | None = None
        self._alone = self._unlabelled = False
        self._steps_before: dict[int, int] = {}  # of the samples under way, by outermost module
        self._outermost = 0
        self._by_step: list[list[int]] = []
        self._by_label: dict[Any, list[int]] = {}
        self._forget_pass()

    def _forget_pass(self) -> None:
        self._calls: dict[Any, int] = {}
        self._new_steps: list[list[int]] = []
        self._new_labels: list[list[int]] = []

    def _begin(self, module: nn.Module) -> None:
        row = self._outermost = self._index[module]
        if row < len(self._real) and not _is_derived(module):
            # Layers that a checkpoint calls again come from a pass of the whole model.
            self._alone |= module is not self._watched[0] and torch._C._current_graph_task_id() == -1
            return
        if getattr(module, "only_layers_multiply", False):
            return
        key = row, module.training
        count = self._passes = self._looks[key] = self._looks.get(key, 0) + 1
        # The first pass shows what there is; ever rarer looks find what later ones do otherwise.
        if self._always or count & (count - 1) == 0:
            model = self._watched[0]
            self._products = Products(model, self._index, self._count_product, self._miss, self._averages)
            self._products.__enter__()

    def _leave(self) -> None:
        if self._products is not None:
            products, self._products = self._products, None
            products.__exit__(None, None, None)

    def _on_pass(self, samples: int | None) -> None:
        super()._on_pass(samples)
        if samples is not None:
            before = self._steps_before.get(self._outermost, 0) if self._counter.continues else 0
            for step, numbers in enumerate(self._new_steps, start=before):
                _add_to(self._by_step, step, numbers)
            self._steps_before[self._outermost] = before + len(self._new_steps)
            if self._labels is not None:
                for label, numbers in zip(self._labels, self._new_labels, strict=False):
                    tally = self._by_label[label]
                    tally[1:] = map(add, tally[1:], numbers)
        self._forget_pass()

    def close(self) -> None:
        """Stop watching the model and take all hooks off it; what was counted stays."""
        self._leave()
        super().close()

    # What is counted in one.

    @uncompiled
    def _observe(self, layer: SynapticLayer, args: tuple[Tensor, ...]) -> None:
        if self._products is None:
            self._count_input(layer, args[0])
        else:
            self._products.counted_by_hook += isinstance(layer, (nn.Linear, *CONVOLUTIONS))
            with _disable_current_modes():
                self._count_input(layer, args[0])
        self._counter.called(layer, args)

    def _count_input(self, layer: SynapticLayer, x: Tensor) -> None:
        index = self._index[layer]
        known = self._averages.find(x) if len(self._averages) else None
        if known is not None:
            x = self._averages.events(x)
            self._always |= known[1]
        key = (index, _sample_shape(layer, x))
        if key not in self._synapses:
            if len(self._synapses) >= _SHAPES * len(self._index):  # inputs of ever new sizes
                self._synapses.clear()
            self._synapses[key] = Synapses(layer, _fan_out(layer, key[1]))
        fold = steps_of_call()
        steps = self._synapses[key].count_steps(x, 1 if fold is None else fold.steps, real=self._real[index])
        macs = steps[-1][1]
        self._real[index] = macs > 0
        if known is None and macs and self._products is not None:
            self._look_for_averages(layer, x)
        if fold is None:
            self._count(index, index, steps[0])
        else:
            for step, numbers in enumerate(steps, start=fold.first_step):
                self._add(index, step, numbers)
        if self._labels is not None:
            self._count_labels(layer, x, key[1], steps[0])

    def _count(self, row: int, site: Any, numbers: tuple[int, int, int]) -> None:
        step = self._calls[site] = self._calls.get(site, -1) + 1
        self._add(row, step, numbers)

    def _add(self, row: int, step: int, numbers: tuple[int, int, int]) -> None:
        pending = self._pending[row]
        for quantity, number in enumerate(numbers):
            pending[quantity] += number
        _add_to(self._new_steps, step, numbers)

    def _count_product(self, owner: nn.Module, site: int, numbers: tuple[int, int, int]) -> None:
        if not self._always and self._passes > _ALL_LOOKED_AT:
            self._miss(owner, "what it multiplied in earlier passes: it was found only now")
        self._always = True
        self._unlabelled |= self._labels is not None
        self._count(self._index[owner], (owner, site), numbers)

    def _count_labels(
        self, layer: SynapticLayer, x: Tensor, shape: tuple[int, ...], numbers: tuple[int, int, int]
    ) -> None:
        samples, batch_dim = len(self._labels or ()), self._watched[2]
        inputs = x.numel() // max(1, math.prod(shape))
        if not samples or inputs % samples:
            raise ValueError(
                f"Expected argument `labels` to have a label for each sample, but got {samples} and a layer's input of "
                f"shape {tuple(x.shape)}."
            )
        magnitudes = x.detach().abs().double() if not numbers[1] else (x != 0).double()
        costs = (magnitudes * _fan_out(layer, shape).to(x.device)).reshape(inputs, -1).sum(1)
        costs = costs.reshape(samples, -1).sum(1) if batch_dim == 0 else costs.reshape(-1, samples).sum(0)
        for sample, cost in enumerate(costs.tolist()):
            split = (0, int(cost)) if numbers[1] else (int(cost), 0)
            _add_to(self._new_labels, sample, (*split, numbers[2] // samples))

    @uncompiled
    def _observe_average(self, pool: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        x = args[0] if args else None
        if not isinstance(x, Tensor) or not isinstance(output, Tensor):
            return
        if not self._averages.remember(x, output, averaged_over(pool, x, output), hidden=False):
            self._miss(pool, SEVERAL_SIZES)

    def _look_for_averages(self, layer: nn.Module, x: Tensor) -> None:
        for size in self._averages.sizes():
            events = x.detach().double() * size
            if torch.allclose(events, events.round(), rtol=0.0, atol=1e-3):
                self._miss(
                    layer, "averages of events, as SOPs: something between the average pool and this layer copies"
                )

    def _miss(self, owner: nn.Module, what: str) -> None:
        self._always |= not what
        missed = self._index[owner], what
        if what and missed not in self._missed:
            self._missed.add(missed)
            name = self._rows[missed[0]] or type(owner).__name__
            warnings.warn(f"{type(self).__name__} does not count all: {name!r} ({what}).", stacklevel=2)

    # Break-downs.

    @contextmanager
    def labelled(self, labels: Tensor | Sequence[Any]) -> Iterator[None]:
        """Tell the labels of the samples whose passes run inside, so that :meth:`by_label` can split their cost.

        Args:
            labels: One label for each sample of the batch: integers, or any keys of a dict.

        Raises:
            ValueError: In the pass, if a layer's input cannot be split into that many samples.

        Example:
            >>> model = nn.Linear(2, 5)
            >>> with SynapticOperations(model) as sops, sops.labelled([3, 7, 7]):
            ...     _ = model(torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]]))
            >>> sops.by_label()
            {3: 10.0, 7: 2.5}
        """
        self._labels = labels.tolist() if isinstance(labels, Tensor) else list(labels)
        for label in self._labels:
            self._by_label.setdefault(label, [0] * (1 + len(self.quantities)))[0] += 1
        try:
            with self._counter.hooks.one_step_at_a_time():  # which samples a call holds is plain then
                yield
        finally:
            self._labels = None

    def by_label(self, quantity: str = "sops") -> dict[Any, float]:
        """Return ``"sops"``, ``"effective_macs"`` or ``"dense_macs"`` per sample of each label.

        Raises:
            RuntimeError: If no pass was labelled, or if one had products outside of layers, which do not split.
        """
        column = 1 + self._column(quantity)
        tallies: dict[Any, list[int]] = {}
        unlabelled = False
        for by_label, has_products in self._gathered((self._by_label, self._unlabelled)):
            unlabelled |= has_products
            for label, tally in by_label.items():
                tallies[label] = list(map(add, tallies.get(label, [0] * len(tally)), tally))
        if unlabelled or not tallies:
            why = "products outside of layers (attention, recurrent cells) do not split" if unlabelled else "none did"
            raise RuntimeError(
                f"{type(self).__name__} splits by label what runs inside `with metric.labelled(labels)`; {why}."
            )
        return {label: tally[column] / tally[0] for label, tally in tallies.items()}

    def by_step(self, quantity: str = "sops") -> list[float]:
        """Return ``"sops"``, ``"effective_macs"`` or ``"dense_macs"`` per sample at each time step.

        The n-th call of a layer in a pass is the n-th step of that pass, and a pass that goes on with the states of
        the last one begins where that ended. So a layer that is called once in a pass (analog, or on all steps at
        once) costs at its first step alone, and one that a network calls twice in each step has twice the steps.

        Raises:
            RuntimeError: If layers were called one by one from outside: no step can be told.
        """
        column = self._column(quantity)
        steps: list[list[int]] = []
        alone, samples = False, 0
        for by_step, was_alone, seen in self._gathered((self._by_step, self._alone, int(self.samples))):
            alone, samples = alone | was_alone, samples + seen
            for step, numbers in enumerate(by_step):
                _add_to(steps, step, numbers)
        if alone or not samples:
            why = "its layers were called one by one" if alone else "has seen none"
            raise RuntimeError(f"{type(self).__name__} can tell time steps in passes of a whole model, but {why}.")
        return [numbers[column] / samples for numbers in steps]

    def _column(self, quantity: str) -> int:
        if quantity not in self.quantities:
            raise ValueError(
                f"Expected argument `quantity` to be one of {sorted(self.quantities)}, but got {quantity!r}."
            )
        return self.quantities.index(quantity)

    def compute(self) -> Tensor:
        """Return SOPs/sample."""
        return self.total("sops")

    def total(self, quantity: str = "sops") -> Tensor:
        """Return ``"sops"``, ``"effective_macs"`` or ``"dense_macs"`` per sample, over all layers."""
        totals, samples = self._totals()
        return _of(totals, quantity).sum() / samples

    def by_layer(self, quantity: str = "sops") -> dict[str, float]:
        """Return ``"sops"``, ``"effective_macs"`` or ``"dense_macs"`` per sample, for each layer by name."""
        totals, samples = self._totals()
        values = (_of(totals, quantity) / samples).tolist()
        layers, active = len(self.layers), (totals["dense_macs"] > 0).tolist()
        return {name: values[row] for row, name in enumerate(self._rows) if row < layers or active[row]}


def _of(totals: dict[str, Tensor], quantity: str) -> Tensor:
    if quantity not in totals:
        raise ValueError(f"Expected argument `quantity` to be one of {sorted(totals)}, but got {quantity!r}.")
    return totals[quantity]


def _add_to(table: list[list[int]], row: int, numbers: Sequence[int]) -> None:
    """Add to a row of a table that grows as it must."""
    while len(table) <= row:
        table.append([0] * len(numbers))
    table[row][:] = map(add, table[row], numbers)


def _may_multiply(module: nn.Module) -> bool:
    """Tell whether a module that is no synaptic layer has weights that might multiply activity."""
    return not isinstance(module, _SCALING) and any(True for _ in module.parameters(recurse=False))


def _is_derived(layer: nn.Module) -> bool:
    """Tell whether a synaptic layer is of a class that might do more than its base."""
    return not type(layer).__module__.startswith(("torch.nn.", "snntorch.", "snnreg_plugins."))


def _sample_shape(layer: SynapticLayer, x: Tensor) -> tuple[int, ...]:
    return sample_shape(layer, x) if is_synaptic(layer) else tuple(x.shape[1:])


def _fan_out(layer: SynapticLayer, shape: tuple[int, ...]) -> Tensor:
    return fan_out(layer, shape) if is_synaptic(layer) else torch.tensor(1).expand(shape)


class Energy(SynapticOperations):
    r"""Energy of the synaptic arithmetic, in J per sample.

    .. math:: E = 10^{-12} \sum_\text{layers} \left(\text{SOPs} \cdot e_{AC} + \text{MACs} \cdot e_{MAC}\right)

    An estimate from published energies per operation: no memory access, no neuron updates, no static power. A table
    without a price for MACs (``"truenorth"``, ``"loihi"``, ``"anp_i"``) gives the energy of the SOPs alone: layers
    with real-valued input, such as an analog first layer, are nan in ``by_layer()``, the total leaves their MACs out,
    and a warning says so.

    Args:
        model: The model to watch.
        table: pJ per operation: a name in ``functional.ENERGY_TABLES``, a YAML file, or an ``EnergyTable`` of your own.
        dense: Count dense instead of effective MACs: hardware that skips no zeros. SOPs are then 0.
        batch_dim: Dimension of the batch in the model's input; 1 for input of shape ``(T, B, ...)``.
        kwargs: See ``torchmetrics.Metric``.

    Raises:
        ValueError: If the model has no synaptic layer, the table's name is unknown, or the table has no price for
            the MACs that ``dense`` asks for.
        RuntimeError: On ``compute()``, if no forward pass was seen.

    Example:
        >>> import torch
        >>> model = nn.Linear(10, 100)
        >>> with Energy(model, table="horowitz_fp32") as joule:
        ...     _ = model(torch.full((1, 10), 0.5))
        >>> f"{joule.compute():.2e}"  # 1000 MACs of 4.6 pJ
        '4.60e-09'
    """

    plot_unit = "J / sample"

    def __init__(
        self,
        model: nn.Module,
        table: str | EnergyTable = "horowitz_fp32",
        dense: bool = False,
        batch_dim: int = 0,
        **kwargs: Any,
    ) -> None:
        self.table = energy_table(table)
        self.dense = dense
        if dense and not self.table.prices_macs:
            raise ValueError(
                "Expected argument `table` to have a price for MACs, which `dense=True` counts alone, but got one "
                f"without: {self.table.source}."
            )
        super().__init__(model, batch_dim, **kwargs)

    def compute(self) -> Tensor:
        """Return J/sample."""
        return self.total()

    def left_out(self) -> dict[str, float]:
        """Return the MACs/sample that the table has no price for, for each layer by name that has any."""
        if self.table.prices_macs:
            return {}
        return {name: macs for name, macs in super().by_layer("effective_macs").items() if macs}

    def total(self, quantity: str = "energy") -> Tensor:
        """Return J/sample (or, as :class:`SynapticOperations`, a count) over all layers."""
        found = super().total(quantity)
        if quantity != "energy" or not found.isnan():
            return found
        self._warn(super().by_layer(quantity))
        return energy(super().total("sops"), torch.zeros_like(found), self.table)

    def by_layer(self, quantity: str = "energy") -> dict[str, float]:
        """Return J/sample (or, as :class:`SynapticOperations`, a count) for each layer by name."""
        found = super().by_layer(quantity)
        self._warn(found)
        return found

    def _warn(self, layers: dict[str, float]) -> None:
        names = [name for name, joule in layers.items() if math.isnan(joule)]
        if names:
            warnings.warn(
                f"The energy leaves out the MACs of {names}, whose input is real-valued: the table has no price for "
                f"them ({self.table.source}). left_out() tells how many.",
                stacklevel=4,
            )

    def _totals(self) -> tuple[dict[str, Tensor], Tensor]:
        totals, samples = super()._totals()
        sops, macs = totals["sops"], totals["effective_macs"]
        if self.dense:
            sops, macs = torch.zeros_like(sops), totals["dense_macs"]
        if self.table.prices_macs:
            return totals | {"energy": energy(sops, macs, self.table)}, samples
        joule = energy(sops, torch.zeros_like(macs), self.table)
        return totals | {"energy": torch.where(macs > 0, math.nan, joule)}, samples
