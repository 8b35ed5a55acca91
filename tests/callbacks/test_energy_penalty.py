"""The penalty "energy" is what a spiking network spends on a sample, with the gradient of that sum by hand."""

from __future__ import annotations

import copy
import warnings

import pytest
import snntorch
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from snnreg_plugins import ActivityRegularization, Energy
from snnreg_plugins.functional import EnergyTable
from snnreg_plugins.watching.hooks import Hooks
from tests.callbacks.reference import FAN_OUT, Analog, Module, fit, loader, start
from tests.callbacks.test_penalty_on_spikes import networks
from tests.helpers import brute_force_fan_out

STRENGTH = 0.05
NANOJOULE = 0.9e-3  # of an accumulate, horowitz_fp32


class Tokens(nn.Module):
    """Counts of spikes at five places of each sample, behind sum pooling, in a loop over steps that the user writes."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head = nn.Linear(8, 6), nn.Linear(3, 5), nn.Linear(5, 3)
        self.lif = nn.ModuleList(snntorch.Leaky(0.9, threshold=0.2) for _ in range(2))

    def forward(self, x):
        states, out = [lif.init_leaky() for lif in self.lif], 0.0
        for _ in range(3):
            s, states[0] = self.lif[0](self.embed(x.flatten(1, 2)), states[0])  # (B, 8, 6)
            s = F.avg_pool1d(s.to(x), 2) * 2
            s, states[1] = self.lif[1](self.mix(s), states[1])
            out = out + self.head(s.to(x).mean(1) * s.shape[1])
        return out


def nets():
    torch.manual_seed(1)
    return networks() | {"tokens": Tokens().double()}


class Spiking(LightningModule):
    """With ``strength``, adds what all layers but the first spend by hand."""

    def __init__(self, net, strength=0.0, checkpointing=None):
        super().__init__()
        self.net, self.strength, self.checkpointing = copy.deepcopy(net), strength, checkpointing

    def training_step(self, batch, batch_idx):
        x, y = batch
        reads = []
        layers = [layer for layer in self.net.modules() if isinstance(layer, (nn.Linear, nn.Conv2d)) and self.strength]
        with Hooks([(layer, lambda *call: reads.append(call)) for layer in layers[1:]], many_steps=True):
            if self.checkpointing is None:
                loss = F.cross_entropy(self.net(x), y)
            else:
                reentrant = self.checkpointing == "reentrant"
                loss = F.cross_entropy(checkpoint(self.net, x.requires_grad_(), use_reentrant=reentrant), y)
        for layer, (a,) in reads:
            positions = a.dim() - 1 if isinstance(layer, nn.Conv2d) else 1
            fan_out = brute_force_fan_out(layer, tuple(a.shape[-positions:]))
            events = a / a.detach()[a > 0].min() if (a != a.round()).any() else a
            loss = loss + self.strength * NANOJOULE * (events * fan_out).sum() / len(y)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.5)


def one_batch(*tensors):
    return DataLoader([tensors], batch_size=None)


def weights(module, callbacks=(), **options):
    _, trainer = fit(module, callbacks, torch.float64, **options)
    return torch.cat([p.detach().flatten() for p in module.net.parameters()]), trainer


@pytest.mark.parametrize(
    ("network", "module", "trainer"),
    [
        ("snnTorch", {}, {}),
        ("tokens", {}, {}),
        ("exported", {}, dict(accumulate_grad_batches=3)),
        pytest.param("kept", {}, {}, marks=pytest.mark.slow),
        pytest.param("snnTorch", dict(checkpointing="reentrant"), {}, marks=pytest.mark.slow),
        pytest.param("exported", dict(checkpointing="other"), {}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_gradient_equals_the_energy_by_hand(network, module, trainer):
    net = nets()[network]
    data = loader(torch.float64, samples=22)  # the last batch is smaller
    expected, _ = weights(Spiking(net, STRENGTH), data=data, **trainer)
    without, _ = weights(Spiking(net), data=data, **trainer)
    actual, _ = weights(Spiking(net, **module), [ActivityRegularization("energy", STRENGTH)], data=data, **trainer)
    assert (without - expected).abs().max() > 1e-4
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("network", "table"),
    [("snnTorch", "horowitz_fp32"), ("exported", "loihi"), ("tokens", "horowitz_fp32")],
)
def test_what_is_logged_is_what_the_metric_counts(network, table):
    net = nets()[network].float()
    x, y = next(iter(loader(samples=30, batch_size=30)))
    with Energy(net, table, input_events=False) as metric, torch.no_grad():
        net(x)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no price for the first layer
            joules = metric.by_layer()
    module, callback = Spiking(net), ActivityRegularization("energy", STRENGTH, table=table)
    _, trainer = fit(module, [callback], data=one_batch(x, y))
    _, *hidden = joules  # the first layer reads the image
    expected = {name: 1e9 * joules[name] for name in hidden}
    logged = {name.split("net.")[-1]: float(value) for name, value in trainer.logged_metrics.items()}
    assert min(expected.values()) > 0.001
    assert {name: logged.get(name, logged.get(f"body.{name}")) for name in hidden} == pytest.approx(expected, rel=1e-5)
    assert float(trainer.logged_metrics["penalty/total"]) == pytest.approx(STRENGTH * sum(expected.values()), rel=1e-5)


def test_energy_of_a_dnn_is_that_of_the_rates_to_come():
    class ByHand(Module):
        levels: dict[str, torch.Tensor]

        def training_step(self, batch, batch_idx):
            x, y = batch
            activities = []
            loss = F.cross_entropy(self.net(x, activities), y)
            for name, a in activities:
                level = a.detach().flatten().sort().values[-(-999 * a.numel() // 1000) - 1]
                rates = (a / level).clamp(0, 1)
                loss = loss + 0.01 * 4 * NANOJOULE * (rates * FAN_OUT[name](self.net)).sum() / len(y)
            return loss

    net = start({}, torch.float64)
    expected, _ = fit(ByHand(copy.deepcopy(net)), dtype=torch.float64, limit_train_batches=1)
    actual, trainer = fit(
        Module(net), [ActivityRegularization("energy", 0.01, timesteps=4)], torch.float64, limit_train_batches=1
    )
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    names = [name for name in trainer.logged_metrics if name.startswith("penalty/net")]
    total = 0.01 * sum(trainer.logged_metrics[name] for name in names)
    torch.testing.assert_close(trainer.logged_metrics["penalty/total"], total)


@pytest.mark.parametrize("mac", [4.6, float("nan")])
def test_real_values_cost_multiplications_and_it_is_said_that_they_have_no_gradient(mac):
    net, table = Analog(), EnergyTable(mac, 0.9, "mine")
    x, y = next(iter(loader(samples=30, batch_size=30)))
    with Energy(net, table) as metric, torch.no_grad():
        net(x)
        macs, joules = metric.by_layer("effective_macs"), metric.by_layer()
    callback = ActivityRegularization("energy", 1.0, table=table)
    with pytest.warns(UserWarning, match="gradient of the penalty is 0 on all that 'net.fc2' read"):
        _, trainer = fit(Spiking(net), [callback], data=one_batch(x, y))
    logged = trainer.logged_metrics
    assert float(logged["penalty/net.fc2"]) == pytest.approx(macs["fc2"] * (4.6e-3 if mac == 4.6 else 0.0), rel=1e-5)
    assert float(logged["penalty/net.fc3"]) == pytest.approx(1e9 * joules["fc3"], rel=1e-5)


class InTime(Spiking):
    """Frames (T, B, ...), which the step calls the network on one by one."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(sum(self.net(frame) for frame in x), y)


