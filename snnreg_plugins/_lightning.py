"""The one door to what Lightning and torchmetrics do not offer in public; each function says what breaks without it."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from torch import nn
    from torchmetrics import Metric


Kind = TypeVar("Kind")


def both(*classes: type[Kind]) -> tuple[type[Kind], ...]:
    """Give classes of ``lightning.pytorch``, and their twins in ``pytorch_lightning`` where a project imports that.

    It is the same code under another name, and its classes are others. Without it, what is true of Lightning is taken
    for false in a project that imports it by its old name.
    """
    found: list[type[Kind]] = []
    for one in classes:
        twin = sys.modules.get(one.__module__.replace("lightning.pytorch", "pytorch_lightning", 1))
        found += [one, getattr(twin, one.__name__, one)]
    return tuple(dict.fromkeys(found))


def overrides(instance: Any, name: str) -> bool:
    """Tell whether a LightningModule or a data module has a hook of its own.

    Without it, that of Lightning's old name is refused with words that help nobody.
    """
    from lightning.pytorch import LightningDataModule, LightningModule
    from lightning.pytorch.utilities.model_helpers import is_overridden

    parents = [one for one in both(LightningDataModule, LightningModule) if isinstance(instance, one)]
    return bool(parents) and is_overridden(name, instance, parent=parents[0])


def loss_scale(trainer: Trainer) -> float:
    """Give what mixed precision in 16 bits multiplies the loss by before the backward pass; 1 if nothing does.

    Without it, a penalty that is added from outside counts for nothing next to a loss that is 65,536 times as large.
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return float(scaler.get_scale()) if scaler is not None else 1.0


def scale_of_gradients(trainer: Trainer, optimizer: Any) -> float:
    """Give what gradients are multiplied by in ``on_before_optimizer_step``; 1 where Lightning unscaled them.

    Fused optimizers unscale them on their own, in their step. Without it, what is added to their gradients
    there counts for nothing.
    """
    return loss_scale(trainer) if getattr(optimizer, "_step_supports_amp_scaling", False) else 1.0


def goes_on_from(trainer: Trainer) -> Any:
    """Give, in ``setup``, the checkpoint that will be read before a run; None if none will, or only when it has begun.

    Without it, a run that goes on from a checkpoint needs once more what it had started from.
    """
    from lightning.pytorch import Trainer

    trainers: tuple[Any, ...] = both(Trainer)
    frame: Any = sys._getframe(1)
    while frame is not None:
        if any(frame.f_code is one._run.__code__ for one in trainers):
            return None if trainer.strategy.restore_checkpoint_after_setup else frame.f_locals["ckpt_path"]
        frame = frame.f_back
    return None


def averaging(trainer: Trainer) -> list[Callback]:
    """List the callbacks that average weights: Lightning's SWA, and its WeightAveraging, where it has that.

    Without it, their averages are mixed up with weights of other layers, and budgets are met by weights that are none.
    """
    from lightning.pytorch import callbacks

    classes: list[Any] = [callbacks.StochasticWeightAveraging]
    classes += [kind] if (kind := getattr(callbacks, "WeightAveraging", None)) is not None else []
    known: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in known if isinstance(callback, both(*classes))]


def averaged_by(callback: Callback) -> nn.Module | None:
    """Give the module that holds the averages of a callback of :func:`averaging`; None if it has none now.

    Without it, weights that are loaded when a training ends are overwritten by the averages.
    """
    average: Any = callback._average_model  # type: ignore[attr-defined]
    found: nn.Module | None = getattr(average, "module", average)
    return found


def average_anew(module: LightningModule) -> None:
    """Have callbacks that average weights start with a module as it is now, other than when they copied it, in setup.

    Without it, they average weights of the layers that were there before, with those that are there now.
    """
    trainer = module._trainer
    if trainer is None:
        return
    for callback in averaging(trainer):
        if averaged_by(callback) is not None:
            callback.setup(trainer, module, stage=trainer.state.fn)  # type: ignore[arg-type]
            averages = getattr(callback, "n_averaged", None)
            if averages is not None:
                averages.zero_()


def put_before(trainer: Trainer, callback: Callback, others: list[Callback]) -> None:
    """Have a callback's hooks run before those of others, in its setup.

    Without it, the order in which callbacks are given decides what they see of each other.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    first = min(map(callbacks.index, others), default=len(callbacks))
    if first < callbacks.index(callback):
        callbacks.remove(callback)
        callbacks.insert(first, callback)


def end_bar(trainer: Trainer) -> None:
    """End the progress bar that is drawn anew all the time, as Lightning does in its teardown.

    Without it, the bar is drawn over what is printed when a fit ends.
    """
    progress: Any = getattr(trainer.progress_bar_callback, "progress", None)
    if progress is not None:
        progress.stop()


def finds_unused_parameters(strategy: Any) -> bool:
    """Tell whether DDP looks in every step for parameters that get no gradient.

    Without it, a parameter that is frozen during a fit has the next step fail, with an error that does not say why.
    """
    return bool(strategy._ddp_kwargs.get("find_unused_parameters", False))


def runs_a_step(module: nn.Module) -> bool:
    """Tell, in a hook before its forward, whether a LightningModule is called to run one of its steps.

    Wrappers such as DDP call it so. Without it, what a training step returns is taken for the network's output.
    """
    from lightning.pytorch.strategies.strategy import _ForwardRedirection

    code = getattr(vars(module).get("forward"), "__code__", None)
    calls: list[Any] = [one.__call__ for one in both(_ForwardRedirection)]
    return code is not None and any(code in call.__code__.co_consts for call in calls)


def is_synced(metric: Metric) -> bool:
    """Tell whether a metric's state holds the sums over all processes by now, as it does within ``compute()``.

    Without it, ``compute()`` of several processes would add up what is added up already.
    """
    return metric._is_synced


def syncs(metric: Metric) -> bool:
    """Tell whether a metric adds up over processes when it is read; ``sync_on_compute=False`` forbids it.

    Without it, a metric that is to tell its own process's counts waits for the others.
    """
    return metric._to_sync


def tracked_before() -> list[nn.Module] | None:
    """Give the metrics of earlier steps of the tracker that is copying its metric for a new one; None if none is.

    Without it, metrics that count by themselves go on when a tracker is done with them, and all its values are wrong.
    """
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == "torchmetrics.wrappers.tracker" and frame.f_code.co_name == "increment":
            tracker = frame.f_locals["self"]
            return [metric for step in tracker if step is not tracker._base_metric for metric in step.modules()]
        frame = frame.f_back
    return None


def own_first(parser: Any, own: Collection[str], defaults: Mapping[str, Any]) -> None:
    """Put what is a subcommand's own before what all subcommands take in its help, and tell defaults.

    Without it, the help begins with all that a Trainer takes, and options that have no default of their own show none.

    Args:
        parser: Of the subcommand; its help is changed.
        own: Names of the arguments that are its own.
        defaults: What some of them are if they are not given.
    """
    groups = parser._action_groups
    # The first ones are argparse's: positional ones, and --help and --config.
    groups[2:] = sorted(groups[2:], key=lambda group: all(one.dest not in own for one in group._group_actions))
    for action in parser._actions:
        if action.dest in own and action.dest in defaults and action.help and "if None" not in action.help:
            action.help = f"{action.help.removesuffix('.')}; {defaults[action.dest]} if not given."
