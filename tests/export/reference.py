"""The spiking network of a DNN, simulated plainly: the DNN's own layers, spikes worth their threshold each."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import snntorch
import torch
from torch import nn

MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)


@torch.no_grad()
def activations(layers, x):
    """Outputs of the ReLUs among ``layers``, in order, on ``x``."""
    outputs = []
    for layer in layers:
        x = layer(x)
        if isinstance(layer, nn.ReLU):
            outputs.append(x)
    return outputs


def max_thresholds(layers, x, per_channel):
    """Largest activation of each ReLU, scalar or shaped (C, 1, ...); in float32, as they are stored."""
    found = []
    for output in activations(layers, x):
        by_channel = output.float().transpose(0, 1).flatten(1).amax(1).to(output.dtype)
        largest = by_channel.max()
        if per_channel:
            dead = by_channel <= 0.01 * largest
            largest = torch.where(dead, largest, by_channel).reshape(-1, *[1] * (output.dim() - 2))
        found.append(largest)
    return found


@torch.no_grad()
def simulate(layers, thresholds, x, timesteps, initial_potential=0.5, beta=1.0):
    """Step a chain of layers through time; every ReLU is soft-reset integrate-and-fire.

    A spike is worth its threshold, so that all layers are the DNN's own: nothing is folded. The output of a max
    pooling is the growth of the largest sum in its window.

    Returns:
        Spikes (T, B, ...) of every ReLU, and the mean of the output over the steps so far, (T, B, K).
    """
    layers = [copy.deepcopy(layer).eval() if isinstance(layer, nn.Module) else layer for layer in layers]
    neurons = [index for index, layer in enumerate(layers) if isinstance(layer, nn.ReLU)]
    potential, spikes, sums, largest = {}, {index: [] for index in neurons}, {}, {}
    total, running = 0, []
    for step in range(1, timesteps + 1):
        value = x
        for index, layer in enumerate(layers):
            if isinstance(layer, nn.ReLU):
                threshold = thresholds[neurons.index(index)]
                if index not in potential:
                    potential[index] = torch.zeros_like(value) + initial_potential * threshold
                fired = (potential[index] > threshold).to(value.dtype)
                potential[index] = beta * potential[index] + value - fired * threshold
                spikes[index].append((potential[index] > threshold).to(value.dtype))
                value = spikes[index][-1] * threshold
            elif isinstance(layer, MAX_POOLS) and min(neurons) < index:
                sums[index] = sums.get(index, 0) + value
                before, largest[index] = largest.get(index, 0), layer(sums[index])
                value = largest[index] - before
            else:
                value = layer(value)
        total = total + value
        running.append(total / step)
    return [torch.stack(spikes[index]) for index in neurons], torch.stack(running)


@contextmanager
def recorded(network):
    """Collect, over the calls of ``network``, the output of every neuron layer and the input of every other module."""
    spikes, inputs, handles = {}, {}, []
    for name, module in network.named_modules():
        if isinstance(module, snntorch.Leaky):
            spikes[name] = []
            handles.append(module.register_forward_hook(lambda m, a, out, kept=spikes[name]: kept.append(out[0])))
        elif not list(module.children()):
            inputs[name] = []
            handles.append(module.register_forward_pre_hook(lambda m, args, kept=inputs[name]: kept.append(args[0])))
    try:
        yield spikes, inputs
    finally:
        for handle in handles:
            handle.remove()


def neurons_of(network):
    """Neuron layers by name, in order of computation."""
    modules = dict(network.body.named_modules())
    names = [str(node.target) for node in network.body.graph.nodes if node.op == "call_module"]
    return {f"body.{name}": modules[name] for name in names if isinstance(modules[name], snntorch.Leaky)}
