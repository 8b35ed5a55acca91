"""The spiking network: time loop, state and readout around the neurons of any framework."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F


class SpikingNetwork(nn.Module):
    r"""A rate-coded spiking network under constant input, with a non-spiking, integrating readout.

    In every time step the last layer gives :math:`y_t`; the scores are their mean over the steps so far,

    .. math:: \text{scores}_T = \frac{1}{T} \sum_{t=1}^{T} y_t

    which is on the output scale of the DNN that the network was exported from. Every call starts from fresh
    states, so calls are independent of each other and of the batch size. Made by :func:`~snnreg_plugins.to_snntorch`.

    Args:
        encoder: What depends on the input alone, computed once a call: the first layer's constant current.
        body: One time step, ``(constants, states) -> (output, states)``. Its spikes are 0 or 1; sum pooling makes
            integer counts of them.
        timesteps: Number of time steps T; may be set later.
        release: What to call on every module of the body after a call, to let go of states it kept.

    Example:
        >>> from snnreg_plugins import to_snntorch
        >>> model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> network = to_snntorch(model, torch.rand(100, 2), timesteps=4)
        >>> network(torch.rand(5, 2)).shape
        torch.Size([5, 3])
        >>> network(torch.rand(5, 2), per_step=True).shape
        torch.Size([4, 5, 3])
    """

    def __init__(
        self,
        encoder: fx.GraphModule,
        body: fx.GraphModule,
        timesteps: int,
        states: int,
        release: Callable[[nn.Module], None],
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.body = body
        self.timesteps = timesteps
        self._states = states
        self._release = release

    @property
    def timesteps(self) -> int:
        """Number of time steps of a call."""
        return self._timesteps

    @timesteps.setter
    def timesteps(self, value: int) -> None:
        require_timesteps(value)
        self._timesteps = value

    def forward(self, x: Tensor, per_step: bool = False) -> Tensor:
        """Run the network for ``timesteps`` steps.

        Args:
            x: Input of shape ``(B, ...)``, constant over the steps.
            per_step: Return the scores at every step instead of the last one only.

        Returns:
            Scores of shape ``(B, K)``; with ``per_step``, the running scores ``(T, B, K)``: those that a run of
            1, 2, ..., T steps gives.
        """
        constants = self.encoder(x)
        states: tuple[Any, ...] = (None,) * self._states
        total: Any = 0
        running: list[Tensor] = []
        try:
            for step in range(1, self.timesteps + 1):
                output, states = self.body(constants, states)
                total = total + _at_least_float32(output)
                if per_step:
                    running.append(total / step)
        finally:
            # A state kept in a module would hold the graph, and break deepcopy and buffers shared over processes.
            with torch.inference_mode(False):
                for module in self.body.modules():
                    self._release(module)
        scores: Tensor = torch.stack(running) if per_step else total / self.timesteps
        return scores.to(output.dtype)

    def extra_repr(self) -> str:
        """Show the time steps in ``print(network)``."""
        return f"timesteps={self.timesteps}"


def require_timesteps(value: int) -> None:
    """Raise a ValueError unless ``value`` is a number of time steps."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"Expected argument `timesteps` to be an integer of at least 1, but got {value!r}.")


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


class SumPool(nn.Module):
    """Sum over windows: what average pooling becomes, so that counts of spikes stay whole numbers.

    The 1/k² is folded into the next weights.

    Args:
        pool: The average pooling whose windows to sum over.
    """

    def __init__(self, pool: nn.AvgPool1d | nn.AvgPool2d | nn.AvgPool3d) -> None:
        super().__init__()
        self.dims = {nn.AvgPool1d: 1, nn.AvgPool2d: 2, nn.AvgPool3d: 3}[type(pool)]
        self.kernel_size = _tuple(pool.kernel_size, self.dims)
        self.stride = _tuple(pool.stride, self.dims)
        self.padding = _tuple(pool.padding, self.dims)

    @property
    def window(self) -> int:
        """Number of positions in a window."""
        return math.prod(self.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """Sum over windows, ``(B, C, *spatial)`` to ``(B, C, *pooled)``."""
        if self.dims == 3:
            return F.avg_pool3d(x, self.kernel_size, self.stride, self.padding, divisor_override=1)
        if self.dims == 2:
            return F.avg_pool2d(x, self.kernel_size, self.stride, self.padding, divisor_override=1)
        # avg_pool1d takes no divisor.
        kernel, stride, padding = ((1, sizes[0]) for sizes in (self.kernel_size, self.stride, self.padding))
        return F.avg_pool2d(x.unsqueeze(2), kernel, stride, (0, padding[1]), divisor_override=1).squeeze(2)

    def extra_repr(self) -> str:
        """Show the window in ``print(network)``."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class SpikeMaxPool(nn.Module):
    r"""Max pooling of spikes: the k-th spike passes when the first neuron of the window fires for the k-th time.

    With :math:`N_i(t)` the number of spikes of neuron i until step t,

    .. math:: s_t = \max_i N_i(t) - \max_i N_i(t - 1)

    is 0 or 1, and its sum is that of the most active neuron, as max pooling of activations demands. Costs a counter
    per input neuron. Currents pass in the same way: by their sums.

    Args:
        pool: The max pooling whose windows to pick from.
    """

    def __init__(self, pool: nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d) -> None:
        super().__init__()
        self.dims = {nn.MaxPool1d: 1, nn.MaxPool2d: 2, nn.MaxPool3d: 3}[type(pool)]
        self.kernel_size, self.stride = pool.kernel_size, pool.stride
        self.padding, self.dilation, self.ceil_mode = pool.padding, pool.dilation, pool.ceil_mode

    def forward(self, spikes: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Pool ``(B, C, *spatial)`` spikes; the state is the sums so far and their maxima, None at the first step."""
        counts = _at_least_float32(spikes)
        if state is not None:
            counts = state[0] + counts
        pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[self.dims - 1]
        highest: Tensor = pool(
            counts, self.kernel_size, self.stride, self.padding, self.dilation, ceil_mode=self.ceil_mode
        )
        passed = highest if state is None else highest - state[1]
        return passed.to(spikes.dtype), (counts, highest)

    def extra_repr(self) -> str:
        """Show the window in ``print(network)``."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class InitialState(nn.Module):
    """The state a neuron layer starts a step with: the one it left, or at the first step its initial potential.

    Args:
        potential: Shaped to broadcast over a sample of the layer's current.
    """

    potential: Tensor

    def __init__(self, potential: Tensor) -> None:
        super().__init__()
        self.register_buffer("potential", potential)

    def forward(self, state: Tensor | None, current: Tensor) -> Tensor:
        """Give the state in the shape of ``current``: neurons replace one of another shape by zeros."""
        return self.potential.to(current.dtype).expand_as(current) if state is None else state


def keep(_: nn.Module) -> None:
    """Release nothing: for neurons that keep no state in themselves."""


def _at_least_float32(values: Tensor) -> Tensor:
    """Make sums over steps exact: bfloat16 counts to 256 only."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _tuple(value: Any, dims: int) -> tuple[int, ...]:
    return tuple(value) * (dims if len(value) == 1 else 1) if isinstance(value, (tuple, list)) else (value,) * dims
