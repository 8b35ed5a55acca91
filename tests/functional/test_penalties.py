import math
from fractions import Fraction

import pytest
import torch
from torch import nn

from snnreg_plugins.functional import PENALTIES, expected_rate, fan_out, hoyer, hoyer_square, l1
from snnreg_plugins.functional.penalties import robust_maximum

THRESHOLD = 0.75


def weighted_mean(values, weight):
    return sum(w * v for w, v in zip(weight, values, strict=True)) / sum(weight)


def root(value):
    return value**0.5


# The formulas of the docstrings, for one sample as a list of numbers, with weights.
FORMULAS = {
    "l1": lambda a, w: weighted_mean([abs(v) for v in a], w),
    "l2": lambda a, w: weighted_mean([v**2 for v in a], w),
    "transformed_l1": lambda a, w: weighted_mean([2 * abs(v) / (1 + abs(v)) for v in a], w),
    # With weights of mean 1: Σ w |a| = n · weighted mean.
    "hoyer": lambda a, w: (
        len(a) * weighted_mean([abs(v) for v in a], w) / root(len(a) * weighted_mean([v**2 for v in a], w))
    ),
    "hoyer_square": lambda a, w: (
        (len(a) * weighted_mean([abs(v) for v in a], w)) ** 2 / (len(a) * weighted_mean([v**2 for v in a], w))
    ),
    "expected_rate": lambda a, w: weighted_mean([(v / THRESHOLD).clamp(0, 1) for v in a], w),
}
ARGUMENTS = {"expected_rate": {"threshold": THRESHOLD}}
every_penalty = pytest.mark.parametrize("name", FORMULAS)


def penalty(name, activity, weight=None):
    return PENALTIES[name](activity, weight, **ARGUMENTS.get(name, {}))


def reference(name, activity, weight=None):
    """The mean over the samples of the literal formula, in float64; a silent sample counts as 0."""
    if weight is None:
        weight = torch.ones(activity.shape[1:])
    weight = weight.expand(activity.shape[1:]).double().flatten().tolist()
    samples = [sample.flatten().unbind() for sample in activity.double()]
    return sum(FORMULAS[name](sample, weight) for sample in samples if any(sample)) / len(samples)


def value_and_gradient(function, name, activity, weight=None):
    activity = activity.clone().requires_grad_()
    value = function(name, activity, weight)
    (gradient,) = torch.autograd.grad(value, activity)
    return value.detach(), gradient


def sparse(*shape, dtype=torch.float32, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng).relu().to(dtype)


CONVOLUTION = nn.Conv2d(2, 3, 3, padding=1)
WEIGHTS = {
    "uniform": None,
    "fan_out": fan_out(CONVOLUTION, (2, 4, 3)),
    "per_channel": torch.tensor([2.0, 0.5]).reshape(2, 1, 1),
    "some_zero": torch.tensor([[0.0, 1.0, 3.0]]),
}


def test_every_penalty_has_a_formula_here():
    assert PENALTIES.keys() == FORMULAS.keys()


@every_penalty
@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("signed", [False, True], ids=["relu", "signed"])
def test_value_and_gradient_are_those_of_the_formula(name, weight, dtype, signed):
    activity = sparse(5, 2, 4, 3, dtype=dtype)
    if signed:
        activity = activity - 0.3
    value, gradient = value_and_gradient(penalty, name, activity, weight)
    expected, expected_gradient = value_and_gradient(reference, name, activity, weight)
    assert value.shape == ()
    assert value.dtype == dtype
    torch.testing.assert_close(value, expected.to(dtype))
    torch.testing.assert_close(gradient, expected_gradient.to(dtype))


@every_penalty
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weight", [None, WEIGHTS["fan_out"]], ids=["uniform", "fan_out"])
def test_half_precision_activity(name, dtype, weight):
    activity = sparse(5, 2, 4, 3, dtype=dtype)
    value, gradient = value_and_gradient(penalty, name, activity, weight)
    expected, expected_gradient = value_and_gradient(reference, name, activity, weight)
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    precision = torch.finfo(dtype).eps
    torch.testing.assert_close(value, expected.float(), rtol=precision, atol=0)
    torch.testing.assert_close(gradient, expected_gradient.to(dtype), rtol=4 * precision, atol=precision / 100)


@every_penalty
@pytest.mark.parametrize("weight", [None, torch.tensor([1152, 4608])], ids=["uniform", "fan_out"])
def test_half_precision_sums_do_not_overflow(name, weight):
    activity = torch.full((64, 2), 1000.0, dtype=torch.float16)
    value, gradient = value_and_gradient(penalty, name, activity, weight)
    torch.testing.assert_close(value, reference(name, activity, weight).float())
    assert gradient.isfinite().all()


