"""Exports in few bits: whole numbers, spike for spike those of a simulation in integers."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from snnreg_plugins import (
    ConversionError,
    deploy,
    from_nir,
    load_network,
    report,
    save_network,
    to_nir,
    to_norse,
    to_snntorch,
)
from snnreg_plugins.functional import OneToOne, is_synaptic, magnitudes
from snnreg_plugins.profile import profile
from snnreg_plugins.spiking.layers import Current, InitialState
from tests.export.reference import recorded
from tests.export.test_architectures import NETS, inputs, randomize
from tests.helpers import simulate_integers

T = 6
FORMATS = [("int8", 8), ("int8", 4), ("power_of_two", 4), ("power_of_two", 2)]


def made(pool=nn.AvgPool2d):
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), pool(2)),
        *(nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2, 2, groups=2)),
        *(nn.ReLU(), pool(2), nn.Flatten(), nn.Linear(16, 9), nn.ReLU(), nn.Linear(9, 3)),
    )
    return randomize(net).float(), torch.randint(0, 4, (8, 1, 8, 8)).float()


def is_whole(values):
    return bool((values == values.round()).all())


def all_whole(network):
    """Whether all that spikes and currents meet is whole numbers."""
    found = []
    for module in network.body.modules():
        dynamics = network.neurons.describe(module)
        found += [] if dynamics is None else [dynamics.threshold]
        found += [module.potential] if isinstance(module, InitialState) else []
        found += list(module.parameters()) if is_synaptic(module) or isinstance(module, Current) else []
    return bool(found) and all(map(is_whole, found))


@pytest.mark.parametrize(
    ("pool", "dtype"),
    [(nn.AvgPool2d, torch.float32), (nn.MaxPool2d, torch.float32), (nn.AvgPool2d, torch.float64)],
)
@pytest.mark.parametrize(("weights", "bits"), FORMATS)
def test_spikes_are_those_of_a_simulation_in_integers(weights, bits, pool, dtype):
    net, x = made(pool)
    network = to_snntorch(net.to(dtype), x.to(dtype), timesteps=T, weights=weights, weight_bits=bits)
    for module in network.modules():
        if is_synaptic(module):
            assert set(module.weight.abs().flatten().tolist()) <= set(magnitudes(weights, bits).tolist())
    chain = [(name, layer) for name, layer in net.named_children() if not isinstance(layer, nn.BatchNorm2d)]
    spikes, outputs = simulate_integers(chain, network, x, T)
    with recorded(network) as (found, _), torch.no_grad():
        network.exact = True
        network(x.to(dtype))
    assert set(found) == {f"body.{name}" for name in spikes}
    for name, expected in spikes.items():
        assert np.array_equal(torch.stack(found[f"body.{name}"]).numpy(), expected), name
        assert 0.02 < expected.mean() < 0.9
    network.exact = False
    scores = network(x.to(dtype), per_step=True)
    mean = np.cumsum(outputs, 0) / np.arange(1, T + 1).reshape(-1, 1, 1)
    expected = torch.from_numpy(mean) * network.body.output_unit.double()
    tolerance = {"rtol": 1e-6, "atol": 1e-8} if dtype == torch.float32 else {"rtol": 1e-14, "atol": 1e-12}
    torch.testing.assert_close(scores.double(), expected, **tolerance)


QUICK = ("two blocks", "pre-activation", "PReLU", "global mean", "norm behind a divisor", "split", "norm at the end")


CASES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NETS]


@pytest.mark.parametrize("name", CASES)
def test_any_network_is_whole_numbers_or_refused(name, tmp_path):
    model, x = NETS[name](), inputs(8)
    given = dict(timesteps=T, weights="int8")
    if name in REFUSED:
        with pytest.raises(ConversionError, match='few bits.*Use weights="float"'):
            to_snntorch(model, x, **given)
        return
    network = to_snntorch(model, x, **given)
    assert all_whole(network) is (name not in REAL)
    # It stays near, though not so near that nothing was rounded; as the neurons are fewer, so with more steps.
    network.timesteps = 100
    floats = to_snntorch(model, x, timesteps=T)
    floats.timesteps = 100
    error = (network(x) - floats(x)).abs().mean() / model(x).std()
    assert 1e-5 < error < 0.05
    # Training begins where it ends, and files hold what there is.
    trained = to_snntorch(model, x, **given, train_weights=True)
    for one, again in ((deploy(trained), network), (trained, trained)):
        save_network(one, tmp_path / "network.pt")
        loaded = load_network(tmp_path / "network.pt", model)
        assert torch.equal(loaded(x), one(x))
        assert all(torch.equal(value, again.state_dict()[key]) for key, value in loaded.state_dict().items())


# Where layers read what is no spike.
REFUSED = {
    *("a sum without activation", "a sum of spikes", "a maximum of a sum", "spikes beside currents"),
    *("concatenated input", "input added behind", "split", "pooled LeakyReLU", "norm of negative gain on spikes"),
    *("norm behind padded average pooling", "negative norm behind max pooling", "negative norm before max pooling"),
    *("pixel shuffle", "zero padding", "zero padding by function", "subtracted", "negated", "inverted residual"),
}
# Where the first neurons read what is computed of the input by more than a layer.
REAL = {"norm behind a divisor"}


@pytest.mark.parametrize("coding", ["poisson", "latency", "neurons"])
@pytest.mark.parametrize("export", [to_snntorch, to_norse])
def test_coded_input(coding, export):
    net, x = made()
    network = export(net, x, timesteps=40, weights="int8", coding=coding)
    assert all_whole(network)
    torch.manual_seed(0)
    scores = network(x)
    floats = export(net, x, timesteps=40, coding=coding)
    torch.manual_seed(0)
    assert (scores - floats(x)).abs().mean() < 0.1 * net(x).std()


@pytest.mark.parametrize(("weights", "bits"), FORMATS)
def test_nir_and_norse_hold_the_same_network(weights, bits, tmp_path):
    net, x = nn.Sequential(*list(made()[0][:6]), nn.Flatten(), nn.Linear(24, 3)), made()[1]
    network = to_snntorch(net, x, timesteps=T, weights=weights, weight_bits=bits)
    assert torch.equal(to_norse(net, x, timesteps=T, weights=weights, weight_bits=bits)(x), network(x))
    to_nir(network, tmp_path / "network.nir")
    back = from_nir(tmp_path / "network.nir")
    assert torch.equal(back(x), network(x))
    assert {key: back.conversion[key] for key in ("weights", "weight_bits")} == dict(weights=weights, weight_bits=bits)
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in back.state_dict().items())


def test_a_leak_keeps_the_bits_but_not_whole_potentials():
    net, x = made()
    network = to_snntorch(net, x, timesteps=T, weights="int8", beta=0.9)
    assert all_whole(network)
    assert "exact_timesteps" not in network.conversion


def test_a_part_of_the_dnn_stays_in_floats():
    net, x = made()
    network = to_snntorch(net, x, timesteps=T, weights="int8", until="5")
    assert all_whole(network)
    assert torch.equal(network.head.get_submodule("10").weight, net[10].weight)


def test_real_input_meets_whole_weights():
    net, x = made()
    network = to_snntorch(net, x + torch.rand_like(x), timesteps=T, weights="int8")
    assert is_whole(network.encoder.get_submodule("0").weight)
    assert all_whole(network)


def test_surrogates_are_as_wide_as_thresholds():
    net, x = made()
    network = to_snntorch(net, x, timesteps=T, weights="int8", surrogate_slope=3.0)
    for module in network.body.modules():
        dynamics = network.neurons.describe(module)
        if dynamics is not None:  # but for the rounding of the threshold
            assert (
                (dynamics.surrogate.slope * dynamics.threshold - 3).abs() <= 3 * 0.5 / dynamics.threshold + 1e-5
            ).all()


def test_how_many_steps_are_exact_is_what_all_spikes_would_take():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 4), nn.ReLU(), nn.Linear(4, 2)), torch.rand(30, 5)
    network = to_snntorch(net, x, timesteps=T, weights="int8")
    layer, potential = network.body.get_submodule("2"), network.body.get_submodule("3_initial").potential
    both = torch.cat([layer.weight, layer.bias.unsqueeze(1)], 1)
    most = max(both.clamp_min(0).sum(1).max(), (-both).clamp_min(0).sum(1).max())
    assert most < both.abs().sum(1).max()
    assert network.conversion["exact_timesteps"] == int((2**24 - potential.max()) // most)


def test_sums_beyond_the_whole_numbers_of_floats_are_refused():
    torch.manual_seed(0)
    net, x = (
        nn.Sequential(nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)),
        torch.rand(30, 5),
    )
    given = dict(weights="power_of_two", weight_bits=5, correction="none")
    with pytest.raises(ConversionError, match=r"'3'.*16,777,216.*float32.*at most (\d+) time steps") as caught:
        to_snntorch(net, x, timesteps=9000, **given)
    steps = int(str(caught.value).split("at most ")[1].split()[0])
    assert to_snntorch(net, x, timesteps=steps, **given).conversion["exact_timesteps"] == steps
    assert to_snntorch(copy.deepcopy(net).double(), x.double(), timesteps=9000, **given)
    assert to_snntorch(net, x, timesteps=9000, weights="power_of_two", weight_bits=4)


def test_outputs_beyond_the_whole_numbers_of_floats_are_refused_at_any_number_of_steps():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.AvgPool1d(3), nn.Linear(3, 2)), torch.rand(30, 4, 5)
    net[3].weight.data.fill_(1)
    assert to_snntorch(net, x, timesteps=1, weights="int8").conversion["exact_timesteps"]
    with pytest.raises(ConversionError, match=r"'3'.*Use fewer bits, or a model of torch.float64"):
        to_snntorch(net.to(torch.bfloat16), x.to(torch.bfloat16), timesteps=1, weights="int8")


def test_energy_is_that_of_the_weights():
    net, x = made()
    data = [(x, torch.arange(8) % 3)]
    for weights, bits, table in (("float", None, "fp32"), ("int8", 4, "int8_int32"), ("power_of_two", None, "shift")):
        network = to_snntorch(net, x, timesteps=2, weights=weights, weight_bits=bits)
        result = report(net, network, data, steps=[2])
        assert result.table == f"horowitz_{table}"
        assert report(net, network, data, steps=[2], table="horowitz_fp16").table == "horowitz_fp16"
        spent = profile(network, x, table="lemaire").breakdown["weights"]
        network.conversion.pop("weight_bits")
        assert (spent < profile(network, x, table="lemaire").breakdown["weights"]) is (weights != "float")


def test_a_dead_channel_has_the_unit_of_its_layer():
    net, x = made()
    with torch.no_grad():
        net[4].weight[1] = 0
    network = to_snntorch(net, x, timesteps=T, weights="int8")
    assert not network.body.get_submodule("4").weight[1].any()
    assert all_whole(network)


def test_a_threshold_of_less_than_half_a_unit_is_refused():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 4)), torch.rand(30, 5)
    with pytest.raises(ConversionError, match="'1'.*threshold"):
        to_snntorch(net, x, timesteps=T, weights="int8", threshold=lambda histogram, per_channel: torch.tensor(1e-4))


@pytest.mark.parametrize("options", [dict(weight_bits=4), dict(train_weights=True)])
def test_floats_have_no_bits(options):
    net, x = made()
    with pytest.raises(ValueError, match="`weights` to be one of.*int8"):
        to_snntorch(net, x, timesteps=T, **options)
    to_snntorch(net, x, timesteps=T, weights="int8", **options)


def trainable(name):
    """An export in training, and one of floats that is to have its rounded weights."""
    model, x = NETS[name](), inputs(8)
    given = dict(timesteps=3, threshold="max", correction="none")
    return to_snntorch(model, x, weights="int8", train_weights=True, **given), to_snntorch(model, x, **given), x


@pytest.mark.parametrize(
    ("name", "shared"),
    [("shortcut with a convolution", [("a", "down.0")]), ("depthwise", []), ("PReLU", [("2", "2_1"), ("5", "5_1")])],
)
def test_gradients_of_an_export_are_those_at_the_rounded_weights(name, shared):
    network, floats, x = trainable(name)
    layers = {
        key: layer for key, layer in floats.named_modules() if is_synaptic(layer) and not isinstance(layer, OneToOne)
    }
    units = {key: layer.weight.detach().flatten(1).abs().amax(1) / 127 for key, layer in layers.items()}
    for one, other in shared:
        units[f"body.{one}"] = torch.maximum(units[f"body.{one}"], units[f"body.{other}"])
        units[f"body.{other}"] = units[f"body.{one}"]
    for key, unit in units.items():
        weight, unit = layers[key].weight, unit.reshape(-1, *[1] * (layers[key].weight.dim() - 1))
        weight.data = unit * (weight.data / unit).round()
        torch.testing.assert_close(network.get_submodule(key).weight, weight)
        assert not torch.equal(network.get_submodule(key).parametrizations.weight.original, weight)
    target = torch.randn(8, 3, dtype=torch.float64)
    for one in (network, floats):
        (one(x) * target).sum().backward()
    torch.testing.assert_close(network(x), floats(x))
    plain = dict(floats.named_parameters())
    for key, parameter in network.named_parameters():
        expected = plain[key.replace("parametrizations.weight.original", "weight")].grad
        torch.testing.assert_close(parameter.grad, expected)


def test_kept_batch_norms_and_trained_thresholds_end_in_whole_numbers(tmp_path):
    net, x = made()
    given = dict(timesteps=T, weights="int8", weight_bits=4, batch_norm="keep", train_thresholds="channel")
    network = to_snntorch(net, x, **given)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    before, key = copy.deepcopy(network.state_dict()), "body.4.parametrizations.weight.original"
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), torch.arange(8) % 3).backward()
        optimizer.step()
    network.eval()
    save_network(network, tmp_path / "network.pt")
    loaded = load_network(tmp_path / "network.pt", net).eval()
    assert torch.equal(loaded(x), network(x))
    for one in (network, loaded):
        final = deploy(one)
        assert all_whole(final)
        assert final.conversion["is_deployed"]
        # What was trained stays: folding a batch norm gives an output channel another unit.
        for name in ("4", "6", "10", "12"):
            weight = network.body.get_submodule(name).weight
            if name != "6":
                codes = weight.flatten(1) / weight.flatten(1).abs().amax(1, keepdim=True) * 112
                assert torch.equal(final.body.get_submodule(name).weight.flatten(1), codes.round())
        assert not torch.equal(network.state_dict()[key], before[key])
        assert torch.equal(deploy(final)(x), final(x))
    assert (deploy(network)(x) - network(x)).abs().mean() < 0.2 * network(x).std()


def test_batch_norms_of_what_several_layers_add_up_are_refused_in_training():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.a, self.b = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
            self.norm, self.other, self.fc = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Linear(64, 3)

        def forward(self, x):
            x = self.first(x).relu()
            return self.fc((self.norm(self.a(x)) + self.other(self.b(x))).relu().flatten(1))

    net, x = randomize(Block()).float(), torch.rand(8, 1, 8, 8)
    given = dict(timesteps=T, weights="int8", train_weights=True)
    with pytest.raises(ConversionError, match='few bits beside batch norm.*batch_norm="fold"'):
        to_snntorch(net, x, **given, batch_norm="keep")
    assert all_whole(deploy(to_snntorch(net, x, **given)))
    assert all_whole(to_snntorch(net, x, timesteps=T, weights="int8"))
