"""Files: written whole or not at all, and read without running code."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import field, fields, is_dataclass
from itertools import chain
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints
from uuid import uuid4

import torch
from torch import Tensor

from snnreg_plugins._checks import shown
from snnreg_plugins._text import why_not

Plain = TypeVar("Plain")

_LATER = "added later"

# Bytes of a YAML file: reading takes seconds for a megabyte.
_LARGEST_YAML = 1 << 18
# Of a file of tensors: values, those counted again that occur again; how deep they are nested; and what tensors may
# claim beside eight times its size, as some are expanded.
_MOST_VALUES, _DEEPEST, _SLACK = 1_000_000, 100, 1 << 28


def make_folder(folder: Path, expected: str) -> None:
    """Make a folder, and those on the way to it, if it is not there.

    Args:
        folder: The folder.
        expected: What is wrong if there is a file in its place.

    Raises:
        FileExistsError: If a file is where the folder should be.
        NotADirectoryError: If one is on the way to it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise type(error)(f"{expected} Move that file away, or write to another folder.") from None


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file so that it appears at ``path`` only when it is complete.

    Folders on the way are made. A link is written through, as by ``open``.

    Args:
        path: Where the file shall be. One that is there already stays as it is until the new one is complete.

    Yields:
        A path in the same folder with the same suffix, to write to.

    Raises:
        OSError: If it names a folder, or a file is where a folder should be.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with atomic(folder / "results" / "scores.csv") as temporary:
        ...     _ = temporary.write_text("epoch,accuracy")
        >>> [file.name for file in (folder / "results").iterdir()]
        ['scores.csv']
    """
    target = as_path("path", path).resolve()
    if target.is_dir():
        raise IsADirectoryError(f"Expected argument `path` to name a file, but {os.fspath(path)!r} is a folder.")
    make_folder(
        target.parent,
        f"Expected argument `path` to name a file in a folder, but got {os.fspath(path)!r}, and on the way to it "
        "is a file where a folder should be.",
    )
    # A name of our own rather than `tempfile`, whose files nobody else may read.
    temporary = target.with_name(f".{uuid4().hex}{target.suffix}")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def as_path(argument: str, value: Any) -> Path:
    """Give a path.

    Args:
        argument: Name of the argument, for the error.
        value: What was given for it.

    Raises:
        TypeError: If it is no path.

    Example:
        >>> as_path("root", None)
        Traceback (most recent call last):
            ...
        TypeError: Expected argument `root` to be a path, but got None.
    """
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise TypeError(f"Expected argument `{argument}` to be a path, but got {shown(value)}.")
    return Path(text)


def require_file(path: str | os.PathLike[str], argument: str, remedy: str = "") -> None:
    """Raise a FileNotFoundError, with a remedy, unless there is a file at ``path``, which an argument named."""
    place = as_path(argument, path)
    if not place.is_file():
        found = f"{os.fspath(path)!r} is none" if place.exists() else f"there is no {os.fspath(path)!r}"
        raise FileNotFoundError(f"Expected argument `{argument}` to name a file, but {found}.{remedy and ' '}{remedy}")


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
    require_file(path, argument)
    try:
        _require_whole(Path(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
        _require_bounded(content, os.path.getsize(path))
        return content
    except pickle.UnpicklingError:
        reason = (
            "it holds more than that, such as hyper-parameters of classes of your own, and running code from a file is "
            f"not safe. If you trust it, write what is plain of it: content = torch.load({os.fspath(path)!r}, "
            "weights_only=False); content.pop('hyper_parameters', None); torch.save(content, 'plain.ckpt')"
        )
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__  # an empty file has no message
    raise _unreadable(path, argument, reason)


def _require_whole(path: Path) -> None:
    """Raise a ValueError unless a file is an archive as ``torch.save`` writes it, undamaged, or one of before 1.6."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            begins = file.read(16)
        if begins[:1] != b"\x80":  # of a pickle
            raise ValueError(f"it is none, or damaged: it begins with {begins!r}." if begins else "it is empty.")
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it is compressed.")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("it claims more bytes than it has.")
        # Of what is marked as a folder, torch.load gives whatever is in the memory.
        if any(entry.external_attr & 0x10 for entry in entries):
            raise ValueError("one of its parts is a folder.")
        # It takes the bytes as they are.
        damaged = archive.testzip() if torch.serialization.get_crc32_options() else None
    if damaged is not None:
        raise ValueError(f"its part {damaged!r} is damaged.")


def _require_bounded(content: Any, size: int) -> None:
    """Raise a ValueError if what was read from a file is more than its bytes can tell: by values that occur again."""
    if _holds_more(content, _MOST_VALUES):
        raise ValueError(f"it holds more than {_MOST_VALUES:,} values, or is nested deeper than {_DEEPEST} times.")
    claimed = sum(value.numel() * value.element_size() for value in _leaves(content) if isinstance(value, Tensor))
    if claimed > 8 * size + _SLACK:
        raise ValueError(f"its tensors claim {claimed:,} bytes, but it has {size:,}.")


def _unreadable(path: str | os.PathLike[str], argument: str, reason: str) -> ValueError:
    return ValueError(
        f"Expected argument `{argument}` to name a file of tensors and plain data as Lightning and this package write, "
        f"but {os.fspath(path)!r} cannot be read: {reason}"
    )


