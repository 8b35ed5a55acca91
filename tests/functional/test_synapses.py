import itertools
import random

import pytest
import torch
from torch import nn

from snnreg_plugins.functional import (
    SYNAPTIC_LAYERS,
    OneToOne,
    count_events,
    dense_macs,
    fan_out,
    is_integer_valued,
    is_synaptic,
    operations,
)
from tests.helpers import brute_force_fan_out, brute_force_operations

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

CONVOLUTIONS = [nn.Conv1d, nn.Conv2d, nn.Conv3d]
TRANSPOSED = [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]
SHAPES = {1: (9,), 2: (6, 5), 3: (4, 5, 3)}


LAYERS = {
    "linear": (nn.Linear(5, 3), (5,)),
    "linear_no_bias": (nn.Linear(5, 3, bias=False), (5,)),
    "linear_on_tokens": (nn.Linear(4, 2), (3, 4)),
    "non_square": (nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (2, 7, 5)),
    "non_cubic": (nn.Conv3d(1, 2, (1, 2, 3), stride=(1, 2, 1), padding=(0, 1, 1)), (1, 3, 4, 5)),
    "pixels_skipped": (nn.Conv2d(1, 2, 1, stride=3), (1, 7, 7)),
    "kernel_as_large_as_input": (nn.Conv2d(2, 3, 4), (2, 4, 4)),
    "padding_larger_than_kernel": (nn.Conv1d(1, 2, 2, padding=3), (1, 4)),
    "last_column_unreached": (nn.Conv1d(1, 2, 2, stride=2), (1, 5)),
    "transposed_non_square": (
        nn.ConvTranspose2d(2, 4, (3, 2), stride=(2, 3), padding=(1, 0), output_padding=(1, 2), dilation=(1, 3)),
        (2, 3, 4),
    ),
    "one_to_one": (OneToOne(torch.tensor(0.5)), (2, 3)),
    "one_to_one_by_channel": (OneToOne(torch.rand(3, 1, 1)), (3, 4, 2)),
    "one_to_one_by_neuron": (OneToOne(torch.rand(5)), (5,)),
    "transposed_all_padded_away_but_one": (nn.ConvTranspose1d(1, 2, 3, padding=2), (1, 3)),
}
for convolution, spatial in zip(CONVOLUTIONS, SHAPES.values(), strict=True):
    name = convolution.__name__.lower()
    LAYERS |= {
        name: (convolution(2, 3, 3), (2, *spatial)),
        f"{name}_stride": (convolution(2, 3, 3, stride=2), (2, *spatial)),
        f"{name}_dilation": (convolution(2, 3, 2, dilation=2), (2, *spatial)),
        f"{name}_padding": (convolution(2, 3, 3, padding=1), (2, *spatial)),
        f"{name}_groups": (convolution(4, 6, 2, groups=2), (4, *spatial)),
        f"{name}_depthwise": (convolution(3, 6, 3, padding=1, groups=3), (3, *spatial)),
        f"{name}_valid": (convolution(2, 3, 3, padding="valid"), (2, *spatial)),
    }
    for mode, kernel, dilation in itertools.product(["zeros", "reflect", "replicate", "circular"], [2, 3], [1, 2]):
        arguments = dict(kernel_size=kernel, padding_mode=mode, dilation=dilation)
        LAYERS[f"{name}_same_{mode}_{kernel}_{dilation}"] = (
            convolution(1, 2, padding="same", **arguments),
            (1, *spatial),
        )
        LAYERS[f"{name}_{mode}_{kernel}_{dilation}"] = (
            convolution(1, 2, padding=1, stride=2, **arguments),
            (1, *spatial),
        )
