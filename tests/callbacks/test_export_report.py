"""ExportReport says what it can before training, saves the network first, and ends no training for a figure."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from snnreg_plugins import load_network
from snnreg_plugins.callbacks import ExportReport
from snnreg_plugins.reports.report import Report

X = torch.rand(40, 5, generator=torch.Generator().manual_seed(2)) - 0.3
ONE = (X[:, :1] > X[:, 1:2]).float()
CLASSES = (10 * X.sum(1)).long() % 3


class Module(LightningModule):
    def __init__(self, outputs=3, loss=F.cross_entropy):
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, outputs))
        self.net[3] = nn.ReLU()
        self.loss, self.steps = loss, 0
        self.at_first = copy.deepcopy(self.net.state_dict())

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        self.steps += 1
        return self.loss(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05)

    def is_trained(self):
        return any(not torch.equal(self.net.state_dict()[name], value) for name, value in self.at_first.items())


class Untested(LightningDataModule):
    def __init__(self, targets, x=X, test_targets=None):
        super().__init__()
        self.x, self.targets = x, targets
        self.test_targets = targets if test_targets is None else test_targets

    def train_dataloader(self):
        return DataLoader(TensorDataset(self.x, self.targets), 16)


class Data(Untested):
    def test_dataloader(self):
        return DataLoader(TensorDataset(self.x, self.test_targets), 16)


def fit(folder, module, data, exporter=ExportReport, **options):
    names = ("fast_dev_run", "limit_test_batches")
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **{name: options.pop(name) for name in names if name in options},
    )  # fmt: skip
    callback = exporter(str(folder), **{"timesteps": 2, "steps": [1, 2], "html": False} | options)
    trainer.callbacks.append(callback)
    trainer.fit(module, datamodule=data)
    return callback


def logit(outputs, targets):
    return float(((outputs > 0) == (targets > 0.5)).double().mean())


@pytest.mark.parametrize(
    ("outputs", "loss", "targets", "name", "expected"),
    [
        (1, F.binary_cross_entropy_with_logits, ONE, "accuracy", logit),
        (1, F.mse_loss, X[:, :1], "mse", lambda o, t: float((o - t).square().mean())),
        (3, F.cross_entropy, CLASSES, "accuracy", lambda o, t: float((o.argmax(1) == t).double().mean())),
        (3, F.cross_entropy, F.one_hot(CLASSES, 3).float(), "accuracy",
         lambda o, t: float((o.argmax(1) == t.argmax(1)).double().mean())),
    ],
)  # fmt: skip
def test_the_score_is_that_of_the_task(outputs, loss, targets, name, expected, tmp_path):
    module = Module(outputs, loss)
    fit(tmp_path, module, Data(targets), html=True)
    result = Report.load_json(tmp_path / "report.json")
    assert result.score_name == name
    with torch.no_grad():
        assert result.dnn.score == pytest.approx(expected(module.net(X), targets))
        network = load_network(tmp_path / "spiking.pt", module)
        assert result.steps[1].score == pytest.approx(expected(network(X), targets))
    assert "Spikes" in (tmp_path / "report.html").read_text(encoding="utf-8")


def by_hand(outputs, targets):
    return (outputs - targets).abs().mean()


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        (Untested(CLASSES), {}, ValueError, "Untested has none. Give it a test_dataloader"),
        (Data(CLASSES), {"limit_test_batches": 0}, ValueError, "`limit_test_batches` is 0"),
        (Data(CLASSES), {"until": "nothing"}, ValueError, "`until` to be a layer or block"),
        (Data(CLASSES), {"network": "nets"}, ValueError, r"`network` to name a module within Module, .*\['net'\]"),
        (Data(ONE), {"loss": by_hand, "outputs": 1}, ValueError, "Cannot tell what is scored .* Give `metric`"),
        (Data(CLASSES + 1), {"loss": lambda o, t: F.cross_entropy(o, t - 1)}, ValueError, "below 3, .* but got 3"),
    ],
)
def test_what_cannot_be_measured_is_said_before_the_first_step(data, options, error, message, tmp_path):
    told = {name: options[name] for name in ("loss", "outputs") if name in options}
    module = Module(**told)
    with pytest.raises(error, match=message):
        fit(tmp_path, module, data, **{name: value for name, value in options.items() if name not in told})
    assert not module.is_trained()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"output_dir": None}, TypeError, "`output_dir` to name a folder, but got None"),
        ({"output_dir": ""}, TypeError, "`output_dir` to name a folder, but got ''"),
        ({"metric": "accuracy"}, TypeError, "`metric` to be one of"),
        ({"steps": []}, ValueError, "`steps` to be one or more integers"),
        ({"steps": [0, 4]}, ValueError, r"`steps` to be one or more integers of at least 1, .* but got \[0, 4\]"),
        ({"calibration_batches": 0}, ValueError, "`calibration_batches` to be an integer of at least 1, but got 0"),
        ({"html": "false"}, ValueError, "`html` to be True or False, but got 'false'"),
    ],
)
def test_wrong_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        ExportReport(**options)


def test_what_turns_out_to_be_immeasurable_is_a_warning_and_the_network_is_there(tmp_path):
    fit(tmp_path, Module(), Data(CLASSES), html=True, diagnose=True)
    assert len(list(tmp_path.iterdir())) > 6
    module = Module()
    with pytest.warns(UserWarning, match=r"ExportReport wrote spiking.pt.* and no more. ValueError: .*but got 8"):
        fit(tmp_path, module, Data(CLASSES, test_targets=CLASSES + 7), html=True)
    left = {path.name for path in tmp_path.iterdir()}
    assert left <= {"spiking.pt", "spiking.nir"}  # nothing that an earlier run found of another network
    assert load_network(tmp_path / "spiking.pt", module).timesteps == 2


def test_what_cannot_be_exported_after_all_leaves_the_folder_as_it_was(tmp_path):
    class Dies(Module):
        def on_train_end(self):
            self.net[0].bias.data.fill_(-100.0)

    fit(tmp_path, Module(), Data(CLASSES))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.warns(UserWarning, match=r"ExportReport wrote nothing\. .*is silent"):
        fit(tmp_path, Dies(), Data(CLASSES))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_trial_keeps_nothing(tmp_path, capsys):
    fit(tmp_path, Module(), Data(CLASSES))
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    capsys.readouterr()
    fit(tmp_path, Module(), Data(CLASSES), fast_dev_run=True)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    said = capsys.readouterr().out
    assert "SNN, T = 2" in said
    assert "Nothing of this is kept" in said
    assert not os.path.exists(said.partition("Written to ")[2].partition(":")[0])


def test_a_part_of_a_network_within_the_module_on_other_batches(tmp_path):
    class Other(Module):
        def forward(self, batch):
            return {"scores": self.net(batch["x"] - 0.1)}

        def training_step(self, batch, batch_idx):
            return self.loss(self(batch)["scores"], batch["y"])

    class Dicts(Data):
        def train_dataloader(self):
            return DataLoader([{"x": x, "y": y} for x, y in zip(self.x, self.targets, strict=True)], 16)

        test_dataloader = train_dataloader

    class Unpacking(ExportReport):
        def unpack(self, batch):
            return batch["x"] - 0.1, batch["y"]

    module = Other()
    with pytest.raises(TypeError, match="Override ExportReport.unpack"):
        fit(tmp_path, module, Dicts(CLASSES), network="net")
    fit(tmp_path, module, Dicts(CLASSES), Unpacking, network="net", until="1", limit_test_batches=0.5)
    result = Report.load_json(tmp_path / "report.json")
    network = load_network(tmp_path / "spiking.pt", module.net)
    x, classes = X[:16] - 0.1, CLASSES[:16]
    with torch.no_grad():
        assert result.samples == 16
        assert result.dnn.accuracy == float((module.net(x).argmax(1) == classes).double().mean())
        assert result.steps[1].accuracy == float((network(x).argmax(1) == classes).double().mean())


def test_the_first_of_several_test_loaders_is_measured_and_said(tmp_path, capsys):
    class Two(Data):
        def test_dataloader(self):
            return [DataLoader(TensorDataset(self.x[:8], self.targets[:8]), 4), super().test_dataloader()]

    fit(tmp_path, Module(), Two(CLASSES))
    assert Report.load_json(tmp_path / "report.json").samples == 8
    assert "Measured on the first of 2 test loaders" in capsys.readouterr().out


def test_a_callback_used_again_starts_anew(tmp_path):
    callback = fit(tmp_path, Module(1, F.mse_loss), Data(ONE))
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False, callbacks=[callback])  # fmt: skip
    trainer.fit(Module(1, F.binary_cross_entropy_with_logits), datamodule=Data(ONE))
    assert Report.load_json(tmp_path / "report.json").score_name == "accuracy"
