"""What a spiking network learns: from a DNN's logits after every step, and from its activations."""

from __future__ import annotations

import pytest
import snntorch
import torch
from torch import nn
from torch.nn import functional as F

from snnreg_plugins import Distillation, to_norse, to_snntorch
from snnreg_plugins.modules import SpikingClassifier
from tests.callbacks.reference import fit, loader
from tests.callbacks.test_distillation import Loop, network, teacher
from tests.helpers import kl_by_hand

T = 3


def spiking(export=to_snntorch, **options):
    x = torch.cat([x for x, _ in loader(torch.float64)])
    return export(network((64, 10, 12, 3)), x, timesteps=T, **options)


class Plain(nn.Module):
    """A network of snnTorch as people write it; gives the outputs of all steps, or their mean."""

    def __init__(self, every=True):
        super().__init__()
        torch.manual_seed(2)
        self.fc1, self.lif = nn.Linear(64, 14), snntorch.Leaky(0.9)
        self.fc2 = nn.Linear(14, 3)
        self.double()
        self.every = every
        self.spikes = []

    def forward(self, x):
        potential, outputs, self.spikes = self.lif.init_leaky(), [], []
        for _ in range(T):
            spikes, potential = self.lif(self.fc1(x.flatten(1)), potential)
            spikes = spikes.double()  # snnTorch gives float32
            self.spikes.append(spikes)
            outputs.append(self.fc2(spikes))
        return torch.stack(outputs) if self.every else torch.stack(outputs).mean(0)


class User(Loop):
    """Trains on the mean of the outputs; ``lesson`` is what the whole batch adds by hand, and replaces α's share."""

    def __init__(self, net, by_hand=None, share=0.0):
        super().__init__(net=net)
        self.add, self.share = by_hand, share

    def training_step(self, batch, batch_idx):
        x, y = batch
        outputs, added = (self.net(x), 0.0) if self.add is None else self.add(self.net, x)
        z = outputs.mean(0) if outputs.dim() == 3 and not hasattr(self.net, "timesteps") else outputs
        return (1 - self.share) * F.cross_entropy(z, y) + added


def check(net, callback, by_hand, share=0.0, tolerance=1e-12):
    without = fit(User(net()), [], torch.float64)[0]
    expected = fit(User(net(), by_hand, share), [], torch.float64)[0]
    actual = fit(User(net()), [callback()], torch.float64)[0]
    assert (without - expected).abs().max() > 1e-4
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


GUIDE = network((64, 10, 12, 3), seed=5)


def wanted(x):
    with torch.no_grad():
        return GUIDE(x)


def test_every_step_of_an_exported_network():
    def by_hand(net, x):
        scores = net(x, per_step=True)
        return scores[-1], 0.7 * sum(kl_by_hand(z, wanted(x), 2.0) for z in scores) / T

    options = dict(student="net", alpha=0.7, temperature=2.0)
    check(spiking, lambda: Distillation(GUIDE, every_step=True, **options), by_hand, 0.7)


@pytest.mark.parametrize("time_dim", [0, 1])
def test_every_step_of_a_network_of_ones_own(time_dim):
    class Turned(Plain):
        def forward(self, x):
            return super().forward(x).movedim(0, time_dim)

    class TurnedUser(User):
        def training_step(self, batch, batch_idx):
            x, y = batch
            outputs = self.net(x)
            means = [outputs.movedim(time_dim, 0)[: t + 1].mean(0) for t in range(T)]
            added = 0.7 * sum(kl_by_hand(z, wanted(x), 2.0) for z in means) / T if self.share else 0.0
            return (1 - self.share) * F.cross_entropy(means[-1], y) + added

    callback = Distillation(GUIDE, alpha=0.7, temperature=2.0, every_step=True, time_dim=time_dim)
    actual = fit(TurnedUser(Turned()), [callback], torch.float64)[0]
    expected = fit(TurnedUser(Turned(), share=0.7), [], torch.float64)[0]
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_the_mean_over_steps_of_a_network_of_ones_own():
    def by_hand(net, x):
        outputs = net(x)
        return outputs, 0.7 * (outputs.mean(0) - wanted(x)).square().mean()

    check(Plain, lambda: Distillation(GUIDE, loss="l2", alpha=0.7, time_dim=0), by_hand, 0.7)


