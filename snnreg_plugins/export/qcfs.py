"""The quantized activation of a DNN that is to spike for a few time steps."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from snnreg_plugins._checks import as_integer, as_number, as_percent
from snnreg_plugins._torch import is_in_backward
from snnreg_plugins.watching.layers import ActivityLayer

# The least λ that is divided by. A learned λ may be pushed below zero, where the formula makes no sense.
SMALLEST = 1e-6
_MOMENTUM = 0.9  # share of the old in the running mean of what is observed
_SAMPLES = 16_384  # values of a batch to look at; whole samples are taken


def clip_floor_shift(x: Tensor, threshold: Tensor, levels: int) -> Tensor:
    r"""Quantize an activation to L + 1 values from 0 to λ, as the mean of L steps of a spiking neuron is.

    .. math:: y = \lambda \cdot \frac{1}{L} \left\lfloor L \cdot
        \mathrm{clip}\left(\frac{x}{\lambda}, 0, 1\right) + \frac{1}{2} \right\rfloor

    which has the values of λ · clip(⌊x·L/λ + ½⌋ / L, 0, 1). The gradient takes the floor for the identity, so

    .. math:: \frac{\partial y}{\partial x} = [0 < x < \lambda] \qquad
        \frac{\partial y}{\partial \lambda} = \frac{y}{\lambda} - \frac{x}{\lambda} [0 < x < \lambda]

    From Bu et al. 2022 (Optimal ANN-SNN conversion for high-accuracy and ultra-low-latency spiking neural networks).
    A λ below 1e-6 counts as 1e-6 and keeps its gradient, so that training can raise it again. Half precision is
    computed in float32.

    Args:
        x: Any shape.
        threshold: λ, a scalar.
        levels: L, at least 1.

    Returns:
        Shape and dtype of ``x``.

    Example:
        >>> x = torch.tensor([-1.0, 0.1, 0.6, 1.2, 5.0], requires_grad=True)
        >>> threshold = torch.tensor(2.0, requires_grad=True)
        >>> y = clip_floor_shift(x, threshold, levels=4)
        >>> y.tolist()
        [0.0, 0.0, 0.5, 1.0, 2.0]
        >>> y.sum().backward()
        >>> x.grad.tolist(), round(threshold.grad.item(), 4)
        ([0.0, 1.0, 1.0, 1.0, 0.0], 0.8)
    """
    y: Tensor = _ClipFloorShift.apply(x, threshold, levels)
    return y


class QCFS(ActivityLayer):
    r"""Quantization-clip-floor-shift activation with a learned threshold; a ReLU until it is activated.

    .. math:: y = \lambda \cdot \mathrm{clip}\left(\frac{1}{L} \left\lfloor \frac{x L}{\lambda} + \frac{1}{2}
        \right\rfloor, 0, 1\right)

    A spiking neuron with threshold λ and initial potential λ/2 emits y as its mean over L time steps, if its input is
    constant. So a network trained with it loses little at few time steps. See :func:`clip_floor_shift`.

    Until :meth:`activate` is called, it computes max(x, 0) exactly, with a zero gradient for λ, and in training mode
    observes what the threshold is to be: the running mean of each call's percentile of activity (kept like weights,
    in the buffer ``observed``).

    Args:
        levels: L, the number of steps between 0 and λ; best the number of time steps of the spiking network.
        threshold: Initial λ, which counts if nothing was observed before.
        percent: The percentile of activity that λ starts from.

    Attributes:
        threshold: λ, a scalar parameter. It must stay positive; below 1e-6 it counts as 1e-6.
        levels: L.
        active: Whether it quantizes; a buffer, to be set by :meth:`activate` and ``load_state_dict`` alone.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> activation = QCFS(levels=4)
        >>> x = torch.tensor([-1.0, 0.3, 0.9, 2.0])
        >>> activation(x)  # doctest: +ELLIPSIS
        tensor([0.0000, 0.3000, 0.9000, 2.0000], grad_fn=...)
        >>> activation.activate()
        >>> activation.threshold.item()
        2.0
        >>> activation(x)  # doctest: +ELLIPSIS
        tensor([0.0000, 0.5000, 1.0000, 2.0000], grad_fn=...)
    """

    active: Tensor
    observed: Tensor

    def __init__(self, levels: int = 4, threshold: float = 1.0, percent: float = 99.9) -> None:
        levels, percent = as_integer("levels", levels), as_percent("percent", percent)
        threshold = as_number("threshold", threshold, f"[{SMALLEST}, inf)")
        super().__init__()
        self.levels = levels
        self.percent = percent
        self.threshold = nn.Parameter(torch.tensor(float(threshold)))
        # A number, as averages of weights cannot be taken of bool.
        self.register_buffer("active", torch.tensor(0, dtype=torch.uint8))
        self.register_buffer("observed", torch.tensor(0.0))  # 0: nothing yet, or a silent layer
        self._quantizes = False  # as `active`: reading that from a GPU at every call would wait for it

    def forward(self, x: Tensor) -> Tensor:
        """Give the activation for ``x`` of any shape, in its dtype."""
        if self._quantizes:
            return clip_floor_shift(x, self.threshold, self.levels)
        y: Tensor = _Inactive.apply(x, self.threshold)
        if self.training:
            self._observe(y)
        return y

    @torch.no_grad()
    def activate(self) -> None:
        """Quantize from now on, with the observed threshold (the initial one, if nothing or silence was observed).

        Raises:
            ValueError: If activity was not finite.
        """
        if not self.observed.isfinite():
            raise ValueError(f"Expected activity to be finite, but its percentile is {float(self.observed)}.")
        if self.observed > 0:
            self.threshold.copy_(self.observed.clamp_min(SMALLEST))
        self.active.fill_(1)
        self._quantizes = True

    @torch.no_grad()
    def _observe(self, y: Tensor) -> None:
        if not torch.compiler.is_compiling() and is_in_backward():
            return  # checkpointing computes it a second time, within the backward pass
        if not y.numel():
            return
        rows = y.reshape(y.shape[0] if y.dim() else 1, -1)
        values = rows[: -(-_SAMPLES // rows.shape[1])].flatten()
        # The smallest value that the given share does not exceed; the product may be a rounding error too large.
        rank = max(1, math.ceil(self.percent / 100 * values.numel() - 1e-6))
        level = values.topk(values.numel() - rank + 1, sorted=True).values[-1].to(self.observed.dtype)
        mean = torch.lerp(level, self.observed, _MOMENTUM)
        # A batch that overflowed, as the first ones in fp16 may, is forgotten at the next.
        started = (self.observed > 0) & self.observed.isfinite()
        self.observed.copy_(torch.where(started, mean, level))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._quantizes = bool(self.active)

    def extra_repr(self) -> str:
        """Show L."""
        return f"levels={self.levels}"


class _ClipFloorShift(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: Tensor, levels: int) -> Tensor:
        # The input alone, and not the output, so that what comes behind may change that in place.
        ctx.save_for_backward(x, threshold)
        ctx.levels = levels
        scaled, positive = _scaled(x, threshold)
        return _counts(scaled, levels).mul_(positive / levels).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, threshold = ctx.saved_tensors
        scaled, _ = _scaled(x, threshold)
        grad = grads[0].to(scaled.dtype)
        # Passed on where 0 < scaled < 1, many times faster than by comparing and masking.
        grad_x = torch.ops.aten.hardtanh_backward(grad, scaled, 0, 1)
        grad_threshold = None
        if ctx.needs_input_grad[1]:
            # Subtracted before the sum, where most of it cancels.
            terms = _counts(scaled.clone(), ctx.levels).mul_(grad).addcmul_(scaled, grad_x, value=-ctx.levels)
            grad_threshold = (terms.sum() / ctx.levels).to(threshold.dtype)
        return grad_x.to(x.dtype), grad_threshold, None


def _scaled(x: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Give x / λ and the positive λ, in float32 or better."""
    exact = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    positive = threshold.to(exact).clamp_min(SMALLEST)
    return x.to(exact) / positive, positive


def _counts(scaled: Tensor, levels: int) -> Tensor:
    """Count the spikes in L steps, in place."""
    return scaled.clamp_(0, 1).mul_(levels).add_(0.5).floor_()


class _Inactive(torch.autograd.Function):
    """ReLU, with λ in the graph: distributed training waits for the gradient of every parameter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: Tensor) -> Tensor:
        y = x.relu()
        ctx.save_for_backward(y, threshold)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        y, threshold = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grads[0], y, 0), torch.zeros_like(threshold)
