"""The command line: ``lightning fit --config recipes/x.yaml``, the same as ``snnreg ...``; ``snnreg profile``.

- ``door``: which command is meant, and how what went wrong is told.
- ``commands``: Lightning's command line with ``export``.
- ``overrides``: callbacks of a recipe by name, ``--callback.ActivityRegularization.strength 2``.
- ``recipes``: which files recipes are, and what may stand in them.
"""

from snnreg_plugins.cli.commands import ExportTrainer
from snnreg_plugins.cli.door import main

__all__ = ["ExportTrainer", "main"]
