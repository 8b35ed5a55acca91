"""Fan-out and operations of layers and inputs at random, against one-hot brute force."""

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from snnreg_plugins import SynapticOperations
from snnreg_plugins.functional import OneToOne, count_events, dense_macs, fan_out, is_integer_valued, operations
from tests.helpers import brute_force_fan_out, brute_force_operations

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
LARGEST = {1: 9, 2: 6, 3: 4}

bounded = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)


@st.composite
def convolutions(draw):
    """A convolution, transposed or not, and the shape of an input that it takes."""
    n = draw(st.sampled_from([1, 2, 3]))
    each = lambda low, high: draw(st.tuples(*[st.integers(low, high)] * n))  # noqa: E731
    groups = draw(st.sampled_from([1, 2, 3]))
    channels = groups * draw(st.integers(1, 2))
    arguments = dict(
        out_channels=groups * draw(st.integers(1, 2)),
        kernel_size=each(1, 3),
        dilation=each(1, 3),
        groups=groups,
        bias=draw(st.booleans()),
    )
    if draw(st.booleans()):
        arguments |= dict(stride=each(1, 3), padding=each(0, 2))
        limits = map(max, arguments["stride"], arguments["dilation"])
        arguments["output_padding"] = tuple(draw(st.integers(0, limit - 1)) for limit in limits)
        make = TRANSPOSED[n]
    else:
        arguments["padding_mode"] = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
        arguments["padding"] = draw(st.sampled_from(["same", "valid"])) if draw(st.booleans()) else each(0, 2)
        if arguments["padding"] != "same":
            arguments["stride"] = each(1, 3)
        make = CONVOLUTIONS[n]
    return make(channels, **arguments), (channels, *each(1, LARGEST[n]))


@st.composite
def linear_layers(draw):
    features = draw(st.integers(1, 6))
    leading = draw(st.lists(st.integers(1, 3), max_size=2))
    return nn.Linear(features, draw(st.integers(1, 5)), bias=draw(st.booleans())), (*leading, features)


@st.composite
def one_to_one_layers(draw):
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    weight = tuple(draw(st.sampled_from([1, size])) for size in shape[draw(st.integers(0, len(shape))) :])
    return OneToOne(torch.rand(weight)), shape


layers = st.one_of(convolutions(), convolutions(), linear_layers(), one_to_one_layers())


def brute_force(layer, shape):
    try:
        return brute_force_fan_out(layer, shape)
    except RuntimeError:
        with pytest.raises(ValueError, match="input_shape"):
            fan_out(layer, shape)
        return None


# How values are made, and whether they are events: multiples of 1 are, whatever their sign.
KINDS = {
    "binary": (lambda seed, shape: random(seed, shape).round(), True),
    "graded": (lambda seed, shape: random(seed, shape).round() * 2.5, False),
    "ternary": (lambda seed, shape: (random(seed, shape) * 3).floor() - 1, True),
    "counts": (lambda seed, shape: (random(seed, shape) * 300).floor(), True),
    "real": (lambda seed, shape: random(seed, shape) - 0.5, False),
    "rectified": (lambda seed, shape: (random(seed, shape) - 0.5).relu(), False),
    "integers": (lambda seed, shape: (random(seed, shape) * 5).long(), True),
    "booleans": (lambda seed, shape: random(seed, shape) > 0.5, True),
    "half": (lambda seed, shape: random(seed, shape).round().half(), True),
}


def random(seed, shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@bounded
@given(layers)
def test_fan_out_is_what_one_hot_inputs_reach(made):
    layer, shape = made
    expected = brute_force(layer, shape)
    assume(expected is not None)
    assert torch.equal(fan_out(layer, shape), expected)
    assert dense_macs(layer, shape) == int(expected.sum())


@bounded
@given(layers, st.sampled_from(sorted(KINDS)), st.integers(1, 3), st.integers(0, 10**6))
def test_operations_of_every_kind_of_input(made, kind, batch, seed):
    layer, shape = made
    assume(brute_force(layer, shape) is not None)
    x = KINDS[kind][0](seed, (batch, *shape))
    assert operations(layer, x) == brute_force_operations(layer, x)


@bounded
@given(layers, st.sampled_from(sorted(set(KINDS) - {"integers", "booleans", "half"})), st.integers(0, 10**6))
def test_the_metric_counts_the_same(made, kind, seed):
    layer, shape = made
    assume(brute_force(layer, shape) is not None)
    x = KINDS[kind][0](seed, (2, *shape))
    with SynapticOperations(layer) as metric:
        layer(x)
    totals = tuple(int(2 * metric.total(quantity)) for quantity in metric.quantities)
    assert totals == brute_force_operations(layer, x)


@bounded
@given(st.sampled_from(sorted(KINDS)), st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(0, 10**6))
def test_what_counts_as_events(kind, shape, seed):
    make, whole = KINDS[kind]
    x = make(seed, tuple(shape))
    values = x.double().flatten().tolist()
    if whole:
        assert is_integer_valued(x)
        assert count_events(x) == sum(abs(int(value)) for value in values)
    else:
        assert is_integer_valued(x) == all(value.is_integer() for value in values)
        if not is_integer_valued(x):
            assert count_events(x) == sum(value != 0 for value in values)
