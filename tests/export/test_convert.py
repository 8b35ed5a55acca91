"""Exported networks against plain simulations of soft-reset integrate-and-fire."""

from __future__ import annotations

import math

import pytest
import snntorch
import torch
from torch import nn
from torch.nn import functional as F

from snnreg_plugins import SynapticOperations, to_snntorch
from tests.export.reference import activations, max_thresholds, neurons_of, recorded, simulate
from tests.helpers import brute_force_fan_out, soft_reset_neuron
from tests.nets import NETS, make

T = 10


def assert_simulates(network, chain, thresholds, x, **options):
    expected_spikes, expected_scores = simulate(chain, thresholds, x, network.timesteps, **options)
    with recorded(network) as (spikes, _), torch.no_grad():
        scores = network(x, per_step=True)
    fired = [torch.stack(spikes[name]) for name in neurons_of(network)]
    assert len(fired) == len(expected_spikes)
    for spike, expected in zip(fired, expected_spikes, strict=True):
        assert torch.equal(spike, expected)
        assert set(spike.unique().tolist()) <= {0.0, 1.0}
    assert sum(float(spike.sum()) for spike in fired) > 0
    torch.testing.assert_close(scores, expected_scores, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize("name", NETS)
def test_spikes_and_scores(name):
    net, chain, x = make(name)
    for per_channel in (False, True):
        network = to_snntorch(net, x, timesteps=T, threshold="max", correction="none", per_channel=per_channel)
        assert_simulates(network, chain, max_thresholds(chain, x, per_channel), x[:5])
        assert all(type(neuron) is snntorch.Leaky for neuron in neurons_of(network).values())


@pytest.mark.parametrize("options", [{"initial_potential": 0.0}, {"initial_potential": 0.25}, {"beta": 0.9}])
def test_initial_potential_and_decay(options):
    net, chain, x = make("lenet_modules")
    network = to_snntorch(net, x, timesteps=T, threshold="max", correction="none", compensate_leak=False, **options)
    assert_simulates(network, chain, max_thresholds(chain, x, False), x, **options)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("percent", [90.0, 99.9])
def test_percentile_thresholds(percent, per_channel):
    net, chain, x = make("mlp")  # no pooling: the thresholds of the neurons are those of the activations
    options = {} if percent == 99.9 else {"percent": percent}
    network = to_snntorch(net, x, timesteps=T, per_channel=per_channel, correction="none", **options)
    thresholds = [neuron.threshold for neuron in neurons_of(network).values()]
    for threshold, output in zip(thresholds, activations(chain, x), strict=True):
        groups = output.T if per_channel else output.reshape(1, -1)
        assert threshold.shape == ((output.shape[1],) if per_channel else ())
        for found, values in zip(threshold.reshape(-1), groups, strict=True):
            expected = values.sort().values[math.ceil(len(values) * percent / 100) - 1]
            if float(expected) > 0.02 * float(output.max()):  # else the channel is dead
                assert 0 <= float(found - expected) + 1e-7 <= 2 / 8192 * float(output.max()) + 1e-6
    assert_simulates(network, chain, thresholds, x)


def test_constant_currents_of_known_spike_counts():
    net = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1, bias=False)).double()
    with torch.no_grad():
        net[0].weight.fill_(1)
        net[0].bias.fill_(0)
        net[2].weight.fill_(1)
    x = torch.tensor([[1.0], [0.5], [0.25], [0.0], [2.0]], dtype=torch.float64)
    for initial, counts in ((0.5, [8, 4, 2, 0, 8]), (0.0, [7, 3, 1, 0, 8])):
        network = to_snntorch(net, x[:1], timesteps=8, threshold="max", correction="none", initial_potential=initial)
        torch.testing.assert_close(8 * network(x).flatten(), torch.tensor(counts, dtype=torch.float64))


