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
def simulate(layers, thresholds, x, timesteps, initial_potential=0.5, beta=1.0, frames=False):
    """Step a chain of layers through time; every ReLU is soft-reset integrate-and-fire.

    A spike is worth its threshold, so that all layers are the DNN's own: nothing is folded. The output of a max
    pooling is the growth of the largest sum in its window. With ``frames``, ``x`` holds what each step reads.

    Returns:
        Spikes (T, B, ...) of every ReLU, and the mean of the output over the steps so far, (T, B, K).
    """
    layers = [copy.deepcopy(layer).eval() if isinstance(layer, nn.Module) else layer for layer in layers]
    neurons = [index for index, layer in enumerate(layers) if isinstance(layer, nn.ReLU)]
    potential, spikes, sums, largest = {}, {index: [] for index in neurons}, {}, {}
    total, running = 0, []
    for step in range(1, timesteps + 1):
        value = x[step - 1] if frames else x
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


class Neuron(nn.Module):
    """In place of an activation: soft-reset neurons whose spikes are worth their level; one set for each call."""

    def __init__(self, activation):
        super().__init__()
        self.activation = activation
        self.levels = []  # of each call in a forward, of the positive and the negative neurons
        self.potentials, self.calls = {}, 0

    def forward(self, x):
        call, self.calls = self.calls, self.calls + 1
        output = 0
        for sign, gain, level in self.levels[call]:
            key = call, sign
            if key not in self.potentials:
                self.potentials[key] = torch.zeros_like(x) + 0.5 * level
            v = self.potentials[key]
            fired = (v > level).to(x.dtype)
            v = v + sign * x - fired * level
            self.potentials[key] = v
            output = output + gain * level * (v > level).to(x.dtype)
        return output


class Growth(nn.Module):
    """In place of max pooling: the growth of the pooled sums."""

    def __init__(self, pool):
        super().__init__()
        self.pool, self.total, self.before = pool, 0, 0

    def forward(self, x):
        self.total = self.total + x
        highest = self.pool(self.total)
        passed, self.before = highest - self.before, highest
        return passed


class Measured(nn.Module):
    """In place of an activation: computes it, and keeps the levels that its inputs ask for."""

    def __init__(self, neuron, per_channel):
        super().__init__()
        self.neuron, self.per_channel = neuron, per_channel

    def forward(self, x):
        activation = self.neuron.activation
        sides = []
        for sign in (1, -1):
            side = activation(sign * torch.clamp(sign * x, min=0))  # what it makes of one side
            if (side != 0).any():
                gain = {nn.LeakyReLU: getattr(activation, "negative_slope", 0)}.get(type(activation), 1)
                if isinstance(activation, nn.PReLU):
                    gain = activation.weight.detach().reshape(-1, *[1] * (x.dim() - 2))
                gain = 1.0 if sign > 0 else -gain
                clipped = (
                    sign * side if not isinstance(activation, (nn.LeakyReLU, nn.PReLU)) else (sign * x).clamp(min=0)
                )
                largest = clipped.float().transpose(0, 1).flatten(1).amax(1).to(x.dtype)
                level = largest.max()
                if self.per_channel:
                    dead = largest <= 0.01 * level
                    level = torch.where(dead, level, largest).reshape(-1, *[1] * (x.dim() - 2))
                sides.append((sign, gain, level))
        self.neuron.levels.append(sides)
        return activation(x)


@torch.no_grad()
def simulate_model(model, x, calibration, timesteps, per_channel=False):
    """Step a network in any form through time by calling it once a step, its activations replaced by neurons.

    Functional activations and pools must be modules. Thresholds are the largest activations on ``calibration``.

    Returns:
        The mean of the output over the steps so far, (T, B, K).
    """
    model = copy.deepcopy(model).eval()
    activations = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Hardtanh)
    pools = (*MAX_POOLS, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    neurons = {module: Neuron(module) for module in model.modules() if isinstance(module, activations)}
    swap(model, {module: Measured(neuron, per_channel) for module, neuron in neurons.items()})
    model(calibration)
    swap(model, {module: module.neuron for module in model.modules() if isinstance(module, Measured)})
    swap(model, {module: Growth(module) for module in model.modules() if isinstance(module, pools)})
    total, running = 0, []
    for step in range(1, timesteps + 1):
        for neuron in neurons.values():
            neuron.calls = 0
        total = total + model(x)
        running.append(total / step)
    return torch.stack(running)


def swap(model, replacements):
    """Put modules in the place of others, wherever they are held."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child in replacements:
                setattr(parent, name, replacements[child])
