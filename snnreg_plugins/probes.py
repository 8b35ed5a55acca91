"""The one place that installs and removes hooks on a model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

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

# Base classes of spiking neurons by package. Names, so that no framework has to be imported to recognise its own.
_SPIKING_BASES = {
    "snntorch": {"SpikingNeuron"},
    "norse": {"SNNCell", "SNNRecurrentCell", "SNN", "SNNRecurrent"},
    "spikingjelly": {"BaseNode"},
    "sinabs": {"StatefulLayer"},
}


def is_spiking_neuron(module: nn.Module) -> bool:
    """Tell whether ``module`` is a stateful neuron of snnTorch, Norse, SpikingJelly or sinabs."""
    return any(
        base.__name__ in _SPIKING_BASES.get(base.__module__.partition(".")[0], ()) for base in type(module).__mro__
    )


def synaptic_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Find the layers that multiply activity by weights, by name; a shared layer has its first name."""
    return {name: module for name, module in model.named_modules() if is_synaptic(module)}


def neuron_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Find the layers that emit activity, by name: spiking neurons, or the activation modules of a DNN."""
    return {
        name: module
        for name, module in model.named_modules()
        if is_spiking_neuron(module) or isinstance(module, _ACTIVATIONS)
    }


def forget_compiled() -> None:
    """Make compiled models notice new hooks: code compiled before ignores them silently."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


class Hooks:
    """Forward hooks that come off together.

    Args:
        before: What to call as ``hook(module, args)`` before a module's forward; a returned value replaces its
            arguments.
        after: What to call as ``hook(module, args, output)`` after it.

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
    ) -> None:
        self._handles: list[RemovableHandle] = []
        for module, hook in before or ():
            self.before(module, hook)
        for module, hook in after or ():
            self.after(module, hook)

    def before(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Call ``hook(module, args)`` before every forward of ``module``."""
        self._handles.append(module.register_forward_pre_hook(hook))

    def around(self, module: nn.Module, enter: Callable[..., Any], leave: Callable[..., Any]) -> None:
        """Call ``enter(module, args, kwargs)`` before and ``leave(module, args, output)`` after, also on errors.

        ``enter`` runs before the hooks that are there already and ``leave`` after them.
        """
        self._handles.append(module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True))
        self._handles.append(module.register_forward_hook(leave, always_call=True))

    def after(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Call ``hook(module, args, output)`` after every forward of ``module``, before the hooks there already."""
        self._handles.append(module.register_forward_hook(hook, prepend=True))

    def remove(self) -> None:
        """Take all hooks off; once is enough, twice is fine."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> Hooks:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class SampleCounter:
    """Counts the samples that go through a model, each once, however its time loop is written.

    A pass is one call of a watched module from outside all others. If a neuron starts a pass with the state that
    the last one left it with (kept inside the neuron, or handed back by the caller), the pass is a further time
    step of the same samples; else its batch is new. A network whose forward has the loop inside is one pass.
    Neurons of other packages than those in :func:`is_spiking_neuron` are followed where their state is handed
    to the model and back by the caller.

    Args:
        model: The model to watch.
        layers: The layers that matter; they and all modules around them are watched.
        on_pass: What to call at the end of every pass.
        batch_dim: Dimension of the batch in the first tensor argument of a pass.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Module],
        on_pass: Callable[[], None],
        batch_dim: int = 0,
    ) -> None:
        self.on_pass = on_pass
        self.batch_dim = batch_dim
        self.hooks = Hooks()
        self._samples: dict[nn.Module, int] = {}
        self._with_neurons: set[nn.Module] = set()
        self._forget()
        watched = {id(layer) for layer in layers.values()}
        for module in model.modules():
            if is_spiking_neuron(module):
                self.hooks.around(module, self._enter_neuron, self._leave_neuron)
            if any(id(part) in watched for part in module.modules()):
                self.hooks.around(module, self._enter, self._leave)

    def _forget(self) -> None:
        """Forget the pass under way and the states that the last one left."""
        self._depth = 0
        self._continues = False
        self._given: set[StorageWeakRef] = set()
        self._returned: set[StorageWeakRef] = set()
        self._held: dict[nn.Module, set[StorageWeakRef]] = {}  # by each neuron as the pass reached it
        self._calls: dict[nn.Module, Any] = {}  # arguments and output of each neuron's last call in the pass
        self._left: dict[nn.Module, set[StorageWeakRef]] = {}  # what each neuron's last call made

    def samples(self) -> int:
        """Count the samples since the last :meth:`reset`: the most that any one outermost module saw.

        Modules that hold neurons know time steps from new samples, so they decide where there are any.
        """
        judges = self._with_neurons & self._samples.keys() or self._samples.keys()
        return max((self._samples[module] for module in judges), default=0)

    def reset(self) -> None:
        """Start counting anew; the next pass brings new samples."""
        self._samples.clear()
        self._forget()

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._depth == 0:
            self._given = _storages((args, kwargs))
            self._continues = bool(self._given & self._returned)
        self._depth += 1

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._depth -= 1
        if self._depth > 0:
            return
        for neuron, call in self._calls.items():
            made = _storages((call, _state(neuron)))
            self._left[neuron] = made - self._held[neuron] - _storages(call[0])
            self._with_neurons.add(module)
        self._calls.clear()
        self._held.clear()
        self._returned = _storages(output) - self._given
        if not self._continues:
            batch = next(_tensors(args), None)
            size = batch.shape[self.batch_dim] if batch is not None and batch.dim() > self.batch_dim else 1
            self._samples[module] = self._samples.get(module, 0) + size
        self.on_pass()

    def _enter_neuron(self, neuron: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if neuron not in self._held:
            self._held[neuron] = _storages(_state(neuron))
            start = _storages((args[1:], kwargs)) or self._held[neuron]
            self._continues |= bool(start & self._left.get(neuron, set()))

    def _leave_neuron(self, neuron: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._calls[neuron] = (args, output)

    def __getstate__(self) -> dict[str, Any]:
        # Which samples are under way is known in this process alone.
        weak = ("_given", "_returned", "_held", "_calls", "_left")
        return self.__dict__ | {name: type(getattr(self, name))() for name in weak} | {"_depth": 0}


def _state(neuron: nn.Module) -> list[Tensor]:
    """Tensors that a neuron keeps from step to step: whatever it holds that is no parameter."""
    held = [*neuron._buffers.values(), *vars(neuron).values(), *getattr(neuron, "_memories", {}).values()]
    return [value for value in held if isinstance(value, Tensor)]


def _tensors(values: Any) -> Iterator[Tensor]:
    """Walk the tensors in nested tuples, lists and dicts."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, Mapping):
        yield from _tensors(tuple(values.values()))


def _storages(values: Any) -> set[StorageWeakRef]:
    """Identify tensors by storage, so that a detached state is still the same one; never keeps memory alive."""
    return {StorageWeakRef(tensor.untyped_storage()) for tensor in _tensors(values) if tensor.numel()}
