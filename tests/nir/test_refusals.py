"""What NIR cannot say is refused by name; nothing is written."""

from __future__ import annotations

import operator
import os
import sys

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from snnreg_plugins import ConversionError, from_nir, to_nir, to_snntorch
from snnreg_plugins.nir.nodes import UnfitError, elementwise
from tests import nets
from tests.nets import Chain
from tests.nir.networks import FLAT, RELU, layers, made, named

CONV = nn.Conv2d(1, 4, 3)


def every_second():
    net = Chain(lambda m, x: m.c(m.relu(m.a(x))[:, ::2]), a=nn.Linear(6, 8), relu=nn.ReLU(), c=nn.Linear(4, 3))
    return net, torch.rand(20, 6)


REFUSED = {
    "part of the channels": (every_second, "'getitem.*NIR has no indexing"),
    "max pooling": (layers(CONV, RELU(), nn.MaxPool2d(2), FLAT(), nn.Linear(36, 3)), "'2'.*average pooling"),
    "padding mode": (made("padding_modes"), "'0'.*padding_mode='circular'.*zeros"),
    "transposed": (made("transposed"), "'2'.*ConvTranspose2d.*save_network"),
    "3d": (made("three_dimensions"), "'0'.*Conv3d.*save_network"),
    "concatenation": (named("concatenation"), "cat.*save_network"),
    "sequences": (made("linear_on_sequences"), r"'0'.*\(5, 6\)"),
    "permuted": (made("reshapes"), "permute"),
    "unequal windows": (named("uneven adaptive pooling"), "'pool'.*windows.*one size"),
    "ceil_mode": (named("pooled with ceil_mode"), "'pool'.*ceil_mode=False"),
    "divisor": (layers(nn.AvgPool2d(2, divisor_override=3), FLAT(), nn.Linear(16, 3), RELU()), "'0'.*divisor_override"),
    "padding not counted": (
        layers(nn.AvgPool2d(2, padding=1, count_include_pad=False), FLAT(), nn.Linear(25, 3), RELU()),
        "'0'.*what pads",
    ),
    "upsampling": (named("upsampling"), "'up'.*Upsample"),
    "mean over channels": (named("mean over channels"), r"'mean'.*dimensions \(1,\)"),
}


@pytest.mark.parametrize("row", REFUSED)
def test_what_nir_has_not_is_refused_by_name(row, path):
    make, message = REFUSED[row]
    model, x = make()
    network = to_snntorch(model, x, timesteps=3)
    with pytest.raises(ConversionError, match=f"Cannot write layer {message}|Cannot write layer '{message}"):
        to_nir(network, path, input_shape=x.shape[1:])
    assert not os.listdir(path.parent)


def test_a_bias_for_each_row_is_none_for_each_channel(path):
    network = to_snntorch(*layers(nn.Conv2d(1, 4, 3), RELU(), FLAT(), nn.Linear(64, 3), shape=(1, 6, 6))(), timesteps=3)
    network.body.get_submodule("1_initial").potential = torch.arange(4.0, dtype=torch.float64).reshape(1, 4, 1)
    relu = network.body.get_submodule("1")
    relu.threshold = torch.arange(1.0, 5.0, dtype=torch.float64).reshape(1, 4, 1)
    to_nir(network, path, input_shape=(1, 6, 6))
    with h5py.File(path) as file:
        assert (file["node/nodes/1/v_threshold"][0, :, 0] == np.arange(1.0, 5.0)).all()
    kind, fields = elementwise(torch.ones(()), torch.arange(4.0).reshape(1, 4, 1), (4, 4, 3), 1000)
    x = torch.rand(4, 4, 3)
    found = (torch.from_numpy(fields["weight"]) @ x.unsqueeze(-1)).squeeze(-1) + torch.from_numpy(fields["bias"])
    assert kind == "Affine"
    assert torch.equal(found, x + torch.arange(4.0).reshape(1, 4, 1))


def test_what_takes_more_values_than_a_file_may_hold_is_refused_before_it_is_made():
    one, shape = torch.ones(()), (2, 8, 8)
    with pytest.raises(UnfitError, match=r"shape \(2, 8, 8\), NIR has it as 1024 values only, which is more than 1000"):
        elementwise(one, torch.ones(8, 1), shape, 1000)
    with pytest.raises(UnfitError, match="as 128 values only"):
        elementwise(one, torch.zeros(()), shape, 127)
    assert elementwise(one, torch.zeros(()), shape, 128)[0] == "Scale"


