"""Studies: resumed, shared by processes, searched, and kept in a database."""

from __future__ import annotations

import io
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from snnreg_plugins.sweeps import find_front, read_results, run_sweep
from snnreg_plugins.sweeps.run import Progress
from tests.sweeps.jobs import Quick, quick

optuna = pytest.importorskip("optuna")

ROOT = Path(__file__).parents[2]


def begun(folder):
    file = folder / "begun.txt"
    return [line.split(" ", 1)[1] for line in file.read_text().splitlines()] if file.exists() else []


def test_a_grid_runs_each_point_once_is_resumed_and_keeps_failures(tmp_path):
    told = Console(file=io.StringIO())
    run_sweep(quick(tmp_path / "out", trials=2), console=told)
    assert len(begun(tmp_path)) == 2
    study = run_sweep(quick(tmp_path / "out"), console=told)
    assert len(begun(tmp_path)) == len(set(begun(tmp_path))) == 4
    assert "4 of 4 trials, 1 failed" in told.file.getvalue()
    rows = read_results(tmp_path / "out" / "results.csv")
    assert Counter(row["state"] for row in rows) == {"complete": 3 * 2, "failed": 1}
    assert [row["error"] for row in rows if row["state"] == "failed"] == ["RuntimeError: no luck"]
    assert study.look().failures == [("Trial 2 (l1, seed 0, strength 13)", "RuntimeError: no luck")]
    assert find_front(rows).cheapest("l1", 5.0).setting == "strength 2"
    run_sweep(quick(tmp_path / "out"), console=told)
    assert len(begun(tmp_path)) == 4
    run_sweep(quick(tmp_path / "out", retry_failed=True), console=told)
    assert len(begun(tmp_path)) == 5
    rows = read_results(tmp_path / "out" / "results.csv")
    assert Counter(row["state"] for row in rows) == {"complete": 3 * 2, "failed": 1}  # that of the later try


def test_another_space_is_refused(tmp_path):
    run_sweep(quick(tmp_path / "out", trials=1))
    for change, named in (
        ({"steps": [1, 3]}, "steps"),
        ({"settings": {"trainer.max_epochs": 3}}, "max_epochs"),
    ):
        with pytest.raises(ValueError, match=rf"`name`.*{named}.*another `name`"):
            run_sweep(quick(tmp_path / "out", **change))
    with pytest.raises(ValueError, match=r"`output`.*'other'.*'quick'.*another `output`"):
        run_sweep(quick(tmp_path / "out", name="other", steps=[1, 3], trials=1))
    run_sweep(quick(tmp_path / "more", name="other", steps=[1, 3], trials=1))


def test_a_grid_that_grows_runs_what_is_new_and_keeps_what_was_measured(tmp_path):
    out, told = tmp_path / "out", Console(file=io.StringIO())
    run_sweep(quick(out, trials=2), console=told)
    first = read_results(out / "results.csv")
    assert {(row["penalty"], row["strength"]) for row in first} == {("none", None), ("l1", 1)}
    # What was not begun is no longer of it: 13 and 2.
    more = {"penalties": {"l1": {"strength": [5, 1], "weighting": "fan_out"}, "none": None}, "seeds": [0, 1]}
    run_sweep(quick(out, **more), console=told)
    run_sweep(quick(out, **more), console=told)
    assert len(begun(tmp_path)) == 2 + 5
    rows = read_results(out / "results.csv")
    assert [{name: row[name] for name in first[0]} for row in rows[: len(first)]] == first
    found = Counter((row["penalty"], row["strength"], row["weighting"], row["seed"]) for row in rows)
    assert found == {
        ("none", None, None, 0): 2, ("none", None, None, 1): 2, ("l1", 1, None, 0): 2, ("l1", 1, "fan_out", 0): 2,
        ("l1", 1, "fan_out", 1): 2, ("l1", 5, "fan_out", 0): 2, ("l1", 5, "fan_out", 1): 2,
    }  # fmt: skip


def test_a_score_that_is_no_number_fails_its_trial_and_says_where(tmp_path, monkeypatch):
    run = Quick.run

    def spoiled(self, point, seeds, folder):
        rows = run(self, point, seeds, folder)
        rows[-1]["score"] = float("nan")
        return rows

    monkeypatch.setattr(Quick, "run", spoiled)
    study = run_sweep(quick(tmp_path / "out", penalties={"none": None}), console=Console(file=io.StringIO()))
    ((_, reason),) = study.look().failures
    assert "nan at T = 4 of the export 'default', seed 0" in reason


def test_a_study_that_cannot_be_written_is_told_in_one_sentence(tmp_path, monkeypatch):
    from optuna.storages import RDBStorage

    def full(*arguments, **more):
        raise optuna.exceptions.StorageInternalError("wrapped") from sqlite3.OperationalError("disk is full")

    def run(self, point, seeds, folder):
        monkeypatch.setattr(RDBStorage, "set_trial_state_values", full)
        return []

    monkeypatch.setattr(Quick, "run", run)
    with pytest.raises(OSError, match=r"'.*out' could not be written: disk is full\. .*the same command goes on"):
        run_sweep(quick(tmp_path / "out"), console=Console(file=io.StringIO()))


@pytest.mark.slow
def test_what_was_interrupted_is_begun_again(tmp_path, monkeypatch):
    def interrupted(self, point, seeds, folder):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Quick, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_sweep(quick(tmp_path / "out"))
    run_sweep(quick(tmp_path / "out"))
    assert len(set(begun(tmp_path))) == 4
    rows = read_results(tmp_path / "out" / "results.csv")
    assert Counter(row["state"] for row in rows) == {"complete": 3 * 2, "failed": 1}


