"""The surrogate gradient against its formula."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from snnreg_plugins.frameworks.surrogate import FastSigmoid


@pytest.mark.parametrize("slope", [1.0, 25, torch.tensor([[0.5], [3.0]])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_spike_and_gradient(slope, dtype):
    u = torch.tensor([-3.0, -0.5, 0.0, 0.25, 2.0], dtype=dtype).repeat(2, 1).requires_grad_()
    incoming = torch.arange(1, 11).reshape(2, 5).to(dtype)
    spikes = FastSigmoid(slope)(u)
    spikes.backward(incoming)
    assert torch.equal(spikes, (u > 0).to(dtype))  # 0 at the threshold itself
    assert spikes.dtype == u.grad.dtype == dtype
    expected = incoming.double() / (1 + torch.as_tensor(slope) * u.detach().double().abs()) ** 2
    torch.testing.assert_close(u.grad.double(), expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=0)


def test_goes_through_pickle_deepcopy_and_state_dict():
    spike = FastSigmoid(torch.tensor([2.0, 3.0]))
    other = FastSigmoid(torch.zeros(2))
    other.load_state_dict(spike.state_dict())
    for copied in (pickle.loads(pickle.dumps(spike)), copy.deepcopy(spike), other):
        u = torch.tensor([0.5, -0.5], requires_grad=True)
        copied(u).sum().backward()
        torch.testing.assert_close(u.grad, torch.tensor([1 / 4, 1 / 2.5**2]))
