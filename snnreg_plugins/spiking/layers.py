"""The parts of a spiking network beside its neurons and synapses."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snnreg_plugins.watching.samples import tensors_in


class ChannelAffine(nn.Module):
    r"""An affine map of each channel: what a batch norm on the network's constant input becomes.

    .. math:: y_c = w_c \, x_c + b_c

    Args:
        weight: w, shape ``(C,)``.
        bias: b, shape ``(C,)``.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, ...)`` to the same shape."""
        shape = (-1, *[1] * (x.dim() - 2))
        return x * self.weight.reshape(shape) + self.bias.reshape(shape)


class BatchNorm(nn.BatchNorm1d):
    r"""Batch norm of the currents of a layer, of any number of dimensions, while a spiking network is trained.

    In training its statistics are those of all samples and time steps of a call, in eval mode the running ones:

    .. math:: y_c = \gamma_c \frac{x_c - \mu_c}{\sqrt{\sigma_c^2 + \epsilon}} + \beta_c

    Args:
        norm: The batch norm of the DNN, whose weights and statistics it starts with.
    """

    def __init__(self, norm: Any) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine)
        self.load_state_dict(norm.state_dict())
        self.to(norm.running_mean)

    def _check_input_dim(self, input: Tensor) -> None:
        """Take any number of dimensions, behind samples and channels."""


class SumPool(nn.Module):
    """Sum over windows: what average pooling becomes, so that counts of spikes stay whole numbers.

    The 1/k² goes into the next weights.

    Args:
        pool: The average pooling whose windows to sum over.
    """

    def __init__(self, pool: nn.AvgPool1d | nn.AvgPool2d | nn.AvgPool3d) -> None:
        super().__init__()
        self.dims = {nn.AvgPool1d: 1, nn.AvgPool2d: 2, nn.AvgPool3d: 3}[type(pool)]
        self.kernel_size = _tuple(pool.kernel_size, self.dims)
        self.stride = _tuple(pool.stride, self.dims)
        self.padding = _tuple(pool.padding, self.dims)
        self.ceil_mode = pool.ceil_mode

    def forward(self, x: Tensor) -> Tensor:
        """Sum over windows, ``(B, C, *spatial)`` to ``(B, C, *pooled)``."""
        if self.dims == 2 and _windows_apart(self, x):
            sums: Tensor = _SumOverWindows.apply(x, self.kernel_size)
            return sums
        how = self.kernel_size, self.stride, self.padding, self.ceil_mode
        if self.dims == 3:
            # On the CPU torch has none of half precision, but adaptive ones, which this may be made of.
            return F.avg_pool3d(for_summing(x), *how, divisor_override=1).to(x.dtype)
        if self.dims == 2:
            return F.avg_pool2d(x, *how, divisor_override=1)
        # avg_pool1d takes no divisor.
        kernel, stride, padding = (1, *self.kernel_size), (1, *self.stride), (0, *self.padding)
        return F.avg_pool2d(x.unsqueeze(2), kernel, stride, padding, self.ceil_mode, divisor_override=1).squeeze(2)

    def extra_repr(self) -> str:
        """Show the window in ``print(network)``."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class AdaptiveSumPool(nn.Module):
    """Sum over the windows of an adaptive average pooling, which may overlap and differ in size.

    Args:
        sizes: Spatial sizes of the input.
        pooled: Those of the output.
    """

    def __init__(self, sizes: tuple[int, ...], pooled: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes, self.pooled = sizes, pooled
        for dim, (size, windows) in enumerate(zip(sizes, pooled, strict=True)):
            positions, window = torch.arange(size), torch.arange(windows).unsqueeze(1)
            inside = (positions >= window * size // windows) & (positions < -(-(window + 1) * size // windows))
            self.register_buffer(f"windows{dim}", inside.float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Sum over windows, ``(B, C, *sizes)`` to ``(B, C, *pooled)``."""
        for dim in range(len(self.sizes)):
            windows: Tensor = getattr(self, f"windows{dim}")
            x = (x.movedim(dim + 2, -1) @ windows.to(x.dtype).T).movedim(-1, dim + 2)
        return x

    def extra_repr(self) -> str:
        """Show the sizes in ``print(network)``."""
        return f"{self.sizes} to {self.pooled}"


class SumOver(nn.Module):
    """Sum over dimensions: what a mean becomes; 1/n goes into the next weights.

    Args:
        dims: Dimensions, without the batch.
        keepdim: Keep them with size 1.
    """

    def __init__(self, dims: tuple[int, ...], keepdim: bool) -> None:
        super().__init__()
        self.dims, self.keepdim = dims, keepdim

    def forward(self, x: Tensor) -> Tensor:
        """Sum ``(B, ...)``."""
        return x.sum(self.dims, keepdim=self.keepdim)

    def extra_repr(self) -> str:
        """Show the dimensions in ``print(network)``."""
        return f"dims={self.dims}, keepdim={self.keepdim}"


class SpikeMaxPool(nn.Module):
    r"""Max pooling of spikes: the k-th spike passes when the first neuron of the window fires for the k-th time.

    With :math:`N_i(t)` the number of spikes of neuron i until step t,

    .. math:: s_t = \max_i N_i(t) - \max_i N_i(t - 1)

    is 0 or 1, and its sum is that of the most active neuron, as max pooling of activations demands. Costs a counter
    per input neuron. Currents pass in the same way: by their sums.

    Args:
        pool: The max pooling whose windows to pick from.
    """

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, spikes: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Pool ``(B, C, *spatial)`` spikes; the state is the sums so far and their maxima, None at the first step."""
        counts = for_summing(spikes)
        if state is not None:
            counts = state[0] + counts
        highest: Tensor = self.pool(counts)
        passed = highest if state is None else highest - state[1]
        return passed.to(spikes.dtype), (counts, highest)

    def over_steps(
        self, spikes: Tensor, steps: int, state: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Pool the spikes of several steps, ``(steps * B, C, *spatial)``, one step after the other."""
        counts = list(by_step(for_summing(spikes), steps).unbind())
        if state is not None:
            counts[0] = state[0] + counts[0]
        for step in range(1, steps):
            counts[step] = counts[step - 1] + counts[step]
        totals = torch.cat(counts)
        # Where maxima are equal, a gradient would go elsewhere.
        trained = torch.is_grad_enabled() and totals.requires_grad
        apart = isinstance(self.pool, nn.MaxPool2d) and not trained and _windows_apart(self.pool, totals)
        highest = _over_windows(totals, _tuple(self.pool.kernel_size, 2), torch.maximum) if apart else self.pool(totals)
        highest = by_step(highest, steps)
        before = torch.zeros_like(highest[:1]) if state is None else state[1].unsqueeze(0)
        passed = highest - torch.cat([before, highest[:-1]])
        return passed.flatten(0, 1).to(spikes.dtype), (counts[-1], highest[-1])


class InitialState(nn.Module):
    """The state a neuron layer starts a step with: the one it left, or at the first step its initial potential.

    Args:
        potential: Shaped to broadcast over a sample of the layer's current.
        level: What a spike of the layer is worth, in units of the DNN's activation; shaped alike.
    """

    potential: Tensor
    level: Tensor

    def __init__(self, potential: Tensor, level: Tensor) -> None:
        super().__init__()
        self.register_buffer("potential", potential)
        self.register_buffer("level", level)

    def forward(self, state: Tensor | None, current: Tensor) -> Tensor:
        """Give the state in the shape of ``current``: neurons replace one of another shape by zeros."""
        return like_current(self.potential, current).expand_as(current) if state is None else state


class Current(nn.Module):
    """A constant current that neurons receive in every step: a bias that differs from place to place.

    Args:
        bias: Shaped to broadcast over a sample of the layer's current.
    """

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias)

    def forward(self, current: Tensor) -> Tensor:
        """Add to ``(B, ...)``."""
        return current + self.bias


def like_current(values: Tensor, current: Tensor) -> Tensor:
    """Give values in the type of a current; as they are, if that is of whole numbers, which hold no potential."""
    return values.to(current.dtype) if current.is_floating_point() else values


def marked(means: Tensor, states: Any, at_once: bool) -> Tensor:
    """Give NaN for each sample that has a state which is not finite.

    Neurons are silent on NaN, which would so be lost.

    Args:
        means: ``(steps, B, ...)``.
        states: What the last step left, tensors ``(B, ...)`` nested in tuples.
        at_once: Whether to look at all samples first, which needs their values.
    """
    held = [state.detach() for state in tensors_in(states) if state.is_floating_point()]
    if not held or (at_once and all(math.isfinite(float(state.sum())) for state in held)):
        return means
    finite = reduce(torch.logical_and, [state.isfinite().flatten(1).all(1) for state in held])
    return means.where(finite.reshape(1, -1, *[1] * (means.dim() - 2)), torch.nan)


def for_summing(values: Tensor) -> Tensor:
    """Make sums over steps exact: bfloat16 counts to 256 only."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def map_tensors(change: Callable[[Tensor], Tensor], values: Any) -> Any:
    """Change the tensors that are nested in tuples, lists and dicts; all else stays."""
    if isinstance(values, Tensor):
        return change(values)
    if isinstance(values, dict):
        return {name: map_tensors(change, value) for name, value in values.items()}
    if isinstance(values, (tuple, list)):
        changed = [map_tensors(change, value) for value in values]
        return type(values)(*changed) if hasattr(values, "_fields") else type(values)(changed)
    return values


def by_step(x: Tensor, steps: int) -> Tensor:
    """Give a view ``(steps, B, ...)`` of steps that are one behind the other, ``(steps * B, ...)``."""
    return x.view(steps, x.shape[0] // steps, *x.shape[1:])


def channels_last(x: Tensor) -> Tensor:
    """Lay out images ``(B, C, H, W)`` with the channels last; their gradient is laid out as they were.

    Batch norms take several times as long for a gradient that is not laid out as their input.
    """
    if x.is_contiguous(memory_format=torch.channels_last):
        return x
    laid_out: Tensor = _ChannelsLast.apply(x)
    return laid_out


class _ChannelsLast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.is_contiguous = x.is_contiguous()
        return x.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].contiguous() if ctx.is_contiguous else grads[0]


def _windows_apart(pool: Any, x: Tensor) -> bool:
    """Tell whether windows of a 2d pool are few, and fill the image without overlap."""
    kernel = _tuple(pool.kernel_size, 2)
    return (
        kernel == _tuple(pool.stride, 2)
        and _tuple(pool.padding, 2) == (0, 0)
        and _tuple(getattr(pool, "dilation", 1), 2) == (1, 1)
        and max(kernel) <= _FEW
        and x.dim() == 4
        and not any(size % k for size, k in zip(x.shape[2:], kernel, strict=True))
    )


_FEW = 4


class _SumOverWindows(torch.autograd.Function):
    """Sums over windows that do not overlap; several times as fast as the pools of torch on the CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: tuple[int, int]) -> Tensor:
        ctx.kernel = kernel
        return _as_pools_give_it(_over_windows(x, kernel, torch.add))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        rows, columns = ctx.kernel
        images = grads[0].permute(0, 2, 3, 1)
        spread = images[:, :, None, :, None].expand(-1, -1, rows, -1, columns, -1)
        return spread.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2), None


def _as_pools_give_it(x: Tensor) -> Tensor:
    """Lay out as the pools of torch do, so that a view of it is one of the DNN's."""
    channels_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return x if channels_last else x.contiguous()


def _over_windows(x: Tensor, kernel: tuple[int, ...], combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Combine what is in each window."""
    x = reduce(combine, [x[..., row :: kernel[0], :] for row in range(kernel[0])])
    return reduce(combine, [x[..., column :: kernel[1]] for column in range(kernel[1])])


def _tuple(value: Any, dims: int) -> tuple[int, ...]:
    return tuple(value) * (dims if len(value) == 1 else 1) if isinstance(value, (tuple, list)) else (value,) * dims
