"""A network is made for the images and classes of its data, whatever a recipe says."""

from __future__ import annotations

import sys

import pytest
from jsonargparse import Namespace

from snnreg_plugins import cli, data, modules
from snnreg_plugins.cli.commands import CLI
from snnreg_plugins.cli.links import link_to_data

RECIPE = "recipes/digits_lenet_expected_rate.yaml"


def classes(path):
    home, _, name = path.rpartition(".")
    return getattr(sys.modules[home], name)


def config(network, source, **arguments):
    made = Namespace(class_path=f"{modules.__name__}.{network}", init_args=Namespace(image_shape=[1, 16, 16]))
    images = Namespace(class_path=f"{data.__name__}.{source}", init_args=Namespace(**arguments))
    return Namespace(model=Namespace(init_args=Namespace(network=made)), data=images)


@pytest.mark.parametrize(
    ("source", "arguments", "shape"),
    [("Digits", {"size": 8}, [1, 8, 8]), ("FashionMNIST", {}, [1, 28, 28]), ("CIFAR10", {}, [3, 32, 32])],
)
def test_the_shape_is_that_of_the_data(source, arguments, shape):
    found = config("LeNet", source, **arguments)
    (told,) = link_to_data(found, classes)  # not of the classes, whose number nobody had said
    assert told == f"LeNet is made with image_shape={shape} of {source}, not [1, 16, 16]."
    arguments = found.model.init_args.network.init_args
    assert (arguments.image_shape, arguments.num_classes) == (shape, 10)
    assert link_to_data(found, classes) == []


def test_others_are_left_alone():
    for found in (
        config("RecurrentNetwork", "Digits"),
        config("LeNet", "OpticalChannel"),
        Namespace(),
        Namespace(data=3),
    ):
        before = repr(found)
        assert link_to_data(found, classes) == []
        assert repr(found) == before


def test_the_command_line_makes_the_network_for_the_data(monkeypatch, tmp_path):
    made = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(CLI, "_run_subcommand", lambda self, subcommand: made.append((self.model, self.datamodule)))
    monkeypatch.setattr(sys, "argv", ["snnreg", "fit", "--config", RECIPE, "--data.init_args.size=8"])
    cli.main()
    ((model, images),) = made
    images.setup()
    x, _ = next(iter(images.test_dataloader()))
    assert model(x[:2]).shape == (2, 10)
