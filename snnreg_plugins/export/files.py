"""Spiking networks on disk: tensors and plain data only, so that reading one never runs code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from snnreg_plugins._files import atomic, read_tensors
from snnreg_plugins._models import device_of, dtype_of
from snnreg_plugins.export.build import build
from snnreg_plugins.export.calibrate import propagate_shapes
from snnreg_plugins.export.fold import fold_batch_norms
from snnreg_plugins.export.input_code import CODES
from snnreg_plugins.export.options import Options, code_settings
from snnreg_plugins.export.structure import Structure
from snnreg_plugins.export.trace import trace
from snnreg_plugins.frameworks.registry import target_of
from snnreg_plugins.spiking.network import SpikingNetwork

_FORMAT = "snnreg_plugins spiking network 3"
_BEFORE = "snnreg_plugins spiking network 2"


def save_network(network: SpikingNetwork, path: str | os.PathLike[str]) -> None:
    """Write a spiking network: its tensors, and how it was made.

    Args:
        network: A network of :func:`~snnreg_plugins.to_snntorch` or :func:`~snnreg_plugins.to_norse`.
        path: The file; it is there whole or not at all.
    """
    content = {**description(network), "state_dict": network.state_dict()}
    with atomic(path) as temporary:
        torch.save(content, temporary)


def description(network: SpikingNetwork) -> dict[str, Any]:
    """Give what a network is beside its ``state_dict()``, as plain data; for :func:`described_network`."""
    return {
        "format": _FORMAT,
        "conversion": network.conversion,
        "timesteps": network.timesteps,
        "exit_margins": network.exit_margins,
    }


def load_network(path: str | os.PathLike[str], model: nn.Module) -> SpikingNetwork:
    """Read a spiking network that :func:`save_network` wrote.

    Args:
        path: The file. Only tensors and plain data are read from it; no code is run.
        model: What was exported (the DNN, or the LightningModule around it), with any weights: the file has all that
            the network computes with, but not the code of the DNN.

    Returns:
        The network, equal to the one written.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such file, or does not fit the model.

    Example:
        >>> import tempfile
        >>> from snnreg_plugins import to_snntorch
        >>> model, x = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3)), torch.rand(50, 2)
        >>> network = to_snntorch(model, x, timesteps=4)
        >>> path = os.path.join(tempfile.mkdtemp(), "spiking.pt")
        >>> save_network(network, path)
        >>> torch.equal(load_network(path, model)(x), network(x))
        True
    """
    return described_network(read_tensors(path, "path"), model, path)


def described_network(content: Mapping[str, Any], model: nn.Module, path: str | os.PathLike[str]) -> SpikingNetwork:
    """Make a network again from its :func:`description` and ``state_dict``.

    Args:
        content: Both, as read from a file.
        model: What was exported, with any weights.
        path: The file, for the error.

    Raises:
        ValueError: If it is no network, or does not fit the model.
    """
    if content.get("format") == _BEFORE:
        raise ValueError(
            f"{os.fspath(path)!r} was written by version 0.1, which did not write down which parts the network has. "
            "Export the DNN again with to_snntorch() or to_norse(), and save_network() the result."
        )
    if content.get("format") != _FORMAT:
        raise ValueError(f"Expected argument `path` to name a spiking network, but {os.fspath(path)!r} is none.")
    try:
        network = _made_again(model, content["conversion"], content["state_dict"])
        network.timesteps = content["timesteps"]
        network.exit_margins = content["exit_margins"]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise ValueError(f"{os.fspath(path)!r} does not fit {type(model).__name__}. {reason}") from error
    return network


def _made_again(model: nn.Module, conversion: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SpikingNetwork:
    """Build a network around the DNN that it was made from, of the parts that were written down.

    Args:
        model: The DNN, with any weights.
        conversion: How the network was made.
        tensors: The network's ``state_dict()``.

    Raises:
        KeyError: If ``conversion`` lacks something.
        ValueError: If ``tensors`` are not those of the network.
    """
    given = {field.name: conversion[field.name] for field in fields(Options)}
    # How thresholds were chosen makes no difference any more, and "custom" cannot be chosen again.
    options = Options(**{**given, "threshold": "max", "correction": "none"})
    structure = Structure(conversion["structure"])
    with torch.inference_mode(False), torch.no_grad():
        # Any input gives the shapes.
        samples = torch.zeros((2, *conversion["input_shape"]), device=device_of(model), dtype=dtype_of(model))
        traced = trace(model, samples, options.until)
        propagate_shapes(traced, samples)
        fold_batch_norms(traced, structure)
        settings = code_settings(options, traced, samples)
        code = CODES[options.coding].made_again(structure.decide(settings.name, "code", dict), settings)
        target = target_of(conversion["framework"], options.beta, options.surrogate_slope)
        kept = {name: value for name, value in conversion.items() if name != "structure"}
        network = build(traced, {}, target, options.timesteps, code, structure, kept)
        _assign(network, tensors)
    return network


def _assign(network: SpikingNetwork, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors in the place of a network's own, which must have the same names and shapes."""
    own = network.state_dict()
    for name in own.keys() | tensors.keys():
        if name not in own:
            raise ValueError(f"The network has no {name!r}.")
        if name not in tensors:
            raise ValueError(f"{name!r} is missing.")
        if tensors[name].shape != own[name].shape:
            shapes = tuple(own[name].shape), tuple(tensors[name].shape)
            raise ValueError(f"{name!r} is of shape {shapes[1]}, but the network has it of shape {shapes[0]}.")
        path, _, last = name.rpartition(".")
        module = network.get_submodule(path)
        value = tensors[name].to(own[name].device, copy=True)
        is_parameter = last in dict(module.named_parameters(recurse=False))
        setattr(module, last, nn.Parameter(value) if is_parameter else value)
