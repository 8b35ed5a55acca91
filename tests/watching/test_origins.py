"""Spikes times a constant against the spikes themselves, and what looks like them and is none."""

import warnings
from contextlib import nullcontext

import pytest
import snntorch
import torch
from torch import nn
from torch.nn import functional as F

from snnreg_plugins import SynapticOperations
from snnreg_plugins.profile import profile
from tests.helpers import brute_force_operations

CONTEXTS = {"grad": nullcontext, "no_grad": torch.no_grad, "inference": torch.inference_mode}
every_context = pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
CHANNELS, SIZE = 3, 6


class OwnNeuron(nn.Module):
    """A neuron of no framework: it compares."""

    def forward(self, x):
        return (x > 0.5).to(x.dtype)


class Scaled(nn.Module):
    """Spikes, something done to them, and a layer; it keeps what the layer is to count."""

    def __init__(self, idiom, neuron=None):
        super().__init__()
        self.neuron = snntorch.Leaky(beta=0.9, threshold=0.5, init_hidden=True) if neuron is None else neuron
        self.idiom, self.dropout, self.pool, self.inplace = idiom, nn.Dropout(0.25), nn.AvgPool2d(2), nn.ReLU(True)
        self.register_buffer("scale", torch.tensor(0.3))
        self.register_buffer("of_channel", torch.tensor([0.3, 0.7, 1.1]).view(-1, 1, 1))
        self.weight = nn.Parameter(torch.tensor([0.3]))
        self.layer = nn.Conv2d(CHANNELS, 2, 3, padding=1)
        self.events = []

    def forward(self, x):
        values, events = self.idiom(self, self.neuron(x))
        self.events.append(events.detach().clone())
        return self.layer(values)


def written(x):
    """A record that is filled part by part, at one scale."""
    record = torch.zeros(2, *x.shape)
    record[0] = x
    record[1] = x
    return record.mul_(0.3)[1]


IDIOMS = {
    "number": lambda net, s: (s * 0.3, s),
    "number_first": lambda net, s: (0.3 * s, s),
    "negative": lambda net, s: (s * -0.3, s),
    "divided": lambda net, s: (s / 3.1, s),
    "divided_by_infinity": lambda net, s: (s + 0 * (s / torch.tensor(float("inf"))), s),
    "in_place": lambda net, s: (s.clone().mul_(0.3), s),
    "in_place_twice": lambda net, s: (s.clone().mul_(0.3).div_(7), s),
    "buffer": lambda net, s: (s * net.scale, s),
    "parameter": lambda net, s: (net.weight * s, s),
    "of_each_channel": lambda net, s: (s * net.of_channel, s),
    "of_the_batch": lambda net, s: (s * (1.5 * s.mean() + 0.1), s),
    "exponential": lambda net, s: (s * net.weight.exp(), s),
    "dropout": lambda net, s: ((d := F.dropout(s, 0.25)), (d != 0).to(s.dtype)),
    "dropout_module": lambda net, s: ((d := net.dropout(s)), (d != 0).to(s.dtype)),
    "masked": lambda net, s: ((s * 0.3).masked_fill(s.cumsum(-1) > 2, 0.0), s.masked_fill(s.cumsum(-1) > 2, 0.0)),
    "copied": lambda net, s: ((s * 0.3).transpose(2, 3).contiguous().clone(), s.transpose(2, 3)),
    "padded": lambda net, s: (F.pad(s * 0.3, (1, 0, 0, 2)), F.pad(s, (1, 0, 0, 2))),
    "picked": lambda net, s: ((s * 0.3)[:, [2, 0, 1]], s[:, [2, 0, 1]]),
    "upsampled": lambda net, s: (F.interpolate(s * 0.3, scale_factor=2), F.interpolate(s, scale_factor=2)),
    "max_pool": lambda net, s: (F.max_pool2d(s * 0.3, 2), F.max_pool2d(s, 2)),
    "relu_in_place": lambda net, s: (net.inplace(s * 0.3), s),
    "avg_pool": lambda net, s: (net.pool(s * 0.3), 4 * F.avg_pool2d(s, 2)),
    "avg_pool_functional": lambda net, s: (F.avg_pool2d(s * 0.3, 3), (9 * F.avg_pool2d(s, 3)).round()),
    "scaled_average": lambda net, s: (net.pool(s) * 0.3, 4 * F.avg_pool2d(s, 2)),
    "average_dropped_out": lambda net, s: ((d := net.dropout(net.pool(s))), (d * 3).round()),
    "sum": lambda net, s: (s * 0.3 + s.flip(-1) * 0.3, s + s.flip(-1)),
    "mean_of_steps": lambda net, s: (torch.stack([s, s.flip(-1), s]).mean(0) * 0.7, 2 * s + s.flip(-1)),
    "side_by_side": lambda net, s: (torch.cat([s[:, :1] * 0.3, s[:, 1:]], 1), s),
    "record": lambda net, s: (written(s), s),
    "gated_by_spikes": lambda net, s: (s * 0.3 * s.flip(-1), s * s.flip(-1)),
}


