"""Several threads at a time: each exports the same network as one alone, and computes what it always does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from snnreg_plugins import to_norse, to_snntorch
from snnreg_plugins.export.tracer import Tracer
from tests import nets

T = 3


@torch.no_grad()
def test_threads_that_export_and_threads_that_compute():
    model, _, x = nets.make("lenet_functional", torch.float32)
    model.train()
    expected = to_snntorch(model, x, timesteps=T)(x)
    # With a hook, which tracing goes past.
    other = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    other.register_forward_hook(lambda module, args, output: output + 1)
    values = torch.rand(20, 4)
    scores = other(values)

    def work(job):
        if job % 3 == 2:
            return all(torch.equal(other(values), scores) for _ in range(20))
        export = (to_snntorch, to_norse)[job % 3]
        return torch.equal(export(model, x, timesteps=T)(x), expected)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(24)))
    assert all(module.training for module in model.modules())


def test_what_other_threads_call_is_not_traced():
    """A forward of the user's that has a thread of its own at work."""

    class Parallel(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2)
            self.other = nn.Linear(3, 2)

        def forward(self, x):
            with ThreadPoolExecutor(1) as pool:
                self.found = pool.submit(self.other, torch.ones(1, 3)).result()
            return self.fc(x)

    model = Parallel()
    graph = Tracer(torch.ones(2, 3)).trace(model)
    assert [node.target for node in graph.nodes if node.op == "call_module"] == ["fc"]
    assert torch.equal(model.found, model.other(torch.ones(1, 3)))
