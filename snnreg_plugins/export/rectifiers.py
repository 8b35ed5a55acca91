"""Activations that rates can express, as populations of neurons: one for each sign of the input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from snnreg_plugins.export.qcfs import QCFS, SMALLEST

#: The activation modules that become neurons.
RECTIFIERS = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Hardtanh, QCFS)  # Hardtanh: ReLU6 too

#: What is added to a layer's name for its populations of neurons, and for where these start.
ENDINGS = ("", "_initial", "_negative", "_negative_initial")


@dataclass(frozen=True)
class Population:
    r"""Neurons for one sign of an activation's input.

    An activation is the sum over its populations of :math:`g \, \text{clip}(\pm x, 0, c)`.

    Args:
        suffix: What is added to the layer's name.
        sign: 1 for neurons that fire on positive input, -1 on negative.
        gain: g, a number, or one per channel ``(C,)``.
        limit: c.
        learned: Whether c is a threshold that was trained.
    """

    suffix: str
    sign: int
    gain: float | Tensor
    limit: float
    learned: bool = False

    def rectify(self, x: Tensor) -> Tensor:
        """Give clip(± x, 0, c), which the rate of the neurons is to follow."""
        return (x if self.sign > 0 else -x).clamp(0, self.limit)


def populations(activation: nn.Module) -> list[Population] | None:
    """Find the populations of an activation of :data:`RECTIFIERS`; None if rates cannot express it.

    Example:
        >>> [(p.sign, p.gain) for p in populations(nn.LeakyReLU(0.5))]
        [(1, 1.0), (-1, -0.5)]
        >>> populations(nn.ReLU6())[0].limit
        6.0
    """
    module: Any = activation
    if isinstance(module, nn.LeakyReLU):
        return both_signs(-module.negative_slope)
    if isinstance(module, nn.PReLU):
        return both_signs(-module.weight.detach() if module.weight.numel() > 1 else -float(module.weight.detach()))
    if isinstance(module, nn.Hardtanh):
        if not module.min_val <= 0 < module.max_val:
            return None
        positive = Population("", 1, 1.0, float(module.max_val))
        negative = Population("_negative", -1, -1.0, -float(module.min_val))
        return [positive, negative] if module.min_val < 0 else [positive]
    if isinstance(module, QCFS) and bool(module.active):
        return [Population("", 1, 1.0, max(float(module.threshold.detach()), SMALLEST), learned=True)]
    return [Population("", 1, 1.0, torch.inf)]


def both_signs(gain: float | Tensor) -> list[Population]:
    """Give one population for positive input, of gain 1, and one of some gain for negative input."""
    return [Population("", 1, 1.0, torch.inf), Population("_negative", -1, gain, torch.inf)]
