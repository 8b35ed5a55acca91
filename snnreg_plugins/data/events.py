"""Recordings of event cameras and silicon cochleas as frames of counts, a frame for each time step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from snnreg_plugins._checks import as_flag, as_integer, as_integers, as_number, one_of, shown
from snnreg_plugins.data.base import Batch, PartsData, held_out

#: Events in, events out: an array with the fields x, t, and where there are such, y and p.
Transform: TypeAlias = Callable[[Any], Any]

# Time steps of a recording with `timesteps=None`; more would be a wrong unit of time.
_MOST_STEPS = 10_000


class Recordings(Protocol):
    """Labelled recordings, one behind the other."""

    labels: Tensor  # int64 (N,)
    shape: tuple[int, ...]  # of the sensor: (C, H, W), or (C, W) where events have no y

    def read(self, index: int) -> Any:
        """Give the events of one, as an array with fields."""

    def name(self, index: int) -> str:
        """Tell which it is, for errors."""


class Framing(NamedTuple):
    """How events become frames.

    Args:
        timesteps: T; None for as many windows as a recording has.
        window: Length of a time step, in the recording's unit of time; None for the T-th part of the recording.
        binary: Whether a pixel has one event at most in a step.
        downsample: Pixels in a row, and rows, that become one.
    """

    timesteps: int | None
    window: float | None = None
    binary: bool = False
    downsample: int = 1

    def frame_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Give the shape of a frame of a sensor of a shape."""
        return (shape[0], *(-(-size // self.downsample) for size in shape[1:]))

    def frames(self, events: Any, shape: tuple[int, ...], name: str) -> Tensor:
        r"""Count events by time step, polarity and place.

        Event i belongs to step

        .. math:: \left\lfloor \frac{t_i - t_{\min}}{\text{window}} \right\rfloor, \quad \text{or} \quad
            \min\left(\left\lfloor T \, \frac{t_i - t_{\min}}{t_{\max} - t_{\min}} \right\rfloor, T - 1\right)

        without windows; then none is left out.

        Args:
            events: An array with fields, or a mapping of arrays: x, t, and, where there are such, y and p.
            shape: (C, H, W) of the sensor, or (C, W); with C = 1 all polarities count alike.
            name: Of the recording, for errors.

        Returns:
            Counts, float32 ``(T, C, H, W)`` or ``(T, C, W)``.

        Raises:
            ValueError: If events have no such fields, or lie outside of the sensor.

        Example:
            >>> events = {"x": [0, 1, 1], "y": [0, 0, 0], "t": [5, 6, 25], "p": [1, 0, 0]}
            >>> Framing(timesteps=2).frames(events, (2, 1, 2), "an example").flatten(1)
            tensor([[0., 1., 1., 0.],
                    [0., 1., 0., 0.]])
        """
        columns = _columns(events, shape, name)
        step, steps = self._steps(_times(events, name), name)
        kept = step < steps
        index = step[kept]
        places = [columns[0], *(column // self.downsample for column in columns[1:])]
        sizes = self.frame_shape(shape)
        for place, size in zip(places, sizes, strict=True):
            index = index * size + place[kept]
        counts = np.bincount(index, minlength=steps * int(np.prod(sizes)))
        frames = torch.from_numpy(counts).to(torch.float32).view(steps, *sizes)
        return frames.clamp_max(1) if self.binary else frames

    def _steps(self, times: Any, name: str) -> tuple[Any, int]:
        """Give the time step of each event, and their number."""
        passed = times - times.min(initial=times[0]) if len(times) else times
        last = passed.max(initial=0)
        if self.window is not None:
            step = (passed // self.window).astype(np.int64)
            found = int(last // self.window) + 1
            if self.timesteps is None and found > _MOST_STEPS:
                raise ValueError(
                    f"Expected argument `window` to make at most {_MOST_STEPS} time steps of a recording, but "
                    f"{self.window:g} makes {found} of {name}, which lasts {last:g}. Give it in the same unit."
                )
            return step, found if self.timesteps is None else self.timesteps
        assert self.timesteps is not None, "checked by the datamodule"
        # In whole numbers where times are such.
        share = passed * self.timesteps // last if last > 0 else np.zeros(len(times))
        return np.minimum(share.astype(np.int64), self.timesteps - 1), self.timesteps


def _field(events: Any, field: str, name: str) -> Any:
    """Give a column of events, None if there is none."""
    names = getattr(getattr(events, "dtype", None), "names", None) or (events if isinstance(events, dict) else ())
    if field in names:
        return np.atleast_1d(np.asarray(events[field]))
    if field in "xt":
        raise ValueError(
            f"Expected events with the fields x, t, and, where there are such, y and p, but {name} has "
            f"{shown(list(names)) if len(names) else 'none'}."
        )
    return None


def _times(events: Any, name: str) -> Any:
    times = _field(events, "t", name)
    if not np.isfinite(times).all():
        raise ValueError(f"Expected finite times, but {name} has others.")
    return times if times.dtype.kind == "f" else times.astype(np.int64)


def _columns(events: Any, shape: tuple[int, ...], name: str) -> list[Any]:
    """Give polarity, y and x of each event, as far as a frame has them."""
    x, y, p = (_field(events, field, name) for field in "xyp")
    if (y is None) != (len(shape) == 2):
        wanted = "(C, W), as its events have no y" if y is None else "(C, H, W), as its events have x and y"
        raise ValueError(f"Expected the sensor of {name} to have shape {wanted}, but got {shape}.")
    if p is None or shape[0] == 1:
        p = np.zeros(len(x), np.int64)
    # Polarities are true and false, 1 and 0, or 1 and -1.
    places = {"p": np.maximum(p.astype(np.int64), 0), **({} if y is None else {"y": y}), "x": x}
    for (field, place), size in zip(places.items(), shape, strict=True):
        outside = ~((place >= 0) & (place < size))
        if outside.any():
            raise ValueError(
                f"Expected {field} from 0 to {size - 1} for a sensor of shape {shape}, but {name} has an event with "
                f"{field} = {place[outside][0]}. Give the sensor's own shape."
            )
    return [place.astype(np.int64) for place in places.values()]


class EventData(PartsData):
    """Datamodule of events in frames: what those of files and of tonic's data sets have in common.

    Batches are ``(frames, labels)``. Frames are float32 counts of events, whole numbers, of shape ``(T, B, C, H, W)``
    with ``time_dim=0``, ``(B, T, C, H, W)`` with 1; without H where events have no y. With ``time_dim=None`` they are
    the mean over the steps, ``(B, C, H, W)``: what a DNN is trained on that is exported with a dimension of time.

    A subclass defines :meth:`_open`, and ``prepare_data`` if there is something to download. Events are read when they
    are asked for, by the workers if there are some.
    """

    def __init__(
        self,
        timesteps: int | None,
        window: float | None,
        time_dim: int | None,
        binary: bool,
        downsample: int,
        transform: Transform | None,
        augmentation: Transform | None,
        validation_share: float,
        batch_size: int,
        num_workers: int,
        seed: int,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.timesteps = None if timesteps is None else as_integer("timesteps", timesteps)
        self.window = None if window is None else as_number("window", window, "(0, inf)")
        self.time_dim = None if time_dim is None else one_of("time_dim", time_dim, (0, 1))
        if self.timesteps is None and self.window is None:
            raise ValueError("Expected argument `timesteps` or `window`, or both, but got None for both.")
        if self.timesteps is None and self.time_dim is None:
            raise ValueError(
                "Expected argument `timesteps` to be given with time_dim=None, which takes the mean over the steps, "
                "but got None."
            )
        self.framing = Framing(
            self.timesteps, self.window, as_flag("binary", binary), as_integer("downsample", downsample)
        )
        self.transform = _as_transform("transform", transform)
        self.augmentation = _as_transform("augmentation", augmentation)
        self.validation_share = as_number("validation_share", validation_share, "(0, 1)")
        self._parts: dict[str, _Frames] = {}

    def _open(self, train: bool) -> tuple[Recordings, Tensor]:
        """Give recordings, and which of them are for training, or for testing: indices."""
        raise NotImplementedError

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """(C, H, W) of a frame, or (C, W)."""
        return self._part("train").shape

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return int(self._part("train").recordings.labels.max()) + 1

    def _collate(self) -> Callable[[Any], Any]:
        return partial(_together, self.time_dim)

    def _part(self, name: str) -> _Frames:
        if name not in self._parts:
            recordings, indices = self._open(train=name != "test")
            make = partial(_Frames, recordings, framing=self.framing)
            if name == "test":
                self._parts["test"] = make(indices, transforms=[self.transform])
            else:
                apart = self._share("validation_share", self.validation_share, recordings.labels[indices])
                self._parts["validation"] = make(indices[apart], transforms=[self.transform])
                self._parts["train"] = make(indices[~apart], transforms=[self.transform, self.augmentation])
        return self._parts[name]

    def _share(self, argument: str, share: float, labels: Tensor) -> Tensor:
        """Mask a share of some recordings; at least one is on each side."""
        size = max(1, round(share * len(labels)))
        if size >= len(labels):
            raise ValueError(
                f"Expected argument `{argument}` to leave some of {len(labels)} recordings, but got {share:g}."
            )
        return held_out(labels, size, self.seed)


class _Frames(Dataset[Batch]):
    """Some of the recordings, as frames ``(T, C, H, W)``."""

    def __init__(
        self, recordings: Recordings, indices: Tensor, framing: Framing, transforms: Sequence[Transform | None]
    ) -> None:
        self.recordings, self.indices, self.framing = recordings, indices, framing
        self.transforms = [transform for transform in transforms if transform is not None]
        self.shape = framing.frame_shape(recordings.shape)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Batch:
        number = int(self.indices[index])
        events = self.recordings.read(number)
        for transform in self.transforms:
            events = transform(events)
        frames = self.framing.frames(events, self.recordings.shape, self.recordings.name(number))
        return frames, self.recordings.labels[number]


def _together(time_dim: int | None, samples: Sequence[Batch]) -> Batch:
    """Make a batch; recordings that end before the longest one does get empty frames."""
    frames = torch.nn.utils.rnn.pad_sequence([frames for frames, _ in samples])  # (T, B, ...)
    labels = torch.stack([label for _, label in samples])
    return frames.mean(0) if time_dim is None else frames.movedim(1, 1 - time_dim).contiguous(), labels


def as_shape(value: Any) -> tuple[int, ...]:
    """Give the shape of a sensor.

    Raises:
        ValueError: If it is none.
    """
    shape = as_integers("shape", value, such_as=(2, 34, 34))
    if len(shape) not in (2, 3):
        raise ValueError(f"Expected argument `shape` to be (C, H, W) or (C, W), but got {shape}.")
    return shape


def _as_transform(argument: str, value: Any) -> Transform | None:
    if value is not None and not callable(value):
        raise ValueError(
            f"Expected argument `{argument}` to be a function from events to events or None, but got {shown(value)}."
        )
    return value  # type: ignore[no-any-return]
