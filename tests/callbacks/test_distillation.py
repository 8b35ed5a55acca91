"""Distillation adds to any loop of training what is written by hand here."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from snnreg_plugins import ActivityRegularization, Distillation, SynapticOperations
from tests.callbacks.reference import fit, free_port, leave, loader, two_processes
from tests.helpers import kl_by_hand

ALPHA, TAU = 0.6, 2.5


def network(sizes=(64, 10, 3), seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    layers = [nn.Flatten()]
    for size, following in pairwise(sizes):
        layers += [nn.Linear(size, following), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).to(dtype)


def teacher(dtype=torch.float64):
    """Another network, sure of itself, with a dropout that only training would draw."""
    net = network((64, 14, 3), seed=5, dtype=dtype)
    with torch.no_grad():
        net[-1].weight.mul_(4)
    return nn.Sequential(net[0], nn.Dropout(0.5), *net[1:]).train()


class Loop(LightningModule):
    """The user's module. With a teacher in ``by_hand`` it distils by hand, in :meth:`back`."""

    manual = False
    checkpointing = None

    def __init__(self, by_hand=None, dtype=torch.float64, warm=None, optimizer="sgd", net=None):
        super().__init__()
        self.net = network(dtype=dtype) if net is None else net
        self.other = None
        self.by_hand = (by_hand.eval(),) if by_hand is not None else None
        self.optimizer, self.warm = optimizer, warm or (lambda epoch: 1.0)
        self.automatic_optimization = not self.manual

    def forward(self, x):
        return self.net(x)

    def lesson(self, x, z):
        with torch.no_grad():
            wanted = self.by_hand[0](x)
        return kl_by_hand(z, wanted, TAU)

    def mixed(self, loss, calls):
        """The loss that depends on outputs of the student: those of calls (x, z) that no loss had before."""
        if self.by_hand is None:
            return loss
        w = self.warm(self.current_epoch)
        lessons = sum(len(x) * self.lesson(x, z) for x, z in calls) / max(1, sum(len(x) for x, _ in calls))
        return (1 - w * ALPHA) * loss + w * ALPHA * lessons

    def training_step(self, batch, batch_idx):
        x, y = batch
        z = self(x)
        return self.mixed(F.cross_entropy(z, y), [(x, z)])

    def configure_optimizers(self):
        if self.optimizer == "lbfgs":
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)
        return torch.optim.SGD(self.parameters(), lr=0.1)


class CallsChild(Loop):
    def training_step(self, batch, batch_idx):
        x, y = batch
        z = self.net(x)
        return {"loss": self.mixed(F.cross_entropy(z, y), [(x, z)]), "more": 1}


class Doubles(Loop):
    """Sends more backward than the loss that Lightning knows of."""

    def backward(self, loss):
        (2 * loss).backward()


class TwoForwards(Loop):
    """Of unequal batches, in one loss."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        first, second = self(x[:3]), self(2 * x[3:])
        loss = F.cross_entropy(first, y[:3]) + F.cross_entropy(second, y[3:])
        return self.mixed(loss, [(x[:3], first), (2 * x[3:], second)])


class InPlace(Loop):
    """Changes the logits in place."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        z = self(x)
        raw = z.clone() if self.by_hand else z
        z -= z.detach().amax(1, keepdim=True)
        return self.mixed(F.cross_entropy(z, y), [(x, raw)])


