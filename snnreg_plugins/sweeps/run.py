"""Run a sweep: here, or in several processes, with what is done and found on the way."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from snnreg_plugins._checks import as_integer
from snnreg_plugins._console import drawn_tables
from snnreg_plugins._text import Note, Table, one_line
from snnreg_plugins.sweeps.front import find_front
from snnreg_plugins.sweeps.look import Look
from snnreg_plugins.sweeps.study import Study
from snnreg_plugins.sweeps.trial import Job
from snnreg_plugins.sweeps.workers import Workers, stoppable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

# Rows of the front that are shown while a sweep runs.
_ROWS = 8
_NARROW = 65  # columns of a terminal that settings are left out below
_LOOK = 2.0  # seconds between looks at what workers do


def run_sweep(job: Job, workers: int = 1, console: Console | None = None) -> Study:
    """Run a sweep until all its trials have ended; go on with it if it was begun.

    Args:
        job: The sweep.
        workers: How many processes run trials on this machine; they share its cores.
        console: Where to show how far it is; the terminal if None.

    Returns:
        The study.

    Raises:
        ValueError: If a value is none for its option, or no trial ended well.
        ChildProcessError: If all workers were killed, or failed.
        KeyboardInterrupt: If it is interrupted, or asked to end; what was begun is begun again next time.
    """
    workers = as_integer("workers", workers)
    job.check()
    study = Study(job)
    with stoppable(), _shown(study, console) as progress:
        if workers == 1:
            study.work(progress.update)
        else:
            _work_in_processes(job, workers, progress)
    return study


def _work_in_processes(job: Job, count: int, progress: Progress) -> None:
    with Workers(partial(_work, job, count), count) as workers:
        while workers.are_at_work():
            time.sleep(_LOOK)
            progress.lost(len(workers.died), count)
            progress.update(progress.study.look())
    if len(workers.died) == count:
        raise ChildProcessError(
            f"All {count} workers ended before the sweep did, with exit codes {', '.join(map(str, workers.died))}. The "
            "same command goes on; with fewer `workers` there is more memory for each."
        )


def _work(job: Job, workers: int) -> None:
    """Run trials in a process of its own, on its part of the cores."""
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    Study(job).work(lambda _: None)


class Progress:
    """What is done, how long the rest takes, and the front so far.

    Args:
        study: The study.
        console: Where it is shown.
    """

    def __init__(self, study: Study, console: Console) -> None:
        self.study, self._console = study, console
        begun = study.look()
        self._told = {trial.number for trial in begun.finished}
        self._begun, self._done_before = time.monotonic(), len(begun.finished)
        self._lost = ""
        self.draw: Any = None
        self.tell: Any = None

    def update(self, look: Look) -> None:
        """Show what has changed."""
        if self.draw is not None:
            self.draw(self.rendered(look))
        if self.tell is not None:
            for trial in look.finished:
                if trial.number not in self._told:
                    self._told.add(trial.number)
                    self.tell(f"{self.line(look)}; trial {trial.number} {trial.state.name.lower()}")

    def lost(self, count: int, of: int) -> None:
        """Show that workers have died, as where memory is short."""
        self._lost = f"{count} of {of} workers died" if count else ""

    def line(self, look: Look) -> str:
        """Say how far it is."""
        done, running, failed = len(look.finished), look.count("RUNNING"), len(look.failures)
        parts = [f"{done} of {look.wanted} trials", f"{running} running" if running else ""]
        parts += [f"{failed} failed" if failed else "", self._lost, self._left(done, look.wanted)]
        return ", ".join(part for part in parts if part)

    def headline(self, look: Look) -> str:
        """Say which sweep it is, and how far."""
        return f"Sweep {one_line(look.name)}: {self.line(look)}"

    def _left(self, done: int, wanted: int) -> str:
        """Say how long the rest takes, by how long trials took: those that ended since this began."""
        here = done - self._done_before
        elapsed = time.monotonic() - self._begun
        if here <= 0 or done >= wanted:
            return ""
        return f"{timedelta(seconds=round(elapsed / here * (wanted - done)))} left"

    def rendered(self, look: Look) -> RenderableType:
        """Draw a bar, how far it is, and the front so far."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        parts: list[Any] = [Text(self.headline(look))]
        parts.append(ProgressBar(total=max(look.wanted, 1), completed=len(look.finished), width=50))
        if any(row.get("score") is not None for row in look.rows):
            table = self._front(look)
            parts += [Text(f"\n{table.caption}", style="bold"), *drawn_tables(table, self._console)]
        return Group(*parts)

    def _front(self, look: Look) -> Table:
        """Give the front so far, as far as a terminal has room for it: what is too high for that is cut off."""
        found = find_front(look.rows)
        table = found.front_table(max(2, min(_ROWS, (self._console.height - 8) // 2)))
        setting = ["Setting"] * (self._console.width >= _NARROW)
        return table.select((*setting, "T", found.score_title, "SOPs"), found.front_title)


@contextmanager
def _shown(study: Study, console: Console | None) -> Iterator[Progress]:
    """Show progress: a live picture in a terminal, else a line for each trial."""
    from rich.console import Console
    from rich.live import Live

    console = console or Console(file=sys.stdout)  # this one, as trials write to others
    progress = Progress(study, console)
    if not console.is_terminal:
        progress.tell = lambda line: print(line, file=console.file, flush=True)
        yield progress
        progress.update(study.look())
        return
    alone: dict[str, Any] = {"redirect_stdout": False, "redirect_stderr": False}  # trials print to files of their own
    with Live(progress.rendered(study.look()), console=console, transient=True, **alone) as live:
        progress.draw = live.update
        yield progress
    console.print(progress.headline(study.look()))  # what it found is told by who has run it


def failures(look: Look) -> Note | None:
    """Say which trials failed, and why; None if none did."""
    failed = look.failures
    if not failed:
        return None
    lines = [f"{name} failed: {reason}" for name, reason in failed[:_ROWS]]
    more = len(failed) - len(lines)
    lines += [f"and {more} more: see the column `error` of the results"] if more else []
    return Note("\n".join(lines), "strong")
