"""Event data sets, read and downloaded by tonic."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snnreg_plugins._checks import as_flag, as_number, shown
from snnreg_plugins._files import as_path
from snnreg_plugins._imports import needed
from snnreg_plugins.data.events import EventData, Recordings, Transform, as_shape


class _OfTonic:
    """A data set of tonic, with its labels as numbers."""

    def __init__(self, dataset: Any, shape: tuple[int, ...] | None) -> None:
        self.dataset = dataset
        self.shape: tuple[int, ...] = _shape_of(dataset) if shape is None else shape
        labels = list(getattr(dataset, "targets", ()))
        if len(labels) != len(dataset):  # they stand beside the events
            labels = [dataset[index][1] for index in range(len(dataset))]
        names = sorted(set(labels)) if any(isinstance(label, str) for label in labels) else None
        try:
            numbers = [int(label) if names is None else names.index(label) for label in labels]
        except (TypeError, ValueError):
            raise ValueError(
                f"Expected a data set of tonic with a class for each recording, but the labels of "
                f"{type(dataset).__name__} are such as {shown(labels[0])}."
            ) from None
        self.labels = torch.tensor(numbers, dtype=torch.int64)

    def read(self, index: int) -> Any:
        return self.dataset[index][0]

    def name(self, index: int) -> str:
        return f"recording {index} of {type(self.dataset).__name__}"


class TonicEvents(EventData):
    """A data set of the package tonic: N-MNIST, DVS Gesture, CIFAR10-DVS, Spiking Heidelberg Digits, ...

    Needs tonic, which is under the GPL: ``pip install "snnreg_plugins[events]"``. It is imported when the data is first
    used. Batches, and all other arguments, are as those of :class:`EventFiles`; times are in microseconds. Sets
    without a test set of their own (CIFAR10-DVS, N-Caltech101) are split, every class in its share.

    Args:
        dataset: Name of the class in ``tonic.datasets``, such as ``"NMNIST"``, or such a class of your own.
        root: Folder of the data; tonic puts each set into a folder of its name there.
        download: Whether tonic may download what is missing; needs a network.
        timesteps: T. None for as many windows as the longest recording of a batch has; others get empty frames.
        window: Length of a time step, in µs; what is behind T of them is left out, and shorter recordings get empty
            frames. None for the T-th part of each recording, so that none of its events is.
        time_dim: Dimension of time, 0 or 1; None for the mean over it.
        binary: Whether a pixel has one event at most in a step, so that frames are 0 and 1.
        downsample: Pixels in a row, and rows, whose events are counted together.
        transform: From events to events, before they become frames, such as a transform of tonic.
        augmentation: The same for training alone, after that.
        validation_share: Share of the training recordings that is held out for validation, every class in its share.
        test_share: Share of all recordings that is held out for testing, where the set has no test set.
        shape: (C, H, W) of the sensor, or (C, W), where it is not that of the data set; with C = 1 all polarities count
            alike.
        batch_size: Recordings per batch (per process).
        num_workers: Processes that read and prepare batches; 0 does it in the main process.
        seed: Seed of these choices; that of the training order is ``seed_everything``.
        options: Further arguments of the data set, such as ``{"first_saccade_only": True}`` of N-MNIST.

    Attributes:
        num_classes: Number of classes.
        frame_shape: (C, H, W) of a frame.

    Raises:
        ValueError: If an argument is out of range; on first use of the data, if tonic has no such data set, or it has
            no class for each recording.
        FileNotFoundError: On first use of the data, if it is missing and may not be downloaded.
        ModuleNotFoundError: On first use of the data, if tonic is missing.

    Source:
        Lenz et al., "Tonic: event-based datasets and transformations", `doi:10.5281/zenodo.5079802
        <https://doi.org/10.5281/zenodo.5079802>`_.

    Example:
        >>> from snnreg_plugins.data import TonicEvents
        >>> data = TonicEvents("NMNIST", root="data", timesteps=10, options={"first_saccade_only": True})
    """

    def __init__(
        self,
        dataset: Any,
        root: str = "data",
        download: bool = True,
        timesteps: int | None = 10,
        window: float | None = None,
        time_dim: int | None = 0,
        binary: bool = False,
        downsample: int = 1,
        transform: Transform | None = None,
        augmentation: Transform | None = None,
        validation_share: float = 0.1,
        test_share: float = 0.1,
        shape: Sequence[int] | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
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
        if not isinstance(dataset, (str, type)):
            raise ValueError(
                f'Expected argument `dataset` to be the name of a class in tonic.datasets, such as "NMNIST", or a '
                f"class, but got {shown(dataset)}."
            )
        self.dataset = dataset
        self.root = as_path("root", root)
        self.download = as_flag("download", download)
        self.shape = None if shape is None else as_shape(shape)
        self.test_share = as_number("test_share", test_share, "(0, 1)")
        self.options = dict(options or {})

    def prepare_data(self) -> None:
        """Download the data if it is missing and may be downloaded."""
        if self.download:
            for train in (True, False):
                self._read(train, download=True)

    def _open(self, train: bool) -> tuple[Recordings, Tensor]:
        recordings = _OfTonic(self._read(train, download=False), self.shape)
        if _split_of(self._class(), train):
            return recordings, torch.arange(len(recordings.labels))
        is_test = self._share("test_share", self.test_share, recordings.labels)
        return recordings, (~is_test if train else is_test).nonzero().flatten()

    def _class(self) -> Any:
        if isinstance(self.dataset, type):
            return self.dataset
        with needed("TonicEvents", "tonic and requests", "snnreg_plugins[events]"):
            from tonic import datasets
        kinds = {name: kind for name, kind in vars(datasets).items() if isinstance(kind, type)}
        if self.dataset not in kinds:
            raise ValueError(
                f"Expected argument `dataset` to name a class in tonic.datasets, one of {sorted(kinds)}, but got "
                f"{shown(self.dataset)}."
            )
        return kinds[self.dataset]

    def _read(self, train: bool, download: bool) -> Any:
        kind = self._class()
        options = {"save_to": str(self.root), **_split_of(kind, train), **self.options}
        if download:
            return kind(**options)
        # tonic downloads on its own, into a folder of the class's name.
        dataset = type(kind.__name__, (kind,), {"download": _missing})(**options)
        dataset.__class__ = kind  # that others can pickle
        return dataset


def _shape_of(dataset: Any) -> tuple[int, ...]:
    size = getattr(dataset, "sensor_size", None)
    try:
        width, height, polarities = map(int, size)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(
            f"Expected argument `shape` to be that of a frame, (C, H, W), as {type(dataset).__name__} has no one size "
            "of a sensor, but got None."
        ) from None
    has_y = "y" in (np.dtype(dataset.dtype).names or ())
    return (polarities, height, width) if has_y else (polarities, width)


def _missing(dataset: Any) -> None:
    """Stand in for the download of a data set that is not there."""
    raise FileNotFoundError(
        f"{type(dataset).__name__} is not in {dataset.location_on_system}, or not whole. Put it there as tonic does, "
        "or let `prepare_data` (which the Trainer calls) download it: download=True and a network."
    )


def _split_of(kind: Any, train: bool) -> dict[str, Any]:
    """Give the arguments by which a class of tonic tells training from testing; none if it has no test set."""
    parameters = inspect.signature(kind.__init__).parameters
    if "train" in parameters:
        return {"train": train}
    return {"split": "train" if train else "test"} if "split" in parameters else {}
