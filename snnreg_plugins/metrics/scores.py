"""What a network's outputs are worth beside their targets: the score that fits the task."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torchmetrics import MeanSquaredError, Metric

from snnreg_plugins._torch import ignore_index_of

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
#: A value that is worse than any where less is better: the largest that a logged number can be.
MOST = torch.finfo(torch.float32).max


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
    return _only(losses_of_backward(loss))


def losses_of_backward(loss: Tensor) -> set[Loss]:
    """Find all that a computed loss tells, as :func:`loss_of_backward` does; empty if it tells nothing.

    Args:
        loss: The loss.
    """
    found: set[Loss] = set()
    normalized = False
    for step in _steps(loss):
        name = step.name().rstrip("0123456789")
        if name in _CLASS_INDICES:
            # An unsigned number in the graph.
            index = ignore_index_of(step)
            found.add(Loss("multiclass", ignore_index=index - 2**64 if index >= 2**63 else index))
        elif name in _LOSSES:
            found.add(_LOSSES[name])
        normalized |= name == _CLASS_PROBABILITIES
    return {Loss("multiclass")} if normalized and not found else found


def loss_told(found: set[Loss], module: nn.Module) -> Loss | None:
    """Tell the task from what losses that were computed tell, or else from the loss modules of a LightningModule.

    Args:
        found: What the losses tell.
        module: The module.

    Returns:
        What they tell; None if that is nothing, or several things.
    """
    return _only(found) if found else loss_of_modules(module)


def _only(found: set[Loss]) -> Loss | None:
    return next(iter(found)) if len(found) == 1 else None


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
    return _only(found)


class Share(Metric):
    """The share of right decisions, exact."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    right: Tensor
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("right", torch.tensor(0), "sum")
        self.add_state("total", torch.tensor(0), "sum")

    def update(self, decided: Tensor, targets: Tensor) -> None:
        """Add some decisions."""
        self.right = self.right + (decided == targets).sum()
        self.total = self.total + targets.numel()

    def compute(self) -> Tensor:
        """Return the share as float64, on the CPU; nan of none."""
        share: Tensor = self.right.cpu().double() / self.total.cpu()
        return share


class Score:
    """The score of one network over batches.

    Args:
        name: What it is called in logs: ``"accuracy"``, ``"mse"``, or the class of the user's metric in snake case.
        metric: What adds it up.
        prepare: From outputs and targets, as the network and the data have them, to those of the metric.

    Attributes:
        higher_is_better: Whether a higher value is better; None if the metric does not say.
        by_class: Whether the highest output decides.
    """

    def __init__(
        self,
        name: str,
        metric: Metric,
        prepare: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        by_class: bool = False,
    ) -> None:
        self.name = name
        self.metric = metric
        self.higher_is_better = metric.higher_is_better
        self.by_class = by_class
        self._prepare = prepare

    @property
    def is_accuracy(self) -> bool:
        """Whether it is a share of right decisions."""
        return isinstance(self.metric, Share)

    @property
    def rule(self) -> tuple[Any, ...]:
        """What tells it from another score; plain data."""
        how: Any = self._prepare
        return self.name, getattr(how, "func", how).__name__, *getattr(how, "args", ())

    @property
    def decisions(self) -> int | None:
        """How many decisions were added, in this process; None if it is no share of such."""
        return int(self.metric.total) if isinstance(self.metric, Share) else None

    @property
    def worst(self) -> float:
        """The worst value there is, finite, as monitors end a training at others; nan if no side is better."""
        if self.is_accuracy or self.higher_is_better is None:
            return 0.0 if self.is_accuracy else math.nan
        return -MOST if self.higher_is_better else MOST

    def fresh(self, sync: bool = True) -> Score:
        """Give the same score with nothing in it, for another network.

        Args:
            sync: Whether to add up over processes.
        """
        metric = deepcopy(self.metric)
        metric.reset()
        if not sync:  # `sync_on_compute` is read when a metric is made
            metric.distributed_available_fn = _alone
        return Score(self.name, metric, self._prepare, self.by_class)

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch.

        Raises:
            ValueError: If the batch does not fit the task.
        """
        self.metric.to(outputs.device).update(*self._prepare(outputs.detach(), targets.to(outputs.device)))

    def right(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Tell of each decision of a batch whether it is right; of scores that are accuracies."""
        decided, wanted = self._prepare(outputs.detach(), targets.to(outputs.device))
        return (decided == wanted).flatten()

    def compute(self) -> float:
        """Return the score of all batches.

        Raises:
            TypeError: If the user's metric gives something else than a number.
        """
        value = self.metric.compute()
        if not isinstance(value, Tensor) or value.numel() != 1:
            kind = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(
                f"Expected argument `metric` to give one number, but {type(self.metric).__name__} gives {kind}. Choose "
                'an average of it, such as `average="macro"`.'
            )
        return float(value)


