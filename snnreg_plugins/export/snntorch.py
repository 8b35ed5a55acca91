"""Export to snnTorch: plain ``snntorch.Leaky`` neurons."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from snnreg_plugins.export.calibrate import Calibration, Threshold
from snnreg_plugins.export.convert import convert
from snnreg_plugins.export.firing import Dynamics
from snnreg_plugins.export.network import NeuronKind, SpikingNetwork
from snnreg_plugins.export.options import Options
from snnreg_plugins.export.processes import Sharded
from snnreg_plugins.export.surrogate import FastSigmoid


def to_snntorch(
    model: nn.Module,
    calibration: Calibration | Sharded,
    *,
    timesteps: int,
    threshold: str | Threshold = "percentile",
    percent: float = 99.9,
    per_channel: bool = False,
    initial_potential: float = 0.5,
    correction: str = "none",
    beta: float = 1.0,
    compensate_leak: bool = True,
    coding: str = "constant",
    until: str | None = None,
    surrogate_slope: float = 5.0,
) -> SpikingNetwork:
    r"""Export a trained ReLU network to snnTorch ``Leaky`` neurons with balanced thresholds.

    Every ReLU becomes a layer of soft-reset integrate-and-fire neurons whose threshold λ is chosen so that the
    spike rate is activation / λ. The network's input is a constant current. With :math:`v_0 = \lambda / 2`:

    .. math::
        v_t = \beta v_{t-1} + W s_t + b - \lambda \, [v_{t-1} > \lambda] \qquad s^\text{out}_t = [v_t > \lambda]

    where W is the DNN's weight times the λ of the layer before (batch norm and the 1/k² of average pooling folded
    in too). Average pooling becomes sum pooling; max pooling passes as many spikes as the most active neuron of the
    window has fired, at the cost of a counter per neuron. The model is left as it was.

    Sums, concatenations and branches are kept. Spikes that reach a neuron without weights of their own, as over an
    identity shortcut, get a :class:`~snnreg_plugins.functional.OneToOne` synapse of weight λ, which is counted.
    ReLU6 and other clipped ReLUs saturate by themselves; LeakyReLU and PReLU become two populations, one for
    negative input. A layer that reads a sum of currents, with no neuron between, multiplies real values in every
    step: effective MACs, not SOPs.

    Args:
        model: A network that torch.fx can trace, or a LightningModule around one. Layers: Linear, Conv, ConvTranspose,
            BatchNorm, ReLU and its clipped and leaky kinds, QCFS, pooling, Flatten, Dropout, nearest upsampling.
        calibration: Training data: a tensor of inputs, or an iterable of batches or (input, target) pairs such as a
            DataLoader. Memory does not grow with it. Where several processes have a share each, wrapped in a
            :class:`~snnreg_plugins.export.Sharded`: all get the network that one would get from all of the data.
        timesteps: Time steps T of a run; ``network.timesteps`` may be set later.
        threshold: How thresholds are chosen from activations:

            - ``"percentile"`` (Rueckauer et al. 2017) or ``"max"`` (Diehl et al. 2015);
            - ``"mmse"``: the least squared error of rates over T steps (Li et al. 2021);
            - ``"local"``: local threshold balancing (Bu et al. 2024);
            - ``"spike_norm"``: the largest current under spiking input (Sengupta et al. 2019);
            - ``"learned"``: the clip of ReLU6, or the threshold that QCFS has learned; QCFS layers always take it;
            - ``"auto"``: tries these, per layer and per channel, with and without correction, on calibration data, and
              takes the one that agrees best with the DNN at T steps; of those within a standard error of the best,
              the one with the fewest SOPs. What it took is in ``network.conversion``;
            - a function from an activation histogram, and whether to go by channel, to threshold(s).
        percent: Which percentile, in (0, 100].
        per_channel: One threshold per channel (per feature after Linear) instead of one per layer: more accurate
            where channels differ much, at 1.2 to 1.6 times the SOPs.
        initial_potential: v₀ / λ in [0, 1); one half halves the error of rates at small T (Bu et al. 2022).
        correction: What remains of the error of each layer's rates, measured under spiking input on up to 1,024
            calibration samples, is corrected (Li et al. 2021) by the initial ``"potential"`` of each neuron, by that
            of each channel (``"channel_potential"``), by the ``"bias"`` of each channel, or not (``"none"``).
        beta: Decay of the potential per step; 1 keeps it, which rate coding relies on.
        compensate_leak: With β < 1, choose each layer's threshold, initial potential and a constant current on
            calibration data so that leaky neurons follow the activation; see
            :func:`~snnreg_plugins.export.simulate.compensate_leak`.
        coding: How the input arrives: ``"constant"``, the same current in every step, computed once;
            ``"poisson"``, random spikes; ``"latency"``, one spike, the earlier the larger the input (for
            fine-tuning); ``"neurons"``, an encoder of spiking neurons on the input, whose synapse can be trained.
        until: The last layer (or block of layers) to convert, by name. Its spikes are averaged over the steps, and
            what follows stays a DNN, computed once, which may hold anything; its MACs are counted as such.
        surrogate_slope: Slope of the fast-sigmoid surrogate gradient, in 1 / λ.

    Returns:
        The spiking network, on the model's device. Its parameters can be trained, those of frozen layers too;
        ``train()`` and ``eval()`` make no difference.

    Raises:
        ConversionError: If a part of the model cannot be expressed; names the layer, its line in your code, and what
            to do instead.
        ValueError: If an argument is out of range, or a layer is silent on all of the calibration data, or has
            learned no threshold.
        TypeError: If ``model`` is no module, or ``calibration`` gives something else than inputs.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
        >>> x = torch.rand(100, 2)
        >>> network = to_snntorch(model, calibration=x, timesteps=256, threshold="max")
        >>> bool((network(x) - model(x)).abs().max() < 0.05)
        True
        >>> network = to_snntorch(model, x, timesteps=4, threshold="auto")
        >>> sorted(name for name in network.conversion if name in ("threshold", "per_channel", "correction"))
        ['correction', 'per_channel', 'threshold']
    """
    options = Options(
        timesteps=timesteps,
        threshold=threshold,
        percent=percent,
        per_channel=per_channel,
        initial_potential=initial_potential,
        correction=correction,
        beta=beta,
        compensate_leak=compensate_leak,
        coding=coding,
        until=until,
        surrogate_slope=surrogate_slope,
    )
    return convert(model, calibration, SnnTorchTarget(beta, surrogate_slope), options)


class SnnTorchTarget:
    """snnTorch neurons."""

    name = "snntorch"

    @property
    def kind(self) -> NeuronKind:
        """What to know of the neurons."""
        return NeuronKind(release, describe)

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
