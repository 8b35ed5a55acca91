"""What layers give on average over time steps, in the graph."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from snnreg_plugins._torch import checkpoint_in_forward
from snnreg_plugins.spiking.layers import by_step, for_summing
from snnreg_plugins.spiking.network import SpikingNetwork
from snnreg_plugins.watching.hooks import Hooks, uncompiled
from snnreg_plugins.watching.layers import time_dim
from snnreg_plugins.watching.samples import tensors_in
from snnreg_plugins.watching.simulated import names_in_dnn
from snnreg_plugins.watching.steps import steps_of_call


class LayerMeans:
    """The mean of what each layer gives over its calls, such as time steps, within one call of its network.

    Spikes of a :class:`~snnreg_plugins.SpikingNetwork` count with what each is worth in activation of the DNN.

    Args:
        network: Where the layers are.
        layers: Their names; in a spiking network, those that they have in the DNN.
        whose: Whose layers they are, for errors.

    Raises:
        ValueError: If there is no such layer.
    """

    def __init__(self, network: nn.Module, layers: Iterable[str], whose: str) -> None:
        self._whose = whose
        self._names = list(dict.fromkeys(layers))
        self._sums: dict[str, list[Tensor]] = {}  # of each part of the batch
        self._steps: dict[str, list[int]] = {}
        self._is_listening = False
        self._hooks = Hooks(many_steps=True)
        paths = {shown: path for path, shown in names_in_dnn(network).items() if path} if self._names else {}
        for name in self._names:
            if name not in paths:
                raise ValueError(
                    f"Expected argument `layers` to name layers of the {whose}, such as {_some(paths)}, but got "
                    f"{name!r}."
                )
            self._hooks.after(network.get_submodule(paths[name]), partial(self._gave, name))
        self._worth = {name: found for name in self._names if (found := _spiking_part(network, paths[name]))}

    def begin(self) -> None:
        """Watch the call of the network that begins."""
        self._sums, self._steps = {}, {}
        self._is_listening = True

    def end(self) -> None:
        """Watch no longer; what was seen stays."""
        self._is_listening = False

    @uncompiled
    def _gave(self, name: str, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self._is_listening:
            return
        if not torch.is_grad_enabled() and checkpoint_in_forward() is not None and self._whose == "student":
            raise MisconfigurationException(
                f"Distillation cannot serve layer {name!r} within a reentrant checkpoint, where it is computed without "
                "gradients. Use torch.utils.checkpoint.checkpoint(..., use_reentrant=False), or leave it out of "
                "`layers`."
            )
        values = next(tensors_in(output), None)
        if values is None or not values.is_floating_point():
            raise MisconfigurationException(
                f"Expected argument `layers` to name layers that give numbers, but {name!r} gives "
                f"{type(output).__name__ if values is None else values.dtype}."
            )
        values, held, dim = for_summing(values), steps_of_call(), time_dim(layer)
        if dim is not None and values.dim() > dim:
            total, steps = values.sum(dim), values.shape[dim]
        elif held is not None:
            total, steps = by_step(values, held.steps).sum(0), held.steps
        else:
            total, steps = values.clone(), 1  # what comes next may be in place
        sums, counts = self._sums.setdefault(name, []), self._steps.setdefault(name, [])
        if not sums or (held is not None and held.first_step == 0):  # another part of the batch
            sums.append(total)
            counts.append(steps)
        elif sums[-1].shape != total.shape:
            raise MisconfigurationException(
                f"Expected argument `layers` to name layers that are called once a step, but {name!r} gives "
                f"{tuple(sums[-1].shape)} and {tuple(total.shape)} in one call of the {self._whose}."
            )
        else:
            sums[-1] = sums[-1] + total
            counts[-1] += steps

    def means(self) -> dict[str, Tensor]:
        """Give the means in the last call, by layer, and keep them no longer.

        Raises:
            MisconfigurationException: If a layer was not called.
        """
        sums, self._sums = self._sums, {}
        means = {}
        for name in self._names:
            if name not in sums:
                raise MisconfigurationException(
                    f"Expected argument `layers` to name layers that are called, but {name!r} of the {self._whose} is "
                    "not."
                )
            means[name] = torch.cat([total / steps for total, steps in zip(sums[name], self._steps[name], strict=True)])
            if name in self._worth:
                network, layer = self._worth[name]
                means[name] = means[name] * network.levels[layer]
        return means

    def remove(self) -> None:
        """Look on no longer."""
        self._hooks.remove()


def _spiking_part(model: nn.Module, path: str) -> tuple[SpikingNetwork, str] | None:
    """Find the exported network that neurons are in, and their name in it; None if they are in none."""
    for prefix, module in model.named_modules():
        layer = path.removeprefix(f"{prefix}.body." if prefix else "body.")
        if isinstance(module, SpikingNetwork) and layer in module.levels:
            return module, layer
    return None


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(map(repr, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
