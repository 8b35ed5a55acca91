"""What a sweep varies, and what it refuses before anything is trained."""

from __future__ import annotations

import pytest

from snnreg_plugins.sweeps.axes import as_axis
from snnreg_plugins.sweeps.recipe import for_trial, label
from snnreg_plugins.sweeps.space import Sweep

RECIPE = {
    "model": {"class_path": "Classifier", "init_args": {"network": "LeNet"}},
    "trainer": {
        "max_epochs": 8,
        "logger": {"class_path": "CSVLogger"},
        "callbacks": [
            {"class_path": "ActivityRegularization", "init_args": {"strength": 7}},
            {"class_path": "SpikingValidation"},
            {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"dirpath": "x"}},
            {"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss"}},
            "ExportReport",
        ],
    },
}
PENALTIES = {"none": None, "l1": {"strength": [0.1, "1e-2"], "weighting": ["uniform", "fan_out"]}}


def names(config):
    return [one["class_path"].rpartition(".")[2] for one in config["trainer"]["callbacks"]]


def test_a_grid_has_every_combination_once_seed_after_seed_and_the_penalties_in_turn():
    sweep = Sweep("r.yaml", {**PENALTIES, "l2": {"strength": 3}}, seeds=[0, 1], settings={"trainer.max_epochs": [1, 2]})
    grid = sweep.grid()
    assert len(grid) == len({tuple(sorted(map(str, point.items()))) for point in grid}) == 2 * 2 * (1 + 4 + 1)
    assert [point["seed"] for point in grid] == [0] * 12 + [1] * 12
    assert [point["penalty"] for point in grid[:6]] == ["none", "l1", "l2", "none", "l1", "l2"]
    assert {point["l1.strength"] for point in grid if point["penalty"] == "l1"} == {0.1, 0.01}
    assert label(grid[1]) == "l1, seed 0, strength 0.1, uniform, max_epochs 1"


def test_ranges_are_even_in_a_grid():
    assert as_axis("a", {"low": 0.1, "high": 10, "log": True, "steps": 3}).points() == (0.1, 1.0, 10.0)
    assert as_axis("a", {"low": 0, "high": 1, "steps": 5}).points() == (0, 0.25, 0.5, 0.75, 1)


