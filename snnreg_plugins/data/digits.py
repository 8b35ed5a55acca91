"""Handwritten digits, 8x8, that come with scikit-learn: data for a first run without any download."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snnreg_plugins._checks import as_integer
from snnreg_plugins._imports import needed
from snnreg_plugins.data.base import _ImageData


class Digits(_ImageData):
    """Handwritten digits: 1,797 grey images of 8x8 pixels in 10 classes. Nothing is downloaded.

    Batches are ``(images, labels)``: float32 (B, 1, size, size) in [0, 1] (grey levels 0 to 16, over 16) and
    int64 (B,). The test set is every sixth image of each class, 300 in all, and never changes; the other
    1,497 are the training set, of which ``validation_size`` are held out, every class in its share. Training
    and test images share writers, so scores are higher than on unseen writers.

    Args:
        batch_size: Images per batch (per process).
        num_workers: Processes that prepare batches; 0 prepares them in the main process.
        validation_size: Images held out of the 1,497 training images for validation.
        seed: Seed of the choice of validation images; that of the training order is ``seed_everything``.
        size: Height and width in pixels. More than 8 enlarges the images once, bilinearly.

    Attributes:
        num_classes: 10.
        image_shape: (1, size, size).

    Raises:
        ValueError: If an argument is out of range.
        ModuleNotFoundError: On first use of the data, if scikit-learn is missing.

    Source:
        The test set of Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
        Repository, 1998, https://doi.org/10.24432/C50P49.

    Example:
        >>> from snnreg_plugins.data import Digits
        >>> data = Digits(batch_size=32)
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> images.shape, images.dtype, labels.shape
        (torch.Size([32, 1, 8, 8]), torch.float32, torch.Size([32]))
    """

    _white = 240  # 15 a grey level: 16 of them stay exact, and there is room between them for enlarged images

    def __init__(
        self,
        batch_size: int = 64,
        num_workers: int = 0,
        validation_size: int = 300,
        seed: int = 0,
        size: int = 8,
    ) -> None:
        super().__init__(batch_size, num_workers, validation_size, seed)
        self.size = as_integer("size", size, at_least=8)
        self.image_shape = (1, self.size, self.size)

    def _load(self, train: bool) -> tuple[Tensor, Tensor]:
        with needed("Digits", "sklearn", "snnreg_plugins[digits]"):
            from sklearn.datasets import load_digits

        digits = load_digits()
        images = torch.from_numpy(digits.images).unsqueeze(1) * (self._white // 16)
        if self.size != 8:
            images = nn.functional.interpolate(images, size=self.size, mode="bilinear")
        labels = torch.from_numpy(digits.target).long()

        # No random numbers here: the test set has to be the same with every version of every library.
        test = torch.zeros(len(labels), dtype=torch.bool)
        test[labels.argsort(stable=True)[::6]] = True
        chosen = ~test if train else test
        return images[chosen].round().to(torch.uint8), labels[chosen]
