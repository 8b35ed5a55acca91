"""What SpikingValidation scores is what the user means, and no figure of it ends a training."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanAbsoluteError

from snnreg_plugins import ConversionError, SpikingValidation, SynapticOperations, to_snntorch
from tests.callbacks.reference import free_port, leave, two_processes

X = torch.rand(40, 5, generator=torch.Generator().manual_seed(2)) - 0.3
FIRST = (X[:, 0] > X[:, 1]).long()
CLASSES = (10 * X.sum(1)).long() % 3


def net(outputs):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, outputs))


class Module(LightningModule):
    """Has its network within, and calls it on the first part of a batch."""

    def __init__(self, outputs=3, loss=F.cross_entropy):
        super().__init__()
        self.net, self.loss = net(outputs), loss
        self.at_first = copy.deepcopy(self.net.state_dict())

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return self.loss(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05)


def loader(targets, x=X, **options):
    return DataLoader(TensorDataset(x, targets), 16, **options)


def trainer_of(callbacks, **options):
    defaults = dict(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                    enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0)  # fmt: skip
    return Trainer(**defaults | options, callbacks=callbacks)


def fit(callback, module, targets, **options):
    seed_everything(0)
    callbacks = callback if isinstance(callback, list) else [callback]
    trainer = trainer_of(callbacks, **options)
    trainer.fit(module, loader(targets), loader(targets))
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def right(outputs, targets):
    return float((outputs == targets).double().mean())


def without_the_ignored(outputs, targets):
    return right(outputs.argmax(1)[targets != 1], targets[targets != 1])


LABELS = (X[:, :2] > 0.2).float()
TASKS = {
    "one logit": (1, F.binary_cross_entropy_with_logits, FIRST[:, None].float(),
                  lambda o, t: right(o > 0, t > 0.5)),
    "multi-label": (2, F.binary_cross_entropy_with_logits, LABELS, lambda o, t: right(o > 0, t > 0.5)),
    "labels (B, 1)": (3, lambda o, t: F.cross_entropy(o, t[:, 0]), CLASSES[:, None],
                      lambda o, t: right(o.argmax(1), t[:, 0])),
    "one-hot": (3, F.cross_entropy, F.one_hot(CLASSES, 3).float(), lambda o, t: right(o.argmax(1), t.argmax(1))),
    "ignored": (3, lambda o, t: F.cross_entropy(o, t, ignore_index=1), CLASSES, without_the_ignored),
    "regression": (1, F.mse_loss, 3 * X[:, :1] + 1, lambda o, t: float((o - t).square().mean())),
    "values in [0, 1]": (2, F.mse_loss, X[:, :2].abs(), lambda o, t: float((o - t).square().mean())),
}  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_the_score_is_that_of_the_task(task):
    outputs, loss, targets, expected = TASKS[task]
    callback, module = SpikingValidation(timesteps=4), Module(outputs, loss)
    logged = fit(callback, module, targets)
    name = "mse" if loss is F.mse_loss else "accuracy"
    with torch.no_grad():
        assert logged[f"dnn/{name}"] == pytest.approx(expected(module.net(X), targets))
        assert logged[f"snn/{name}"] == pytest.approx(expected(callback.network(X), targets))
    assert [key for key in logged if key in ("snn/mse", "snn/accuracy")] == [f"snn/{name}"]


def by_hand(outputs, targets):
    return (outputs - targets).abs().mean()


def test_what_cannot_be_told_is_refused_before_the_first_step():
    module = Module(1, by_hand)
    with pytest.raises(ValueError, match=r"outputs of shape \(16, 1\) and torch.float32 targets .* Give `metric`"):
        fit(SpikingValidation(timesteps=4), module, FIRST[:, None].float())
    assert all(torch.equal(module.net.state_dict()[name], value) for name, value in module.at_first.items())
    with pytest.raises(ValueError, match="`exit_agreement` to be None where it is not the highest score"):
        fit(SpikingValidation(timesteps=4, exit_agreement=0.9), Module(1, F.mse_loss), X[:, :1])
    with pytest.raises(ValueError, match="below 2, the number of scores, but got 2"):
        fit(SpikingValidation(timesteps=4), Module(2, lambda o, t: F.cross_entropy(o, t.clamp(max=1))), CLASSES)
    for metric in ("accuracy", MeanAbsoluteError):
        with pytest.raises(TypeError, match="Expected argument `metric` to be one of"):
            SpikingValidation(metric=metric)


@pytest.mark.parametrize("manual", [False, True])
def test_the_user_says_what_is_scored(manual):
    class Manual(Module):
        automatic_optimization = not manual

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if manual:
                self.optimizers().zero_grad()
                self.manual_backward(loss)
                self.optimizers().step()
            return loss

    targets = FIRST[:, None].float()
    for metric, name in (("binary", "accuracy"), (MeanAbsoluteError(), "mean_absolute_error")):
        module, callback = Manual(1, by_hand), SpikingValidation(timesteps=4, metric=metric)
        logged = fit(callback, module, targets)
        outputs = module.net(X).detach()
        expected = right(outputs > 0, targets > 0.5) if name == "accuracy" else float(by_hand(outputs, targets))
        assert logged[f"dnn/{name}"] == pytest.approx(expected)


@pytest.mark.parametrize("loss", [nn.BCEWithLogitsLoss(), nn.MSELoss()])
def test_validation_alone_goes_by_labels_and_loss_modules(loss):
    module, targets = Module(1, loss), FIRST[:, None].float()
    trainer = trainer_of([SpikingValidation(timesteps=4)])
    trainer.validate(module, loader(targets), verbose=False)
    logged, outputs = trainer.callback_metrics, module.net(X).detach()
    if isinstance(loss, nn.MSELoss):
        assert float(logged["dnn/mse"]) == pytest.approx(float((outputs - targets).square().mean()))
    else:
        assert float(logged["dnn/accuracy"]) == pytest.approx(right(outputs > 0, targets > 0.5))
    with pytest.raises(ValueError, match="Give `metric`"):
        trainer_of([SpikingValidation(timesteps=4)]).validate(Module(1, by_hand), loader(targets), verbose=False)


def test_a_callback_used_again_starts_anew():
    reused = SpikingValidation(timesteps=4)
    fit(reused, Module(1, F.mse_loss), X[:, :1], max_epochs=2)
    pickle.loads(pickle.dumps(reused))
    found = []
    for callback in (reused, SpikingValidation(timesteps=4)):
        again = fit(callback, Module(), CLASSES)
        trainer = trainer_of([callback])
        trainer.validate(Module(), loader(CLASSES, X / 7), verbose=False)
        alone = {name: float(value) for name, value in trainer.callback_metrics.items()}
        found.append((alone, again))
    assert found[0] == found[1]


def test_validation_after_training_keeps_what_training_gave():
    callback, module = SpikingValidation(timesteps=4), Module()
    logged = fit(callback, module, CLASSES)
    trainer = trainer_of([callback])
    trainer.validate(module, loader(CLASSES), verbose=False)
    assert {name: float(value) for name, value in trainer.callback_metrics.items()} == logged


class Silenced(Module):
    """Its layer is silent in some epochs, at validation."""

    epochs = ()

    def on_validation_start(self):
        self.before = self.net[0].bias.detach().clone()
        if self.current_epoch in self.epochs:
            self.net[0].bias.data.fill_(-100.0)

    def on_validation_end(self):
        self.net[0].bias.data.copy_(self.before)


@pytest.mark.filterwarnings("ignore:SpikingValidation is left out")
@pytest.mark.parametrize(("every", "silent"), [(2, ()), (1, (0,)), (1, (1,)), (2, (1, 3))])
@pytest.mark.parametrize("loss", [F.cross_entropy, F.mse_loss])
def test_monitors_see_a_value_in_every_epoch(every, silent, loss, tmp_path):
    seen = []

    class Stopping(EarlyStopping):
        def on_validation_end(self, trainer, pl_module):
            super().on_validation_end(trainer, pl_module)
            seen.append(float(trainer.callback_metrics[self.monitor]))

    score, mode = ("snn/mse", "min") if loss is F.mse_loss else ("snn/accuracy", "max")
    module = Silenced(3, loss)
    module.epochs = silent
    targets = CLASSES if mode == "max" else X[:, :3]
    best = ModelCheckpoint(tmp_path, monitor=score, mode=mode)
    cheapest = ModelCheckpoint(tmp_path, filename="cheap-{epoch}", monitor="snn/sops", mode="min")
    watchers = [Stopping(monitor=score, mode=mode, patience=9), best, cheapest]
    callbacks = [SpikingValidation(timesteps=4, every_n_epochs=every), *watchers]
    fit(callbacks, module, targets, max_epochs=4, enable_checkpointing=True)
    worst = 0.0 if mode == "max" else torch.finfo(torch.float32).max
    measured = [(epoch + 1) % every == 0 for epoch in range(4)]
    assert [value == worst for value in seen] == [
        epoch in silent or (not measured[epoch] and (epoch == 0 or epoch - 1 in silent)) for epoch in range(4)
    ]
    if not measured[2] and 1 not in silent:
        assert seen[2] == seen[1]  # the last value
    if set(range(4)) - set(silent) - {epoch for epoch in range(4) if not measured[epoch]}:
        assert float(best.best_model_score) != worst


@pytest.mark.parametrize("coding", ["poisson", "constant"])
def test_random_numbers_are_its_own(coding):
    class Noisy(Module):
        def training_step(self, batch, batch_idx):
            return self.loss(self(batch[0] + torch.rand_like(batch[0])), batch[1])

        validation_step = training_step

    states, figures = [], []
    for callbacks in ([], [SpikingValidation(timesteps=4, coding=coding)], [SpikingValidation(4, coding=coding)]):
        module = Noisy()
        figures.append(fit(callbacks, module, CLASSES, max_epochs=2))
        states.append([*module.net.state_dict().values(), torch.get_rng_state()])
    assert all(torch.equal(one, other) for one, other in zip(states[0], states[1], strict=True))
    assert figures[1] == figures[2]


def test_batches_of_a_poisson_code_are_independent():
    seen = []

    class Listening(SpikingValidation):
        def on_validation_batch_end(self, *arguments):
            super().on_validation_batch_end(*arguments)
            seen.append(float(self._runs[0].operations["snn"].total("sops")))

    batches = [(X[:8], CLASSES[:8])] * 3  # the same batch
    trainer_of([Listening(timesteps=3, coding="poisson")]).validate(
        Module(), DataLoader(batches, batch_size=None), verbose=False
    )
    assert len(set(seen)) > 1


def test_what_never_runs_is_said():
    with pytest.warns(UserWarning, match="nothing to run on: this fit has no validation data"):
        trainer_of([SpikingValidation()]).fit(Module(), loader(CLASSES))
    with pytest.warns(UserWarning, match="every 3-th epoch .* within the Trainer's 2 epochs"):
        fit(SpikingValidation(every_n_epochs=3), Module(), CLASSES, max_epochs=2)
    assert "snn/sops" in fit(SpikingValidation(2, every_n_epochs=3), Module(), CLASSES, fast_dev_run=True)


def test_loaders_have_numbers_of_their_own():
    callback, module = SpikingValidation(timesteps=4, limit_batches=2), Module()
    trainer = trainer_of([callback])
    parts = (X[:20], CLASSES[:20]), (X[20:], CLASSES[20:])
    trainer.fit(module, loader(CLASSES), [loader(y, x) for x, y in parts])
    logged = trainer.callback_metrics
    with torch.no_grad():
        for index, (x, y) in enumerate(parts):
            expected = {"dnn": right(module.net(x).argmax(1), y), "snn": right(callback.network(x).argmax(1), y)}
            with SynapticOperations(callback.network) as operations:
                callback.network(x)
            assert float(logged[f"snn/sops/dataloader_idx_{index}"]) == pytest.approx(float(operations.compute()))
            for name, value in expected.items():
                assert float(logged[f"{name}/accuracy/dataloader_idx_{index}"]) == pytest.approx(value)
    assert "snn/accuracy" not in logged


def test_a_network_within_the_module_and_a_part_of_it():
    class Other(Module):
        def forward(self, x, y=None):
            return {"scores": self.net(x), "targets": y}

        def training_step(self, batch, batch_idx):
            return self.loss(self(batch[0])["scores"], batch[1])

    class Part(Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))

    for module, options in ((Other(), {"network": "net"}), (Part(), {"until": "net.1"})):
        callback = SpikingValidation(timesteps=4, calibration_batches=3, **options)
        logged = fit(callback, module, CLASSES)
        network = to_snntorch(module.net, X, timesteps=4, until=options.get("until", "").partition(".")[2] or None)
        with torch.no_grad():
            assert logged["dnn/accuracy"] == pytest.approx(right(module.net(X).argmax(1), CLASSES))
            assert logged["snn/accuracy"] == pytest.approx(right(network(X).argmax(1), CLASSES))

    class Without(LightningModule):
        validation_step, configure_optimizers = Module.validation_step, Module.configure_optimizers

        def __init__(self):
            super().__init__()
            self.net = net(3)

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(batch[0]), batch[1])

    with pytest.raises(ConversionError, match='Without has no forward.* or its name to a callback: network="net"'):
        fit(SpikingValidation(timesteps=4), Without(), CLASSES)
    fit(SpikingValidation(timesteps=4, network="net"), Without(), CLASSES)
    with pytest.raises(ValueError, match=r"`network` to name a module within Other, such as one of \['net'\], but got"):
        fit(SpikingValidation(network="nets"), Other(), CLASSES)

    class Generator(Without):
        def __init__(self):
            super().__init__()
            self.other = nn.Linear(9, 3)

        def forward(self, noise):
            return self.other(noise)

        def validation_step(self, batch, batch_idx):
            self.net(batch[0])

    with pytest.raises(
        ValueError, match=r"cannot run Generator on the inputs of a batch: .* by the argument `network`"
    ):
        fit(SpikingValidation(timesteps=4), Generator(), CLASSES)
    fit(SpikingValidation(timesteps=4, network="net"), Generator(), CLASSES)


def test_events_are_validated_step_by_step():
    events = (torch.rand(6, 40, 5, generator=torch.Generator().manual_seed(5)) < 0.4).float()

    class Framed(Module):
        def training_step(self, batch, batch_idx):
            return self.loss(self(batch[0].mean(0)), batch[1])

        def validation_step(self, batch, batch_idx):
            self(batch[0].mean(0))

    batches = DataLoader(list(zip(events.split(16, 1), CLASSES.split(16), strict=True)), batch_size=None)
    with pytest.raises(
        ValueError, match="`timesteps` to be 6, the time steps of the data along dimension 0, but got 4"
    ):
        trainer_of([SpikingValidation(timesteps=4, time_dim=0)]).fit(Framed(), batches, batches)
    callback, module = SpikingValidation(timesteps=6, time_dim=0), Framed()
    trainer = trainer_of([callback])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="SpikingValidation runs the networks on other inputs")
        trainer.fit(module, batches, batches)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    network = to_snntorch(module, events, timesteps=6, time_dim=0)
    with torch.no_grad(), SynapticOperations(network) as sops:
        accuracy = right(network(events).argmax(1), CLASSES)
    assert logged["snn/accuracy"] == pytest.approx(accuracy)
    assert logged["snn/sops"] == pytest.approx(float(sops.compute()))
    assert logged["snn/effective_macs"] == 0.0
    with torch.no_grad():
        assert logged["dnn/accuracy"] == pytest.approx(right(module.net(events.mean(0)).argmax(1), CLASSES))


def test_without_labels_cost_alone_is_measured():
    class Unlabelled(SpikingValidation):
        def unpack(self, batch):
            return batch[0], None

    logged = fit(Unlabelled(timesteps=4), Module(), CLASSES)
    assert "snn/sops" in logged
    assert not {"snn/accuracy", "dnn/accuracy", "snn/mse"} & set(logged)


def test_other_inputs_in_the_step_than_in_the_batch_are_said():
    class Normalizing(Module):
        def training_step(self, batch, batch_idx):
            return self.loss(self((batch[0] + 0.3) / 2), batch[1])

        def validation_step(self, batch, batch_idx):
            self((batch[0] + 0.3) / 2)

    class Unpacking(SpikingValidation):
        def unpack(self, batch):
            return (batch[0] + 0.3) / 2, batch[1]

    message = r"other inputs than validation_step\(\) does.* Override SpikingValidation.unpack"
    with pytest.warns(UserWarning, match=message):
        fit(SpikingValidation(timesteps=4), Normalizing(), CLASSES)
    with pytest.warns(UserWarning, match=message):  # before training
        fit(SpikingValidation(timesteps=4), Normalizing(), CLASSES, num_sanity_val_steps=1, limit_val_batches=1)

    class Validating(Module):
        def validation_step(self, batch, batch_idx):
            self(batch[0].clone())

    for module, callback in ((Normalizing(), Unpacking(timesteps=4)), (Validating(), SpikingValidation(timesteps=4))):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="SpikingValidation runs the networks on other inputs")
            logged = fit(callback, module, CLASSES)
    with torch.no_grad():
        assert logged["dnn/accuracy"] == pytest.approx(right(module.net(X).argmax(1), CLASSES))


def _two_process_worker(rank, port, file):
    told, values = [], 5 * X[:, :3]
    by_kind = lambda o, t: by_hand(o, t) if t.is_floating_point() else F.cross_entropy(o, t)  # noqa: E731
    # Of values in [0, 1] it cannot be told whether they are labels; of the others what they are, but two things.
    for targets, metric in (((X[:, :3].abs(), values), None), ((X, values), "regression"), ((CLASSES, values), None)):
        module, targets = Module(3, by_kind), targets[rank][:, :3] if targets[rank].dim() > 1 else targets[rank]
        loaders = [DataLoader(TensorDataset(X, targets), 16)] * 2
        callback = SpikingValidation(timesteps=2, metric=metric)
        options = dict(devices=2, strategy=two_processes(rank, port), use_distributed_sampler=False)
        try:
            trainer_of([callback], **options).fit(module, *loaders)
            told.append("fine")
        except ValueError as error:
            told.append(str(error))
    torch.save(told, f"{file}{rank}")
    leave()


@pytest.mark.slow
def test_processes_score_the_same_or_say_it_together(tmp_path):
    torch.multiprocessing.spawn(_two_process_worker, (free_port(), tmp_path / "rank"), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}", weights_only=True) for rank in (0, 1))
    assert first == second
    assert "without a loss that says whether they are labels or values. Give `metric`" in first[0]
    assert first[1] == "fine"
    assert "to score the same in all processes, but their first batches tell ('accuracy', '_decided'" in first[2]
