"""What ``--help`` tells of the options of an export."""

from __future__ import annotations

import dataclasses
from typing import Any

from snnreg_plugins.export.options import Options, Settled


def export_defaults() -> dict[str, Any]:
    """Give what options of an export are where they are not given, but for those that are then nothing.

    Example:
        >>> found = export_defaults()
        >>> found["threshold"], found["percent"], found["compensate_leak"], "until" in found
        ('percentile', 99.9, 'true', False)
    """
    found = {field.name: field.default for field in dataclasses.fields(Options)} | Settled()._asdict()
    del found["timesteps"]  # of which the subcommand has its own
    return {
        name: str(value).lower() if isinstance(value, bool) else value
        for name, value in found.items()
        if value is not None and value is not dataclasses.MISSING
    }