def test_an_input_that_is_read_uncoded_too_is_refused(path):
    model, _, x = nets.make("mlp")
    network = to_snntorch(model, x, timesteps=3, coding="poisson")
    graph = network.body.graph
    coder = next(node for node in graph.nodes if node.op == "call_module")
    with graph.inserting_after(coder):
        graph.call_function(torch.flatten, (coder.args[0], 1))
    with pytest.raises(ConversionError, match="something else reads the input too, uncoded"):
        to_nir(network, path, input_shape=(6,))


def test_a_tensor_that_is_none_of_the_networks_own_is_refused(path):
    model, _, x = nets.make("mlp")
    network = to_snntorch(model, x, timesteps=3)
    graph = network.body.graph
    end = next(node for node in graph.nodes if node.op == "output")
    scores, states = end.args[0]
    with graph.inserting_before(end):
        ones = graph.call_function(torch.ones, (3,))
        end.args = ((graph.call_function(operator.add, (scores, ones)), states),)
    with pytest.raises(ConversionError, match="'add'.*a tensor that is none of the network's own"):
        to_nir(network, path, input_shape=(6,))


def test_a_hybrid_is_refused(path):
    model, x = layers(CONV, RELU(), FLAT(), nn.Linear(144, 5), RELU(), nn.Linear(5, 3))()
    network = to_snntorch(model, x, timesteps=3, until="3")
    with pytest.raises(ConversionError, match="only a part of the network spikes.*until"):
        to_nir(network, path, input_shape=x.shape[1:])


def test_other_neurons_are_refused(path):
    model, _, x = nets.make("mlp")
    network = to_snntorch(model, x, timesteps=3)
    network.body.get_submodule("1").reset_delay = False
    with pytest.raises(ConversionError, match="'1'.*not those that this package makes"):
        to_nir(network, path, input_shape=(6,))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (None, "Expected argument `input_shape` to be given"),
        (8, "Expected argument `input_shape` to be one or more integers of at least 1"),
        ((1, 0, 8), "Expected argument `input_shape` to be one or more integers of at least 1"),
        ((1, 2.5, 8), "Expected argument `input_shape` to be one or more integers of at least 1"),
        ((2, 8, 8), r"'conv1'.*\(2, 8, 8\).*does not fit"),
        ((1, 8), r"'conv1'.*\(1, 8\).*does not fit"),
        ((1, 2, 2), "'conv2'.*larger than its input"),
        ((1, 80, 80), "'fc1'.*its input has shape"),
    ],
)
def test_shapes_that_do_not_fit(shape, message, path):
    model, _, x = nets.make("lenet_functional")
    network = to_snntorch(model, x, timesteps=3)
    del network.conversion["input_shape"]
    with pytest.raises(ValueError, match=message):
        to_nir(network, path, input_shape=shape)


def test_weights_that_are_not_finite_are_refused(path):
    model, _, x = nets.make("mlp")
    network = to_snntorch(model, x, timesteps=3)
    network.body.get_submodule("2").weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"'body\.2\.weight' holds NaN"):
        to_nir(network, path, input_shape=(6,))
    assert not os.listdir(path.parent)


def test_what_would_not_come_back_is_not_written(path):
    model, _, x = nets.make("mlp")
    network = to_snntorch(model, x, timesteps=3)
    network.conversion["note"] = "x" * 70_000
    with pytest.raises(ConversionError, match="would not come back the same: 'node/metadata/conversion'"):
        to_nir(network, path, input_shape=(6,))
    network.conversion["note"] = print
    with pytest.raises(ValueError, match="to have a `conversion` of plain data"):
        to_nir(network, path, input_shape=(6,))
    assert not os.listdir(path.parent)


def test_one_error_says_what_to_install(path, monkeypatch):
    model, _, x = nets.make("mlp")
    network = to_snntorch(model, x, timesteps=3)
    to_nir(network, path, input_shape=(6,))
    monkeypatch.setitem(sys.modules, "h5py", None)
    for call in (lambda: to_nir(network, path, input_shape=(6,)), lambda: from_nir(path)):
        with pytest.raises(ImportError, match=r'pip install "snnreg_plugins\[nir\]"'):
            call()


def test_wrong_arguments(path):
    with pytest.raises(ValueError, match=r"`target` to be one of \['norse', 'snntorch'\], but got 'brian'"):
        from_nir(path, "brian")
    with pytest.raises(FileNotFoundError, match="Expected argument `path` to name a file"):
        from_nir(path)
    with pytest.raises(TypeError, match="Expected argument `network` to be a SpikingNetwork, .* but got Linear"):
        to_nir(nn.Linear(2, 3), path, input_shape=(2,))