def rates_by_hand(net, x, names):
    """Outputs, and what the neurons of these layers give on average in one step, in activation of the DNN."""
    net.exact, net.checkpointing, given = True, False, {name: [] for name in names}
    hooks = [
        net.body.get_submodule(name).register_forward_hook(lambda _, args, out, name=name: given[name].append(out[0]))
        for name in names
    ]
    outputs = net(x)
    for hook in hooks:
        hook.remove()
    return outputs, {name: sum(given[name]) / T * net.levels[name] for name in names}


@pytest.mark.parametrize("export", [to_snntorch, to_norse])
@pytest.mark.parametrize(
    "setting", [{}, {"checkpointing": True, "exact": True}, {"truncation": 2}, {"per_channel": True}]
)
def test_spike_rates_match_activations(export, setting):
    def net():
        made = spiking(export, **{name: value for name, value in setting.items() if name == "per_channel"})
        for name in setting:
            if name != "per_channel":
                setattr(made, name, setting[name])
        return made

    def by_hand(net, x):
        outputs, rates = rates_by_hand(net, x, ["2", "4"])
        hidden = GUIDE[:3](x)
        goals = {"2": hidden, "4": GUIDE[3:5](hidden)}
        return outputs, 0.3 * sum((rates[name] - goals[name].detach()).square().mean() for name in rates)

    callback = lambda: Distillation(GUIDE, student="net", loss=None, layers=["2", "4"], layer_strength=0.3)  # noqa: E731
    check(net, callback, by_hand)


def test_spike_rates_of_a_network_of_ones_own_and_small_logits():
    def by_hand(net, x):
        outputs = net(x)
        rate = torch.stack(net.spikes).mean(0)
        with torch.no_grad():
            goal = teacher()[:4].eval()(x)
        return outputs, (rate - goal).square().mean() + 0.2 * outputs.square().mean()

    callback = lambda: Distillation(  # noqa: E731
        teacher(), loss=None, layers={"net.lif": "3"}, logit_strength=0.2
    )
    check(lambda: Plain(every=False), callback, by_hand, tolerance=1e-8)  # of spikes in float32


def test_small_logits_alone_need_no_teacher():
    def by_hand(net, x):
        outputs = net(x)
        return outputs, 0.2 * outputs.square().mean()

    check(lambda: Plain(every=False), lambda: Distillation(loss=None, logit_strength=0.2), by_hand)


def test_a_dnn_sees_the_mean_of_frames():
    def by_hand(net, x):
        frames = torch.stack([x, 2 * x, 0 * x])
        outputs = net(frames, time_dim=0)
        return outputs, 0.7 * kl_by_hand(outputs, wanted(frames.mean(0)), 2.0)

    class Frames(User):
        def training_step(self, batch, batch_idx):
            x, y = batch
            return F.cross_entropy(self.net(torch.stack([x, 2 * x, 0 * x]), time_dim=0), y)

    expected = fit(User(spiking(), by_hand, 0.7), [], torch.float64)[0]
    actual = fit(Frames(spiking()), [Distillation(GUIDE, student="net", alpha=0.7, temperature=2.0)], torch.float64)[0]
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_a_spiking_classifier_learns_from_its_own_dnn(tmp_path):
    def classifier():
        net = network((64, 10, 12, 3), seed=5, dtype=torch.float32)
        return SpikingClassifier(net, timesteps=T, optimizer=lambda parameters: torch.optim.SGD(parameters, 0.1))

    dnn = network((64, 10, 12, 3), seed=5, dtype=torch.float32)

    class ByHand(SpikingClassifier):
        def training_step(self, batch, batch_idx):
            x, y = batch
            scores = self.network(x, per_step=True)
            with torch.no_grad():
                goal = dnn(x)
            lesson = sum(kl_by_hand(z, goal, 3.0) for z in scores) / T
            return 0.5 * F.cross_entropy(scores[-1], y) + 0.5 * lesson

    options = dict(limit_val_batches=0)
    module = classifier()
    callback = Distillation("self", student="network", every_step=True)
    trainer = fit_classifier(module, [callback], options)
    by_hand = ByHand(classifier().network, timesteps=T, optimizer=classifier().optimizer)
    fit_classifier(by_hand, [], options)
    for one, other in zip(module.network.parameters(), by_hand.network.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert set(map(str, trainer.callback_metrics)) >= {"distillation/logits", "distillation/total"}


def fit_classifier(module, callbacks, options):
    module.net = module.network  # what `fit` reads the parameters of
    return fit(module, callbacks, **options)[1]
