"""Thresholds and corrections that go by a simulation, against plain loops; and the simulation against the export."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from snnreg_plugins import to_snntorch
from snnreg_plugins.export.choose import candidates
from snnreg_plugins.export.convert import CORRECTIONS
from snnreg_plugins.export.options import Options
from snnreg_plugins.export.qcfs import QCFS
from snnreg_plugins.export.rectifiers import Population
from snnreg_plugins.export.simulate import Balance, Neurons, Simulation, correct_potential
from tests import nets
from tests.export import test_architectures
from tests.export.reference import neurons_of, recorded
from tests.helpers import soft_reset_neuron

T = 6


def recorded_rates(network, x):
    with recorded(network) as (spikes, _), torch.no_grad():
        network(x)
    return {name.removeprefix("body."): torch.stack(values).mean(0) for name, values in spikes.items()}


@pytest.mark.parametrize("options", [{}, {"beta": 0.9}, {"per_channel": True}])
@pytest.mark.parametrize(
    "name",
    ["identity shortcut", "pre-activation", "LeakyReLU", "dense block", "shuffled halves", "a maximum of a sum",
     "norm before padded convolution", "input added behind"],
)  # fmt: skip
def test_the_simulation_spikes_as_the_exported_network(name, options, monkeypatch):
    model, x = test_architectures.NETS[name](), test_architectures.inputs()
    seen = {}

    def observe(neurons, balance):
        seen[len(seen)] = torch.stack(neurons.fire(balance)).mean(0)
        return balance

    monkeypatch.setitem(CORRECTIONS, "potential", [observe])
    network = to_snntorch(model, x, timesteps=T, correction="potential", **options)
    rates = recorded_rates(network, x)
    assert len(rates) == len(seen)
    for found, expected in zip(seen.values(), (rates[layer] for layer in network.levels), strict=True):
        assert float((found - expected).abs().mean()) < 1e-3  # a sum in another order may tip a spike
        assert float(found.sum()) > 0


def mlp():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3)).double()
    return model, torch.rand(50, 6, dtype=torch.float64)


def gap_of(currents, activation, level, potential, constant=0.0, threshold=None, beta=1.0):
    threshold = level if threshold is None else threshold
    spikes = soft_reset_neuron([current + constant for current in currents], threshold, potential, beta)
    return activation - level * torch.stack(spikes).mean(0)


@torch.no_grad()
def test_spike_norm_takes_the_largest_current_layer_by_layer():
    model, x = mlp()
    network = to_snntorch(model, x, timesteps=T, threshold="spike_norm")
    current = model[0](x)
    first = current.max()
    spikes = soft_reset_neuron([current] * T, first, 0.5 * first)
    second = max(model[2](first * spike).max() for spike in spikes)
    found = [neuron.threshold for neuron in neurons_of(network).values()]
    torch.testing.assert_close(torch.stack(found), torch.stack([first, second]))


@pytest.mark.parametrize("correction", ["potential", "channel_potential", "bias"])
@torch.no_grad()
def test_corrections_move_by_the_mean_gap_and_keep_the_best(correction):
    model, x = mlp()
    network = to_snntorch(model, x, timesteps=T, correction=correction)
    level = to_snntorch(model, x, timesteps=T).levels["1"]
    currents, activation = [model[0](x)] * T, model[1](model[0](x))
    expected = torch.zeros(8, dtype=torch.float64)
    for neuron in range(8):
        best = None
        potential, constant = 0.5 * level, torch.zeros(())
        for _ in range(4):
            gap = gap_of([c[:, neuron] for c in currents], activation[:, neuron], level, potential, constant)
            error = float((gap**2).mean())
            moved = constant if correction == "bias" else potential
            if best is None or error < best:
                best, expected[neuron] = error, moved
            if correction == "bias":
                constant = constant + gap.mean()
            else:
                potential = torch.minimum(potential + T * gap.mean(), level)
    if correction == "bias":
        found = network.encoder.get_submodule("0").bias - model[0].bias
    else:
        found = network.body.get_submodule("1_initial").potential
    torch.testing.assert_close(found, expected)
    assert network.conversion["correction"] == correction


@pytest.mark.parametrize("correction", ["potential", "channel_potential", "bias"])
@pytest.mark.parametrize("steps", [2, 4, pytest.param(16, marks=pytest.mark.slow)])
def test_corrections_bring_scores_closer(correction, steps):
    errors = {"none": 0.0, correction: 0.0}
    for name in ("two blocks", "pre-activation", "dense block", "identity shortcut", "norm between pools"):
        model, x = test_architectures.NETS[name](), test_architectures.inputs(200)
        for tried in errors:
            with torch.no_grad():
                error = to_snntorch(model, x, timesteps=steps, correction=tried)(x) - model(x)
                errors[tried] += float(error.square().mean() / model(x).var())
    assert errors[correction] < errors["none"]


def test_a_correction_keeps_the_shape_it_is_made_for():
    model, x = test_architectures.NETS["identity shortcut"](), test_architectures.inputs()
    shapes = {"potential": (4, 4, 4), "channel_potential": (4, 1, 1)}
    for correction, shape in shapes.items():
        network = to_snntorch(model, x, timesteps=T, correction=correction)
        assert network.body.relu_initial.potential.shape == shape


def test_potentials_stay_below_the_threshold():
    """Above it the first reset would take charge without a spike; here the mean gap is far above it."""
    currents = torch.tensor([[5.0], [0.45]])
    one, none = torch.tensor(1.0), torch.tensor(0.0)
    neurons = Neurons(Population("", 1, 1.0, torch.inf), [currents] * 2, currents, beta=1.0, per_channel=False)
    # From 1 the second sample spikes once in two steps, 0.05 too much; from 0 never.
    assert correct_potential(neurons, Balance(one, one, none, none)).potential == 1.0


@torch.no_grad()
def test_leak_is_compensated_by_the_best_of_a_grid():
    model, x = mlp()
    x, beta = x[:40], 0.8
    network = to_snntorch(model, x, timesteps=T, beta=beta, correction="none")
    level = to_snntorch(model, x, timesteps=T).levels["1"]
    currents, activation = [model[0](x)] * T, model[1](model[0](x))
    best = (float("inf"), None, None, None)
    for f in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1):
        for p in (0.25, 0.5, 0.75):
            for q in (0.0, 0.25, 0.5, 0.75, 1.0):
                threshold = f * level
                constant = (1 - beta) * q * threshold
                gap = gap_of(currents, activation, level, p * threshold, constant, threshold, beta)
                error = float((gap**2).mean())
                if error < best[0]:
                    best = error, threshold, p * threshold, constant
    torch.testing.assert_close(network.body.get_submodule("1").threshold, best[1])
    torch.testing.assert_close(network.body.get_submodule("1_initial").potential, best[2])
    bias = network.encoder.get_submodule("0").bias - model[0].bias
    torch.testing.assert_close(bias, best[3].expand(8).to(bias))


def test_leaky_neurons_follow_better_with_compensation():
    model, x = test_architectures.NETS["two blocks"](), test_architectures.inputs(100)

    def error(**options):
        with torch.no_grad():
            return float((to_snntorch(model, x, timesteps=32, beta=0.9, **options)(x) - model(x)).abs().mean())

    assert error() < 0.5 * error(compensate_leak=False)


@pytest.mark.parametrize("activation", [nn.ReLU6(), nn.Hardtanh(0, 0.5)])
def test_learned_thresholds_are_the_clips(activation):
    model, x = mlp()
    model[1] = activation
    model[3] = nn.ReLU6()
    network = to_snntorch(model, x, timesteps=T, threshold="learned")
    first, second = (float(neuron.threshold) for neuron in neurons_of(network).values())
    assert (first, second) == (activation.max_val, 6.0)
    model[3] = nn.ReLU()
    with pytest.raises(ValueError, match="Layer '3' has learned no threshold. Train with QCFSActivations, or choose"):
        to_snntorch(model, x, timesteps=T, threshold="learned")


def test_auto_keeps_what_was_asked_for():
    model, _, x = nets.make("mlp", torch.float32)
    asked = {"per_channel": True, "correction": "bias", "percent": 98.5}
    network = to_snntorch(model, x, timesteps=4, threshold="auto", **asked)
    assert {name: network.conversion[name] for name in asked} == asked
    tried = candidates(Options(timesteps=4, threshold="auto", **asked))
    assert [one["threshold"] for one in tried] == ["local", "percentile", "max", "mmse"]  # none of them twice


@torch.no_grad()
def test_auto_takes_the_cheapest_of_the_best():
    model, _, x = nets.make("lenet_functional", torch.float32)
    x = torch.rand(300, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    network = to_snntorch(model, x, timesteps=4, threshold="auto")
    options = {name: network.conversion[name] for name in ("threshold", "percent", "per_channel", "correction")}
    assert options["threshold"] in ("max", "percentile", "mmse", "local")
    # The same as asking for what it chose.
    again = to_snntorch(model, x, timesteps=4, **options)
    assert torch.equal(network(x), again(x))
    # No candidate agrees with the network by far more.
    classes = model(x).argmax(1)

    def agreement(found):
        return float((found(x).argmax(1) == classes).float().mean())

    for threshold in ("max", "percentile", "mmse", "local"):
        for correction in ("none", "potential"):
            other = to_snntorch(model, x, timesteps=4, threshold=threshold, correction=correction)
            assert agreement(network) >= agreement(other) - 0.08


def test_memory_is_bounded_on_any_number_of_samples(monkeypatch):
    from snnreg_plugins.export import convert

    model, _ = mlp()
    seen = []
    adjust = Simulation.adjust
    monkeypatch.setattr(Simulation, "adjust", lambda self, x, *rest: seen.append(len(x)) or adjust(self, x, *rest))
    stream = (torch.rand(100, 6, dtype=torch.float64) for _ in range(40))
    to_snntorch(model, stream, timesteps=T, correction="potential")
    stream = (torch.rand(100, 6, dtype=torch.float64) for _ in range(40))
    to_snntorch(model, stream, timesteps=T, correction="bias")
    assert seen == [1024, 256]  # a mean over a channel takes fewer
    seen.clear()
    monkeypatch.setattr(convert, "_ELEMENTS", 8 * T * 100)
    to_snntorch(model, torch.rand(4000, 6, dtype=torch.float64), timesteps=T, correction="bias")
    assert seen == [100]


def test_spike_norm_by_channel_leaves_dead_channels_the_level_of_the_layer():
    model, x = mlp()
    with torch.no_grad():
        model[0].weight[3] = 0
        model[0].bias[3] = -1
    network = to_snntorch(model, x, timesteps=T, threshold="spike_norm", per_channel=True)
    levels = network.levels["1"]
    assert levels.shape == (8,)
    assert float(levels[3]) == float(levels.max())


@pytest.mark.parametrize("levels", [1, 2, 4, 8])
@torch.no_grad()
def test_quantized_activations_lose_nothing_at_as_many_steps(levels):
    """The first layer sees a constant current: its rate is QCFS's value, exactly; and so are the scores behind it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), QCFS(levels), nn.Linear(8, 3)).double()
    x = torch.rand(50, 6, dtype=torch.float64)
    model.train()(x)
    model[1].activate()
    network = to_snntorch(model.eval(), x, timesteps=levels)
    assert float(network.levels["1"]) == pytest.approx(float(model[1].threshold))
    torch.testing.assert_close(network(x), model(x))


def test_a_quantized_activation_that_is_not_active_yet_is_a_relu():
    model, x = mlp()
    relu = to_snntorch(model, x, timesteps=T)
    model[1] = QCFS(4).double()
    assert torch.equal(to_snntorch(model, x, timesteps=T)(x), relu(x))


def test_spike_norm_stays_below_a_clip():
    model, x = mlp()
    model[1] = nn.Hardtanh(0, 0.125)
    assert float(to_snntorch(model, x, timesteps=T, threshold="spike_norm").levels["1"]) == 0.125


def test_a_corrected_current_flows_into_its_own_neurons_alone():
    """Not into the bias of a layer that others read too."""
    torch.manual_seed(0)
    a, b, c = (nn.Linear(6, 6) for _ in range(3))
    shared = nets.Chain(
        lambda m, x: (lambda y: m.c(m.r(y) + y))(m.b(m.s(m.a(x)))), a=a, b=b, c=c, r=nn.ReLU(), s=nn.ReLU()
    )
    x = torch.rand(50, 6)
    network = to_snntorch(shared, x, timesteps=T, correction="bias")
    assert torch.equal(network.body.b.bias, b.bias)
    assert network.body.r_current.bias.shape == (6,)
