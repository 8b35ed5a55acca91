"""The spiking classifier: where it starts from, in every process, and how it trains."""

from __future__ import annotations

import pytest
import snntorch
import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from snnreg_plugins import ExportReport, load_network
from snnreg_plugins.modules import Classifier, SpikingClassifier
from tests.callbacks.reference import free_port, leave, two_processes
from tests.export.processes import exact_inputs, exact_network

BATCH = 6


class Recorder(SpikingClassifier):
    """Remembers the network that a run starts from."""

    def setup(self, stage):
        super().setup(stage)
        self.started_from = {name: value.clone() for name, value in self.network.state_dict().items()}


class Data(LightningDataModule):
    """Data in a fixed order, counting what is read for training."""

    def __init__(self, shuffle=False):
        super().__init__()
        self.set = TensorDataset(exact_inputs(40), torch.arange(40) % 5)
        self.shuffle, self.loaders = shuffle, 0

    def train_dataloader(self):
        self.loaders += 1
        return DataLoader(self.set, BATCH, shuffle=self.shuffle)

    def test_dataloader(self):
        return DataLoader(self.set, BATCH)


class Unreadable(Data):
    """Training data that the first process cannot read."""

    def train_dataloader(self):
        raise OSError("disk is gone")


def start(stage, rank=None, **options):
    """The network that a run on a data module, or on a loader alone, starts from."""
    seed_everything(0)
    module = Recorder(exact_network(), timesteps=4, calibration_batches=4, correction="potential")
    trainer = Trainer(
        max_steps=1, limit_test_batches=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    if stage == "loader":
        data = Data().set
        # Lightning's own would shuffle, as it always does in training.
        sampler = None if rank is None else DistributedSampler(data, 2, rank, shuffle=False)
        trainer.fit(module, DataLoader(data, BATCH, sampler=sampler))
        return module.started_from
    data = Data(shuffle=True)
    getattr(trainer, stage)(module, datamodule=data)
    return module.started_from | {"loaders": data.loaders}


STAGES = ("fit", "test", "loader")


def _worker(rank, port, file):
    options = dict(devices=2)
    found = {stage: start(stage, rank, strategy=two_processes(rank, port), **options) for stage in STAGES}
    with pytest.raises(OSError, match="disk is gone"):
        Trainer(strategy=two_processes(rank, port), accelerator="cpu", logger=False, **options).test(
            Recorder(exact_network()), datamodule=Unreadable()
        )
    torch.save(found, f"{file}{rank}")
    leave()


@pytest.mark.slow
def test_two_processes_start_from_the_network_of_one(tmp_path):
    torch.multiprocessing.spawn(_worker, (free_port(), tmp_path / "rank"), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}", weights_only=True) for rank in range(2))
    # The first process alone reads what would be the same in both.
    assert [each["test"].pop("loaders") for each in (first, second)] == [1, 0]
    assert [each["fit"].pop("loaders") for each in (first, second)] == [2, 1]
    for stage in STAGES:
        expected = start(stage)
        expected.pop("loaders", None)
        for found in (first[stage], second[stage]):
            assert list(found) == list(expected)
            for name, value in expected.items():
                assert torch.equal(found[name], value), (stage, name)


def trained(**settings):
    seed_everything(0)
    module = SpikingClassifier(exact_network(), timesteps=4, **settings).double()
    trainer = Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    data = TensorDataset(exact_inputs(40).double(), torch.arange(40) % 5)
    trainer.fit(module, DataLoader(data, 20))
    return module.network


def test_training_in_less_memory():
    plain, thrifty, truncated = trained(), trained(checkpointing=True), trained(truncation=1)
    assert (thrifty.checkpointing, truncated.truncation) == (True, 1)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(thrifty.state_dict()[name], value)
    assert any(not torch.equal(truncated.state_dict()[name], value) for name, value in plain.state_dict().items())


@pytest.mark.parametrize("name", ["timesteps", "calibration_batches", "truncation"])
def test_numbers_are_checked(name):
    with pytest.raises(ValueError, match=f"Expected argument `{name}` to be an integer of at least 1, but got 0"):
        SpikingClassifier(exact_network(), **{name: 0})


def test_calibration_leaves_random_numbers_as_they_are():
    class Drawing(SpikingClassifier):
        def setup(self, stage):
            self.before = torch.get_rng_state()
            super().setup(stage)
            self.after = torch.get_rng_state()

    module = Drawing(exact_network(), calibration_batches=2)
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    Trainer(max_steps=1, accelerator="cpu", **quiet).fit(module, datamodule=Data(shuffle=True))
    assert torch.equal(module.before, module.after)


X = torch.rand(20, 4, generator=torch.Generator().manual_seed(1)) - 0.3
CLASSES = torch.arange(20) % 3
IGNORED = torch.where(torch.arange(20) % 4 == 0, -100, CLASSES)
ONE = (X[:, :1] > 0.1).float()


@pytest.mark.parametrize(
    ("outputs", "loss", "targets", "name", "expected"),
    [
        (3, None, CLASSES, "accuracy", lambda o: (o.argmax(1) == CLASSES).float().mean()),
        (3, None, F.one_hot(CLASSES, 3).float(), "accuracy", lambda o: (o.argmax(1) == CLASSES).float().mean()),
        (3, None, IGNORED, "accuracy", lambda o: (o.argmax(1) == IGNORED)[IGNORED >= 0].float().mean()),
        (1, nn.BCEWithLogitsLoss(), ONE, "accuracy", lambda o: ((o > 0) == (ONE > 0)).float().mean()),
        (2, nn.BCEWithLogitsLoss(), (X[:, :2] > 0.1).float(), "accuracy",
         lambda o: ((o > 0) == (X[:, :2] > 0.1)).float().mean()),
        (1, nn.MSELoss(), X[:, :1], "mse", lambda o: (o - X[:, :1]).square().mean()),
    ],
)  # fmt: skip
def test_the_loss_tells_what_is_scored(outputs, loss, targets, name, expected):
    torch.manual_seed(0)
    module = Classifier(nn.Linear(4, outputs), loss=loss)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                      enable_model_summary=False)  # fmt: skip
    (found,) = trainer.test(module, DataLoader(TensorDataset(X, targets), 6), verbose=False)
    with torch.no_grad():
        assert found[f"test/{name}"] == pytest.approx(float(expected(module(X))))
    assert set(found) == {"test/loss", f"test/{name}"}