class Attacks(Loop):
    """Attack steps by autograd.grad, of which only the last forward pass is in the loss; its own use of no_grad."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        for _ in range(2):
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(self(x), y), x)
            x = x + 0.05 * gradient.sign()
        with torch.no_grad():
            self(x * 3)
        x = x.detach()
        z = self(x)
        return self.mixed(F.cross_entropy(z, y), [(x, z)])


class Manual(Loop):
    manual = True

    def training_step(self, batch, batch_idx):
        x, y = batch
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.step(x, y)
        optimizer.step()

    def step(self, x, y):
        z = self(x)
        loss = F.cross_entropy(z, y)
        self.manual_backward(self.mixed(loss, [(x, z)]))
        self.log("loss", loss)


class TwoLosses(Manual):
    """Two losses on the same logits, then one that has nothing to do with them."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.other = network(seed=3)

    def step(self, x, y):
        z = self(x)
        self.manual_backward(self.mixed(F.cross_entropy(z, y), [(x, z)]), retain_graph=True)
        self.manual_backward(self.mixed(z.square().mean(), []))
        self.manual_backward(self.other(x).square().mean())


class OneLossTwice(Manual):
    def step(self, x, y):
        z = self(x)
        loss = F.cross_entropy(z, y)
        self.manual_backward(self.mixed(loss, [(x, z)]), retain_graph=True)
        self.manual_backward(self.mixed(loss, []))


class AllFirst(Manual):
    """Two forward passes, then the backward passes in the other order."""

    def step(self, x, y):
        parts = [(x[:3], y[:3]), (x[3:], y[3:])]
        outputs = [self(part) for part, _ in parts]
        for (part, labels), z in reversed(list(zip(parts, outputs, strict=True))):
            self.manual_backward(self.mixed(F.cross_entropy(z, labels), [(part, z)]))


class Checkpointed(nn.Module):
    def __init__(self, net, where):
        super().__init__()
        self.net, self.where = net, where

    def forward(self, x):
        if self.where == "reentrant, inside":
            h = checkpoint(self.net[:2], x.detach().requires_grad_(), use_reentrant=True)
            return self.net[2:](h)
        return checkpoint(self.net[:2], x, use_reentrant=False) @ self.net[3].weight.T + self.net[3].bias


class WithinCheckpoint(Loop):
    """The student's call itself is within a region that is computed again, with what comes behind it."""

    def training_step(self, batch, batch_idx):
        x, y = batch

        def run(x):
            z = self.net(x)
            return z.tanh() + z, z

        h, z = checkpoint(run, x, use_reentrant=False)
        return self.mixed(F.cross_entropy(h, y), [(x, z)])


