"""Rates of neurons are kept within bounds, with the gradient of the formula by hand, however the steps are called."""

from __future__ import annotations

import copy

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from snnreg_plugins import ActivityRegularization
from snnreg_plugins.functional import rate_bounds
from snnreg_plugins.watching.hooks import Hooks
from tests.callbacks.reference import Analog, fit, free_port, leave, loader, two_processes
from tests.callbacks.test_penalty_on_spikes import networks

LOW, HIGH = 0.2, 0.3
FAN_OUT = {"fc1": 12, "fc2": 3, "body.4": 12, "body.6": 3}


class Loop(LightningModule):
    """With ``strength``, adds the penalty of the rates that it collects itself."""

    def __init__(self, net, strength=0.0, fan_out=False, checkpointing=None, halves=False, compiled=False):
        super().__init__()
        self.net, self.strength, self.fan_out = copy.deepcopy(net), strength, fan_out
        self.checkpointing, self.halves = checkpointing, halves
        if compiled:
            self.net.compile(backend="aot_eager")

    def outputs(self, x):
        if self.checkpointing is None:
            return torch.cat([self.net(part) for part in x.chunk(2)]) if self.halves else self.net(x)
        return checkpoint(self.net, x.requires_grad_(), use_reentrant=self.checkpointing == "reentrant")

    def training_step(self, batch, batch_idx):
        x, y = batch
        if not self.strength:
            return F.cross_entropy(self.outputs(x), y)
        reads = {}

        def keep(layer, args):
            reads.setdefault(layer, []).append(args[0])

        layers = [layer for layer in self.net.modules() if isinstance(layer, nn.Linear)]  # the first reads no spikes
        with Hooks([(layer, keep) for layer in layers], many_steps=True):
            parts = x.chunk(2) if self.halves else [x]
            loss = F.cross_entropy(torch.cat([self.net(part) for part in parts]), y)
        terms, synapses = [], []
        for layer, steps in reads.items():
            r = torch.cat(steps).mean(0)
            terms.append((F.relu(LOW - r) ** 2 + F.relu(r - HIGH) ** 2).mean())
            synapses.append(layer.in_features * layer.out_features if self.fan_out else 1)
        total = sum(n * term for n, term in zip(synapses, terms, strict=True))
        return loss + self.strength * (total / sum(synapses) if self.fan_out else total)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.5)


def weights(module, callbacks=(), **options):
    _, trainer = fit(module, callbacks, torch.float64, **options)
    return torch.cat([p.detach().flatten() for p in module.net.parameters()]), trainer


def bounds(strength=3.0, **options):
    return ActivityRegularization("rate_bounds", strength, low=LOW, high=HIGH, **options)


@pytest.mark.parametrize(
    ("network", "module", "trainer"),
    [
        ("snnTorch", {}, {}),
        ("exported", {}, {}),
        ("kept", {}, {}),
        ("snnTorch", dict(fan_out=True), {}),
        ("exported", dict(fan_out=True), {}),
        ("snnTorch", dict(halves=True), {}),  # twice as many calls of half the samples
        ("snnTorch", {}, dict(accumulate_grad_batches=2)),
        ("snnTorch", dict(checkpointing="reentrant"), {}),
        ("snnTorch", dict(checkpointing="other"), {}),
    ],
    ids=str,
)
def test_gradient_equals_the_formula_by_hand(network, module, trainer):
    net = networks()[network]
    by_hand = {name: value for name, value in module.items() if name != "checkpointing"}
    expected, _ = weights(Loop(net, 3.0, **by_hand), **trainer)
    weighting = "fan_out" if module.get("fan_out") else "uniform"
    actual, _ = weights(Loop(net, **module), [bounds(weighting=weighting)], **trainer)
    without, _ = weights(Loop(net, **by_hand), **trainer)
    assert (without - expected).abs().max() > 1e-4
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_gradient_equals_the_formula_by_hand_in_compiled_code():
    net = networks()["snnTorch"]
    expected, _ = weights(Loop(net, 3.0))
    actual, _ = weights(Loop(net, compiled=True), [bounds()])
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def _ddp_worker(rank, port, file):
    net, options = networks()["snnTorch"], dict(devices=2, accumulate_grad_batches=2)
    expected, _ = weights(Loop(net, 3.0), strategy=two_processes(rank, port), **options)
    actual, _ = weights(Loop(net), [bounds()], strategy=two_processes(rank, port), **options)
    if rank == 0:
        torch.save([actual, expected], file)
    leave()


