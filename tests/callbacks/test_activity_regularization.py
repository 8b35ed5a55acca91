"""The gradient of the callback's penalty is that of the same penalty written by hand, in every training mode."""

from __future__ import annotations

import contextlib
import copy
from typing import get_args, get_type_hints

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.checkpoint import checkpoint

from snnreg_plugins import ActivityRegularization
from snnreg_plugins.functional.penalties import PENALTIES
from tests.callbacks.reference import FAN_OUT, Module, fit, free_port, leave, loader, parameters, start, two_processes

STRENGTH = 0.5

ROWS = {
    "plain": {},
    "in-place ReLU": dict(net=dict(inplace=True)),
    "functional ReLU": dict(net=dict(functional=True)),
    "reused layer": dict(net=dict(shared=True)),
    "Adam": dict(module=dict(optimizer="adam"), tolerance=1e-7),
    "gradient clipping": dict(trainer=dict(gradient_clip_val=0.1)),
    "accumulate 2": dict(trainer=dict(accumulate_grad_batches=2)),
    "accumulate 3": dict(trainer=dict(accumulate_grad_batches=3)),
    "manual optimization": dict(module=dict(manual=True)),
    "bf16-mixed": dict(trainer=dict(precision="bf16-mixed"), dtype=torch.float32, tolerance=1e-6),
    "bf16-mixed, accumulate 2": dict(
        trainer=dict(precision="bf16-mixed", accumulate_grad_batches=2), dtype=torch.float32, tolerance=1e-6
    ),
    "fp16 scaler": dict(scaler=True, dtype=torch.float32, tolerance=1e-6),
    "fp16 scaler, accumulate 2": dict(
        scaler=True, trainer=dict(accumulate_grad_batches=2), dtype=torch.float32, tolerance=1e-6
    ),
    "autograd.grad in training_step": dict(module=dict(probe_grad=True)),
    "checkpointing": dict(net=dict(checkpointing="non-reentrant"), reference_net={}),
    "reentrant checkpointing": dict(net=dict(checkpointing="reentrant"), reference_net={}),
    "reentrant checkpointing, accumulate 2": dict(
        net=dict(checkpointing="reentrant"), reference_net={}, trainer=dict(accumulate_grad_batches=2)
    ),
    "LBFGS with checkpointing": dict(
        net=dict(checkpointing="reentrant"), reference_net={}, module=dict(optimizer="lbfgs"), tolerance=1e-6
    ),
    "compiled": dict(compile=dict(backend="aot_eager", fullgraph=True)),
    "compiled, accumulate 2": dict(
        compile=dict(backend="eager", fullgraph=True), trainer=dict(accumulate_grad_batches=2)
    ),
    "compiled, fp16 scaler": dict(
        compile=dict(backend="eager", fullgraph=True), scaler=True, dtype=torch.float32, tolerance=1e-5
    ),
    "LBFGS": dict(module=dict(optimizer="lbfgs"), tolerance=1e-6),
}


def run(row, weighting, by_hand, strength=STRENGTH):
    dtype = row.get("dtype", torch.float64)
    net = start(row.get("reference_net", row.get("net", {})) if by_hand else row.get("net", {}), dtype)
    if "compile" in row and not by_hand:
        net.compile(**row["compile"])
    trainer = dict(row.get("trainer", {}))
    if row.get("scaler"):
        trainer["plugins"] = [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))]
    if by_hand:
        module, callbacks = Module(net, strength, weighting, **row.get("module", {})), []
    else:
        module = Module(net, **row.get("module", {}))
        callbacks = [ActivityRegularization("l1", strength, weighting)]
    return fit(module, callbacks, dtype, **trainer)[0]


# Compiling takes seconds, and how positions weigh is decided before it.
BOTH = [
    pytest.param(row, weighting, marks=[pytest.mark.slow] * (row.startswith("compiled") and weighting == "fan_out"))
    for row in ROWS
    for weighting in ("uniform", "fan_out")
]


@pytest.mark.parametrize(("row", "weighting"), BOTH)
def test_gradient_equals_the_penalty_by_hand(row, weighting):
    row = ROWS[row]
    expected = run(row, weighting, by_hand=True)
    without = run(row, weighting, by_hand=True, strength=0.0)
    actual = run(row, weighting, by_hand=False)
    print((actual - expected).abs().max(), (without - expected).abs().max())
    assert (without - expected).abs().max() > 1e-3  # the penalty matters
    torch.testing.assert_close(actual, expected, rtol=0, atol=row.get("tolerance", 1e-12))


