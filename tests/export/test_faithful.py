"""What is exported is what is called, or the error names what is in the way."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from snnreg_plugins import ConversionError, SynapticOperations, diagnose, report, to_norse, to_snntorch


def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    return net.eval(), torch.rand(30, 6)


def clipped(net):
    net[1].register_forward_hook(lambda module, args, output: output.clamp(max=0.1))


def shifted_input(net):
    net.register_forward_pre_hook(lambda module, args: (args[0] - 0.5,))


def own_weight(net):
    def halve(module, args):
        module.weight.data = torch.full_like(module.weight, 0.1)

    net[2].register_forward_pre_hook(halve)


def forward_of_the_instance(net):
    inner = net[2].forward
    net[2].forward = lambda x: 2 * inner(x)


IN_THE_WAY = {
    "hook": (clipped, "a forward hook of layer '1' .*clipped"),
    "pre-hook": (shifted_input, "a forward pre-hook of Sequential .*shifted_input"),
    "weight in a hook": (own_weight, "a forward pre-hook of layer '2' .*own_weight"),
    "forward": (forward_of_the_instance, "a forward of its own on layer '2'"),
}


@pytest.mark.parametrize("export", [to_snntorch, to_norse])
@pytest.mark.parametrize("name", IN_THE_WAY)
def test_what_acts_in_a_call_alone_is_named(name, export):
    net, x = model()
    put, message = IN_THE_WAY[name]
    put(net)
    with pytest.raises(ConversionError, match=message):
        export(net, x, timesteps=4)


@pytest.mark.parametrize(
    "measure", [lambda net, network, x: report(net, network, [(x, torch.zeros(len(x)).long())]), diagnose]
)
def test_reports_compare_too(measure):
    net, x = model()
    network = to_snntorch(net, x, timesteps=4)
    clipped(net)
    with pytest.raises(ConversionError, match="a forward hook of layer '1'"):
        measure(net, network, x)


def test_hooks_that_change_nothing_are_no_matter():
    net, x = model()
    expected, seen = to_snntorch(net, x, timesteps=4)(x), []
    net[1].register_forward_hook(lambda module, args, output: seen.append(len(output)))
    assert torch.equal(to_snntorch(net, x, timesteps=4)(x), expected)
    assert seen == [30]


def test_random_numbers_are_refused():
    class Noisy(nn.Sequential):
        def forward(self, x):
            return super().forward(x + torch.rand(6))

    net, x = model()
    with pytest.raises(ConversionError, match="random numbers or a state kept in forward"):
        to_snntorch(Noisy(*net), x, timesteps=4)


def test_a_branch_on_the_batch_is_refused():
    class Branches(nn.Sequential):
        def forward(self, x):
            return super().forward(x) if x.size(0) < 5 else 2 * super().forward(x)

    net, x = model()
    with pytest.raises(ConversionError, match="the size of the batch"):
        to_snntorch(Branches(*net), x, timesteps=4)


def test_a_size_of_the_batch_that_is_fixed_is_refused():
    class Fixed(nn.Sequential):
        def forward(self, x):
            return super().forward(x.reshape(int(x.size(0)), 6))

    net, x = model()
    with pytest.raises(ConversionError, match="traced on another number of samples"):
        to_snntorch(Fixed(*net), x, timesteps=4)


def test_buffers_and_data_are_left_as_they_were():
    class Counts(nn.Sequential):
        def __init__(self, *layers):
            super().__init__(*layers)
            self.register_buffer("calls", torch.zeros(()))
            self.total, self.kept = torch.zeros(()), None

        def forward(self, x):
            self.calls += 1
            self.total.add_(1)
            self.kept = x
            return super().forward(x.relu_())

    net, x = model()
    net, given = Counts(*net), x - 0.5
    before = given.clone()
    state = copy.deepcopy(net.state_dict())
    to_snntorch(net, given, timesteps=4)
    assert torch.equal(given, before)
    assert net.kept is None
    assert net.total == 0
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_our_own_metrics_do_not_count_it():
    net, x = model()
    with SynapticOperations(net) as operations:
        net(x[:7])
        before = operations.total("dense_macs")
        to_snntorch(net, x, timesteps=4)
        assert operations.samples == 7
        assert operations.total("dense_macs") == before
