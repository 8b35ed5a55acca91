"""What "auto" takes: the cheapest of the best, on samples that candidates were not adjusted on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from operator import attrgetter

import pytest
import torch
from torch import nn

from snnreg_plugins import load_network, save_network, to_norse, to_snntorch
from snnreg_plugins.export.calibrate import Statistics
from snnreg_plugins.export.choose import (
    CANDIDATES,
    Halves,
    Tried,
    candidates,
    cheapest,
    choose,
    finalists,
    held_out_of,
    is_decided,
    kept,
)
from snnreg_plugins.export.counted import Counted
from snnreg_plugins.export.options import CHOSEN, Options
from snnreg_plugins.export.simulate import Simulation
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
    assert cheapest([best, nested], 2.0) is best
    assert cheapest([best, other], 2.0) is other
    assert cheapest([best, other], 1.9) is best  # however few samples there are, no more than twice the tolerance


def test_finalists_are_the_best_and_the_cheapest_that_may_be_as_good():
    found = [tried(*each) for each in [(50, 90), (10, 50), (40, 89), (30, 88), (60, 90), (35, 87), (20, 88)]]
    assert finalists(found, 0.5) == [found[6], found[2], found[0]]  # 35 and 30 are no better than 20
    assert finalists(found[:2], 0.5) == [found[0]]


@torch.no_grad()
def test_candidates_are_judged_on_samples_that_they_were_not_adjusted_on(monkeypatch):
    model, _, _ = nets.make("mlp")
    samples = torch.rand(1024, 6, dtype=torch.float64)
    adjusted, judged, scored = [], [], []
    original = to_snntorch(model, samples, timesteps=T)

    def convert(options, given):
        adjusted.append(given)
        return original

    def judge(network, parts, held):
        judged.append(torch.cat(tuple(parts)))
        return Counted(torch.ones(len(judged[-1]), 3), 1.0, [])

    monkeypatch.setattr("snnreg_plugins.export.choose.run_and_count", judge)
    monkeypatch.setattr("snnreg_plugins.export.choose.is_decided", lambda *_: False)
    model.register_forward_pre_hook(lambda module, args: scored.append(len(args[0])))
    for seen, enough, few, last in [(1024, 256, 32, 256), (6400, 256, 32, 800), (100_000, 1024, 128, 896)]:
        choose(Options(timesteps=T, threshold="auto"), convert, model, samples, enough, seen)
        assert len(adjusted) == len(CANDIDATES)  # the finalists are not adjusted again
        assert all(torch.equal(given, samples[:few]) for given in adjusted)
        ends = [*range(64, last, 128), last]  # few tell what is hopeless
        begins = [0] * len(CANDIDATES) + [begin for begin in ends[:-1] for _ in range(3)]  # each sample once
        assert [len(each) for each in judged] == [min(128 if begin else 64, last - begin) for begin in begins]
        assert all(
            torch.equal(each, samples[few + begin :][: len(each)]) for begin, each in zip(begins, judged, strict=True)
        )
        assert sum(scored) == last  # once for all
        del adjusted[:], judged[:], scored[:]


def test_the_finalists_are_judged_by_more_and_what_spikes_less_than_the_hopeless_is_not_tried(monkeypatch):
    model, _, _ = nets.make("mlp")
    samples = torch.rand(600, 6, dtype=torch.float64)
    right = {("local", True): 1.0, ("percentile", True): 0.99, ("max", True): 0.98, ("mmse", False): 0.9}

    def judged(self, options, network, first=0, last=None):
        share = right.get((options.threshold, options.per_channel), 0.1)
        count = sum(map(len, self.parts[first:last]))
        return Tried(options, (torch.arange(count) < share * count).double(), 100 * share - options.percent / 10)

    monkeypatch.setattr(Halves, "judge", judged)
    made = []
    options = Options(timesteps=T, threshold="auto", auto_tolerance=1.5)
    chosen = choose(options, lambda options, given: made.append(options) or model, model, samples, 256, 2048)
    assert [(one.threshold, one.percent, one.per_channel) for one in made] == [
        *(("local", 99.9, True), ("percentile", 99.0, True), ("percentile", 99.9, True), ("max", 99.9, True)),
        *(("mmse", 99.9, False), ("percentile", 99.0, False)),  # whose higher percentiles are as hopeless
    ]
    assert chosen.options == replace(options, threshold="percentile", percent=99.9, per_channel=True, correction=None)
    samples_of = [(one["threshold"], one["percent"], one["samples"]) for one in chosen.tried]
    assert samples_of == [
        *(("percentile", 99.0, 64), ("mmse", 99.9, 64), ("percentile", 99.0, 64)),
        *(("max", 99.9, 512), ("percentile", 99.9, 512), ("local", 99.9, 512)),
    ]


def test_no_more_samples_are_run_than_decide():
    best, same, behind = tried(40, 90), tried(10, 90), tried(5, 80)
    assert is_decided([best, same], 0.5)
    assert not is_decided([best, same, behind], 0.5)  # it is the cheapest, and not surely as good
    assert is_decided([best, same, behind], 16.1)  # 10 and two standard errors of 3
    assert not is_decided([best, same, behind], 15.9)
    assert is_decided([tried(1, 90), behind], 0.0)


def test_finalists_are_judged_by_a_share_of_all_that_calibrate():
    assert [held_out_of(seen) for seen in (10, 400, 600, 2000, 3000, 10_000)] == [64, 100, 150, 500, 512, 1250]


def test_what_the_dnn_gives_is_computed_once_for_all_that_is_tried(monkeypatch):
    model, _, _ = nets.make("mlp", torch.float32)
    x = torch.rand(100, 6)
    given, compute = [], Simulation._compute

    def counted(self, node, pick):
        given.extend([node.name] if isinstance(pick, attrgetter) else [])
        return compute(self, node, pick)

    monkeypatch.setattr(Simulation, "_compute", counted)
    network = to_snntorch(model, x, timesteps=T, threshold="auto")
    assert len(network.conversion["tried"]) > 2
    assert set(Counter(given).values()) == {2}  # on the few samples, and on all of them for what is taken


def test_what_samples_tell_is_added_up():
    added = tried(10, 80).and_by(tried(40, 10, samples=50))
    assert (added.mean, added.sops, len(added.kept)) == (pytest.approx(0.6), 20.0, 150)


@torch.no_grad()
def test_parts_together_are_judged_as_the_whole():
    model, _, _ = nets.make("mlp")
    samples, options = torch.rand(600, 6, dtype=torch.float64), Options(timesteps=T)
    network = to_snntorch(model, samples, timesteps=T, threshold="max")
    halves = Halves(options, lambda *_: network, model, samples, adjusted=32)
    whole, first = halves.judge(options, network), halves.judge(options, network, 0, 1)
    for part in range(1, len(halves.parts)):
        first = first.and_by(halves.judge(options, network, part, part + 1))
    assert whole.mean < 1
    assert torch.equal(first.kept, whole.kept)
    assert first.sops == pytest.approx(whole.sops)


def test_thresholds_are_found_once_for_all_that_is_tried(monkeypatch):
    model, _, x = nets.make("mlp", torch.float32)
    found, levels = [], Statistics.levels
    monkeypatch.setattr(Statistics, "levels", lambda self, *args: found.append(args) or levels(self, *args))
    network = to_snntorch(model, x, timesteps=T, threshold="auto")
    assert len(found) == len(network.conversion["tried"])  # and not again for what is taken


def test_what_is_given_is_kept_even_where_it_is_what_an_export_has_by_itself():
    given = {"percent": 99.9, "per_channel": False, "correction": "none"}
    found = candidates(Options(timesteps=T, threshold="auto", **given))
    assert {one["threshold"] for one in found} == {"max", "percentile", "mmse", "local"}
    assert len(found) == 4
    assert all(one | given == one for one in found)
    found = candidates(Options(timesteps=T, threshold="auto"))
    assert len(found) == len(CANDIDATES) == 8
    assert {one["correction"] for one in found} == {Options(timesteps=T).correction}


def test_what_was_tried_is_told_and_saved(tmp_path):
    model, _, x = nets.make("mlp", torch.float32)
    network = to_norse(model, x, timesteps=T, threshold="auto", auto_tolerance=3)
    found = network.conversion["tried"]
    assert 2 <= len(found) <= len(CANDIDATES)
    chosen = {name: network.conversion[name] for name in CHOSEN}
    (taken,) = (one for one in found if {name: one[name] for name in CHOSEN} == chosen)
    assert taken["kept"] <= 1
    assert taken["sops"] > 0
    assert taken["samples"] == len(x) - min(32, len(x) // 2)
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


def test_what_an_export_has_by_itself():
    model, _, x = nets.make("mlp", torch.float32)
    network = to_snntorch(model, x, timesteps=T)
    expected = {"threshold": "percentile", "percent": 99.9, "per_channel": False, "correction": "channel_potential"}
    assert {name: network.conversion[name] for name in CHOSEN} == expected