class DictOutput(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        z = self.net(images)
        return {"logits": z, "features": z * 2, "name": "a"}


class UsesDict(Loop):
    def training_step(self, batch, batch_idx):
        x, y = batch
        outputs = self.net(images=x)
        assert outputs["name"] == "a"
        z = outputs["logits"]
        return self.mixed(F.cross_entropy(outputs["features"], y), [(x, z)])


class ReadsDict(Distillation):
    def readout(self, outputs):
        return outputs["logits"] if isinstance(outputs, dict) else outputs

    def teach(self, teacher, images):
        return teacher(images)


ROWS = {
    "forward": dict(),
    "child": dict(loop=CallsChild),
    "child by name": dict(loop=CallsChild, options=dict(student="net")),
    "backward of one's own": dict(loop=Doubles),
    "two forwards": dict(loop=TwoForwards),
    "changed in place": dict(loop=InPlace),
    "attacks": dict(loop=Attacks),
    "manual": dict(loop=Manual),
    "two losses": dict(loop=TwoLosses, options=dict(student="net")),
    "one loss twice": dict(loop=OneLossTwice),
    "all forwards first": dict(loop=AllFirst),
    "outputs in a dict": dict(loop=UsesDict, callback=ReadsDict, wrap=DictOutput, options=dict(student="net")),
    "accumulate 2": dict(trainer=dict(accumulate_grad_batches=2)),
    "accumulate 3": dict(trainer=dict(accumulate_grad_batches=3)),
    "clipped": dict(trainer=dict(gradient_clip_val=0.1)),
    "warm-up": dict(
        options=dict(start_epoch=1, warmup_epochs=2),
        warm=lambda epoch: (0, 1 / 3, 2 / 3, 1)[epoch],
        trainer=dict(max_epochs=4),
    ),
    "checkpointing inside": dict(wrap=lambda net: Checkpointed(net, "inside")),
    "reentrant checkpointing inside": dict(wrap=lambda net: Checkpointed(net, "reentrant, inside")),
    "checkpointing around": dict(loop=WithinCheckpoint, options=dict(student="net")),
    "LBFGS": dict(lbfgs=True, tolerance=1e-6),
    "bf16-mixed": dict(trainer=dict(precision="bf16-mixed"), dtype=torch.float32, tolerance=1e-6),
    "bf16-true": dict(trainer=dict(precision="bf16-true"), dtype=torch.float32, tolerance=1e-2),
    "fp16 scaler": dict(scaler=True, dtype=torch.float32, tolerance=1e-6),
    "fp16 scaler, accumulate 2": dict(
        scaler=True, trainer=dict(accumulate_grad_batches=2), dtype=torch.float32, tolerance=1e-6
    ),
    "compiled": dict(compile=dict(backend="eager")),
}


def run(row, by_hand, with_lesson=True):
    dtype = row.get("dtype", torch.float64)
    trainer = dict(row.get("trainer", {}))
    if row.get("scaler"):
        trainer["plugins"] = [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))]
    guide = teacher(dtype)
    half = trainer.get("precision") == "bf16-true"
    loop = row.get("loop", Loop)
    net = row.get("wrap", lambda net: net)(network(dtype=dtype))
    module = loop(
        (guide.bfloat16() if half else guide) if by_hand and with_lesson else None,
        dtype,
        row.get("warm"),
        "lbfgs" if row.get("lbfgs") else "sgd",
        net,
    )
    if "compile" in row and not by_hand:
        net.compile(**row["compile"])
    callbacks = []
    if not by_hand:
        callbacks = [row.get("callback", Distillation)(guide, alpha=ALPHA, temperature=TAU, **row.get("options", {}))]
    return fit(module, callbacks, dtype, **trainer)[0]


@pytest.mark.parametrize("row", ROWS)
def test_gradient_equals_distillation_by_hand(row):
    row = ROWS[row]
    expected = run(row, by_hand=True)
    without = run(row, by_hand=True, with_lesson=False)
    actual = run(row, by_hand=False)
    assert (without - expected).abs().max() > 1e-3  # the lesson matters
    torch.testing.assert_close(actual, expected, rtol=0, atol=row.get("tolerance", 1e-12))


def _ddp_worker(rank, port, loop, by_hand, file):
    callbacks = [] if by_hand else [Distillation(teacher(), alpha=ALPHA, temperature=TAU)]
    options = dict(devices=2, strategy=two_processes(rank, port), accumulate_grad_batches=2)
    result, _ = fit(loop(teacher() if by_hand else None), callbacks, torch.float64, **options)
    if rank == 0:
        torch.save(result, file)
    leave()


@pytest.mark.slow
@pytest.mark.parametrize("loop", [Loop, CallsChild])
def test_gradient_equals_distillation_by_hand_in_two_processes(loop, tmp_path):
    results = []
    for by_hand in (True, False):
        file = tmp_path / f"{by_hand}.pt"
        torch.multiprocessing.spawn(_ddp_worker, (free_port(), loop, by_hand, file), nprocs=2, join=True)
        results.append(torch.load(file, weights_only=True))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("compiled", [False, True])
