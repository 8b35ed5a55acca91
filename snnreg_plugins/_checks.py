"""One sentence for an argument out of range.

- :func:`as_integer`: a whole number of at least so much: time steps, batches, levels, epochs.
- :func:`as_number`: a number in an interval: shares, percentiles, factors.
- :func:`one_of`: one of a few choices: names of methods, bits.
- :func:`as_flag`: True or False.

Each gives the value as plain Python has it, so that what is kept can be compared, printed and written to YAML. NumPy's
scalars and tensors without dimensions are taken for the number that they hold; a bool is no number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, TypeVar

Choice = TypeVar("Choice")


def as_integer(argument: str, value: Any, at_least: int = 1) -> int:
    """Give a whole number.

    Args:
        argument: Name of the argument, for the error.
        value: What was given for it.
        at_least: The least that is allowed.

    Raises:
        ValueError: If it is anything else.

    Example:
        >>> as_integer("timesteps", 8)
        8
        >>> as_integer("timesteps", 2.5)
        Traceback (most recent call last):
            ...
        ValueError: Expected argument `timesteps` to be an integer of at least 1, but got 2.5.
    """
    held = _held(value)
    if isinstance(held, bool) or not isinstance(held, int) or held < at_least:
        raise ValueError(f"Expected argument `{argument}` to be an integer of at least {at_least}, but got {value!r}.")
    return held


def as_number(argument: str, value: Any, interval: str) -> float:
    """Give a finite number.

    Args:
        argument: Name of the argument, for the error.
        value: What was given for it.
        interval: What is allowed, such as ``"(0, 100]"``, without 0 and with 100, or ``"[0, inf)"``.

    Raises:
        ValueError: If it is anything else.

    Example:
        >>> as_number("percent", 99.9, "(0, 100]")
        99.9
        >>> as_number("percent", 0, "(0, 100]")
        Traceback (most recent call last):
            ...
        ValueError: Expected argument `percent` to be in (0, 100], but got 0.
    """
    held = _held(value)
    low, high = (float(end) for end in interval[1:-1].split(","))
    if not isinstance(held, bool) and isinstance(held, (int, float)) and math.isfinite(held):
        above = low < held or (low == held and interval[0] == "[")
        below = held < high or (held == high and interval[-1] == "]")
        if above and below:
            return held
    allowed = f"in {interval}"
    if math.isinf(high):
        allowed = f"finite and {'at least' if interval[0] == '[' else 'above'} {low:g}"
    raise ValueError(f"Expected argument `{argument}` to be {allowed}, but got {value!r}.")


def one_of(argument: str, value: Any, choices: Iterable[Choice]) -> Choice:
    """Give one of the choices.

    Args:
        argument: Name of the argument, for the error.
        value: What was given for it.
        choices: All that is allowed: texts or numbers.

    Raises:
        ValueError: If it is none of them.

    Example:
        >>> one_of("weighting", "fan_out", ["uniform", "fan_out"])
        'fan_out'
        >>> one_of("weighting", "mean", ["uniform", "fan_out"])
        Traceback (most recent call last):
            ...
        ValueError: Expected argument `weighting` to be one of ['uniform', 'fan_out'], but got 'mean'.
    """
    held, allowed = _held(value), list(choices)
    for choice in allowed:
        if type(held) is type(choice) and held == choice:
            return choice
    raise ValueError(f"Expected argument `{argument}` to be one of {allowed}, but got {value!r}.")


def as_flag(argument: str, value: Any) -> bool:
    """Give True or False; a text such as ``"false"`` is neither.

    Args:
        argument: Name of the argument, for the error.
        value: What was given for it.

    Raises:
        ValueError: If it is anything else.

    Example:
        >>> as_flag("per_channel", "false")
        Traceback (most recent call last):
            ...
        ValueError: Expected argument `per_channel` to be True or False, but got 'false'.
    """
    held = _held(value)
    if not isinstance(held, bool):
        raise ValueError(f"Expected argument `{argument}` to be True or False, but got {value!r}.")
    return held


def _held(value: Any) -> Any:
    """What a scalar of NumPy or a tensor without dimensions holds; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
