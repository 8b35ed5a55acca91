"""What the backward pass needs, kept in few bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal
from weakref import WeakValueDictionary

import torch
from torch import Tensor, UntypedStorage, nn
from torch.autograd.graph import Node, saved_tensors_hooks

from snnreg_plugins._checks import as_integer, one_of
from snnreg_plugins._torch import hold_address, is_of_leaf, storage_address, version_of, view_base
from snnreg_plugins.frameworks.surrogate import derivatives_kept
from snnreg_plugins.functional.bits import (
    dequantize,
    dequantize_packed,
    pack_bits,
    quantize,
    quantize_at_random,
    unpack_bits,
    whole_codes,
)

Bits = Literal[32, 16, 8, 4, 2]
BITS: tuple[Bits, ...] = (32, 16, 8, 4, 2)
RANDOM: tuple[Bits, ...] = (4, 2)  # rounded at random
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.int16, torch.int32, torch.int64)


class Savings:
    """The most bytes that were kept at one time for the backward pass, each tensor once.

    Attributes:
        full_bytes: As autograd would have kept them, without parameters (and buffers of the module).
        stored_bytes: As they were kept in few bits.
    """

    def __init__(self) -> None:
        self.full_bytes = self.stored_bytes = 0
        self._full = self._stored = 0

    def change(self, full: int, stored: int) -> None:
        """Count what is kept from now on, or no longer if negative."""
        self._full += full
        self._stored += stored
        self.full_bytes = max(self.full_bytes, self._full)
        self.stored_bytes = max(self.stored_bytes, self._stored)

    def __repr__(self) -> str:
        return f"Savings(full_bytes={self.full_bytes}, stored_bytes={self.stored_bytes})"


@contextmanager
def compressed_activations(
    bits: Bits = 32, min_numel: int = 1024, module: nn.Module | None = None, seed: int | None = None
) -> Iterator[Savings]:
    """Keep in few bits what operations within the ``with`` save for the backward pass.

    What :class:`CompressedActivations` does in a training step; it says what is kept how. The backward pass may run
    inside or outside.

    Args:
        bits: Of floating tensors that are not whole numbers: 32, 16, 8, 4 or 2.
        min_numel: Tensors of fewer elements stay as they are.
        module: Its parameters and buffers stay as they are. Without one, trained parameters still do.
        seed: Of the rounding at 4 and 2 bits, another one in each step, and in each process; None draws one number
            from torch's own generator at the start, and nothing within.

    Yields:
        The bytes that are kept, counted up to now.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> spikes = (torch.rand(8, 1024) < 0.1).float()
        >>> weight = torch.randn(4, 1024, requires_grad=True)
        >>> with compressed_activations() as savings:
        ...     loss = nn.functional.linear(spikes, weight).sum()
        >>> savings
        Savings(full_bytes=32768, stored_bytes=1024)
        >>> loss.backward()
        >>> torch.equal(weight.grad, spikes.sum(0).expand(4, -1))
        True
    """
    bits, min_numel = one_of("bits", bits, BITS), as_integer("min_numel", min_numel)
    if seed is not None:
        seed = as_integer("seed", seed, at_least=0)
    elif bits in RANDOM:
        seed = int(torch.randint(2**32, ()))
    packer = Packer(bits, min_numel, module, seed or 0)
    with saved_tensors_hooks(packer.pack, unpack), derivatives_kept(bits in RANDOM):
        yield packer.savings


class _Entry:
    """A piece of memory as it is kept; tensors that share it share the entry."""

    def __init__(self, restore: Callable[..., Tensor], *parts: Tensor) -> None:
        self.restore, self.parts = restore, parts
        self._savings: Savings | None = None

    def tensor(self) -> Tensor:
        return self.restore(*self.parts)

    def share(self, storage: UntypedStorage, nbytes: int, savings: Savings) -> None:
        """Get ready to be found by the address of a storage, and count."""
        self._storage = hold_address(storage)
        self._bytes = nbytes, sum(part.nbytes for part in self.parts)
        self._savings = savings
        savings.change(*self._bytes)

    def __del__(self) -> None:
        # Much is let go in the forward pass: what a detached result was computed from.
        if self._savings is not None:
            self._savings.change(-self._bytes[0], -self._bytes[1])


# An entry, and shape and strides of the tensor that lies in it; None if the entry is the tensor itself.
_Packed = tuple[_Entry, tuple[tuple[int, ...], tuple[int, ...]] | None]


class Packer:
    """Packs tensors within one forward pass."""

    def __init__(self, bits: int, min_numel: int, module: nn.Module | None, seed: int = 0) -> None:
        self.bits, self.min_numel = bits, min_numel
        self.savings = Savings()
        self._seed = seed
        # Of our own: a draw in the midst of a forward pass from that of torch would change what dropout draws, and
        # differ from it where a checkpointed region is computed again.
        self._generators: dict[torch.device, torch.Generator] = {}
        # Weak: a tensor lives as long as the graph that saved it.
        self._entries: WeakValueDictionary[tuple[Any, ...], _Entry] = WeakValueDictionary()
        owned = [] if module is None else [*module.parameters(), *module.buffers()]
        storages = [tensor.untyped_storage() for tensor in owned if _is_plain(tensor)]
        # With the references held, no other storage gets the address of a buffer that the step exchanges.
        self._owned = {storage_address(storage): hold_address(storage) for storage in storages}

    def pack(self, tensor: Tensor) -> _Packed:
        leaf = view_base(tensor)
        if not _is_plain(tensor) or (leaf.is_leaf and leaf.requires_grad):
            return _as_it_is(tensor), None
        storage = tensor.untyped_storage()
        if storage_address(storage) in self._owned:
            return _as_it_is(tensor), None
        data = tensor.detach()
        flat = _in_memory_order(data)
        geometry = (data.shape, data.stride()) if flat is None else (data.numel(),)
        key = (storage_address(storage), data.storage_offset(), data.dtype, version_of(data), *geometry)
        entry = self._entries.get(key)
        if entry is None:
            if flat is not None and len(flat) >= self.min_numel:
                entry = self._compress(flat, tensor.grad_fn)
            entry = entry or _as_it_is(data if flat is None else flat)
            entry.share(storage, data.nbytes, self.savings)
            self._entries[key] = entry
        return entry, None if flat is None else (tuple(data.shape), data.stride())

    def _compress(self, flat: Tensor, node: Node | None) -> _Entry | None:
        """Keep a flat tensor in fewer bits than it has; None if that cannot be done."""
        dtype = flat.dtype
        if dtype == torch.bool:
            return _Entry(partial(_from_bits, 1, len(flat), dtype), pack_bits(flat.view(torch.uint8), 1))
        if dtype in _INTEGERS:
            narrow = _narrow(flat)
            return None if narrow is None else _Entry(partial(_to, dtype), narrow)
        if dtype not in _FLOATS:
            return None
        whole = whole_codes(flat)
        if whole is not None:
            codes, unit, bits = whole
            units = () if unit is None else (unit,)
            packed = codes if bits == 8 else pack_bits(codes.view(torch.uint8), bits)
            return _Entry(partial(_from_bits, bits, len(flat), dtype), packed, *units)
        if self.bits == 32 or _makes_weight(node):
            return None
        if self.bits == 16 and dtype.itemsize > 2:
            return _Entry(partial(_to, dtype), flat.to(torch.bfloat16))
        if self.bits == 8:
            quantized = quantize(flat)
            return None if quantized is None else _Entry(partial(dequantize, dtype=dtype), *quantized)
        return self._round_at_random(flat) if self.bits in RANDOM else None

    def _round_at_random(self, flat: Tensor) -> _Entry | None:
        """Keep which elements are 0 in one bit each, where they are many or a ReLU's, and the others in few."""
        nonzero, least = flat != 0, flat.amin()
        # The derivative of a ReLU is read from its saved result: what is above 0 has to stay there.
        zeros, negative = torch.stack([len(flat) - nonzero.sum(), least < 0]).tolist()
        apart = zeros > (len(flat) / self.bits if negative else 0)
        values = flat[nonzero] if apart else flat
        quantized = quantize_at_random(values, self.bits, self._generator(flat.device))
        if quantized is None:
            return None
        restore = partial(_from_packed, self.bits, len(flat), len(values), flat.dtype)
        return _Entry(restore, *quantized, *([pack_bits(nonzero.view(torch.uint8), 1)] if apart else []))

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]


