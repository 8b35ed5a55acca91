"""Values that differ from neuron to neuron, drawn from a distribution of a name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from snnreg_plugins._checks import as_number, as_sizes, one_of

# How often values out of range are drawn again, before so wide a distribution is refused.
_ROUNDS = 1000


def _normal(mean: float, std: float, count: int, generator: torch.Generator) -> Tensor:
    return mean + std * _noise(torch.randn, count, generator)


def _lognormal(mean: float, std: float, count: int, generator: torch.Generator) -> Tensor:
    variance = math.log1p((std / mean) ** 2)  # of the logarithm
    return (math.log(mean) - variance / 2 + math.sqrt(variance) * _noise(torch.randn, count, generator)).exp()


def _uniform(mean: float, std: float, count: int, generator: torch.Generator) -> Tensor:
    return mean + math.sqrt(3) * std * (2 * _noise(torch.rand, count, generator) - 1)


def _gamma(mean: float, std: float, count: int, generator: torch.Generator) -> Tensor:
    """Draw by the method of Marsaglia and Tsang 2000, NaN where it wants another draw."""
    shape = (mean / std) ** 2
    d = shape + (shape < 1) - 1 / 3
    x = _noise(torch.randn, count, generator)
    v = (1 + x / math.sqrt(9 * d)) ** 3
    # Below 0 the logarithm of v is NaN, and less than nothing.
    accepted = _noise(torch.rand, count, generator).log() < x.square() / 2 + d * (1 - v + v.log())
    if shape < 1:
        v = v * _noise(torch.rand, count, generator) ** (1 / shape)
    return torch.where(accepted, d * v * (std**2 / mean), torch.nan)


def _noise(kind: Callable[..., Tensor], count: int, generator: torch.Generator) -> Tensor:
    return kind(count, generator=generator, dtype=torch.float64, device=generator.device)


#: From the name of a distribution to what draws so many values of a mean and a standard deviation above 0.
DISTRIBUTIONS: dict[str, Callable[[float, float, int, torch.Generator], Tensor]] = {
    "gamma": _gamma,
    "lognormal": _lognormal,
    "normal": _normal,
    "uniform": _uniform,
}


def draw(
    distribution: str,
    mean: float,
    std: float,
    shape: Sequence[int],
    generator: torch.Generator | None = None,
    within: str = "(0, inf)",
) -> Tensor:
    r"""Draw values that differ, such as the time constants of a layer's neurons.

    Mean and standard deviation are those of the values, whatever the distribution: a gamma has the shape
    :math:`(\mu/\sigma)^2` and the scale :math:`\sigma^2/\mu`, a log-normal the variance
    :math:`\ln(1 + \sigma^2/\mu^2)` of its logarithm, a uniform the half-width :math:`\sqrt 3 \sigma`. Values out of
    range are drawn again, so the mean moves where the range cuts much of the distribution off.

    Args:
        distribution: ``"gamma"``, ``"lognormal"``, ``"normal"`` or ``"uniform"``.
        mean: μ, within the range; above 0 for a gamma or log-normal.
        std: σ; 0 gives μ everywhere.
        shape: Shape of the result.
        generator: Draws, on its device; torch's own on the CPU if None.
        within: The range, such as ``"(0, 1)"`` or ``"[0, inf)"``.

    Returns:
        The values, in torch's default dtype.

    Raises:
        ValueError: If an argument is out of range, or hardly any value drawn is within the range.

    Example:
        >>> draw("gamma", mean=20.0, std=5.0, shape=(3,), generator=torch.Generator().manual_seed(0)).shape
        torch.Size([3])
    """
    kind = DISTRIBUTIONS[one_of("distribution", distribution, DISTRIBUTIONS)]
    mean, std, sizes = as_number("mean", mean, within), as_number("std", std, "[0, inf)"), as_sizes("shape", shape)
    if distribution in ("gamma", "lognormal"):
        as_number("mean", mean, "(0, inf)")
    generator = torch.default_generator if generator is None else generator
    values = torch.full(sizes, mean if std == 0 else torch.nan, device=generator.device).flatten()
    for _ in range(_ROUNDS):
        missing = ~_is_within(values, within)
        count = int(missing.sum())
        if count == 0 or std == 0:
            return values.reshape(sizes)
        values[missing] = kind(mean, std, count, generator).to(values.dtype)
    raise ValueError(
        f"Expected argument `std` to leave values of a {distribution} distribution of mean {mean:g} in {within}, but "
        f"got {std:g}, of which hardly any is. Choose a smaller one."
    )


def _is_within(values: Tensor, interval: str) -> Tensor:
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = values >= low if interval[0] == "[" else values > low
    return above & (values <= high if interval[-1] == "]" else values < high)
