import pickle
import subprocess
import sys

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, DistributedSampler

from snnreg_plugins.data import CIFAR10, MNIST, Digits, FashionMNIST
from snnreg_plugins.data.base import _ImageData

COUNT = 120


class Numbered(_ImageData):
    """Images of one pixel that tells which image it is; 12 of each of 10 classes."""

    image_shape = (1, 1, 1)

    def __init__(self, batch_size=16, num_workers=0, validation_size=30, seed=0):
        super().__init__(batch_size, num_workers, validation_size, seed)
        self.reads = []

    def _load(self, train):
        self.reads.append(train)
        numbers = torch.arange(COUNT) + (0 if train else COUNT)
        return numbers.to(torch.uint8).reshape(-1, 1, 1, 1), numbers % 10


def numbers(loader):
    return torch.cat([(images * 255).round().long().flatten() for images, _ in loader]).tolist()


def test_train_and_validation_are_the_training_set_and_nothing_else():
    data = Numbered()
    train, validation = numbers(data.train_dataloader()), numbers(data.val_dataloader())
    assert len(validation) == 30
    assert sorted(train + validation) == list(range(COUNT))
    assert numbers(data.test_dataloader()) == list(range(COUNT, 2 * COUNT))
    assert numbers(data.predict_dataloader()) == list(range(COUNT, 2 * COUNT))


@pytest.mark.parametrize("size", [1, 10, 25, 30, COUNT - 1])
def test_every_class_has_its_share_of_the_validation_set(size):
    data = Numbered(validation_size=size)
    labels = torch.cat([labels for _, labels in data.val_dataloader()])
    counts = labels.bincount(minlength=10)
    assert counts.sum() == size
    assert counts.max() - counts.min() <= 1


def test_the_seed_and_only_the_seed_chooses_the_validation_set():
    first = numbers(Numbered(seed=1).val_dataloader())
    torch.manual_seed(123)
    assert numbers(Numbered(seed=1).val_dataloader()) == first
    assert numbers(Numbered(seed=2).val_dataloader()) != first


def test_only_training_batches_are_shuffled():
    data = Numbered()
    epochs = [numbers(data.train_dataloader()) for _ in range(2)]
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert numbers(data.val_dataloader()) == sorted(numbers(data.val_dataloader()))


@pytest.mark.parametrize(
    ("stage", "reads"),
    [("fit", [True]), ("validate", [True]), ("test", [False]), ("predict", [False]), (None, [True])],
)
def test_setup_reads_what_the_stage_needs_once(stage, reads):
    data = Numbered()
    data.setup(stage)
    data.setup(stage)
    assert data.reads == reads


def test_images_and_labels_belong_together():
    data = Numbered()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        for images, labels in loader:
            assert torch.equal((images * 255).round().long().flatten() % 10, labels)
    image, label = data.test_dataloader().dataset[3]
    assert image.shape == (1, 1, 1)
    assert (image * 255).round() == COUNT + 3
    assert label == 3


@pytest.mark.parametrize("data_class", [Digits, MNIST, FashionMNIST, CIFAR10])
@pytest.mark.parametrize(
    ("argument", "value", "allowed"),
    [
        ("batch_size", 0, "at least 1"),
        ("batch_size", 2.5, "at least 1"),
        ("num_workers", -1, "at least 0"),
        ("validation_size", 0, "at least 1"),
        ("seed", -1, "at least 0"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(data_class, argument, value, allowed):
    with pytest.raises(ValueError, match=f"`{argument}` to be an integer of {allowed}, but got {value}"):
        data_class(**{argument: value})


def test_a_validation_set_must_leave_something_to_train_on():
    with pytest.raises(ValueError, match=r"`validation_size` to be less than the 120 .* but got 120"):
        Numbered(validation_size=COUNT).setup("fit")
    Numbered(validation_size=COUNT).setup("test")


def test_workers_give_the_same_batches():
    alone, helped = Numbered(), Numbered(num_workers=2)
    assert numbers(helped.val_dataloader()) == numbers(alone.val_dataloader())


@pytest.mark.parametrize("make", [Digits, MNIST, FashionMNIST, CIFAR10, Numbered])
def test_datamodules_can_be_pickled(make):
    data = make(batch_size=7, seed=3)
    copy = pickle.loads(pickle.dumps(data))
    assert (copy.batch_size, copy.seed, copy.image_shape) == (7, 3, data.image_shape)


def test_a_datamodule_that_has_read_its_data_and_its_loaders_can_be_pickled():
    data = Numbered()
    expected = numbers(data.val_dataloader())
    assert numbers(pickle.loads(pickle.dumps(data)).val_dataloader()) == expected
    assert numbers(pickle.loads(pickle.dumps(data.val_dataloader()))) == expected


def test_two_processes_share_the_training_images():
    # What Lightning does for DDP: the same loader with another sampler.
    loader = Numbered().train_dataloader()
    seen = []
    for rank in range(2):
        sampler = DistributedSampler(loader.dataset, num_replicas=2, rank=rank)
        seen += numbers(DataLoader(loader.dataset, batch_size=16, sampler=sampler, collate_fn=loader.collate_fn))
    assert sorted(seen) == sorted(numbers(loader))


class Recorder(LightningModule):
    """Trains one weight and keeps the image numbers that each stage gave it."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen = {"train": [], "val": [], "test": [], "predict": []}

    def _see(self, stage, batch):
        self.seen[stage] += numbers([batch])
        return self.weight * batch[0].mean()

    def training_step(self, batch):
        return self._see("train", batch)

    def validation_step(self, batch):
        self._see("val", batch)

    def test_step(self, batch):
        self._see("test", batch)

    def predict_step(self, batch):
        return self._see("predict", batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(**options):
    return Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )


def test_a_trainer_runs_every_stage():
    data, model, runner = Numbered(), Recorder(), trainer()
    runner.fit(model, data)
    runner.test(model, data, verbose=False)
    runner.predict(model, data)
    assert sorted(model.seen["train"] + model.seen["val"]) == list(range(COUNT))
    assert model.seen["test"] == model.seen["predict"] == list(range(COUNT, 2 * COUNT))


class Shares(Recorder):
    """Checks, in every process of a DDP run, that the processes see different images and all of them."""

    def on_train_epoch_end(self):
        mine = torch.tensor(self.seen["train"])
        everyone = self.all_gather(mine)
        assert everyone.shape == (2, 45)
        assert everyone.unique().numel() == 90


@pytest.mark.slow
def test_two_ddp_processes_see_different_images_and_all_of_them():
    runner = trainer(devices=2, strategy="ddp_spawn", limit_val_batches=0)
    runner.fit(Shares(), Numbered())
    assert runner.state.finished


@pytest.mark.slow
def test_optional_packages_are_imported_only_when_data_is_read():
    # Lightning's torchmetrics imports some of them by itself, so let it, and then forbid them.
    code = """
import sys
import lightning.pytorch
for name in ("torchvision", "sklearn", "matplotlib", "norse"):
    sys.modules[name] = None
from snnreg_plugins.data import CIFAR10, MNIST, Digits, FashionMNIST
for data_class in (CIFAR10, MNIST, Digits, FashionMNIST):
    data_class()
try:
    Digits().setup("fit")
except ModuleNotFoundError:
    print("forbidden")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "forbidden\n"
