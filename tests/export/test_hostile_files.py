"""A spiking.pt of anybody's: the network that was written, or one sentence that says what is wrong."""

from __future__ import annotations

import copy
import json
import pickle
import zipfile

import pytest
import torch
from torch import nn

from snnreg_plugins import load_network, save_network, to_norse, to_snntorch
from snnreg_plugins.modules import Classifier, LeNet
from tests import nets

T = 4
NEURON, FIRST = "body.relu1.", "encoder.fc1.weight"


@pytest.fixture
def model():
    torch.manual_seed(0)
    layers = {"fc1": nn.Linear(5, 8), "relu1": nn.ReLU(), "fc2": nn.Linear(8, 3)}
    network = nn.Sequential()
    for name, layer in layers.items():
        network.add_module(name, layer)
    return network.eval()


@pytest.fixture
def content(model, tmp_path):
    save_network(to_snntorch(model, torch.rand(20, 5), timesteps=T, per_channel=True), tmp_path / "good.pt")
    return torch.load(tmp_path / "good.pt", weights_only=True)


def nested(times):
    """Lists that hold each other: written in full, longer than any memory."""
    value = [0]
    for _ in range(times):
        value = [value] * 10
    return value


def tensor(name, change):
    def apply(content):
        content["state_dict"][name] = change(content["state_dict"][name])

    return apply


