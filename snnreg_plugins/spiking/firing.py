"""Soft-reset neurons over many time steps at once, without a temporary for each operation of each step."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

from snnreg_plugins.frameworks.base import Dynamics
from snnreg_plugins.frameworks.surrogate import keeps_derivative
from snnreg_plugins.spiking.layers import by_step


@cache
def kernels() -> Any:
    """Import the compiled loops; None where numba is not installed, or cannot be imported, which is said once."""
    try:
        from snnreg_plugins.spiking import kernels as compiled
    except ImportError:
        return None
    except Exception as error:  # a library that it needs is missing or broken, or no compiler is there for it
        warnings.warn(
            f"Spiking networks run without numba, and so slower, as it is broken here: {error!r}", stacklevel=2
        )
        return None
    return compiled


def is_compilable(x: Tensor) -> bool:
    """Tell whether the compiled loops take a tensor."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and kernels() is not None


class Firing:
    """Neurons of a layer, ready to fire for many steps; equal to one step at a time, bit by bit. No gradient.

    Args:
        dynamics: The neurons; not to be changed while this is in use.
    """

    def __init__(self, dynamics: Dynamics) -> None:
        self.dynamics = dynamics
        self.leaks = dynamics.beta.is_cuda or not bool((dynamics.beta == 1).all())
        self._thresholds: dict[tuple[bool, torch.Size], tuple[Any, Any]] = {}

    def __call__(self, currents: Tensor, potential: Tensor, steps: int, overwrite: bool = False) -> Tensor:
        """Give the spikes of all steps.

        Args:
            currents: ``(steps * B, ...)``, a step after the other; or ``(B, ...)``, the same in every step.
            potential: The potentials that the last step left, ``(B, ...)``; written to.
            steps: Number of steps.
            overwrite: Whether ``currents`` may be overwritten.

        Returns:
            ``(steps * B, ...)``.
        """
        constant = steps > 1 and currents.shape[0] == potential.shape[0]
        if self.is_compilable(currents, potential):
            return self._compiled(currents, potential, steps, constant, overwrite)
        return self._in_place(currents, potential, steps, constant)

    def _compiled(self, currents: Tensor, potential: Tensor, steps: int, constant: bool, overwrite: bool) -> Tensor:
        channels_last = _is_channels_last(currents)
        threshold, beta = self._threshold(channels_last, potential.shape[1:])
        values, v = (_in_memory_order(x, channels_last) for x in (currents, potential))
        rows = len(v), threshold.size
        if constant:
            spikes = values.new_empty((steps * rows[0], *values.shape[1:]))
            kernel, given = kernels().fire_constantly, [values.numpy().reshape(rows)]
        else:
            spikes = values if overwrite or values.data_ptr() != currents.data_ptr() else values.clone()
            kernel, given = kernels().fire, []
        written = spikes.numpy().reshape(steps, *rows)
        v_rows = v.numpy().reshape(rows)
        kernels().in_parallel(kernel, len(v), spikes.numel(), *given, written, v_rows, threshold, beta)
        if v.data_ptr() != potential.data_ptr():
            potential.copy_(_in_shape(v, channels_last))
        return _in_shape(spikes, channels_last)

    def _threshold(self, channels_last: bool, sample: torch.Size) -> tuple[Any, Any]:
        """Give the threshold of each neuron, in the order of memory, and the decay."""
        key = channels_last, sample
        if key not in self._thresholds:
            threshold = _rows(self.dynamics.threshold, channels_last, sample)
            self._thresholds[key] = threshold, threshold.dtype.type(self.dynamics.beta)
        return self._thresholds[key]

    def _in_place(self, currents: Tensor, v: Tensor, steps: int, constant: bool, above: Tensor | None = None) -> Tensor:
        """Do all with operations of torch; writes to ``above``, if given, how far ``v`` was above the threshold."""
        threshold = self.dynamics.threshold
        spikes = currents.new_empty((steps, *v.shape))
        reset = (v > threshold).to(v.dtype)
        for step, current in enumerate([currents] * steps if constant else by_step(currents, steps)):
            if self.leaks:
                v.mul_(self.dynamics.beta)
            v.add_(current).addcmul_(reset, threshold, value=-1)
            if above is not None:
                torch.sub(v, threshold, out=above[step])
            reset = torch.gt(v, threshold, out=spikes[step])
        return spikes.flatten(0, 1)

    def with_gradient(self, currents: Tensor, potential: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Give the spikes of all steps and the last potential; gradients are those of one step at a time, bit by bit.

        Those of thresholds and decays are sums over steps, and equal but for rounding.

        Args:
            currents: ``(steps * B, ...)``, or ``(B, ...)``, the same in every step.
            potential: The potentials that the last step left, ``(B, ...)``; left as they are.
            steps: Number of steps.
        """
        spikes: Tensor
        last: Tensor
        trained = self.dynamics.threshold, self.dynamics.beta
        sources = currents[:0].clone(), potential[:0].clone(), *trained  # no memory, but what they depend on
        spikes, last = _Fire.apply(currents, potential, *trained, self, steps, *sources)
        return spikes, last

    def of_beta(self, of_currents: Tensor, above: Tensor, potential: Tensor) -> Tensor:
        r"""Give the gradient of the decay, :math:`\sum_t g_t v_{t-1}`, g being that of the currents.

        Further arguments are as of :meth:`backward`.
        """
        steps = len(of_currents) // len(potential)
        g = by_step(of_currents, steps)
        later = g[1:] * (by_step(above, steps)[:-1] + self.dynamics.threshold)
        return (g[0] * potential + later.sum(0)).sum_to_size(self.dynamics.beta.shape)

    def above(self, currents: Tensor, potential: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Give spikes and how far the potential was above the threshold, ``(steps * B, ...)``, and the last potential.

        Arguments are as of :meth:`with_gradient`.
        """
        constant = steps > 1 and currents.shape[0] == potential.shape[0]
        if not self.is_compilable(currents, potential):
            above, v = currents.new_empty((steps, *potential.shape)), potential.clone()
            return self._in_place(currents, v, steps, constant, above), above.flatten(0, 1), v
        channels_last = _is_channels_last(currents)
        threshold, beta = self._threshold(channels_last, potential.shape[1:])
        values, samples = _in_memory_order(currents, channels_last), len(potential)
        spikes, above = (values.new_empty((steps * samples, *values.shape[1:])) for _ in range(2))
        v = values.new_empty((samples, *values.shape[1:]))
        rows = samples, threshold.size
        kernels().in_parallel(
            kernels().fire_above, samples, 2 * spikes.numel(),
            values.numpy().reshape(-1, *rows), constant, _samples(potential, channels_last), v.numpy().reshape(rows),
            threshold, beta, above.numpy().reshape(steps, *rows), spikes.numpy().reshape(steps, *rows),
        )  # fmt: skip
        return _in_shape(spikes, channels_last), _in_shape(above, channels_last), _in_shape(v, channels_last)

    def backward(
        self,
        above: Tensor,
        of_spikes: Tensor,
        of_last: Tensor | None,
        potential: Tensor,
        starts: bool = False,
        trained: bool = False,
        fired: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        r"""Give the gradients of the currents of all steps, and those of the potential and the threshold, if wanted.

        With :math:`s_t` what the surrogate passes on, g the gradient of :math:`v_t`, which is that of :math:`I_t`, and
        no gradient through the reset,

        .. math:: g_t = s_t + \beta g_{t+1} \qquad
            \frac{\partial L}{\partial \lambda} = -\sum_t \left( s_t + [v_{t-1} > \lambda] \, g_t \right)

        where :math:`\beta g_{T+1}` is the gradient of the last potential.

        Args:
            above: How far the potential was above the threshold, ``(steps * B, ...)``.
            of_spikes: Gradient of the spikes, shaped alike.
            of_last: Gradient of the last potential, ``(B, ...)``; None for 0.
            potential: :math:`v_0`, ``(B, ...)``.
            starts: Whether the gradient of :math:`v_0` is wanted.
            trained: Whether that of the threshold is.
            fired: The spikes; then ``above`` is the derivative of the surrogate.
        """
        if not self.is_compilable(above, of_spikes, potential):
            return self._backward(above, of_spikes, of_last, potential, trained, fired)
        channels_last, sample = _is_channels_last(above), potential.shape[1:]
        steps = len(above) // len(potential)
        surrogate = self.dynamics.surrogate
        slope = _rows(surrogate.slope, channels_last, sample)
        scaled = surrogate.steepness is not None and fired is None
        height = slope / slope.dtype.type(surrogate.steepness) if scaled else slope[:0]
        threshold = self._threshold(channels_last, sample)[0] if trained else slope[:0]
        values, given = (_in_memory_order(x, channels_last) for x in (above, of_spikes))
        spikes = values if fired is None else _in_memory_order(fired, channels_last)
        rows = len(potential), slope.size
        of_currents = torch.empty_like(values)
        of_start = values.new_empty((len(potential) if starts else 0, *values.shape[1:]))
        later = of_start[:0] if of_last is None else _in_memory_order(of_last, channels_last)
        totals = kernels().in_parallel(
            kernels().fire_back, len(potential), 2 * above.numel(),
            *(x.numpy().reshape(steps, *rows) for x in (values, spikes, given)), later.numpy().reshape(-1, slope.size),
            slope, height, surrogate.COMPILED if fired is None else -1, slope.dtype.type(self.dynamics.beta),
            of_currents.numpy().reshape(steps, *rows), of_start.numpy().reshape(-1, slope.size),
            _samples(potential, channels_last), threshold,
        )  # fmt: skip
        found = _in_shape(of_currents, channels_last), _in_shape(of_start, channels_last) if starts else None
        if not trained:
            return *found, None
        total = torch.from_numpy(sum(totals)).reshape(values.shape[1:])
        total = total.permute(2, 0, 1) if channels_last else total
        return *found, total.sum_to_size(self.dynamics.threshold.shape)

    def _backward(
        self,
        above: Tensor,
        of_spikes: Tensor,
        of_last: Tensor | None,
        potential: Tensor,
        trained: bool,
        fired: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        steps, threshold = len(above) // len(potential), self.dynamics.threshold
        of_currents = by_step(torch.empty_like(above), steps)
        above, of_spikes = by_step(above, steps), by_step(of_spikes.contiguous(), steps)
        spikes = above if fired is None else by_step(fired, steps)
        later = torch.zeros_like(of_currents[0]) if of_last is None else of_last.clone()
        none, total = later.new_zeros(()), later.new_zeros(threshold.shape) if trained else None
        for step in reversed(range(steps)):
            if fired is None:
                of_step = self.dynamics.surrogate.backward(of_spikes[step], above[step])
            else:
                of_step = of_spikes[step] * above[step]
            later.copy_(torch.add(of_step, later, out=of_currents[step]))
            if total is not None:
                reset = spikes[step - 1] > 0 if step else potential > threshold
                total -= of_step.sum_to_size(threshold.shape)
                total -= torch.where(reset, of_currents[step], none).sum_to_size(threshold.shape)
            if self.leaks:
                later.mul_(self.dynamics.beta)
        return of_currents.flatten(0, 1), later, total

    def is_compilable(self, *tensors: Tensor) -> bool:
        """Tell whether compiled loops take these neurons and tensors."""
        dtype = self.dynamics.threshold.dtype
        return (
            self.dynamics.beta.numel() == 1
            and self.dynamics.surrogate.COMPILED is not None
            and self.dynamics.surrogate.slope.dtype == dtype
            and all(is_compilable(tensor) and tensor.dtype == dtype for tensor in tensors)
        )


class _Fire(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        currents: Tensor,
        potential: Tensor,
        threshold: Tensor,
        beta: Tensor,
        firing: Firing,
        steps: int,
        *sources: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.firing = firing
        ctx.set_materialize_grads(False)  # the last potential seldom has one
        ctx.constant = steps > 1 and currents.shape[0] == potential.shape[0]
        spikes, above, last = firing.above(currents, potential, steps)
        ctx.is_derivative = keeps_derivative()
        kept = firing.dynamics.surrogate.derivative(above) if ctx.is_derivative else above
        fired = spikes if ctx.is_derivative else None
        ctx.save_for_backward(kept, fired, above if beta.requires_grad else None, potential, *sources)
        return spikes, last

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        kept, fired, above, potential, *sources = ctx.saved_tensors
        of_spikes, of_last = grads
        _, starts, of_threshold, of_beta, *_ = ctx.needs_input_grad
        with torch.no_grad():
            of_spikes = torch.zeros_like(kept) if of_spikes is None else of_spikes
            firing: Firing = ctx.firing
            found: list[Tensor | None] = [
                *firing.backward(kept, of_spikes, of_last, potential, starts, of_threshold, fired)
            ]
            of_currents: Any = found[0]
            found.append(firing.of_beta(of_currents, above, potential) if of_beta else None)
            if ctx.constant:
                found[0] = by_step(of_currents, len(of_currents) // len(potential)).sum(0)
        if torch.is_grad_enabled():
            # `once_differentiable` forgets what spikes depend on, and so leaves out terms without a word.
            given = [gradient for gradient in found if gradient is not None]
            once = iter(_Once.apply(len(given), *given, *sources))
            found = [None if gradient is None else next(once) for gradient in found]
        return (*found, None, None, *[None] * len(sources))


class _Once(torch.autograd.Function):
    """Passes gradients on, which depend on further tensors in a way that nobody can differentiate."""

    @staticmethod
    def forward(ctx: Any, count: int, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(gradient.view_as(gradient) for gradient in gradients[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            "Gradients of neurons that run many steps at once cannot be differentiated again: set `exact = True` on "
            "the spiking network for that."
        )


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _in_memory_order(x: Tensor, channels_last: bool) -> Tensor:
    """Give a contiguous tensor of that layout; a copy, if it had another."""
    return (x.permute(0, 2, 3, 1) if channels_last else x).contiguous()


def _in_shape(x: Tensor, channels_last: bool) -> Tensor:
    return x.permute(0, 3, 1, 2) if channels_last else x


def _rows(values: Tensor, channels_last: bool, sample: torch.Size) -> Any:
    """Give the value of each neuron of a sample, in the order of memory."""
    expanded = values.detach().expand(sample)
    return (expanded.permute(1, 2, 0) if channels_last else expanded).contiguous().numpy().reshape(-1)


def _samples(values: Tensor, channels_last: bool) -> Any:
    """Give ``(B, N)`` in the order of memory; ``(1, N)`` where all samples are one."""
    one = values[:1] if values.stride(0) == 0 else values
    return _in_memory_order(one, channels_last).numpy().reshape(len(one), -1)
