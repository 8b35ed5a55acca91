"""Calibration data with a dimension of time: what a DNN sees of it, and whether rates can follow that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from snnreg_plugins._batches import CHUNK, Calibration, inputs_of, mean_frame
from snnreg_plugins.export.refusals import ConversionError
from snnreg_plugins.spiking.network import SpikingNetwork

# What is linear differs by rounding alone: a few units in the last place of the type.
_TOLERANCE, _UNITS = 1e-3, 8
_COMPARED = 64  # samples, at most


class TimeAxis(NamedTuple):
    r"""How calibration data holds time, if it does; batches are ``(B, T, ...)`` from here on.

    The DNN sees the mean of the steps. What stands in front of the first neurons, f, is linear (with a shift), so that
    the mean current of a neuron is that of the DNN:

    .. math:: \frac{1}{T} \sum_t f(x_t) = f(\bar{x}) \qquad \bar{x} = \frac{1}{T} \sum_t x_t

    Args:
        time_dim: Dimension of time in the data; None if there is none.
        timesteps: T.
        dtype: Type of the DNN.
    """

    time_dim: int | None
    timesteps: int
    dtype: torch.dtype

    def walk(self, data: Calibration, device: torch.device) -> Iterator[Tensor]:
        """Walk the inputs of some data, batch by batch, the batch first.

        Raises:
            ValueError: If they hold another number of steps.
        """
        if self.time_dim is None:
            yield from inputs_of(data, device)
            return
        if isinstance(data, Tensor) and data.dim() > 1:
            data = data.split(CHUNK, 1 - self.time_dim)  # type: ignore[no-untyped-call]
        for batch in inputs_of(data, device):
            if batch.dim() < 2 or batch.shape[self.time_dim] != self.timesteps:
                raise ValueError(
                    f"Expected argument `calibration` to hold timesteps={self.timesteps} steps along "
                    f"time_dim={self.time_dim}, but got a batch of shape {tuple(batch.shape)}. Export with `timesteps` "
                    "as the data has them."
                )
            frames = batch.movedim(self.time_dim, 1)
            if len(frames):
                yield frames

    def seen(self, batch: Tensor) -> Tensor:
        """Give what the DNN sees of a batch."""
        return mean_frame(batch, None if self.time_dim is None else 1, self.dtype)

    def frames(self, batch: Tensor) -> list[Tensor] | None:
        """Give what goes into a simulation at each step; None where that is always the same."""
        return None if self.time_dim is None else [frame.to(self.dtype) for frame in batch.unbind(1)]

    def require_linear(self, network: SpikingNetwork, batch: Tensor) -> None:
        """Raise a ConversionError if what stands in front of the first neurons is not linear on some samples."""
        frames = self.frames(batch[:_COMPARED])
        if frames is None:
            return
        of_frames = [network.encoder(frame) for frame in frames]
        for of_mean, *steps in zip(network.encoder(self.seen(batch[:_COMPARED])), *of_frames, strict=True):
            if not isinstance(of_mean, Tensor):
                continue
            expected, found = of_mean.double(), torch.stack(steps).double().mean(0)
            off = float((expected - found).abs().max()) / (float(expected.abs().max()) or 1.0)
            if off > max(_TOLERANCE, _UNITS * torch.finfo(of_mean.dtype).eps):
                raise ConversionError(
                    "Rates follow the mean of an input with a dimension of time only where the layers in front of the "
                    f"first ReLU are linear, but what they make of the mean of the steps is {off:.2g} (of its largest "
                    "value) off the mean of what they make of each. Put max pooling, normalization and the like behind "
                    "the first ReLU, or export without `time_dim` on `x.mean(time_dim)`."
                )
