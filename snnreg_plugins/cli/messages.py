"""What Lightning says on a command line: whole beside its progress bar, and nothing that is of no use."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichModelSummary, RichProgressBar
from rich import get_console
from typing_extensions import override

from snnreg_plugins._console import show
from snnreg_plugins._text import Column, Note, Row, Table, in_short

# In a narrower terminal the bar's own columns would leave too little for names and numbers.
_WIDE, _WIDE_FOR_TIME = 100, 70
_LOGGERS = ("lightning.pytorch", "lightning.fabric")
# How Lightning begins to advertise.
_TIP = "💡 Tip"


class Messages(logging.StreamHandler[Any]):
    """Write messages to where the standard error goes when they come: a progress bar then makes room for them."""

    @override
    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith(_TIP):
            return
        self.setStream(sys.stderr)
        super().emit(record)


class Summary(RichModelSummary):
    """Lightning's summary of a model without FLOPs, which are 0 where nobody has said what the input is."""

    @staticmethod
    @override
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        total_training_modes: dict[str, int],
        total_flops: int = 0,
        **summarize_kwargs: Any,
    ) -> None:
        cells = dict(summary_data)
        columns = [Column("Name"), Column("Type", words=True), Column("Params")]
        rows = zip(*(cells[column.title] for column in columns), strict=True)
        trained = "" if trainable_parameters == total_parameters else f", {in_short(trainable_parameters)} are trained"
        show(
            [
                Table("What is trained", tuple(columns), tuple(Row(row) for row in rows)),
                Note(f"{in_short(total_parameters)} parameters in {model_size:.3g} MB{trained}."),
            ]
        )


class Bar(RichProgressBar):
    """Lightning's progress bar with whole names and short counts: 208k SOPs, and not 208340.344."""

    @override
    def configure_columns(self, trainer: Trainer) -> list[Any]:
        columns = super().configure_columns(trainer)
        width = get_console().width
        if width >= _WIDE:
            return columns
        text, bar, batches, time, *_ = columns
        bar.bar_width = 10
        return [text, bar, batches, time] if width >= _WIDE_FOR_TIME else [text, bar, batches]

    @override
    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)  # a run of ours has a folder
        large = {name: in_short(value) for name, value in metrics.items() if isinstance(value, float) and value >= 1000}
        return {**metrics, **large}


def quieten() -> None:
    """Let Lightning's messages go beside its progress bar, without what is of no use."""
    # Data in memory needs no workers, and the other warning is Lightning's own to heed.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    for logger in map(logging.getLogger, _LOGGERS):
        for handler in list(logger.handlers):
            if type(handler) is logging.StreamHandler:
                logger.removeHandler(handler)
                logger.addHandler(Messages())


def quieten_run(trainer: Trainer, given: list[Any], has_input: bool) -> None:
    """Leave out what is of no use in a run.

    Args:
        trainer: The Trainer of the run.
        given: Callbacks that the user named.
        has_input: Whether the model says what an input of it is.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    for index, callback in enumerate(callbacks):
        if type(callback) is RichModelSummary and not has_input and all(callback is not one for one in given):
            callbacks[index] = Summary()
        if type(callback) is RichProgressBar and all(callback is not one for one in given):
            callbacks[index] = Bar(int(callback.refresh_rate))
    for callback in trainer.checkpoint_callbacks:
        folder = getattr(callback, "dirpath", None)
        # Where there are no checkpoints, none is in the way: other files of the run are there by now.
        if folder is not None and not any(Path(folder).glob("*.ckpt")):
            warnings.filterwarnings("ignore", message=f"Checkpoint directory {re.escape(folder)} exists and is not")
