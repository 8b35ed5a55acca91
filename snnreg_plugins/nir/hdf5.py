"""HDF5 files from strangers: read without following links, and never more memory than the file itself takes."""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np

from snnreg_plugins._files import require_file
from snnreg_plugins._imports import needed

#: Groups and datasets as dictionaries, arrays, strings, and lists of pairs of strings.
Tree = dict[str, Any]


NAME = re.compile(r"[A-Za-z0-9_]{1,200}")


_NUMBERS = tuple(np.dtype(kind) for kind in ("<f2", "<f4", "<f8", "<i8"))


# Far above any network's, and far below what takes long.
_DEPTH, _ENTRIES, _RANK, _CHARACTERS = 5, 200_000, 8, 2**16


_REFERENCE = 16


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[StrictFile]:
    """Open a file to read.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no HDF5 file, or the block raises it; the message names the file.
    """
    require_file(path, "path")
    h5py = import_h5py()
    try:
        with open(path, "rb") as raw:
            _require_length(raw.read(52), os.path.getsize(path))
            with h5py.File(path, "r") as file:
                yield StrictFile(file.id, raw, os.path.getsize(path))
    except (MemoryError, ImportError):
        raise
    except Exception as error:  # h5py raises of all kinds where a file is damaged
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"Expected argument `path` to name a NIR file, but {os.fspath(path)!r}: {reason}") from error


def import_h5py() -> Any:
    """Import h5py, or say how to install it."""
    with needed("A NIR file", "nir and h5py", "snnreg_plugins[nir]"):
        import h5py
    return h5py


def _require_length(header: bytes, size: int) -> None:
    """Raise a ValueError if a file is longer or shorter than it says; HDF5 may search without end where bytes moved."""
    ends = {0: 40, 1: 44, 2: 28, 3: 28}  # where it says so, by version
    if header[:8] != b"\x89HDF\r\n\x1a\n" or header[8] not in ends:
        raise ValueError("it is no HDF5 file.")
    end = ends[header[8]]
    said = int.from_bytes(header[end : end + 8], "little")
    if said != size:
        raise ValueError(f"it holds {size} bytes, but says that it has {said}.")


