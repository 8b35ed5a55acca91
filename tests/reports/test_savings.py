"""What would save the most: every way that is told can be gone, and gives the numbers that were told."""

from __future__ import annotations

import io
from copy import deepcopy

import pytest
import torch
from rich.console import Console
from torch import nn

from snnreg_plugins import SynapticOperations, exit_margins, load_network, save_network, savings, to_norse, to_snntorch
from snnreg_plugins.callbacks import ExportReport
from snnreg_plugins.export.rebalance import Rebalance
from snnreg_plugins.functional import energy
from snnreg_plugins.reports.report import Report
from snnreg_plugins.reports.savings import KINDS, Savings
from tests.reports.test_run import Few


def problem(outputs=3, samples=300, steps=None):
    """A network of two hidden layers that has learned where points of a square belong."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, outputs)
    )  # fmt: skip
    x = torch.rand(samples, 2)
    y = (outputs * x[:, 0]).long().clamp(max=outputs - 1) if outputs > 1 else (x[:, :1] > x[:, 1:]).float()
    loss = nn.functional.cross_entropy if outputs > 1 else nn.functional.binary_cross_entropy_with_logits
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(40):
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    if steps is not None:
        x = x.unsqueeze(1).repeat(1, steps, 1)
    return model.eval(), x[:200], y[:200], x[200:]


def gone(network, way, x, y):
    """Go a way, and measure by hand what comes of it."""
    network = deepcopy(network)
    way.apply(network)
    with torch.no_grad(), SynapticOperations(network) as operations:
        outputs = torch.cat([network(x[:150]), network(x[150:])])
    right = outputs.argmax(1) == y if outputs.shape[1] > 1 else (outputs > 0).float() == y
    macs = float(operations.total("effective_macs"))
    return right.flatten(), float(operations.compute()), macs, network


EXPORTS = {
    "plain": {},
    "channels": {"per_channel": True, "threshold": "max"},
    "until": {"until": "3"},
    "trained": {"surrogate": "arctan", "train_thresholds": "layer"},
    "few bits": {"weights": "int8"},
    "time": {"time_dim": 1},
    "binary": {},
    "norse": {},
}

QUICK = ("plain",)


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case in QUICK else pytest.mark.slow) for case in EXPORTS]
)
def test_every_way_gives_the_numbers_that_were_told(case):
    model, x, y, more = problem(1 if case == "binary" else 3, steps=4 if case == "time" else None)
    export = to_norse if case == "norse" else to_snntorch
    network = export(model, more, timesteps=4, **EXPORTS[case]).eval()
    task = {"metric": "binary"} if case == "binary" else {}
    found = savings(network, [(x[:120], y[:120]), (x[120:], y[120:])], more, at_most=0.1, **task)
    kinds = {way.kind for way in found.tried}
    missing = {"until": {"exit"}, "few bits": {"thresholds", "both", "layer"}, "binary": {"exit"}}
    missing["time"] = {"timesteps", "both"}
    assert kinds == set(KINDS) - missing.get(case, set())
    plain, spent, _, _ = gone(network, found_nothing(found), x, y)
    assert (found.score, found.sops) == (pytest.approx(float(plain.double().mean())), pytest.approx(spent))
    for way in found.tried:
        right, sops, macs, _ = gone(network, way, x, y)
        assert way.score == pytest.approx(float(right.double().mean())), way.remedy
        assert way.sops == pytest.approx(sops, rel=1e-9), way.remedy
        assert way.saved_sops == pytest.approx(1 - sops / spent, abs=1e-9)
        change = right.double() - plain.double()
        assert way.difference == pytest.approx(float(change.mean()), abs=1e-9)
        variance = float(change.square().mean() - change.mean() ** 2)
        assert way.error == pytest.approx((variance / 200) ** 0.5, abs=1e-9)
        if case not in ("few bits", "time"):
            assert way.energy == pytest.approx(energy(sops, macs), rel=1e-6), way.remedy


def found_nothing(found):
    """The way that changes nothing."""
    return type(found.tried[0])("timesteps", found.timesteps, {}, (), None, 0.0, 0.0, None, 0.0, None, 0.0, None)


def test_what_is_suggested_is_the_most_that_each_kind_saves():
    model, x, y, more = problem()
    network = to_snntorch(model, more, timesteps=8)
    found = savings(network, [(x, y)], more, at_most=0.02)
    assert found.suggestions
    for kind in KINDS:
        some = [way.saved_sops for way in found.tried if way.kind == kind and way.difference >= -0.02 - 1e-9]
        told = [way.saved_sops for way in found.suggestions if way.kind == kind]
        assert told == [max(some)] if max(some, default=0.0) >= 0.01 else not told
    saved = [way.saved_sops for way in found.suggestions]
    assert saved == sorted(saved, reverse=True)
    assert found.suggestions[0].remedy in found.advice()
    assert f"saves {100 * saved[0]:.0f} % of the SOPs" in found.advice()
    assert all(way.difference >= 0 for way in savings(network, [(x, y)], at_most=0.0).suggestions)


def test_the_network_and_the_random_state_are_left_as_they_were():
    model, x, y, more = problem()
    network = to_snntorch(model, more, timesteps=4, coding="poisson").train()
    before, conversion = deepcopy(network.state_dict()), deepcopy(network.conversion)
    random = torch.get_rng_state()
    found = savings(network, [(x, y)], more)
    assert torch.equal(torch.get_rng_state(), random)
    assert (network.timesteps, network.training, network.exit_margins) == (4, True, None)
    assert network.conversion == conversion
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not network._forward_hooks
    assert found.samples == 200


def test_a_way_that_was_gone_is_kept_with_the_network(tmp_path):
    model, x, y, more = problem()
    network = to_snntorch(model, more, timesteps=4)
    found = savings(network, [(x, y)], more, at_most=0.2)
    found.save_json(tmp_path / "savings.json")
    again = Savings.load_json(tmp_path / "savings.json")
    assert again == found
    for way in again.suggestions:
        own = deepcopy(network)
        way.apply(own)
        save_network(own, tmp_path / "spiking.pt")
        loaded = load_network(tmp_path / "spiking.pt", model)
        with torch.no_grad():
            assert torch.equal(loaded(x), own(x))
        assert float((loaded(x).argmax(1) == y).double().mean()) == pytest.approx(way.score)
    raised, own = next(way for way in found.tried if way.kind == "thresholds"), deepcopy(network)
    for times in (1, 2):  # what was done to the thresholds is told, all of it
        raised.apply(own)
        assert own.conversion["threshold_factors"] == pytest.approx({n: f**times for n, f in raised.factors.items()})
    other = to_snntorch(nn.Sequential(nn.Linear(2, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 3))), x, timesteps=4)
    with pytest.raises(ValueError, match=r"neurons named \['1', '3'\], but it has \['1\.0'\]"):
        next(way for way in found.tried if way.kind == "thresholds").apply(other)


def test_results_are_printed_and_drawn(tmp_path):
    model, x, y, more = problem()
    found = savings(to_snntorch(model, more, timesteps=4), [(x, y)], more, at_most=0.1)
    console = Console(width=80, file=io.StringIO())
    found.print(console)
    told = " ".join(console.file.getvalue().split())
    assert "as it is" in told
    assert "fall of at most 10 points" in told
    assert f"Each of {len(found.tried)} ways was run on the same 200 samples" in told
    found.save_plot(tmp_path / "savings.png")
    assert (tmp_path / "savings.png").stat().st_size > 1000


def test_other_scores_than_accuracies():
    model, x, _, more = problem()
    y = model(x).detach()
    found = savings(to_snntorch(model, more, timesteps=4), [(x, y)], more, metric="regression", at_most=0.5)
    assert found.score_name == "mse"
    assert {way.error for way in found.tried} == {None}
    assert "exit" not in {way.kind for way in found.tried}
    assert all(way.difference <= 0.5 * found.score + 1e-9 for way in found.suggestions)
    assert "points" not in found.advice()


def test_a_network_that_is_silent_or_saves_nothing():
    model, x, y, more = problem()
    network = to_snntorch(model, more, timesteps=2)
    Rebalance(network).scale({"1": 1e6, "3": 1e6})
    found = savings(network, [(x, y)])
    assert found.suggestions == ()
    assert found.advice().startswith("None of ")


def test_what_cannot_be_tried_is_refused():
    model, x, y, more = problem()
    network = to_snntorch(model, more, timesteps=4)
    with pytest.raises(TypeError, match="SpikingNetwork"):
        savings(model, [(x, y)])
    with pytest.raises(ValueError, match="`data`.*empty"):
        savings(network, [])
    with pytest.raises(ValueError, match="`at_most`.*-0.1"):
        savings(network, [(x, y)], at_most=-0.1)
    with pytest.raises(ValueError, match="`limit_samples`.*0"):
        savings(network, [(x, y)], limit_samples=0)
    assert savings(network, [(x, y)], limit_samples=30).samples == 30
    network.exit_margins = exit_margins(network, more)
    with pytest.raises(ValueError, match=r"no `exit_margins`.*exit_margins = None"):
        savings(network, [(x, y)])
    network.exit_margins = None
    assert savings(network, [(x, y)]).tried


def test_a_run_keeps_what_would_save_the_most(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "savings.json").write_text("[]")
    exporter = ExportReport(str(tmp_path / "run"), timesteps=4, steps=[4], html=False, savings=True)
    with pytest.raises(ValueError, match=r"savings\.json' is of none"):
        exporter.run(model, Few())
    (tmp_path / "run" / "savings.json").unlink()
    exporter.run(model, Few())
    found = Savings.load_json(tmp_path / "run" / "savings.json")
    assert {"exit", "thresholds", "timesteps"} <= {way.kind for way in found.tried}
    assert (tmp_path / "run" / "savings.png").is_file()
    assert found.sops == pytest.approx(Report.load_json(tmp_path / "run" / "report.json").at_timesteps().sops)
    exporter.run(model, Few())  # over its own files
    exporter.savings = False
    exporter.run(model, Few())
    assert not (tmp_path / "run" / "savings.json").exists()  # of another network
    assert not (tmp_path / "run" / "savings.png").exists()
