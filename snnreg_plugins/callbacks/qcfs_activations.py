"""Train with the activation that spiking neurons of a few time steps have."""

from __future__ import annotations

from functools import partial
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from typing_extensions import override

from snnreg_plugins._checks import as_integer, as_names, as_number, as_percent
from snnreg_plugins._lightning import average_anew
from snnreg_plugins.export.qcfs import QCFS
from snnreg_plugins.training.quantized import average_observed, exchange_relus, quantized


class QCFSActivations(Callback):
    r"""Train with quantized activations of L levels, so that the spiking network needs only about L time steps.

    Every ``nn.ReLU`` of the LightningModule becomes a :class:`~snnreg_plugins.export.qcfs.QCFS` of the same name,

    .. math:: y = \lambda \cdot \mathrm{clip}\left(\frac{1}{L} \left\lfloor \frac{x L}{\lambda} + \frac{1}{2}
        \right\rfloor, 0, 1\right)

    with a threshold λ of its own that is learned (Bu et al. 2022, Optimal ANN-SNN conversion for high-accuracy and
    ultra-low-latency spiking neural networks). At first it computes what the ReLU did, and observes its activity;
    at ``start_epoch`` it starts to quantize, with the running mean of the batches' percentiles as λ.

    The exchange takes place in ``setup``, before optimizers are made and before checkpoints are read, so λ is a
    parameter like any other: it is in ``self.parameters()``, in the checkpoint, and decays where the optimizer has
    weight decay, as in the paper. A run that reads a checkpoint of such a network, also to validate, test or predict,
    needs this callback with the same ``levels``; outside of a Trainer, call :meth:`swap` before ``load_state_dict``.

    A ReLU module that is called in several places is one QCFS with one λ for all of them. Functional ReLUs cannot be
    exchanged and are warned of; ReLU6 and other activations, and spiking networks, are left alone. An in-place ReLU
    becomes one that is not in place. Leave ReLU modules that are never called out of ``layers``: their λ would be a
    parameter without a gradient, which DDP refuses.

    Args:
        levels: L; best the number of time steps of the spiking network.
        start_epoch: First epoch to quantize in: a number (int), or a share of ``max_epochs`` (float, below 1).
        percent: The percentile of activity that λ starts from.
        calibration_batches: Training batches to observe at least before quantizing. So with ``start_epoch=0`` the
            first batches are trained with ReLU.
        layers: Patterns of the names of the ReLU modules to exchange (``"features.*"``), all if None.

    Raises:
        ValueError: If an argument is out of range, or on start of a run, if there is no ReLU module to exchange.
        MisconfigurationException: In training, if a λ is no longer positive.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> callback = QCFSActivations(levels=4, start_epoch=0.5)
        >>> trainer = Trainer(max_epochs=10, callbacks=[callback], logger=False, enable_checkpointing=False)
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> callback.swap(model)  # the Trainer does it
        {'1': QCFS(levels=4)}
    """

    def __init__(
        self,
        levels: int = 4,
        start_epoch: int | float = 0,
        percent: float = 99.9,
        calibration_batches: int = 10,
        layers: str | list[str] | None = None,
    ) -> None:
        self.levels = as_integer("levels", levels)
        # A number of epochs, or a share of them.
        self.start_epoch = (
            as_number("start_epoch", start_epoch, "[0, 1)")
            if isinstance(start_epoch, float)
            else as_integer("start_epoch", start_epoch, at_least=0)
        )
        self.percent = as_percent("percent", percent)
        self.calibration_batches = as_integer("calibration_batches", calibration_batches)
        self.layers = as_names("layers", layers)
        self._batches = 0  # that were observed
        self._waiting: list[QCFS] = []  # not active yet

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"batches": self._batches, "levels": self.levels}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._batches = state_dict["batches"]
        if state_dict["levels"] != self.levels:
            rank_zero_warn(f"The checkpoint was trained with levels={state_dict['levels']}, not {self.levels}.")

    def swap(self, model: nn.Module) -> dict[str, QCFS]:
        """Exchange the ReLU modules of a model, and return all its QCFS modules by name.

        Args:
            model: A network or LightningModule; changed in place.

        Raises:
            ValueError: If there is none to exchange, or a pattern of ``layers`` matches none.
        """
        return exchange_relus(model, partial(QCFS, self.levels, percent=self.percent), self.layers)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        before = len(quantized(pl_module))
        if len(self.swap(pl_module)) > before:
            average_anew(pl_module)
        if stage == "fit":
            self._batches = 0  # of an earlier run; a checkpoint's number is read later

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        start = self._start(trainer)
        if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= start:
            rank_zero_warn(
                f"QCFSActivations never starts to quantize: start_epoch={self.start_epoch} is not reached with "
                f"max_epochs={trainer.max_epochs}."
            )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._waiting = [module for module in quantized(pl_module).values() if not module.active]

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Not at the start of the epoch, which a run that is resumed within one does not see.
        due = trainer.current_epoch >= self._start(trainer) and self._batches >= self.calibration_batches
        if self._waiting and due:
            for module in self._waiting:
                module.activate()
            self._waiting = []
            average_anew(pl_module)  # thresholds were none before

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._waiting:
            return
        self._batches += 1
        if trainer.world_size > 1:
            # At every batch, so that a checkpoint of the first process holds what all have observed.
            average_observed(self._waiting, partial(trainer.strategy.reduce, reduce_op="mean"))

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, module in quantized(pl_module).items():
            if not module.threshold > 0:
                raise MisconfigurationException(
                    f"Expected the threshold of {name!r} to stay positive, but it was trained to "
                    f"{module.threshold.item():.3g}. Use a smaller learning rate or less weight decay for it."
                )

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._waiting and self._batches < self.calibration_batches:
            rank_zero_warn(
                f"QCFSActivations has not started to quantize: training ended after {self._batches} of "
                f"calibration_batches={self.calibration_batches} batches."
            )

    def _start(self, trainer: Trainer) -> float:
        """First epoch to quantize in."""
        if not isinstance(self.start_epoch, float):
            return self.start_epoch
        if self.start_epoch and (trainer.max_epochs is None or trainer.max_epochs < 0):
            raise MisconfigurationException(
                f"start_epoch={self.start_epoch} is a share of max_epochs, which the Trainer does not have. Set it, or "
                "give start_epoch as a whole number of epochs."
            )
        return self.start_epoch * (trainer.max_epochs or 0)
