"""A LightningModule that classifies with any network."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from snnreg_plugins._checks import one_of
from snnreg_plugins._models import as_module
from snnreg_plugins.metrics.scores import Loss, Score, choose_score, loss_of_modules
from snnreg_plugins.reports.own import scores_of


class Classifier(LightningModule):
    """Train any network as a classifier, with cross-entropy; or for what another loss says.

    Logs ``train/loss``, and ``val/loss``, ``val/accuracy`` or ``test/loss``, ``test/accuracy``. The accuracy is that of
    classes, or of labels under a binary cross-entropy; of a regression the mean squared error is logged, ``val/mse``.

    Args:
        network: Gives scores ``(B, K)``, or what the loss takes.
        optimizer: From parameters to an optimizer; Adam with its defaults if None.
        scheduler: From an optimizer to a learning-rate scheduler.
        loss: From outputs and targets to a loss, such as ``nn.BCEWithLogitsLoss()`` or ``nn.MSELoss()``; cross-entropy
            if None.
        scheduler_interval: When the scheduler is stepped: every ``"epoch"``, or every ``"step"`` of the optimizer, as
            ``OneCycleLR`` wants it.

    Raises:
        ValueError: If ``scheduler_interval`` is neither.

    Example:
        >>> model = Classifier(nn.Linear(2, 3))
        >>> model(torch.zeros(5, 2)).shape
        torch.Size([5, 3])
    """

    # How to have the network give scores.
    _remedy = "Wrap `network` in a module"

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerCallable = torch.optim.Adam,
        scheduler: LRSchedulerCallable | None = None,
        loss: nn.Module | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__()
        # A scripted one can be trained, if not watched.
        self.network = network if isinstance(network, torch.jit.ScriptModule) else as_module("network", network)
        self.loss = loss
        self._score: Score | None = None
        self._is_scored = True
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.scheduler_interval = one_of("scheduler_interval", scheduler_interval, ("epoch", "step"))

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Give scores ``(B, K)``."""
        scores: Tensor = self.network(x)
        return scores

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = self._loss(self(x), y)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    @override
    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate("val", batch)

    @override
    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate("test", batch)

    @override
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Give scores for a batch of images, or of (images, labels)."""
        scores: Tensor = self(batch[0] if isinstance(batch, (tuple, list)) else batch)
        return scores

    def _evaluate(self, stage: str, batch: tuple[Tensor, Tensor]) -> None:
        x, y = batch
        self._log_scores(stage, self(x), y, len(y))  # time may come first in x

    def _log_scores(self, stage: str, outputs: Tensor, y: Tensor, size: int, ending: str = "") -> None:
        """Log the loss of a batch of this size, and its score if there is any."""
        self.log(f"{stage}/loss{ending}", self._loss(outputs, y), prog_bar=True, batch_size=size, sync_dist=True)
        if self._score is None and self._is_scored:
            told = Loss("multiclass", ignore_index=-100) if self.loss is None else loss_of_modules(self.loss)
            try:
                self._score = choose_score(scores_of(outputs, y, self._remedy), y, told)
            except (TypeError, ValueError) as error:
                rank_zero_warn(f"{type(self).__name__} logs its loss alone. {error}")
                self._is_scored = False  # nor are later batches, whose values may look otherwise
        if self._score is None:
            return
        score = self._score.fresh(sync=False)
        score.update(outputs, y)
        counted = size if score.decisions is None else score.decisions
        if counted:
            name = f"{stage}/{score.name}{ending}"
            self.log(name, score.compute(), prog_bar=True, batch_size=counted, sync_dist=True)

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.loss is None:
            outputs = scores_of(outputs, targets, self._remedy)
        loss: Tensor = F.cross_entropy(outputs, targets) if self.loss is None else self.loss(outputs, targets)
        return loss

    @override
    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        if self.scheduler is None:
            return optimizer
        return [optimizer], [{"scheduler": self.scheduler(optimizer), "interval": self.scheduler_interval}]
