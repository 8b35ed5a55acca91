"""Training with the callback is training with QCFS modules that were written into the network by hand."""

from __future__ import annotations

import contextlib
import copy
import warnings

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn import functional as F

from snnreg_plugins import ActivityRegularization, QCFSActivations
from snnreg_plugins.export.qcfs import QCFS
from tests.callbacks.reference import (
    Module,
    fit,
    free_port,
    leave,
    loader,
    parameters,
    two_processes,
)
from tests.callbacks.test_activity_regularization import percentile_by_hand
from tests.callbacks.test_spiking_validation import QUIET
from tests.export.test_qcfs import by_hand


class Net(nn.Module):
    """With ReLU modules, one of them called twice; ``reference`` quantizes by hand."""

    def __init__(self, inplace=False):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=inplace), nn.Conv2d(4, 4, 3, stride=2, padding=1)
        )
        self.relu = nn.ReLU(inplace=inplace)
        self.fc1, self.fc2, self.fc3 = nn.Linear(64, 12), nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x, activities=None):
        activities = [] if activities is None else activities
        x = self.features[1](self.features[0](x))
        activities.append(("conv2", x))
        x = self.relu(self.features[2](x)).flatten(1)
        activities.append(("fc1", x))
        x = self.relu(self.fc1(x))
        activities.append(("fc2", x))
        x = F.relu6(self.fc2(x))
        activities.append(("fc3", x))
        return self.fc3(x)


class ByHand(nn.Module):
    """A ReLU up to a batch, and then the formula, with the running percentile of the batches before."""

    def __init__(self, levels, switch):
        super().__init__()
        self.levels, self.switch, self.batch, self.level = levels, switch, 0, None
        self.threshold = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def forward(self, x):
        if self.batch >= self.switch:
            return by_hand(x, self.threshold, self.levels)
        y = torch.relu(x)
        seen = percentile_by_hand(y)
        self.level = seen if self.level is None else 0.9 * self.level + 0.1 * seen
        return y + 0 * self.threshold

    def begin(self, batch):
        self.batch = batch
        if batch == self.switch:
            self.threshold.data.copy_(self.level)


class ByHandModule(Module):
    """Quantizes from a batch on, without the callback."""

    batches = 0

    def on_train_batch_start(self, batch, batch_idx):
        for module in self.modules():
            if isinstance(module, ByHand):
                module.begin(self.batches)
        self.batches += 1


def net(dtype=torch.float64, **options):
    torch.manual_seed(0)
    return Net(**options).to(dtype)


def net_by_hand(levels, switch):
    made = net()
    made.features[1], made.relu = ByHand(levels, switch), ByHand(levels, switch)
    return made


def by_name(module):
    """Parameters by name: the two networks register theirs in another order."""
    return {name: p.detach() for name, p in module.named_parameters()}


def assert_same(actual, expected, atol=1e-12):
    actual, expected = by_name(actual), by_name(expected)
    assert set(actual) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=0, atol=atol)


ROWS = {
    "from the third batch": (dict(calibration_batches=2), 2, dict(max_epochs=2)),
    "from the second epoch": (dict(start_epoch=1, calibration_batches=1), 4, dict(max_epochs=2)),
    "from half": (dict(start_epoch=0.5, calibration_batches=1), 8, dict(max_epochs=4)),
    "late for want of batches": (dict(start_epoch=1, calibration_batches=6), 6, dict(max_epochs=2)),
    "accumulate 2": (dict(calibration_batches=4), 4, dict(max_epochs=2, accumulate_grad_batches=2)),
}


@pytest.mark.parametrize("row", ROWS)
def test_trains_as_if_written_by_hand(row):
    arguments, switch, trainer = ROWS[row]
    expected = ByHandModule(net_by_hand(3, switch))
    fit(expected, dtype=torch.float64, **trainer)
    actual = Module(net())
    fit(actual, [QCFSActivations(3, **arguments)], torch.float64, **trainer)
    assert_same(actual, expected)
    assert actual.net.relu.active
    relu = Module(net())
    fit(relu, dtype=torch.float64, **trainer)
    assert (parameters(relu)[:40] - parameters(actual)[:40]).abs().max() > 1e-6  # it matters


OPTIONS = {
    "in-place ReLU": dict(net=dict(inplace=True)),
    "manual optimization": dict(module=dict(manual=True)),
    "compiled network": dict(compile="network"),
    "compiled by torch.compile": dict(compile="wrapped"),
    "compiled module": dict(compile="module"),
}


