"""A penalty that does not arrive is said, in an error or a warning that names the layers."""

from __future__ import annotations

import functools
import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn import functional as F

from snnreg_plugins import ActivityRegularization
from tests.callbacks.loops import Gan, Mlp
from tests.callbacks.reference import Module, fit, loader, start


class Classifying(LightningModule):
    """Trains ``net`` in automatic optimization; ``forward`` may be changed."""

    def __init__(self, net=None):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 3)) if net is None else net

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x.flatten(1)), y)

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.1)


def said(module, *callbacks, **trainer):
    """Fit, and give the warnings of the callbacks."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, trainer = fit(module, callbacks, **trainer)
    found = [str(warning.message) for warning in caught]
    return [text for text in found if text.startswith("ActivityRegularization")], trainer


class Idle(Classifying):
    """Has a layer that no sample is sent to, by name a part of the loss all the same."""

    def __init__(self):
        super().__init__()
        self.idle = nn.Linear(12, 3)

    def forward(self, x):
        h = self.net[1](self.net[0](x))
        return self.net[2](h) + self.idle(h[:0]).sum()


@pytest.mark.parametrize("penalty", ["hoyer", "expected_rate", "energy"])
def test_a_layer_without_samples_is_said_and_takes_nothing_from_the_others(penalty):
    options = {"layers": ["net.2", "idle"], **({"timesteps": 4} if penalty == "energy" else {})}
    (text,), trainer = said(Idle(), ActivityRegularization(penalty, **options))
    assert text.endswith("'idle' was (were) called on no samples yet.")
    alone = fit(Classifying(), [ActivityRegularization(penalty, **(options | {"layers": "net.2"}))])[1]
    assert trainer.callback_metrics["penalty/total"] == alone.callback_metrics["penalty/total"] > 0


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_parts_that_torch_compiled_are_said(trained):
    inner = nn.Sequential(nn.Linear(12, 12), nn.ReLU()).requires_grad_(trained)
    net = nn.Sequential(nn.Linear(64, 12), nn.ReLU(), torch.jit.script(inner), nn.Linear(12, 3))
    texts, trainer = said(Classifying(net), ActivityRegularization("l1"))
    assert (
        texts
        == [
            "ActivityRegularization: 'net.2' is (are) compiled by torch.jit, so what the layers within "
            "read(s) is not seen. Use the module that was compiled."
        ]
        * trained
    )
    assert "penalty/net.3" in trainer.callback_metrics


def test_sparse_activity_is_refused_and_the_remedies_work():
    class Sparse(Classifying):
        dense = False

        def forward(self, x):
            h = self.net[1](self.net[0](x))
            return self.net[2](h if self.dense else h.to_sparse())

    with pytest.raises(MisconfigurationException, match="'net.2', which reads a tensor of layout torch.sparse_coo"):
        fit(Sparse(), [ActivityRegularization()])
    Sparse.dense = True
    fit(Sparse(), [ActivityRegularization()])


def test_a_fit_within_a_fit_wants_a_callback_of_its_own():
    def run(*callbacks):
        class Inner(Callback):
            def on_train_batch_start(self, *_):
                fit(Classifying(), callbacks)

        module = Classifying()
        try:
            fit(module, [outer, Inner()])
        finally:
            assert not any(part._forward_pre_hooks for part in module.modules())

    outer = ActivityRegularization()
    run(ActivityRegularization())
    with pytest.raises(
        MisconfigurationException, match="used by another fit .* Give each Trainer a callback of its own"
    ):
        run(outer)


class Attending(Classifying):
    """Has layers whose weights are used without calling them."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.tied = nn.Linear(12, 12)

    def forward(self, x):
        h = F.relu(self.net[0](x)).unsqueeze(1).expand(-1, 2, -1)
        h, _ = self.attention(h, h, h, need_weights=False)
        return self.net[2](F.relu(F.linear(F.relu(h.mean(1)), self.tied.weight)))


def test_layers_that_are_used_but_never_called():
    asked = {"attention.out_proj": 1.0, "tied": 1.0, "net.2": 0.1}
    with pytest.raises(MisconfigurationException, match="'attention.out_proj', 'tied': its weights are used"):
        fit(Attending(), [ActivityRegularization("l1", asked)])
    (text,), trainer = said(Attending(), ActivityRegularization("l1", layers=["attention*", "t*", "net.*"]))
    assert "'attention.out_proj', 'tied': its weights are used" in text
    assert {"penalty/net.2", "penalty/total", "penalty/share"} == {
        k for k in trainer.callback_metrics if k.startswith("penalty")
    }
    assert said(Attending(), ActivityRegularization("l1", layers="net.2"))[0] == []