def images(batch=2):
    return torch.rand(batch, CHANNELS, SIZE, SIZE)


def counted(metric, name="layer"):
    samples = int(metric.samples)
    return tuple(round(metric.by_layer(each)[name] * samples) for each in ("sops", "effective_macs", "dense_macs"))


def by_hand(net):
    costs = [brute_force_operations(net.layer, events) for events in net.events]
    return tuple(map(sum, zip(*costs, strict=True)))


@pytest.mark.parametrize(
    ("neuron", "context"),
    [(None, nullcontext), (None, torch.inference_mode), (OwnNeuron(), torch.no_grad)],
    ids=["grad", "inference", "own_no_grad"],
)
@pytest.mark.parametrize("name", IDIOMS)
def test_spikes_times_a_constant_are_events(name, neuron, context, recwarn):
    torch.manual_seed(0)
    net = Scaled(IDIOMS[name], neuron)
    with SynapticOperations(net) as metric, context():
        for _ in range(4):
            net(images())
    assert by_hand(net)[0] > 0
    assert counted(metric) == by_hand(net)
    assert not [each for each in recwarn if "does not count" in str(each.message)]


@pytest.mark.parametrize("factor", [0.3, torch.tensor([0.3, 0.7, 1.1]).view(-1, 1, 1)], ids=["number", "channels"])
def test_graded_spikes_are_events(factor):
    torch.manual_seed(0)
    net = Scaled(lambda net, s: (s, (s != 0).to(s.dtype)))
    net.neuron.graded_spikes_factor = nn.Parameter(torch.as_tensor(factor))
    with SynapticOperations(net) as metric:
        for _ in range(4):
            net(images())
    assert counted(metric) == by_hand(net)
    assert by_hand(net)[0] > 0
    net.neuron.reset_mem()
    net.events.clear()
    assert profile(net, images()).layers[-1].sops == by_hand(net)[0] / 2


def test_a_constant_may_change_while_it_is_trained():
    torch.manual_seed(0)
    net = Scaled(lambda net, s: (net.pool(net.weight * s), 4 * F.avg_pool2d(s, 2)))
    with SynapticOperations(net) as metric:
        for _ in range(5):
            net(images())
            net.weight.data.mul_(1.7)
    assert counted(metric) == by_hand(net)


def test_dropout_may_start_late():
    torch.manual_seed(0)
    net = Scaled(IDIOMS["dropout_module"]).eval()
    with SynapticOperations(net) as metric:
        for index in range(8):
            net.train(index > 4)
            net(images())
    assert counted(metric) == by_hand(net)


def test_products_with_weights_read_scaled_spikes_too():
    class Functional(Scaled):
        def forward(self, x):
            values, events = self.idiom(self, self.neuron(x))
            self.events.append(events.clone())
            return F.conv2d(values, self.layer.weight, padding=1)

    torch.manual_seed(0)
    net = Functional(IDIOMS["avg_pool"])
    with SynapticOperations(net) as metric:
        for _ in range(3):
            net(images())
    assert counted(metric, "") == by_hand(net)


def overwritten_in_part(x):
    x[:, :1] = torch.sigmoid(x[:, :1])
    return x


