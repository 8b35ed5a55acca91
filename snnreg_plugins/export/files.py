"""Spiking networks on disk: tensors and plain data only, so that reading one never runs code."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from snnreg_plugins._checks import as_sizes, shown
from snnreg_plugins._files import atomic, digest, read_tensors
from snnreg_plugins._models import as_module, device_of, dtype_of
from snnreg_plugins.export.build import build
from snnreg_plugins.export.calibrate import propagate_shapes
from snnreg_plugins.export.fold import fold_batch_norms
from snnreg_plugins.export.input_code import CODES
from snnreg_plugins.export.integers import bring_to_few_bits
from snnreg_plugins.export.options import Options, code_settings
from snnreg_plugins.export.structure import Structure
from snnreg_plugins.export.trace import trace
from snnreg_plugins.spiking.coding import LatencyCoder, PoissonCoder
from snnreg_plugins.spiking.layers import InitialState
from snnreg_plugins.spiking.network import SpikingNetwork, require_network

_FORMAT = "snnreg_plugins spiking network 3"
_BEFORE = "snnreg_plugins spiking network 2"
# What files do not say that were written before there was a choice.
_UNSAID = {
    "budget": None,
    "auto_tolerance": 0.5,
    "time_dim": None,
    "surrogate": "fast_sigmoid",
    "train_beta": "none",
    "heterogeneity": "none",
    "threshold_std": 0.0,
    "beta_std": 0.0,
    "weights": "float",
    "weight_bits": None,
    "train_weights": False,
}
# Values of one input, which the model runs on for the shapes.
_LARGEST_INPUT = 2**25


def save_network(network: SpikingNetwork, path: str | os.PathLike[str]) -> None:
    """Write a spiking network: its tensors, and how it was made.

    Args:
        network: A network of :func:`~snnreg_plugins.to_snntorch` or :func:`~snnreg_plugins.to_norse`.
        path: The file; it is there whole or not at all.

    Raises:
        TypeError: If ``network`` is none.
    """
    require_network(network)
    content = {**description(network), "state_dict": network.state_dict()}
    content["digest"] = digest(content)
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
    version = content.get("format")
    if isinstance(version, str) and version == _BEFORE:
        raise ValueError(
            f"{os.fspath(path)!r} was written by version 0.1, which did not write down which parts the network has. "
            "Export the DNN again with to_snntorch() or to_norse(), and save_network() the result."
        )
    if not isinstance(version, str) or version != _FORMAT:
        raise ValueError(f"Expected argument `path` to name a spiking network, but {os.fspath(path)!r} is none.")
    as_module("model", model)
    tensors: dict[str, Tensor] = {}
    try:
        tensors = _tensors_of(content["state_dict"])
        network = _made_again(model, _plain(content["conversion"], "conversion"), tensors)
        _require_sound(network)
        network.timesteps = content["timesteps"]
        network.exit_margins = content["exit_margins"]
        told = {name: value for name, value in content.items() if name != "digest"}
        if "digest" in content and digest(told) != content["digest"]:
            raise ValueError("It is damaged: its numbers, names or settings are not those that were written.")
    # What a file says is taken for granted nowhere, and leads to errors of all kinds where it is none.
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = error.args[0] if isinstance(error, KeyError) and error.args else error
        meant = _meant(model, tensors)
        raise ValueError(f"{os.fspath(path)!r} does not fit {type(model).__name__}. {meant or reason}") from error
    return network


def _plain(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"Its {name!r} is no dictionary of names, but {shown(value)}.")
    return value


def _tensors_of(state_dict: Any) -> dict[str, Tensor]:
    """Give the tensors of a file, if that is what they are."""
    tensors = _plain(state_dict, "state_dict")
    for name, value in tensors.items():
        plain = isinstance(value, Tensor) and value.layout == torch.strided
        if not plain or value.is_quantized or value.is_complex() or value.is_meta:
            raise ValueError(f"{name!r} is no plain tensor, but {shown(value)}.")
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{name!r} holds NaN or infinity.")
    return tensors


def _meant(model: nn.Module, tensors: Mapping[str, Tensor]) -> str:
    """Say which module was exported, where it holds the given one or is within it; empty if that is not the reason."""
    parts = [name.split(".")[1:-1] for name in tensors if name.endswith(".weight")]
    layers = {".".join(names) for names in parts}
    known = {name for name, _ in model.named_modules()} - {""}
    if not layers or layers & known:
        return ""
    for child in known:
        if {f"{child}.{layer}" for layer in layers} <= known:
            return f"What was exported is `{child}` of it. Pass model.{child}."
    for depth in range(1, min(map(len, parts))):
        holders = {".".join(names[:depth]) for names in parts}
        if len(holders) == 1 and {".".join(names[depth:]) for names in parts} <= known:
            return f"What was exported is a module that holds it as {holders.pop()!r}. Pass that module."
    return ""


def _require_sound(network: SpikingNetwork) -> None:
    """Raise a ValueError if an export would not have given such numbers."""
    computed: dict[str, Tensor] = dict(network.named_parameters())
    for name, module in network.named_modules():
        dynamics = network.neurons.describe(module)
        positive = {}
        if dynamics is not None:
            positive = {"threshold": dynamics.threshold, "surrogate slope": dynamics.surrogate.slope}
        if isinstance(module, InitialState):
            positive["level"] = module.level
        if isinstance(module, (PoissonCoder, LatencyCoder)):
            positive["largest input"] = module.largest
        for what, values in positive.items():
            if not bool((values > 0).all()):
                raise ValueError(f"{name!r} has a {what} that is not positive.")
        if dynamics is not None and not bool(((dynamics.beta >= 0) & (dynamics.beta <= 1)).all()):
            raise ValueError(f"{name!r} has a beta that is not in [0, 1].")
        computed |= {f"{name}: {what}": values for what, values in positive.items()}
    dtypes = {value.dtype: name for name, value in computed.items()}
    if len(dtypes) > 1:
        raise ValueError(f"Its tensors are of several types: {', '.join(f'{n!r} of {t}' for t, n in dtypes.items())}.")


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
    given = {field.name: {**_UNSAID, **conversion}[field.name] for field in fields(Options)}
    # How thresholds were chosen makes no difference any more, and "custom" cannot be chosen again.
    options = Options(**{**given, "threshold": "max", "correction": "none"})
    structure = Structure(_plain(conversion["structure"], "structure"))
    _require_bounded(structure, max((value.numel() for value in tensors.values()), default=0))
    shape = as_sizes("input_shape", conversion["input_shape"])
    if math.prod(shape) > _LARGEST_INPUT:
        raise ValueError(f"Its inputs are of shape {shape}, which is more than {_LARGEST_INPUT:,} values.")
    with torch.inference_mode(False), torch.no_grad():
        # Any input gives the shapes.
        samples = torch.zeros((2, *shape), device=device_of(model), dtype=dtype_of(model))
        traced = trace(model, samples, options.until)
        propagate_shapes(traced, samples)
        fold_batch_norms(traced, structure)
        settings = code_settings(options, traced, samples)
        code = CODES[options.coding].made_again(structure.decide(settings.name, "code", dict), settings)
        target = options.target(conversion["framework"])
        kept = {name: value for name, value in conversion.items() if name != "structure"}
        network = build(traced, {}, target, options.timesteps, code, structure, kept)
        bring_to_few_bits(network, is_new=False)
        _assign(network, tensors)
    return network


def _require_bounded(structure: Structure, largest: int) -> None:
    """Raise a ValueError if parts of the network are said to be larger than the largest tensor."""
    for place, answers in structure.written.items():
        for question, answer in answers.items():
            for shape in answer if question.endswith(" shapes") else ():
                if math.prod(as_sizes("shapes", tuple(shape))) > max(largest, 1):
                    raise ValueError(f"It says {question!r} of {place!r} that are larger than any of its tensors.")


def _assign(network: SpikingNetwork, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors in the place of a network's own, which must have the same names and shapes."""
    own = network.state_dict()
    for name in own.keys() | tensors.keys():
        if name not in own:
            raise ValueError(f"The network has no {name!r}.")
        if name not in tensors:
            raise ValueError(f"{name!r} is missing.")
        if tensors[name].is_floating_point() != own[name].is_floating_point():
            raise ValueError(f"{name!r} is of {tensors[name].dtype}, but the network has it of {own[name].dtype}.")
        if tensors[name].shape != own[name].shape:
            shapes = tuple(own[name].shape), tuple(tensors[name].shape)
            raise ValueError(f"{name!r} is of shape {shapes[1]}, but the network has it of shape {shapes[0]}.")
        path, _, last = name.rpartition(".")
        module = network.get_submodule(path)
        value = tensors[name].to(own[name].device, copy=True)
        is_parameter = last in dict(module.named_parameters(recurse=False))
        setattr(module, last, nn.Parameter(value) if is_parameter else value)
