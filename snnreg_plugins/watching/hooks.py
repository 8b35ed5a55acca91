"""The one place that installs and removes hooks on a model, and that knows who looks on."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from snnreg_plugins._torch import break_graph, has_backward_hooks, hooks_after, hooks_before


def notice_new_hooks() -> None:
    """Make compiled models notice new hooks: code compiled before ignores them silently."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


@contextmanager
def uncompiled_calls() -> Iterator[None]:
    """Run compiled models as they are written, so that new hooks see them; what is compiled stays for later."""
    if hasattr(torch.compiler, "set_stance"):
        with torch.compiler.set_stance("force_eager"):
            yield
    else:  # before torch 2.6
        notice_new_hooks()
        yield


Method = TypeVar("Method", bound=Callable[..., Any])


def uncompiled(method: Method) -> Method:
    """Make a hook run as it is inside models that are compiled, where it breaks the graph."""

    @wraps(method)
    def run(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            break_graph(_WATCHED)
            return torch.compiler.disable(method)(*args)  # type: ignore[no-untyped-call]
        return method(*args)

    return cast(Method, run)


_WATCHED = (
    "The metrics of snnreg_plugins, and Distillation, look on in Python, so a model that they watch cannot be compiled "
    "with fullgraph=True: leave that out, or call close() on the metric."
)


_NOBODY_LOOKS: ContextVar[bool] = ContextVar("nobody looks", default=False)


@contextmanager
def unwatched() -> Iterator[None]:
    """Run models without that any :class:`Hooks` see it: a pass that is nobody's to count.

    Example:
        >>> layer = nn.Linear(2, 3)
        >>> with Hooks(after=[(layer, lambda *_: print("seen"))]), unwatched():
        ...     _ = layer(torch.zeros(5, 2))
    """
    token = _NOBODY_LOOKS.set(True)
    try:
        yield
    finally:
        _NOBODY_LOOKS.reset(token)


class Watcher:
    """What stands on a module for one hook of :class:`Hooks`, and calls it.

    A copy of the module has a copy of this that calls nothing: nobody watches the copy. Where the one who watches is
    copied along with the module, its :class:`Hooks` set the copy to work.
    """

    hooks: Hooks | None = None
    call: Callable[..., Any] | None = None  # (module, args, kwargs), and the output where it comes after forward
    always: bool = False  # also where forward raises

    def set(self, hooks: Hooks, call: Callable[..., Any], always: bool) -> None:
        """Set to work."""
        self.hooks, self.call, self.always = hooks, call, always

    @property
    def sees_many_steps(self) -> bool:
        """Whether it knows that a call may hold several steps; nobody sees any number of them."""
        return self.hooks is None or self.hooks.many_steps

    def __call__(self, module: nn.Module, *given: Any) -> Any:
        """Call the hook."""
        return None if self.call is None or _NOBODY_LOOKS.get() else self.call(module, *given)

    def __getstate__(self) -> dict[str, Any]:
        return {}


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
        self._installed: list[tuple[Watcher, RemovableHandle]] = []
        self.many_steps = many_steps
        for module, hook in before or ():
            self.before(module, hook)
        for module, hook in after or ():
            self.after(module, hook)

    def before(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Call ``hook(module, args)`` before every forward of ``module``.

        Args that were given by keyword come after the others.
        """
        self._install(module.register_forward_pre_hook, partial(_before, hook))

    def around(self, module: nn.Module, enter: Callable[..., Any], leave: Callable[..., Any]) -> None:
        """Call ``enter(module, args, kwargs)`` before and ``leave(module, args, kwargs, output)`` after.

        Also where forward raises; the output is None then. ``enter`` runs before the hooks that are there already
        and ``leave`` after them.
        """
        self._install(module.register_forward_pre_hook, enter, prepend=True)
        self._install(module.register_forward_hook, leave, always_call=True)

    def after(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Call ``hook(module, args, output)`` after every forward of ``module``, before the hooks there already.

        Args that were given by keyword come after the others.
        """
        self._install(module.register_forward_hook, partial(_after, hook), prepend=True)

    def _install(self, register: Callable[..., RemovableHandle], call: Callable[..., Any], **how: bool) -> None:
        watcher = Watcher()
        watcher.set(self, call, how.get("always_call", False))
        self._installed.append((watcher, register(watcher, with_kwargs=True, **how)))

    @contextmanager
    def one_step_at_a_time(self) -> Iterator[None]:
        """Have networks take one step at a time."""
        before, self.many_steps = self.many_steps, False
        try:
            yield
        finally:
            self.many_steps = before

    def remove(self) -> None:
        """Take all hooks off; once is enough, twice is fine."""
        for _, handle in self._installed:
            handle.remove()
        self._installed.clear()

    def __enter__(self) -> Hooks:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_calls": [(watcher.call, watcher.always) for watcher, _ in self._installed]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        calls = state.pop("_calls")
        vars(self).update(state)
        for (watcher, _), (call, always) in zip(self._installed, calls, strict=True):
            watcher.set(self, call, always)


def _before(
    hook: Callable[..., Any], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    replaced = hook(module, (*args, *kwargs.values()) if kwargs else args)
    if replaced is None:
        return None
    replaced = replaced if isinstance(replaced, tuple) else (replaced,)
    number = len(args)
    # Who replaces the first arguments alone leaves the others.
    return replaced[:number], kwargs | dict(zip(kwargs, replaced[number:], strict=False))


def _after(
    hook: Callable[..., Any], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> Any:
    return hook(module, (*args, *kwargs.values()) if kwargs else args, output)


# For those who compute a module in a way of their own.


def sees_many_steps(module: nn.Module) -> bool:
    """Tell whether all who watch a module know that a call may hold several steps."""
    for hook in hooks_before(module) + hooks_after(module):
        if not (isinstance(hook, Watcher) and hook.sees_many_steps):
            return False
    return not has_backward_hooks(module)


def is_watched(module: nn.Module) -> bool:
    """Tell whether somebody watches a module."""
    return any(hook.call is not None for hook in _watchers(hooks_before(module) + hooks_after(module)))


def watched_call(module: nn.Module, compute: Callable[..., Any], *args: Any) -> Any:
    """Compute a module in another way than by its forward; those who watch it see what they see in a call.

    Args:
        module: A module of which :func:`sees_many_steps` is true: other hooks on it are not called.
        compute: What to call instead of its forward.
        args: The arguments.

    Returns:
        What ``compute`` gives, or a hook in its place.
    """
    before, after = _watchers(hooks_before(module)), _watchers(hooks_after(module))
    if not (before or after):
        return compute(*args)
    kwargs: dict[str, Any] = {}
    output, seen = None, 0
    try:
        for watcher in before:
            replaced = watcher(module, args, kwargs)
            if replaced is not None:
                args, kwargs = replaced
        output = compute(*args, **kwargs)
        for watcher in after:
            seen += 1
            replaced = watcher(module, args, kwargs, output)
            if replaced is not None:
                output = replaced
    except Exception:
        for watcher in after[seen:]:
            if watcher.always:
                _call_after_error(watcher, module, args, kwargs, output)
        raise
    return output


def _watchers(hooks: list[Callable[..., Any]]) -> list[Watcher]:
    return [hook for hook in hooks if isinstance(hook, Watcher)]


def _call_after_error(watcher: Watcher, module: nn.Module, *given: Any) -> None:
    """Call a hook that is called always; an error of its own is not to hide the first."""
    try:
        watcher(module, *given)
    except Exception as error:
        warnings.warn(
            f"A hook on {type(module).__name__} that runs also where forward raises did so itself: {error!r}",
            stacklevel=2,
        )
