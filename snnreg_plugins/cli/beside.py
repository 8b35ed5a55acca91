"""The picture beside a page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from snnreg_plugins._console import say

if TYPE_CHECKING:
    from snnreg_plugins.reports.folder import Folder


def draw_beside(page: Path, folder: Folder, draw: Callable[[Path], object]) -> list[str]:
    """Draw the picture beside a page, or say why there is none; give the names of both.

    Args:
        page: The page, which is written.
        folder: The folder of the run that it tells of.
        draw: Writes the picture.
    """
    try:
        picture = folder.picture_path(page)
        draw(picture)
    except (ModuleNotFoundError, FileExistsError) as error:
        say(f"No picture: {error}")
        return [str(page)]
    return [str(page), str(picture)]
