"""The study of a sweep, kept by Optuna: which trials there are, who runs them, and what they found."""

from __future__ import annotations

import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snnreg_plugins._files import digest, make_folder
from snnreg_plugins._imports import needed
from snnreg_plugins.sweeps.axes import Choices, Value
from snnreg_plugins.sweeps.look import AGAIN, ERROR, POINT, ROWS, TRY, WHERE, Look
from snnreg_plugins.sweeps.results import write_csv, write_parquet
from snnreg_plugins.sweeps.space import GROWS, PENALTY, Sweep
from snnreg_plugins.sweeps.trial import Job, seeds_of, values_of

if TYPE_CHECKING:
    import optuna
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial, Trial

# A process that is alive says so every so many seconds; one that has not for so many is taken for dead.
HEARTBEAT, GRACE = 10, 40
# How often a trial is begun whose process dies, as where it takes all the memory.
_TRIES = 3
_PAUSE = 2.0  # seconds between looks at what others do
_CONNECTING = 10  # seconds
# What is kept with the study.
_SPACE, _READY = "space", "ready"


class Study:
    """A sweep's study; one is made where there is none yet.

    Args:
        job: The sweep.

    Raises:
        ModuleNotFoundError: If Optuna is missing.
        ValueError: If the storage cannot be reached, or has another sweep of that name.
    """

    def __init__(self, job: Job) -> None:
        with needed("A sweep", "optuna", "snnreg_plugins[sweep]"):
            import optuna
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.job = job
        self.output = Path(job.sweep.output)
        self.name = job.sweep.name or "sweep"
        self._claim()
        self._heart = storage = self._storage()
        how = {"study_name": self.name, "storage": storage, "sampler": self._sampler(0)}
        try:
            self.study = optuna.create_study(**how, directions=["maximize", "minimize"])  # type: ignore[arg-type]
            is_new = True
        except optuna.exceptions.DuplicatedStudyError:
            self.study = optuna.load_study(**how)  # type: ignore[arg-type]
            is_new = False
        self._begin(is_new)
        self._running: int | None = None
        self._is_interrupted = False
        # When running trials were first seen here; None once they have a heartbeat.
        self._seen: dict[int, float | None] = {}

    # Where it is kept.

    def _claim(self) -> None:
        """Make the folder of the results, and raise a ValueError if another sweep has its own there."""
        got = os.fspath(self.output)
        make_folder(self.output, f"Expected argument `output` to name a folder, but got {got!r}, and there is a file.")
        place = self.output / "study.txt"
        try:
            with place.open("x", encoding="utf-8") as file:
                file.write(self.name)
        except FileExistsError:
            other = place.read_text(encoding="utf-8")
            if other not in ("", self.name):  # empty where another process writes it just now
                raise ValueError(
                    f"Expected argument `output` to name a folder of this sweep, {self.name!r}, but {got!r} has the "
                    f"results of {other!r}, which would be overwritten. Give another `output`, and draw both: snnreg "
                    "front a/results.csv b/results.csv"
                ) from None
        except OSError as error:
            raise ValueError(
                f"Expected argument `output` to name a folder that can be written to, but got {got!r}: "
                f"{error.strerror}."
            ) from error

    def _storage(self) -> RDBStorage:
        url = self.job.sweep.storage
        if url is None:
            url = f"sqlite:///{(self.output / 'study.db').resolve()}"
        waiting = {"timeout": 60} if url.startswith("sqlite") else {}
        if url.startswith("postgresql"):
            waiting = {"connect_timeout": _CONNECTING}
        how: dict[str, Any] = {
            "engine_kwargs": {"connect_args": waiting, "pool_pre_ping": True},
            "heartbeat_interval": HEARTBEAT,
            "grace_period": GRACE,
            "heartbeat_stale_trial_callback": _again_if_few,
        }
        try:
            return _opened(url, how)
        except Exception as error:
            reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
            raise ValueError(
                f"Expected argument `storage` to name a database that can be reached, but got "
                f"{without_password(url)!r}: {reason[0][:300]}. Is the server running, its driver installed, and the "
                "URL right, such as postgresql+psycopg://user@host/name? Without `storage` the study is kept in a file "
                "in `output`."
            ) from error

    # What it is about.

    def _begin(self, is_new: bool) -> None:
        sweep = self.job.sweep
        space = {"sweep": {**sweep.space(), "recipe": None}, "recipe": self.job.recipe}
        if is_new:
            self.study.set_user_attr(_SPACE, {name: digest(value) for name, value in _leaves(space, "")})
            if sweep.search == "grid":
                self._enqueue()
            self.study.set_user_attr(_READY, True)
            return
        deadline = time.monotonic() + GRACE
        while not (kept := self.study.user_attrs).get(_READY) and time.monotonic() < deadline:
            time.sleep(0.2)  # who made it fills it
        grown = tuple(f"sweep.{name}" for name in GROWS) if sweep.search == "grid" else ()
        differing = _differing(kept.get(_SPACE, {}), dict(_leaves(space, "")), grown)
        if differing is not None:
            raise ValueError(
                f"Expected argument `name` to be that of a new study, or of this very sweep, but the one of the name "
                f"{self.name!r} has another {differing}. Give it another `name` and `output`, and draw both: snnreg "
                "front a/results.csv b/results.csv"
            )
        if sweep.search == "grid" and not _is_worker():  # it may have grown, or who made it is gone
            self._enqueue()
        if not kept.get(_READY):
            self.study.set_user_attr(_READY, True)
        if sweep.retry_failed:
            self._retry()

    def _enqueue(self) -> None:
        """Add the points of the grid that no trial has."""
        there = {digest(trial.user_attrs.get(POINT)) for trial in self.look().current}
        for point in self.job.sweep.grid():
            if digest(point) not in there:
                self.study.enqueue_trial(point, user_attrs={POINT: point})

    def _retry(self) -> None:
        for trial in self.look().current:
            if trial.state.name == "FAIL":
                _again(self.study, trial, 1)

    def _sampler(self, trials: int) -> optuna.samplers.BaseSampler:
        """Make what chooses: a new one for each trial, so that a study that goes on does not repeat itself."""
        from optuna import samplers

        sweep = self.job.sweep
        seed = (sweep.all_seeds[0] + 1_000_003 * trials) % 2**31
        if (trials and sweep.storage is not None) or _is_worker():
            seed = (seed + 7919 * os.getpid() + sum(platform.node().encode())) % 2**31
        if sweep.search == "nsga2":
            return samplers.NSGAIISampler(population_size=min(20, max(4, (sweep.trials or 20) // 4)), seed=seed)
        if sweep.search == "tpe":
            return samplers.TPESampler(seed=seed)
        return samplers.RandomSampler(seed=seed)

    # Trials.

    def look(self) -> Look:
        """Read all trials as they are now."""
        return Look(self.name, self.job.sweep, self.study.get_trials(deepcopy=False))

    def work(self, changed: Callable[[Look], None]) -> None:
        """Run trials until there are as many as wanted, or none is left.

        Args:
            changed: Called when a trial has ended, and while others are waited for.
        """
        from optuna.storages import fail_stale_trials

        while True:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                fail_stale_trials(self.study)
            look = self.look()
            self._have_a_heartbeat(look)
            changed(look)
            done, running = len(look.finished), look.count("RUNNING")
            is_left = self.job.sweep.search != "grid" or look.count("WAITING") > 0
            if done >= look.wanted:
                return
            if is_left and done + running < look.wanted:
                self._run_one(len(look.trials))
                self.write(self.look())
            elif running:  # by others, who may fail
                time.sleep(_PAUSE)
            else:
                return

    def _have_a_heartbeat(self, look: Look) -> None:
        """Give trials that have run for long a heartbeat, once.

        One whose process died before the first, or could not write it to a full disk, has none, and is never taken for
        dead; those of processes that live have a new one in seconds.
        """
        for trial in look.trials:
            if trial.state.name == "RUNNING":
                first = self._seen.setdefault(trial.number, time.monotonic())
                if first is not None and time.monotonic() - first > GRACE:
                    self._seen[trial.number] = None
                    study = self._heart.get_study_id_from_name(self.name)
                    self._heart.record_heartbeat(
                        self._heart.get_trial_id_from_study_id_trial_number(study, trial.number)
                    )

    def _run_one(self, number: int) -> None:
        self.study.sampler = self._sampler(number)
        self._running, self._is_interrupted = None, False
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.study.optimize(self._objective, n_trials=1, catch=(Exception,))
        except KeyboardInterrupt:
            self._leave_to_others()
            raise
        except Exception as error:
            # A machine that sleeps, or whose clock is set, is taken for dead: its trial has been begun again.
            if not any(trial.state.is_finished() for trial in self._mine()):
                raise OSError(
                    f"The study of {os.fspath(self.output)!r} could not be written: {_innermost(error)}. When that is "
                    "mended, as by making room on the disk, the same command goes on."
                ) from error
            if self._is_interrupted:
                raise KeyboardInterrupt from None

    def _mine(self) -> list[FrozenTrial]:
        """Read the trial that runs here, if there is one."""
        return [trial for trial in self.look().trials if trial.number == self._running]

    def _leave_to_others(self) -> None:
        """Have the trial that was interrupted begun again."""
        for trial in self._mine():
            if trial.state.name in ("FAIL", "RUNNING"):
                _again(self.study, trial, trial.user_attrs.get(TRY, 1))

    def _objective(self, trial: Trial) -> tuple[float, float]:
        sweep = self.job.sweep
        if sweep.search == "grid" and not self._is_to_run(trial):
            import optuna

            raise optuna.TrialPruned
        self._running = trial.number
        point = _suggested(trial, sweep)
        trial.set_user_attr(POINT, point)
        trial.set_user_attr(WHERE, platform.node())
        folder = self.output / "trials" / f"{trial.number:04d}"
        try:
            rows = self.job.run(point, seeds_of(point, sweep), folder)
            values = values_of(rows, sweep)
        except (KeyboardInterrupt, SystemExit) as error:  # the latter as Lightning ends a training
            self._is_interrupted = True
            raise KeyboardInterrupt from error
        except Exception as error:
            trial.set_user_attr(ERROR, f"{type(error).__name__}: {' '.join(str(error).split())[:1000]}")
            raise
        trial.set_user_attr(ROWS, rows)
        return values

    def _is_to_run(self, trial: Trial) -> bool:
        """Tell whether a trial is one of the grid, and nobody runs it or has run it.

        It has no point where another process took the last one; it is no longer of the grid where that has changed; and
        two machines that make a grid grow at once begin the same trials.
        """
        point = trial.user_attrs.get(POINT)
        asked = point is not None and point in self.job.sweep.grid()
        others = (one for one in self.look().current if one.number < trial.number)
        return asked and all(one.user_attrs.get(POINT) != point for one in others)

    def write(self, look: Look) -> list[Path]:
        """Write the results; give the files."""
        rows = look.rows
        if not rows:
            return []
        written = [self.output / "results.csv"]
        write_csv(rows, written[0])
        try:
            write_parquet(rows, self.output / "results.parquet")
            written.append(self.output / "results.parquet")
        except ModuleNotFoundError:
            pass  # CSV has it all
        return written


def _opened(url: str, how: Mapping[str, Any]) -> RDBStorage:
    """Open a database, and make its tables if there are none; of several that do so at once, one tries again."""
    from optuna.storages import RDBStorage

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # heartbeats are experimental there
        try:
            storage = RDBStorage(url, **how)
        except Exception as error:
            if not any(told in str(error) for told in ("already exists", "duplicate key")):
                raise
            time.sleep(1)
            storage = RDBStorage(url, **how)
    if storage.engine.dialect.name == "sqlite":
        from sqlalchemy import event

        event.listen(storage.engine, "begin", _lock)
    return storage


def _lock(connection: Any) -> None:
    """Lock a file of SQLite when a transaction begins.

    It has no locks of rows, and by itself locks at the first change: of two processes that read that a trial waits,
    both would begin it.
    """
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _innermost(error: BaseException) -> BaseException:
    """Give what an error comes from: those of databases are wrapped several times."""
    below = error.__cause__ or error.__context__
    return error if below is None else _innermost(below)


def _suggested(trial: Trial, sweep: Sweep) -> dict[str, Value]:
    """Have all that varies chosen: by the grid, or by a search."""
    if sweep.search == "grid":
        return dict(trial.user_attrs[POINT])  # not by `suggest_`, which is for values that stay the same ones
    point: dict[str, Value] = {PENALTY: trial.suggest_categorical(PENALTY, [one.name for one in sweep.variants])}
    for name, axis in {**sweep.variant(point).named(), **sweep.common}.items():
        is_fixed = isinstance(axis, Choices) and len(axis.values) == 1
        point[name] = axis.points()[0] if is_fixed else axis.suggest(trial, name)
    return point


def _again(study: optuna.Study, trial: FrozenTrial, tries: int) -> None:
    """Have a trial begun again, unless it was already."""
    if any(one.user_attrs.get(AGAIN) == trial.number for one in study.get_trials(deepcopy=False)):
        return
    point = trial.user_attrs.get(POINT)
    attributes = {**({} if point is None else {POINT: point}), AGAIN: trial.number, TRY: tries}
    study.enqueue_trial(point or trial.params, user_attrs=attributes)


def _again_if_few(study: optuna.Study, trial: FrozenTrial) -> None:
    """Have a trial begun again whose process died, unless that has happened too often."""
    tries = trial.user_attrs.get(TRY, 1)
    if tries < _TRIES:
        _again(study, trial, tries + 1)


def _is_worker() -> bool:
    import multiprocessing

    return multiprocessing.parent_process() is not None


def without_password(url: str) -> str:
    """Write the URL of a database so that others may see it."""
    from sqlalchemy.engine import make_url

    try:
        return make_url(url).render_as_string(hide_password=True)
    except Exception:
        return url.partition("@")[2] or url


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Walk nested settings by their whole names."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _differing(kept: Mapping[str, str], asked: Mapping[str, Any], grown: tuple[str, ...]) -> str | None:
    """Name a setting in which two sweeps differ, and what is asked for; None if there is none.

    Args:
        kept: The settings of the study, by name, each as a digest.
        asked: Those of the sweep.
        grown: Settings that may differ, with all that is in them.
    """
    for name in [*asked, *kept]:
        found = digest(asked[name]) if name in asked else None
        if kept.get(name) != found and not any(name == one or name.startswith(f"{one}.") for one in grown):
            short = name.removeprefix("sweep.")
            return f"`{short}` than {asked[name]!r:.80}" if name in asked else f"`{short}`, which is not given here"
    return None
