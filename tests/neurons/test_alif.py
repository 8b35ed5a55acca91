"""Adaptive neurons: equal in both frameworks to a plain reference, and used as each framework's own neurons are."""

from __future__ import annotations

import copy
import pickle

import norse.torch as norse
import pytest
import snntorch
import torch
from torch import nn

from snnreg_plugins import ConversionError, SpikeRate, SynapticOperations, to_nir, to_snntorch
from snnreg_plugins.frameworks.surrogate import FastSigmoid
from snnreg_plugins.neurons import ALIFParameters, Drawn, Recurrent
from snnreg_plugins.neurons.norse import ALIFCell
from snnreg_plugins.neurons.snntorch import ALIF
from snnreg_plugins.watching.layers import is_spiking_neuron, leaks
from tests.helpers import adaptive_neuron, brute_force_operations

ALL = ("tau_m", "tau_adp", "threshold", "adaptation")


def seeded():
    return torch.Generator().manual_seed(0)


def drawn(shape, **others):
    settings = dict(
        tau_m=Drawn("gamma", 5.0, 2.0),
        tau_adp=Drawn("normal", 10.0, 3.0),
        threshold=Drawn("lognormal", 0.3, 0.1),
        adaptation=Drawn("uniform", 1.5, 0.5),
        generator=seeded(),
    )
    return ALIFParameters(shape, **(settings | others))


def currents_of(steps=40, shape=(3, 7), dtype=torch.float32):
    return [3 * torch.rand(shape, generator=seeded().manual_seed(step), dtype=dtype) for step in range(steps)]


def run_snntorch(p, currents):
    neuron, state = ALIF(p), ()
    outputs = []
    for current in currents:
        state = neuron(current, *state)
        outputs.append(state)
    return [spk for spk, _, _ in outputs], [mem for _, mem, _ in outputs]


def run_norse(p, currents):
    cell, state = ALIFCell(p), None
    spikes, potentials = [], []
    for current in currents:
        z, state = cell(current, state)
        spikes.append(z)
        potentials.append(state.v)
    return spikes, potentials


RUNS = {"snntorch": run_snntorch, "norse": run_norse}


@pytest.mark.parametrize("framework", RUNS)
@pytest.mark.parametrize(
    ("shape", "sample"), [((), (7,)), ((7,), (7,)), ((4, 1, 1), (4, 3, 2)), ((4, 3, 2), (4, 3, 2))]
)
def test_steps_are_those_of_a_plain_reference_bit_by_bit(framework, shape, sample):
    p, currents = drawn(shape), currents_of(shape=(3, *sample))
    spikes, potentials = RUNS[framework](p, currents)
    expected, expected_potentials = adaptive_neuron(currents, p)
    assert torch.equal(torch.stack(spikes), torch.stack(expected))
    assert torch.equal(torch.stack(potentials), torch.stack(expected_potentials))
    assert 0.05 < torch.stack(spikes).mean() < 0.6


