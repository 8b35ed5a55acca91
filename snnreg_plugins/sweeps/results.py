"""The results of a sweep as a table: one row for each trial, seed, export and T; CSV and Parquet.

What a network costs by each model stands in columns of its own: ``cost_lemaire`` of the spiking network,
``dnn_cost_lemaire`` of the DNN that skips zeros, ``dnn_dense_cost_lemaire`` of one that does not, per sample in the
unit of the model. ``nonzero_`` before a name is the same where a weight of exactly zero, as of a pruned network, is no
synapse.
"""

from __future__ import annotations

import csv
import math
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from snnreg_plugins._checks import shown
from snnreg_plugins._files import as_path, atomic, require_file
from snnreg_plugins._imports import needed
from snnreg_plugins._text import why_not
from snnreg_plugins.functional.cost_models import Model
from snnreg_plugins.reports.pricing import without_zero_weights
from snnreg_plugins.reports.report import Report

#: A row: names and plain values.
Row = dict[str, Any]
#: What every row has, in this order; what varied stands between "penalty" and "export".
BEFORE = ("study", "trial", "state", "seed", "penalty")
MEASURED = (
    "export",
    "trained_as",
    "timesteps",
    "score_name",
    "higher_is_better",
    "samples",
    "score",
    "spike_rate",
    "sops",
    "effective_macs",
    "energy",
    "dnn_score",
    "dnn_sops",
    "dnn_effective_macs",
    "dnn_dense_macs",
    "dnn_energy",
    "dnn_dense_energy",
    "energy_table",
    "pj_per_mac",
    "pj_per_sop",
)
#: Before the name of what is spent where a weight of zero is no synapse; before that of a model of cost.
NONZERO, COST, DNN_COST, DENSE_COST = "nonzero_", "cost_", "dnn_cost_", "dnn_dense_cost_"
_PRICED = (NONZERO, COST, DNN_COST, DENSE_COST)
AFTER = ("seconds", "device", "snnreg_plugins", "torch", "lightning", "snntorch", "python", "error")
_PACKAGES = ("snnreg_plugins", "torch", "lightning", "snntorch")
COMPLETE, FAILED = "complete", "failed"
#: What was trained: a DNN that was then exported, or a spiking network that began from a DNN.
DNN, SNN = "dnn", "snn"
#: What is no penalty.
NONE = "none"
# What a front is made of.
_NEEDED = ("penalty", "seed", "export", "timesteps", "score", "sops", "energy", "dnn_score", "dnn_effective_macs")
_WHOLE = re.compile(r"[+-]?[0-9]{1,19}", re.ASCII)
_WORDS = {"study", "state", "penalty", "export", "trained_as", "score_name", "energy_table", "device", *_PACKAGES}
_WORDS |= {"python", "error"}


def rows_of(report: Report, export: str, table: Model | Sequence[Model] | None = None) -> list[Row]:
    """Give a row for each T of a report.

    Args:
        report: What a network scores and spends.
        export: Name of the options that it was exported with.
        table: The models of cost that the report shows, where one is none of the package.
    """
    stripped = without_zero_weights(report, table)
    return [
        {
            "export": export,
            "timesteps": step.timesteps,
            "score_name": report.score_name,
            "higher_is_better": report.higher_is_better,
            "samples": report.samples,
            "score": step.score,
            "spike_rate": step.spike_rate,
            "dnn_score": report.dnn and report.dnn.score,
            "energy_table": report.table,
            "pj_per_mac": report.mac,
            "pj_per_sop": report.ac,
            **_spent(report, index),
            **{f"{NONZERO}{name}": value for name, value in _spent(stripped, index).items()},
        }
        for index, step in enumerate(report.steps)
    ]


def _spent(report: Report, index: int) -> Row:
    """Give what network and DNN spend at one of the steps, by the report's table and by each model that is shown."""
    step, dnn = report.steps[index], report.dnn
    row: Row = {
        "sops": step.sops,
        "effective_macs": step.effective_macs,
        "energy": step.energy,
        "dnn_sops": dnn and dnn.sops,
        "dnn_effective_macs": dnn and dnn.effective_macs,
        "dnn_dense_macs": dnn and dnn.dense_macs,
        "dnn_energy": dnn and dnn.energy,
        "dnn_dense_energy": dnn and dnn.dense_energy,
    }
    for model in report.shown_models:
        spent = model.steps[index]
        row[f"{COST}{model.name}"] = None if spent.unpriced else spent.total
        row[f"{DNN_COST}{model.name}"] = model.sparse[index].total if model.sparse else None
        row[f"{DENSE_COST}{model.name}"] = model.dense[index].total if model.dense else None
    return row


def versions() -> Row:
    """Give the versions that a number may depend on."""
    return {**{name: _version(name) for name in _PACKAGES}, "python": platform.python_version()}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from its sources
        import snnreg_plugins

        return snnreg_plugins.__version__ if package == "snnreg_plugins" else ""


def ordered(rows: Iterable[Row]) -> tuple[list[str], list[Row]]:
    """Give the columns, and rows that have all of them."""
    rows = list(rows)
    priced = [name for name in _names(rows) if name.startswith(_PRICED)]
    columns = [*BEFORE, *varied_columns(rows), *MEASURED, *priced, *AFTER]
    return columns, [{name: row.get(name) for name in columns} for row in rows]


