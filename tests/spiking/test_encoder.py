"""Learned input codes: what is sent, how rows stay normalized, and what it costs."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import snntorch
import torch
from norse.torch import LIFCell
from torch import nn
from torch.nn import functional as F

from snnreg_plugins import ConversionError, SpikeRate, SynapticOperations, TableEncoder, to_snntorch
from snnreg_plugins.functional import midrise

B, N, M, T = 5, 6, 3, 4


class Loop(nn.Module):
    """A user's network of snnTorch: reads ``(T, B, N)``."""

    def __init__(self, inputs=N * M):
        super().__init__()
        self.fc1, self.lif, self.fc2 = nn.Linear(inputs, 7), snntorch.Leaky(beta=0.9, threshold=0.1), nn.Linear(7, 3)

    def forward(self, x):
        state, total = self.lif.init_leaky(), 0.0
        for frame in x:
            spikes, state = self.lif(self.fc1(frame), state)
            total = total + self.fc2(spikes.to(x.dtype))
        return total / len(x)


class NorseLoop(Loop):
    def __init__(self):
        super().__init__()
        self.lif = LIFCell()

    def forward(self, x):
        state, total = None, 0.0
        for frame in x:
            spikes, state = self.lif(self.fc1(frame), state)
            total = total + self.fc2(spikes.to(x.dtype))
        return total / len(x)


def rows(encoder):
    """The table as it is to be used, by the formulas of the docstring."""
    table = encoder.weight.detach().clone()
    for row in table.flatten(0, 1):
        row /= row.abs().max()
    if encoder.pattern_bits == 1:
        return (table > 0.5).to(table)
    return table


@pytest.mark.parametrize("channels", [None, N])
@pytest.mark.parametrize("shape", [(B, N), (B, N, 2), (B, N, 2, 3)])
@pytest.mark.parametrize("pattern_bits", [None, 1])
def test_each_value_sends_its_row(channels, shape, pattern_bits):
    encoder = TableEncoder(M, T, bits=4, channels=channels, pattern_bits=pattern_bits)
    with torch.no_grad():
        encoder.weight.mul_(torch.rand(16, 1, 1) + 0.5)
    table, x = rows(encoder), 3 * torch.randn(shape)
    sent = encoder(x)
    assert sent.shape == (T, B, N * M, *shape[2:])
    codes = midrise(x, 4, -4.0, 4.0)
    for place in torch.cartesian_prod(*map(torch.arange, shape)).tolist():
        b, n, *rest = place
        pattern = table[0 if channels is None else n, codes[tuple(place)]]  # (M, T)
        torch.testing.assert_close(sent[(slice(None), b, slice(n * M, n * M + M), *rest)], pattern.T)


def test_images_of_bytes_and_values_that_are_no_numbers():
    encoder = TableEncoder(1, T, low=0, high=256, pattern_bits=1)
    images = torch.randint(256, (2, 1, 3, 3), dtype=torch.uint8)
    assert torch.equal(encoder(images), encoder(images.double()))
    x = torch.zeros(B, N)
    x[2, 3] = torch.nan
    sent = TableEncoder(M, T)(x)
    assert sent.isnan().any(2).sum() == T
    assert sent[:, 2, 3 * M : 4 * M].isnan().all()


@pytest.mark.parametrize("pattern_bits", [None, 1, 3])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_training_is_that_of_a_table_whose_rows_are_divided_after_every_step(pattern_bits, optimizer):
    torch.manual_seed(0)
    encoder, network = TableEncoder(M, T, bits=3, pattern_bits=pattern_bits).double(), Loop().double()
    by_hand = nn.Embedding(8, M * T, dtype=torch.float64)
    with torch.no_grad():
        by_hand.weight.copy_(encoder.weight.flatten(2)[0])
    other = copy.deepcopy(network)
    x, y = torch.randn(40, N, dtype=torch.float64), torch.randint(3, (40,))

    steps = optimizer([*encoder.parameters(), *network.parameters()], lr=0.05)
    same = optimizer([*by_hand.parameters(), *other.parameters()], lr=0.05)
    for _ in range(5):
        steps.zero_grad()
        (F.cross_entropy(network(encoder(x)), y) + 0.1 * encoder.sparsity()).backward()
        steps.step()

        same.zero_grad()
        w = by_hand.weight
        pattern = by_hand(midrise(x, 3, -4.0, 4.0))
        if pattern_bits is not None:
            hard = (pattern > 0.5).double() if pattern_bits == 1 else (pattern * 3).round() / 3
            pattern = pattern + (hard - pattern).detach()
        read = pattern.view(40, N, M, T).permute(3, 0, 1, 2).flatten(2)
        (F.cross_entropy(other(read), y) + 0.1 * (w.abs().sum(1) / w.square().sum(1).sqrt()).mean()).backward()
        same.step()
        with torch.no_grad():
            w /= w.abs().amax(1, keepdim=True)
    torch.testing.assert_close(encoder.patterns().detach(), _sent(by_hand, pattern_bits), rtol=0, atol=1e-12)
    torch.testing.assert_close(network.fc1.weight, other.fc1.weight, rtol=0, atol=1e-12)


def _sent(table, pattern_bits):
    w = table.weight.detach().view(1, 8, M, T)
    return w if pattern_bits is None else (w > 0.5).double() if pattern_bits == 1 else (w * 3).round() / 3


