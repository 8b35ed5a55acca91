"""Synapses whose weight is exactly zero, as of a pruned layer: how many of them an input position reaches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from snnreg_plugins._checks import as_sizes
from snnreg_plugins.functional.synapses import (
    TRANSPOSED_CONVOLUTIONS,
    OneToOne,
    SynapticLayer,
    fan_out,
)


def fan_out_at_zero(layer: SynapticLayer, input_shape: Sequence[int]) -> Tensor:
    r"""Count, of the synapses that :func:`fan_out` counts, those with a weight that is exactly zero.

    An event at position i costs :math:`\text{fan\_out}_i` synaptic operations where a weight of zero is a synapse, and
    fewer by this number where it is none. Which synapses there are does not depend on what zero-padding adds; stride,
    dilation, groups and padding modes are honoured.

    Args:
        layer: A synaptic layer.
        input_shape: Shape of one input without the batch, as for :func:`fan_out`.

    Returns:
        Whole numbers (float64) of shape ``input_shape``, where the weights are.

    Raises:
        TypeError: If ``layer`` is no synaptic layer.
        ValueError: If ``input_shape`` does not fit the layer.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> _ = layer.weight.data.copy_(torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.5, 2.0]]))
        >>> fan_out_at_zero(layer, (3,))
        tensor([2., 0., 1.], dtype=torch.float64)
    """
    fan_out(layer, input_shape)  # checks both
    return of_zeros(layer, layer.weight.detach() == 0, as_sizes("input_shape", input_shape))


def of_zeros(layer: SynapticLayer, zeros: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Count, for each input position, the weights that it meets of those where ``zeros`` is true.

    Args:
        layer: A synaptic layer.
        zeros: Of the shape of its weights.
        shape: Shape of one input without the batch.
    """
    mask = zeros.to(torch.float64) if zeros.device.type != "mps" else zeros.cpu().to(torch.float64)
    if isinstance(layer, nn.Linear):
        return mask.sum(0).expand(shape)
    if isinstance(layer, OneToOne):
        return mask.expand(shape)
    # The gradient of what the layer gives with these weights, all added up.
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.zeros((1, *shape), dtype=torch.float64, device=mask.device, requires_grad=True)
        (gradient,) = torch.autograd.grad(_plain(layer, mask.clone())(x).sum(), x)
    return gradient[0].round_()


def _plain(layer: Any, weight: Tensor) -> nn.Module:
    """Make a convolution like another one, of torch's own class, with other weights and no bias."""
    kind = next(each for each in type(layer).__mro__ if each.__module__.startswith("torch.nn."))
    made: Any = kind
    more = {"output_padding": layer.output_padding} if isinstance(layer, TRANSPOSED_CONVOLUTIONS) else {}
    # On the meta device no random number is drawn.
    plain: nn.Module = made(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
        bias=False,
        padding_mode=layer.padding_mode,
        device="meta",
        **more,
    )
    plain.weight = nn.Parameter(weight, requires_grad=False)
    return plain
