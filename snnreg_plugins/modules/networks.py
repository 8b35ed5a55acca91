"""Small reference networks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor, nn

from snnreg_plugins._checks import as_integer, as_integers, as_number, shown


class LeNet(nn.Sequential):
    """LeNet-5 with batch norm, ReLU and average pooling, for small grey images.

    ``conv1 - pool - conv2 - pool - fc1 - fc2 - fc3`` after LeCun et al. 1998; ReLU and average pooling make it
    exact to convert to spiking neurons.

    Args:
        image_shape: (C, H, W) of the input; H and W at least 8.
        num_classes: Number of scores K.
        kernel_size: Odd size of the square kernels; 5 in the paper, 3 suits 8 × 8 images.

    Raises:
        ValueError: If the image is too small, or the kernel size even.

    Example:
        >>> import torch
        >>> LeNet()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, image_shape: Sequence[int] = (1, 28, 28), num_classes: int = 10, kernel_size: int = 5) -> None:
        channels, height, width = _sizes(image_shape)
        if min(height, width) < 8:
            raise ValueError(
                f"Expected argument `image_shape` to be at least 8 × 8, but got {(channels, height, width)}."
            )
        kernel_size, num_classes = as_integer("kernel_size", kernel_size), as_integer("num_classes", num_classes)
        if kernel_size % 2 == 0:
            raise ValueError(f"Expected argument `kernel_size` to be odd, but got {kernel_size}.")
        features = 16 * (height // 4) * (width // 4)
        super().__init__(
            OrderedDict(
                conv1=nn.Conv2d(channels, 6, kernel_size, padding=kernel_size // 2, bias=False),
                norm1=nn.BatchNorm2d(6),
                relu1=nn.ReLU(),
                pool1=nn.AvgPool2d(2),
                conv2=nn.Conv2d(6, 16, kernel_size, padding=kernel_size // 2, bias=False),
                norm2=nn.BatchNorm2d(16),
                relu2=nn.ReLU(),
                pool2=nn.AvgPool2d(2),
                flatten=nn.Flatten(),
                fc1=nn.Linear(features, 120),
                relu3=nn.ReLU(),
                fc2=nn.Linear(120, 84),
                relu4=nn.ReLU(),
                fc3=nn.Linear(84, num_classes),
            )
        )


class VGG(nn.Module):
    """VGG in the style of Simonyan and Zisserman 2015: 3 × 3 convolutions with batch norm, ReLU, average pooling.

    Args:
        image_shape: (C, H, W) of the input.
        num_classes: Number of scores K.
        widths: Channels of the convolutions, ``"P"`` for 2 × 2 average pooling; the default is VGG-11 with half of
            its channels.
        hidden: Width of the hidden linear layer.
        dropout: Dropout before each linear layer.

    Raises:
        ValueError: If the image is too small for the pools, or an argument out of range.

    Example:
        >>> import torch
        >>> VGG(widths=(8, "P", 16, "P"))(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        image_shape: Sequence[int] = (3, 32, 32),
        num_classes: int = 10,
        widths: Sequence[int | str] = (32, "P", 64, "P", 128, 128, "P", 256, 256, "P", 256, 256, "P"),
        hidden: int = 256,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        channels, height, width = _sizes(image_shape)
        num_classes, hidden = as_integer("num_classes", num_classes), as_integer("hidden", hidden)
        dropout, widths = as_number("dropout", dropout, "[0, 1]"), _widths(widths)
        pools = widths.count("P")
        if min(height, width) < 2**pools:
            raise ValueError(
                f"Expected argument `image_shape` to be at least {2**pools} × {2**pools} for {pools} pools, but got "
                f"{(channels, height, width)}."
            )
        layers: list[nn.Module] = []
        for entry in widths:
            if entry == "P":
                layers.append(nn.AvgPool2d(2))
                continue
            layers += [nn.Conv2d(channels, int(entry), 3, padding=1, bias=False), nn.BatchNorm2d(int(entry)), nn.ReLU()]
            channels = int(entry)
        features = channels * (height >> pools) * (width >> pools)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(features, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Give scores ``(B, K)`` for images ``(B, C, H, W)``."""
        scores: Tensor = self.classifier(self.features(x))
        return scores


def _widths(widths: Any) -> list[int | str]:
    """Give numbers of channels, and "P" for pools."""
    if isinstance(widths, (str, bytes)) or not isinstance(widths, Iterable) or getattr(widths, "ndim", 1) == 0:
        raise ValueError(
            f'Expected argument `widths` to be numbers of channels and "P", such as (8, "P", 16), but got '
            f"{shown(widths)}."
        )
    return [entry if isinstance(entry, str) and entry == "P" else as_integer("widths", entry) for entry in widths]


def _sizes(image_shape: Sequence[int]) -> tuple[int, int, int]:
    """Give channels, height and width."""
    with suppress(ValueError):
        channels, height, width = as_integers("image_shape", image_shape, such_as=(1, 28, 28))
        return channels, height, width
    raise ValueError(
        "Expected argument `image_shape` to be (channels, height, width), integers of at least 1 such as (1, 28, 28), "
        f"but got {shown(image_shape)}."
    )