class StrictFile:
    """A file whose every part is checked before it is read: plain numbers and strings, stored in full, linked once.

    Args:
        root: The file, opened by h5py.
        raw: The file.
        size: Its size in bytes.
    """

    def __init__(self, root: Any, raw: BinaryIO, size: int) -> None:
        self._h5py = import_h5py()
        self._root = self._h5py.h5g.open(root, b"/")
        self._raw, self.size = raw, size
        self._left, self._heap_left = size, size
        self._heaps: dict[int, dict[int, bytes]] = {}
        self._seen: set[int] = set()

    def string(self, *names: str) -> str | None:
        """Read one string ahead of all else; None if it is not there."""
        here = self._root
        for name in names:
            if not isinstance(here, self._h5py.h5g.GroupID) or name.encode() not in here:
                return None
            here = self._open(here, name.encode(), "/".join(names))
        value = self._dataset(here, "/".join(names)) if isinstance(here, self._h5py.h5d.DatasetID) else None
        return value if isinstance(value, str) else None

    def read(self) -> Tree:
        """Read all.

        Raises:
            ValueError: If something is not as it should be; the message names it.
        """
        self._seen.clear()
        return self._group(self._root, "", 0)

    def _open(self, group: Any, name: bytes, where: str) -> Any:
        if group.links.get_info(name).type != self._h5py.h5l.TYPE_HARD:
            raise ValueError(f"{where!r} is a link to elsewhere, which is not followed.")
        return self._h5py.h5o.open(group, name)

    def _group(self, group: Any, path: str, depth: int) -> Tree:
        if depth >= _DEPTH:
            raise ValueError(f"{path!r} is nested deeper than NIR is.")
        if group.get_num_objs() + len(self._seen) > _ENTRIES:
            raise ValueError(f"{path!r} holds more than {_ENTRIES} entries.")
        tree: Tree = {}
        for raw in group:
            name = raw.decode("ascii", "backslashreplace")
            if not NAME.fullmatch(name):
                raise ValueError(f"{name!r} in {path or '/'!r} is no name of letters, digits and underscores.")
            where = f"{path}/{name}".lstrip("/")
            item = self._open(group, raw, where)
            address = self._h5py.h5o.get_info(item).addr
            if address in self._seen:
                raise ValueError(f"{where!r} is linked more than once.")
            self._seen.add(address)
            if isinstance(item, self._h5py.h5g.GroupID):
                tree[name] = self._group(item, where, depth + 1)
            elif isinstance(item, self._h5py.h5d.DatasetID):
                tree[name] = self._dataset(item, where)
            else:
                raise ValueError(f"{where!r} is neither a group nor a dataset.")
        return tree

    def _dataset(self, dataset: Any, where: str) -> Any:
        h5t, h5d, h5s = self._h5py.h5t, self._h5py.h5d, self._h5py.h5s
        how, kind, shape = dataset.get_create_plist(), dataset.get_type(), dataset.shape
        if how.get_layout() not in (h5d.CONTIGUOUS, h5d.COMPACT) or how.get_nfilters() or how.get_external_count():
            raise ValueError(f"{where!r} is compressed, in chunks, virtual or in another file, which is not read.")
        if dataset.get_space().get_simple_extent_type() == h5s.NULL or len(shape) > _RANK:
            raise ValueError(f"{where!r} is empty, or has more than {_RANK} dimensions.")
        text = kind.get_class() == h5t.STRING and kind.is_variable_str()
        # Of a string, the dataset itself holds where in the file it is: a length, an address and a number.
        claimed = math.prod(int(size) for size in shape) * (_REFERENCE if text else kind.get_size())
        stored = dataset.get_storage_size()
        self._left -= claimed
        if claimed != stored or self._left < 0:
            raise ValueError(f"{where!r} claims {claimed} bytes, but the file does not store as many.")
        if kind.get_class() not in (h5t.INTEGER, h5t.FLOAT) and not text:
            raise ValueError(f"{where!r} is neither numbers nor a string.")
        if text:
            return self._strings(dataset.get_offset(), shape, where)
        values = self._h5py.Dataset(dataset)
        if values.dtype not in _NUMBERS:
            raise ValueError(
                f"{where!r} has dtype {values.dtype}, but NIR of this package has float16 to 64 and int64."
            )
        array = np.asarray(values[()])
        if not np.isfinite(array).all():
            raise ValueError(f"{where!r} holds NaN or infinity.")
        return array

    # Strings are taken from the file itself: the HDF5 library does not return from a heap that is damaged.

    def _strings(self, offset: int | None, shape: tuple[int, ...], where: str) -> str | list[tuple[str, str]]:
        if offset is None or (shape != () and (len(shape) != 2 or shape[1] != 2)):
            raise ValueError(f"{where!r} is neither a string nor pairs of strings, but of shape {shape}.")
        size = math.prod(shape) * _REFERENCE
        entries = struct.iter_unpack("<IQI", self._bytes(offset, size))
        found = [self._text(length, address, index, where) for length, address, index in entries]
        return found[0] if shape == () else list(zip(found[::2], found[1::2], strict=True))

    def _text(self, length: int, address: int, index: int, where: str) -> str:
        if length > _CHARACTERS:
            raise ValueError(f"{where!r} is no string of at most {_CHARACTERS} bytes.")
        if address not in self._heaps:
            self._heaps[address] = self._heap(address)
        text = self._heaps[address].get(index, b"")
        if len(text) < length:
            raise ValueError(f"{where!r} is a string that the file does not hold.")
        return text[:length].decode()

    def _heap(self, address: int) -> dict[int, bytes]:
        """Read the strings of a global heap collection, by number."""
        signature, version, size = struct.unpack("<4sB3xQ", self._bytes(address, 16))
        self._heap_left -= size
        if (signature, version) != (b"GCOL", 1) or size < 16 or self._heap_left < 0:
            raise ValueError(f"it has no strings at {address}, where it should.")
        content, found, place = self._bytes(address + 16, size - 16), {}, 0
        while place + 16 <= len(content):
            index, length = struct.unpack_from("<H6xQ", content, place)
            if index == 0:  # the rest is free
                break
            found[index] = content[place + 16 : place + 16 + length]
            place += 16 + (length + 7) // 8 * 8
        return found

    def _bytes(self, offset: int, size: int) -> bytes:
        if offset + size > self.size:
            raise ValueError("it is shorter than it should be.")
        self._raw.seek(offset)
        return self._raw.read(size)
