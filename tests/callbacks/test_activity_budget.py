"""A budget is met by the network that is exported, or it is said."""

from __future__ import annotations

import math
import warnings
from functools import partial

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from snnreg_plugins import (
    ActivityBudget,
    ActivityRegularization,
    SpikingValidation,
    SynapticOperations,
    to_snntorch,
)
from snnreg_plugins.data import Digits
from snnreg_plugins.modules import Classifier, LeNet, SpikingClassifier
from snnreg_plugins.training.dual_ascent import Controller
from tests.callbacks.reference import free_port, leave, two_processes
from tests.callbacks.test_spiking_already import Rates
from tests.callbacks.test_spiking_validation import QUIET, Module, data, fit

T = 4


@pytest.fixture(autouse=True)
def told():
    """Warnings that a test expects are looked for there."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*budget of ActivityBudget is not met.*")
        yield


class Spiking(Module):
    """A module around a network that spikes already."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        dnn = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 8), nn.ReLU(), nn.Linear(8, 3)
        )
        self.net = to_snntorch(dnn, data().tensors[0], timesteps=T, correction="none")

    def forward(self, x):
        return self.net(x)


class Seen(Callback):
    """Keeps what each validation logs, and the strength of each batch."""

    def __init__(self):
        self.metrics, self.strengths, self.controllers = [], [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        for callback in trainer.callbacks:
            if isinstance(callback, ActivityBudget):
                self.strengths.append(callback.controller.strength)
                self.controllers.append(dict(callback.controller.state()))

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def test_what_is_counted_is_what_spiking_validation_counts():
    seen = Seen()
    callbacks = [ActivityBudget(share=0.1, timesteps=T, trim=False), SpikingValidation(T), seen]
    fit(callbacks, max_epochs=3)
    for metrics in seen.metrics:
        assert metrics["budget/sops"] == metrics["snn/sops"] > 0
        spent = metrics["snn/sops"] / metrics["dnn/dense_macs"]
        assert metrics["budget/slack"] == pytest.approx(1 - spent / 0.1)
        assert metrics["budget/accuracy_per_sop"] == pytest.approx(metrics["snn/accuracy"] / metrics["snn/sops"])
        met = metrics["snn/accuracy"] if spent <= 0.102 else 0.0
        assert metrics["budget/accuracy_if_met"] == met


def test_alone_it_logs_what_spiking_validation_logs():
    alone, both = Seen(), Seen()
    fit([ActivityBudget(sops=100, timesteps=T, trim=False), alone])
    fit([ActivityBudget(sops=100, timesteps=T, trim=False), SpikingValidation(T), both])
    assert alone.metrics == both.metrics
    assert {"snn/accuracy", "snn/sops/fc", "dnn/dense_macs"} < set(alone.metrics[0])


@pytest.mark.parametrize("penalty", ["expected_rate", "l1"])
def test_the_penalty_is_that_of_the_strength(penalty, monkeypatch):
    monkeypatch.setattr(Controller, "strength", 0.7)
    budget = ActivityBudget(sops=100, timesteps=T, penalty=penalty, keep_best=False)
    steered, _ = fit([budget])
    plain, _ = fit([ActivityRegularization(penalty, 0.7, "fan_out"), SpikingValidation(T)])
    free, _ = fit([SpikingValidation(T)])
    assert torch.equal(steered.conv.weight, plain.conv.weight)
    assert not torch.equal(steered.conv.weight, free.conv.weight)


def test_the_strength_follows_the_excess():
    seen = Seen()
    budget = ActivityBudget(sops=60, timesteps=T, ramp=0)
    fit([budget, seen], max_epochs=4)
    assert seen.strengths[0] > Controller.LEAST
    assert seen.strengths[4] > seen.strengths[0]
    assert seen.metrics[-1]["budget/strength"] == pytest.approx(budget.controller.settled_strength)
    assert seen.metrics[-1]["budget/price"] == pytest.approx(budget.controller.shadow_price)


def test_the_unit_of_the_price_is_the_loss_as_the_module_gives_it():
    units = []
    for options in ({}, dict(accumulate_grad_batches=2)):
        seen = Seen()
        fit([ActivityBudget(sops=60, timesteps=T), seen], max_epochs=1, **options)
        units.append(seen.controllers[0]["loss"])
    assert units[0] > 0.5
    assert units[1] == pytest.approx(units[0])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_spikes_of_training_are_counted_exactly(checkpointing):
    seen = Seen()
    module = Spiking()
    module.net.checkpointing = checkpointing
    budget = ActivityBudget(sops=1e4)
    x, y = data(64).tensors
    loader = DataLoader(list(zip(x, y, strict=True)), batch_size=64)
    with torch.no_grad(), SynapticOperations(module.net) as sops:
        module(x)
    Trainer(**(QUIET | dict(max_epochs=1)), callbacks=[budget, seen]).fit(module, loader, loader)
    first = seen.controllers[0]
    assert first["counts"]["sops"] == float(sops.compute())
    assert first["mean"] == pytest.approx(float(sops.compute()), rel=1e-6)
    assert first["ratio"] == pytest.approx(1.0, rel=1e-6)
    assert first["counts"]["dense_macs"] == 9 * 4 * 36 + 4 * 36 * 8 + 8 * 3


@pytest.mark.parametrize("penalty", ["expected_rate", "l1"])
def test_a_network_of_the_users_own_is_counted_as_if_it_had_no_penalty(penalty):
    class Own(Module):
        def __init__(self):
            super().__init__()
            self.net = Rates()

        def forward(self, x):
            return self.net(x.flatten(1)[:, :5])

    seen, module = Seen(), Own()
    x, y = data(64).tensors
    loader = DataLoader(list(zip(x, y, strict=True)), batch_size=64)
    with torch.no_grad(), SynapticOperations(module.net) as sops:
        module(x)
    budget = ActivityBudget(sops=100, network="net", penalty=penalty)
    Trainer(**(QUIET | dict(max_epochs=1)), callbacks=[budget, seen]).fit(module, loader, loader)
    counts = seen.controllers[0]["counts"]
    assert counts["sops"] == float(sops.compute()) > 0
    assert counts["macs"] == float(sops.total("effective_macs"))
    assert counts["dense_macs"] == 5 * 12 + 12 * 3


def test_dense_macs_of_a_dnn_and_of_its_spiking_network_are_the_same():
    dnn = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 8), nn.ReLU(), nn.Linear(8, 3))
    budget = ActivityBudget(share=0.5, timesteps=T)
    seen = Seen()
    fit([budget, seen], Classifier(dnn), max_epochs=1)
    assert seen.controllers[0]["counts"]["dense_macs"] == 9 * 4 * 36 + 4 * 36 * 8 + 8 * 3


