"""What a budget says when its training ends."""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_warn

from snnreg_plugins.spiking.network import SpikingNetwork
from snnreg_plugins.training.budget import Budget, Counts


def say_what_was_scaled(network: SpikingNetwork | None, limit: float | None) -> None:
    """Say that thresholds were scaled, and how to make others like it.

    Args:
        network: That was exported of a DNN.
        limit: SOPs/sample that the budget leaves.
    """
    if network is not None and "threshold_factors" in network.conversion and limit is not None:
        rank_zero_warn(
            "ActivityBudget has scaled thresholds to meet its budget: those of its `network`. Take it, or bring "
            f"others to it: to_snntorch(..., timesteps={network.timesteps}, budget={limit:.6g})."
        )


def say_that_nothing_was_counted(strength: float) -> None:
    """Say that it cannot be told whether a budget is met.

    Args:
        strength: Of the penalty.
    """
    rank_zero_warn(
        "ActivityBudget cannot tell whether its budget is met: the last validation has counted nothing, as a "
        f"layer of the network is silent, or there was none. The strength of the penalty is {strength:.3g}; "
        "if all spikes are gone, raise the budget or the number of epochs."
    )


def say_whether_it_is_met(
    budget: Budget, tolerance: float, counts: Counts, score: float | None, strength: float, batches_since: int
) -> None:
    """Say it where a budget is not met, or met by silence, or where that holds of other weights.

    Args:
        budget: What may be spent.
        tolerance: By which share more may be spent.
        counts: What is spent.
        score: What the last validation has scored, if anything.
        strength: Of the penalty.
        batches_since: Batches that were trained since the weights were counted that the module has.
    """
    if not budget.is_met(counts, tolerance):
        scored = "" if score is None else f", with a score of {score:.4g}"
        rank_zero_warn(
            f"The budget of ActivityBudget is not met: {budget.told(counts)} at the last validation{scored}, "
            f"at a strength of {strength:.3g}. Train for more epochs, take fewer time steps, or raise the budget."
        )
    elif batches_since:
        rank_zero_warn(
            f"ActivityBudget cannot tell whether its budget is met by the weights of the end: {budget.told(counts)} "
            f"was counted at the last validation, and batches were trained since: {batches_since}. Give keep_best=True "
            "for the weights that were counted, or let the last batch be one after which the Trainer validates "
            "(`max_steps`, `val_check_interval`, `check_val_every_n_epoch`)."
        )
    elif not counts.sops:
        rank_zero_warn(
            "The budget of ActivityBudget is met by silence: no spike reaches a synapse any more. Raise the budget "
            "or the number of epochs."
        )
