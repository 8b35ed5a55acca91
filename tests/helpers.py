"""References in the dullest code possible: what the package computes fast, computed slowly and plainly."""

from __future__ import annotations

import torch
from torch import nn


def brute_force_fan_out(layer, input_shape):
    """Put one event at each position in turn, all weights 1 in float64, and add up what comes out."""
    ones = _all_ones(layer)
    counts = torch.zeros(input_shape, dtype=torch.int64)
    for position in torch.cartesian_prod(*[torch.arange(size) for size in input_shape]).reshape(-1, len(input_shape)):
        x = torch.zeros(input_shape, dtype=torch.float64)
        x[tuple(position.tolist())] = 1
        counts[tuple(position.tolist())] = int(ones(x.unsqueeze(0)).sum())
    return counts


def _all_ones(layer):
    if isinstance(layer, nn.Linear):
        ones = nn.Linear(layer.in_features, layer.out_features, bias=False)
    else:
        arguments = dict(
            kernel_size=layer.kernel_size,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
            padding_mode=layer.padding_mode,
            bias=False,
        )
        if "Transpose" in type(layer).__name__:
            arguments["output_padding"] = layer.output_padding
        ones = type(layer)(layer.in_channels, layer.out_channels, **arguments)
    ones = ones.double()
    with torch.no_grad():
        ones.weight.fill_(1.0)
    for parameter in ones.parameters():
        parameter.requires_grad_(False)
    return ones


def soft_reset_neuron(currents, threshold, v0, beta=1.0):
    """Integrate and fire over a list of currents, one per step; reset by subtraction one step after the spike."""
    v = torch.zeros_like(currents[0]) + v0
    spikes = []
    for current in currents:
        fired_before = (v > threshold).to(current.dtype)
        v = beta * v + current - fired_before * threshold
        spikes.append((v > threshold).to(current.dtype))
    return spikes
