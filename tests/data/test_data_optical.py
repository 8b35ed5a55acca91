"""The simulated optical link, against sums written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything

from snnreg_plugins.data import OpticalChannel
from snnreg_plugins.data.optical import root_raised_cosine

SPS = 3


def everything(loader):
    return loader.dataset.__getitems__(range(len(loader.dataset)))


def reference(levels, bias, length, roll_off=0.2):
    """Intensity at the photodiode and what comes out of the receiver's filter, by sums over all frequencies."""
    count = len(levels) * SPS
    frequencies = [(k if k < count / 2 else k - count) / len(levels) for k in range(count)]  # in symbol rates

    def response(f):
        if abs(f) <= (1 - roll_off) / 2:
            return 1.0
        if abs(f) < (1 + roll_off) / 2:
            return math.cos(math.pi / (2 * roll_off) * (abs(f) - (1 - roll_off) / 2))
        return 0.0

    def filtered(signal, gain):
        """Through the frequency response, a frequency at a time."""
        times, result = np.arange(count), np.zeros(count, complex)
        for k, f in enumerate(frequencies):
            turns = np.exp(2j * np.pi * k * times / count)
            result += (signal * turns.conj()).sum() / count * gain(f) * turns
        return result

    field = np.zeros(count, complex)
    field[::SPS] = levels
    field = filtered(field, lambda f: SPS * response(f)) + bias
    # 17 ps/(nm km) at 1550 nm are -21.683 ps²/km.
    arrived = filtered(field, lambda f: np.exp(1j * 21.683e-27 / 2 * (2 * np.pi * f * 50e9) ** 2 * length))
    current = abs(arrived) ** 2
    return current, filtered(current, response).real[::SPS]


@pytest.mark.parametrize("length", [0.0, 5000.0])
def test_it_is_the_sum_written_out(length):
    data = OpticalChannel(snr=None, length=length)
    sent = torch.randint(4, (60,))
    _, expected = reference([data.levels[k] for k in sent], data.bias, length)
    torch.testing.assert_close(data.received(sent), torch.from_numpy(expected), rtol=0, atol=2e-4 if length else 1e-12)


def test_filters_leave_no_interference_and_the_pulse_has_the_energy_of_one():
    frequencies = torch.linspace(-0.5, 0.5, 1001, dtype=torch.float64)
    for roll_off in (0.05, 0.2, 1.0):
        both = root_raised_cosine(torch.stack([frequencies - 1, frequencies, frequencies + 1]), roll_off).square()
        torch.testing.assert_close(both.sum(0), torch.ones(1001, dtype=torch.float64))
    pulse = torch.fft.ifft(math.sqrt(SPS) * root_raised_cosine(torch.fft.fftfreq(300, 1 / SPS).double(), 0.2))
    assert pulse.abs().square().sum().item() == pytest.approx(1, abs=1e-6)


def test_without_dispersion_and_noise_symbols_come_back():
    # Where the bias is large, the square of the field is linear in it.
    data = OpticalChannel(levels=(-3, -1, 1, 3), bias=1e6, dispersion=0.0, snr=None)
    sent = torch.randint(4, (1000,))
    back = (data.received(sent) - data.bias**2) / (2 * data.bias)
    torch.testing.assert_close(back, torch.tensor(data.levels, dtype=torch.float64)[sent], rtol=0, atol=1e-4)


def test_dispersion_keeps_the_energy():
    sent = torch.randint(4, (500,))
    near, far = (OpticalChannel(snr=None, length=length).received(sent) for length in (0.0, 5000.0))
    assert far.mean().item() == pytest.approx(near.mean().item(), rel=1e-12)
    assert (near - far).std() > 0.3 * near.std()


def test_noise_is_below_the_signal_by_the_ratio():
    data, sent = OpticalChannel(snr=13.0), torch.randint(4, (200,))
    current, clean = reference([data.levels[k] for k in sent], data.bias, data.length)
    draws = [data.received(sent, torch.Generator().manual_seed(seed)) for seed in range(100)]
    noise = torch.stack(draws) - torch.from_numpy(clean)
    assert current.var() / noise.var().item() == pytest.approx(10**1.3, rel=0.04)


def test_a_linear_equalizer_does_part_of_the_work():
    data = OpticalChannel(symbols=20_000, test_size=20_000)
    (x, y), (received, sent) = everything(data.train_dataloader()), everything(data.test_dataloader())
    squares = torch.tensor(data.levels).square()

    def errors(taps):
        used = [
            torch.nn.functional.pad(it[:, 20 - taps // 2 : 21 + taps // 2], (0, 1), value=1.0) for it in (x, received)
        ]
        weights = torch.linalg.lstsq(used[0], squares[y].unsqueeze(1)).solution
        return ((used[1] @ weights - squares).abs().argmin(1) != sent).float().mean().item()

    assert 0.15 < errors(taps=1) < 0.2
    assert 0.06 < errors(taps=41) < 0.08


def test_batches_are_windows_of_a_periodic_sequence():
    data = OpticalChannel(symbols=200, validation_size=100, test_size=100, taps=5, batch_size=64)
    x, y = everything(data.train_dataloader())
    assert x.shape == (200, 5)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    sequence = x[:, 2]
    for shift in range(5):
        assert torch.equal(x[:, shift], sequence.roll(2 - shift))
    assert sequence.mean().abs() < 1e-6
    assert sequence.std(correction=0).item() == pytest.approx(1, abs=1e-6)
    expected = data.received(y, _noise_of(data, y))
    torch.testing.assert_close(sequence.double(), (expected - expected.mean()) / expected.std(correction=0))
    assert [len(labels) for _, labels in data.train_dataloader()] == [64, 64, 64, 8]
    assert torch.equal(data.train_dataloader().dataset[3][0], x[3])


def _noise_of(data, sent):
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(torch.randint(4, (len(sent),), generator=generator), sent)
    return generator


def test_everything_follows_from_the_seed_and_parts_differ():
    def parts(seed):
        data = OpticalChannel(symbols=100, validation_size=100, test_size=100, seed=seed)
        data.setup("fit")
        return [everything(it)[1] for it in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())]

    seed_everything(5, verbose=False)
    first = parts(0)
    torch.rand(1)
    assert all(map(torch.equal, parts(0), first))
    others = [*first, *parts(1)]
    assert not any(torch.equal(a, b) for index, a in enumerate(others) for b in others[:index])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(taps=4), "`taps` to be odd"),
        (dict(symbols=10), "`symbols` to be an integer of at least 41"),
        (dict(levels=[1.0]), "`levels` to be two or more rising numbers, but got \\[1.0\\]"),
        (dict(levels=[1.0, 1.0]), "`levels`"),
        (dict(levels=3), "`levels`"),
        (dict(samples_per_symbol=2), "`samples_per_symbol`"),
        (dict(roll_off=0.0), "`roll_off`"),
        (dict(snr=float("nan")), "`snr`"),
    ],
)
def test_what_is_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        OpticalChannel(**arguments)
