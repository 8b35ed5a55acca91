"""Weights of few bits while they are trained: rounded where they are read, straight-through gradients behind them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from snnreg_plugins.functional.fewbits import outputs_first, round_weights, straight_through, unit_of
from snnreg_plugins.functional.synapses import TRANSPOSED_CONVOLUTIONS


class Synapse(NamedTuple):
    """A synaptic layer, and which channel each of its outputs is."""

    layer: Any
    channels: Tensor | None  # one for each output; None if they are the layer's own


class FewBits(nn.Module):
    r"""Parametrizes :math:`\hat w = u_c \cdot \mathrm{round}(w / u_c)`, see :mod:`snnreg_plugins.functional.fewbits`.

    The unit of a channel follows from its largest weight, as it is at that moment; its gradient is 0, and that of
    :math:`\hat w` goes to w.

    Args:
        weights: The format.
        bits: Of a weight.
        synapses: The layer first, and behind it others that have channels in common with it.
    """

    def __init__(self, weights: str, bits: int, synapses: tuple[Synapse, ...]) -> None:
        super().__init__()
        self.weights, self.bits = weights, bits
        self.synapses = synapses  # in a tuple, so that they are no modules of this one

    @torch.no_grad()
    def units(self, weight: Tensor) -> Tensor:
        """Give the unit of each output, ``(C_out, 1, ...)``."""
        layer, channels = self.synapses[0]
        largest = _largest(layer, weight)
        if channels is not None:
            channels = channels.to(weight.device)
            count = 1 + max(int(indices.max()) for _, indices in self.synapses if indices is not None)
            every = largest.new_zeros(count).scatter_reduce_(0, channels, largest, "amax")
            for other, indices in self.synapses[1:]:
                assert indices is not None
                every.scatter_reduce_(0, indices.to(weight.device), _largest(other, _latent(other)), "amax")
            largest = every[channels]
        unit = unit_of(largest, self.weights, self.bits)
        return unit.reshape(-1, *[1] * (weight.dim() - 1))

    def forward(self, weight: Tensor) -> Tensor:
        """Round a weight."""
        with torch.no_grad():
            groups, unit = transposed_groups(self.synapses[0].layer), self.units(weight)
            first = outputs_first(weight, groups)
            rounded = outputs_first(unit * round_weights(first, unit, self.weights, self.bits), groups)
        return straight_through(weight, rounded)

    def extra_repr(self) -> str:
        """Show the format."""
        return f"weights={self.weights!r}, bits={self.bits}"


def transposed_groups(layer: Any) -> int | None:
    """Give the groups of a transposed convolution; None for any other layer."""
    return layer.groups if isinstance(layer, TRANSPOSED_CONVOLUTIONS) else None


def _largest(layer: nn.Module, weight: Tensor) -> Tensor:
    return outputs_first(weight.detach(), transposed_groups(layer)).flatten(1).abs().amax(1)


def _latent(layer: Any) -> Tensor:
    """Give the weight of a layer as it is trained."""
    latent: Tensor = layer.parametrizations.weight.original if has_few_bits(layer) else layer.weight
    return latent


def has_few_bits(layer: nn.Module) -> bool:
    """Tell whether the weight of a layer is trained in few bits."""
    if not parametrize.is_parametrized(layer, "weight"):
        return False
    parametrizations: Any = layer.parametrizations
    return len(parametrizations.weight) == 1 and isinstance(parametrizations.weight[0], FewBits)


def train_few_bits(weights: str, bits: int, layer: nn.Module, *others: Synapse, channels: Tensor | None = None) -> None:
    """Train the weight of a layer in few bits, in place.

    Args:
        weights: The format.
        bits: Of a weight.
        layer: The layer.
        *others: Layers that have channels in common with it, which share a unit.
        channels: Which channel each output of the layer is, if there are others.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> train_few_bits("int8", 8, layer)
        >>> fix_few_bits(layer)
        >>> (layer.weight / layer.weight.abs().amax(1, keepdim=True) * 127).round(decimals=3).frac().any().item()
        False
    """
    parametrize.register_parametrization(
        layer, "weight", FewBits(weights, bits, (Synapse(layer, channels), *others)), unsafe=True
    )


def fix_few_bits(layer: Any, rounded: bool = True) -> None:
    """Leave a layer with the weight of few bits that it computes with, in the parameter that was trained; in place.

    Copies of a parametrized module share its class, which torch's own function would change for all of them.

    Args:
        layer: The layer.
        rounded: Whether to leave what it computes with; else what is trained.
    """
    latent, fixed = layer.parametrizations.weight.original, layer.weight.detach()
    if rounded:
        latent.data.copy_(fixed)
    if len(layer.parametrizations) > 1:  # a bias of the user's own
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=rounded)
        return
    layer.__class__ = parametrize.type_before_parametrizations(layer)
    del layer.parametrizations
    others = dict(layer.named_parameters(recurse=False))
    for name in others:
        delattr(layer, name)
    for name, parameter in {"weight": latent, **others}.items():  # in the order that they had
        layer.register_parameter(name, parameter)
