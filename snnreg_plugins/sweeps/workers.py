"""The processes of a sweep: they begin with it, and end with it, however it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from types import FrameType, TracebackType

# What asks a process to end; a terminal that is closed sends the last one.
_ASK = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
INTERRUPTED = 130  # exit code, as shells say it


class Workers:
    """Processes that do the same work.

    Each of them watches a pipe whose other end this process alone has. It is closed when they are to stop, and by the
    system where this process is killed.

    Args:
        work: What they do; goes to them by pickle.
        count: How many.
    """

    def __init__(self, work: Callable[[], None], count: int) -> None:
        context = multiprocessing.get_context("spawn")  # threads of torch do not survive a fork
        self._theirs, self._ours = context.Pipe(duplex=False)
        arguments = (work, self._theirs)
        self._processes = [context.Process(target=_work, args=arguments, name=f"worker {n}") for n in range(count)]

    def __enter__(self) -> Workers:
        # Ctrl+C in a terminal comes to all processes at once: until they can take it, the pipe alone tells them.
        before = signal.getsignal(signal.SIGINT)
        is_main = threading.current_thread() is threading.main_thread()
        try:
            if is_main:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            for process in self._processes:
                process.start()
        finally:
            if is_main:
                signal.signal(signal.SIGINT, before)
        self._theirs.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ours.close()
        for process in self._processes:
            process.join()

    def are_at_work(self) -> bool:
        """Tell whether any of them is."""
        return any(process.is_alive() for process in self._processes)

    @property
    def died(self) -> list[int]:
        """The exit codes of those that ended before their work did."""
        return [process.exitcode for process in self._processes if process.exitcode]


def _work(work: Callable[[], None], pipe: Connection) -> None:
    """Work in a process of its own."""
    try:
        with stoppable(signal.SIGINT):
            threading.Thread(target=_stop_with, args=(pipe,), daemon=True).start()
            work()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _stop_with(pipe: Connection) -> None:
    """Interrupt this process when the other end of a pipe is closed."""
    pipe.poll(None)
    os.kill(os.getpid(), signal.SIGINT)


@contextmanager
def stoppable(*others: int) -> Iterator[None]:
    """Have what asks this process to end raise a KeyboardInterrupt, as Ctrl+C does; what is ignored stays so.

    Args:
        others: Signals that do so, too, whatever they did before.
    """
    asked = [one for one in _ASK if signal.getsignal(one) is signal.SIG_DFL]
    is_main = threading.current_thread() is threading.main_thread()
    before = {one: signal.getsignal(one) for one in (*others, *asked)} if is_main else {}  # no others take signals
    stop = _Stop()
    for one in before:
        signal.signal(one, stop)
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


class _Stop:
    """Raises once: who is asked again while it puts things in order goes on with that."""

    def __init__(self) -> None:
        self._is_asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self._is_asked:
            self._is_asked = True
            raise KeyboardInterrupt
