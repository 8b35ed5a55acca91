"""Where values come from, followed from operation to operation: the model's input, and events times a constant."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from snnreg_plugins import _torch
from snnreg_plugins.watching.multiples import Multiple, Multiples, magnitude_of
from snnreg_plugins.watching.samples import Identity, identities, tensors_in


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Operations by name, without the underscore of those in place. What they give of their first argument:
# whole numbers that tell whether something is so,
_TELLS = _names("gt ge lt le eq ne heaviside sign sgn bernoulli logical_and logical_or logical_xor logical_not")
# zeros, which cost nothing,
_BLANK = _names("zeros zeros_like new_zeros zero")
# its values (of each of a list, too), at their places or others, and zeros,
_KEEPS = _names(
    "clone _to_copy contiguous _reshape_copy reshape _unsafe_view repeat index_select index _unsafe_index gather take "
    "cat stack flip roll pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle constant_pad_nd "
    "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d "
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d "
    "max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices mkldnn_max_pool2d adaptive_max_pool2d "
    "adaptive_max_pool3d amax max relu abs neg im2col unfold"
)
# means of them, which are remembered elsewhere,
_AVERAGES = _names("avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d mean")
# and sums of them, with those of other tensors.
_SUMS = _names("sum cumsum add sub nansum")


class Step(NamedTuple):
    """What one operation makes.

    Args:
        how: How its output is made of events; None if it is not.
        given: Whether it is the model's input.
        target: What it writes to, before that; None for memory of its own.
    """

    how: Multiple | None = None
    given: bool = False
    target: Tensor | None = None


class Origins:
    """Follows, while every operation is seen, which tensors hold events times a constant, and which the model's input.

    Events are what spiking neurons emit and what comparisons give. They stay such when they are copied, picked, padded
    and pooled by their maximum, and when a number or weights scale them; sums at one scale are counts of events. A
    product with any other activity is a real number.

    Args:
        multiples: Where to remember what is made of events.
        is_activity: Tells of a tensor whether it is no weight and no buffer.
        given: The model's input.
    """

    def __init__(self, multiples: Multiples, is_activity: Callable[[Tensor], bool], given: Iterable[Tensor]) -> None:
        self.multiples, self.is_activity = multiples, is_activity
        self._given: set[Identity] = identities(list(given))

    def is_given(self, x: Tensor) -> bool:
        """Tell whether a tensor holds the model's input as it is."""
        return not self._given.isdisjoint(identities(x))

    def before(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Step | None:
        """Tell what an operation is about to make; None for one that is of no interest."""
        packet, target = func.overloadpacket.__name__, args[0] if _torch.writes_to_first(func) else kwargs.get("out")
        name = packet.rstrip("_")
        if name in _TELLS or name in _BLANK:
            step = Step(Multiple(1.0, True))
        elif not (self._given or len(self.multiples)):
            return None
        elif name in _KEEPS:
            step = self._kept(args[0] if isinstance(args[0], (list, tuple)) else args[:1])
        elif name in ("maximum", "where", "masked_fill", "copy"):
            step = self._chosen(name, args)
        elif name in _AVERAGES:
            step = Step(given=self.is_given(args[0]))
        elif name in _SUMS:
            step = Step(self._sum(args, kwargs))
        elif name in ("mul", "div") and len(args) == 2 and not kwargs:
            step = Step(self._product(*args) if name == "mul" else self._scaled(args[0], args[1], divided=True))
        elif name == "native_dropout":
            step = Step(self._scaled(args[0], 1 - args[1], divided=True) if args[2] and args[1] < 1 else None)
        elif target is None:
            return None
        else:
            step = Step()
        if target is None:
            return step
        if target.numel() * target.element_size() == target.untyped_storage().nbytes():
            return step._replace(target=target)
        # Of memory that is written to in part, all is the same only if it was before.
        before = self.multiples.find(target)
        same = before is not None and (name in _BLANK or step.how == before)
        return Step(before if same else None, step.given and self.is_given(target), target)

    def after(self, step: Step, output: Any) -> None:
        """Remember what an operation made."""
        made = list(tensors_in(output))[:1]  # others are indices
        found = identities(made)
        if step.target is not None:
            self.multiples.forget(found)
            self._given -= found
            # The write is counted only when the operation is over, and not at all in inference mode.
            found = {(memory, writes + (not made[0].is_inference())) for memory, writes in found}
        if step.how is not None:
            self.multiples.remember(found, step.how._replace(hidden=True))
        if step.given:
            self._given |= found

    def _kept(self, tensors: Iterable[Any]) -> Step:
        sources = list(tensors_in(tuple(tensors)))
        return Step(self._alike(sources), bool(sources) and all(map(self.is_given, sources)))

    def _chosen(self, name: str, args: tuple[Any, ...]) -> Step:
        if name == "maximum":
            return self._kept(args)
        if name == "copy":
            return self._kept(args[1:2])
        parts = args[1:] if name == "where" else (args[0], args[2])
        return self._kept(part for part in parts if not _is_zero(part))

    def _alike(self, tensors: list[Tensor]) -> Multiple | None:
        """Tell how tensors that are put side by side are made of events."""
        found = [self.multiples.find(x) for x in tensors]
        known = [how for how in found if how is not None]
        if not known or len(known) < len(found):
            return None
        if len({how.factor for how in known}) == 1:
            return known[0]
        return Multiple(None if all(map(self._is_one_each, tensors)) else 0.0, True)

    def _is_one_each(self, x: Tensor) -> bool:
        """Tell whether each value that is not 0 is one event."""
        how = self.multiples.find(x)
        if how is None or how.factor == 0:
            return False
        with _torch.without_modes():
            return how.factor is None or float(self.multiples.events(x).abs().amax()) <= 1

    def _sum(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Multiple | None:
        tensors = [part for part in args[:2] if isinstance(part, Tensor)]
        if kwargs.get("alpha", 1) != 1 or any(isinstance(part, float) for part in args[:2]):
            return None
        found = [self.multiples.find(x) for x in tensors]
        if any(how is None for how in found):
            return None
        with _torch.without_modes():
            factors = {how.factor for x, how in zip(tensors, found, strict=True) if how is not None and x.any()}
        one = factors.pop() if len(factors) == 1 else 1.0 if not factors else None
        return Multiple(0.0 if one is None else one, True)

    def _product(self, first: Any, second: Any) -> Multiple | None:
        if not isinstance(first, Tensor):
            return self._scaled(second, first)
        how, other = self.multiples.find(first), self.multiples.find(second) if isinstance(second, Tensor) else None
        if how is None or other is None:
            return self._scaled(first, second) if how is not None else self._scaled(second, first)
        if how.factor is None or other.factor is None:
            return Multiple(None if self._is_one_each(first) and self._is_one_each(second) else 0.0, True)
        return Multiple(how.factor * other.factor, True)

    def _scaled(self, x: Any, scale: Any, divided: bool = False) -> Multiple | None:
        """Tell how the product with a constant, or the quotient, is made of events."""
        how = self.multiples.find(x) if isinstance(x, Tensor) else None
        if how is None or (isinstance(scale, Tensor) and not self._is_constant(x, scale)):
            return None
        with _torch.without_modes():
            amount = magnitude_of(torch.as_tensor(scale))
            several = amount is None and bool(torch.as_tensor(scale).any())
        if divided and amount == math.inf:
            return Multiple(1.0, True)  # zeros
        if amount is not None:
            return how.times(1 / amount if divided else amount)
        if several:  # one for each channel, say
            return Multiple(None if self._is_one_each(x) else 0.0, True)
        return None if divided else Multiple(1.0, True)  # zeros

    def _is_constant(self, x: Tensor, scale: Tensor) -> bool:
        """Tell whether a factor is the same for all samples, and does not spread activity over weights."""
        spreads = torch.broadcast_shapes(x.shape, scale.shape).numel() > x.numel()  # type: ignore[no-untyped-call]
        return not spreads and (scale.dim() == 0 or not self.is_activity(scale))


def _is_zero(value: Any) -> bool:
    return (isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.dim() == 0)) and not bool(value)
