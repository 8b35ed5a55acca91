"""What Lightning does with a module, done with one that trains a spiking network."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, callbacks
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from snnreg_plugins import (
    ActivityBudget,
    ActivityRegularization,
    CompressedActivations,
    Distillation,
    QCFSActivations,
    SpikingValidation,
    SynapticOperations,
    to_snntorch,
)
from snnreg_plugins.modules import Classifier, SpikingClassifier
from tests.callbacks.reference import free_port, leave, two_processes
from tests.callbacks.test_penalty_resumed import Placed

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


def trainer(*given, **options):
    options = {"max_epochs": 2, "enable_checkpointing": False, **options}
    return Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=list(given), **options,
    )  # fmt: skip


def fit(module, *given, **options):
    torch.manual_seed(0)
    run = trainer(*given, **options)
    run.fit(module, datamodule=Data())
    return run


def mostly_slow(values, *quick):
    """Parameters, of which all but a few are tried where there is time."""
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)), marks=() if value in quick else pytest.mark.slow
        )
        for value in values
    ]


CALLBACKS = {
    "penalty": lambda: ActivityRegularization("expected_rate", 0.1),
    "budget": lambda: ActivityBudget(share=0.3, timesteps=3),
    "distillation": lambda: Distillation(dnn(), student="network", every_step=True),
    "validation": lambda: SpikingValidation(3),
    "compression": lambda: CompressedActivations(bits=8, min_numel=1),
}


@pytest.mark.filterwarnings("ignore:The budget of ActivityBudget")
@pytest.mark.parametrize("callback", mostly_slow(CALLBACKS, "penalty", "budget"))
@pytest.mark.parametrize("module", mostly_slow(["kept", "own, kept"], "kept"))
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


def test_a_first_pass_is_counted_as_any_other():
    """In it, the network finds out about itself by a pass that nobody sees."""
    module = Own()
    with SynapticOperations(module) as around, SynapticOperations(module.network) as within, torch.no_grad():
        module(X)
    for quantity in ("sops", "effective_macs", "dense_macs"):
        assert around.total(quantity) == within.total(quantity)


def test_percentiles_of_all_steps_at_once_are_those_of_one_at_a_time():
    found = []
    for exact in (False, True):
        module, penalty = Own(), ActivityRegularization("expected_rate", 1.0, percent=90)
        module.network.exact = exact
        fit(module, penalty, max_epochs=1)
        found.append((penalty.state_dict()["thresholds"], torch.cat([p.flatten() for p in module.parameters()])))
    torch.testing.assert_close(*found)


# Averages of weights.


class Recorder(Callback):
    """The weights after every step, and before every epoch."""

    def __init__(self):
        self.steps, self.epochs = [], []

    def on_train_epoch_start(self, trainer, pl_module):
        self.epochs.append([p.detach().clone() for p in pl_module.parameters()])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps.append([p.detach().clone() for p in pl_module.parameters()])


def mean_of(weights):
    return [torch.stack(each).mean(0) for each in zip(*weights, strict=True)]


def ema_of(weights, decay):
    average = weights[0]
    for step in weights[1:]:
        average = [decay * a + (1 - decay) * w for a, w in zip(average, step, strict=True)]
    return average


AVERAGES = {
    "mean": lambda: callbacks.WeightAveraging(),
    "ema": lambda: callbacks.EMAWeightAveraging(decay=0.5),
    "swa": lambda: StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1),
}
since_26 = pytest.mark.skipif(not hasattr(callbacks, "WeightAveraging"), reason="needs lightning 2.6")


@since_26
@pytest.mark.parametrize(
    ("module", "average"),
    mostly_slow(itertools.product(["folded", "kept"], AVERAGES), ("folded", "ema"), ("kept", "swa")),
)
def test_weights_are_averaged(module, average):
    """Those of the spiking network, though callbacks copy the module before it is exported."""
    trained, recorder = MODULES[module](), Recorder()
    fit(trained, recorder, AVERAGES[average]())
    # SWA of batch norms has a further epoch, and does not train in it.
    steps, epochs = recorder.steps[:6], recorder.epochs[:2]
    expected = {"mean": mean_of(steps), "ema": ema_of(steps, 0.5), "swa": mean_of(epochs)}[average]
    for found, weight in zip(trained.parameters(), expected, strict=True):
        torch.testing.assert_close(found, weight)
    assert not torch.equal(next(trained.parameters()), steps[-1][0])
    if (module, average) == ("kept", "swa"):
        again = copy.deepcopy(trained.network).train()
        norms = [part for part in again.modules() if isinstance(part, nn.BatchNorm1d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        for x in X.split(8):
            again(x)
        assert norms
        for name, value in again.state_dict().items():
            torch.testing.assert_close(trained.network.state_dict()[name], value)


@since_26
@pytest.mark.parametrize("first", mostly_slow([True, False], True))
def test_a_budget_keeps_the_averages_that_it_counted(tmp_path, first):
    module, budget = Own(**KEPT), ActivityBudget(share=0.5, timesteps=3, tolerance=0.5)
    order = [callbacks.EMAWeightAveraging(decay=0.9), budget]
    run = fit(module, *(order if first else order[::-1]), max_epochs=4)
    assert budget.kept is not None
    with SynapticOperations(module.network.eval()) as operations, torch.no_grad():
        module.network(X)
    assert budget.kept.counts.sops == pytest.approx(float(operations.compute()))
    run.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    for name, value in module.state_dict().items():
        assert torch.equal(budget.kept.weights[name], value), name
        assert torch.equal(saved[name], value), name


def test_a_budget_refuses_averages_that_nobody_counts():
    with pytest.raises(MisconfigurationException, match="cannot serve StochasticWeightAveraging of a module without"):
        fit(Own(), ActivityBudget(share=0.5, timesteps=3), AVERAGES["swa"]())
    fit(Own(**KEPT), ActivityBudget(share=5.0, timesteps=3), AVERAGES["swa"]())


@since_26
@pytest.mark.parametrize("first", mostly_slow([True, False], True))
def test_averages_of_quantized_activations_start_when_these_do(first):
    """Their thresholds were none before."""
    module, recorder, activations = Classifier(dnn()), Recorder(), QCFSActivations(calibration_batches=2)
    order = [callbacks.WeightAveraging(), activations]
    fit(module, recorder, *(order if first else order[::-1]))
    for found, weight in zip(module.parameters(), mean_of(recorder.steps[2:]), strict=True):
        torch.testing.assert_close(found, weight)
    assert all(bool(module.network[index].active) for index in (2, 6))


# Runs that go on.


def test_a_run_goes_on_from_its_file_alone(tmp_path):
    """Neither the DNN's file nor calibration is needed again."""
    torch.save(dnn().state_dict(), tmp_path / "dnn.pt")
    given = dict(checkpoint=str(tmp_path / "dnn.pt"), **KEPT)
    whole = classifier(**given)
    fit(whole, max_epochs=3)
    run = fit(classifier(**given), max_epochs=2)
    run.save_checkpoint(tmp_path / "snn.ckpt")
    (tmp_path / "dnn.pt").unlink()
    module = classifier(**given)
    module._calibration = None  # which is not to be called
    again = trainer(max_epochs=3)
    again.fit(module, datamodule=Data(), ckpt_path=tmp_path / "snn.ckpt", weights_only=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(module.state_dict()[name], value), name


class Kill(Callback):
    """Save after a step, and end the run in the next one."""

    def __init__(self, file, step):
        self.file, self.step = file, step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.file)
        elif trainer.global_step > self.step:
            raise RuntimeError("killed")