class Doubling(Module):
    """Sends more backward than the loss that Lightning knows of."""

    def backward(self, loss):
        (2 * loss).backward()


@pytest.mark.parametrize("options", [{}, {"manual": True}], ids=["automatic", "manual"])
def test_a_backward_of_the_users_own_multiplies_the_penalty_too(options):
    expected, _ = fit(Doubling(start({}, torch.float64), STRENGTH, **options), dtype=torch.float64)
    actual, _ = fit(
        Doubling(start({}, torch.float64), **options), [ActivityRegularization("l1", STRENGTH)], torch.float64
    )
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


class Weighing(Module):
    """Gives manual_backward() a gradient: of the loss, or of a loss for each sample."""

    def __init__(self, each, strength=0.0):
        super().__init__(start({}, torch.float64), strength, manual=True)
        self.each = each

    def training_step(self, batch, batch_idx):
        loss, optimizer = self.loss(batch), self.optimizers()
        loss = loss.expand(3) if self.each else loss
        optimizer.zero_grad()
        self.manual_backward(loss, gradient=torch.full_like(loss, 0.25))
        optimizer.step()


@pytest.mark.parametrize("each", [False, True], ids=["one loss", "a loss for each sample"])
def test_the_gradient_of_a_manual_backward_multiplies_the_penalty_too(each):
    expected, _ = fit(Weighing(each, STRENGTH), dtype=torch.float64)
    actual, _ = fit(Weighing(each), [ActivityRegularization("l1", STRENGTH)], torch.float64)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


class Mirrored(torch.nn.Module):
    """Goes back to the size of the input by the ``output_size`` of a call, or the padding of the layer."""

    def __init__(self, by_padding):
        super().__init__()
        torch.manual_seed(0)
        self.down, self.up = torch.nn.Conv2d(1, 2, 3, 2, 1), torch.nn.ConvTranspose2d(2, 3, 3, 2, 1)
        self.fc, self.by_padding = torch.nn.Linear(192, 3), by_padding
        if by_padding:
            self.up.output_padding = (1, 1)

    def forward(self, x, activities=None):
        h = self.down(x).relu()
        h = self.up(h) if self.by_padding else self.up(h, output_size=x.shape[2:])
        return self.fc(h.relu().flatten(1))


def test_fan_out_of_a_transposed_convolution_with_an_output_size():
    by_padding, by_size = (
        fit(Module(Mirrored(by_padding).double()), [ActivityRegularization("l1", 1.0, "fan_out")], torch.float64)[0]
        for by_padding in (True, False)
    )
    torch.testing.assert_close(by_size, by_padding, rtol=0, atol=1e-12)


PENALTY_FORMULAS = {
    "l1": lambda a: a.abs().mean(),
    "l2": lambda a: (a**2).mean(),
    "hoyer": lambda a: sum(s.abs().sum() / (s**2).sum() ** 0.5 for s in a) / len(a),
    "hoyer_square": lambda a: sum(s.abs().sum() ** 2 / (s**2).sum() for s in a) / len(a),
    "transformed_l1": lambda a: (2 * a.abs() / (1 + a.abs())).mean(),
}


class FormulaModule(Module):
    """Adds any penalty on some layers by hand."""

    def __init__(self, net, strengths, formula):
        super().__init__(net)
        self.strengths, self.formula = strengths, formula

    def training_step(self, batch, batch_idx):
        x, y = batch
        activities = []
        loss = torch.nn.functional.cross_entropy(self.net(x, activities), y)
        factor = self.factor(self.current_epoch)
        for name, activity in activities:
            loss = loss + factor * self.strengths.get(name, 0.0) * self.formula(name, activity)
        return loss

    def factor(self, epoch):
        return 1.0


ALL = ("conv2", "fc1", "fc2", "fc3")