def unpack(packed: _Packed) -> Tensor:
    """Give the tensor that :meth:`Packer.pack` packed."""
    entry, geometry = packed
    tensor = entry.tensor()
    # The strides too are what they were: kernels go by them.
    return tensor if geometry is None else tensor.as_strided(*geometry)


def _is_plain(tensor: Tensor) -> bool:
    """Tell whether a tensor is nothing but its memory, which can be read."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout == torch.strided
        and not (tensor.is_meta or tensor.is_neg() or tensor.is_conj())
    )


def _makes_weight(node: Node | None) -> bool:
    """Tell whether a node works on a leaf alone, as a cast of mixed precision or a transposition does of a weight."""
    while node is not None and not is_of_leaf(node):
        node = node.next_functions[0][0] if len(node.next_functions) == 1 else None
    return node is not None


def _as_it_is(tensor: Tensor) -> _Entry:
    """Keep a tensor, and refuse to give it back changed, as autograd does of itself."""
    # Not the tensor, which may hold the graph that holds it; but a leaf, whose data may be exchanged in between.
    kept = tensor if tensor.is_leaf else tensor.detach()
    return _Entry(partial(_unchanged, version_of(tensor)), kept)


def _unchanged(version: int, tensor: Tensor) -> Tensor:
    if version_of(tensor) != version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: "
            f"[{tensor.dtype} {list(tensor.shape)}] is at version {version_of(tensor)}; expected version {version} "
            "instead."
        )
    return tensor


def _in_memory_order(tensor: Tensor) -> Tensor | None:
    """A flat view; None of a tensor with gaps or overlaps."""
    if not tensor.is_contiguous():
        tensor = tensor.permute(sorted(range(tensor.dim()), key=tensor.stride, reverse=True))
    return tensor.view(-1) if tensor.is_contiguous() else None


def _narrow(flat: Tensor) -> Tensor | None:
    low, high = torch.stack(flat.aminmax()).tolist()
    for dtype in (torch.uint8, torch.int16, torch.int32):
        info = torch.iinfo(dtype)
        if info.min <= low and high <= info.max:
            return flat.to(dtype) if dtype.itemsize < flat.dtype.itemsize else None
    return None


def _to(dtype: torch.dtype, tensor: Tensor) -> Tensor:
    return tensor.to(dtype)


def _from_bits(bits: int, numel: int, dtype: torch.dtype, packed: Tensor, unit: Tensor | None = None) -> Tensor:
    codes = packed if bits == 8 else unpack_bits(packed, bits, numel)
    if dtype == torch.bool:
        return codes.view(torch.bool)
    values = codes.to(dtype)
    return values if unit is None else values.mul_(unit)


def _from_packed(
    bits: int,
    numel: int,
    held: int,
    dtype: torch.dtype,
    packed: Tensor,
    low: Tensor,
    step: Tensor,
    nonzero: Tensor | None = None,
) -> Tensor:
    values = dequantize_packed(packed, low, step, bits, held, dtype)
    if nonzero is None:
        return values
    return values.new_zeros(numel).masked_scatter_(unpack_bits(nonzero, 1, numel).view(torch.bool), values)
