"""Spiking networks on disk: equal when read back, whatever they were made of; and refused when they do not fit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from snnreg_plugins import to_norse, to_snntorch
from snnreg_plugins.export.files import load_network, save_network
from tests import nets
from tests.export import test_architectures
from tests.export.test_partial import attention

T = 5
OPTIONS = [
    {}, {"per_channel": True}, {"correction": "potential"}, {"correction": "bias"}, {"beta": 0.9},
    {"threshold": "auto"}, {"coding": "poisson"}, {"coding": "latency"}, {"coding": "neurons"},
]  # fmt: skip


def same(network, other, x):
    assert list(network.state_dict()) == list(other.state_dict())
    for name, value in network.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    torch.manual_seed(0)
    expected = network(x, per_step=True)
    torch.manual_seed(0)
    assert torch.equal(other(x, per_step=True), expected)
    assert other.conversion == network.conversion
    assert other.timesteps == network.timesteps


@pytest.mark.parametrize("to", [to_snntorch, to_norse])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option(tmp_path, options, to):
    model, x = test_architectures.NETS["two blocks"](), test_architectures.inputs()
    network = to(model, x, timesteps=T, **options)
    save_network(network, tmp_path / "spiking.pt")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()  # the file has all weights
    same(network, load_network(tmp_path / "spiking.pt", model), x)


@pytest.mark.parametrize("name", test_architectures.NETS)
def test_every_architecture(tmp_path, name):
    model, x = test_architectures.NETS[name](), test_architectures.inputs()
    network = to_snntorch(model, x, timesteps=T, correction="bias")
    save_network(network, tmp_path / "spiking.pt")
    same(network, load_network(tmp_path / "spiking.pt", model), x)


def test_a_network_with_a_head(tmp_path):
    model, x = attention()
    network = to_snntorch(model, x, timesteps=T, until="front")
    save_network(network, tmp_path / "spiking.pt")
    same(network, load_network(tmp_path / "spiking.pt", model), x)


def test_what_was_read_can_be_trained_and_written_again(tmp_path):
    model, x = test_architectures.NETS["identity shortcut"](), test_architectures.inputs()
    save_network(to_snntorch(model, x, timesteps=T), tmp_path / "a.pt")
    network = load_network(tmp_path / "a.pt", model)
    network(x).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    network.timesteps = 3
    save_network(network, tmp_path / "b.pt")
    assert load_network(tmp_path / "b.pt", model).timesteps == 3


def test_another_model_does_not_fit(tmp_path):
    model, _, x = nets.make("mlp")
    save_network(to_snntorch(model, x, timesteps=T), tmp_path / "spiking.pt")
    for other in (
        nn.Sequential(nn.Linear(6, 8), nn.ReLU()),
        nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3)),
    ):
        with pytest.raises(ValueError, match="spiking.pt' does not fit Sequential"):
            load_network(tmp_path / "spiking.pt", other.double())


def test_what_is_no_network(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "dnn.pt")
    with pytest.raises(ValueError, match="Expected argument `path` to name a spiking network, but .*dnn.pt' is none"):
        load_network(tmp_path / "dnn.pt", nn.Linear(2, 2))
    with pytest.raises(FileNotFoundError, match="no .*none.pt"):
        load_network(tmp_path / "none.pt", nn.Linear(2, 2))