class PlacedData(Data):
    def train_dataloader(self):
        return Placed(zip(X.split(4), Y.split(4), strict=True))


RESUMED = {
    **{name: CALLBACKS[name] for name in ("penalty", "distillation", "compression")},
    "budget": lambda: ActivityBudget(share=0.3, timesteps=3, trim=False),  # which counts on the batches since
    "a loose budget": lambda: ActivityBudget(sops=1e6, timesteps=3),
    "ema": lambda: callbacks.EMAWeightAveraging(decay=0.5),
    "swa": AVERAGES["swa"],
}


@since_26
@pytest.mark.filterwarnings("ignore:The budget of ActivityBudget")
@pytest.mark.parametrize("callback", mostly_slow(RESUMED, "a loose budget"))
def test_a_run_that_is_killed_within_an_epoch_goes_on_as_if_it_had_not_been(tmp_path, callback):
    def run(*others, **given):
        torch.manual_seed(0)
        module = classifier(**KEPT)
        run = trainer(RESUMED[callback](), *others, max_epochs=3)
        run.fit(module, datamodule=PlacedData(), **given)
        return module.state_dict(), run.callback_metrics

    (straight, metrics), file = run(), tmp_path / "mid.ckpt"
    with pytest.raises(RuntimeError, match="killed"):
        run(Kill(file, 14))  # two batches into the third epoch of six
    resumed, metrics_resumed = run(ckpt_path=file, weights_only=True)
    for name, value in straight.items():
        assert torch.equal(resumed[name], value), name
    assert metrics["val/sops"] == metrics_resumed["val/sops"]


@pytest.mark.parametrize("stage", ["validate", "predict"])
def test_without_training_data_it_is_said_what_is_missing(stage):
    with pytest.raises(
        ValueError, match=rf"no.* in Trainer\.{stage}\(\)\. Give a LightningDataModule with a train_data"
    ):
        getattr(trainer(), stage)(classifier(), DataLoader(TensorDataset(X, Y), 8))


# Several processes.


class Shares(LightningDataModule):
    """Of each batch of eight, every process has a half."""

    def __init__(self, rank):
        super().__init__()
        self.shares = [slice(None)] if rank is None else [slice(4 * rank, 4 * rank + 4)]

    def train_dataloader(self):
        batches = zip(X.split(8), Y.split(8), strict=True)
        return DataLoader([(x[self.shares[0]], y[self.shares[0]]) for x, y in batches], batch_size=None)

    val_dataloader = train_dataloader


ALONE = {"penalty": lambda: ActivityRegularization("l1", 1e-2), "budget": CALLBACKS["budget"]}


def trained_in(rank, port=None):
    """The weights that each callback leads to, and what the last validation counts."""
    found = {}
    for name, make in ALONE.items():
        options = {} if rank is None else dict(strategy=two_processes(rank, port), devices=2)
        module = Own()
        module.configure_optimizers = lambda module=module: torch.optim.SGD(module.parameters(), 0.05)
        run = trainer(make(), use_distributed_sampler=False, **options)
        run.fit(module, datamodule=Shares(rank))
        found[name] = (
            [p.detach() for p in module.parameters()],
            run.callback_metrics.get("budget/sops", torch.zeros(())),
        )
    return found


def _worker(rank, port, file):
    torch.save(trained_in(rank, port), f"{file}{rank}")
    leave()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The budget of ActivityBudget")
def test_two_processes_train_as_one(tmp_path):
    torch.multiprocessing.spawn(_worker, (free_port(), tmp_path / "rank"), nprocs=2)
    expected = trained_in(None)
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"rank{rank}", weights_only=True), expected, rtol=0, atol=1e-6)
