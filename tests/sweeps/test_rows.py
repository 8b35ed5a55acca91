"""A report as rows: what is spent at weights that are not zero, and by each model."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from snnreg_plugins import SynapticOperations, report, to_snntorch
from snnreg_plugins.sweeps.results import models_of, rows_of, varied_columns


@pytest.fixture
def pruned():
    """A DNN with half of its weights pruned, still by masks; its spiking network, and data."""
    torch.manual_seed(0)
    dnn = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(27, 8), nn.ReLU(),
        nn.Linear(8, 3),
    ).eval()  # fmt: skip
    layers = [(layer, "weight") for layer in dnn if hasattr(layer, "weight")]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=0.5)
    x, y = torch.rand(12, 1, 6, 6), torch.arange(12) % 3
    return dnn, to_snntorch(dnn, x, timesteps=4), [(x, y)]


def test_rows_hold_what_is_spent_at_weights_that_are_not_zero(pruned):
    dnn, network, data = pruned
    rows = rows_of(report(dnn, network, data, steps=(2, 4)), "default")
    assert [row["timesteps"] for row in rows] == [2, 4]
    with (
        SynapticOperations(network, count_zero_weights=False) as of_snn,
        SynapticOperations(dnn, count_zero_weights=False) as of_dnn,
    ):
        network(data[0][0])
        dnn(data[0][0])
    last = rows[-1]
    assert last["nonzero_sops"] == pytest.approx(of_snn.compute().item()) != last["sops"]
    assert last["nonzero_effective_macs"] == pytest.approx(of_snn.total("effective_macs").item())
    for name in ("effective_macs", "dense_macs"):
        assert last[f"nonzero_dnn_{name}"] == pytest.approx(of_dnn.total(name).item()) != last[f"dnn_{name}"]
    none = rows_of(report(dnn, network, data, steps=(2, 4), count_zero_weights=False), "default")[-1]
    priced = [name for name in last if (name.startswith("nonzero_") and "energy" in name) or "cost_" in name]
    assert len(priced) == 3 + 2 * 3 * 4
    for name in priced:
        if name.startswith("nonzero_"):
            assert last[name] == none[name] == none[name.removeprefix("nonzero_")], name
    assert last["nonzero_cost_lemaire"] < last["cost_lemaire"]
    assert last["nonzero_cost_eflops"] == last["cost_eflops"]  # where such a weight never is a synapse


def test_rows_have_a_column_for_each_model_that_is_shown_and_none_of_them_varies(pruned, tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("ac: 2.0\nmac: 5.0\nsource: my chip\n")
    monkeypatch.chdir(tmp_path)
    table = ["mine.yaml", "truenorth"]
    found = report(*pruned, steps=(4,), table=table)
    (row,) = rows_of(found, "default", table)
    assert models_of([row]) == ["mine.yaml", "truenorth"]
    assert varied_columns([row]) == []
    assert row["cost_mine.yaml"] == pytest.approx(1e-12 * (2 * row["sops"] + 5 * row["effective_macs"]))
    assert row["nonzero_cost_mine.yaml"] == pytest.approx(
        1e-12 * (2 * row["nonzero_sops"] + 5 * row["nonzero_effective_macs"])
    )
    assert row["cost_mine.yaml"] == row["energy"]
    assert row["dnn_cost_mine.yaml"] == row["dnn_energy"]
    assert row["dnn_dense_cost_mine.yaml"] == row["dnn_dense_energy"]
    assert row["cost_truenorth"] is None  # it has no price for the MACs of the first layer
    assert row["dnn_cost_truenorth"] is None
