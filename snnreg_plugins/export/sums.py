"""A tensor of the DNN as the time step has it: a sum of what its nodes give, each at its scale, and a shift."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from torch import Tensor, fx

#: How far values differ within a sample: not at all, from channel to channel, or from place to place.
Layout: TypeAlias = Literal["one", "channels", "places"]


@dataclass(frozen=True)
class Term:
    """A part of a tensor: ``scale`` times what a node of the time step gives."""

    node: fx.Node
    scale: Tensor  # what one unit (one spike, say) is worth in activation; shaped like two samples
    spikes: bool  # whole numbers of them


@dataclass(frozen=True)
class Sum:
    """A tensor of the DNN, as the time step has it: the sum of its terms, plus ``shift``."""

    terms: tuple[Term, ...]
    shift: Tensor  # shaped like two samples

    def plus(self, other: Sum) -> Sum:
        """Add another sum."""
        return Sum(self.terms + other.terms, self.shift + other.shift)

    def times(self, factor: Any, shift: Any = 0.0) -> Sum:
        """Multiply by a factor, and add a shift."""
        terms = tuple(replace(term, scale=term.scale * factor) for term in self.terms)
        return Sum(terms, self.shift * factor + shift)


def is_one(values: Tensor) -> bool:
    """Tell whether all values are 1."""
    return bool((values == 1).all())


def is_by_channel(values: Tensor, dim: int = 1) -> bool:
    """Tell whether all values of a channel are the same; zeros, where padding put them, stand for any."""
    by_channel = values.movedim(dim, 0).flatten(1)
    return bool(((by_channel == of_channels(values, dim).unsqueeze(1)) | (by_channel == 0)).all())


def of_channels(values: Tensor, dim: int = 1) -> Tensor:
    """Give one value per channel, ``(C,)``: the one that is largest in magnitude."""
    by_channel = values.movedim(dim, 0).flatten(1)
    return by_channel.gather(1, by_channel.abs().argmax(1, keepdim=True)).squeeze(1)


def layout_of(values: Tensor) -> Layout:
    """Find how far values of two equal samples differ."""
    channels = values.movedim(1, 0).flatten(1)
    if not bool((channels == channels[:, :1]).all()):
        return "places"
    return "one" if bool((channels == channels[0, 0]).all()) else "channels"


def compact(values: Tensor, layout: Layout) -> Tensor:
    """Give values of two equal samples as the smallest tensor of a layout that broadcasts over one."""
    if layout == "places":
        return values[0].clone()
    channels = values.movedim(1, 0).flatten(1)
    if layout == "one":
        return channels[0, 0].clone()
    return channels[:, 0].reshape(-1, *[1] * (values.dim() - 2)).clone()
