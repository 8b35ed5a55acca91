"""Thresholds from calibration data: what it may be, what is checked, and that it draws no random numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from snnreg_plugins import to_snntorch
from tests.export.reference import max_thresholds, neurons_of
from tests.nets import make

T = 4


def thresholds(network):
    return [neuron.threshold for neuron in neurons_of(network).values()]


class Stream(IterableDataset):
    """Batches from a stream."""

    def __init__(self, x):
        self.x = x

    def __iter__(self):
        return iter(self.x.split(7))


CALIBRATION = {
    "tensor": lambda x: x,
    "tensors": lambda x: list(x.split(7)),
    "tuple of tensors": lambda x: x.split(7),
    "pairs": lambda x: [(x[:13], torch.zeros(13)), [x[13:], torch.zeros(7)]],
    "triples": lambda x: [(x, torch.zeros(20), "meta")],
    "generator": lambda x: (batch for batch in x.split(3)),
    "an empty batch among others": lambda x: [x[:0], x, x[:0]],
    "DataLoader": lambda x: DataLoader(TensorDataset(x, torch.zeros(20)), batch_size=6, shuffle=True),
    "DataLoader of inputs alone": lambda x: DataLoader(x, batch_size=6),
    "iterable dataset of batches": Stream,
    "requires grad": lambda x: x.clone().requires_grad_(),
}


@pytest.mark.parametrize("kind", CALIBRATION)
def test_kinds_of_calibration(kind):
    net, chain, x = make("lenet_functional")
    calibration = CALIBRATION[kind](x)
    before = torch.get_rng_state()
    network = to_snntorch(net, calibration, timesteps=T, threshold="max", correction="none", per_channel=True)
    assert torch.equal(torch.get_rng_state(), before)
    for found, expected in zip(thresholds(network), max_thresholds(chain, x, per_channel=True), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_large_tensor_is_taken_in_parts():
    net, chain, x = make("mlp")
    x = x.repeat(40, 1) * torch.rand(800, 1, dtype=x.dtype)
    sizes = []
    hook = nn.Linear.forward
    network = to_snntorch(net, x, timesteps=T, threshold="max", correction="none")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Linear, "forward", lambda self, x: sizes.append(len(x)) or hook(self, x))
        to_snntorch(net, x, timesteps=T, threshold="max", correction="none")
    assert max(sizes) <= 256
    for found, expected in zip(thresholds(network), max_thresholds(chain, x, per_channel=False), strict=True):
        torch.testing.assert_close(found, expected)


def test_calibration_data_is_left_as_it_was():
    x = torch.randn(20, 6)
    before = x.clone()
    network = to_snntorch(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 3)), x, timesteps=T)
    network(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("calibration", "error", "message"),
    [
        (torch.zeros(0, 6), ValueError, "hold at least one sample, but it is empty"),
        ([], ValueError, "hold at least one sample, but it is empty"),
        ([torch.zeros(0, 6)], ValueError, "hold at least one sample, but it is empty"),
        (iter(()), ValueError, "hold at least one sample, but it is empty"),
        (5, TypeError, "be a tensor, or to give tensors or .*, but got 5"),
        (None, TypeError, "but got None"),
        (torch.tensor(1.0), TypeError, r"but got tensor\(1.\)"),
        ([1.0], TypeError, "but got a batch of type float"),
        ([{"x": torch.zeros(3, 6)}], TypeError, "but got a batch of type dict"),
        ([("x", torch.zeros(3, 6))], TypeError, "but got a batch of type str"),
        ([()], TypeError, "but got a batch of type tuple"),
        ([torch.tensor(1.0)], TypeError, "but got a batch that is a single number"),
        (TensorDataset(torch.zeros(3, 6)), TypeError, "a dataset, which gives single samples. Wrap it in a DataLoader"),
        (torch.rand(3, 7), ValueError, r"inputs of the model, but the model fails on samples of shape \(7,\)"),
        (torch.ones(3, 6, dtype=torch.int64), ValueError, "samples of shape .* and torch.int64"),
        (
            (torch.rand(3, 6), torch.arange(3)),
            TypeError,
            r"tensors of 2 and 1 dimensions. If .* pass \[\(inputs, targets\)",
        ),
        (torch.rand(3, 6).double(), ValueError, "samples of shape .* and torch.float64"),
    ],
)
def test_calibration_that_cannot_be_used(calibration, error, message):
    net, _, _ = make("mlp", torch.float32)
    with pytest.raises(error, match=f"^Expected argument `calibration` to .*{message}"):
        to_snntorch(net, calibration, timesteps=T)


def test_a_silent_layer_is_named():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    nn.init.constant_(net[2].bias, -100)
    with pytest.raises(ValueError, match="Layer '3' is silent on all calibration data, so it has no threshold. Check"):
        to_snntorch(net, torch.rand(20, 6), timesteps=T)


def test_a_silent_functional_activation_is_found_by_its_line():
    net, _, x = make("lenet_functional")
    nn.init.constant_(net.bn2.bias, -100)
    with pytest.raises(ValueError, match=r"Layer 'relu_1' at .*nets.py:\d+ \(.*torch.relu\(self.bn2.*\) is silent on"):
        to_snntorch(net, x, timesteps=T)


def test_a_layer_that_is_hardly_ever_active_takes_its_largest_activation():
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 2))
    nn.init.constant_(net[0].weight, 1)
    x = -torch.rand(5000, 1)
    x[7] = 3.0
    (threshold,) = thresholds(to_snntorch(net, x, timesteps=T))
    assert float(threshold) == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["0.weight", "1.running_var", "4.bias"])
def test_weights_that_are_not_finite(name, value):
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).eval()
    net.state_dict()[name].view(-1)[2] = value
    with pytest.raises(ValueError, match=f"Expected a model of finite weights, but '{name}' holds NaN or infinity"):
        to_snntorch(net, torch.rand(20, 6), timesteps=T)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_not_finite(value):
    net, _, x = make("mlp")
    x[5, 2] = value
    with pytest.raises(ValueError, match="Layer '1': Expected finite activations on the calibration data"):
        to_snntorch(net, x, timesteps=T)


def test_a_threshold_function_of_ones_own():
    net, _, x = make("mlp")
    calls = []

    def half_of_the_largest(histogram, per_channel):
        calls.append(per_channel)
        return 0.5 * (histogram.largest if per_channel else histogram.largest.max())

    largest = to_snntorch(net, x, timesteps=T, threshold="max", correction="none", per_channel=True)
    network = to_snntorch(net, x, timesteps=T, threshold=half_of_the_largest, per_channel=True)
    assert set(calls) == {False, True}
    for found, expected in zip(thresholds(network), thresholds(largest), strict=True):
        assert torch.equal(2 * found, expected)
