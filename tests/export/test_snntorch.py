"""Arguments of the export to snnTorch, and its neurons."""

from __future__ import annotations

import inspect

import pytest
import snntorch
import torch
from torch import nn

from snnreg_plugins import to_snntorch
from snnreg_plugins.frameworks.surrogate import FastSigmoid
from tests.export.reference import neurons_of
from tests.nets import make


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("timesteps", 0, "to be an integer of at least 1, but got 0"),
        ("timesteps", -3, "to be an integer of at least 1, but got -3"),
        ("timesteps", 2.0, "to be an integer of at least 1, but got 2.0"),
        ("timesteps", True, "to be an integer of at least 1, but got True"),
        ("timesteps", None, "to be an integer of at least 1, but got None"),
        ("threshold", "mean", r"to be a function or one of \['auto', .*, 'spike_norm'\], but got 'mean'"),
        ("threshold", None, r"to be a function or one of \['auto', .*, 'spike_norm'\], but got None"),
        ("threshold", ["max"], r"to be a function or one of \['auto', .*, 'spike_norm'\], but got \['max'\]"),
        ("percent", 0, r"to be in \(0, 100\], but got 0"),
        ("percent", 101.0, r"to be in \(0, 100\], but got 101.0"),
        ("percent", float("nan"), r"to be in \(0, 100\], but got nan"),
        ("percent", 0.999, r"to be in percent, but got the share 0.999. Write 99.9"),
        ("percent", True, r"to be in \(0, 100\], but got True"),
        ("per_channel", "false", "to be True or False, but got 'false'"),
        ("per_channel", 1, "to be True or False, but got 1"),
        ("compensate_leak", None, "to be True or False, but got None"),
        ("until", 3, "to be a name or None, but got 3"),
        ("initial_potential", 1.0, r"to be in \[0, 1\), but got 1.0"),
        ("initial_potential", -0.1, r"to be in \[0, 1\), but got -0.1"),
        ("initial_potential", float("nan"), r"to be in \[0, 1\), but got nan"),
        ("correction", "gap", r"to be one of \['bias', .*'potential'\], but got 'gap'"),
        ("auto_tolerance", 101.0, r"to be in \[0, 100\], but got 101.0"),
        ("coding", "rate", r"to be one of \['constant', .*'poisson'\], but got 'rate'"),
        ("beta", 0, r"to be in \(0, 1\], but got 0"),
        ("beta", 1.1, r"to be in \(0, 1\], but got 1.1"),
        ("beta", float("nan"), r"to be in \(0, 1\], but got nan"),
        ("surrogate_slope", 0.0, "to be finite and above 0, but got 0.0"),
        ("surrogate_slope", float("nan"), "to be finite and above 0, but got nan"),
    ],
)
def test_arguments_are_checked_before_anything_is_run(argument, value, message):
    def calibration():
        raise AssertionError("the data was read")
        yield

    net, _, _ = make("mlp")
    options = {"timesteps": 4} | {argument: value}
    with pytest.raises(ValueError, match=f"Expected argument `{argument}` {message}\\."):
        to_snntorch(net, calibration(), **options)


def test_defaults():
    parameters = inspect.signature(to_snntorch).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    assert defaults == {
        "threshold": "percentile", "percent": None, "per_channel": None, "initial_potential": 0.5,
        "correction": None, "beta": 1.0, "compensate_leak": True, "coding": "constant", "until": None,
        "surrogate": "fast_sigmoid", "surrogate_slope": None, "time_dim": None, "batch_norm": "fold",
        "train_thresholds": "none", "train_beta": "none", "heterogeneity": "none", "threshold_std": 0.0,
        "beta_std": 0.0, "weights": "float", "weight_bits": None, "train_weights": False, "budget": None,
        "auto_tolerance": 0.5,
    }  # fmt: skip
    assert "timesteps" in parameters


@pytest.mark.parametrize("per_channel", [False, True])
def test_neurons_are_plain_leaky(per_channel):
    net, _, x = make("lenet_functional")
    network = to_snntorch(net, x, timesteps=4, per_channel=per_channel, beta=0.9, compensate_leak=False)
    shapes = [(4, 1, 1), (6, 1, 1), (12,)] if per_channel else [()] * 3
    for neuron, shape in zip(neurons_of(network).values(), shapes, strict=True):
        assert type(neuron) is snntorch.Leaky
        assert neuron.reset_mechanism == "subtract"
        assert neuron.reset_delay is True
        assert float(neuron.beta) == 0.9
        assert neuron.threshold.shape == shape
        assert not list(neuron.parameters())
        # The slope is relative to each neuron's own threshold.
        assert isinstance(neuron.spike_grad, FastSigmoid)
        torch.testing.assert_close(neuron.spike_grad.slope * neuron.threshold, torch.full(shape, 5.0).double())
        assert neuron.spike_grad.steepness == 5.0


def test_snntorch_does_not_keep_the_neurons():
    net, _, x = make("lenet_functional")
    own = snntorch.Leaky(beta=0.5)
    before = list(snntorch.SpikingNeuron.instances)
    to_snntorch(net, x, timesteps=2)(x)
    assert [id(neuron) for neuron in snntorch.SpikingNeuron.instances] == [id(neuron) for neuron in before]
    assert any(neuron is own for neuron in snntorch.SpikingNeuron.instances)


def test_a_network_of_the_user_beside_it_keeps_its_state():
    own = snntorch.Leaky(beta=0.5, init_hidden=True)
    own(torch.ones(2))
    state = own.mem.clone()
    net, _, x = make("mlp")
    to_snntorch(net, x, timesteps=2)(x)
    assert torch.equal(own.mem, state)


def test_thresholds_are_no_parameters_and_share_no_memory():
    net = nn.Sequential(nn.ReLU(), nn.ReLU(), nn.Linear(6, 3))
    network = to_snntorch(net, torch.rand(20, 6), timesteps=2)
    tensors = [*network.buffers(), *network.parameters()]
    pointers = [tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()]
    assert len(pointers) == len(set(pointers))
    assert all(tensor.is_contiguous() for tensor in tensors)
