"""Which time steps a call of a module holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple


class CallSteps(NamedTuple):
    """Which steps and samples a call of a module holds, where they are not all those of one step of a pass.

    A tensor then is ``(steps * samples, ...)``, one step after the other.

    Args:
        steps: Time steps.
        first_step: The first of them, from 0.
        events: Whether what the network is given in each step may be events, and is no constant current.
    """

    steps: int
    first_step: int
    events: bool = False


_CALL_STEPS: ContextVar[CallSteps | None] = ContextVar("call_steps", default=None)


def steps_of_call() -> CallSteps | None:
    """Tell, in a hook, what the call under way holds; None for one step of a whole batch."""
    return _CALL_STEPS.get()


@contextmanager
def holding_steps(held: CallSteps) -> Iterator[None]:
    """Call modules on several steps at once."""
    token = _CALL_STEPS.set(held)
    try:
        yield
    finally:
        _CALL_STEPS.reset(token)
