r"""Penalties on activity: one pure function each, from a batch of activity to a differentiable scalar.

All but :func:`rate_bounds` are means over the samples of a batch :math:`a` of shape ``(B, ...)``. Each takes a
``weight``: non-negative, broadcastable to one sample (the fan-out map, say), by which the positions of a sample count.
Without one, all positions count alike. Sums are taken in float32 at least, also of half-precision activity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from snnreg_plugins._checks import as_number

Penalty: TypeAlias = Callable[..., Tensor]


def l1(activity: Tensor, weight: Tensor | None = None) -> Tensor:
    r"""Mean absolute activity.

    .. math:: \frac{1}{B} \sum_b \frac{\sum_i w_i |a_{bi}|}{\sum_i w_i}

    With fan-out weights this is the synaptic-operation loss of Sorbaro et al. 2020
    (`doi:10.3389/fnins.2020.00662 <https://doi.org/10.3389/fnins.2020.00662>`_) per synapse.

    Args:
        activity: Shape ``(B, ...)``.
        weight: How much each position counts, broadcastable to one sample.

    Example:
        >>> l1(torch.tensor([[0.0, 2.0], [1.0, 1.0]]))
        tensor(1.)
        >>> l1(torch.tensor([[0.0, 2.0]]), weight=torch.tensor([3.0, 1.0]))
        tensor(0.5000)
    """
    return _mean(activity.abs(), weight)


def l2(activity: Tensor, weight: Tensor | None = None) -> Tensor:
    r"""Mean squared activity.

    .. math:: \frac{1}{B} \sum_b \frac{\sum_i w_i a_{bi}^2}{\sum_i w_i}

    Args:
        activity: Shape ``(B, ...)``.
        weight: How much each position counts, broadcastable to one sample.

    Example:
        >>> l2(torch.tensor([[0.0, 2.0]]))
        tensor(2.)
    """
    return _mean(_single(activity).square(), weight)


def transformed_l1(activity: Tensor, weight: Tensor | None = None) -> Tensor:
    r"""Mean of the transformed L1 norm with a = 1, which saturates: large activity is not pushed down.

    .. math:: \frac{1}{B} \sum_b \frac{\sum_i w_i \, 2|a_{bi}| / (1 + |a_{bi}|)}{\sum_i w_i}

    From Zhang and Xin 2018 (arXiv 1411.5735), Eq. 1.3.

    Args:
        activity: Shape ``(B, ...)``.
        weight: How much each position counts, broadcastable to one sample.

    Example:
        >>> transformed_l1(torch.tensor([[0.0, 1.0]]))
        tensor(0.5000)
    """
    magnitude = _single(activity).abs()
    return _mean(2 * magnitude / (1 + magnitude), weight)


def hoyer(activity: Tensor, weight: Tensor | None = None) -> Tensor:
    r"""Hoyer's ratio of norms, per sample; scale-invariant, between 1 (one active position) and √n (all equal).

    .. math:: \frac{1}{B} \sum_b \frac{\sum_i w_i |a_{bi}|}{\sqrt{\sum_i w_i a_{bi}^2}}
        \quad \text{with the weights scaled to mean 1}

    A silent sample gives 0, with gradient 0. So does one whose active positions are all equal, as spikes are: scaling
    them changes nothing; see :func:`hoyer_of_spikes`. From Yang et al. 2020 (DeepHoyer, arXiv 1908.09979), Eq. 1,
    there on weights.

    Args:
        activity: Shape ``(B, ...)``.
        weight: How much each position counts, broadcastable to one sample.

    Example:
        >>> hoyer(torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 3.0, 0.0]]))
        tensor(1.5000)
    """
    first, second = _moments(activity, weight)
    return (first / second.sqrt()).mean()


def hoyer_square(activity: Tensor, weight: Tensor | None = None) -> Tensor:
    r"""Hoyer-square, per sample; scale-invariant, an estimate of how many positions are active (1 to n).

    .. math:: \frac{1}{B} \sum_b \frac{\left(\sum_i w_i |a_{bi}|\right)^2}{\sum_i w_i a_{bi}^2}
        \quad \text{with the weights scaled to mean 1}

    A silent sample gives 0, with gradient 0; the gradient of spikes is 0 too, see :func:`hoyer_square_of_spikes`.
    From Yang et al. 2020 (DeepHoyer, arXiv 1908.09979), Eq. 3; on activations Kurtz et al. 2020.

    Args:
        activity: Shape ``(B, ...)``.
        weight: How much each position counts, broadcastable to one sample.

    Example:
        >>> hoyer_square(torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 3.0, 0.0]]))
        tensor(2.5000)
    """
    first, second = _moments(activity, weight)
    return (first.square() / second).mean()


def expected_rate(activity: Tensor, weight: Tensor | None = None, *, threshold: Tensor | float) -> Tensor:
    r"""Mean spike rate that the activity will have after threshold balancing with threshold λ.

    .. math:: \frac{1}{B} \sum_b \frac{\sum_i w_i \, \text{clip}(a_{bi} / \lambda, 0, 1)}{\sum_i w_i}

    With fan-out weights this is the share of its synapses that a layer will use in a time step. As λ follows the
    activity (a robust maximum), scaling all activity down gains nothing, unlike with :func:`l1`. The gradient is 0
    at and beyond both ends of the clip, where all spikes are; see :func:`expected_rate_of_spikes`.

    Args:
        activity: Shape ``(B, ...)``.
        weight: How much each position counts, broadcastable to one sample.
        threshold: λ > 0, broadcastable to one sample; no gradient flows into it.

    Example:
        >>> expected_rate(torch.tensor([[0.0, 1.0, 4.0, -3.0]]), threshold=2.0)
        tensor(0.3750)
    """
    level = threshold.detach() if isinstance(threshold, Tensor) else as_number("threshold", threshold, "(0, inf)")
    # The same as clamp(0, 1) within 0 and 1, where alone there is a gradient; its backward is vectorized on a CPU.
    return _mean(F.hardtanh(activity / level, 0.0, 1.0), weight)


def hoyer_of_spikes(activity: Tensor, weight: Tensor | None = None) -> Tensor:
    r"""Hoyer's ratio of norms for spikes: the denominator is constant in the gradient, sg(·).

    .. math:: \frac{1}{B} \sum_b \frac{\sum_i w_i |s_{bi}|}{\text{sg}\left(\sqrt{\sum_i w_i s_{bi}^2}\right)}
        \quad \text{with the weights scaled to mean 1}

    Of n spikes of a sample the value is √n, as that of :func:`hoyer`, whose gradient cancels there; here each spike has
    the gradient 1/√n, which the surrogate passes on. Datta et al. 2022 (arXiv 2212.10170) instead take Hoyer-square of
    the clipped potentials, which no callback can see.

    Args:
        activity: Spikes, counts of spikes or constant multiples of them, of shape ``(B, ...)``.
        weight: How much each position counts, broadcastable to one sample.

    Example:
        >>> spikes = torch.tensor([[1.0, 0.0, 1.0, 1.0, 1.0]], requires_grad=True)
        >>> value = hoyer_of_spikes(spikes)
        >>> value.backward()
        >>> value.item(), spikes.grad.tolist()
        (2.0, [[0.5, 0.0, 0.5, 0.5, 0.5]])
    """
    first, second = _moments(activity, weight)
    return (first / second.detach().sqrt()).mean()


def hoyer_square_of_spikes(activity: Tensor, weight: Tensor | None = None) -> Tensor:
    r"""Hoyer-square for spikes: the denominator is constant in the gradient, sg(·).

    .. math:: \frac{1}{B} \sum_b \frac{\left(\sum_i w_i |s_{bi}|\right)^2}{\text{sg}\left(\sum_i w_i s_{bi}^2\right)}
        \quad \text{with the weights scaled to mean 1}

    Of n spikes of a sample the value is n, as that of :func:`hoyer_square`, whose gradient cancels there; here each
    spike has the gradient 2. See :func:`hoyer_of_spikes`.

    Args:
        activity: Spikes, counts of spikes or constant multiples of them, of shape ``(B, ...)``.
        weight: How much each position counts, broadcastable to one sample.

    Example:
        >>> spikes = torch.tensor([[1.0, 0.0, 1.0]], requires_grad=True)
        >>> value = hoyer_square_of_spikes(spikes)
        >>> value.backward()
        >>> value.item(), spikes.grad.tolist()
        (2.0, [[2.0, 0.0, 2.0]])
    """
    first, second = _moments(activity, weight)
    return (first.square() / second.detach()).mean()


def expected_rate_of_spikes(
    activity: Tensor, weight: Tensor | None = None, *, threshold: Tensor | float = 1.0
) -> Tensor:
    r"""Mean rate of spikes, or of counts of them by the threshold λ, without the clip of :func:`expected_rate`.

    .. math:: \frac{1}{B} \sum_b \frac{\sum_i w_i \, |s_{bi}| / \lambda}{\sum_i w_i}

    λ is at least the smallest spike, or 1 without any: a percentile of rare spikes is 0. The gradient is 1/λ wherever
    there is none or a positive spike, so that the surrogate passes it to neurons that nearly fire, too.

    Args:
        activity: Spikes, counts of spikes or constant multiples of them, of shape ``(B, ...)``.
        weight: How much each position counts, broadcastable to one sample.
        threshold: λ, broadcastable to one sample; no gradient flows into it.

    Example:
        >>> spikes = torch.tensor([[1.0, 0.0, 1.0, 0.0]], requires_grad=True)
        >>> value = expected_rate_of_spikes(spikes)
        >>> value.backward()
        >>> value.item(), spikes.grad.tolist()
        (0.5, [[0.25, 0.25, 0.25, 0.25]])
    """
    smallest = _smallest(activity)
    smallest = torch.where(smallest.isinf(), 1.0, smallest)
    level = torch.as_tensor(threshold, dtype=smallest.dtype, device=smallest.device).detach()
    return _mean(_single(_rising(activity)) / torch.maximum(level, smallest), weight)


def energy_of_spikes(activity: Tensor, weight: Tensor | None = None, *, ac: float, mac: float = 0.0) -> Tensor:
    r"""Mean energy of a synapse: events by the price of an accumulate, or real values by that of a multiplication.

    .. math:: \frac{1}{B} \sum_b \frac{\sum_i w_i \, e_{AC} |s_{bi}| / u}{\sum_i w_i} \quad \text{or} \quad
        \frac{1}{B} \sum_b \frac{\sum_i w_i \, e_{MAC} [s_{bi} \neq 0]}{\sum_i w_i}

    Whole numbers are events, u = 1, as :class:`~snnreg_plugins.Energy` counts them; of constant multiples of spikes, as
    pooling leaves them, the smallest is one. All else is real-valued: its energy has the gradient 0. The gradient of
    events is :math:`e_{AC} / u` wherever there is none or a positive spike, so that the surrogate passes it to neurons
    that nearly fire, too.

    Args:
        activity: Spikes, counts of spikes or constant multiples of them, of shape ``(B, ...)``; or real values.
        weight: How much each position counts, broadcastable to one sample.
        ac: Energy per accumulate.
        mac: Energy per multiply-accumulate.

    Example:
        >>> energy_of_spikes(torch.tensor([[1.0, 0.0, 1.0, 2.0]]), ac=0.9)
        tensor(0.9000)
        >>> energy_of_spikes(torch.tensor([[0.3, 0.0, 1.0, 0.8]]), ac=0.9, mac=4.6)
        tensor(3.4500)
    """
    magnitude = _single(_rising(activity))
    whole = (magnitude.detach() == magnitude.detach().round()).all()
    unit = torch.where(whole, 1.0, _smallest(activity))
    spent = torch.where(are_spikes(activity), magnitude * (ac / unit), (magnitude.detach() != 0).to(magnitude) * mac)
    return _mean(spent, weight)


def energy_at_rate(
    activity: Tensor, weight: Tensor | None = None, *, threshold: Tensor | float, ac: float, timesteps: int
) -> Tensor:
    r"""Mean energy of a synapse in T time steps at the :func:`expected_rate`: :math:`T e_{AC}` times that.

    Args:
        activity: Of a DNN, of shape ``(B, ...)``.
        weight: How much each position counts, broadcastable to one sample.
        threshold: As for :func:`expected_rate`.
        ac: Energy per accumulate.
        timesteps: T.
    """
    return expected_rate(activity, weight, threshold=threshold) * (timesteps * ac)


def rate_bounds(activity: Tensor, weight: Tensor | None = None, *, low: float = 0.0, high: float = math.inf) -> Tensor:
    r"""How far the rates of neurons are out of bounds, squared; of each neuron over the samples, not of each sample.

    .. math::
        \frac{\sum_i w_i \left(\text{relu}(\text{low} - r_i)^2 + \text{relu}(r_i - \text{high})^2\right)}
        {\sum_i w_i} \quad \text{with} \quad r_i = \frac{1}{B} \sum_b |s_{bi}|

    As no mean over samples, it is no sum of the penalties of parts of a batch. A silent neuron below ``low`` has a
    gradient that the surrogate passes on. The lower bound is as in the losses that the tutorials of sinabs write by
    hand.

    Args:
        activity: Spikes of shape ``(B, ...)``; where there are time steps, among B.
        weight: How much each position counts, broadcastable to one sample.
        low: The lowest rate without a penalty, in spikes/neuron/step.
        high: The highest.

    Example:
        >>> spikes = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]], requires_grad=True)
        >>> value = rate_bounds(spikes, low=0.25, high=0.5)
        >>> value.backward()
        >>> f"{value:.4f}", [round(gradient, 4) for gradient in spikes.grad.sum(0).tolist()]
        ('0.1042', [-0.1667, 0.0, 0.3333])
    """
    return out_of_bounds(neuron_rates(activity), weight, low, high)


def neuron_rates(activity: Tensor) -> Tensor:
    """Mean magnitude of each position over samples, with a slope at 0."""
    return _single(_rising(activity)).mean(0)


def out_of_bounds(rates: Tensor, weight: Tensor | None, low: float, high: float) -> Tensor:
    """Weighted mean over positions of how far rates are out of bounds, squared; see :func:`rate_bounds`."""
    return _mean((F.relu(low - rates).square() + F.relu(rates - high).square())[None], weight)


def are_spikes(activity: Tensor) -> Tensor:
    """Tell whether all values are whole multiples of the smallest: spikes, counts of them, or a constant times them.

    Args:
        activity: Of any shape.

    Returns:
        A scalar of bool, so that nobody has to wait for it; True where all is silent.

    Example:
        >>> are_spikes(torch.tensor([0.0, 0.25, 0.75])), are_spikes(torch.tensor([0.0, 0.5, 0.7]))
        (tensor(True), tensor(False))
    """
    counts = _single(activity.detach()).abs() / _smallest(activity)
    return (counts - counts.round()).abs().amax() < 1e-3


def _rising(activity: Tensor) -> Tensor:
    """Magnitude; unlike abs(), with a slope at 0."""
    return torch.where(activity < 0, -activity, activity)


def _smallest(activity: Tensor) -> Tensor:
    """Smallest magnitude that is not 0; infinite if there is none."""
    magnitude = _single(activity.detach()).abs()
    return torch.where(magnitude > 0, magnitude, torch.inf).amin()


#: Penalties by name that are means over samples.
PENALTIES: dict[str, Penalty] = {
    "l1": l1,
    "l2": l2,
    "hoyer": hoyer,
    "hoyer_square": hoyer_square,
    "transformed_l1": transformed_l1,
    "expected_rate": expected_rate,
}
#: Strengths to start from: on LeNet each costs at most half a point and saves operations (benchmarks/penalties.py).
START: dict[str, float] = {
    "expected_rate": 1.0,
    "rate_bounds": 1.0,
    "l1": 0.3,
    "transformed_l1": 0.1,
    "l2": 0.1,
    "hoyer": 3e-3,
    "hoyer_square": 3e-4,
}
# What to take of spikes in place of the penalties that do not act on them.
ON_SPIKES: dict[Penalty, Penalty] = {
    hoyer: hoyer_of_spikes,
    hoyer_square: hoyer_square_of_spikes,
    expected_rate: expected_rate_of_spikes,
}


def robust_maximum(activity: Tensor, quantile: float = 0.999, samples: int = 16_384) -> Tensor:
    r"""Estimate a high quantile of non-negative activity from the first samples of a batch.

    The smallest value that at least ``quantile`` of the values do not exceed.

    Args:
        activity: Shape ``(B, ...)``.
        quantile: Between 0 and 1.
        samples: Values to look at, at least; whole samples are taken from the start of the batch, which
            shuffling makes a random choice.

    Returns:
        A scalar in float32 or better, detached.

    Example:
        >>> robust_maximum(torch.arange(1000.0).reshape(10, 100))
        tensor(998.)
    """
    rows = activity.detach().reshape(len(activity), -1)
    values = _single(rows[: -(-samples // max(1, rows.shape[1]))]).flatten()
    rank = max(1, math.ceil(quantile * values.numel() - 1e-6))  # the product may be a rounding error too large
    return values.kthvalue(rank).values


def _single(activity: Tensor) -> Tensor:
    """Raise half precision to float32: squares and sums of it overflow."""
    return activity.float() if activity.dtype in (torch.float16, torch.bfloat16) else activity


def _sum(values: Tensor, dims: tuple[int, ...] | None = None, keepdim: bool = False) -> Tensor:
    exact = torch.float32 if values.dtype in (torch.float16, torch.bfloat16) else values.dtype
    return values.sum(dims, keepdim, dtype=exact)


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean over samples of the weighted mean over positions."""
    if weight is None:
        return _sum(values) / values.numel()
    # What counts alike is summed first: a product with all values would be a tensor of their size more.
    weight = weight[(None,) * (values.dim() - 1 - weight.dim())]
    alike = tuple(dim for dim, size in enumerate(weight.shape, start=1) if size == 1)
    return _sum(_sum(values, (0, *alike), keepdim=True) * weight) / (len(values) * _total(weight, values))


def _total(weight: Tensor, values: Tensor) -> Tensor:
    """Sum a weight over all positions of a sample."""
    return _sum(weight) * (values.shape[1:].numel() / weight.numel())


def _moments(activity: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weighted Σ|a| and Σa² of each sample, (0, 1) for a silent one."""
    values = _single(activity)
    first, second = values.abs(), values.square()
    if weight is not None:
        scaled = weight * (values.shape[1:].numel() / _total(weight, values))
        first, second = first * scaled, second * scaled
    first, second = _sum(first.flatten(1), (1,)), _sum(second.flatten(1), (1,))
    return first, torch.where(second > 0, second, 1.0)
