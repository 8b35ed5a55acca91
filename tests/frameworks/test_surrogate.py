"""The surrogate gradients against their formulas."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from snnreg_plugins.frameworks.surrogate import SURROGATES, FastSigmoid, Triangular, surrogate_of
from snnreg_plugins.frameworks.trained import train_threshold

FORMULAS = {
    "arctan": lambda x: 1 / (1 + x**2),
    "fast_sigmoid": lambda x: 1 / (1 + x) ** 2,
    "gaussian": lambda x: np.exp(-(x**2) / 2),
    "rectangular": lambda x: (x < 1).astype(float),
    "sigmoid": lambda x: 4 * np.exp(-x) / (1 + np.exp(-x)) ** 2,
    "triangular": lambda x: np.maximum(0, 1 - x),
}


@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.parametrize("slope", [1.0, 25, torch.tensor([[0.5], [3.0]])])
@pytest.mark.parametrize("steepness", [None, 2.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_spike_and_gradient(name, slope, steepness, dtype):
    u = torch.tensor([-3.0, -0.5, 0.0, 0.25, 2.0], dtype=dtype).repeat(2, 1).requires_grad_()
    incoming = torch.arange(1, 11).reshape(2, 5).to(dtype)
    kept = u.detach().clone()
    spikes = SURROGATES[name](slope, steepness)(u)
    spikes.backward(incoming)
    assert torch.equal(spikes, (u > 0).to(dtype))  # 0 at the threshold itself
    assert spikes.dtype == u.grad.dtype == dtype
    assert torch.equal(u, kept)
    k = np.asarray(slope)
    height = 1 if steepness is None else k / steepness
    expected = incoming.double().numpy() * height * FORMULAS[name](k * np.abs(kept.double().numpy()))
    tolerances = {"rtol": 4e-2, "atol": 1e-3} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-7}
    torch.testing.assert_close(u.grad.double(), torch.from_numpy(expected), **tolerances)


def test_goes_through_pickle_deepcopy_and_state_dict():
    spike = FastSigmoid(torch.tensor([2.0, 3.0]))
    other = FastSigmoid(torch.zeros(2))
    other.load_state_dict(spike.state_dict())
    for copied in (pickle.loads(pickle.dumps(spike)), copy.deepcopy(spike), other):
        u = torch.tensor([0.5, -0.5], requires_grad=True)
        copied(u).sum().backward()
        torch.testing.assert_close(u.grad, torch.tensor([1 / 4, 1 / 2.5**2]))


def test_its_slope_follows_a_threshold_that_is_trained():
    holder, surrogate = nn.Module(), Triangular(torch.tensor(1.0), steepness=2.0)
    holder.register_buffer("threshold", torch.tensor(2.0))
    train_threshold(holder, surrogate)
    both = copy.deepcopy(nn.ModuleList([holder, surrogate]))
    with torch.no_grad():
        holder.parametrizations.threshold.original.fill_(np.log(4.0))
    assert surrogate_of(surrogate) == "triangular"
    torch.testing.assert_close(surrogate.slope, torch.tensor(0.5))
    assert not surrogate.slope.requires_grad
    fixed = surrogate.fixed()
    with torch.no_grad():
        holder.parametrizations.threshold.original.fill_(0.0)
    assert type(fixed) is Triangular
    assert (float(fixed.slope), fixed.steepness) == (0.5, 2.0)
    assert float(both[1].slope) == 1.0  # that of its own copy's threshold
    u = torch.tensor([0.25], requires_grad=True)
    surrogate(u).backward()
    assert u.grad.item() == 0.5  # slope 2, height 1


def test_a_surrogate_of_the_users_is_none_of_ours():
    assert surrogate_of(type("Mine", (Triangular,), {})(1.0)) is None
    assert surrogate_of(nn.ReLU()) is None
