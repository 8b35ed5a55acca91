"""What ``snnreg profile`` runs: a network of the user's by its name in a module, and a batch for it."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from snnreg_plugins._files import read_batch


def load_factory(path: str) -> nn.Module:
    """Make the network that ``module.path:factory`` names; modules in the current folder are found.

    Args:
        path: A module's dotted path, a colon, and the name in it of a network, or of a callable that makes one when
            called without arguments.

    Raises:
        ValueError: If ``path`` is not of that form, or there is no such module or name.
        TypeError: If what it names neither is nor makes a network.

    Example:
        >>> type(load_factory("snnreg_plugins.modules:LeNet")).__name__
        'LeNet'
    """
    name, colon, attribute = path.partition(":")
    if not (name and colon and attribute) or not all(part.isidentifier() for part in [*name.split("."), attribute]):
        raise ValueError(
            f"Expected argument `factory` to be of the form package.module:name, such as networks:make_net for "
            f"make_net in networks.py, but got {path!r}."
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        home = import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there, and misses another one
        raise ValueError(
            f"Expected argument `factory` to name a module, but there is no {error.name!r} in the current folder or "
            "among the installed packages."
        ) from error
    if not hasattr(home, attribute):
        raise ValueError(f"Expected argument `factory` to name something in {name}, but that has no {attribute!r}.")
    found = getattr(home, attribute)
    made = found if isinstance(found, nn.Module) or not callable(found) else _call(found, path)
    if not isinstance(made, nn.Module):
        raise TypeError(
            f"Expected argument `factory` to name a torch.nn.Module or what makes one, but {path!r} "
            f"{'is' if made is found else 'makes one'} of type {type(made).__name__}."
        )
    return made


def _call(factory: Callable[[], Any], path: str) -> Any:
    required = [
        parameter.name
        for parameter in inspect.signature(factory).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if required:
        raise TypeError(
            f"Expected argument `factory` to be callable without arguments, but {path!r} needs {', '.join(required)}. "
            "Write a function that makes the network."
        )
    return factory()


def load_inputs(data: str, input_shape: Sequence[int] | None, batch: int, batch_dim: int = 0) -> Tensor:
    """Make a batch: of random numbers in [0, 1), always the same ones, or the first samples in a file.

    Args:
        data: ``"random"``, or a file that ``torch.save`` wrote, of a tensor that holds samples along ``batch_dim``.
        input_shape: Shape of one sample, without the batch; None to take what the file has.
        batch: Number of samples.
        batch_dim: Dimension of the batch.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds no tensor or one of another shape, or an argument is out of range.

    Example:
        >>> load_inputs("random", (1, 28, 28), batch=4).shape
        torch.Size([4, 1, 28, 28])
    """
    if batch < 1:
        raise ValueError(f"Expected argument `batch` to be an integer of at least 1, but got {batch!r}.")
    if input_shape is not None and (not input_shape or min(input_shape) < 1):
        raise ValueError(f"Expected argument `input_shape` to hold sizes of at least 1, but got {list(input_shape)}.")
    if data == "random":
        if input_shape is None:
            raise ValueError("Expected argument `input_shape` to give the shape of a random sample, such as 1 28 28.")
        if not 0 <= batch_dim <= len(input_shape):
            raise ValueError(f"Expected argument `batch_dim` to be from 0 to {len(input_shape)}, but got {batch_dim}.")
        shape = (*input_shape[:batch_dim], batch, *input_shape[batch_dim:])
        return torch.rand(shape, generator=torch.Generator().manual_seed(0))
    held = read_batch(data, "data")
    if not 0 <= batch_dim < held.dim():
        raise ValueError(f"Expected argument `batch_dim` to be from 0 to {held.dim() - 1}, but got {batch_dim}.")
    sample = (*held.shape[:batch_dim], *held.shape[batch_dim + 1 :])
    if input_shape is not None and sample != tuple(input_shape):
        raise ValueError(
            f"Expected argument `input_shape` to be that of a sample in {data!r}, which is {list(sample)}, but got "
            f"{list(input_shape)}."
        )
    return held.narrow(batch_dim, 0, min(batch, held.shape[batch_dim]))
