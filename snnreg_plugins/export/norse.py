"""Export to Norse: a soft-reset cell on Norse's own base class, which has none."""

from __future__ import annotations

from collections.abc import Callable

import torch
from norse.torch.module.snn import SNNCell
from torch import Tensor, nn

from snnreg_plugins.export.calibrate import Calibration, Threshold
from snnreg_plugins.export.convert import convert
from snnreg_plugins.export.firing import Dynamics
from snnreg_plugins.export.network import NeuronKind, SpikingNetwork
from snnreg_plugins.export.options import Options
from snnreg_plugins.export.parts import keep
from snnreg_plugins.export.processes import Sharded
from snnreg_plugins.export.surrogate import FastSigmoid


def to_norse(
    model: nn.Module,
    calibration: Calibration | Sharded,
    *,
    timesteps: int,
    threshold: str | Threshold = "percentile",
    percent: float = 99.9,
    per_channel: bool = False,
    initial_potential: float = 0.5,
    correction: str = "none",
    beta: float = 1.0,
    compensate_leak: bool = True,
    coding: str = "constant",
    until: str | None = None,
    surrogate_slope: float = 5.0,
) -> SpikingNetwork:
    r"""Export a trained ReLU network to Norse neurons with balanced thresholds.

    The same as :func:`~snnreg_plugins.to_snntorch` with the same options, which it explains, and spikes equal to its
    spikes bit for bit; the neurons are :class:`SoftResetCell`.

    Args:
        model: See :func:`~snnreg_plugins.to_snntorch`.
        calibration: Training data: a tensor of inputs, or an iterable of batches or (input, target) pairs;
            in a ``Sharded``, the share of one of several processes.
        timesteps: Time steps T of a run.
        threshold: How thresholds are chosen: ``"percentile"``, ``"max"``, ``"mmse"``, ``"local"``, ``"spike_norm"``,
            ``"learned"``, ``"auto"``, or a function.
        percent: Which percentile, in (0, 100].
        per_channel: One threshold per channel instead of one per layer.
        initial_potential: v₀ / λ in [0, 1).
        correction: ``"none"``, ``"potential"``, ``"channel_potential"`` or ``"bias"``.
        beta: Decay of the potential per step.
        compensate_leak: Whether to make up for β < 1.
        coding: ``"constant"``, ``"poisson"``, ``"latency"`` or ``"neurons"``.
        until: The last layer to convert; what follows stays a DNN.
        surrogate_slope: Slope of the fast-sigmoid surrogate gradient, in 1 / λ.

    Returns:
        The spiking network, on the model's device, in eval mode, with parameters that can be trained.

    Raises:
        ConversionError: If a part of the model cannot be expressed; names the layer and what to do instead.
        ValueError: If an argument is out of range.
        TypeError: If ``calibration`` gives something else than inputs.

    Example:
        >>> from snnreg_plugins import to_snntorch
        >>> model, x = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3)), torch.rand(100, 2)
        >>> torch.equal(to_norse(model, x, timesteps=8)(x), to_snntorch(model, x, timesteps=8)(x))
        True
    """
    options = Options(
        timesteps=timesteps,
        threshold=threshold,
        percent=percent,
        per_channel=per_channel,
        initial_potential=initial_potential,
        correction=correction,
        beta=beta,
        compensate_leak=compensate_leak,
        coding=coding,
        until=until,
        surrogate_slope=surrogate_slope,
    )
    return convert(model, calibration, NorseTarget(beta, surrogate_slope), options)


class SoftResetParameters(nn.Module):
    """Parameters of a :class:`SoftResetCell`: a module, so that they are saved, moved and trained with it.

    Args:
        threshold: λ, a scalar or shaped to broadcast over a sample.
        beta: Decay of the potential per step.
        surrogate: From the potential above threshold to spikes.
    """

    threshold: Tensor
    beta: Tensor

    def __init__(self, threshold: Tensor, beta: float, surrogate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.register_buffer("threshold", threshold)
        self.register_buffer("beta", torch.tensor(beta, dtype=threshold.dtype, device=threshold.device))
        self.surrogate = surrogate


def soft_reset_step(current: Tensor, v: Tensor, p: SoftResetParameters, dt: float = 1.0) -> tuple[Tensor, Tensor]:
    r"""One step of a leaky integrate-and-fire neuron with soft reset, a step after the spike.

    .. math:: v_t = \beta v_{t-1} + I_t - \lambda [v_{t-1} > \lambda] \qquad s_t = [v_t > \lambda]

    Args:
        current: I, shape ``(B, ...)``.
        v: The potential that the last step left.
        p: The parameters.
        dt: Not used: a step is a step.

    Returns:
        Spikes and potential, both of the shape of ``current``.
    """
    # No gradient flows through the reset, and the order of the sums is that of snntorch.Leaky.
    fired = (v > p.threshold).to(v.dtype)
    v = p.beta * v + current - fired * p.threshold
    return p.surrogate(v - p.threshold), v


class SoftResetCell(SNNCell):  # type: ignore[misc]
    r"""Leaky integrate-and-fire cell with soft reset, bit-equal to ``snntorch.Leaky``; see :func:`soft_reset_step`.

    Use it as any Norse cell, also within ``norse.torch.SequentialState``.

    Args:
        p: The parameters.

    Example:
        >>> cell = SoftResetCell(SoftResetParameters(torch.tensor(1.0), 1.0, FastSigmoid(5.0)))
        >>> state, spikes = None, []
        >>> for _ in range(4):
        ...     s, state = cell(torch.tensor([0.6]), state)
        ...     spikes.append(int(s))
        >>> spikes
        [0, 1, 0, 1]
    """

    def __init__(self, p: SoftResetParameters) -> None:
        super().__init__(soft_reset_step, torch.zeros_like, p, dt=1.0)

    @property
    def threshold(self) -> Tensor:
        """λ, under the name that all neurons of exported networks have."""
        threshold: Tensor = self.p.threshold
        return threshold


class NorseTarget:
    """Norse neurons."""

    name = "norse"

    @property
    def kind(self) -> NeuronKind:
        """What to know of the neurons."""
        return NeuronKind(keep, describe)

    def __init__(self, beta: float, surrogate_slope: float) -> None:
        self.beta = beta
        self.surrogate_slope = surrogate_slope

    def neuron(self, threshold: Tensor) -> nn.Module:
        """Make a neuron layer."""
        surrogate = FastSigmoid(self.surrogate_slope / threshold)
        return SoftResetCell(SoftResetParameters(threshold.clone(), self.beta, surrogate))


def describe(module: nn.Module) -> Dynamics | None:
    """Give the dynamics of a :class:`SoftResetCell`; None for any other module."""
    if type(module) is not SoftResetCell or type(module.p.surrogate) is not FastSigmoid:
        return None
    p = module.p
    trained = p.threshold.requires_grad or p.beta.requires_grad
    return None if trained else Dynamics(p.threshold, p.beta, p.surrogate.slope)
