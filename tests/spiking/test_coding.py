"""Coded inputs against snnTorch's generators and plain simulations; and that encoder spikes are counted."""

from __future__ import annotations

import pytest
import torch
from snntorch import spikegen
from torch import nn

from snnreg_plugins import SpikeRate, SynapticOperations, to_norse, to_snntorch
from snnreg_plugins.spiking.coding import LatencyCoder, PoissonCoder
from tests.export.reference import recorded, simulate
from tests.helpers import brute_force_fan_out

T = 8


def network_of(x, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)).to(x.dtype)
    return model, to_snntorch(model, x, timesteps=T, threshold="max", correction="none", **options)


def images(samples=20, low=0.0):
    x = torch.rand(samples, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return low + (1 - low) * x


def test_poisson_spikes_are_those_of_spikegen():
    x = images().float()
    coder = PoissonCoder(largest=1.0)
    torch.manual_seed(3)
    found = torch.stack([coder(x, None)[0] for _ in range(T)])
    torch.manual_seed(3)
    expected = torch.stack([spikegen.rate(x, num_steps=1)[0] for _ in range(T)])
    assert torch.equal(found, expected)


def test_poisson_spikes_have_the_sign_of_the_input_and_its_mean():
    x = torch.tensor([[-2.0, -0.5, 0.0, 1.0]])
    torch.manual_seed(0)
    coder = PoissonCoder(largest=2.0)
    spikes = torch.stack([coder(x, None)[0] for _ in range(4000)])
    assert set(spikes.unique().tolist()) == {-1.0, 0.0, 1.0}
    torch.testing.assert_close(2 * spikes.mean(0), x, atol=0.06, rtol=0)


@pytest.mark.parametrize("steps", [1, 2, 5, 16])
def test_latencies_are_those_of_spikegen(steps):
    x = images().float().clamp_min(0.05)
    x[0] = 1.0
    coder, state, found = LatencyCoder(1.0, steps), None, []
    for _ in range(steps):
        spikes, state = coder(x, state)
        found.append(spikes)
    expected = torch.ones(1, *x.shape)
    if steps > 1:
        expected = spikegen.latency(x, num_steps=steps, threshold=1e-6, normalize=True, linear=True)
    assert torch.equal(torch.stack(found), expected)
    assert float(torch.stack(found).sum()) == x.numel()


@pytest.mark.parametrize("coding", ["poisson", "latency", "neurons"])
@pytest.mark.parametrize("low", [0.0, -1.0])
def test_the_first_layer_reads_spikes_that_are_counted(coding, low):
    x = images(low=low)
    _, network = network_of(x, coding=coding)
    with recorded(network) as (_, inputs), SynapticOperations(network) as sops, torch.no_grad():
        network(x)
    arrived = torch.stack(inputs["body.0"])
    assert set(arrived.unique().tolist()) <= {-1.0, 0.0, 1.0}
    expected = (arrived.abs() * brute_force_fan_out(network.body.get_submodule("0"), x.shape[1:])).sum()
    assert sops.by_layer()["0"] == float(expected) / len(x) > 0
    # Nothing is multiplied by real values but what reads the input one to one.
    macs = {name: count for name, count in sops.by_layer("effective_macs").items() if count}
    assert macs == ({"input_synapse": 36 * T} if coding == "neurons" else {})


@pytest.mark.parametrize("coding", ["poisson", "neurons"])
def test_scores_converge(coding):
    x = images(low=-0.5)
    model, network = network_of(x, coding=coding)
    network.timesteps = 4000 if coding == "poisson" else 500
    torch.manual_seed(0)
    with torch.no_grad():
        error = (network(x[:4]) - model(x[:4])).abs().mean() / model(x[:4]).abs().mean()
    assert float(error) < (0.05 if coding == "poisson" else 0.02)


def test_neurons_on_the_input_are_a_rectifier_in_front():
    x = images()
    model, network = network_of(x, coding="neurons")
    chain = [nn.ReLU(), *model]
    _, expected = simulate(chain, [x.max().float().double(), model[1](model[0](x)).max()], x, T)
    torch.testing.assert_close(network(x, per_step=True), expected)
    with SpikeRate(network) as rate, torch.no_grad():
        network(x)
        assert list(rate.by_layer()) == ["input", "1"]
    # The synapse of the encoder can be trained.
    network(x).sum().backward()
    assert float(network.body.input_synapse.weight.grad.abs()) > 0


@pytest.mark.parametrize("coding", ["poisson", "latency"])
def test_coders_count_as_neurons(coding):
    x = images()
    _, network = network_of(x, coding=coding)
    with SpikeRate(network) as rate, torch.no_grad():
        network(x)
        rates = rate.by_layer()
    if coding == "latency":
        assert float(rates["input"]) == pytest.approx(1 / T)
    else:
        assert 0 < float(rates["input"]) < 1


def test_the_same_seed_gives_the_same_spikes_in_both_frameworks():
    x = images().float()
    model, network = network_of(x, coding="poisson")
    other = to_norse(model, x, timesteps=T, threshold="max", correction="none", coding="poisson")
    torch.manual_seed(5)
    found = network(x)
    torch.manual_seed(5)
    assert torch.equal(other(x), found)


def test_an_input_of_zeros_cannot_be_coded():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    nn.init.ones_(model[0].bias)
    with pytest.raises(ValueError, match="Expected inputs that are not all 0 to code by 'poisson'"):
        to_snntorch(model, torch.zeros(5, 4), timesteps=2, coding="poisson")


@pytest.mark.parametrize("correction", ["potential", "bias"])
@pytest.mark.parametrize("coding", ["poisson", "neurons"])
def test_corrections_see_the_coded_input(coding, correction):
    x = images(100)
    model, _ = network_of(x)

    def error(**options):
        torch.manual_seed(0)
        with torch.no_grad():
            return float((to_snntorch(model, x, timesteps=4, coding=coding, **options)(x) - model(x)).square().mean())

    assert error(correction=correction) < error(correction="none")
