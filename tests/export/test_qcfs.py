"""The quantized activation against its formula, written plainly."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from snnreg_plugins.export.qcfs import QCFS, clip_floor_shift
from snnreg_plugins.watching.layers import neuron_layers
from tests.helpers import soft_reset_neuron


class StraightThroughFloor(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.floor(x)

    @staticmethod
    def backward(ctx, grad):
        return grad


def by_hand(x, threshold, levels):
    x = x / threshold
    x = torch.clamp(x, 0, 1)
    x = StraightThroughFloor.apply(x * levels + 0.5) / levels
    return x * threshold


def gradients(function, x, threshold, levels, incoming):
    x, threshold = x.clone().requires_grad_(), threshold.clone().requires_grad_()
    y = function(x, threshold, levels)
    y.backward(incoming)
    return y.detach(), x.grad, threshold.grad


def percentile_by_hand(y, percent):
    """The smallest value that at least so many percent of the values do not exceed."""
    ordered = y.detach().flatten().sort().values
    return next(v for i, v in enumerate(ordered, 1) if i >= percent / 100 * len(ordered) - 1e-6)


def spread(shape=(64, 3, 5, 5), seed=0, dtype=torch.float64):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2).to(dtype)


def activated(levels=4, threshold=1.0):
    activation = QCFS(levels, threshold)
    activation.activate()
    return activation


@pytest.mark.parametrize("threshold", [0.3, 1.0, 2.7])
def test_values_and_gradients_equal_the_formula_by_hand(threshold):
    x, incoming = spread(), spread(seed=1)
    threshold = torch.tensor(threshold, dtype=torch.float64)
    for levels in (1, 2, 3, 4, 7, 16, 255):
        expected = gradients(by_hand, x, threshold, levels, incoming)
        actual = gradients(clip_floor_shift, x, threshold, levels, incoming)
        for value, other in zip(actual, expected, strict=True):
            torch.testing.assert_close(value, other, rtol=0, atol=1e-11)
        plain = threshold * torch.clamp(torch.floor(x * levels / threshold + 0.5) / levels, 0, 1)
        torch.testing.assert_close(actual[0], plain, rtol=0, atol=1e-12)


def test_at_the_edges():
    x = torch.tensor([-math.inf, -2.0, -0.0, 0.0, 0.25, 1.0, 2.0, 2.5, 1e30], dtype=torch.float64)
    threshold = torch.tensor(2.0, dtype=torch.float64)
    y, dx, _ = gradients(clip_floor_shift, x, threshold, 4, torch.ones_like(x))
    assert y.tolist() == [0, 0, 0, 0, 0.5, 1, 2, 2, 2]  # a half is rounded up
    assert dx.tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0]  # none at 0, as of a ReLU
    assert clip_floor_shift(torch.tensor(float("nan")), threshold, 4).isnan()


def test_is_the_mean_of_a_spiking_neuron_over_as_many_steps():
    x = spread((2000,)).clamp(-1, 3)
    for levels in (1, 2, 4, 8):
        threshold = torch.tensor(1.5, dtype=torch.float64)
        spikes = soft_reset_neuron([x] * levels, 1.5, 0.5 * 1.5)
        rate = torch.stack(spikes).mean(0) * 1.5
        torch.testing.assert_close(clip_floor_shift(x, threshold, levels), rate, rtol=0, atol=1e-12)


@pytest.mark.parametrize("levels", [4, 256])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_keeps_the_dtype_and_computes_in_single_precision(dtype, levels):
    x, incoming, threshold = spread(dtype=dtype), spread(seed=1, dtype=dtype), torch.tensor(1.7)
    y, dx, dt = gradients(clip_floor_shift, x, threshold, levels, incoming)
    expected = gradients(by_hand, x.float(), threshold, levels, incoming.float())
    assert (y.dtype, dx.dtype, dt.dtype) == (dtype, dtype, torch.float32)
    tolerance = dict(rtol=torch.finfo(dtype).eps, atol=0)
    torch.testing.assert_close(y.float(), expected[0], **tolerance)
    torch.testing.assert_close(dx.float(), expected[1], **tolerance)
    torch.testing.assert_close(dt, expected[2], rtol=1e-4, atol=1e-3)


def test_a_threshold_below_zero_counts_as_tiny_and_can_recover():
    x, threshold = spread(), torch.tensor(-0.5, dtype=torch.float64)
    y, dx, dt = gradients(clip_floor_shift, x, threshold, 4, torch.ones_like(x))
    assert y.min() == 0
    assert y.max() == pytest.approx(1e-6)
    assert dx.isfinite().all()
    assert float(dt) == pytest.approx(float((x > 0).sum()))  # raising it raises every active output


def test_other_layouts_and_shapes():
    threshold = torch.tensor(1.2, dtype=torch.float64)
    x = spread((4, 3, 6, 6))
    for view in (x.to(memory_format=torch.channels_last), x.transpose(1, 3), x[:, ::2], x[:0], x[0, 0, 0, 0]):
        incoming = torch.cos(view)
        expected = gradients(by_hand, view, threshold, 4, incoming)
        for value, other in zip(gradients(clip_floor_shift, view, threshold, 4, incoming), expected, strict=True):
            torch.testing.assert_close(value, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_is_a_relu_until_activated(dtype, training):
    x = spread(dtype=dtype)
    x[0, 0, 0] = torch.tensor([0.0, -0.0, float("inf"), float("nan"), -float("inf")])
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    activation = QCFS().train(training)
    expected, actual = torch.relu(a), activation(b)
    assert actual.dtype == dtype
    assert torch.equal(actual.nan_to_num(-1), expected.nan_to_num(-1))
    incoming = spread(seed=1, dtype=dtype)
    expected.backward(incoming)
    actual.backward(incoming)
    assert torch.equal(a.grad, b.grad)
    assert float(activation.threshold.grad) == 0


@pytest.mark.parametrize("percent", [100.0, 99.9, 90.0, 50.0])
def test_activates_with_the_running_percentile(percent):
    activation = QCFS(4, percent=percent).double()
    level = 0.0
    for seed in range(4):
        x = spread((40, 7, 9), seed) + seed + 3
        activation(x)
        seen = float(percentile_by_hand(x.relu(), percent))
        level = seen if seed == 0 else 0.9 * level + 0.1 * seen
    activation.eval()
    activation(spread() * 100)  # evaluation is not observed
    activation.activate()
    assert bool(activation.active)
    assert activation.threshold.item() == pytest.approx(level, rel=1e-12)
    activation.train()
    activation(spread() * 100)  # nor is anything after it
    assert float(activation.observed) == pytest.approx(level, rel=1e-12)


def test_large_batches_are_observed_by_their_first_samples():
    x = spread((64, 1000)).relu()
    activation = QCFS().double()
    activation(x)
    assert float(activation.observed) == float(percentile_by_hand(x[:17], 99.9))


def test_silence_leaves_the_initial_threshold_and_counts_for_nothing():
    activation = QCFS(threshold=0.7)
    activation(-torch.ones(8))
    activation(torch.empty(0, 3))
    silent = copy.deepcopy(activation)
    silent.activate()
    assert silent.threshold.item() == pytest.approx(0.7)
    activation(torch.full((8,), 3.0))
    assert float(activation.observed) == 3.0


def test_activity_that_is_not_finite_is_refused():
    activation = QCFS()
    activation(torch.tensor([1.0, float("inf")]))
    with pytest.raises(ValueError, match="finite.*inf"):
        activation.activate()
    activation(torch.tensor([1.0, 2.0]))
    activation.activate()
    assert activation.threshold.item() == 2.0


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_is_observed_once(reentrant):
    activation = QCFS()
    activation(torch.tensor([1.0]))
    x = torch.tensor([2.0], requires_grad=True)
    checkpoint(activation, x, use_reentrant=reentrant).sum().backward()
    assert float(activation.observed) == pytest.approx(0.9 * 1 + 0.1 * 2)


@pytest.mark.parametrize("active", [True, False])
def test_goes_through_pickle_deepcopy_and_state_dict(active):
    activation = QCFS(3)
    activation(spread(dtype=torch.float32))
    if active:
        activation.activate()
    loaded = QCFS(3)
    loaded.load_state_dict(activation.state_dict())
    back = activated(3)
    back.load_state_dict(activation.state_dict())
    x = spread(seed=2, dtype=torch.float32)
    expected = activation.eval()(x)
    for other in (pickle.loads(pickle.dumps(activation)), copy.deepcopy(activation), loaded, back):
        assert bool(other.active) == active
        assert torch.equal(other.eval()(x), expected)
        assert float(other.observed) == float(activation.observed)
    assert set(activation.state_dict()) == {"threshold", "active", "observed"}


def test_the_output_may_be_changed_in_place():
    layer, activation, x = nn.Linear(4, 5), activated(), torch.rand(3, 4)
    y = activation(layer(x))
    y.mul_(2)
    y.sum().backward()
    changed = layer.weight.grad.clone()
    layer.zero_grad()
    (activation(layer(x)) * 2).sum().backward()
    assert torch.equal(layer.weight.grad, changed)


def test_keeps_one_tensor_for_the_backward_pass():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        activated()(torch.rand(100, requires_grad=True))
    assert sorted(tensor.numel() for tensor in kept) == [1, 100]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiles_in_one_graph_before_and_after_the_switch(dtype):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(5, 6), QCFS(4), nn.Linear(6, 2))
    compiled = copy.deepcopy(plain)
    compiled.compile(backend="aot_eager", fullgraph=True)
    for step in range(4):
        x = spread((8, 5), step, torch.float32)
        for net in (plain, compiled):
            net.zero_grad()
            if step == 2:
                net[1].activate()
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                y = net(x)
            y.float().square().sum().backward()
        for p, q in zip(plain.parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(compiled[1].observed, plain[1].observed)


def test_is_a_neuron_layer():
    assert list(neuron_layers(nn.Sequential(nn.Linear(2, 2), QCFS()))) == ["1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(levels=0), "`levels`.*0"),
        (dict(levels=2.0), "`levels`.*2.0"),
        (dict(levels=True), "`levels`.*True"),
        (dict(threshold=0.0), "`threshold`.*0.0"),
        (dict(threshold=float("nan")), "`threshold`.*nan"),
        (dict(percent=0.0), "`percent`.*0.0"),
        (dict(percent=101), "`percent`.*101"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        QCFS(**arguments)
