"""What a network's outputs are worth beside their targets: the score that fits the task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torchmetrics import Metric

#: What a network is trained to give.
Task: TypeAlias = Literal["multiclass", "binary", "multilabel", "regression"]

_GIVE = 'Give `metric`: "multiclass", "binary", "multilabel", "regression", or a metric of torchmetrics.'


class Loss(NamedTuple):
    """What a training loss tells of the task.

    Args:
        task: The task; ``"binary"`` stands for ``"multilabel"`` too, which only the number of outputs tells apart.
        threshold: Output above which a label of a binary or multi-label task is taken for given.
        ignore_index: Class index of targets that do not count.
    """

    task: Task
    threshold: float = 0.0
    ignore_index: int | None = None


_REGRESSION = Loss("regression")
_LOGITS, _PROBABILITIES = Loss("binary"), Loss("binary", 0.5)
# By the name of the step of a backward pass that is a loss's own.
_LOSSES = {
    "MultiMarginLossBackward": Loss("multiclass"),
    "BinaryCrossEntropyWithLogitsBackward": _LOGITS,
    "BinaryCrossEntropyBackward": _PROBABILITIES,
    "MseLossBackward": _REGRESSION,
    "SmoothL1LossBackward": _REGRESSION,
    "HuberLossBackward": _REGRESSION,
}
_CLASS_INDICES = ("NllLossBackward", "NllLoss2DBackward")
_CLASS_PROBABILITIES = "LogSoftmaxBackward"  # the only trace of a cross-entropy with probabilities as targets
# By the class of a module that computes a loss.
_LOSS_MODULES = {
    nn.MultiMarginLoss: Loss("multiclass"),
    nn.BCEWithLogitsLoss: _LOGITS,
    nn.BCELoss: _PROBABILITIES,
    nn.MSELoss: _REGRESSION,
    nn.L1Loss: _REGRESSION,
    nn.SmoothL1Loss: _REGRESSION,
    nn.HuberLoss: _REGRESSION,
}
_MOST_STEPS = 100_000  # of a backward pass that are looked at


def loss_of_backward(loss: Tensor) -> Loss | None:
    """Find what a computed loss tells of the task, from its graph.

    Args:
        loss: The loss, a scalar that requires a gradient.

    Returns:
        What it tells; None if it is no loss of torch.nn.functional, or several that tell different things.

    Example:
        >>> scores = torch.zeros(4, 3, requires_grad=True)
        >>> loss_of_backward(nn.functional.cross_entropy(scores, torch.tensor([0, 1, 2, 2]))).task
        'multiclass'
        >>> loss_of_backward(nn.functional.mse_loss(scores, torch.ones(4, 3))).task
        'regression'
    """
    found: set[Loss] = set()
    normalized = False
    for step in _steps(loss):
        name = step.name().rstrip("0123456789")
        if name in _CLASS_INDICES:
            # An unsigned number in the graph.
            index = step._saved_ignore_index
            found.add(Loss("multiclass", ignore_index=index - 2**64 if index >= 2**63 else index))
        elif name in _LOSSES:
            found.add(_LOSSES[name])
        normalized |= name == _CLASS_PROBABILITIES
    if not found and normalized:
        return Loss("multiclass")
    return found.pop() if len(found) == 1 else None


def _steps(loss: Tensor) -> Iterator[Any]:
    left: list[Any] = [loss.grad_fn]
    seen: set[Any] = {None}
    while left and len(seen) < _MOST_STEPS:
        step = left.pop()
        if step not in seen:
            seen.add(step)
            yield step
            left.extend(following for following, _ in step.next_functions)


def loss_of_modules(module: nn.Module) -> Loss | None:
    """Find what the loss modules of a LightningModule tell of the task.

    Args:
        module: The module that holds them.

    Returns:
        What they tell; None if there is none, or several that tell different things.

    Example:
        >>> loss_of_modules(nn.ModuleDict({"net": nn.Linear(2, 1), "loss": nn.BCEWithLogitsLoss()})).task
        'binary'
    """
    found = set()
    for part in module.modules():
        if isinstance(part, (nn.CrossEntropyLoss, nn.NLLLoss)):
            found.add(Loss("multiclass", ignore_index=part.ignore_index))
        elif type(part) in _LOSS_MODULES:
            found.add(_LOSS_MODULES[type(part)])
    return found.pop() if len(found) == 1 else None


class Score:
    """The score of one network over batches.

    Args:
        name: What it is called in logs: ``"accuracy"``, ``"mse"``, or the class of the user's metric in snake case.
        metric: What adds it up.
        prepare: From outputs and targets, as the network and the data have them, to those of the metric.

    Attributes:
        higher_is_better: Whether a higher value is better; None if the metric does not say.
    """

    def __init__(self, name: str, metric: Metric, prepare: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        self.name = name
        self.metric = metric
        self.higher_is_better = metric.higher_is_better
        self._prepare = prepare

    def fresh(self, sync: bool = True) -> Score:
        """Give the same score with nothing in it, for another network.

        Args:
            sync: Whether to add up over processes.
        """
        metric = deepcopy(self.metric)
        metric.reset()
        metric.sync_on_compute = sync
        return Score(self.name, metric, self._prepare)

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch.

        Raises:
            ValueError: If the batch does not fit the task.
        """
        self.metric.to(outputs.device).update(*self._prepare(outputs.detach(), targets.to(outputs.device)))

    def compute(self) -> float:
        """Return the score of all batches."""
        return float(self.metric.compute())


