"""Fine-tuning of a spiking network in few bits."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from snnreg_plugins import load_network, save_network
from snnreg_plugins.modules import SpikingClassifier
from tests.callbacks.test_spiking_validation import QUIET
from tests.export.test_few_bits import all_whole


def made(**options):
    torch.manual_seed(0)
    dnn = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    return SpikingClassifier(dnn, timesteps=3, optimizer=lambda p: torch.optim.Adam(p, 0.05), weights="int8", **options)


def fit(module, epochs, ckpt_path=None):
    generator = torch.Generator().manual_seed(1)
    data = DataLoader(TensorDataset(torch.rand(16, 1, 8, 8, generator=generator), torch.arange(16) % 5), 8)
    trainer = Trainer(**QUIET, max_epochs=epochs)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize("options", [{}, dict(batch_norm="keep", train_thresholds="channel")])
def test_few_bits_are_trained_resumed_and_rounded_in_the_end(options, tmp_path):
    module, whole, again, x = made(**options), made(**options), made(**options), torch.rand(9, 1, 8, 8)
    fit(module, 1).save_checkpoint(tmp_path / "one.ckpt")
    fit(whole, 2)
    fit(again, 2, tmp_path / "one.ckpt")
    weights = [case.network.state_dict() for case in (module, whole, again)]
    name = "body.4.parametrizations.weight.original"
    assert not torch.equal(weights[0][name], weights[1][name])
    assert all(torch.equal(value, weights[2][name]) for name, value in weights[1].items())
    loaded = SpikingClassifier.load_from_checkpoint(
        tmp_path / "one.ckpt", network=made().network, weights_only=True, weights="int8", **options
    )
    with torch.no_grad():
        assert torch.equal(loaded.eval()(x), module.eval()(x))
        final = module.export()
        assert all_whole(final)
        save_network(final, tmp_path / "spiking.pt")
        assert torch.equal(load_network(tmp_path / "spiking.pt", module.dnn)(x), final(x))
        assert (final(x) - module(x)).abs().mean() < 0.1 * module(x).std()


def test_not_trained_they_are_whole_at_once():
    module = made(train_weights=False)
    fit(module, 0)
    assert all_whole(module.network)
