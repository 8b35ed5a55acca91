"""What other tools make of a file, and what its standard fields mean."""

from __future__ import annotations

import nir
import nirtorch
import norse
import numpy as np
import pytest
import snntorch
import torch
from snntorch.import_nir import import_from_nir
from torch import nn

from snnreg_plugins import to_nir, to_snntorch
from snnreg_plugins.frameworks.norse import SoftResetCell, SoftResetParameters
from snnreg_plugins.frameworks.surrogate import FastSigmoid
from tests import nets
from tests.nir.networks import ROWS


def hard_reset(model_layers, thresholds, x, timesteps):
    """Integrate from zero and start again from zero after a spike: what NIR says of its nodes."""
    potentials, total = [0.0] * len(thresholds), 0.0
    for _ in range(timesteps):
        value = model_layers[0](x)
        for index, threshold in enumerate(thresholds):
            v = potentials[index] + value
            fired = (v > threshold).to(v.dtype)
            potentials[index] = v * (1 - fired)
            value = model_layers[index + 1](fired)
        total = total + value
    return total / timesteps


def stepped(module, x, timesteps):
    state, total = None, 0.0
    for _ in range(timesteps):
        output, state = module(x, state)
        total = total + output
    return total / timesteps


@pytest.fixture
def plain(path):
    model, _, x = nets.make("mlp", torch.float32)
    network = to_snntorch(model, x, timesteps=6)
    to_nir(network, path, input_shape=(6,))
    linear = [network.encoder.get_submodule("0"), network.body.get_submodule("2"), network.body.get_submodule("4")]
    thresholds = [network.body.get_submodule(name).threshold for name in ("1", "3")]
    return path, x, network, hard_reset(linear, thresholds, x, 6)


def test_norse_reads_neurons_of_hard_reset(plain):
    path, x, _, expected = plain
    module = norse.torch.from_nir(nir.read(path), dt=1.0)
    torch.testing.assert_close(stepped(module, x, 6), expected)


def test_spikingjelly_reads_neurons_of_hard_reset(plain):
    exchange = pytest.importorskip("spikingjelly.activation_based.nir_exchange.from_nir")
    path, x, _, expected = plain
    torch.testing.assert_close(stepped(exchange.import_from_nir(nir.read(path), dt=1.0), x, 6), expected)


def test_sinabs_reads_neurons_of_soft_reset(plain):
    sinabs = pytest.importorskip("sinabs.nir")
    path, x, network, _ = plain
    module = sinabs.from_nir(nir.read(path), batch_size=len(x))
    assert stepped(module, x, 6).shape == network(x).shape


def test_snntorch_reads_leaky_neurons(plain, capsys):
    path, *_ = plain
    neurons = [module for module in import_from_nir(nir.read(path)).modules() if isinstance(module, snntorch.Leaky)]
    assert [round(float(neuron.beta), 6) for neuron in neurons] == [0.9, 0.9]


class Cell(nn.Module):
    """What the metadata of a neuron says."""

    def __init__(self, node):
        super().__init__()
        beta, slope = float(node.metadata["beta"]), torch.as_tensor(node.metadata["slope"])
        self.cell = SoftResetCell(SoftResetParameters(torch.from_numpy(node.v_threshold), beta, FastSigmoid(slope)))
        self.potential = torch.as_tensor(node.metadata["potential"])

    def forward(self, x, state=None):
        return self.cell(x, self.potential.expand_as(x) if state is None else state)


def affine(node):
    layer = nn.Linear(*node.weight.shape[::-1])
    layer.weight.data, layer.bias.data = torch.from_numpy(node.weight), torch.from_numpy(node.bias)
    return layer


def conv(node):
    sizes = node.weight.shape
    options = {name: tuple(getattr(node, name).tolist()) for name in ("stride", "padding", "dilation")}
    layer = nn.Conv2d(sizes[1] * int(node.groups), sizes[0], sizes[2:], groups=int(node.groups), **options)
    layer.weight.data, layer.bias.data = torch.from_numpy(node.weight), torch.from_numpy(node.bias)
    return layer


class Scale(nn.Module):
    def __init__(self, node):
        super().__init__()
        self.scale = torch.from_numpy(node.scale)

    def forward(self, x):
        return x * self.scale


@pytest.mark.parametrize("row", ["mlp", "mlp, leaky", "grouped", "identity shortcut", "LeakyReLU"])
def test_all_of_a_network_is_in_nodes_edges_and_their_metadata(row, path):
    make, options = ROWS[row]
    model, x = make()
    network = to_snntorch(model, x, timesteps=6, **options)
    to_nir(network, path, input_shape=x.shape[1:])
    cells = {nir.IF: Cell, nir.LIF: Cell, nir.Affine: affine, nir.Conv2d: conv, nir.Scale: Scale}
    cells[nir.Flatten] = lambda node: nn.Flatten(node.start_dim + 1)
    module = nirtorch.nir_to_torch(nir.read(path, type_check=False), cells, dtype=x.dtype)
    torch.testing.assert_close(stepped(module, x, 6), network(x))


# nir 1.0.8 takes grouped convolutions, also those that add a bias to each channel, and uneven kernels for others.
MISTAKEN = {
    "grouped", "uneven kernels", "normalized input", "pooled input", "pooled to little", "one dimension",
    "lenet, biases", "pre-activation",
}  # fmt: skip


@pytest.mark.parametrize("row", [row for row in ROWS if row not in MISTAKEN])
def test_the_shapes_are_those_that_nir_infers(row, path):
    make, options = ROWS[row]
    model, x = make()
    to_nir(to_snntorch(model, x, timesteps=2, **options), path, input_shape=x.shape[1:])
    graph = nir.read(path)  # checks types
    assert {type(node).__name__ for node in graph.nodes.values()} >= {"Input", "Output"}
    for node in graph.nodes.values():
        if isinstance(node, (nir.IF, nir.LIF)):
            assert (node.v_reset == 0).all()
            assert node.v_threshold.shape == node.r.shape == tuple(node.input_type["input"])
        if isinstance(node, nir.LIF):
            np.testing.assert_allclose(1 - 1 / node.tau, node.metadata["beta"])
            np.testing.assert_allclose(node.r, node.tau)
