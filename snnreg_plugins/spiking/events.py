"""Synaptic layers computed event by event, where few enough inputs are active for that to take less time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from snnreg_plugins.spiking.firing import is_compilable, kernels

# Times in ns, as they are on one core with vectors of 16 floats; only their ratios matter. A product of a dense layer;
# to look at an input; to write an output; to begin a run of weights; to add one weight of a run; and to bring a weight
# of a linear layer or a convolution in order, which is done once a call.
_PRODUCT, _INPUT, _OUTPUT, _RUN, _WEIGHT = 0.018, 0.15, 0.1, 5.0, 0.055
_ORDER = {nn.Linear: 0.6, nn.Conv2d: 2.5}
# Events are to win clearly: the estimate is one.
_CLEARLY = 0.85
# Of so many samples and steps one is counted, to tell the density of all.
_COUNTED = 8


class EventDriven:
    """A synaptic layer, computed event by event where the density of its input makes that pay.

    The order of its sums is not that of the dense layer, so they differ by rounding. Which of the two computes an input
    depends on that input alone.

    Args:
        layer: Linear, or Conv2d without groups, on the CPU. Not to be kept: its weights are copied.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        self.layer = layer
        self._weight: Tensor | None = None

    @staticmethod
    def takes(layer: nn.Module, x: Tensor) -> bool:
        """Tell whether a layer and an input of its can be computed event by event."""
        if not is_compilable(x) or "forward" in vars(layer) or getattr(layer, "weight", x).dtype != x.dtype:
            return False
        if torch.is_autocast_enabled("cpu"):  # which chooses another dtype
            return False
        if type(layer) is nn.Linear:
            return x.dim() == 2
        return (
            type(layer) is nn.Conv2d
            and x.dim() == 4
            and layer.groups == 1
            and layer.padding_mode == "zeros"
            and layer.dilation == (1, 1)
            and not isinstance(layer.padding, str)
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Compute the layer on ``(N, ...)``."""
        layer: Any = self.layer
        if isinstance(layer, nn.Linear):
            x = x.contiguous()
            if not self._pays(x, 1, layer.out_features, layer.out_features, 1.0):
                return self._densely(x)
            return self._linear(x)
        kernel, stride = layer.kernel_size, layer.stride
        rows, columns = (
            (size + 2 * padding - k) // s + 1
            for size, padding, k, s in zip(x.shape[2:], layer.padding, kernel, stride, strict=True)
        )
        outputs = layer.out_channels * rows * columns
        if stride == (1, 1):
            runs, length, reached = kernel[0], kernel[1] * layer.out_channels, 1.0
        else:
            runs, length, reached = kernel[0] * kernel[1], layer.out_channels, 1 / (stride[0] * stride[1])
        images = x.permute(0, 2, 3, 1).contiguous()
        if rows < 1 or columns < 1 or not self._pays(images, runs * reached, length, outputs, rows * columns):
            return self._densely(x)
        return self._convolve(images, rows, columns)

    def _densely(self, x: Tensor) -> Tensor:
        return self.layer.forward(x)

    def _pays(self, x: Tensor, runs: float, length: int, outputs: int, places: float) -> bool:
        """Compare what events and the dense layer would take.

        Args:
            x: Input, contiguous.
            runs: Runs of weights that an event reaches.
            length: Of a run.
            outputs: Of a sample.
            places: Products of a weight with a sample.
        """
        weights = self.layer.weight.numel()
        dense = len(x) * weights * places * _PRODUCT
        fixed = x.numel() * _INPUT + len(x) * outputs * _OUTPUT
        if self._weight is None:
            fixed += weights * _ORDER[type(self.layer)]
        if fixed > _CLEARLY * dense:
            return False
        some = x[len(x) // 2 :][: -(-len(x) // _COUNTED)]  # of the steps in the middle
        events = kernels().count(some.detach().view(-1).numpy()) * len(x) / len(some)
        return bool(fixed + events * runs * (_RUN + length * _WEIGHT) < _CLEARLY * dense)

    def _bias(self, x: Tensor) -> Tensor:
        bias = self.layer.bias
        return x.new_zeros(self.layer.weight.shape[0]) if bias is None else bias.detach()

    def _linear(self, x: Tensor) -> Tensor:
        if self._weight is None:
            self._weight = self.layer.weight.detach().t().contiguous()
        out = x.new_empty((len(x), self.layer.weight.shape[0]))
        arrays = x.numpy(), self._weight.numpy(), self._bias(x).numpy(), out.numpy()
        kernels().in_parallel(kernels().linear, len(x), x.numel() + out.numel(), *arrays)
        return out

    def _convolve(self, images: Tensor, rows: int, columns: int) -> Tensor:
        layer: Any = self.layer
        stride, (_, width), channels = layer.stride, layer.kernel_size, layer.out_channels
        if self._weight is None:
            weight = layer.weight.detach().permute(1, 2, 3, 0)
            weight = weight.flip(2).flatten(2) if stride == (1, 1) else weight
            self._weight = weight.contiguous()
        out = images.new_empty((len(images), rows, columns, channels))
        if stride == (1, 1):
            kernel, rest = kernels().convolve, (out.flatten(2).numpy(), layer.padding, width)
        else:
            kernel, rest = kernels().convolve_sparsely, (out.numpy(), layer.padding, stride)
        arrays = images.numpy(), self._weight.numpy(), self._bias(images).numpy()
        kernels().in_parallel(kernel, len(images), images.numel() + out.numel(), *arrays, *rest)
        return out.permute(0, 3, 1, 2)