def choose_score(outputs: Tensor, targets: Any, loss: Loss | None = None, metric: Metric | Task | None = None) -> Score:
    """Choose the score that fits a task: from what the user says, or else from loss and labels.

    Class indices beside more than one score are multi-class, whatever the loss; targets of the outputs' shape are what
    the loss says: class probabilities (one-hot), labels of a binary or multi-label task, or values. Accuracy is the
    share of right classes or labels, the score of a regression the mean squared error.

    Args:
        outputs: Outputs of the network for a batch, ``(B, ...)``; not logits alone.
        targets: Targets of the batch.
        loss: What the training loss tells of the task; None if that is not known.
        metric: What the user says: a task, or a metric of torchmetrics, which is copied.

    Raises:
        TypeError: If ``targets`` is no tensor, or ``metric`` is neither.
        ValueError: If the task cannot be told, or the targets do not fit it.

    Example:
        >>> score = choose_score(torch.zeros(2, 3), torch.tensor([0, 2]))
        >>> score.update(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), torch.tensor([0, 2]))
        >>> score.name, score.compute()
        ('accuracy', 0.5)
    """
    if isinstance(metric, Metric):
        return Score(_snake_case(type(metric).__name__), metric, _as_given).fresh()
    if metric is not None and metric not in get_args(Task):
        raise TypeError(
            f"Expected argument `metric` to be one of {list(get_args(Task))} or a metric of torchmetrics, but got "
            f"{metric!r}."
        )
    if not isinstance(targets, Tensor):
        raise TypeError(f"Expected targets to be a tensor, but got {type(targets).__name__}. Use `unpack` to pick it.")
    task = metric or _task(outputs, targets, loss)
    threshold, ignored = (0.0, None) if loss is None else (loss.threshold, loss.ignore_index)
    return _SCORES[task](outputs, threshold, ignored)


def _task(outputs: Tensor, targets: Tensor, loss: Loss | None) -> Task:
    """Tell the task from loss and labels; an error says what leaves it open."""
    classes = outputs.shape[1] if outputs.dim() > 1 else 1
    if classes > 1 and _are_indices(outputs, targets):
        return "multiclass"
    alike = targets.numel() == outputs.numel()
    given = f"outputs of shape {tuple(outputs.shape)} and {targets.dtype} targets of shape {tuple(targets.shape)}"
    if not alike:
        raise ValueError(f"Cannot tell what is scored from {given}. {_GIVE}")
    if loss is None:
        if targets.is_floating_point() and not _are_probabilities(targets):
            return "regression"
        raise ValueError(
            f"Cannot tell what is scored from {given} without a loss that says whether they are labels or values. "
            f"{_GIVE}"
        )
    if loss.task == "binary":
        return "binary" if classes == 1 else "multilabel"
    if loss.task == "regression" and classes > 1 and _are_one_hot(targets):
        raise ValueError(f"Cannot tell whether one-hot targets of a regression loss are classes or values. {_GIVE}")
    if loss.task == "multiclass" and classes == 1:
        raise ValueError(f"Cannot tell what a cross-entropy scores from {given}. {_GIVE}")
    return loss.task