@pytest.mark.slow
@pytest.mark.parametrize("search", ["random", "tpe", "nsga2"])
def test_a_search_chooses_within_its_ranges_with_all_seeds_and_goes_on(search, tmp_path):
    space = {"penalties": {"none": None, "l1": {"strength": {"low": 0.1, "high": 10, "log": True}}}, "seeds": [3, 4]}
    for trials in (3, 7):
        run_sweep(quick(tmp_path / "out", search=search, trials=trials, **space))
    rows = read_results(tmp_path / "out" / "results.csv")
    assert len({row["trial"] for row in rows}) == 7
    assert {row["seed"] for row in rows} == {3, 4}
    strengths = {row["trial"]: row["strength"] for row in rows if row["penalty"] == "l1"}
    assert all(0.1 <= strength <= 10 for strength in strengths.values())
    assert len(set(strengths.values())) == len(strengths)


@pytest.mark.slow
def test_a_storage_that_cannot_be_reached_is_named_without_its_password(tmp_path):
    for url in ("nowhere://user:secret@host/name", "sqlite:////no/such/folder/study.db"):
        with pytest.raises(ValueError, match="`storage`") as told:
            run_sweep(quick(tmp_path / "out", storage=url))
        assert "secret" not in str(told.value)


@pytest.mark.slow
def test_several_processes_share_a_sweep(tmp_path):
    told = Console(file=io.StringIO())
    run_sweep(quick(tmp_path / "out", seconds=0.5, seeds=[0, 1]), workers=2, console=told)
    assert len(begun(tmp_path)) == len(set(begun(tmp_path))) == 8
    lines = (tmp_path / "begun.txt").read_text().splitlines()
    assert len({line.split()[0] for line in lines}) == 2


WORKER = """
import sys
from snnreg_plugins.sweeps import run_sweep, study
from tests.sweeps.jobs import quick
study.HEARTBEAT, study.GRACE = 1, 4
run_sweep(quick(sys.argv[1], seconds=float(sys.argv[3]), storage=sys.argv[2], seeds=[0, 1]))
"""


@pytest.fixture
def postgresql(tmp_path):
    """The URL of a server of its own, on a socket in a folder."""
    pytest.importorskip("psycopg", reason="psycopg, the driver, is not installed")
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("PostgreSQL is not installed (Debian's package postgresql)")
    data, place = tmp_path / "data", tmp_path / "socket"
    place.mkdir()
    # The server refuses to run as root.
    before = []
    if os.geteuid() == 0:
        before = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        for folder in (tmp_path, place):
            os.chmod(folder, 0o777)
        for folder in tmp_path.parents:
            if folder.stat().st_uid == 0 and folder.is_relative_to("/tmp/pytest-of-root"):
                os.chmod(folder, 0o755)
    run = {"check": True, "capture_output": True, "cwd": "/"}
    subprocess.run([*before, programs[-1] / "initdb", "-D", data, "-U", "me", "--auth=trust", "--no-sync"], **run)
    command = [*before, programs[-1] / "postgres", "-D", data, "-k", place, "-c", "listen_addresses=", "-F"]
    server = subprocess.Popen(command, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        import psycopg

        deadline = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(host=str(place), user="me", dbname="postgres").close()
                break
            except psycopg.OperationalError:
                assert time.monotonic() < deadline
                time.sleep(0.2)
        yield f"postgresql+psycopg://me@/postgres?host={place}"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)


@pytest.mark.slow
def test_workers_share_a_study_in_postgresql_and_one_takes_over_from_another_that_is_killed(postgresql, tmp_path):
    def worker(seconds):
        command = [sys.executable, "-c", WORKER, str(tmp_path / f"out{seconds}"), postgresql, str(seconds)]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)

    doomed, other = worker(600), worker(0.1)
    try:
        deadline = time.monotonic() + 200
        while not any(line.startswith(f"{doomed.pid} ") for line in _lines(tmp_path)):
            assert doomed.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        doomed.kill()
        assert other.wait(200) == 0
    finally:
        doomed.kill()
        other.kill()
    counted = Counter(line.split(" ", 1)[1] for line in _lines(tmp_path))
    assert len(counted) == 8  # all points
    assert sorted(counted.values()) == [1] * 7 + [2]  # and that of the killed one twice
    rows = read_results(tmp_path / "out0.1" / "results.csv")
    assert Counter(row["state"] for row in rows) == {"complete": 6 * 2, "failed": 2}


def _lines(folder):
    file = folder / "begun.txt"
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.parametrize(("columns", "lines"), [(55, 24), (80, 24), (120, 50)])
def test_what_is_shown_while_a_sweep_runs_has_room_in_a_terminal(columns, lines, tmp_path):
    console = Console(file=io.StringIO(), width=columns, height=lines, force_terminal=True, color_system=None)
    how = {"penalties": {"transformed_l1": {"strength": list(range(12))}}, "regularization": {"weighting": "fan_out"}}
    study = run_sweep(quick(tmp_path / "out", **how), console=console)
    assert "Sweep quick: 12 of 12 trials" in console.file.getvalue().splitlines()[-1]
    progress = Progress(study, console)
    progress.lost(1, 2)
    drawn = Console(file=io.StringIO(), width=columns, height=lines, color_system=None)
    drawn.print(progress.rendered(study.look()))
    shown = drawn.file.getvalue().rstrip().splitlines()
    assert len(shown) <= lines
    assert max(map(len, shown)) <= columns
    assert "1 of 2 workers died" in " ".join(" ".join(shown).split())
    assert sum("transformed_l1" in line for line in shown) >= 5
    assert ("strength" in "".join(shown)) == (columns > 55)
    assert all(word in "".join(shown) for word in ("Accuracy", "SOPs"))
