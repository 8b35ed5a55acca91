"""What all tests share."""

from __future__ import annotations

import io
import os
from functools import partialmethod

# Before torch is imported: threads of several processes that wait for each other spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import pytest
import torch
from rich.console import Console
from rich.progress import Progress

from snnreg_plugins import _console


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class Terminal(io.StringIO):
    def isatty(self):
        return True


class AtOnce:
    """A timer that does not wait."""

    def __init__(self, _, function):
        self.start = function

    def cancel(self):
        pass


@pytest.fixture
def terminal(monkeypatch):
    """The console, as if it were a terminal in which all is drawn at once; what is written to it."""
    stream = Terminal()
    console = Console(file=stream, force_terminal=True, width=80)
    monkeypatch.setattr(_console, "_console", lambda: console)
    monkeypatch.setattr(_console, "Timer", AtOnce)
    monkeypatch.setattr(Progress, "update", partialmethod(Progress.update, refresh=True))  # not ten times a second
    return stream