def test_a_weight_that_two_layers_share_is_no_sign_of_a_call():
    class Tied(Classifying):
        def __init__(self):
            super().__init__(nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 64), nn.Linear(64, 3)))
            self.other = nn.Linear(64, 12)
            self.other.weight = self.net[0].weight

    assert said(Tied(), ActivityRegularization("l1", {"other": 1.0, "net.2": 1.0}))[0] == [
        "ActivityRegularization: 'other' was (were) not called."
    ]


def test_layers_that_no_penalty_can_reach():
    class Odd(Classifying):
        def __init__(self):
            super().__init__(nn.ModuleList(nn.Linear(64, 64) for _ in range(6)))
            self.net[1].requires_grad_(False)
            self.net[0].requires_grad_(False)

        def forward(self, x):
            x = F.relu(self.net[1](F.relu(self.net[0](x))))  # frozen: what net.2 reads is fixed
            x = F.relu(self.net[2](x))
            self.net[4](x)  # in no loss; net.5 is not called
            return self.net[3](x)[:, :3]

    found, _ = said(Odd(), ActivityRegularization("l1", layers="*"))
    assert found == [
        "ActivityRegularization: what 'net.0', 'net.1' read(s) depends on no trained parameter: it is the network's "
        "own input, or comes from frozen layers.",
        "ActivityRegularization: what 'net.4' read(s) is in no loss.",
        "ActivityRegularization: 'net.5' was (were) not called.",
    ]
    found, _ = said(Odd(), ActivityRegularization("l1", layers=["net.2", "net.3"]))
    assert len(found) == 1
    assert "what 'net.2' read(s) depends on no trained parameter" in found[0]
    assert said(Classifying(), ActivityRegularization("l1"))[0] == []


class Binary(torch.autograd.Function):
    """A binary activation with a straight-through gradient, which is no neuron of any framework."""

    @staticmethod
    def forward(ctx, x):
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


@pytest.mark.parametrize("penalty", ["expected_rate", "hoyer", "hoyer_square", lambda a, weight: a.detach().sum()])
def test_a_penalty_without_a_gradient_is_refused(penalty):
    class Net(Classifying):
        def forward(self, x):
            return self.net[2](Binary.apply(self.net[0](x)))

    with pytest.raises(MisconfigurationException, match="'net.2' read.*Take penalty='l1'"):
        fit(Net(), [ActivityRegularization(penalty)])
    without, _ = fit(Net())
    with_l1, _ = fit(Net(), [ActivityRegularization("l1", 1.0)])  # the remedy
    assert not torch.equal(without, with_l1)


def test_a_layer_without_a_gradient_is_named():
    class Net(Classifying):
        def forward(self, x):
            h = F.relu(self.net[2](Binary.apply(self.net[0](x))))
            return self.net[4](h)

    net = nn.Sequential(nn.Linear(64, 12), nn.Identity(), nn.Linear(12, 12), nn.Identity(), nn.Linear(12, 3))
    (text,), _ = said(Net(net), ActivityRegularization("hoyer"))
    assert "the gradient of the penalty is 0 on all that 'net.2' read(s), which is active" in text


def test_a_silent_network_is_said_but_trained():
    module = Classifying()
    with torch.no_grad():
        module.net[0].bias.fill_(-100)
    (text,), _ = said(module, ActivityRegularization("l1"))
    assert "'net.2' read(s) is silent" in text


def test_a_start_behind_the_last_epoch():
    (text,), _ = said(Classifying(), ActivityRegularization(start_epoch=2), max_epochs=2)
    assert "will never act: start_epoch is 2" in text
    assert said(Classifying(), ActivityRegularization(start_epoch=1), max_epochs=2)[0] == []


