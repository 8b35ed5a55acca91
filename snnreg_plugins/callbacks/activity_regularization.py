"""Regularize the activity of a network in training, from outside its LightningModule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from snnreg_plugins._checks import as_integer, as_names, as_number, as_percent, one_of, shown
from snnreg_plugins.callbacks.added_loss import AddedLossCallback
from snnreg_plugins.functional.energy import EnergyTable, energy_table
from snnreg_plugins.functional.penalties import (
    PENALTIES,
    START,
    Penalty,
    energy_at_rate,
    energy_of_spikes,
    expected_rate,
    rate_bounds,
)
from snnreg_plugins.functional.synapses import SynapticLayer
from snnreg_plugins.training.penalty import ActivityPenalty, Means, to_log
from snnreg_plugins.training.thresholds import RunningThresholds
from snnreg_plugins.watching.layers import spikes_already, synaptic_layers
from snnreg_plugins.watching.samples import tensors_in


class ActivityRegularization(AddedLossCallback):
    r"""Add a penalty on activity to the training loss of an unchanged LightningModule.

    The activity is what the synaptic layers (Linear, Conv, ConvTranspose) read: there it costs operations, in the
    network and in the spiking network made from it. So functional activations are seen too; the network's own
    input, which training cannot change, is left out. With f the penalty of one call of layer l on a batch of B
    samples,

    .. math::
        \text{uniform: } \sum_l s_l \frac{\sum_\text{calls} B f_l}{\sum_\text{calls} B} \qquad
        \text{fan\_out: } \frac{\sum_l s_l \sum_\text{calls} B F_l f_l}{\sum_l \sum_\text{calls} B F_l}

    where :math:`F_l` is the number of synapses that the layer's input reaches, and with ``"fan_out"`` positions
    within a layer count by fan-out too. So L1 with ``"fan_out"`` is Σ a·fan-out / Σ fan-out: the mean activity at a
    synapse. A layer that is called more than once counts with its mean.

    The gradient is exactly that of the penalty added to the loss by hand: with gradient accumulation, mixed precision
    (bf16 and fp16 with loss scaling), manual optimization (through ``manual_backward``), both kinds of activation
    checkpointing, DDP, and ``torch.compile``. The calls that count are those that the loss of a backward pass depends
    on, whatever ran between, and each counts once: of two losses on one trunk, the first to go backward brings the
    trunk's penalty (in compiled regions, all calls of a region that the loss depends on). In manual optimization the
    penalty is added to every loss as it goes backward: ``manual_backward(loss / N)`` in N parts brings N times the
    penalty of ``accumulate_grad_batches=N``, so divide ``strength`` by N, too. The value of the loss that the module
    returns and logs is left as it is (but in compiled regions). A layer that gets no penalty in the first batch (in
    manual optimization, the first epoch) is named in a warning, or in an error.

    Logged each epoch: ``penalty/<layer>`` and ``penalty/total``, means over the backward passes that brought any, where
    ``total`` includes strength and warm-up, and ``penalty/share``, the share that the total has of the loss with the
    penalty (of the sum of their magnitudes). Of several such callbacks the total is the sum; a layer that more than one
    of them regularizes is logged as ``penalty/<penalty>/<layer>``.

    Without arguments it is what we recommend: the expected rate by fan-out, which is the share of all synapses that a
    time step will use, between 0 and 1 whatever the scale of the activations. The strength is then what using all of
    them would cost, in units of the loss: 1 against a cross-entropy.

    Networks of a loss are left alone by default: children of the LightningModule with more than one module and no
    trained parameter. Name their layers in ``layers`` or ``strength`` to regularize them too.

    In a model with spiking neurons, layers that read spikes (or counts, or constant multiples of them) have penalties
    that act on spikes, through the surrogate: ``"expected_rate"`` without the clip (see
    :func:`~snnreg_plugins.functional.penalties.expected_rate_of_spikes`), ``"hoyer"`` and ``"hoyer_square"`` with a
    denominator that is constant in the gradient
    (:func:`~snnreg_plugins.functional.penalties.hoyer_of_spikes`); ``"l1"``, ``"l2"`` and ``"transformed_l1"`` act as
    they are.

    ``"rate_bounds"`` keeps each neuron of a spiking network between a lowest and a highest rate, in spikes/neuron/step:
    with :math:`r_i` the mean of position i of a layer's input over all samples and steps of the calls that a backward
    pass reaches, :math:`f_l` is the mean over i of :math:`\text{relu}(\text{low} - r_i)^2 +
    \text{relu}(r_i - \text{high})^2`. It is not a mean over samples: each batch that is accumulated, and each process
    of DDP, has the penalty of its own rates, as when it is written by hand in ``training_step``; on average, no less
    than that of one batch of all samples. What averages or scales spikes in between, as pooling and dropout do,
    averages and scales their rates; other dimensions in front, such as tokens, count as samples.

    ``"energy"`` is what the spiking network spends on a sample, in nJ, whatever ``weighting`` is:

    .. math:: \frac{1}{B} \sum_l s_l \sum_\text{calls} \sum_b \sum_i F_{li} \, e_{AC} \, s_{bi}

    with the events s and the fan-out of every position, for a training batch of B samples: all calls that a backward
    pass reaches add up, time steps among them. On a spiking network ``penalty/<layer>`` is the layer's energy as
    :class:`~snnreg_plugins.Energy` counts it (of averages of spikes, where some of them are of one spike), and the
    surrogate passes the gradient on; a hidden layer that reads real values has the energy of its MACs there, where the
    table prices them, and no gradient. On a DNN it is the energy in ``timesteps`` T at the expected rate,
    :math:`T e_{AC} \, \text{clip}(a / \lambda, 0, 1)` for :math:`e_{AC} s`: an estimate, too low by k² behind average
    pooling over k × k, whose spikes all go on. As of all penalties, the network's own input is left out: what the
    first layer spends is not to be trained.

    λ is saved in checkpoints. Training that is resumed goes on bit by bit where the data does: within an epoch,
    Lightning starts again at the epoch's first batch, unless the loader keeps its place (``state_dict``).

    Args:
        penalty: ``"l1"``, ``"l2"``, ``"hoyer"``, ``"hoyer_square"``, ``"transformed_l1"``, ``"expected_rate"``,
            ``"rate_bounds"``, ``"energy"``, or a function ``(activity, weight) -> scalar`` that is a mean over the
            samples of ``activity`` of shape ``(B, ...)``; ``weight`` is None or the fan-out, broadcastable to a sample.
        strength: Factor of the penalty; more saves more operations, at some accuracy. A value to start from if None:
            1 of ``"expected_rate"`` and ``"rate_bounds"``, 0.3 of ``"l1"``, 0.1 of ``"l2"`` and ``"transformed_l1"``,
            3e-3 of ``"hoyer"``, 3e-4 of ``"hoyer_square"``, 0.01 of an energy or a function. A mapping from patterns to
            factors sets it by layer (the first pattern that matches counts) and leaves layers without a match alone.
        weighting: How layers and positions count: ``"uniform"`` or by ``"fan_out"``; if None, ``"expected_rate"`` by
            fan-out, and others uniformly.
        layers: Patterns of the layers to regularize the input of, all if None. A pattern matches a layer's name
            (``"features.*"``) or its type (``"Conv2d"``).
        start_epoch: First epoch with a penalty.
        warmup_epochs: Epochs over which the strength rises linearly to its full value.
        percent: For ``"expected_rate"``, and ``"energy"`` of a DNN: the percentile of activity that is the threshold λ,
            as in threshold balancing. λ is kept for each layer as a running mean of the batches' percentiles. Where a
            layer sees a batch in several calls, as in a loop over time steps, or in parts as in a network with
            ``checkpointing``, its percentile is the mean of theirs, and that of the first call is λ until the first
            batch ends: training is then another one by that much.
        momentum: For the same: share of the old λ in the running mean.
        low: For ``"rate_bounds"``: the lowest rate without a penalty, in spikes/neuron/step; none if None.
        high: For ``"rate_bounds"``: the highest; none if None.
        table: For ``"energy"``: what an operation costs, as for :class:`~snnreg_plugins.Energy`; if None,
            ``"horowitz_fp32"``.
        timesteps: For ``"energy"`` of a DNN: the time steps T of the spiking network to come.

    Raises:
        ValueError: If an argument is out of range, or on start of training, if a pattern matches no layer, or
            ``timesteps`` of an energy is missing, or given for a network that has its own.
        MisconfigurationException: In training, where the penalty could not be exact (LBFGS with line search,
            DeepSpeed, ``loss.backward()`` in place of ``manual_backward``), where no activity was seen, where the
            gradient of the penalty is 0 everywhere, or where a layer that was asked for by its name is never called.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[ActivityRegularization()], logger=False, enable_checkpointing=False)
        >>> stronger = ActivityRegularization(strength=3.0, warmup_epochs=4)
    """

    def __init__(
        self,
        penalty: Literal[
            "l1", "l2", "hoyer", "hoyer_square", "transformed_l1", "expected_rate", "rate_bounds", "energy"
        ]
        | Penalty = "expected_rate",
        strength: float | dict[str, float] | None = None,
        weighting: Literal["uniform", "fan_out"] | None = None,
        layers: str | list[str] | None = None,
        start_epoch: int = 0,
        warmup_epochs: int = 0,
        percent: float = 99.9,
        momentum: float = 0.9,
        low: float | None = None,
        high: float | None = None,
        table: str | EnergyTable | None = None,
        timesteps: int | None = None,
    ) -> None:
        super().__init__(start_epoch, warmup_epochs)
        if not callable(penalty):
            one_of("penalty", penalty, _NAMED)
        self.penalty = penalty
        if strength is None:
            strength = START.get(penalty, 1e-2) if isinstance(penalty, str) else 1e-2
        if weighting is None:
            weighting = "fan_out" if penalty == "expected_rate" else "uniform"
        self.strength = (
            {pattern: as_number("strength", factor, "[0, inf)") for pattern, factor in strength.items()}
            if isinstance(strength, Mapping) and strength
            else as_number("strength", strength, "[0, inf)")
        )
        self.weighting = one_of("weighting", weighting, ("uniform", "fan_out"))
        self.layers = as_names("layers", layers)
        self.percent = as_percent("percent", percent)
        self.momentum = as_number("momentum", momentum, "[0, 1)")

        self.low, self.high = _bounds(penalty, low, high)
        _only_for("energy", penalty, table=table, timesteps=timesteps)
        self.table = energy_table("horowitz_fp32" if table is None else table)
        self.timesteps = None if timesteps is None else as_integer("timesteps", timesteps)

        self._function = _NAMED[penalty] if isinstance(penalty, str) else penalty
        self._thresholds = RunningThresholds(self.percent, self.momentum)
        self._penalty: ActivityPenalty | None = None  # while a fit runs
        self._unwatched: set[str] = set()  # chosen layers that are not regularized yet
        self._means = Means()  # of the last epoch

    def told(self) -> str:
        """Say in a few words what is penalized, and how much, for headings of reports.

        Example:
            >>> ActivityRegularization("l1", strength=0.5, weighting="fan_out").told()
            'penalty l1 × 0.5 by fan-out'
        """
        strengths = self.strength.values() if isinstance(self.strength, dict) else (self.strength,)
        said = " and ".join(f"{strength:g}" for strength in dict.fromkeys(strengths))
        return f"penalty {_name(self.penalty)} × {said}{' by fan-out' if self.weighting == 'fan_out' else ''}"

    @property
    @override
    def state_key(self) -> str:
        """Tells callbacks with different settings apart in a checkpoint."""
        return self._generate_state_key(
            penalty=_name(self.penalty),
            strength=self.strength,
            weighting=self.weighting,
            layers=self.layers,
            start_epoch=self.start_epoch,
            warmup_epochs=self.warmup_epochs,
            percent=self.percent,
            momentum=self.momentum,
            **({} if self.penalty != "rate_bounds" else {"low": self.low, "high": self.high}),
            **({} if self.penalty != "energy" else {"table": self.table, "timesteps": self.timesteps}),
        )

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"thresholds": {name: value.detach().cpu() for name, value in self._thresholds.values.items()}}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._thresholds.values = dict(state_dict["thresholds"])

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":  # those of an earlier fit end here; a checkpoint's are read after this
            self._thresholds = RunningThresholds(self.percent, self.momentum)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not in setup, which comes before configure_model.
        super().on_fit_start(trainer, pl_module)
        values = self._thresholds.values
        self._thresholds.values = {name: value.to(pl_module.device) for name, value in values.items()}
        layers = self._choose(synaptic_layers(pl_module))
        spikes = spikes_already(pl_module)
        if self.penalty == "energy":
            self._function = self._energy(spikes)
        self._penalty = ActivityPenalty(
            self._function,
            pl_module,
            layers,
            by_fan_out=self.weighting == "fan_out" or self.penalty == "energy",
            thresholds=self._thresholds
            if self._function is expected_rate or (self.penalty == "energy" and not spikes)
            else None,
            bounds=(self.low or 0.0, math.inf if self.high is None else self.high)
            if self.penalty == "rate_bounds"
            else None,
        )
        self._unwatched = {name for name, _ in layers.values()}

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Not before: only now it is settled what is trained. Later, too, as networks may be trained from later on.
        if self._unwatched and (found := self._unwatched - self._of_losses(pl_module)):
            self._running.watch(found)
            self._unwatched -= found
        # Not at the start of the epoch, which a run that is resumed within one does not see.
        self._running.start_batch(self._factor(trainer), self.samples(batch) if self.penalty == "energy" else None)

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if self._penalty is not None:  # else a backward pass in validation
            self._penalty.start_backward(loss, self._scale(trainer, pl_module), self._own_backward)

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._penalty is not None:
            self._penalty.end_backward()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        penalty = self._running
        self._judge_backward(penalty.missed_backward, penalty.went_past)
        if penalty.active and penalty.ran_backward and penalty.sightings.looking:
            penalty.sightings.refuse_what_cannot_act(self._by_name(penalty), _name(self.penalty))
            # By hand, the optimizers may take turns.
            if pl_module.automatic_optimization or penalty.sightings.passes >= _PATIENCE:
                self._say_what_is_missing(penalty)
        over_processes = partial(trainer.strategy.reduce, reduce_op="sum") if trainer.world_size > 1 else None
        penalty.end_batch(over_processes)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Summed up by batches and logged once: Lightning's own summing costs more than the penalty.
        self._means = self._running.end_epoch()
        if self._running.sightings.looking and self._running.sightings.passes:
            self._say_what_is_missing(self._running)
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        together = [callback for callback in callbacks if isinstance(callback, ActivityRegularization)]
        if together and self is together[-1]:
            pl_module.log_dict(to_log([(_name(one.penalty), one._means) for one in together]), sync_dist=True)

    @override
    def _remove(self) -> None:
        if self._penalty is not None:
            self._penalty.remove()
        self._penalty = None

    @property
    def _running(self) -> ActivityPenalty:
        return self._of_this_fit(self._penalty)

    def samples(self, batch: Any) -> int:
        """Return the samples of a training batch, which ``"energy"`` is per; override for batches that do not tell.

        Args:
            batch: A batch of data, as the module's steps get it. The first dimension of its tensors is taken, or of
                the last one in a pair, such as ``(input, label)`` with inputs of shape ``(T, B, ...)``.
        """
        sizes = {len(tensor) for tensor in tensors_in(batch) if tensor.dim()}
        if len(sizes) > 1 and isinstance(batch, (tuple, list)) and len(batch) == 2:
            sizes = {len(tensor) for tensor in tensors_in(batch[1]) if tensor.dim()}
        if len(sizes) != 1:
            raise MisconfigurationException(
                f"Penalty 'energy' is per sample, but the tensors of a batch tell {sorted(sizes) or 'no'} samples. "
                f"Override {type(self).__name__}.samples(batch) to return their number."
            )
        return sizes.pop()

    def _energy(self, spikes: bool) -> Penalty:
        """Give the energy of a call per synapse, in nJ."""
        ac, mac = 1e-3 * self.table.ac, 1e-3 * self.table.mac if self.table.prices_macs else 0.0
        if not ac:
            raise ValueError(
                f"Expected argument `table` to have a price for SOPs, which penalty='energy' takes down, but got one "
                f"of 0: {self.table.source}."
            )
        if spikes and self.timesteps is not None:
            raise ValueError(
                f"Expected argument `timesteps` for a DNN alone, as a network that spikes takes its own, but got "
                f"{self.timesteps}. Leave it out."
            )
        if spikes:
            return partial(energy_of_spikes, ac=ac, mac=mac)
        if self.timesteps is None:
            raise ValueError(
                "Expected argument `timesteps` for penalty='energy' of a DNN, the time steps of the spiking network to "
                "come, but got None. Give the number that it is exported with, such as timesteps=8."
            )
        return partial(energy_at_rate, ac=ac, timesteps=self.timesteps)

    def _say_what_is_missing(self, penalty: ActivityPenalty) -> None:
        """Say once which layers get no penalty."""
        penalty.sightings.looking = False
        penalty.sightings.refuse_if_nothing_seen()
        for warning in penalty.sightings.warnings(self._by_name(penalty)):
            rank_zero_warn(warning)

    def _by_name(self, penalty: ActivityPenalty) -> set[str]:
        """Layers that were asked for by their name, not a pattern."""
        return set(penalty.names) & {*(self.layers or ()), *(self.strength if isinstance(self.strength, dict) else ())}

    def _of_losses(self, pl_module: LightningModule) -> set[str]:
        """Layers of networks that belong to a loss, which are regularized only if asked for."""
        if self.layers is not None or isinstance(self.strength, dict):
            return set()
        return {
            f"{child}.{name}"
            for child, network in pl_module.named_children()
            if not any(parameter.requires_grad for parameter in network.parameters())
            for name in synaptic_layers(network)
            if name  # else it is a layer of the module's own
        }

    def _choose(self, layers: dict[str, Any]) -> dict[SynapticLayer, tuple[str, float]]:
        """Find the layers to regularize, with the name and strength of each."""
        if not layers:
            raise ValueError("The model has no Linear, Conv or ConvTranspose module, so no activity can be seen.")
        patterns = ["*"] if self.layers is None else self.layers
        chosen = set().union(*(_matching(layers, pattern, "layers") for pattern in patterns))
        by_pattern = self.strength if isinstance(self.strength, dict) else {"*": self.strength}
        strengths: dict[str, float] = {}
        for pattern, factor in by_pattern.items():
            strengths = dict.fromkeys(_matching(layers, pattern, "strength"), factor) | strengths
        return {
            layer: (name, strengths[name]) for name, layer in layers.items() if name in chosen and name in strengths
        }


_NAMED: dict[str, Penalty] = {**PENALTIES, "rate_bounds": rate_bounds, "energy": energy_of_spikes}
_PATIENCE = 100  # backward passes to wait for all layers, in manual optimization


def _bounds(penalty: Any, low: float | None, high: float | None) -> tuple[float | None, float | None]:
    """Check bounds of rates, which are given for the penalty that has some."""
    _only_for("rate_bounds", penalty, low=low, high=high)
    if penalty != "rate_bounds":
        return None, None
    if low is None and high is None:
        raise ValueError(
            "Expected argument `low` or `high` for penalty='rate_bounds', in spikes/neuron/step, but got None for both."
        )
    low = None if low is None else as_number("low", low, "[0, inf)")
    high = None if high is None else as_number("high", high, "[0, inf)")
    if low is not None and high is not None and low > high:
        raise ValueError(f"Expected argument `high` to be at least `low`, {low}, but got {high}.")
    return low, high


def _only_for(name: str, penalty: Any, **arguments: Any) -> None:
    """Refuse arguments of a named penalty that are given for another one."""
    for argument, value in arguments.items():
        if value is not None and penalty != name:
            raise ValueError(
                f"Expected argument `{argument}` for penalty={name!r} alone, but got {shown(value)} for "
                f"{shown(penalty)}."
            )


def _name(penalty: Any) -> str:
    """Name a penalty: the same in every run, and another for other arguments of a partial function."""
    if isinstance(penalty, str):
        return penalty
    if isinstance(penalty, partial):
        given = [*map(repr, penalty.args), *(f"{name}={value!r}" for name, value in penalty.keywords.items())]
        return f"{_name(penalty.func)}({', '.join(given)})"
    return str(getattr(penalty, "__qualname__", type(penalty).__qualname__))


def _matching(layers: dict[str, Any], pattern: str, argument: str) -> set[str]:
    """Names of the layers that a pattern matches by name or type."""
    names = {name for name, layer in layers.items() if fnmatchcase(name, pattern) or type(layer).__name__ == pattern}
    if not names:
        raise ValueError(
            f"Expected every pattern of argument `{argument}` to match the name or the type of a layer, but "
            f"{pattern!r} matches none of {list(layers)}."
        )
    return names
