"""One sentence for an argument out of range.

- :func:`as_integer`: a whole number of at least so much: time steps, batches, levels, epochs.
- :func:`as_number`: a number in an interval: shares, factors.
- :func:`as_percent`: a percentile.
- :func:`as_integers`, :func:`as_sizes`: one or more whole numbers: numbers of steps, a shape.
- :func:`one_of`: one of a few choices: names of methods, bits.
- :func:`as_flag`: True or False.
- :func:`as_name`, :func:`as_names`: a text, some texts, or None.
- :func:`matching`: names that patterns match.
- :func:`require_known`: no name but those there are; close ones are told.

Each gives the value as plain Python has it, so that what is kept can be compared, printed and written to YAML. NumPy's
scalars and tensors without dimensions are taken for the number that they hold, and so are texts of numbers, as YAML
has them for ``1e-3`` or between quotes; a bool is no number.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, TypeVar

Choice = TypeVar("Choice")

_WHOLE = re.compile(r"[+-]?[0-9]{1,19}", re.ASCII)
_MOST = 2**63 - 1  # what torch takes for a size, a count or a seed

# Lists that hold each other write 2 to the power of their number of values; these limits keep a text short.
_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxstring, _BRIEF.maxlong, _BRIEF.maxother = 2, 120, 120, 120


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
    if isinstance(held, str) and _WHOLE.fullmatch(held):
        held = int(held)
    if isinstance(held, bool) or not isinstance(held, int) or not at_least <= held <= _MOST:
        most = " and below 2**63" if type(held) is int and held > _MOST else ""
        raise ValueError(
            f"Expected argument `{argument}` to be an integer of at least {at_least}{most}, but got {shown(value)}."
        )
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
    held = _number(_held(value))
    low, high = (float(end) for end in interval[1:-1].split(","))
    if held is not None:
        above = low < held or (low == held and interval[0] == "[")
        below = held < high or (held == high and interval[-1] == "]")
        if above and below:
            return held
    allowed = f"in {interval}"
    if math.isinf(high):
        allowed = f"finite and {'at least' if interval[0] == '[' else 'above'} {low:g}"
    raise ValueError(f"Expected argument `{argument}` to be {allowed}, but got {shown(value)}.")


def as_percent(argument: str, value: Any) -> float:
    """Give which percentile: a number above 1, as what is not is a share by mistake, and at most 100.

    Args:
        argument: Name of the argument, for the error.
        value: What was given for it.

    Raises:
        ValueError: If it is anything else.

    Example:
        >>> as_percent("percent", 0.999)
        Traceback (most recent call last):
            ...
        ValueError: Expected argument `percent` to be in percent, but got the share 0.999. Write 99.9.
    """
    percent = as_number(argument, value, "(0, 100]")
    if percent <= 1:
        raise ValueError(
            f"Expected argument `{argument}` to be in percent, but got the share {shown(value)}. Write "
            f"{100 * percent:.12g}."
        )
    return percent


def as_integers(argument: str, value: Any, such_as: tuple[int, ...], at_least: int = 1) -> tuple[int, ...]:
    """Give one or more whole numbers, in their order.

    Args:
        argument: Name of the argument, for the error.
        value: What was given for it.
        such_as: An example, for the error.
        at_least: The least that is allowed.

    Raises:
        ValueError: If it is anything else.

    Example:
        >>> as_integers("input_shape", [1, 28, 28], such_as=(1, 28, 28))
        (1, 28, 28)
        >>> as_integers("steps", 4, such_as=(1, 2, 4))
        Traceback (most recent call last):
            ...
        ValueError: Expected argument `steps` to be one or more integers of at least 1, such as (1, 2, 4), but got 4.
    """
    several = isinstance(value, Iterable) and not isinstance(value, (str, bytes)) and getattr(value, "ndim", 1) == 1
    try:
        numbers = tuple(as_integer(argument, number, at_least) for number in value) if several else ()
    except ValueError:
        numbers = ()
    if not numbers:
        raise ValueError(
            f"Expected argument `{argument}` to be one or more integers of at least {at_least}, such as {such_as}, but "
            f"got {shown(value)}."
        )
    return numbers


def as_sizes(argument: str, value: Any) -> tuple[int, ...]:
    """Give the sizes of a tensor: a shape, which may be empty or have sizes of 0.

    Args:
        argument: Name of the argument, for the error.
        value: What was given for it.

    Raises:
        ValueError: If it is anything else.

    Example:
        >>> as_sizes("input_shape", [1, 28, 28]), as_sizes("input_shape", ())
        ((1, 28, 28), ())
    """
    if isinstance(value, tuple) and not value:
        return ()
    return as_integers(argument, value, such_as=(1, 28, 28), at_least=0)


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
    raise ValueError(f"Expected argument `{argument}` to be one of {allowed}, but got {shown(value)}.")


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
        raise ValueError(f"Expected argument `{argument}` to be True or False, but got {shown(value)}.")
    return held


def as_name(argument: str, value: Any) -> str | None:
    """Give a text, or None.

    Args:
        argument: Name of the argument, for the error.
        value: What was given for it.

    Raises:
        ValueError: If it is anything else.

    Example:
        >>> as_name("until", 4)
        Traceback (most recent call last):
            ...
        ValueError: Expected argument `until` to be a name or None, but got 4.
    """
    if value is not None and not isinstance(value, str):
        raise ValueError(f"Expected argument `{argument}` to be a name or None, but got {shown(value)}.")
    return value


def as_names(argument: str, value: Any) -> list[str] | None:
    """Give names, or patterns of names: one text is a list of one; None stays None.

    Args:
        argument: Name of the argument, for the error.
        value: What was given for it.

    Raises:
        ValueError: If it is anything else.

    Example:
        >>> as_names("layers", "features.*"), as_names("layers", ("a", "b"))
        (['features.*'], ['a', 'b'])
    """
    if value is None:
        return None
    names = [value] if isinstance(value, str) else list(value) if isinstance(value, (list, tuple, set)) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"Expected argument `{argument}` to be one or more names or None, but got {shown(value)}.")
    return names


def shown(value: Any) -> str:
    """Write a value for an error, in short: what comes of anybody's file may be endless, or fail to be written.

    Example:
        >>> shown("a"), len(shown("a" * 1000))
        ("'a'", 120)
    """
    try:
        return _BRIEF.repr(value)
    except Exception:
        return f"something of type {type(value).__name__}"


def _number(held: Any) -> float | None:
    """What is held as a finite number; None if it is none."""
    if isinstance(held, str):
        try:
            held = float(held)
        except ValueError:
            return None
    if isinstance(held, bool) or not isinstance(held, (int, float)):
        return None
    if isinstance(held, int):
        return held if abs(held) < 2**1000 else None
    return held if math.isfinite(held) else None


def _held(value: Any) -> Any:
    """What a scalar of NumPy or a tensor without dimensions holds; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def matching(argument: str, patterns: list[str] | None, names: list[str], of: str) -> list[str]:
    """Give the names that patterns match, in their order; all of them if there are no patterns.

    Args:
        argument: Name of the argument, for the error.
        patterns: As of ``fnmatch``: ``"features.*"``.
        names: All that there are.
        of: What has the names, for the error: ``"a ReLU"``.

    Raises:
        ValueError: If a pattern matches none.

    Example:
        >>> matching("layers", ["conv*"], ["conv1", "fc", "conv2"], "a layer")
        ['conv1', 'conv2']
    """
    if patterns is None:
        return list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"Expected every pattern of argument `{argument}` to match the name of {of}, but {pattern!r} matches "
                f"none of {names}."
            )
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def require_known(argument: str, names: Iterable[Any], known: Iterable[str]) -> None:
    """Check that there are no names but some.

    Args:
        argument: What has them, for the error.
        names: The names.
        known: Those there may be.

    Raises:
        ValueError: If there is another one.

    Example:
        >>> require_known("penalties.l1", ["strenght"], ["strength", "weighting"])
        Traceback (most recent call last):
            ...
        ValueError: Expected names in `penalties.l1` to be among strength, weighting, but got 'strenght'. Did you ...
    """
    allowed = list(known)
    for name in names:
        if name not in allowed:
            close = get_close_matches(str(name).lower(), allowed, 1)
            raise ValueError(
                f"Expected names in `{argument}` to be among {', '.join(allowed)}, but got {shown(name)}."
                + "".join(f" Did you mean {meant!r}?" for meant in close)
            )
