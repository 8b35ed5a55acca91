"""What a spiking network may be given, or the one sentence that says what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn

from snnreg_plugins._checks import one_of
from snnreg_plugins._models import dtype_of


def checked_time_dim(value: Any, argument: str = "time_dim") -> int | None:
    """Give a dimension of time as a number, or None if there is none.

    Raises:
        ValueError: If it is something else than 0, for input ``(T, B, ...)``, or 1, for ``(B, T, ...)``.
    """
    return None if value is None else one_of(argument, value, (0, 1))


def require_uncoded(coding: str) -> None:
    """Raise a ValueError if an input that holds time steps would be coded into spikes."""
    if coding != "constant":
        raise ValueError(
            f"Expected an input that is constant over time with coding={coding!r}, which makes spikes of it itself. "
            'For one that holds time steps (`time_dim`), export with coding="constant": each step then reads its own.'
        )


def require_tensor(x: Any, network: nn.Module) -> None:
    """Raise a TypeError unless the input of a network is a tensor."""
    if isinstance(x, (Tensor, fx.Proxy)):
        return
    remedy = f"Pass torch.as_tensor(x, dtype={dtype_of(network)})"
    if isinstance(x, (tuple, list)) and any(isinstance(part, Tensor) for part in x):
        remedy = "Of an (input, target) pair, pass the input alone"
    elif isinstance(x, Mapping):
        remedy = "Pass the tensor of inputs that it holds"
    raise TypeError(f"Expected argument `x` to be a tensor, but got {type(x).__name__}. {remedy}.")


def require_type(x: Tensor, network: nn.Module, error: Exception) -> None:
    """Raise a TypeError if a network failed on an input of another type than its weights."""
    if x.dtype == dtype_of(network):
        return
    raise TypeError(
        f"Expected inputs of {dtype_of(network)}, as the network's weights are, but got {x.dtype}: {error}. Pass "
        f"x.to({dtype_of(network)}), scaled as in training."
    ) from error


def require_fitting(x: Tensor, time_dim: int | None, timesteps: int, conversion: Mapping[str, Any]) -> None:
    """Refuse an input of other sizes where divisors, windows or neurons are those of the calibration data's.

    Args:
        x: The input.
        time_dim: Its dimension of time, if any.
        timesteps: Those of the network.
        conversion: How the network was made.

    Raises:
        ValueError: If it does not fit; says both shapes.
    """
    shape = list(x.shape)
    if time_dim is not None:
        require_uncoded(conversion.get("coding", "constant"))
        if len(shape) < 2 or shape.pop(time_dim) != timesteps:
            raise ValueError(
                f"Expected argument `x` to hold the {timesteps} time steps of the network along dimension {time_dim}, "
                f"but got shape {tuple(x.shape)}. Set `timesteps` of the network to what the data has."
            )
    made_for = conversion.get("input_shape")
    if made_for is None or shape[1:] == made_for:
        return
    if conversion.get("any_size") and len(shape) - 1 == len(made_for) and shape[1] == made_for[0]:
        return
    axes = ["B"] if time_dim is None else ["T", "B"] if time_dim == 0 else ["B", "T"]
    remedy = "For another size, export the DNN again with calibration data of that size."
    if time_dim is None and len(shape) - 2 == len(made_for):
        remedy = "If it has a dimension of time, pass `time_dim` (0 or 1)."
    elif time_dim is not None and len(shape) == len(made_for):
        remedy = "For an input without a dimension of time, set `time_dim` of the network to None."
    elif time_dim is None and tuple(shape) == tuple(made_for):
        remedy = "Give one sample as a batch of one: x[None]."
    raise ValueError(
        f"Expected inputs of shape ({', '.join(map(str, axes + made_for))}), as the calibration data had, but got "
        f"{tuple(x.shape)}. {remedy}"
    )