def test_an_energy_that_the_first_layer_spends_is_refused_before_training():
    for module in (Module(), Spiking()):
        before = [parameter.detach().clone() for parameter in module.parameters()]
        with pytest.raises(ValueError, match=r"`joules` to be above .*MACs of layers with real-valued input"):
            fit([ActivityBudget(joules=1e-9, timesteps=T)], module)
        if isinstance(module, Module) and not isinstance(module, Spiking):
            assert all(map(torch.equal, before, module.parameters()))
    fit([ActivityBudget(joules=10e-9, timesteps=T)], max_epochs=1)


def test_what_cannot_be_steered_is_refused():
    with pytest.raises(MisconfigurationException, match="no validation data"):
        Trainer(**(QUIET | dict(max_epochs=1)), callbacks=[ActivityBudget(sops=10)]).fit(
            Module(), DataLoader(data(), batch_size=8)
        )
    with pytest.raises(MisconfigurationException, match="`max_epochs` nor `max_steps`"):
        fit([ActivityBudget(sops=10)], max_epochs=-1)
    with pytest.raises(MisconfigurationException, match="beside another one"):
        fit([ActivityBudget(sops=10), ActivityBudget(sops=20)])
    fit([ActivityBudget(sops=10)], max_epochs=-1, max_steps=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "`sops`, `share` and `joules`"),
        (dict(sops=10, joules=1.0), "`sops` and `joules`"),
        (dict(sops=-1), "`sops`"),
        (dict(sops=10, penalty="l2"), "`penalty`.*'l2'"),
        (dict(sops=10, ramp=1.5), "`ramp`"),
        (dict(sops=10, tolerance=-0.1), "`tolerance`"),
        (dict(sops=10, keep_best="no"), "`keep_best`"),
        (dict(sops=10, trim=1), "`trim`"),
        (dict(sops=10, layers=3), "`layers`"),
        (dict(sops=10, timesteps=0), "`timesteps`"),
        (dict(sops=10, coding="rate"), "`coding`"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ActivityBudget(**arguments)


def test_a_budget_that_is_not_met_is_said_with_numbers():
    budget = ActivityBudget(sops=1, timesteps=T)
    with pytest.warns(UserWarning, match=r"is not met: [0-9.]+ of 1\.00 SOPs/sample \(\+[0-9.]+ %\).*strength of"):
        fit([budget], max_epochs=1)
    assert budget.kept is None


def test_silence_is_said():
    module = Module()
    nn.init.constant_(module.norm.bias, -100.0)
    with pytest.warns(UserWarning, match="cannot tell whether its budget is met: the last validation has counted"):
        _, trainer = fit([ActivityBudget(sops=1000, timesteps=T)], module, max_epochs=1)
    assert trainer.callback_metrics["budget/accuracy_if_met"] == 0


def test_the_module_ends_with_the_weights_that_met_the_budget():
    seen = Seen()
    budget = ActivityBudget(sops=1e6, timesteps=T)
    module, _ = fit([budget, seen], max_epochs=4)
    best = max(metrics["budget/accuracy_if_met"] for metrics in seen.metrics)
    assert budget.kept is not None
    assert budget.kept.score == pytest.approx(best)
    assert seen.metrics[budget.kept.epoch]["budget/sops"] == pytest.approx(budget.kept.counts.sops)
    for name, value in module.state_dict().items():
        assert torch.equal(value, budget.kept.weights[name])
    last, _ = fit([ActivityBudget(sops=1e6, timesteps=T, keep_best=False)], max_epochs=4)
    free, _ = fit([SpikingValidation(T)], max_epochs=4)
    torch.testing.assert_close(last.conv.weight, free.conv.weight)  # no penalty below the budget


def test_the_best_checkpoint_within_the_budget(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor="budget/accuracy_if_met", mode="max")
    seen = Seen()
    fit([ActivityBudget(sops=1e6, timesteps=T), checkpoint, seen], max_epochs=4, enable_checkpointing=True)
    assert checkpoint.best_model_score == max(metrics["snn/accuracy"] for metrics in seen.metrics)


def test_the_network_of_a_dnn_is_trimmed_before_the_last_validation():
    counts = {}
    for trim in (True, False):
        budget, seen = ActivityBudget(sops=110, timesteps=T, trim=trim, keep_best=False), Seen()
        with warnings.catch_warnings(record=True) as told:
            module, _ = fit([budget, seen], max_epochs=4)
        assert any("has scaled thresholds" in str(one.message) for one in told) == trim
        with torch.no_grad(), SynapticOperations(budget.network) as sops:
            budget.network(data(20, 1).tensors[0])
        counts[trim] = seen.metrics[-1]["budget/sops"], module
        assert counts[trim][0] == pytest.approx(float(sops.compute()))
    assert torch.equal(counts[True][1].conv.weight, counts[False][1].conv.weight)
    assert abs(counts[True][0] / 110 - 1) < abs(counts[False][0] / 110 - 1)
    assert abs(counts[True][0] / 110 - 1) < 0.05


def test_the_network_that_was_kept_is_there():
    budget = ActivityBudget(sops=1e6, timesteps=T)
    fit([budget], max_epochs=4)
    assert budget.network is budget.kept.network
    with torch.no_grad(), SynapticOperations(budget.network) as sops:
        budget.network(data(20, 1).tensors[0])
    assert float(sops.compute()) == pytest.approx(budget.kept.counts.sops)


@pytest.mark.parametrize("averaged", [False, True])
def test_a_spiking_network_is_trimmed_for_good(averaged):
    found = {}
    for trim in (True, False):
        budget, seen, module = ActivityBudget(sops=1500, trim=trim, keep_best=False), Seen(), Spiking()
        averaging = [WeightAveraging()] if averaged else []
        fit([budget, seen, *averaging], module, max_epochs=3)
        found[trim] = module, seen.metrics[-1]["budget/sops"]
        if not averaged:
            with torch.no_grad(), SynapticOperations(module.net) as sops:
                module(data(20, 1).tensors[0])
            assert float(sops.compute()) == pytest.approx(seen.metrics[-1]["budget/sops"])
    levels = [found[trim][0].net.levels["1"] for trim in (True, False)]
    assert torch.equal(*levels) == averaged  # which swaps its weights in later
    if not averaged:
        assert abs(found[True][1] / 1500 - 1) < abs(found[False][1] / 1500 - 1)


def test_a_training_that_is_resumed_goes_on_bit_by_bit(tmp_path):
    def run(**options):
        seed_everything(0)
        # Thresholds are balanced on batches of one epoch, as none of before are there after it is resumed.
        budget = ActivityBudget(sops=60, timesteps=T, keep_best=False, calibration_batches=5)
        seen = Seen()
        module = Module()
        module.dropout = nn.Identity()
        trainer = Trainer(**(QUIET | dict(max_epochs=4)), callbacks=[budget, seen, *options.pop("callbacks", [])])
        loaders = DataLoader(data(), batch_size=8), DataLoader(data(20, 1), batch_size=8)
        trainer.fit(module, *loaders, **options)
        return module, seen, trainer

    class Save(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    straight, whole, _ = run(callbacks=[Save()])
    resumed, part, _ = run(ckpt_path=tmp_path / "middle.ckpt")
    assert part.strengths == whole.strengths[-len(part.strengths) :]
    assert len(part.strengths) < len(whole.strengths)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_second_fit_starts_anew():
    budget, first, second = ActivityBudget(sops=60, timesteps=T), Seen(), Seen()
    fit([budget, first])
    fit([budget, second])
    assert second.strengths == first.strengths
    assert second.metrics == first.metrics


def test_a_network_within_the_module_is_the_one_that_is_penalized():
    class Two(Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(batch[0]), batch[1]) + F.cross_entropy(self(batch[0]), batch[1])

    budget, seen = ActivityBudget(share=0.1, timesteps=T, network="net"), Seen()
    fit([budget, seen], Two(), max_epochs=1)
    assert seen.controllers[-1]["synapses"] == 8 * 3
    assert seen.controllers[-1]["counts"]["dense_macs"] == 64 * 8 + 8 * 3


def _two_process_worker(rank, port, file):
    budget, seen = ActivityBudget(sops=60, timesteps=T), Seen()
    fit([budget, seen], max_epochs=2, devices=2, strategy=two_processes(rank, port))
    torch.save({"controllers": seen.controllers, "metrics": seen.metrics}, f"{file}{rank}")
    leave()


@pytest.mark.slow
def test_two_processes_have_one_price(tmp_path):
    torch.multiprocessing.spawn(_two_process_worker, (free_port(), tmp_path / "rank"), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}", weights_only=True) for rank in (0, 1))
    assert first == second
    assert first["controllers"][-1]["price"] > 0


def digits(callback, module, epochs):
    seed_everything(0)
    trainer = Trainer(**(QUIET | dict(max_epochs=epochs, num_sanity_val_steps=0)), callbacks=[callback])
    trainer.fit(module, datamodule=Digits())
    return trainer


def lenet():
    torch.manual_seed(0)
    return LeNet((1, 8, 8), kernel_size=3)


# What the network costs without a penalty.
FREE = 51_500


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, 0.25])
def test_a_dnn_on_digits_is_exported_within_its_budget(share):
    budget = ActivityBudget(sops=share * FREE, timesteps=T, calibration_batches=20)
    module = Classifier(lenet(), partial(torch.optim.Adam, lr=2e-3))
    trainer = digits(budget, module, epochs=20)
    # As a user exports it afterwards.
    network = to_snntorch(module.eval(), trainer.datamodule.train_dataloader(), timesteps=T)
    network = budget.network if "threshold_factors" in budget.network.conversion else network
    right = total = 0
    with torch.no_grad(), SynapticOperations(network) as sops:
        for x, y in trainer.datamodule.val_dataloader():
            right += int((network(x).argmax(1) == y).sum())
            total += len(y)
    assert float(sops.compute()) == pytest.approx(share * FREE, rel=0.03)
    assert right / total > 0.75
    assert math.isclose(right / total, budget.kept.score, abs_tol=0.03)


@pytest.mark.slow
def test_a_spiking_network_on_digits_is_fine_tuned_to_its_budget():
    network = lenet()
    digits(SpikingValidation(T), Classifier(network, partial(torch.optim.Adam, lr=2e-3)), epochs=8)
    module = SpikingClassifier(network, timesteps=T, optimizer=partial(torch.optim.Adam, lr=2e-3))
    digits(ActivityBudget(sops=0.5 * FREE), module, epochs=20)
    data = Digits()
    data.setup("fit")
    right = total = 0
    with torch.no_grad(), SynapticOperations(module.network) as sops:
        for x, y in data.val_dataloader():
            right += int((module(x).argmax(1) == y).sum())
            total += len(y)
    assert float(sops.compute()) == pytest.approx(0.5 * FREE, rel=0.03)
    assert right / total > 0.9