@pytest.mark.slow
def test_each_process_has_the_penalty_of_its_own_rates_as_by_hand(tmp_path):
    file = tmp_path / "weights.pt"
    torch.multiprocessing.spawn(_ddp_worker, (free_port(), file), nprocs=2, join=True)
    actual, expected = torch.load(file, weights_only=True)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_what_is_logged_is_the_penalty_of_the_rates():
    net = networks()["snnTorch"]
    module = Loop(net)
    reads = {}
    with torch.no_grad(), Hooks([(net.fc1, lambda _, args: reads.setdefault("fc1", []).append(args[0]))]):
        net(next(iter(loader(torch.float64)))[0])
    _, trainer = weights(module, [bounds()], limit_train_batches=1)
    r = torch.cat(reads["fc1"]).mean(0)
    expected = (F.relu(LOW - r) ** 2 + F.relu(r - HIGH) ** 2).mean()
    logged = trainer.logged_metrics
    torch.testing.assert_close(logged["penalty/net.fc1"].double(), expected, rtol=1e-6, atol=0)
    both = logged["penalty/net.fc1"] + logged["penalty/net.fc2"]
    torch.testing.assert_close(logged["penalty/total"], 3.0 * both)
    torch.testing.assert_close(rate_bounds(torch.cat(reads["fc1"]), low=LOW, high=HIGH), expected)


def test_silent_neurons_fire_again():
    torch.manual_seed(0)
    net = networks()["snnTorch"].float()
    with torch.no_grad():
        net.conv.bias -= 0.6
    x, _ = next(iter(loader(samples=64, batch_size=64)))

    def silent(module):
        reads = []
        with torch.no_grad(), Hooks([(module.net.fc1, lambda _, args: reads.append(args[0]))]):
            module.net(x)
        return int((torch.cat(reads).mean(0) == 0).sum())

    before, plain, bounded = Loop(net), Loop(net), Loop(net)
    fit(plain, [], max_epochs=4)
    fit(bounded, [ActivityRegularization("rate_bounds", 100.0, low=0.1)], max_epochs=4)
    assert min(silent(before), silent(plain)) > 20
    assert silent(bounded) < 3


def test_within_the_bounds_nothing_is_added_or_said(recwarn):
    net = networks()["snnTorch"]
    expected, _ = weights(Loop(net))
    actual, trainer = weights(Loop(net), [ActivityRegularization("rate_bounds", 3.0, high=1.5)])
    assert torch.equal(actual, expected)
    assert trainer.logged_metrics["penalty/total"] == 0
    assert not [one for one in recwarn if "ActivityRegularization" in str(one.message)]


def test_a_network_without_spikes_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match="takes spikes/neuron/step, but Loop has no spiking neurons.*'expected_rate'"):
        weights(Loop(nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 3)).double()), [bounds()])


def test_real_values_are_refused_and_the_remedy_works():
    net = Analog().double()
    with pytest.raises(MisconfigurationException, match="layer 'net.fc2' reads values that are no spikes.*`layers`"):
        weights(Loop(net), [bounds()])
    weights(Loop(net), [bounds(layers="*.fc3")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(penalty="rate_bounds"), "`low` or `high` for penalty='rate_bounds'"),
        (dict(penalty="l1", low=0.1), "`low` for penalty='rate_bounds' alone, but got 0.1 for 'l1'"),
        (dict(penalty="rate_bounds", low=0.3, high=0.2), "`high` to be at least `low`, 0.3, but got 0.2"),
        (dict(penalty="rate_bounds", low=-0.3), "argument `low`"),
    ],
    ids=str,
)
def test_bounds_that_are_none_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ActivityRegularization(**arguments)


def test_bounds_tell_callbacks_apart_and_leave_other_keys_alone():
    assert (
        ActivityRegularization("rate_bounds", low=0.1).state_key
        != ActivityRegularization("rate_bounds", low=0.2).state_key
    )
    assert "low" not in ActivityRegularization("l1").state_key
