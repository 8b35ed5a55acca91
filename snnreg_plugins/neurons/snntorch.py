"""Adaptive neurons for snnTorch."""

from __future__ import annotations

from typing import Any

import snntorch
from torch import Tensor

from snnreg_plugins._checks import as_flag
from snnreg_plugins.neurons.alif import AdaptiveNeuron, ALIFParameters, ALIFState, alif_step, as_parameters


class ALIF(AdaptiveNeuron, snntorch.SpikingNeuron):  # type: ignore[misc]
    """Adaptive leaky integrate-and-fire neuron, bit-equal to the cell for Norse; see :func:`alif_step`.

    Call it as snnTorch's neurons: ``spk, mem, adp = neuron(current, spk, mem, adp)`` with a state of your own, fresh if
    left out; or with ``init_hidden=True`` as ``spk = neuron(current)``, where it keeps the state until
    :meth:`reset_mem`. (``snntorch.utils.reset`` knows the classes of snnTorch alone.) Copies begin without a state.

    Args:
        p: The parameters.
        init_hidden: Whether the neuron keeps its state.
        output: Whether one that does gives ``(spk, mem, adp)``.

    Raises:
        TypeError: If the parameters are something else.

    Example:
        >>> import torch
        >>> neuron = ALIF(ALIFParameters(tau_m=5.0, tau_adp=10.0, adaptation=4.0), init_hidden=True)
        >>> [int(neuron(torch.tensor([4.0]))) for _ in range(16)]
        [0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]
    """

    spk: Tensor | None
    mem: Tensor | None
    adp: Tensor | None

    def __init__(self, p: ALIFParameters, init_hidden: bool = False, output: bool = False) -> None:
        super().__init__(init_hidden=as_flag("init_hidden", init_hidden), output=as_flag("output", output))
        # The list keeps neurons alive, for a reset that does not reach this one.
        snntorch.SpikingNeuron.instances.remove(self)
        del self.threshold, self.spike_grad  # they are those of the parameters
        self.p = as_parameters(p)
        self.reset_mem()

    def forward(
        self, input_: Tensor, spk: Tensor | None = None, mem: Tensor | None = None, adp: Tensor | None = None
    ) -> Any:
        """Take a step.

        Args:
            input_: Input current ``(B, ...)``.
            spk: Spikes of the last step.
            mem: Its potential.
            adp: Its adaptation.

        Returns:
            ``(spk, mem, adp)``, or ``spk`` alone from a neuron that keeps its state.

        Raises:
            TypeError: If a neuron that keeps its state is given one.
            ValueError: If a part of the state is left out, or is that of an input of another shape.
        """
        given = [part is not None for part in (spk, mem, adp)]
        if self.init_hidden and any(given):
            raise TypeError("ALIF keeps its state with `init_hidden=True`, and expects the input alone.")
        if any(given) and not all(given):
            raise ValueError("Expected all of `spk`, `mem` and `adp` of the step before, or none in the first step.")
        if self.init_hidden:
            spk, mem, adp = self.spk, self.mem, self.adp
        begins = spk is None or mem is None or adp is None
        state = self.p.fresh_state(input_) if begins else ALIFState(spk, mem, adp)  # type: ignore[arg-type]
        spikes, state = alif_step(input_, state, self.p)
        if self.init_hidden:
            self.spk, self.mem, self.adp = state
        return tuple(state) if self.output or not self.init_hidden else spikes

    def advance(self, current: Tensor, state: ALIFState | None) -> tuple[Tensor, ALIFState]:
        stepped = ALIFState(*self(current, *(state or ())))
        return stepped.z, stepped

    def reset_mem(self) -> None:
        """Forget the state that is kept."""
        self.spk = self.mem = self.adp = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "spk": None, "mem": None, "adp": None}
