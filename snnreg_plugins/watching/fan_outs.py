"""The synapses of layers for inputs of each shape, prepared once."""

from __future__ import annotations

import torch
from torch import Tensor

from snnreg_plugins.functional.synapses import Synapses, SynapticLayer, fan_out, is_synaptic
from snnreg_plugins.watching.layers import FanOutKey, fan_out_key

# Input shapes of a layer, on average, whose fan-out is kept at most.
_SHAPES = 8


class SynapsesByShape:
    """Keeps what was prepared, for a few shapes of each layer.

    Args:
        rows: Number of layers.
    """

    def __init__(self, rows: int) -> None:
        self._most = _SHAPES * rows
        self._found: dict[FanOutKey, Synapses] = {}

    def __len__(self) -> int:
        return len(self._found)

    def of(self, row: int, layer: SynapticLayer, shape: tuple[int, ...]) -> Synapses:
        """Give the synapses of a layer, which has a number, for inputs of a shape."""
        key = fan_out_key(row, layer, shape)
        found = self._found.get(key)
        if found is None:
            if len(self._found) >= self._most:  # inputs of ever new sizes
                self._found.clear()
            found = self._found[key] = Synapses(layer, fan_out_of(layer, shape))
        return found


def fan_out_of(layer: SynapticLayer, shape: tuple[int, ...]) -> Tensor:
    """Give the fan-out of a synaptic layer, or of one-to-one synapses of another package."""
    return fan_out(layer, shape) if is_synaptic(layer) else torch.tensor(1).expand(shape)
