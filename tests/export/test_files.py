"""Spiking networks on disk: equal when read back, whatever they were made of; and refused when they do not fit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from snnreg_plugins import to_norse, to_snntorch
from snnreg_plugins.export.files import load_network, save_network
from tests import nets
from tests.export import test_architectures
from tests.export.test_partial import attention

T = 5
# Of the forms that a network is written in, those with other layers.
FORMS = ["reused_weights", "one_dimension", "three_dimensions", "transposed", "norm_on_input", "linear_on_sequences"]


def ones(histogram, by_channel):
    """Thresholds at which spikes are worth what activations are, so that many scales are 1."""
    return torch.ones(len(histogram.counts) if by_channel else ())


# Together all that decides which parts there are; and both frameworks.
OPTIONS = [
    (to_norse, {"correction": "bias"}),
    (to_snntorch, {"per_channel": True, "correction": "potential"}),
    (to_norse, {"beta": 0.9}),
    (to_snntorch, {"threshold": ones}),
    (to_snntorch, {"coding": "poisson"}),
    (to_norse, {"coding": "latency", "correction": "channel_potential"}),
    (to_snntorch, {"coding": "neurons", "initial_potential": 0.0}),
]


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


def fresh(model):
    """The network before it was trained: all values are others, down to the sign of each gain."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.uniform_(0.5, 2) if "running_var" in name else value.normal_()
    return model


@torch.no_grad()
@pytest.mark.parametrize("name", nets.one_in(4, [*test_architectures.NETS, *FORMS]))
def test_every_architecture_loads_around_fresh_weights(tmp_path, name):
    if name in FORMS:
        model, _, x = nets.make(name)
    else:
        model, x = test_architectures.NETS[name](), test_architectures.inputs()
    x = x / x.max()  # the calibration maximum is exactly 1
    for to, options in OPTIONS:
        if name == "pixel shuffle" and options.get("per_channel"):
            continue  # refused
        network = to(model, x, timesteps=T, **options)
        save_network(network, tmp_path / "spiking.pt")
        same(network, load_network(tmp_path / "spiking.pt", fresh(model)), x)


@pytest.mark.parametrize("coding", ["constant", "latency"])
def test_a_maximum_of_one_is_read_back(tmp_path, coding):
    """The network in which a spike is worth 1 has fewer parts than any other."""
    model, x = nn.Sequential(nn.ReLU(), nn.Linear(4, 3)), torch.rand(20, 4)
    x[0, 0] = 1
    network = to_snntorch(model, x, timesteps=T, threshold="max", correction="none", coding=coding)
    assert coding == "latency" or network.levels["0"] == 1
    network.timesteps = 3  # the spikes of latency keep their times
    save_network(network, tmp_path / "spiking.pt")
    same(network, load_network(tmp_path / "spiking.pt", fresh(model)), x)


def test_auto_and_a_module_around_the_network(tmp_path):
    model, x = test_architectures.NETS["two blocks"](), test_architectures.inputs()
    network = to_snntorch(model, x, timesteps=T, threshold="auto")
    save_network(network, tmp_path / "spiking.pt")
    same(network, load_network(tmp_path / "spiking.pt", fresh(model)), x)


def test_files_of_the_first_version_are_refused(tmp_path):
    torch.save({"format": "snnreg_plugins spiking network 2"}, tmp_path / "old.pt")
    with pytest.raises(ValueError, match=r"old.pt' was written by version 0.1, .* Export the DNN again with"):
        load_network(tmp_path / "old.pt", nn.Linear(2, 2))


def test_what_is_damaged_is_refused(tmp_path):
    model, _, x = nets.make("mlp")
    save_network(to_snntorch(model, x, timesteps=T), tmp_path / "spiking.pt")

    def refused(change, match):
        content = torch.load(tmp_path / "spiking.pt", weights_only=True)
        change(content)
        torch.save(content, tmp_path / "damaged.pt")
        with pytest.raises(ValueError, match=f"damaged.pt' does not fit Sequential. {match}"):
            load_network(tmp_path / "damaged.pt", model)

    place = "_2"  # of the second layer
    refused(lambda content: content["conversion"]["structure"].pop(place), "It does not say 'shift' of '_2'")
    refused(lambda content: content["state_dict"].pop("body.2.weight"), "'body.2.weight' is missing")
    refused(lambda content: content["state_dict"].update(other=torch.ones(())), "The network has no 'other'")
    refused(
        lambda content: content["state_dict"].update({"body.2.weight": torch.ones(7, 9)}),
        r"'body.2.weight' is of shape \(7, 9\), but the network has it of shape \(7, 8\)",
    )


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
