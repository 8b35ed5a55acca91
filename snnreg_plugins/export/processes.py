"""Calibration data that is spread over processes."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, distributed

if TYPE_CHECKING:
    from snnreg_plugins._batches import Calibration

T = TypeVar("T")


@dataclass(frozen=True)
class Sharded:
    r"""Calibration data of which each process has a share, as from a ``DistributedSampler``.

    Wrapped in it, :func:`~snnreg_plugins.to_snntorch` and :func:`~snnreg_plugins.to_norse` are called by all processes
    of the group, with the same model and options, and all get the network that one process would get from all of the
    data, exactly:

    - activations and inputs are counted such that neither their order nor their split over batches and processes makes
      a difference. It is only the DNN's own forward pass that may round activations differently in a batch of another
      size;
    - where samples are kept to simulate (``correction``, ``"spike_norm"``, ``"auto"``, ``beta`` below 1), they are the
      first ones of all, where sample i of process r of W comes at i W + r, as a ``DistributedSampler`` deals them out;
    - random numbers (``coding="poisson"``) are those of the first process.

    Shares may differ in size and be empty; samples that a ``DistributedSampler`` repeats, to make shares even, count
    twice. An error in one process is raised in all of them. Without an initialized process group, the share is all
    there is.

    Args:
        calibration: The share of this process: a tensor of inputs, or an iterable of batches or (input, target) pairs.
        group: The processes, a ``torch.distributed`` group; all if None.

    Example:
        >>> from snnreg_plugins import to_snntorch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> share = torch.rand(50, 2)
        >>> to_snntorch(model, Sharded(share), timesteps=4)(share).shape
        torch.Size([50, 3])
    """

    calibration: Calibration
    group: Any = None


class Processes:
    """The processes that export together: those of a group, or this one alone.

    Args:
        calibration: What was given as calibration data.
    """

    def __init__(self, calibration: Calibration | Sharded) -> None:
        together = isinstance(calibration, Sharded) and distributed.is_available() and distributed.is_initialized()
        self.group = calibration.group if isinstance(calibration, Sharded) else None
        self.size = distributed.get_world_size(self.group) if together else 1
        self.rank = distributed.get_rank(self.group) if together else 0

    def gather(self, make: Callable[[], T]) -> list[T]:
        """Give what ``make`` returns in each process, by rank; what it raises in one is raised in all.

        Every process has to come here: none would notice in time that another has left with an error.
        """
        if self.size <= 1:
            return [make()]
        value: T | None = None
        error: Exception | None = None
        try:
            value = make()
        except Exception as raised:
            error = raised
        found: list[Any] = [None] * self.size
        mine = value, None if error is None else _portable(error)
        distributed.all_gather_object(found, mine, group=self.group)
        failed = [rank for rank, (_, sent) in enumerate(found) if sent is not None]
        if failed and failed[0] == self.rank and error is not None:
            raise error  # with its traceback
        if failed:
            raise found[failed[0]][1]
        return [value for value, _ in found]

    def sum(self, values: Tensor) -> Tensor:
        """Add up a tensor that has the same shape in each process."""
        return self._reduce(values, "SUM")

    def maximum(self, values: Tensor) -> Tensor:
        """Give the element-wise maximum of a tensor that has the same shape in each process."""
        return self._reduce(values, "MAX")

    def _reduce(self, values: Tensor, operation: str) -> Tensor:
        if self.size <= 1:
            return values
        # The model may be somewhere else than what the group's backend can send from.
        on_cpu = "cpu" in str(distributed.get_backend_config(self.group))
        device = torch.device("cpu") if on_cpu else torch.device("cuda", torch.cuda.current_device())
        reduced = values.to(device, copy=True)
        distributed.all_reduce(reduced, getattr(distributed.ReduceOp, operation), group=self.group)
        return reduced.to(values.device)


def _portable(error: Exception) -> Exception:
    """Give an error that can be sent to another process; where its class cannot, at least its message."""
    try:
        sent: Exception = pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return sent if str(sent) == str(error) else RuntimeError(f"{type(error).__name__}: {error}")
