"""Runs beside each other: the numbers of their reports, and no number beside one that it cannot be compared with."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from snnreg_plugins import compare
from snnreg_plugins.cli.compare import main
from snnreg_plugins.reports import beside
from snnreg_plugins.reports.comparison import Comparison
from snnreg_plugins.reports.differences import shortened
from snnreg_plugins.reports.figures import Curve
from snnreg_plugins.reports.parts import DNNReport, LayerReport, StepReport
from snnreg_plugins.reports.report import Report
from tests.reports.test_page import HOSTILE, Reader

PRICES = {"table": "horowitz_fp32", "mac": 4.6, "ac": 0.9, "source": "a table"}


def step(timesteps, score, sops, macs=100.0, accuracy=True):
    energy = 1e-12 * (0.9 * sops + 4.6 * macs)
    return StepReport(timesteps, score if accuracy else None, 0.1, 40.0, sops, macs, energy, score)


def made(scale=1.0, score=0.9, timesteps=4, steps=(2, 4), **changed):
    """A report of a network whose SOPs are 1,000 · T · scale, half of them in each of two layers."""
    sops = 1000 * timesteps * scale
    layers = (
        LayerReport("conv", "Conv2d", sops=sops / 2, effective_macs=100.0, energy=1e-12 * (0.45 * sops + 460)),
        LayerReport("relu", "Leaky", 1.0, 1.0, spike_rate=0.1 * scale, updates=40.0),
        LayerReport("fc", "Linear", sops=sops / 2, effective_macs=0.0, energy=1e-12 * 0.45 * sops),
    )
    dnn = DNNReport(0.95, 0.0, 300.0, 500.0, 1e-12 * 300 * 4.6, 1e-12 * 500 * 4.6)
    steps = tuple(step(T, score, 1000 * T * scale) for T in steps)
    given = {"samples": 400, "dnn": dnn, "steps": steps, "timesteps": timesteps, "layers": layers, **PRICES, **changed}
    return Report(**given)


def folder(path, report, settings=None):
    report.save_json(path / "report.json")
    if settings is not None:
        (path / "report.yaml").write_text(yaml.safe_dump(settings))
    return path


def cells(table, row, *titles):
    found = table.select(titles, "")
    return next(cells[1:] for cells in found.written() if cells[0] == row)


def test_runs_stand_beside_each_other_at_each_t():
    found = compare(made(), made(0.25, 0.88, steps=(1, 2, 4)), names=["net_none", "net_l1"])
    assert found.steps() == (2, 4)
    table = found.over_steps()
    assert [row[0] for row in table.written()] == [
        "DNN, none", "DNN, l1", "T = 2, none", "T = 2, l1", "T = 4, none", "T = 4, l1"
    ]  # fmt: skip
    titles = "Accuracy", "Points", "SOPs", "× SOPs", "MACs", "Energy", "× energy"
    assert cells(table, "T = 4, none", *titles) == ("90.00 %", "", "4.00k", "1.00", "100", "4.06 nJ", "1.00")
    assert cells(table, "T = 4, l1", *titles) == ("88.00 %", "−2.00", "1.00k", "0.25", "100", "1.36 nJ", "0.33")
    # √(0.9 · 0.1 / 400 + 0.88 · 0.12 / 400)
    assert found.verdict() == (
        "l1 at T = 4 beside none at T = 4: accuracy 88.00 % (−2.00 ± 2.21 points), 1.00k SOPs for 4.00k (0.25 of "
        "that), 1.36 nJ for 4.06 nJ (0.33 of that) by arithmetic.",
    )
    layers = found.by_layer()
    assert cells(layers, "fc, l1", "SOPs", "× SOPs", "× energy") == ("500", "0.25", "0.25")
    assert cells(layers, "conv, l1", "SOPs", "× SOPs", "× energy") == ("500", "0.25", "0.40")
    assert cells(layers, "relu, l1", "Spike rate", "SOPs", "× SOPs") == ("0.025", "", "")
    assert found.apart() == ()


def test_the_axis_of_energies_says_its_unit_once():
    figures = pytest.importorskip("matplotlib.figure")
    axes = figures.Figure().subplots()
    compare(made(), made(0.25)).panels()[1][-1](axes)
    assert axes.get_xlabel() == "nJ / sample; numbers are T"
    assert axes.xaxis.get_major_formatter()(2.5e-9, 0) == "2.5"


def test_score_over_cost_has_each_run_at_each_of_its_t():
    more = made(0.25, 0.88, steps=(2, 4, 8))
    more = dataclasses.replace(more, steps=(step(1, 0.1, 0.0, macs=0.0), *more.steps), models=(), chosen=())
    found = compare(made(), more, names=["net_none", "net_l1"])
    sops, energy = beside.figures(found)
    assert sops.curves == (
        Curve("none", (2000.0, 4000.0), (0.9, 0.9), (2, 4), 0, 4),
        # What is 0 is on no logarithmic axis; a T that the other has not is on it.
        Curve("l1", (500.0, 1000.0, 2000.0), (0.88, 0.88, 0.88), (2, 4, 8), 1, 4),
    )
    assert (sops.points, sops.unit, sops.title) == ((), "SOPs / sample", "Accuracy over SOPs")
    assert energy.curves[1].spent == pytest.approx([1e-12 * (0.9 * n + 460) for n in (500, 1000, 2000)])
    assert [(point.score, point.spent, point.role, point.colour) for point in energy.points] == [
        (0.95, pytest.approx(1.38e-9), "dnn", 0), (0.95, pytest.approx(1.38e-9), "dnn", 1)
    ]  # fmt: skip
    assert (energy.unit, energy.write_spent(2.5e-9)) == ("nJ / sample", "2.5")
    assert "none 90.00 % at 4.06 nJ and T = 4; l1 88.00 % at 1.36 nJ and T = 4" in energy.said
    assert sops.floor == pytest.approx(0.78)
    assert sops.below == "Below what is shown: l1 at T = 1 (10 %)"


def test_each_run_is_seen_where_it_was_exported():
    found = compare(made(), made(score=0.5), names=["a", "b"])
    assert [one.floor for one in beside.figures(found)] == [None, None]  # nothing is below 0.47
    low = dataclasses.replace(made(score=0.5), steps=(step(2, 0.1, 2000), step(4, 0.5, 4000)))
    floor = beside.score_over_sops(compare(made(), low)).floor
    assert 0.1 < floor < 0.5
    loss = made(score=0.5, score_name="mse", higher_is_better=False)
    assert beside.score_over_sops(compare(loss, dataclasses.replace(loss))).floor is None


def test_a_picture_of_runs_without_spikes_is_drawn(tmp_path):
    silent = dataclasses.replace(made(), steps=(step(2, 0.1, 0.0, 0.0), step(4, 0.9, 0.0, 0.0)), dnn=None)
    found = compare(silent, dataclasses.replace(silent))
    assert beside.score_over_sops(found).curves == ()
    found.save_plot(tmp_path / "found.png")
    found.save_page(tmp_path / "found.html")


def test_energies_by_two_models_never_stand_in_one_column():
    other = made(0.5, table="horowitz_int8", mac=0.23, ac=0.03, source="another one")
    found = compare(made(), other, names=["a", "b"])
    for table in (found.over_steps(), found.by_layer()):
        assert {cell for row in table.select(("Energy", "× energy"), "").written() for cell in row[1:]} == {""}
    assert "J" not in found.verdict()[0]
    assert len(found.panels()[1]) == 1
    said = " ".join(found.apart())
    assert "a by 'horowitz_fp32' (a table), b by 'horowitz_int8' (another one)" in said
    assert "ExportReport(table=...)" in said
    assert cells(found.over_steps(), "T = 4, b", "× SOPs") == ("0.50",)


def test_a_table_of_ones_own_is_told_by_its_prices():
    mine, yours = made(table="custom"), made(table="custom", ac=2.0)
    assert compare(mine, yours).model() is None
    assert compare(mine, made(0.5, table="custom")).model().name == "custom"


def test_runs_are_compared_by_the_first_model_that_all_have():
    mine, yours = made(), made(0.5, table="horowitz_int8", mac=0.23, ac=0.03, source="another one")
    units = dataclasses.replace(mine.models[0], name="eflops", title="effective", unit="EFLOPs", source="a paper")
    mine = dataclasses.replace(mine, models=(*mine.models, units), chosen=("horowitz_fp32", "eflops"))
    yours = dataclasses.replace(yours, models=(*yours.models, units))
    found = compare(mine, yours, names=["a", "b"])
    assert found.model().name == "eflops"
    assert "EFLOPs for" in found.verdict()[0]
    assert cells(found.over_steps(), "T = 4, a", "Energy")[0].endswith(" EFLOPs")
    assert any("Energy stands for EFLOPs: a paper" in note for note in found.notes())


def test_what_is_not_quite_comparable_is_said():
    first = made()
    layers = (first.layers[0], first.layers[1], LayerReport("head", "Linear", sops=3.0))
    dnn = dataclasses.replace(first.dnn, dense_macs=700.0)
    said = compare(first, made(samples=200, dnn=dnn, layers=layers), names=["a", "b"]).apart()
    assert said == (
        "Measured on other numbers of samples (a 400, b 200): differences are partly those of the data.",
        "Their DNNs have other sizes: a 500 dense MACs, b 700 dense MACs.",
        "Layers of a alone: fc.",
        "Layers of b alone: head.",
    )


def test_layers_at_two_t_are_not_divided():
    found = compare(made(), made(timesteps=2))
    assert "T = 4 and T = 2" in found.by_layer().caption
    assert {row[1] for row in found.by_layer().select(("× SOPs",), "").written()} == {""}
    assert found.verdict()[0].startswith("run 2 at T = 2 beside run 1 at T = 4: ")


def test_the_module_around_a_network_is_no_part_of_its_layers():
    inside = tuple(dataclasses.replace(layer, name=f"network.{layer.name}") for layer in made().layers)
    found = compare(made(), made(0.5, layers=inside, timesteps=4), names=["a", "b"])
    assert found.apart() == ()
    assert [row[0] for row in found.by_layer().written()][:2] == ["conv, a", "conv, b"]


def values(report, scores, name, higher_is_better):
    steps = tuple(
        step(one.timesteps, score, one.sops, accuracy=False) for one, score in zip(report.steps, scores, strict=True)
    )
    dnn = dataclasses.replace(report.dnn, accuracy=None, score=0.1)
    given = {"score_name": name, "higher_is_better": higher_is_better, "dnn": dnn, "steps": steps}
    return dataclasses.replace(report, **given)


def test_other_scores_than_accuracies():
    found = compare(values(made(), (0.3, 0.2), "mse", False), values(made(0.5), (0.4, 0.25), "mse", False))
    assert "MSE 0.25 (+0.05)" in found.verdict()[0]
    assert cells(found.over_steps(), "T = 4, run 2", "MSE", "Difference") == ("0.25", "+0.05")
    assert not any("±" in note for note in found.notes())


def test_what_cannot_be_compared_is_refused(tmp_path):
    first = folder(tmp_path / "a", made())
    with pytest.raises(ValueError, match="2 to 6 runs to compare, and there are 1"):
        compare(first)
    with pytest.raises(ValueError, match="there are 7"):
        compare(*[made()] * 7)
    with pytest.raises(ValueError, match=r"no number of time steps in common.*'a' has \[2, 4\].*'b' has \[8\]"):
        compare(made(), made(steps=(8,), timesteps=8), names=["a", "b"])
    with pytest.raises(ValueError, match="other scores.*'run 1' has accuracy and 'run 2' has mse"):
        compare(made(), values(made(), (0.3, 0.2), "mse", False))
    with pytest.raises(ValueError, match=r"got '.*/a' twice"):
        compare(first, first / ".." / "a")
    with pytest.raises(FileNotFoundError, match=r"no report.json in '.*/c'"):
        compare(first, tmp_path / "c")
    with pytest.raises(TypeError, match="`runs`.*3"):
        compare(first, 3)
    for names in ("ab", ["a"]):
        with pytest.raises(ValueError, match="`names`.*a name for each of 2 runs"):
            compare(made(), made(), names=names)
    with pytest.raises(ValueError, match="a name of its own"):
        compare(made(), made(), names=["a", "a"])
    (first / "report.json").write_text("{}")
    with pytest.raises(ValueError, match=r"report\.json' to hold a Report"):
        compare(first, tmp_path / "a")


def recipe(name, strength=None, epochs=3):
    callbacks = [{"class_path": "ExportReport", "init_args": {"output_dir": f"runs/{name}"}}]
    if strength is not None:
        given = {"penalty": "l1", "strength": strength}
        callbacks.insert(0, {"class_path": "my.ActivityRegularization", "init_args": given})
    return {"trainer": {"max_epochs": epochs, "callbacks": callbacks}, "data": {"class_path": "Digits"}}


def test_settings_that_differ_are_told_and_no_others(tmp_path):
    none = folder(tmp_path / "net_none", made(), recipe("net_none"))
    l1 = folder(tmp_path / "net_l1", made(0.5), recipe("net_l1", 2.0, epochs=4))
    found = compare(none, l1 / "report.json")
    assert [run.name for run in found.runs] == ["net_none", "net_l1"]
    assert dict(found.differing()) == {
        "trainer.max_epochs": ("3", "4"),
        "trainer.callbacks.ActivityRegularization": (None, "my.ActivityRegularization"),
        "trainer.callbacks.ActivityRegularization.penalty": (None, "l1"),
        "trainer.callbacks.ActivityRegularization.strength": (None, "2"),
    }
    console = Console(width=100, file=io.StringIO())
    found.print(console)
    told = " ".join(console.file.getvalue().split())
    assert "trainer.max_epochs: none 3, l1 4" in told
    assert "trainer.callbacks.ActivityRegularization (penalty l1, strength 2): l1 alone" in told
    assert found.apart() == ()


def test_other_data_are_said(tmp_path):
    first, second = recipe("a"), recipe("b")
    second["data"]["init_args"] = {"size": 16}
    found = compare(folder(tmp_path / "a", made(), first), folder(tmp_path / "b", made(), second))
    assert found.apart() == ("Their data are set differently (data.size): scores may be of other test data.",)


def test_folders_of_one_name_are_told_apart_by_those_above(tmp_path):
    found = compare(folder(tmp_path / "a" / "run", made()), folder(tmp_path / "b" / "run", made()))
    assert [run.name for run in found.runs] == ["a/run", "b/run"]
    assert found.labels() == ("a", "b")


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["digits_lenet_none", "digits_lenet_l1"], ("none", "l1")),
        (["none-16", "l1-16"], ("none", "l1")),
        (["lenet", "lenet_l1"], ("lenet", "lenet_l1")),
        (["aa", "ab"], ("aa", "ab")),
        (["run 1", "run 2"], ("run 1", "run 2")),
        (["0000/seed_0/by_channel", "0045/seed_0/by_channel"], ("0000", "0045")),
        (["a/b_1", "a/b_2"], ("b_1", "b_2")),
        (["a/", "a//"], ("a/", "a//")),
        (["_", "__"], ("_", "__")),
        (["a_", "a"], ("a_", "a")),
    ],
)
def test_names_are_cut_to_what_tells_them_apart(names, short):
    assert shortened(names) == short


def test_results_are_kept_drawn_and_written(tmp_path):
    found = compare(made(), made(0.5), made(0.1), names=["a", HOSTILE, "[/b] $x$"])
    found.save_json(tmp_path / "found.json")
    assert Comparison.load_json(tmp_path / "found.json") == found
    found.save_plot(tmp_path / "found.png")
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")
    found.save_page(tmp_path / "found.html")
    found.save_page(tmp_path / "found.html")  # once more, over the first
    written = (tmp_path / "found.html").read_text(encoding="utf-8")
    assert "T = 4, [/<wbr>b] $x$" in written  # where a long name may go on in another line
    page = Reader(written)
    assert not {"script", "img", "link"} & {name for name, _ in page.elements}
    assert len(page.charts["Chart of Accuracy"]) > 20
    assert page.text.count("Numbers beside points are T.") == 1
    assert page.tables[0][-1][:2] == ["T = 4, [/b] $x$", "90.00 %"]
    (tmp_path / "mine.html").write_text("<html>mine</html>")
    for path, message in ((tmp_path / "mine.html", "neither"), (tmp_path / "found.txt", "name a page")):
        with pytest.raises(ValueError, match=message):
            found.save_page(path)
    assert (tmp_path / "mine.html").read_text() == "<html>mine</html>"


def test_runs_are_compared_without_what_trained_them():
    heavy = ("lightning", "torchmetrics", "snntorch", "norse", "matplotlib")
    code = f"import sys, snnreg_plugins.reports.compare; print([name for name in {heavy} if name in sys.modules])"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_writes_a_page_and_a_picture_beside_it(tmp_path, capsys, monkeypatch):
    for name in ("none", "l1"):
        folder(tmp_path / name, made(1.0 if name == "none" else 0.5))
    main([str(tmp_path / "none"), str(tmp_path / "l1")])
    said = " ".join(capsys.readouterr().out.split())
    assert "l1 at T = 4 beside none at T = 4: accuracy 90.00 %" in said
    assert sorted(path.name for path in (tmp_path / "l1").iterdir()) == ["compare.html", "compare.png", "report.json"]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    main([str(tmp_path / "none"), str(tmp_path / "l1"), "--output", str(tmp_path / "page.html")])
    assert "No picture: " in capsys.readouterr().out
    for words, message in (
        (["none", "l1", f"--output={tmp_path / 'l1' / 'report.html'}x"], "report.json in 'none'"),
        (
            [str(tmp_path / "none"), str(tmp_path / "l1"), f"--output={tmp_path / 'l1' / 'report.json'}"],
            "to name a page",
        ),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            main(words)