class Perceptual(Classifying):
    """Its loss is measured by a frozen network, and its own network ends in a frozen layer."""

    def __init__(self, strength=0.0):
        torch.manual_seed(1)
        super().__init__(Mlp(64, 12, 12))
        self.fixed, self.strength = nn.Linear(12, 12).requires_grad_(False), strength
        self.judge = Mlp(12, 12, 12).requires_grad_(False)
        self.double()

    def training_step(self, batch, batch_idx):
        h = self.net(batch[0].flatten(1), reads := [])
        reads.append((self.fixed, F.relu(h)))
        judged = [F.relu(self.fixed(F.relu(h)))]
        judged.append(F.relu(self.judge.layers[0](judged[0])))
        loss = self.judge.layers[1](judged[1]).square().mean()
        if self.strength:
            if any(p.requires_grad for p in self.judge.parameters()):
                reads += zip(self.judge.layers, judged, strict=True)
            loss = loss + self.strength * sum(a.abs().mean() for _, a in reads)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("thawed", [False, True])
def test_networks_of_a_loss_are_left_alone(thawed):
    class Thawing(Perceptual):
        def on_train_epoch_start(self):
            if thawed and self.current_epoch == 1:
                self.judge.requires_grad_(True)

    expected, _ = fit(Thawing(0.5), dtype=torch.float64, max_epochs=3)
    actual, trainer = fit(Thawing(), [ActivityRegularization("l1", 0.5)], torch.float64, max_epochs=3)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    assert "penalty/fixed" in trainer.callback_metrics
    assert ("penalty/judge.layers.1" in trainer.callback_metrics) == thawed
    _, trainer = fit(Perceptual(), [ActivityRegularization("l1", 0.5, layers="*")], torch.float64)
    assert "penalty/judge.layers.1" in trainer.callback_metrics


def test_optimizers_that_take_turns_by_batch():
    class EverySecond(Gan):
        def step(self, x, y, g, d):
            if self.trainer.global_step % 2:
                return super().step(x, y, g, d)
            self.back(self.d(x[:, :8], reads := []).mean(), reads)
            return d.step()

    found, trainer = said(EverySecond(), ActivityRegularization("l1", layers="net.g.*"), dtype=torch.float64)
    assert found == []
    assert "penalty/net.g.layers.1" in trainer.callback_metrics

    class Never(EverySecond):
        def step(self, x, y, g, d):
            self.back(self.d(x[:, :8], reads := []).mean(), reads)

    with pytest.raises(MisconfigurationException, match="no activity"):
        fit(Never(), [ActivityRegularization("l1", layers="net.g.*")], torch.float64)


def test_gradient_penalties_are_said():
    class GradientPenalty(Classifying):
        def training_step(self, batch, batch_idx):
            x = batch[0].flatten(1).requires_grad_()
            (gradient,) = torch.autograd.grad(self(x).sum(), x, create_graph=True)
            return self(x.detach()).square().mean() + (gradient.norm(dim=1) - 1).square().mean()

    net = nn.Sequential(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 3))
    (text,), _ = said(GradientPenalty(net), ActivityRegularization("l1"))
    assert "a loss holds a gradient of what 'net.2'" in text


def test_a_backward_pass_beside_lightning_is_said():
    class Beside(Classifying):
        automatic_optimization = False

        def __init__(self, how):
            super().__init__()
            self.how = how

        def training_step(self, batch, batch_idx):
            optimizer, x = self.optimizers(), batch[0].flatten(1).requires_grad_()
            optimizer.zero_grad()
            if self.how == "attack":
                x = x + torch.autograd.grad(self(x).square().sum(), x)[0].sign()
            elif self.how == "gradient":
                torch.autograd.grad(self(x).square().sum(), list(self.net.parameters()))
            else:
                self(x).square().mean().backward()
            self.manual_backward(F.cross_entropy(self(x.detach()), batch[1]))
            optimizer.step()

    for how in ("attack", "gradient"):
        assert said(Beside(how), ActivityRegularization("l1"))[0] == []
    (text,), _ = said(Beside("loss"), ActivityRegularization("l1"))
    assert "did not go through Lightning, beside others that did" in text


@pytest.mark.parametrize("strength", [np.float32(0.5), torch.tensor(0.5), np.array(0.5), "0.5", "5e-1"])
def test_strengths_are_numbers(strength):
    assert ActivityRegularization("l1", strength).strength == 0.5
    assert ActivityRegularization("l1", {"fc*": strength}).strength == {"fc*": 0.5}
    assert type(ActivityRegularization("l1", strength).strength) is float


