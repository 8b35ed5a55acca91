"""The folder of a run as it is read: which files it has, and the page of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from snnreg_plugins._files import as_path, atomic, read_tensors, read_yaml
from snnreg_plugins._pictures import SOFTWARE
from snnreg_plugins.functional.cost_models import Model
from snnreg_plugins.reports.diagnosis import Diagnosis
from snnreg_plugins.reports.page import HEADINGS, page
from snnreg_plugins.reports.raster import Raster
from snnreg_plugins.reports.report import Report
from snnreg_plugins.reports.result import Result
from snnreg_plugins.reports.savings import Savings
from snnreg_plugins.reports.settings import Settings, flat

NETWORK, NIR, REPORT = "spiking.pt", "spiking.nir", "report.json"
PAGE, RECIPE = "report.html", "report.yaml"
# What Lightning's command line writes to its own folder, which may be the run's.
_COMMAND_LINE = "config.yaml"
#: The results that are kept, and the names of their files.
RESULTS: dict[type[Result], str] = {
    Report: "report",
    Diagnosis: "diagnosis",
    Savings: "savings",
    Raster: "raster",
}
#: Files that do not tell whose they are, and the one that was written before them and does.
BESIDE = {
    NIR: NETWORK,
    RECIPE: REPORT,
    "report.png": REPORT,
    "diagnosis.png": "diagnosis.json",
    "savings.png": "savings.json",
}


@dataclass(frozen=True)
class Contents:
    """What a run's folder tells.

    Args:
        title: Name of the run.
        report: What the network scores and spends.
        raster: When some neurons spike.
        diagnosis: What each layer loses.
        settings: Tables of names and values, by heading.
    """

    title: str
    report: Report
    raster: Raster | None
    diagnosis: Diagnosis | None
    settings: Mapping[str, Settings]

    def by(self, table: Model | Sequence[Model]) -> Contents:
        """Show the report by other models of cost.

        Raises:
            FileNotFoundError: If there is no such file of prices.
            ValueError: If there is no such model, or the report lacks what it needs.
        """
        from snnreg_plugins.reports.pricing import shown_by  # which imports what counts

        return replace(self, report=shown_by(self.report, table))

    def page(self) -> str:
        """Write the run as HTML."""
        return page(self.report, title=self.title, raster=self.raster, diagnosis=self.diagnosis, settings=self.settings)


class Folder:
    """The folder of a run, to be read, and to write its page to.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    @property
    def title(self) -> str:
        """Name of the run."""
        return self.folder.resolve().name

    def path(self, name: str) -> Path:
        """Say where a file of the run is."""
        return self.folder / name

    def read(self) -> Contents:
        """Read what the folder tells.

        A diagnosis of another network, as an earlier run may have left it, is left out.

        Raises:
            FileNotFoundError: If there is no report in it.
            ValueError: If one of the files cannot be read.
        """
        report = self.report()
        raster, diagnosis = self.path("raster.json"), self.path("diagnosis.json")
        return Contents(
            title=self.title,
            report=report,
            raster=Raster.load_json(raster) if raster.is_file() else None,
            diagnosis=_fitting(Diagnosis.load_json(diagnosis), report) if diagnosis.is_file() else None,
            settings=self.settings(),
        )

    def report(self) -> Report:
        """Read what the network scores and spends.

        Raises:
            FileNotFoundError: If there is no report in the folder.
            ValueError: If it cannot be read.
        """
        if not self.path(REPORT).is_file():
            raise FileNotFoundError(
                f"Expected argument `run` to name a folder that ExportReport wrote to, but there is no {REPORT} in "
                f"{os.fspath(self.folder)!r}. Train with that callback, as recipes do, or run `snnreg export` with "
                "output_dir there."
            )
        return Report.load_json(self.path(REPORT))

    def settings(self) -> dict[str, Settings]:
        """Read the settings of export and training, where they are there.

        Raises:
            ValueError: If one of the files cannot be read.
        """
        conversion = None
        if self.path(NETWORK).is_file():
            conversion = read_tensors(self.path(NETWORK), "run").get("conversion", {})
        recipe = next((name for name in (RECIPE, _COMMAND_LINE) if self.path(name).is_file()), None)
        return settings_of(conversion, recipe and self.path(recipe))

    def page_path(self, output: str | os.PathLike[str] | None = None) -> Path:
        """Choose where a page of the run goes, and the picture that may stand beside it.

        Raises:
            ValueError: If that is no name of a page, a file of the run, or something else than a page.
        """
        path = self.path(PAGE) if output is None else Path(output)
        require_page(path)
        own = {*BESIDE, NETWORK, _COMMAND_LINE, *(f"{stem}.json" for stem in RESULTS.values())} - {"report.png"}
        for name in (path, path.with_suffix(".png")):
            if name.name in own and name.resolve().parent == self.folder.resolve():
                raise ValueError(
                    f"Expected argument `output` to name a page beside the run's own files, but "
                    f"{os.fspath(name)!r} is one of them."
                )
        return path

    def write_page(
        self, output: str | os.PathLike[str] | None = None, table: Model | Sequence[Model] | None = None
    ) -> tuple[Path, Contents]:
        """Write the run as a page; give where it is, and what it shows. See :func:`write_page`."""
        contents = self.read()
        target = self.page_path(output)
        shown = contents if table is None else contents.by(table)
        write_text(shown.page(), target)
        return target, shown

    def picture_path(self, page: Path) -> Path:
        """Choose where the picture beside a page goes.

        Raises:
            FileExistsError: If there is something else.
        """
        path = page.with_suffix(".png")
        ours = path.resolve() == self.path("report.png").resolve() or not path.exists() or is_picture(path)
        if not ours:
            raise FileExistsError(f"{os.fspath(path)!r} is there already, and was not drawn by this package.")
        return path


