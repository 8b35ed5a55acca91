"""A network of which some layers spike: its forward pass is simulated by hand, its gradient that of the coupled DNN."""

from __future__ import annotations

import copy
import pickle
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from snnreg_plugins import SynapticOperations, to_norse, to_snntorch
from snnreg_plugins.export.calibrate import threshold_function
from snnreg_plugins.export.faithful import traced_faithfully
from snnreg_plugins.spiking.network import SpikingNetwork
from snnreg_plugins.training.rebalance import levels_now, rebalance
from snnreg_plugins.training.tandem import TandemNetwork, layers_of

T = 5


def linear():
    return nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3)), (4,)


def convolutional():
    layers = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 8), nn.ReLU()
    return nn.Sequential(*layers, nn.Linear(8, 3)), (1, 6, 6)


class Branches(nn.Module):
    """A sum, a concatenation, a leaky activation and a mean over places."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(8, 5, 1)
        self.relu1, self.relu2, self.relu3, self.fc = nn.ReLU(), nn.LeakyReLU(0.2), nn.ReLU(), nn.Linear(5, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.relu1(self.a(x))
        y = self.relu2(self.norm(self.b(x)) + x)
        return self.fc(self.relu3(self.c(torch.cat([x, y], 1))).mean((2, 3)))


def branches():
    return Branches(), (1, 6, 6)


def max_pooled():
    layers = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3), nn.ReLU()), (1, 6, 6)


NETS = [linear, convolutional, branches, max_pooled]


def made(net, to=to_snntorch, dtype=torch.float32, **options):
    torch.manual_seed(0)
    dnn, shape = net()
    dnn = dnn.to(dtype).eval()
    x = torch.randn(40, *shape, dtype=dtype)
    network = to(dnn, x, timesteps=T, correction="none", **options)
    return dnn, TandemNetwork(network, layers_of(traced_faithfully(dnn, x), network)), x


def fire(currents, threshold, potential):
    """Soft-reset neurons, one step after the other."""
    v, spikes = potential.expand_as(currents[0]), []
    for current in currents:
        v = v + current - threshold * (v > threshold)
        spikes.append((v > threshold).to(v.dtype))
    return spikes


SYNAPSES = {  # of the exported network
    "linear": [F.linear, F.linear, F.linear],
    "convolutional": [
        lambda x, w, b: F.conv2d(x, w, b, padding=1),
        lambda x, w, b: F.linear(4 * F.avg_pool2d(x, 2).flatten(1), w, b),
        F.linear,
    ],
}


def by_hand(network, x, synapses):
    """Scores, with the gradient that tandem learning means: of the DNN, on rates that are those of spikes."""
    weights, biases = (
        [p for name, p in network.named_parameters() if name.endswith(end)] for end in ("weight", "bias")
    )
    rate, steps = x, [x] * T
    for index, (name,) in enumerate(network.layers):
        of = lambda x, i=index: synapses[i](x, weights[i], biases[i])  # noqa: E731
        threshold = network.dynamics(name).threshold
        coupled = of(rate).relu() / threshold
        if index < network.spiking_layers:
            with torch.no_grad():
                steps = fire([of(step) for step in steps], threshold, network.initial_state(name).potential)
                mean = sum(steps) / T
            coupled = coupled + (mean - coupled).detach()
        rate = coupled
    return synapses[-1](rate, weights[-1], biases[-1])


@pytest.mark.parametrize("spiking", [0, 1, 2])
@pytest.mark.parametrize(("net", "to"), [(linear, to_norse), (convolutional, to_snntorch)])
def test_scores_and_gradients_by_hand(net, to, spiking):
    _, network, x = made(net, to, torch.float64)
    network.spiking_layers = spiking
    y = torch.randint(0, 3, (len(x),))
    names = sorted(name for name, _ in network.named_parameters())
    results = []
    for scores in (network(x), by_hand(network, x, SYNAPSES[net.__name__])):
        network.zero_grad()
        F.cross_entropy(scores, y).backward()
        results.append((scores.detach(), [network.get_parameter(name).grad.clone() for name in names]))
    (scores, found), (expected_scores, expected) = results
    assert torch.allclose(scores, expected_scores, rtol=0, atol=1e-12)
    for name, a, b in zip(names, found, expected, strict=True):
        assert b.abs().max() > 0, name
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-13), name


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("batch_norm", ["fold", "keep"])
def test_without_spikes_it_is_the_dnn_and_with_all_the_spiking_network(net, batch_norm):
    dnn, network, x = made(net, batch_norm=batch_norm)
    network.eval()
    assert torch.allclose(network(x), dnn(x), atol=1e-5)
    plain = network.plain().eval()
    assert type(plain) is SpikingNetwork
    network.spiking_layers = len(network.layers)
    with torch.no_grad():
        assert torch.equal(network(x), plain(x))
    network.train()
    assert torch.allclose(network(x), plain(x), atol=1e-5)  # by the coupled DNN
    assert list(network.state_dict()) == list(plain.state_dict())


def test_layers_in_between_are_between():
    _, network, x = made(convolutional)
    scores = []
    for spiking in range(3):
        network.spiking_layers = spiking
        scores.append(network(x).detach())
    assert all(float((a - b).abs().max()) > 1e-3 for a, b in pairwise(scores))


def test_copies_give_the_same():
    _, network, x = made(branches)
    network.spiking_layers = 2
    scores = network(x)
    for copied in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(copied(x), scores)
        copied.spiking_layers = 1
        assert not torch.equal(copied(x), scores)
        assert torch.equal(network(x), scores)


def test_parts_of_the_dnn_are_no_parts_of_it():
    _, network, _ = made(linear)
    with pytest.raises(AttributeError, match="'features'.*called as a whole"):
        _ = network.features
    with pytest.raises(TypeError, match="called as a whole"):
        _ = network[:-1]


def test_batches_in_parts_give_the_same(monkeypatch):
    _, network, x = made(convolutional, dtype=torch.float64)
    network.spiking_layers = 2
    whole = network(x)
    monkeypatch.setattr("snnreg_plugins.spiking.engine._ELEMENTS", {"cpu": 4 * 36 * T * 3})
    assert torch.allclose(network(x), whole, rtol=0, atol=1e-12)


def test_parameters_in_front_of_layers():
    _, network, _ = made(branches, batch_norm="keep")
    names = {id(p): name for name, p in network.named_parameters()}
    of = lambda layers: sorted({names[id(p)].split(".")[1] for p in network.parameters_before(layers)})  # noqa: E731
    assert of(0) == []
    assert of(1) == ["a"]
    assert {"a", "b", "norm"} <= set(of(2))
    assert set(of(2)) & {"c", "fc"} == set()
    assert "c" in of(3)
    assert "fc" not in of(3)


def test_batch_norms_in_front_of_spikes_keep_their_statistics():
    _, network, x = made(branches, batch_norm="keep")
    (norm,) = (module for module in network.body.modules() if isinstance(module, nn.BatchNorm1d))
    for spiking, changes in ((1, True), (2, False)):
        network.spiking_layers = spiking
        network.train()
        before = norm.running_mean.clone()
        network(x)
        assert torch.equal(norm.running_mean, before) is not changes
    network.spiking_layers = 1
    assert norm.training


def test_nan_is_not_lost():
    _, network, x = made(convolutional)
    x[3, 0, 0, 0] = torch.nan
    for spiking in range(3):
        network.spiking_layers = spiking
        assert network(x).isnan().any(1).tolist() == [index == 3 for index in range(len(x))]


def test_what_asks_for_more_than_scores_is_refused():
    _, network, x = made(linear)
    network.spiking_layers = 1
    with pytest.raises(RuntimeError, match="1 of 2 layers.*single time steps.*spiking_layers to 2"):
        network(x, per_step=True)
    with SynapticOperations(network), pytest.raises(RuntimeError, match="1 of 2 layers.*metric or penalty"):
        network(x)
    handle = network.body.get_submodule("2").register_forward_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match="wants single steps"):
        network(x)
    handle.remove()


def test_with_all_layers_it_is_counted_like_any_spiking_network():
    _, network, x = made(linear)
    network.eval().spiking_layers = 2
    counts = []
    for one in (network, copy.deepcopy(network.plain())):
        with torch.no_grad(), SynapticOperations(one) as sops:
            assert one(x, per_step=True).shape == (T, 40, 3)
            counts.append(float(sops.compute()))
    assert counts[0] == counts[1] > 0


def test_values_out_of_range_and_other_networks():
    _, network, x = made(linear)
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match=f"from 0 to 2, but got {wrong}"):
            network.spiking_layers = wrong
    with pytest.raises(ValueError, match="to name the neurons"):
        TandemNetwork(network.plain(), [["1"]])
    leaky = to_snntorch(linear()[0], x, timesteps=T, beta=0.9)
    with pytest.raises(ValueError, match="beta = 1"):
        TandemNetwork(leaky, [["1"], ["3"]])


# New thresholds.


@pytest.mark.parametrize(
    ("net", "per_channel", "batch_norm", "to"),
    [
        (linear, False, "fold", to_snntorch),
        (convolutional, True, "fold", to_norse),
        (branches, False, "keep", to_norse),
        (branches, True, "fold", to_snntorch),
        (max_pooled, True, "keep", to_snntorch),
        (max_pooled, False, "fold", to_snntorch),
    ],
)
def test_rebalanced_layers_have_the_thresholds_and_the_dnn_is_the_same(net, per_channel, batch_norm, to):
    _, network, x = made(net, to, per_channel=per_channel, batch_norm=batch_norm)
    parameters = list(network.parameters())
    network.eval()
    for layer, names in enumerate(network.layers):
        network.spiking_layers = layer
        before = network(x)
        levels = levels_now(network, layer, [x[:20], x[20:]], threshold_function("max", 100.0), per_channel)
        assert sorted(levels) == sorted(names)
        levels = {name: level * 1.7 for name, level in levels.items()}
        slopes = {name: network.dynamics(name).surrogate.slope * network.dynamics(name).threshold for name in names}
        units = {name: network.initial_state(name).level / network.dynamics(name).threshold for name in names}
        assert rebalance(network, levels, x)
        assert torch.allclose(network(x), before, atol=1e-5)
        for name in names:
            level, dynamics = network.initial_state(name).level, network.dynamics(name)
            assert torch.allclose(level.flatten(), levels[name].expand(level.numel()).flatten())
            assert torch.allclose(dynamics.threshold * units[name], level.expand_as(dynamics.threshold * units[name]))
            assert torch.allclose(network.initial_state(name).potential, dynamics.threshold / 2)
            assert torch.allclose(dynamics.surrogate.slope * dynamics.threshold, slopes[name])
    assert all(a is b for a, b in zip(parameters, network.parameters(), strict=True))


def test_levels_are_those_of_activations_in_the_network_as_it_is():
    _, network, x = made(linear)
    network.spiking_layers = 1
    level = levels_now(network, 1, [x], threshold_function("max", 100.0), per_channel=False)["3"]
    coupled = network.eval()
    weights = dict(network.named_parameters())
    rates = coupled.rates(x)["1"]
    expected = F.linear(rates, *(weights[f"body.2.{name}"] for name in ("weight", "bias"))).relu().max()
    assert float(level) == pytest.approx(float(expected), rel=1e-5)


def test_spikes_that_no_weights_read_keep_their_threshold():
    torch.manual_seed(0)
    dnn = nn.Sequential(nn.Linear(4, 9), nn.ReLU()).eval()
    x = torch.randn(40, 4)
    network = TandemNetwork(to_snntorch(dnn, x, timesteps=T, threshold=lambda *_: torch.tensor(1.0)), [["1"]]).eval()
    before = copy.deepcopy(network.state_dict())
    slope = network.dynamics("1").surrogate.slope.clone()
    assert not rebalance(network, {"1": torch.tensor(2.0)}, x)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert torch.equal(network.dynamics("1").surrogate.slope, slope)
