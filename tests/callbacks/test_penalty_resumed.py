"""Training that ends within an epoch goes on as if it had never ended, where the data does."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback

from snnreg_plugins import ActivityRegularization
from tests.callbacks.reference import Module, fit, loader, start


class Placed:
    """A loader of batches that keeps its place within an epoch."""

    def __init__(self, batches=None):
        self.batches, self.place = list(loader() if batches is None else batches), 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        self.place %= len(self.batches)  # of an epoch whose end nobody asked for
        for self.place in range(self.place + 1, len(self.batches) + 1):  # noqa: B020
            yield self.batches[self.place - 1]
        self.place = 0

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


class Save(Callback):
    def __init__(self, file, step):
        self.file, self.step = file, step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.file)


@pytest.mark.parametrize("step", [3, 6])  # of four in an epoch
def test_training_resumed_within_an_epoch_with_data_that_keeps_its_place(step, tmp_path):
    def run(*callbacks, **options):
        callback = ActivityRegularization("expected_rate", 0.3, "fan_out", momentum=0.5)
        callbacks = [callback, *callbacks]
        module = Module(start({}), optimizer="adam")
        result, _ = fit(module, callbacks, max_epochs=3, data=Placed(), **options)
        return result, callback.state_dict()["thresholds"]

    straight, thresholds = run(Save(tmp_path / "mid.ckpt", step))
    resumed, thresholds_resumed = run(ckpt_path=tmp_path / "mid.ckpt")
    assert torch.equal(resumed, straight)
    assert thresholds_resumed == thresholds
