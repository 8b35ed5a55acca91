"""What everybody asks of a module: where it lies, what it computes in, and to look at it in eval mode."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


def require_sizes(model: nn.Module) -> None:
    """Raise a ValueError if a model has lazy layers that do not know their sizes yet.

    Example:
        >>> require_sizes(nn.Sequential(nn.LazyLinear(3)))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        ValueError: Expected argument `model` to know the sizes of its layers, but ... lazy: '0'. Call it on a batch ...
    """
    for name, part in model.named_modules():
        if any(is_lazy(parameter) for parameter in part.parameters(recurse=False)):
            raise ValueError(
                f"Expected argument `model` to know the sizes of its layers, but one of {type(model).__name__} is "
                f"lazy: {name!r}. Call it on a batch first, as in `model(x)`."
            )


def device_of(module: nn.Module, otherwise: torch.device | str = "cpu") -> torch.device:
    """Device of the first parameter of a module, or of its first buffer.

    Args:
        module: Any module.
        otherwise: The answer for a module with neither.

    Example:
        >>> device_of(nn.Linear(2, 3)), device_of(nn.ReLU())
        (device(type='cpu'), device(type='cpu'))
    """
    return next((tensor.device for tensor in _tensors(module)), torch.device(otherwise))


def dtype_of(module: nn.Module) -> torch.dtype:
    """Type of the first floating parameter of a module, or of its first floating buffer; else torch's default.

    Example:
        >>> dtype_of(nn.Linear(2, 3).double()), dtype_of(nn.ReLU())
        (torch.float64, torch.float32)
    """
    return next((tensor.dtype for tensor in _tensors(module) if tensor.is_floating_point()), torch.get_default_dtype())


def names_of(model: nn.Module) -> dict[nn.Module, str]:
    """The first name of every module within a model, itself included, whose name is empty.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> names_of(model)[model[1]]
        '1'
    """
    return {module: name for name, module in model.named_modules()}


@contextmanager
def eval_and_back(module: nn.Module) -> Iterator[None]:
    """Have a module and all within it in eval mode, and each in its own mode afterwards.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2).eval())
        >>> with eval_and_back(model):
        ...     print(model[0].training)
        False
        >>> model[0].training, model[1].training
        (True, False)
    """
    modes = {part: part.training for part in module.modules()}
    try:
        for part in modes:
            part.training = False  # directly: `eval()` may be overridden
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def part_of(model: nn.Module, name: str | None, argument: str = "network") -> nn.Module:
    """A module within a model, by its name; the model itself if there is none.

    Args:
        model: The model.
        name: Name of the module, as in ``named_modules()``.
        argument: Name of the argument, for the error.

    Raises:
        ValueError: If there is no such module.

    Example:
        >>> part_of(nn.ModuleDict({"net": nn.Linear(2, 3)}), "net")
        Linear(in_features=2, out_features=3, bias=True)
    """
    if name is None:
        return model
    try:
        return model.get_submodule(name)
    except (AttributeError, TypeError) as error:
        names = [known for known, _ in model.named_children()]
        raise ValueError(
            f"Expected argument `{argument}` to name a module within {type(model).__name__}, such as one of {names}, "
            f"but got {name!r}."
        ) from error


def shared_parameter(model: nn.Module, name: str) -> str | None:
    """Name of a parameter of another part of a model that is a part's own too; None if there is none.

    Args:
        model: The model.
        name: Name of the part.

    Example:
        >>> model = nn.ModuleDict({"net": nn.Linear(2, 3)})
        >>> shared_parameter(model, "net")
        >>> model["tied"] = model["net"]
        >>> shared_parameter(model, "net")
        'tied.weight'
    """
    own = {id(parameter) for parameter in model.get_submodule(name).parameters()}
    named = model.named_parameters(remove_duplicate=False)
    return next((other for other, one in named if id(one) in own and not other.startswith(f"{name}.")), None)


@contextmanager
def kept_as_it_is(module: nn.Module) -> Iterator[None]:
    """Put back all attributes and buffers of a module and all within it, as its forward may write to them.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> with kept_as_it_is(norm):
        ...     norm.seen = norm(torch.rand(3, 2))
        >>> norm.num_batches_tracked, hasattr(norm, "seen")
        (tensor(0), False)
    """
    registries = [registry for part in module.modules() for registry in (vars(part), part._buffers)]
    entries = [(registry, registry.copy()) for registry in registries]
    held = [value for registry in registries for value in registry.values() if isinstance(value, Tensor)]
    # Lazy buffers and those on the meta device have no values.
    tensors = {id(value): value for value in held if not (is_lazy(value) or value.is_meta)}
    values = [(tensor, tensor.detach().clone(), tensor.is_inference()) for tensor in tensors.values()]
    try:
        yield
    finally:
        for registry, before in entries:
            registry.clear()
            registry.update(before)
        for tensor, value, is_inference in values:
            if not torch.equal(tensor, value):
                with torch.no_grad(), torch.inference_mode(is_inference):
                    tensor.copy_(value)


def as_module(argument: str, value: Any) -> nn.Module:
    """Give a module.

    Args:
        argument: Name of the argument, for the error.
        value: What was given for it.

    Raises:
        TypeError: If it is anything else, such as a class of modules.

    Example:
        >>> as_module("model", nn.ReLU)
        Traceback (most recent call last):
            ...
        TypeError: Expected argument `model` to be a torch.nn.Module, but got the class ReLU: make a model of it first.
    """
    if isinstance(value, type) and issubclass(value, nn.Module):
        got = f"the class {value.__name__}: make a model of it first"
    elif isinstance(value, torch.jit.ScriptModule):
        got = f"{type(value).__name__}, whose parts run unseen: give the module that was scripted"
    elif not isinstance(value, nn.Module):
        got = type(value).__name__
    else:
        return value
    raise TypeError(f"Expected argument `{argument}` to be a torch.nn.Module, but got {got}.")


def is_copied_along(model: nn.Module, memo: dict[int, Any], unless_in: type) -> bool:
    """Tell, in a ``__deepcopy__``, whether what is being copied holds a model too.

    Args:
        model: The model.
        memo: The memo of the copy.
        unless_in: A class of objects in which it is not looked for.

    Example:
        >>> class Watcher:
        ...     def __init__(self, model):
        ...         self.model = model
        ...     def __deepcopy__(self, memo):
        ...         print(is_copied_along(self.model, memo, Watcher))
        >>> model = nn.Linear(2, 3)
        >>> _ = copy.deepcopy(Watcher(model)), copy.deepcopy([Watcher(model), nn.Sequential(model)])
        False
        True
    """
    if id(model) in memo:
        return True
    root, frame = None, sys._getframe(1)
    while frame.f_back is not None:
        if frame.f_code is copy.deepcopy.__code__ and frame.f_locals.get("memo") is memo:
            root = frame.f_locals["x"]
        frame = frame.f_back
    seen, waiting = set(), [root]
    while waiting:
        value = waiting.pop()
        if value is model:
            return True
        if id(value) in seen or isinstance(value, (unless_in, type, Tensor, ModuleType, FunctionType)):
            continue
        seen.add(id(value))
        if isinstance(value, (list, tuple, set, frozenset)):
            waiting.extend(value)
        elif isinstance(value, dict):
            waiting.extend(value.values())
        elif hasattr(value, "__dict__"):
            waiting.extend(vars(value).values())
    return False


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())