def test_samples_are_those_of_the_labels_or_as_told():
    net = nets()["snnTorch"]
    x, y = torch.rand(4, 6, 1, 8, 8, dtype=torch.float64), torch.randint(0, 3, (6,))

    class Told(ActivityRegularization):
        def samples(self, batch):
            return batch[0].shape[1]

    def logged(callback, data):
        _, trainer = fit(InTime(net), [callback], data=data)
        return trainer.logged_metrics

    found = logged(ActivityRegularization("energy", 1.0), one_batch(x, y))
    with Energy(net, input_events=False) as metric, torch.no_grad():
        net(x.flatten(0, 1))
        joules = metric.by_layer()
    assert float(found["penalty/net.fc1"]) == pytest.approx(4e9 * joules["fc1"], rel=1e-5)  # four frames a sample
    assert logged(Told("energy", 1.0), one_batch(x, y)) == found

    class Three(InTime):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch[:2], batch_idx)

    with pytest.raises(MisconfigurationException, match=r"tell \[4, 6\] samples. Override ActivityRegularization.samp"):
        fit(Three(net), [ActivityRegularization("energy", 1.0)], data=one_batch(x, y, y))
    fit(Three(net), [Told("energy", 1.0)], data=one_batch(x, y, y))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(penalty="l1", table="loihi"), "`table` for penalty='energy' alone, but got 'loihi' for 'l1'"),
        (dict(penalty="l1", timesteps=4), "`timesteps` for penalty='energy' alone, but got 4 for 'l1'"),
        (dict(penalty="energy", table="coal"), "`table` to be one of .*'coal'"),
        (dict(penalty="energy", timesteps=0), "`timesteps`.* 0"),
        (dict(penalty="energy", low=0.1), "`low` for penalty='rate_bounds' alone"),
    ],
    ids=str,
)
def test_arguments_of_other_penalties_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ActivityRegularization(**arguments)


def test_what_has_no_energy_is_refused_with_what_to_do():
    spiking, dnn = nets()["snnTorch"], start({}, torch.float64)
    with pytest.raises(ValueError, match="`timesteps` for penalty='energy' of a DNN.* but got None.*timesteps=8"):
        fit(Module(dnn), [ActivityRegularization("energy")], torch.float64)
    fit(Module(dnn), [ActivityRegularization("energy", timesteps=8)], torch.float64)
    with pytest.raises(ValueError, match="`timesteps` for a DNN alone, .* but got 8. Leave it out"):
        fit(Spiking(spiking), [ActivityRegularization("energy", timesteps=8)], torch.float64)
    with pytest.raises(ValueError, match="`table` to have a price for SOPs"):
        fit(Spiking(spiking), [ActivityRegularization("energy", table=EnergyTable(1.0, 0.0, "free"))], torch.float64)


def test_tables_tell_callbacks_apart_and_leave_other_keys_alone():
    keys = {ActivityRegularization("energy", table=table).state_key for table in (None, "horowitz_fp32", "loihi")}
    assert len(keys) == 2
    assert "table" not in ActivityRegularization("l1").state_key
