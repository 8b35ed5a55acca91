"""References in the dullest code possible: what the package computes fast, computed slowly and plainly."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from snnreg_plugins import SpikingNetwork
from snnreg_plugins.functional import OneToOne


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
    if isinstance(layer, OneToOne):
        return nn.Identity()
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


def adaptive_neuron(currents, p, recurrent=None):
    """Adaptive leaky integrate and fire of parameters p over a list of currents, one per step; with weights (N, N)."""
    tau_m, tau_adp, threshold, adaptation, spike = p.tau_m, p.tau_adp, p.threshold, p.adaptation, p.spike_grad
    alpha, rho = torch.exp(-1 / tau_m), torch.exp(-1 / tau_adp)
    z, v, b = (torch.zeros_like(currents[0]) for _ in range(3))
    spikes, potentials = [], []
    for current in currents:
        current = current if recurrent is None else current + z @ recurrent.T
        b = rho * b + (1 - rho) * z
        theta = threshold + adaptation * b
        v = alpha * v + (1 - alpha) * current - theta * z.detach()
        z = spike(v - theta)
        spikes.append(z)
        potentials.append(v)
    return spikes, potentials


def plain_scores(outputs, readout, decay=1.0):
    """What is read out of outputs (T, B, ...) after all of their steps, value by value."""
    result = torch.zeros_like(outputs[0])
    for place in torch.cartesian_prod(*map(torch.arange, result.shape)).tolist():
        over_time = [float(output[tuple(place)]) for output in outputs]
        potential = 0.0
        for value in over_time:
            potential = decay * potential + value
        result[tuple(place)] = {
            "mean": sum(over_time) / len(over_time),
            "last": over_time[-1],
            "max": max(over_time),
            "potential": potential,
            "spike_count": sum(over_time),
        }[readout]
    return result


def brute_force_operations(layer, x):
    """SOPs, effective and dense MACs of all samples in x, position by position with Python's integers."""
    dims = _sample_dims(layer, x)
    reached = brute_force_fan_out(layer, x.shape[x.dim() - dims :]).flatten().tolist()
    values = x.double().reshape(-1, len(reached)).tolist()
    spiking = all(value.is_integer() for sample in values for value in sample)
    cost = sum(
        int(abs(value)) * synapses if spiking else (value != 0) * synapses
        for sample in values
        for value, synapses in zip(sample, reached, strict=True)
    )
    return (cost if spiking else 0, 0 if spiking else cost, len(values) * sum(reached))


def _sample_dims(layer, x):
    if isinstance(layer, OneToOne):
        return x.dim() - 1
    return 1 if isinstance(layer, nn.Linear) else 1 + len(layer.kernel_size)


def name_in_dnn(model, name):
    """A layer's name without the part of an exported network that it is in."""
    kept, module = [], model
    for part in name.split(".") if name else ():
        if not isinstance(module, SpikingNetwork):
            kept.append(part)
        module = getattr(module, part)
    return ".".join(kept)


@contextmanager
def recorded(model, classes, output=False):
    """Copies of what goes into (or comes out of) every layer of these classes: a list of (name, layer, tensor).

    Names are those in the DNN, without the part of an exported network that a layer is in.
    """
    record, handles = [], []

    def record_as(name):
        def hook(layer, args, kwargs, *outputs):
            value = outputs[0] if output else (*args, *kwargs.values())
            value = value[0] if isinstance(value, tuple) else value
            record.append((name, layer, value.detach().clone()))

        return hook

    for name, layer in model.named_modules():
        if isinstance(layer, classes):
            register = layer.register_forward_hook if output else layer.register_forward_pre_hook
            handles.append(register(record_as(name_in_dnn(model, name)), with_kwargs=True))
    yield record
    for handle in handles:
        handle.remove()


def brute_force_costs(record):
    """Add up the three numbers of :func:`brute_force_operations` for each layer of a record of inputs."""
    costs = {}
    for name, layer, x in record:
        costs[name] = [a + b for a, b in zip(costs.get(name, (0, 0, 0)), brute_force_operations(layer, x), strict=True)]
    return costs


