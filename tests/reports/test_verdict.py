"""The sentence that a report begins with says what was measured, whatever that is; models price the same facts."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
import torch
from torch import nn

from snnreg_plugins import to_snntorch
from snnreg_plugins.functional import COST_MODELS, EnergyTable
from snnreg_plugins.functional.costs import LayerFacts
from snnreg_plugins.reports import tables
from snnreg_plugins.reports.folder import write_page
from snnreg_plugins.reports.measure import report
from snnreg_plugins.reports.parts import DNNReport, LayerReport, StepReport
from snnreg_plugins.reports.pricing import Prices, shown_by
from snnreg_plugins.reports.report import Report

FP32 = {"mac": 4.6, "ac": 0.9}


def made(sops=1000.0, analog=500.0, effective=400.0, dnn=True, at=2, scores=(0.5, 0.95), of_dnn=0.97, **given):
    """A network of two layers, the first analog, beside a DNN of 2,000 dense MACs."""
    own = [LayerFacts("conv", spiking=False, dense_macs=1500.0, effective_macs=effective),
           LayerFacts("fc", spiking=False, dense_macs=500.0, effective_macs=effective)]  # fmt: skip
    steps = [StepReport(T, score, 0.1, 10.0, T * sops / at, analog, 0.0, facts=(
        LayerFacts("conv", T, effective_macs=analog, dense_macs=1500.0, sops=0.0 if analog else T * sops / at / 2),
        LayerFacts("fc", T, sops=T * sops / at if analog else T * sops / at / 2, dense_macs=500.0),
    )) for T, score in zip((1, at), scores, strict=True)]  # fmt: skip
    parts = {
        "dnn": DNNReport(of_dnn, 0.0, 2 * effective, 2000.0, None, 0.0, facts=tuple(own)) if dnn else None,
        "steps": steps,
        "timesteps": at,
        "layers": [LayerReport("conv", "Conv2d", sops=0.0 if analog else sops / 2, effective_macs=analog),
                   LayerReport("fc", "Linear", sops=sops, effective_macs=0.0)],
    }  # fmt: skip
    table = given.pop("table", ("horowitz_fp32", "bit_matched"))
    return Report(**Prices(table, "horowitz_fp32").of_report(**parts), samples=1000, timesteps=at, **given)


def by_hand(sops, macs):
    return 4.6 * macs + 0.9 * sops


def test_the_sentence_by_hand():
    result = made()
    spent, sparse = by_hand(1000, 500), by_hand(0, 800)
    assert result.verdict()[0] == (
        f"At T = 2 and 95.0 % (DNN 97.0 %) the spiking network spends {spent / sparse:.2f} of the zero-skipping DNN by "
        f"arithmetic; the analog first layer is {100 * 4.6 * 500 / spent:.0f} % of it."
    )
    step, weights = result.model("bit_matched"), 20 * 8 * 1500
    assert step.steps[1].memory == pytest.approx(1e-12 * weights)
    assert result.verdict()[1].startswith("It spends ")
    assert "times a zero-skipping DNN of 2 bits, with weights in DRAM (bit_matched)" in result.verdict()[1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sops": 9000.0}, "spends 2.83 times the zero-skipping DNN by arithmetic"),  # (2300 + 8100) / 3680
        ({"sops": 0.0}, "; no spike reaches a synapse."),
        ({"analog": 0.0}, "; 50 % of it is at conv."),
        ({"dnn": False}, "At T = 2 and 95.0 % the spiking network spends 0.35 of a dense DNN of the same layers by"),
        ({"table": "loihi"}, "0.87 of the zero-skipping DNN by arithmetic"),  # the chip has no price for MACs
        ({"table": "loihi", "dnn": False, "analog": 0.0}, "spends 23.6 nJ by Loihi, published per sample"),
        ({"table": ["horowitz_fp32", "horowitz_int8"]}, "by arithmetic (horowitz_fp32) and 0.79 of"),
        ({"score_name": "mse", "scores": (None, None), "of_dnn": None}, "At T = 2 and an MSE of 0.5 (DNN 0.25) the"),
    ],
)
def test_sentences_of_other_networks(given, said):
    if given.get("score_name") == "mse":
        result = made(**given, higher_is_better=False)
        steps = [dataclasses.replace(step, score=0.5) for step in result.steps]
        result = dataclasses.replace(result, steps=tuple(steps), dnn=dataclasses.replace(result.dnn, score=0.25))
    else:
        result = made(**given)
    assert said in result.verdict()[0]


def test_energies_are_by_what_prices_all_of_it():
    assert made(table="loihi", dnn=False).table == "horowitz_fp32"
    assert made(table="loihi", dnn=False, analog=0.0).table == "loihi"


def test_what_is_lost_is_told_with_where_it_is_not():
    lost = made(at=2, scores=(0.965, 0.90))
    assert lost.verdict()[-1] == (
        "It is 7.0 points below the DNN; T = 1 is within a point of it and spends "
        f"{by_hand(500, 500) / by_hand(0, 800):.2f} of the zero-skipping DNN."
    )
    assert made(scores=(0.5, 0.90)).verdict()[-1].endswith("no T measured is within a point of it.")
    assert "below" not in " ".join(made(scores=(0.5, 0.965)).verdict())


def test_a_dnn_that_is_no_better_than_chance_is_no_measure():
    poor = made(of_dnn=0.12, scores=(0.11, 0.12), chance=0.11)
    assert not poor.dnn_is_worth_it
    assert poor.within_a_point() is None
    assert "no more often than the most frequent answer is (11.0 %)" in poor.verdict()[-1]
    assert made(of_dnn=0.16, scores=(0.11, 0.12), chance=0.11).dnn_is_worth_it


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {},
            "as much as the zero-skipping DNN at 0.153 and as the dense one at 0.767 spikes/neuron/step; it has 0.100",
        ),
        ({"sops": 100.0}, "spends less than the zero-skipping and the dense DNN at any spike rate"),
        ({"effective": 200.0}, "spends more than the zero-skipping DNN even if no neuron spikes"),
        ({"sops": 0.0}, "No spike reaches a synapse."),
        ({"dnn": False}, ""),
        ({"table": "bit_matched"}, ""),
    ],
)
def test_a_break_even_rate_where_there_can_be_one(given, said):
    told = tables.break_even(made(**given))
    assert said in told
    assert bool(told) == bool(said)
    assert not re.search(r" at (-|[1-9])", told)  # no rate above 1, and none below 0


X = torch.rand(30, 1, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def measured():
    torch.manual_seed(0)
    dnn = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))
    with torch.no_grad():
        dnn[3].weight[:, ::3] = 0.0
        classes = dnn(X).argmax(1)
    return dnn, to_snntorch(dnn, X, timesteps=2), [(X, classes)]


def test_other_models_are_shown_of_the_same_file(measured, tmp_path):
    first = report(*measured, steps=(1, 2))
    first.save_json(tmp_path / "report.json")
    (tmp_path / "mine.yaml").write_text("source: mine\nac: 2.0\nmac: 7.0\nupdate: 3.0\naccess: {weights: 5.0}\n")
    read = Report.load_json(tmp_path / "report.json")
    assert {model.name for model in read.models} == set(COST_MODELS)
    for table in ("lemaire", ["horowitz_int8", "eflops"], str(tmp_path / "mine.yaml"), "loihi"):
        assert shown_by(read, table) == report(*measured, steps=(1, 2), table=table)
    page = write_page(tmp_path, tmp_path / "page.html", table="lemaire").read_text(encoding="utf-8")
    assert "of the dense DNN with memory" in page or "times the dense DNN with memory" in page
    mine = shown_by(read, str(tmp_path / "mine.yaml"))
    step = mine.at_timesteps()
    operations = step.sops + step.effective_macs
    updates = 2 * (48 + 3)  # of neurons, and of what adds up scores
    expected = 2 * step.sops + 7 * step.effective_macs + 3 * updates + 5 * operations
    assert step.energy == pytest.approx(1e-12 * expected)
    assert mine.mac is None
    assert [mine.table] == list(mine.chosen) != ["horowitz_fp32"]


def test_weights_of_zero_are_synapses_or_not(measured):
    counted, not_counted = (report(*measured, steps=(2,), count_zero_weights=zeros) for zeros in (True, False))
    assert counted.at_timesteps().sops == not_counted.at_timesteps().sops
    fewer = not_counted.model("horowitz_fp32").steps[0].synapses / counted.model("horowitz_fp32").steps[0].synapses
    assert 0.5 < fewer < 0.85  # a third of the last layer's weights are zero
    for result, word in ((counted, "a"), (not_counted, "no")):
        assert f"A weight of zero is {word} synapse." in tables.estimated(result)
        assert ("SOPs and MACs count weights of zero" in tables.notes(result)[0]) == (word == "no")
        other = shown_by(result, ["horowitz_int8", "lemaire"])
        assert {model.counts_zero_weights for model in other.shown_models} == {word == "a"}
        assert other.model("lemaire") == result.model("lemaire")
    # At that rate the network spends what the DNN does, with the synapses that are counted.
    rate, step, model = not_counted.break_even_rate(), not_counted.at_timesteps(), not_counted.primary
    spent = model.steps[0].macs + model.steps[0].synapses * rate / step.spike_rate
    assert spent == pytest.approx(model.sparse[0].total)
    with pytest.raises(ValueError, match="`count_zero_weights` to be False or None for 'eflops'"):
        report(*measured, steps=(2,), table="eflops", count_zero_weights=True)
    with pytest.raises(ValueError, match="`count_zero_weights`"):
        report(*measured, steps=(2,), count_zero_weights="yes")


def test_a_report_of_an_earlier_version_reads_and_is_priced_by_what_it_holds(measured, tmp_path):
    result = report(*measured, steps=(1, 2))
    plain = result.to_dict()
    for later in ("models", "chosen", "chance", "about"):
        del plain[later]
    for part in (plain["dnn"], *plain["steps"]):
        del part["facts"]
    (tmp_path / "report.json").write_text(json.dumps(plain))
    old = Report.load_json(tmp_path / "report.json")
    assert old.primary.steps == tuple(
        dataclasses.replace(spent, memory=0.0) for spent in result.model("horowitz_fp32").steps
    )
    assert old.chosen == ("horowitz_fp32",)
    assert old.verdict()[0].split(" and ")[0] == result.verdict()[0].split(" and ")[0]
    assert write_page(tmp_path).is_file()
    int8 = shown_by(old, "horowitz_int8")
    assert [step.energy for step in int8.steps] == [
        pytest.approx(one.total) for one in result.model("horowitz_int8").steps
    ]
    with pytest.raises(ValueError, match=r"of an earlier version, which kept no more, but got \['lemaire'\]"):
        shown_by(old, ["horowitz_int8", "lemaire"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": ["mine"]}, r"models of cost should be those of \['horowitz_fp32', 'mine'\]"),
        ({"table": "none"}, r"should be those of \['none', "),
    ],
)
def test_models_that_do_not_fit_are_refused(measured, tmp_path, change, message):
    plain = report(*measured, steps=(1, 2)).to_dict()
    (tmp_path / "report.json").write_text(json.dumps(plain | change))
    with pytest.raises(ValueError, match=message):
        Report.load_json(tmp_path / "report.json")
    plain["models"][1]["steps"].pop()
    (tmp_path / "report.json").write_text(json.dumps(plain))
    with pytest.raises(ValueError, match="'lemaire' should have a cost for each of its 2 time steps"):
        Report.load_json(tmp_path / "report.json")


def test_an_own_table_comes_first_and_one_that_lacks_a_price_never(measured):
    own = report(*measured, steps=(2,), table=EnergyTable(mac=10.0, ac=1.0, source="my chip"))
    step = own.at_timesteps()
    assert step.energy == pytest.approx(1e-12 * (step.sops + 10 * step.effective_macs))
    chip = report(*measured, steps=(2,), table="loihi")
    assert (chip.table, chip.chosen) == ("horowitz_fp32", ("horowitz_fp32", "loihi"))
    assert chip.model("loihi").steps[0].unpriced == step.effective_macs
    assert chip.model("loihi").dense == chip.model("loihi").sparse == ()
    with pytest.raises(ValueError, match=r"`table` to be one of .*, but got 'joules'"):
        report(*measured, steps=(2,), table=["lemaire", "joules"])