@pytest.mark.parametrize("per_channel", [False, True])
def test_weights_are_folded_by_the_formulas(per_channel):
    net, chain, x = make("lenet_functional")
    levels = max_thresholds(chain, x, per_channel)
    network = to_snntorch(net, x, timesteps=T, threshold="max", correction="none", per_channel=per_channel)
    body, encoder = network.body, network.encoder

    def gain(norm):
        return norm.weight / (norm.running_var + norm.eps).sqrt()

    def shift(norm, bias=0):
        return (bias - norm.running_mean) * gain(norm) + norm.bias

    def column(values):
        return values.reshape(1, -1, 1, 1)

    close = torch.testing.assert_close
    # The first layer takes no threshold in; the second reads sums over 2x2 spikes of the first's.
    close(encoder.conv1.weight, net.conv1.weight * gain(net.bn1).reshape(-1, 1, 1, 1))
    close(encoder.conv1.bias, shift(net.bn1, net.conv1.bias))
    close(body.conv2.weight, net.conv2.weight * gain(net.bn2).reshape(-1, 1, 1, 1) * column(levels[0]) / 4)
    close(body.conv2.bias, shift(net.bn2))
    close(body.fc1.weight, net.fc1.weight * gain(net.bn3).reshape(-1, 1) * levels[1].reshape(-1) / 4)
    close(body.fc1.bias, shift(net.bn3, net.fc1.bias))
    close(body.fc2.weight, net.fc2.weight * levels[2].reshape(-1))
    close(body.fc2.bias, net.fc2.bias)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())
    for neuron, level in zip(neurons_of(network).values(), levels, strict=True):
        assert torch.equal(neuron.threshold, level)
        assert float(neuron.beta) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("per_channel", [False, True])
def test_bit_equal_to_a_simulation_on_the_exported_weights(per_channel, dtype):
    net, _, x = make("lenet_functional", dtype)
    network = to_snntorch(net, x, timesteps=T, per_channel=per_channel, correction="none")
    assert {parameter.dtype for parameter in network.parameters()} == {dtype}
    encoder, body = network.encoder, network.body
    neurons = list(neurons_of(network).values())
    assert {neuron.threshold.dtype for neuron in neurons} == {dtype}

    def fire(currents, neuron):
        return soft_reset_neuron(currents, neuron.threshold, 0.5 * neuron.threshold)

    def pool(spikes):
        return [4 * F.avg_pool2d(spike, 2) for spike in spikes]

    with torch.no_grad():
        current = F.conv2d(x, encoder.conv1.weight, encoder.conv1.bias, padding=1)
        first = fire([current] * T, neurons[0])
        second = fire([F.conv2d(s, body.conv2.weight, body.conv2.bias) for s in pool(first)], neurons[1])
        third = fire([F.linear(s.flatten(1), body.fc1.weight, body.fc1.bias) for s in pool(second)], neurons[2])
        total, running = 0, []
        for step, spike in enumerate(third, start=1):
            total = total + F.linear(spike, body.fc2.weight, body.fc2.bias).float()
            running.append((total / step).to(dtype))
        with recorded(network) as (spikes, _):
            scores = network(x, per_step=True)
    for found, expected in zip(spikes.values(), (first, second, third), strict=True):
        assert torch.equal(torch.stack(found), torch.stack(expected))
    assert torch.equal(scores, torch.stack(running))
    assert scores.dtype == dtype


def test_scores_are_on_the_scale_of_the_dnn_in_bfloat16():
    net, _, x = make("lenet_modules", torch.bfloat16)
    network = to_snntorch(
        net, x, timesteps=300, threshold="max", correction="none"
    )  # more steps than bfloat16 can count
    with torch.no_grad():
        assert (network(x) - net(x)).abs().max() < 0.05 * net(x).abs().max()


