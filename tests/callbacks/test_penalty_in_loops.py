"""The penalty reaches the losses that it belongs to, in every order of forward and backward passes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from snnreg_plugins import ActivityRegularization
from tests.callbacks.loops import LOOPS, SharedTrunk, Views
from tests.callbacks.reference import fit, loader

STRENGTH = 0.5


@pytest.mark.parametrize("weighting", ["uniform", "fan_out"])
@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
def test_gradient_equals_the_penalty_by_hand(loop, weighting):
    expected, _ = fit(loop(STRENGTH, weighting), dtype=torch.float64)
    without, _ = fit(loop(), dtype=torch.float64)
    actual, _ = fit(loop(), [ActivityRegularization("l1", STRENGTH, weighting)], torch.float64)
    assert (without - expected).abs().max() > 1e-3  # the penalty matters
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_logged_is_the_mean_over_the_backward_passes_that_brought_it():
    module = SharedTrunk()
    x, _ = next(iter(loader(torch.float64)))
    h = F.relu(module.trunk(x.flatten(1), reads := []))
    module.right(h, of_right := [], own=False)
    _, trainer = fit(module, [ActivityRegularization("l1")], torch.float64, limit_train_batches=1)
    for name, (_, activity) in (("trunk.layers.1", reads[0]), ("right.layers.1", of_right[1])):
        assert float(trainer.callback_metrics[f"penalty/net.{name}"]) == pytest.approx(float(activity.detach().mean()))


@pytest.mark.parametrize("weighting", ["uniform", "fan_out"])
def test_reentrant_checkpoints_of_views(weighting):
    class Plain(Views):
        checkpointed = False

    expected, _ = fit(Plain(STRENGTH, weighting), dtype=torch.float64)
    without, _ = fit(Plain(), dtype=torch.float64)
    actual, _ = fit(Views(), [ActivityRegularization("l1", STRENGTH, weighting)], torch.float64)
    assert (without - expected).abs().max() > 1e-3
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
