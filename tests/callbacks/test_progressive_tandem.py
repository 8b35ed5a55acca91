"""A DNN becomes a spiking network layer by layer, on a schedule that a resumed run goes on with."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer, callbacks
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from snnreg_plugins import (
    ActivityRegularization,
    ConversionError,
    ProgressiveTandem,
    SpikingNetwork,
    SpikingValidation,
    from_nir,
    load_network,
    save_network,
    to_nir,
    to_snntorch,
)
from snnreg_plugins.modules import SpikingClassifier
from tests.callbacks.reference import free_port, leave, step_by, two_processes
from tests.callbacks.test_penalty_resumed import Save
from tests.training.test_tandem import fire

T = 4
QUIET = dict(
    accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
)


@pytest.fixture(autouse=True)
def told():
    """What a short fit is told of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*others spike now without having been trained.*")
        yield


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 10), nn.BatchNorm1d(10), nn.ReLU()),
        *(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3)),
    )


def data(batch_size=16):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 6, generator=generator)
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()), batch_size)


class Module(LightningModule):
    """The user's module. The monitored value is scripted, if there is a script."""

    def __init__(self, script=(), manual=False, scheduler=False):
        super().__init__()
        self.net = net()
        self.script, self.automatic_optimization, self.scheduler = list(script), not manual, scheduler
        self.validations = 0

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        return step_by(self, loss)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def on_validation_epoch_end(self):
        if self.script and not self.trainer.sanity_checking:
            self.log("scripted", float(self.script[self.current_epoch]))

    def test_step(self, batch, batch_idx):
        self.log("test/loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        if not self.scheduler:
            return optimizer
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


class Watch(Callback):
    """Keeps what each epoch begins with."""

    def __init__(self, callback):
        self.callback, self.epochs = callback, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            network = self.callback._tandem
            self.epochs.append(
                dict(
                    layers=network.spiking_layers,
                    frozen=sorted(name for name, p in network.named_parameters() if not p.requires_grad),
                    weights={name: value.clone() for name, value in pl_module.state_dict().items()},
                    lr=trainer.optimizers[0].param_groups[0]["lr"],
                )
            )


class Alike:
    """A loader of four batches that are the same, so that it does not matter at which of them a resumed run begins."""

    def __len__(self):
        return 4

    def __iter__(self):
        return iter([next(iter(data()))] * 4)


def fit(module, callback, epochs, callbacks=(), loaders=None, **options):
    ckpt_path = options.pop("ckpt_path", None)
    trainer = Trainer(max_epochs=epochs, callbacks=[callback, *callbacks], **(QUIET | options))
    trainer.fit(module, *(loaders or (data(), data())), ckpt_path=ckpt_path)
    return trainer


def scripted(script, patience=2, epochs=None, **options):
    callback = ProgressiveTandem(T, monitor="scripted", patience=patience, **options)
    watch = Watch(callback)
    module = Module(script, scheduler=options.get("last_lr_factor") is not None)
    trainer = fit(module, callback, epochs or len(script), [watch])
    return module, callback, watch.epochs, trainer


def test_the_schedule():
    #         1 spikes          2 spike          3 spike: the last
    script = [0.5, 0.4, 0.5, 0.1, 0.2, 0.2, 0.2, 0.9, 0.3, 0.3]
    module, _, epochs, _ = scripted(script + [0.1] * 10)
    # The last layer improved no more.
    assert [epoch["layers"] for epoch in epochs] == [1, 1, 1, 2, 2, 2, 2, 3, 3, 3]
    frozen = ["encoder.0.bias", "encoder.0.weight"]
    assert [epoch["frozen"] for epoch in epochs[:3]] == [[]] * 3
    assert [epoch["frozen"] for epoch in epochs[3:7]] == [frozen] * 4
    assert [epoch["frozen"] for epoch in epochs[7:]] == [["body.2.bias", "body.2.weight", *frozen]] * 3
    # What is frozen stays, and the rest is trained.
    first, last = epochs[3]["weights"], epochs[6]["weights"]
    changed = {name for name in first if not torch.equal(first[name], last[name])}
    assert changed == {f"net.body.{layer}.{kind}" for layer in "257" for kind in ("weight", "bias")}
    assert isinstance(module.net, SpikingNetwork)
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_the_best_weights_come_back():
    script = [0.5, 0.9, 0.5, 0.5, 0.1, 0.2, 0.1, 0.1, 0.7, 0.1, 0.1]
    module, _, epochs, _ = scripted(script)
    assert [epoch["layers"] for epoch in epochs] == [1] * 4 + [2] * 4 + [3] * 3
    # At the second validation is what the third epoch began with; layers whose thresholds changed are scaled.
    for best, after, same in ((2, 4, "encoder.0"), (6, 8, "body.2")):
        assert torch.equal(
            epochs[after]["weights"][f"net.{same}.weight"], epochs[best]["weights"][f"net.{same}.weight"]
        )
        assert not torch.equal(
            epochs[after]["weights"][f"net.{same}.weight"], epochs[after - 1]["weights"][f"net.{same}.weight"]
        )
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in epochs[9]["weights"].items())


