"""The one console that everything is printed to; it is the one that Lightning draws its progress bar in."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from threading import Lock, Timer
from typing import TYPE_CHECKING, Any, TypeVar

from snnreg_plugins._text import Note, Table, one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table as RichTable

T = TypeVar("T")
# How a note looks, by its weight.
_STYLES = {"plain": "none", "strong": "bold", "small": "dim"}
# Words beside the first column are folded into so much.
_WIDEST = 12
# A table's first column is folded into that share of the width if nothing else helps.
_LABELS = 0.4
# Seconds that work takes before it has a bar, so that none flashes up for what is soon done; and the widest bar.
_SOON, _BAR = 0.5, 20
# What stands for a sign that a terminal has none for.
_PLAIN = {"µ": "u", "×": "x", "·": "*", "…": "...", "≤": "<=", "≥": ">=", "→": "->", "–": "-", "—": "-", "−": "-"}
_quiet: ContextVar[bool] = ContextVar("quiet", default=False)
# What is printed later; None if nothing is held.
_held: ContextVar[list[Callable[[], None]] | None] = ContextVar("held", default=None)


def show(parts: Iterable[Table | Note], console: Console | None = None) -> None:
    """Print tables and notes; nothing in them is read as markup, and what a terminal cannot show is written plainly.

    A table that is wider than the console comes in several, each with the names of the rows.

    Args:
        parts: What to print.
        console: Where to; the terminal if None.
    """
    from rich.text import Text

    held_now = _held.get()
    if held_now is not None:
        held_now.append(partial(show, tuple(parts), console))
        return
    console = console or _console()
    for part in parts:
        if isinstance(part, Note):
            console.print(Text(encodable(part.text, console.encoding), style=_STYLES[part.weight]))
            continue
        console.print(Text(encodable(one_line(part.caption), console.encoding), style="bold"))
        for drawn in drawn_tables(part, console):
            console.print(drawn)


def say(text: str) -> None:
    """Print a message; in a terminal it is broken between words, elsewhere not at all."""
    from rich.text import Text

    held_now = _held.get()
    if held_now is not None:
        held_now.append(partial(say, text))
        return
    console = _console()
    console.print(Text(encodable(text, console.encoding)), soft_wrap=not console.is_terminal)


@contextmanager
def held() -> Iterator[None]:
    """Print what is shown and said within when it is over, also by an error: files are written first."""
    waiting: list[Callable[[], None]] = []
    token = _held.set(waiting)
    try:
        yield
    finally:
        _held.reset(token)
        for tell in waiting:
            tell()


@contextmanager
def quiet() -> Iterator[None]:
    """Show no progress within, as where another bar is under way."""
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


@contextmanager
def progress(what: str, total: int | None = None, shown: bool = True) -> Iterator[Callable[[str], None]]:
    """Show how far long work is, in a terminal, and take it away when it is done, also by an error.

    Nothing is shown in other processes than the first, nor while another bar is drawn: of rich, which is Lightning's,
    or of tqdm.

    Args:
        what: The work.
        total: Its number of steps; None if that is not known.
        shown: Whether to show it at all.

    Yields:
        What is called as each step begins, and says what that is; it may be empty.
    """
    console = _console()
    if not shown or _quiet.get() or os.environ.get("LOCAL_RANK", "0") != "0" or not _is_seen(console):
        yield lambda _: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    bar = BarColumn(min(_BAR, console.width // 5))
    columns = (TextColumn("{task.description}", markup=False), bar, MofNCompleteColumn(), TimeElapsedColumn())
    drawn = Progress(*columns, console=console, transient=True)
    task, begun = drawn.add_task(encodable(what, console.encoding), total=total), False

    def step(text: str) -> None:
        nonlocal begun
        described = encodable(f"{what}: {one_line(text)}" if text else what, console.encoding)
        drawn.update(task, advance=int(begun), description=described)
        begun = True

    with _drawn_soon(drawn, console), quiet():
        yield step


def following(items: Iterable[T], step: Callable[[str], None]) -> Iterator[T]:
    """Walk something, a step for each."""
    for item in items:
        step("")
        yield item


def _is_seen(console: Console) -> bool:
    """Tell whether a person looks at what is drawn; colors are forced in pipes, too."""
    is_tty: Callable[[], bool] = getattr(console.file, "isatty", lambda: False)
    try:
        return console.is_interactive and console.is_terminal and is_tty()
    except ValueError:  # the file is closed
        return False


@contextmanager
def _drawn_soon(bar: Progress, console: Console) -> Iterator[None]:
    """Begin to draw a bar after a moment, unless another one is drawn by then."""
    lock, is_over = Lock(), False

    def begin() -> None:
        from rich.errors import LiveError

        with lock, suppress(LiveError):  # another one that began just now
            if not is_over and not _has_bar(console):
                bar.start()

    timer = Timer(_SOON, begin)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        with lock:
            is_over = True
            bar.stop()


def _has_bar(console: Console) -> bool:
    """Tell whether something is drawn anew all the time: two of that kind spoil each other's lines, or are refused."""
    from rich.errors import LiveError
    from rich.live import Live

    of_tqdm: Any = getattr(sys.modules.get("tqdm"), "tqdm", None)
    if len(getattr(of_tqdm, "_instances", ())):
        return True
    try:
        # Refused by earlier versions of rich where there is one, and told by later ones.
        is_alone = console.set_live(Live(console=console))
    except LiveError:
        return True
    console.clear_live()
    return is_alone is False


