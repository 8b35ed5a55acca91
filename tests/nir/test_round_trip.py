"""A network comes back from a NIR file as it was, in either framework."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from snnreg_plugins import SynapticOperations, from_nir, to_nir, to_norse, to_snntorch
from tests import nets
from tests.nir.networks import ROWS, seeded


@pytest.mark.parametrize(
    ("row", "dtype"),
    [
        *(
            pytest.param(row, torch.float32, marks=[pytest.mark.slow] if index % 3 else [])
            for index, row in enumerate(ROWS)
        ),
        *((row, torch.float64) for row in ("lenet", "LeakyReLU", "one dimension")),
    ],
)
def test_a_network_comes_back_the_same(row, dtype, path):
    make, options = ROWS[row]
    model, x = make()
    model, x = model.to(dtype), x.to(dtype)
    network = to_snntorch(model, x, timesteps=6, **options)
    to_nir(network, path, input_shape=x.shape[1:])
    x = x[:5]
    expected, scores = seeded(network, x)
    with SynapticOperations(network) as counted:
        seeded(network, x)
    for target in ("snntorch", "norse"):
        found = from_nir(path, target)
        again, other = seeded(found, x)
        assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))
        assert torch.equal(other, scores)
        assert found.conversion == network.conversion | {"framework": target}
        with SynapticOperations(found) as operations:
            seeded(found, x)
        assert operations.by_layer() == counted.by_layer()
    state, restored = network.state_dict(), from_nir(path).state_dict()
    assert state.keys() == restored.keys()
    assert all(state[key].dtype == restored[key].dtype for key in state)
    assert all(torch.equal(state[key], restored[key]) for key in state)


DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize("target", ["snntorch", "norse"])
@pytest.mark.parametrize("name", ["images", "margins"])
def test_files_of_version_0_1_are_read(name, target, path):
    """Residual, leaky and per channel; Poisson spikes, two populations, potentials and margins of an early exit."""
    path.write_bytes(gzip.decompress((DATA / f"{name}.nir.gz").read_bytes()))
    found, told = from_nir(path, target), np.load(DATA / f"{name}.npz")
    torch.manual_seed(7)
    with torch.no_grad():
        assert torch.equal(found(torch.from_numpy(told["x"])), torch.from_numpy(told["scores"]))
    if name == "margins":
        assert found.steps_taken.tolist() == told["steps"].tolist() == [6, 1, 6, 6]
        assert "exit_margins" not in found.conversion


@pytest.mark.parametrize("margins", [[torch.inf, 0.25], []])
def test_margins_of_early_exit_come_back(path, margins):
    model, _, x = nets.make("mlp")
    network = to_snntorch(model, x, timesteps=3)
    network.exit_margins = margins
    to_nir(network, path)
    assert from_nir(path).exit_margins == tuple(margins)
    assert from_nir(path).conversion == network.conversion


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, path):
    model, _, x = nets.make("mlp", torch.float32)
    network = to_snntorch(model, x, timesteps=6, per_channel=True, beta=0.9).to(dtype)
    to_nir(network, path, input_shape=(6,))
    for target in ("snntorch", "norse"):
        found = from_nir(path, target)
        assert {parameter.dtype for parameter in found.parameters()} == {dtype}
        assert torch.equal(found(x.to(dtype)), network(x.to(dtype)))


def test_from_norse_and_on(path):
    model, _, x = nets.make("lenet_functional")
    network = to_norse(model, x, timesteps=6, per_channel=True, beta=0.9)
    to_nir(network, path, input_shape=x.shape[1:])
    found = from_nir(path, "norse")
    assert found.state_dict().keys() == network.state_dict().keys()
    to_nir(from_nir(path, "snntorch"), path, input_shape=x.shape[1:])
    assert torch.equal(from_nir(path, "norse")(x, per_step=True), network(x, per_step=True))


def test_what_is_read_trains(path):
    model, _, x = nets.make("lenet_functional")
    network = to_snntorch(model, x, timesteps=4, surrogate_slope=2.0)
    to_nir(network, path, input_shape=x.shape[1:])
    gradients = []
    for one in (network, from_nir(path), from_nir(path, "norse")):
        one(x).square().sum().backward()
        gradients.append([parameter.grad for parameter in one.parameters()])
    for a, b, c in zip(*gradients, strict=True):
        assert a.abs().sum() > 0
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=1e-12, atol=1e-12)
    assert torch.equal(pickle.loads(pickle.dumps(from_nir(path)))(x), network(x))


def test_trained_networks_are_written(path):
    model, _, x = nets.make("mlp")
    network = to_snntorch(model, x, timesteps=4)
    network(x).square().sum().backward()
    torch.optim.SGD(network.parameters(), 0.1).step()
    network.timesteps = 9
    before = torch.get_rng_state()
    to_nir(network, path, input_shape=(6,))
    found = from_nir(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(found(x), network(x))
    assert found.timesteps == 9


def test_a_network_is_not_run_to_be_written(path):
    model, _, x = nets.make("mlp")
    network = to_snntorch(model, x, timesteps=4)
    with SynapticOperations(network) as operations:
        to_nir(network, path, input_shape=(6,))
        network(x)
        counted = float(operations.compute())
    with SynapticOperations(network) as operations:
        network(x)
        assert float(operations.compute()) == counted


def test_input_shape_is_what_the_network_says(path):
    model, _, x = nets.make("mlp")
    network = to_snntorch(model, x, timesteps=4)
    network.conversion["input_shape"] = [6]
    to_nir(network, path)
    assert torch.equal(from_nir(path)(x), network(x))


def test_the_input_shape_is_that_of_the_calibration_data(path):
    model, _, x = nets.make("lenet_functional")
    network = to_snntorch(model, x, timesteps=3, correction="potential")
    to_nir(network, path)
    read = from_nir(path, "norse")
    assert torch.equal(read(x), network(x))
    assert read.conversion == network.conversion | {"framework": "norse"}
    for name, level in network.levels.items():
        assert torch.equal(read.levels[name], level)
