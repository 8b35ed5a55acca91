"""Spiking networks on disk: tensors and plain data only, so that reading one never runs code."""

from __future__ import annotations

import os

import torch
from torch import nn

from snnreg_plugins._files import atomic, read_tensors
from snnreg_plugins.export.convert import restore
from snnreg_plugins.spiking.network import SpikingNetwork

_FORMAT = "snnreg_plugins spiking network 2"


def save_network(network: SpikingNetwork, path: str | os.PathLike[str]) -> None:
    """Write a spiking network: its tensors, and how it was made.

    Args:
        network: A network of :func:`~snnreg_plugins.to_snntorch` or :func:`~snnreg_plugins.to_norse`.
        path: The file; it is there whole or not at all.
    """
    content = {
        "format": _FORMAT,
        "conversion": {**network.conversion, "timesteps": network.timesteps},
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
        >>> from snnreg_plugins import to_snntorch
        >>> model, x = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3)), torch.rand(50, 2)
        >>> network = to_snntorch(model, x, timesteps=4)
        >>> path = os.path.join(tempfile.mkdtemp(), "spiking.pt")
        >>> save_network(network, path)
        >>> torch.equal(load_network(path, model)(x), network(x))
        True
    """
    content = read_tensors(path, "path")
    if content.get("format") != _FORMAT:
        raise ValueError(f"Expected argument `path` to name a spiking network, but {os.fspath(path)!r} is none.")
    try:
        return restore(model, content["conversion"], content["state_dict"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{os.fspath(path)!r} does not fit {type(model).__name__}. {error}") from error