def read_yaml(path: str | os.PathLike[str], argument: str, most: int | None = 10_000) -> Any:
    """Read a small YAML file of plain data.

    Args:
        path: The file.
        argument: The argument that named it, for the error.
        most: How many values it may hold, each as often as it is referred to; None if whoever reads them bounds that.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no YAML, too large, or asks for more than plain data.
    """
    import yaml

    require_file(path, argument)
    try:
        if os.path.getsize(path) > _LARGEST_YAML:
            raise ValueError(f"it is larger than {_LARGEST_YAML:,} bytes.")
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        if most is not None and _holds_more(content, most):
            raise ValueError(f"it holds more than {most:,} values.")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(why_not(error).split())
        raise ValueError(
            f"Expected argument `{argument}` to name a YAML file of plain data, but {os.fspath(path)!r} cannot be "
            f"read: {reason}"
        ) from error
    return content


def _holds_more(content: Any, most: int) -> bool:
    """Tell whether data hold more values, those counted again that occur again, or are nested deeper than is plain."""
    return any(count >= most or depth > _DEEPEST for count, (_, depth) in enumerate(_walk(content)))


def _leaves(content: Any) -> Iterator[Any]:
    return (value for value, _ in _walk(content))


def _walk(content: Any) -> Iterator[tuple[Any, int]]:
    """Walk nested data: each value, and how deep it is."""
    left = [iter([content])]
    while left:
        for value in left[-1]:
            yield value, len(left)
            if isinstance(value, Mapping):
                left.append(chain(value, value.values()))
            elif isinstance(value, (list, tuple, set, frozenset)):
                left.append(iter(value))
            else:
                continue
            break
        else:
            left.pop()


def digest(value: Any) -> str:
    """Give what tells data apart that differ in any number, name or order.

    Args:
        value: Plain data, tensors and arrays of NumPy, nested in dictionaries, lists and tuples.

    Example:
        >>> digest({"a": torch.ones(2), "b": [1, None]}) == digest({"b": [1, None], "a": torch.ones(2)})
        True
        >>> digest(torch.ones(2)) == digest(torch.ones(2, 1))
        False
    """
    if isinstance(value, Mapping):
        parts = ["names", *(part for name in sorted(value) for part in (name, digest(value[name])))]
    elif isinstance(value, (list, tuple)):
        parts = ["parts", *map(digest, value)]
    elif isinstance(value, Tensor):
        values = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        parts = ["numbers", str(value.dtype), str(tuple(value.shape)), hashlib.sha256(values.tobytes()).hexdigest()]
    elif hasattr(value, "tobytes"):
        parts = ["numbers", str(value.dtype), str(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
    else:
        parts = [type(value).__name__, repr(value)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def write_json(path: str | os.PathLike[str], plain: Any, indent: int | None = 2) -> None:
    """Write plain data to a JSON file; it appears when it is complete."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(plain, indent=indent) + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike[str], kind: type[Plain]) -> Plain:
    """Read a dataclass of plain numbers, strings and tuples that was written as JSON; every value is checked.

    Args:
        path: The file.
        kind: The dataclass.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds anything else; fields that the dataclass lacks are ignored, and those it made with
            :func:`added_later` may be missing.

    Example:
        >>> import tempfile
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Score:
        ...     epoch: int
        ...     accuracy: float | None
        >>> path = Path(tempfile.mkdtemp()) / "score.json"
        >>> _ = path.write_text('{"epoch": 3, "accuracy": 0.5}')
        >>> read_json(path, Score)
        Score(epoch=3, accuracy=0.5)
    """
    require_file(path, "path")
    try:
        plain = json.loads(Path(path).read_text(encoding="utf-8"))
        read: Plain = _typed(plain, kind, kind.__name__)
    except (ValueError, RecursionError) as error:
        reason = why_not(error)
        raise ValueError(
            f"Expected {os.fspath(path)!r} to hold a {kind.__name__}, but {reason}. Have it written once more, or name "
            "another one."
        ) from error
    return read


def added_later(default: Any) -> Any:
    """Make a field of a dataclass that files of earlier versions lack.

    Args:
        default: What it is for them.
    """
    return field(default=default, metadata={_LATER: True})


def _typed(value: Any, kind: Any, where: str) -> Any:
    """Check plain data against a type, and make dataclasses and tuples of it."""
    if is_dataclass(kind) and isinstance(value, dict):
        hints = get_type_hints(kind)
        missing = [one.name for one in fields(kind) if one.name not in value and not one.metadata.get(_LATER)]
        if missing:
            raise ValueError(f"{where} lacks {', '.join(missing)}.")
        names = [one.name for one in fields(kind) if one.name in value]
        return kind(**{name: _typed(value[name], hints[name], f"{where}.{name}") for name in names})  # type: ignore[operator]
    if isinstance(kind, UnionType):
        return None if value is None else _typed(value, get_args(kind)[0], where)
    if get_origin(kind) is dict and isinstance(value, dict):
        return {name: _typed(item, get_args(kind)[1], f"{where}[{name!r}]") for name, item in value.items()}
    if get_origin(kind) is tuple and isinstance(value, list):
        return tuple(_typed(item, get_args(kind)[0], f"{where}[{index}]") for index, item in enumerate(value))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**1000 else math.inf
    if type(value) is kind and (kind is not float or math.isfinite(value)):
        return value
    raise ValueError(f"{where} is {value!r:.50}.")
