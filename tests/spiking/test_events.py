"""Synapses event by event against the dense layer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from snnreg_plugins import to_snntorch
from snnreg_plugins.spiking import events as events_module
from snnreg_plugins.spiking.events import EventDriven

pytest.importorskip("numba")

LAYERS = {
    "linear": (nn.Linear(30, 20), (30,)),
    "one output": (nn.Linear(30, 1), (30,)),
    "no bias": (nn.Linear(30, 20, bias=False), (30,)),
    "3 x 3": (nn.Conv2d(5, 7, 3, padding=1), (5, 9, 8)),
    "unpadded": (nn.Conv2d(5, 7, 3), (5, 9, 8)),
    "wide padding": (nn.Conv2d(5, 7, 3, padding=4), (5, 6, 5)),
    "uneven": (nn.Conv2d(3, 4, (5, 2), padding=(2, 1)), (3, 6, 9)),
    "kernel of the whole image": (nn.Conv2d(3, 4, (6, 9)), (3, 6, 9)),
    "kernel beyond the image": (nn.Conv2d(3, 4, 7, padding=3), (3, 2, 2)),
    "1 x 1": (nn.Conv2d(5, 7, 1), (5, 9, 8)),
    "conv without bias": (nn.Conv2d(5, 7, 3, bias=False), (5, 9, 8)),
    "stride 2": (nn.Conv2d(5, 7, 3, stride=2, padding=1), (5, 9, 8)),
    "uneven stride": (nn.Conv2d(5, 7, (3, 5), stride=(3, 1), padding=(0, 2)), (5, 10, 8)),
    "stride beyond the kernel": (nn.Conv2d(5, 7, 2, stride=3), (5, 9, 8)),
    "1 x 1, stride 2": (nn.Conv2d(5, 7, 1, stride=2), (5, 9, 8)),
    "one channel": (nn.Conv2d(1, 1, 3), (1, 5, 5)),
}


@pytest.fixture
def always(monkeypatch):
    """Events whatever they take."""
    monkeypatch.setattr(EventDriven, "_pays", lambda *_: True)


def counts(shape, density, dtype=torch.float32):
    """Sums of spikes, mostly 0; some negative, as ternary spikes are."""
    values = torch.randint(-1, 4, (6, *shape)).to(dtype)
    return values * (torch.rand(values.shape) < density)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("name", LAYERS)
def test_against_the_dense_layer(name, density, dtype, threads, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr("snnreg_plugins.spiking.kernels._WORTH_A_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    layer, shape = LAYERS[name]
    layer = copy.deepcopy(layer).to(dtype)
    x = counts(shape, density, dtype)
    with torch.no_grad():
        # With weights that are whole numbers, no order of sums makes a difference.
        for parameter in layer.parameters():
            parameter.mul_(100).round_()
        for given in (x, x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x):
            assert EventDriven.takes(layer, given)
            assert torch.equal(EventDriven(layer)(given), layer(given))


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("name", LAYERS)
def test_rounding(name):
    torch.manual_seed(1)
    layer, shape = LAYERS[name]
    x = counts(shape, 0.3)
    with torch.no_grad():
        # Both are within float32's rounding of the exact sum.
        exact = copy.deepcopy(layer).double()(x.double())
        torch.testing.assert_close(EventDriven(layer)(x).double(), exact, rtol=1e-5, atol=1e-5)


class OwnLinear(nn.Linear):
    """Might do something else."""


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), (2, 4, 5, 5)),
        (nn.Conv2d(4, 4, 3, dilation=2), (2, 4, 6, 6)),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), (2, 4, 5, 5)),
        (nn.Conv2d(4, 4, 3, padding="same"), (2, 4, 5, 5)),
        (nn.Conv1d(4, 4, 3), (2, 4, 5)),
        (nn.ConvTranspose2d(4, 4, 3), (2, 4, 5, 5)),
        (nn.Linear(4, 4), (2, 3, 4)),
        (nn.Linear(4, 4).bfloat16(), (2, 4)),
        (OwnLinear(4, 4), (2, 4)),
    ],
)
def test_what_it_does_not_take(layer, shape):
    assert not EventDriven.takes(layer, torch.zeros(shape, dtype=next(layer.parameters()).dtype))


@pytest.mark.parametrize("layer", [nn.Linear(256, 128), nn.Conv2d(16, 32, 3, padding=1)])
def test_the_choice_goes_by_density(layer, monkeypatch):
    chosen = []
    for name in ("_linear", "_convolve"):
        own = getattr(EventDriven, name)
        monkeypatch.setattr(EventDriven, name, lambda *args, own=own: chosen.append(1) or own(*args))
    shape = (256,) if isinstance(layer, nn.Linear) else (16, 14, 14)
    taken = []
    with torch.no_grad():
        for density in (0.0, 0.01, 0.03, 0.5, 1.0):
            chosen.clear()
            EventDriven(layer)((torch.rand(2048 if len(shape) == 1 else 64, *shape) < density).float())
            taken.append(bool(chosen))
    assert taken == [True, True, True, False, False]


def test_the_choice_goes_by_the_steps_in_the_middle(monkeypatch):
    """The first steps are silent, as potentials only begin to grow."""
    monkeypatch.setattr(EventDriven, "_linear", lambda *_: pytest.fail("computed by events"))
    x = torch.ones(2048, 256)
    x[:1024] = 0
    with torch.no_grad():
        EventDriven(nn.Linear(256, 128))(x)


def test_weights_that_change_between_calls():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)).double()
    x = torch.rand(600, 6, dtype=torch.float64)
    network = to_snntorch(net, x, timesteps=4)
    used = []
    own = EventDriven._linear
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(events_module.EventDriven, "_pays", lambda *_: True)
        patch.setattr(events_module.EventDriven, "_linear", lambda *args: used.append(1) or own(*args))
        for _ in range(3):
            for parameter in network.parameters():
                parameter.data.mul_(0.9)  # which autograd is not told
            found = network(x)
            network.exact = True
            torch.testing.assert_close(found, network(x))
            network.exact = False
    assert used
