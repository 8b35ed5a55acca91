"""Where nothing could be learned, or not exactly, one error says what to give instead; and that works."""

from __future__ import annotations

import copy

import pytest
import snntorch
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from snnreg_plugins import Distillation
from tests.callbacks.reference import fit
from tests.callbacks.test_distillation import Loop, Manual, network, teacher


class Step(Loop):
    """A step in one expression of the module, x and y."""

    def __init__(self, step, net=None, manual=False):
        super().__init__(net=net)
        self.step = step
        self.automatic_optimization = not manual

    def training_step(self, batch, batch_idx):
        return self.step(self, *batch)


class Reentrant(Loop):
    def forward(self, x):
        return checkpoint(self.net, x.detach().requires_grad_(), use_reentrant=True)


class Tuples(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x):
        return self.net(x), x


class Conditioned(Tuples):
    def forward(self, x, y):
        return y, self.net(x)


class Held:
    def __init__(self, z):
        self.z = z


class Holding(Tuples):
    def forward(self, x):
        return Held(self.net(x))


class ReadsFirst(Distillation):
    def readout(self, outputs):
        return outputs[0] if isinstance(outputs, tuple) else outputs


class Stepped(nn.Module):
    """Takes a time step a call, with its state in itself, or given and returned."""

    def __init__(self, hidden):
        super().__init__()
        self.fc, self.lif = nn.Linear(64, 3).double(), snntorch.Leaky(0.9, init_hidden=hidden, output=hidden)

    def forward(self, x, state=None):
        return self.lif(self.fc(x.flatten(1)), *[] if self.lif.init_hidden else [state])


class SecondOf(Distillation):
    def readout(self, outputs):
        return outputs[1] if isinstance(outputs, tuple) else outputs


class ReadsPotentials(SecondOf):
    def teach(self, teacher, x, state=None):
        return teacher(x)


def parts(module, x):
    return module.net[3](F.relu(module.net[1](x.flatten(1))))


def nan():
    guide = network(seed=2)
    nn.init.constant_(guide[1].weight, torch.nan)
    return guide


def around(module, x, y):
    with torch.no_grad():
        module(x)
    return module.net[3].bias.sum()


def past(module, x, y):
    F.cross_entropy(module(x), y).backward()


SINGLE = lambda m, x, y: (m(x)[:, 0] - y).square().mean()  # noqa: E731
ENTROPY = lambda m, x, y: F.cross_entropy(m(x), y)  # noqa: E731