def test_penalties_are_not_lessened(compiled, order):
    """The penalty is added to the loss itself in compiled regions."""

    class Wide(Loop):
        def forward(self, x):
            return self.net[3](self.net[:3](x))

        def training_step(self, batch, batch_idx):
            x, y = batch
            z = self(x)
            h = self.net[:3](x)
            penalty = 0.5 * h.abs().mean() if self.by_hand else 0.0
            return self.mixed(F.cross_entropy(z, y), [(x, z)]) + penalty

    expected, _ = fit(Wide(teacher()), [], torch.float64)
    module = Loop(net=network())
    if compiled:
        module.net.compile(backend="eager")
    callbacks = [ActivityRegularization("l1", 0.5), Distillation(teacher(), alpha=ALPHA, temperature=TAU)]
    actual, _ = fit(module, callbacks[:: 1 - 2 * order], torch.float64)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_the_teacher_is_asked_once_where_the_student_is_computed_again():
    class Counts(Distillation):
        asked = 0

        def teach(self, teacher, x):
            self.asked += 1
            return teacher(x)

    callback = Counts(teacher(), student="net")
    fit(WithinCheckpoint(), [callback], torch.float64, limit_train_batches=2)
    assert callback.asked == 2


def test_two_teachers():
    guides = [teacher(), network(seed=9)]

    class Both(Loop):
        def training_step(self, batch, batch_idx):
            x, y = batch
            z = self(x)
            with torch.no_grad():
                first, second = guides[0].eval()(x), guides[1](x)
            rest = 0.7 * 0.8 * F.cross_entropy(z, y)
            return rest + 0.3 * kl_by_hand(z, first, 3.0) + 0.2 * (z - second).square().mean()

    expected, _ = fit(Both(), [], torch.float64)
    callbacks = [Distillation(guides[0], alpha=0.3), Distillation(guides[1], loss="l2", alpha=0.2)]
    actual, trainer = fit(Loop(), callbacks, torch.float64)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    assert {"distillation/logits", "distillation_2/logits"} <= set(trainer.callback_metrics)


def test_logged_are_the_parts_and_what_is_added():
    guide, module = network(seed=5), Loop()
    x = next(iter(loader(torch.float64)))[0]
    with torch.no_grad():
        z = module(x)
        lesson = float(kl_by_hand(z, guide(x), TAU))
        apart = float((module.net[:3](x) - guide[:3](x)).square().mean())
    options = dict(layers={"net.2": "2"}, layer_strength=0.1, logit_strength=0.2, warmup_epochs=1)
    callback = Distillation(guide, alpha=ALPHA, temperature=TAU, **options)
    _, trainer = fit(module, [callback], torch.float64, limit_train_batches=1)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    small = float(z.square().mean())
    assert logged == pytest.approx(
        {
            "distillation/logits": lesson,
            "distillation/layers/net.2": apart,
            "distillation/mean_square": small,
            "distillation/total": 0.5 * (ALPHA * lesson + 0.1 * apart + 0.2 * small),
        }
    )


def test_layers_are_matched_before_what_is_done_in_place():
    def inplace(seed):
        return nn.Sequential(*network(seed=seed)[:2], nn.ReLU(inplace=True), network(seed=seed)[3])

    class Matches(Loop):
        def training_step(self, batch, batch_idx):
            x, y = batch
            h = self.net[:2](x)
            apart = (h - network(seed=5)[:2](x).detach()).square().mean()
            return F.cross_entropy(self.net[3](F.relu(h)), y) + apart

    expected, _ = fit(Matches(), [], torch.float64)
    actual, _ = fit(Loop(net=inplace(0)), [Distillation(inplace(5), loss=None, layers={"net.1": "1"})], torch.float64)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_layers_of_a_compiled_network_are_matched():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x):
            return self.net(x * 1.0)

    results = []
    for compiled in (False, True):
        net = Own()
        if compiled:
            net.compile(backend="eager")
        callback = Distillation(network(seed=5), student="net", layers={"net.2": "2"})
        results.append(fit(Loop(net=net), [callback], torch.float64)[0])
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-12)


def test_value_of_the_loss_stays():
    _, trainer = fit(Manual(), [Distillation(teacher())], torch.float64, limit_train_batches=1)
    x, y = next(iter(loader(torch.float64)))
    assert float(trainer.callback_metrics["loss"]) == pytest.approx(float(F.cross_entropy(network()(x), y)))


