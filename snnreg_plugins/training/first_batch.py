"""What the first training batch of a fit tells about the rest of it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from snnreg_plugins.metrics.scores import Loss, Score, Task, choose_score, loss_told, losses_of_backward


class FirstBatch:
    """Chooses the score of a fit in its first training batch, before the first step of an optimizer.

    Args:
        metric: What the user says is scored; None if outputs, targets and loss are to tell.
    """

    def __init__(self, metric: Any | Task | None) -> None:
        self.metric = metric
        self.is_due = True
        #: What is scored; None before that is decided, or if the data have no targets.
        self.score: Score | None = None
        self._batch: tuple[Tensor, Any] | None = None
        self._losses: set[Loss] = set()

    @property
    def has_batch(self) -> bool:
        """Whether the batch was seen and nothing was decided yet."""
        return self._batch is not None

    def see(self, outputs: Tensor, targets: Any) -> None:
        """Take what the network gives for the batch.

        Args:
            outputs: Its outputs.
            targets: The targets of the batch; None if it has none.
        """
        self._batch = (outputs, targets)

    def hear(self, loss: Tensor) -> None:
        """Take a loss that goes into a backward pass; there may be several.

        Args:
            loss: The loss.
        """
        if self.is_due:
            self._losses |= losses_of_backward(loss)

    def decide(self, module: nn.Module) -> bool:
        """Choose the score, and try it on the batch; does nothing the second time.

        Args:
            module: Who holds loss modules.

        Returns:
            Whether this was the first time.

        Raises:
            TypeError: If the targets are no tensor.
            ValueError: If it cannot be told what is scored, or the targets do not fit it.
        """
        if not self.is_due or self._batch is None:
            return False
        self.is_due = False
        (outputs, targets), self._batch = self._batch, None
        if targets is not None:
            self.score = choose_score(outputs, targets, loss_told(self._losses, module), self.metric)
            trial = self.score.fresh(sync=False)
            trial.update(outputs, targets)
            if len(outputs) > 1:  # some metrics need two samples
                trial.compute()
        return True
