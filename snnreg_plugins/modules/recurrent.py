"""Recurrent spiking networks that read time series."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from snnreg_plugins._checks import as_flag, as_integer, as_integers, as_number, one_of
from snnreg_plugins._imports import needed
from snnreg_plugins.functional.readout import score_after, with_step
from snnreg_plugins.neurons import ALIFParameters, ALIFState, Drawn, Recurrent
from snnreg_plugins.watching.simulated import Known, SimulatedNetwork


class RecurrentNetwork(SimulatedNetwork):
    r"""Layers of adaptive neurons, with recurrent weights or without, that read a time series step by step.

    Each layer weighs what the one below emits in the same step, and its own spikes of the step before. The readout
    weighs the spikes of the last layer into leaky potentials that never fire,

    .. math:: o_t = \kappa o_{t-1} + W z_t

    with :math:`\kappa = e^{-1 / \tau_{out}}`, learned for each class. A series ends where its rows are NaN; from there
    on it takes no steps, and costs nothing. The first layer reads currents, so it costs MACs in each step; values of 0
    and 1 alone are events. :class:`~snnreg_plugins.modules.SpikingClassifier` trains it as it is.

    Args:
        features: Number of features of a step.
        classes: Number of classes K.
        hidden: Neurons of each layer.
        framework: Whose neurons: ``"snntorch"`` or ``"norse"``; they compute the same.
        recurrent: Whether layers have recurrent weights.
        per_neuron: Whether each neuron has parameters of its own, or a layer shares them.
        tau_m: Time constant of the potential, in steps: a number, or :class:`~snnreg_plugins.neurons.Drawn` from a
            distribution; as all of the following, see :class:`~snnreg_plugins.neurons.ALIFParameters`.
        tau_adp: Time constant of the adaptation, in steps.
        threshold: Threshold at rest.
        adaptation: By how much the threshold rises at most; 0 makes plain leaky integrate-and-fire neurons.
        learn: Which of these are learned.
        tau_out: Time constant of the readout, in steps, to begin with.
        readout: What scores are, of the readout's potentials over the steps of a series: their ``"mean"``, the
            ``"last"`` or their ``"max"``.
        spike_grad: The surrogate gradient.

    Raises:
        ValueError: If an argument is out of range.
        ImportError: If the framework is not installed.

    Example:
        >>> network = RecurrentNetwork(features=12, classes=9, hidden=[32], tau_m=Drawn("gamma", 5.0, 2.0))
        >>> series = torch.rand(2, 20, 12)
        >>> series[1, 7:] = torch.nan  # it has 7 steps
        >>> network(series).shape, network.steps_taken.tolist()
        (torch.Size([2, 9]), [20, 7])
    """

    def __init__(
        self,
        features: int,
        classes: int,
        hidden: Sequence[int] = (64,),
        framework: Literal["snntorch", "norse"] = "snntorch",
        recurrent: bool = True,
        per_neuron: bool = True,
        tau_m: float | Drawn = 5.0,
        tau_adp: float | Drawn = 20.0,
        threshold: float | Drawn = 0.3,
        adaptation: float | Drawn = 1.0,
        learn: Sequence[str] = ("tau_m", "tau_adp"),
        tau_out: float = 5.0,
        readout: Literal["mean", "last", "max"] = "mean",
        spike_grad: str | nn.Module = "fast_sigmoid",
    ) -> None:
        super().__init__()
        features, classes = as_integer("features", features), as_integer("classes", classes)
        sizes = as_integers("hidden", hidden, such_as=(64, 64))
        recurrent, per_neuron = as_flag("recurrent", recurrent), as_flag("per_neuron", per_neuron)
        kind = _neuron_of(framework)
        self.inputs, self.hidden = nn.ModuleList(), nn.ModuleList()
        for below, size in zip((features, *sizes), sizes, strict=False):
            shape = (size,) if per_neuron else ()
            p = ALIFParameters(shape, tau_m, tau_adp, threshold, adaptation, learn, spike_grad)
            self.inputs.append(_weights(below, size))
            self.hidden.append(Recurrent(kind(p), size) if recurrent else kind(p))
        self.readout = _weights(sizes[-1], classes)
        self.scores_are = one_of("readout", readout, ["mean", "last", "max"])
        self.log_tau_out = nn.Parameter(torch.full((classes,), as_number("tau_out", tau_out, "(0, inf)")).log())

    def forward(self, x: Tensor) -> Tensor:
        """Give scores ``(B, K)`` of series ``(B, T, features)``; NaN where a potential is not finite.

        Raises:
            ValueError: If they have another shape or hold whole numbers, or have NaN before their end.
        """
        if x.dim() != 3 or x.shape[2] != self.inputs[0].in_features:
            raise ValueError(
                f"Expected series of shape (B, T, {self.inputs[0].in_features}), but got {tuple(x.shape)}. Images are "
                "read row by row as x.flatten(1, 2)."
            )
        if not x.is_floating_point():
            raise ValueError(f"Expected series of floating-point numbers, but got {x.dtype}. Pass x.float().")
        lengths = _lengths(x)
        self._steps_taken, self.timesteps = lengths, x.shape[1]
        # How many series take each step.
        counts = (lengths.unsqueeze(0) > torch.arange(x.shape[1], device=x.device).unsqueeze(1)).sum(1).tolist()
        running = torch.arange(len(x), device=x.device)
        keep = (-1 / self.log_tau_out.exp()).exp()
        states: list[ALIFState | None] = [None] * len(self.hidden)
        potentials = x.new_zeros(len(x), self.readout.out_features, dtype=keep.dtype)
        found = torch.full_like(potentials, torch.nan)  # of series without any step
        # A potential that is not finite stays so, and fires no more: it is looked at when series end.
        finite = torch.ones_like(running, dtype=torch.bool)
        for step, count in enumerate(counts):
            if count == 0:
                break
            if count < len(running):
                finite = finite.index_copy(0, running, _are_finite(states, running))
                on = lengths[running] > step
                running, potentials = running[on], potentials[on]
                states = [state if state is None else ALIFState(*(part[on] for part in state)) for state in states]
            spikes = x[:, step] if count == len(x) else x[running, step]
            for index, (weights, layer) in enumerate(zip(self.inputs, self.hidden, strict=True)):
                step_of: Any = layer if isinstance(layer, Recurrent) else layer.advance
                spikes, states[index] = step_of(weights(spikes), states[index])
            potentials = keep * potentials + self.readout(spikes)
            now = with_step(self.scores_are, None if step == 0 else found[running], potentials)
            found = found.index_copy(0, running, now)
        finite = finite.index_copy(0, running, _are_finite(states, running))
        scores = score_after(self.scores_are, found, lengths.unsqueeze(1))
        return torch.where(finite.unsqueeze(1), scores, torch.nan)

    def known_events(self) -> Known:
        """Tell that the first weights read currents, and all others spikes."""
        layers = self.hidden
        recurrent = [layer.synapses for layer in layers if isinstance(layer, Recurrent)]
        neurons = [layer.neuron if isinstance(layer, Recurrent) else layer for layer in layers]
        first, *others = self.inputs
        return Known(frozenset([*others, *recurrent, self.readout]), frozenset(neurons), frozenset([first]))

    @property
    def only_layers_multiply(self) -> bool:
        """Whether nothing but synaptic layers multiplies activity."""
        return True


def _neuron_of(framework: str) -> Callable[[ALIFParameters], nn.Module]:
    """Import the neurons of a framework."""
    if one_of("framework", framework, ["norse", "snntorch"]) == "norse":
        with needed("A network of Norse neurons", "norse", "norse"):
            from snnreg_plugins.neurons.norse import ALIFCell

        return ALIFCell
    with needed("A network of snnTorch neurons", "snntorch", "snntorch"):
        from snnreg_plugins.neurons.snntorch import ALIF

    return ALIF


def _weights(features: int, targets: int) -> nn.Linear:
    layer = nn.Linear(features, targets)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _are_finite(states: Sequence[ALIFState | None], running: Tensor) -> Tensor:
    """Tell of each series that is running whether all potentials are finite."""
    found = torch.ones_like(running, dtype=torch.bool)
    for state in states:
        found = found if state is None else found & state.v.isfinite().all(1)
    return found


def _lengths(x: Tensor) -> Tensor:
    """Count the steps of each series: those before its rows are NaN."""
    missing = x.isnan()
    ended = missing.all(2)
    late = ended[:, :-1] & ~ended[:, 1:]
    if bool((missing.any(2) != ended).any()) or bool(late.any()):
        sample, step = ((missing.any(2) != ended) | nn.functional.pad(late, (0, 1))).nonzero()[0].tolist()
        raise ValueError(
            f"Expected series whose rows are NaN behind their end alone, but sample {sample} has NaN in step {step} "
            "and numbers beside or behind it. Fill in what is missing, such as by the step before."
        )
    return (~ended).sum(1)
