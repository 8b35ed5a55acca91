"""Weights of a file find the network that they are of, or it is said why they do not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from snnreg_plugins._weights import load_weights, read_weights
from snnreg_plugins.modules import Classifier


def network(outputs=4):
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, outputs))


def named(weights, before):
    return {before + name: value for name, value in weights.items()}


class Module(nn.Module):
    """A user's own, with a network and whatever else."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


TRAINED = network()
OTHER = {name: value + 1 for name, value in TRAINED.state_dict().items()}
HOLDERS = {
    "itself": TRAINED,
    "a classifier": Classifier(TRAINED),
    "a module of the user's": Module(net=TRAINED, criterion=nn.CrossEntropyLoss(weight=torch.ones(4))),
    "deeper": Module(model=Module(net=TRAINED), teacher=nn.Linear(3, 5)),
    "compiled": Module(net=Module(_orig_mod=TRAINED)),
    "twice the same": Module(net=TRAINED, copy=TRAINED),
}


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("is_lightning", [True, False])
def test_a_network_is_found_in_what_was_trained(holder, is_lightning, tmp_path):
    weights = HOLDERS[holder].state_dict()
    torch.save({"epoch": 3, "state_dict": weights} if is_lightning else weights, tmp_path / "net.ckpt")
    found = network()
    load_weights(found, read_weights(tmp_path / "net.ckpt", "checkpoint")[1], "net.ckpt")
    for name, value in TRAINED.state_dict().items():
        assert torch.equal(found.state_dict()[name], value)


def test_a_part_that_was_written_alone_is_put_into_the_whole():
    whole = Module(model=Module(net=network()))
    load_weights(whole, TRAINED.state_dict(), "net.pt")
    assert torch.equal(whole.model.net[0].weight, TRAINED[0].weight)


REFUSED = {
    "another shape": (network(5), TRAINED.state_dict(), r"Sequential\. .*: 2\.weight is of shape \(4, 5\) there and"),
    "within another": (network(5), named(TRAINED.state_dict(), "net."), r"2\.weight is of shape \(4, 5\) there and"),
    "a shorter network": (network()[:2], TRAINED.state_dict(), r": there is 2\.weight, too, there is 2\.bias, too\.$"),
    "a longer network": (nn.Sequential(*network(), nn.PReLU()), TRAINED.state_dict(), r": there is no 3\.weight\.$"),
    "all else": (network(), {"a": torch.ones(1)}, r": there is no 0\.weight, there is no 0\.bias, "),
    "a copy of other weights": (
        network(),
        named(TRAINED.state_dict(), "net.") | named(OTHER, "ema."),
        r"fit Sequential more than once: those of net, ema\. Use the whole module",
    ),
    "a copy beside the names": (network(), TRAINED.state_dict() | named(OTHER, "ema."), "those of the whole, ema"),
    "which of its layers": (
        nn.Linear(3, 3),
        nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).state_dict(),
        "more than once: those of 0, 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_weights_of_something_else_are_refused_with_the_difference(case):
    found, weights, message = REFUSED[case]
    before = {name: value.clone() for name, value in found.state_dict().items()}
    with pytest.raises(ValueError, match=rf"^The weights in 'net\.ckpt' .*{message}"):
        load_weights(found, weights, "net.ckpt")
    for name, value in before.items():
        assert torch.equal(found.state_dict()[name], value)


def test_the_whole_module_tells_which_copy_is_meant():
    """What the refusal says to do."""
    trained = Module(net=TRAINED, ema=network())
    found = Module(net=network(), ema=network())
    load_weights(found, trained.state_dict(), "net.ckpt")
    assert torch.equal(found.net[0].weight, TRAINED[0].weight)
    assert torch.equal(found.ema[0].weight, trained.ema[0].weight)


@pytest.mark.parametrize("content", [{"state_dict": [1]}, {"state_dict": {}}, {"epoch": 3}, {}])
def test_a_file_without_weights_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "net.ckpt")
    with pytest.raises(ValueError, match=r"`checkpoint` to name a checkpoint or a file of weights, but '.*net\.ckpt'"):
        read_weights(tmp_path / "net.ckpt", "checkpoint")


class Settings:
    """Hyper-parameters of a class of the user's own."""


def test_what_to_do_about_pickled_hyper_parameters_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": TRAINED.state_dict(), "hyper_parameters": {"settings": Settings()}}, "net.ckpt")
    with pytest.raises(ValueError, match="running code from a file is not safe") as refusal:
        read_weights("net.ckpt", "checkpoint")
    exec(str(refusal.value).partition("write what is plain of it: ")[2], {"torch": torch})
    found = network()
    load_weights(found, read_weights("plain.ckpt", "checkpoint")[1], "plain.ckpt")
    assert torch.equal(found[0].weight, TRAINED[0].weight)
