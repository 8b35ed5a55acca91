"""Who runs trials, and what becomes of them when a process is stopped, killed, or taken for dead."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from snnreg_plugins.sweeps import read_results, run_sweep
from snnreg_plugins.sweeps.workers import Workers, stoppable
from tests.sweeps.jobs import Quick, quick
from tests.sweeps.notes import exit_with

ROOT = Path(__file__).parents[2]
PARENT = """
import sys
import time
from functools import partial
from pathlib import Path
from snnreg_plugins.sweeps.workers import Workers, stoppable
from tests.sweeps.notes import leave_a_note
if __name__ == "__main__":
    with stoppable(), Workers(partial(leave_a_note, Path(sys.argv[1])), 2) as workers:
        while workers.are_at_work():
            time.sleep(0.1)
"""


def wait_for(folder, pattern, count):
    deadline = time.monotonic() + 60
    while len(list(folder.glob(pattern))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "whole_group"), [(signal.SIGTERM, False), (signal.SIGKILL, False), (signal.SIGINT, True)]
)
def test_workers_end_with_the_process_that_started_them_however_it_ends(number, whole_group, tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    command = [sys.executable, tmp_path / "parent.py", tmp_path]
    paths = os.pathsep.join([str(ROOT), *sys.path])
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": {**os.environ, "PYTHONPATH": paths}}
    parent = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **quiet)
    try:
        wait_for(tmp_path, "*.begun", 2)
        (os.killpg if whole_group else os.kill)(parent.pid, number)
        wait_for(tmp_path, "*.in_order", 2)
        parent.wait(60)
    finally:
        os.killpg(parent.pid, signal.SIGKILL) if parent.poll() is None else None


def test_workers_that_die_are_told():
    for code in (0, 9):
        with Workers(partial(exit_with, code), 1) as workers:
            while workers.are_at_work():
                time.sleep(0.05)
        assert workers.died == [code] * (code > 0)


def test_what_asks_a_process_to_end_interrupts_it_once_and_what_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as by nohup
    try:
        raised = 0
        with stoppable():
            for _ in range(2):
                signal.raise_signal(signal.SIGHUP)
                try:
                    signal.raise_signal(signal.SIGTERM)
                except KeyboardInterrupt:
                    raised += 1
        assert raised == 1
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_of_two_processes_that_read_at_once_that_a_trial_waits_one_begins_it(tmp_path):
    optuna = pytest.importorskip("optuna")
    from snnreg_plugins.sweeps.study import Study

    one, other = Study(quick(tmp_path / "out")), Study(quick(tmp_path / "out"))
    waiting = one.look().trials[0]._trial_id
    running, begun = optuna.trial.TrialState.RUNNING, []

    def begin(study):
        begun.append(study.study._storage._backend.set_trial_state_values(waiting, running))

    check, thread = one.study._storage._backend.check_trial_is_updatable, threading.Thread(target=begin, args=(other,))

    def meanwhile(*arguments):
        thread.start()
        thread.join(0.5)  # which the first has read by now
        check(*arguments)

    one.study._storage._backend.check_trial_is_updatable = meanwhile
    begin(one)
    thread.join()
    assert sorted(begun) == [False, True]


@pytest.mark.parametrize("is_interrupted", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_who_was_taken_for_dead_leaves_its_trial_to_those_who_took_it(is_interrupted, tmp_path, monkeypatch):
    optuna = pytest.importorskip("optuna")
    from snnreg_plugins.sweeps import study as study_of

    run = Quick.run

    def asleep(self, point, seeds, folder):
        rows = run(self, point, seeds, folder)
        if int(folder.name) == 1:
            others = study_of.Study(self).study
            (trial,) = (one for one in others.get_trials() if one.number == 1)
            others._storage.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.FAIL)
            for _ in range(2):  # as two may do at once
                study_of._again_if_few(others, trial)
            if is_interrupted:
                raise KeyboardInterrupt
        return rows

    with monkeypatch.context() as patched:
        patched.setattr(Quick, "run", asleep)
        with pytest.raises(KeyboardInterrupt) if is_interrupted else nullcontext():
            run_sweep(quick(tmp_path / "out"), console=Console(file=io.StringIO()))
    study = run_sweep(quick(tmp_path / "out"), console=Console(file=io.StringIO()))
    rows = read_results(tmp_path / "out" / "results.csv")
    assert Counter(row["state"] for row in rows) == {"complete": 3 * 2, "failed": 1}
    assert len(study.look().trials) == 5


@pytest.mark.slow
def test_a_trial_whose_process_died_before_its_first_heartbeat_is_begun_again(tmp_path, monkeypatch):
    optuna = pytest.importorskip("optuna")
    from snnreg_plugins.sweeps import study as study_of

    for name in ("HEARTBEAT", "GRACE", "_PAUSE"):
        monkeypatch.setattr(study_of, name, 1)
    study = study_of.Study(quick(tmp_path / "out"))
    study.study._storage.set_trial_state_values(study.look().trials[1]._trial_id, optuna.trial.TrialState.RUNNING)
    study = run_sweep(quick(tmp_path / "out"), console=Console(file=io.StringIO()))
    assert Counter(trial.state.name for trial in study.look().current) == {"COMPLETE": 3, "FAIL": 1}
    assert len(study.look().trials) == 5