for convolution, spatial in zip(TRANSPOSED, SHAPES.values(), strict=True):
    name = convolution.__name__.lower()
    LAYERS |= {
        name: (convolution(2, 3, 3), (2, *spatial)),
        f"{name}_stride": (convolution(2, 3, 2, stride=3), (2, *spatial)),
        f"{name}_padding": (convolution(2, 3, 3, padding=1), (2, *spatial)),
        f"{name}_output_padding": (convolution(2, 3, 3, stride=2, padding=1, output_padding=1), (2, *spatial)),
        f"{name}_dilation": (convolution(2, 3, 2, dilation=2, padding=1), (2, *spatial)),
        f"{name}_groups": (convolution(4, 6, 2, groups=2), (4, *spatial)),
        f"{name}_depthwise": (convolution(3, 3, 3, stride=2, groups=3), (3, *spatial)),
    }
every_layer = pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS)


@every_layer
def test_fan_out_is_what_one_hot_inputs_reach(layer, shape):
    reached = fan_out(layer, shape)
    assert reached.dtype == torch.int64
    assert torch.equal(reached, brute_force_fan_out(layer, shape))
    assert dense_macs(layer, shape) == brute_force_fan_out(layer, shape).sum()


def random_layer(rng):
    """A layer and an input shape that it may refuse."""
    convolution = rng.choice(CONVOLUTIONS + TRANSPOSED)
    n = 1 + (CONVOLUTIONS + TRANSPOSED).index(convolution) % 3
    each = lambda low, high: tuple(rng.randint(low, high) for _ in range(n))  # noqa: E731
    groups = rng.choice([1, 1, 2, 3])
    arguments = dict(kernel_size=each(1, 3), dilation=each(1, 2), groups=groups, bias=rng.random() < 0.5)
    if convolution in TRANSPOSED:
        arguments |= dict(stride=each(1, 3), padding=each(0, 2))
        larger = map(max, arguments["stride"], arguments["dilation"])
        arguments["output_padding"] = tuple(rng.randrange(size) for size in larger)
    else:
        arguments["padding_mode"] = rng.choice(["zeros", "reflect", "replicate", "circular"])
        if rng.random() < 0.3:
            arguments["padding"] = rng.choice(["same", "valid"])
        else:
            arguments |= dict(stride=each(1, 3), padding=each(0, 2))
    channels = groups * rng.randint(1, 2)
    return convolution(channels, groups * rng.randint(1, 2), **arguments), (channels, *each(1, 7 - n))


@pytest.mark.parametrize("seed", range(8))
def test_fan_out_of_random_layers(seed):
    rng = random.Random(seed)
    accepted = 0
    while accepted < 25:
        layer, shape = random_layer(rng)
        try:
            expected = brute_force_fan_out(layer, shape)
        except RuntimeError:
            with pytest.raises(ValueError, match="input_shape"):
                fan_out(layer, shape)
        else:
            assert torch.equal(fan_out(layer, shape), expected), (layer, shape)
            accepted += 1


def test_fan_out_ignores_weights_and_bias():
    layer = nn.Conv2d(2, 3, 3)
    before = fan_out(layer, (2, 5, 5))
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(7)
    assert torch.equal(fan_out(layer, (2, 5, 5)), before)


@pytest.mark.parametrize(
    ("layer", "shape", "error", "message"),
    [
        (nn.ReLU(), (3,), TypeError, "`layer`.*ReLU"),
        (nn.LazyLinear(3), (3,), ValueError, "`input_shape`.*0 input features"),
        (nn.Linear(4, 2), (5,), ValueError, "`input_shape`.*4 input features.*5"),
        (nn.Linear(4, 2), (), ValueError, "`input_shape`"),
        (nn.Conv2d(3, 2, 3), (3, 8), ValueError, r"`input_shape`.*2 spatial dimension\(s\).*\(3, 8\)"),
        (nn.Conv2d(3, 2, 3), (1, 3, 8, 8), ValueError, "without the batch"),
        (nn.Conv2d(3, 2, 3), (4, 8, 8), ValueError, "C = 3"),
        (nn.Conv2d(3, 2, 3), (3, 2, 8), ValueError, "a size of 2 gives none"),
        (nn.Conv2d(3, 2, 3, padding=4, padding_mode="reflect"), (3, 4, 4), ValueError, "large enough to pad"),
        (nn.ConvTranspose2d(3, 2, 1, padding=2), (3, 2, 2), ValueError, "a size of 2 gives none"),
    ],
)
def test_fan_out_says_what_does_not_fit(layer, shape, error, message):
    with pytest.raises(error, match=message):
        fan_out(layer, shape)
    with pytest.raises(error, match=message):
        dense_macs(layer, shape)


