"""Files: written whole or not at all, and read without running code."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file so that it appears at ``path`` only when it is complete.

    Folders on the way are made. A link is written through, as by ``open``.

    Args:
        path: Where the file shall be. One that is there already stays as it is until the new one is complete.

    Yields:
        A path in the same folder with the same suffix, to write to.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with atomic(folder / "results" / "scores.csv") as temporary:
        ...     _ = temporary.write_text("epoch,accuracy")
        >>> [file.name for file in (folder / "results").iterdir()]
        ['scores.csv']
    """
    target = Path(path).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    # A name of our own rather than `tempfile`, whose files nobody else may read.
    temporary = target.with_name(f".{uuid4().hex}{target.suffix}")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def read_tensors(path: str | os.PathLike[str], argument: str) -> dict[str, Any]:
    """Read a file of tensors and plain data that ``torch.save`` wrote; code in it is not run but refused.

    Args:
        path: The file.
        argument: The argument that named it, for the error.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds anything else, or cannot be read.
    """
    content = _read(path, argument)
    if isinstance(content, dict):
        return content
    raise _unreadable(path, argument, f"it holds a {type(content).__name__}")


def read_batch(path: str | os.PathLike[str], argument: str) -> Tensor:
    """Read a tensor that ``torch.save`` wrote, or the first of a tuple or list such as (inputs, targets).

    Args:
        path: The file.
        argument: The argument that named it, for the error.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds anything else, or cannot be read.
    """
    content = _read(path, argument)
    first = content[0] if isinstance(content, (tuple, list)) and content else content
    if isinstance(first, Tensor):
        return first
    raise _unreadable(path, argument, f"it holds a {type(content).__name__} and not a tensor of samples")


def _read(path: str | os.PathLike[str], argument: str) -> Any:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"Expected argument `{argument}` to name a file, but there is no {os.fspath(path)!r}.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        reason = "it holds more than that, and running code from a file is not safe"
    except Exception as error:
        reason = str(error).splitlines()[0]
    raise _unreadable(path, argument, reason)


def _unreadable(path: str | os.PathLike[str], argument: str, reason: str) -> ValueError:
    return ValueError(
        f"Expected argument `{argument}` to name a file of tensors and plain data as Lightning and this package write, "
        f"but {os.fspath(path)!r} cannot be read: {reason}"
    )


def read_yaml(path: str | os.PathLike[str], argument: str) -> Any:
    """Read a YAML file of plain data.

    Args:
        path: The file.
        argument: The argument that named it, for the error.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no YAML, or asks for more than plain data.
    """
    import yaml

    if not os.path.isfile(path):
        raise FileNotFoundError(f"Expected argument `{argument}` to name a file, but there is no {os.fspath(path)!r}.")
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"Expected argument `{argument}` to name a YAML file of plain data, but {os.fspath(path)!r} cannot be "
            f"read: {reason}"
        ) from error
