"""Networks of which a part spikes and the rest stays as it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from snnreg_plugins import ConversionError, SynapticOperations, load_network, save_network, to_norse, to_snntorch
from tests.export.reference import simulate
from tests.nets import Chain

T = 8


class Attention(nn.Module):
    """A spiking front, attention over its positions, and a head with GELU, norms and tensors of its own."""

    def __init__(self):
        super().__init__()
        self.front = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.token = nn.Parameter(torch.rand(4))
        self.head = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))

    def forward(self, x):
        x = self.front(x).flatten(2).transpose(1, 2) + self.token
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        return self.head(x.mean(dim=1))


def attention():
    torch.manual_seed(0)
    model = Attention()
    model.front[1].running_mean.normal_(0, 0.1)
    model.head[2].running_var.uniform_(0.5, 2)
    return model.double().eval(), torch.rand(20, 1, 6, 6, dtype=torch.float64)


@torch.no_grad()
def test_the_head_reads_the_mean_of_the_spikes():
    model, x = attention()
    network = to_snntorch(model, x, timesteps=T, threshold="max", correction="none", until="front")
    level = model.front[:3](x).max().float().double()
    _, running = simulate([*model.front], [level], x, T)

    def rest(front):
        y = front.flatten(2).transpose(1, 2) + model.token
        y = model.norm(y + model.attention(y, y, y, need_weights=False)[0])
        return model.head(y.mean(dim=1))

    expected = torch.stack([rest(mean) for mean in running])
    torch.testing.assert_close(network(x, per_step=True), expected)
    torch.testing.assert_close(network(x), expected[-1])
    assert torch.equal(
        to_norse(model, x, timesteps=T, threshold="max", correction="none", until="front")(x), network(x)
    )


def test_modes_make_no_difference():
    model, x = attention()
    network = to_snntorch(model, x, timesteps=T, until="front")
    before = network.train()(x)
    assert torch.equal(network.eval()(x), before)
    network(x).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@torch.no_grad()
def test_what_spikes_and_what_does_not_is_counted_apart():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 5), nn.SiLU(), nn.Linear(5, 3)
    )
    x = torch.rand(20, 6)
    network = to_snntorch(model, x, timesteps=T, until="3")
    with SynapticOperations(network) as operations:
        network(x)
        sops, macs = operations.by_layer(), operations.by_layer("effective_macs")
    assert sops["2"] > 0
    assert macs["0"] == 6 * 8
    assert macs["2"] == 0
    # Once, not in every step, though not more than the neurons that spiked at all.
    assert 0 < macs["4"] <= 7 * 5
    assert macs["6"] == 5 * 3
    network.timesteps = 1  # a mean of one step is a number too
    with SynapticOperations(network) as operations:
        network(x)
        assert operations.by_layer()["4"] == 0
        assert 0 < operations.by_layer("effective_macs")["4"] <= 7 * 5


@pytest.mark.parametrize("until", ["relu", "block"])
def test_a_layer_or_a_block_in_front_of_a_rest_without_weights(until):
    model = Chain(
        lambda m, x: F.softmax(m.relu(m.a(x)) if until == "relu" else m.block(x), 1),
        a=nn.Linear(6, 4), relu=nn.ReLU(), block=nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Dropout(0.5)),
    )  # fmt: skip
    x = torch.rand(20, 6)
    network = to_snntorch(model, x, timesteps=512, until=until)
    torch.testing.assert_close(network(x), model.eval()(x), atol=0.01, rtol=0)


def test_the_last_layer_leaves_an_empty_head():
    model, x = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), torch.rand(20, 6)
    network = to_snntorch(model, x, timesteps=T, until="2")
    assert torch.equal(network(x), to_snntorch(model, x, timesteps=T)(x))


def test_a_layer_called_twice_has_two_names():
    a, b, c, relu = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3), nn.ReLU()
    model, x = Chain(lambda m, x: m.c(m.relu(m.b(m.relu(m.a(x))))), a=a, b=b, c=c, relu=relu), torch.rand(20, 6)
    once, twice = (to_snntorch(model, x, timesteps=T, until=name) for name in ("relu", "relu_1"))
    assert [len(network.levels) for network in (once, twice)] == [1, 2]


def test_what_does_not_separate_the_network_is_refused():
    model = Chain(lambda m, x: m.c(F.gelu(m.b(m.r(m.a(x)))) + m.a(x)), a=nn.Linear(6, 6), b=nn.Linear(6, 6),
                  c=nn.Linear(6, 3), r=nn.ReLU())  # fmt: skip
    with pytest.raises(ConversionError, match="Layer 'r' does not separate the network: .* Choose an `until` that all"):
        to_snntorch(model, torch.rand(20, 6), timesteps=T, until="r")


@pytest.mark.parametrize("until", ["fc", "", "relu.1"])
def test_an_unknown_layer(until):
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"Expected argument `until` to be a layer or block, one of \['0', '1', '2'\]"):
        to_snntorch(model, torch.rand(20, 6), timesteps=T, until=until)


def test_nothing_spikes_before_the_first_activation():
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    with pytest.raises(ConversionError, match="nothing would spike"):
        to_snntorch(model, torch.rand(20, 6), timesteps=T, until="0")


class Recurrent(nn.Module):
    """Convolutions, and an LSTM whose first state its forward makes, in the ways in which people do."""

    def __init__(self, first_state):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.relu, self.first_state = nn.Conv1d(2, 4, 3, padding=1), nn.ReLU(), first_state
        self.lstm, self.out = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        early = self.first_state(x)
        y = self.relu(self.conv(x)).transpose(1, 2)
        states, _ = self.lstm(y, early or self.first_state(y))
        return self.out(states[:, -1])


@pytest.mark.parametrize(
    "first_state",
    [
        lambda x: (torch.zeros(1, x.size(0), 5, device=x.device), torch.zeros((1, len(x), 5))),
        lambda x: (x.new_zeros(1, x.shape[0], 5),) * 2,
        lambda x: (torch.zeros(1, x.size()[0], 5) + 0.5, torch.zeros_like(x.new_ones(1, x.shape[0], 5))),
        lambda x: None if x.shape[1] == 2 else (x.new_zeros(1, x.shape[0], 5), torch.ones(1, len(x), 5)),
    ],
)
def test_a_first_state_is_made_for_the_batch_that_is_there(first_state, tmp_path):
    net, x = Recurrent(first_state).eval(), torch.rand(9, 2, 12)
    network = to_snntorch(net, x, timesteps=256, threshold="max", correction="none", until="relu")
    save_network(network, tmp_path / "spiking.pt")
    again = load_network(tmp_path / "spiking.pt", net)
    with torch.no_grad():
        for count in (9, 4):
            assert (network(x[:count]) - net(x[:count])).abs().max() < 0.02 * net(x).std()
            assert torch.equal(again(x[:count]), network(x[:count]))
