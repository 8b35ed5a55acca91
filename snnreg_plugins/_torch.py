"""The one door to what torch does not offer in public; each function says what breaks without it.

Nothing private is touched when this is imported, so that an upgrade of torch which
takes one of these away breaks what needs it, and the test of it, and nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.multiprocessing.reductions
import torch.utils.checkpoint
from torch import Tensor, UntypedStorage, nn
from torch.autograd.graph import Node


def children(module: nn.Module) -> Iterable[nn.Module | None]:
    """Give the modules right in a module, None where one is left out.

    Without it, use ``module.children()``, which takes a while in a network that takes a millisecond.
    """
    return module._modules.values()


def hooks_before(module: nn.Module) -> list[Callable[..., Any]]:
    """List the forward pre-hooks of a module, in the order that they run in.

    Without it, a spiking network cannot tell who looks on, and has to take one step at a time.
    """
    return list(module._forward_pre_hooks.values())


def hooks_after(module: nn.Module) -> list[Callable[..., Any]]:
    """List the forward hooks of a module, in the order that they run in; see :func:`hooks_before`."""
    return list(module._forward_hooks.values())


def has_backward_hooks(module: nn.Module) -> bool:
    """Tell whether someone looks on at the backward pass of a module.

    Without it, such hooks see one call of a spiking layer instead of one in each step.
    """
    return bool(module._backward_hooks or module._backward_pre_hooks)


def has_hooks_on_all() -> bool:
    """Tell whether there are hooks on all modules, ``torch.nn.modules.module.register_module_forward_hook`` and alike.

    Without it, such hooks see nothing of layers that a spiking network computes in its own way.
    """
    all_of = torch.nn.modules.module
    return bool(
        all_of._global_forward_hooks
        or all_of._global_forward_pre_hooks
        or all_of._global_backward_hooks
        or all_of._global_backward_pre_hooks
    )


def is_transformed() -> bool:
    """Tell whether a transform of ``torch.func`` is under way, such as vmap or grad, of parameters too.

    Without it, compiled loops read the memory of tensors that have none, or lose their derivatives.
    """
    return torch._C._functorch.peek_interpreter_stack() is not None


def is_forward_ad() -> bool:
    """Tell whether forward-mode derivatives are taken, within ``torch.autograd.forward_ad.dual_level()``.

    Without it, compiled loops lose them without a word.
    """
    return torch.autograd.forward_ad._current_level >= 0


def is_dispatch_mode_on(beside: type | tuple[()] = ()) -> bool:
    """Tell whether a mode sees every operation, such as ``FlopCounterMode`` or one for fake tensors.

    Without it, compiled loops are not seen by it, and read the memory of fake tensors.

    Args:
        beside: A class of modes that do not count, if any.
    """
    from torch.utils import _python_dispatch

    return any(not isinstance(mode, beside) for mode in _python_dispatch._get_current_dispatch_mode_stack())


def is_in_backward() -> bool:
    """Tell whether a backward pass is under way, where checkpointing calls modules again.

    Without it, recomputed passes are counted twice.
    """
    return torch._C._current_graph_task_id() != -1


def without_modes() -> AbstractContextManager[None]:
    """Leave the modes that see every operation, for operations of one's own.

    Without it, metrics that look closely at the same pass count what the others compute.
    """
    from torch.utils import _python_dispatch

    found: AbstractContextManager[None] = _python_dispatch._disable_current_modes()
    return found


def dispatch_mode() -> Any:
    """Give the base of modes that see every operation.

    Without it, products that no layer makes are not seen, and metrics count layers alone.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    return TorchDispatchMode


def operation(name: str) -> Any:
    """Give an operation of torch by its name; None if there is none, or none any more.

    Without it, products and averages that only some machines or modes make are not counted.
    """
    return getattr(torch.ops.aten, name, None)


