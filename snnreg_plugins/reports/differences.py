"""What tells runs apart: in their names, those of their layers, and their settings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

#: Settings by name, each with its value in each run; None where a run has none.
Differences = Sequence[tuple[str, tuple[str | None, ...]]]

# Between the words of a name.
_BETWEEN = "_/ -"
_LETTER = re.compile(r"[^\W\d_]")
_WORD = f"[{_BETWEEN}]*[^{_BETWEEN}]+[{_BETWEEN}]*"
# Layers of a network as a whole, which are in no module of the user's.
_WHOLE = ("readout", "input")
# Arguments of a class that are told in a line.
_ARGUMENTS = 4


def shortened(names: Sequence[str]) -> tuple[str, ...]:
    """Leave out the folders and words that all names begin or end with, if something is left of each.

    Example:
        >>> shortened(["digits_lenet_none", "digits_lenet_expected_rate"])
        ('none', 'expected_rate')
        >>> shortened(["lenet", "lenet_l1"])
        ('lenet', 'lenet_l1')
        >>> shortened(["trials/07/seed_0", "trials/12/seed_0"])
        ('07', '12')
    """
    folders = ["/".join(parts) for parts in _without_shared([name.split("/") for name in names])]
    names = folders if all(name.strip(_BETWEEN) for name in folders) else names
    words = _without_shared([re.findall(_WORD, name) for name in names])
    short = tuple("".join(one).strip(_BETWEEN) for one in words)
    tells = all(map(_LETTER.search, short)) and len(set(short)) == len(set(names))
    return short if tells else tuple(names)


def _without_shared(names: list[list[str]]) -> list[list[str]]:
    """Leave out the parts that all begin or end with, but one of each."""
    for place in (0, -1):
        while min(map(len, names)) > 1 and len({one[place].strip(_BETWEEN) for one in names}) == 1:
            for one in names:
                one.pop(place)
    return names


def without_module(names: list[str]) -> list[str]:
    """Leave out the module that all layers are in, but for those of a network as a whole.

    Example:
        >>> without_module(["net.conv", "net.relu", "readout"])
        ['conv', 'relu', 'readout']
    """
    modules = {name.partition(".")[0] if "." in name else None for name in names if name not in _WHOLE}
    if len(modules) != 1 or None in modules:
        return names
    return without_module([name.partition(".")[2] or name for name in names])


def differences(settings: Sequence[Mapping[str, str]], names: Sequence[str]) -> Differences:
    """Give the settings that differ.

    Args:
        settings: Those of each run.
        names: The runs' names, which are left out of values: folders that are named by it do not make runs differ.

    Example:
        >>> differences([{"lr": "1", "dir": "runs/a"}, {"lr": "2", "dir": "runs/b"}], ["a", "b"])
        (('lr', ('1', '2')),)
    """

    def of(run: Mapping[str, str], own: str, name: str) -> str | None:
        return run[name].replace(own.rpartition("/")[2], "…") if name in run else None

    every = dict.fromkeys(name for run in settings for name in run)
    rows = ((name, tuple(of(run, own, name) for run, own in zip(settings, names, strict=True))) for name in every)
    return tuple((name, values) for name, values in rows if len(set(values)) > 1)


def told(found: Differences, labels: Sequence[str]) -> list[str]:
    """Say in lines which settings differ; those of a class that not all runs have, in one line.

    Example:
        >>> own = ("callbacks.Mine", (None, "my.Mine")), ("callbacks.Mine.strength", (None, "5"))
        >>> told([("model.lr", ("1", "2")), *own], ["a", "b"])
        ['model.lr: a 1, b 2', 'callbacks.Mine (strength 5): b alone']
    """
    both = [(name, values) for name, values in found if None not in values]
    lines = [f"{name}: " + ", ".join(map("{} {}".format, labels, values)) for name, values in both]
    owners: dict[str, tuple[bool, ...]] = {}
    arguments: dict[str, list[str]] = {}
    for name, values in found:
        if None not in values:
            continue
        has = tuple(value is not None for value in values)
        owner = next((one for one, whose in owners.items() if name.startswith(f"{one}.") and whose == has), name)
        if owner == name:
            owners[name], arguments[name] = has, []
        own = "" if owner == name else name.removeprefix(f"{owner}.")
        if own or not _names_class(name, values):
            arguments[owner].append(" ".join([*([own] if own else []), *sorted({value for value in values if value})]))
    for name, has in owners.items():
        some = arguments[name]
        more = ", ..." if len(some) > _ARGUMENTS else ""
        given = f" ({', '.join(some[:_ARGUMENTS])}{more})" if some else ""
        whose = " and ".join(label for label, here in zip(labels, has, strict=True) if here)
        lines.append(f"{name}{given}: {whose} alone")
    return lines


def _names_class(name: str, values: Iterable[str | None]) -> bool:
    """Tell whether a setting is a class, which its own name tells already."""
    return all(value is None or value.rpartition(".")[2] == name.rpartition(".")[2] for value in values)
