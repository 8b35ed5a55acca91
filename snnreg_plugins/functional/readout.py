"""Out of the outputs of single time steps: scores, and a loss of every step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

#: How scores are read out of outputs over time.
READOUTS = ("mean", "last", "max", "potential", "spike_count")


def with_step(readout: str, before: Tensor | None, output: Tensor, decay: float = 1.0) -> Tensor:
    """Add the output of a time step to what was read out of those before.

    Args:
        readout: One of ``READOUTS``; see :func:`running_scores`.
        before: What this gave for the step before; None at the first one.
        output: ``(B, ...)``.
        decay: β of ``"potential"``.

    Returns:
        The same for this step, for :func:`score_after`.
    """
    if before is None or readout == "last":
        return output
    if readout == "max":  # of equal ones the first, to which the gradient goes
        return torch.where((output <= before) | before.isnan(), before, output)
    return (decay * before if readout == "potential" else before) + output


def score_after(readout: str, found: Tensor, steps: int | Tensor) -> Tensor:
    """Give the scores of a run of so many steps.

    Args:
        readout: One of ``READOUTS``.
        found: What :func:`with_step` gave for the last of them.
        steps: How many there were; for each sample, where they differ, of a shape that broadcasts over ``found``.
    """
    return found / steps if readout == "mean" else found


def running_scores(outputs: Tensor, readout: str = "mean", decay: float = 1.0) -> Tensor:
    r"""Read scores out of the outputs of single time steps, for runs of 1, 2, ..., T steps.

    With :math:`o_t` the output of step t, those of a run of T steps are

    - ``"mean"``: :math:`\frac{1}{T} \sum_t o_t`;
    - ``"last"``: :math:`o_T`;
    - ``"max"``: :math:`\max_t o_t`, whose gradient goes to the first step that has it;
    - ``"potential"``: :math:`U_T` of a membrane that integrates them, :math:`U_t = \beta U_{t-1} + o_t`;
    - ``"spike_count"``: :math:`\sum_t o_t`, of outputs that are spikes.

    Args:
        outputs: ``(T, B, ...)``.
        readout: Which.
        decay: β.

    Returns:
        ``(T, B, ...)``.

    Example:
        >>> outputs = torch.tensor([[1.0], [3.0], [2.0]])
        >>> {name: running_scores(outputs, name).flatten().tolist() for name in ("mean", "max", "potential")}
        {'mean': [1.0, 2.0, 2.0], 'max': [1.0, 3.0, 3.0], 'potential': [1.0, 4.0, 6.0]}
    """
    found, scores = None, []
    for step, output in enumerate(outputs, start=1):
        found = with_step(readout, found, output, decay)
        scores.append(score_after(readout, found, step))
    return torch.stack(scores)


def outputs_of(scores: Tensor, readout: str = "mean", decay: float = 1.0) -> Tensor:
    r"""Give the outputs of single time steps that running scores were read out of.

    The inverse of :func:`running_scores`, up to rounding; of means :math:`o_t = t m_t - (t-1) m_{t-1}`.

    Args:
        scores: ``(T, B, ...)``, of runs of 1, 2, ..., T steps.
        readout: Any but ``"max"``, which forgets outputs.
        decay: β.

    Returns:
        ``(T, B, ...)``.

    Example:
        >>> outputs_of(torch.tensor([[1.0], [2.0], [2.0]])).flatten().tolist()
        [1.0, 3.0, 2.0]
    """
    if readout == "last":
        return scores
    if readout == "mean":
        scores = scores * torch.arange(1, len(scores) + 1, device=scores.device).reshape(-1, *[1] * (scores.dim() - 1))
    before = scores[:-1] * decay if readout == "potential" else scores[:-1]
    return torch.cat([scores[:1], scores[1:] - before])


def per_step_loss(
    outputs: Tensor,
    targets: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    strength: float = 0.0,
    target: float = 1.0,
) -> Tensor:
    r"""The loss of every single time step, and how far outputs are from a constant.

    .. math:: (1 - \lambda) \frac{1}{T} \sum_t \ell(o_t, y) + \lambda \, \mathrm{mean}\left((o - m)^2\right)

    Temporal efficient training (Deng et al. 2022, arXiv 2202.11946): every step learns, where the loss of the mean lets
    steps make up for each other.

    Args:
        outputs: Of single steps, :math:`o_t`; ``(T, B, ...)``.
        targets: y, of the samples.
        loss: :math:`\ell`, from outputs ``(B, ...)`` and targets to a mean over samples.
        strength: λ.
        target: m, the same for all outputs.

    Returns:
        A scalar.

    Example:
        >>> outputs, classes = torch.tensor([[[2.0, 0.0]], [[0.0, 0.0]]]), torch.tensor([0])
        >>> [round(float(per_step_loss(outputs, classes, strength=strength)), 4) for strength in (0.0, 0.5, 1.0)]
        [0.41, 0.705, 1.0]
    """
    total = sum((loss(output, targets) for output in outputs[1:]), loss(outputs[0], targets)) / len(outputs)
    if not strength:
        return total
    return (1 - strength) * total + strength * (outputs - target).square().mean()