@pytest.mark.parametrize(
    "row", [pytest.param(row, marks=[pytest.mark.slow] if "compile" in OPTIONS[row] else []) for row in OPTIONS]
)
def test_trains_alike_in_every_mode(row):
    row = OPTIONS[row]
    expected = ByHandModule(net_by_hand(4, 2), **row.get("module", {}))
    fit(expected, dtype=torch.float64, max_epochs=2)
    module = fitted = Module(net(**row.get("net", {})), **row.get("module", {}))
    if row.get("compile") == "network":
        module.net.compile(backend="aot_eager", fullgraph=True)
    elif row.get("compile") == "wrapped":
        module.net = torch.compile(module.net, backend="eager", fullgraph=True)
    elif row.get("compile") == "module":
        fitted = torch.compile(module, backend="eager")
    fit(fitted, [QCFSActivations(4, calibration_batches=2)], torch.float64, max_epochs=2)
    if row.get("compile") == "wrapped":
        module.net = module.net._orig_mod
    assert_same(module, expected, 1e-10)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision(precision):
    module = Module(net(torch.float32))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    options = (
        dict(precision=precision)
        if precision == "bf16-mixed"
        else dict(plugins=[MixedPrecision(precision, "cpu", scaler)])
    )
    fit(module, [QCFSActivations(4, calibration_batches=2)], max_epochs=3, **options)
    single = Module(net(torch.float32))
    fit(single, [QCFSActivations(4, calibration_batches=2)], max_epochs=3)
    assert module.net.relu.threshold.dtype == torch.float32
    for name, p in by_name(single).items():
        torch.testing.assert_close(by_name(module)[name], p, rtol=0, atol=2e-2)


class PenaltyByHand(ByHandModule):
    def training_step(self, batch, batch_idx):
        activities = []
        loss = F.cross_entropy(self.net(batch[0], activities), batch[1])
        return loss + 0.5 * sum(a.abs().mean() for _, a in activities)


@pytest.mark.parametrize("first", [True, False])
def test_with_activity_regularization_in_both_orders(first):
    expected = PenaltyByHand(net_by_hand(4, 3))
    fit(expected, dtype=torch.float64, max_epochs=2)
    callbacks = [QCFSActivations(4, calibration_batches=3), ActivityRegularization("l1", 0.5)]
    actual = Module(net())
    fit(actual, callbacks if first else callbacks[::-1], torch.float64, max_epochs=2)
    assert_same(actual, expected)


@pytest.mark.parametrize("first", [True, False])
def test_with_the_expected_rate_the_order_does_not_matter(first):
    callbacks = [
        QCFSActivations(4, calibration_batches=3),
        ActivityRegularization("expected_rate", 0.5, "fan_out"),
    ]
    expected, actual = Module(net()), Module(net())
    fit(expected, copy.deepcopy(callbacks), torch.float64, max_epochs=2)
    fit(actual, callbacks if first else callbacks[::-1], torch.float64, max_epochs=2)
    assert_same(actual, expected, 0)


class SaveAt(Callback):
    def __init__(self, step, file):
        self.step, self.file = step, file

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.file)


@pytest.mark.parametrize("end_of", [1, 2, 3])
def test_resumed_training_is_bit_equal(end_of, tmp_path):
    # Before the switch, just at it, and after it.
    callbacks = lambda: [QCFSActivations(4, start_epoch=2, calibration_batches=6)]  # noqa: E731
    straight = Module(net(torch.float32), optimizer="adam")
    fit(straight, callbacks(), max_epochs=4)
    _, trainer = fit(Module(net(torch.float32), optimizer="adam"), callbacks(), max_epochs=end_of)
    trainer.save_checkpoint(tmp_path / "part.ckpt")
    resumed = Module(net(torch.float32), optimizer="adam")
    fit(resumed, callbacks(), max_epochs=4, ckpt_path=tmp_path / "part.ckpt")
    assert_same(resumed, straight, 0)
    assert resumed.net.relu.active


@pytest.mark.parametrize("step", [2, 3, 6])
def test_resumed_within_an_epoch_keeps_what_was_observed(step, tmp_path):
    file = tmp_path / "part.ckpt"
    saving = QCFSActivations(4, calibration_batches=3)
    fit(Module(net(torch.float32)), [saving, SaveAt(step, file)], max_epochs=2)
    saved = torch.load(file, weights_only=True)
    assert bool(saved["state_dict"]["net.relu.active"]) == (step > 3)
    resumed, callback = Module(net(torch.float32)), QCFSActivations(4, calibration_batches=3)
    fit(resumed, [callback], max_epochs=2, ckpt_path=file)
    assert resumed.net.relu.active
    assert callback.state_dict()["batches"] == 3
    if step > 2:  # no batch was observed after it
        assert torch.equal(resumed.net.relu.observed, saved["state_dict"]["net.relu.observed"])


