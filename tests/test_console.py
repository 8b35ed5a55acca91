"""What is printed: within the width, whole, in signs that the terminal has, after files are written."""

from __future__ import annotations

import io
import threading
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.errors import LiveError
from rich.progress import Progress
from tqdm import tqdm

from snnreg_plugins import _console
from snnreg_plugins._console import encodable, held, progress, quiet, say, show
from snnreg_plugins._lightning import end_bar
from snnreg_plugins._text import Column, Note, Row, Table, in_joules, in_short

# The cursor is seen, and the line of the bar erased.
TAKEN_AWAY = "\x1b[?25h\r\x1b[1A\x1b[2K"
LABELS = ("features.0.conv", "features.3.relu", "readout")
NUMBERS = {"Threshold range": "0.12..3.45", "SOPs": "1.23M", "Energy": "2.30 µJ", "MACs / DNN": "0.12 %"}
TABLE = Table(
    "SNN at T = 4 × 2",
    (Column("Layer"), Column("Kind", words=True), *(Column(title) for title in NUMBERS)),
    tuple(Row((label, "Conv2d", *NUMBERS.values())) for label in LABELS),
)


def printed(parts, width=80, encoding="utf-8"):
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding=encoding)
    show(parts, Console(file=stream, width=width))
    stream.flush()
    return written.getvalue().decode(encoding).splitlines()


@pytest.mark.parametrize("width", [30, 40, 55, 80, 120])
def test_a_table_keeps_labels_and_numbers_whole_at_any_width(width):
    lines = printed([TABLE], width)
    assert max(map(len, lines)) <= width
    rows = [line.split("  ") for line in lines]
    cells = [cell.strip() for row in rows for cell in row if cell.strip()]
    for number in NUMBERS.values():
        assert cells.count(number) == len(LABELS)
    # Every row of every part begins with its label, and nothing else is in that column.
    if width > 40:
        parts = sum("Layer" in line for line in lines)
        assert [cells.count(label) for label in LABELS] == [parts] * len(LABELS)
    assert lines[0] == "SNN at T = 4 × 2"


def test_a_table_that_fits_is_one():
    lines = printed([TABLE], 120)
    assert sum("Layer" in line for line in lines) == 1
    assert any("Threshold range" in line for line in lines)


def test_groups_stand_apart_and_marked_rows_have_the_sign():
    rows = (Row(("a", 1)), Row(("b", 2), True), Row(("c", 3), group=1))
    table = Table("t", (Column("x"), Column("y")), rows, sign="*")
    lines = [line.strip() for line in printed([table])]
    assert lines.index("c  3") - lines.index("* b  2") == 2


@pytest.mark.parametrize(("encoding", "energy"), [("ascii", "2.30 uJ"), ("gbk", "2.30 uJ"), ("cp932", "2.30 uJ")])
def test_what_an_encoding_has_no_sign_for_is_written_plainly(encoding, energy):
    notes = [Note("θ ≥ 2 µJ → … ❤", weight) for weight in ("plain", "strong", "small")]
    lines = printed([TABLE, *notes], encoding=encoding)
    assert any(energy in line for line in lines)
    assert "uJ" in lines[-1]
    lines[-1].encode(encoding)
    assert encodable("µ", "no such encoding") == "u"


def test_markup_and_control_signs_are_no_more_than_text():
    table = Table("[/foo] a\nb", (Column("[bold]"),), (Row(("[/x]\x1b[2J",)),))
    assert printed([table, Note("[/red]")])[0] == "[/foo] a b"


def test_what_is_held_is_printed_in_order_when_it_is_over(capsys):
    @held()
    def work():
        say("first")
        show([Note("second")])
        assert capsys.readouterr().out == ""
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert capsys.readouterr().out == "first\nsecond\n"


def test_a_message_is_in_one_line_where_there_is_no_terminal(capsys):
    say("word " * 40)
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_progress_is_shown_in_a_terminal_and_taken_away(terminal):
    with progress("Trying", 2) as step:
        for text in ("percent=99.9", "max"):
            step(text)
    assert "Trying: percent=99.9" in terminal.getvalue()
    assert "1/2" in terminal.getvalue()
    assert "2/2" not in terminal.getvalue()  # the second one is under way
    assert terminal.getvalue().endswith(TAKEN_AWAY)


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_leaves_no_bar_and_no_silence(terminal, error):
    for _ in range(2):
        begun = terminal.tell()
        with pytest.raises(error) as raised, progress("Trying"):
            raise error
        assert "Trying" in terminal.getvalue()[begun:]  # also while the traceback is kept
        assert terminal.getvalue().endswith(TAKEN_AWAY)
    del raised


def test_work_that_is_soon_done_has_no_bar(terminal, monkeypatch):
    monkeypatch.setattr(_console, "Timer", threading.Timer)
    with progress("Trying") as step:
        step("")
    assert not terminal.getvalue()


@pytest.mark.parametrize("is_refused", [False, True], ids=["rich of today", "rich of before 14.1"])
def test_nothing_is_drawn_within_a_bar_of_the_users_own(terminal, monkeypatch, is_refused):
    console = _console._console()
    with Progress(console=console) as own:
        if is_refused:
            monkeypatch.setattr(console, "set_live", raising(LiveError()))
        task = own.add_task("Own", total=1)
        with progress("Trying") as step:
            step("")
        own.update(task, advance=1)
        assert own.live.is_started
    assert "Trying" not in terminal.getvalue()
    assert "Own" in terminal.getvalue()
    monkeypatch.undo()


def raising(error):
    def function(*_):
        raise error

    return function


def test_nothing_is_drawn_within_a_bar_of_tqdm(terminal):
    for _ in tqdm(range(1), file=io.StringIO()):
        with progress("Trying") as step:
            step("")
    assert not terminal.getvalue()
    with progress("Trying"):
        pass
    assert "Trying" in terminal.getvalue()


def test_other_processes_than_the_first_and_pipes_with_colors_have_no_bar(terminal, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with progress("Trying") as step:
        step("")
    assert not terminal.getvalue()
    monkeypatch.setenv("LOCAL_RANK", "0")
    stream = io.StringIO()
    monkeypatch.setattr(_console, "_console", lambda: Console(file=stream, force_terminal=True))
    with progress("Trying") as step:
        step("")
    assert not stream.getvalue()


def test_progress_is_quiet_when_told_within_another_and_where_there_is_no_terminal(terminal, monkeypatch):
    with quiet(), progress("Trying") as step:
        step("")
    with progress("Trying", shown=False) as step:
        step("")
    assert not terminal.getvalue()
    with progress("Outer"), progress("Inner") as step:
        step("")
    assert "Inner" not in terminal.getvalue()
    stream = io.StringIO()
    monkeypatch.setattr(_console, "_console", lambda: Console(file=stream))
    with progress("Trying") as step:
        step("")
    assert not stream.getvalue()


def test_the_bar_has_ended_before_anything_is_printed(terminal):
    with Progress(console=_console._console()) as bar:
        end_bar(SimpleNamespace(progress_bar_callback=SimpleNamespace(progress=bar)))
        assert not bar.live.is_started
    for bar in (None, SimpleNamespace(), SimpleNamespace(progress=None)):
        end_bar(SimpleNamespace(progress_bar_callback=bar))


def test_numbers_of_a_table_are_written_by_its_columns():
    table = Table("t", (Column(""), Column("SOPs", in_short), Column("Energy", in_joules)), (Row(("a", 1234, 2e-6)),))
    assert any("1.23k  2.00 µJ" in line for line in printed([table]))
