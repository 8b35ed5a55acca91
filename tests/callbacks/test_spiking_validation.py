"""Validation shows the spiking network, and training never notices."""

from __future__ import annotations

import sys
import warnings

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from snnreg_plugins import (
    ConversionError,
    Energy,
    SpikeRate,
    SpikingValidation,
    SynapticOperations,
    TimeSteps,
    to_snntorch,
)
from snnreg_plugins.callbacks.measurement import NeuronRates
from tests.callbacks.reference import free_port, leave, two_processes

QUIET = dict(
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)


class Module(LightningModule):
    def __init__(self, activation=F.relu):
        super().__init__()
        self.activation = activation
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.dropout, self.fc = nn.Dropout(0.3), nn.Linear(4 * 36, 3)

    def forward(self, x):
        return self.fc(self.dropout(self.activation(self.norm(self.conv(x))).flatten(1)))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self(batch[0])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


def data(samples=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(samples, 1, 8, 8, generator=generator)
    return TensorDataset(x, (x.mean((1, 2, 3)) * 30).long() % 3)


def fit(callbacks, module=None, **options):
    seed_everything(0)
    module = module or Module()
    trainer = Trainer(**(QUIET | dict(max_epochs=2) | options), callbacks=callbacks)
    trainer.fit(module, DataLoader(data(), batch_size=8, shuffle=True), DataLoader(data(20, 1), batch_size=8))
    return module, trainer


def test_training_ends_with_the_same_weights_bit_for_bit():
    without, _ = fit([])
    state_without = torch.random.get_rng_state()
    with_it, _ = fit([SpikingValidation(timesteps=4)])
    assert torch.equal(state_without, torch.random.get_rng_state())
    for name, value in without.state_dict().items():
        assert torch.equal(value, with_it.state_dict()[name]), name


def test_an_export_within_training_draws_nothing(terminal):
    fit([SpikingValidation(timesteps=4, exit_agreement=0.9)])
    assert not terminal.getvalue()


def test_logs_what_a_plain_evaluation_gives():
    callback = SpikingValidation(timesteps=4, calibration_batches=5)
    module, trainer = fit([callback], max_epochs=1)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    module.eval()
    # The last five batches of training are the whole training set, in another order.
    network = to_snntorch(module, DataLoader(data(), batch_size=8), timesteps=4)
    x, y = data(20, 1).tensors
    with torch.no_grad(), SynapticOperations(network) as sops, SpikeRate(network) as rate:
        snn = (network(x).argmax(1) == y).float().mean()
        with SynapticOperations(module) as macs:
            dnn = (module(x).argmax(1) == y).float().mean()
    assert logged["snn/accuracy"] == pytest.approx(float(snn))
    assert logged["dnn/accuracy"] == pytest.approx(float(dnn))
    assert logged["snn/sops"] == pytest.approx(float(sops.compute()))
    assert logged["snn/effective_macs"] == pytest.approx(sops.by_layer("effective_macs")["conv"])
    assert logged["snn/sops/fc"] == pytest.approx(sops.by_layer()["fc"])
    assert logged["snn/spike_rate"] == pytest.approx(float(rate.compute()))
    assert logged["dnn/effective_macs"] == pytest.approx(float(macs.total("effective_macs")))
    assert logged["dnn/dense_macs"] == 36 * 4 * 9 + 144 * 3
    joule = 1e-12 * (0.9 * logged["snn/sops"] + 4.6 * logged["snn/effective_macs"])
    assert logged["snn/energy"] == pytest.approx(joule)
    assert logged["dnn/energy"] == pytest.approx(4.6e-12 * logged["dnn/effective_macs"])
    assert {"snn/accuracy", "snn/sops"} <= set(trainer.progress_bar_metrics)


def test_logs_what_any_models_give():
    models = ["lemaire", "horowitz_int8", "bit_matched", "eflops", "loihi"]
    callback = SpikingValidation(timesteps=4, calibration_batches=5, table=models)
    with pytest.warns(UserWarning, match="The SNN's energy leaves out .* 'loihi' has no price"):
        module, trainer = fit([callback], max_epochs=1)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    module.eval()
    x, _ = data(20, 1).tensors
    alone = [name for name in models if name != "bit_matched"]
    with torch.no_grad(), Energy(callback.network, models) as snn, Energy(module, alone, input_events=False) as dnn:
        callback.network(x)
        module(x)
    for name, model in zip(models, snn.models, strict=True):
        key = "eflops" if name == "eflops" else f"energy/{name}"
        assert logged[f"snn/{key}"] == pytest.approx(sum(model.spiking(one).total for one in snn.facts()))
        sparse = [model.dnn(one, skipping_zeros=name != "lemaire", timesteps=4) for one in dnn.facts()]
        if name == "loihi":
            assert f"dnn/{key}" not in logged
        else:
            assert logged[f"dnn/{key}"] == pytest.approx(model.sum(sparse).total)
    assert logged["snn/energy"] == logged["snn/energy/lemaire"]
    assert logged["dnn/energy"] == logged["dnn/energy/lemaire"]


def test_samples_leave_early():
    callback = SpikingValidation(timesteps=8, calibration_batches=5, exit_agreement=0.9)
    _, trainer = fit([callback], max_epochs=1)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    network, (x, y) = callback.network, data(20, 1).tensors
    with torch.no_grad(), SynapticOperations(network) as sops, TimeSteps(network) as steps:
        accuracy = (network(x).argmax(1) == y).float().mean()
    assert logged["snn/accuracy"] == pytest.approx(float(accuracy))
    assert logged["snn/sops"] == pytest.approx(float(sops.compute()))
    assert logged["snn/timesteps"] == pytest.approx(float(steps.compute()))
    assert 1 < logged["snn/timesteps"] < 8
    assert "snn/timesteps" not in fit([SpikingValidation(timesteps=2)], max_epochs=1)[1].callback_metrics
    with pytest.raises(ValueError, match="Expected argument `exit_agreement` to be in"):
        SpikingValidation(exit_agreement=1.5)


def test_every_n_epochs_and_limit_batches():
    calls = []

    class Spy(SpikingValidation):
        def on_validation_epoch_end(self, trainer, pl_module):
            calls.append((trainer.current_epoch, [int(run.operations["snn"].samples) for run in self._runs.values()]))
            super().on_validation_epoch_end(trainer, pl_module)

    fit([Spy(timesteps=2, every_n_epochs=2, limit_batches=2)], max_epochs=4, num_sanity_val_steps=0)
    assert calls == [(0, []), (1, [16]), (2, []), (3, [16])]


def test_works_in_validation_alone_and_leaves_the_users_metrics_alone():
    module = Module()
    callback = SpikingValidation(timesteps=2)
    trainer = Trainer(**QUIET, callbacks=[callback])
    with SynapticOperations(module) as own:
        trainer.validate(module, DataLoader(data(20), batch_size=8), verbose=False)
    assert 0 <= float(trainer.callback_metrics["snn/accuracy"]) <= 1
    assert int(own.samples) == 20


def test_keeps_the_network_ready_for_fine_tuning():
    callback = SpikingValidation(timesteps=2)
    fit([callback])
    loss = callback.network(data().tensors[0]).square().sum()
    loss.backward()
    assert all(parameter.grad is not None for parameter in callback.network.parameters())


def test_a_layer_that_falls_silent_does_not_end_the_training():
    module = Module()
    torch.nn.init.constant_(module.norm.bias, -100.0)
    with pytest.warns(UserWarning, match="SpikingValidation is left out in epoch 0.*is silent"):
        _, trainer = fit([SpikingValidation(timesteps=2)], module, max_epochs=1)
    assert trainer.callback_metrics["snn/accuracy"] == 0
    assert "snn/accuracy" not in trainer.logged_metrics


def test_what_cannot_be_exported_is_refused_before_training():
    with pytest.raises(ConversionError, match="gelu.*nn.ReLU"):
        fit([SpikingValidation()], Module(F.gelu))


def test_other_batches_need_unpack():
    class Dicts(Module):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch["x"]), batch["y"])

        def validation_step(self, batch, batch_idx):
            self(batch["x"])

    class Unpacking(SpikingValidation):
        def unpack(self, batch):
            return batch["x"], batch["y"]

    def run(callback):
        rows = [{"x": x, "y": y} for x, y in data(16)]
        trainer = Trainer(**QUIET, max_epochs=1, callbacks=[callback])
        trainer.fit(Dicts(), DataLoader(rows, batch_size=8), DataLoader(rows, batch_size=8))
        return trainer.callback_metrics

    assert "snn/sops" in run(Unpacking())
    with pytest.raises(TypeError, match="Override SpikingValidation.unpack"):
        run(SpikingValidation())
    with pytest.raises(TypeError, match="but got list of 3. Override"):
        SpikingValidation().unpack([1, 2, 3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(timesteps=0), "`timesteps`.*0"),
        (dict(every_n_epochs=0), "`every_n_epochs`.*0"),
        (dict(limit_batches=0), "`limit_batches`.*0"),
        (dict(threshold="median"), "`threshold`.*'median'"),
        (dict(percent=101.0), "`percent`.*101"),
        (dict(table="horowitz"), "`table`.*'horowitz'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SpikingValidation(**arguments)


def _two_process_worker(rank, port, file):
    callback = SpikingValidation(timesteps=4, figures=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*sync_dist=True.*")
        module, trainer = fit([callback], max_epochs=1, devices=2, strategy=two_processes(rank, port))
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    found = {"logged": logged, "snn": callback.network.state_dict(), "dnn": module.state_dict()}
    silent = Module()
    torch.nn.init.constant_(silent.norm.bias, -100.0)
    options = dict(max_epochs=1, devices=2, strategy=two_processes(rank, port))
    found["logged of a silent network"] = list(fit([SpikingValidation()], silent, **options)[1].logged_metrics)
    torch.save(found, f"{file}{rank}")
    leave()


@pytest.mark.slow
def test_two_processes_log_what_one_would(tmp_path):
    torch.multiprocessing.spawn(_two_process_worker, (free_port(), tmp_path / "rank"), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}", weights_only=True) for rank in (0, 1))
    assert first["logged"] == second["logged"]
    assert first["logged of a silent network"] == second["logged of a silent network"] == []
    module = Module().eval()
    module.load_state_dict(first["dnn"])
    # Both together have the whole training set, in batches that the convolution may round differently.
    network = to_snntorch(module, data().tensors[0], timesteps=4)
    for name, value in network.state_dict().items():
        assert torch.equal(first["snn"][name], second["snn"][name]), name
        torch.testing.assert_close(first["snn"][name], value)
    network.load_state_dict(first["snn"])
    x, y = data(20, 1).tensors
    with torch.no_grad(), SynapticOperations(network) as sops, SpikeRate(network) as rate:
        snn = (network(x).argmax(1) == y).float().mean()
    assert first["logged"]["snn/accuracy"] == pytest.approx(float(snn))
    assert first["logged"]["snn/sops"] == pytest.approx(float(sops.compute()))
    assert first["logged"]["snn/spike_rate"] == pytest.approx(float(rate.compute()))


def test_figures_go_to_tensorboard(tmp_path):
    pytest.importorskip("matplotlib")
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = TensorBoardLogger(tmp_path)
    without, _ = fit([])
    with_it, _ = fit([SpikingValidation(timesteps=2, figures=True)], logger=logger)
    logger.finalize("success")
    for name, value in without.state_dict().items():
        assert torch.equal(value, with_it.state_dict()[name]), name
    written = reader.EventAccumulator(logger.log_dir, {"images": 0}).Reload()
    assert set(written.Tags()["images"]) == {"snn/sops_by_layer", "snn/spike_rates"}
    assert [image.step for image in written.Images("snn/spike_rates")] == [5, 10]
    assert written.Images("snn/sops_by_layer")[0].encoded_image_string.startswith(b"\x89PNG")


class ImageLogger(CSVLogger):
    def __init__(self, folder, fails=False):
        super().__init__(folder)
        self.fails, self.images = fails, []

    def log_image(self, key, images, step=None):
        if self.fails:
            raise OSError("no network")
        self.images.append((key, images[0], step))


def test_figures_go_to_loggers_of_images(tmp_path):
    pytest.importorskip("matplotlib")
    logger = ImageLogger(tmp_path)
    fit([SpikingValidation(timesteps=2, figures=True)], logger=[logger, CSVLogger(tmp_path)], max_epochs=1)
    assert [(key, step) for key, _, step in logger.images] == [("snn/sops_by_layer", 5), ("snn/spike_rates", 5)]
    assert all(image.shape[2] == 3 and image.std() > 5 for _, image, _ in logger.images)


def test_rates_of_neurons_are_those_of_the_layer():
    module, data_ = Module(), DataLoader(data(20), batch_size=8)
    network = to_snntorch(module.eval(), data_, timesteps=3)
    spikes = NeuronRates()
    with torch.no_grad(), SpikeRate(network) as rate:
        rate.watch.observer = spikes
        for x, _ in data_:
            network(x)
    by_layer = {name: float(rates.mean()) for name, rates in spikes.rates().items()}
    assert by_layer == pytest.approx(rate.by_layer())
    assert [rates.shape for rates in spikes.rates().values()] == [(144,)]


def test_a_logger_that_fails_does_not_end_the_training(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.warns(UserWarning, match="could not log its figures. OSError: no network"):
        _, trainer = fit([SpikingValidation(timesteps=2, figures=True)], logger=ImageLogger(tmp_path, fails=True))
    assert trainer.current_epoch == 2


def test_no_figures_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.warns(UserWarning, match="needs matplotlib"):
        fit([SpikingValidation(timesteps=2, figures=True)], max_epochs=1)


def test_figures_are_off_by_default(tmp_path):
    logger = ImageLogger(tmp_path)
    fit([SpikingValidation(timesteps=2)], logger=logger, max_epochs=1)
    assert logger.images == []
