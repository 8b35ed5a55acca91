"""What datamodules have in common: dataloaders, and of images splits and batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from snnreg_plugins._checks import as_integer

Batch: TypeAlias = tuple[Tensor, Tensor]


class PartsData(LightningDataModule):
    """Datamodule of three parts: ``"train"``, ``"validation"`` and ``"test"``.

    A subclass defines :meth:`_part`, and ``prepare_data`` if there is something to download. Data is read once, when
    first needed, so the dataloaders also work without a Trainer and without ``setup``.

    Args:
        batch_size: Samples per batch (per process).
        num_workers: Processes that prepare batches; 0 prepares them in the main process.
        seed: Seed of what is drawn of the parts; that of the training order is ``seed_everything``.
    """

    def __init__(self, batch_size: int, num_workers: int, seed: int) -> None:
        super().__init__()
        self.batch_size = as_integer("batch_size", batch_size)
        self.num_workers = as_integer("num_workers", num_workers, at_least=0)
        self.seed = as_integer("seed", seed, at_least=0)

    def _part(self, name: str) -> Dataset[Batch]:
        """Give a part, read once."""
        raise NotImplementedError

    def _collate(self) -> Callable[[Any], Any]:
        """Give what makes a batch of what the DataLoader gets of a part."""
        return _identity

    def setup(self, stage: str | None = None) -> None:
        # Reading is lazy; reading here makes missing or broken data stop a run before it starts.
        self._part("test" if stage in ("test", "predict") else "train")

    def train_dataloader(self) -> DataLoader[Batch]:
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader("validation")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Give the test set with its labels, as ``test_dataloader`` does; ``predict_step`` ignores them."""
        return self.test_dataloader()

    def _loader(self, part: str, shuffle: bool = False) -> DataLoader[Batch]:
        return DataLoader(
            self._part(part),
            batch_size=self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=self._collate(),
        )


class _ImageData(PartsData):
    """Datamodule of images (C, H, W), float32 in [0, 1], and labels, int64.

    A subclass defines :meth:`_load`.

    Args:
        batch_size: Images per batch (per process).
        num_workers: Processes that prepare batches; 0 prepares them in the main process.
        validation_size: Images held out of the training set for validation.
        seed: Seed of the choice of validation images; that of the training order is ``seed_everything``.
    """

    num_classes: int = 10
    image_shape: tuple[int, int, int]

    #: The stored grey level that stands for 1.0.
    _white: int = 255
    #: Changes a batch of uint8 training images; a module-level function, so that workers can pickle it.
    _augmentation: Callable[[Tensor], Tensor] | None = None

    def __init__(self, batch_size: int, num_workers: int, validation_size: int, seed: int) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.validation_size = as_integer("validation_size", validation_size)
        self._parts: dict[str, _Batches] = {}

    def _load(self, train: bool) -> Batch:
        """Read the training or the test set: uint8 images (N, C, H, W) and int64 labels (N,)."""
        raise NotImplementedError

    def _part(self, name: str) -> _Batches:
        if name not in self._parts:
            images, labels = self._load(train=name != "test")
            if name == "test":
                self._parts["test"] = _Batches(images, labels, self._white)
            else:
                held_out = self._held_out(labels)
                self._parts["validation"] = _Batches(images[held_out], labels[held_out], self._white)
                self._parts["train"] = _Batches(images[~held_out], labels[~held_out], self._white, self._augmentation)
        return self._parts[name]

    def _held_out(self, labels: Tensor) -> Tensor:
        """Mask the validation images: drawn by ``seed``, every class in its share (to within one image)."""
        count = len(labels)
        if self.validation_size >= count:
            raise ValueError(
                f"Expected argument `validation_size` to be less than the {count} training samples of "
                f"{type(self).__name__}, but got {self.validation_size}."
            )
        return held_out(labels, self.validation_size, self.seed)


class _Batches(Dataset[Batch]):
    """Images kept as uint8 and converted a whole batch at a time, with no collation of single samples."""

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        white: int,
        augmentation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.images = images
        self.labels = labels
        self.white = white
        self.augmentation = augmentation

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Batch:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Give a whole batch; the DataLoader calls this rather than ``__getitem__`` where it exists."""
        index = torch.as_tensor(indices)
        images = self.images[index]
        if self.augmentation is not None:
            images = self.augmentation(images)
        return images.to(torch.float32) / self.white, self.labels[index]


def held_out(labels: Tensor, size: int, seed: int) -> Tensor:
    """Mask samples to hold out: drawn by a seed, every class in its share (to within one sample).

    Args:
        labels: Class of each sample, ``(N,)``.
        size: How many to hold out; at most N.
        seed: Seed of the choice.

    Returns:
        Mask ``(N,)``.
    """
    count = len(labels)
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    mask = torch.zeros(count, dtype=torch.bool)
    mask[by_class[torch.arange(size) * count // size]] = True
    return mask


def _identity(batch: Any) -> Any:
    """Collate nothing: the dataset already gives batches."""
    return batch
