"""A run's folder has one owner: what is written is read back, and nothing of others is lost."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from snnreg_plugins import cli, diagnose, load_network, record, report, to_norse, to_snntorch, write_page
from snnreg_plugins.callbacks import ExportReport
from snnreg_plugins.data import Digits
from snnreg_plugins.modules import Classifier, LeNet
from snnreg_plugins.reports import exported
from snnreg_plugins.reports.diagnosis import Diagnosis
from snnreg_plugins.reports.page import page
from snnreg_plugins.reports.raster import Raster
from snnreg_plugins.reports.report import Report
from snnreg_plugins.reports.run import Run
from tests.callbacks.reference import free_port, leave, two_processes
from tests.reports.test_page import read


class Few:
    """A data module of few samples with two features."""

    def __init__(self):
        generator = torch.Generator().manual_seed(1)
        x = torch.rand(24, 4, generator=generator)
        self.batches = [(x[:12], (9 * x[:12, 0]).long() % 3), (x[12:], (9 * x[12:, 0]).long() % 3)]

    def prepare_data(self):
        pass

    def setup(self, stage):
        pass

    def train_dataloader(self):
        return self.batches

    test_dataloader = train_dataloader


def small(activation=None):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), activation or nn.ReLU(), nn.Linear(6, 3)).eval()


@pytest.fixture
def without_pictures(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def export(folder, **options):
    exporter = ExportReport(str(folder), **{"timesteps": 2, "steps": [1, 2], "calibration_batches": 2} | options)
    return exporter.run(small(), Few())


# What is written is read back.


@pytest.mark.usefixtures("without_pictures")
def test_the_page_made_from_memory_is_that_made_from_the_folder(tmp_path):
    recipe = tmp_path / "config.yaml"
    recipe.write_text("seed_everything: 3\nmodel: {class_path: LeNet}\n")
    folder = tmp_path / "run"
    exporter = ExportReport(str(folder), timesteps=2, steps=[1, 2], diagnose=True)
    result = exporter.run(small(), Few(), recipe=recipe)
    written = (folder / "report.html").read_bytes()
    assert b"seed_everything" in written
    assert b"What each layer loses" in written
    assert b"Spikes" in written
    write_page(folder)
    assert (folder / "report.html").read_bytes() == written
    assert Report.load_json(folder / "report.json") == result


@pytest.fixture(scope="module")
def results():
    dnn, data = small(), Few()
    network = to_snntorch(dnn, data.batches, timesteps=2)
    x, y = data.batches[0]
    return report(dnn, network, data.batches, steps=(1, 2)), diagnose(dnn, network, x), record(network, x, y)


@pytest.mark.parametrize("kind", [Report, Diagnosis, Raster])
def test_every_result_is_saved_loaded_printed_and_drawn(kind, results, tmp_path, capsys):
    result = next(one for one in results if isinstance(one, kind))
    result.save_json(tmp_path / "result.json")
    assert kind.load_json(tmp_path / "result.json") == result
    assert json.loads((tmp_path / "result.json").read_text()) == result.to_dict()
    result.print()
    assert result.layers[0].name in capsys.readouterr().out
    result.save_plot(tmp_path / "result.png")
    assert (tmp_path / "result.png").stat().st_size > 10_000
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(ValueError, match=f"to hold a {kind.__name__}, but"):
        kind.load_json(tmp_path / "result.json")


@pytest.mark.parametrize("name", ["[/foo]a$b$c", "two\nlines\u202e"])
def test_names_are_read_as_no_markup(name, results, tmp_path, capsys):
    for result in results:
        layers = tuple(dataclasses.replace(layer, name=name) for layer in result.layers)
        changed = dataclasses.replace(result, layers=layers)
        if isinstance(result, Diagnosis):
            changed = dataclasses.replace(changed, worst=name, advice=f"Layer {name}")
        changed.print()
        said = capsys.readouterr().out
        assert name.replace("\n", " ").replace("\u202e", "\ufffd") in said
        changed.save_plot(tmp_path / "result.png")


def test_a_raster_draws_and_counts_its_spikes(results):
    from matplotlib.figure import Figure

    raster = results[2]
    draw = raster.panels()[1]
    axes = Figure().subplots(1, len(draw))
    for sample, panel in enumerate(axes):
        draw[sample](panel)
        trains = [train for layer in raster.layers for train in layer.spikes[sample]]
        drawn = [list(marks.get_positions()) for marks in panel.collections]
        assert drawn == [[step for step, spike in enumerate(train, 1) if spike == "1"] for train in trains]
    counts = raster.counts().written()
    assert [row[2] for row in counts] == [f"{layer.active:,}" for layer in raster.layers]
    assert [row[3:] for row in counts] == [
        tuple(str(sum(train.count("1") for train in trains)) for trains in layer.spikes) for layer in raster.layers
    ]
    assert [row[1:] for row in raster.decided([1, 2]).written()] == [
        (str(label), *map(str, decisions)) for label, decisions in zip(raster.labels, raster.decisions, strict=True)
    ]


# All options with all reporters.

CODINGS = ("constant", "neurons", "poisson", "latency")
PAIRS = [*itertools.product(("percentile", "max", "mmse", "local", "spike_norm", "learned"),
                            ("none", "potential", "bias"))]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("coding", CODINGS)
def test_every_option_can_be_reported_on(coding):
    data = Few()
    x, y = data.batches[0]
    for index, (threshold, correction) in enumerate(PAIRS):
        dnn = small(nn.Hardtanh(0.0, 1.0) if threshold == "learned" else None)
        target = (to_snntorch, to_norse)[(index + CODINGS.index(coding)) % 2]
        network = target(dnn, x, timesteps=2, threshold=threshold, correction=correction, coding=coding)
        result = report(dnn, network, data.batches, steps=(1, 2))
        spiking = [layer for layer in result.layers if layer.spike_rate is not None]
        assert len(spiking) == 1 + (coding != "constant")
        assert spiking[-1].threshold_min > 0
        assert (spiking[0].threshold_min is None) == (coding in ("poisson", "latency"))
        assert diagnose(dnn, network, x).samples == 12
        assert page(result, raster=record(network, x, y)).endswith("</html>")


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.usefixtures("without_pictures")
def test_every_coding_is_exported_and_reported_on(coding, tmp_path, capsys):
    export(tmp_path, coding=coding, diagnose=True)
    assert {"spiking.pt", "report.json", "diagnosis.json", "raster.json", "report.html"} <= {
        path.name for path in tmp_path.iterdir()
    }
    assert "SNN, T = 2" in capsys.readouterr().out


# Nothing of others is lost.


@pytest.mark.parametrize("name", ["spiking.pt", "spiking.nir", "report.json", "report.png", "report.html",
                                  "raster.json", "diagnosis.json", "diagnosis.png", "report.yaml"])  # fmt: skip
def test_files_of_others_are_left_alone_and_training_does_not_start(name, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"`output_dir` .*{name}' is of none. Move it away"):
        export(tmp_path, diagnose=True)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]
    with pytest.raises(ValueError, match="is of none"):
        fit(tmp_path, diagnose=True)


@pytest.mark.usefixtures("without_pictures")
def test_a_foreign_raster_is_not_deleted_and_that_of_an_earlier_run_is(tmp_path):
    (tmp_path / "raster.json").write_text("[1, 2]")
    export(tmp_path, html=False)
    assert (tmp_path / "raster.json").read_text() == "[1, 2]"
    (tmp_path / "raster.json").unlink()
    export(tmp_path)  # over the files of the run before
    assert (tmp_path / "raster.json").is_file()
    export(tmp_path, html=False)
    assert not (tmp_path / "raster.json").exists()


def test_an_unwritable_folder_and_no_test_data_are_told_before_training(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"folder to write to, but .*file' is none"):
        fit(tmp_path / "file" / "run")
    with pytest.raises(ValueError, match="`limit_test_batches` is 0"):
        fit(tmp_path / "run", limit_test_batches=0)


def test_the_network_is_there_whatever_becomes_of_the_report(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(exported, "report", broken)
    with pytest.raises(OSError, match="disk full"):
        export(tmp_path)
    assert load_network(tmp_path / "spiking.pt", small()).timesteps == 2
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    export(tmp_path)  # what is left of a run is a run's


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    export(folder, diagnose=True)
    return folder


@pytest.mark.parametrize("output", ["spiking.pt", "report.json", "report.png", "diagnosis.html", "spiking.nir",
                                    "page.png", "page", "theirs.html"])  # fmt: skip
def test_a_page_is_written_over_nothing_but_a_page(output, finished, tmp_path, monkeypatch):
    (finished / "theirs.html").write_text("<p>mine")
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    with pytest.raises(ValueError, match="`output` to name a"):
        write_page(finished, finished / output)
    monkeypatch.setattr(sys, "argv", ["snnreg", "report", str(finished), "--output", str(finished / output)])
    with pytest.raises(SystemExit, match="error: Expected argument `output`"):
        cli.main()
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


def test_a_page_may_be_written_again_and_a_picture_of_others_stays(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.png").write_text("a picture of mine")
    for words in ([], ["--output=mine.html"], ["--output=mine.html"], ["--output=new.html"], ["--output=new.html"]):
        monkeypatch.setattr(sys, "argv", ["snnreg", "report", str(finished), *words])
        cli.main()
    assert Path("mine.png").read_text() == "a picture of mine"
    assert capsys.readouterr().out.count("No picture: 'mine.png' is there already") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.html", "mine.png", "new.html", "new.png"]


def test_reports_of_version_0_1_load(results, tmp_path):
    old = results[0].to_dict()
    for name in ("score_name", "higher_is_better", "decisions", "models", "chosen", "chance", "about"):
        del old[name]
    for part in (old["dnn"], *old["steps"]):
        assert part.pop("score") == part["accuracy"]
        assert part.pop("facts")
    assert sorted(old) == ["ac", "dnn", "layers", "mac", "samples", "source", "steps", "table", "timesteps"]
    assert sorted(old["steps"][0]) == [
        "accuracy", "effective_macs", "energy", "sops", "spike_rate", "timesteps", "updates",
    ]  # fmt: skip
    assert sorted(old["layers"][0]) == [
        "effective_macs", "energy", "kind", "name", "sops", "spike_rate", "threshold_max", "threshold_min", "updates",
    ]  # fmt: skip
    (tmp_path / "report.json").write_text(json.dumps({**old, "more": 1}))
    read, now = Run(tmp_path).read().report, results[0]
    assert (read.steps[0].energy, read.dnn.energy, read.layers) == (now.steps[0].energy, now.dnn.energy, now.layers)
    assert read.chosen == ("horowitz_fp32",)
    assert [spent.total for spent in read.primary.steps] == pytest.approx([step.energy for step in now.steps])


# The callback.


def fit(folder, html=True, diagnose=False, **options):
    callback = ExportReport(str(folder), timesteps=2, steps=[1, 2], html=html, diagnose=diagnose)
    trainer = Trainer(
        max_steps=2, accelerator="cpu", callbacks=[callback], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        **{"limit_test_batches": 1} | options,
    )  # fmt: skip
    trainer.fit(Classifier(LeNet((1, 16, 16))), datamodule=Digits(size=16))
    return {file.name for file in folder.iterdir()} if folder.is_dir() else set()


def test_the_callback_writes_the_page(tmp_path, capsys):
    folder = tmp_path / "run"
    assert {"report.html", "raster.json"} < fit(folder)
    assert "report.html, raster.json" in capsys.readouterr().out
    assert "Spikes" in read(folder / "report.html").text
    (folder / "report.html").unlink()
    assert not {"report.html", "raster.json"} & fit(folder, html=False)  # no spikes of an earlier run are left


def test_settings_that_cannot_be_read_end_no_training(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("a: [")
    ExportReport(str(tmp_path), timesteps=2, steps=[2]).run(small(), Few(), recipe=tmp_path / "config.yaml")
    assert "No settings of the training on the page: " in capsys.readouterr().out
    assert "Spikes" in read(tmp_path / "report.html").text


def _two_process_worker(rank, port, folder):
    fit(folder, devices=2, strategy=two_processes(rank, port))
    leave()


@pytest.mark.slow
def test_the_first_of_two_processes_writes_the_page(tmp_path):
    torch.multiprocessing.spawn(_two_process_worker, (free_port(), tmp_path / "run"), nprocs=2)
    assert "Spikes" in read(tmp_path / "run" / "report.html").text