def encodable(text: str, encoding: str) -> str:
    """Write text in the signs that an encoding has.

    Example:
        >>> encodable("2.3 µJ, 1.5 × as much", "ascii")
        '2.3 uJ, 1.5 x as much'
    """
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return "".join(sign if _has(encoding, sign) else _PLAIN.get(sign, "?") for sign in text)
    except LookupError:  # no encoding of Python's
        return encodable(text, "ascii")
    return text


def _has(encoding: str, sign: str) -> bool:
    try:
        sign.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def drawn_tables(table: Table, console: Console) -> Iterator[RichTable]:
    """Draw a table within the width of a console: in one, or in several of some columns each."""
    from rich import box
    from rich.cells import cell_len
    from rich.table import Table as RichTable
    from rich.text import Text

    encoding = console.encoding
    blank = " " * len(table.sign)
    rows = []
    for row, (name, *cells) in zip(table.rows, table.written(), strict=True):
        sign = f"{table.sign if row.marked else blank} " if table.sign else ""
        rows.append([encodable(one_line(cell), encoding) for cell in (f"{sign}{name}", *cells)])
    titles = [encodable(column.title, encoding) for column in table.columns]
    # With titles in a line, and with titles broken between words: numbers are whole in both.
    held = [max((cell_len(row[index]) for row in rows), default=0) for index in range(len(titles))]
    for index, column in enumerate(table.columns):
        if index and column.words:
            held[index] = min(held[index], _WIDEST)
    broken = [max(most, *map(cell_len, title.split() or [""])) for most, title in zip(held, titles, strict=True)]
    wide = [max(most, cell_len(title)) for most, title in zip(held, titles, strict=True)]
    lines = box.SIMPLE_HEAD if encoding.startswith("utf") else box.Box("    \n    \n -- \n" + "    \n" * 5, ascii=True)
    blocks = [list(range(len(titles)))]
    if _taken(wide) > console.width:
        wide = broken
        wide[0] = min(wide[0], max(int(_LABELS * console.width), 1))
        blocks = _blocks(wide, console.width)
    for block in blocks:
        drawn = RichTable(header_style="bold", box=lines, pad_edge=False, collapse_padding=True)
        for index in block:
            words = index == 0 or table.columns[index].words
            justify = "left" if words else "right"
            drawn.add_column(Text(titles[index]), width=wide[index], justify=justify, overflow="fold")  # type: ignore[arg-type]
        group = table.rows[0].group if table.rows else 0
        for row, cells in zip(table.rows, rows, strict=True):
            if row.group != group:
                drawn.add_section()
                group = row.group
            drawn.add_row(*(Text(cells[index]) for index in block))
        yield drawn


def _taken(widths: list[int]) -> int:
    """Count the signs that a table of such columns takes: an edge at each side, and two blanks between columns."""
    return 2 + sum(widths) + 2 * (len(widths) - 1)


def _blocks(widths: list[int], width: int) -> list[list[int]]:
    """Part columns into tables that fit, each with the first column, and as many others as go beside it."""
    blocks = [[0]]
    for index in range(1, len(widths)):
        block = [*blocks[-1], index]
        if len(blocks[-1]) > 1 and _taken([widths[one] for one in block]) > width:
            blocks.append([0, index])
        else:
            blocks[-1] = block
    return blocks


def _console() -> Console:
    from rich import get_console

    return get_console()
