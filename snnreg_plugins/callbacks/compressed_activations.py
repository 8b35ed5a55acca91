"""Keep in few bits what the backward pass needs: spikes in one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any, Literal
from weakref import WeakValueDictionary

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, UntypedStorage, nn
from torch.autograd.graph import Node, saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from typing_extensions import override

from snnreg_plugins.functional.bits import dequantize, pack_bits, quantize, unpack_bits, whole_codes

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.int16, torch.int32, torch.int64)


class CompressedActivations(Callback):
    r"""Keep what the backward pass of a training step needs in few bits, so that more time steps fit into memory.

    Back-propagation through time keeps every spike of every time step as a float of 32 bits. With this callback

    - zeros and ones take 1 bit, and small whole numbers 2, 4 or 8: spikes, spikes weighted with one factor or behind
      dropout, spikes summed by pooling or averaged over 2×2, masks of bool. They come back to the bit;
    - integers, such as the indices of max pooling, take the fewest of 8, 16 and 32 bits that hold them exactly;
    - other floating tensors, such as membrane potentials, take ``bits``: 32 leaves them as they are; 16 rounds them
      to bfloat16, with a relative error of at most :math:`2^{-8}` (in its range, 1.2e-38 to 3.3e38); 8 rounds each to
      one of 256 values between the least and the greatest of its block of 1024 elements, with an absolute error of at
      most :math:`(\max - \min) / 510`;
    - parameters and buffers of the module, casts and views of its trained parameters, tensors of less than
      ``min_numel`` elements, views with gaps in memory, and tensors with NaN or infinity (at 8 bits) stay as they are.

    With ``bits=32`` gradients are bit for bit those without the callback. Below, forward passes and the loss still are;
    gradients are those of the rounded tensors. Note that the derivative of a ReLU is read from its saved output: what
    is rounded to 0, less than 1/510 of its block's greatest at 8 bits, gets none.

    Works with automatic and manual optimization, gradient accumulation, mixed precision, checkpointing (what happens
    within a checkpointed region is left to it), DDP, and derivatives of higher order. Of a network under
    ``torch.compile`` it compresses what the compiled region hands to its backward pass; the compiler recomputes and
    fuses, so that may be little. Casts of weights made within the region count as activations, and so do casts of
    frozen weights and weights computed from several parameters.
    Validation, test and prediction are not touched. FSDP and DeepSpeed have not been tried.

    A tensor that is kept in few bits is a copy: changing the original in place is allowed then, where autograd would
    raise an error. Changes that autograd is not told of (``x.data``, NumPy) between two operations that save the
    same tensor are not seen. On a GPU, the host waits once for each tensor that is saved (twice at 8 bits), so the
    step cannot be captured as a CUDA graph. On a CPU, small pieces in the gaps of large ones can keep the C library
    from giving memory back; with glibc, the environment variable ``MALLOC_MMAP_THRESHOLD_=65536`` prevents it.

    Args:
        bits: Of floating tensors that are not whole numbers: 32, 16 or 8.
        min_numel: Tensors of fewer elements stay as they are.

    Attributes:
        full_bytes: The most that the last training step would have kept at one time without the callback, each tensor
            once, without parameters and buffers.
        stored_bytes: The most that was kept in its place.

    Raises:
        ValueError: If an argument is out of range.
        RuntimeError: In training, where the step uses ``torch.func.grad`` and the like, which do not work with hooks
            on saved tensors; and where a tensor that was kept as it is was changed in place, as without the callback.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> callback = CompressedActivations(bits=16)
        >>> trainer = Trainer(callbacks=[callback], logger=False, enable_checkpointing=False)
    """

    def __init__(self, bits: Literal[32, 16, 8] = 32, min_numel: int = 1024) -> None:
        _check(bits, min_numel)
        self.bits: Literal[32, 16, 8] = bits
        self.min_numel = min_numel
        self._savings = Savings()
        self._wrapper: Callable[..., Any] | None = None  # in place of the module's training_step, for one step
        self._own: Callable[..., Any] | None = None  # what the module had in that place

    @property
    def full_bytes(self) -> int:
        """Bytes that the last training step would have kept for its backward pass."""
        return self._savings.full_bytes

    @property
    def stored_bytes(self) -> int:
        """Bytes that the last training step kept for its backward pass."""
        return self._savings.stored_bytes

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Not at the start of the fit, so that the module can be copied and pickled between two steps.
        if self._wrapper is not None:
            return  # the batch before was skipped
        own = pl_module.__dict__.get("training_step")  # of a module compiled by torch.compile
        step = pl_module.training_step

        @wraps(step)
        def training_step(*args: Any, **kwargs: Any) -> Any:
            if self._wrapper is not training_step:
                return step(*args, **kwargs)
            with compressed_activations(self.bits, self.min_numel, pl_module) as self._savings:
                return step(*args, **kwargs)

        # Lightning looks one function deep for the names of the step's arguments.
        training_step.__wrapped__ = getattr(step, "__wrapped__", step)
        self._wrapper, self._own = training_step, own
        pl_module.__dict__["training_step"] = training_step

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._unwrap(pl_module)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._unwrap(pl_module)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._unwrap(pl_module)

    def _unwrap(self, pl_module: LightningModule) -> None:
        # If another has wrapped the step since, ours stays in the chain, and does nothing.
        if self._wrapper is not None and pl_module.__dict__.get("training_step") is self._wrapper:
            if self._own is None:
                del pl_module.__dict__["training_step"]
            else:
                pl_module.__dict__["training_step"] = self._own
        self._wrapper = self._own = None


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
    bits: Literal[32, 16, 8] = 32, min_numel: int = 1024, module: nn.Module | None = None
) -> Iterator[Savings]:
    """Keep in few bits what operations within the ``with`` save for the backward pass.

    What :class:`CompressedActivations` does in a training step; it says what is kept how. The backward pass may run
    inside or outside.

    Args:
        bits: Of floating tensors that are not whole numbers: 32, 16 or 8.
        min_numel: Tensors of fewer elements stay as they are.
        module: Its parameters and buffers stay as they are. Without one, trained parameters still do.

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
    _check(bits, min_numel)
    packer = _Packer(bits, min_numel, module)
    with saved_tensors_hooks(packer.pack, _unpack):
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
        self._storage = _weakly(storage)
        self._bytes = nbytes, sum(part.nbytes for part in self.parts)
        self._savings = savings
        savings.change(*self._bytes)

    def __del__(self) -> None:
        # Much is let go in the forward pass: what a detached result was computed from.
        if self._savings is not None:
            self._savings.change(-self._bytes[0], -self._bytes[1])


