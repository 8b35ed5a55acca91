"""The command as its user runs it, with real trainings; and weights pruned."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from snnreg_plugins import cli
from snnreg_plugins._files import read_yaml
from snnreg_plugins.cli.trial import make
from snnreg_plugins.data import CIFAR10, MNIST
from snnreg_plugins.modules import Classifier
from snnreg_plugins.sweeps import Job, Sweep, read_results, run_sweep
from snnreg_plugins.sweeps.pruning import PrunedOnce
from snnreg_plugins.sweeps.trial import OF_BUDGET

RECIPE = "recipes/sweeps/digits_lenet.yaml"
FOLDER = Path(__file__).parents[2] / "recipes"
MOMENT = {f"trainer.limit_{part}_batches": 2 for part in ("train", "val", "test")} | {"trainer.max_epochs": 1}


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Run a command line in an empty folder; give what it says where it ends early."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr("sys.argv", ["snnreg", *words])
        try:
            cli.main()
        except SystemExit as stop:
            return str(stop.code)
        return ""

    return run


def test_the_smallest_weights_of_all_layers_are_pruned_once():
    model = Classifier(nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)))
    data = DataLoader(TensorDataset(torch.randn(32, 4), torch.randint(3, (32,))), batch_size=16)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=4, callbacks=[PrunedOnce(0.5)], accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(model, data)
    first, norm, _, last = model.network
    zeros = sum(int((layer.weight == 0).sum()) for layer in (first, last))
    assert zeros == (4 * 16 + 16 * 3) // 2
    assert not (norm.weight == 0).any()
    assert isinstance(first.weight, nn.Parameter)


@pytest.mark.slow
def test_a_sweep_of_real_trainings_keeps_networks_and_results(command, tmp_path):
    pytest.importorskip("optuna")
    moment = ["--settings", '{"trainer.max_epochs": 1, "trainer.limit_train_batches": 4}', "--steps", "[1,2]"]
    space = ["--penalties", '{"none": null, "l1": {"strength": [0.1, 1]}}', "--pruning", "[0.5]"]
    space += ["--budgets", '{"sops": 50000, "timesteps": 2, "keep_best": false}']
    assert command("sweep", "--config", RECIPE, "--output", "out", *moment, *space) == ""
    rows = read_results(tmp_path / "out" / "results.csv")
    assert {row["state"] for row in rows} == {"complete"}
    (met,) = (row for row in rows if row["export"] == OF_BUDGET)
    (anew, *_) = (row for row in rows if row["penalty"] == "budget of sops")
    assert (met["timesteps"], met["dnn_score"], met["dnn_energy"]) == (2, anew["dnn_score"], anew["dnn_energy"])
    assert met["sops"] not in [row["sops"] for row in rows if row["export"] != OF_BUDGET]
    assert (Path("out") / "trials" / f"{met['trial']:04d}" / "seed_0" / "of_the_budget" / "spiking.pt").is_file()
    rows.remove(met)
    assert len(rows) == 4 * 2 * 2  # trials, exports, T
    assert {row["penalty"] for row in rows} == {"none", "l1", "budget of sops"}
    assert all(row["torch"] and row["seconds"] > 0 for row in rows)
    assert (Path("out") / "trials" / "0001" / "seed_0" / "by_channel" / "spiking.pt").is_file()
    assert (Path("out") / "front.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--settings", '{"trainer.max_epoch": 3}'], "max_epoch"),
        (["--settings", '{"trainer.max_epochs": [3, "many"]}'], "many"),
        (["--settings", '{"callback.Distillation.alpha": 1}'], "callback.Distillation.alpha"),
        (["--recipe", "recipes/no_such.yaml"], "no_such.yaml"),
        (["--trials", "0"], "trials"),
    ],
)
def test_what_the_recipe_does_not_take_is_told_before_anything_is_trained(words, told, command, tmp_path):
    said = command("sweep", "--config", RECIPE, "--output", "out", *words)
    assert told in said
    assert said.startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_an_unknown_key_of_the_file_is_told_with_what_was_meant(command, tmp_path):
    (tmp_path / "mine.yaml").write_text("recipe: r.yaml\npenaltys: {none: }\n")
    assert "Did you mean 'penalties'?" in command("sweep", "--config", "mine.yaml")


def test_the_sweeps_that_are_given_have_no_wrong_name_and_a_recipe():
    for path in (FOLDER / "sweeps").glob("*.yaml"):
        sweep = Sweep(**read_yaml(path, "config"))
        assert (FOLDER.parent / sweep.recipe).is_file()
        assert sweep.variants[0].name == "none"  # which others are compared with


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10_vgg", "digits_lenet_finetune", "mnist_lenet"])
def test_sweeps_that_need_what_is_not_here_run_with_random_images(name, command, monkeypatch, tmp_path):
    pytest.importorskip("optuna")

    def images(self, train):
        generator = torch.Generator().manual_seed(int(train))
        shape = (5600 if train else 300, *self.image_shape)
        x = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        return x, torch.randint(0, 10, (len(x),), generator=generator)

    for data in (MNIST, CIFAR10):
        monkeypatch.setattr(data, "_load", images)
        monkeypatch.setattr(data, "prepare_data", lambda self: None)
    given = read_yaml(FOLDER / "sweeps" / f"{name}.yaml", "config")
    if name == "digits_lenet_finetune":  # goes on from what another one trained
        moment = [f"--{option}={value}" for option, value in MOMENT.items()]
        assert command("fit", "--config", "recipes/digits_lenet_expected_rate.yaml", *moment) == ""
    given |= {"settings": {**given.get("settings", {}), **MOMENT}, "trials": 2, "calibration_batches": 1, "steps": [2]}
    sweep = Sweep(**given)
    job = Job(sweep, read_yaml(FOLDER.parent / sweep.recipe, "recipe"), make)
    look = run_sweep(job, console=Console(file=io.StringIO())).look()
    assert look.failures == []
    assert [row["penalty"] for row in look.rows if row["export"] == look.rows[0]["export"]] == ["none", "l1"]
    assert all(row["sops"] > 0 for row in look.rows)
