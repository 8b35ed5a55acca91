"""Networks that are trained as spiking ones: batch norms kept, thresholds learned, both gone in the end."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from snnreg_plugins import (
    deploy,
    diagnose,
    exit_margins,
    from_nir,
    load_network,
    save_network,
    to_nir,
    to_norse,
    to_snntorch,
)
from snnreg_plugins.spiking.firing import Firing
from tests.export.reference import neurons_of
from tests.export.test_architectures import NETS, randomize

T = 5


def made():
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 6, 2, bias=False))
    net = nn.Sequential(*layers, nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
    return randomize(net), torch.rand(12, 1, 8, 8, dtype=torch.float64)


def neuron(currents, threshold, v0, surrogate):
    """A list of spikes, for a list of currents; no gradient through the reset."""
    v, spikes = v0 + torch.zeros_like(currents[0]), []
    for current in currents:
        v = v + current - (v > threshold).to(v.dtype) * threshold
        spikes.append(surrogate(v - threshold))
    return spikes


def normed(norm, currents):
    """Batch norm over samples and steps."""
    both = F.batch_norm(torch.cat(currents), None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
    return both.chunk(len(currents))


def by_hand(network, x):
    """The scores in training, layer by layer."""
    first, body = network.encoder, network.body
    threshold, part = network.neurons.describe(body.get_submodule("2")).threshold, body.get_submodule
    spikes = neuron(
        normed(first.get_submodule("1"), [first.get_submodule("0")(x)] * T), threshold,
        part("2_initial").potential, network.neurons.describe(part("2")).surrogate,
    )  # fmt: skip
    currents = normed(part("5"), [part("4")(4 * F.avg_pool2d(s, 2)) for s in spikes])
    threshold = network.neurons.describe(part("6")).threshold
    spikes = neuron(currents, threshold, part("6_initial").potential, network.neurons.describe(part("6")).surrogate)
    return sum(part("8")(s.flatten(1)) for s in spikes) / T


@pytest.mark.parametrize("trained", ["none", "layer", "channel", "neuron"])
@pytest.mark.parametrize("export", [to_snntorch, to_norse])
def test_training_is_that_by_hand(export, trained):
    net, x = made()
    network = export(net, x, timesteps=T, batch_norm="keep", train_thresholds=trained)
    names = [name for name, _ in network.named_parameters()]
    assert sum("threshold" in name for name in names) == (0 if trained == "none" else 2)
    assert sum("body.5" in name or "encoder.1" in name for name in names) == 4
    target = torch.randn(12, 3, dtype=torch.float64)
    gradients = []
    for scores in (network(x), by_hand(network, x)):
        network.zero_grad()
        (scores * target).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in network.named_parameters()})
        torch.testing.assert_close(scores, by_hand(network, x))
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=lambda m, name=name: f"{name}: {m}")
        assert gradient.abs().max() > 1e-6 or name in ("encoder.0.bias",)
    assert int(network.get_buffer("body.5.num_batches_tracked")) == 1  # one call: no other look was counted


@pytest.mark.parametrize("trained", ["layer", "channel"])
@pytest.mark.parametrize("constant", [True, False])
def test_thresholds_get_the_gradient_of_one_step_at_a_time(constant, trained):
    net = nn.Sequential(*([] if constant else [nn.Linear(6, 7), nn.ReLU()]), nn.Linear(7 - constant, 8), nn.ReLU())
    net, x = net.append(nn.Linear(8, 3)).double(), torch.rand(20, 6, dtype=torch.float64)
    gradients = []
    leaky = {"beta": 0.9}
    for options in ({}, {"above": 3}, leaky, leaky | {"train_beta": trained}, leaky | {"surrogate": "sigmoid"}):
        above = options.pop("above", 1)
        network = to_snntorch(net, x, timesteps=T, train_thresholds=trained, **options)
        for name, potential in network.named_buffers():
            if name.endswith("potential"):
                potential.mul_(above)  # a first step that begins with a reset
        assert sum("beta" in name for name, _ in network.named_parameters()) == 2 * ("train_beta" in options) - (
            "train_beta" in options and constant
        )
        for exact, checkpointing in ((True, False), (False, False), (False, True)):
            network.exact, network.checkpointing = exact, checkpointing
            network.zero_grad()
            network(x).square().sum().backward()
            gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
        for other in gradients[-2:]:
            torch.testing.assert_close(other, gradients[-3])


@pytest.mark.parametrize("name", ["two blocks", "dense block", "leaky ReLU"])
def test_deployed_it_computes_the_same_and_is_an_export_like_any(name, tmp_path):
    net = NETS.get(name, NETS["two blocks"])()
    x = torch.rand(12, 1, 4, 4, dtype=torch.float64)
    folded = to_snntorch(net, x, timesteps=T)
    network = to_snntorch(net, x, timesteps=T, batch_norm="keep", train_thresholds="channel").eval()
    torch.testing.assert_close(network(x), folded(x))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1 + 0.1 * torch.rand_like(parameter))
    save_network(network, tmp_path / "training.pt")
    assert torch.equal(load_network(tmp_path / "training.pt", net).eval()(x), network(x))
    final = deploy(network)
    torch.testing.assert_close(final(x), network(x))
    assert final.state_dict().keys() == folded.state_dict().keys()
    assert network.state_dict().keys() != folded.state_dict().keys()  # it was left as it is
    save_network(final, tmp_path / "final.pt")
    assert torch.equal(load_network(tmp_path / "final.pt", net)(x), final(x))


def test_nir_wants_what_is_deployed(tmp_path):
    net, x = made()
    network = to_snntorch(net, x, timesteps=T, batch_norm="keep", train_thresholds="layer")
    with pytest.raises(ValueError, match=r"'1'.*BatchNorm.*deploy\(network\)"):
        to_nir(network, tmp_path / "network.nir")
    to_nir(deploy(network), tmp_path / "network.nir")


def test_what_splits_up_the_batch_is_refused_in_training():
    net, x = made()
    network = to_snntorch(net, x, timesteps=T, batch_norm="keep")
    network.checkpointing = True
    with pytest.raises(ValueError, match="but `checkpointing` splits them up"):
        network(x)
    network.checkpointing, network.exact = False, True
    for call in (network, network.step):
        with pytest.raises(ValueError, match="but `exact` splits them up"):
            call(x)
    network.exact = False
    with (
        network.body.get_submodule("8").register_forward_hook(lambda *_: None),
        pytest.raises(ValueError, match="hook"),
    ):
        network(x)
    network.eval()
    network.exact = True
    network.step(x)


def test_measuring_leaves_statistics_alone():
    net, x = made()
    network = to_snntorch(net, x, timesteps=T, batch_norm="keep")
    diagnose(net, network, x)
    exit_margins(network, x)
    assert int(network.get_buffer("body.5.num_batches_tracked")) == 0
    assert network.training


@pytest.mark.parametrize("trained", ["layer", "channel", "neuron"])
@pytest.mark.parametrize("export", [to_snntorch, to_norse])
def test_decays_are_trained_within_their_range_and_kept(export, trained, tmp_path):
    net, x = made()
    network = export(net, x, timesteps=T, beta=0.9, train_beta=trained, surrogate="triangular")
    decays = {name: p for name, p in network.named_parameters() if "beta" in name}
    sizes = {"layer": [(), ()], "channel": [(4, 1, 1), (6, 1, 1)], "neuron": [(4, 6, 6), (6, 2, 2)]}
    assert [tuple(p.shape) for p in decays.values()] == sizes[trained]
    optimizer = torch.optim.SGD(decays.values(), lr=1e4)
    before = network(x)
    (before.square().sum()).backward()
    assert all(bool(p.grad.any()) for p in decays.values())
    optimizer.step()
    found = [dynamics.beta for m in network.modules() if (dynamics := network.neurons.describe(m)) is not None]
    assert all(bool(((beta >= 0) & (beta <= 1)).all()) for beta in found)
    with torch.no_grad():
        for parameter in decays.values():
            parameter.copy_(torch.randn_like(parameter))
    assert not torch.equal(network(x), before)
    final = deploy(network)
    assert torch.equal(final(x), network(x))
    assert not [name for name, _ in final.named_parameters() if "beta" in name]
    for each, name in ((network, "training.pt"), (final, "final.pt")):
        save_network(each, tmp_path / name)
        loaded = load_network(tmp_path / name, net)
        assert torch.equal(loaded(x), network(x))
        kinds = {type(d.surrogate).__name__ for m in loaded.modules() if (d := loaded.neurons.describe(m)) is not None}
        assert len(kinds) == 1
        assert kinds.pop().endswith("Triangular")
    to_nir(final, tmp_path / "network.nir")
    read = from_nir(tmp_path / "network.nir")
    assert torch.equal(read(x), network(x))
    gradients = []
    for each in (final, read):
        leaf = x.clone().requires_grad_()
        each(leaf).square().sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)  # the surrogate is the same, too


@pytest.mark.parametrize("export", [to_snntorch, to_norse])
def test_thresholds_and_decays_begin_apart(export):
    net, x = made()
    options = {"train_thresholds": "neuron", "train_beta": "channel", "timesteps": T, "beta": 0.8}
    even = export(net, x, **options)
    torch.manual_seed(0)
    apart = {"heterogeneity": "gamma", "threshold_std": 0.2, "beta_std": 0.05}
    network = export(net, x, **options, **apart)
    for module, other in zip(network.body.modules(), even.body.modules(), strict=True):
        if (dynamics := network.neurons.describe(module)) is None:
            continue
        plain = network.neurons.describe(other)
        share = (dynamics.threshold / plain.threshold).detach()
        assert 0.1 < float(share.std()) < 0.3
        assert abs(float(share.mean()) - 1) < 0.15
        assert 0.01 < float(dynamics.beta.detach().std()) < 0.1
        torch.testing.assert_close(dynamics.surrogate.slope * dynamics.threshold.detach(), torch.full_like(share, 5.0))
    torch.manual_seed(0)
    again = export(net, x, **options, **apart)
    assert torch.equal(again(x), network(x))
    assert not torch.equal(again(x), even(x))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"heterogeneity": "gamma"}, r"`heterogeneity`.*'gamma' with 0 and 0\. Give both"),
        ({"threshold_std": 0.1}, r"`heterogeneity`.*'none' with 0.1 and 0\. Give both"),
        ({"heterogeneity": "gamma", "threshold_std": 0.1}, r"`train_thresholds` to be 'channel' or.*got 'none'"),
        ({"heterogeneity": "gamma", "beta_std": 0.1, "beta": 0.9, "train_beta": "layer"}, "`train_beta`.*got 'layer'"),
        ({"heterogeneity": "cauchy"}, "`heterogeneity` to be one of"),
    ],
)
def test_heterogeneity_that_says_too_little(options, sentence):
    net, x = made()
    with pytest.raises(ValueError, match=sentence):
        to_snntorch(net, x, timesteps=T, **options)


def test_decays_of_1_cannot_be_trained():
    net, x = made()
    with pytest.raises(ValueError, match=r"`beta` to be below 1 for `train_beta`.*got 1.0.*beta=0.95"):
        to_snntorch(net, x, timesteps=T, train_beta="layer")


@pytest.mark.parametrize(
    "option",
    [{"train_beta": "all", "beta": 0.9}, {"surrogate": "atan"}, {"batch_norm": "kept"}, {"train_thresholds": True}],
)
def test_bad_options(option):
    net, x = made()
    with pytest.raises(ValueError, match=f"Expected argument `{next(iter(option))}` to be one of"):
        to_snntorch(net, x, timesteps=T, **option)


@pytest.mark.parametrize("beta", [1.0, 0.9])
def test_thresholds_get_what_comes_back_through_the_last_potential(beta):
    x = torch.rand(20, 6, dtype=torch.float64)
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    network = to_snntorch(net, x, timesteps=T, train_thresholds="neuron", beta=beta)
    (neuron,) = neurons_of(network).values()
    currents, of_last = torch.rand(T, 4, 5, dtype=torch.float64), torch.rand(4, 5, dtype=torch.float64)
    gradients = []
    for stepped in (True, False):
        network.zero_grad()
        state, dynamics = 0.5 * torch.ones(4, 5, dtype=torch.float64), network.neurons.describe(neuron)
        if stepped:
            for current in currents:
                _, state = neuron(current, state)
        else:
            _, state = Firing(dynamics).with_gradient(currents.flatten(0, 1), state, T)
        (of_last * state).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    assert gradients[0].any()
    torch.testing.assert_close(gradients[1], gradients[0])
