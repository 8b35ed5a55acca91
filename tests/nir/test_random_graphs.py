"""Networks of random structure come back from a NIR file spike for spike."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from snnreg_plugins import ConversionError, from_nir, to_nir, to_norse, to_snntorch
from tests.export.test_architectures import randomize
from tests.nir.networks import seeded


class RandomNet(nn.Module):
    """Layers, sums and arithmetic that a seed chooses, on images, sequences or features.

    Args:
        seed: What chooses.
    """

    def __init__(self, seed):
        super().__init__()
        self.random = random.Random(seed)
        self.steps, self.layers = [], nn.ModuleDict()
        self.dims = self.random.choice([0, 1, 2, 2])
        self.input_shape = (self.random.randint(1, 3), *(self.random.randint(5, 8) for _ in range(self.dims)))
        self.probe = torch.zeros(2, *self.input_shape)
        if self.random.random() < 0.4:
            self.add(self.random.choice([self.arithmetic, self.input_norm]))
        for _ in range(self.random.randint(1, 3)):
            self.add(self.synapse)
            self.add(self.activation)
            if self.random.random() < 0.5:
                self.add(self.random.choice([self.shortcut, self.sum_of_spikes, self.pool, self.arithmetic]))
        if self.probe.dim() > 2:
            self.add(self.random.choice([self.flatten, self.mean]))
        if self.random.random() < 0.8:
            self.add(self.synapse)

    def add(self, make):
        step = make()
        self.steps.append(step)
        self.eval()
        with torch.no_grad():
            self.probe = step(self.probe)
        assert self.probe.numel()

    def forward(self, x):
        for step in self.steps:
            x = step(x)
        return x

    def layer(self, module):
        name = f"layer{len(self.layers)}"
        self.layers[name] = module
        return lambda x: self.layers[name](x)

    def convolution(self, outputs, **options):
        spatial = self.probe.dim() - 2
        kind = (nn.Linear, nn.Conv1d, nn.Conv2d)[spatial]
        return kind(self.probe.shape[1], outputs, **({} if spatial == 0 else options), bias=self.random.random() < 0.7)

    def synapse(self):
        sizes, draw = self.probe.shape[2:], self.random
        groups = self.probe.shape[1] if draw.random() < 0.2 else 1
        kernel = tuple(draw.randint(1, min(3, size)) for size in sizes)
        dilation = (
            draw.choice([1, 1, 2]) if all(2 * (k - 1) < size for k, size in zip(kernel, sizes, strict=True)) else 1
        )
        if draw.random() < 0.2:
            where = dict(padding="same")
        else:
            where = dict(padding=tuple(draw.randint(0, k // 2) for k in kernel), stride=draw.choice([1, 1, 2]))
        layer = self.convolution(
            groups * draw.randint(2, 4), kernel_size=kernel, dilation=dilation, groups=groups, **where
        )
        return self.layer(nn.Sequential(layer, self.norm(layer)) if draw.random() < 0.4 else layer)

    def norm(self, layer):
        size = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        return (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d)[self.probe.dim() - 2](size)

    def input_norm(self):
        return self.layer((nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d)[self.dims](self.input_shape[0]))

    def activation(self):
        return self.layer(self.random.choice([nn.ReLU(), nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.1), nn.PReLU()]))

    def shortcut(self):
        same = self.layer(self.convolution(self.probe.shape[1], kernel_size=3, padding=1))
        activation = self.activation()
        return self.random.choice([lambda x: activation(x + same(x)), lambda x: activation(same(x) - x)])

    def sum_of_spikes(self):
        same, activation = self.layer(self.convolution(self.probe.shape[1], kernel_size=1)), self.activation()
        return lambda x: x + activation(same(x))

    def pool(self):
        sizes = self.probe.shape[2:]
        if not sizes:
            return self.arithmetic()
        kernel = tuple(self.random.randint(1, min(3, size)) for size in sizes)
        stride = tuple(self.random.randint(1, k) for k in kernel)
        padding = tuple(self.random.randint(0, k // 2) for k in kernel)
        return self.layer((nn.AvgPool1d, nn.AvgPool2d)[len(sizes) - 1](kernel, stride, padding))

    def arithmetic(self):
        number = self.random.choice([0.25, 0.5, 3])
        forms = [lambda x: x * number, lambda x: x / number, lambda x: x - number, lambda x: number - x, lambda x: -x]
        return self.random.choice(forms)

    def flatten(self):
        return lambda x: torch.flatten(x, 1)

    def mean(self):
        dims = list(range(2, self.probe.dim()))
        return lambda x: x.mean(dims)


def options_of(seed):
    draw = random.Random(-seed - 1)
    return dict(
        timesteps=draw.randint(1, 6),
        per_channel=draw.random() < 0.5,
        beta=draw.choice([1.0, 1.0, 0.9]),
        initial_potential=draw.choice([0.0, 0.5]),
        correction=draw.choice(["none", "none", "potential", "bias"]),
        coding=draw.choice(["constant", "constant", "poisson", "latency", "neurons"]),
        surrogate_slope=draw.choice([5.0, 2.0]),
    )


def convertible(seed):
    """Make the first network from ``seed`` on that can be exported, in steps of 1,000."""
    for other in range(seed, seed + 10_000, 1000):
        torch.manual_seed(other)
        model = randomize(RandomNet(other))
        x = torch.rand(16, *model.input_shape, dtype=torch.float64)
        to = to_norse if other % 2 else to_snntorch
        try:
            return to(model, x, **options_of(other)), x
        except (ConversionError, ValueError):  # without an activation that is not silent, say
            continue
    raise AssertionError


def check(seed, path):
    network, x = convertible(seed)
    x = x[:5]
    to_nir(network, path, input_shape=x.shape[1:])
    expected, scores = seeded(network, x)
    for target in ("snntorch", "norse"):
        found = from_nir(path, target)
        again, other = seeded(found, x)
        assert len(again) == len(expected) > 0
        assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))
        assert torch.equal(other, scores)
        if target == network.neurons.name:
            state, restored = network.state_dict(), found.state_dict()
            assert state.keys() == restored.keys()
            assert all(torch.equal(state[key], restored[key]) for key in state)


@pytest.mark.parametrize("seed", range(6))
def test_a_random_network_comes_back_the_same(seed, path):
    check(seed, path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6, 106))
def test_many_random_networks_come_back_the_same(seed, path):
    check(seed, path)