def test_runs_under_autocast_and_takes_its_precision_from_the_model():
    net, _, x = make("lenet_modules", torch.float32)
    plain = to_snntorch(net, x, timesteps=64)
    with torch.autocast("cpu", torch.bfloat16):
        network = to_snntorch(net, x, timesteps=64)
        mixed = network(x)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, network.state_dict()[name])
    with torch.no_grad():
        torch.testing.assert_close(mixed.float(), network(x), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(
    "name", ["lenet_functional", "lenet_modules", "one_dimension", "pooled_currents", "large_biases", "ends_in_relu"]
)
def test_error_falls_as_one_over_the_steps(name, per_channel):
    net, _, x = make(name)
    with torch.no_grad():
        network = to_snntorch(net, x, timesteps=1024, threshold="max", correction="none", per_channel=per_channel)
        error = (network(x, per_step=True) - net(x)).abs().mean((1, 2)) / net(x).abs().mean()
    # Sixteen times the steps, a sixteenth of the error; averaged over a few steps, since single ones oscillate.
    early, late = error[32:64].mean(), error[512:1024].mean()
    assert 8 < float(early / late) < 32
    assert float(error[1023]) < 0.02
    # The error never returns: no outliers that saturate, no bias that drifts.
    octaves = [float(error[2**k : 2 ** (k + 1)].mean()) for k in range(2, 10)]
    assert octaves == sorted(octaves, reverse=True)


def test_inputs_of_synapses_are_counts_and_their_operations_are_exact():
    net, _, x = make("overlapping_pools")
    network = to_snntorch(net, x, timesteps=T, threshold="max", correction="none")
    with recorded(network) as (_, inputs), SynapticOperations(network) as sops, torch.no_grad():
        network(x)
        counted = sops.by_layer()
        macs = sops.by_layer("effective_macs")
    layers = dict(network.named_modules())
    for name in ("body.3", "body.8"):
        events = torch.stack(inputs[name])
        assert torch.equal(events, events.round())
        assert events.min() >= 0
        cost = (events * brute_force_fan_out(layers[name], events.shape[2:])).sum()
        assert counted[name.removeprefix("body.")] == float(cost) / len(x) > 0
    assert torch.stack(inputs["body.3"]).max() > 1  # sums of spikes, not spikes
    assert set(torch.stack(inputs["body.8"]).unique().tolist()) <= {0.0, 1.0}
    # The analog layer, once for all steps.
    assert len(inputs["encoder.0"]) == 1
    assert macs == {"0": 64 * 4, "3": 0, "8": 0}


def test_max_pooling_passes_the_largest_count():
    net, _, x = make("lenet_modules")
    network = to_snntorch(net, x, timesteps=100, threshold="max", correction="none", per_channel=True)
    with recorded(network) as (spikes, inputs), torch.no_grad():
        network(x)
    before = torch.stack(spikes["body.0.0.2"]).cumsum(0)
    after = torch.stack(inputs["body.0.2.0"])
    assert set(after.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(after.cumsum(0), F.max_pool2d(before.flatten(0, 1), 2).unflatten(0, before.shape[:2]))


def test_every_relu_becomes_neurons_of_its_own():
    net, chain, x = make("reused_relu")
    network = to_snntorch(net, x, timesteps=T)
    assert list(neurons_of(network)) == ["body.relu", "body.relu_1"]
    net, chain, x = make("lenet_functional")
    network = to_snntorch(net, x, timesteps=T)
    assert len(neurons_of(network)) == sum(isinstance(layer, nn.ReLU) for layer in chain)


def test_names_are_those_of_the_model():
    net, _, x = make("lenet_modules")
    network = to_snntorch(net, x, timesteps=T)
    assert [name for name, _ in network.encoder.named_parameters()] == ["0.0.0.weight", "0.0.0.bias"]
    assert [name for name, _ in network.body.named_parameters()] == [
        "0.2.0.weight", "0.2.0.bias", "1.3.weight", "1.3.bias",
    ]  # fmt: skip
    assert list(neurons_of(network)) == ["body.0.0.2", "body.0.2.1"]


def test_copies_of_a_reused_layer_get_names_that_are_free():
    net, _, x = make("reused_weights")
    network = to_snntorch(net, x, timesteps=T)
    # The user's fc_1 is the last layer, and keeps its name though two copies of fc come before it.
    assert [name for name, _ in network.named_modules() if ".fc" in name] == [
        "encoder.fc", "body.fc_2", "body.fc_3", "body.fc_1",
    ]  # fmt: skip


def test_dead_channel_takes_the_threshold_of_its_layer():
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        net[0].weight[:] = torch.tensor([[1.0] * 4, [-1.0] * 4, [0.004] * 4])
        net[0].bias[:] = 0
    x = torch.rand(50, 4)
    network = to_snntorch(net, x, timesteps=T, threshold="max", correction="none", per_channel=True)
    threshold = network.body.get_submodule("1").threshold
    assert threshold.tolist() == [float(x.sum(1).max())] * 3
    # It does not fire on small currents that the calibration data never gave.
    with recorded(network) as (spikes, _), torch.no_grad():
        network(-x / 100)
    assert sum(float(spike.sum()) for spike in spikes["body.1"]) == 0


def test_thresholds_that_weights_cannot_take_in_are_refused():
    layers = [nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3), nn.Flatten(), nn.Linear(12, 2)]
    net, x = nn.Sequential(*layers).eval(), torch.rand(20, 4, 6)
    to_snntorch(net, x, timesteps=T)
    with pytest.raises(ValueError, match=r"Cannot convert layer '2': thresholds that differ .* use per_channel=False"):
        to_snntorch(net, x, timesteps=T, per_channel=True)
