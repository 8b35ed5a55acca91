"""Spiking networks on disk: tensors and plain data only, so that reading one never runs code."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from snnreg_plugins._files import atomic, read_tensors
from snnreg_plugins.export.network import SpikingNetwork
from snnreg_plugins.export.snntorch import to_snntorch

_FORMAT = "snnreg_plugins spiking network 1"


def save_network(network: SpikingNetwork, path: str | os.PathLike[str], *, input_shape: Any, **options: Any) -> None:
    """Write a spiking network: its tensors, and what is needed to build it around them again.

    Args:
        network: A network of :func:`~snnreg_plugins.to_snntorch`.
        path: The file; it is there whole or not at all.
        input_shape: Shape of one input, without the batch.
        options: The options that :func:`~snnreg_plugins.to_snntorch` was called with.
    """
    content = {
        "format": _FORMAT,
        "timesteps": network.timesteps,
        "input_shape": list(input_shape),
        "options": {name: value for name, value in options.items() if name != "timesteps"},
        "state_dict": network.state_dict(),
    }
    with atomic(path) as temporary:
        torch.save(content, temporary)


def load_network(path: str | os.PathLike[str], model: nn.Module) -> SpikingNetwork:
    """Read a spiking network that :func:`save_network` wrote.

    Args:
        path: The file. Only tensors and plain data are read from it; no code is run.
        model: What was exported (the DNN, or the LightningModule around it), with any weights: the file has none of
            its structure.

    Returns:
        The network, equal to the one written.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such file, or does not fit the model.

    Example:
        >>> import tempfile
        >>> model, x = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3)), torch.rand(50, 2)
        >>> network = to_snntorch(model, x, timesteps=4)
        >>> path = os.path.join(tempfile.mkdtemp(), "spiking.pt")
        >>> save_network(network, path, input_shape=(2,))
        >>> torch.equal(load_network(path, model)(x), network(x))
        True
    """
    content = read_tensors(path, "path")
    if content.get("format") != _FORMAT:
        raise ValueError(f"Expected argument `path` to name a spiking network, but {os.fspath(path)!r} is none.")
    generator = torch.Generator().manual_seed(0)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    # Any input gives the structure; all values come from the file.
    x = torch.rand((1, *content["input_shape"]), generator=generator).to(device)
    network = to_snntorch(model, x, timesteps=content["timesteps"], **content["options"])
    try:
        network.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        raise ValueError(f"{os.fspath(path)!r} does not fit {type(model).__name__}. {error}") from error
    return network
