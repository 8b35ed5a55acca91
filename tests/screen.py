"""What a person sees: a command in a terminal of some width, and the text on its screen."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios

import pyte

# So many that nothing leaves the screen.
_LINES = 400


def screen(words, columns, folder, seen=None, **environment):
    """Run a command in a terminal, and give its return code and the lines on the screen when it has ended.

    Lines that were the last one in the meantime are added to ``seen``.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", _LINES, columns, 0, 0))
    settings = {"TERM": "xterm-256color", "COLUMNS": "", "LINES": "", **environment}
    known = {name: value for name, value in {**os.environ, **settings}.items() if value}
    shown = pyte.Screen(columns, _LINES)
    stream = pyte.ByteStream(shown)
    process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=known)
    os.close(theirs)
    while True:
        try:
            sent = os.read(ours, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not sent:
            break
        stream.feed(sent)
        if seen is not None:
            seen += [line.rstrip() for line in shown.display if line.strip()][-1:]
    os.close(ours)
    return process.wait(), [line.rstrip() for line in "\n".join(shown.display).rstrip().split("\n")]
