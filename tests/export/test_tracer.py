"""Tracing on samples: sizes are known, defaults stay, and what cannot be recorded is refused."""

from __future__ import annotations

import builtins

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from snnreg_plugins.export.tracer import Tracer


def traced(forward, samples):
    """Trace a module with this forward, and give what its graph computes for the samples beside the module's own."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

    Net.forward = forward
    net = Net().eval()
    graph = Tracer(samples).trace(net)
    return graph, fx.GraphModule(net, graph)(samples), net(samples)


def defaults(self, x, normalized=None, scale=2.0, *rest, flag=True, **more):
    if normalized is None:
        x = x - 0.5
    return self.conv(x * scale) if flag and not rest and not more else x


def asks_for_a_tensor(self, x):
    return self.conv(x) if isinstance(x, torch.Tensor) else x


def unpacks_the_shape(self, x):
    batch, channels, height, width = x.shape
    return x.reshape(batch, channels * height, width).mean(2)


def asserts(self, x):
    torch._assert(x.ndim == 4, "four dimensions")
    assert len(x.shape) == 4
    assert x.size(1) == 3
    if x.dtype != torch.float32 or x.device.type != "cpu":
        raise ValueError
    return self.conv(x)


def branches_on_the_size(self, x):
    return self.conv(x) if x.shape[2] > 5 else x


def counts_in_a_loop(self, x):
    for _ in range(x.size(1) - 1):
        x = x + 1
    return x


def pools_all(self, x):
    return F.avg_pool2d(x, x.size()[3]) + F.max_pool2d(x, (x.size(2), x.shape[3]))


def follows_a_size(self, x):
    return F.interpolate(F.avg_pool2d(x, 2), size=x.shape[2:])


def divides(self, x):
    return x.sum((2, 3)) / (x.shape[2] * x.shape[3])


def makes_zeros(self, x):
    return x + x.new_zeros(x.size(0), 1, 1, 1)


@pytest.mark.parametrize(
    "forward",
    [
        defaults,
        asks_for_a_tensor,
        unpacks_the_shape,
        asserts,
        branches_on_the_size,
        counts_in_a_loop,
        pools_all,
        follows_a_size,
        divides,
        makes_zeros,
    ],
)
def test_computes_what_the_forward_does(forward):
    _, found, expected = traced(forward, torch.rand(2, 3, 6, 6))
    assert torch.equal(found, expected)


def test_every_node_knows_its_value():
    samples = torch.rand(2, 3, 6, 6)
    graph, _, expected = traced(unpacks_the_shape, samples)
    known = [node.meta["known"] for node in graph.nodes]
    assert torch.equal(known[0], samples)
    assert [one for one in known if isinstance(one, int)][:4] == [2, 3, 6, 6]
    assert torch.equal(graph.output_node().args[0].meta["known"], expected)


def test_the_batch_stays_open():
    def forward(self, x):
        return self.conv(x).view(x.size(0), -1)

    graph, _, _ = traced(forward, torch.rand(2, 3, 6, 6))
    holder = nn.Module()
    holder.conv = nn.Conv2d(3, 4, 3)
    assert fx.GraphModule(holder, graph)(torch.rand(5, 3, 6, 6)).shape == (5, 64)


def branches_on_values(self, x):
    return x if x.mean() > 0.5 else 2 * x


def loops_over_a_batch(self, x):
    return torch.stack(list(x))


@pytest.mark.parametrize("forward", [branches_on_values, loops_over_a_batch])
def test_what_depends_on_values_is_refused(forward):
    with pytest.raises(fx.proxy.TraceError):
        traced(forward, torch.rand(2, 3, 6, 6))


def test_calls_of_reentrant_checkpointing_are_followed():
    samples = torch.rand(2, 3, 6, 6)
    _, found, expected = traced(lambda self, x: checkpoint(self.conv, x, use_reentrant=True), samples)
    assert torch.equal(found, expected)
    assert type(builtins.isinstance) is type(len)  # as it was


def test_numbers_read_out_of_values_may_be_shown():
    def shows(self, x):
        str((x.mean().item(), x.tolist()))
        return self.conv(x)

    _, found, expected = traced(shows, torch.rand(2, 3, 6, 6))
    assert torch.equal(found, expected)
