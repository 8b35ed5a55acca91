"""Margins at which samples may leave a spiking network: that keep their class, or that meet a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from snnreg_plugins._batches import Calibration, inputs_of, number_of_batches
from snnreg_plugins._checks import as_number, shown
from snnreg_plugins._console import following, progress
from snnreg_plugins._models import device_of, eval_and_back
from snnreg_plugins.export.counted import Counted, run_and_count
from snnreg_plugins.spiking.early_exit import margin
from snnreg_plugins.spiking.network import SpikingNetwork, require_network


class ExitMargins(tuple[float, ...]):
    r"""Margins :math:`m_1, \ldots, m_{T-1}`, with what they did on the samples that they were found on.

    A tuple, to be set as ``network.exit_margins``.

    Attributes:
        agreement: Share of the samples that have the class of all T steps when they leave.
        timesteps: Steps that they took, on average.
        sops: Synaptic operations per sample, counted; None where nothing was counted.
    """

    agreement: float
    timesteps: float
    sops: float | None

    def __new__(
        cls, margins: Iterable[float], agreement: float, timesteps: float, sops: float | None = None
    ) -> ExitMargins:
        """Make a tuple that knows more."""
        made = super().__new__(cls, margins)
        made.agreement, made.timesteps, made.sops = agreement, timesteps, sops
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        """Go to other processes as a whole."""
        return ExitMargins, (tuple(self), self.agreement, self.timesteps, self.sops)


def exit_margins(
    network: SpikingNetwork, calibration: Calibration, agreement: float = 0.99, *, sops: float | None = None
) -> ExitMargins:
    r"""Find margins at which a sample may leave: such that its class stays nearly always, or within a budget.

    Step by step, of the calibration samples that are still running, those whose margin

    .. math:: \text{scores}_t^{(1)} - \text{scores}_t^{(2)} \ge m_t

    leave, with the smallest :math:`m_t` at which the share of them that have the class of step T by then is at least
    ``agreement``. The same is expected of other data of that kind, within the noise of so many samples.

    With ``sops``, margins cost no more than that on average, by an exact count of the calibration samples, which are
    kept in memory for it: the agreement of a step is lowered until they do. What is found tells how many keep their
    class.

    Args:
        network: A :class:`~snnreg_plugins.SpikingNetwork`; margins are for its ``timesteps``.
        calibration: Inputs that the network was not trained on, as for :func:`~snnreg_plugins.to_snntorch`.
        agreement: Share of the samples that leave at a step that are to keep their class, in (0, 1]. With ``sops``,
            what is enough: margins that keep it may cost less than the budget.
        sops: The budget in SOPs/sample, on average over samples.

    Returns:
        :math:`m_1, \ldots, m_{T-1}`; infinite where nobody may leave. To be set as ``network.exit_margins``. Their
        attributes ``agreement``, ``timesteps`` and ``sops`` tell what they do on the samples.

    Raises:
        ValueError: If an argument is out of range, the network has fewer than two scores, there is no sample, or the
            budget is below what one time step costs.
        TypeError: If ``network`` is no spiking network.

    Example:
        >>> from torch import nn
        >>> from snnreg_plugins import TimeSteps, to_snntorch
        >>> x = torch.rand(200, 2)
        >>> network = to_snntorch(nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3)), x, timesteps=8)
        >>> network.exit_margins = exit_margins(network, x, agreement=0.95)
        >>> with torch.no_grad(), TimeSteps(network) as steps:
        ...     scores = network(x)
        >>> bool(1 <= steps.compute() <= 8)
        True
        >>> found = exit_margins(network, x, sops=60)
        >>> found.sops <= 60, 0 < found.agreement <= 1
        (True, True)
    """
    agreement = as_number("agreement", agreement, "(0, 1]")
    sops = None if sops is None else as_number("sops", sops, "(0, inf)")
    require_network(network)
    total = number_of_batches(calibration)
    with torch.no_grad(), eval_and_back(network), progress("Finding margins, batches", total) as step:
        inputs = following(inputs_of(calibration, device_of(network)), step)
        if sops is not None:
            return _within(network, list(inputs), agreement, sops)
        samples = _Running.of(network, inputs)
        return samples.told(samples.at(agreement))


class _Running:
    """Margins of samples at each step, ``(T, B)``, and whether each has the class of the last step by then."""

    def __init__(self, margins: Tensor, agrees: Tensor) -> None:
        self.margins, self.agrees = margins, agrees

    @classmethod
    def of(cls, network: SpikingNetwork, batches: Iterable[Tensor]) -> _Running:
        margins, agrees = [], []
        for batch in batches:
            running = network(batch, per_step=True)
            margins.append(torch.stack([margin(scores) for scores in running]))
            agrees.append(running.argmax(2) == running[-1].argmax(1))
        if not margins:
            raise ValueError("Expected argument `calibration` to hold at least one sample, but it is empty.")
        return cls(torch.cat(margins, 1), torch.cat(agrees, 1))

    def at(self, agreement: float) -> list[float]:
        """Give the margins of an agreement, step by step those of the samples that still run."""
        found, running = [], torch.ones_like(self.agrees[0])
        for ahead, right in zip(self.margins[:-1], self.agrees[:-1], strict=True):
            found.append(_least(ahead[running], right[running], agreement))
            running &= ~(ahead >= found[-1])
        return found

    def steps(self, margins: list[float]) -> Tensor:
        """Give the step at which each sample leaves, from 1, ``(B,)``."""
        steps = torch.full_like(self.agrees[0], len(self.margins), dtype=torch.long)
        for step, least in reversed(list(enumerate(margins, start=1))):
            steps[self.margins[step - 1] >= least] = step
        return steps

    def told(self, margins: list[float], sops: float | None = None) -> ExitMargins:
        """Give margins with what they do."""
        steps = self.steps(margins)
        keeps = self.agrees.gather(0, steps.unsqueeze(0) - 1)
        return ExitMargins(margins, float(keeps.double().mean()), float(steps.double().mean()), sops)


def _within(network: SpikingNetwork, batches: list[Tensor], agreement: float, budget: float) -> ExitMargins:
    """Find the margins of the largest agreement, up to one, that cost no more than a budget."""
    if network.conversion.get("coding") == "poisson":
        raise ValueError(
            'Expected argument `sops` to be None for a network with coding="poisson", whose spikes are others at every '
            "call, so that no count holds for the next one. Ask for an `agreement`, or export with another coding."
        )
    samples, before = _Running.of(network, batches), network.exit_margins

    def counted(margins: list[float] | None) -> Counted:
        network.exit_margins = margins
        return run_and_count(network, batches)

    try:
        until = _costs_until(counted(None), len(samples.margins))
        best = samples.at(0.0)
        spent = counted(best).sops
        if spent > budget:
            raise ValueError(
                f"Expected argument `sops` to be at least {spent:.6g}, which one time step costs, but got "
                f"{shown(budget)}. Raise it, or export with a `budget`, which raises thresholds, too."
            )
        aim = budget
        for _ in range(_TRIES):
            tried = _largest(samples, agreement, until, aim)
            found = counted(tried).sops
            if spent < found <= budget:
                best, spent = tried, found
            if spent >= _ENOUGH * budget or (found <= budget and tried == samples.at(agreement)):
                break
            aim *= (1 if found <= budget else 0.998) * budget / found
        return samples.told(best, spent)
    finally:
        network.exit_margins = before


def _costs_until(counted: Counted, timesteps: int) -> Tensor:
    """Give what a sample costs until each step, on average: a guess by which to choose what is counted."""
    costs = torch.zeros(timesteps, dtype=torch.float64)
    costs[: len(counted.steps)] = torch.tensor(counted.steps, dtype=torch.float64)[:timesteps]
    return costs.cumsum(0)


def _largest(samples: _Running, agreement: float, until: Tensor, aim: float) -> list[float]:
    """Give the margins of the largest agreement, up to one, that is guessed to cost no more than an aim."""

    def fits(margins: list[float]) -> bool:
        return float(until[samples.steps(margins).cpu() - 1].mean()) <= aim

    if fits(samples.at(agreement)):
        return samples.at(agreement)
    low, high = _halved(lambda tried: fits(samples.at(tried)), 0.0, agreement)
    # Few samples have few agreements, and many may leave at one and none at the next: between both there are others.
    highest = [float(ahead.nan_to_num().amax()) for ahead in samples.margins]
    ends = [
        [min(least, 1.01 * most) for least, most in zip(samples.at(end), highest, strict=False)] for end in (low, high)
    ]

    def between(share: float) -> list[float]:
        return [(1 - share) * first + share * second for first, second in zip(*ends, strict=True)]

    return between(_halved(lambda share: fits(between(share)), 0.0, 1.0)[0])


def _halved(fits: Callable[[float], bool], low: float, high: float) -> tuple[float, float]:
    """Narrow down where something ends to fit."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low, high


_TRIES = 8  # counts
_HALVINGS = 16  # of a range
_ENOUGH = 0.99  # share of the budget that is used


def _least(margins: Tensor, right: Tensor, agreement: float) -> float:
    """Give the smallest margin at and above which at least that share is right."""
    ordered, order = margins.sort(descending=True)
    shares = right[order].cumsum(0).double() / torch.arange(1, len(order) + 1, device=order.device)
    # Only at the last of equal margins is the share that of all with at least this margin.
    last = torch.ones_like(ordered, dtype=torch.bool)
    last[:-1] = ordered[:-1] != ordered[1:]
    safe = ordered[last & (shares >= agreement)]
    return float(safe[-1]) if len(safe) else torch.inf
