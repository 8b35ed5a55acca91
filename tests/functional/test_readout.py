"""Readouts and the loss of every step, against loops in plain Python."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from snnreg_plugins.functional import READOUTS, outputs_of, per_step_loss, running_scores
from tests.helpers import plain_scores

OUTPUTS = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("decay", [1.0, 0.7])
def test_scores_and_back(readout, decay):
    found = running_scores(OUTPUTS, readout, decay)
    for steps in range(1, 6):
        expected = plain_scores(OUTPUTS[:steps], readout, decay)
        torch.testing.assert_close(found[steps - 1], expected, rtol=1e-13, atol=1e-13)
    if readout != "max":
        torch.testing.assert_close(outputs_of(found, readout, decay), OUTPUTS, rtol=1e-12, atol=1e-12)


def test_loss_of_every_step():
    classes, outputs = torch.tensor([0, 3, 1]), OUTPUTS.clone().requires_grad_()
    per_step_loss(outputs, classes, strength=0.3, target=2.0).backward()
    by_hand = OUTPUTS.clone().requires_grad_()
    entropies = [-F.log_softmax(by_hand[t, b], 0)[classes[b]] for t in range(5) for b in range(3)]
    squares = [(value - 2.0) ** 2 for value in by_hand.flatten()]
    (0.7 * sum(entropies) / 15 + 0.3 * sum(squares) / 60).backward()
    torch.testing.assert_close(outputs.grad, by_hand.grad, rtol=1e-12, atol=1e-14)


def test_loss_of_the_users():
    values = torch.randn(3, 4, dtype=torch.float64)
    found = per_step_loss(OUTPUTS, values, loss=F.mse_loss)
    torch.testing.assert_close(found, (OUTPUTS - values).square().mean())
