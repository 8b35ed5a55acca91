"""Inputs, or inputs with their targets, out of whatever gives batches."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

#: A tensor of inputs, or any iterable of batches or (input, target) pairs, such as a DataLoader.
Calibration: TypeAlias = Tensor | Iterable[Any]
T = TypeVar("T")
CHUNK = 256
_INPUTS = "to be a tensor, or to give tensors or (input, target) pairs"
_PAIRS = "to give (input, target) pairs of tensors, as a DataLoader does"


def inputs_of(
    data: Calibration, device: torch.device | str | None = None, argument: str = "calibration"
) -> Iterator[Tensor]:
    """Walk the inputs of some data, batch by batch; empty batches are left out.

    Args:
        data: A tensor ``(N, ...)``, which is walked in batches of 256, or an iterable of tensors ``(B, ...)``, or of
            tuples or lists that start with one.
        device: Where to bring them, if anywhere.
        argument: Name of the argument, for errors.

    Raises:
        TypeError: At the first batch, if it is or gives something else.

    Example:
        >>> pairs = [(torch.zeros(5, 2), torch.zeros(5)), (torch.zeros(3, 2), torch.zeros(3))]
        >>> [len(inputs) for inputs in inputs_of(pairs)]
        [5, 3]
    """
    expected = f"Expected argument `{argument}` {_INPUTS}, but got"
    if isinstance(data, Tensor) and data.dim():
        _require_batch(data, expected)
        data = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    for batch in _batches(data, expected):
        inputs = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
        if not isinstance(inputs, Tensor):
            raise TypeError(f"{expected} a batch of type {type(inputs).__name__}.{_instead(inputs)}")
        _require_batch(inputs, expected)
        _refuse_sample(batch, expected)
        if len(inputs):
            yield inputs if device is None else inputs.to(device)


def pairs_of(data: Iterable[Any], argument: str = "data") -> Iterator[tuple[Tensor, Tensor]]:
    """Walk inputs with their targets, batch by batch; empty batches are left out.

    Args:
        data: Anything that gives pairs of tensors, as tuples or lists.
        argument: Name of the argument, for errors.

    Raises:
        TypeError: At the first batch, if it gives something else.

    Example:
        >>> pairs = [[torch.zeros(5, 2), torch.zeros(5)]]
        >>> [(inputs.shape, targets.shape) for inputs, targets in pairs_of(pairs)]
        [(torch.Size([5, 2]), torch.Size([5]))]
    """
    expected = f"Expected argument `{argument}` {_PAIRS}, but got"
    for batch in _batches(data, expected):
        if not isinstance(batch, (tuple, list)):
            raise TypeError(f"{expected} a batch of type {type(batch).__name__}.")
        _refuse_sample(batch, expected)
        if len(batch) != 2 or not all(isinstance(part, Tensor) for part in batch):
            raise TypeError(f"{expected} a batch of {', '.join(type(part).__name__ for part in batch) or 'nothing'}.")
        _require_batch(batch[0], expected)
        if len(batch[0]):
            yield batch[0], batch[1]


def number_of_batches(data: Any) -> int | None:
    """Tell how many batches some data gives; None if that is not known before.

    Example:
        >>> number_of_batches(torch.zeros(300, 2)), number_of_batches(iter("abc"))
        (2, None)
    """
    if isinstance(data, Tensor):
        return -(-len(data) // CHUNK) if data.dim() else None
    try:
        return len(data)
    except TypeError:  # also of loaders that have a length, of data that have none
        return None


def mean_frame(inputs: Tensor, time_dim: int | None, dtype: torch.dtype) -> Tensor:
    r"""Give what a DNN sees of inputs with a dimension of time: their mean over the steps.

    .. math:: \bar{x} = \frac{1}{T} \sum_t x_t

    The rates of a spiking network that reads :math:`x_t` in step t follow it.

    Args:
        inputs: Inputs.
        time_dim: Their dimension of time; None if they have none, and stay as they are.
        dtype: Type of the mean.

    Example:
        >>> mean_frame(torch.tensor([[[0, 1]], [[1, 1]]]), 0, torch.float32)  # T = 2, B = 1
        tensor([[0.5000, 1.0000]])
    """
    return inputs if time_dim is None else inputs.to(dtype).mean(time_dim)


def begun(batches: Iterator[T]) -> tuple[T | None, Iterator[T]]:
    """Take a look at the first of some batches.

    Returns:
        The first one, None if there is none; and all of them.

    Example:
        >>> first, batches = begun(iter("abc"))
        >>> first, list(batches)
        ('a', ['a', 'b', 'c'])
    """
    taken = list(islice(batches, 1))
    return (taken[0] if taken else None), chain(taken, batches)


def _require_batch(inputs: Tensor, expected: str) -> None:
    """Refuse a tensor that holds no samples to be computed on."""
    if inputs.dim() == 0:
        raise TypeError(f"{expected} a batch that is a single number.")
    if inputs.layout != torch.strided or inputs.is_quantized or inputs.is_complex():
        raise TypeError(f"{expected} a batch of {inputs.layout} and {inputs.dtype}. Make it one of plain numbers.")
    if inputs.is_meta:
        raise TypeError(f"{expected} a batch on the meta device, which has no values.")


def _refuse_sample(batch: Any, expected: str) -> None:
    """Refuse one sample with its target, as a dataset gives them."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not isinstance(batch[0], Tensor):
        return
    single = isinstance(batch[1], (int, float)) or getattr(batch[1], "ndim", None) == 0
    if single and batch[0].dim():
        raise TypeError(f"{expected} a single sample with its target. Wrap the data in a DataLoader.")


def _instead(inputs: Any) -> str:
    """Say what to pass for batches of another type; nothing, where that is not known."""
    if isinstance(inputs, Mapping):
        return f" Take the inputs out of them: (batch[{next(iter(inputs), 'x')!r}] for batch in data)."
    if hasattr(inputs, "__array__"):
        return " Make tensors of it: torch.as_tensor(batch)."
    return ""


def _batches(data: Any, expected: str) -> Iterable[Any]:
    """Refuse what gives no batches."""
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        raise TypeError(f"{expected} a dataset, which gives single samples. Wrap it in a DataLoader.")
    if hasattr(data, "train_dataloader"):
        raise TypeError(
            f"{expected} {type(data).__name__}, which is no loader itself: pass its `train_dataloader()` or "
            "`test_dataloader()`."
        )
    single = isinstance(data, Tensor) and data.dim() == 0
    if single or isinstance(data, (str, bytes, Mapping)) or not isinstance(data, Iterable):
        raise TypeError(f"{expected} {reprlib.repr(data)}.")
    # Two batches have as many dimensions; images and their labels have not.
    parts = list(data) if isinstance(data, (tuple, list)) and len(data) == 2 else []
    if all(isinstance(part, Tensor) for part in parts) and len({part.dim() for part in parts}) == 2:
        raise TypeError(
            f"{expected} tensors of {parts[0].dim()} and {parts[1].dim()} dimensions. If they are inputs and their "
            "targets, pass [(inputs, targets)]."
        )
    return data
