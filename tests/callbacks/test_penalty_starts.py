"""What ActivityRegularization is without arguments."""

from __future__ import annotations

import pytest

from snnreg_plugins import ActivityRegularization
from snnreg_plugins.functional.penalties import PENALTIES


def test_without_arguments_it_is_what_is_recommended():
    callback = ActivityRegularization()
    assert callback.state_key == ActivityRegularization("expected_rate", 1.0, "fan_out").state_key
    assert ActivityRegularization(strength=3.0).weighting == "fan_out"
    assert ActivityRegularization(weighting="uniform").strength == 1.0


@pytest.mark.parametrize("penalty", [name for name in PENALTIES if name != "expected_rate"])
def test_other_penalties_count_uniformly_and_have_a_strength_of_their_own(penalty):
    callback = ActivityRegularization(penalty)
    assert callback.weighting == "uniform"
    assert 1e-4 <= callback.strength <= 0.3
    assert ActivityRegularization(penalty, 0.7, "fan_out").state_key != callback.state_key


def test_a_function_has_the_strength_that_is_said():
    callback = ActivityRegularization(lambda activity, weight: activity.mean())
    assert (callback.strength, callback.weighting) == (0.01, "uniform")