def put(*keys, value):
    def apply(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return apply


#: What is done to a good file, and what is said of it.
HOSTILE = {
    "threshold of NaN": (tensor(NEURON + "threshold", lambda t: t * torch.nan), "relu1.threshold' holds NaN or inf"),
    "threshold of infinity": (tensor(NEURON + "threshold", lambda t: t + torch.inf), "relu1.threshold' holds NaN"),
    "threshold of 0": (tensor(NEURON + "threshold", lambda t: t * 0), "'body.relu1' has a threshold that is not pos"),
    "threshold below 0": (tensor(NEURON + "threshold", lambda t: -t), "'body.relu1' has a threshold that is not pos"),
    "level of 0": (tensor("body.relu1_initial.level", lambda t: t * 0), "relu1_initial' has a level that is not pos"),
    "slope below 0": (tensor(NEURON + "spike_grad.slope", lambda t: -t), "has a surrogate slope that is not positive"),
    "weights of NaN": (tensor(FIRST, lambda t: t * torch.nan), "'encoder.fc1.weight' holds NaN or infinity"),
    "weights of another shape": (tensor(FIRST, lambda t: t.T.contiguous()), r"is of shape \(5, 8\), but .* \(8, 5\)"),
    "weights of another type": (tensor(FIRST, torch.Tensor.double), "tensors are of several types: .*fc1.weight' of"),
    "whole weights": (tensor(FIRST, torch.Tensor.long), "'encoder.fc1.weight' is of torch.int64, but the network has"),
    "complex weights": (tensor(FIRST, lambda t: t.to(torch.complex64)), "'encoder.fc1.weight' is no plain tensor"),
    "sparse weights": (tensor(FIRST, torch.Tensor.to_sparse), "'encoder.fc1.weight' is no plain tensor"),
    "weights without values": (tensor(FIRST, lambda t: t.to("meta")), "'encoder.fc1.weight' is no plain tensor"),
    "weights of text": (tensor(FIRST, lambda t: "abc"), "'encoder.fc1.weight' is no plain tensor, but 'abc'"),
    "another weight": (put("state_dict", "more", value=torch.ones(3)), "The network has no 'more'"),
    "weights missing": (lambda content: content["state_dict"].pop(FIRST), "'encoder.fc1.weight' is missing"),
    "state that is none": (put("state_dict", value=None), "Its 'state_dict' is no dictionary of names, but None"),
    "state of numbers": (put("state_dict", 3, value=torch.ones(3)), "Its 'state_dict' is no dictionary of names"),
    "no state": (lambda content: content.pop("state_dict"), "state_dict"),
    "conversion that is none": (put("conversion", value="abc"), "Its 'conversion' is no dictionary of names, but 'abc"),
    "no conversion": (lambda content: content.pop("conversion"), "conversion"),
    "structure of text": (put("conversion", "structure", value="abc"), "Its 'structure' is no dictionary of names"),
    "structure of None": (put("conversion", "structure", "relu1", value=None), "does not fit Sequential"),
    "no structure": (put("conversion", "structure", value={}), "It does not say"),
    "beta of 2": (put("conversion", "beta", value=2.0), r"`beta` to be in \(0, 1\], but got 2.0"),
    "beta of text": (put("conversion", "beta", value="much"), r"`beta` to be in \(0, 1\], but got 'much'"),
    "percent of a share": (put("conversion", "percent", value=0.5), "`percent` to be in percent"),
    "coding of nothing": (put("conversion", "coding", value="none"), "`coding` to be one of"),
    "framework of a list": (put("conversion", "framework", value=[]), "does not fit Sequential"),
    "framework of another": (put("conversion", "framework", value="sinabs"), "a framework of .*'sinabs'"),
    "layers without end": (put("conversion", "until", value=nested(30)), "more than 1,000,000 values"),
    "steps of 0": (put("timesteps", value=0), "`timesteps` to be an integer of at least 1, but got 0"),
    "steps of a list": (put("timesteps", value=[4]), r"`timesteps` to be an integer .* but got \[4\]"),
    "steps without end": (put("timesteps", value=10**30), r"`timesteps` to be an integer of .* below 2\*\*63"),
    "lists without end": (put("timesteps", value=nested(30)), "more than 1,000,000 values"),
    "lists in lists": (put("more", value=json.loads("[" * 150 + "]" * 150)), "nested deeper than 100"),
    "margins of text": (put("exit_margins", value="abc"), "`exit_margins` to be numbers"),
    "margins of a number": (put("exit_margins", value=5), "`exit_margins` to be numbers"),
    "margins of None": (put("exit_margins", value=[None]), "`exit_margins` to be numbers"),
    "no margins": (lambda content: content.pop("exit_margins"), "exit_margins"),
    "inputs of the world": (put("conversion", "input_shape", value=[10**6, 10**6]), "more than 33,554,432 values"),
    "inputs of half": (put("conversion", "input_shape", value=[0.5]), "`input_shape` to be one or more integers"),
    "inputs of nothing": (put("conversion", "input_shape", value=None), "`input_shape` to be one or more integers"),
    "parts without end": (
        put("conversion", "structure", "relu1", "relu1 shapes", value=[[10**5, 10**5]] * 4), "larger than any of its"),
    "tensors that claim more": (
        put("more", value=torch.zeros(1).expand(10**6, 10**6)), "its tensors claim 4,000,000,000,... bytes"),
    "format that is a tensor": (put("format", value=torch.ones(2)), "to name a spiking network, but .* is none"),
    "format of another version": (put("format", value="snnreg_plugins spiking network 9"), "but .* is none"),
}  # fmt: skip


@pytest.mark.parametrize("row", HOSTILE)
def test_a_hostile_file_is_refused(row, content, model, tmp_path):
    change, message = HOSTILE[row]
    change(content)
    path = tmp_path / "hostile.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=message) as caught:
        load_network(path, model)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_settings_that_changed_are_seen(content, model, tmp_path):
    """Each is right by itself."""
    path = tmp_path / "changed.pt"
    for change in (put("timesteps", value=5), put("conversion", "percent", value=99.0), tensor(FIRST, torch.neg)):
        changed = copy.deepcopy(content)
        change(changed)
        torch.save(changed, path)
        with pytest.raises(ValueError, match="changed.pt' does not fit Sequential. It is damaged: its numbers"):
            load_network(path, model)
        del changed["digest"]  # as in files of version 0.1
        torch.save(changed, path)
        load_network(path, model)


def test_a_part_that_is_marked_as_a_folder(content, model, tmp_path):
    """Of which torch.load gives whatever is in the memory."""
    path = tmp_path / "folder.pt"
    torch.save(content, path)
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data/0"))
    data = bytearray(path.read_bytes())
    entry = data.rfind(name.encode()) - 46  # of the directory at the end
    assert data[entry : entry + 4] == b"PK\x01\x02"
    data[entry + 38] |= 0x10
    path.write_bytes(data)
    with pytest.raises(ValueError, match="one of its parts is a folder"):
        load_network(path, model)


def test_bytes_that_changed_are_seen(content, model, tmp_path):
    """torch.load takes them as they are."""
    path = tmp_path / "damaged.pt"
    torch.save(content, path)
    data = bytearray(path.read_bytes())
    data[data.find(content["state_dict"][FIRST].numpy().tobytes()) + 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"damaged.pt' cannot be read: its part '.*' is damaged"):
        load_network(path, model)


class Payload:
    def __reduce__(self):
        return print, ("run",)


def compressed(path):
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in parts.items():
            archive.writestr(name, part)


#: What a file is written as, and what is said of it.
OTHER = {
    "empty": (lambda path: path.write_bytes(b""), "it is empty"),
    "text": (lambda path: path.write_text('{"report": 1}'), "it is none, or damaged: it begins with"),
    "code": (lambda path: torch.save(Payload(), path), "running code from a file is not safe"),
    "a pickle with code": (lambda path: path.write_bytes(pickle.dumps(Payload())), "cannot be read"),
    "a list": (lambda path: torch.save([1], path), "it holds a list"),
    "half": (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "cannot be read"),
    "compressed": (compressed, "it is compressed"),
}


@pytest.mark.parametrize("row", OTHER)
def test_what_is_no_such_file(row, content, model, tmp_path, capsys):
    make, message = OTHER[row]
    path = tmp_path / "other.pt"
    torch.save(content, path)
    make(path)
    with pytest.raises(ValueError, match=f"other.pt' cannot be read: .*{message}|other.pt' {message}"):
        load_network(path, model)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("path", [None, 5, "", "a\0b"])
def test_what_is_no_path(path, model, content):
    network = to_snntorch(model, torch.rand(20, 5), timesteps=T)
    for use in (lambda: load_network(path, model), lambda: save_network(network, path)):
        with pytest.raises(TypeError, match="Expected argument `path` to be a path, but got"):
            use()


def test_a_folder_is_no_file(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"`path` to name a file, but '{tmp_path}' is none"):
        load_network(tmp_path, model)
    with pytest.raises(IsADirectoryError, match=f"`path` to name a file, but '{tmp_path}' is a folder"):
        save_network(to_snntorch(model, torch.rand(20, 5), timesteps=T), tmp_path)
    with pytest.raises(TypeError, match="`network` to be a SpikingNetwork, such as to_snntorch.. makes, but got Seq"):
        save_network(model, tmp_path / "model.pt")


def test_the_module_that_was_exported_is_said(tmp_path):
    lenet, x = LeNet(image_shape=(1, 8, 8), kernel_size=3).eval(), torch.rand(20, 1, 8, 8)
    inner, outer = to_snntorch(lenet, x, timesteps=T), to_snntorch(Classifier(lenet), x, timesteps=T)
    save_network(inner, tmp_path / "inner.pt")
    save_network(outer, tmp_path / "outer.pt")
    with pytest.raises(ValueError, match="What was exported is `network` of it. Pass model.network"):
        load_network(tmp_path / "inner.pt", Classifier(lenet))
    with pytest.raises(ValueError, match="What was exported is a module that holds it as 'network'. Pass that module"):
        load_network(tmp_path / "outer.pt", lenet)
    with pytest.raises(TypeError, match="`model` to be a torch.nn.Module, but got the class LeNet: make"):
        load_network(tmp_path / "inner.pt", LeNet)
    # What the remedies say works.
    assert torch.equal(load_network(tmp_path / "inner.pt", Classifier(lenet).network)(x), inner(x))
    assert torch.equal(load_network(tmp_path / "outer.pt", Classifier(lenet))(x), outer(x))


def test_a_decay_that_is_none(model, tmp_path):
    network = to_norse(model, torch.rand(20, 5), timesteps=T)
    network.body.relu1.p.beta.fill_(2.0)
    save_network(network, tmp_path / "norse.pt")
    with pytest.raises(ValueError, match=r"'body.relu1' has a beta that is not in \[0, 1\]"):
        load_network(tmp_path / "norse.pt", model)


def test_a_half_precision_network_is_read(tmp_path):
    model, _, x = nets.make("mlp")
    network = to_snntorch(model.half(), x.half(), timesteps=T, per_channel=True)
    save_network(network, tmp_path / "half.pt")
    assert torch.equal(load_network(tmp_path / "half.pt", model.half())(x.half()), network(x.half()))