@pytest.mark.parametrize("penalty", PENALTY_FORMULAS)
def test_every_penalty_equals_its_formula(penalty):
    formula = PENALTY_FORMULAS[penalty]
    net = start({}, torch.float64)
    by_hand = FormulaModule(copy.deepcopy(net), dict.fromkeys(ALL, 0.01), lambda _, a: formula(a))
    expected, _ = fit(by_hand, dtype=torch.float64)
    actual, _ = fit(Module(net), [ActivityRegularization(penalty, 0.01)], torch.float64)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_callable_penalty_layers_and_strengths():
    net = start({}, torch.float64)
    strengths = {"fc1": 0.3, "conv2": 0.2, "fc3": 0.1}
    by_hand = FormulaModule(copy.deepcopy(net), strengths, lambda _, a: (a**3).mean())
    expected, _ = fit(by_hand, dtype=torch.float64)
    callback = ActivityRegularization(
        lambda a, weight: (a**3).mean(), {"net.fc1": 0.3, "Conv2d": 0.2, "net.fc3": 0.1, "*fc1": 0.9}
    )
    actual, _ = fit(Module(net), [callback], torch.float64)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_layers_choose_by_name_and_type():
    net = start({}, torch.float64)
    by_hand = FormulaModule(copy.deepcopy(net), {"fc2": 0.1, "conv2": 0.1}, lambda _, a: a.mean())
    expected, _ = fit(by_hand, dtype=torch.float64)
    actual, _ = fit(Module(net), [ActivityRegularization("l1", 0.1, layers=["Conv2d", "*.fc2"])], torch.float64)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_start_and_warm_up():
    class WarmUp(FormulaModule):
        def factor(self, epoch):
            return {0: 0.0, 1: 1 / 3, 2: 2 / 3}.get(epoch, 1.0)

    net = start({}, torch.float64)
    by_hand = WarmUp(copy.deepcopy(net), dict.fromkeys(ALL, 0.2), lambda _, a: a.mean())
    expected, _ = fit(by_hand, dtype=torch.float64, max_epochs=5)
    callback = ActivityRegularization("l1", 0.2, start_epoch=1, warmup_epochs=2)
    actual, _ = fit(Module(net), [callback], torch.float64, max_epochs=5)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def percentile_by_hand(a):
    """The smallest value that at least 99.9 % of the values do not exceed."""
    ordered = a.detach().flatten().sort().values
    return ordered[-(-999 * len(ordered) // 1000) - 1]


class ExpectedRateModule(Module):
    """Keeps its own running percentiles."""

    def __init__(self, net, strength, weighting):
        super().__init__(net)
        self.strength, self.weighting, self.levels = strength, weighting, {}

    def training_step(self, batch, batch_idx):
        x, y = batch
        activities = []
        loss = torch.nn.functional.cross_entropy(self.net(x, activities), y)
        penalty, used, synapses = 0.0, 0.0, 0
        for name, a in activities:
            level = percentile_by_hand(a)
            old = self.levels.get(name, level)
            rate = torch.where(a < old, a / old, 1.0)
            penalty = penalty + rate.mean()
            fan_out = FAN_OUT[name](self.net)
            used, synapses = used + (rate * fan_out).sum() / len(a), synapses + int(fan_out.sum())
            self.levels[name] = 0.9 * old + 0.1 * level
        return loss + self.strength * (penalty if self.weighting == "uniform" else used / synapses)


@pytest.mark.parametrize("weighting", ["uniform", "fan_out"])
def test_expected_rate_follows_the_running_percentile(weighting):
    net = start({}, torch.float64)
    by_hand = ExpectedRateModule(copy.deepcopy(net), 0.2, weighting)
    expected, _ = fit(by_hand, dtype=torch.float64, max_epochs=2)
    callback = ActivityRegularization("expected_rate", 0.2, weighting)
    actual, _ = fit(Module(net), [callback], torch.float64, max_epochs=2)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    assert {name: float(level) for name, level in callback.state_dict()["thresholds"].items()} == pytest.approx(
        {f"net.{name}": float(level) for name, level in by_hand.levels.items()}, rel=1e-12
    )


@pytest.mark.parametrize("penalty", ["l1", "expected_rate"])
def test_resumed_training_continues_as_if_never_stopped(penalty, tmp_path):
    def callbacks():
        return [ActivityRegularization(penalty, 0.3, "fan_out", start_epoch=1, warmup_epochs=2)]

    straight, _ = fit(Module(start({}), optimizer="adam"), callbacks(), max_epochs=4)
    _, trainer = fit(Module(start({}), optimizer="adam"), callbacks(), max_epochs=2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    module = Module(start({}), optimizer="adam")
    resumed, _ = fit(module, callbacks(), max_epochs=4, ckpt_path=tmp_path / "half.ckpt")
    assert torch.equal(resumed, straight)


class SaveWithinEpoch(Callback):
    def __init__(self, file):
        self.file = file

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 6:  # an epoch has four steps
            trainer.save_checkpoint(self.file)


def test_training_resumed_within_an_epoch_keeps_the_penalty(tmp_path):
    def run(by_hand, *callbacks, **options):
        module = Module(start({}, torch.float64), STRENGTH if by_hand else 0.0)
        ours = [] if by_hand else [ActivityRegularization("l1", STRENGTH)]
        return fit(module, [*ours, *callbacks], torch.float64, max_epochs=2, **options)[0]

    for by_hand in (True, False):
        run(by_hand, SaveWithinEpoch(tmp_path / f"{by_hand}.ckpt"))
    at_save = torch.load(tmp_path / "True.ckpt", weights_only=True)["state_dict"]["net.conv1.weight"]
    expected, actual = (run(by_hand, ckpt_path=tmp_path / f"{by_hand}.ckpt") for by_hand in (True, False))
    assert not torch.equal(expected[: at_save.numel()], at_save.flatten())  # there were steps after it
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


class Still(Module):
    """Learns nothing, so that every batch sees the same weights."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize(
    ("checkpointing", "accumulated"), [(None, 1), (None, 2), ("non-reentrant", 1), ("reentrant", 1)]
)
def test_logs_the_penalty_of_each_layer_in_total_and_as_a_share_of_the_loss(checkpointing, accumulated):
    strengths = {"conv2": 2.0, "fc1": 3.0, "fc2": 5.0}
    means, loss = dict.fromkeys(strengths, 0.0), 0.0
    for x, y in list(loader(torch.float64))[:2]:
        activities = []
        scores = start(dict(shared=True), torch.float64)(x, activities)
        loss += float(torch.nn.functional.cross_entropy(scores.detach(), y)) / 2
        for name in strengths:  # fc2 is called twice
            calls = [float(a.detach().mean()) for called, a in activities if called == name]
            means[name] += sum(calls) / len(calls) / 2
    callback = ActivityRegularization("l1", {f"net.{name}": s for name, s in strengths.items()}, warmup_epochs=1)
    module = Still(start(dict(shared=True, checkpointing=checkpointing), torch.float64))
    more = dict(limit_train_batches=2, accumulate_grad_batches=accumulated)
    _, trainer = fit(module, [callback], torch.float64, **more)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    total = sum(strengths[name] * mean for name, mean in means.items()) / 2  # of the warm-up
    expected = {f"penalty/net.{name}": mean for name, mean in means.items()}
    expected |= {"penalty/total": total, "penalty/share": total / (total + loss)}
    assert {name: value for name, value in logged.items() if name.startswith("penalty")} == pytest.approx(expected)


class Differentiated(Module):
    """Differentiates the loss again, when its backward pass is over."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = self.loss(batch)
        self.manual_backward(loss, retain_graph=True)
        (self.again,) = torch.autograd.grad(loss, self.net.conv1.weight)
        optimizer.step()


def test_what_is_differentiated_again_carries_no_penalty():
    expected = Differentiated(start({}, torch.float64), manual=True)
    actual = Differentiated(start({}, torch.float64), manual=True)
    fit(expected, dtype=torch.float64, limit_train_batches=1)
    fit(actual, [ActivityRegularization("l1", STRENGTH)], torch.float64, limit_train_batches=1)
    torch.testing.assert_close(actual.again, expected.again, rtol=0, atol=1e-12)
    assert not torch.equal(parameters(actual), parameters(expected))


class Head(torch.nn.Module):
    """A region under reentrant checkpointing whose first layer reads the region's input, or a view of it."""

    def __init__(self, view, checkpointing):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 2, 3, stride=2)
        self.head = torch.nn.Sequential(torch.nn.Flatten() if view else torch.nn.Conv2d(2, 2, 3), torch.nn.Flatten())
        self.head.append(torch.nn.Linear(18 if view else 2, 3))
        self.checkpointing = checkpointing

    def forward(self, x, activities):
        h = torch.relu(self.conv(x))
        activities.append(("read", h))
        return checkpoint(self.head, h, use_reentrant=True) if self.checkpointing else self.head(h)


@pytest.mark.parametrize("penalty", ["l1", "expected_rate"])
@pytest.mark.parametrize("view", [False, True])
def test_what_a_reentrant_checkpoint_reads_first_is_regularized(view, penalty):
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        module = Module(Head(view, checkpointing).double())
        results.append(fit(module, [ActivityRegularization(penalty, 0.5, layers="net.head.*")], torch.float64)[0])
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-12)
    torch.manual_seed(0)
    without, _ = fit(Module(Head(view, False).double()), dtype=torch.float64)
    assert (without - results[0]).abs().max() > 1e-3


class Crash(Module):
    """Ends its training within the second step."""

    def training_step(self, batch, batch_idx):
        if self.trainer.global_step:
            raise KeyError("boom")
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("first", [Module, Crash])
def test_a_second_fit_starts_anew(first):
    def fitted(*modules):
        callback = ActivityRegularization("expected_rate", 0.3, "fan_out")
        for module in modules:
            with contextlib.suppress(KeyError):
                result, trainer = fit(module, [callback])
        return result, trainer.callback_metrics, callback.state_dict()["thresholds"]

    other = start(dict(shared=True))
    with torch.no_grad():
        other.conv1.weight.mul_(9)
        other.fc3 = torch.nn.Linear(12, 7)  # another fan-out under the same name
    expected, logged, thresholds = fitted(Module(start({})))
    again, logged_again, thresholds_again = fitted(first(other), Module(start({})))
    assert torch.equal(again, expected)
    assert logged_again == logged
    assert thresholds_again == thresholds


def test_hooks_come_off_after_training_and_after_a_crash():
    for module in (Module(start({})), Crash(start({}))):
        with contextlib.suppress(KeyError):
            fit(module, [ActivityRegularization()])
        assert not any(layer._forward_pre_hooks or layer._forward_hooks for layer in module.modules())


def test_two_callbacks_add_up():
    net = start({}, torch.float64)
    by_hand = FormulaModule(copy.deepcopy(net), dict.fromkeys(ALL, 0.1), lambda _, a: a.mean() + 2 * (a**2).mean())
    expected, _ = fit(by_hand, dtype=torch.float64)
    callbacks = [ActivityRegularization("l1", 0.1), ActivityRegularization("l2", 0.2)]
    actual, _ = fit(Module(net), callbacks, torch.float64)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_validation_inside_training_is_left_alone():
    class Validating(Module):
        def training_step(self, batch, batch_idx):
            self.net.eval()
            with torch.no_grad():
                self.net(batch[0] * 100)
            self.net.train()
            return super().training_step(batch, batch_idx)

    net = start({}, torch.float64)
    expected, _ = fit(Module(copy.deepcopy(net), 0.5), dtype=torch.float64)
    actual, _ = fit(Validating(net), [ActivityRegularization("l1", 0.5)], torch.float64)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_layers_in_eval_mode_are_regularized_too():
    net = start({}, torch.float64)
    expected, _ = fit(Module(copy.deepcopy(net), 0.5), dtype=torch.float64)

    class Frozen(Module):
        def on_train_batch_start(self, batch, batch_idx):
            self.net.eval()

    actual, _ = fit(Frozen(net), [ActivityRegularization("l1", 0.5)], torch.float64)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


class DirectBackward(Module):
    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.loss(batch).backward()
        optimizer.step()


class StrongWolfe(Module):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), line_search_fn="strong_wolfe")


