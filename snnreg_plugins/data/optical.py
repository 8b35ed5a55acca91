"""A short optical link that is simulated: symbols, and what a photodiode receives of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from snnreg_plugins._checks import as_integer, as_number, shown
from snnreg_plugins.data.base import Batch, PartsData

_LIGHT = 299_792_458.0  # m/s


def root_raised_cosine(frequencies: Tensor, roll_off: float) -> Tensor:
    r"""Frequency response of a pulse without interference between symbols, once more filtered by itself.

    .. math:: H(f) = \begin{cases} 1 & |f| \le \frac{1 - \beta}{2} \\
        \cos\left(\frac{\pi}{2 \beta} \left(|f| - \frac{1 - \beta}{2}\right)\right) & |f| \le \frac{1 + \beta}{2} \\
        0 & \text{else} \end{cases}

    Args:
        frequencies: f, in units of the symbol rate.
        roll_off: β, in (0, 1].

    Example:
        >>> root_raised_cosine(torch.tensor([0.0, 0.5, 0.7]), roll_off=0.2).square()
        tensor([1.0000, 0.5000, 0.0000])
    """
    beyond = (frequencies.abs() - (1 - roll_off) / 2) / roll_off
    return torch.cos(math.pi / 2 * beyond.clamp(0, 1)).where(beyond < 1, torch.zeros_like(beyond))


class OpticalChannel(PartsData):
    r"""Symbols over a fibre, received by a photodiode: intensity modulation and direct detection, simulated.

    Random levels :math:`a_k` are shaped by a root-raised-cosine filter p, a bias is added, the fibre disperses the
    field, the photodiode squares it, noise is added, and the receiver filters with p and takes a sample per symbol:

    .. math::
        e(t) &= \sum_k a_k \, p(t - k) + b \\
        E'(f) &= E(f) \, e^{-\mathrm{j} \frac{\beta_2}{2} (2 \pi f)^2 L}, \quad
        \beta_2 = -\frac{D \lambda^2}{2 \pi c} \\
        y_k &= \left(p * \left(|e'|^2 + n\right)\right)(k), \quad n \sim \mathcal{N}(0, \sigma^2)

    The noise is such that the variance of :math:`|e'|^2` is ``snr`` above that of the noise behind the filter (which is
    2 · bits · Eb/N0). Sequences are periodic, and filters act on their Fourier transform, in float64; so nothing is cut
    off at the ends.

    Batches are ``(inputs, labels)``: float32 ``(B, taps)``, the received samples around each symbol, with mean 0 and
    variance 1; and int64 ``(B,)``, the places of the symbols among the levels. Training, validation and test are
    sequences of their own. Everything follows from the seed.

    Args:
        symbols: Training symbols.
        validation_size: Validation symbols.
        test_size: Test symbols.
        taps: Received samples around a symbol that an equalizer sees; odd.
        snr: Signal-to-noise ratio in dB; None for no noise.
        levels: What is sent, one for each class, rising.
        bias: b, added to the field.
        baud: Symbols per second.
        length: L, of the fibre, in m.
        dispersion: D, in ps/(nm km).
        wavelength: λ, in nm.
        roll_off: That of the filters.
        samples_per_symbol: Samples of the simulation; the square of a field has twice its bandwidth, so at least 3.
        batch_size: Symbols per batch (per process).
        num_workers: Processes that prepare batches; 0 prepares them in the main process.
        seed: Seed of symbols and noise; that of the training order is ``seed_everything``.

    Attributes:
        num_classes: Number of levels.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        The link of OptiSpike, `arXiv 2312.12909 <https://arxiv.org/abs/2312.12909>`_: 50 GBd over 5 km of standard
        fibre at 1550 nm; levels whose squares are evenly spaced.

    Example:
        >>> data = OpticalChannel(symbols=1000, batch_size=100)
        >>> received, sent = next(iter(data.train_dataloader()))
        >>> received.shape, sent.shape
        (torch.Size([100, 41]), torch.Size([100]))
    """

    def __init__(
        self,
        symbols: int = 200_000,
        validation_size: int = 20_000,
        test_size: int = 100_000,
        taps: int = 41,
        snr: float | None = 20.0,
        levels: Sequence[float] = (0.0, 1.0, 1.4142135623730951, 1.7320508075688772),
        bias: float = 0.25,
        baud: float = 50e9,
        length: float = 5000.0,
        dispersion: float = 17.0,
        wavelength: float = 1550.0,
        roll_off: float = 0.2,
        samples_per_symbol: int = 3,
        batch_size: int = 500,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.taps = as_integer("taps", taps)
        if self.taps % 2 == 0:
            raise ValueError(f"Expected argument `taps` to be odd, with as many on both sides, but got {self.taps}.")
        self.sizes = {
            "train": as_integer("symbols", symbols, at_least=self.taps),
            "validation": as_integer("validation_size", validation_size, at_least=self.taps),
            "test": as_integer("test_size", test_size, at_least=self.taps),
        }
        self.snr = None if snr is None else as_number("snr", snr, "[-300, 300]")
        self.levels = _rising(levels)
        self.bias = as_number("bias", bias, "(-inf, inf)")
        self.baud, self.length = as_number("baud", baud, "(0, inf)"), as_number("length", length, "[0, inf)")
        self.dispersion = as_number("dispersion", dispersion, "(-inf, inf)")
        self.wavelength = as_number("wavelength", wavelength, "(0, inf)")
        self.roll_off = as_number("roll_off", roll_off, "(0, 1]")
        self.samples_per_symbol = as_integer("samples_per_symbol", samples_per_symbol, at_least=3)
        self.num_classes = len(self.levels)
        self._parts: dict[str, _Windows] = {}

    def received(self, sent: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Give what is received of some symbols.

        Args:
            sent: Places of the symbols among the levels, ``(N,)``.
            generator: Where the noise comes from.

        Returns:
            A sample for each symbol, float64 ``(N,)``, before mean and variance are taken out.
        """
        per_symbol = self.samples_per_symbol
        frequencies = torch.fft.fftfreq(len(sent) * per_symbol, d=1 / per_symbol, dtype=torch.float64)
        pulse = root_raised_cosine(frequencies, self.roll_off)
        impulses = torch.zeros(len(sent), per_symbol, dtype=torch.float64)
        impulses[:, 0] = torch.tensor(self.levels, dtype=torch.float64)[sent]
        # Times the samples of a symbol, so that a level that is held is the field's.
        field = torch.fft.fft(impulses.flatten()) * pulse * per_symbol
        field[0] += self.bias * len(frequencies)
        # From ps/(nm km) to s/m², and from nm to m.
        beta2 = -self.dispersion * 1e-6 * (self.wavelength * 1e-9) ** 2 / (2 * math.pi * _LIGHT)
        phase = -beta2 / 2 * (2 * math.pi * frequencies * self.baud) ** 2 * self.length
        current = torch.fft.ifft(field * torch.polar(torch.ones_like(phase), phase)).abs().square()
        if self.snr is not None:
            # The filter lets 1 / per_symbol of the noise through.
            variance = current.var(correction=0) * per_symbol / 10 ** (self.snr / 10)
            noise = torch.randn(len(current), dtype=torch.float64, generator=generator)
            current = current + noise * variance.sqrt()
        filtered: Tensor = torch.fft.ifft(torch.fft.fft(current) * pulse)
        return filtered.real[::per_symbol]

    def _part(self, name: str) -> _Windows:
        if name not in self._parts:
            # Seeds of three sequences; a seed next to another one gives other symbols.
            seed = 3 * self.seed + list(self.sizes).index(name)
            generator = torch.Generator().manual_seed(seed)
            sent = torch.randint(self.num_classes, (self.sizes[name],), generator=generator)
            samples = self.received(sent, generator)
            samples = (samples - samples.mean()) / samples.std(correction=0)
            self._parts[name] = _Windows(samples.float(), sent, self.taps)
        return self._parts[name]


class _Windows(Dataset[Batch]):
    """The samples around each symbol of a periodic sequence, a whole batch at a time."""

    def __init__(self, samples: Tensor, sent: Tensor, taps: int) -> None:
        half = taps // 2
        around = torch.cat([samples[len(samples) - half :], samples, samples[:half]])
        self.windows, self.sent = around.unfold(0, taps, 1), sent

    def __len__(self) -> int:
        return len(self.sent)

    def __getitem__(self, index: int) -> Batch:
        return self.windows[index], self.sent[index]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        index = torch.as_tensor(indices)
        return self.windows[index], self.sent[index]


def _rising(levels: Any) -> tuple[float, ...]:
    is_several = isinstance(levels, Sequence) and not isinstance(levels, str)
    numbers = tuple(as_number("levels", level, "(-inf, inf)") for level in levels) if is_several else ()
    if len(numbers) < 2 or any(low >= high for low, high in pairwise(numbers)):
        raise ValueError(f"Expected argument `levels` to be two or more rising numbers, but got {shown(levels)}.")
    return numbers
