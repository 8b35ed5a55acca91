"""The doors of the export: a trained network to spiking neurons of a framework."""

from __future__ import annotations

from torch import nn

from snnreg_plugins._batches import Calibration
from snnreg_plugins.export.calibrate import Threshold
from snnreg_plugins.export.convert import convert
from snnreg_plugins.export.options import (
    BatchNorm,
    Coding,
    Correction,
    Heterogeneity,
    Method,
    Options,
    Surrogate,
    Trained,
    Weights,
)  # fmt: skip
from snnreg_plugins.export.processes import Sharded
from snnreg_plugins.spiking.network import SpikingNetwork


def to_snntorch(
    model: nn.Module,
    calibration: Calibration | Sharded,
    *,
    timesteps: int,
    threshold: Method | Threshold = "percentile",
    percent: float | None = None,
    per_channel: bool | None = None,
    initial_potential: float = 0.5,
    correction: Correction | None = None,
    beta: float = 1.0,
    compensate_leak: bool = True,
    coding: Coding = "constant",
    until: str | None = None,
    surrogate: Surrogate = "fast_sigmoid",
    surrogate_slope: float | None = None,
    time_dim: int | None = None,
    batch_norm: BatchNorm = "fold",
    train_thresholds: Trained = "none",
    train_beta: Trained = "none",
    heterogeneity: Heterogeneity = "none",
    threshold_std: float = 0.0,
    beta_std: float = 0.0,
    weights: Weights = "float",
    weight_bits: int | None = None,
    train_weights: bool = False,
    budget: float | None = None,
    auto_tolerance: float = 0.5,
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
            - ``"auto"``: tries these, per layer and per channel, on calibration data, and takes the one with the fewest
              SOPs of those that keep as much of the DNN's accuracy at T steps as the best does, but for the
              ``auto_tolerance``. A ``percent``, ``per_channel`` or ``correction`` that is given is kept. What it took
              is in ``network.conversion``, with what was ``"tried"``;
            - a function from an activation histogram, and whether to go by channel, to threshold(s).
        percent: Which percentile, above 1 (a share by mistake) and at most 100; 99.9 if None.
        per_channel: One threshold per channel (per feature after Linear) instead of one per layer: more accurate
            where channels differ much, at 1.2 to 1.6 times the SOPs. False if None.
        initial_potential: v₀ / λ in [0, 1); one half halves the error of rates at small T (Bu et al. 2022).
        correction: What remains of the error of each layer's rates, measured under spiking input on calibration
            samples, is corrected (Li et al. 2021) by the initial ``"potential"`` of each neuron (up to 1,024 samples),
            by that of each channel (``"channel_potential"``; 256), by the ``"bias"`` of each channel (256), or not
            (``"none"``). Potentials are those for T steps. ``"channel_potential"`` if None.
        beta: Decay of the potential per step; 1 keeps it, which rate coding relies on.
        compensate_leak: With β < 1, choose each layer's threshold, initial potential and a constant current on
            calibration data so that leaky neurons follow the activation; see
            :func:`~snnreg_plugins.export.simulate.compensate_leak`.
        coding: How the input arrives: ``"constant"``, the same current in every step, computed once;
            ``"poisson"``, random spikes; ``"latency"``, one spike, the earlier the larger the input (for
            fine-tuning); ``"neurons"``, an encoder of spiking neurons on the input, whose synapse can be trained.
        until: The last layer (or block of layers) to convert, by name. Its spikes are averaged over the steps, and
            what follows stays a DNN, computed once, which may hold anything; its MACs are counted as such.
        surrogate: The surrogate gradient, :math:`\frac{\partial s}{\partial v} \approx \frac{1}{\lambda} g\left(
            k \left| \frac{v}{\lambda} - 1 \right| \right)`: ``"fast_sigmoid"``, ``"triangular"``, ``"arctan"``,
            ``"rectangular"``, ``"sigmoid"`` or ``"gaussian"``. To train with another one, set ``spike_grad`` of each
            neuron to a module that computes it.
        surrogate_slope: k, in 1 / λ; 5, 1, π, 2, 4 and 2 for these if None.
        time_dim: Dimension of time in the inputs, of calibration and network alike: 0 for ``(T, B, ...)``, such as
            events, 1 for ``(B, T, ...)``; None if they are constant. Step t reads :math:`x_t`, and the scores
            approach those of the DNN on the mean over the steps, :math:`\frac{1}{T} \sum_t x_t`, which it is to be
            trained on. What stands in front of the first ReLU must be linear.
        batch_norm: ``"fold"`` batch norms into the weights in front of them, or ``"keep"`` them while the network is
            trained, with statistics over samples and time steps: training to few steps gets much further with them.
            :func:`~snnreg_plugins.deploy` folds them in the end.
        train_thresholds: Whether thresholds are trained with the weights: ``"none"``, or one for each ``"layer"``,
            ``"channel"`` or ``"neuron"``. What is trained is their logarithm, so they stay above 0;
            :func:`~snnreg_plugins.deploy` fixes them in the end.
        train_beta: Whether decays are trained too, from a ``beta`` below 1 on: ``"none"``, or one for each ``"layer"``,
            ``"channel"`` or ``"neuron"``. They are logistic functions of what is trained, and so stay in (0, 1).
        heterogeneity: Lets trained thresholds and decays differ from the start: ``"none"``, or the distribution they
            are drawn from, ``"gamma"``, ``"lognormal"``, ``"normal"`` or ``"uniform"``; torch's generator draws.
        threshold_std: Standard deviation of thresholds, as a share of those that were balanced, which are the means.
        beta_std: Standard deviation of decays, around ``beta``.
        weights: ``"float"``, or few bits for each weight, in a unit of each output channel: ``"int8"``, integers, or
            ``"power_of_two"``, of which a product is a shift; see :mod:`snnreg_plugins.functional.fewbits`. They are
            rounded after balancing, and thresholds, potentials and biases are rounded to whole numbers of the same
            units, so that with β = 1 all that spikes feed is exact in integers, for as many time steps as
            ``network.conversion["exact_timesteps"]`` says. Real-valued input, and so what its currents do to the first
            neurons, stays real; input of whole numbers, and coded input, is exact as well. A part of the DNN that does
            not spike stays in floats.
        weight_bits: Bits of a weight, its sign among them: 2 to 8 for ``"int8"`` (8 if None), 2 to 5 for
            ``"power_of_two"`` (4 if None).
        train_weights: Keep floats behind the weights of few bits, to train them by straight-through gradients until
            :func:`~snnreg_plugins.deploy` rounds all; so it is too where batch norms are kept or thresholds trained.
        budget: SOPs/sample that the network may spend on average over the calibration data (up to 1,024 samples), by
            an exact count. Of so many time steps, half of them, and so on down to 1, of thresholds up to twice as
            high, of margins at which samples leave early (:func:`~snnreg_plugins.exit_margins`), and with
            ``threshold="auto"`` of all its thresholds, it takes what agrees best with the DNN on samples that it was
            not adjusted on. What it took is in ``network.conversion`` (``timesteps``, ``sops``, ``agreement``, the
            share of samples of the DNN's class, and, of higher thresholds, ``threshold_factors``) and in
            ``network.exit_margins``.
        auto_tolerance: How many points less than the best of what ``threshold="auto"`` tries may be kept where that
            saves SOPs: points of accuracy, as the DNN's own probabilities tell it; of outputs that are no classes, of
            their variance that is explained (R²). Differences within a standard error may be twice that.

    Returns:
        The spiking network, on the model's device. Its parameters can be trained, those of frozen layers too;
        ``train()`` and ``eval()`` make no difference, but to batch norms that are kept.

    Raises:
        ConversionError: If a part of the model cannot be expressed; names the layer, its line in your code, and what
            to do instead.
        ValueError: If an argument is out of range, or a layer is silent on all of the calibration data, or has
            learned no threshold; or if no network is within the ``budget``.
        TypeError: If ``model`` is no module, or ``calibration`` gives something else than inputs.

    Example:
        >>> import torch
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
        surrogate=surrogate,
        surrogate_slope=surrogate_slope,
        time_dim=time_dim,
        batch_norm=batch_norm,
        train_thresholds=train_thresholds,
        train_beta=train_beta,
        heterogeneity=heterogeneity,
        threshold_std=threshold_std,
        beta_std=beta_std,
        weights=weights,
        weight_bits=weight_bits,
        train_weights=train_weights,
        budget=budget,
        auto_tolerance=auto_tolerance,
    )
    return convert(model, calibration, options.target("snntorch"), options)


def to_norse(
    model: nn.Module,
    calibration: Calibration | Sharded,
    *,
    timesteps: int,
    threshold: Method | Threshold = "percentile",
    percent: float | None = None,
    per_channel: bool | None = None,
    initial_potential: float = 0.5,
    correction: Correction | None = None,
    beta: float = 1.0,
    compensate_leak: bool = True,
    coding: Coding = "constant",
    until: str | None = None,
    surrogate: Surrogate = "fast_sigmoid",
    surrogate_slope: float | None = None,
    time_dim: int | None = None,
    batch_norm: BatchNorm = "fold",
    train_thresholds: Trained = "none",
    train_beta: Trained = "none",
    heterogeneity: Heterogeneity = "none",
    threshold_std: float = 0.0,
    beta_std: float = 0.0,
    weights: Weights = "float",
    weight_bits: int | None = None,
    train_weights: bool = False,
    budget: float | None = None,
    auto_tolerance: float = 0.5,
) -> SpikingNetwork:
    r"""Export a trained ReLU network to Norse neurons with balanced thresholds.

    The same as :func:`~snnreg_plugins.to_snntorch` with the same options, which it explains, and spikes equal to its
    spikes bit for bit; the neurons are
    :class:`~snnreg_plugins.frameworks.norse.SoftResetCell`.

    Args:
        model: See :func:`~snnreg_plugins.to_snntorch`.
        calibration: Training data: a tensor of inputs, or an iterable of batches or (input, target) pairs;
            in a ``Sharded``, the share of one of several processes.
        timesteps: Time steps T of a run.
        threshold: How thresholds are chosen: ``"percentile"``, ``"max"``, ``"mmse"``, ``"local"``, ``"spike_norm"``,
            ``"learned"``, ``"auto"``, or a function.
        percent: Which percentile, above 1 (a share by mistake) and at most 100; 99.9 if None.
        per_channel: One threshold per channel instead of one per layer; False if None.
        initial_potential: v₀ / λ in [0, 1).
        correction: ``"none"``, ``"potential"``, ``"channel_potential"`` or ``"bias"``; as there if None.
        beta: Decay of the potential per step.
        compensate_leak: Whether to make up for β < 1.
        coding: ``"constant"``, ``"poisson"``, ``"latency"`` or ``"neurons"``.
        until: The last layer to convert; what follows stays a DNN.
        surrogate: Name of the surrogate gradient.
        surrogate_slope: Its slope, in 1 / λ; that of its name if None.
        time_dim: Dimension of time in the inputs, 0 or 1; None if they are constant.
        batch_norm: ``"fold"`` or ``"keep"``.
        train_thresholds: ``"none"``, ``"layer"``, ``"channel"`` or ``"neuron"``.
        train_beta: ``"none"``, ``"layer"``, ``"channel"`` or ``"neuron"``.
        heterogeneity: Distribution that trained thresholds and decays are drawn from, or ``"none"``.
        threshold_std: Standard deviation of thresholds, as a share of those that were balanced.
        beta_std: Standard deviation of decays.
        weights: ``"float"``, ``"int8"`` or ``"power_of_two"``.
        weight_bits: Bits of a weight that is no float.
        train_weights: Whether weights of few bits are trained.
        budget: SOPs/sample that the network may spend.
        auto_tolerance: Points that ``threshold="auto"`` gives for fewer SOPs.

    Returns:
        The spiking network, on the model's device, as of :func:`~snnreg_plugins.to_snntorch`.

    Raises:
        ConversionError: If a part of the model cannot be expressed; names the layer and what to do instead.
        ValueError: If an argument is out of range.
        TypeError: If ``calibration`` gives something else than inputs.

    Example:
        >>> import torch
        >>> from snnreg_plugins import to_snntorch
        >>> model, x = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3)), torch.rand(100, 2)
        >>> torch.equal(to_norse(model, x, timesteps=8)(x), to_snntorch(model, x, timesteps=8)(x))
        True
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
        surrogate=surrogate,
        surrogate_slope=surrogate_slope,
        time_dim=time_dim,
        batch_norm=batch_norm,
        train_thresholds=train_thresholds,
        train_beta=train_beta,
        heterogeneity=heterogeneity,
        threshold_std=threshold_std,
        beta_std=beta_std,
        weights=weights,
        weight_bits=weight_bits,
        train_weights=train_weights,
        budget=budget,
        auto_tolerance=auto_tolerance,
    )
    return convert(model, calibration, options.target("norse"), options)
