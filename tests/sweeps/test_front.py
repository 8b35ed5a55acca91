"""Results as tables and files, and the front of them by hand."""

from __future__ import annotations

import csv
import re
from statistics import fmean, stdev

import pytest

from snnreg_plugins import cli
from snnreg_plugins._pictures import drawn
from snnreg_plugins.sweeps import find_front, read_results, write_front
from snnreg_plugins.sweeps.results import write_csv, write_parquet

HEADER = "penalty,seed,export,timesteps,score,sops,energy,dnn_score,dnn_effective_macs\n"


def row(penalty, strength, seed, score, sops, *, timesteps=4, dnn=0.9, **more):
    return {
        "study": "s", "trial": 0, "state": "complete", "seed": seed, "penalty": penalty, "strength": strength,
        "export": "by layer", "timesteps": timesteps, "score_name": "accuracy", "higher_is_better": True,
        "samples": 100, "score": score, "sops": sops, "energy": 1e-12 * sops, "dnn_score": dnn,
        "dnn_effective_macs": sops / 2, "energy_table": "horowitz_fp32", **more,
    }  # fmt: skip


ROWS = [
    row("none", None, 0, 0.895, 400.0),
    row("none", None, 1, 0.905, 500.0, dnn=0.91),
    row("l1", 0.1, 0, 0.903, 200.0),
    row("l1", 0.1, 1, 0.905, 240.0),
    row("l1", 0.3, 0, 0.897, 100.0),
    row("l1", 0.3, 1, 0.899, 100.0),
    row("l1", 1, 0, 0.80, 300.0),  # beaten by others
    {"study": "s", "trial": 9, "state": "failed", "seed": 0, "penalty": "l2", "error": "ValueError: no"},
]


def test_the_front_is_that_of_means_and_losses_are_to_the_dnn_without_a_penalty():
    found = find_front(ROWS)
    assert (found.reference, found.reference_is_none, found.failed) == (pytest.approx(0.905), True, 1)
    point = next(one for one in found.points if one.setting == "strength 0.1")
    assert (point.seeds, point.label) == (2, "l1")
    assert point.sops.value == fmean([200, 240])
    assert point.sops.spread == stdev([200, 240])
    # 0.904 is within 0.25 points, 0.898 within 1 of 0.905; none, at 0.900, within 0.5.
    least = {loss: found.cheapest("l1", loss) for loss in (0.05, 0.25, 0.5, 1.0)}
    assert {loss: one and one.setting for loss, one in least.items()} == {
        0.05: None, 0.25: "strength 0.1", 0.5: "strength 0.1", 1.0: "strength 0.3",
    }  # fmt: skip
    assert found.cheapest("none", 0.5).sops.value == 450
    assert found.cheapest("none", 0.25) is None
    assert [(one.label, one.setting) for one in found.best()] == [("l1", "strength 0.3"), ("l1", "strength 0.1")]
    assert [one.setting for one in found.best_of("none")] == [""]


def test_what_is_far_below_the_reference_is_in_no_table_and_no_axis():
    found = find_front([*ROWS, row("hoyer", 1, 0, 0.1, 1.0)])
    assert [one.label for one in found.best()] == ["hoyer", "l1", "l1"]
    assert [row.cells[0] for row in found.front_table().rows] == ["l1", "l1"]
    (sops, *_) = found.figures()
    assert min(sops.shown[0]) == 100
    collapsed = find_front([row("none", 1, 0, 0.1, 1.0)])
    assert [row.cells[0] for row in collapsed.front_table().rows] == ["none"]


def test_without_an_unpenalised_network_losses_are_to_the_best_and_lower_scores_can_be_better():
    assert find_front([one for one in ROWS if one["penalty"] == "l1"]).reference_title == "the best DNN"
    errors = [{**one, "score_name": "mse", "higher_is_better": False} for one in ROWS[2:6]]
    assert [one.setting for one in find_front(errors).best()] == ["strength 0.3"]
    # A spiking network that was trained on has the DNN that it began from, whatever that was trained with.
    tuned = [{**one, "trained_as": "snn", "dnn_score": 0.95} for one in ROWS[:6]]
    found = find_front(tuned)
    assert (found.reference, found.reference_title) == (0.95, "the DNN that trainings began from")
    both = find_front([*ROWS, *({**one, "export": "tuned"} for one in tuned)])
    assert (both.reference, both.reference_title) == (pytest.approx(0.905), "the DNN without a penalty")
    alone = find_front([{**one, "dnn_score": None, "dnn_effective_macs": None} for one in ROWS])
    assert alone.reference_title == "the best SNN"
    assert alone.reference == pytest.approx(0.904)
    assert [figure.title for figure in alone.figures()] == ["SNN against SOPs", "SNN against energy"]
    energy = alone.figures()[1]
    assert energy.x_unit in ("pJ / sample", "nJ / sample", "µJ / sample")
    assert "J" not in energy.write_x(energy.front[0][0])


