"""Training loops that people write by hand, with the penalty from the callback or added to each loss by hand."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import ClassVar

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class Mlp(nn.Module):
    """Linear layers with ReLU between; tells what each layer reads, but for the input of the first if it is ``own``."""

    def __init__(self, *sizes):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(size, following) for size, following in pairwise(sizes))

    def forward(self, x, reads, own=True):
        for index, layer in enumerate(self.layers):
            x = F.relu(x) if index else x
            if index or not own:
                reads.append((layer, x))
            x = layer(x)
        return x


def l1_of(reads, weighting):
    """The penalty of the reads that one loss depends on, as the callback's docstring has it."""
    if weighting == "fan_out":
        synapses = [len(a) * layer.weight.numel() for layer, a in reads]
        return sum(n * a.abs().mean() for n, (_, a) in zip(synapses, reads, strict=True)) / sum(synapses)
    calls = defaultdict(list)
    for layer, a in reads:
        calls[layer].append(a)
    return sum(sum(len(a) * a.abs().mean() for a in each) / sum(map(len, each)) for each in calls.values())


class Loop(LightningModule):
    """A loop in manual optimization. With ``strength``, the penalty is added by hand in :meth:`back`."""

    sizes: ClassVar = {}

    def __init__(self, strength=0.0, weighting="uniform"):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.ModuleDict({name: Mlp(*sizes) for name, sizes in self.sizes.items()}).double()
        self.strength, self.weighting = strength, weighting
        self.automatic_optimization = False

    def __getattr__(self, name):
        return self.net[name] if name in type(self).sizes else super().__getattr__(name)

    def back(self, loss, reads, **options):
        """Send a loss backward that depends on the reads given, of which none was given before."""
        if self.strength and reads:
            loss = loss + self.strength * l1_of(reads, self.weighting)
        self.manual_backward(loss, **options)

    def training_step(self, batch, batch_idx):
        x, y = batch
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.step(x.flatten(1), y, *optimizers)

    def configure_optimizers(self):
        return [torch.optim.SGD(net.parameters(), 0.1) for net in self.net.values()]


class Gan(Loop):
    """The order of Lightning's documentation: what was generated first goes backward last."""

    sizes: ClassVar = dict(g=(64, 12, 12, 8), d=(8, 12, 12, 1))

    def step(self, x, y, g, d):
        ones, zeros = torch.ones(len(x), 1).to(x), torch.zeros(len(x), 1).to(x)
        made = self.g(x, from_g := [])
        loss = F.binary_cross_entropy_with_logits(self.d(x[:, :8], of_d := []), ones)
        loss = loss + F.binary_cross_entropy_with_logits(self.d(made.detach(), of_d), zeros)
        self.back(loss, of_d)
        d.step()
        d.zero_grad()
        loss = F.binary_cross_entropy_with_logits(self.d(made, of_both := list(from_g), own=False), ones)
        self.back(loss, of_both)
        g.step()


class TwoForwards(Loop):
    """Two forward passes, then two backward passes, in the same order."""

    sizes: ClassVar = dict(mlp=(64, 12, 12, 3))
    backwards = (0, 1)

    def step(self, x, y, optimizer):
        first, second = [], []
        losses = [F.cross_entropy(self.mlp(x[:3], first), y[:3])]
        losses.append(F.cross_entropy(self.mlp(x[3:], second), y[3:]))
        for index in self.backwards:
            self.back(losses[index], (first, second)[index])
        optimizer.step()


class TwoForwardsReversed(TwoForwards):
    backwards = (1, 0)


class AllLossesFirst(Loop):
    """Soft actor-critic's: all losses, then all backward passes, of three networks that read one another."""

    sizes: ClassVar = dict(actor=(64, 12, 4), critic=(68, 12, 1), value=(64, 12, 1))

    def step(self, x, y, actor, critic, value):
        v = self.value(x, of_value := [])
        with torch.no_grad():
            target = self.value(x * 0.5, [])
        action = self.actor(x, of_actor := [])
        q = self.critic(torch.cat([x, action.detach()], 1), of_critic := [])
        q_of_actor = self.critic(torch.cat([x, action], 1), of_both := list(of_actor), own=False)
        losses = [F.mse_loss(q, target + 1), (v - q.detach()).square().mean(), -q_of_actor.mean()]
        self.back(losses[0], of_critic)
        self.back(losses[1], of_value)
        self.back(losses[2], of_both)
        for optimizer in (actor, critic, value):
            optimizer.step()


class SharedTrunk(Loop):
    """Two losses on one trunk: the first to go backward brings the trunk's penalty."""

    sizes: ClassVar = dict(trunk=(64, 12, 12), left=(12, 12, 3), right=(12, 12, 3))

    def step(self, x, y, *optimizers):
        h = F.relu(self.trunk(x, reads := []))
        left = F.cross_entropy(self.left(h, reads, own=False), y)
        right = F.cross_entropy(self.right(h, of_right := [], own=False), 2 - y)
        self.back(left, reads, retain_graph=True)
        self.back(right, of_right)
        for optimizer in optimizers:
            optimizer.step()