def test_a_loss_that_tells_nothing_is_logged_alone():
    module = Classifier(nn.Linear(4, 1), loss=nn.KLDivLoss(reduction="batchmean"))
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                      enable_model_summary=False)  # fmt: skip
    with pytest.warns(UserWarning, match="Classifier logs its loss alone. Cannot tell what is scored"):
        (found,) = trainer.test(
            module, DataLoader(TensorDataset(X, ONE * torch.arange(20)[:, None].clamp(min=1)), 1), verbose=False
        )
    assert set(found) == {"test/loss"}


def quiet(**options):
    return Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, **options)


def test_a_fine_tuned_network_is_loaded_with_its_dnn(tmp_path):
    """From its file alone: neither training data nor the DNN's checkpoint are read again."""
    start = Classifier(exact_network())
    torch.save({"state_dict": start.state_dict()}, tmp_path / "dnn.ckpt")
    module = SpikingClassifier(exact_network(), checkpoint=str(tmp_path / "dnn.ckpt"), timesteps=3, truncation=2)
    trainer = quiet(max_steps=2, enable_checkpointing=False)
    trainer.fit(module, datamodule=Data())
    trainer.save_checkpoint(tmp_path / "snn.ckpt")
    (tmp_path / "dnn.ckpt").unlink()
    x = exact_inputs(7)
    with torch.no_grad():
        expected, of_dnn = module(x), module.dnn(x)

    blank = exact_network()
    for parameter in blank.parameters():
        nn.init.zeros_(parameter)
    given = dict(network=blank, truncation=2, checkpoint="nowhere.ckpt", weights_only=True)
    again = SpikingClassifier.load_from_checkpoint(tmp_path / "snn.ckpt", **given)
    with torch.no_grad():
        assert torch.equal(again(x), expected)
        assert torch.equal(again.dnn(x), of_dnn)
    assert (again.network.timesteps, again.network.truncation, again.checkpoint) == (3, 2, "nowhere.ckpt")
    again.dnn.requires_grad_(True)
    quiet(max_steps=1, enable_checkpointing=False).fit(again, datamodule=Data())  # and goes on from there
    assert not torch.equal(again(x), expected)


class Late(Classifier):
    """A user's module that makes its layers when it is asked to."""

    def __init__(self):
        super().__init__(nn.Identity())

    def configure_model(self):
        if isinstance(self.network, nn.Identity):
            self.network = exact_network()


def test_a_lightning_module_that_makes_its_layers_late_is_fine_tuned(tmp_path):
    trained = Classifier(exact_network())
    torch.save({"state_dict": trained.state_dict()}, tmp_path / "dnn.ckpt")
    module = SpikingClassifier(Late(), checkpoint=str(tmp_path / "dnn.ckpt"), timesteps=3)
    trainer = quiet(max_steps=1, enable_checkpointing=False)
    trainer.fit(module, datamodule=Data())
    trainer.save_checkpoint(tmp_path / "snn.ckpt")
    again = SpikingClassifier.load_from_checkpoint(tmp_path / "snn.ckpt", network=Late(), weights_only=True)
    x = exact_inputs(7)
    with torch.no_grad():
        torch.testing.assert_close(module.dnn(x), trained(x))
        assert torch.equal(again(x), module(x))


def test_a_run_takes_the_dnn_from_the_checkpoint_too(tmp_path):
    """Its report compares with the DNN that was exported, not with the one that is at ``checkpoint`` today."""
    module = SpikingClassifier(exact_network(), timesteps=3)
    trainer = quiet(max_steps=1, enable_checkpointing=False)
    trainer.fit(module, datamodule=Data())
    trainer.save_checkpoint(tmp_path / "snn.ckpt")
    other = exact_network()
    nn.init.ones_(next(other.parameters()))
    again = SpikingClassifier(other, timesteps=3)
    quiet(limit_test_batches=1, enable_checkpointing=False).test(
        again, datamodule=Data(), ckpt_path=tmp_path / "snn.ckpt", weights_only=True, verbose=False
    )
    x = exact_inputs(7)
    with torch.no_grad():
        assert torch.equal(again(x), module(x))
        assert torch.equal(again.dnn(x), module.dnn(x))


