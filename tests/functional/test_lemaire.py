import dataclasses
import math

import pytest
import torch
from torch import nn

from snnreg_plugins.functional import (
    LemaireEnergy,
    OneToOne,
    lemaire_break_even_rate,
    lemaire_dense_energy,
    lemaire_energy,
    operations,
    ram_access,
)
from snnreg_plugins.functional.geometry import Geometry

# int32, Horowitz, ISSCC 2014, in pJ.
ADD, MULTIPLY_ADD = 0.1, 3.1 + 0.1


def ram(elements, bits=32):
    return 1.09e-5 * elements * bits + 13.2


def spent(energy):
    """In pJ, in the order operations, potentials, weights, inputs, outputs."""
    return [
        1e12 * part for part in (energy.operations, energy.potentials, energy.weights, energy.inputs, energy.outputs)
    ]


def test_an_access_costs_what_was_published():
    assert ram_access(1000) == pytest.approx(1e-12 * (1.09e-5 * 32_000 + 13.2))
    assert ram_access(0, bits=8) == pytest.approx(13.2e-12)


@pytest.mark.parametrize("leaky", [False, True])
def test_a_spiking_convolution_by_hand(leaky):
    # 5x5, stride 2, 3 to 4 channels, 15x15 to 6x6: an event reaches ceil(5 / 2)^2 · 4 = 36 and reads 100 weights.
    layer = nn.Conv2d(3, 4, 5, stride=2)
    energy = lemaire_energy(layer, (3, 15, 15), timesteps=8, events_in=200, events_out=60, leaky=leaky)
    updates = 8 * 4 * 6 * 6
    assert spent(energy) == pytest.approx(
        [
            (200 * 36 + updates + 60) * ADD + (updates * MULTIPLY_ADD if leaky else 0),
            2 * (200 * 100 + updates) * ram(144),
            200 * 100 * ram(300),
            200 * ram(675),
            60 * ram(144),
        ]
    )
    assert energy.total == pytest.approx(1e-12 * sum(spent(energy)))
    assert energy.memory == pytest.approx(energy.total - energy.operations)


@pytest.mark.parametrize("leaky", [False, True])
def test_a_spiking_fully_connected_layer_by_hand(leaky):
    energy = lemaire_energy(nn.Linear(20, 7), (20,), timesteps=5, events_in=30, events_out=4, leaky=leaky, bits=16)
    assert spent(energy) == pytest.approx(
        [
            (30 * 7 + 5 * 7 + 4) * ADD + (5 * 7 * MULTIPLY_ADD if leaky else 0),
            2 * (30 * 7 + 5 * 7) * ram(7, 16),
            30 * 7 * ram(140, 16),
            30 * ram(20, 16),
            4 * ram(7, 16),
        ]
    )


def test_dense_layers_by_hand():
    macs = 4 * 6 * 6 * 3 * 25
    assert spent(lemaire_dense_energy(nn.Conv2d(3, 4, 5, stride=2), (3, 15, 15))) == pytest.approx(
        [macs * MULTIPLY_ADD + 144 * ADD, 0, macs * ram(300), macs * ram(675), 144 * ram(144)]
    )
    assert spent(lemaire_dense_energy(nn.Linear(20, 7), (20,))) == pytest.approx(
        [140 * MULTIPLY_ADD + 7 * ADD, 0, 140 * ram(140), 20 * ram(20), 7 * ram(7)]
    )


def test_weights_may_have_fewer_bits_than_the_rest():
    layer, given = nn.Linear(20, 7), dict(timesteps=5, events_in=30, events_out=4)
    for few, whole, read in (
        (lemaire_energy(layer, (20,), **given, weight_bits=4), lemaire_energy(layer, (20,), **given), 30 * 7),
        (lemaire_dense_energy(layer, (20,), weight_bits=4), lemaire_dense_energy(layer, (20,)), 140),
    ):
        assert few.weights == pytest.approx(1e-12 * read * (1.09e-5 * 140 * 4 + 13.2))
        assert dataclasses.replace(few, weights=whole.weights) == whole
    with pytest.raises(ValueError, match="`weight_bits`"):
        lemaire_dense_energy(layer, (20,), weight_bits=0)


