"""Which time steps a call of a module holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple


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