@every_penalty
def test_is_a_mean_over_samples(name):
    activity = sparse(6, 3, 4)
    each = torch.stack([penalty(name, sample.unsqueeze(0)) for sample in activity])
    torch.testing.assert_close(penalty(name, activity), each.mean())
    torch.testing.assert_close(penalty(name, torch.cat([activity, activity])), penalty(name, activity))


@every_penalty
@pytest.mark.parametrize("weight", [None, torch.tensor([0.0, 1.0, 2.0])], ids=["uniform", "weighted"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_silent_samples_cost_nothing_and_have_no_gradient(name, weight, dtype):
    activity = sparse(4, 3, dtype=dtype)
    activity[1] = 0
    activity[3] = torch.tensor([5.0, 0.0, 0.0])  # silent where the weight is not 0
    value, gradient = value_and_gradient(penalty, name, activity, weight)
    assert value.isfinite()
    assert gradient.isfinite().all()
    silent = [1, 3] if weight is not None else [1]
    others = [index for index in range(4) if index not in silent]
    torch.testing.assert_close(value, penalty(name, activity[others], weight) * len(others) / 4)
    if name not in ("l1", "transformed_l1", "expected_rate"):
        assert not gradient[silent].any()
    value, gradient = value_and_gradient(penalty, name, torch.zeros(2, 3, dtype=dtype), weight)
    assert value == 0
    assert gradient.isfinite().all()


@pytest.mark.parametrize("function", [hoyer, hoyer_square])
@pytest.mark.parametrize("scale", [1e-4, 0.1, 7.0, 1e4])
def test_hoyer_penalties_do_not_see_the_scale(function, scale):
    activity, weight = sparse(4, 30), torch.arange(30)
    for w in (None, weight):
        torch.testing.assert_close(function(activity * scale, w), function(activity, w))
        torch.testing.assert_close(function(activity, w), function(activity, None if w is None else w * scale))
    scaled = activity * torch.tensor([1.0, 2.0, 3.0, 4.0]).unsqueeze(1)
    torch.testing.assert_close(function(scaled), function(activity))
    _, gradient = value_and_gradient(lambda _, a, __: function(a), "", activity)
    torch.testing.assert_close((gradient * activity).sum(1), torch.zeros(4), atol=1e-6, rtol=0)


@pytest.mark.parametrize("active", [1, 2, 5, 16])
def test_hoyer_penalties_estimate_the_number_of_active_positions(active):
    activity = torch.zeros(3, 16)
    activity[:, :active] = 2.5
    torch.testing.assert_close(hoyer(activity), torch.tensor(math.sqrt(active)))
    torch.testing.assert_close(hoyer_square(activity), torch.tensor(float(active)))


def test_weighted_l1_is_the_share_of_synapses_used():
    spikes = (sparse(3, 2, 4, 3) > 0).float()
    reached = fan_out(CONVOLUTION, (2, 4, 3))
    torch.testing.assert_close(l1(spikes, reached), (spikes * reached).sum() / (3 * reached.sum()))


@pytest.mark.parametrize("shape", [(), (2, 1, 1)], ids=["layer", "channel"])
def test_expected_rate_takes_a_threshold_for_each_channel_and_gives_it_no_gradient(shape):
    threshold = torch.full(shape, 0.5).requires_grad_()
    activity = sparse(5, 2, 4, 3).requires_grad_()
    expected_rate(activity, threshold=threshold).backward()
    assert threshold.grad is None
    assert activity.grad.any()
    assert not activity.grad[activity > 0.5].any()
    torch.testing.assert_close(
        expected_rate(activity, threshold=threshold), (activity / 0.5).clamp(0, 1).mean(), check_stride=False
    )


@pytest.mark.parametrize("quantile", [0.0, 0.25, 0.5, 0.9, 0.99, 0.999, 1.0])
@pytest.mark.parametrize("size", [1, 2, 7, 10, 100, 999, 1000, 1001, 16_384])
def test_robust_maximum_is_the_smallest_value_that_enough_values_do_not_exceed(quantile, size):
    values = torch.rand(size, generator=torch.Generator().manual_seed(size))
    enough = math.ceil(Fraction(str(quantile)) * size)
    assert robust_maximum(values.reshape(1, -1), quantile) == values.sort().values[max(enough, 1) - 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_robust_maximum_in_other_precision(dtype):
    values = sparse(10, 100, dtype=dtype).requires_grad_()
    top = robust_maximum(values, 0.99)
    assert top == values.detach().double().flatten().sort().values[989]
    assert top.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert not top.requires_grad


def test_robust_maximum_looks_at_whole_samples_from_the_start():
    activity = torch.arange(40.0).reshape(10, 2, 2)
    assert robust_maximum(activity, 1.0, samples=4) == 3
    assert robust_maximum(activity, 1.0, samples=5) == 7
    assert robust_maximum(activity, 1.0, samples=1000) == 39
    assert robust_maximum(torch.arange(10.0), 1.0, samples=3) == 2
