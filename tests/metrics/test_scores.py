"""Scores: the right metric for what a network is trained to give, or one clear error."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics import MeanAbsoluteError
from torchmetrics.classification import BinaryAccuracy

from snnreg_plugins.metrics.scores import Loss, choose_score, loss_of_backward, loss_of_modules


def scored(outputs, targets, **told):
    score = choose_score(outputs, targets, **told)
    for part in zip(outputs.split(3), targets.split(3), strict=True):
        score.update(*part)
    return score.name, score.compute()


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


CLASSES = torch.tensor([0, 2, 1, 1, 0, 2, 2])
SCORES = numbers(7, 3)
RIGHT = sum(int(row.argmax()) == int(label) for row, label in zip(SCORES, CLASSES, strict=True)) / 7


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
@pytest.mark.parametrize("loss", [None, Loss("regression"), Loss("multiclass", ignore_index=-100)])
@pytest.mark.parametrize("shape", [(7,), (7, 1)])
def test_class_indices(dtype, loss, shape):
    assert scored(SCORES, CLASSES.to(dtype).reshape(shape), loss=loss) == ("accuracy", pytest.approx(RIGHT))


def test_as_many_samples_as_classes():
    outputs, targets = numbers(3, 3), torch.tensor([2, 0, 1])
    right = (outputs.argmax(1) == targets).float().mean().item()
    assert scored(outputs, targets) == ("accuracy", pytest.approx(right))
    one_hot = F.one_hot(targets, 3)
    assert scored(outputs, one_hot, loss=Loss("multiclass")) == ("accuracy", pytest.approx(right))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_one_hot_under_a_cross_entropy(dtype):
    targets = F.one_hot(CLASSES, 3).to(dtype)
    assert scored(SCORES, targets, loss=Loss("multiclass")) == ("accuracy", pytest.approx(RIGHT))
    with pytest.raises(ValueError, match=r"without a loss .* Give `metric`"):
        choose_score(SCORES, targets)


def test_places_of_an_image():
    outputs, targets = numbers(4, 3, 2, 5), torch.randint(3, (4, 2, 5))
    targets[0, 0, :2] = 255
    counted = targets != 255
    right = (outputs.argmax(1) == targets)[counted].float().mean().item()
    loss = loss_of_backward(F.cross_entropy(outputs.clone().requires_grad_(), targets, ignore_index=255))
    assert scored(outputs, targets, loss=loss) == ("accuracy", pytest.approx(right))
    with pytest.raises(ValueError, match="below 3, the number of scores, but got 255"):
        scored(outputs, targets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
@pytest.mark.parametrize(("outputs_shape", "shape"), [((8, 1), (8,)), ((8, 1), (8, 1)), ((8,), (8,)), ((8,), (8, 1))])
def test_one_logit(outputs_shape, shape, dtype):
    logits = 0.4 * torch.tensor([0.9, 0.2, -0.1, 0.4, -0.6, 0.3, 0.1, -0.9])  # most are in [0, 1], none is above 0.5
    labels = torch.tensor([1, 1, 0, 0, 0, 1, 1, 1])
    given = labels.reshape(shape).to(dtype)
    assert scored(logits.reshape(outputs_shape), given, loss=Loss("binary")) == ("accuracy", 0.75)
    assert scored(logits.sigmoid().reshape(outputs_shape), given, loss=Loss("binary", 0.5)) == ("accuracy", 0.75)
    assert scored(logits.reshape(outputs_shape), given, metric="binary") == ("accuracy", 0.75)
    with pytest.raises(ValueError, match="without a loss"):
        choose_score(logits.reshape(outputs_shape), given)


def test_multi_label():
    targets = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0], [0, 0, 1], [1, 0, 1]])
    right = ((SCORES > 0) == (targets == 1)).float().mean().item()
    assert scored(SCORES, targets.float(), loss=Loss("binary")) == ("accuracy", pytest.approx(right))
    assert scored(SCORES, targets, metric="multilabel") == ("accuracy", pytest.approx(right))
    with pytest.raises(ValueError, match="without a loss"):
        choose_score(SCORES, targets.float())
    with pytest.raises(ValueError, match=r"labels in \[0, 1\], but got 2"):
        scored(SCORES, 2.0 * targets, loss=Loss("binary"))


@pytest.mark.parametrize("loss", [None, Loss("regression")])
@pytest.mark.parametrize(("shape", "target_shape"), [((9, 1), (9,)), ((9,), (9,)), ((9, 4), (9, 4))])
def test_values(shape, target_shape, loss):
    outputs, targets = numbers(*shape), 10 * numbers(*target_shape, seed=1)
    error = (outputs - targets.reshape(shape)).square().mean().item()
    assert scored(outputs, targets, loss=loss) == ("mse", pytest.approx(error))
    score = choose_score(outputs, targets, loss)
    assert score.higher_is_better is False
    with pytest.raises(ValueError, match="one target for each output"):
        score.update(outputs, targets[:5])


def test_one_hot_under_a_regression_loss_is_left_to_the_user():
    targets = F.one_hot(CLASSES, 3).float()
    with pytest.raises(ValueError, match="one-hot targets of a regression loss"):
        choose_score(SCORES, targets, Loss("regression"))
    assert scored(SCORES, targets, loss=Loss("regression"), metric="multiclass") == ("accuracy", pytest.approx(RIGHT))
    assert scored(SCORES, targets, loss=Loss("regression"), metric="regression")[0] == "mse"


def test_a_metric_of_the_user():
    metric = MeanAbsoluteError()
    outputs, targets = numbers(9, 1), numbers(9, seed=1)
    error = (outputs.flatten() - targets).abs().mean().item()
    assert scored(outputs, targets, metric=metric) == ("mean_absolute_error", pytest.approx(error))
    assert not metric.update_called  # a copy counts
    probabilities = torch.tensor([0.2, 0.7, 0.6])
    assert scored(probabilities.reshape(3, 1), torch.tensor([0, 1, 0]), metric=BinaryAccuracy())[1] == pytest.approx(
        2 / 3
    )


def test_what_cannot_be_scored():
    with pytest.raises(ValueError, match=r"outputs of shape \(7, 3\) and torch.float32 targets of shape \(7, 2\)"):
        choose_score(SCORES, torch.rand(7, 2))
    with pytest.raises(ValueError, match="a cross-entropy"):
        choose_score(torch.rand(7, 1), torch.rand(7, 1), Loss("multiclass"))
    with pytest.raises(TypeError, match="but got dict"):
        choose_score(SCORES, {"label": CLASSES})
    with pytest.raises(TypeError, match="`metric` to be one of .* but got 'accuracy'"):
        choose_score(SCORES, CLASSES, metric="accuracy")
    score = choose_score(SCORES, CLASSES)
    with pytest.raises(ValueError, match="one for each of"):
        score.update(SCORES, CLASSES[:3])
    with pytest.raises(ValueError, match="below 3, the number of scores, but got 3"):
        score.update(SCORES, CLASSES + 1)


def test_a_fresh_score_starts_anew():
    score = choose_score(SCORES, CLASSES)
    score.update(SCORES, CLASSES)
    other = score.fresh(sync=False)
    other.update(SCORES, SCORES.argmax(1))
    assert (score.compute(), other.compute()) == (pytest.approx(RIGHT), 1.0)


def test_a_score_of_one_process_asks_no_other():
    score = choose_score(SCORES, CLASSES, metric=MeanAbsoluteError(distributed_available_fn=lambda: True))
    for sync in (True, False):
        asked = []
        each = score.fresh(sync)
        each.metric.dist_sync_fn = lambda value, group=None, asked=asked: asked.append(value) or [value, value]
        each.update(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0]))
        assert each.compute() == 2.0
        assert bool(asked) == sync


def losses():
    x = torch.randn(6, 3, requires_grad=True)
    y, p = torch.randint(3, (6,)), torch.rand(6, 3)
    bce = F.binary_cross_entropy_with_logits
    return {
        "cross-entropy": (F.cross_entropy(x, y), Loss("multiclass", ignore_index=-100)),
        "label smoothing": (F.cross_entropy(x, y, label_smoothing=0.1), Loss("multiclass", ignore_index=-100)),
        "ignore index": (F.cross_entropy(x, y, ignore_index=1), Loss("multiclass", ignore_index=1)),
        "nll": (F.nll_loss(x.log_softmax(1), y), Loss("multiclass", ignore_index=-100)),
        "margin": (F.multi_margin_loss(x, y), Loss("multiclass")),
        "soft targets": (F.cross_entropy(x, p.softmax(1)), Loss("multiclass")),
        "logits": (bce(x, p), Loss("binary")),
        "probabilities": (F.binary_cross_entropy(x.sigmoid(), p), Loss("binary", 0.5)),
        "mse": (F.mse_loss(x, p), Loss("regression")),
        "smooth l1": (F.smooth_l1_loss(x, p), Loss("regression")),
        "huber": (F.huber_loss(x, p), Loss("regression")),
        "a sum with a penalty": (F.mse_loss(x, p) + 0.1 * x.abs().mean(), Loss("regression")),
        "scaled": (1024 * F.cross_entropy(x, y) / 3, Loss("multiclass", ignore_index=-100)),
        "two tasks": (F.cross_entropy(x, y) + F.mse_loss(x, p), None),
        "by hand": ((x - p).abs().mean(), None),
    }


@pytest.mark.parametrize("name", losses())
def test_the_loss_tells_the_task(name):
    loss, expected = losses()[name]
    assert loss_of_backward(loss) == expected


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.CrossEntropyLoss(ignore_index=5), Loss("multiclass", ignore_index=5)),
        (nn.NLLLoss(), Loss("multiclass", ignore_index=-100)),
        (nn.BCEWithLogitsLoss(), Loss("binary")),
        (nn.BCELoss(), Loss("binary", 0.5)),
        (nn.L1Loss(), Loss("regression")),
        (nn.KLDivLoss(), None),
        (nn.ModuleList([nn.MSELoss(), nn.CrossEntropyLoss()]), None),
        (nn.Linear(2, 3), None),
    ],
)
def test_loss_modules_tell_the_task(module, expected):
    assert loss_of_modules(nn.ModuleList([nn.ReLU(), module])) == expected
