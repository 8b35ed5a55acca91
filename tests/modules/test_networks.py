"""The reference networks and the classifier around them."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from snnreg_plugins.modules import VGG, Classifier, LeNet


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 8, 9), (1, 31, 16)])
@pytest.mark.parametrize("kernel_size", [1, 5])
def test_lenet_takes_images_of_its_shape(shape, kernel_size):
    network = LeNet(shape, num_classes=7, kernel_size=kernel_size)
    assert network(torch.rand(2, *shape)).shape == (2, 7)
    assert network.conv1.weight.shape == (6, shape[0], kernel_size, kernel_size)
    assert network.fc1.in_features == 16 * (shape[1] // 4) * (shape[2] // 4)


def test_vgg_takes_images_of_its_shape():
    network = VGG((3, 9, 8), 4, widths=(4, "P", 6, "P"), hidden=5)
    assert network(torch.rand(2, 3, 9, 8)).shape == (2, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LeNet(28), r"`image_shape` to be \(channels, height, width\), .* but got 28"),
        (lambda: LeNet((28, 28)), r"`image_shape` to be \(channels, height, width\), .* but got \(28, 28\)"),
        (lambda: LeNet((1, 7, 28)), r"`image_shape` to be at least 8 × 8, but got \(1, 7, 28\)"),
        (lambda: LeNet((1, 28, 0)), r"`image_shape` to be \(channels, height, width\), .* but got \(1, 28, 0\)"),
        (lambda: LeNet(kernel_size=4), "`kernel_size` to be odd, but got 4"),
        (lambda: LeNet(kernel_size=-1), "`kernel_size` to be an integer of at least 1, but got -1"),
        (lambda: VGG(num_classes="many"), "`num_classes` to be an integer of at least 1, but got 'many'"),
        (lambda: VGG(hidden=0), "`hidden` to be an integer of at least 1, but got 0"),
        (lambda: VGG(dropout=None), r"`dropout` to be in \[0, 1\], but got None"),
        (lambda: VGG(widths="8P"), "`widths` to be numbers of channels and \"P\", .* but got '8P'"),
        (lambda: VGG(widths=(8, "p")), "`widths` to be an integer of at least 1, but got 'p'"),
        (lambda: VGG((3, 3, 8), widths=(4, "P", 6, "P")), "`image_shape` to be at least 4 × 4 for 2 pools"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def trainer(**options):
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    return Trainer(accelerator="cpu", **quiet, **options)


def test_the_classifier_scores_all_samples_alike():
    x, y = torch.rand(10, 3), torch.arange(10) % 4
    loader = DataLoader(TensorDataset(x, y), batch_size=4)  # the last batch is smaller
    module = Classifier(nn.Linear(3, 4))
    for stage, name in (("validate", "val"), ("test", "test")):
        (logged,) = getattr(trainer(), stage)(module, loader, verbose=False)
        with torch.no_grad():
            scores = module.network(x)
        assert logged[f"{name}/accuracy"] == pytest.approx(float((scores.argmax(1) == y).float().mean()))
        assert logged[f"{name}/loss"] == pytest.approx(float(F.cross_entropy(scores, y)))
    for inputs in (loader, DataLoader(x, batch_size=4)):
        torch.testing.assert_close(torch.cat(trainer().predict(module, inputs)), scores)


@pytest.mark.parametrize(("interval", "rates"), [("epoch", (0.5, 0.5, 0.05, 0.05)), ("step", (0.5, 0.05, 5e-3, 5e-4))])
def test_the_classifier_trains_with_optimizer_and_scheduler(interval, rates):
    x, y = torch.rand(8, 3), torch.arange(8) % 4
    module = Classifier(
        nn.Linear(3, 4),
        lambda parameters: torch.optim.SGD(parameters, lr=0.5),
        lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1),
        scheduler_interval=interval,
    )
    weight = module.network.weight.detach().clone().requires_grad_()
    bias = module.network.bias.detach().clone().requires_grad_()
    for rate in rates:  # two batches that are alike in each epoch
        grads = torch.autograd.grad(F.cross_entropy(F.linear(x, weight, bias), y), (weight, bias))
        weight, bias = ((p - rate * g).detach().requires_grad_() for p, g in zip((weight, bias), grads, strict=True))
    trainer(max_epochs=2).fit(module, DataLoader(TensorDataset(torch.cat((x, x)), torch.cat((y, y))), batch_size=8))
    torch.testing.assert_close(module.network.weight, weight)