def test_the_legend_of_the_picture_stands_right_below_its_panels(tmp_path):
    pytest.importorskip("matplotlib")
    found = find_front(ROWS)
    height, panels = found.panels()
    with drawn(tmp_path / "front.png", height, len(panels), found.heading(), found.below()) as axes:
        for draw, panel in zip(panels, axes, strict=True):
            draw(panel)
    figure = axes[0].figure
    (legend,) = figure.legends
    lowest = min(panel.get_tightbbox().y0 for panel in axes)
    assert 0 <= lowest - legend.get_window_extent().y1 < 0.3 * figure.dpi


def test_weightings_and_shares_pruned_are_ways_of_their_own_and_later_rows_count():
    rows = [
        row("l1", 1, 0, 0.9, 10.0, weighting=kind, pruning=share)
        for kind in ("uniform", "fan_out")
        for share in (0, 0.5)
    ]
    assert find_front(rows).labels == [
        "l1, uniform",
        "l1, uniform, 50 % pruned",
        "l1, fan-out",
        "l1, fan-out, 50 % pruned",
    ]
    assert find_front([rows[0], {**rows[0], "sops": 30.0}]).points[0].sops.value == 30


def test_csv_and_parquet_hold_the_same_and_are_read_back(tmp_path):
    write_csv(ROWS, tmp_path / "r.csv")
    with (tmp_path / "r.csv").open(newline="") as file:
        assert len(list(csv.reader(file))) == 1 + len(ROWS)
    assert find_front(read_results(tmp_path / "r.csv")) == find_front(ROWS)
    text = (tmp_path / "r.csv").read_text().replace("True", "TRUE").replace("\n", "\r\n")
    (tmp_path / "of_a_spreadsheet.csv").write_text("\ufeff" + text + "," * text.splitlines()[0].count(","))
    assert read_results(tmp_path / "of_a_spreadsheet.csv") == read_results(tmp_path / "r.csv")
    both = read_results([tmp_path / "r.csv", tmp_path / "r.csv"])
    assert find_front(both).points == find_front(ROWS).points
    pytest.importorskip("pyarrow")
    write_parquet(ROWS, tmp_path / "r.parquet")
    assert find_front(read_results(tmp_path / "r.parquet")) == find_front(ROWS)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no column"),
        ("penalty,seed\nl1,0\n", "no column export"),
        (
            HEADER + "l1,0,a,4,nan,1,1,1,1\n",
            "score nan",
        ),
        (HEADER + "l1,0,a\n", "row 2 has fewer"),
        (HEADER, "none; 0 failed"),
        (HEADER.replace(",", ";") + "l1;0;a;4;0,9;1;1;1;1\n", "';', as a spreadsheet"),
        (HEADER.replace("sops", "score") + "l1,0,a,4,0.9,1,1,1,1\n", "no column sops"),
        (HEADER.replace("\n", ",score\n") + "l1,0,a,4,0.9,1,1,1,1,1\n", "'score' twice"),
        (HEADER + ",0,a,4,0.9,1,1,1,1\n", "row 2 has penalty None, which is no name"),
        (HEADER + "l1,0,a,2.5,0.9,1,1,1,1\n", "timesteps 2.5"),
        (HEADER + "l1,0,a,4,89.5,1,1,1,1\n", "score 89.5, which is no share"),
        (HEADER + "l1,0,a,4,0.9,-1,1,1,1\n", "sops -1"),
        (HEADER.replace("\n", ",higher_is_better\n") + "l1,0,a,4,0.9,1,1,1,1,FALSCH\n", "'FALSCH'.*True or False"),
    ],
)
def test_files_that_hold_no_results_are_refused(text, told, tmp_path):
    (tmp_path / "r.csv").write_text(text)
    with pytest.raises(ValueError, match=told):
        find_front(read_results(tmp_path / "r.csv"))