def test_exact_synaptic_operations_take_the_place_of_the_models():
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, 3, padding=1)
    events = (torch.rand(1, 2, 6, 6) < 0.4).float()
    sops, _, _ = operations(layer, events)
    number = int(events.sum())
    energy = lemaire_energy(layer, (2, 6, 6), timesteps=1, events_in=number, events_out=0, sops=sops)
    assert sops < number * 27  # events at the border reach less
    assert spent(energy) == pytest.approx(
        [(sops + 108) * ADD, 2 * (sops + 108) * ram(108), sops * ram(54), number * ram(72), 0]
    )


def test_an_analog_layer_is_computed_once():
    energy = lemaire_energy(nn.Linear(20, 7), (20,), timesteps=5, events_in=0, events_out=4, effective_macs=70)
    assert spent(energy) == pytest.approx(
        [(35 + 4) * ADD + 70 * MULTIPLY_ADD, 2 * 35 * ram(7), 70 * ram(140), 10 * ram(20), 4 * ram(7)]
    )
    energy = lemaire_energy(nn.Conv1d(1, 2, 3), (1, 9), timesteps=2, events_in=0, events_out=0, effective_macs=42)
    assert spent(energy)[3] == pytest.approx(42 * ram(9))


def test_layers_add_up():
    parts = LemaireEnergy(1.0, 2.0, 3.0, 4.0, 5.0) + LemaireEnergy(weights=10.0)
    assert parts == LemaireEnergy(1.0, 2.0, 13.0, 4.0, 5.0)
    assert parts.total == 25


LAYERS = [
    (nn.Linear(6, 5), (6,)),
    (nn.Linear(6, 5), (4, 6)),
    (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (4, 11)),
    (nn.Conv2d(2, 3, (3, 5), padding="same", dilation=2), (2, 9, 8)),
    (nn.Conv2d(2, 3, 3, padding="valid"), (2, 9, 8)),
    (nn.Conv3d(1, 2, 2, stride=2), (1, 4, 4, 4)),
    (nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1), (2, 5, 5)),
    (OneToOne(torch.tensor(2.0)), (3, 4, 4)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=str)
def test_sizes_are_those_of_the_layer(layer, shape):
    size = Geometry.of(layer, shape)
    x = torch.ones(1, *shape)
    assert size.outputs == layer(x).numel()
    assert size.inputs == math.prod(shape)
    assert size.weights == layer.weight.numel()
    assert size.macs >= operations(layer, x)[0]  # those with padding are counted too
    assert size.taps >= size.reached
    if all(part == 0 for part in getattr(layer, "padding", [0])) and not isinstance(layer, nn.ConvTranspose2d):
        assert size.macs == operations(layer, x)[0]


@pytest.mark.parametrize(("layer", "shape"), [LAYERS[0], LAYERS[2]], ids=str)
def test_at_the_break_even_rate_both_spend_the_same(layer, shape):
    rate = lemaire_break_even_rate(layer, shape, timesteps=1)
    size = Geometry.of(layer, shape)
    both = lemaire_energy(layer, shape, timesteps=1, events_in=rate * size.inputs, events_out=rate * size.outputs)
    assert 0 < rate < 1
    assert both.total == pytest.approx(lemaire_dense_energy(layer, shape).total)


def test_where_silence_costs_more_there_is_no_break_even():
    assert math.isnan(lemaire_break_even_rate(nn.Linear(2, 50), (2,), timesteps=100))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"timesteps": 0}, "`timesteps`"),
        ({"events_in": -1}, "`events_in`.*-1"),
        ({"events_out": math.nan}, "`events_out`.*nan"),
        ({"sops": -3}, "`sops`"),
        ({"effective_macs": math.inf}, "`effective_macs`"),
    ],
)
def test_numbers_that_cannot_be_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        lemaire_energy(nn.Linear(2, 3), (2,), **({"timesteps": 1, "events_in": 1, "events_out": 1} | changed))


def test_layers_that_have_no_synapses_are_refused():
    with pytest.raises(TypeError, match="`layer`.*ReLU"):
        lemaire_dense_energy(nn.ReLU(), (2,))
    with pytest.raises(ValueError, match="`input_shape`"):
        lemaire_dense_energy(nn.Linear(2, 3), (5,))
