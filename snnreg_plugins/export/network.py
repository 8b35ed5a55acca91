"""The spiking network: time loop, state and readout around the neurons of any framework."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, fx, nn

from snnreg_plugins.export.parts import InitialState, at_least_float32


class SpikingNetwork(nn.Module):
    r"""A rate-coded spiking network with a non-spiking, integrating readout.

    In every time step the last layer gives :math:`y_t`; the scores are their mean over the steps so far,

    .. math:: \text{scores}_T = \frac{1}{T} \sum_{t=1}^{T} y_t

    which is on the output scale of the DNN that the network was exported from. Every call starts from fresh
    states, so calls are independent of each other and of the batch size. Made by :func:`~snnreg_plugins.to_snntorch`.

    Args:
        encoder: What depends on the input alone, computed once a call: the first layer's constant current.
        body: One time step, ``(constants, states) -> (output, states)``. Its spikes are 0 or 1; sum pooling makes
            integer counts of them.
        timesteps: Number of time steps T; may be set later.
        states: Number of states that the body passes on.
        release: What to call on every module of the body after a call, to let go of states it kept.
        head: What is computed once, from the mean of the outputs, where only a part of the DNN spikes.
        conversion: How the network was made; plain data.

    Attributes:
        conversion: How the network was made: the options of the export, with what ``"auto"`` chose.

    Example:
        >>> from snnreg_plugins import to_snntorch
        >>> model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> network = to_snntorch(model, torch.rand(100, 2), timesteps=4)
        >>> network(torch.rand(5, 2)).shape
        torch.Size([5, 3])
        >>> network(torch.rand(5, 2), per_step=True).shape
        torch.Size([4, 5, 3])
    """

    def __init__(
        self,
        encoder: fx.GraphModule,
        body: fx.GraphModule,
        timesteps: int,
        states: int,
        release: Callable[[nn.Module], None],
        head: fx.GraphModule | None = None,
        conversion: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.body = body
        self.head = head
        self.conversion = dict(conversion or {})
        self.timesteps = timesteps
        self._states = states
        # Listed once: the compiler cannot walk modules that a step has just written to.
        self._modules_of_step = tuple(body.modules())
        self._release = release

    @property
    def timesteps(self) -> int:
        """Number of time steps of a call."""
        return self._timesteps

    @timesteps.setter
    def timesteps(self, value: int) -> None:
        require_timesteps(value)
        self._timesteps = value

    @property
    def levels(self) -> dict[str, Tensor]:
        """What a spike of each neuron layer is worth in activation of the DNN, by the layer's name in the body.

        Each is shaped to broadcast over a sample.
        """
        return {
            name.removesuffix("_initial"): module.level
            for name, module in self.body.named_modules()
            if isinstance(module, InitialState)
        }

    def forward(self, x: Tensor, per_step: bool = False) -> Tensor:
        """Run the network for ``timesteps`` steps.

        Args:
            x: Input of shape ``(B, ...)``, constant over the steps; coded into spikes where the export says so.
            per_step: Return the scores at every step instead of the last one only.

        Returns:
            Scores of shape ``(B, K)``; with ``per_step``, the running scores ``(T, B, K)``: those that a run of
            1, 2, ..., T steps gives.
        """
        constants = self.encoder(x)
        states: tuple[Any, ...] = (None,) * self._states
        total: Any = 0
        running: list[Tensor] = []
        head: Callable[[Tensor], Tensor] = self.head if self.head is not None else nn.Identity()
        try:
            for step in range(1, self.timesteps + 1):
                output, states = self.body(constants, states)
                total = total + at_least_float32(output)
                if per_step:
                    running.append(head((total / step).to(output.dtype)))
        finally:
            # A state kept in a module would hold the graph, and break deepcopy and buffers shared over processes.
            with nullcontext() if torch.compiler.is_compiling() else torch.inference_mode(False):
                for module in self._modules_of_step:
                    self._release(module)
        return torch.stack(running) if per_step else head((total / self.timesteps).to(output.dtype))

    def extra_repr(self) -> str:
        """Show the time steps in ``print(network)``."""
        return f"timesteps={self.timesteps}"


def require_timesteps(value: int) -> None:
    """Raise a ValueError unless ``value`` is a number of time steps."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"Expected argument `timesteps` to be an integer of at least 1, but got {value!r}.")
