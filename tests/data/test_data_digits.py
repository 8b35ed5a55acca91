import sys

import pytest
import torch

from snnreg_plugins.data import Digits

load_digits = pytest.importorskip("sklearn.datasets").load_digits


def gather(loader):
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def rows(images):
    return sorted(map(tuple, images.flatten(1).tolist()))


def test_batches():
    data = Digits()
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (64, *data.image_shape) == (64, 1, 8, 8)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert (images.min(), images.max()) == (0, 1)
    assert set(labels.tolist()) == set(range(data.num_classes))


def test_the_parts_are_scikit_learns_digits_and_disjoint():
    data = Digits()
    parts = [gather(loader) for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())]
    assert [len(labels) for _, labels in parts] == [1197, 300, 300]
    # The 1,797 images all differ, so that the same rows mean that each image is in one part, once.
    expected = torch.from_numpy(load_digits().images).float() / 16
    assert len(set(rows(expected))) == 1797
    assert rows(torch.cat([images for images, _ in parts])) == rows(expected)


def test_the_test_set_is_stratified_and_independent_of_the_seed():
    images, labels = gather(Digits(seed=0).test_dataloader())
    assert torch.equal(images, gather(Digits(seed=5, validation_size=10).test_dataloader())[0])
    assert labels.bincount().tolist() == [30, 30, 30, 30, 31, 30, 30, 30, 29, 30]
    reference = load_digits()
    first_zero = torch.from_numpy(reference.images[reference.target == 0][0]).float() / 16
    assert (images == first_zero).flatten(1).all(1).any()


@pytest.mark.parametrize("size", [12, 28, 32])
def test_enlarged_images_show_the_same_digit(size):
    small, small_labels = gather(Digits().test_dataloader())
    data = Digits(size=size)
    large, labels = gather(data.test_dataloader())
    assert large.shape == (300, 1, size, size) == (300, *data.image_shape)
    assert torch.equal(labels, small_labels)
    assert large.min() >= 0
    assert large.max() <= 1
    expected = torch.nn.functional.interpolate(small, size=size, mode="bilinear")
    torch.testing.assert_close(large, expected, rtol=0, atol=0.5 / 240 + 1e-6)


def test_images_cannot_be_reduced():
    with pytest.raises(ValueError, match="`size` to be an integer of at least 8, but got 7"):
        Digits(size=7)


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "snnreg_plugins\[digits\]"'):
        Digits().setup("fit")
