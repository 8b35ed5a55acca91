"""MNIST and Fashion-MNIST from IDX files, the format in which both are published."""

from __future__ import annotations

import gzip
import math
import zlib
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from snnreg_plugins._checks import as_flag
from snnreg_plugins._files import as_path
from snnreg_plugins._imports import needed
from snnreg_plugins.data.base import _ImageData

_UNSIGNED_BYTE = 0x08  # the IDX code of the element type
# Bytes of a file; those of MNIST have 47 million.
_LARGEST = 1 << 28


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Read an IDX file of unsigned bytes, gzipped or not.

    The format: two zero bytes, the element type, the number of dimensions; the sizes as big-endian 32-bit
    integers; the elements, last dimension fastest.

    Args:
        path: The file.
        dimensions: How many dimensions it has to have: 3 for images, 1 for labels.

    Returns:
        A uint8 tensor with the file's shape.

    Raises:
        ValueError: If the file is no such file, is damaged, or is too short or too long for its header.
    """
    header = 4 + 4 * dimensions
    try:
        with path.open("rb") as raw:
            is_gzip = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            with gzip.open(raw) if is_gzip else nullcontext(raw) as file:
                shape = _shape(path, file.read(header), dimensions)
                # One byte more than there should be, and no more of what a small file may grow to.
                count = math.prod(shape)
                data = file.read(count + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"Expected {path} to be a whole gzip file, but it is damaged: {error}") from error
    if count == 0 or len(data) != count:
        found = f"more than {count}" if len(data) > count else len(data)
        raise ValueError(
            f"Expected {path} to hold at least one element and {count} bytes after its header, as its shape "
            f"{shape} says, but got {found} bytes."
        )
    # A bytearray, because torch warns about memory that cannot be written.
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).reshape(shape)


def _shape(path: Path, header: bytes, dimensions: int) -> tuple[int, ...]:
    """Read the header of an IDX file."""
    magic = bytes([0, 0, _UNSIGNED_BYTE, dimensions])
    if header[:4] != magic:
        raise ValueError(
            f"Expected {path} to be an IDX file of unsigned bytes in {dimensions} dimension(s), which starts "
            f"with {magic.hex(' ')}, but it starts with {header[:4].hex(' ') or 'nothing'}."
        )
    if len(header) < 4 + 4 * dimensions:
        raise ValueError(
            f"Expected {path} to have a header of {4 + 4 * dimensions} bytes, but it holds {len(header)} bytes."
        )
    shape = tuple(int.from_bytes(header[start : start + 4], "big") for start in range(4, len(header), 4))
    if math.prod(shape) > _LARGEST:
        raise ValueError(f"Expected {path} to hold at most {_LARGEST:,} bytes, but its shape is {shape}.")
    return shape


class MNIST(_ImageData):
    """Handwritten digits: 60,000 training and 10,000 test images, grey, 28x28 pixels, in 10 classes.

    Batches are ``(images, labels)``: float32 (B, 1, 28, 28) in [0, 1] and int64 (B,). Of the training images
    ``validation_size`` are held out, every class in its share.

    The four IDX files (``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte``,
    ``t10k-labels-idx1-ubyte``, each gzipped (``.gz``) or not) are read from ``root`` or ``root/MNIST/raw``.
    If they are in neither, torchvision downloads them to the latter.

    Args:
        root: Folder of the data.
        download: Whether to download what is missing; needs torchvision and a network.
        batch_size: Images per batch (per process).
        num_workers: Processes that prepare batches; 0 prepares them in the main process.
        validation_size: Images held out of the training set for validation.
        seed: Seed of the choice of validation images; that of the training order is ``seed_everything``.

    Attributes:
        num_classes: 10.
        image_shape: (1, 28, 28).

    Raises:
        ValueError: If an argument is out of range or, when the data is read, a file is damaged.
        FileNotFoundError: If the data is missing and is not or cannot be downloaded.

    Source:
        LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition",
        Proceedings of the IEEE 86(11), 1998.

    Example:
        >>> from snnreg_plugins.data import MNIST
        >>> data = MNIST(root="data", batch_size=256)
        >>> data.image_shape, data.num_classes
        ((1, 28, 28), 10)
    """

    image_shape = (1, 28, 28)

    #: Name in torchvision, and of torchvision's folder.
    _name = "MNIST"
    #: The package of the operating system that has the files, if there is one, and where it puts them.
    _system_package: str | None = None
    _system_folder: Path | None = None

    def __init__(
        self,
        root: str = "data",
        download: bool = True,
        batch_size: int = 128,
        num_workers: int = 0,
        validation_size: int = 5000,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, validation_size, seed)
        self.root = as_path("root", root)
        self.download = as_flag("download", download)

    def prepare_data(self) -> None:
        """Download the data if it is missing and may be downloaded."""
        if not self.download or self._folder() is not None:
            return
        try:
            with needed(self._name, "torchvision", "snnreg_plugins[vision]"):
                from torchvision import datasets

            getattr(datasets, self._name)(str(self.root), download=True)
        except (ImportError, OSError, RuntimeError) as error:
            raise self._missing(f"\nThe download failed: {error}") from error

    def _load(self, train: bool) -> tuple[Tensor, Tensor]:
        folder = self._folder()
        if folder is None:
            raise self._missing()
        images_file, labels_file = (_path(folder, name) for name in _file_names(train))
        images, labels = read_idx(images_file, dimensions=3), read_idx(labels_file, dimensions=1)
        if images.shape[1:] != self.image_shape[1:]:
            raise ValueError(
                f"Expected {images_file} to hold images of {self.image_shape[1:]} pixels, "
                f"but got {tuple(images.shape[1:])}."
            )
        if len(images) != len(labels):
            raise ValueError(
                f"Expected as many labels as images, but {labels_file} holds {len(labels)} labels "
                f"and {images_file} {len(images)} images."
            )
        if labels.max() >= self.num_classes:
            raise ValueError(
                f"Expected {labels_file} to hold labels from 0 to {self.num_classes - 1}, but got {labels.max()}."
            )
        return images.unsqueeze(1), labels.long()

    def _user_folders(self) -> list[Path]:
        return [self.root, self.root / self._name / "raw"]

    def _folder(self) -> Path | None:
        """Give the first folder that holds all four files, if there is one."""
        for folder in self._user_folders():
            if not _lacking(folder):
                return folder
        # Files in the user's folders, though not all of them, mean data other than the system's.
        untouched = all(_lacking(folder) == _ALL_FILES for folder in self._user_folders())
        if self._system_folder is not None and untouched and not _lacking(self._system_folder):
            return self._system_folder
        return None

    def _missing(self, reason: str = "") -> FileNotFoundError:
        folders = self._user_folders() + ([self._system_folder] if self._system_folder else [])
        searched = "".join(f"\n  {folder.absolute()} lacks {', '.join(_lacking(folder))}" for folder in folders)
        system = f", or `apt-get install {self._system_package}`" if self._system_package else ""
        return FileNotFoundError(
            f"{self._name} needs four IDX files, gzipped or not, in one folder:{searched}\n"
            f"Put them into {self.root.absolute()}{system}, or let `prepare_data` (which the Trainer calls) "
            'download them: download=True, a network and `pip install "snnreg_plugins[vision]"`.' + reason
        )


class FashionMNIST(MNIST):
    """Articles of clothing: 60,000 training and 10,000 test images, grey, 28x28 pixels, in 10 classes.

    Batches are ``(images, labels)``: float32 (B, 1, 28, 28) in [0, 1] and int64 (B,). Of the training images
    ``validation_size`` are held out, every class in its share.

    The four IDX files, named as those of :class:`MNIST`, are read from ``root`` or ``root/FashionMNIST/raw``.
    If neither has any, they are read from where Debian's package ``dataset-fashion-mnist`` puts them; if they
    are not there, torchvision downloads them to ``root/FashionMNIST/raw``.

    Args:
        root: Folder of the data.
        download: Whether to download what is missing; needs torchvision and a network.
        batch_size: Images per batch (per process).
        num_workers: Processes that prepare batches; 0 prepares them in the main process.
        validation_size: Images held out of the training set for validation.
        seed: Seed of the choice of validation images; that of the training order is ``seed_everything``.

    Attributes:
        num_classes: 10.
        image_shape: (1, 28, 28).

    Raises:
        ValueError: If an argument is out of range or, when the data is read, a file is damaged.
        FileNotFoundError: If the data is missing and is not or cannot be downloaded.

    Source:
        Xiao, Rasul and Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning
        algorithms", 2017, https://arxiv.org/abs/1708.07747.

    Example:
        >>> from snnreg_plugins.data import FashionMNIST
        >>> data = FashionMNIST(root="data", batch_size=256)
        >>> data.image_shape, data.num_classes
        ((1, 28, 28), 10)
    """

    _name = "FashionMNIST"
    _system_package = "dataset-fashion-mnist"
    _system_folder = Path("/usr/share/datasets/fashion-mnist")


def _file_names(train: bool) -> list[str]:
    prefix = "train" if train else "t10k"
    return [f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"]


_ALL_FILES = [*_file_names(train=True), *_file_names(train=False)]


def _path(folder: Path, name: str) -> Path:
    """Where file ``name`` is in ``folder``, or would be: as it is, or else gzipped."""
    plain = folder / name
    return plain if plain.is_file() else folder / f"{name}.gz"


def _lacking(folder: Path) -> list[str]:
    """Which of the four files ``folder`` lacks."""
    return [name for name in _ALL_FILES if not _path(folder, name).is_file()]