def test_a_checkpoint_of_a_dnn_is_none_of_a_fine_tuned_network(tmp_path):
    trainer = quiet(max_steps=1, enable_checkpointing=False)
    trainer.fit(Classifier(exact_network()), datamodule=Data())
    trainer.save_checkpoint(tmp_path / "dnn.ckpt")
    with pytest.raises(ValueError, match=r"holds no spiking network\. .* name it as SpikingClassifier\(checkpoint="):
        SpikingClassifier.load_from_checkpoint(tmp_path / "dnn.ckpt", network=exact_network(), weights_only=True)


class Spiking(nn.Module):
    """Gives spikes and potentials over time."""

    def __init__(self):
        super().__init__()
        self.fc, self.lif = nn.Linear(5, 3), snntorch.Leaky(0.9, threshold=0.1)

    def forward(self, x):
        memory, outputs = self.lif.init_leaky(), []
        for _ in range(3):
            spikes, memory = self.lif(self.fc(x), memory)
            outputs.append((spikes, memory))
        return tuple(map(torch.stack, zip(*outputs, strict=True)))


class SpikeLoss(nn.Module):
    def forward(self, outputs, targets):
        return F.cross_entropy(outputs[0].sum(0), targets)


def test_a_network_that_gives_more_than_scores():
    batch = torch.rand(6, 5), torch.tensor([0, 1, 2, 0, 1, 2])
    with pytest.raises(TypeError, match="one tensor of scores .* but got tuple. Wrap `network` in a module to return"):
        Classifier(Spiking()).training_step(batch, 0)
    module = Classifier(Spiking(), loss=SpikeLoss())
    loaders = [DataLoader([batch], batch_size=None)] * 2
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    with pytest.warns(UserWarning, match="Classifier logs its loss alone. Expected the network to give one tensor"):
        trainer.fit(module, *loaders)
    assert "val/loss" in trainer.callback_metrics
    assert "val/accuracy" not in trainer.callback_metrics


def test_what_was_trained_is_exported_as_neurons_and_synapses(tmp_path):
    """Batch norms and thresholds are trained, and are in no file of the result."""
    torch.manual_seed(0)
    dnn = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    data = LightningDataModule.from_datasets(
        *[TensorDataset(torch.rand(20, 1, 8, 8), torch.arange(20) % 5)] * 2,
        test_dataset=TensorDataset(torch.rand(20, 1, 8, 8), torch.arange(20) % 5),
        batch_size=10,
    )
    options = dict(batch_norm="keep", train_thresholds="channel")
    module = SpikingClassifier(dnn, timesteps=3, optimizer=lambda p: torch.optim.Adam(p, 0.1), **options)
    with pytest.raises(RuntimeError, match="no spiking network yet"):
        module.export()
    report = ExportReport(output_dir=tmp_path / "report", steps=[3], html=False)
    trainer = quiet(max_steps=3, callbacks=[report], enable_checkpointing=False)
    trainer.fit(module, datamodule=data)
    before, after = module.dnn(torch.zeros(1, 1, 8, 8)), module.network.eval()
    thresholds = after.neurons.describe(after.body.get_submodule("2")).threshold
    assert len(set(thresholds.flatten().tolist())) == 4
    final, x = module.export(), torch.rand(9, 1, 8, 8)
    assert not any("1." in name or "parametrizations" in name for name in final.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(final(x), after(x))
        assert torch.equal(load_network(tmp_path / "report" / "spiking.pt", dnn)(x), final(x))
    trainer.save_checkpoint(tmp_path / "snn.ckpt")
    again = SpikingClassifier.load_from_checkpoint(tmp_path / "snn.ckpt", network=dnn, weights_only=True, **options)
    with torch.no_grad():
        assert torch.equal(again.eval()(x), after(x))
    assert torch.equal(module.dnn(torch.zeros(1, 1, 8, 8)), before)


def test_several_validation_loaders_are_logged_apart():
    torch.manual_seed(0)
    x, y = torch.rand(24, 6), torch.arange(24) % 3
    module = Classifier(nn.Linear(6, 3))
    sets = [TensorDataset(x, y), TensorDataset(x[:9], y[:9])]
    trainer = Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    for stage, run in (("val", trainer.validate), ("test", trainer.test)):
        run(module, [DataLoader(one, BATCH) for one in sets], verbose=False)
        for index, one in enumerate(sets):
            found = float(trainer.callback_metrics[f"{stage}/loss/dataloader_idx_{index}"])
            expected = F.cross_entropy(module(one.tensors[0]), one.tensors[1]).item()
            assert found == pytest.approx(expected, rel=1e-5)
    assert [len(scores) for scores in trainer.predict(module, [DataLoader(one, 30) for one in sets])] == [1, 1]
