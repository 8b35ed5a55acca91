"""Compare runs by what ExportReport wrote of them; nothing is trained, run or exported for it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from snnreg_plugins._files import as_path
from snnreg_plugins.reports.comparison import ComparedRun, Comparison
from snnreg_plugins.reports.folder import REPORT, Folder
from snnreg_plugins.reports.report import Report


def compare(*runs: str | os.PathLike[str] | Report, names: Sequence[str] | None = None) -> Comparison:
    """Put what runs score and spend beside each other: by T, by layer, and what differs in their settings.

    The first run is what the others are compared with. Numbers that are not comparable do not stand in one column:
    energies by other models are left out, other numbers of samples, other data, networks of other sizes and layers
    that not all have are said.

    Args:
        runs: Two to six: folders that :class:`~snnreg_plugins.ExportReport` wrote to, or reports. Of a folder
            ``report.json`` is read, and for the settings, where they are there, ``spiking.pt`` and ``report.yaml`` or
            ``config.yaml``.
        names: How they are called; by the names of their folders if None.

    Returns:
        The numbers, with ``print()``, ``save_json(path)``, ``save_plot(path)`` and ``save_page(path)``.

    Raises:
        FileNotFoundError: If a folder has no ``report.json``.
        ValueError: If there are fewer than two runs or more than six, one of them comes twice or cannot be read, or
            they have other scores, or no T in common.
        TypeError: If one of the runs is neither a folder nor a report.

    Example:
        >>> import torch
        >>> from snnreg_plugins import compare, report, to_snntorch
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 9), torch.nn.ReLU(), torch.nn.Linear(9, 3))
        >>> x = torch.rand(50, 2)
        >>> data = [(x, torch.randint(3, (50,)))]
        >>> plain, high = (to_snntorch(model, x, timesteps=4, threshold=which) for which in ("percentile", "max"))
        >>> found = compare(report(model, plain, data), report(model, high, data), names=["percentile", "max"])
        >>> found.steps()
        (1, 2, 4, 8, 16, 32)
    """
    if names is not None and (isinstance(names, str) or len(names) != len(runs)):
        raise ValueError(f"Expected argument `names` to be a name for each of {len(runs)} runs, but got {names!r}.")
    read = [_read(run, f"run {index}") for index, run in enumerate(runs, start=1)]
    called = _told_apart([one.name for one in read], runs) if names is None else list(map(str, names))
    found = Comparison(
        tuple(ComparedRun(name, one.report, one.settings) for name, one in zip(called, read, strict=True))
    )
    if (wrong := found.misfit()) is not None:
        raise ValueError(f"Expected arguments `runs` to be comparable, but {wrong}")
    return found


def _read(run: str | os.PathLike[str] | Report, otherwise: str) -> ComparedRun:
    if isinstance(run, Report):
        return ComparedRun(otherwise, run, {})
    path = as_path("runs", run)
    folder = Folder(path.parent if path.name == REPORT else path)
    settings = {
        name if heading.startswith("Training") else f"export.{name}": value
        for heading, rows in folder.settings().items()
        for name, value in rows
    }
    return ComparedRun(folder.title, folder.report(), settings)


def _told_apart(names: list[str], runs: Sequence[str | os.PathLike[str] | Report]) -> list[str]:
    """Add folders to names until each is another one."""
    paths = [None if isinstance(run, Report) else Path(run).resolve() for run in runs]
    named = [path for path in paths if path is not None]
    twice = next((path for path in named if named.count(path) > 1), None)
    if twice is not None:
        raise ValueError(f"Expected arguments `runs` to be other ones each, but got {os.fspath(twice)!r} twice.")
    deep = 1
    while len(set(names)) < len(names) and deep < max((len(path.parts) for path in named), default=0):
        deep += 1
        names = [
            name if path is None else "/".join(path.parts[-deep:]) for name, path in zip(names, paths, strict=True)
        ]
    return names
