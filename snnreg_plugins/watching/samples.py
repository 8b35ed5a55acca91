"""The samples that go through a model, each counted once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from threading import get_ident
from typing import Any, TypeAlias
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from snnreg_plugins import _torch
from snnreg_plugins.watching.hooks import Hooks, uncompiled
from snnreg_plugins.watching.layers import begins_anew, is_stateful, is_unbatched
from snnreg_plugins.watching.simulated import SimulatedNetwork

#: A tensor's memory, and the number of writes to it.
Identity: TypeAlias = tuple[Any, int]


class SampleCounter:
    """Counts the samples that go through a model, each once, however its time loop is written.

    A pass is one call of a watched module from outside all others. It is one sample where a Linear or Conv layer reads
    all that the pass is given without a batch, as ``(C, H, W)``. If a neuron starts a pass with the state that
    the last one left it with (kept inside the neuron, or handed back by the caller), the pass is a further time
    step of the same samples; else its batch is new. A network whose forward has the loop inside is one pass.
    Neurons of other packages than those in :func:`is_spiking_neuron` are followed where their state is handed
    to the model and back by the caller. A state is known by its memory, so it may be
    detached; a copy is another one, and so is one that was written to, as by a reset in place (inference mode hides
    that).

    Args:
        model: The model to watch.
        layers: The layers that matter; they, all neurons and all modules around these are watched.
        on_pass: What to call at the end of every pass, with the number of new samples: 0 for a further time step,
            None if it does not count: forward raised, or recomputed for the backward pass.
        batch_dim: Dimension of the batch in the first tensor argument of a pass.
        on_begin: What to call with the outermost module, and the tensors that it is given, at the beginning of every
            pass.
        on_leave: What to call with no argument when a pass ends in any way that can be noticed, before ``on_pass``.
        others: Further modules to watch from the outside, as those around layers are.
        many_steps: Whether the one who watches knows that a call may hold several steps.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Module],
        on_pass: Callable[[int | None], None],
        batch_dim: int = 0,
        on_begin: Callable[[nn.Module, list[Tensor]], None] | None = None,
        on_leave: Callable[[], None] | None = None,
        others: Iterable[nn.Module] = (),
        many_steps: bool = False,
    ) -> None:
        self.on_pass = on_pass
        self.on_begin, self.on_leave = on_begin, on_leave
        self.batch_dim = batch_dim
        self.hooks = Hooks(many_steps=many_steps)
        # A simulated network is one pass, whatever is in it; so is its inside, called from outside, layer by layer.
        simulated = {module for module in model.modules() if isinstance(module, SimulatedNetwork)}
        inside = {part for network in simulated for part in network.modules()} - simulated
        modules = {module: set(module.modules()) for module in model.modules() if module not in inside}
        self._neurons = {module for module in modules if is_stateful(module)}
        self._around_neurons = {module for module, parts in modules.items() if parts & (self._neurons | simulated)}
        leaves, alone = set(layers.values()) - self._neurons, set(others)
        for module, parts in modules.items():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # which takes no hooks: what is around it is watched, and its operations are seen
            if module in simulated or parts & self._neurons or parts & leaves - {module} or parts & alone:
                self.hooks.around(module, self._enter, self._leave)
        self.reset()

    def reset(self) -> None:
        """Start counting anew; the next pass brings new samples, and so does the rest of one under way."""
        if self.on_leave is not None:
            self.on_leave()
        # A module with neurons in it knows time steps from new samples, so it decides where there is one.
        self._samples: dict[nn.Module, int] = {}
        self._most = {True: 0, False: 0}  # that a module with neurons, and one without, saw
        self._forget()

    def samples(self) -> int:
        """Count the samples since the last :meth:`reset`: the most that any one module saw."""
        return self._most[True] or self._most[False]

    @property
    def continues(self) -> bool:
        """Whether the pass under way is a further time step, as far as it can be told by now."""
        return self._continues

    @property
    def size(self) -> int:
        """Samples of the pass under way."""
        return 1 if self.unbatched else self._size

    def called(self, layer: nn.Module, args: tuple[Any, ...]) -> None:
        """Tell that one of the layers was called: from outside, and if it is no neuron, that is a pass of its own."""
        alone = not self._depth
        if alone:
            self._enter(layer, args, {})
        else:
            self._require_one_thread(layer)
        x = args[0] if args else None
        # All that the pass was given, without a batch. A part of it may be one of several samples.
        if isinstance(x, Tensor) and x.numel() == self._values and is_unbatched(layer, x):
            self.unbatched = True
        if alone:
            self._leave(layer, args, {}, ())

    def _forget(self) -> None:
        """Forget the pass under way, and the states that the last one left."""
        self._depth = 0
        #: Whether a layer read one sample without a batch in the pass under way, or the last one.
        self.unbatched = False
        self._thread: dict[str, int] = {}  # whose pass is under way; set by who comes first, however close they are
        self._continues = False
        # Of the last pass of each neuron and outermost module: the tensors it returned, and kept in itself.
        self._returned: dict[nn.Module, set[Identity]] = {}
        self._kept: dict[nn.Module, set[Identity]] = {}
        self._sizes: dict[nn.Module, int] = {}

    def _begin(self, tensors: list[Tensor], batch_dim: int) -> None:
        self._size = tensors[0].shape[batch_dim] if tensors and tensors[0].dim() > batch_dim else 1
        self._values = tensors[0].numel() if tensors else 0
        self.unbatched = False
        self._given = identities(tensors) if len(tensors) > 1 else set()  # one tensor comes without a state
        self._called: set[nn.Module] = set()
        # What each neuron holds and is handed when the pass reaches it, and what its last call in the pass returns.
        self._held: dict[nn.Module, tuple[set[Identity], set[Identity]]] = {}
        self._outputs: dict[nn.Module, list[ref[Tensor]]] = {}
        self._handed: set[nn.Module] = set()  # neurons whose state the caller hands over

    @uncompiled
    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._require_one_thread(module)
        batch_dim = module.batch_dim_of(*args, **kwargs) if isinstance(module, SimulatedNetwork) else self.batch_dim
        if self._depth == 0:
            tensors = list(tensors_in((args, kwargs)))
            self._begin(tensors, batch_dim)
            first = next(iter((*args, *kwargs.values())), None)
            if isinstance(first, PackedSequence):  # all steps of all sequences, one behind the other
                self._size = int(first.batch_sizes[0])
            self._continues = self._knows(module, self._given & self._returned.get(module, set()))
            if self.on_begin is not None:
                self.on_begin(module, tensors)
        elif batch_dim != self.batch_dim and isinstance(module, SimulatedNetwork):
            self._size = next(tensors_in((args, kwargs))).shape[batch_dim]  # it knows better than who calls it
        self._depth += 1
        self._called.add(module)
        if module in self._neurons and module not in self._handed:
            # The first tensor is the neuron's input, all others are its state.
            state = list(tensors_in((args, kwargs)))[1:]
            if state:
                self._handed.add(module)
            if module not in self._held:
                held, handed = identities(_state(module)), identities(state)
                self._held[module] = held, handed
                kept = self._kept.get(module, set())
                back = handed & self._returned.get(module, set()) if handed else kept if kept <= held else set()
                self._continues |= self._knows(module, back)

    def _require_one_thread(self, module: nn.Module) -> None:
        """Raise a RuntimeError if another thread is in the middle of a pass, which this one would get mixed up with."""
        own = get_ident()
        if self._thread.setdefault("own", own) != own:
            raise RuntimeError(
                f"{type(module).__name__} is watched by a metric, and two threads run it at once. Take a lock, or give "
                "each thread a copy of the model with a metric of its own. After an interrupted pass, call reset() on "
                "the metric."
            )

    def _knows(self, module: nn.Module, state: set[Identity]) -> bool:
        """Tell whether a state that came back makes the pass a further step; another batch size cannot be one."""
        return bool(state) and self._sizes.get(module) == self._size

    @uncompiled
    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        # There was a reset in the middle, or this thread was refused.
        if self._depth == 0 or self._thread.get("own") != get_ident():
            return
        self._depth -= 1
        if module in self._neurons:
            self._outputs[module] = [ref(tensor) for tensor in tensors_in(output)]
        if self._depth == 0:
            try:
                self._end(module, output)
            finally:
                self._thread.clear()

    def _end(self, module: nn.Module, output: Any) -> None:
        for neuron, (held, handed) in self._held.items():
            self._returned[neuron] = identities([tensor() for tensor in self._outputs.get(neuron, ())]) - handed
            fresh = neuron in self._handed or begins_anew(neuron)
            self._kept[neuron] = set() if fresh else identities(_state(neuron)) - held
            self._sizes[neuron] = self._size
        self._returned[module] = identities(output) - self._given
        self._sizes[module] = self._size
        if self.on_leave is not None:
            self.on_leave()
        failed = output is None and sys.exc_info()[0] is not None
        if failed or _torch.is_in_backward():  # a checkpoint's recomputation within backward
            self.on_pass(None)
            return
        before = self.samples()
        if not self._continues:
            for called in self._called:
                seen = self._samples[called] = self._samples.get(called, 0) + self.size
                kind = called in self._around_neurons
                self._most[kind] = max(self._most[kind], seen)
        self.on_pass(self.samples() - before)

    def __getstate__(self) -> dict[str, Any]:
        # Which samples are under way is known in this process alone.
        return {name: value for name, value in vars(self).items() if name not in _OF_THIS_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()


_OF_THIS_PROCESS = {"_returned", "_kept", "_given", "_held", "_outputs"}


def _state(neuron: nn.Module) -> list[Tensor]:
    """Tensors that a neuron keeps from step to step: whatever it holds that is no parameter."""
    held = [*neuron._buffers.values(), *vars(neuron).values(), *getattr(neuron, "_memories", {}).values()]
    return [value for value in held if isinstance(value, Tensor)]


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Walk the tensors in nested tuples, lists and dicts."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from tensors_in(value)
    elif isinstance(values, Mapping):
        yield from tensors_in(tuple(values.values()))


def identities(values: Any) -> set[Identity]:
    """Identify tensors by memory and number of writes to it: the same when detached; never keeps memory alive."""
    if torch.compiler.is_compiling():
        eager: Callable[[Any], set[Identity]] = torch.compiler.disable(identities)  # type: ignore[no-untyped-call]
        return eager(values)
    tensors = [tensor for tensor in tensors_in(values) if tensor.layout is torch.strided and tensor.numel()]
    return {(_torch.memory_of(tensor), _torch.writes_to(tensor)) for tensor in tensors}