def test_another_number_of_levels_is_warned_of(tmp_path):
    _, trainer = fit(Module(net(torch.float32)), [QCFSActivations(4)])
    trainer.save_checkpoint(tmp_path / "four.ckpt")
    with pytest.warns(UserWarning, match="levels=4, not 8"):
        fit(Module(net(torch.float32)), [QCFSActivations(8)], max_epochs=2, ckpt_path=tmp_path / "four.ckpt")


class Evaluated(Module):
    def validation_step(self, batch, batch_idx):
        self.log("loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        return self.net(batch[0])


@pytest.mark.parametrize("active", [True, False])
def test_validate_test_and_predict_from_a_checkpoint(active, tmp_path):
    file = tmp_path / "trained.ckpt"
    trained = Evaluated(net(torch.float32))
    _, trainer = fit(trained, [QCFSActivations(4, calibration_batches=2 if active else 99)])
    trainer.save_checkpoint(file)
    assert bool(trained.net.relu.active) == active
    trained.eval()
    with torch.no_grad():
        losses = [F.cross_entropy(trained.net(x), y) for x, y in loader(torch.float32)]
    expected = float(torch.stack(losses).mean())
    for stage in ("validate", "test"):
        trainer = Trainer(**QUIET, callbacks=[QCFSActivations(4)])
        evaluate = getattr(trainer, stage)
        (logged,) = evaluate(Evaluated(net(torch.float32)), loader(torch.float32), ckpt_path=file, verbose=False)
        assert logged["loss"] == pytest.approx(expected, rel=1e-6)
    trainer = Trainer(**QUIET, callbacks=[QCFSActivations(4)])
    scores = torch.cat(trainer.predict(Evaluated(net(torch.float32)), loader(torch.float32), ckpt_path=file))
    with torch.no_grad():
        torch.testing.assert_close(scores, trained.net(loader(torch.float32).dataset.tensors[0]))


def test_a_second_fit_of_the_same_module_goes_on():
    module, callback = Module(net(torch.float32)), QCFSActivations(4, calibration_batches=2)
    fit(module, [callback])
    before = module.net.relu
    threshold = before.threshold.item()
    fit(module, [callback])
    assert module.net.relu is before
    assert before.threshold.item() != threshold  # it is still trained
    other = Module(net(torch.float32))
    fit(other, [callback], limit_train_batches=1)
    assert not other.net.relu.active  # batches that another module saw do not count


def test_every_relu_is_exchanged_at_its_name():
    class Block(nn.Module):
        def __init__(self, shared):
            super().__init__()
            self.relu, self.again = shared, shared
            self.six, self.leaky, self.own = nn.ReLU6(), nn.LeakyReLU(), Own()

    class Own(nn.ReLU):
        def forward(self, x):
            return x.relu() + 1

    class Sub(nn.ReLU):
        pass

    shared = nn.ReLU()
    model = nn.ModuleDict({"a": Block(shared), "b": nn.Sequential(nn.Linear(2, 2).double(), Sub().eval(), shared)})
    found = QCFSActivations(5).swap(model)
    assert list(found) == ["a.relu", "b.1"]
    assert model["a"].relu is model["a"].again is model["b"][2]
    assert {type(model["a"].six), type(model["a"].leaky), type(model["a"].own)} == {nn.ReLU6, nn.LeakyReLU, Own}
    assert all(layer.levels == 5 and layer.threshold.dtype == torch.float64 for layer in found.values())
    assert (found["a.relu"].training, found["b.1"].training) == (True, False)
    assert QCFSActivations(5).swap(model) == found  # once is enough, twice is fine


def test_layers_choose_by_name():
    module = Module(net(torch.float32))
    fit(module, [QCFSActivations(layers="*features*")])
    assert type(module.net.relu) is nn.ReLU
    assert type(module.net.features[1]) is QCFS
    with pytest.raises(ValueError, match="'body' matches none of \\['net.features.1', 'net.relu'\\]"):
        fit(Module(net(torch.float32)), [QCFSActivations(layers="body")])


def test_thresholds_are_in_the_optimizer():
    module = Module(net(torch.float32))
    _, trainer = fit(module, [QCFSActivations()])
    trained = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert {id(module.net.relu.threshold), id(module.net.features[1].threshold)} <= trained


class Functional(Module):
    def __init__(self, *layers):
        super().__init__(None)
        self.conv, self.fc, self.layers = nn.Conv2d(1, 2, 3), nn.Linear(72, 3), nn.Sequential(*layers)
        self.kept = None

    def forward(self, x):
        x = F.relu(self.layers(self.conv(x)))
        self.kept = x
        return self.fc(x.relu().flatten(1))


def test_no_relu_module_is_refused_and_says_what_to_do():
    with pytest.raises(ValueError, match=r"Functional has none\. Use nn\.ReLU modules in place of F\.relu"):
        fit(Functional(), [QCFSActivations()])


def test_functional_relus_are_named_with_their_lines():
    model = Functional(nn.ReLU())
    with pytest.warns(
        UserWarning, match=r"stay as they are: at .*py:\d+ \(x = F.relu.*py:\d+ \(return self.fc\(x.relu"
    ):
        QCFSActivations().swap(model)
    assert model.kept is None  # tracing left nothing behind
    with pytest.raises(ValueError, match=r"has none.* at .*py:\d+ \(x = F.relu"):
        QCFSActivations().swap(Functional())


def test_what_cannot_be_traced_is_not_warned_of():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, x):
            return F.relu(x) if x.sum() > 0 else self.relu(x)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        QCFSActivations().swap(Branching())


