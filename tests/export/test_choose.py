"""What "auto" takes: the cheapest of the best, on samples that candidates were not adjusted on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from snnreg_plugins import load_network, save_network, to_norse, to_snntorch
from snnreg_plugins.export.choose import CANDIDATES, Tried, candidates, cheapest, choose, finalists, kept
from snnreg_plugins.export.options import CHOSEN, Options
from tests import nets

T = 4


def tried(sops, right, samples=100, wrong=()):
    """A candidate that is right on the first so many samples, but for some."""
    good = (torch.arange(samples) < right).double()
    good[list(wrong)] = 0.0
    return Tried(Options(timesteps=T), good, sops)


@pytest.mark.parametrize(
    ("tolerance", "found", "taken"),
    [
        # Where the right samples of the one are among those of the other, the standard error of a difference of d of
        # 100 is about the root of d, in samples.
        (0.0, [(10, 80), (40, 90), (30, 88), (20, 87)], 1),
        (2.1, [(10, 80), (40, 90), (30, 88), (20, 87)], 2),
        (3.1, [(10, 80), (40, 90), (30, 88), (20, 87)], 3),
        (10.1, [(10, 80), (40, 90), (30, 88), (20, 87)], 0),
        (1.1, [(20, 100), (10, 99)], 1),
        (0.0, [(10, 0), (20, 0), (5, 0), (7, 0)], 2),
        (0.0, [(10, 50), (10, 50)], 0),
    ],
)
def test_the_cheapest_of_those_within_the_tolerance_or_a_standard_error(tolerance, found, taken):
    found = [tried(sops, right) for sops, right in found]
    assert cheapest(found, tolerance) is found[taken]


def test_errors_on_other_samples_are_more_noise():
    # Both are 4 behind: one on samples that the best is right on as well, the other on 24 against 20.
    best, nested = tried(40, 80), tried(10, 76)
    other = Tried(nested.options, (torch.arange(100) >= 24).double(), 10)
    assert best.mean - nested.mean == pytest.approx(0.04)
    assert cheapest([best, nested], 1.0) is best
    assert cheapest([best, other], 1.0) is other


def test_finalists_are_the_best_and_the_cheapest_that_may_be_as_good():
    found = [tried(*each) for each in [(50, 90), (10, 50), (40, 89), (30, 88), (60, 90), (35, 87), (20, 88)]]
    assert finalists(found, 0.5) == [found[6], found[2], found[0]]  # 35 and 30 are no better than 20
    assert finalists(found[:2], 0.5) == [found[0]]


def test_candidates_are_judged_on_the_half_that_they_were_not_adjusted_on():
    model, _, _ = nets.make("mlp")
    samples = torch.rand(200, 6, dtype=torch.float64)
    adjusted, seen = [], []

    def convert(options, given):
        adjusted.append(given)
        network = to_snntorch(model, samples, timesteps=T)
        network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        return network

    chosen = choose(Options(timesteps=T, threshold="auto"), convert, model, samples)
    more = len(adjusted) - len(CANDIDATES)
    assert 2 <= more <= 3  # the finalists
    for index, (given, judged) in enumerate(zip(adjusted, seen, strict=True)):
        half = 32 if index < len(CANDIDATES) else 100  # a 64th of 200 is less than the least; then all
        assert torch.equal(given, samples[:half])
        assert torch.equal(judged, samples[half : 2 * half])
    assert [one["samples"] for one in chosen.tried] == [32] * (len(CANDIDATES) - more) + [100] * more


def test_samples_that_are_tried_are_in_proportion_to_the_calibration_data():
    model, _, _ = nets.make("mlp")
    samples = torch.rand(1024, 6, dtype=torch.float64)
    counts = []

    def convert(options, given):
        counts.append(len(given))
        return to_snntorch(model, samples[:50], timesteps=T)

    for seen in (1024, 6400, 100_000):
        choose(Options(timesteps=T, threshold="auto"), convert, model, samples, seen)
        steps = 3 * sum(counts)  # adjusted and judged, in forward passes of the DNN over T steps
        assert steps <= max(1.8 * seen, 4000)
        assert {min(counts), max(counts)} == {1024: {32, 256}, 6400: {100, 300}, 100_000: {512}}[seen]
        counts.clear()


def test_what_is_given_is_kept_even_where_it_is_what_an_export_has_by_itself():
    given = {"percent": 99.9, "per_channel": False, "correction": "none"}
    found = candidates(Options(timesteps=T, threshold="auto", **given))
    assert [one["threshold"] for one in found] == ["max", "percentile", "mmse", "local"]
    assert all(one | given == one for one in found)
    found = candidates(Options(timesteps=T, threshold="auto"))
    assert len(found) == len(CANDIDATES) == 10
    assert {one["correction"] for one in found} == {Options(timesteps=T).correction}


def test_what_was_tried_is_told_and_saved(tmp_path):
    model, _, x = nets.make("mlp", torch.float32)
    network = to_norse(model, x, timesteps=T, threshold="auto", auto_tolerance=3)
    found = network.conversion["tried"]
    assert len(found) == len(CANDIDATES)
    chosen = {name: network.conversion[name] for name in CHOSEN}
    (taken,) = (one for one in found if {name: one[name] for name in CHOSEN} == chosen)
    assert taken["kept"] <= 1
    assert taken["sops"] > 0
    assert taken["samples"] == len(x) // 2
    save_network(network, tmp_path / "spiking.pt")
    assert load_network(tmp_path / "spiking.pt", model).conversion["tried"] == found
    assert "tried" not in to_norse(model, x, timesteps=T).conversion


def test_one_sample_is_both_halves():
    model, _, x = nets.make("mlp")
    assert to_snntorch(model, x[:1], timesteps=T, threshold="auto").conversion["threshold"] != "auto"


def test_what_is_kept():
    scores = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]).log1p()  # probabilities 1/3 and 2/3, or a half each
    found = kept(torch.tensor([[0.0, 5.0], [0.2, 0.3], [0.0, 1.0]]), scores)
    torch.testing.assert_close(found, torch.tensor([1, 2 / 3, 1], dtype=torch.float64))
    # Of a variance of 4, none and a quarter are lost.
    assert kept(torch.tensor([[1.0], [4.0]]), torch.tensor([[1.0], [5.0]])).tolist() == [1, 0.75]
    assert kept(torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [2.0]])).tolist() == [0.75, 0.75]  # no variance


def test_auto_without_classes_goes_by_distance():
    model, _, x = nets.make("mlp")
    model[4] = nn.Linear(7, 1).double()
    network = to_snntorch(model, x, timesteps=T, threshold="auto")
    with torch.no_grad():
        naive = to_snntorch(model, x, timesteps=T, threshold="max", correction="none")(x) - model(x)
        assert float((network(x) - model(x)).square().mean()) <= float(naive.square().mean())
