"""A recipe as a trial of a sweep runs it: plain data in, plain data out."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

from snnreg_plugins._checks import shown
from snnreg_plugins.sweeps.axes import Value
from snnreg_plugins.sweeps.space import OF_RECIPE, PENALTY, PRUNED, Sweep

# Callbacks that a sweep puts itself; that write to a folder of their own; and that only look on.
_PUT = ("ActivityRegularization", "ActivityBudget")
_WRITES = ("ModelCheckpoint",)
_LOOKS_ON = "SpikingValidation"
# What SpikingValidation logs.
_LOGGED = ("snn/", "dnn/")
_CALLBACK = "callback"


def for_trial(
    recipe: Mapping[str, Any], sweep: Sweep, point: Mapping[str, Value], seed: int, folder: str | os.PathLike[str]
) -> dict[str, Any]:
    """Give the settings of a trial: those of the recipe, with what the sweep says at a point.

    Args:
        recipe: The recipe's names and values.
        sweep: The sweep.
        point: The values of all that varies.
        seed: Seed of the training.
        folder: Of the trial.

    Raises:
        ValueError: If a setting has no place in the recipe.
    """
    config: dict[str, Any] = copy.deepcopy(dict(recipe))
    config["seed_everything"] = seed
    trainer = config.setdefault("trainer", {})
    variant = sweep.variant(point)
    callbacks = [_as_class(one) for one in _listed(trainer.get("callbacks"))]
    dropped = _WRITES if variant.name == OF_RECIPE else (*_PUT, *_WRITES)
    monitored = {str(one["init_args"].get("monitor", "")) for one in callbacks if _name(one) not in dropped}
    if not any(name.startswith(_LOGGED) for name in monitored):
        dropped = (*dropped, _LOOKS_ON)
    callbacks = [one for one in callbacks if _name(one) not in dropped]
    if variant.kind is not None:
        callbacks.append({"class_path": variant.kind, "init_args": dict(variant.arguments(point))})
    trainer["callbacks"] = callbacks
    varied = {name: point[name] for name in sweep.common if name != PRUNED}
    for name, value in {**sweep.fixed, **varied}.items():
        set_option(config, name, value)
    if point.get(PRUNED):
        pruned = {"share": point[PRUNED]}
        trainer["callbacks"].append({"class_path": "snnreg_plugins.sweeps.pruning.PrunedOnce", "init_args": pruned})
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer.update(quiet, enable_progress_bar=False, default_root_dir=os.fspath(folder))
    return config


def set_option(config: dict[str, Any], option: str, value: Any) -> None:
    """Set an option as the command line does: ``trainer.max_epochs``, or ``callback.Distillation.temperature``.

    Args:
        config: The recipe's names and values.
        option: The option.
        value: Its value.

    Raises:
        ValueError: If it names a callback that there is not, or something within what is no mapping.

    Example:
        >>> config = {"trainer": {"max_epochs": 8}}
        >>> set_option(config, "trainer.max_epochs", 2)
        >>> config
        {'trainer': {'max_epochs': 2}}
    """
    *path, last = option.split(".")
    if path[:1] == [_CALLBACK]:
        place, path = _callback(config, option), path[2:]
        place = place.setdefault("init_args", {})
    else:
        place = config
    for part in path:
        if place.get(part) is None:
            place[part] = {}
        if isinstance(place[part], str):  # a class by its name alone
            place[part] = {"class_path": place[part]}
        place = place[part]
        if not isinstance(place, dict):
            raise ValueError(
                f"Expected `settings.{option}` to name an option of the recipe, but `{part}` is {shown(place)}, which "
                "has none."
            )
    place[last] = value


def _callback(config: Mapping[str, Any], option: str) -> dict[str, Any]:
    callbacks: list[dict[str, Any]] = config["trainer"]["callbacks"]
    name = option.split(".")[1] if "." in option else ""
    found = [one for one in callbacks if _name(one) == name]
    if len(found) != 1 or option.count(".") < 2:
        raise ValueError(
            f"Expected `settings.{option}` to name a callback of the recipe that there is once, and one of its "
            f"arguments, but the callbacks are {', '.join(map(_name, callbacks)) or 'none'}."
        )
    return found[0]


def _listed(callbacks: Any) -> list[Any]:
    return callbacks if isinstance(callbacks, list) else [] if callbacks is None else [callbacks]


def _as_class(callback: Any) -> dict[str, Any]:
    """Give a callback as class and arguments, also where a recipe has its name alone."""
    if isinstance(callback, str):
        return {"class_path": callback, "init_args": {}}
    return {**callback, "init_args": dict(callback.get("init_args") or {})}


def _name(callback: Mapping[str, Any]) -> str:
    return str(callback["class_path"]).rpartition(".")[2]


def label(point: Mapping[str, Value]) -> str:
    """Write a point in short, for progress and logs.

    Example:
        >>> label({"penalty": "l1", "l1.penalty": "l1", "l1.strength": 0.1, "seed": 0})
        'l1, strength 0.1, seed 0'
    """
    parts = [str(point[PENALTY])]
    for name, value in point.items():
        if name != PENALTY and value is not None and not (name.endswith(".penalty")):
            parts.append(f"{name.rpartition('.')[2]} {value:.6g}" if isinstance(value, float) else _plain(name, value))
    return ", ".join(parts)


def _plain(name: str, value: Value) -> str:
    return value if isinstance(value, str) else f"{name.rpartition('.')[2]} {value}"
