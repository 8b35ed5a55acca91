"""What every result can do: be saved, read back, printed and drawn."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from snnreg_plugins._console import show
from snnreg_plugins._files import read_json, write_json
from snnreg_plugins._pictures import drawn
from snnreg_plugins._text import Note, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import Console

Read = TypeVar("Read", bound="Result")


class Result:
    """Base of results: dataclasses of plain numbers, strings, and tuples of such.

    A result says what it shows (:meth:`shown`) and what it draws (:meth:`panels`); how, is the same for all.
    """

    _indent: ClassVar[int | None] = 2

    def to_dict(self) -> dict[str, Any]:
        """Return nested dicts and lists of plain numbers and strings, as JSON has them."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # type: ignore[call-overload]
        return plain

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`to_dict` to a JSON file; it appears when it is complete."""
        write_json(path, self.to_dict(), self._indent)

    @classmethod
    def load_json(cls: type[Read], path: str | os.PathLike[str]) -> Read:
        """Read what :meth:`save_json` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it holds anything else, or its parts do not fit each other.
        """
        result = read_json(path, cls)
        misfit = result.misfit()
        if misfit is not None:
            raise ValueError(f"Expected {os.fspath(path)!r} to hold a {cls.__name__}, but {misfit}")
        return result

    def misfit(self) -> str | None:
        """Say which parts do not fit each other; None if all do."""
        return None

    def print(self, console: Console | None = None) -> None:
        """Print tables, and what their numbers mean.

        Args:
            console: Where to print; the terminal if None.
        """
        show(self.shown(), console)

    def save_plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the numbers side by side, to a PNG (or what the suffix says).

        Raises:
            ModuleNotFoundError: If matplotlib is missing.
        """
        height, panels = self.panels()
        with drawn(path, height, len(panels), self.heading(), self.below()) as axes:
            for draw, panel in zip(panels, axes, strict=True):
                draw(panel)

    def shown(self) -> Iterable[Table | Note]:
        """Give what is printed: tables, and notes on them."""
        raise NotImplementedError

    def heading(self) -> tuple[str, str]:
        """Give a title and a sentence above the picture."""
        return "", ""

    def below(self) -> float:
        """Give the inches that the legends of the picture take below its panels."""
        return 0.5

    def panels(self) -> tuple[float, Sequence[Callable[[Axes], None]]]:
        """Give the height of the picture in inches, and what draws each of its panels."""
        raise NotImplementedError
