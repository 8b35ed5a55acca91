"""The one place that installs and removes hooks on a model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast
from weakref import ref

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.hooks import RemovableHandle

from snnreg_plugins.functional.synapses import is_synaptic

_ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Softplus,
    nn.Hardtanh,
    nn.Hardswish,
)

# Classes by package. Names, so that no framework has to be imported to recognise its own.
_STATEFUL = {
    "snntorch": {"SpikingNeuron", "LeakyParallel"},
    "norse": {"SNNCell", "SNNRecurrentCell", "SNN", "SNNRecurrent", "CobaLIFCell", "LIFCorrelation", "LILinearCell"},
    "spikingjelly": {"BaseNode"},
    "sinabs": {"StatefulLayer"},
}
_OWN = {"snnreg_plugins": {"QCFS", "PoissonCoder", "LatencyCoder"}}
_TIME_FIRST = {"snntorch": {"LeakyParallel"}, "norse": {"SNN", "SNNRecurrent"}}
_SQUEEZED = {"sinabs": {"SqueezeMixin"}}
_ONE_TO_ONE = {"snntorch": {"RecurrentOneToOne"}}
_NON_SPIKING = {"norse": {"LI", "LICell", "LIBoxCell", "LILinearCell"}, "sinabs": {"ExpLeak"}}


def is_spiking_neuron(module: nn.Module) -> bool:
    """Tell whether ``module`` is a spiking neuron of snnTorch, Norse, SpikingJelly or sinabs."""
    return _derives(module, _STATEFUL) and not _derives(module, _NON_SPIKING)


def time_dim(neuron: nn.Module) -> int | None:
    """Return the dimension of time in the output of a neuron that takes all steps at once; None if it takes one."""
    if _derives(neuron, _TIME_FIRST) or getattr(neuron, "step_mode", "s") == "m":
        return 0
    # Those of sinabs that squeeze time into the batch know one of the sizes.
    return 1 if _derives(neuron, {"sinabs": {"StatefulLayer"}}) and not _derives(neuron, _SQUEEZED) else None


def synaptic_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Find the layers that multiply activity by weights, by name; a shared layer has its first name."""
    return {name: module for name, module in model.named_modules() if is_synaptic(module)}


def one_to_one_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Find the layers that weigh each spike for one target alone, inside recurrent neurons of snnTorch, by name."""
    return {name: module for name, module in model.named_modules() if _derives(module, _ONE_TO_ONE)}


def neuron_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Find the layers that emit activity, by name: spiking neurons, or the activation modules of a DNN."""
    return {
        name: module
        for name, module in model.named_modules()
        if is_spiking_neuron(module) or isinstance(module, _ACTIVATIONS) or _derives(module, _OWN)
    }


def _derives(module: nn.Module, classes: dict[str, set[str]]) -> bool:
    bases = type(module).__mro__
    return any(base.__name__ in classes.get(base.__module__.partition(".")[0], ()) for base in bases)