def write_csv(rows: Iterable[Row], path: str | os.PathLike[str]) -> None:
    """Write rows as CSV; what a row lacks is empty. The file appears when it is complete."""
    columns, rows = ordered(rows)
    with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(rows: Iterable[Row], path: str | os.PathLike[str]) -> None:
    """Write rows as Parquet. The file appears when it is complete.

    Raises:
        ModuleNotFoundError: If pyarrow is missing.
    """
    with needed("Parquet", "pyarrow", "snnreg_plugins[parquet]"):
        import pyarrow
        from pyarrow import parquet
    columns, rows = ordered(rows)
    table = pyarrow.table({name: _column([row[name] for row in rows]) for name in columns})
    with atomic(path) as temporary:
        parquet.write_table(table, temporary)


def _column(values: Sequence[Any]) -> list[Any]:
    """Give the values of a column one type: numbers as floats where some are, and all as text where some are."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} and len(kinds) > 1:
        return [None if value is None else float(value) for value in values]
    return [None if value is None else str(value) for value in values] if len(kinds) > 1 else list(values)


_REMEDY = "Name the results.csv or results.parquet that `snnreg sweep` wrote."


def read_results(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Row]:
    """Read the rows of one or more sweeps, CSV or Parquet by the suffix.

    Args:
        paths: The files.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If one cannot be read, or holds no results of a sweep.
        ModuleNotFoundError: If pyarrow is missing, and one is Parquet.
    """
    files = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not files:
        raise ValueError("Expected argument `results` to name one or more files, but got none.")
    return [row for file in files for row in _read(as_path("results", file))]


def _read(path: Path) -> list[Row]:
    require_file(path, "results", _REMEDY)
    try:
        rows = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(
            f"Expected argument `results` to name results of a sweep, but {os.fspath(path)!r} cannot be read as "
            f"such: {why_not(error)}. {_REMEDY}"
        ) from error
    return rows


def _read_csv(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets put a mark before UTF-8
        reader = csv.DictReader(file, strict=True)
        _require_columns(reader.fieldnames or ())
        return [
            _checked(number, {name: _value(f"row {number}", name, text) for name, text in row.items()})
            for number, row in enumerate(reader, start=2)
            if any(row.values())
        ]


def _read_parquet(path: Path) -> list[Row]:
    with needed("Parquet", "pyarrow", "snnreg_plugins[parquet]"):
        from pyarrow import parquet
    table = parquet.read_table(path)
    _require_columns(table.column_names)
    return [_checked(number, row) for number, row in enumerate(table.to_pylist(), start=1)]


def _require_columns(names: Iterable[str]) -> None:
    names = list(names)
    if len(names) == 1 and (mark := next((mark for mark in ";\t" if mark in names[0]), None)) is not None:
        raise ValueError(
            f"its values stand between {mark!r}, as a spreadsheet may save them; that has commas between values, and "
            "points in numbers"
        )
    missing = [name for name in _NEEDED if name not in names]
    if missing:
        raise ValueError(f"it has no column {', '.join(missing)}")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"it has the column {twice[0]!r} twice")


def _value(where: str, name: str, text: Any) -> Any:
    """Read what :func:`write_csv` wrote."""
    if not isinstance(text, str):
        raise ValueError(f"{where} has {'fewer' if text is None else 'more'} values than the header")
    if text == "":
        return None
    if name in _WORDS:
        return text
    if text.lower() in ("true", "false"):  # spreadsheets shout
        return text.lower() == "true"
    try:
        return int(text) if _WHOLE.fullmatch(text) else float(text)
    except ValueError:
        return text


def _checked(number: int, row: Row) -> Row:
    """Check what a front is made of, in a row of a trial that did not fail."""
    if row.get("state", COMPLETE) == FAILED:
        return row
    priced = [name for name in row if name.startswith(_PRICED)]
    found = {**{name: row[name] for name in (*_NEEDED, *priced)}, "higher_is_better": row.get("higher_is_better")}
    of_accuracy = row.get("score_name") in (None, "accuracy")
    for name, value in found.items():
        expected = _lacks(name, value, of_accuracy, may_be_missing=name in priced or name.startswith("dnn_"))
        if expected is not None:
            raise ValueError(f"row {number} has {name} {shown(value)}, which is no {expected}")
    return row


def _lacks(name: str, value: Any, of_accuracy: bool, may_be_missing: bool) -> str | None:
    """Say what a value of a row is not; None if it is what it should be."""
    if name in ("penalty", "export"):
        return None if isinstance(value, str) and value else "name"
    if name == "higher_is_better":  # which files of earlier versions lack
        return None if value is None or isinstance(value, bool) else "True or False"
    if value is None and may_be_missing:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return "number"
    if name in ("seed", "timesteps"):
        return None if value == int(value) and value >= (name == "timesteps") else "such number"
    if name in ("score", "dnn_score"):
        return None if not of_accuracy or 0 <= value <= 1 else "share of samples"
    return None if value >= 0 else "cost"


def varied_columns(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Name the columns of what varied."""
    known = {*BEFORE, *MEASURED, *AFTER}
    return [name for name in _names(rows) if name not in known and not name.startswith(_PRICED)]


def models_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Name the models of cost that there are columns of."""
    return [name.removeprefix(COST) for name in _names(rows) if name.startswith(COST)]


def _names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))
