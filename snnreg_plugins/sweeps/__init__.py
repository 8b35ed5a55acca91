"""Many trainings of one recipe, and the front of score and cost that they reach.

- ``axes``: what a value varies over.
- ``space``: what a sweep trains and measures.
- ``recipe``: the recipe as a trial runs it.
- ``trial``: trains once, exports in all ways, measures at all T.
- ``study``: which trials there are, kept by Optuna; ``look``: what they were at some moment; ``run``:
  runs them, here or in several processes; ``workers``: these, which end with what started them.
- ``results``: one row for each trial, seed, export and T, as CSV and Parquet.
- ``points``: means over seeds; ``front``: what is best of them, tables and figures; ``page``: the same as
  HTML; ``scatter``: its figures.
- ``pruning``: weights pruned once, as an axis.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for tools that read code; "as" tells them that a name is handed on
    from snnreg_plugins.sweeps.front import Front as Front
    from snnreg_plugins.sweeps.front import find_front as find_front
    from snnreg_plugins.sweeps.page import write_front as write_front
    from snnreg_plugins.sweeps.results import read_results as read_results
    from snnreg_plugins.sweeps.run import run_sweep as run_sweep
    from snnreg_plugins.sweeps.space import Sweep as Sweep
    from snnreg_plugins.sweeps.trial import Job as Job
    from snnreg_plugins.sweeps.trial import Made as Made

# Loaded when asked for: what reads results needs nothing of what trains.
_HOMES = {
    "Front": "front",
    "Job": "trial",
    "Made": "trial",
    "Sweep": "space",
    "find_front": "front",
    "read_results": "results",
    "run_sweep": "run",
    "write_front": "page",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