class Checkpoint(torch.autograd.Function):
    """Computes again in the backward pass, in a way of its own."""

    @staticmethod
    def forward(ctx, x, function):
        ctx.function = function
        ctx.save_for_backward(x)
        return function(x)

    @staticmethod
    def backward(ctx, gradient):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            ctx.function(x.clone()).backward(gradient)
        return x.grad, None


@pytest.mark.parametrize("penalty", ["l1", "expected_rate"])
def test_what_cannot_be_seen_is_refused(penalty):
    class Foreign(Classifying):
        def forward(self, x):
            return Checkpoint.apply(F.relu(self.net[0](x)), self.net[2])

    class Transformed(Classifying):
        def training_step(self, batch, batch_idx):
            weights = dict(self.net.named_parameters())
            loss = lambda weights: torch.func.functional_call(self.net, weights, batch[0].flatten(1)).sum()  # noqa: E731
            return torch.func.grad(loss)(weights)["0.bias"].sum()

    for module, message in ((Foreign, "'net.2'.*torch.utils.checkpoint"), (Transformed, "'net.2'.*torch.func")):
        with pytest.raises(MisconfigurationException, match=message):
            fit(module(), [ActivityRegularization(penalty, layers="net.2")])


def scaled(a, weight, factor):
    return factor * a.abs().mean()


class Scaled(nn.Module):
    def forward(self, a, weight):
        return scaled(a, weight, 2.0)


@pytest.mark.parametrize("penalty", [functools.partial(scaled, factor=2.0), Scaled(), Scaled().forward])
def test_whatever_can_be_called_is_a_penalty(penalty):
    expected, _ = fit(Module(start({}, torch.float64), 0.2), dtype=torch.float64)
    actual, _ = fit(Module(start({}, torch.float64)), [ActivityRegularization(penalty, 0.1)], torch.float64)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_several_callbacks_are_told_apart_and_logged_in_sum(tmp_path):
    def callbacks():
        return [
            ActivityRegularization("l1", 0.1),
            ActivityRegularization("l1", 0.4, layers="net.fc*"),
            ActivityRegularization("expected_rate", 0.4, layers="net.fc3"),
            ActivityRegularization(functools.partial(scaled, factor=2.0), 0.1),
            ActivityRegularization(functools.partial(scaled, factor=3.0), 0.1),
        ]

    assert len({callback.state_key for callback in callbacks()}) == 5
    assert [one.state_key for one in callbacks()] == [one.state_key for one in callbacks()]
    assert ActivityRegularization("l1", 0.1).state_key != ActivityRegularization("l1", 0.2).state_key
    module = Module(start({}, torch.float64))
    data, activities = next(iter(loader(torch.float64))), []
    loss = float(F.cross_entropy(module.net(data[0], activities), data[1]).detach())
    means = {name: float(a.detach().mean()) for name, a in activities}
    _, trainer = fit(module, callbacks()[:2], torch.float64, limit_train_batches=1)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    ones = {"net.conv2", "net.fc1", "net.fc2", "net.fc3"}
    assert logged["penalty/total"] == pytest.approx(
        sum(0.1 * means[name[4:]] + (0.4 * means[name[4:]] if "fc" in name else 0) for name in ones)
    )
    assert logged["penalty/share"] == pytest.approx(logged["penalty/total"] / (logged["penalty/total"] + loss))
    assert logged["penalty/net.conv2"] == pytest.approx(means["conv2"])
    assert logged["penalty/l1/net.fc1"] == logged["penalty/l1/net.fc1_2"] == pytest.approx(means["fc1"])
    assert "penalty/net.fc1" not in logged

    trainer.save_checkpoint(tmp_path / "some.ckpt")
    fit(
        Module(start({}, torch.float64)), callbacks()[:2], torch.float64, max_epochs=2, ckpt_path=tmp_path / "some.ckpt"
    )


class OneByOne(Classifying):
    """Trains on the first sample of each batch alone."""

    def __init__(self, first):
        super().__init__()
        self.first = first

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x.flatten(1)[self.first]), y[self.first])


@pytest.mark.parametrize("penalty", ["l1", "hoyer", "expected_rate"])
def test_a_sample_without_a_batch_has_the_penalty_of_a_batch_of_one(penalty):
    of_a_batch, _ = fit(OneByOne(slice(1)), [ActivityRegularization(penalty, 0.5)])
    alone, _ = fit(OneByOne(0), [ActivityRegularization(penalty, 0.5)])
    torch.testing.assert_close(alone, of_a_batch)
