"""Distillation adds to any loop of training what is written by hand here."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from snnreg_plugins import Distillation
from tests.callbacks.reference import fit
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
        return {"features": z * 2, "logits": z, "name": "a"}


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
    "two forwards": dict(loop=TwoForwards),
    "changed in place": dict(loop=InPlace),
    "attacks": dict(loop=Attacks),
    "manual": dict(loop=Manual),
    "two losses": dict(loop=TwoLosses, options=dict(student="net")),
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