def _are_indices(outputs: Tensor, targets: Tensor) -> bool:
    """Tell whether targets are one class index for each place: of shape (B, ...), or (B, 1)."""
    if targets.is_floating_point() or targets.is_complex() or targets.dtype is torch.bool:
        return False
    places = (outputs.shape[0], *outputs.shape[2:])
    return tuple(targets.shape) in (places, (places[0], 1, *places[1:]))


def _are_probabilities(targets: Tensor) -> bool:
    """Tell whether values may be labels: all in [0, 1]."""
    return bool(((targets >= 0) & (targets <= 1)).all())


def _are_one_hot(targets: Tensor) -> bool:
    return bool((((targets == 0) | (targets == 1)).all(1) & (targets.sum(1) == 1)).all())


def _as_given(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Leave outputs and targets as they are, but for one output more dimension than targets have."""
    alike = outputs.numel() == targets.numel() and outputs.shape != targets.shape
    return (outputs.reshape(targets.shape) if alike else outputs), targets


def _multiclass(outputs: Tensor, _: float, ignored: int | None) -> Score:
    from torchmetrics.classification import MulticlassAccuracy

    classes = outputs.shape[1] if outputs.dim() > 1 else 1

    def prepare(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        chosen = outputs.argmax(1)
        if targets.shape == outputs.shape:
            targets = targets.float().argmax(1)  # booleans have none
        elif targets.numel() != chosen.numel() or targets.is_floating_point():
            raise ValueError(
                f"Expected targets to be class indices, one for each of {tuple(chosen.shape)}, or probabilities of "
                f"shape {tuple(outputs.shape)}, but got {targets.dtype} of shape {tuple(targets.shape)}."
            )
        targets = targets.reshape(chosen.shape).long()
        counted = targets if ignored is None else targets[targets != ignored]
        wrong = counted[(counted < 0) | (counted >= classes)]
        if wrong.numel():
            raise ValueError(
                f"Expected targets to be class indices below {classes}, the number of scores, but got {int(wrong[0])}."
            )
        return chosen, targets

    metric = MulticlassAccuracy(max(classes, 2), average="micro", ignore_index=ignored, validate_args=False)
    return Score("accuracy", metric, prepare)


def _labels(outputs: Tensor, threshold: float, _: int | None) -> Score:
    from torchmetrics.classification import BinaryAccuracy

    def prepare(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        targets = _same_number(outputs, targets)
        if not bool(((targets == 0) | (targets == 1)).all()):
            # Soft labels: the likelier one is right.
            if not _are_probabilities(targets):
                wrong = targets[(targets < 0) | (targets > 1)].flatten()[0]
                raise ValueError(f"Expected targets to be labels in [0, 1], but got {wrong.item():g}.")
            targets = targets > 0.5
        # Decided here: torchmetrics takes outputs for probabilities in batches where all are in [0, 1].
        return (outputs > threshold).long().flatten(), targets.long().flatten()

    return Score("accuracy", BinaryAccuracy(validate_args=False), prepare)


def _regression(outputs: Tensor, _: float, __: int | None) -> Score:
    from torchmetrics import MeanSquaredError

    def prepare(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return outputs.flatten(), _same_number(outputs, targets).to(outputs.dtype).flatten()

    return Score("mse", MeanSquaredError(), prepare)


def _same_number(outputs: Tensor, targets: Tensor) -> Tensor:
    if targets.numel() != outputs.numel() or len(targets) != len(outputs):
        raise ValueError(
            f"Expected one target for each output, but got outputs of shape {tuple(outputs.shape)} and targets of "
            f"shape {tuple(targets.shape)}."
        )
    return targets.reshape(outputs.shape)


_SCORES: dict[str, Callable[[Tensor, float, int | None], Score]] = {
    "multiclass": _multiclass,
    "binary": _labels,
    "multilabel": _labels,
    "regression": _regression,
}


def _snake_case(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