def test_the_command_prints_and_writes_a_page_and_leaves_other_files_alone(tmp_path, monkeypatch, capsys):
    write_csv(ROWS, tmp_path / "results.csv")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["snnreg", "front", "results.csv"])
    cli.main()
    told = " ".join(capsys.readouterr().out.split())
    assert "l1 220 220 100" in told
    assert "1 trial failed" in told
    page = (tmp_path / "front.html").read_text()
    assert (tmp_path / "front.png").stat().st_size > 1000
    assert not re.search(r"(src|href)=|url\((?!#hatch)|<script", page)
    assert page.count("<svg") > 4
    cli.main()  # over its own
    (tmp_path / "mine.html").write_text("mine")
    for output, reason in (("mine.html", "neither"), ("page.txt", "front.html")):
        with pytest.raises(ValueError, match=reason):
            write_front(find_front(ROWS), tmp_path / output)
    assert (tmp_path / "mine.html").read_text() == "mine"


def priced(label, sops, zero, *, score=0.9, model="lemaire", sparse=None, **more):
    """A row of a network of whose SOPs some are at weights of zero, priced by a model at 2 and at 1 a SOP."""
    of_zero = {"nonzero_sops": sops - zero, "nonzero_energy": 1e-12 * (sops - zero), "nonzero_dnn_effective_macs": 3.0}
    costs = {
        f"cost_{model}": 2.0 * sops, f"dnn_cost_{model}": sparse, f"dnn_dense_cost_{model}": 8.0 * sops,
        f"nonzero_cost_{model}": sops - zero, f"nonzero_dnn_cost_{model}": sparse,
        f"nonzero_dnn_dense_cost_{model}": 8.0 * (sops - zero),
    }  # fmt: skip
    return row(label, None, 0, score, sops, **of_zero, **costs, **more)


def test_pruned_networks_are_compared_by_what_is_spent_at_weights_that_are_not_zero(tmp_path):
    rows = [priced("none", 400.0, 0.0, pruning=0), priced("none", 390.0, 300.0, pruning=0.5)]
    write_csv(rows, tmp_path / "r.csv")
    found = find_front(read_results(tmp_path / "r.csv"))
    assert not found.counts_zero_weights
    assert [point.label for point in found.points] == ["none", "none, 50 % pruned"]
    assert [point.sops.value for point in found.points] == [400, 90]
    assert [point.energy.value for point in found.points] == [4e-10, 9e-11]
    assert found.points[1].dnn_effective_macs.value == 3
    assert [point.cost("lemaire").snn.value for point in found.points] == [400, 90]
    assert "no synapses" in " ".join(found.notes())
    counted = find_front(rows, count_zero_weights=True)
    assert [point.sops.value for point in counted.points] == [400, 390]
    assert "are synapses" in " ".join(counted.notes())
    # A recipe may prune by a callback of its own.
    own = [{name: value for name, value in one.items() if name != "pruning"} for one in rows]
    assert [point.sops.value for point in find_front(own[1:]).points] == [90]
    assert find_front(own[:1]).counts_zero_weights
    # Rows of earlier versions do not tell.
    old = [row("none", None, 0, 0.9, 400.0, pruning=share) for share in (0, 0.5)]
    assert find_front([*rows, *old]).counts_zero_weights
    with pytest.raises(ValueError, match="`count_zero_weights` not to be False.*trial 0 of 's'"):
        find_front([*rows, *old], count_zero_weights=False)
    (tmp_path / "r.csv").write_text((tmp_path / "r.csv").read_text().replace("390.0", "inf"))
    with pytest.raises(ValueError, match="which is no number"):
        read_results(tmp_path / "r.csv")


def test_what_costs_the_least_is_told_for_each_model_beside_the_unpenalised_network_and_the_dnn():
    rows = [
        priced("none", 400.0, 0.0, sparse=1600.0) | {"cost_eflops": 50.0, "dnn_cost_eflops": 100.0},
        priced("l1", 100.0, 0.0, sparse=400.0, score=0.896) | {"cost_eflops": 60.0, "dnn_cost_eflops": 30.0},
        priced("l2", 1.0, 0.0, score=0.5),  # too far
    ]
    table = find_front(rows).by_model()
    assert [column.title for column in table.columns[:5]] == ["Model", "SNN", "/ none", "/ sparse DNN", "/ dense DNN"]
    written = table.written()
    assert written[0][:6] == ("lemaire", "200 J", "0.25", "0.50", "0.25", "l1")
    assert written[1][:6] == ("eflops, in EFLOPs", "50.0", "1.00", "0.50", "", "none")
    assert len(find_front(rows).by_model((0.25, 0.5)).rows) == 4
    assert not find_front(ROWS).by_model().rows
