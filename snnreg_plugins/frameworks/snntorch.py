"""snnTorch: plain ``snntorch.Leaky`` neurons."""

from __future__ import annotations

from typing import Any

import snntorch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from snnreg_plugins.frameworks.base import Dynamics, Neurons
from snnreg_plugins.frameworks.surrogate import Surrogate, surrogate_of


def make(threshold: Tensor, beta: Tensor, surrogate: Surrogate) -> nn.Module:
    """Make a ``Leaky`` of these dynamics."""
    cell: nn.Module = snntorch.Leaky(
        beta=beta.clone(),
        threshold=threshold.clone(),
        spike_grad=surrogate,
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
        parametrize.type_before_parametrizations(module) is not snntorch.Leaky
        or surrogate_of(module.spike_grad) is None
        # What resets is bound once; the value, which says so and is saved, may be set alone.
        or module.state_function.__name__ != "_base_sub"
        or int(module.reset_mechanism_val) != 0
        or module.init_hidden
        or module.inhibition
        or module.state_quant
        or not module.reset_delay
        or bool((module.graded_spikes_factor != 1).any())
    ):
        return None
    return Dynamics(module.threshold, module.beta.clamp(0, 1), module.spike_grad)


def release(module: Any) -> None:
    """Let a ``Leaky`` go of the potential and reset that it keeps as attributes after a step."""
    if hasattr(module, "reset_mem"):
        module.mem = module.mem.new_zeros(0)
        module.reset = None


NEURONS = Neurons("snntorch", make, describe, release)
