"""``snnreg compare``: runs beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from snnreg_plugins._console import say
from snnreg_plugins.cli.beside import draw_beside
from snnreg_plugins.cli.parser import Parser


def main(words: Sequence[str]) -> None:
    """Run ``snnreg compare`` with the words behind it."""
    parser = Parser(
        prog="snnreg compare",
        description="Put what runs score and spend beside each other, and write it as a page with a PNG beside it.",
    )
    parser.add_argument("--config", action="config", help="A YAML file with these arguments.")
    parser.add_argument(
        "runs",
        nargs="+",
        type=str,
        help="Folders that ExportReport or `snnreg export` wrote to; the others are compared with the first one.",
    )
    parser.add_argument(
        "--output",
        type=str | None,
        help="The page, a name that ends in .html; compare.html in the last folder if not given.",
    )
    arguments = parser.parse_args(list(words)).as_dict()
    write_comparison(arguments["runs"], arguments["output"])


def write_comparison(runs: Sequence[str], output: str | None = None) -> None:
    """Print runs beside each other, and write them as a page, with a PNG beside it.

    Args:
        runs: The folders.
        output: The page; ``compare.html`` in the last folder if None.
    """
    # Here, as it takes seconds: --help and wrong words are answered before.
    from snnreg_plugins.reports.compare import compare
    from snnreg_plugins.reports.folder import REPORT, Folder

    found = compare(*runs)
    last = Path(runs[-1])
    folder = Folder(last.parent if last.name == REPORT else last)
    page = folder.page_path(folder.path("compare.html") if output is None else output)
    found.save_page(page)
    written = draw_beside(page, folder, found.save_plot)
    found.print()
    say(f"Written: {', '.join(written)}")
