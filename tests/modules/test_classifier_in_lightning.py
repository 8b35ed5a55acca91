"""What Lightning does with a module, done with one that trains a spiking network."""

from __future__ import annotations

import copy

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from snnreg_plugins import (
    ActivityBudget,
    ActivityRegularization,
    CompressedActivations,
    Distillation,
    SpikingValidation,
    SynapticOperations,
    to_snntorch,
)
from snnreg_plugins.modules import SpikingClassifier

KEPT = dict(batch_norm="keep", train_thresholds="channel")
X, Y = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 5


class Data(LightningDataModule):
    def train_dataloader(self):
        return DataLoader(TensorDataset(X, Y), 8)

    val_dataloader = test_dataloader = train_dataloader


def dnn():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 5),
    )  # fmt: skip


def classifier(**options):
    return SpikingClassifier(
        dnn(), timesteps=3, calibration_batches=2, optimizer=lambda p: torch.optim.Adam(p, 1e-2), **options
    )


class Own(LightningModule):
    """A user's module around an exported network."""

    def __init__(self, **options):
        super().__init__()
        self.network = to_snntorch(dnn().eval(), X, timesteps=3, **options)

    def forward(self, x):
        return self.network(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


MODULES = {
    "folded": classifier,
    "kept": lambda: classifier(**KEPT),
    "own": Own,
    "own, kept": lambda: Own(**KEPT),
}


def trainer(*callbacks, **options):
    options = {"max_epochs": 2, "enable_checkpointing": False, **options}
    return Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=list(callbacks), **options,
    )  # fmt: skip


def fit(module, *callbacks, **options):
    torch.manual_seed(0)
    run = trainer(*callbacks, **options)
    run.fit(module, datamodule=Data())
    return run


CALLBACKS = {
    "penalty": lambda: ActivityRegularization("expected_rate", 0.1),
    "budget": lambda: ActivityBudget(share=0.3, timesteps=3),
    "distillation": lambda: Distillation(dnn(), student="network", every_step=True),
    "validation": lambda: SpikingValidation(3),
    "compression": lambda: CompressedActivations(bits=8, min_numel=1),
}


@pytest.mark.filterwarnings("ignore:The budget of ActivityBudget")
@pytest.mark.parametrize("callback", CALLBACKS)
@pytest.mark.parametrize("module", ["kept", "own, kept"])
def test_callbacks_serve_networks_that_keep_batch_norms(module, callback):
    """These need all samples and steps of a call at once."""
    trained = MODULES[module]()
    found = fit(trained, CALLBACKS[callback](), max_epochs=1).callback_metrics
    if callback in ("budget", "validation"):
        with SynapticOperations(trained.network.eval()) as operations, torch.no_grad():
            trained.network(X)
        if callback == "validation":
            assert float(found["snn/sops"]) == pytest.approx(float(operations.compute()))


def test_a_budget_counts_the_first_batch_as_it_is_trained():
    module, budget = Own(**KEPT), ActivityBudget(share=0.5, timesteps=3)
    before = copy.deepcopy(module.network).train()
    with SynapticOperations(before) as operations:
        before(X[:8])
    fit(module, budget, max_steps=1, limit_val_batches=1, check_val_every_n_epoch=2)
    assert budget.controller.counts.sops == pytest.approx(float(operations.compute()))
