"""Two processes with half of each batch train as one does, whatever the network is."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from snnreg_plugins.modules import SpikingClassifier
from tests.callbacks.reference import free_port, leave, two_processes
from tests.modules.test_classifier import quiet
from tests.modules.test_spiking_classifier import STARTS, X, Y, sgd


def trained(name, rank=None, port=None):
    torch.manual_seed(0)
    network, given = STARTS[name]()
    module = SpikingClassifier(network, optimizer=sgd, **given)
    data, sampler, options = TensorDataset(X, Y), None, {}
    if rank is not None:
        sampler = DistributedSampler(data, 2, rank, shuffle=False)
        options = dict(strategy=two_processes(rank, port), devices=2, use_distributed_sampler=False)
    trainer = quiet(max_epochs=2, enable_checkpointing=False, **options)
    loaders = [DataLoader(data, 4 if rank is None else 2, sampler=sampler) for _ in range(2)]
    trainer.fit(module, *loaders)
    validated = {key: value for key, value in trainer.callback_metrics.items() if key.startswith("val")}
    return {**module.state_dict(), **validated}


NAMES = ("exported", "hidden")


def _worker(rank, port, file):
    torch.save({name: trained(name, rank, port) for name in NAMES}, f"{file}{rank}")
    leave()


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    torch.multiprocessing.spawn(_worker, (free_port(), tmp_path / "rank"), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}", weights_only=True) for rank in range(2))
    for name in NAMES:
        for key, value in trained(name).items():
            assert torch.equal(first[name][key], second[name][key]), key
            torch.testing.assert_close(first[name][key].to(value.dtype), value)