def kl_by_hand(student, teacher, temperature):
    """Temperature squared times the mean over samples of KL(teacher || student), class by class."""
    total = 0.0
    for z, wanted in zip(student, teacher, strict=True):
        z, wanted = (one.float() if one.dtype in (torch.float16, torch.bfloat16) else one for one in (z, wanted))
        q = (z / temperature).exp() / (z / temperature).exp().sum()
        p = (wanted / temperature).exp() / (wanted / temperature).exp().sum()
        total = total + (p * (p / q).log()).sum()
    return temperature**2 * total / len(student)


def simulate_integers(layers, network, x, timesteps):
    """Step an exported chain through time in numpy's int64; nothing but whole numbers is used.

    Args:
        layers: The DNN's, by name: what each does, but for weights.
        network: Weights, thresholds and initial potentials are read from it.
        x: Whole numbers.

    Returns:
        Spikes (T, B, ...) of every ReLU by name, and the last layer's currents (T, B, K).
    """
    part = {name.split(".", 1)[1]: module for name, module in network.named_modules() if "." in name}
    held, spikes, sums, outputs = {}, {}, {}, []
    for _ in range(timesteps):
        value = _whole(x)
        for name, layer in layers:
            if isinstance(layer, nn.Linear):
                value = value @ _whole(part[name].weight).T + _whole(part[name].bias)
            elif isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                value = _convolve_integers(layer, _whole(part[name].weight), _whole(part[name].bias), value)
            elif isinstance(layer, nn.ReLU):
                threshold, potential = _whole(part[name].threshold), _whole(part[f"{name}_initial"].potential)
                v = held.get(name, np.zeros_like(value) + potential)
                held[name] = v + value - np.where(v > threshold, threshold, 0)
                value = (held[name] > threshold).astype(np.int64)
                spikes.setdefault(name, []).append(value)
            elif isinstance(layer, nn.Flatten):
                value = value.reshape(len(value), -1)
            else:  # pools of windows side by side
                size = layer.kernel_size
                windows = value.reshape(*value.shape[:2], value.shape[2] // size, size, value.shape[3] // size, size)
                if isinstance(layer, nn.AvgPool2d):
                    value = windows.sum((3, 5))
                else:
                    before, sums[name] = sums.get(name, 0 * windows), sums.get(name, 0) + windows
                    value = sums[name].max((3, 5)) - before.max((3, 5))
        outputs.append(value)
    return {name: np.stack(found) for name, found in spikes.items()}, np.stack(outputs)


def _whole(values):
    values = np.asarray(values.detach()).astype(np.float64)
    assert (values == np.round(values)).all()
    return values.astype(np.int64)


def _convolve_integers(layer, weight, bias, x):
    """Multiply and add, one input position after the other."""
    (k, _), (s, _), (p, _), groups = layer.kernel_size, layer.stride, layer.padding, layer.groups
    if isinstance(layer, nn.Conv2d):
        x = np.pad(x, ((0, 0), (0, 0), (p, p), (p, p)))
        out = np.zeros((len(x), len(weight), (x.shape[2] - k) // s + 1, (x.shape[3] - k) // s + 1), np.int64)
        inputs, outputs = x.shape[1] // groups, len(weight) // groups
        for o in range(len(weight)):
            own = x[:, o // outputs * inputs :][:, :inputs]
            for row in range(out.shape[2]):
                for column in range(out.shape[3]):
                    patch = own[:, :, row * s : row * s + k, column * s : column * s + k]
                    out[:, o, row, column] = (patch * weight[o]).sum((1, 2, 3)) + bias[o]
        return out
    size, outputs = (x.shape[2] - 1) * s + k, weight.shape[1]
    out = np.zeros((len(x), outputs * groups, size, size), np.int64) + bias.reshape(-1, 1, 1)
    for i in range(x.shape[1]):
        group = slice(i // (x.shape[1] // groups) * outputs, (i // (x.shape[1] // groups) + 1) * outputs)
        for row in range(x.shape[2]):
            for column in range(x.shape[3]):
                place = out[:, group, row * s : row * s + k, column * s : column * s + k]
                place += x[:, i, row, column].reshape(-1, 1, 1, 1) * weight[i]
    return out[:, :, p : size - p, p : size - p]
