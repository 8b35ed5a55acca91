"""A LightningModule that classifies with a spiking network: one exported from a DNN, or the user's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from typing_extensions import Unpack, override

from snnreg_plugins._checks import as_flag, as_integer, as_number, one_of, shown
from snnreg_plugins.export import SpikingNetwork
from snnreg_plugins.export.options import ExportOptions, Options
from snnreg_plugins.functional.readout import READOUTS, outputs_of, per_step_loss
from snnreg_plugins.modules.start import SpikingStart
from snnreg_plugins.modules.timesteps import GivenSteps, Timesteps

# Time steps of an export, if nobody said.
_TIMESTEPS = 4


class SpikingClassifier(SpikingStart):
    r"""Train a spiking network with surrogate gradients: one that a DNN is exported to, or your own.

    What ``network`` is tells where the training starts:

    - a DNN: when a run starts, its weights are read from ``checkpoint``, its thresholds are balanced on the training
      data, and it is exported to snnTorch neurons. :attr:`network` is then the
      :class:`~snnreg_plugins.SpikingNetwork`, and :attr:`dnn` what it was exported from;
    - a DNN whose ``checkpoint`` is a file of :func:`~snnreg_plugins.save_network`, or a checkpoint of a
      SpikingClassifier: the network in it is trained on as it is, and the DNN gives the code alone;
    - a :class:`~snnreg_plugins.SpikingNetwork`: is trained on as it is;
    - your own network of snnTorch or Norse neurons. With ``timesteps`` it is called once a time step, with the whole
      input each time (or its part with ``time_dim``, an option), from fresh states for each batch; where its forward
      takes states behind the input, it gets back those that it returned behind its output, the first of what it gives.
      Without ``timesteps`` it runs all steps in one call, and gives scores ``(B, K)``, or, for a ``readout``, the
      outputs ``(T, B, K)``; with ``time_dim=0`` of inputs ``(T, B, ...)``, too.

    Validation and test log ``val/sops`` (per sample) and ``val/spike_rate`` (spikes/neuron/step) too, or ``test/...``.
    They score what the network gives at the end of its steps, however it is trained. In checkpoints is all that
    :meth:`load_from_checkpoint` needs beside the code of ``network``.

    Args:
        network: Where the training starts.
        checkpoint: A Lightning checkpoint of a :class:`Classifier` of that DNN, or of your own LightningModule, where
            ``network`` is that module or the network within it; or a file of a ``state_dict()``; or a spiking network
            in a file, see above. Only tensors are read from it, no code is run. None keeps the weights of ``network``.
        timesteps: Time steps T. A list, such as ``[1, 2, 4]``, draws one of them for each batch, and validation logs
            ``val/accuracy_at_1``, ``val/sops_at_1`` and so on for each beside the largest. A dictionary, such as
            ``{0: 4, 3: 2, 6: 1}``, takes T by the epoch from which it holds. If None, 4 for a DNN, and for others what
            they take by themselves.
        calibration_batches: Batches of training data to balance thresholds on; processes share them out.
        optimizer: From parameters to an optimizer; Adam with its defaults if None.
        scheduler: From an optimizer to a learning-rate scheduler.
        truncation: Time steps that gradients flow back through neurons; all if None.
        checkpointing: Keep no activations for the backward pass, but compute them again there, a part of the batch at
            a time; see :class:`~snnreg_plugins.SpikingNetwork`.
        loss: From outputs and targets to a loss; cross-entropy if None.
        readout: How scores are read out of the outputs of the steps: their ``"mean"``, the ``"last"``, the ``"max"``,
            the ``"potential"`` of a membrane that integrates them, or the ``"spike_count"`` of a last layer of neurons;
            see :func:`~snnreg_plugins.functional.running_scores`. An exported network keeps it, see
            ``SpikingNetwork.readout``. If None, the mean, or what the network does by itself.
        readout_decay: β of the ``"potential"``; 1 sums up.
        output_index: Of a network of your own that gives several things, which are its outputs, counted from 0: in
            snnTorch's ``(spikes, potentials)``, 0 with readout ``"spike_count"``, 1 with ``"last"`` or ``"max"``.
        per_step_loss: Train every time step by the loss of its own output, in place of the loss of the scores (TET):
            :math:`(1 - \lambda) \frac{1}{T} \sum_t \ell(o_t, y) + \lambda \, \mathrm{mean}((o - m)^2)`.
        tet_strength: λ.
        tet_target: m.
        scheduler_interval: When the scheduler is stepped: every ``"epoch"``, or every ``"step"`` of the optimizer.
        **options: Options of the export, such as ``threshold`` and ``per_channel``; see
            :func:`~snnreg_plugins.to_snntorch`. ``weights`` of few bits are trained, unless ``train_weights=False``. Of
            a network that spikes already, ``time_dim`` alone.

    Raises:
        ValueError: If an argument is out of range, or of no use for such a network.
        FileNotFoundError: On start of a run, if there is no file at ``checkpoint``.
        ValueError: On start of a run, if the checkpoint's weights do not fit ``network``; in the first batch, if a
            network that is stepped begins from fresh states in each step.

    Example:
        >>> import snntorch, torch
        >>> own = nn.Sequential(nn.Linear(4, 3), snntorch.Leaky(0.9, init_hidden=True))
        >>> module = SpikingClassifier(own, timesteps=8, readout="spike_count")
        >>> module(torch.rand(5, 4)).shape
        torch.Size([5, 3])
    """

    _remedy = "Give `readout` for outputs (T, B, K), `output_index` for several things, or wrap `network` in a module"

    def __init__(
        self,
        network: nn.Module,
        checkpoint: str | None = None,
        timesteps: GivenSteps = None,
        calibration_batches: int = 10,
        optimizer: OptimizerCallable = torch.optim.Adam,
        scheduler: LRSchedulerCallable | None = None,
        truncation: int | None = None,
        checkpointing: bool = False,
        loss: nn.Module | None = None,
        readout: Literal["mean", "last", "max", "potential", "spike_count"] | None = None,
        readout_decay: float = 1.0,
        output_index: int | None = None,
        per_step_loss: bool = False,
        tet_strength: float = 0.0,
        tet_target: float = 1.0,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
        **options: Unpack[ExportOptions],
    ) -> None:
        super().__init__(network, optimizer, scheduler, loss, scheduler_interval)
        self.checkpoint = checkpoint
        self.timesteps = Timesteps(timesteps)
        self.calibration_batches = as_integer("calibration_batches", calibration_batches)
        self.truncation = None if truncation is None else as_integer("truncation", truncation)
        self.checkpointing = as_flag("checkpointing", checkpointing)
        self.readout = None if readout is None else one_of("readout", readout, READOUTS)
        self.readout_decay = as_number("readout_decay", readout_decay, "(0, 1]")
        self.output_index = None if output_index is None else as_integer("output_index", output_index, at_least=0)
        self.per_step_loss = as_flag("per_step_loss", per_step_loss)
        self.tet_strength = as_number("tet_strength", tet_strength, "[0, 1]")
        self.tet_target = as_number("tet_target", tet_target, "(-inf, inf)")
        self.given_options: dict[str, Any] = dict(options)
        if options.get("weights", "float") != "float":
            options.setdefault("train_weights", True)
        self.export_options: dict[str, Any] = {
            "timesteps": self.timesteps.at_most or _TIMESTEPS,
            "correction": "none",  # training does that
            **options,
        }
        Options(**self.export_options)  # checks them
        self._drawn: int | None = None  # steps of the batch under way
        self._is_logged_at_each = False
        self._over_time: Tensor | None = None  # of the batch under way: scores after each step, and outputs
        self._outputs: Tensor | None = None
        self._require_consistent()
        self._start_with_nothing()

    def _require_consistent(self) -> None:
        """Raise a ValueError if arguments do not fit each other."""
        if self.readout_decay != 1 and self.readout != "potential":
            raise ValueError(
                f"Expected argument `readout_decay` to be 1 for readout={self.readout!r}, which nothing decays in, but "
                f"got {self.readout_decay}. Give it with readout='potential'."
            )
        if self.tet_strength and not self.per_step_loss:
            raise ValueError(
                f"Expected argument `tet_strength` to be 0 without `per_step_loss`, but got {self.tet_strength}. Give "
                "per_step_loss=True."
            )
        if self.timesteps.vary and self.given_options.get("time_dim") is not None:
            raise ValueError(
                f"Expected argument `timesteps` to be one number where inputs have a dimension of time (`time_dim`), "
                f"which are as many as there are, but got {shown(self.timesteps.given)}."
            )
        if self.timesteps.vary and self.given_options.get("coding") == "latency":
            raise ValueError(
                f"Expected argument `timesteps` to be one number for coding='latency', whose spikes spread over all of "
                f"them, but got {shown(self.timesteps.given)}. Use coding='constant'."
            )

    # Running it.

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Give scores ``(B, K)``."""
        network, every = self.network, self._is_logged_at_each
        scores: Tensor
        if self._own is not None:
            scores, self._outputs = self._own(network, x, self._own_steps)
            if every and self._outputs is not None:
                self._over_time = self._own.scores(self._outputs)
        elif isinstance(network, SpikingNetwork) and (every or (self.training and self.per_step_loss)):
            self._over_time = network(x, per_step=True)
            scores = self._over_time[-1]
        else:
            scores = network(x)
        return scores

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        try:
            with self._taking(self._drawn):
                scores = self(x)
            if self.per_step_loss:
                loss = per_step_loss(self._outputs_of_steps(), y, self._loss, self.tet_strength, self.tet_target)
                # The scores take part, so that callbacks which add to their gradient, such as Distillation, are heard.
                loss = loss + (0.0 * scores).sum()
            else:
                loss = self._loss(scores, y)
        finally:
            self._forget()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    @override
    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.loss is None and isinstance(outputs, Tensor) and outputs.dim() > 2 and targets.dim() == 1:
            shape = tuple(outputs.shape)
            raise ValueError(f"Expected scores (B, K) for classes (B,), but got the shape {shape}. {self._remedy}.")
        return super()._loss(outputs, targets)

    def _outputs_of_steps(self) -> Tensor:
        """Give the outputs of single steps of the batch under way."""
        if self._outputs is not None:
            return self._outputs
        network: Any = self.network
        assert self._over_time is not None, "forward() has run"
        return outputs_of(self._over_time, network.readout, network.readout_decay)

    def _forget(self) -> None:
        """Hold no graph."""
        self._over_time = self._outputs = None

    @override
    def _evaluate(self, stage: str, batch: tuple[Tensor, Tensor]) -> None:
        _, y = batch
        several = self.timesteps.several if len(self.timesteps.several) > 1 else ()
        self._is_logged_at_each = bool(several)
        try:
            super()._evaluate(stage, batch)
            for steps in several:
                assert self._over_time is not None, "forward() has run"
                self._log_scores(stage, self._over_time[steps - 1], y, len(y), f"_at_{steps}")
        finally:
            self._is_logged_at_each = False
            self._forget()

    @override
    def _log_cost(self, stage: str) -> None:
        if len(self.timesteps.several) > 1:
            metrics: dict[str, Any] = dict(self._cost)
            sops, rate = metrics["sops"], metrics["spike_rate"]
            for steps in self.timesteps.several:
                self._log_per_sample(f"{stage}/sops_at_{steps}", sum(sops.by_layer("sops", steps).values()))
                spikes, neurons = (sum(rate.by_layer(of, steps).values()) for of in ("spikes", "neuron_steps"))
                self.log(f"{stage}/spike_rate_at_{steps}", spikes / neurons, sync_dist=True)  # the same in all
        super()._log_cost(stage)

    # Time steps.

    @contextmanager
    def _taking(self, timesteps: int | None) -> Iterator[None]:
        """Take so many time steps within; None for those that it takes anyway."""
        before = self._steps_now()
        try:
            if timesteps is not None:
                self._set_steps(timesteps)
            yield
        finally:
            if timesteps is not None and before is not None:
                self._set_steps(before)

    def _steps_now(self) -> int | None:
        return self.network.timesteps if isinstance(self.network, SpikingNetwork) else self._own_steps

    def _set_steps(self, timesteps: int) -> None:
        if isinstance(self.network, SpikingNetwork):
            self.network.timesteps = timesteps
        else:
            self._own_steps = timesteps

    @override
    def on_fit_start(self) -> None:
        self._take_those_of_the_epoch()  # also of a validation before training

    @override
    def on_train_epoch_start(self) -> None:
        self._take_those_of_the_epoch()

    def _take_those_of_the_epoch(self) -> None:
        steps = self.timesteps.of_epoch(self.current_epoch)
        if steps is not None:
            self._set_steps(steps)

    @override
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self._drawn = self.timesteps.draw()
