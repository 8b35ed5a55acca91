"""Spiking networks as users write them, each with the plainest loop over its time steps."""

from __future__ import annotations

import snntorch
import torch
from norse.torch import LIFBoxCell, LIFBoxParameters, SequentialState
from torch import nn

from snnreg_plugins.frameworks.surrogate import FastSigmoid


def fire(values):
    return FastSigmoid(torch.tensor(5.0, dtype=values.dtype))(values)


def leaky(**options):
    return snntorch.Leaky(0.8, threshold=0.4, spike_grad=fire, **options)


def hidden():
    """Of snnTorch, with the states in its neurons."""
    return nn.Sequential(nn.Linear(4, 6), leaky(init_hidden=True), nn.Linear(6, 3), leaky(init_hidden=True))


class Explicit(nn.Module):
    """Of snnTorch, with the states handed over: takes a step."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1, self.fc2, self.lif2 = nn.Linear(4, 6), leaky(), nn.Linear(6, 3), leaky()

    def forward(self, x, mem1=None, mem2=None):
        mem1 = torch.zeros(len(x), 6).to(x) if mem1 is None else mem1
        mem2 = torch.zeros(len(x), 3).to(x) if mem2 is None else mem2
        spikes, mem1 = self.lif1(self.fc1(x), mem1)
        spikes, mem2 = self.lif2(self.fc2(spikes), mem2)
        return spikes, mem1, mem2


class Whole(Explicit):
    """The same with its loop inside: spikes and potentials over three steps."""

    def forward(self, x):
        mem1 = mem2 = None
        outputs = []
        for _ in range(3):
            spikes, mem1, mem2 = super().forward(x, mem1, mem2)
            outputs.append((spikes, mem2))
        return tuple(map(torch.stack, zip(*outputs, strict=True)))


def norse():
    """Of Norse, whose states are handed over."""
    parameters = LIFBoxParameters(tau_mem_inv=torch.tensor(800.0), v_th=torch.tensor(0.3))
    return SequentialState(nn.Linear(4, 6), LIFBoxCell(parameters), nn.Linear(6, 3))


def loop_hidden(network, frames):
    for module in network.modules():
        if isinstance(module, snntorch.Leaky):
            module.reset_mem()
    return [network(frame) for frame in frames]


def loop_explicit(network, frames):
    mem1 = mem2 = None
    outputs = []
    for frame in frames:
        spikes, mem1, mem2 = network(frame, mem1, mem2)
        outputs.append(spikes)
    return outputs


def loop_norse(network, frames):
    state, outputs = None, []
    for frame in frames:
        output, state = network(frame, state)
        outputs.append(output)
    return outputs
