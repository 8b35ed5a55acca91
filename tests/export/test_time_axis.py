"""Export of what reads a dimension of time: calibrated on the mean over it, as the DNN sees it."""

from __future__ import annotations

import pytest
import snntorch
import torch
from snntorch import surrogate
from torch import nn

from snnreg_plugins import ConversionError, from_nir, load_network, save_network, to_nir, to_norse, to_snntorch
from tests.export.reference import simulate
from tests.nets import make

T = 8


def events(*shape, steps=T, dtype=torch.float32):
    return (torch.rand(steps, *shape) < 0.3).to(dtype)


def test_the_dnn_sees_the_mean_over_the_steps():
    net, _, x = make("lenet_functional", torch.float32)
    frames = events(*x.shape)
    for options in ({}, {"threshold": "mmse", "per_channel": True}, {"threshold": "max"}):
        options = options | {"correction": "none"}  # which sees each step
        network = to_snntorch(net, frames, timesteps=T, time_dim=0, **options)
        expected = to_snntorch(net, frames.mean(0), timesteps=T, **options).state_dict()
        for name, value in network.state_dict().items():
            assert torch.equal(value, expected[name])
        assert network.time_dim == 0
        assert network.conversion["input_shape"] == list(x.shape[1:])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"correction": "potential"},
        *[
            pytest.param(options, marks=pytest.mark.slow)
            for options in ({"threshold": "auto"}, {"beta": 0.9}, {"threshold": "spike_norm"})
        ],
    ],
)
def test_ways_to_hold_the_same_data(options):
    net, _, x = make("lenet_functional", torch.float32)
    frames = events(*x.shape)
    expected = to_snntorch(net, frames, timesteps=T, time_dim=0, **options).state_dict()
    for data, time_dim in (
        ([(part, torch.zeros(part.shape[1])) for part in frames.split((12, 8), 1)], 0),
        (frames.transpose(0, 1), 1),
        ([frames[:, :0], frames.byte()], 0),
        ([frames.bool().transpose(0, 1)], 1),
    ):
        network = to_snntorch(net, data, timesteps=T, time_dim=time_dim, **options)
        for name, value in network.state_dict().items():
            torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize("export", [to_snntorch, to_norse])
@pytest.mark.parametrize("name", ["mlp", "lenet_functional", "viewed"])
def test_scores_approach_those_of_the_dnn_on_the_mean(name, export):
    net, _, x = make(name, torch.float32)
    off = []
    for steps in (8, 64, 512):
        frames = (torch.rand(steps, *x.shape) < 0.4).float()
        network = export(net, frames, timesteps=steps, time_dim=0, threshold="max", correction="none")
        with torch.no_grad():
            scores = net(frames.mean(0))
            off.append(float((network(frames) - scores).abs().mean() / scores.std()))
    assert off[2] < off[1] < off[0]
    assert off[2] < 0.05


def test_simulations_read_the_frames():
    """By hand: the largest current of any step, and a potential that takes the mean error away."""
    layers = [nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)]
    net = nn.Sequential(*layers).double()
    frames = events(50, 6, dtype=torch.float64)
    largest = net[0](frames).max().detach()
    network = to_snntorch(net, frames, timesteps=T, time_dim=0, threshold="spike_norm", correction="none")
    torch.testing.assert_close(network.levels["1"].double(), largest)
    spikes, _ = simulate(layers, [largest], frames, T, frames=True)
    assert torch.equal(network.record(frames).spikes["1"], spikes[0])
    plain = to_snntorch(net, frames, timesteps=T, time_dim=0, threshold="max", correction="none")
    corrected = to_snntorch(net, frames, timesteps=T, time_dim=0, threshold="max", correction="potential")

    def rate_error(network):
        rates = network.record(frames).spikes["1"].mean(0) * network.levels["1"]
        return (net[:2](frames.mean(0)) - rates).square().mean().item()

    assert rate_error(corrected) < 0.8 * rate_error(plain)


def test_bytes_and_booleans_are_events():
    net, _, x = make("lenet_functional", torch.float32)
    frames = events(*x.shape, dtype=torch.uint8) * 3
    network = to_snntorch(net, frames, timesteps=T, time_dim=0)
    for network.exact in (False, True):
        assert torch.equal(network(frames), network(frames.float()))
    _, state = network.step(frames[0])
    _, expected = network.step(frames[0].float())
    assert torch.equal(state.values[0], expected.values[0])


def test_files_keep_the_dimension_of_time(tmp_path):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    frames = events(9, 1, 8, 8)
    network = to_snntorch(net, frames, timesteps=T, time_dim=0)
    save_network(network, tmp_path / "spiking.pt")
    again = load_network(tmp_path / "spiking.pt", net)
    assert torch.equal(again(frames), network(frames))
    network.time_dim = 1
    save_network(network, tmp_path / "spiking.pt")
    assert load_network(tmp_path / "spiking.pt", net).time_dim == 1
    content = torch.load(tmp_path / "spiking.pt", weights_only=True)
    del content["conversion"]["time_dim"], content["digest"]  # as of a file that was written before
    torch.save(content, tmp_path / "before.pt")
    assert load_network(tmp_path / "before.pt", net).time_dim is None
    pytest.importorskip("nir")
    to_nir(network, tmp_path / "network.nir")
    assert torch.equal(from_nir(tmp_path / "network.nir")(frames.transpose(0, 1)), network(frames.transpose(0, 1)))


@pytest.mark.parametrize("first", [nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(4)], ids=lambda it: type(it).__name__)
def test_what_is_not_linear_in_front_of_neurons_is_refused(first):
    net = nn.Sequential(first, nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    frames = events(9, 1, 8, 8)
    net(frames[0])
    with pytest.raises(ConversionError, match="first ReLU are linear.*export without `time_dim` on `x.mean"):
        to_snntorch(net, frames, timesteps=T, time_dim=0)
    assert to_snntorch(net, frames.mean(0), timesteps=T)(frames.mean(0)).shape == (9, 3)
    behind = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    assert to_snntorch(behind, frames, timesteps=T, time_dim=0)(frames).shape == (9, 3)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"timesteps": 9}, r"timesteps=9 steps along time_dim=0, but got a batch of shape \(8, 9, 6\)"),
        ({"timesteps": T, "time_dim": 2}, r"`time_dim` to be one of \[0, 1\], but got 2"),
        ({"timesteps": 8, "coding": "poisson"}, "constant over time with coding='poisson'"),
    ],
)
def test_options_that_do_not_fit(options, told):
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(ValueError, match=told):
        to_snntorch(net, events(9, 6), **{"time_dim": 0, **options})


class Arctan(nn.Module):
    """A surrogate of snnTorch as a module."""

    def forward(self, u):
        return surrogate.atan()(u)


def test_a_surrogate_of_snntorch_is_told_what_to_do_and_that_works():
    net, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.rand(20, 6)
    with pytest.raises(TypeError, match=r"slope of the surrogate.*set `spike_grad` of each neuron to a module"):
        to_snntorch(net, x, timesteps=T, surrogate_slope=surrogate.atan())
    network = to_snntorch(net, x, timesteps=T)
    scores = network(x)
    scores.square().sum().backward()
    before = network.encoder.get_parameter("0.weight").grad.clone()
    network.zero_grad()
    for neuron in network.modules():
        if isinstance(neuron, snntorch.Leaky):
            neuron.spike_grad = Arctan()
    again = network(x)
    torch.testing.assert_close(again, scores)
    again.square().sum().backward()
    after = network.encoder.get_parameter("0.weight").grad
    assert after.any()
    assert not torch.allclose(after, before)
