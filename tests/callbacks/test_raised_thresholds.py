"""Thresholds are pushed up as a term that is written into the loss does it."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from snnreg_plugins import RaisedThresholds, to_norse, to_snntorch
from snnreg_plugins.modules import SpikingClassifier
from tests.callbacks.reference import fit, step_by

S = 0.3


def inputs():
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(32, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (32,), generator=generator)


def exported(export=to_snntorch, **options):
    torch.manual_seed(0)
    dnn = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    return export(dnn, inputs()[0], timesteps=4, **{"train_thresholds": "channel"} | options)


class Loop(LightningModule):
    """The user's module. By hand, it subtracts the logarithms from each loss."""

    def __init__(self, network, by_hand=0.0, manual=False):
        super().__init__()
        self.net, self.by_hand = network, by_hand
        self.automatic_optimization = not manual

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        for module in self.net.modules():
            dynamics = self.net.neurons.describe(module)
            if dynamics is not None:
                loss = loss - self.by_hand * dynamics.threshold.log().mean()
        return step_by(self, loss)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trained(module, callbacks=(), **options):
    fit(module, callbacks, data=DataLoader(TensorDataset(*inputs()), batch_size=8), **options)
    return torch.cat([weight.detach().flatten() for weight in module.net.parameters()])


@pytest.mark.parametrize("export", [to_snntorch, to_norse])
@pytest.mark.parametrize(
    ("manual", "options"),
    [(False, {}), (True, {}), (False, {"accumulate_grad_batches": 3}), (False, {"gradient_clip_val": 0.1})],
    ids=str,
)
def test_it_is_the_loss_by_hand(export, manual, options):
    expected = trained(Loop(exported(export), S, manual), **options)
    found = trained(Loop(exported(export), 0.0, manual), [RaisedThresholds(S)], **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    plain = trained(Loop(exported(export), 0.0, manual), **options)
    assert (found - plain).abs().max() > 1e-3


def test_thresholds_rise_and_are_logged():
    module = Loop(exported())
    before = {
        n: d.threshold.log().mean().exp() for n, m in module.named_modules() if (d := module.net.neurons.describe(m))
    }
    callback = RaisedThresholds(3.0)
    _, trainer = fit(module, [callback], data=DataLoader(TensorDataset(*inputs()), batch_size=8))
    logged = {n: v for n, v in trainer.callback_metrics.items() if n.startswith("raised_thresholds/")}
    assert len(logged) == len(before) == 2
    for name, threshold in before.items():
        assert float(logged[f"raised_thresholds/{name}"]) > 1.05 * threshold.item()


@pytest.mark.parametrize(
    "options", [{"train_thresholds": "none"}, {"train_thresholds": "none", "beta": 0.9, "train_beta": "layer"}]
)
def test_networks_without_trained_thresholds_are_refused(options):
    with pytest.raises(
        ValueError, match=r"no thresholds that are trained in Loop\. Export with train_thresholds='channel'"
    ):
        trained(Loop(exported(**options)), [RaisedThresholds()])


def test_the_classifier_is_served():
    dnn = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    module = SpikingClassifier(dnn, timesteps=2, train_thresholds="layer")
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[RaisedThresholds()],
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(*inputs()), batch_size=8))
    assert [name for name in trainer.callback_metrics if name.startswith("raised_thresholds/")]