def arguments_of(operation: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Give the arguments of a call of an operation by name, those with defaults too.

    Without it, attention and averages cannot be counted.
    """
    defaults = {argument.name: argument.default_value for argument in operation._schema.arguments}
    return defaults | dict(zip(defaults, args, strict=False)) | dict(kwargs)


def writes_to_first(operation: Any) -> bool:
    """Tell whether an operation of torch writes to its first argument.

    Without it, memory that inference mode lets be changed unseen is taken for what it held before.
    """
    first = operation._schema.arguments[:1]
    return bool(first and first[0].alias_info is not None and first[0].alias_info.is_write)


def has_composite_kernel(operation: Any) -> bool:
    """Tell whether an operation of torch is made of others, as those of inference mode come.

    Without it, a linear layer in inference mode is seen as one unknown operation.
    """
    found: bool = torch._C._dispatch_has_kernel_for_dispatch_key(operation.name(), "CompositeImplicitAutograd")
    return found


def memory_of(tensor: Tensor) -> Hashable:
    """Give what stands for a tensor's memory: equal for all that share it, and keeping it not alive.

    Its ``expired()`` tells whether the memory is gone. Without it, steps of the same samples are taken for new ones.
    """
    memory: Hashable = torch.multiprocessing.reductions.StorageWeakRef(  # type: ignore[no-untyped-call]
        tensor.untyped_storage()
    )
    return memory


def writes_to(tensor: Tensor) -> int:
    """Count the writes to a tensor's memory; 0 in inference mode, which keeps no count.

    Without it, a state that was reset in place is taken for that of the step before.
    """
    return 0 if tensor.is_inference() else version_of(tensor)


def normalizations() -> tuple[type[nn.Module], ...]:
    """Give the classes of normalization over a batch.

    Without it, list ``nn.BatchNorm1d`` and all its like.
    """
    return (torch.nn.modules.batchnorm._NormBase,)


def break_graph(why: str) -> None:
    """Leave the graph that is being compiled; with ``fullgraph=True`` an error that says why.

    Without it, ``torch.compiler.disable`` does the same, and the error says less.
    """
    torch._dynamo.graph_break(msg=why)


def checkpoint_in_forward() -> Any | None:
    """Give the node of the region that reentrant checkpointing runs for the first time, without gradients.

    The outermost one, if they are nested, which alone gets into the graph; None outside. Without it, a penalty on
    activity within such a region does not know whether a backward pass reaches it, and is lost.
    """
    return _outermost(torch.utils.checkpoint.CheckpointFunction.forward)


def checkpoint_in_backward() -> Any | None:
    """Give the node of the region that reentrant checkpointing runs for the second time, on inputs like leaves.

    The outermost one, if they are nested; None outside. Without it, what the region reads is taken for the network's
    own input, and its penalty is lost.
    """
    return _outermost(torch.utils.checkpoint.CheckpointFunction.backward)


def _outermost(function: Any) -> Any | None:
    """First argument of the outermost running call of a function: the node of the graph, for those of autograd."""
    frame: Any = sys._getframe(1)
    found = None
    while frame is not None:
        if frame.f_code is function.__code__:
            found = frame
        frame = frame.f_back
    return None if found is None else found.f_locals[function.__code__.co_varnames[0]]


def view_base(tensor: Tensor) -> Tensor:
    """Give the tensor that a tensor is a view of, itself if it is none.

    Without it, views of trained parameters count as activations, and are rounded where few bits are kept.
    """
    return tensor if tensor._base is None else tensor._base


def version_of(tensor: Tensor) -> int:
    """Give how often a tensor was changed in place.

    Without it, a tensor that is kept for the backward pass may be given back changed, and one that was changed may be
    taken for the one that was kept.
    """
    return tensor._version


def storage_address(storage: UntypedStorage) -> int:
    """Give a number that no other storage has while :func:`hold_address` of this one is held.

    The address of its memory will not do, which is used again when the memory is let go. Without it, memory that is
    shared is kept twice.
    """
    return int(storage._cdata)


def hold_address(storage: UntypedStorage) -> object:
    """Keep the address of a storage from being used again, but not its memory; see :func:`storage_address`."""
    return torch.multiprocessing.reductions.StorageWeakRef(storage)  # type: ignore[no-untyped-call]


def leaf_of(node: Node) -> Tensor | None:
    """Give the leaf that a node of a graph collects the gradient of; None if it is another node.

    Without it, a penalty cannot tell what depends on parameters, and counts the network's own input.
    """
    return getattr(node, "variable", None)  # of nodes of this kind alone


def collects(node: Node) -> bool:
    """Tell whether the backward pass that is under way adds to ``grad`` of a leaf, given the node that collects that.

    Without it, a backward pass that goes past Lightning, whose gradients have no penalty in them, is taken for one of
    ``torch.autograd.grad``, which takes gradients for a use of their own.
    """
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # it is given to who called torch.autograd.grad
        return False


def is_of_leaf(node: Node) -> bool:
    """Tell whether a node of a graph collects the gradient of a leaf, such as a parameter.

    Without it, casts of weights count as activations, and are rounded where few bits are kept.
    """
    return node.name() == "torch::autograd::AccumulateGrad"


def is_assertion(function: object) -> bool:
    """Tell whether a function is the assertion that models write where they are to be traced.

    Without it, models that assert something of their input are refused.
    """
    return function is torch._assert


def ignore_index_of(step: Any) -> int:
    """Give the class index that a cross-entropy leaves out, from its step of a backward pass.

    Without it, targets that do not count are scored as wrong.
    """
    return int(step._saved_ignore_index)
