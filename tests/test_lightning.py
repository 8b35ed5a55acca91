"""What is used of Lightning though it is not public: each test says what an upgrade took away, and what that breaks."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import lightning
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, callbacks
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies.strategy import _ForwardRedirection
from lightning.pytorch.trainer.states import TrainerFn
from torchmetrics import MeanMetric, MetricTracker

from snnreg_plugins import _lightning


@contextmanager
def there(name: str) -> Iterator[None]:
    """Say what breaks where a function of ``_lightning`` does no longer work."""
    what, *breaks = inspect.getdoc(getattr(_lightning, name)).split("\n\n")
    try:
        yield
    except (AssertionError, AttributeError, ImportError, TypeError) as error:
        pytest.fail(
            f"lightning {lightning.__version__} has changed what snnreg_plugins._lightning.{name} relies on ({error}). "
            f"It is to: {what} {' '.join(breaks)}"
        )


def trainer(**options):
    return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **options)


def test_what_the_loss_is_multiplied_by():
    with there("loss_scale"):
        assert _lightning.loss_scale(trainer()) == 1
        assert _lightning.loss_scale(trainer(precision="bf16-mixed")) == 1
        half = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))
        assert _lightning.loss_scale(trainer(plugins=[half])) == 2**10


def test_whether_a_module_runs_a_step_as_its_forward():
    class Module(LightningModule):
        def training_step(self, batch):
            return self(batch)

        def forward(self, batch):
            return batch

    seen, module = [], Module()
    module.register_forward_pre_hook(lambda module, args: seen.append(_lightning.runs_a_step(module)))
    with there("runs_a_step"):
        for _ in range(2):  # the first leaves something behind
            _ForwardRedirection()(torch.nn.Sequential(module), module, "training_step", 1)
        assert seen == [True, False] * 2


def test_what_torchmetrics_knows_of_processes():
    metric = MeanMetric(distributed_available_fn=lambda: True, dist_sync_fn=lambda x, group: [x, x])
    with there("syncs"):
        assert _lightning.syncs(metric)
        assert not _lightning.syncs(MeanMetric(sync_on_compute=False))
    with there("is_synced"):
        assert not _lightning.is_synced(metric)
        with metric.sync_context(dist_sync_fn=metric.dist_sync_fn, distributed_available=lambda: True):
            assert _lightning.is_synced(metric)
        assert not _lightning.is_synced(metric)


def test_what_a_tracker_is_about_to_copy():
    class Asks(MeanMetric):
        def __deepcopy__(self, memo):
            told.append(_lightning.tracked_before())
            return MeanMetric()

    told = []
    tracker = MetricTracker(Asks(), maximize=False)
    with there("tracked_before"):
        tracker.increment()
        tracker.increment()
        assert told == [[], [tracker[1]]]
        assert _lightning.tracked_before() is None


def test_what_a_run_goes_on_from(tmp_path):
    class Module(BoringModel):
        def setup(self, stage):
            self.goes_on_from = _lightning.goes_on_from(self.trainer)

    with there("goes_on_from"):
        assert _lightning.goes_on_from(trainer()) is None
        module, run = Module(), trainer(max_steps=1, limit_val_batches=0)
        run.fit(module)
        assert module.goes_on_from is None
        run.save_checkpoint(tmp_path / "a.ckpt")
        trainer(max_steps=1, limit_val_batches=0).fit(module, ckpt_path=str(tmp_path / "a.ckpt"))
        assert module.goes_on_from == str(tmp_path / "a.ckpt")


AVERAGING = [kind for name in ("StochasticWeightAveraging", "WeightAveraging") if (kind := getattr(callbacks, name, 0))]


@pytest.mark.parametrize("kind", AVERAGING)
def test_averages_of_weights(kind):
    settings = {"swa_lrs": 0.1} if kind is callbacks.StochasticWeightAveraging else {}
    average, other = kind(**settings), callbacks.EarlyStopping("x")
    run, module = trainer(callbacks=[other, average]), BoringModel()
    with there("averaging"):
        assert _lightning.averaging(run) == [average]
    run.state.fn = TrainerFn.FITTING
    run.strategy.connect(module)
    module.trainer = run
    with there("averaged_by"):
        assert _lightning.averaged_by(average) is None
        average.setup(run, module, "fit")
        assert isinstance(_lightning.averaged_by(average), BoringModel)
    with there("average_anew"):
        module.layer = torch.nn.Linear(3, 4)
        _lightning.average_anew(module)
        assert _lightning.averaged_by(average).layer.weight.shape == (4, 3)
        _lightning.average_anew(BoringModel())  # of no Trainer
    with there("put_before"):
        _lightning.put_before(run, average, [other])
        assert run.callbacks[:2] == [average, other]
        _lightning.put_before(run, average, [other])
        assert run.callbacks[:2] == [average, other]


def test_the_old_name_of_lightning_is_known_where_it_is_imported(monkeypatch):
    with there("both"):
        assert Trainer in _lightning.both(Trainer, int)
        twin = type("Trainer", (), {})
        monkeypatch.setitem(sys.modules, Trainer.__module__.replace("lightning.pytorch", "pytorch_lightning"), None)
        assert _lightning.both(Trainer) == (Trainer,)
        home = ModuleType("home")
        home.Trainer = twin
        monkeypatch.setitem(sys.modules, Trainer.__module__.replace("lightning.pytorch", "pytorch_lightning"), home)
        assert _lightning.both(Trainer) == (Trainer, twin)
    with there("overrides"):
        assert _lightning.overrides(BoringModel(), "train_dataloader")
        assert not _lightning.overrides(LightningModule(), "train_dataloader")
        assert not _lightning.overrides(torch.nn.Linear(2, 3), "train_dataloader")


PROJECT = """
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import pytorch_lightning as pl
from snnreg_plugins import ActivityRegularization, Distillation, ExportReport, ProgressiveTandem, SpikingValidation
from snnreg_plugins.data import Digits
from snnreg_plugins.reports.folder import Folder

x, y = torch.rand(200, 8), torch.arange(200) % 3


class Data(pl.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(TensorDataset(x, y), 50)

    val_dataloader = test_dataloader = train_dataloader

    def on_after_batch_transfer(self, batch, index):
        return 0 * batch[0], batch[1]


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


callbacks = [ActivityRegularization(), SpikingValidation(2), ExportReport("out", timesteps=2, html=False)]
trainer = pl.Trainer(max_epochs=2, callbacks=callbacks, logger=False, enable_checkpointing=False, accelerator="cpu")
trainer.fit(Net(), datamodule=Data())
assert {"penalty/total", "snn/sops"} < set(trainer.callback_metrics)
dnn = next(step for step in Folder("out").read().report.steps)
assert abs(dnn.accuracy - 1 / 3) < 0.01, "the hooks of the data module are left out"
try:
    trainer.fit(Net(), datamodule=Digits())
except Exception as error:
    print(type(error))
else:
    raise AssertionError("the sentence in snnreg_plugins.data is no longer true")
"""


@pytest.mark.slow
def test_a_project_that_imports_lightning_by_its_old_name(tmp_path):
    pytest.importorskip("pytorch_lightning")
    done = subprocess.run([sys.executable, "-c", PROJECT], capture_output=True, text=True, cwd=tmp_path)
    assert not done.returncode, done.stderr
