"""Every named penalty acts on spikes, through the surrogate, with the gradient of its formula."""

from __future__ import annotations

import copy

import pytest
import snntorch
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional as F

from snnreg_plugins import ActivityRegularization, SynapticOperations, to_snntorch
from snnreg_plugins.functional import PENALTIES
from snnreg_plugins.watching.hooks import Hooks
from tests.callbacks.reference import fit, loader


def ratio(a, power):
    """Hoyer's, or its square, of one sample, with a constant denominator."""
    return a.abs().sum() ** power / a.square().sum().detach() ** (power / 2)


# What the docstrings say of one layer at one step; L is the level that expected rate divides by.
FORMULAS = {
    "l1": lambda s, level: s.abs().mean(),
    "l2": lambda s, level: s.square().mean(),
    "transformed_l1": lambda s, level: (2 * s.abs() / (1 + s.abs())).mean(),
    "hoyer": lambda s, level: sum(ratio(a, 1) for a in s if a.any()) / len(s),
    "hoyer_square": lambda s, level: sum(ratio(a, 2) for a in s if a.any()) / len(s),
    "expected_rate": lambda s, level: (s / level).mean(),
}
every_penalty = pytest.mark.parametrize("penalty", FORMULAS)


class Spiking(LightningModule):
    """With ``strength``, adds the penalty of all that its layers read by hand."""

    def __init__(self, net, penalty="", strength=0.0):
        super().__init__()
        self.net, self.formula, self.strength = copy.deepcopy(net), FORMULAS.get(penalty), strength

    def training_step(self, batch, batch_idx):
        x, y = batch
        reads = {}

        def keep(layer, args):
            reads.setdefault(layer, []).append(args[0])

        layers = [layer for layer in self.net.modules() if isinstance(layer, (nn.Linear, nn.Conv2d)) and self.strength]
        at_once = any(isinstance(layer, nn.BatchNorm1d) for layer in self.net.modules())  # else step by step
        with Hooks([(layer, keep) for layer in layers], many_steps=at_once):
            loss = F.cross_entropy(self.net(x), y)
        for steps in reads.values():
            if steps[0].requires_grad:  # else the image
                loss = loss + self.strength * sum(self.formula(s, self.level(s, steps[0])) for s in steps) / len(steps)
        return loss

    @staticmethod
    def level(spikes, first):
        """The percentile of the first step, which starts λ, but at least a spike."""
        ordered = first.detach().flatten().sort().values
        level = ordered[-(-999 * len(ordered) // 1000) - 1]
        positive = spikes.detach()[spikes > 0]
        return torch.maximum(level, positive.min() if len(positive) else torch.ones(()).to(level))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.5)


class Leaky(nn.Module):
    """A network that a snnTorch user writes; pooled spikes are quarters."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(1, 4, 3), nn.Linear(36, 12), nn.Linear(12, 3)
        self.lif = nn.ModuleList(snntorch.Leaky(0.9, threshold=0.3) for _ in range(2))

    def forward(self, x):
        states, out = [lif.init_leaky() for lif in self.lif], 0.0
        for _ in range(4):
            s, states[0] = self.lif[0](self.conv(x), states[0])
            s, states[1] = self.lif[1](self.fc1(F.avg_pool2d(s.to(x), 2).flatten(1)), states[1])
            out = out + self.fc2(1.25 * s.to(x))  # as dropout in training scales them
        return out


def networks():
    torch.manual_seed(0)
    dnn = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 3)
    )
    x, _ = next(iter(loader()))
    exported = to_snntorch(dnn.double(), x.double(), timesteps=4)
    normalized = nn.Sequential(dnn[0], nn.BatchNorm2d(4), *dnn[1:]).double().eval()
    kept = to_snntorch(normalized, x.double(), timesteps=4, batch_norm="keep", train_thresholds="channel")
    return {"snnTorch": Leaky().double(), "exported": exported, "kept": kept}


@pytest.mark.parametrize("network", ["snnTorch", "exported", "kept"])
@every_penalty
def test_gradient_equals_the_formula_by_hand(penalty, network):
    net = networks()[network]

    def weights(module, *callbacks):
        fit(module, callbacks, torch.float64, limit_train_batches=1)
        return torch.cat([p.detach().flatten() for p in module.net.parameters()])

    expected, without = weights(Spiking(net, penalty, 0.1)), weights(Spiking(net))
    actual = weights(Spiking(net), ActivityRegularization(penalty, 0.1, "uniform"))
    assert (without - expected).abs().max() > 1e-4
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("penalty", ["hoyer", "hoyer_square", "expected_rate"])
def test_operations_fall_in_a_few_steps_of_fine_tuning(penalty):
    net = networks()["exported"].float()
    x, _ = next(iter(loader(samples=64, batch_size=64)))

    def operations(strength):
        module = Spiking(net)
        callbacks = [ActivityRegularization(penalty, strength)] if strength else []
        fit(module, callbacks, max_epochs=2)
        with SynapticOperations(module.net) as metric, torch.no_grad():
            module.net(x)
            return float(metric.compute())

    assert operations({"hoyer": 0.1, "hoyer_square": 0.02, "expected_rate": 1.0}[penalty]) < 0.8 * operations(0.0)


def test_every_penalty_has_a_formula_here():
    assert PENALTIES.keys() == FORMULAS.keys()