class Functional(Module):
    """Its layers are never called as modules."""

    def training_step(self, batch, batch_idx):
        x = batch[0].flatten(1)
        return torch.nn.functional.linear(x, self.net.fc1.weight, self.net.fc1.bias).sum()


@pytest.mark.parametrize(
    ("module", "callback", "error", "message"),
    [
        (lambda: DirectBackward(start({}), manual=True), {}, MisconfigurationException, "manual_backward"),
        (lambda: StrongWolfe(start({})), {}, MisconfigurationException, "strong_wolfe"),
        (lambda: Functional(start({})), {}, MisconfigurationException, "no activity in the first batch"),
        (lambda: Module(start({})), dict(layers="features.*"), ValueError, "'features.\\*' matches none"),
        (lambda: Module(start({})), dict(strength={"conv9": 1.0}), ValueError, "'conv9' matches none"),
    ],
)
def test_what_cannot_be_served_is_refused(module, callback, error, message):
    with pytest.raises(error, match=message):
        fit(module(), [ActivityRegularization(**callback)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(penalty="l3"), "`penalty`.*'l3'"),
        (dict(strength=-1.0), "`strength`.*-1.0"),
        (dict(strength=float("nan")), "`strength`.*nan"),
        (dict(strength="strong"), "`strength`.*'strong'"),
        (dict(strength={"fc1": -1.0}), "`strength`"),
        (dict(weighting="sops"), "`weighting`.*'sops'"),
        (dict(start_epoch=-1), "`start_epoch`.*-1"),
        (dict(warmup_epochs=-1), "`warmup_epochs`.*-1"),
        (dict(percent=0.0), "`percent`.*0.0"),
        (dict(momentum=1.0), "`momentum`.*1.0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ActivityRegularization(**arguments)


def test_the_type_of_a_penalty_names_them_all():
    names, _ = get_args(get_type_hints(ActivityRegularization.__init__)["penalty"])
    assert get_args(names) == (*PENALTIES, "rate_bounds", "energy")  # which take more than a call


DDP_ROWS = {
    "ddp": dict(strategy="ddp_spawn"),
    "accumulate 2": dict(strategy="ddp_spawn", trainer=dict(accumulate_grad_batches=2)),
    "find_unused_parameters": dict(strategy="ddp_find_unused_parameters_true"),
    "static graph, reentrant checkpointing": dict(
        strategy="static", net=dict(checkpointing="reentrant"), reference_net={}
    ),
}


def _ddp_worker(rank, port, row, by_hand, weighting, file):
    options = dict(static_graph=True) if row["strategy"] == "static" else {}
    options["find_unused_parameters"] = "unused" in row["strategy"]
    net = start(row.get("reference_net", row.get("net", {})) if by_hand else row.get("net", {}), torch.float64)
    module = Module(net, STRENGTH if by_hand else 0.0, weighting)
    callbacks = [] if by_hand else [ActivityRegularization("l1", STRENGTH, weighting)]
    trainer = dict(devices=2, strategy=two_processes(rank, port, **options)) | row.get("trainer", {})
    result, _ = fit(module, callbacks, torch.float64, **trainer)
    if rank == 0:
        torch.save(result, file)
    leave()


@pytest.mark.slow
@pytest.mark.parametrize("row", DDP_ROWS)
def test_gradient_equals_the_penalty_by_hand_in_two_processes(row, tmp_path):
    results = []
    for by_hand in (True, False):
        file = tmp_path / f"{by_hand}.pt"
        torch.multiprocessing.spawn(
            _ddp_worker, (free_port(), DDP_ROWS[row], by_hand, "fan_out", file), nprocs=2, join=True
        )
        results.append(torch.load(file, weights_only=True))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-12)


class Recording(Module):
    def training_step(self, batch, batch_idx):
        self.seen = []
        self.net(batch[0], self.seen)
        return super().training_step(batch, batch_idx)


def _threshold_worker(rank, port, folder):
    callback = ActivityRegularization("expected_rate", 0.1, "fan_out")
    module = Recording(start({}, torch.float64))
    fit(module, [callback], torch.float64, devices=2, strategy=two_processes(rank, port), limit_train_batches=1)
    levels = {f"net.{name}": percentile_by_hand(a) for name, a in module.seen}
    torch.save({"levels": levels, "thresholds": callback.state_dict()["thresholds"]}, f"{folder}/{rank}.pt")
    leave()


@pytest.mark.slow
def test_thresholds_are_the_mean_over_all_processes(tmp_path):
    torch.multiprocessing.spawn(_threshold_worker, (free_port(), tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["thresholds"] == second["thresholds"]
    assert first["levels"] != second["levels"]
    for name, level in first["thresholds"].items():
        assert float(level) == pytest.approx(float(first["levels"][name] + second["levels"][name]) / 2, rel=1e-12)
