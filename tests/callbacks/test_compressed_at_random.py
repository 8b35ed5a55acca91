"""Rounding at random to 4 and 2 bits: gradients are right on average, and the same random numbers come again."""

from __future__ import annotations

import contextlib
import statistics

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from snnreg_plugins import CompressedActivations, compressed_activations, to_snntorch
from snnreg_plugins.spiking import firing
from snnreg_plugins.training import compression
from snnreg_plugins.training.compression import Packer, unpack
from tests.callbacks.reference import Module, fit, free_port, leave, two_processes
from tests.callbacks.test_compressed_activations import Loop, assert_equal, gradients
from tests.callbacks.test_penalty_resumed import Placed, Save

SEEDS = 40


def relu_network():
    """A network whose backward pass is linear in each tensor that it saves."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()),
        *(nn.Linear(36, 20), nn.ReLU(), nn.Dropout(0.2), nn.Linear(20, 5)),
    ).double()
    return net, torch.randn(16, 1, 8, 8).double(), torch.randn(16, 5).double()


def gradient(net, x, y, context):
    net.zero_grad()
    torch.manual_seed(3)  # for dropout
    with context:
        loss = F.mse_loss(net(x), y)
    loss.backward()
    return torch.cat([p.grad.flatten() for p in net.parameters()])


@pytest.mark.parametrize("bits", [pytest.param(4, marks=pytest.mark.slow), 2])
def test_gradients_are_right_on_average(bits):
    net, x, y = relu_network()
    exact = gradient(net, x, y, contextlib.nullcontext())
    drawn = torch.stack(
        [gradient(net, x, y, compressed_activations(bits, min_numel=1, seed=seed)) for seed in range(SEEDS)]
    )
    error, of_mean = drawn.mean(0) - exact, drawn.std(0) / SEEDS**0.5
    noisy = of_mean > 1e-9 * exact.norm()
    assert noisy.double().mean() > 0.8
    assert float((error[~noisy]).norm()) < 1e-6 * float(exact.norm())
    # Of such numbers the mean square is about 1 and, of these many, none is above 6.
    in_errors = error[noisy] / of_mean[noisy]
    assert 0.5 < float(in_errors.square().mean()) < 1.7
    assert float(in_errors.abs().max()) < 6
    assert float(drawn.std(0).norm()) > (0.05 if bits == 4 else 0.3) * float(exact.norm())


@pytest.mark.parametrize("bits", [4, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("exact", "kernels"),
    [(False, True), *(pytest.param(*other, marks=pytest.mark.slow) for other in ((False, False), (True, True)))],
    ids=["compiled", "torch", "step by step"],
)
def test_gradients_of_spikes_are_right_on_average(exact, kernels, bits, monkeypatch):
    """Of neurons with trained thresholds and decays: the derivative of their surrogate is kept, not the potential."""
    if not kernels:
        monkeypatch.setattr(firing, "kernels", lambda: None)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 5))
    x, y = torch.rand(16, 1, 6, 6).double(), torch.randn(16, 5).double()
    options = dict(train_thresholds="neuron", train_beta="layer", beta=0.9, surrogate="fast_sigmoid")
    network = to_snntorch(net.double(), x, timesteps=3, **options)
    network.exact = exact
    expected = gradient(network, x, y, contextlib.nullcontext())
    draws = range(3 * SEEDS)
    drawn = torch.stack([gradient(network, x, y, compressed_activations(bits, min_numel=1, seed=it)) for it in draws])
    error, noise = drawn.mean(0) - expected, drawn.std(0)
    assert float(noise.norm()) > (0.05 if bits == 4 else 0.3) * float(expected.norm())
    sizes = [p.numel() for p in network.parameters()]
    ratios = [float(e.norm() / n.norm()) for e, n in zip(error.split(sizes), noise.split(sizes), strict=True)]
    # Of the noise of a mean it is 1. With the potentials in so few bits it would be more than 2.
    assert statistics.mean(ratios) * len(draws) ** 0.5 < 1.4


def round_trip(x, bits, seed=0):
    packer = Packer(bits, 1, None, seed)
    return unpack(packer.pack(x)), packer.savings


@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_bytes_and_bounds(bits, dtype):
    torch.manual_seed(0)
    x = (torch.randn(40, 1000, dtype=torch.float64) * 10).to(dtype)
    ranges = 2 * (8 if dtype == torch.float64 else 4) / 256  # per element
    again, savings = round_trip(x, bits)
    assert savings.stored_bytes == pytest.approx(x.numel() * (bits / 8 + ranges), rel=0.01)
    spread = max(float(group.max() - group.min()) for group in x.flatten().double().split(256))
    assert float((again.double() - x.double()).abs().max()) <= spread / (2**bits - 1) * 1.01
    # Of a ReLU: zeros in one bit each, and what is above stays above.
    x = x.relu()
    again, savings = round_trip(x, bits)
    assert savings.stored_bytes == pytest.approx(x.numel() * (1 / 8 + (bits / 8 + ranges) / 2), rel=0.02)
    assert torch.equal(again > 0, x > 0)
    # Few zeros among both signs are no case for that.
    x = torch.randn(40_000, dtype=torch.float64).to(dtype)
    x[:100] = 0
    assert round_trip(x, bits)[1].stored_bytes == pytest.approx(x.numel() * (bits / 8 + ranges), rel=0.01)


@pytest.mark.parametrize("bits", [4, 2])
def test_what_is_exact_stays_exact(bits):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(90, 100))
    spikes = (torch.rand(9000) < 0.1).float()
    exact = {
        "spikes": (spikes, 1 / 8),
        "weighted spikes": (spikes * 0.3, 1 / 8),
        "mask": (spikes.bool(), 1 / 8),
        "sums of spikes": (spikes.view(-1, 3).sum(1), 1 / 4),
        "counts": (torch.randint(0, 100, (9000,)).float(), 1),
        "indices": (torch.randint(0, 200, (9000,)), 1),
        "weight": (weight, 0),
        "infinite": (torch.tensor([1.5, torch.inf] * 4500), 4),
    }
    for name, (x, per_element) in exact.items():
        again, savings = round_trip(x, bits)
        assert torch.equal(again, x), name
        assert savings.stored_bytes == pytest.approx(x.numel() * per_element, abs=4), name


def test_groups_without_a_range_and_odd_lengths():
    for x in (torch.full((300,), 0.3), torch.tensor([0.3]), torch.cat([torch.randn(256), torch.tensor([7.7])])):
        for bits in (4, 2):
            again, _ = round_trip(x, bits)
            assert again.shape == x.shape
            assert float(again[-1]) == float(x[-1])


def test_the_seed_decides():
    net = Loop()
    of = lambda seed: gradients(net, compressed_activations(2, min_numel=1, seed=seed))[0]  # noqa: E731
    assert_equal(of(5), of(5))
    assert any(not torch.equal(a, b) for a, b in zip(of(5), of(6), strict=True))


def test_without_a_seed_it_is_drawn_from_torch_at_the_start_alone():
    def of(seed):
        torch.manual_seed(seed)
        with compressed_activations(2, min_numel=1):
            state = torch.get_rng_state()
            weight = torch.ones(1000, requires_grad=True)
            loss = (torch.linspace(0.1, 1, 1000) * weight).sum()
            assert torch.equal(state, torch.get_rng_state())
        loss.backward()
        return weight.grad

    assert torch.equal(of(1), of(1))
    assert not torch.equal(of(1), of(2))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_regions_draw_the_same_dropout(reentrant):
    """Else the gradient would be another one, by far more than rounding explains."""
    torch.manual_seed(0)
    net = Loop(checkpointing=reentrant, dropout=0.5)
    exact = gradients(net, contextlib.nullcontext())[0]
    rounded = gradients(net, compressed_activations(4, min_numel=1, seed=0))[0]
    for a, b in zip(rounded, exact, strict=True):
        assert float((a - b).norm()) < 0.6 * float(b.norm())


# In Lightning.


def train(seed=0, bits=2, **options):
    torch.manual_seed(0)
    module = Module(Loop(dropout=0.2))
    torch.manual_seed(seed)
    callbacks = [CompressedActivations(bits, min_numel=16), *options.pop("callbacks", [])]
    fit(module, callbacks, **options)
    return [p.detach() for p in module.net.parameters()]


def test_a_fit_is_reproducible_and_its_steps_draw_apart(monkeypatch):
    seeds = []
    within = compression.saved_tensors_hooks
    monkeypatch.setattr(
        compression, "saved_tensors_hooks", lambda pack, _: seeds.append(pack.__self__._seed) or within(pack, _)
    )
    first = train(limit_train_batches=2)
    assert len(set(seeds)) == len(seeds) == 2
    assert_equal(train(limit_train_batches=2), first)
    assert seeds[2:] == seeds[:2]


def test_torchs_own_random_numbers_are_left_alone():
    states = []
    for bits in (32, 2):
        train(bits=bits, limit_train_batches=1)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.parametrize("step", [pytest.param(4, marks=pytest.mark.slow), 6])  # of four in an epoch
def test_a_resumed_fit_goes_on_as_if_it_had_not_stopped(step, tmp_path):
    # Without dropout, as torch's own random state is not in a checkpoint.
    def run(seed, *callbacks, **options):
        torch.manual_seed(0)
        module = Module(Loop())
        torch.manual_seed(seed)
        callbacks = [CompressedActivations(2, min_numel=16), *callbacks]
        return fit(module, callbacks, max_epochs=3, data=Placed(), **options)[0]

    straight = run(0, Save(tmp_path / "mid.ckpt", step))
    assert torch.equal(run(99, ckpt_path=tmp_path / "mid.ckpt"), straight)
    assert not torch.equal(run(99), straight)


def test_a_second_fit_begins_with_its_own_seed():
    callback = CompressedActivations(2, min_numel=16)
    for seed in (4, 5):
        torch.manual_seed(seed)
        fit(Module(Loop()), [callback], limit_train_batches=1)
        assert callback.state_dict() == {"seed": seed, "steps": 1}


def _ddp_worker(rank, port, folder):
    seeds = []
    within = compression.saved_tensors_hooks
    compression.saved_tensors_hooks = lambda pack, _: seeds.append(pack.__self__._seed) or within(pack, _)
    train(devices=2, strategy=two_processes(rank, port))
    torch.save(seeds, f"{folder}/{rank}.pt")
    leave()


@pytest.mark.slow
def test_processes_draw_apart(tmp_path):
    torch.multiprocessing.spawn(_ddp_worker, (free_port(), tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert len({*first, *second}) == len(first) + len(second) > 0