REAL = {
    "one_active_unit": lambda net, s: (
        torch.zeros_like(s).index_fill(3, torch.tensor([2]), 0.3) * s.mean((1, 2, 3)).view(-1, 1, 1, 1)
    ),
    "gated_by_activity": lambda net, s: s * torch.sigmoid(s.mean((2, 3), keepdim=True)),
    "shifted": lambda net, s: s * 0.3 + 0.1,
    "normalized": lambda net, s: F.batch_norm(s, None, None, training=True),
    "added_to_activity": lambda net, s: s * 0.3 + net.weight.exp() * torch.sigmoid(s),
    "overwritten": lambda net, s: (s * 0.3).copy_(torch.sigmoid(s)),
    "channels_gated_in_place": lambda net, s: (s * net.of_channel).mul_(torch.sigmoid(s.mean((2, 3), keepdim=True))),
    "channels_overwritten_in_part": lambda net, s: overwritten_in_part(s * net.of_channel),
    "overwritten_in_part": lambda net, s: F.pad(s * 0.3, (0, 0)).index_copy_(
        1, torch.tensor([0]), torch.sigmoid(s[:, :1])
    ),
}


@every_context
@pytest.mark.parametrize("name", REAL)
def test_what_is_more_than_a_constant_is_multiplied(name, context):
    torch.manual_seed(0)
    seen = []
    net = Scaled(lambda net, s: (seen.append(REAL[name](net, s)) or seen[-1], s))
    with SynapticOperations(net) as metric, context():
        for _ in range(3):
            net(images())
    expected = sum(brute_force_operations(net.layer, (x != 0).to(x.dtype))[0] for x in seen)
    assert counted(metric)[:2] == (0, expected)


def test_activity_of_a_dnn_is_multiplied_however_few_units_are_active(recwarn):
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Dropout(0.5), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor([0.7, -1.0, -1.0]))
    with SynapticOperations(model) as metric:
        model.train()(torch.full((5, 4), 0.5))
        model.eval()(torch.full((1, 4), 0.5))
    assert counted(metric, "0")[:2] == (0, 6 * 4 * 3)
    assert counted(metric, "3")[0] == 0
    assert counted(metric, "3")[1] > 0
    assert not recwarn


def test_sums_of_several_scales_are_named():
    net = Scaled(lambda net, s: (s * 0.3 + s.flip(-1) * 0.5, s))
    with SynapticOperations(net) as metric:
        with pytest.warns(UserWarning, match="'layer' .*several scales"):
            net(torch.ones(2, CHANNELS, SIZE, SIZE))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            net(torch.ones(2, CHANNELS, SIZE, SIZE))
    assert counted(metric)[0] == 0
    assert counted(metric)[1] > 0


def test_scaled_spikes_of_which_nothing_is_known_are_named():
    neuron, layer = snntorch.Leaky(beta=0.9, threshold=0.5, init_hidden=True), nn.Linear(4, 2)
    blocks = nn.ModuleList([neuron, layer])
    with SynapticOperations(blocks), pytest.warns(UserWarning, match="'1' .*0 or 0.3.* times a constant"):
        layer(0.3 * neuron(torch.ones(2, 4)))  # from outside, where nothing is seen of the product


@every_context
def test_an_average_that_is_changed_in_place_is_none(context):
    """Inference mode does not tell of the change."""
    net = Scaled(lambda net, s: (net.pool(s).add_(torch.rand(())).mul_(0.37), s), OwnNeuron())
    with SynapticOperations(net) as metric, context():
        for _ in range(5):
            net(images())
    assert counted(metric)[0] == 0


def test_averages_in_half_precision_are_counted_or_named():
    for size in (2, 32):
        model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 3)).bfloat16()
        x = (torch.rand(4, 1, size, size) < 0.7).bfloat16()
        with warnings.catch_warnings(record=True) as caught, SynapticOperations(model) as metric:
            warnings.simplefilter("always")
            model(x)
        named = any("too coarse" in str(each.message) for each in caught)
        assert named == (size == 32)
        assert named or counted(metric, "2")[0] == 3 * int(x.sum())
