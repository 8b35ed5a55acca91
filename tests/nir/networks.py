"""Networks that NIR can say, and how they are run."""

from __future__ import annotations

import copy

import torch
from torch import nn

from tests import nets
from tests.export.test_architectures import NETS, inputs, randomize
from tests.export.test_norse import spikes
from tests.nets import Chain

RELU, POOL = nn.ReLU, nn.AvgPool2d


def named(name):
    return lambda: (NETS[name](), inputs(20))


def made(name):
    return lambda: nets.make(name)[::2]


def anew(net):
    """Copy a network, with weights that depend on the test's seed alone and not on what was imported before."""
    net = copy.deepcopy(net)
    for module in net.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return net


def layers(*modules, shape=(1, 8, 8)):
    def make():
        return randomize(anew(nn.Sequential(*modules))), torch.rand(20, *shape, dtype=torch.float64)

    return make


def chain(forward, shape, **modules):
    def make():
        return randomize(anew(Chain(forward, **modules))), torch.rand(20, *shape, dtype=torch.float64)

    return make


class Centered(nn.Module):
    """Reads a tensor of its own twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.relu = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 3), nn.ReLU()
        self.register_buffer("mean", torch.tensor(0.4))

    def forward(self, x):
        return self.c(self.relu(self.a(x - self.mean) + self.b(self.mean - x)))


FLAT = nn.Flatten
with torch.random.fork_rng():
    torch.manual_seed(0)
    #: Name to a function that makes (network, inputs), and options of the export.
    ROWS = {
        "lenet": (made("lenet_functional"), {}),
        "lenet, per channel": (made("lenet_functional"), dict(per_channel=True, beta=0.9)),
        "lenet, potentials": (made("lenet_functional"), dict(correction="potential", surrogate_slope=3.0)),
        "lenet, biases": (made("lenet_functional"), dict(correction="bias")),
        "lenet, neurons": (made("lenet_functional"), dict(coding="neurons")),
        "lenet, Poisson": (made("lenet_functional"), dict(coding="poisson")),
        "lenet, latency": (made("lenet_functional"), dict(coding="latency")),
        "mlp": (made("mlp"), {}),
        "mlp, leaky": (made("mlp"), dict(beta=0.9, initial_potential=0.0)),
        "no bias": (made("no_bias"), {}),
        "grouped": (made("grouped"), dict(per_channel=True)),
        "names of code": (made("reused_weights"), {}),
        "squeezed": (made("squeezed"), dict(per_channel=True)),
        "scores of spikes": (made("ends_in_relu"), dict(per_channel=True)),
        "identity shortcut": (named("identity shortcut"), dict(per_channel=True)),
        "two blocks": (named("two blocks"), {}),
        "pre-activation": (named("pre-activation"), {}),
        "LeakyReLU": (named("LeakyReLU"), dict(per_channel=True)),
        "PReLU": (named("PReLU"), {}),
        "bias map": (named("norm before padded convolution"), {}),
        "normalized input": (named("gated by channel constants"), {}),
        "global mean": (named("global mean"), {}),
        "norm at the end": (named("norm at the end"), {}),
        "norm between pools": (named("norm between pools"), {}),
        "input arithmetic": (
            chain(lambda m, x: m.c(m.f(m.r(m.a((0.5 - x) * 2 / 3 + 0.25 - x)))), (1, 8, 8), a=nn.Conv2d(1, 3, 3),
                  r=RELU(), f=FLAT(), c=nn.Linear(108, 3)), {}),
        "a tensor twice": (lambda: (Centered().double(), torch.rand(20, 4, dtype=torch.float64)), {}),
        "the same twice": (
            chain(lambda m, x: (lambda y: m.c(m.s(y + y + y)))(m.b(m.r(m.a(x)))), (4,), a=nn.Linear(4, 5),
                  b=nn.Linear(5, 5), r=RELU(), s=RELU(), c=nn.Linear(5, 3)), {}),
        "uneven kernels": (layers(
            nn.Conv2d(1, 4, (2, 4), padding="same"), RELU(), nn.Conv2d(4, 4, (3, 2), (1, 2), padding=(1, 0)), RELU(),
            FLAT(2), nn.Conv1d(4, 2, 3, padding=1, dilation=2), RELU(), FLAT(), nn.Linear(60, 3)), {}),
        "pooled input": (layers(
            nn.BatchNorm2d(1), POOL(2), nn.Conv2d(1, 4, 3), RELU(), FLAT(), nn.Linear(16, 3)), {}),
        "pooled to little": (layers(
            nn.BatchNorm2d(1), POOL(100), FLAT(), nn.Linear(4, 4), RELU(), nn.Linear(4, 3),
            shape=(1, 200, 200)), {}),
        "one dimension": (layers(
            nn.Conv1d(2, 4, 3, bias=False), RELU(), nn.AvgPool1d(3, 2, padding=1), nn.Conv1d(4, 4, 2), RELU(),
            nn.AdaptiveAvgPool1d(1), FLAT(), nn.Linear(4, 3), shape=(2, 13)), dict(per_channel=True)),
    }  # fmt: skip


def seeded(network, x):
    torch.manual_seed(7)
    return spikes(network, x)
