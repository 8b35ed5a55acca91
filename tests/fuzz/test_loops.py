"""Random training loops: the penalty of the callback is that which is added by hand, in any order of passes."""

from __future__ import annotations

import random
from typing import ClassVar

import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from snnreg_plugins import ActivityRegularization
from tests.callbacks.loops import Loop
from tests.callbacks.reference import fit

SEEDS, CHUNKS = 96, 12
STRENGTH = 0.5


class Value:
    """A tensor of 12 features, and what layers read on the way to it."""

    def __init__(self, tensor, reads=()):
        self.tensor, self.reads = tensor, list(reads)

    @property
    def is_trained(self):
        return self.tensor.requires_grad and not self.tensor.is_leaf


class RandomLoop(Loop):
    """Does what its seed says: forwards, sums, detours, then losses of any of the values, each of them backward."""

    sizes: ClassVar = dict(first=(64, 12, 12), a=(12, 12, 12), b=(12, 12, 12, 12), head=(12, 12, 3))

    def __init__(self, seed, *args):
        super().__init__(*args)
        self.seed = seed
        self.by_hand = bool(args)
        self.automatic_optimization = seed % 3 == 0

    def training_step(self, batch, batch_idx):
        if not self.automatic_optimization:
            return super().training_step(batch, batch_idx)
        return self.step(batch[0].flatten(1), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05)

    def back(self, loss, reads, **options):
        if self.automatic_optimization:
            self.manual_backward = lambda loss, **options: setattr(self, "returned", loss)
        super().back(loss, reads, **options)

    def step(self, x, y, *optimizers):
        self.random = random.Random(self.seed)
        for _ in range(1 if self.automatic_optimization else self.random.randint(1, 2)):
            values = [self.read("first", Value(x * scale)) for scale in (1.0, 0.5)[: self.random.randint(1, 2)]]
            for _ in range(self.random.randint(2, 7)):
                values.append(self.random.choice([self.net_of, self.net_of, self.net_of, self.other])(values))
            gone = []
            for _ in range(1 if self.automatic_optimization else self.random.randint(1, 3)):
                loss, reads = self.loss(values, y)
                self.back(loss, [read for read in reads if all(read is not other for other in gone)], retain_graph=True)
                gone += reads
            for optimizer in optimizers:
                optimizer.step()
                if self.random.random() < 0.5:
                    optimizer.zero_grad()
        return self.__dict__.pop("returned", None)

    def read(self, name, value):
        """Pass a value through a network."""
        reads = []
        if value.is_trained and self.random.random() < 0.15:
            reentrant = self.random.random() < 0.5
            if not self.by_hand:
                run = lambda x: self.net[name](x, [], own=False)  # noqa: E731
                return Value(checkpoint(run, value.tensor, use_reentrant=reentrant))
        return Value(self.net[name](value.tensor, reads, own=not value.is_trained), value.reads + reads)

    def net_of(self, values):
        name, value = self.random.choice("ab"), self.random.choice(values)
        if self.random.random() < 0.15:
            with torch.no_grad():
                return Value(self.net[name](value.tensor, []))
        return self.read(name, value)

    def other(self, values):
        one, two = self.random.choice(values), self.random.choice(values)
        kind = self.random.choice(["sum", "product", "detached", "normalized", "part", "attacked", "rectified"])
        if kind == "sum":
            return Value(one.tensor + two.tensor, one.reads + two.reads)
        if kind == "product":
            return Value(one.tensor * two.tensor.sigmoid(), one.reads + two.reads)
        if kind == "detached":
            return Value(one.tensor.detach())
        if kind == "normalized":
            return Value(F.normalize(one.tensor), one.reads)
        if kind == "part":
            return Value(one.tensor[: self.random.randint(1, 8)].mean(0, keepdim=True) + one.tensor, one.reads)
        if kind == "rectified":
            return Value(F.relu(one.tensor), one.reads)
        start = one.tensor.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.net["a"](start, []).square().sum(), start)
        return Value(start.detach() + 0.1 * gradient.sign())

    def loss(self, values, y):
        """A loss of some values, and all that layers read on the way, each once."""
        chosen = self.random.sample(values, self.random.randint(1, min(3, len(values))))
        total, reads = 0.0, []
        for value in chosen:
            if self.random.random() < 0.6 or not value.is_trained:
                end = self.read("head", value)
                total, value = total + F.cross_entropy(end.tensor, y), end
            else:
                total = total + 0.1 * value.tensor.square().mean()
            reads += value.reads
        return total * self.random.choice([1.0, 0.5]), list({id(read): read for read in reads}.values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_the_penalty_is_that_by_hand(chunk):
    for seed in range(chunk, SEEDS, CHUNKS):
        weighting = random.Random(seed).choice(["uniform", "fan_out"])
        expected, _ = fit(RandomLoop(seed, STRENGTH, weighting), dtype=torch.float64)
        actual, _ = fit(RandomLoop(seed), [ActivityRegularization("l1", STRENGTH, weighting)], torch.float64)
        assert float((actual - expected).abs().max()) < 1e-11, f"seed {seed}"
