"""The one counter: what the layers of a model do, by layer and time step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from snnreg_plugins import _torch
from snnreg_plugins._models import as_module, require_sizes
from snnreg_plugins.functional.costs import Need
from snnreg_plugins.functional.synapses import (
    CONVOLUTIONS,
    SynapticLayer,
    count_events_by_step,
    count_known_events,
    is_integer_valued,
    is_synaptic,
    sample_shape,
)
from snnreg_plugins.watching.averages import AVERAGE_POOLS, SEVERAL_SIZES, averaged_over
from snnreg_plugins.watching.counts import Table
from snnreg_plugins.watching.details import Details
from snnreg_plugins.watching.fan_outs import SynapsesByShape
from snnreg_plugins.watching.held import Held
from snnreg_plugins.watching.hooks import uncompiled, unwatched
from snnreg_plugins.watching.inputs import InputEvents
from snnreg_plugins.watching.layers import (
    as_called,
    is_own_decay,
    is_spiking_neuron,
    neuron_layers,
    one_to_one_layers,
    strided,
    synaptic_layers,
    time_dim,
)
from snnreg_plugins.watching.looks import Looks, is_derived, is_due, may_multiply
from snnreg_plugins.watching.multiples import Multiple, Multiples
from snnreg_plugins.watching.observer import Observer
from snnreg_plugins.watching.products import Cost
from snnreg_plugins.watching.recurrent import factors, is_recurrent
from snnreg_plugins.watching.samples import identities, tensors_in
from snnreg_plugins.watching.simulated import SimulatedNetwork, known_events, names_in_dnn
from snnreg_plugins.watching.steps import CallSteps, steps_of_call
from snnreg_plugins.watching.watch import Watch
from snnreg_plugins.watching.wiring import Wiring

_SOPS, _, _DENSE, _SPIKES, _NEURON_STEPS = range(5)


class Tally(Watch):
    """Counts SOPs, effective and dense MACs, spikes and neuron steps, by layer and time step; exact.

    It counts while it is open, that is within ``with``. Numbers are sums over all samples, Python's integers; divide
    them by ``samples`` for those of one. Rows are synaptic layers, neuron layers, and modules that make products of
    their own; each by the name that it has in the user's DNN. What counts as what is told in
    :class:`~snnreg_plugins.SynapticOperations` and :class:`~snnreg_plugins.SpikeRate`.

    - ``by_layer(quantity, steps=None)``: a dict by name; with ``steps``, of the first so many time steps alone. The
      first T steps of a spiking network are its run of T steps, so one pass gives the numbers of every T.
    - ``total(quantity, steps=None)``: the same, summed over all rows.
    - ``modules``: the modules by name; ``synapses`` and ``neurons`` name the rows of layers; ``called`` all rows that
      had a call, in the order of their first calls, with the number of calls.
    - ``missed``: what could not be counted, as pairs of a name and a reason.
    - ``wiring``: which neurons a layer drives, and how layers are called.

    Quantities are ``"sops"``, ``"effective_macs"``, ``"dense_macs"``, ``"spikes"`` and ``"neuron_steps"``, and those of
    :class:`~snnreg_plugins.watching.details.Details` that are asked for.

    Args:
        model: The model to watch.
        operations: Whether to count at synaptic layers.
        spikes: Whether to count at neuron layers.
        products: Whether to look for products that no layer makes.
        batch_dim: Dimension of the batch in the model's input; 1 for input of shape ``(T, B, ...)``.
        input_events: Whether whole numbers that a layer reads from the model's input are events; if False they cost
            MACs, unless all of them are 0 or 1. None to take them for events, and tell ``on_doubt``.
        counting: What else to count, which takes time: ``"events"``, ``"zero_weights"``, ``"activity"``.
        observer: Who wants more.
        on_miss: What to call as ``on_miss(name, what)`` once for everything that cannot be counted.
        on_doubt: What to call as ``on_doubt(name, largest)`` once for a layer that reads whole numbers above 1 from the
            model's input.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> with Tally(model) as tally:
        ...     _ = model(torch.tensor([[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]]))
        >>> tally.samples, tally.by_layer("sops")["0"], tally.total("dense_macs")
        (2, 24, 112)
        >>> tally.by_layer("neuron_steps")["1"]
        16
    """

    quantities: tuple[str, ...] = ("sops", "effective_macs", "dense_macs", "spikes", "neuron_steps")

    def __init__(
        self,
        model: nn.Module,
        *,
        operations: bool = True,
        spikes: bool = True,
        products: bool = True,
        batch_dim: int = 0,
        input_events: bool | None = None,
        counting: Iterable[Need] = (),
        observer: Observer | None = None,
        on_miss: Callable[[str, str], None] | None = None,
        on_doubt: Callable[[str, float], None] | None = None,
    ) -> None:
        names = names_in_dnn(as_module("model", model))
        if operations:
            require_sizes(model)
        synapses = _renamed(synaptic_layers(model) | one_to_one_layers(model), names) if operations else {}
        neurons = _renamed(neuron_layers(model), names) if spikes else {}
        #: Names of the rows of synaptic and of neuron layers.
        self.synapses, self.neurons = tuple(synapses), tuple(neurons)
        self.details = Details(model, counting, self._count_detail)
        self.quantities = (*type(self).quantities, *self.details.quantities)
        products = products and operations
        # Modules whose products are looked for, since no input of theirs tells what they multiply.
        owners = _renamed(dict(model.named_modules()), names) if products else {}
        layers = synapses | neurons
        super().__init__(model, layers | owners, layers, batch_dim)
        self.observer, self.on_miss = observer, on_miss
        self._on_doubt = on_doubt
        self._input_events = InputEvents(input_events, self._doubt)
        known = known_events(model)
        # By row, as all below.
        self._reads_events = [module in known.readers for module in self.index]
        self._emits_events = [module in known.sources for module in self.index]
        self._is_analog = [module in known.analog for module in self.index]
        self._is_averaged = [module in known.averaged for module in self.index]
        #: Pairs of a row's name and what of it was not counted; a reset does not forget them.
        self.missed: dict[tuple[str, str], None] = {}
        self._multiples = Multiples()
        simulated = {part for it in model.modules() if isinstance(it, SimulatedNetwork) for part in it.modules()}
        # What a network simulates is known; of others it is looked at what their neurons emit.
        self._spiking = [it for it in model.modules() if is_spiking_neuron(it) and it not in simulated]
        self._synapses = SynapsesByShape(len(self.names))
        self._real = [True] * len(self.names)  # what a layer's input was at last
        zeros = self.details.counts_zeros
        self._looks = (
            Looks(model, self.index, self._multiplied, self._miss, self._multiples, self._input_events, zeros)
            if products
            else None
        )

    @property
    def called(self) -> dict[str, int]:
        """Calls by name, in the order of the first ones; of a simulated network, time steps."""
        return self.wiring.called

    def require_operations(self) -> None:
        """Raise a ValueError if there is nothing in the model that could multiply."""
        if not self.synapses and not any(map(may_multiply, self.index)):
            raise ValueError(
                "Expected argument `model` to have a synaptic layer (Linear, Conv1d/2d/3d, ConvTranspose1d/2d/3d) or "
                f"other weights, but {type(self.model).__name__} has none."
            )

    # Looking on.

    def _others(self) -> Iterable[nn.Module]:
        if self._looks is None:
            return ()
        return [it for it, row in self.index.items() if (is_derived if self._is_synaptic(row) else may_multiply)(it)]

    def _is_synaptic(self, row: int) -> bool:
        return row < len(self.synapses)  # the first rows

    def _attach(self) -> None:
        for name in self.synapses:
            self.hooks.before(self.modules[name], self._arrive)
        for name in self.neurons:
            self.hooks.after(self.modules[name], self._emit)
            if self.details.watches_neurons:
                self.hooks.before(self.modules[name], self.details.got)
        for module in self.model.modules() if self.synapses else ():
            if isinstance(module, AVERAGE_POOLS):
                self.hooks.after(module, self._average)
        for module in self._spiking if self._looks is not None else ():
            self.hooks.after(module, self._spike)
        for module in self.index if self._looks is not None else ():
            if is_recurrent(module):
                self.hooks.after(module, self._recur)

    def _forget(self) -> None:
        super()._forget()
        self.wiring = Wiring()
        #: Rows whose time steps cannot be told.
        self.without_steps: dict[str, None] = {}
        self._sites: dict[tuple[int, int], int] = {}  # calls by row and place in the code
        #: Whether layers were called one by one from outside, so that no time step can be told.
        self.alone = False
        self._thorough = True  # whether to look at what is known
        self._steps: dict[int, int] = {}  # of the samples under way, by the row of the outermost module
        self._outermost = 0
        self._holds = False  # whether to hold small inputs known to be events

    def _forget_pass(self) -> None:
        super()._forget_pass()
        self._steps_run: dict[int, int] = {}  # of recurrent layers, by row

    def _forget_window(self) -> None:
        super()._forget_window()
        self._held = Held()

    # Passes.

    def _begun(self, module: nn.Module, given: list[Tensor]) -> None:
        row = self._outermost = self.index.get(module, -1)
        self._thorough = is_due(self._passes + 1)
        looked_at = self.observer is not None or bool(self.details.quantities)
        self._holds = isinstance(module, SimulatedNetwork) and not self._thorough and not looked_at
        if row >= 0 and self._is_synaptic(row) and not is_derived(module):
            # Layers that a checkpoint calls again come from a pass of the whole model.
            self.alone |= module is not self.model and not _torch.is_in_backward()
        elif self._looks is not None and not (isinstance(module, SimulatedNetwork) and module.only_layers_multiply):
            self._looks.begin(module, given)

    def _left(self) -> None:
        if self._looks is not None:
            self._looks.end()

    def _ended(self, samples: int | None) -> None:
        super()._ended(samples)
        self.wiring.end_pass()
        if self._held.end_pass(samples is not None):
            self._count_held()
        if self.observer is not None:
            self.observer.ended(samples is not None)

    def _steps_before(self) -> int:
        before = self._steps.get(self._outermost, 0) if self.continues else 0
        self._steps[self._outermost] = before + self._counts.steps(before)
        return before

    # What is counted in one.

    @uncompiled
    def _arrive(self, layer: SynapticLayer, args: tuple[Tensor, ...]) -> None:
        products = None if self._looks is None else self._looks.products
        if products is not None:
            products.counted_by_hook += isinstance(layer, (nn.Linear, *CONVOLUTIONS))
        with nullcontext() if products is None else _torch.without_modes():
            self._count_arrival(layer, args)
        self._called(layer, args)

    def _count_arrival(self, layer: SynapticLayer, args: tuple[Any, ...]) -> None:
        row, steps, x = self.index[layer], steps_of_call(), strided(args[0])
        layer = as_called(layer, args)
        self.wiring.arrived(self.names[row], steps, tuple(x.shape))
        known = self._reads_events[row] and not self._thorough
        if known and self._holds and steps is not None and self._held.add(row, steps, x):
            return
        if not (known and self._count_known(row, layer, x, steps)):
            self._count_any(row, layer, x, steps)

    def _count_known(self, row: int, layer: SynapticLayer, x: Tensor, call: CallSteps | None) -> bool:
        """Count an input known to hold events alone, where its sum does not tell otherwise.

        Values are looked at in passes 1, 2, 4, 8, ... since the last reset; an input that holds others in one of them
        is known no more. Weights and inputs of a network cannot make it so, only other neurons.
        """
        shape, steps = x.shape[1:], 1 if call is None else call.steps
        synapses = self._synapses.of(row, layer, shape)
        sops = synapses.count_known(x, steps)
        if sops is None:
            return False
        dense = [x.shape[0] // steps * synapses.dense] * steps
        first = self.call_in_pass(row) if call is None else call.first_step
        self._counts.add(row, _SOPS, first, sops, call is not None)
        self._counts.add(row, _DENSE, first, dense, call is not None)
        if self.details.quantities:
            self.details.arrived(row, layer, x, shape, [(n, 0, dense[0]) for n in sops], first, call is not None)
        if self.observer is not None:
            self.observer.arrived(self.names[row], layer, x, shape, (sum(sops), 0, sum(dense)))
        return True

    def _count_held(self) -> None:
        """Count the inputs that are held, those of one layer and shape at once."""
        for row, call, inputs in self._held.take():
            shape = inputs[0].shape
            layer: Any = self.modules[self.names[row]]
            synapses = self._synapses.of(row, layer, shape[1:])
            sops = synapses.count_known(torch.cat(inputs), len(inputs) * call.steps)
            if sops is None:
                for x in inputs:
                    self._add(row, call.first_step, synapses.count_steps(x, call.steps))
            else:
                dense = len(inputs) * (shape[0] // call.steps) * synapses.dense
                costs = [(sum(sops[step :: call.steps]), 0, dense) for step in range(call.steps)]
                self._add(row, call.first_step, costs)
        self._counts.keep()

    def table(self) -> Table:
        """Give all numbers, by row (as in ``names``), column (as in ``quantities``) and time step."""
        self._count_held()
        return super().table()

    def _count_any(self, row: int, layer: SynapticLayer, x: Tensor, call: CallSteps | None) -> None:
        given, how = x, self._multiples.find(x) if len(self._multiples) and not self._is_averaged[row] else None
        if how is not None:
            x = self._multiples.events(x)
            if how.hidden and how.factor != 1 and self._looks is not None:
                self._looks.always = True
        products = None if self._looks is None else self._looks.products
        if products is not None and products.origins.is_given(given) and not self._is_analog[row]:
            self._is_analog[row] = self._input_events.are_multiplied(self.modules[self.names[row]], x)
        shape = sample_shape(layer, x) if is_synaptic(layer) else tuple(x.shape[1:])
        synapses = self._synapses.of(row, layer, shape)
        steps = 1 if call is None else call.steps
        costs = synapses.count_steps(x, steps, real=self._real[row])
        currents = self._is_analog[row] and not (call is not None and call.events)
        currents = self._is_averaged[row] or (currents and not bool(((x == 0) | (x == 1)).all()))
        if currents and any(sops for sops, _, _ in costs):
            costs = [(0, active, dense) for active, _, dense in synapses.count_steps((x != 0).to(x.dtype), steps)]
        self._real[row] = costs[-1][1] > 0
        self._reads_events[row] &= not self._real[row]
        if self._real[row] and self._thorough:
            doubt = self._multiples.doubt(x, how, bool(self._spiking))
            if doubt:
                self._miss(self.modules[self.names[row]], doubt)
        first, told = (self.call_in_pass(row), False) if call is None else (call.first_step, True)
        self._add(row, first, costs, told)
        if self.details.quantities:
            self.details.arrived(row, layer, x, shape, costs, first, told)
        if self.observer is not None:
            sops, effective, dense = map(sum, zip(*costs, strict=True))
            self.observer.arrived(self.names[row], layer, x, shape, (sops, effective, dense))

    def _add(self, row: int, first_step: int, costs: Sequence[tuple[int, int, int]], told: bool = False) -> None:
        for column, values in enumerate(zip(*costs, strict=True)):
            if column == _DENSE or any(values):
                self._counts.add(row, column, first_step, values, told)

    def _count_detail(self, row: int, name: str, first_step: int, values: Sequence[int], told: bool) -> None:
        self._counts.add(row, self.quantities.index(name), first_step, values, told)

    @uncompiled
    def _emit(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        spikes = (output[0] if isinstance(output, tuple) else output).detach()
        products = None if self._looks is None else self._looks.products
        with nullcontext() if products is None else _torch.without_modes():
            self._count_spikes(layer, spikes)
        self._called(layer, args)

    def _count_spikes(self, layer: nn.Module, spikes: Tensor) -> None:
        row, call = self.index[layer], steps_of_call()
        self.wiring.emitted(self.names[row], call)
        if call is None:
            # All steps at once have the time in a dimension of their own.
            dim = time_dim(layer)
            x = spikes if dim is None or spikes.dim() <= dim else spikes.movedim(dim, 0)
            steps = 1 if x is spikes and dim is None else x.shape[0]
            first = steps * self.call_in_pass(row)
        else:
            x, steps, first = spikes, call.steps, call.first_step
        known = self._emits_events[row] and not self._thorough
        events = (count_known_events(x, steps) if known else None) or count_events_by_step(x, steps)
        self._counts.add(row, _SPIKES, first, events, call is not None)
        self._counts.add(row, _NEURON_STEPS, first, [spikes.numel() // steps] * steps, call is not None)
        if self.details.watches_neurons:
            begins = first == 0 and not (call is None and self.continues)
            self.details.emitted(row, layer, spikes, steps, first, begins, call)
        if self.observer is not None:
            self.observer.emitted(self.names[row], layer, spikes, call)

    @uncompiled
    def _recur(self, layer: nn.RNNBase, args: tuple[Any, ...], output: Any) -> None:
        """Count what a recurrent layer of torch multiplies at each step of its sequence."""
        row = self.index[layer]
        name, first, steps = self.names[row], self._steps_run.get(row, 0), 0
        with _torch.without_modes(), unwatched():
            products = None if self._looks is None else self._looks.products
            if products is not None and products.origins.is_given(args[0]):
                self._is_analog[row] = self._input_events.are_multiplied(layer, next(tensors_in(args)))
            for factor in factors(layer, args, output, not is_own_decay(layer, self.model)):
                currents = factor.below and self._is_analog[row]
                counted = factor.counted(self._multiples.events, currents, self.details.counts_zeros)
                for step, (cost, at_zero) in enumerate(counted, start=first):
                    self._add(row, step, [cost])
                    self.details.multiplied(row, step, at_zero)
                steps = len(factor.steps)
        self._steps_run[row] = first + steps
        self.wiring.called[name] = self.wiring.called.get(name, 0) + steps
        if layer.training and layer.dropout and layer.num_layers > 1:
            self._miss(layer, "its layers above the first, as their dropout is not known")
        if self.observer is not None:
            self.observer.multiplied(name)

    # What the close look finds.

    def _multiplied(self, owner: nn.Module, site: int, cost: Cost, at_zero: Cost) -> None:
        """Count a product outside of layers."""
        row = self.index[owner]
        name = self.names[row]
        if isinstance(owner, nn.RNNBase):
            self.without_steps[name] = None
        if name not in self.layers:
            calls = self._sites[row, site] = self._sites.get((row, site), 0) + 1
            self.wiring.called[name] = max(self.wiring.called.get(name, 0), calls)
        # A recurrent cell multiplies its input and its state in one call, which is one time step.
        products = 2 if isinstance(owner, nn.RNNCellBase) else 1
        step = self.call_in_pass((row, site)) // products
        self._add(row, step, [cost])
        self.details.multiplied(row, step, at_zero)
        if self.observer is not None:
            self.observer.multiplied(name)

    @uncompiled
    def _average(self, pool: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        x = args[0] if args else None
        if not isinstance(x, Tensor) or not isinstance(output, Tensor):
            return
        with _torch.without_modes():
            if not self._multiples.remember_average(x, output, averaged_over(pool, x, output), hidden=False):
                self._miss(pool, SEVERAL_SIZES)

    @uncompiled
    def _spike(self, neuron: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Remember, where a pass is looked at closely, that spikes are events."""
        spikes = output[0] if isinstance(output, tuple) and output else output
        if self._looks is None or self._looks.products is None or not isinstance(spikes, Tensor):
            return
        with _torch.without_modes():
            if self._multiples.find(spikes) is None and is_integer_valued(spikes):
                self._multiples.remember(identities(spikes), Multiple(1.0, True))

    def _name(self, owner: nn.Module) -> str:
        return self.names[self.index[owner]] or type(owner).__name__

    def _doubt(self, owner: nn.Module, largest: float) -> None:
        if self._on_doubt is not None:
            self._on_doubt(self._name(owner), largest)

    def _miss(self, owner: nn.Module, what: str) -> None:
        missed = self._name(owner), what
        if missed not in self.missed:
            self.missed[missed] = None
            if self.on_miss is not None:
                self.on_miss(*missed)


def _renamed(modules: Mapping[str, nn.Module], names: Mapping[str, str]) -> dict[str, nn.Module]:
    return {names[path]: module for path, module in modules.items()}
