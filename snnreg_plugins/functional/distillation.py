"""How far the outputs of one network are from those of another."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

#: From the student's and the teacher's logits ``(B, K)`` to a scalar that is a mean over samples.
LogitLoss: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def kl_of_logits(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    r"""How many nats the student's classes are away from the teacher's, at a temperature.

    .. math:: \frac{\tau^2}{B} \sum_{b,k} p_{bk} \left(\log p_{bk} - \log q_{bk}\right), \quad
        p = \mathrm{softmax}(z^\text{teacher} / \tau), \; q = \mathrm{softmax}(z^\text{student} / \tau)

    The factor :math:`\tau^2` keeps the size of the gradient about the same at all temperatures (Hinton et al. 2015,
    Distilling the knowledge in a neural network). Computed in float32 at least.

    Args:
        student: Logits ``(B, K)``.
        teacher: Logits ``(B, K)``; a class at -inf counts nothing.
        temperature: τ.

    Returns:
        A scalar.

    Example:
        >>> round(float(kl_of_logits(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0]]))), 4)
        0.1109
    """
    log_p = F.log_softmax(_precise(teacher) / temperature, dim=1)
    log_q = F.log_softmax(_precise(student) / temperature, dim=1)
    p = log_p.exp()
    nats = torch.where(p > 0, p * (log_p - log_q), 0.0)
    return temperature**2 * nats.sum() / len(student)


def l2_of_logits(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Mean of the squared differences, :math:`\frac{1}{BK} \sum_{b,k} (z^\text{student} - z^\text{teacher})^2`.

    Computed in float32 at least. What is compared may be of any shape.

    Args:
        student: Logits ``(B, K)``.
        teacher: The same of the teacher.

    Returns:
        A scalar.

    Example:
        >>> float(l2_of_logits(torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 1.0]])))
        0.5
    """
    return (_precise(student) - _precise(teacher)).square().mean()


def mean_square(logits: Tensor) -> Tensor:
    r"""Mean of the squares, :math:`\frac{1}{BK} \sum_{b,k} z_{bk}^2`: large logits cost spikes.

    Computed in float32 at least.

    Args:
        logits: ``(B, K)``.

    Returns:
        A scalar.

    Example:
        >>> float(mean_square(torch.tensor([[1.0, 3.0]])))
        5.0
    """
    return _precise(logits).square().mean()


def prefix_means(outputs: Tensor) -> Tensor:
    r"""Means over the steps so far, :math:`\frac{1}{t} \sum_{s \le t} o_s` for each step t.

    Args:
        outputs: Of each step, ``(T, ...)``.

    Returns:
        ``(T, ...)``, in float32 at least.

    Example:
        >>> prefix_means(torch.tensor([[2.0], [4.0]])).tolist()
        [[2.0], [3.0]]
    """
    sums = _precise(outputs).cumsum(0)
    steps = torch.arange(1, len(outputs) + 1, device=outputs.device, dtype=sums.dtype)
    return sums / steps.reshape(-1, *[1] * (outputs.dim() - 1))


def _precise(values: Tensor) -> Tensor:
    """Half precision is too coarse for sums, and for logarithms."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