def write_page(
    run: str | os.PathLike[str] | Report,
    path: str | os.PathLike[str] | None = None,
    *,
    table: Model | Sequence[Model] | None = None,
) -> Path:
    """Write a run as one page of HTML that needs nothing else: accuracy, operations and energy, spikes, settings.

    Args:
        run: The folder that :class:`~snnreg_plugins.callbacks.ExportReport` wrote to. Its ``report.json`` is read, and
            where they are there ``raster.json``, ``diagnosis.json`` (if it is of the same network), ``spiking.pt``
            (for the options of the export) and ``report.yaml`` or ``config.yaml``. Or a report.
        path: The page; ``report.html`` in the run's folder if None. It appears when it is complete.
        table: The model of cost that is shown, or several, as of :func:`~snnreg_plugins.report`; those that the report
            showed if None.

    Returns:
        Where the page is.

    Raises:
        FileNotFoundError: If the folder has no ``report.json``.
        ValueError: If one of the files cannot be read, a report comes without a ``path``, ``path`` is no name of
            a page or one of a file that is something else, or there is no such model of cost.

    Example:
        >>> import tempfile, torch
        >>> from snnreg_plugins import to_snntorch
        >>> from snnreg_plugins import report
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
        >>> x, y = torch.rand(100, 2), torch.randint(3, (100,))
        >>> result = report(model, to_snntorch(model, x, timesteps=4), [(x, y)], steps=(1, 2, 4))
        >>> page = write_page(result, Path(tempfile.mkdtemp()) / "report.html")
        >>> page.read_text(encoding="utf-8").splitlines()[0]
        '<!DOCTYPE html>'
    """
    if not isinstance(run, Report):
        return Folder(as_path("run", run)).write_page(path, table)[0]
    if path is None:
        raise ValueError("Expected argument `path` to name the page, as the report is in no folder, but got None.")
    require_page(Path(path))
    contents = Contents("", run, None, None, {})
    write_text((contents if table is None else contents.by(table)).page(), path)
    return Path(path)


def settings_of(conversion: Any, recipe: str | os.PathLike[str] | None) -> dict[str, Settings]:
    """Give the settings of an export and of a training as they are shown.

    Args:
        conversion: Options of the export; None if they are not known.
        recipe: The YAML file of the training; None if there is none.

    Raises:
        ValueError: If that file cannot be read.
    """
    settings: dict[str, Settings] = {}
    if conversion is not None:
        if isinstance(conversion, dict):  # the structure is as long as the network is deep, and no setting
            conversion = {name: value for name, value in conversion.items() if name != "structure"}
        settings["Export (spiking.pt)"] = flat(conversion)
    if recipe is not None:
        settings[f"Training ({Path(recipe).name})"] = flat(read_yaml(recipe, "run", most=None))
    return settings


def require_page(path: Path) -> None:
    """Raise a ValueError unless a page may be written to a path."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(
            f"Expected argument `output` to name a page, such as 'page.html', but got {os.fspath(path)!r}."
        )
    if path.exists() and not is_page(path):
        raise ValueError(
            f"Expected argument `output` to name a new file or a page of a run, but {os.fspath(path)!r} is neither."
        )


def is_page(path: Path) -> bool:
    """Tell whether a file is a page of a run."""
    return path.is_file() and any(heading.encode() in _beginning(path) for heading in HEADINGS)


def is_picture(path: Path) -> bool:
    """Tell whether a file is a picture that this package drew."""
    return path.is_file() and SOFTWARE.encode() in _beginning(path)


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1 << 13)


def write_text(content: str, path: str | os.PathLike[str]) -> None:
    """Write a page; it appears when it is complete."""
    with atomic(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def _fitting(diagnosis: Diagnosis, report: Report) -> Diagnosis | None:
    """Leave out the diagnosis of another network: thresholds tell."""
    thresholds = {layer.name: (layer.threshold_min, layer.threshold_max) for layer in report.layers}
    same = [
        thresholds[layer.name] == (layer.threshold_min, layer.threshold_max)
        for layer in diagnosis.layers
        if layer.name in thresholds
    ]
    return diagnosis if same and all(same) else None
