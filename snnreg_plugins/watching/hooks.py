"""The one place that installs and removes hooks on a model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


def notice_new_hooks() -> None:
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
# Hooks that ask for it: those of the metrics.
SEES_MANY_STEPS: set[int] = set()


def sees_many_steps(module: nn.Module) -> bool:
    """Tell whether all who watch a module know that a call may hold several steps."""
    return (
        SEES_MANY_STEPS.issuperset(module._forward_pre_hooks)
        and SEES_MANY_STEPS.issuperset(module._forward_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
    )


class Hooks:
    """Forward hooks that come off together.

    Args:
        before: What to call as ``hook(module, args)`` before a module's forward; a returned value replaces its
            arguments.
        after: What to call as ``hook(module, args, output)`` after it.
        many_steps: Whether they ask for :func:`steps_of_call`. Where others look on, a
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
        many_steps: bool = False,
    ) -> None:
        self._handles: list[RemovableHandle] = []
        self.many_steps = many_steps
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
        if self.many_steps:
            SEES_MANY_STEPS.add(handle.id)

    @contextmanager
    def one_step_at_a_time(self) -> Iterator[None]:
        """Have networks take one step at a time."""
        ids = {handle.id for handle in self._handles} & SEES_MANY_STEPS
        SEES_MANY_STEPS.difference_update(ids)
        try:
            yield
        finally:
            SEES_MANY_STEPS.update(ids)

    def remove(self) -> None:
        """Take all hooks off; once is enough, twice is fine."""
        for handle in self._handles:
            SEES_MANY_STEPS.discard(handle.id)
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> Hooks:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def _before(
    hook: Callable[..., Any], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    replaced = hook(module, args or tuple(kwargs.values()))
    if replaced is None:
        return None
    replaced = replaced if isinstance(replaced, tuple) else (replaced,)
    return (replaced, kwargs) if args else ((), dict(zip(kwargs, replaced, strict=True)))