@pytest.mark.parametrize("framework", RUNS)
def test_gradients_are_those_of_a_plain_reference(framework):
    p, weights = drawn((7,), learn=ALL).double(), currents_of(dtype=torch.float64)
    currents = [current.clone().requires_grad_() for current in currents_of(dtype=torch.float64)]

    def gradients(run):
        spikes, potentials = run(p, currents)
        loss = sum((w * (z + v)).sum() for w, z, v in zip(weights, spikes, potentials, strict=True))
        return torch.autograd.grad(loss, [*p.parameters(), *currents])

    for ours, expected in zip(
        gradients(RUNS[framework]), gradients(lambda p, currents: adaptive_neuron(currents, p)), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
        assert expected.abs().max() > 0


def test_adaptation_spaces_spikes_out_and_no_adaptation_does_not():
    currents = [torch.tensor([[4.0]])] * 60

    def intervals(adaptation):
        spikes = run_norse(ALIFParameters(tau_m=5.0, tau_adp=20.0, adaptation=adaptation), currents)[0]
        return torch.stack(spikes).flatten().nonzero().flatten().diff().tolist()

    plain, adaptive = intervals(0.0), intervals(4.0)
    assert set(plain[1:]) == {2}
    assert adaptive == sorted(adaptive)
    assert adaptive[-1] == 2 * adaptive[0]


def test_what_is_learned_stays_in_its_range_whatever_the_optimizer_does():
    p = drawn((7,), learn=ALL)
    optimizer = torch.optim.SGD(p.parameters(), lr=30.0)
    for _ in range(3):
        optimizer.zero_grad()
        torch.stack(run_norse(p, currents_of(5))[0]).sum().backward()
        optimizer.step()
    for name in ALL:
        value = getattr(p, name)
        assert (value >= 0).all()
        assert value.isfinite().all()


def test_all_is_learned_or_kept_as_asked_for_and_comes_back_from_a_state_dict():
    p = drawn((7,), learn="threshold")
    assert [name for name, _ in p.named_parameters()] == ["log_threshold"]
    other = ALIFParameters((7,), learn="threshold")
    other.load_state_dict(p.state_dict())
    for name in ALL:
        assert torch.equal(getattr(other, name), getattr(p, name))
    assert not list(ALIFParameters(learn=()).parameters())


def test_drawn_values_are_those_of_a_generator():
    same = [drawn((50,)).tau_m for _ in range(2)]
    assert torch.equal(*same)
    assert same[0].unique().numel() == 50
    torch.manual_seed(1)
    first = ALIFParameters((50,), tau_m=Drawn("gamma", 5.0, 2.0)).tau_m
    torch.manual_seed(1)
    assert torch.equal(first, ALIFParameters((50,), tau_m=Drawn("gamma", 5.0, 2.0)).tau_m)


# Used as each framework's own.


def test_a_snntorch_neuron_keeps_its_state_if_asked_to():
    p, currents = drawn((7,)), currents_of()
    neuron = ALIF(p, init_hidden=True)
    for _ in range(2):
        spikes = [neuron(current) for current in currents]
        assert torch.equal(torch.stack(spikes), torch.stack(adaptive_neuron(currents, p)[0]))
        neuron.reset_mem()
    out = ALIF(p, init_hidden=True, output=True)(currents[0])
    assert [part.shape for part in out] == [(3, 7)] * 3
    assert neuron not in snntorch.SpikingNeuron.instances


def test_norse_runs_it_in_a_sequence():
    torch.manual_seed(0)
    p, linear = drawn((7,)), nn.Linear(5, 7)
    network, state = norse.SequentialState(linear, ALIFCell(p)), None
    inputs = currents_of(shape=(3, 5))
    spikes = []
    for x in inputs:
        z, state = network(x, state)
        spikes.append(z)
    assert torch.equal(torch.stack(spikes), torch.stack(adaptive_neuron([linear(x) for x in inputs], p)[0]))


@pytest.mark.parametrize("kind", [ALIF, ALIFCell])
def test_copies_files_and_types(kind, tmp_path):
    neuron = Recurrent(kind(drawn((7,))), 7)
    x = currents_of(1)[0]
    z, state = neuron(x)
    z.sum().backward()
    for copied in (copy.deepcopy(neuron), pickle.loads(pickle.dumps(neuron))):
        assert torch.equal(copied(x, state)[1].v, neuron(x, state)[1].v)
        assert copied.neuron.p is not neuron.neuron.p
    assert neuron.double()(x.double())[0].dtype == torch.float64
    half, x = neuron.bfloat16(), x.bfloat16()
    z, state = half(x, half(x)[1])
    assert (z.dtype, state.v.dtype) == (torch.bfloat16, torch.float32)


def test_a_copy_of_a_neuron_with_a_state_begins_without_it():
    neuron = ALIF(drawn((7,), learn=ALL), init_hidden=True)
    current = currents_of(1)[0].requires_grad_()
    first = neuron(current)
    assert torch.equal(copy.deepcopy(neuron)(current), first)
    assert neuron.mem is not None


@pytest.mark.parametrize("kind", [ALIF, ALIFCell])
def test_metrics_know_it_as_a_leaking_neuron(kind):
    neuron = kind(ALIFParameters(adaptation=1.0))
    assert is_spiking_neuron(neuron)
    assert leaks(neuron)


# Recurrent, and counted.


@pytest.mark.parametrize("kind", [ALIF, ALIFCell])
def test_recurrent_spikes_and_counts_are_those_by_hand(kind):
    torch.manual_seed(0)
    layers = nn.ModuleList([nn.Linear(5, 7), Recurrent(kind(drawn((7,))), 7)])

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = layers

        def forward(self, xs):
            state, spikes = None, []
            for x in xs:
                z, state = layers[1](layers[0](x), state)
                spikes.append(z)
            return torch.stack(spikes)

    weight = layers[1].synapses.weight.detach()
    torch.testing.assert_close(weight @ weight.T, torch.eye(7))
    network, xs = Network(), torch.stack(currents_of(12, (3, 5))).round()  # counts of events
    with torch.no_grad():
        expected = adaptive_neuron([layers[0](x) for x in xs], layers[1].neuron.p, weight)[0]
        with (
            SynapticOperations(network, batch_dim=1, input_events=True) as sops,
            SpikeRate(network) as rate,
        ):
            for _ in range(2):
                assert torch.equal(network(xs), torch.stack(expected))
    recurrent = sum(brute_force_operations(layers[1].synapses, z)[0] for z in expected[:-1])
    first = sum(brute_force_operations(layers[0], x)[0] for x in xs)
    assert recurrent > 50
    assert sops.compute().item() == pytest.approx((first + recurrent) / 3, rel=1e-12)
    assert sops.by_layer()["layers.1.synapses"] == pytest.approx(recurrent / 3)
    assert rate.compute().item() == pytest.approx(torch.stack(expected).mean().item())


@pytest.mark.parametrize("init_hidden", [False, True])
def test_samples_stepped_from_outside_count_once(init_hidden):
    torch.manual_seed(0)
    linear, neuron = nn.Linear(5, 7), ALIF(drawn((7,)), init_hidden=init_hidden)
    readout = nn.Linear(7, 2)
    network = nn.ModuleList([linear, neuron, readout])

    def step(x, state):
        out = neuron(linear(x), *state)
        z, state = (out, ()) if init_hidden else (out[0], out)
        readout(z)
        return state

    network.forward = step
    spikes = 0
    with SynapticOperations(network) as sops, torch.no_grad():
        for _ in range(2):
            state = ()
            neuron.reset_mem()
            for x in currents_of(6, (3, 5)):
                state = network(x, state)
                spikes += (neuron.spk if init_hidden else state[0]).sum().item()
    assert sops.by_layer()["2"] == pytest.approx(2 * spikes / 6)


# Refused.


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (dict(tau_m=0.0), "`tau_m` to be finite and above 0, but got 0"),
        (dict(tau_adp=-1), "`tau_adp`"),
        (dict(threshold=float("nan")), "`threshold`"),
        (dict(adaptation=0.0, learn=["adaptation"]), "`adaptation` to be finite and above 0, but got 0"),
        (dict(learn=["tau"]), r"`learn` to be one of \['tau_m', 'tau_adp', 'threshold', 'adaptation'\], but got 'tau'"),
        (dict(tau_m=Drawn("cauchy", 1.0, 1.0)), "`distribution`"),
        (dict(shape="a"), "`shape`"),
        (dict(spike_grad="steep"), r"`spike_grad` to be one of \['arctan', .*\], but got 'steep'"),
        (dict(spike_grad=torch.sigmoid), "`spike_grad`"),
    ],
)
def test_parameters_out_of_range_are_refused(arguments, error):
    with pytest.raises(ValueError, match=error):
        ALIFParameters(**arguments)


