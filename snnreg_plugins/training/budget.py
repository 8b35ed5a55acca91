"""A budget in place of a strength: what may be spent, and the best network that spends no more."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from snnreg_plugins._checks import as_number, shown
from snnreg_plugins._text import in_joules, in_percent, in_short
from snnreg_plugins.functional.energy import EnergyTable, energy, energy_table
from snnreg_plugins.spiking.network import SpikingNetwork


@dataclass(frozen=True)
class Counts:
    """What was counted of a spiking network, per sample.

    Args:
        sops: Synaptic operations.
        macs: Effective MACs: those of the analog first layer.
        dense_macs: Dense MACs of the DNN; of a network that spikes already, of one time step.
    """

    sops: float
    macs: float
    dense_macs: float


class Budget:
    r"""What a spiking network may spend on a sample: SOPs, a share of the dense MACs, or an energy.

    Whatever it is given in, it leaves a number of SOPs, the one thing that a penalty can change:

    .. math:: B = \text{sops} \qquad B = \text{share} \cdot \text{MACs}_\text{dense} \qquad
        B = \frac{10^{12} \, \text{joules} - \text{MACs} \cdot e_{MAC}}{e_{AC}}

    Args:
        sops: SOPs/sample.
        share: SOPs as a share of the DNN's dense MACs.
        joules: Energy in J/sample, MACs of the analog first layer included.
        table: Energy per operation, as for :func:`~snnreg_plugins.functional.energy`.

    Raises:
        ValueError: If not exactly one of the three is given, or it is not above 0.

    Example:
        >>> counts = Counts(sops=5e4, macs=1e4, dense_macs=2e5)
        >>> Budget(share=0.2).limit(counts), Budget(share=0.2).slack(counts)
        (40000.0, -0.25)
        >>> round(Budget(joules=100e-9).limit(counts)), Budget(joules=91e-9).slack(counts)
        (60000, 0.0)
    """

    def __init__(
        self,
        sops: float | None = None,
        share: float | None = None,
        joules: float | None = None,
        table: str | EnergyTable = "horowitz_fp32",
    ) -> None:
        given = {"sops": sops, "share": share, "joules": joules}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) != 1:
            raise ValueError(
                "Expected one of the arguments `sops`, `share` and `joules`, which is the budget, but got "
                f"{' and '.join(f'`{name}`' for name in given) or 'none'}."
            )
        ((self.unit, value),) = given.items()
        self.amount = as_number(self.unit, value, "(0, inf)")
        self.table = energy_table(table)
        if self.unit == "joules" and not self.table.ac:
            raise ValueError(
                f"Expected argument `table` to have a price for SOPs, which a budget of energy is to limit, but got "
                f"one of 0: {self.table.source}."
            )

    def spent(self, counts: Counts) -> float:
        """Give what a network spends, in the unit of the budget."""
        if self.unit == "joules":
            return float(energy(counts.sops, counts.macs, self.table))
        return counts.sops / counts.dense_macs if self.unit == "share" else counts.sops

    def slack(self, counts: Counts) -> float:
        """Give the share of the budget that is left; below 0 where more is spent."""
        return 1 - self.spent(counts) / self.amount

    def limit(self, counts: Counts) -> float:
        """Give the SOPs/sample that the budget leaves to a network.

        Raises:
            ValueError: If it leaves none.
        """
        if self.unit == "sops":
            return self.amount
        if self.unit == "share":
            if not counts.dense_macs:
                raise ValueError(f"Expected argument `share` to be of dense MACs, but there are none ({counts}).")
            return self.amount * counts.dense_macs
        fixed = energy(0.0, counts.macs, self.table)
        if fixed >= self.amount:
            raise ValueError(
                f"Expected argument `joules` to be above {fixed:.3g}, which {in_short(counts.macs)} MACs of layers "
                "with real-valued input cost, the first one among them, before any spike; but got "
                f"{shown(self.amount)}. "
                "Raise it, make the first layer smaller, or limit the SOPs alone by `sops`."
            )
        return (self.amount - fixed) / (1e-12 * self.table.ac)

    def is_met(self, counts: Counts, tolerance: float) -> bool:
        """Tell whether no more is spent than a share above the budget."""
        return self.slack(counts) >= -tolerance

    def told(self, counts: Counts) -> str:
        """Tell in words what is spent of what."""
        spent = self.spent(counts)
        over = spent / self.amount - 1
        if self.unit == "joules":
            pair = f"{in_joules(spent)} of {in_joules(self.amount)}"
        elif self.unit == "share":
            pair = f"{in_percent(spent)} of {in_percent(self.amount)} of the dense MACs"
        else:
            pair = f"{in_short(spent)} of {in_short(self.amount)} SOPs/sample"
        return f"{pair} ({100 * over:+.1f} %)"


@dataclass(frozen=True)
class Kept:
    """Weights of a network that meets its budget, and what is known of it.

    Args:
        epoch: When it was validated.
        counts: What it spends.
        score: What it scores; None if nothing is scored.
        weights: A copy of its state, on the CPU.
        network: The spiking network that was exported for it, of a DNN.
    """

    epoch: int
    counts: Counts
    score: float | None
    weights: dict[str, Any] = field(repr=False)
    network: SpikingNetwork | None = field(default=None, repr=False)

    def is_of(self, module: nn.Module) -> bool:
        """Tell whether a module has these weights."""
        state = module.state_dict()
        return state.keys() == self.weights.keys() and all(
            torch.equal(value.cpu(), self.weights[name]) for name, value in state.items() if isinstance(value, Tensor)
        )


class Keeper:
    """Keeps the weights of the best network that meets its budget.

    Of several it is the one with the best score, and of equal ones the latest; but one that uses the budget, within the
    tolerance, before one that spends less, unless that scores better by more than 5 %. Where nothing is scored, it is
    the one that comes closest to the budget.

    Args:
        budget: What may be spent.
        tolerance: By which share more may be spent.

    Example:
        >>> keeper = Keeper(Budget(sops=100.0), tolerance=0.03)
        >>> layer = nn.Linear(2, 3)
        >>> for epoch, (sops, score) in enumerate([(120, 0.9), (50, 0.79), (93, 0.8), (102, 0.795), (101, 0.6)]):
        ...     keeper.see(epoch, Counts(sops, 0, 500), score, 1, layer)
        >>> keeper.kept.epoch, keeper.kept.score
        (3, 0.795)
    """

    #: Share of a score that using the budget is worth.
    BONUS = 0.05

    def __init__(self, budget: Budget, tolerance: float) -> None:
        self.budget, self.tolerance = budget, tolerance
        self.kept: Kept | None = None
        self._rank: float | None = None
        self._under: str | None = None  # None in files of earlier versions

    def under(self, conditions: str | None) -> None:
        """Forget what was kept under other conditions, where it counts as something else.

        Args:
            conditions: What counts depend on beside the weights, such as the time steps; None if that is not known.
        """
        if None not in (self._under, conditions) and self._under != conditions:
            self.kept = self._rank = None
        self._under = conditions or self._under

    def see(
        self,
        epoch: int,
        counts: Counts,
        score: float | None,
        sign: int,
        module: nn.Module,
        network: SpikingNetwork | None = None,
    ) -> None:
        """Take a validation.

        Args:
            epoch: Its epoch.
            counts: What the network spends.
            score: What it scores.
            sign: 1 if a higher score is better, -1 if a lower one, 0 if neither.
            module: Who holds the weights.
            network: The spiking network that was exported.
        """
        if not self.budget.is_met(counts, self.tolerance):
            return
        slack = self.budget.slack(counts)
        if score is None or not sign:
            rank = -slack
        else:
            rank = sign * score + (self.BONUS * abs(score) if slack <= self.tolerance else 0.0)
        if math.isnan(rank):
            rank = -math.inf
        if self._rank is None or rank >= self._rank:
            self._rank = rank
            weights = {name: _copied(value) for name, value in module.state_dict().items()}
            self.kept = Kept(epoch, counts, score, weights, network)

    def state(self) -> dict[str, Any]:
        """Give all that training goes on with, as plain data and the weights."""
        if self.kept is None:
            return {"kept": None, "rank": None, "under": self._under}
        kept = {name: value for name, value in vars(self.kept).items() if name != "network"}
        return {"kept": {**kept, "counts": asdict(self.kept.counts)}, "rank": self._rank, "under": self._under}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        kept, rank = state["kept"], state["rank"]
        self.kept = None if kept is None else Kept(**{**kept, "counts": Counts(**kept["counts"])})
        self._rank, self._under = rank, state.get("under")


def _copied(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else copy.deepcopy(value)
