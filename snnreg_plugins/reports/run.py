"""The folder of a run as it is written."""

from __future__ import annotations

import os
import shutil

from snnreg_plugins._files import atomic, read_tensors
from snnreg_plugins.export.files import save_network
from snnreg_plugins.nir.files import to_nir
from snnreg_plugins.reports.folder import (
    BESIDE,
    NETWORK,
    NIR,
    PAGE,
    RECIPE,
    RESULTS,
    Contents,
    Folder,
    is_page,
    write_text,
)
from snnreg_plugins.reports.result import Result
from snnreg_plugins.spiking.network import SpikingNetwork


class Run(Folder):
    """The folder of a run, to be written. Nothing in it is written over or deleted that is not of a run.

    Args:
        folder: The folder; it is made when it is first written to.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__(folder)
        #: Files that were written.
        self.written: list[str] = []

    def claim(self, diagnosed: bool = True, html: bool = True, saving: bool = False) -> None:
        """Check that the folder can be written to, and that nothing in it is lost by it.

        Args:
            diagnosed: Whether a diagnosis will be written.
            html: Whether a page will be.
            saving: Whether ways to save will be.

        Raises:
            ValueError: If a file of such a name is there that no run wrote.
            OSError: If the folder cannot be written to.
        """
        names = [NETWORK, NIR, "report.json", "report.png"]
        names += ["diagnosis.json", "diagnosis.png"] if diagnosed else []
        names += [PAGE, "raster.json", RECIPE] if html else []
        names += ["savings.json", "savings.png"] if saving else []
        for name in names:
            if self.path(name).exists() and not self._is_ours(name):
                raise ValueError(
                    f"Expected argument `output_dir` to name a new folder or that of an earlier run, but "
                    f"{os.fspath(self.path(name))!r} is of none. Move it away or write to another folder."
                )
        there = next(path for path in (self.folder.absolute(), *self.folder.absolute().parents) if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise OSError(
                f"Expected argument `output_dir` to name a folder to write to, but {os.fspath(there)!r} is none."
            )

    def _is_ours(self, name: str) -> bool:
        """Tell whether a file is of a run, by what it holds or by what is beside it."""
        path = self.path(name)
        if name in BESIDE:
            return self._is_ours(BESIDE[name])
        try:
            if name == NETWORK:
                return "conversion" in read_tensors(path, "run")
            if name == PAGE:
                return is_page(path)
            kind = next(kind for kind, stem in RESULTS.items() if name == f"{stem}.json")
            kind.load_json(path)
        except (ValueError, OSError):
            return False
        return True

    def save_network(self, network: SpikingNetwork) -> list[str]:
        """Write the network; give the file's name. What an earlier run found of another network goes."""
        earlier = self._earlier()  # told before, as some files are known by the network beside them
        save_network(network, self.path(NETWORK))
        self.written.append(NETWORK)
        for name in earlier:
            self.path(name).unlink()
        return [NETWORK]

    def clear(self) -> None:
        """Take away what an earlier run wrote, and found of another network."""
        for name in [*self._earlier(), *([NETWORK] if self._is_ours(NETWORK) else [])]:
            self.path(name).unlink()

    def _earlier(self) -> list[str]:
        """Name the files that an earlier run wrote beside its network."""
        others = [*BESIDE, PAGE, *(f"{stem}.json" for stem in RESULTS.values())]
        return [name for name in others if self.path(name).is_file() and self._is_ours(name)]

    def save_nir(self, network: SpikingNetwork) -> list[str]:
        """Write the network as NIR; give the file's name.

        Raises:
            ImportError: If NIR is not installed.
            ConversionError: If NIR cannot express the network.
        """
        to_nir(network, self.path(NIR))
        self.written.append(NIR)
        return [NIR]

    def save(self, result: Result) -> list[str]:
        """Write a result's numbers; give the file's name."""
        name = f"{RESULTS[type(result)]}.json"
        result.save_json(self.path(name))
        self.written.append(name)
        return [name]

    def draw(self, result: Result) -> list[str]:
        """Write a result's picture; give the file's name.

        Raises:
            ModuleNotFoundError: If matplotlib is missing.
        """
        name = f"{RESULTS[type(result)]}.png"
        result.save_plot(self.path(name))
        self.written.append(name)
        return [name]

    def save_recipe(self, recipe: str | os.PathLike[str]) -> list[str]:
        """Copy the settings of a training; give the file's name."""
        with atomic(self.path(RECIPE)) as temporary:
            shutil.copyfile(recipe, temporary)
        return [RECIPE]

    def save_page(self, contents: Contents) -> list[str]:
        """Write the page; give the file's name."""
        write_text(contents.page(), self.path(PAGE))
        self.written.append(PAGE)
        return [PAGE]
