"""Networks that are trained as spiking ones: batch norms kept, thresholds learned, both gone in the end."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from snnreg_plugins import deploy, diagnose, exit_margins, load_network, save_network, to_nir, to_norse, to_snntorch
from snnreg_plugins.frameworks.surrogate import FastSigmoid
from tests.export.test_architectures import NETS, randomize

T = 5


def made():
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 6, 2, bias=False))
    net = nn.Sequential(*layers, nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
    return randomize(net), torch.rand(12, 1, 8, 8, dtype=torch.float64)


def neuron(currents, threshold, v0, slope):
    """A list of spikes, for a list of currents; no gradient through the reset."""
    v, spikes = v0 + torch.zeros_like(currents[0]), []
    for current in currents:
        v = v + current - (v > threshold).to(v.dtype) * threshold
        spikes.append(FastSigmoid(slope)(v - threshold))
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
        part("2_initial").potential, network.neurons.describe(part("2")).slope,
    )  # fmt: skip
    currents = normed(part("5"), [part("4")(4 * F.avg_pool2d(s, 2)) for s in spikes])
    threshold = network.neurons.describe(part("6")).threshold
    spikes = neuron(currents, threshold, part("6_initial").potential, network.neurons.describe(part("6")).slope)
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
    for beta in (1.0, 0.9):
        network = to_snntorch(net, x, timesteps=T, train_thresholds=trained, beta=beta)
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


@pytest.mark.parametrize("option", [{"batch_norm": "kept"}, {"train_thresholds": True}])
def test_bad_options(option):
    net, x = made()
    with pytest.raises(ValueError, match=f"Expected argument `{next(iter(option))}` to be one of"):
        to_snntorch(net, x, timesteps=T, **option)
