import hashlib
import pickle
import sys

import pytest
import torch

from snnreg_plugins.data import CIFAR10
from snnreg_plugins.data.cifar10 import crop_and_flip


class StandIn(CIFAR10):
    def _load(self, train):
        count = 60 if train else 20
        generator = torch.Generator().manual_seed(int(train))
        images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return images, torch.arange(count) % 10


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Ten images a file in CIFAR-10's own format, and torchvision's MD5 sums changed to theirs."""
    datasets = pytest.importorskip("torchvision.datasets")
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()

    def write(name, content):
        data = pickle.dumps(content)
        (base / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    def images(start):
        # Every image is one plane of red, one of green, one of blue: which is which shows the layout.
        planes = torch.arange(start, start + 10)[:, None] + torch.tensor([0, 100, 150])
        return planes.to(torch.uint8).repeat_interleave(1024, dim=1).numpy()

    train = [
        write(f"data_batch_{file}", {"data": images(10 * file), "labels": list(range(10))}) for file in range(1, 6)
    ]
    test = [write("test_batch", {"data": images(0), "labels": list(range(10))})]
    meta = write("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(datasets.CIFAR10, "train_list", train)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", test)
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    return tmp_path


def test_files_are_read_with_channels_first(folder):
    data = CIFAR10(root=str(folder), augment=False, validation_size=10, batch_size=40)
    data.prepare_data()  # finds the files, so downloads nothing
    images, labels = next(iter(data.test_dataloader()))
    assert images.shape == (10, 3, 32, 32)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert labels.tolist() == list(range(10))
    expected = (torch.arange(10)[:, None] + torch.tensor([0, 100, 150])) / 255
    torch.testing.assert_close(images, expected[:, :, None, None].expand(10, 3, 32, 32))
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (40, 3, 32, 32)
    assert torch.equal((images[:, 0, 0, 0] * 255).round().long() % 10, labels)


def test_missing_or_damaged_files_are_one_clear_error(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="download=True and a network") as caught:
        CIFAR10(root=str(tmp_path / "nowhere"), download=False).setup("fit")
    assert str(tmp_path / "nowhere" / "cifar-10-batches-py") in str(caught.value)

    (folder / "cifar-10-batches-py" / "test_batch").write_bytes(b"damaged")
    with pytest.raises(FileNotFoundError, match="corrupted"):
        CIFAR10(root=str(folder), download=False).setup("test")


def test_a_failed_download_is_one_clear_error(tmp_path, monkeypatch):
    datasets = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(datasets.CIFAR10, "url", (tmp_path / "no server.tar.gz").as_uri())
    with pytest.raises(FileNotFoundError, match=r"(?s)CIFAR10 found no intact data in .*The cause: .*urlopen"):
        CIFAR10(root=str(tmp_path)).prepare_data()
    CIFAR10(root=str(tmp_path), download=False).prepare_data()


def test_without_torchvision_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "snnreg_plugins\[vision\]"'):
        CIFAR10().prepare_data()


def test_batches_of_a_stand_in():
    data = StandIn(validation_size=20, batch_size=30)
    for loader, counts in [
        (data.train_dataloader(), [30, 10]),
        (data.val_dataloader(), [20]),
        (data.test_dataloader(), [20]),
    ]:
        batches = list(loader)
        assert [images.shape for images, _ in batches] == [(count, *data.image_shape) for count in counts]
        assert all(images.min() >= 0 and images.max() <= 1 for images, _ in batches)


def test_only_training_images_are_augmented_and_only_if_wanted():
    def epoch(augment, loader):
        data = StandIn(validation_size=20, batch_size=60, augment=augment)
        data.setup("fit")
        dataset = getattr(data, loader)().dataset
        return dataset.__getitems__(range(len(dataset)))

    augmented, labels = epoch(True, "train_dataloader")
    plain, plain_labels = epoch(False, "train_dataloader")
    assert torch.equal(labels, plain_labels)
    assert not torch.equal(augmented, plain)
    assert torch.equal(epoch(False, "train_dataloader")[0], plain)
    assert torch.equal(epoch(True, "val_dataloader")[0], epoch(False, "val_dataloader")[0])


def test_augmented_batches_from_workers():
    data = StandIn(validation_size=20, batch_size=20, num_workers=2)
    assert [images.shape for images, _ in data.train_dataloader()] == [(20, 3, 32, 32)] * 2


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crop_and_flip_is_one_of_all_crops_and_reaches_all(dtype):
    image = torch.arange(1, 31).reshape(1, 2, 3, 5).to(dtype)
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1))
    crops = [padded[:, :, y : y + 3, x : x + 5] for y in range(3) for x in range(3)]
    possible = torch.cat([version for crop in crops for version in (crop, crop.flip(-1))])

    torch.manual_seed(0)
    result = crop_and_flip(image.expand(500, -1, -1, -1), padding=1)
    assert result.shape == (500, 2, 3, 5)
    assert result.dtype == dtype
    matches = (result[:, None] == possible).flatten(2).all(2)
    assert matches.sum(1).eq(1).all()  # every image is exactly one of the 18
    assert matches.sum(0).min() >= 10  # 28 expected of each


def test_crop_and_flip_follows_the_seed():
    images = torch.rand(8, 3, 32, 32)
    torch.manual_seed(1)
    first = crop_and_flip(images)
    assert not torch.equal(crop_and_flip(images), first)
    torch.manual_seed(1)
    assert torch.equal(crop_and_flip(images), first)