# A module, a callback, what is said; and, where there is one, a callback that follows it.
ROWS = {
    "never called": (
        lambda: Step(lambda m, x, y: F.cross_entropy(parts(m, x), y)),
        lambda: Distillation(teacher()),
        r"does not call forward\(\) or 'net'. Name the network .* one of \['net'\]",
        None,
    ),
    "two may be it": (
        lambda: Step(lambda m, x, y: F.cross_entropy(m(x) + m.net(x), y)),
        lambda: Distillation(teacher()),
        r"calls forward\(\) and 'net'. .*Distillation\(student='net'\)",
        lambda: Distillation(teacher(), student="net"),
    ),
    "without gradients": (
        lambda: Step(around),
        lambda: Distillation(teacher()),
        "without gradients alone",
        None,
    ),
    "in no loss": (
        lambda: Step(lambda m, x, y: m(x).detach().sum() + m.net[3].bias.sum()),
        lambda: Distillation(teacher()),
        "no loss depends on what",
        None,
    ),
    "nothing trained": (
        lambda: Step(lambda m, x, y: m.net[3].bias.sum() + m(x).sum() * 0, network()),
        lambda: Distillation(teacher(), student="net.0"),
        "'net.0' gives depends on no trained parameter",
        lambda: Distillation(teacher(), student="net"),
    ),
    "other classes": (
        lambda: Step(ENTROPY),
        lambda: Distillation(network((64, 8, 4))),
        r"logits \(8, 3\), and the teacher \(8, 4\)",
        lambda: Distillation(network((64, 8, 3))),
    ),
    "one logit": (
        lambda: Step(SINGLE, network((64, 8, 1))),
        lambda: Distillation(network((64, 8, 1), 2)),
        "Use loss='l2'",
        lambda: Distillation(network((64, 8, 1), 2), loss="l2"),
    ),
    "a name of nothing": (
        lambda: Step(ENTROPY),
        lambda: Distillation(teacher(), student="body"),
        r"`student` to name a module within Step, such as one of \['net'\], but got 'body'",
        lambda: Distillation(teacher(), student="net"),
    ),
    "tuples": (
        lambda: Step(lambda m, x, y: F.cross_entropy(m(x)[0], y), Tuples()),
        lambda: Distillation(teacher()),
        r"forward\(\) gives tuple. Override Distillation.readout",
        lambda: ReadsFirst(teacher()),
    ),
    "objects": (
        lambda: Step(lambda m, x, y: F.cross_entropy(m(x).z, y), Holding()),
        lambda: Distillation(teacher(), student="net"),
        "'net' gives Held",
        lambda: Distillation(teacher(), student="net.net"),
    ),
    "no time": (
        lambda: Step(ENTROPY),
        lambda: Distillation(teacher(), every_step=True),
        "Give time_dim=0 or 1",
        None,
    ),
    "no steps": (
        lambda: Step(ENTROPY),
        lambda: Distillation(teacher(), every_step=True, time_dim=0),
        r"\(T, B, K\), but forward\(\) gives \(8, 3\)",
        None,
    ),
    "steps unsaid": (
        lambda: Step(lambda m, x, y: F.cross_entropy(torch.stack([m(x)] * 2)[0], y), network()),
        lambda: Distillation(nn.Sequential(network(), nn.Unflatten(1, (1, 3)))),
        r"the teacher gives a tensor \(8, 1, 3\).*time_dim",
        lambda: Distillation(nn.Sequential(network(seed=2), nn.Unflatten(1, (1, 3))), time_dim=1),
    ),
    "no DNN": (
        lambda: Step(ENTROPY),
        lambda: Distillation("self"),
        "Step has none under the name `dnn`",
        None,
    ),
    "no such layer": (
        lambda: Step(ENTROPY),
        lambda: Distillation(teacher(), layers=["net.2"]),
        r"layers of the teacher, such as '0', .*, but got 'net.2'",
        lambda: Distillation(network(seed=2), layers={"net.2": "2"}),
    ),
    "layers of other shapes": (
        lambda: Step(ENTROPY),
        lambda: Distillation(teacher(), layers={"net.2": "3"}),
        r"'net.2' gives \(8, 10\), and '3' of the teacher \(8, 14\)",
        lambda: Distillation(network(seed=2), layers={"net.2": "2"}),
    ),
    "a layer that is not called": (
        lambda: Step(lambda m, x, y: F.cross_entropy(m.net[3](F.relu(m.net[1](m.net[0](x)))), y), network()),
        lambda: Distillation(network(seed=2), layers={"2": "2"}, student="net"),
        "does not call 'net'",
        None,
    ),
    "more arguments": (
        lambda: Step(lambda m, x, y: F.cross_entropy(m.net(x, y)[1], y), Conditioned()),
        lambda: SecondOf(teacher(), student="net"),
        r"teacher Sequential could not be asked .* Override Distillation.teach\(teacher",
        lambda: ReadsPotentials(teacher(), student="net"),
    ),
    "a teacher of nan": (lambda: Step(ENTROPY), lambda: Distillation(nan()), "The teacher gives nan", None),
    "past Lightning": (
        lambda: Step(past, manual=True),
        lambda: Distillation(teacher()),
        "could not add the distillation loss. Call self.manual_backward",
        None,
    ),
    "reentrant around": (
        Reentrant,
        lambda: Distillation(teacher(), student="net"),
        "'net' within a reentrant checkpoint",
        lambda: Distillation(teacher()),
    ),
    "no file": (
        lambda: Step(ENTROPY),
        lambda: Distillation(teacher(), checkpoint="no.ckpt"),
        "`checkpoint` to name a file, but there is no 'no.ckpt'",
        None,
    ),
}


@pytest.mark.parametrize("row", ROWS)
def test_what_cannot_be_is_said(row):
    module, callback, said, remedy = ROWS[row]
    with pytest.raises((MisconfigurationException, ValueError, TypeError, FileNotFoundError), match=said):
        fit(module(), [callback()], torch.float64)
    if remedy is not None:
        fit(module(), [remedy()], torch.float64)


def test_a_layer_within_a_reentrant_checkpoint_is_refused():
    class Inside(Loop):
        def forward(self, x):
            h = checkpoint(self.net[:3], x.detach().requires_grad_(), use_reentrant=True)
            return self.net[3](h)

    with pytest.raises(MisconfigurationException, match="layer 'net.2' within a reentrant checkpoint"):
        fit(Inside(), [Distillation(network(seed=2), layers={"net.2": "2"})], torch.float64)


