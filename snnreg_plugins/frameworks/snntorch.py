"""snnTorch: plain ``snntorch.Leaky`` neurons."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from snnreg_plugins.frameworks.base import Dynamics, NeuronTraits
from snnreg_plugins.frameworks.surrogate import FastSigmoid


class SnnTorchTarget:
    """snnTorch neurons."""

    name = "snntorch"

    @property
    def kind(self) -> NeuronTraits:
        """What to know of the neurons."""
        return NeuronTraits(release, describe)

    def __init__(self, beta: float, surrogate_slope: float) -> None:
        self.beta = beta
        self.surrogate_slope = surrogate_slope

    def neuron(self, threshold: Tensor) -> nn.Module:
        """Make a neuron layer."""
        import snntorch

        cell: nn.Module = snntorch.Leaky(
            beta=torch.tensor(self.beta, dtype=threshold.dtype, device=threshold.device),
            threshold=threshold,
            spike_grad=FastSigmoid(self.surrogate_slope / threshold),
            reset_mechanism="subtract",
            # The reset of the step after the spike makes soft reset exact; the immediate one can stall a neuron.
            reset_delay=True,
        )
        # snnTorch lists every neuron in the class, to reset hidden states that ours do not have: it would keep
        # them, and all networks ever made, alive.
        snntorch.SpikingNeuron.instances.remove(cell)
        return cell.to(threshold.device)


def describe(module: Any) -> Dynamics | None:
    """Give the dynamics of a ``Leaky`` that is as the export made it; None for any other module."""
    if (
        type(module).__name__ != "Leaky"
        or type(module).__module__.partition(".")[0] != "snntorch"
        or type(module.spike_grad) is not FastSigmoid
        or module.state_function.__name__ != "_base_sub"
        or module.init_hidden
        or module.inhibition
        or module.state_quant
        or not module.reset_delay
        or module.graded_spikes_factor != 1
        or module.threshold.requires_grad
        or module.beta.requires_grad
    ):
        return None
    return Dynamics(module.threshold, module.beta.clamp(0, 1), module.spike_grad.slope)


def release(module: Any) -> None:
    """Let a ``Leaky`` go of the potential and reset that it keeps as attributes after a step."""
    if hasattr(module, "reset_mem"):
        module.mem = module.mem.new_zeros(0)
        module.reset = None
