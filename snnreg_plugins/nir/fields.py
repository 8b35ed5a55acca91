"""Fields of a NIR file: numbers as arrays, and what a file says, each checked as it is read."""

from __future__ import annotations

import json
import keyword
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from snnreg_plugins.nir.hdf5 import NAME
from snnreg_plugins.spiking.early_exit import checked_margins

DTYPES = {str(dtype)[6:]: dtype for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}
# The most values of a tensor of one sample, and of a field: 1 GiB of float32.
ELEMENTS = 2**28
# The most tensors that a sum has.
LEAVES = 1000
LARGEST_INT = 2**31 - 1

Shape: TypeAlias = tuple[int, ...]

# The types of nodes that are written, and read.
_TYPES = {
    "Input", "Output", "Affine", "Conv1d", "Conv2d", "Scale", "SumPool2d", "AvgPool2d", "Flatten", "IF", "LIF"
}  # fmt: skip


def is_module_name(name: str) -> bool:
    """Tell whether a file may name a module so: what it names becomes an attribute, and stands in generated code."""
    parts = name.split(".")
    return all(NAME.fullmatch(part) and not keyword.iskeyword(part) and part[:2] != "__" for part in parts)


def ints(values: Sequence[int]) -> Any:
    """Give integers for a file."""
    return np.array(values, dtype=np.int64)


def array_of(values: Tensor) -> Any:
    """Give values for a file, which knows no bfloat16; all of them are float32 too."""
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).contiguous().numpy()


class Fields:
    """The fields of a node, or its metadata: each is what is asked for, or a ValueError says what is wrong."""

    def __init__(self, values: Any, owner: str) -> None:
        if not isinstance(values, dict):
            raise ValueError(f"{owner} is no group.")
        self.values, self.owner = values, owner

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def _get(self, name: str, kind: type, what: str) -> Any:
        if name not in self.values:
            raise ValueError(f"{self.owner} has no {name!r}.")
        if not isinstance(self.values[name], kind):
            raise ValueError(f"{self.owner} has a {name!r} that is no {what}.")
        return self.values[name]

    def metadata(self) -> Fields:
        return Fields(self._get("metadata", dict, "group"), self.owner)

    def kind(self) -> str:
        """Read the kind of a node of a type that NIR has."""
        if (kind := self.string("type")) not in _TYPES:
            raise ValueError(f"{self.owner} is of type {kind[:200]!r}, but only {sorted(_TYPES)} are read.")
        return self.metadata().string("kind")

    def string(self, name: str) -> str:
        return str(self._get(name, str, "string"))

    def plain(self, name: str) -> dict[str, Any]:
        """Read a dictionary of plain data."""
        try:
            found = json.loads(self.string(name))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.owner} has a {name!r} that is no JSON: {error}") from None
        if not isinstance(found, dict):
            raise ValueError(f"{self.owner} has a {name!r} that is no dictionary.")
        return found

    def margins(self, name: str) -> tuple[float, ...]:
        """Read margins of early exit, which may be infinite."""
        try:
            return checked_margins(json.loads(self.string(name)))
        except (ValueError, RecursionError):
            raise ValueError(f"{self.owner} has {name!r} that are no numbers.") from None

    def array(self, name: str) -> Any:
        return self._get(name, np.ndarray, "array")

    def number(self, name: str) -> float:
        array = self.array(name)
        if array.shape != () or array.dtype != np.float64:
            raise ValueError(
                f"{self.owner} has a {name!r} that is no number, but {array.dtype} of shape {array.shape}."
            )
        return float(array)

    def numbers(self, name: str, least: int = -1) -> list[int]:
        """Read a row of integers."""
        array = self.array(name)
        if array.ndim != 1 or array.dtype != np.int64 or not 0 < array.size <= 2 * LEAVES:
            raise ValueError(f"{self.owner} has a {name!r} that is no row of integers, but of shape {array.shape}.")
        if array.min() < least or array.max() > LARGEST_INT:
            raise ValueError(f"{self.owner} has a {name!r} that is not in {least} to {LARGEST_INT}.")
        return [int(value) for value in array]

    def integer(self, name: str, least: int, most: int = LARGEST_INT) -> int:
        array = self.array(name)
        if array.shape != () or array.dtype != np.int64 or not least <= array <= most:
            what = int(array) if array.shape == () and array.dtype == np.int64 else f"{array.dtype} of {array.shape}"
            raise ValueError(
                f"{self.owner} has a {name!r} of {what}, but it should be an integer in {least} to {most}."
            )
        return int(array)

    def integers(self, name: str, least: int, dims: int) -> tuple[int, ...]:
        """Read one integer for each of ``dims`` dimensions: in one dimension, just an integer."""
        values = [self.integer(name, least)] if dims == 1 and self.array(name).ndim == 0 else self.numbers(name, least)
        if len(values) != dims:
            raise ValueError(f"{self.owner} has a {name!r} of {len(values)} integers, but it should be {dims}.")
        return tuple(values)

    def shape(self, name: str) -> Shape:
        shape = tuple(self.numbers(name, 1))
        if math.prod(shape) > ELEMENTS:
            raise ValueError(f"{self.owner} has a {name!r} of {shape}, which is more than {ELEMENTS} values.")
        return shape

    def tensor(self, name: str, dtype: torch.dtype, dims: int | None = None) -> Tensor:
        """Read a tensor, of the dtype that all have."""
        array, stored = self.array(name), torch.float32 if dtype == torch.bfloat16 else dtype
        values = torch.from_numpy(array.copy())
        if values.dtype != stored or (dims is not None and values.dim() != dims) or not values.numel():
            raise ValueError(f"{self.owner} has a {name!r} of {array.dtype} and shape {array.shape}, which is not fit.")
        return values.to(dtype)
