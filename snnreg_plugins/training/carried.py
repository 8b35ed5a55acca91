"""A penalty's gradient, carried into a backward pass that somebody else runs.

There are two ways for one gradient, as neither serves everywhere. :class:`Carry` rides on the activity, so that it is
exact where checkpointing computes the activity again, within the backward pass; but a scale that is held in Python
would be baked into compiled code. So a call in a compiled region keeps its value in the graph, and
:meth:`Step.compiled_penalty` is added to the loss that goes into the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Call:
    """One call of a layer in a forward pass, and its penalty."""

    name: str
    group: str  # calls of one group share a mean
    amount: float  # how much the call counts in it: its samples, or the synapses that they reach
    strength: float  # of the layer
    value: Tensor  # in a graph only if compiled
    compiled: bool


@dataclass
class Step:
    r"""What the forward passes up to a backward pass saw, and the scale that the backward pass runs with.

    The penalty is

    .. math:: \sum_c s_c \frac{a_c}{\sum_{d \in \text{group of } c} a_d} v_c

    over calls c with strength s, amount a and value v.
    """

    calls: list[Call] = field(default_factory=list)
    scale: float = 0.0  # 0 outside of Lightning's own backward pass, so that a user's autograd.grad is clean
    ran_without_scale: bool = False
    _amounts: dict[str, float] | None = None

    def slope(self, call: Call) -> float:
        """Derivative of the penalty by the value of one call; asked for when the forward pass is over."""
        if self._amounts is None:
            self._amounts = {}
            for seen in self.calls:
                self._amounts[seen.group] = self._amounts.get(seen.group, 0.0) + seen.amount
        # A group that the forward pass did not see is the network's own input, repeated by checkpointing.
        return call.strength * call.amount / self._amounts.get(call.group, float("inf"))

    def carried_slope(self, call: Call) -> float:
        """Derivative of the scaled loss by the value of one call, in the backward pass that is under way."""
        if self.scale == 0.0:
            self.ran_without_scale = True
            return 0.0
        return self.scale * self.slope(call)

    def compiled_penalty(self) -> Tensor | None:
        """Penalty of the calls in compiled regions, to be added to the scaled loss."""
        terms = [
            self.scale * self.slope(call) * call.value
            for call in self.calls
            if call.compiled and call.value.requires_grad
        ]
        return torch.stack(terms).sum() if terms else None


@dataclass
class Logged:
    """Sums over the batches of an epoch of what is to be logged."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    batches: int = 0

    def add(self, step: Step, factor: float) -> None:
        """Add each layer's mean over its calls, and the penalty as it is added to the loss."""
        amounts: dict[str, float] = {}
        for call in step.calls:
            amounts[call.name] = amounts.get(call.name, 0.0) + call.amount
        for call in step.calls:
            value = call.value.detach()
            self._add(f"penalty/{call.name}", value, call.amount / amounts[call.name])
            self._add("penalty/total", value, factor * step.slope(call))
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
    def forward(ctx: Any, activity: Tensor, value: Tensor, step: Step, call: Call) -> Tensor:
        ctx.step, ctx.call = step, call
        return activity.view_as(activity)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        slope = torch.full_like(ctx.call.value, ctx.step.carried_slope(ctx.call))
        return grads[0], slope, None, None