@pytest.mark.parametrize("kind", [ALIF, ALIFCell])
def test_inputs_of_another_shape_are_refused(kind):
    neuron = kind(ALIFParameters((4,)))
    for shape in ((3, 5), (3, 4, 5, 4)):  # the last would broadcast over the width
        with pytest.raises(ValueError, match=r"shape \(4,\), but got one of shape"):
            neuron(torch.zeros(shape))
    state = neuron.advance(torch.zeros(3, 4), None)[1]
    with pytest.raises(ValueError, match=r"neurons' state, \(3, 4\), but got \(2, 4\)"):
        neuron.advance(torch.zeros(2, 4), state)


def test_a_state_that_is_not_one_is_refused():
    neuron, x = ALIF(ALIFParameters()), torch.zeros(2, 4)
    with pytest.raises(ValueError, match="all of `spk`, `mem` and `adp`"):
        neuron(x, x)
    hidden = ALIF(ALIFParameters(), init_hidden=True)
    with pytest.raises(TypeError, match="`init_hidden=True`"):
        hidden(x, x, x, x)
    hidden(x)
    with pytest.raises(ValueError, match=r"reset_mem\(\)"):
        hidden(x[:1])


def test_what_is_no_adaptive_neuron_is_refused():
    for kind in (ALIF, ALIFCell):
        with pytest.raises(TypeError, match=r"`p` to be ALIFParameters\(...\), but got 0.9"):
            kind(0.9)
    with pytest.raises(TypeError, match="Leaky. For Leaky take snntorch.RLeaky"):
        Recurrent(snntorch.Leaky(beta=0.9), 4)
    with pytest.raises(ValueError, match="Make it without"):
        Recurrent(ALIF(ALIFParameters(), init_hidden=True), 4)
    with pytest.raises(ValueError, match="`features`"):
        Recurrent(ALIF(ALIFParameters()), 0)


def test_surrogates_by_name_or_as_modules():
    x = torch.linspace(-1, 1, 9)

    def slopes(given):
        u = x.clone().requires_grad_()
        ALIFParameters(spike_grad=given).spike_grad(u).sum().backward()
        return u.grad

    assert torch.equal(slopes("fast_sigmoid"), 1 / (1 + 5 * x.abs()) ** 2)
    assert torch.equal(slopes(FastSigmoid(25.0)), 1 / (1 + 25 * x.abs()) ** 2)
    assert torch.equal(slopes("triangular"), 1 - x.abs())


@pytest.mark.parametrize("kind", [ALIF, ALIFCell])
def test_what_nothing_exports_is_refused_by_layer(kind, tmp_path):
    network = nn.Sequential(nn.Linear(5, 7), kind(ALIFParameters()))
    with pytest.raises(ConversionError, match=f"layer '1': {kind.__name__} has a threshold that adapts"):
        to_nir(network, tmp_path / "network.nir", input_shape=(5,))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConversionError, match="has spiking neurons already"):
        to_snntorch(network, torch.rand(8, 5), timesteps=2)
