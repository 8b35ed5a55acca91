"""``snnreg report``: a run as a page."""

from __future__ import annotations

from collections.abc import Sequence

from snnreg_plugins._console import say
from snnreg_plugins.cli.beside import draw_beside
from snnreg_plugins.cli.parser import Parser


def main(words: Sequence[str]) -> None:
    """Run ``snnreg report`` with the words behind it."""
    parser = Parser(prog="snnreg report", description="Write a run as one page of HTML, with a PNG beside it.")
    parser.add_argument("--config", action="config", help="A YAML file with these arguments.")
    parser.add_function_arguments(write_report, as_positional=True)
    arguments = parser.parse_args(list(words)).as_dict()
    write_report(arguments["run"], arguments["output"], arguments["table"])


def write_report(run: str, output: str | None = None, table: str | list[str] | None = None) -> None:
    """Write a run as one page of HTML, with a PNG beside it.

    Args:
        run: The folder that ExportReport or ``snnreg export`` wrote to.
        output: The page, a name that ends in .html; report.html in that folder if not given.
        table: The model of cost that is shown, or several, such as lemaire,eflops, or a YAML file of prices; those
            that the run showed if not given.
    """
    # Here, as it takes seconds: --help and wrong words are answered before.
    from snnreg_plugins.reports.folder import Folder

    folder = Folder(run)
    page, contents = folder.write_page(output, table)
    say(f"Written: {', '.join(draw_beside(page, folder, contents.report.save_plot))}")