class AllSteps(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.cell, self.hidden = Stepped(hidden), hidden

    def forward(self, x):
        if self.hidden:
            self.cell.lif.reset_mem()
            return torch.stack([self.cell(x)[1] for _ in range(3)])
        potential, potentials = self.cell.lif.init_leaky(), []
        for _ in range(3):
            _, potential = self.cell(x, potential)
            potentials.append(potential)
        return torch.stack(potentials)


@pytest.mark.parametrize("hidden", [True, False])
def test_a_network_that_is_stepped_from_outside_is_refused(hidden):
    module = lambda: Step(lambda m, x, y: F.cross_entropy(m.net(x).mean(0), y), AllSteps(hidden))  # noqa: E731
    with pytest.raises(MisconfigurationException, match="'net.cell' for logits, but it goes on from the states"):
        fit(module(), [ReadsPotentials(teacher(), student="net.cell")], torch.float64)
    fit(module(), [ReadsPotentials(teacher(), student="net", time_dim=0)], torch.float64)


def test_spiking_networks_may_be_called_on_several_batches():
    module = Step(lambda m, x, y: F.cross_entropy(m.net(x).mean(0) + m.net(2 * x).mean(0), y), AllSteps(True))
    fit(module, [Distillation(teacher(), student="net", time_dim=0)], torch.float64)


def test_a_teacher_that_is_trained_is_refused():
    module = Loop()
    with pytest.raises(ValueError, match=r"shares 'net.1.weight' .*copy.deepcopy"):
        fit(module, [Distillation(module.net)], torch.float64)
    fit(module, [Distillation(copy.deepcopy(module.net))], torch.float64)


def test_line_search_is_refused():
    class Searching(Loop):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), line_search_fn="strong_wolfe")

    with pytest.raises(MisconfigurationException, match="Distillation cannot serve LBFGS .* distillation loss"):
        fit(Searching(), [Distillation(teacher())], torch.float64)


def test_in_manual_optimization_the_student_may_come_later():
    class Turns(Manual):
        def step(self, x, y):
            self.passes = getattr(self, "passes", 0) + 1
            z = self(x) if self.passes > 2 else self.net[3].bias.expand(len(x), 3)
            self.manual_backward(F.cross_entropy(z, y))

    class Never(Turns):
        def __call__(self, x):
            return parts(self, x)

    fit(Turns(), [Distillation(teacher())], torch.float64)
    with pytest.raises(MisconfigurationException, match="does not call"):
        fit(Never(), [Distillation(teacher())], torch.float64)


def test_an_epoch_that_never_comes_is_said():
    with pytest.warns(UserWarning, match="Distillation will never act: start_epoch is 3"):
        fit(Loop(), [Distillation(teacher(), start_epoch=3)], torch.float64)


ARGUMENTS = [
    (dict(), "`teacher` to be a network to match, but got None"),
    (dict(teacher="dnn.ckpt"), "A file of weights is given as `checkpoint`"),
    (dict(teacher=nn.ReLU), "but got the class ReLU"),
    (dict(loss=None), "something to do"),
    (dict(teacher="self", checkpoint="a.ckpt"), "that the weights of `checkpoint` are for"),
    (dict(teacher="self", loss="mse"), r"`loss` to be one of \['kl', 'l2'\], but got 'mse'"),
    (dict(teacher="self", alpha=1.5), r"`alpha` to be in \[0, 1\], but got 1.5"),
    (dict(teacher="self", temperature=0), "`temperature` to be finite and above 0, but got 0"),
    (dict(teacher="self", time_dim=2), "`time_dim`"),
    (dict(teacher="self", every_step="no"), "`every_step` to be True or False"),
    (dict(teacher="self", layers={"a": 1}), "`layers` to be one or more names"),
    (dict(teacher="self", layer_strength=-1), "`layer_strength` to be finite and at least 0"),
    (dict(teacher="self", logit_strength=-1), "`logit_strength` to be finite and at least 0"),
    (dict(teacher="self", student=3), "`student` to be a name or None, but got 3"),
    (dict(teacher="self", start_epoch=-1), "`start_epoch` to be an integer of at least 0"),
]


@pytest.mark.parametrize(("arguments", "said"), ARGUMENTS)
def test_arguments_out_of_range_are_said(arguments, said):
    with pytest.raises((ValueError, TypeError), match=said):
        Distillation(**arguments)
