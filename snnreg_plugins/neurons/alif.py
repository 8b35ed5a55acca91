"""The adaptive leaky integrate-and-fire neuron: its parameters and one step of it, for any framework."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from snnreg_plugins._checks import as_names, as_number, as_sizes, one_of, shown
from snnreg_plugins.frameworks.surrogate import SURROGATES
from snnreg_plugins.functional import draw

# What each parameter may be; a learned one is never 0, as its logarithm is what is trained.
_RANGES = {"tau_m": "(0, inf)", "tau_adp": "(0, inf)", "threshold": "(0, inf)", "adaptation": "[0, inf)"}
_LEARNED = "(0, inf)"


@dataclass(frozen=True)
class Drawn:
    """Values that differ, drawn by :func:`snnreg_plugins.functional.draw`; in YAML a mapping of these names.

    Args:
        distribution: ``"gamma"``, ``"lognormal"``, ``"normal"`` or ``"uniform"``.
        mean: Mean of the values.
        std: Their standard deviation.
    """

    distribution: str
    mean: float
    std: float


class ALIFState(NamedTuple):
    """What a step leaves to the next one; all of the shape of the input current.

    Args:
        z: Spikes, 0 or 1.
        v: Potential.
        b: Adaptation: a running mean of the spikes before.
    """

    z: Tensor
    v: Tensor
    b: Tensor


class ALIFParameters(nn.Module):
    r"""Parameters of adaptive neurons; see :func:`alif_step` for what they do.

    What is learned is learned by its logarithm, so it stays above 0, and decays stay in (0, 1).

    Args:
        shape: Shape of each parameter, which broadcasts over a sample: ``()`` for one per layer, ``(N,)`` for one per
            neuron, ``(C, 1, 1)`` for one per channel.
        tau_m: Time constant of the potential, in steps; a number, or values :class:`Drawn` for each neuron.
        tau_adp: Time constant of the adaptation, in steps; alike.
        threshold: Threshold of a neuron at rest; alike.
        adaptation: By how much the threshold rises for a neuron that fires in every step; alike. 0, not learned, makes
            a plain leaky integrate-and-fire neuron.
        learn: Names of those that are learned.
        spike_grad: From the potential above threshold to spikes: a module, or the name of a surrogate gradient, such as
            ``"fast_sigmoid"`` or ``"triangular"``, which then has its own slope, in 1 / potential.
        generator: Draws; torch's own if None.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> p = ALIFParameters((3,), tau_m=Drawn("gamma", 20.0, 5.0), threshold=0.5)
        >>> p.tau_m.shape, p.threshold.tolist(), sorted(name for name, _ in p.named_parameters())
        (torch.Size([3]), [0.5, 0.5, 0.5], ['log_tau_adp', 'log_tau_m'])
    """

    def __init__(
        self,
        shape: Sequence[int] = (),
        tau_m: float | Drawn = 20.0,
        tau_adp: float | Drawn = 150.0,
        threshold: float | Drawn = 1.0,
        adaptation: float | Drawn = 1.8,
        learn: Sequence[str] = ("tau_m", "tau_adp"),
        spike_grad: str | nn.Module = "fast_sigmoid",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.shape = as_sizes("shape", shape)
        #: Names of what is learned.
        self.learned = frozenset(one_of("learn", name, _RANGES) for name in as_names("learn", learn or None) or ())
        values = {"tau_m": tau_m, "tau_adp": tau_adp, "threshold": threshold, "adaptation": adaptation}
        for name, value in values.items():
            within = _LEARNED if name in self.learned else _RANGES[name]
            tensor = _initial(name, value, self.shape, within, generator)
            if name in self.learned:
                self.register_parameter(f"log_{name}", nn.Parameter(tensor.log()))
            else:
                self.register_buffer(f"fixed_{name}", tensor)
        self.spike_grad = _surrogate(spike_grad)

    @property
    def tau_m(self) -> Tensor:
        """Time constant of the potential, in steps."""
        return self._value("tau_m")

    @property
    def tau_adp(self) -> Tensor:
        """Time constant of the adaptation, in steps."""
        return self._value("tau_adp")

    @property
    def threshold(self) -> Tensor:
        """Threshold at rest."""
        return self._value("threshold")

    @property
    def adaptation(self) -> Tensor:
        """By how much the threshold rises at most."""
        return self._value("adaptation")

    def _value(self, name: str) -> Tensor:
        value: Tensor = getattr(self, f"log_{name}").exp() if name in self.learned else getattr(self, f"fixed_{name}")
        return value

    def fresh_state(self, current: Tensor) -> ALIFState:
        """Give the state of neurons at rest.

        Args:
            current: Their input.

        Raises:
            ValueError: If the parameters' shape is not that of a sample of it, with sizes of 1 where they are shared.
        """
        sizes = current.shape[current.dim() - len(self.shape) :]
        fits = all(own in (1, size) for own, size in zip(self.shape, sizes, strict=False))
        if self.shape and not (len(self.shape) <= current.dim() <= len(self.shape) + 1 and fits):
            raise ValueError(
                f"Expected an input current (B, ...) for neurons whose parameters have the shape {self.shape}, but got "
                f"one of shape {tuple(current.shape)}. Make them with `shape` as a sample has it, with 1 for what "
                "shares a value; () shares all."
            )
        v = torch.zeros_like(current, dtype=torch.promote_types(current.dtype, torch.float32))
        return ALIFState(torch.zeros_like(current), v, v)


def _initial(name: str, value: Any, shape: tuple[int, ...], within: str, generator: torch.Generator | None) -> Tensor:
    if isinstance(value, Drawn):
        return draw(value.distribution, value.mean, value.std, shape, generator, within)
    return torch.full(shape, as_number(name, value, within))


def _surrogate(spike_grad: str | nn.Module) -> nn.Module:
    if isinstance(spike_grad, nn.Module):
        return spike_grad
    kind = SURROGATES[one_of("spike_grad", spike_grad, sorted(SURROGATES))]
    return kind(kind.STEEPNESS)


def alif_step(current: Tensor, state: ALIFState, p: ALIFParameters, dt: float = 1.0) -> tuple[Tensor, ALIFState]:
    r"""One step of adaptive leaky integrate-and-fire neurons.

    .. math::
        b_t &= \rho b_{t-1} + (1 - \rho) z_{t-1} \qquad \theta_t = \theta_0 + \beta b_t \\
        v_t &= \alpha v_{t-1} + (1 - \alpha) I_t - \theta_t z_{t-1} \qquad z_t = [v_t > \theta_t]

    with :math:`\alpha = e^{-dt/\tau_m}` and :math:`\rho = e^{-dt/\tau_{adp}}`, from Yin, Corradi and Bohté 2021 (SRNN).
    The gradient goes through :math:`z_{t-1}` in the adaptation, not in the reset.

    Args:
        current: I, shape ``(B, ...)``.
        state: What the last step left; it is computed in single precision or better.
        p: The parameters.
        dt: Length of a step, in the unit of the time constants.

    Returns:
        Spikes of the type of the current, and the state.

    Raises:
        ValueError: If the state is that of an input of another shape.
    """
    if state.v.shape != current.shape:
        raise ValueError(
            f"Expected an input current of the shape of the neurons' state, {tuple(state.v.shape)}, but got "
            f"{tuple(current.shape)}. Begin new samples without a state; a neuron that keeps it forgets by reset_mem()."
        )
    alpha, rho = (-dt / p.tau_m).exp(), (-dt / p.tau_adp).exp()
    b = rho * state.b + (1 - rho) * state.z
    theta = p.threshold + p.adaptation * b
    v = alpha * state.v + (1 - alpha) * current - theta * state.z.detach()
    z = p.spike_grad(v - theta).to(current.dtype)
    return z, ALIFState(z, v, b)


class AdaptiveNeuron:
    """A neuron of any framework that takes the steps of :func:`alif_step`; the base of those here.

    Attributes:
        p: Its parameters.
    """

    p: ALIFParameters

    @property
    def threshold(self) -> Tensor:
        """Threshold at rest."""
        return self.p.threshold

    def advance(self, current: Tensor, state: ALIFState | None) -> tuple[Tensor, ALIFState]:
        """Take a step from a state, or begin anew: called as its framework calls it, so that who looks on sees it."""
        raise NotImplementedError


def as_parameters(value: object) -> ALIFParameters:
    """Give the parameters that a neuron is made with.

    Raises:
        TypeError: If it is anything else.
    """
    if not isinstance(value, ALIFParameters):
        raise TypeError(f"Expected argument `p` to be ALIFParameters(...), but got {shown(value)}.")
    return value