@pytest.mark.slow
def test_less_may_be_better_and_nothing_counts_for_nan():
    nan = float("nan")
    _, _, epochs, _ = scripted([nan, 0.4, nan, 0.3, 0.3, 0.3, 0.1], mode="min")
    assert [epoch["layers"] for epoch in epochs] == [1] * 6 + [2]


@pytest.mark.slow
def test_learning_rates_of_the_last_layer():
    script = [0.1] * 7
    _, _, epochs, _ = scripted(script, patience=2, last_lr_factor=0.1)
    assert [epoch["layers"] for epoch in epochs] == [1, 1, 1, 2, 2, 2, 3][: len(epochs)]
    rates = [0.01 * 0.5**epoch for epoch in range(6)] + [0.01 * 0.5**6 * 0.1]
    assert [epoch["lr"] for epoch in epochs] == pytest.approx(rates)


def test_thresholds_are_balanced_anew_and_the_network_is_what_it_was():
    callback = ProgressiveTandem(T, monitor="scripted", patience=1, percent=100.0)
    module = Module([0.5, 0.4, 0.3])
    levels = []

    class Look(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            levels.append({name: callback._tandem.initial_state(name).level.clone() for name in ("1", "4", "6")})

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 4:
                self.most = max(float(activation(callback._tandem, x).max()) for x, _ in data())

    def activation(network, x):
        weights = dict(network.named_parameters())
        return F.linear(network.rates(x)["1"], weights["body.2.weight"], weights["body.2.bias"]).relu()

    look = Look()
    fit(module, callback, 3, [look])
    assert [float(level["1"]) for level in levels[:2]] == [float(levels[0]["1"])] * 2
    assert float(levels[2]["4"]) == pytest.approx(look.most, rel=1e-4)
    assert float(levels[2]["4"]) != float(levels[1]["4"])
    assert float(levels[2]["6"]) == float(levels[1]["6"])


# What comes of it.


def finished(**options):
    callback = ProgressiveTandem(T, monitor="scripted", patience=1, **options)
    module = Module([0.5, 0.4, 0.3, 0.2, 0.1])
    fit(module, callback, 5)
    return module, callback


@pytest.mark.parametrize("framework", ["snntorch", pytest.param("norse", marks=pytest.mark.slow)])
def test_the_network_is_one_like_any(framework, tmp_path):
    module, callback = finished(framework=framework)
    network, x = callback.network, next(iter(data()))[0]
    module.eval()
    with torch.no_grad():
        scores = network(x)
        assert torch.equal(module.net(x), scores)
        save_network(network, tmp_path / "spiking.pt")
        assert torch.equal(load_network(tmp_path / "spiking.pt", net())(x), scores)
        save_network(module.net, tmp_path / "module.pt")
        assert torch.equal(load_network(tmp_path / "module.pt", net())(x), scores)
        to_nir(network, tmp_path / "network.nir")
        assert torch.allclose(from_nir(tmp_path / "network.nir", framework)(x), scores, atol=1e-6)
    assert type(network) is type(module.net) is SpikingNetwork
    assert network.conversion["framework"] == framework
    # By hand.
    weights, steps = dict(network.double().named_parameters()), [x.double()] * T
    for place, name in (("encoder.0", "1"), ("body.2", "4"), ("body.5", "6")):
        neuron = network.body.get_submodule(name)
        currents = [F.linear(step, weights[f"{place}.weight"], weights[f"{place}.bias"]) for step in steps]
        steps = fire(currents, neuron.threshold, network.body.get_submodule(f"{name}_initial").potential)
    expected = F.linear(sum(steps) / T, weights["body.7.weight"], weights["body.7.bias"])
    assert torch.allclose(expected.float(), scores, atol=1e-5)


@pytest.mark.slow
def test_batch_norms_that_are_kept_are_folded_in_the_end():
    module, callback = finished(batch_norm="keep")
    x = next(iter(data()))[0]
    assert any(isinstance(part, nn.BatchNorm1d) for part in module.net.modules())
    assert not any(isinstance(part, nn.BatchNorm1d) for part in callback.network.modules())
    module.eval()
    with torch.no_grad():
        assert torch.allclose(callback.network(x), module.net(x), atol=1e-5)


@pytest.mark.slow
def test_training_for_spikes_is_worth_it():
    """The network's loss is lower than that of an export of the DNN that it began with."""
    module = Module()
    Trainer(max_epochs=12, **QUIET).fit(module, data(), data())
    x, y = data().dataset.tensors
    callback = ProgressiveTandem(2, monitor="val/loss", mode="min", patience=2, batch_norm="keep")
    with torch.no_grad():
        before = float(F.cross_entropy(to_snntorch(module.net, x, timesteps=2)(x), y))
    fit(module, callback, 30)
    with torch.no_grad():
        assert float(F.cross_entropy(callback.network(x), y)) < 0.8 * before


@pytest.mark.slow
def test_manual_optimization_does_the_same():
    results = []
    for manual in (False, True):
        callback = ProgressiveTandem(T, monitor="scripted", patience=1)
        module = Module([0.5, 0.4, 0.3, 0.3, 0.3], manual=manual)
        fit(module, callback, 5)
        results.append(module.state_dict())
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_thresholds_are_balanced_in_the_precision_of_the_fit():
    callback = ProgressiveTandem(T, monitor="scripted", patience=1)
    trainer = fit(Module([0.5, 0.4, 0.3]), callback, 3, precision="64-true")
    assert float(trainer.logged_metrics["tandem/spiking_layers"]) == 2.0
    assert {value.dtype for value in callback.network.parameters()} == {torch.float64}


@pytest.mark.slow
def test_a_part_of_the_dnn_may_stay():
    callback = ProgressiveTandem(T, monitor="scripted", patience=1, until="4")
    module = Module([0.5, 0.4, 0.3, 0.3, 0.3])
    fit(module, callback, 5)
    assert callback._tandem.layers == [["1"], ["4"]]
    assert callback.network.head is not None


@pytest.mark.slow
def test_an_input_of_spiking_neurons_is_the_first_layer():
    callback = ProgressiveTandem(T, monitor="scripted", patience=1, coding="neurons")
    fit(Module([0.5, 0.4]), callback, 2)
    assert [len(names) for names in callback._tandem.layers] == [2, 1, 1, 1]
    assert callback._tandem.layers[1:] == [["1"], ["4"], ["6"]]


@pytest.mark.slow
def test_weights_of_a_trained_dnn(tmp_path):
    torch.manual_seed(5)
    trained = net()
    for parameter in trained.parameters():
        nn.init.uniform_(parameter, -0.5, 0.6)
    torch.save(
        {"state_dict": {f"net.{name}": value for name, value in trained.state_dict().items()}}, tmp_path / "a.pt"
    )
    callback = ProgressiveTandem(T, monitor="val/loss", checkpoint=str(tmp_path / "a.pt"))
    module = Module()

    class Stop(Callback):
        def on_train_start(self, trainer, pl_module):
            self.weight = pl_module.net.encoder.get_submodule("0").weight.clone()

    stop = Stop()
    fit(module, callback, 1, [stop])
    assert torch.equal(stop.weight, trained[0].weight)


# Interrupted.


class SaveBehind(Callback):
    """Saves behind an epoch."""

    def __init__(self, file, epoch):
        self.file, self.epoch = file, epoch

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            trainer.save_checkpoint(self.file)


@pytest.mark.parametrize(
    "save",
    [
        pytest.param(lambda file: SaveBehind(file, 1), id="before a layer spikes", marks=pytest.mark.slow),
        pytest.param(lambda file: SaveBehind(file, 2), id="behind the best epoch of a layer", marks=pytest.mark.slow),
        pytest.param(lambda file: SaveBehind(file, 4), id="before the last layer spikes", marks=pytest.mark.slow),
        pytest.param(lambda file: Save(file, 4 * 3 + 2), id="within an epoch"),
        pytest.param(lambda file: Save(file, 4 * 5 + 1), id="within one of the last layer", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_fit_goes_on_as_if_it_had_not_stopped(save, tmp_path):
    script = [0.5, 0.4, 0.3, 0.6, 0.5, 0.4, 0.2, 0.3, 0.1, 0.1]

    def run(*callbacks, **options):
        callback = ProgressiveTandem(T, monitor="scripted", patience=1, last_lr_factor=0.5, batch_norm="keep")
        module, watch = Module(script, scheduler=True), Watch(callback)
        if "ckpt_path" in options:
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.zero_()  # no matter which
        fit(module, callback, 10, [*callbacks, watch], (Alike(), data()), **options)
        return module.state_dict(), callback.network.state_dict(), [epoch["layers"] for epoch in watch.epochs]

    straight = run(save(tmp_path / "mid.ckpt"))
    resumed = run(ckpt_path=tmp_path / "mid.ckpt")
    for a, b in zip(straight[:2], resumed[:2], strict=True):
        assert list(a) == list(b)
        assert all(torch.equal(value, b[name]) for name, value in a.items())
    assert 0 < len(resumed[2]) < len(straight[2])
    assert straight[2][-len(resumed[2]) :] == resumed[2]


@pytest.mark.slow
def test_a_checkpoint_is_tested_by_a_new_module(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, save_last=True)
    callback = ProgressiveTandem(T, monitor="scripted", patience=1)
    module = Module([0.5, 0.4, 0.3, 0.2, 0.1, 0.1])
    trainer = fit(module, callback, 6, [checkpoint], enable_checkpointing=True)
    scores = []
    for tested, by in ((module, callback), (Module(), ProgressiveTandem(T))):
        test = Trainer(callbacks=[by], **QUIET).test
        scores.append(test(tested, data(), ckpt_path=checkpoint.last_model_path, verbose=False)[0]["test/loss"])
        assert type(tested.net) is SpikingNetwork
    assert scores[0] == scores[1]
    trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    with pytest.raises(ValueError, match="save_weights_only=False"):
        Trainer(callbacks=[ProgressiveTandem(T)], **QUIET).test(Module(), data(), ckpt_path=tmp_path / "weights.ckpt")


@pytest.mark.slow
def test_a_checkpoint_of_the_dnn_is_tested_as_it_is(tmp_path):
    module = Module()
    trainer = Trainer(max_epochs=1, **QUIET)
    trainer.fit(module, data())
    trainer.save_checkpoint(tmp_path / "dnn.ckpt")
    expected = trainer.test(module, data(), verbose=False)
    again = Module()
    trainer = Trainer(callbacks=[ProgressiveTandem(T)], **QUIET)
    assert trainer.test(again, data(), ckpt_path=tmp_path / "dnn.ckpt", verbose=False) == expected
    assert "on_load_checkpoint" not in vars(again)


@pytest.mark.slow
def test_a_second_fit_begins_anew():
    callback = ProgressiveTandem(T, monitor="scripted", patience=1)
    results = []
    for _ in range(2):
        module = Module([0.5, 0.4, 0.3, 0.2])
        fit(module, callback, 4)
        results.append(module.state_dict())
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


# What cannot be.


def test_a_network_that_spikes_already_is_refused():
    module = around(to_snntorch(net(), next(iter(data()))[0], timesteps=T))
    callback = ProgressiveTandem(T, monitor="val/loss")
    with pytest.raises(ValueError, match="'net' of Module to be a DNN.*converted already"):
        fit(module, callback, 1)
    Trainer(callbacks=[callback], **QUIET).test(module, data(), verbose=False)  # that works


class Two(Module):
    def __init__(self):
        super().__init__()
        self.other = nn.Linear(2, 2)


class Spread(Module):
    def __init__(self):
        super().__init__()
        del self.net
        self.fc1, self.fc2 = nn.Linear(2, 2), nn.Linear(2, 2)


class Shared(Module):
    def __init__(self):
        super().__init__()
        self.regularized = nn.ModuleList([self.net[0]])


class Early(Module):
    def __init__(self):
        super().__init__()
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)

    def configure_optimizers(self):
        return self.optimizer


class Bounded(Module):
    def __init__(self):
        super().__init__()
        self.net[1] = nn.ReLU6()


def around(network):
    module = Module()
    module.net = network
    return module


@pytest.mark.parametrize(
    ("module", "arguments", "error", "message"),
    [
        (Two, {}, ValueError, r"`network` to name the DNN within Two.*\['net', 'other'\]"),
        (Spread, {}, ValueError, "put them into a module of their own"),
        (Shared, dict(network="net"), ValueError, "'regularized.0.weight' is one of them"),
        (Two, dict(network="nett"), ValueError, "`network`.*'nett'"),
        (Early, {}, MisconfigurationException, "optimizers hold no parameter"),
        (Bounded, {}, ConversionError, "'1' is bounded.*Use nn.ReLU"),
        (lambda: around(nn.Sequential(nn.Linear(6, 4), nn.Sigmoid(), nn.Linear(4, 3))), {}, ConversionError, "Sigmoid"),
        (lambda: SpikingClassifier(net()), {}, ValueError, "Use Classifier"),
        (Module, dict(monitor="val/acc"), MisconfigurationException, r"'val/acc'.*\['val/loss'\]"),
    ],
)
def test_what_cannot_be_is_said(module, arguments, error, message):
    arguments = dict(monitor="val/loss") | arguments
    with pytest.raises(error, match=message):
        fit(module(), ProgressiveTandem(T, **arguments), 1)


def test_without_validation_there_is_no_schedule():
    with pytest.raises(MisconfigurationException, match="no validation data"):
        fit(Module(), ProgressiveTandem(T), 1, limit_val_batches=0)


@pytest.mark.parametrize("other", [SpikingValidation(T, network="net"), ActivityRegularization("l1", 0.1)])
def test_what_counts_spikes_of_layers_that_have_none_is_refused(other):
    with pytest.raises(RuntimeError, match="1 of 3 layers.*metric or penalty"):
        fit(Module(), ProgressiveTandem(T, monitor="val/loss"), 1, [other])


@pytest.mark.parametrize(
    "average", [lambda: callbacks.StochasticWeightAveraging(0.01), lambda: callbacks.WeightAveraging()]
)
def test_averages_of_different_networks_are_refused(average):
    trainer = Trainer(callbacks=[average()], **QUIET)
    with pytest.raises(MisconfigurationException, match="averages weights.*Leave it out"):
        ProgressiveTandem(T).on_fit_start(trainer, Module())


def test_ddp_has_to_find_unused_parameters():
    trainer = Trainer(strategy="ddp", devices=1, **QUIET)
    with pytest.raises(MisconfigurationException, match="ddp_find_unused_parameters_true"):
        ProgressiveTandem(T).on_fit_start(trainer, Module())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(timesteps=0), "`timesteps`.*0"),
        (dict(monitor=""), "`monitor`"),
        (dict(mode="best"), "`mode`.*'best'"),
        (dict(patience=0), "`patience`.*0"),
        (dict(last_lr_factor=0), "`last_lr_factor`.*0"),
        (dict(calibration_batches=0), "`calibration_batches`.*0"),
        (dict(framework="sinabs"), "`framework`.*'sinabs'"),
        (dict(network=3), "`network`.*3"),
        (dict(beta=0.9), "`beta` to be 1.0.*0.9"),
        (dict(train_thresholds="layer"), "`train_thresholds` to be 'none'.*'layer'"),
        (dict(correction="bias"), "`correction` to be 'none'.*'bias'"),
        (dict(time_dim=0), "`time_dim` to be None.*0"),
        (dict(threshold="auto"), "`threshold`.*'percentile'.*'auto'"),
        (dict(coding="poisson"), "`coding`.*'neurons'.*'poisson'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ProgressiveTandem(**arguments)


def test_before_a_fit_there_is_no_network():
    with pytest.raises(RuntimeError, match="fit first"):
        _ = ProgressiveTandem(T).network


def _ddp_worker(rank, port, folder):
    callback = ProgressiveTandem(T, monitor="val/loss", mode="min", patience=1)
    module = Module()
    strategy = two_processes(rank, port)
    strategy._ddp_kwargs["find_unused_parameters"] = True
    fit(module, callback, 8, devices=2, strategy=strategy)
    torch.save((copy.deepcopy(module.state_dict()), callback._tandem.spiking_layers), f"{folder}/{rank}.pt")
    leave()


@pytest.mark.slow
def test_two_processes_keep_together(tmp_path):
    torch.multiprocessing.spawn(_ddp_worker, (free_port(), tmp_path), nprocs=2)
    (first, layers), (second, _) = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert layers == 3