def test_a_trial_is_the_recipe_with_the_callback_of_its_point(tmp_path):
    sweep = Sweep(
        "r.yaml",
        PENALTIES,
        budgets={"sops": [1e5], "timesteps": 4, "keep_best": False},
        regularization={"warmup_epochs": 2},
        pruning=[0, 0.5],
        settings={"trainer.max_epochs": 3, "callback.EarlyStopping.patience": [2, 5], "model.network.size": 4},
    )
    by_penalty = {name: [p for p in sweep.grid() if p["penalty"] == name] for name in ("none", "l1", "budget of sops")}
    config = for_trial(RECIPE, sweep, by_penalty["l1"][0], 5, tmp_path)
    assert names(config) == ["EarlyStopping", "ExportReport", "ActivityRegularization"]
    arguments = {"penalty": "l1", "strength": 0.1, "weighting": "uniform", "warmup_epochs": 2}
    assert config["trainer"]["callbacks"][-1]["init_args"] == arguments
    assert config["trainer"]["callbacks"][0]["init_args"]["patience"] == 2
    assert (config["trainer"]["max_epochs"], config["seed_everything"], config["trainer"]["logger"]) == (3, 5, False)
    assert config["model"]["network"] == {"size": 4}
    assert names(for_trial(RECIPE, sweep, by_penalty["none"][0], 0, tmp_path)) == ["EarlyStopping", "ExportReport"]
    budget = for_trial(RECIPE, sweep, by_penalty["budget of sops"][-1], 0, tmp_path)["trainer"]["callbacks"]
    assert [one["class_path"] for one in budget[2:]] == ["ActivityBudget", "snnreg_plugins.sweeps.pruning.PrunedOnce"]
    assert budget[2]["init_args"] == {"sops": 1e5, "timesteps": 4, "keep_best": False}
    assert RECIPE["trainer"]["max_epochs"] == 8  # is left as it was
    # What others monitor stays; without penalties the recipe's own callback does, too.
    monitored = {"trainer": {"callbacks": [*RECIPE["trainer"]["callbacks"][:2]]}}
    monitored["trainer"]["callbacks"].append({"class_path": "EarlyStopping", "init_args": {"monitor": "snn/accuracy"}})
    own = Sweep("r.yaml", settings={"callback.ActivityRegularization.strength": [1, 2]})
    config = for_trial(monitored, own, own.grid()[1], 0, tmp_path)
    assert names(config) == ["ActivityRegularization", "SpikingValidation", "EarlyStopping"]
    assert config["trainer"]["callbacks"][0]["init_args"] == {"strength": 2}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"penalties": {"L1": {}}}, "penalties.*'L1'. Did you mean 'l1'"),
        ({"penalties": {"l1": {"strenght": 1}}}, "`penalties.l1`.*Did you mean 'strength'"),
        ({"penalties": {"l1": {"strength": [1, -1]}}}, "'l1'.*`strength`.*-1"),
        ({"penalties": {"l1": {"weighting": ["mean"]}}}, "`weighting`.*'mean'"),
        ({"penalties": {"l1": {"strength": {"low": 1, "hihg": 2}}}}, "`penalties.l1.strength`.*Did you mean 'high'"),
        ({"penalties": {"l1": {"strength": {"low": 0, "high": 2, "log": True, "steps": 3}}}}, "strength.low"),
        ({"penalties": {"l1": {"strength": {"low": 1, "high": 2}}}}, "l1.strength.*`steps`"),
        ({"penalties": {"l1": {"strength": []}}}, "list of values"),
        ({"regularization": {"warmup": 1}, "penalties": {"l1": None}}, "Did you mean 'warmup_epochs'"),
        ({"budgets": {"sops": [1e5]}}, "`penalties`"),
        ({"seeds": [1, 0, 1]}, r"`seeds`.*\[1, 0, 1\].*\[0, 1\]"),
        ({"penalties": {"none": None}, "budgets": {"timesteps": 4}}, "'sops', 'share', 'joules'"),
        ({"penalties": {"none": None}, "budgets": {"sops": -1}}, "-1"),
        ({"exports": {"a": {"per_chanel": True}}}, "`exports.a`.*Did you mean 'per_channel'"),
        ({"exports": {"a": {"percent": 0.9}}}, "percent"),
        ({"exports": {"a": {"budget": 1e5}}}, "exports.a.*budget"),
        ({"steps": [0]}, "steps"),
        ({"seeds": []}, "seeds"),
        ({"pruning": [0.5, 1.5]}, "pruning"),
        ({"pruning": [0.5], "penalties": {"none": None}, "budgets": {"sops": 1e5}}, "keep_best: false"),
        ({"search": "grid", "trials": 0}, "trials"),
        ({"search": "tpe"}, "`trials`"),
        ({"search": "bayes"}, "search"),
        ({"at": 3}, "`at`.*3"),
        ({"judged": "b"}, "exports"),
    ],
)
def test_what_cannot_work_is_refused_with_its_name(given, told):
    with pytest.raises(ValueError, match=told):
        Sweep("r.yaml", **given)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"callback.Distilation.alpha": 1}, "callback.Distilation.alpha.*EarlyStopping"),
        ({"trainer.max_epochs.more": 1}, "max_epochs.*8"),
    ],
)
def test_settings_without_a_place_in_the_recipe_are_refused(settings, told, tmp_path):
    sweep = Sweep("r.yaml", settings=settings)
    with pytest.raises(ValueError, match=told):
        for_trial(RECIPE, sweep, sweep.grid()[0], 0, tmp_path)
