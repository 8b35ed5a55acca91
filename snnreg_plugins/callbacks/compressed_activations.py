"""Keep in few bits what the backward pass needs: spikes in one."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from hashlib import blake2b
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from snnreg_plugins._checks import as_integer, one_of
from snnreg_plugins.training.compression import BITS, Bits, Savings, compressed_activations


class CompressedActivations(Callback):
    r"""Keep what the backward pass of a training step needs in few bits, so that more time steps fit into memory.

    Back-propagation through time keeps every spike of every time step as a float of 32 bits. With this callback

    - zeros and ones take 1 bit, and small whole numbers 2, 4 or 8: spikes, spikes weighted with one factor or behind
      dropout, spikes summed by pooling or averaged over 2×2, masks of bool. They come back to the bit;
    - integers, such as the indices of max pooling, take the fewest of 8, 16 and 32 bits that hold them exactly;
    - other floating tensors, such as membrane potentials, take ``bits``: 32 leaves them as they are; 16 rounds them
      to bfloat16, with a relative error of at most :math:`2^{-8}` (in its range, 1.2e-38 to 3.3e38); 8 rounds each to
      one of 256 values between the least and the greatest of its block of 1024 elements, with an absolute error of at
      most :math:`(\max - \min) / 510`; 4 and 2 round each up or down to one of 16 or 4 values between the least and
      the greatest of its group of 256, at random so that the mean is right. Where zeros are many, or nothing is
      negative, as behind a ReLU, which elements are 0 is kept in one bit each, and the others alone in ``bits``;
    - parameters and buffers of the module, casts and views of its trained parameters, tensors of less than
      ``min_numel`` elements, views with gaps in memory, and tensors with NaN or infinity (at 8 bits and fewer) stay
      as they are.

    With ``bits=32`` gradients are bit for bit those without the callback. Below, forward passes and the loss still are;
    gradients are those of the rounded tensors. Note that the derivative of a ReLU is read from its saved output: what
    is rounded to 0, less than 1/510 of its block's greatest at 8 bits, gets none. At 4 and 2 bits nothing is rounded
    to 0 there, and the gradient is right on average: :math:`\mathrm{E}[\hat g] = g` wherever the backward pass is
    linear in each tensor that it reads, as that of linear layers, ReLU, products and pools is (as ActNN does it: Chen
    et al. 2021, ActNN: reducing training memory footprint via 2-bit activation compressed training). Neurons of an
    exported network, and surrogates of this package, keep the derivative of the surrogate there in place of the
    potential, and which neurons fired, so that their gradients are right on average, too, with noise of about 10 % at
    4 bits and 50 % at 2 for a small network. Of other surrogates, batch norm, softmax and other curved functions a bias
    remains, of second order in the rounding; prefer 8 bits there.

    What is drawn depends on torch's seed at the start of the fit (:func:`lightning.seed_everything`), the process, and
    the number of the step, and is in the checkpoint: runs are reproducible, also if they are resumed, processes of DDP
    draw apart, and torch's own random numbers are what they are without the callback.

    Works with automatic and manual optimization, gradient accumulation, mixed precision, checkpointing (what happens
    within a checkpointed region is left to it), DDP, and derivatives of higher order. Of a network under
    ``torch.compile`` it compresses what the compiled region hands to its backward pass; the compiler recomputes and
    fuses, so that may be little. Casts of weights made within the region count as activations, and so do casts of
    frozen weights and weights computed from several parameters.
    Validation, test and prediction are not touched. FSDP and DeepSpeed have not been tried.

    A tensor that is kept in few bits is a copy: changing the original in place is allowed then, where autograd would
    raise an error. Changes that autograd is not told of (``x.data``, NumPy) between two operations that save the
    same tensor are not seen. On a GPU, the host waits once for each tensor that is saved (twice at 8 bits, up to four
    times below), so the step cannot be captured as a CUDA graph. On a CPU, small pieces in the gaps of large ones can
    keep the C library from giving memory back; with glibc, the environment variable ``MALLOC_MMAP_THRESHOLD_=65536``
    prevents it.

    Args:
        bits: Of floating tensors that are not whole numbers: 32, 16, 8, 4 or 2.
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

    def __init__(self, bits: Bits = 32, min_numel: int = 1024) -> None:
        self.bits: Bits = one_of("bits", bits, BITS)
        self.min_numel = as_integer("min_numel", min_numel)
        self._seed, self._steps = 0, 0  # of the fit; steps that were taken in it
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
    def state_dict(self) -> dict[str, Any]:
        return {"seed": self._seed, "steps": self._steps}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seed, self._steps = state_dict["seed"], state_dict["steps"]

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._seed, self._steps = torch.initial_seed(), 0  # a checkpoint's are read later

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._savings = Savings()

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
            seed = _mixed(self._seed, trainer.global_rank, self._steps)
            self._steps += 1
            with compressed_activations(self.bits, self.min_numel, pl_module, seed) as self._savings:
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


def _mixed(*numbers: int) -> int:
    """Give one number that looks like any, and is the same for the same ones."""
    digest = blake2b(" ".join(map(str, numbers)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")
