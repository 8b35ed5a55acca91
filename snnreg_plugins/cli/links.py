"""What a network takes from the data that it is trained on: the shape of an image, and the number of classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from snnreg_plugins.cli.sentences import arguments_of

# Attributes of a data module, which are arguments of a network.
LINKED = ("image_shape", "num_classes")


def link_to_data(config: Any, class_of: Callable[[str], Any]) -> list[str]:
    """Give the network of a recipe the shape of the images and the number of classes of its data.

    Without it, data of another size end in an error about matrices, deep in torch.

    Args:
        config: What a subcommand is run with; ``model.init_args.network`` in it is changed. Other models, and data that
            do not tell their shape, are left alone.
        class_of: Finds a class by its path.

    Returns:
        What was changed of what the recipe says, in sentences.
    """
    network = config.get("model.init_args.network")
    data = config.get("data")
    if not hasattr(network, "class_path") or not hasattr(data, "class_path"):
        return []
    kind = class_of(data.class_path)
    taken = [name for name in LINKED if name in arguments_of(network.class_path)]
    if not taken or not all(hasattr(kind, name) or name in _annotations(kind) for name in taken):
        return []
    told = []
    source = kind(**data.get("init_args", {}))
    for name in taken:
        value = getattr(source, name)
        value = list(value) if isinstance(value, tuple) else value
        key = f"init_args.{name}"
        before = network.get(key)
        before = list(before) if isinstance(before, tuple) else before
        if before != value:
            network[key] = value
        if before not in (value, None):
            classes = [path.rpartition(".")[2] for path in (network.class_path, data.class_path)]
            told.append(f"{classes[0]} is made with {name}={value} of {classes[1]}, not {before}.")
    return told


def _annotations(kind: Any) -> set[str]:
    return {name for one in getattr(kind, "__mro__", ()) for name in vars(one).get("__annotations__", {})}