def test_a_start_that_is_never_reached_is_warned_of():
    with pytest.warns(UserWarning, match="start_epoch=2 is not reached with max_epochs=2"):
        fit(Module(net(torch.float32)), [QCFSActivations(start_epoch=2)], max_epochs=2)


def test_too_few_batches_are_warned_of():
    with pytest.warns(UserWarning, match="not started to quantize: training ended after 4 of calibration_batches=10"):
        fit(Module(net(torch.float32)), [QCFSActivations()])


def test_a_share_needs_a_number_of_epochs():
    with pytest.raises(MisconfigurationException, match=r"start_epoch=0\.5 is a share of max_epochs"):
        fit(Module(net(torch.float32)), [QCFSActivations(start_epoch=0.5)], max_epochs=-1, max_steps=3)


def test_a_threshold_below_zero_is_an_error():
    class Falling(Module):
        def on_train_batch_end(self, *_):
            if self.net.relu.active:
                self.net.relu.threshold.data.fill_(-0.25)

    with pytest.raises(MisconfigurationException, match=r"'net\.relu'.*positive.*-0\.25"):
        fit(Falling(net(torch.float32)), [QCFSActivations(calibration_batches=2)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(levels=0), "`levels`.*0"),
        (dict(start_epoch=-1), "`start_epoch`.*-1"),
        (dict(start_epoch=1.0), r"`start_epoch`.*1\.0"),
        (dict(percent=0.0), "`percent`.*0.0"),
        (dict(calibration_batches=0), "`calibration_batches`.*0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        QCFSActivations(**arguments)


class Recording(Module):
    """Remembers the percentiles of this process."""

    def on_fit_start(self):
        self.seen = []
        self.net.features[1].register_forward_hook(
            lambda module, args, y: None if module.active else self.seen.append(percentile_by_hand(y))
        )


def _worker(rank, port, folder):
    module = Recording(net())
    options = dict(devices=2, strategy=two_processes(rank, port), max_epochs=2)
    at_switch = []

    class AtSwitch(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if pl_module.net.relu.active and not at_switch:
                at_switch.extend(
                    layer.threshold.detach().clone() for layer in (module.net.features[1], module.net.relu)
                )

    fit(module, [QCFSActivations(4, calibration_batches=2), AtSwitch()], torch.float64, **options)
    torch.save({"seen": module.seen, "at_switch": at_switch, "end": module.state_dict()}, f"{folder}/{rank}.pt")
    leave()


@pytest.mark.slow
def test_two_processes_start_from_the_mean_of_what_both_observed(tmp_path):
    torch.multiprocessing.spawn(_worker, (free_port(), tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["at_switch"] == second["at_switch"]
    assert first["seen"] != second["seen"]
    assert len(first["seen"]) == 2
    a, b = ((x + y) / 2 for x, y in zip(first["seen"], second["seen"], strict=True))
    assert float(first["at_switch"][0]) == pytest.approx(float(0.9 * a + 0.1 * b), rel=1e-12)
    for name, value in first["end"].items():
        assert torch.equal(value, second["end"][name]), name


def test_hooks_of_a_crash_leave_nothing_that_hinders_the_next_run():
    class Crash(Module):
        def training_step(self, batch, batch_idx):
            if self.trainer.global_step == 2:
                raise KeyError("boom")
            return super().training_step(batch, batch_idx)

    callback = QCFSActivations(calibration_batches=2)
    with contextlib.suppress(KeyError):
        fit(Crash(net(torch.float32)), [callback])
    module = Module(net(torch.float32))
    fit(module, [callback])
    assert module.net.relu.active