def require_metric(metric: Any) -> None:
    """Raise a TypeError unless ``metric`` is a task, a metric of torchmetrics, or None."""
    if metric is not None and not isinstance(metric, Metric) and metric not in get_args(Task):
        raise TypeError(
            f"Expected argument `metric` to be one of {list(get_args(Task))} or a metric of torchmetrics, but got "
            f"{metric!r}."
        )


def choose_score(
    outputs: Tensor, targets: Any, loss: Loss | None = None, metric: Score | Metric | Task | None = None
) -> Score:
    """Choose the score that fits a task: from what the user says, or else from loss and labels.

    Class indices beside more than one score are multi-class, whatever the loss; targets of the outputs' shape are what
    the loss says: class probabilities (one-hot), labels of a binary or multi-label task, or values. Accuracy is the
    share of right classes or labels, the score of a regression the mean squared error.

    Args:
        outputs: Outputs of the network for a batch, ``(B, ...)``; not logits alone.
        targets: Targets of the batch.
        loss: What the training loss tells of the task; None if that is not known.
        metric: What the user says: a task, or a metric of torchmetrics, which is copied; or a score chosen before.

    Raises:
        TypeError: If ``targets`` is no tensor, or ``metric`` is neither.
        ValueError: If the task cannot be told, or the targets do not fit it.

    Example:
        >>> score = choose_score(torch.zeros(2, 3), torch.tensor([0, 2]))
        >>> score.update(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), torch.tensor([0, 2]))
        >>> score.name, score.compute()
        ('accuracy', 0.5)
    """
    if isinstance(metric, Score):
        return metric.fresh()
    require_metric(metric)
    if isinstance(metric, Metric):
        return Score(_snake_case(type(metric).__name__), metric, _as_given).fresh()
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
    # In order of memory: metrics take views of both.
    return (outputs.reshape(targets.shape) if alike else outputs).contiguous(), targets.contiguous()


def _multiclass(outputs: Tensor, _: float, ignored: int | None) -> Score:
    return Score("accuracy", Share(), partial(_decided, ignored), by_class=True)


def _labels(outputs: Tensor, threshold: float, _: int | None) -> Score:
    return Score("accuracy", Share(), partial(_given, threshold))


def _regression(outputs: Tensor, _: float, __: int | None) -> Score:
    return Score("mse", MeanSquaredError(), _values)


def _decided(ignored: int | None, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Give the classes that were chosen and those that are right, of all places that count."""
    classes, chosen = outputs.shape[1] if outputs.dim() > 1 else 1, outputs.argmax(1)
    if targets.shape == outputs.shape:
        targets = targets.float().argmax(1)  # booleans have none
    elif targets.numel() != chosen.numel() or targets.is_floating_point():
        raise ValueError(
            f"Expected targets to be class indices, one for each of {tuple(chosen.shape)}, or probabilities of "
            f"shape {tuple(outputs.shape)}, but got {targets.dtype} of shape {tuple(targets.shape)}."
        )
    targets = targets.reshape(chosen.shape).long()
    if ignored is not None:
        chosen, targets = chosen[targets != ignored], targets[targets != ignored]
    wrong = targets[(targets < 0) | (targets >= classes)]
    if wrong.numel():
        raise ValueError(
            f"Expected targets to be class indices below {classes}, the number of scores, but got {int(wrong[0])}."
        )
    return chosen, targets


def _given(threshold: float, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Give the labels that were given and those that are right."""
    targets = _same_number(outputs, targets)
    if not bool(((targets == 0) | (targets == 1)).all()):
        # Soft labels: the likelier one is right.
        if not _are_probabilities(targets):
            wrong = targets[(targets < 0) | (targets > 1)].flatten()[0]
            raise ValueError(f"Expected targets to be labels in [0, 1], but got {wrong.item():g}.")
        targets = targets > 0.5
    return (outputs > threshold).long().flatten(), targets.long().flatten()


def _values(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Give values and what they should be, each beside its own."""
    return outputs.flatten(), _same_number(outputs, targets).to(outputs.dtype).flatten()


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


def _alone() -> bool:
    return False


def _snake_case(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
