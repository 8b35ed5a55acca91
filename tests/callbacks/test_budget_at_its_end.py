"""What a budget says when its training ends holds of the network that the user has then."""

from __future__ import annotations

import warnings

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader, IterableDataset

from snnreg_plugins import ActivityBudget, SynapticOperations
from snnreg_plugins.callbacks.priced import validation_follows
from snnreg_plugins.modules import SpikingClassifier
from tests.callbacks.test_activity_budget import Seen, Spiking, T, lenet
from tests.callbacks.test_spiking_validation import QUIET, Module, data, fit


def spent(network):
    with torch.no_grad(), SynapticOperations(network.eval()) as sops:
        network(data(20, 1).tensors[0])
    return float(sops.compute())


class Asked(Callback):
    """Asks at each validation whether another one follows."""

    def __init__(self):
        self.answers = []

    def on_validation_start(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.answers.append(validation_follows(trainer))


class Stream(IterableDataset):
    """Samples whose number is not known."""

    def __iter__(self):
        return iter(list(zip(*data().tensors, strict=True)))


@pytest.mark.parametrize(
    ("options", "number"),
    [
        (dict(max_epochs=2), 2),
        (dict(max_epochs=3, val_check_interval=0.5), 6),  # after 2 and 4 of 5 batches
        (dict(max_epochs=2, val_check_interval=3, check_val_every_n_epoch=None), 3),
        (dict(max_epochs=5, check_val_every_n_epoch=2), 2),
        (dict(max_epochs=4, limit_train_batches=0.4), 4),
        (dict(max_epochs=-1, max_steps=12), 2),
        (dict(max_epochs=-1, max_steps=15), 3),
        (dict(max_epochs=-1, max_steps=12, val_check_interval=0.4), 5),
        (dict(max_epochs=-1, max_steps=5, accumulate_grad_batches=4), 2),
        (dict(max_epochs=4, max_steps=6), 1),
    ],
)
def test_which_validation_is_the_last_one(options, number):
    asked = Asked()
    fit([asked], **options)
    assert asked.answers == [True] * (number - 1) + [False]


def test_which_validation_is_the_last_one_of_a_stream():
    asked = Asked()
    trainer = Trainer(**(QUIET | dict(max_epochs=3)), callbacks=[asked])
    trainer.fit(Module(), DataLoader(Stream(), batch_size=8), DataLoader(data(20, 1), batch_size=8))
    assert asked.answers == [True, True, False]


@pytest.mark.slow
@pytest.mark.parametrize("options", [dict(val_check_interval=0.5), dict(max_epochs=-1, max_steps=22)])
def test_thresholds_are_trimmed_in_a_last_validation_before_the_last_batch(options):
    budget = ActivityBudget(sops=90, timesteps=T)
    torch.manual_seed(0)
    fit([budget], Module(), **(dict(max_epochs=4) | options))
    assert "threshold_factors" in budget.network.conversion
    assert spent(budget.network) == pytest.approx(budget.kept.counts.sops) == pytest.approx(90, rel=0.1)


@pytest.mark.parametrize(("options", "since"), [(dict(max_steps=7), 2), (dict(max_steps=10), 0)])
def test_weights_that_no_validation_counted_are_said(options, since):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fit([ActivityBudget(sops=1e6, timesteps=T, keep_best=False)], max_epochs=-1, **options)
    said = [str(one.message) for one in told if "by the weights of the end" in str(one.message)]
    assert len(said) == bool(since)
    if since:
        assert f"batches were trained since: {since}." in said[0]


@pytest.mark.parametrize("make", [Module, Spiking])
def test_a_training_that_is_resumed_is_steered_to_its_new_end(make, tmp_path):
    def run(epochs, **options):
        torch.manual_seed(0)
        budget, seen, asked = ActivityBudget(sops=60, timesteps=T), Seen(), Asked()
        trainer = Trainer(**(QUIET | dict(max_epochs=epochs)), callbacks=[budget, seen, asked])
        loaders = DataLoader(data(), batch_size=8), DataLoader(data(20, 1), batch_size=8)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*budget of ActivityBudget is not met")
            trainer.fit(make(), *loaders, **options)
        return trainer, seen, asked

    trainer, _, _ = run(2)
    trainer.save_checkpoint(tmp_path / "ended.ckpt")
    _, seen, asked = run(4, ckpt_path=tmp_path / "ended.ckpt", weights_only=False)
    assert [one["progress"] for one in seen.controllers] == pytest.approx([n / 20 for n in range(11, 21)])
    prices = [one["price"] for one in seen.controllers]
    assert len(set(prices)) == 10  # it was 1, and for good
    assert asked.answers == [True, False]


def test_a_network_of_fewer_steps_is_not_kept_for_one_of_more():
    module = SpikingClassifier(lenet(), timesteps={0: 1, 2: 8})
    fit([], module, max_epochs=1)
    few = spent(module.network)
    budget, seen = ActivityBudget(sops=2 * few), Seen()
    with pytest.warns(UserWarning, match="budget of ActivityBudget is not met"):
        fit([budget, seen], module, max_epochs=3)
    assert seen.metrics[0]["budget/slack"] > 0 > seen.metrics[-1]["budget/slack"]
    assert budget.kept is None


def test_what_was_kept_with_other_options_is_not_kept_when_resumed(tmp_path):
    def run(epochs, timesteps, **options):
        budget = ActivityBudget(sops=1e3, timesteps=timesteps)
        trainer = Trainer(**(QUIET | dict(max_epochs=epochs)), callbacks=[budget])
        loaders = DataLoader(data(), batch_size=8), DataLoader(data(20, 1), batch_size=8)
        trainer.fit(Module(), *loaders, **options)
        return trainer, budget

    path = tmp_path / "first.ckpt"
    trainer, first = run(2, 2)
    trainer.save_checkpoint(path)
    _, same = run(3, 2, ckpt_path=path, weights_only=False)
    assert same.kept is not None
    with pytest.warns(UserWarning, match="budget of ActivityBudget is not met"):
        _, other = run(3, 64, ckpt_path=path, weights_only=False)
    assert first.kept is not None
    assert other.kept is None


def test_validation_alone_measures_the_network_that_was_kept():
    budget = ActivityBudget(sops=110, timesteps=T)
    module, trainer = fit([budget], max_epochs=4)
    kept = budget.network
    assert "threshold_factors" in kept.conversion
    loader = DataLoader(data(20, 1), batch_size=8)
    (found,) = trainer.validate(module, loader, verbose=False)
    assert budget.network is kept
    assert found["budget/sops"] == found["snn/sops"] == pytest.approx(budget.kept.counts.sops)
    with torch.no_grad():
        module.fc.weight.mul_(2)
    trainer.validate(module, loader, verbose=False)
    assert budget.network is not kept  # of other weights
