"""The command line: ``snnreg fit --config recipes/x.yaml``, the same as ``lightning ...``; ``snnreg profile``.

- ``door``: which subcommand is meant, and how what went wrong is told.
- ``subcommands``: all of them, a row each; a new one is a row there and a file here.
- ``commands``: Lightning's command line with ``export``.
- ``report``, ``compare``, ``profile``, ``shelf`` (``recipes``): a subcommand each, without Lightning.
- ``help``: what ``--help`` tells of the options of an export.
- ``links``: what a network takes from its data.
- ``messages``: what Lightning says, and what of it is left out.
- ``parser``, ``sentences``: their parser, and what parsers say.
- ``overrides``: callbacks of a recipe by name, ``--callback.ActivityRegularization.strength 2``.
- ``recipes``: which files recipes are, and what may stand in them.
"""

from __future__ import annotations

import sys

_INTERRUPTED = 130  # as shells say it


def main() -> None:
    """Run the command line."""
    try:
        # Here, as it takes seconds, in which some think better of it.
        from snnreg_plugins.cli.door import run

        run()
    except KeyboardInterrupt:
        print("Interrupted", file=sys.stderr)
        sys.exit(_INTERRUPTED)
