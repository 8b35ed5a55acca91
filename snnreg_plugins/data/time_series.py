"""Time series: spoken vowels of unequal lengths, and digits read row by row."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from snnreg_plugins._checks import shown
from snnreg_plugins._files import as_path
from snnreg_plugins._imports import needed
from snnreg_plugins.data.base import _ImageData
from snnreg_plugins.data.digits import Digits

# Bytes of a file, and numbers of a data set with its padding; those of JapaneseVowels are a millionth of it.
_LARGEST = 1 << 28
_SOURCE = "https://www.timeseriesclassification.com/description.php?Dataset=JapaneseVowels"


def read_ts(path: Path) -> tuple[Tensor, Tensor]:
    """Read a labelled file of time series in the format ``.ts`` of the UEA archive.

    The format: lines that start with ``#`` are remarks, with ``@`` settings; behind ``@data`` each line is a series:
    its channels between colons, each of numbers between commas, and at the end its label.

    Args:
        path: The file.

    Returns:
        Series ``(N, T, C)``, float32, where rows behind the end of one are NaN; and the places of their labels in the
        list that the file begins with, int64 ``(N,)``.

    Raises:
        ValueError: If it is no such file, is damaged, or too large. Names the line.
    """
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"Expected {path} to hold at most {_LARGEST:,} bytes, but it holds {path.stat().st_size:,}.")
    classes: list[str] = []
    series: list[Tensor] = []
    labels: list[int] = []
    in_data = False
    for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), start=1):
        words = line.split()
        if not words or line.startswith("#"):
            continue
        if not in_data:
            in_data = words[0].lower() == "@data"
            if words[0].lower() == "@classlabel":
                classes = words[2:]
            continue
        *channels, label = line.strip().split(":")
        if label not in classes:
            raise ValueError(
                f"Expected a label of {shown(classes)} at the end of {path}:{number}, but got {shown(label)}."
            )
        labels.append(classes.index(label))
        series.append(_one_series(channels, f"{path}:{number}"))
        if series[-1].shape[1] != series[0].shape[1]:
            raise ValueError(
                f"Expected {series[0].shape[1]} channels in {path}:{number}, as in the first series, but got "
                f"{series[-1].shape[1]}."
            )
    if not series:
        raise ValueError(f"Expected {path} to hold time series behind a line `@data`, but it holds none.")
    longest = max(map(len, series))
    if len(series) * longest * series[0].shape[1] > _LARGEST:
        raise ValueError(f"Expected {path} to hold at most {_LARGEST:,} numbers with its padding, but it holds more.")
    return torch.nn.utils.rnn.pad_sequence(series, batch_first=True, padding_value=math.nan), torch.tensor(labels)


def _one_series(channels: list[str], where: str) -> Tensor:
    """Read the channels of a series: ``(T, C)``."""
    try:
        columns = [[float(number) for number in channel.split(",")] for channel in channels]
    except ValueError as error:
        raise ValueError(f"Expected numbers in {where}, but {error}.") from error
    if len({len(column) for column in columns}) != 1:
        raise ValueError(f"Expected channels of one length in {where}, but got {shown(list(map(len, columns)))}.")
    values = torch.tensor(columns, dtype=torch.float32).T
    if not values.isfinite().all():
        raise ValueError(f"Expected finite numbers in {where}, but got NaN or infinity.")
    return values


class JapaneseVowels(_ImageData):
    """Spoken vowels: 270 training and 370 test utterances of 9 speakers, who are the classes. Nothing is downloaded.

    Batches are ``(series, labels)``: float32 (B, T, 12), twelve coefficients of a linear prediction of the voice in
    each of 7 to 29 steps, and int64 (B,). Rows behind the end of a series are NaN, which :class:`RecurrentNetwork
    <snnreg_plugins.modules.RecurrentNetwork>` takes for no steps, and which make the scores of others NaN. Of the
    270 training series ``validation_size`` are held out, every class in its share.

    The two files ``JapaneseVowels_TRAIN.ts`` and ``JapaneseVowels_TEST.ts`` are read from ``root``, or else from where
    ``aeon`` is installed, which ships them; nothing of it is imported.

    Args:
        root: Folder of the files; that in aeon if None.
        batch_size: Series per batch (per process).
        num_workers: Processes that prepare batches; 0 prepares them in the main process.
        validation_size: Series held out of the 270 training series for validation.
        seed: Seed of the choice of validation series; that of the training order is ``seed_everything``.

    Attributes:
        num_classes: 9.
        num_features: 12.

    Raises:
        ValueError: If an argument is out of range or, when the data is read, a file is damaged.
        FileNotFoundError: On first use of the data, if a file is missing.
        ModuleNotFoundError: On first use of the data, if aeon is missing and no ``root`` is given.

    Source:
        Kudo, Toyama and Shimbo, "Multidimensional curve classification using passing-through regions", Pattern
        Recognition Letters 20, 1999; UCI Machine Learning Repository, https://doi.org/10.24432/C5NS47 (CC BY 4.0).

    Example:
        >>> data = JapaneseVowels(batch_size=32)
        >>> data.num_classes, data.num_features
        (9, 12)
    """

    num_classes = 9
    num_features = 12

    _white = 1

    def __init__(
        self,
        root: str | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        validation_size: int = 54,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, validation_size, seed)
        self.root = None if root is None else as_path("root", root)

    def _load(self, train: bool) -> tuple[Tensor, Tensor]:
        path = self._folder() / f"JapaneseVowels_{'TRAIN' if train else 'TEST'}.ts"
        if not path.is_file():
            raise FileNotFoundError(
                f"JapaneseVowels needs {path}. Get it from {_SOURCE}, and pass its folder as `root`."
            )
        return read_ts(path)

    def _folder(self) -> Path:
        if self.root is not None:
            return self.root
        with needed("JapaneseVowels", "aeon", "snnreg_plugins[time-series]"):
            spec = find_spec("aeon")
            if spec is None or spec.origin is None:
                raise ModuleNotFoundError(name="aeon")
        return Path(spec.origin).parent / "datasets" / "data" / "JapaneseVowels"


class DigitRows(Digits):
    """Handwritten digits, read from top to bottom: series of 8 steps of 8 pixels. Nothing is downloaded.

    As :class:`Digits`, in other batches: ``(series, labels)``, float32 (B, 8, 8) in [0, 1] and int64 (B,).

    Args:
        batch_size: Series per batch (per process).
        num_workers: Processes that prepare batches; 0 prepares them in the main process.
        validation_size: Series held out of the 1,497 training series for validation.
        seed: Seed of the choice of validation series; that of the training order is ``seed_everything``.

    Attributes:
        num_classes: 10.
        num_features: 8.

    Raises:
        ValueError: If an argument is out of range.
        ModuleNotFoundError: On first use of the data, if scikit-learn is missing.

    Example:
        >>> series, labels = next(iter(DigitRows(batch_size=32).train_dataloader()))
        >>> series.shape
        torch.Size([32, 8, 8])
    """

    num_features = 8

    def __init__(self, batch_size: int = 64, num_workers: int = 0, validation_size: int = 300, seed: int = 0) -> None:
        super().__init__(batch_size, num_workers, validation_size, seed)
        del self.image_shape  # these are no images

    def _load(self, train: bool) -> tuple[Tensor, Tensor]:
        images, labels = super()._load(train)
        return images.squeeze(1), labels
