"""Recordings of events in files of NumPy, a folder for each class."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snnreg_plugins._files import as_path
from snnreg_plugins.data.events import EventData, Recordings, Transform, as_shape

_SUFFIXES = (".npy", ".npz")
# Bytes that the arrays of a compressed file may have.
_LARGEST = 1 << 30


def read_events(path: Path) -> Any:
    """Read the events of a file, without running code.

    Args:
        path: ``.npy``, an array with the fields x, t and, where there are such, y and p; or ``.npz``, an array for
            each.

    Returns:
        The array, or a dict of arrays.

    Raises:
        ValueError: If it is no such file, is damaged, or too large.
    """
    try:
        if path.suffix == ".npy":
            # Mapped, as a header may claim more than there is.
            return np.array(np.load(path, mmap_mode="r", allow_pickle=False))
        with zipfile.ZipFile(path) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
        if claimed > _LARGEST:
            raise ValueError(f"its arrays have {claimed:,} bytes, more than {_LARGEST:,}")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in ("x", "y", "t", "p") if name in arrays.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"Expected {path} to hold events as NumPy writes them, but cannot read it: {error}") from error


class _Files:
    """The files of one folder, by class."""

    def __init__(self, folder: Path, classes: Sequence[str], shape: tuple[int, ...]) -> None:
        self.shape = shape
        self._files = [(file, label) for label, name in enumerate(classes) for file in _files_in(folder / name)]
        self.labels = torch.tensor([label for _, label in self._files], dtype=torch.int64)

    def read(self, index: int) -> Any:
        return read_events(self._files[index][0])

    def name(self, index: int) -> str:
        return str(self._files[index][0])


class EventFiles(EventData):
    """Events from files of your own: ``root/train/<class>/*.npy`` and ``root/test/<class>/*.npy``, or ``.npz``.

    A file is a recording: an array with the fields x and t, and y and p (polarity: 0 and 1, or -1 and 1) where there
    are such; or an ``.npz`` with an array for each. Classes are the folders of ``root/train``, in their order by name.

    Batches are ``(frames, labels)``. Frames are float32 counts of events, whole numbers, of shape ``(T, B, C, H, W)``
    with ``time_dim=0``, as a :class:`~snnreg_plugins.SpikingNetwork` reads them with ``time_dim=0`` and a loop over
    ``frames`` in snnTorch or Norse; ``(B, T, C, H, W)`` with 1; without H where events have no y. With
    ``time_dim=None`` they are the mean over the steps, ``(B, C, H, W)``: what a DNN is trained on that is then exported
    with ``to_snntorch(..., time_dim=0)``. Metrics count them as events; ``input_events=True`` says so where some are
    above 1.

    Args:
        root: Folder of the data.
        shape: (C, H, W) of the sensor, with C polarities; (C, W) where events have no y. With C = 1 all polarities
            count alike.
        timesteps: T. None for as many windows as the longest recording of a batch has; others get empty frames.
        window: Length of a time step, in the unit of the recordings; what is behind T of them is left out, and shorter
            recordings get empty frames. None for the T-th part of each recording, so that none of its events is.
        time_dim: Dimension of time, 0 or 1; None for the mean over it.
        binary: Whether a pixel has one event at most in a step, so that frames are 0 and 1.
        downsample: Pixels in a row, and rows, whose events are counted together.
        transform: From events to events, before they become frames.
        augmentation: The same for training alone, after that.
        validation_share: Share of the training recordings that is held out for validation, every class in its share.
        batch_size: Recordings per batch (per process).
        num_workers: Processes that read and prepare batches; 0 does it in the main process.
        seed: Seed of the choice of validation recordings; that of the training order is ``seed_everything``.

    Attributes:
        classes: Names of the classes.
        num_classes: Their number.
        frame_shape: (C, H, W) of a frame.

    Raises:
        ValueError: If an argument is out of range; when a recording is read, if it is damaged, or does not fit
            ``shape``.
        FileNotFoundError: On first use of the data, if there is none.

    Example:
        >>> import tempfile
        >>> root, kind = Path(tempfile.mkdtemp()), [("x", "i2"), ("y", "i2"), ("t", "i8"), ("p", "i1")]
        >>> for part, label, file in (part for part in np.ndindex(2, 2, 3)):
        ...     folder = root / ("train", "test")[part] / ("left", "right")[label]
        ...     folder.mkdir(parents=True, exist_ok=True)
        ...     np.save(folder / f"{file}.npy", np.array([(1, 0, 10, 0), (2, 3, 900, 1)], kind))
        >>> data = EventFiles(root, shape=(2, 4, 4), timesteps=5, batch_size=3)
        >>> frames, labels = next(iter(data.test_dataloader()))
        >>> frames.shape, data.classes
        (torch.Size([5, 3, 2, 4, 4]), ['left', 'right'])
    """

    def __init__(
        self,
        root: str | Path,
        shape: Sequence[int],
        timesteps: int | None = 10,
        window: float | None = None,
        time_dim: int | None = 0,
        binary: bool = False,
        downsample: int = 1,
        transform: Transform | None = None,
        augmentation: Transform | None = None,
        validation_share: float = 0.1,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            timesteps,
            window,
            time_dim,
            binary,
            downsample,
            transform,
            augmentation,
            validation_share,
            batch_size,
            num_workers,
            seed,
        )
        self.root = as_path("root", root)
        self.shape = as_shape(shape)

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        folder = self.root / "train"
        names = sorted(part.name for part in folder.iterdir() if part.is_dir()) if folder.is_dir() else []
        if not names:
            raise FileNotFoundError(
                f"EventFiles found no data: expected {folder.absolute()} to hold a folder for each class, with files "
                "of NumPy (.npy, .npz) in it; and a folder `test` of the same beside it."
            )
        return names

    def _open(self, train: bool) -> tuple[Recordings, Tensor]:
        folder = self.root / ("train" if train else "test")
        files = _Files(folder, self.classes, self.shape)
        if not len(files.labels):
            raise FileNotFoundError(
                f"EventFiles found no .npy or .npz file in the folders of {folder.absolute()} that are named as the "
                f"classes are: {self.classes}."
            )
        return files, torch.arange(len(files.labels))


def _files_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES) if folder.is_dir() else []