def forget_compiled() -> None:
    """Make compiled models notice new hooks: code compiled before ignores them silently."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


Method = TypeVar("Method", bound=Callable[..., Any])


def uncompiled(method: Method) -> Method:
    """Make a hook run as it is inside models that are compiled, where it breaks the graph."""

    @wraps(method)
    def run(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            torch._dynamo.graph_break(msg=_WATCHED)
            return torch.compiler.disable(method)(*args)  # type: ignore[no-untyped-call]
        return method(*args)

    return cast(Method, run)


_WATCHED = (
    "The metrics of snnreg_plugins count in Python, so a model that they watch cannot be compiled with "
    "fullgraph=True: leave that out, or call close() on the metric."
)


class Fold(NamedTuple):
    """Which steps and samples a call of a module holds, where they are not all those of one step of a pass.

    A tensor then is ``(steps * samples, ...)``, one step after the other.

    Args:
        steps: Time steps.
        first_step: The first of them, from 0.
    """

    steps: int
    first_step: int


_FOLD: ContextVar[Fold | None] = ContextVar("fold", default=None)
# Hooks that ask for it: those of the metrics.
_FOLD_AWARE: set[int] = set()


def current_fold() -> Fold | None:
    """Tell, in a hook, what the call under way holds; None for one step of a whole batch."""
    return _FOLD.get()


@contextmanager
def folding(fold: Fold) -> Iterator[None]:
    """Call modules on several steps at once."""
    token = _FOLD.set(fold)
    try:
        yield
    finally:
        _FOLD.reset(token)


def takes_folds(module: nn.Module) -> bool:
    """Tell whether all who watch a module know that a call may hold several steps."""
    return (
        _FOLD_AWARE.issuperset(module._forward_pre_hooks)
        and _FOLD_AWARE.issuperset(module._forward_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
    )


class Hooks:
    """Forward hooks that come off together.

    Args:
        before: What to call as ``hook(module, args)`` before a module's forward; a returned value replaces its
            arguments.
        after: What to call as ``hook(module, args, output)`` after it.
        fold_aware: Whether they ask for :func:`current_fold`. Where others look on, a
            :class:`~snnreg_plugins.SpikingNetwork` takes one step at a time.

    Example:
        >>> import torch
        >>> layer = nn.Linear(2, 3)
        >>> with Hooks(after=[(layer, lambda module, args, output: print(tuple(output.shape)))]):
        ...     _ = layer(torch.zeros(5, 2))
        (5, 3)
        >>> _ = layer(torch.zeros(5, 2))
    """

    def __init__(
        self,
        before: list[tuple[nn.Module, Callable[..., Any]]] | None = None,
        after: list[tuple[nn.Module, Callable[..., Any]]] | None = None,
        fold_aware: bool = False,
    ) -> None:
        self._handles: list[RemovableHandle] = []
        self.fold_aware = fold_aware
        for module, hook in before or ():
            self.before(module, hook)
        for module, hook in after or ():
            self.after(module, hook)

    def before(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Call ``hook(module, args)`` before every forward of ``module``, args also where they are given by keyword."""
        self._keep(module.register_forward_pre_hook(partial(_before, hook), with_kwargs=True))

    def around(self, module: nn.Module, enter: Callable[..., Any], leave: Callable[..., Any]) -> None:
        """Call ``enter(module, args, kwargs)`` before and ``leave(module, args, kwargs, output)`` after.

        Also where forward raises; the output is None then. ``enter`` runs before the hooks that are there already
        and ``leave`` after them.
        """
        self._keep(module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True))
        self._keep(module.register_forward_hook(leave, with_kwargs=True, always_call=True))

    def after(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Call ``hook(module, args, output)`` after every forward of ``module``, before the hooks there already."""
        self._keep(module.register_forward_hook(hook, prepend=True))

    def _keep(self, handle: RemovableHandle) -> None:
        self._handles.append(handle)
        if self.fold_aware:
            _FOLD_AWARE.add(handle.id)

    @contextmanager
    def unfolded(self) -> Iterator[None]:
        """Have networks take one step at a time."""
        ids = {handle.id for handle in self._handles} & _FOLD_AWARE
        _FOLD_AWARE.difference_update(ids)
        try:
            yield
        finally:
            _FOLD_AWARE.update(ids)

    def remove(self) -> None:
        """Take all hooks off; once is enough, twice is fine."""
        for handle in self._handles:
            _FOLD_AWARE.discard(handle.id)
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> Hooks:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


Identity: TypeAlias = tuple[StorageWeakRef, int]


def _before(
    hook: Callable[..., Any], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    replaced = hook(module, args or tuple(kwargs.values()))
    if replaced is None:
        return None
    replaced = replaced if isinstance(replaced, tuple) else (replaced,)
    return (replaced, kwargs) if args else ((), dict(zip(kwargs, replaced, strict=True)))


class SampleCounter:
    """Counts the samples that go through a model, each once, however its time loop is written.

    A pass is one call of a watched module from outside all others. If a neuron starts a pass with the state that
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
        on_begin: What to call with the outermost module at the beginning of every pass.
        on_leave: What to call with no argument when a pass ends in any way that can be noticed, before ``on_pass``.
        others: Further modules to watch from the outside, as those around layers are.
        fold_aware: Whether the one who watches knows that a call may hold several steps.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Module],
        on_pass: Callable[[int | None], None],
        batch_dim: int = 0,
        on_begin: Callable[[nn.Module], None] | None = None,
        on_leave: Callable[[], None] | None = None,
        others: Iterable[nn.Module] = (),
        fold_aware: bool = False,
    ) -> None:
        self.on_pass = on_pass
        self.on_begin, self.on_leave = on_begin, on_leave
        self.batch_dim = batch_dim
        self.hooks = Hooks(fold_aware=fold_aware)
        modules = {module: set(module.modules()) for module in model.modules()}
        self._neurons = {module for module in modules if _derives(module, _STATEFUL)}
        self._around_neurons = {module for module, parts in modules.items() if parts & self._neurons}
        leaves, alone = set(layers.values()) - self._neurons, set(others)
        for module, parts in modules.items():
            if parts & self._neurons or parts & leaves - {module} or parts & alone:
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

    def called(self, layer: nn.Module, args: tuple[Any, ...]) -> None:
        """Tell that one of the layers was called: from outside, and if it is no neuron, that is a pass of its own."""
        if self._depth == 0:
            self._enter(layer, args, {})
            self._leave(layer, args, {}, ())

    def _forget(self) -> None:
        """Forget the pass under way, and the states that the last one left."""
        self._depth = 0
        self._continues = False
        # Of the last pass of each neuron and outermost module: the tensors it returned, and kept in itself.
        self._returned: dict[nn.Module, set[Identity]] = {}
        self._kept: dict[nn.Module, set[Identity]] = {}
        self._sizes: dict[nn.Module, int] = {}

    def _begin(self, tensors: list[Tensor]) -> None:
        self._size = tensors[0].shape[self.batch_dim] if tensors and tensors[0].dim() > self.batch_dim else 1
        self._given = identities(tensors) if len(tensors) > 1 else set()  # one tensor comes without a state
        self._called: set[nn.Module] = set()
        # What each neuron holds and is handed when the pass reaches it, and what its last call in the pass returns.
        self._held: dict[nn.Module, tuple[set[Identity], set[Identity]]] = {}
        self._outputs: dict[nn.Module, list[ref[Tensor]]] = {}
        self._handed: set[nn.Module] = set()  # neurons whose state the caller hands over

    @uncompiled
    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._depth == 0:
            self._begin(list(tensors_in((args, kwargs))))
            self._continues = self._knows(module, self._given & self._returned.get(module, set()))
            if self.on_begin is not None:
                self.on_begin(module)
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

    def _knows(self, module: nn.Module, state: set[Identity]) -> bool:
        """Tell whether a state that came back makes the pass a further step; another batch size cannot be one."""
        return bool(state) and self._sizes.get(module) == self._size

    @uncompiled
    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._depth == 0:  # there was a reset in the middle
            return
        self._depth -= 1
        if module in self._neurons:
            self._outputs[module] = [ref(tensor) for tensor in tensors_in(output)]
        if self._depth == 0:
            self._end(module, output)

    def _end(self, module: nn.Module, output: Any) -> None:
        for neuron, (held, handed) in self._held.items():
            self._returned[neuron] = identities([tensor() for tensor in self._outputs.get(neuron, ())]) - handed
            self._kept[neuron] = set() if neuron in self._handed else identities(_state(neuron)) - held
            self._sizes[neuron] = self._size
        self._returned[module] = identities(output) - self._given
        self._sizes[module] = self._size
        if self.on_leave is not None:
            self.on_leave()
        failed = output is None and sys.exc_info()[0] is not None
        if failed or torch._C._current_graph_task_id() != -1:  # a checkpoint's recomputation within backward
            self.on_pass(None)
            return
        before = self.samples()
        if not self._continues:
            for called in self._called:
                seen = self._samples[called] = self._samples.get(called, 0) + self._size
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
    return {
        (
            StorageWeakRef(tensor.untyped_storage()),  # type: ignore[no-untyped-call]
            0 if tensor.is_inference() else tensor._version,
        )
        for tensor in tensors_in(values)
        if tensor.numel()
    }
