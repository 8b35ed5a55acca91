"""Sizes of a synaptic layer for inputs of one shape, as plain numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from snnreg_plugins._checks import as_sizes
from snnreg_plugins.functional.synapses import TRANSPOSED_CONVOLUTIONS, OneToOne, SynapticLayer, fan_out


@dataclass(frozen=True)
class Geometry:
    """Sizes of a layer, as models of memory access need them.

    Args:
        inputs: Input positions.
        outputs: Output positions.
        weights: Weights, without biases.
        macs: MACs of all outputs, with padded zeros.
        reached: Synapses that Lemaire's model lets an event reach.
        taps: Weights that it lets an event read.
        macs_per_read: MACs of a DNN for which an input is read once.

    Example:
        >>> from torch import nn
        >>> Geometry.of(nn.Conv2d(3, 4, 5, stride=2), (3, 15, 15))
        Geometry(inputs=675, outputs=144, weights=300, macs=10800, reached=36, taps=100, macs_per_read=1)
    """

    inputs: int
    outputs: int
    weights: int
    macs: int
    reached: int
    taps: int
    macs_per_read: int = 1

    @classmethod
    def of(cls, layer: SynapticLayer, input_shape: Sequence[int]) -> Geometry:
        """Find the sizes of a layer.

        Args:
            layer: A synaptic layer.
            input_shape: Shape of one input without the batch.

        Raises:
            TypeError: If ``layer`` is no synaptic layer.
            ValueError: If ``input_shape`` does not fit the layer.
        """
        fan_out(layer, input_shape)  # checks both
        shape = as_sizes("input_shape", input_shape)
        inputs, weights = math.prod(shape), layer.weight.numel()
        if isinstance(layer, OneToOne):
            return cls(inputs, inputs, weights, inputs, 1, 1)
        if isinstance(layer, nn.Linear):
            outputs = inputs // layer.in_features * layer.out_features
            reached = layer.out_features
            return cls(inputs, outputs, weights, inputs * reached, reached, reached, macs_per_read=reached)
        return cls(inputs, *_of_convolution(layer, shape, inputs))


def _of_convolution(layer: Any, shape: tuple[int, ...], inputs: int) -> tuple[int, int, int, int, int]:
    window, positions = math.prod(layer.kernel_size), math.prod(_output_sizes(layer, shape[1:]))
    outputs, weights = layer.out_channels * positions, layer.weight.numel()
    taps = layer.out_channels // layer.groups * window
    if isinstance(layer, TRANSPOSED_CONVOLUTIONS):  # an input reaches the whole window, whatever the stride
        return outputs, weights, inputs * taps, taps, taps
    macs = outputs * layer.in_channels // layer.groups * window
    steps = zip(layer.kernel_size, layer.stride, strict=True)
    reached = layer.out_channels // layer.groups * math.prod(math.ceil(k / s) for k, s in steps)
    return outputs, weights, macs, reached, taps


def _output_sizes(layer: Any, sizes: Sequence[int]) -> list[int]:
    outputs = []
    for dim, size in enumerate(sizes):
        span, stride = layer.dilation[dim] * (layer.kernel_size[dim] - 1), layer.stride[dim]
        if isinstance(layer, TRANSPOSED_CONVOLUTIONS):
            outputs.append((size - 1) * stride - 2 * layer.padding[dim] + span + layer.output_padding[dim] + 1)
        else:
            padding = {"same": span, "valid": 0}[layer.padding] if isinstance(layer.padding, str) else None
            both = 2 * layer.padding[dim] if padding is None else padding
            outputs.append((size + both - span - 1) // stride + 1)
    return outputs
