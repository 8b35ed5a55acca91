"""Small networks in every form that a user may write one, each beside its computation as a plain chain of layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

IMAGE = (1, 8, 8)


class FunctionalLeNet(nn.Module):
    """Functional activations and pools."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.fc1, self.bn3 = nn.Linear(6, 12), nn.BatchNorm1d(12)
        self.fc2 = nn.Linear(12, 10)

    def forward(self, x):
        x = F.avg_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.avg_pool2d(torch.relu(self.bn2(self.conv2(x))), kernel_size=2)
        x = x.view(x.size(0), -1)
        x = F.dropout(self.bn3(self.fc1(x)).relu(), 0.5, self.training)
        return self.fc2(x)


class Chain(nn.Module):
    """Modules, and a forward that says how to call them."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.how = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.how(self, x)


def lenet_functional():
    net = FunctionalLeNet()
    first = [net.conv1, net.bn1, nn.ReLU(), nn.AvgPool2d(2), net.conv2, net.bn2, nn.ReLU(), nn.AvgPool2d(2)]
    return net, [*first, nn.Flatten(), net.fc1, net.bn3, nn.ReLU(), net.fc2], IMAGE


def lenet_modules():
    """Nested Sequentials, in-place ReLU, max pooling, dropout."""
    conv1, bn1, conv2, fc = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 2), nn.Linear(24, 10)
    features = nn.Sequential(
        nn.Sequential(conv1, bn1, nn.ReLU(inplace=True), nn.Dropout2d(0.2)),
        nn.MaxPool2d(2),
        nn.Sequential(conv2, nn.ReLU(inplace=True)),
    )
    net = nn.Sequential(features, nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Identity(), fc))
    return net, [conv1, bn1, nn.ReLU(), nn.MaxPool2d(2), conv2, nn.ReLU(), nn.Flatten(), fc], IMAGE


def sequential(make, shape=IMAGE):
    def make_all():
        layers = make()
        return nn.Sequential(*layers), layers, shape

    return make_all


def reused_relu():
    a, b, c, relu = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3), nn.ReLU()
    net = Chain(lambda m, x: m.c(m.relu(m.b(m.relu(m.a(x))))), a=a, b=b, c=c, relu=relu)
    return net, [a, nn.ReLU(), b, nn.ReLU(), c], (6,)


def reused_weights():
    """A layer and its batch norm called three times, beside a layer with the name that a copy would get."""
    fc, norm, fc_1 = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(m, x):
        for _ in range(3):
            x = F.relu(m.norm(m.fc(x)))
        return m.fc_1(x)

    return Chain(forward, fc=fc, norm=norm, fc_1=fc_1), [*[fc, norm, nn.ReLU()] * 3, fc_1], (6,)


def reshapes():
    conv, a, b, c = nn.Conv2d(1, 4, 3), nn.Linear(120, 8), nn.Linear(8, 9), nn.Linear(9, 5)

    def forward(m, x):
        batch = x.size(0)
        x = F.relu(m.conv(x)).permute(0, 2, 3, 1)[:, 1:].contiguous()
        x = F.relu(m.a(x.reshape((batch, x.size(1) * x.shape[2] * 4))))
        x = F.relu(m.b(torch.unsqueeze(x, 1).transpose(1, 2).squeeze(2)))
        x = x.unflatten(1, (3, 3)).flatten(start_dim=1)
        return m.c(torch.flatten(x, x.ndim - 1))

    moves = [lambda x: x.permute(0, 2, 3, 1)[:, 1:].flatten(1)]
    chain = [conv, nn.ReLU(), *moves, a, nn.ReLU(), b, nn.ReLU(), c]
    return Chain(forward, conv=conv, a=a, b=b, c=c), chain, IMAGE


def viewed():
    conv, fc = nn.Conv2d(1, 4, 3), nn.Linear(144, 3)
    net = Chain(lambda m, x: m.fc(F.relu(m.conv(x)).view(x.size(0), -1)), conv=conv, fc=fc)
    return net, [conv, nn.ReLU(), nn.Flatten(), fc], IMAGE


def squeezed():
    """A squeeze of all dimensions of size one, such as the batch of a single sample."""
    conv, fc = nn.Conv2d(1, 6, 8), nn.Linear(6, 3)
    net = Chain(lambda m, x: F.relu(m.fc(F.relu(m.conv(x)).squeeze())), conv=conv, fc=fc)
    return net, [conv, nn.ReLU(), nn.Flatten(), fc, nn.ReLU()], IMAGE


def normed(normalize):
    """Weights that are computed in every forward."""

    def make():
        layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 4)]
        for index in (0, 2, 5):
            normalize(layers[index])
        net = nn.Sequential(*layers)
        net(torch.rand(2, 1, 8, 8))  # power iterations
        return net.eval(), layers, IMAGE

    return make


def prune_half(layer):
    prune.l1_unstructured(layer, "weight", amount=0.5)


def linear_norm_over_time():
    """Linear acts on the last dimension, batch norm on the second: not to be folded, though sizes agree."""
    fc, norm, out = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(36, 3)
    net = nn.Sequential(fc, norm, nn.ReLU(), nn.Flatten(), out)
    return net, [fc, norm, nn.ReLU(), nn.Flatten(), out], (6, 6)


class OwnReLU(nn.ReLU):
    """A subclass."""


class OwnLinear(nn.Linear):
    """A subclass."""


class OwnConv(nn.Conv2d):
    """A subclass with a forward of its own, on layers that can be converted."""

    def __init__(self, *args):
        super().__init__(*args)
        self.inner = nn.Conv2d(*args)

    def forward(self, x):
        return self.inner(x)


def subclasses():
    conv, fc = OwnConv(1, 4, 3), OwnLinear(144, 3)
    net = nn.Sequential(conv, OwnReLU(), nn.Flatten(), fc)
    return net, [conv.inner, nn.ReLU(), nn.Flatten(), fc], IMAGE


RELU = nn.ReLU

#: Name to a function that makes (network, chain of layers, shape of an input).
NETS = {
    "lenet_functional": lenet_functional,
    "lenet_modules": lenet_modules,
    "mlp": sequential(lambda: [nn.Linear(6, 8), RELU(), nn.Linear(8, 7), RELU(), nn.Linear(7, 3)], shape=(6,)),
    "no_bias": sequential(lambda: [
        nn.Conv2d(1, 4, 3, bias=False), RELU(), nn.Conv2d(4, 4, 3, bias=False), RELU(), nn.Flatten(),
        nn.Linear(64, 3, bias=False)]),
    "norm_without_affine": sequential(lambda: [
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False), RELU(),
        nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, affine=False), RELU(), nn.Flatten(), nn.Linear(64, 3)]),
    "norm_twice": sequential(lambda: [
        nn.Linear(6, 8), RELU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.BatchNorm1d(8), RELU(), nn.Linear(8, 3),
        nn.BatchNorm1d(3)], shape=(6,)),
    "norm_on_input": sequential(lambda: [
        nn.BatchNorm2d(1), nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.BatchNorm2d(4), RELU(), nn.Flatten(),
        nn.Linear(36, 3)]),
    "linear_norm_over_time": linear_norm_over_time,
    "grouped": sequential(lambda: [
        nn.Conv2d(1, 4, 3), RELU(), nn.Conv2d(4, 6, 3, groups=2, padding=1, stride=2), nn.BatchNorm2d(6), RELU(),
        nn.Conv2d(6, 12, 3, groups=6, padding="same", dilation=2, bias=False), RELU(),
        nn.Conv2d(12, 3, 1), nn.Flatten(), nn.Linear(27, 4)]),
    "padding_modes": sequential(lambda: [
        nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular"), RELU(),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), RELU(), nn.Flatten(), nn.Linear(256, 3)]),
    "transposed": sequential(lambda: [
        nn.Conv2d(1, 4, 3, stride=2), RELU(),
        nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, output_padding=1), nn.BatchNorm2d(6), RELU(),
        nn.ConvTranspose2d(6, 2, 2, padding=1, dilation=2)]),
    "one_dimension": sequential(lambda: [
        nn.Conv1d(2, 4, 3), RELU(), nn.AvgPool1d(3, 2, padding=1), nn.Conv1d(4, 4, 2), nn.BatchNorm1d(4), RELU(),
        nn.MaxPool1d(2), nn.ConvTranspose1d(4, 3, 2), RELU(), nn.Flatten(), nn.Linear(9, 3)], shape=(2, 13)),
    "three_dimensions": sequential(lambda: [
        nn.Conv3d(1, 3, 2), RELU(), nn.AvgPool3d((2, 1, 1), (1, 2, 1)), nn.Conv3d(3, 3, 2, groups=3), RELU(),
        nn.MaxPool3d(2), nn.ConvTranspose3d(3, 2, 2), RELU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(),
        nn.Linear(2, 3)], shape=(1, 6, 6, 6)),
    "relu_on_pooled_spikes": sequential(lambda: [
        nn.Conv2d(1, 4, 3), RELU(), nn.AvgPool2d(2), RELU(), nn.Conv2d(4, 4, 2), RELU(), nn.MaxPool2d(2), RELU(),
        nn.Flatten(), nn.Linear(4, 3)]),
    "pooled_currents": sequential(lambda: [
        nn.Conv2d(1, 4, 3), RELU(), nn.Conv2d(4, 4, 3), nn.MaxPool2d(2), RELU(), nn.Conv2d(4, 4, 1),
        nn.AvgPool2d(2), RELU(), nn.Flatten(), nn.Linear(4, 3)]),
    "pooled_twice": sequential(lambda: [
        nn.Conv2d(1, 4, 1), RELU(), nn.AvgPool2d(2), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 3)]),
    "overlapping_pools": sequential(lambda: [
        nn.Conv2d(1, 4, 1), RELU(), nn.AvgPool2d(3, stride=2, padding=1), nn.Conv2d(4, 4, 1), RELU(),
        nn.MaxPool2d(3, stride=1, padding=1, dilation=1), nn.MaxPool2d(3, 2, ceil_mode=True), nn.Flatten(),
        nn.Linear(16, 3)]),
    "pooled_scores": sequential(lambda: [
        nn.Conv2d(1, 4, 3), RELU(), nn.Conv2d(4, 5, 1), nn.AdaptiveAvgPool2d((1, None)), nn.AvgPool2d((1, 6)),
        nn.Flatten()]),
    "ends_in_relu": sequential(lambda: [nn.Linear(6, 8), RELU(), nn.Linear(8, 3), RELU()], shape=(6,)),
    "ends_in_pooled_spikes": sequential(lambda: [nn.Conv2d(1, 4, 3), RELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]),
    "starts_with_relu": sequential(lambda: [RELU(), nn.Linear(6, 3)], shape=(6,)),
    "no_activation_between": sequential(lambda: [
        nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), RELU(), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 2), RELU(), nn.Flatten(),
        nn.Linear(36, 8), nn.Linear(8, 3)]),
    "large_biases": sequential(lambda: [
        nn.Linear(6, 8), nn.BatchNorm1d(8), RELU(), nn.Linear(8, 8), nn.BatchNorm1d(8), RELU(),
        nn.Linear(8, 3)], shape=(6,)),
    "linear_on_sequences": sequential(lambda: [
        nn.Linear(6, 8), RELU(), nn.Flatten(), nn.Linear(40, 8), nn.Unflatten(1, (2, 4)), nn.Linear(4, 4),
        RELU(), nn.Flatten(), nn.Linear(8, 3)], shape=(5, 6)),
    "reused_relu": reused_relu,
    "reused_weights": reused_weights,
    "reshapes": reshapes,
    "viewed": viewed,
    "squeezed": squeezed,
    "subclasses": subclasses,
    "spectral_norm": normed(parametrizations.spectral_norm),
    "weight_norm": normed(parametrizations.weight_norm),
    "old_spectral_norm": normed(old_spectral_norm),
    "old_weight_norm": normed(old_weight_norm),
    "pruned": normed(prune_half),
}  # fmt: skip


def pooled():
    """A convolution, its spikes pooled, and two linear layers, in float64."""
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(27, 16),
        nn.ReLU(),
        nn.Linear(16, 4),
    ).double()


def one_in(every, names):
    """Names as parameters of a test, of which one in so many is run by default, and all of them as slow tests."""
    return [pytest.param(name, marks=[pytest.mark.slow] if index % every else []) for index, name in enumerate(names)]


def make(name, dtype=torch.float64, seed=0):
    """Build a network of :data:`NETS` with weights and batch norm statistics that leave no symmetry.

    Returns:
        The network in eval mode, its chain of layers, and 20 inputs.
    """
    torch.manual_seed(seed)
    net, chain, shape = NETS[name]()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.3, 3)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias, 0, 3 if name == "large_biases" else 0.3)
    return net.to(dtype).eval(), chain, torch.rand(20, *shape, dtype=dtype)