class Bare(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.weights = nn.ParameterList([net[2].weight, net[4].weight])

    def forward(self, x):
        return F.relu(x.flatten(1) @ self.weights[0].T) @ self.weights[1].T


def test_teacher_is_left_alone_and_nobody_sees_it(tmp_path):
    guide = teacher()
    before = copy.deepcopy(guide.state_dict())
    module = Loop()
    seen = SynapticOperations(module)
    # Its products, which no layer makes, are those that a look at all operations finds.
    bare = Bare(guide)
    fit(module, [Distillation(bare, student="net")], torch.float64, limit_train_batches=1, limit_val_batches=0)
    with_teacher = seen.total("dense_macs")
    seen.close()
    alone = Loop()
    with SynapticOperations(alone) as count:
        fit(alone, [], torch.float64, limit_train_batches=1, limit_val_batches=0)
    assert with_teacher == count.total("dense_macs")
    assert guide.training
    assert all(parameter.requires_grad for parameter in guide.parameters())
    assert all(torch.equal(before[name], value) for name, value in guide.state_dict().items())
    assert not any("14" in str(value.shape) for value in module.state_dict().values())


def test_resumed_training_goes_on_bit_by_bit(tmp_path):
    options = dict(warmup_epochs=3)
    whole, _ = fit(Loop(), [Distillation(teacher(), **options)], torch.float64, max_epochs=4)
    _, trainer = fit(Loop(), [Distillation(teacher(), **options)], torch.float64, max_epochs=2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    assert not any("Distillation" in key for key in torch.load(tmp_path / "half.ckpt", weights_only=True)["callbacks"])
    path = tmp_path / "half.ckpt"
    resumed, _ = fit(Loop(), [Distillation(teacher(), **options)], torch.float64, max_epochs=4, ckpt_path=path)
    assert torch.equal(resumed, whole)


@pytest.mark.parametrize("trained_as", ["module", "network"])
def test_teacher_from_a_checkpoint(trained_as, tmp_path):
    path = tmp_path / "teacher.ckpt"
    if trained_as == "module":
        trainer = fit(Loop(net=teacher()), [], torch.float64, limit_train_batches=0)[1]
        trainer.save_checkpoint(path)
    else:
        torch.save(teacher().state_dict(), path)
    empty = teacher()
    nn.init.zeros_(empty[-1].weight)
    expected, _ = fit(Loop(), [Distillation(teacher())], torch.float64)
    actual, _ = fit(Loop(), [Distillation(empty, checkpoint=str(path))], torch.float64)
    assert torch.equal(actual, expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("other", [Loop, lambda net: torch.jit.trace(net.eval(), torch.rand(1, 1, 8, 8).double())])
def test_teachers_of_other_kinds(other):
    guide = other(net=teacher()) if other is Loop else other(teacher())
    expected, _ = fit(Loop(), [Distillation(teacher())], torch.float64)
    assert torch.equal(fit(Loop(), [Distillation(guide)], torch.float64)[0], expected)


def test_a_callback_serves_several_fits():
    callback = Distillation(teacher(), alpha=ALPHA, temperature=TAU)
    fit(Loop(net=network(seed=7)), [callback], torch.float64)
    actual, _ = fit(Loop(), [callback], torch.float64)
    assert torch.equal(actual, fit(Loop(), [Distillation(teacher(), alpha=ALPHA, temperature=TAU)], torch.float64)[0])


def test_random_teachers_draw_nobody_elses_numbers():
    class Draws(nn.Module):
        def forward(self, x):
            return torch.rand(len(x), 3, dtype=x.dtype)

    class Noisy(Loop):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.drawn.append(torch.rand(1).item())
            return loss

    drawn = []
    for callbacks in ([], [Distillation(Draws())]):
        module = Noisy()
        module.drawn = []
        torch.manual_seed(3)
        fit(module, callbacks, torch.float64)
        drawn.append(module.drawn)
    assert drawn[0] == drawn[1]