class Adversarial(Loop):
    """Attack steps by autograd.grad on inputs that are flattened and normalized, then the loss on what they give."""

    sizes: ClassVar = dict(mlp=(64, 12, 12, 3))

    def step(self, x, y, optimizer):
        net, attacked = self.mlp, x.clone()
        for _ in range(4):
            attacked = attacked.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(net((attacked - 0.5).view(len(x), -1), []), y), attacked)
            attacked = attacked + 0.05 * gradient.sign()
        kept = attacked.detach().requires_grad_()  # as who goes on to differentiate by it
        loss = F.cross_entropy(net((kept - 0.5).view(len(x), -1), reads := []), y)
        self.back(loss, reads)
        optimizer.step()


class EnergyModel(Loop):
    """Samples by gradient steps on the energy, then a loss on data and samples in one or two forward passes."""

    sizes: ClassVar = dict(mlp=(64, 12, 12, 1))

    def step(self, x, y, optimizer):
        net, sample = self.mlp, torch.full_like(x, 0.5)
        for _ in range(6):
            sample = sample.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(net(sample, []).sum(), sample)
            sample = sample - 0.1 * gradient
        reads = []
        loss = net(x, reads).mean() - net(sample.detach()[:5], reads).mean()
        self.back(loss, reads)
        optimizer.step()


class IgnoredHeads(Loop):
    """Auxiliary heads that are computed, as GoogLeNet's, and read nowhere; one shares a layer with the real head."""

    sizes: ClassVar = dict(trunk=(64, 12, 12), head=(12, 12, 3), ignored=(12, 12, 3))

    def step(self, x, y, *optimizers):
        h = F.relu(self.trunk(x, reads := []))
        self.ignored(h, [], own=False)
        self.head(F.relu(self.trunk(x * 2, [])), [], own=False)
        self.back(F.cross_entropy(self.head(h, reads, own=False), y), reads)
        for optimizer in optimizers[:2]:
            optimizer.step()


class Toggled(Loop):
    """Optimizers that take turns, each with the others' parameters frozen."""

    sizes: ClassVar = dict(encoder=(64, 12, 12), head=(12, 12, 3))

    def step(self, x, y, encoder, head):
        for optimizer in (encoder, head):
            self.toggle_optimizer(optimizer)
            h = F.relu(self.encoder(x, reads := []))
            frozen = optimizer is head
            reads = [] if frozen else reads
            self.back(F.cross_entropy(self.head(h, reads, own=frozen), y), reads)
            optimizer.step()
            optimizer.zero_grad()
            self.untoggle_optimizer(optimizer)


class Accumulating(Loop):
    """Gradients accumulated by hand: each part brings its penalty in full."""

    sizes: ClassVar = dict(mlp=(64, 12, 12, 3))

    def step(self, x, y, optimizer):
        for part in (slice(0, 3), slice(3, 8)):
            loss = F.cross_entropy(self.mlp(x[part], reads := []), y[part])
            self.back(loss / 2, reads)
        optimizer.step()


class Experts(Loop):
    """A mixture of experts: each reads the samples that are sent to it, of which some batches have none."""

    sizes: ClassVar = dict(trunk=(64, 12), left=(12, 12, 3), right=(12, 12, 3), idle=(12, 12, 3))

    def step(self, x, y, *optimizers):
        h, reads, scores = F.relu(self.trunk(x, [])), [], x.new_zeros(len(x), 3)
        for label, expert in enumerate((self.left, self.right, self.idle)):
            sent = (y == label).nonzero()[:, 0] if label < 2 else y[:0]
            found = expert(h[sent], of_expert := [], own=False)
            scores = scores.index_put((sent,), found)
            reads += of_expert if len(sent) else []
        self.back(F.cross_entropy(scores, y), reads)
        for optimizer in optimizers:
            optimizer.step()


class Queries(Loop):
    """Learned vectors that a layer reads as they are."""

    sizes: ClassVar = dict(mlp=(64, 12, 12), key=(12, 12, 12))

    def __init__(self, *args):
        super().__init__(*args)
        self.net.queries = nn.Parameter(torch.rand(3, 12, dtype=torch.float64))

    def step(self, x, y, optimizer):
        keys = self.key(self.net.queries, reads := [], own=False)
        self.back(F.cross_entropy(self.mlp(x, reads) @ keys.T, y), reads)
        optimizer.step()

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), 0.1)


class Views(Loop):
    """Reentrant checkpoints whose layers read views of their input, two of them nested, one in two backward passes."""

    sizes: ClassVar = dict(trunk=(64, 24), flat=(24, 12, 4), sliced=(12, 12, 3), turned=(8, 3))
    checkpointed = True

    def step(self, x, y, *optimizers):
        reads, of_flat = [], []
        h = F.relu(self.trunk(x, reads)).view(len(x), 4, 6)
        flat = self.run(lambda h: self.flat(h.flatten(1), of_flat, own=False), h)
        sliced = self.run(lambda h: self.run(lambda h: self.sliced(h[:, :12], reads, own=False), h), h.flatten(1))
        turned = self.run(lambda h: self.turned(h.permute(1, 2, 0)[0], reads, own=False), h)
        self.back(F.cross_entropy(sliced, y) + turned.square().mean(), reads, retain_graph=True)
        self.back(flat.square().mean() + turned.square().mean(), of_flat)
        for optimizer in optimizers:
            optimizer.step()

    def run(self, function, h):
        return checkpoint(function, h, use_reentrant=True) if self.checkpointed else function(h)


LOOPS = [
    Gan,
    TwoForwards,
    TwoForwardsReversed,
    AllLossesFirst,
    SharedTrunk,
    Adversarial,
    EnergyModel,
    IgnoredHeads,
    Toggled,
    Accumulating,
    Experts,
    Queries,
]
