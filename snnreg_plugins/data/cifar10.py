"""CIFAR-10, read and downloaded by torchvision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from snnreg_plugins._checks import as_flag
from snnreg_plugins._files import as_path
from snnreg_plugins._imports import needed
from snnreg_plugins.data.base import _ImageData


def crop_and_flip(images: Tensor, padding: int = 4) -> Tensor:
    """Shift every image at random by up to ``padding`` pixels each way, and mirror every second one or so.

    This is a random crop after zero padding and a random horizontal flip, drawn for each image by itself from
    torch's global random numbers, but done on the batch as a whole.

    Args:
        images: Images (B, C, H, W) of any dtype.
        padding: Pixels of zeros on each side, from which the crop may take.

    Returns:
        Images of the same shape and dtype.
    """
    count, _, height, width = images.shape
    padded = nn.functional.pad(images, (padding,) * 4)
    rows = torch.arange(height) + torch.randint(2 * padding + 1, (count, 1))
    columns = torch.arange(width) + torch.randint(2 * padding + 1, (count, 1))
    columns = torch.where(torch.rand(count, 1) < 0.5, columns.flip(1), columns)
    # The slice between the index tensors puts the channels last: (B, H, W, C).
    cropped = padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2).contiguous()


class CIFAR10(_ImageData):
    """Photographs of vehicles and animals: 50,000 training and 10,000 test images, RGB, 32x32, in 10 classes.

    Batches are ``(images, labels)``: float32 (B, 3, 32, 32) in [0, 1] and int64 (B,). Of the training images
    ``validation_size`` are held out, every class in its share. Needs torchvision, which downloads the data to
    ``root`` and checks its MD5 sums.

    Args:
        root: Folder of the data, the one that has ``cifar-10-batches-py`` in it.
        download: Whether to download the data if it is missing; needs a network.
        augment: Whether to shift training images at random by up to 4 pixels, and mirror half of them.
        batch_size: Images per batch (per process).
        num_workers: Processes that prepare batches; 0 prepares them in the main process.
        validation_size: Images held out of the training set for validation.
        seed: Seed of the choice of validation images; that of the training order is ``seed_everything``.

    Attributes:
        num_classes: 10.
        image_shape: (3, 32, 32).

    Raises:
        ValueError: If an argument is out of range.
        FileNotFoundError: If the data is missing or damaged and is not or cannot be downloaded.
        ModuleNotFoundError: On first use of the data, if torchvision is missing.

    Source:
        Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
        https://www.cs.toronto.edu/~kriz/cifar.html.

    Example:
        >>> from snnreg_plugins.data import CIFAR10
        >>> data = CIFAR10(root="data", augment=False)
        >>> data.image_shape, data.num_classes
        ((3, 32, 32), 10)
    """

    image_shape = (3, 32, 32)

    def __init__(
        self,
        root: str = "data",
        download: bool = True,
        augment: bool = True,
        batch_size: int = 128,
        num_workers: int = 0,
        validation_size: int = 5000,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, validation_size, seed)
        self.root = as_path("root", root)
        self.download = as_flag("download", download)
        self.augment = as_flag("augment", augment)
        self._augmentation = crop_and_flip if self.augment else None

    def prepare_data(self) -> None:
        """Download the data if it is missing and may be downloaded."""
        if self.download:
            self._read(train=True, download=True)

    def _load(self, train: bool) -> tuple[Tensor, Tensor]:
        dataset = self._read(train, download=False)
        images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
        return images, torch.tensor(dataset.targets)

    def _read(self, train: bool, download: bool) -> Any:
        with needed("CIFAR10", "torchvision", "snnreg_plugins[vision]"):
            from torchvision import datasets
        try:
            return datasets.CIFAR10(str(self.root), train=train, download=download)
        except (OSError, RuntimeError) as error:
            root = self.root.absolute()
            raise FileNotFoundError(
                f"CIFAR10 found no intact data in {root / datasets.CIFAR10.base_folder}. Unpack "
                f"cifar-10-python.tar.gz into {root}, or let `prepare_data` (which the Trainer calls) "
                f"download it: download=True and a network.\nThe cause: {error}"
            ) from error
