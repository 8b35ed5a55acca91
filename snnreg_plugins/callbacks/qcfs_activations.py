"""Train with the activation that spiking neurons of a few time steps have."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import fx, nn
from torch.nn import functional as F
from typing_extensions import override

from snnreg_plugins.export import SpikingNetwork
from snnreg_plugins.export.qcfs import QCFS, check
from snnreg_plugins.export.refusals import where
from snnreg_plugins.watching.hooks import notice_new_hooks

_FUNCTIONS = (F.relu, F.relu_, torch.relu, torch.relu_)
_METHODS = ("relu", "relu_")


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
        check(levels, percent)
        if start_epoch < 0 or (isinstance(start_epoch, float) and start_epoch >= 1):
            raise ValueError(
                "Expected argument `start_epoch` to be a whole number of at least 0 or a share in [0, 1), but got "
                f"{start_epoch}."
            )
        if calibration_batches < 1:
            raise ValueError(
                f"Expected argument `calibration_batches` to be at least 1, but got {calibration_batches}."
            )
        self.levels = levels
        self.start_epoch = start_epoch
        self.percent = percent
        self.calibration_batches = calibration_batches
        self.layers = [layers] if isinstance(layers, str) else layers
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
        if any(isinstance(module, SpikingNetwork) for module in model.modules()):
            return {}  # exported already
        relus = {name: module for name, module in model.named_modules() if _is_relu(module)}
        present = [name for name, module in model.named_modules() if isinstance(module, QCFS)]
        chosen = self._choose([*relus, *present])
        if not chosen:
            raise ValueError(
                f"Expected nn.ReLU modules to exchange, but {type(model).__name__} has none. Use nn.ReLU modules in "
                "place of F.relu and torch.relu, and make them in __init__, not in setup() or configure_model()."
                + "".join(_functional_relus(model))
            )
        if relus:
            functional = _functional_relus(model)
            if functional and self.layers is None:
                rank_zero_warn(
                    "QCFSActivations exchanges nn.ReLU modules alone. Use them in place of the functional ReLUs, which "
                    f"stay as they are:{''.join(functional)}"
                )
            self._replace(model, {relus[name] for name in chosen if name in relus})
            notice_new_hooks()
        return {name: module for name, module in model.named_modules() if isinstance(module, QCFS)}

    def _choose(self, names: list[str]) -> set[str]:
        if self.layers is None:
            return set(names)
        for pattern in self.layers:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(
                    f"Expected every pattern of argument `layers` to match the name of a ReLU, but {pattern!r} matches "
                    f"none of {names}."
                )
        return {name for name in names if any(fnmatchcase(name, pattern) for pattern in self.layers)}

    def _replace(self, model: nn.Module, relus: set[nn.Module]) -> None:
        weight = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        made: dict[nn.Module, QCFS] = {}  # a shared ReLU becomes a shared QCFS
        for parent in list(model.modules()):
            for name, child in list(parent._modules.items()):
                if child is not None and child in relus:
                    if child not in made:
                        made[child] = QCFS(self.levels, percent=self.percent).to(weight.device, weight.dtype)
                        made[child].train(child.training)
                    setattr(parent, name, made[child])

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.swap(pl_module)
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
        self._waiting = [module for module in pl_module.modules() if isinstance(module, QCFS) and not module.active]

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Not at the start of the epoch, which a run that is resumed within one does not see.
        due = trainer.current_epoch >= self._start(trainer) and self._batches >= self.calibration_batches
        if self._waiting and due:
            for module in self._waiting:
                module.activate()
            self._waiting = []

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._waiting:
            return
        self._batches += 1
        if trainer.world_size > 1:
            # At every batch, so that a checkpoint of the first process holds what all have observed.
            observed = torch.stack([module.observed for module in self._waiting])
            for module, mean in zip(self._waiting, trainer.strategy.reduce(observed, reduce_op="mean"), strict=True):
                module.observed.copy_(mean)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, module in pl_module.named_modules():
            if isinstance(module, QCFS) and not module.threshold > 0:
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


class _Tracer(fx.Tracer):
    record_stack_traces = True

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Past the module's hooks, which expect tensors, and past torch.compile, which cannot be traced.
        m = getattr(m, "_orig_mod", m)
        return super().call_module(m, m.forward, args, kwargs)


def _is_relu(module: nn.Module) -> bool:
    # A subclass with a forward of its own is another activation.
    return isinstance(module, nn.ReLU) and type(module).forward is nn.ReLU.forward


def _functional_relus(model: nn.Module) -> Sequence[str]:
    """Find the lines of the user's code with functional ReLUs, as far as the model can be traced."""
    before = [(module, vars(module).copy()) for module in model.modules()]
    try:
        graph = _Tracer().trace(model)
    except Exception:
        return []  # only a hint is lost
    finally:
        # A forward that keeps what it computed would keep what tracing puts in its place.
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)
    lines = [
        where(node)
        for node in graph.nodes
        if (node.op == "call_function" and node.target in _FUNCTIONS)
        or (node.op == "call_method" and node.target in _METHODS)
    ]
    return list(dict.fromkeys(lines))
