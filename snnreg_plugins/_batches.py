"""Input tensors out of whatever gives batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

#: A tensor of inputs, or any iterable of batches or (input, target) pairs, such as a DataLoader.
Calibration: TypeAlias = Tensor | Iterable[Any]
CHUNK = 256


def batches(calibration: Calibration, device: torch.device | str) -> Iterator[Tensor]:
    """Walk the input tensors of calibration data; empty ones are left out.

    Raises:
        TypeError: If it gives something else than tensors, or tuples or lists that start with one.
    """
    expected = "Expected argument `calibration` to be a tensor, or to give tensors or (input, target) pairs, but got"
    data: Any = calibration
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        raise TypeError(f"{expected} a dataset, which gives single samples. Wrap it in a DataLoader.")
    if not isinstance(data, Iterable) or (isinstance(data, Tensor) and data.dim() == 0):
        raise TypeError(f"{expected} {data!r}.")
    if isinstance(data, Tensor):
        data = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    for batch in data:
        inputs = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
        if not isinstance(inputs, Tensor):
            raise TypeError(f"{expected} a batch of type {type(inputs).__name__}.")
        if inputs.dim() == 0:
            raise TypeError(f"{expected} a batch that is a single number.")
        if len(inputs):
            yield inputs.to(device)
