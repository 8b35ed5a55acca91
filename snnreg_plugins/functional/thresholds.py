"""Thresholds from a histogram of activations: bounded memory on any number of samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from snnreg_plugins._checks import as_flag, as_integer, as_number

BINS = 8192
# Bins that a search over many candidates looks at; at least half of them lie below the largest activation.
_COARSE = 2048
# Activations to count at once, so that what is made of them stays in a cache.
_IN_CACHE = 2**17
# The smallest range: a scale for smaller ones is no single-precision number.
_SMALLEST = 2.0**-100


class ActivationHistogram:
    """Histogram of non-negative activations, per channel, over any number of batches.

    The range is the smallest power of two that no activation exceeds. Where a larger one comes, bins merge in pairs,
    so memory is bounded, no pass over the data is repeated, and a quantile is off by at most ``2 / BINS`` (0.025 %) of
    the largest activation. The edges of bins are the same in whatever order and parts the data comes; so are the
    counts, and histograms of parts add up to that of all, exactly.

    Args:
        channels: Number of channels (dimension 1 of the activations); 1 puts all channels into one.
        bins: Number of bins of each channel, a power of two.
        device: Where to count.

    Raises:
        ValueError: If ``bins`` is no power of two, or ``channels`` no integer of at least 1.
    """

    def __init__(self, channels: int, bins: int = BINS, device: torch.device | str = "cpu") -> None:
        channels, bins = as_integer("channels", channels), as_integer("bins", bins)
        if bins & (bins - 1):
            raise ValueError(f"Expected argument `bins` to be a power of two, but got {bins}.")
        self.counts = torch.zeros(channels, bins, dtype=torch.int64, device=device)
        self.largest = torch.zeros(channels, device=device)
        self.range = 0.0  # the upper end of the last bin; 0 as long as all activations are

    def update(self, activations: Tensor) -> None:
        """Add activations of shape ``(B, C, ...)``; negative ones count as 0.

        Raises:
            ValueError: If there are not as many channels, or an activation is not finite.
        """
        channels, bins = self.counts.shape
        if channels > 1 and (activations.dim() < 2 or activations.shape[1] != channels):
            raise ValueError(
                f"Expected activations of shape (B, C, ...) with C = {channels} channels, but got "
                f"{tuple(activations.shape)}."
            )
        if activations.numel() == 0:
            return
        values = activations.detach().float()
        values = values.flatten() if channels == 1 else values
        others = [dim for dim in range(values.dim()) if channels == 1 or dim != 1]
        self.largest = torch.maximum(self.largest, values.amax(others).clamp_min(0))
        peak = float(self.largest.max())
        if not peak < float("inf"):
            raise ValueError("Expected finite activations on the calibration data, but got NaN or infinity.")
        self.widen(peak)
        # The product is exact, as both factors of the scale are powers of two. A bin has its upper edge, not its lower
        # one, as the range has; 0 is in the first bin.
        scale = bins / self.range if self.range else 0.0
        dtype = torch.int32 if channels * bins < 2**31 else torch.int64
        before = torch.arange(-1, channels * bins - 1, bins, dtype=dtype, device=values.device)
        before = before.reshape(-1, *[1] * (values.dim() - 2))
        for part in torch.split(values, max(1, _IN_CACHE // values[0].numel())):
            index = (part * scale).ceil_().clamp_min_(1).to(dtype).add_(before).flatten()
            # Of few activations, far quicker than a histogram of their own, which has all bins of all channels.
            self.counts.view(-1).index_add_(0, index, self.counts.new_ones(len(index)))

    def widen(self, peak: float) -> None:
        """Merge bins until the range holds ``peak``."""
        if peak <= self.range:
            return
        mantissa, exponent = math.frexp(peak)
        wanted = max(math.ldexp(1.0, exponent - (mantissa == 0.5)), _SMALLEST)
        if self.range:  # else all are in the first bin
            channels, bins = self.counts.shape
            merging = min(bins, int(wanted / self.range))
            merged = self.counts.reshape(channels, bins // merging, merging).sum(2)
            self.counts = torch.cat([merged, merged.new_zeros(channels, bins - bins // merging)], dim=1)
        self.range = wanted


def maximum(histogram: ActivationHistogram, per_channel: bool = False) -> Tensor:
    """Largest activation (Diehl et al. 2015, data-based normalisation).

    Args:
        histogram: Activations on calibration data.
        per_channel: One threshold per channel, else one for the layer.

    Returns:
        Shape ``(C,)``, or a scalar.

    Example:
        >>> histogram = ActivationHistogram(channels=2)
        >>> histogram.update(torch.tensor([[1.0, 4.0], [3.0, 2.0]]))
        >>> maximum(histogram), maximum(histogram, per_channel=True)
        (tensor(4.), tensor([3., 4.]))
    """
    return histogram.largest.clone() if per_channel else histogram.largest.max()


def percentile(histogram: ActivationHistogram, per_channel: bool = False, *, percent: float = 99.9) -> Tensor:
    """Percentile of all activations, zeros included (Rueckauer et al. 2017, robust normalisation).

    The smallest bin edge below which at least ``percent`` of the activations lie, and never above the largest
    activation.

    Args:
        histogram: Activations on calibration data.
        per_channel: One threshold per channel, else one for the layer.
        percent: In (0, 100].

    Returns:
        Shape ``(C,)``, or a scalar.

    Raises:
        ValueError: If ``percent`` is out of range.

    Example:
        >>> histogram = ActivationHistogram(channels=1)
        >>> histogram.update(torch.arange(1000.0).reshape(1000, 1))
        >>> round(float(percentile(histogram, percent=90.0)), 1)
        899.0
    """
    percent, per_channel = as_number("percent", percent, "(0, 100]"), as_flag("per_channel", per_channel)
    counts = histogram.counts if per_channel else histogram.counts.sum(0, keepdim=True)
    largest = maximum(histogram, per_channel)
    cumulated = counts.cumsum(1)
    # A rounding error in the product must not ask for one more: 99.9 % of 1000 are 999.
    needed = (cumulated[:, -1:].double() * (percent / 100 - 1e-12)).ceil().long().clamp_min(1)
    first_bin = torch.searchsorted(cumulated, needed).squeeze(1)
    # Bin 0 holds the zeros: a channel that is mostly silent has the percentile 0, not a bin's width.
    edge = torch.where(first_bin > 0, first_bin + 1, 0).float() * (histogram.range / counts.shape[1])
    return torch.minimum(edge if per_channel else edge[0], largest)


def mmse(
    histogram: ActivationHistogram,
    per_channel: bool = False,
    *,
    timesteps: int,
    initial_potential: float = 0.5,
    candidates: int = 95,
) -> Tensor:
    r"""Threshold of the least mean squared error of a neuron's rate over T steps (Li et al. 2021).

    .. math::
        \arg\min_\lambda \; \mathbb{E}\left[\left(a - \frac{\lambda}{T}\,
        \text{clip}\left(\left\lfloor \frac{a T}{\lambda} + \frac{v_0}{\lambda} \right\rfloor, 0, T\right)
        \right)^2\right]

    over multiples of max(a) / ``candidates``: at few steps it pays to clip large activations and so to tell small
    ones apart.

    Args:
        histogram: Activations on calibration data.
        per_channel: One threshold per channel, else one for the layer.
        timesteps: T.
        initial_potential: v₀ / λ.
        candidates: Number of thresholds to try.

    Returns:
        Shape ``(C,)``, or a scalar.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> histogram = ActivationHistogram(channels=1)
        >>> histogram.update(torch.cat([torch.full((999, 1), 1.0), torch.tensor([[2.0]])]))
        >>> round(float(mmse(histogram, timesteps=1)), 1)  # one spike is worth what is common, not what is rare
        1.0
    """
    timesteps, candidates = as_integer("timesteps", timesteps), as_integer("candidates", candidates)
    initial_potential = as_number("initial_potential", initial_potential, "[0, 1)")
    values, counts = _coarse(histogram, as_flag("per_channel", per_channel))
    largest = maximum(histogram, per_channel).double().reshape(-1, 1)
    best, least = largest.clone(), torch.full_like(largest, torch.inf)
    shares = torch.arange(1, candidates + 1, dtype=torch.float64, device=values.device) / candidates
    for part in torch.split(shares, max(1, _IN_CACHE // counts.numel())):
        levels = largest.unsqueeze(2) * part.reshape(1, -1, 1)  # (C, candidates, bins)
        spikes = (values * (timesteps / levels.clamp_min(1e-30)) + initial_potential).floor_().clamp_(0, timesteps)
        errors = (spikes.mul_(levels / timesteps) - values).square_().mul_(counts.unsqueeze(1)).sum(2)
        error, index = errors.min(1, keepdim=True)
        best = torch.where(error < least, levels.squeeze(2).gather(1, index), best)
        least = torch.minimum(error, least)
    return (best.flatten() if per_channel else best[0, 0]).to(histogram.largest.dtype)


def local(histogram: ActivationHistogram, per_channel: bool = False, *, iterations: int = 32) -> Tensor:
    r"""Local threshold balancing (Bu et al. 2024, arXiv 2409.03368).

    From :math:`\theta = 0`, descends the error that clipping makes, which stops long before the largest activation:

    .. math:: \theta \leftarrow \theta + 2 \, \mathbb{E}\left[\max(a - \theta, 0)\right]

    Args:
        histogram: Activations on calibration data.
        per_channel: One threshold per channel, else one for the layer.
        iterations: Number of steps.

    Returns:
        Shape ``(C,)``, or a scalar.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> histogram = ActivationHistogram(channels=1)
        >>> histogram.update(torch.arange(1000.0).reshape(1000, 1))
        >>> round(float(local(histogram, iterations=1))), round(float(local(histogram)))  # first twice the mean
        (999, 999)
    """
    iterations = as_integer("iterations", iterations)
    values, counts = _coarse(histogram, as_flag("per_channel", per_channel))
    shares = counts / counts.sum(1, keepdim=True).clamp_min(1)
    share_above, sum_above = _from_each_on(shares), _from_each_on(shares * values)
    level = torch.zeros_like(counts[:, :1])
    for _ in range(iterations):
        first = torch.searchsorted(values[0], level, right=True)
        level = level + 2 * (sum_above.gather(1, first) - level * share_above.gather(1, first))
    levels = torch.minimum(level.flatten().to(histogram.largest.dtype), maximum(histogram, per_channel).reshape(-1))
    return levels if per_channel else levels[0]


def _from_each_on(values: Tensor) -> Tensor:
    """Give the sums of ``(C, bins)`` from each bin to the last one, and then of none, ``(C, bins + 1)``."""
    return torch.cat([values.flip(1).cumsum(1).flip(1), torch.zeros_like(values[:, :1])], dim=1)


def _coarse(histogram: ActivationHistogram, per_channel: bool) -> tuple[Tensor, Tensor]:
    """Give the middles of coarse bins, ``(1, bins)``, and their counts, ``(C, bins)`` or ``(1, bins)``."""
    counts = histogram.counts if per_channel else histogram.counts.sum(0, keepdim=True)
    bins = min(_COARSE, counts.shape[1])
    middles = (torch.arange(bins, device=counts.device, dtype=torch.float64) + 0.5) * (histogram.range / bins)
    middles[0] = 0  # where the zeros are
    return middles.unsqueeze(0), counts.reshape(len(counts), bins, -1).sum(2).double()
