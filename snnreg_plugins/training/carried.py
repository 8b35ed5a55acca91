"""A penalty's gradient, carried into a backward pass that somebody else runs."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Record:
    """One call of a layer in a forward pass."""

    name: str
    group: str  # calls of one group share a mean
    amount: float  # how much the call counts in it
    strength: float
    value: Tensor  # in a graph only if compiled
    compiled: bool


@dataclass
class Step:
    """What the forward passes up to a backward pass saw, and the scale that the backward pass runs with."""

    records: list[Record] = field(default_factory=list)
    scale: float = 0.0  # 0 outside of Lightning's own backward pass, so that a user's autograd.grad is clean
    ran_without_scale: bool = False
    _amounts: dict[str, float] | None = None

    def record(self, name: str, group: str, amount: float, strength: float, value: Tensor, compiled: bool) -> None:
        self.records.append(Record(name, group, amount, strength, value if compiled else value.detach(), compiled))

    def amounts(self) -> dict[str, float]:
        """What all calls of each group count together; asked for when the forward pass is over."""
        if self._amounts is None:
            self._amounts = {}
            for record in self.records:
                self._amounts[record.group] = self._amounts.get(record.group, 0.0) + record.amount
        return self._amounts

    def factor(self, group: str, amount: float) -> float:
        """Derivative of the scaled loss by the penalty of one call."""
        if self.scale == 0.0:
            self.ran_without_scale = True
            return 0.0
        # A group that the forward pass did not see is the network's own input, repeated by checkpointing.
        return self.scale * amount / self.amounts().get(group, float("inf"))

    def compiled_penalty(self) -> Tensor | None:
        """Penalty of the calls in compiled regions, to be added to the scaled loss."""
        terms = [
            self.scale * record.strength * record.amount / self.amounts()[record.group] * record.value
            for record in self.records
            if record.compiled and record.value.requires_grad
        ]
        return torch.stack(terms).sum() if terms else None


@dataclass
class Logged:
    """Sums over the batches of an epoch of what is to be logged."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    batches: int = 0

    def add(self, step: Step, factor: float) -> None:
        """Add each layer's mean over its calls, and the penalty as it is added to the loss."""
        calls: dict[str, float] = {}
        for record in step.records:
            calls[record.name] = calls.get(record.name, 0.0) + record.amount
        for record in step.records:
            value = record.value.detach()
            share = record.amount / step.amounts()[record.group]
            self._add(f"penalty/{record.name}", value, record.amount / calls[record.name])
            self._add("penalty/total", value, factor * record.strength * share)
        self.batches += 1

    def _add(self, name: str, value: Tensor, share: float) -> None:
        if name not in self.sums:
            self.sums[name] = torch.zeros_like(value)
        self.sums[name].add_(value, alpha=share)

    def means(self) -> dict[str, Tensor]:
        """Mean over the batches."""
        return {name: value / self.batches for name, value in self.sums.items()}


class Carry(torch.autograd.Function):
    """Identity on an activity that gives a penalty its gradient when the activity gets its own."""

    @staticmethod
    def forward(ctx: Any, activity: Tensor, value: Tensor, step: Step, group: str, amount: float) -> Tensor:
        ctx.step, ctx.group, ctx.amount = step, group, amount
        ctx.save_for_backward(value.detach())  # for its type and device alone
        return activity.view_as(activity)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (value,) = ctx.saved_tensors
        factor = ctx.step.factor(ctx.group, ctx.amount)
        return grads[0], torch.full_like(value, factor), None, None, None


def called_from(function: Any) -> bool:
    """Tell whether ``function`` is running.

    Reentrant checkpointing leaves no other trace: its first forward runs without gradients, and its second on inputs
    that look like leaves.
    """
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code is not function.__code__:
        frame = frame.f_back
    return frame is not None
