"""Events times a constant, and averages of events, known by their memory, and what gives the events back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from snnreg_plugins.functional.synapses import is_integer_valued
from snnreg_plugins.watching.samples import Identity, identities

# Entries above which those of memory that is gone are looked for; else that would take longer than what it saves.
_MANY = 64


class Multiple(NamedTuple):
    """How a tensor is made of events.

    Args:
        factor: What its values are multiplied by to give events; None where each value that is not 0 is one event,
            whatever it amounts to; 0 where that is not known, as in a sum of several scales.
        hidden: Whether no module made it, so that only a close look finds it.
    """

    factor: float | None
    hidden: bool

    def times(self, number: float) -> Multiple:
        """Describe the product with a number that is not 0."""
        return self._replace(factor=self.factor / abs(number) if self.factor else self.factor)


class Multiples:
    """Tensors that are made of events, each known by its memory until that is gone or written to."""

    def __init__(self) -> None:
        self._known: dict[Identity, Multiple] = {}
        self._many = _MANY

    def __len__(self) -> int:
        return len(self._known)

    def remember(self, memory: Iterable[Identity], how: Multiple) -> None:
        """Remember how what is in some memory is made of events."""
        if len(self._known) > self._many:
            self._known = {identity: how for identity, how in self._known.items() if not identity[0].expired()}
            self._many = max(_MANY, 2 * len(self._known))
        self._known.update(dict.fromkeys(memory, how))

    def remember_average(self, x: Tensor, output: Tensor, size: int | None, hidden: bool) -> bool:
        """Remember that ``output`` is the mean of ``size`` positions of ``x``, if that is made of events.

        Returns:
            False if the size is None, which is not known how to undo.
        """
        before = self.find(x) or Multiple(1.0, False)
        if before.factor == 1 and not is_integer_valued(x):
            return True
        if before.factor is None or size is None:
            self.remember(identities(output), Multiple(0.0, True))
            return False
        if size > 1 or before.factor != 1:
            how = Multiple(size * before.factor, hidden or (before.hidden and before.factor != 1))
            self.remember(identities(output), how)
        return True

    def find(self, x: Tensor) -> Multiple | None:
        """Tell what is known about a tensor."""
        for identity in identities(x) if self._known else ():
            return self._known.get(identity)
        return None

    def forget(self, memory: Iterable[Identity]) -> None:
        """Forget what is written to: inference mode keeps no count of that."""
        for identity in memory:
            self._known.pop(identity, None)

    def forget_hidden(self) -> None:
        """Forget what only a close look finds."""
        self._known = {identity: how for identity, how in self._known.items() if not how.hidden}

    def events(self, x: Tensor) -> Tensor:
        """Return the events that ``x`` is made of; ``x`` itself where it is not, or not any more."""
        known = self.find(x)
        return x if known is None else events_in(x.detach(), known.factor)

    def doubt(self, x: Tensor, how: Multiple | None, spiking: bool) -> str | None:
        """Tell why an input that counts as MACs may be made of events; None if nothing speaks for it.

        Args:
            x: The input.
            how: What is known about it.
            spiking: Whether there are neurons that give events.
        """
        if how is not None and how.factor == 0:
            return "sums of events of several scales, as SOPs"
        if how is not None:
            coarse = x.dtype in (torch.float16, torch.bfloat16)
            return f"events that {x.dtype} is too coarse to tell, as SOPs" if coarse else None
        for factor in {how.factor for how in self._known.values() if how.factor} - {1.0}:
            events = x.detach().double() * factor
            if torch.allclose(events, events.round(), rtol=0.0, atol=1e-3):
                return "multiples of events, as SOPs: what was done to them could not be followed"
        one = magnitude_of(x) if spiking else None
        if one is None or int((x != 0).sum()) < 2:
            return None
        return f"its input, all of it 0 or {one:.6g}, as SOPs: it may be spikes times a constant"

    def __getstate__(self) -> dict[str, Any]:
        return {"_known": {}, "_many": _MANY}  # memory is of this process alone


def events_in(x: Tensor, factor: float | None) -> Tensor:
    """Give the whole numbers that ``x`` times a factor is, up to rounding; ``x`` itself where it is no such number.

    Example:
        >>> events_in(torch.tensor([0.0, 0.3, 0.6]), 1 / 0.3).tolist()
        [0.0, 1.0, 2.0]
        >>> events_in(torch.tensor([0.0, 0.2]), 1 / 0.3).tolist() == torch.tensor([0.0, 0.2]).tolist()
        True
    """
    if factor is None:
        return (x != 0).to(x.dtype)
    if factor in (0, 1) or not x.is_floating_point() or not x.numel():
        return x
    scaled = x.float() * factor if x.dtype in (torch.float16, torch.bfloat16) else x * factor
    events = scaled.round()
    off, largest = float((scaled - events).abs().amax()), float(events.abs().amax())
    # A mean or a product is rounded once or twice, relative to its size.
    allowed = max(1e-3, 4 * torch.finfo(x.dtype).eps * largest)
    return events if off <= allowed < 0.25 else x


def magnitude_of(x: Tensor) -> float | None:
    """Give the one absolute value of all that is not 0 in a tensor; None where there are several, or none.

    Example:
        >>> magnitude_of(torch.tensor([0.0, 0.5, -0.5])), magnitude_of(torch.tensor([0.0, 0.5, 1.0]))
        (0.5, None)
    """
    magnitudes = x.detach().abs()
    largest = float(magnitudes.amax()) if x.numel() else 0.0
    return largest if largest > 0 and bool(((magnitudes == 0) | (magnitudes == largest)).all()) else None