def test_is_synaptic():
    assert all(is_synaptic(layer) for layer, _ in LAYERS.values())
    assert {type(layer) for layer, _ in LAYERS.values()} == set(SYNAPTIC_LAYERS)
    assert not any(is_synaptic(module) for module in [nn.ReLU(), nn.BatchNorm2d(2), nn.Sequential(nn.Linear(2, 2))])


# How inputs are made from (generator, shape), and whether they count as events.
INPUTS = {
    "binary": (lambda rng, shape: (torch.rand(shape, generator=rng) < 0.3).float(), True),
    "graded": (lambda rng, shape: torch.randint(0, 10, shape, generator=rng).float(), True),
    "ternary": (lambda rng, shape: torch.randint(-1, 2, shape, generator=rng).float(), True),
    "silent": (lambda rng, shape: torch.zeros(shape), True),
    "minus_zero": (lambda rng, shape: -torch.zeros(shape), True),
    "bool": (lambda rng, shape: torch.rand(shape, generator=rng) < 0.3, True),
    "uint8": (lambda rng, shape: torch.randint(0, 256, shape, generator=rng).to(torch.uint8), True),
    "int64": (lambda rng, shape: torch.randint(-3, 4, shape, generator=rng), True),
    "double": (lambda rng, shape: torch.randint(0, 3, shape, generator=rng).double(), True),
    "half": (lambda rng, shape: torch.randint(0, 3, shape, generator=rng).half(), True),
    "bfloat16": (lambda rng, shape: torch.randint(0, 3, shape, generator=rng).bfloat16(), True),
    "real": (lambda rng, shape: torch.rand(shape, generator=rng) - 0.5, False),
    "relu": (lambda rng, shape: torch.randn(shape, generator=rng).relu(), False),
    "real_half": (lambda rng, shape: torch.randn(shape, generator=rng).relu().half(), False),
    "real_bfloat16": (lambda rng, shape: torch.randn(shape, generator=rng).relu().bfloat16(), False),
    "halves": (lambda rng, shape: torch.randint(-2, 3, shape, generator=rng) / 2, False),
    "tiny": (lambda rng, shape: torch.randint(0, 2, shape, generator=rng) * 1e-30, False),
    "one_fraction_at_the_end": (lambda rng, shape: _with_last(torch.ones(shape), 0.5), False),
    "one_fraction_below_zero": (lambda rng, shape: _with_last(torch.ones(shape), -0.25), False),
    "fractions_that_cancel": (lambda rng, shape: _with_last(torch.full(shape, 1.0), 0.5, 0.5), False),
}
every_input = pytest.mark.parametrize(("make", "spiking"), INPUTS.values(), ids=INPUTS)


def _with_last(x, *values):
    x.view(-1)[-len(values) :] = torch.tensor(values)
    return x


@every_input
def test_operations_of_every_kind_of_input(make, spiking):
    rng = torch.Generator().manual_seed(1)
    for name in ["linear", "non_square", "conv2d_padding", "conv1d_circular_3_1", "transposed_non_square"]:
        layer, shape = LAYERS[name]
        x = make(rng, (4, *shape))
        assert operations(layer, x) == brute_force_operations(layer, x)
        assert is_integer_valued(x) == spiking
        events = x.double().abs().sum() if spiking else (x != 0).sum()
        assert count_events(x) == events.item()


@every_layer
def test_operations_of_every_layer(layer, shape):
    spikes = torch.randint(0, 3, (3, *shape), generator=torch.Generator().manual_seed(2)).float()
    for x in (spikes, spikes / 4):
        assert operations(layer, x) == brute_force_operations(layer, x)
        assert operations(layer, x, fan_out(layer, shape)) == brute_force_operations(layer, x)


