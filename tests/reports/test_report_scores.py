"""Reports say what is scored by its name, of whatever a network is trained to give."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import nn
from torchmetrics import MeanAbsoluteError

from snnreg_plugins import SynapticOperations, record, report, to_snntorch
from snnreg_plugins.metrics.scores import Loss
from snnreg_plugins.reports.page import page
from snnreg_plugins.reports.parts import DNNReport, StepReport
from snnreg_plugins.reports.report import Report
from tests.reports.test_page import Reader

X = torch.rand(30, 4, generator=torch.Generator().manual_seed(3)) - 0.3
STEPS = (1, 3, 8)


def made(outputs, *more):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, outputs), *more).eval()


def network_of(dnn, **options):
    return to_snntorch(dnn, X, timesteps=3, **options)


def batches(targets):
    return list(zip(X.split(11), targets.split(11), strict=True))


def mse(outputs, targets):
    return float((outputs - targets.reshape(outputs.shape)).square().mean())


ONE, LABELS = (X[:, :1] > 0.1).float(), (X[:, :2] > 0.1).long()
CASES = {
    "one logit": (1, ONE, {"metric": "binary"}, lambda o: float(((o > 0) == (ONE > 0.5)).double().mean())),
    "multi-label": (2, LABELS, {"loss": Loss("binary")}, lambda o: float(((o > 0) == (LABELS > 0)).double().mean())),
    "regression": (1, 3 * X[:, 0], {}, lambda o: mse(o, 3 * X[:, 0])),
    "by the user": (2, X[:, :2], {"metric": MeanAbsoluteError()}, lambda o: float((o - X[:, :2]).abs().mean())),
}


@pytest.mark.parametrize("case", CASES)
def test_every_step_has_the_score_of_a_run_of_its_own(case):
    outputs, targets, told, expected = CASES[case]
    dnn = made(outputs)
    network = network_of(dnn)
    result = report(dnn, network, batches(targets), steps=STEPS, **told)
    is_accuracy = case in ("one logit", "multi-label")
    assert (result.dnn.accuracy is not None) == is_accuracy
    assert result.decisions == {"multi-label": 60}.get(case)
    with torch.no_grad():
        assert result.dnn.score == pytest.approx(expected(dnn(X)))
        for step in result.steps:
            network.timesteps = step.timesteps
            assert step.score == pytest.approx(expected(network(X)))
            assert step.accuracy == (step.score if is_accuracy else None)


@pytest.mark.parametrize(("case", "title", "better"), [("regression", "MSE", "lower"),
                                                       ("by the user", "Mean absolute error", "lower")])  # fmt: skip
def test_no_accuracy_is_spoken_of_where_there_is_none(case, title, better, tmp_path, capsys):
    outputs, targets, told, _ = CASES[case]
    dnn = made(outputs)
    network = network_of(dnn)
    result = report(dnn, network, batches(targets), steps=STEPS, **told)
    raster = record(network, X, None)
    shown = Reader(page(result, raster=raster))
    result.print()
    said = capsys.readouterr().out + shown.text
    for word in ("ccuracy", "Samples correct", "interval", " point ", "points below", "class", "Decision", "nan"):
        assert word not in said, word
    for words in (f"{title} at T = 3 ", f"{title} over time steps", f"a {better} score is better", "30"):
        assert words in said
    first = shown.tables[2]
    assert first[0] == ["", title, "To DNN"]
    assert [row[1] for row in first[1:]] == [f"{one.score:.4g}" for one in (result.dnn, *result.steps)]
    assert [float(row[2].replace("−", "-")) for row in first[2:]] == [
        pytest.approx(step.score - result.dnn.score, rel=0.006) for step in result.steps
    ]
    assert len(shown.charts["Raster of sample"]) > 0
    for one in (result, raster):
        one.save_json(tmp_path / "one.json")
        assert type(one).load_json(tmp_path / "one.json") == one
        one.save_plot(tmp_path / "one.png")
        one.print()


def test_an_accuracy_of_labels_has_no_interval_of_samples():
    outputs, targets, told, _ = CASES["multi-label"]
    dnn = made(outputs)
    shown = Reader(page(report(dnn, network_of(dnn), batches(targets), steps=STEPS, **told)))
    assert shown.tables[2][0] == ["", "Accuracy", "To DNN"]
    assert "Wilson" not in shown.text
    single = report(dnn, network_of(dnn), batches(LABELS[:, 0]), steps=STEPS)
    assert Reader(page(single)).tables[2][0] == ["", "Accuracy", "95 % interval", "To DNN"]


def test_ignored_targets_are_no_samples_of_the_accuracy():
    dnn, classes = made(3), (20 * X[:, 0].abs()).long() % 3
    result = report(dnn, network_of(dnn), batches(classes), steps=(2,), loss=Loss("multiclass", ignore_index=1))
    with torch.no_grad():
        right = (dnn(X).argmax(1) == classes)[classes != 1]
    assert result.dnn.accuracy == float(right.double().mean())
    assert result.decided == result.decisions == len(right) < 30


def test_a_score_that_is_none_is_refused():
    dnn = made(1)
    with pytest.raises(ValueError, match="Expected a finite score, but the mse of the outputs on `data` is inf"):
        report(dnn, network_of(dnn), batches(X[:, 0] * 1e30), steps=(1,))
    with pytest.raises(ValueError, match="without a loss that says whether they are labels or values. Give `metric`"):
        report(dnn, network_of(dnn), batches(ONE), steps=(1,))


def test_parts_that_do_not_fit_are_refused(tmp_path):
    dnn = made(1)
    result = report(dnn, network_of(dnn), batches(3 * X[:, 0]), steps=STEPS)
    plain = result.to_dict()
    for change, message in (
        ({"dnn": {**plain["dnn"], "accuracy": 0.5}}, "some of its parts have an accuracy and some have none"),
        ({"dnn": {name: plain["dnn"][name] for name in plain["dnn"] if name != "score"}}, r"have a score \(mse\)"),
    ):
        (tmp_path / "report.json").write_text(json.dumps({**plain, **change}))
        with pytest.raises(ValueError, match=message):
            Report.load_json(tmp_path / "report.json")


def test_an_accuracy_is_the_score():
    step = StepReport(4, 0.5, 0.1, 3.0, 2.0, 1.0, 1e-9)
    assert (step.score, dataclasses.replace(step, accuracy=0.25).score) == (0.5, 0.25)
    assert DNNReport(None, 0.0, 1.0, 1.0, 1e-9, 1e-9, score=7.0).score == 7.0


def test_a_network_of_which_a_part_stays_a_dnn():
    dnn = made(5, nn.Tanh(), nn.Linear(5, 3))
    network = network_of(dnn, until="1")
    with torch.no_grad():
        classes = dnn(X).argmax(1)
    result = report(dnn, network, batches(classes), steps=STEPS)
    assert result.dnn.accuracy == 1.0
    for step in result.steps:
        network.timesteps = step.timesteps
        with SynapticOperations(network) as operations, torch.no_grad():
            assert step.accuracy == float((network(X).argmax(1) == classes).double().mean())
        assert step.sops == operations.total("sops")
        assert step.effective_macs == operations.total("effective_macs")
        if step.timesteps == 3:
            macs = operations.by_layer("effective_macs")
            named = {layer.name: layer.effective_macs for layer in result.layers if layer.effective_macs is not None}
            assert named == {name: pytest.approx(float(value)) for name, value in macs.items()}