# An entry, and shape and strides of the tensor that lies in it; None if the entry is the tensor itself.
_Packed = tuple[_Entry, tuple[tuple[int, ...], tuple[int, ...]] | None]


class _Packer:
    """Packs tensors within one forward pass."""

    def __init__(self, bits: int, min_numel: int, module: nn.Module | None) -> None:
        self.bits, self.min_numel = bits, min_numel
        self.savings = Savings()
        # Weak: a tensor lives as long as the graph that saved it.
        self._entries: WeakValueDictionary[tuple[Any, ...], _Entry] = WeakValueDictionary()
        owned = [] if module is None else [*module.parameters(), *module.buffers()]
        storages = [tensor.untyped_storage() for tensor in owned if _is_plain(tensor)]
        # With the references held, no other storage gets the address of a buffer that the step exchanges.
        self._owned = {storage._cdata: _weakly(storage) for storage in storages}

    def pack(self, tensor: Tensor) -> _Packed:
        leaf = tensor if tensor._base is None else tensor._base
        if not _is_plain(tensor) or (leaf.is_leaf and leaf.requires_grad):
            return _as_it_is(tensor), None
        storage = tensor.untyped_storage()
        if storage._cdata in self._owned:
            return _as_it_is(tensor), None
        data = tensor.detach()
        flat = _in_memory_order(data)
        geometry = (data.shape, data.stride()) if flat is None else (data.numel(),)
        key = (storage._cdata, data.storage_offset(), data.dtype, data._version, *geometry)
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
        return None


def _unpack(packed: _Packed) -> Tensor:
    entry, geometry = packed
    tensor = entry.tensor()
    # The strides too are what they were: kernels go by them.
    return tensor if geometry is None else tensor.as_strided(*geometry)


def _check(bits: int, min_numel: int) -> None:
    if isinstance(bits, bool) or bits not in (32, 16, 8):
        raise ValueError(f"Expected argument `bits` to be 32, 16 or 8, but got {bits!r}.")
    if isinstance(min_numel, bool) or not isinstance(min_numel, int) or min_numel < 1:
        raise ValueError(f"Expected argument `min_numel` to be an integer of at least 1, but got {min_numel!r}.")


def _weakly(storage: UntypedStorage) -> StorageWeakRef:
    """While this is held, no other storage gets the address; the memory itself is let go."""
    return StorageWeakRef(storage)  # type: ignore[no-untyped-call]


def _is_plain(tensor: Tensor) -> bool:
    """Tell whether a tensor is nothing but its memory, which can be read."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout == torch.strided
        and not (tensor.is_meta or tensor.is_neg() or tensor.is_conj())
    )


def _makes_weight(node: Node | None) -> bool:
    """Tell whether a node works on a leaf alone, as a cast of mixed precision or a transposition does of a weight."""
    while node is not None and node.name() != "torch::autograd::AccumulateGrad":
        node = node.next_functions[0][0] if len(node.next_functions) == 1 else None
    return node is not None


def _as_it_is(tensor: Tensor) -> _Entry:
    """Keep a tensor, and refuse to give it back changed, as autograd does of itself."""
    # Not the tensor, which may hold the graph that holds it; but a leaf, whose data may be exchanged in between.
    kept = tensor if tensor.is_leaf else tensor.detach()
    return _Entry(partial(_unchanged, tensor._version), kept)


def _unchanged(version: int, tensor: Tensor) -> Tensor:
    if tensor._version != version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: "
            f"[{tensor.dtype} {list(tensor.shape)}] is at version {tensor._version}; expected version {version} "
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
