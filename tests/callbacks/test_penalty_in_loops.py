"""The penalty reaches the losses that it belongs to, in every order of forward and backward passes."""

from __future__ import annotations

import pytest
import torch

from snnreg_plugins import ActivityRegularization
from tests.callbacks.loops import LOOPS, Views
from tests.callbacks.reference import fit

STRENGTH = 0.5


@pytest.mark.parametrize("weighting", ["uniform", "fan_out"])
@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
def test_gradient_equals_the_penalty_by_hand(loop, weighting):
    expected, _ = fit(loop(STRENGTH, weighting), dtype=torch.float64)
    without, _ = fit(loop(), dtype=torch.float64)
    actual, _ = fit(loop(), [ActivityRegularization("l1", STRENGTH, weighting)], torch.float64)
    assert (without - expected).abs().max() > 1e-3  # the penalty matters
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("weighting", ["uniform", "fan_out"])
def test_reentrant_checkpoints_of_views(weighting):
    class Plain(Views):
        checkpointed = False

    expected, _ = fit(Plain(STRENGTH, weighting), dtype=torch.float64)
    without, _ = fit(Plain(), dtype=torch.float64)
    actual, _ = fit(Views(), [ActivityRegularization("l1", STRENGTH, weighting)], torch.float64)
    assert (without - expected).abs().max() > 1e-3
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
