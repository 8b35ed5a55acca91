"""Long work of ours tells in a terminal what it is at, and nothing elsewhere."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from itertools import islice

import pytest
import torch
from torch import nn

from snnreg_plugins import diagnose, exit_margins, report, savings, to_snntorch
from snnreg_plugins.reports import save

X = torch.rand(40, 4)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


def work(model):
    """Yield what each piece of long work is to say."""
    network = to_snntorch(model, X.split(10), timesteps=4)
    yield "Calibrating, batches", "3/4"
    yield "Adjusting: 1", "0/2"
    yield "Adjusting: 3", "1/2"
    to_snntorch(model, X, timesteps=4, threshold="auto")
    yield "Trying thresholds: percentile 99, per channel", "1/9"
    yield "Trying thresholds: the best, on more samples", "8/9"
    to_snntorch(model, X, timesteps=4, budget=60)
    yield "Within the budget: T = 2, percentile 99.9, per layer", "1/4"
    data = [(x, model(x).argmax(1)) for x in X.split(10)]
    diagnose(model, network, data)
    yield "Comparing layers, batches", "3/4"
    report(model, network, data, steps=(1, 4))
    yield "Measuring, batches", "3/4"
    savings(network, data, X)
    yield "Trying to save: thresholds × 1.5", "2/11"
    exit_margins(network, X.split(10))
    yield "Finding margins, batches", "3/4"


def test_each_tells_what_it_is_at(terminal, model):
    for text, done in work(model):
        lines = terminal.getvalue().replace("\r", "\n").splitlines()
        assert any(text in line and done in line for line in lines), text
    assert terminal.getvalue().count("\x1b[?25l") == terminal.getvalue().count("\x1b[?25h")  # cursor hidden, and seen


def test_nothing_is_printed_to_a_pipe(capfd, model):
    for _ in islice(work(model), 5):
        pass
    assert capfd.readouterr() == ("", "")


def test_a_report_has_no_bar_where_none_is_wanted(terminal, model):
    network = to_snntorch(model, X, timesteps=2, correction="none")
    begun = terminal.tell()
    report(model, network, [(X, model(X).argmax(1))], steps=(1,), progress=False)
    assert terminal.tell() == begun


@pytest.mark.parametrize(
    ("hidden", "calibrated", "timesteps"),
    [(1, False, 2), (2, True, 1), (2, True, 2), pytest.param(6, True, 2, marks=pytest.mark.slow)],
)
def test_the_number_of_what_is_tried_is_known_before(monkeypatch, hidden, calibrated, timesteps):
    torch.manual_seed(0)
    layers = [part for _ in range(hidden - 1) for part in (nn.Linear(5, 5), nn.ReLU())]
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), *layers, nn.Linear(5, 3)).eval()
    network = to_snntorch(model, X, timesteps=timesteps, correction="none")
    told = []

    @contextmanager
    def counting(what, total):
        told.append(total)
        yield lambda text: told.append(text)

    monkeypatch.setattr(save, "progress", counting)
    savings(network, [(X[:4], model(X[:4]).argmax(1))], X if calibrated else None)
    total, *steps = told
    assert len(steps) == total


def test_the_number_of_batches_that_are_compared_is_known_before(monkeypatch, model):
    told = []

    @contextmanager
    def counting(what, total=None):
        told.append(total)
        yield told.append

    network = to_snntorch(model, X, timesteps=2, correction="none")
    monkeypatch.setattr(sys.modules[diagnose.__module__], "progress", counting)
    for limit, total in ((None, 4), (30, 3), (11, 2), (7, 1), (999, 4)):
        told.clear()
        diagnose(model, network, X.split(10), limit_samples=limit)
        assert told == [total] + [""] * total
    told.clear()
    diagnose(model, network, iter(X.split(10)))
    assert told[0] is None
