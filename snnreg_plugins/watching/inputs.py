"""What whole numbers in a model's input are: counts of events, or an image that is multiplied."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from torch import Tensor, nn

from snnreg_plugins._checks import as_flag
from snnreg_plugins.functional.synapses import is_integer_valued


class InputEvents:
    """Tells whether whole numbers that a module reads from the model's input are events.

    Args:
        told: Whether they are, as the user says; None to take them for such, and tell of it.
        on_doubt: What to call as ``on_doubt(owner, largest)`` once for a module that reads some above 1, if nobody said
            what they are.
    """

    def __init__(self, told: bool | None, on_doubt: Callable[[nn.Module, float], None]) -> None:
        self.told = None if told is None else as_flag("input_events", told)
        self.on_doubt = on_doubt
        self._doubted: set[nn.Module] = set()

    def are_multiplied(self, owner: nn.Module, x: Tensor) -> bool:
        """Tell whether a module multiplies what it reads, even where it is whole numbers."""
        if self.told is None and owner not in self._doubted and x.numel() and is_integer_valued(x):
            largest = float(x.detach().abs().amax())
            if largest > 1:
                self._doubted.add(owner)
                self.on_doubt(owner, largest)
        return self.told is False


def warn_of_whole_numbers(who: str, name: str, largest: float) -> None:
    """Warn that a layer reads whole numbers above 1 from a model's input, and say what to do."""
    warnings.warn(
        f"{who} takes the whole numbers, up to {largest:g}, that {name!r} reads from the model's input for counts of "
        "events. Pass input_events=True if they are, and input_events=False if they are an image or other values, "
        "which cost MACs.",
        stacklevel=2,
    )


def is_binary(x: Tensor) -> bool:
    """Tell whether all of a tensor is 0 or 1, which nothing has to be multiplied by."""
    return bool(((x == 0) | (x == 1)).all())