def test_two_calls_and_the_sparsity_in_one_loss():
    encoder = TableEncoder(M, T)
    with torch.no_grad():
        encoder.weight.mul_(3)
    loss = encoder.sparsity() + encoder(torch.randn(B, N)).square().sum() + encoder(torch.randn(B, N)).sum()
    encoder.patterns()
    loss.backward()  # nothing that it needs was written to
    assert encoder.weight.grad.isfinite().all()


def test_sparsity_is_between_one_and_the_root_of_the_entries():
    encoder = TableEncoder(M, T)
    w = encoder.weight.detach()[0].flatten(1)
    torch.testing.assert_close(encoder.sparsity(), (w.abs().sum(1) / w.norm(dim=1)).mean())
    with torch.no_grad():
        encoder.weight.fill_(0.25)
    torch.testing.assert_close(encoder.sparsity().item(), (M * T) ** 0.5)
    with torch.no_grad():
        encoder.weight.zero_()
        encoder.weight[..., 0, 0] = -2
        encoder.weight[:, 3] = 0
    torch.testing.assert_close(encoder.sparsity().item(), 255 / 256)
    encoder.sparsity().backward()
    assert encoder.weight.grad.isfinite().all()


@pytest.mark.parametrize("network", [Loop, NorseLoop, "exported"])
@pytest.mark.parametrize("pattern_bits", [None, 1, 2, 8])
def test_costs_are_those_of_what_is_sent(network, pattern_bits):
    encoder = TableEncoder(M, T, pattern_bits=pattern_bits)
    x = torch.randn(B, N)
    if network == "exported":
        dnn = nn.Sequential(nn.Linear(N * M, 7), nn.ReLU(), nn.Linear(7, 3))
        net = to_snntorch(dnn, encoder(torch.randn(64, N)).detach(), timesteps=T, time_dim=0)
    else:
        net = network()
    model = nn.Sequential(encoder, net)
    with warnings.catch_warnings(), SynapticOperations(model) as sops, SpikeRate(model) as rate:
        warnings.simplefilter("error")
        for _ in range(2):
            model(x)
    first = next(name for name in sops.by_layer() if "fc1" in name or name.endswith(".0"))
    sent, whole = encoder(x), pattern_bits in (1, 2)
    events = sent.abs().sum().item() if whole else (sent != 0).sum().item()
    assert sops.by_layer("sops")[first] == pytest.approx(7 * events / B if whole else 0)
    assert sops.by_layer("effective_macs")[first] == pytest.approx(0 if whole else 7 * events / B)
    assert sops.by_layer("dense_macs")[first] == 7 * N * M * T
    assert len(sops.by_layer()) == 2  # looking up is no synapse
    assert rate.compute() >= 0


def test_gradients_reach_the_table_through_an_exported_network():
    encoder = TableEncoder(M, T, pattern_bits=1)
    dnn = nn.Sequential(nn.Linear(N * M, 7), nn.ReLU(), nn.Linear(7, 3))
    network = to_snntorch(dnn, encoder(torch.randn(64, N)).detach(), timesteps=T, time_dim=0)
    network.time_dim = 0
    x = torch.randn(B, N)
    nn.Sequential(encoder, network)(x).square().sum().backward()
    used = midrise(x, 8, -4.0, 4.0).unique()
    assert encoder.weight.grad[0, used].abs().sum() > 0
    rest = torch.ones(256, dtype=torch.bool)
    rest[used] = False
    assert encoder.weight.grad[0, rest].abs().sum() == 0


def test_copies_pickles_and_inference():
    encoder, x = TableEncoder(M, T, channels=N), torch.randn(B, N)
    sent = encoder(x)
    with torch.no_grad():
        encoder.weight.mul_(2)
    assert encoder.state_dict()["weight"].abs().amax((2, 3)).eq(1).all()
    again = TableEncoder(M, T, channels=N)
    again.load_state_dict(encoder.state_dict())
    for other in (again, copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        torch.testing.assert_close(other(x), sent)
    with torch.inference_mode():
        torch.testing.assert_close(encoder(x), sent)
    encoder(x).sum().backward()  # after it
    torch.testing.assert_close(encoder.requires_grad_(False)(x), sent)


def test_a_network_with_it_inside_is_not_exported_but_what_reads_it_is():
    encoder, dnn = TableEncoder(M, T), nn.Sequential(nn.Linear(N * M, 7), nn.ReLU(), nn.Linear(7, 3))
    x = torch.randn(64, N)
    with pytest.raises(ConversionError, match=r"layer '0': TableEncoder.*with time_dim=0.*nn.Sequential"):
        to_snntorch(nn.Sequential(encoder, dnn), x, timesteps=T)
    network = to_snntorch(dnn, encoder(x).detach(), timesteps=T, time_dim=0)  # what it says
    torch.testing.assert_close(nn.Sequential(encoder, network)(x), network(encoder(x), time_dim=0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(lines=0), "`lines`"),
        (dict(bits=17), "`bits` to be at most 16, but got 17"),
        (dict(pattern_bits=0), "`pattern_bits`"),
        (dict(low=1.0, high=1.0), "`low` to be below `high`"),
        (dict(high=float("inf")), "`high`"),
        (dict(channels=0), "`channels`"),
    ],
)
def test_what_is_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        TableEncoder(**arguments)


def test_inputs_of_another_shape_or_kind():
    with pytest.raises(TypeError, match="`x` to be a tensor, but got list"):
        TableEncoder()([[0.5]])
    with pytest.raises(ValueError, match=r"shape \(B, 3, \.\.\.\), but got \(2, 4\)"):
        TableEncoder(channels=3)(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"shape \(B, C, \.\.\.\), but got \(4,\)"):
        TableEncoder()(torch.zeros(4))