@pytest.mark.parametrize("shape", [(2, 5, 4), (3, 2, 5, 4), (2, 3, 2, 5, 4)], ids=["none", "batch", "time"])
def test_operations_sum_over_all_leading_dimensions(shape):
    layer = nn.Conv2d(2, 3, 3, padding=1)
    x = torch.randint(0, 2, shape).float()
    assert operations(layer, x) == brute_force_operations(layer, x)
    assert operations(nn.Linear(4, 7), x) == brute_force_operations(nn.Linear(4, 7), x)


def test_operations_of_inputs_that_are_no_contiguous_memory():
    layer = nn.Conv2d(3, 2, 3)
    x = torch.randint(0, 2, (4, 5, 6, 3)).float().permute(0, 3, 1, 2)
    for y in (x, x.to(memory_format=torch.channels_last), x[::2], x[:, :1].expand(-1, 3, -1, -1)):
        assert operations(layer, y) == brute_force_operations(layer, y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_sums_beyond_float32_are_exact(dtype):
    x = torch.full((5, 3), 2**23 + 1, dtype=dtype)
    assert count_events(x) == 15 * (2**23 + 1)
    assert operations(nn.Linear(3, 7), x)[0] == 15 * (2**23 + 1) * 7
    x = torch.full((5, 1, 2, 2), 2**23 + 1, dtype=dtype)
    assert operations(nn.Conv2d(1, 3, 2, padding=1), x)[0] == 20 * (2**23 + 1) * 3 * 4


@pytest.mark.parametrize("value", [1.0, 0.5], ids=["events", "real"])
def test_more_inputs_than_float32_can_count(value):
    x = torch.tensor(value, dtype=torch.bfloat16).expand(2**24 + 3, 1)
    assert count_events(x) == 2**24 + 3
    assert sum(operations(nn.Linear(1, 3), x)[:2]) == 3 * (2**24 + 3)


def test_half_precision_sums_do_not_overflow():
    assert is_integer_valued(torch.ones(2, 70_000, dtype=torch.float16))
    assert count_events(torch.ones(2, 70_000, dtype=torch.float16)) == 140_000


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_real(value):
    x = torch.tensor([[1.0, 2.0], [0.0, value]])
    assert not is_integer_valued(x)
    assert not is_integer_valued(x.flip(0))
    assert operations(nn.Linear(2, 3), x)[0] == 0


@pytest.mark.parametrize("layer", [nn.Linear(3, 2), nn.Conv2d(3, 2, 2)])
def test_an_empty_batch_costs_nothing(layer):
    x = torch.zeros(0, 3, 4, 3)
    assert operations(layer, x) == (0, 0, 0)
    assert is_integer_valued(x)
    assert count_events(x) == 0


def test_a_scalar():
    assert count_events(torch.tensor(3.0)) == 3
    assert is_integer_valued(torch.tensor(3.0))
    assert not is_integer_valued(torch.tensor(0.5))


@pytest.mark.parametrize(
    "context",
    [
        torch.inference_mode,
        torch.no_grad,
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.autocast("cpu", torch.float16),
    ],
    ids=["inference_mode", "no_grad", "autocast_bfloat16", "autocast_float16"],
)
def test_operations_are_exact_under(context):
    layer, shape = LAYERS["conv2d_padding"]
    spikes = torch.randint(0, 300, (16, *shape)).float()
    for x in (spikes, spikes / 7):
        expected = brute_force_operations(layer, x)
        with context():
            assert operations(layer, x) == expected
            assert fan_out(layer, shape).sum() == dense_macs(layer, shape)


def test_inputs_are_left_as_they_are():
    x = torch.tensor([[0.5, -1.0, 2.0]], requires_grad=True)
    before = x.detach().clone()
    operations(nn.Linear(3, 2), x)
    count_events(x.round())
    is_integer_valued(x)
    assert torch.equal(x, before)
    assert x.grad_fn is None


def test_operations_say_what_does_not_fit():
    with pytest.raises(TypeError, match="ReLU"):
        operations(nn.ReLU(), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="4 input features"):
        operations(nn.Linear(4, 2), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="C = 3"):
        operations(nn.Conv2d(3, 2, 3), torch.zeros(1, 4, 8, 8))
