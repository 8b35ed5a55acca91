"""Weights in a file, put into the network that they are of, whatever that was called when they were written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from snnreg_plugins._files import read_tensors

# What torch.compile puts into the names of a module.
_COMPILED = "_orig_mod."
_NAMED = 3
# How the two end that torch's pruning has in place of a weight.
_PRUNED, _MASK = "_orig", "_mask"
# How names of weights end that are trained behind few bits.
_BEHIND = ".parametrizations.weight.original"


def read_weights(path: str | os.PathLike[str], argument: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a Lightning checkpoint, or a file of a ``state_dict()``, running no code from it.

    Args:
        path: The file.
        argument: The argument that named it, for the error.

    Returns:
        All that the file holds, and the weights in it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no weights.
    """
    content = read_tensors(path, argument)
    weights = content.get("state_dict", content)
    if not isinstance(weights, dict) or not weights or not all(isinstance(one, Tensor) for one in weights.values()):
        raise ValueError(
            f"Expected argument `{argument}` to name a checkpoint or a file of weights, but {os.fspath(path)!r} holds "
            "no state_dict."
        )
    return content, weights


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], source: str | os.PathLike[str]) -> None:
    """Put weights into a network; it may have been a part of another module when they were written, or the other way.

    Args:
        network: The network.
        weights: By name, as in ``state_dict()``. ``net.conv.weight`` fits a ``conv.weight`` if ``net.`` has all that
            the network has, in the same shapes, and nothing more. Masks of torch's pruning are applied where the
            network is not pruned itself.
        source: Where the weights are from, for the error.

    Raises:
        ValueError: If they do not fit, or several of them do and differ.

    Example:
        >>> network = nn.Linear(2, 3)
        >>> load_weights(network, {"net.weight": torch.ones(3, 2), "net.bias": torch.zeros(3)}, "net.ckpt")
        >>> float(network.weight.detach().sum())
        6.0
    """
    own = network.state_dict()
    if not any(_COMPILED in name for name in own):
        weights = {name.replace(_COMPILED, ""): value for name, value in weights.items()}
    if not any(name.endswith(_PRUNED) for name in own):
        weights = dict(_masked(weights))
    parts = list(_parts(own, weights))
    lacking = [(before, taken, _differences(own, taken)) for before, taken in parts]
    # One that holds more may be meant just as well: the network and a copy of it, or a longer one.
    found = {before: taken for before, taken, (lacks, _) in lacking if not lacks}
    fitting = [taken for _, taken, (lacks, more) in lacking if not lacks and not more]
    if not fitting:
        _, _, (lacks, more) = max(lacking, key=lambda part: len(part[1].keys() & own.keys()))
        raise ValueError(
            f"The weights in {os.fspath(source)!r} do not fit {type(network).__name__}. Use the network, with its "
            f"arguments, that was trained: {', '.join([*lacks, *more][:_NAMED])}.{_hint(own, weights)}"
        )
    if any(not torch.equal(one[name], fitting[0][name]) for one in found.values() for name in own):
        raise ValueError(
            f"The weights in {os.fspath(source)!r} fit {type(network).__name__} more than once: those of "
            f"{', '.join(before.rstrip('.') or 'the whole' for before in found)}. Use the whole module that was "
            "trained, such as your LightningModule, as the network."
        )
    network.load_state_dict(fitting[0])


def _masked(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Give weights that were written pruned, and not for good, as the network computes with them."""
    pruned = {name.removesuffix(_PRUNED) for name in weights if name.endswith(_PRUNED)}
    pruned = {name for name in pruned if name + _MASK in weights}
    for name, value in weights.items():
        if name.endswith(_PRUNED) and (plain := name.removesuffix(_PRUNED)) in pruned:
            yield plain, value * weights[plain + _MASK].to(value.dtype)
        elif not (name.endswith(_MASK) and name.removesuffix(_MASK) in pruned):
            yield name, value


def _hint(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    """Say what to do where weights are written behind few bits, and the network has them plainly."""
    if not any(name.endswith(_BEHIND) for name in weights) or any(name.endswith(_BEHIND) for name in own):
        return ""
    return " They were written while FewBitWeights trained them: call put(network) of such a callback before."


def _parts(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every part of the weights that may be a network's, by what stands before its names, in the network's names."""
    yield "", dict(weights)
    befores = {name[: end + 1]: None for name in weights for end, letter in enumerate(name) if letter == "."}
    for before in befores:
        yield before, {name.removeprefix(before): one for name, one in weights.items() if name.startswith(before)}
    first = next(iter(own), "")
    for end in (end for end, letter in enumerate(first) if letter == "."):
        before = first[: end + 1]
        if all(name.startswith(before) for name in own):  # the network is one part, whose weights alone were written
            yield before, {before + name: one for name, one in weights.items()}


def _differences(own: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Say what weights lack of a network, and what they have more."""
    lacks = [f"there is no {name}" for name in own if name not in others]
    shapes = [(name, tuple(others[name].shape), tuple(own[name].shape)) for name in own if name in others]
    lacks += [f"{name} is of shape {has} there and {wanted} in it" for name, has, wanted in shapes if has != wanted]
    return lacks, [f"there is {name}, too" for name in others if name not in own]
