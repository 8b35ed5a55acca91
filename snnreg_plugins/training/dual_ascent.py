"""Dual ascent: what a network costs while it is trained, and the price that brings the cost to a budget."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from snnreg_plugins.training.budget import Budget, Counts


class Meter:
    r"""What a network costs while it is trained: a running mean of its batches, set right by exact counts.

    A batch tells :math:`x = \frac{1}{B} \sum a v`, amount times penalty over its calls of layers (see
    :class:`~snnreg_plugins.training.carried.Call`): with expected rates by fan-out the SOPs of a time step, with L1 on
    spikes the SOPs themselves. The cost is :math:`\hat C = r \bar x`, with the mean

    .. math:: \bar x \leftarrow \bar x + \max(1 / W, 1 / n) (x - \bar x)

    over about W batches, and r the ratio of an exact count C to the mean of x in the few batches that begin with the
    weights that were counted (an older mean would be that of other weights), or the geometric mean of that and of r
    before: thresholds that come to lie beyond what many neurons read alike, as the background of images, make counts
    jump. A second mean, over 3 W, is older by 2 W batches: from both it is told how fast the cost rises or falls.

    Args:
        window: W.

    Example:
        >>> meter = Meter()
        >>> meter.set_right(70.0)
        >>> meter.add(amount=200.0, value=torch.tensor(0.1))
        >>> meter.end_batch(samples=2)
        >>> meter.add(amount=200.0, value=torch.tensor(0.2))
        >>> meter.end_batch(samples=2)
        >>> meter.mean, meter.cost
        (15.0, 105.0)
    """

    #: Batches that an exact count is compared with.
    AFTER = 4

    def __init__(self, window: float = 20.0) -> None:
        self.window = window
        self.mean = self.slow = 0.0
        self.ratio: float | None = None  # None before the first exact count
        self.synapses = 0.0  # that a sample reaches, in all calls
        self.batches = 0
        self.counted: float | None = None  # an exact count that is to be compared with the batches after it
        self.after: list[float] = []  # x of these, so far
        self._sum: Tensor | None = None
        self._amount = 0.0

    def add(self, amount: float, value: Tensor) -> None:
        """Add a call of a layer that a backward pass has reached."""
        product = value.detach() * amount
        self._sum = product if self._sum is None else self._sum + product
        self._amount += amount

    def end_batch(self, samples: int, sum_over_processes: Callable[[Tensor], Tensor] | None = None) -> None:
        """Have the batch count.

        Args:
            samples: B.
            sum_over_processes: Sums a tensor over processes, if there are several; all then have the same mean.
        """
        device = None if self._sum is None else self._sum.device
        found = torch.tensor([0.0, self._amount, float(samples)], dtype=torch.float32, device=device)
        if self._sum is not None:
            found[0] = self._sum
        self._sum, self._amount = None, 0.0
        if sum_over_processes is not None:
            found = sum_over_processes(found)
        total, amount, number = found.tolist()
        if not (amount and number):  # no backward pass reached a layer
            return
        self.batches += 1
        self.synapses = amount / number
        self.mean += (total / number - self.mean) / self._over(1)
        self.slow += (total / number - self.slow) / self._over(3)
        if self.counted is not None:
            self.after.append(total / number)
            if self.ratio is None or len(self.after) >= self.AFTER:
                self._compare(self.counted, sum(self.after) / len(self.after))

    def _over(self, windows: int) -> float:
        return min(windows * self.window, self.batches)

    def set_right(self, cost: float) -> None:
        """Take an exact count of the network as it is now: of the weights that the next batch begins with."""
        self.counted, self.after = cost, []

    def _compare(self, cost: float, mean: float) -> None:
        if mean > 0:
            now = cost / mean
            self.ratio = now if not self.ratio else math.sqrt(self.ratio * now)
        self.counted, self.after = None, []

    @property
    def cost(self) -> float | None:
        """SOPs/sample; None before the first exact count."""
        return None if self.ratio is None else self.ratio * self.mean

    @property
    def trend(self) -> float:
        """By how much the logarithm of the cost grows in a batch."""
        older = self._over(3) - self._over(1)
        return math.log(self.mean / self.slow) / older if older > 0 and self.mean > 0 else 0.0


class DualAscent:
    r"""The price λ of a constraint :math:`C \le B`, in units of the training loss.

    With the excess :math:`e = \log(C / B)` and a share :math:`\delta` of the training gone by,

    .. math:: \lambda \leftarrow \max(0, \lambda + \eta \, \delta \, (\lambda + u) \, [e]_{-1}^{1/2}) \qquad
        \lambda_\text{eff} = \max(0, \lambda + \kappa (\lambda + u) [e]_{-1}^{0.3})

    so that it answers alike, in logarithms, whatever the scale of λ is, and may be 0 all the same: u says what is
    small. The proportional term damps oscillations (PI control, which is an augmented Lagrangian). The step of
    ascent is by the share of the training, so that a longer one is steered no less than a short one, and more finely.

    Args:
        gain: η; λ grows up to e^(η/2)-fold over a training.
        proportional: κ.
        unit: u.

    Example:
        >>> dual = DualAscent(gain=10.0, proportional=2.0, unit=0.1)
        >>> dual.update(excess=0.5, progress=0.1)
        >>> round(dual.price, 3), round(dual.effective(0.1), 3), dual.effective(-1.0)
        (0.025, 0.05, 0.0)
    """

    def __init__(self, gain: float = 40.0, proportional: float = 10.0, unit: float = 0.05) -> None:
        # Penalties push activity down faster than it comes back by itself: most is left to the proportional term.
        self.gain, self.proportional, self.unit = gain, proportional, unit
        self.price = 0.0

    def update(self, excess: float, progress: float) -> None:
        """Take a step.

        Args:
            excess: e.
            progress: δ.
        """
        step = min(self.gain * progress, 0.5)  # larger ones would overshoot
        self.price = max(0.0, self.price + step * (self.price + self.unit) * min(0.5, max(-1.0, excess)))

    def effective(self, excess: float) -> float:
        """Give the price that acts."""
        return max(0.0, self.price + self.proportional * (self.price + self.unit) * min(0.3, max(-1.0, excess)))


def ramped(start: float, limit: float, share: float) -> float:
    """Give the limit that holds while it comes down from what the network costs at the start, evenly in logarithms.

    Args:
        start: The cost at the start, without a limit.
        limit: The limit at the end.
        share: How much of the way is gone, 1 at the end.

    Example:
        >>> ramped(100.0, 25.0, 0.5), ramped(100.0, 25.0, 2.0), ramped(10.0, 25.0, 0.0)
        (50.0, 25.0, 25.0)
    """
    if share >= 1 or start <= limit:
        return limit
    return float(start ** (1 - share) * limit**share)


class Controller:
    """Steers the strength of a penalty so that a network comes to spend its budget.

    Args:
        budget: What may be spent.
        ramp: Share of the training over which the limit comes down.
    """

    #: Strength of a penalty that is to be seen and not to act.
    LEAST = 1e-12
    #: Batches whose mean loss is the unit of the price.
    FIRST = 20
    #: Window of the meter as a share of the training.
    WINDOW = 0.03
    #: Windows of the meter that the cost is told ahead.
    HORIZON = 1.0
    #: What is aimed at, as a share of the limit: what comes close comes from above.
    AIM = 0.99

    def __init__(self, budget: Budget, ramp: float) -> None:
        self.budget, self.ramp = budget, ramp
        self.meter, self.dual = Meter(), DualAscent()
        self.counts: Counts | None = None  # the last exact ones
        self.start = 0.0  # the most that the network has cost on the ramp
        self.loss, self.losses = 0.0, 0
        self.best_accuracy: float | None = None  # None if something else is scored
        self.progress = 0.0

    def counted(self, counts: Counts) -> None:
        """Take what was counted of the network as it is now.

        Raises:
            ValueError: If the budget leaves it no SOPs.
        """
        self.budget.limit(counts)
        self.counts = counts
        self.meter.set_right(counts.sops)

    @property
    def unit(self) -> float:
        """Unit of the price: the mean loss of the first batches, and for accuracies at least a nat of cross-entropy."""
        return max(self.loss, 1.0 if self.best_accuracy is not None else 0.0) or 1.0

    def scored(self, accuracy: float) -> None:
        """Take an accuracy; where it has broken down, the price does too, before all spikes are gone."""
        self.best_accuracy = max(accuracy, self.best_accuracy or 0.0)
        if accuracy < self.best_accuracy / 2:
            self.relent()

    def relent(self) -> None:
        """Lower the price by much."""
        self.dual.price /= 4

    def hear(self, loss: float) -> None:
        """Take the loss of a batch, in each of the first ones."""
        if self.listens and math.isfinite(loss):
            self.losses += 1
            self.loss += (abs(loss) - self.loss) / self.losses

    @property
    def is_new(self) -> bool:
        """Whether nothing was counted and no batch was seen yet."""
        return self.counts is None and not self.meter.batches

    @property
    def listens(self) -> bool:
        """Whether losses are to be told."""
        return self.losses < self.FIRST

    def end_batch(
        self, samples: int, progress: float, sum_over_processes: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        """Take the batch that the meter has seen, and a step of ascent.

        Args:
            samples: Samples in the batch.
            progress: Share of the training that is over.
            sum_over_processes: See :meth:`Meter.end_batch`.
        """
        self.meter.end_batch(samples, sum_over_processes)
        gone, self.progress = max(0.0, progress - self.progress), progress
        cost = self.meter.cost
        if cost is not None and self.progress < self.ramp:
            self.start = max(self.start, cost)
        if self.progress > 0:
            batches = self.meter.batches / self.progress  # in all
            self.meter.window = min(max(self.WINDOW * batches, 5.0), 50.0)
        if self.excess is not None:
            self.dual.update(self.excess, gone)

    @property
    def limit(self) -> float | None:
        """SOPs/sample that the budget leaves in the end; None before the first exact count."""
        return None if self.counts is None else self.budget.limit(self.counts)

    @property
    def excess(self) -> float | None:
        """The logarithm of cost over limit, as the limit is now; None before the first exact count."""
        limit, cost = self.limit, self.meter.cost
        if limit is None or cost is None:
            return None
        # What the means tell is as old as their window, and what is done now shows later.
        now = ramped(self.start, self.AIM * limit, self.progress / self.ramp if self.ramp else 1.0)
        ahead = (self.HORIZON + 1) * self.meter.window
        return math.log(max(cost, 1e-9 * now) / now) + ahead * self.meter.trend

    @property
    def strength(self) -> float:
        """Strength of the penalty in the next batch."""
        excess = self.excess
        return self.LEAST if excess is None else max(self.LEAST, self._strength(self.dual.effective(excess)))

    @property
    def settled_strength(self) -> float:
        """Strength by the price without its proportional term, which varies less."""
        return self._strength(self.dual.price)

    def _strength(self, price: float) -> float:
        limit = self.limit
        if limit is None or self.meter.ratio is None:
            return 0.0
        # The penalty is a mean over synapses; what has a price is the cost in units of the limit.
        return price * self.unit * self.meter.ratio * self.meter.synapses / limit

    @property
    def shadow_price(self) -> float:
        """What a SOP more would take off the loss, by the price without its proportional term."""
        return 0.0 if not self.limit else self.dual.price * self.unit / self.limit

    def state(self) -> dict[str, Any]:
        """Give all that training goes on with, as plain data."""
        meter = self.meter
        return {
            "price": self.dual.price,
            "mean": meter.mean,
            "slow": meter.slow,
            "ratio": meter.ratio,
            "synapses": meter.synapses,
            "batches": meter.batches,
            "window": meter.window,
            "counted": meter.counted,
            "after": list(meter.after),
            "start": self.start,
            "loss": self.loss,
            "losses": self.losses,
            "best_accuracy": self.best_accuracy,
            "progress": self.progress,
            "counts": None if self.counts is None else asdict(self.counts),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.dual.price = state["price"]
        for name in ("mean", "slow", "ratio", "synapses", "batches", "window", "counted"):
            setattr(self.meter, name, state[name])
        self.meter.after = list(state["after"])
        for name in ("start", "loss", "losses", "best_accuracy", "progress"):
            setattr(self, name, state[name])
        self.counts = None if state["counts"] is None else Counts(**state["counts"])
