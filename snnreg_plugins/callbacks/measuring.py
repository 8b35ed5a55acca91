"""What callbacks share that measure the network of a fit: which one, on what, and what is scored."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, fx, nn
from torchmetrics import Metric
from typing_extensions import override

from snnreg_plugins._batches import mean_frame
from snnreg_plugins._checks import as_name
from snnreg_plugins._models import device_of, part_of
from snnreg_plugins.callbacks.measurement import Calls, Randomness
from snnreg_plugins.export import ConversionError, Sharded
from snnreg_plugins.export.faithful import traced_faithfully
from snnreg_plugins.export.processes import Processes
from snnreg_plugins.metrics.scores import Task, require_metric
from snnreg_plugins.reports.own import scores_of
from snnreg_plugins.training.first_batch import FirstBatch
from snnreg_plugins.watching.layers import spikes_already


class MeasuringCallback(Callback):
    """Base of callbacks that measure a network: looks at the first training batch, and chooses there what is scored.

    Args:
        metric: What is scored; None if labels and loss are to tell.
        network: Name of the network within the LightningModule; None if that is it.
        options: Options of the export.
    """

    def __init__(self, metric: Metric | Task | None, network: str | None, options: dict[str, Any]) -> None:
        require_metric(metric)
        self.metric = metric
        self.network_name = as_name("network", network)
        self.options = options
        self._time_dim: int | None = options.get("time_dim")
        self._start_anew()

    def _start_anew(self) -> None:
        """Forget all of an earlier run: fold loops, tuners and notebooks use a callback again."""
        self._first = FirstBatch(self.metric)
        self._calls: Calls | None = None  # of a network that spikes already, in the first batch
        self._targets: Any = None
        self._randomness: Randomness | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Go to other processes without what refers to objects of this one."""
        return {**vars(self), "_calls": None}

    def unpack(self, batch: Any) -> tuple[Tensor, Any]:
        """Return the inputs and the labels of a batch; override for batches that are not ``(input, label)``.

        It may also choose one of several targets, or do to the inputs what the module's steps do before they call
        the network, such as normalization: the exported network gets what is returned here. Labels may be None where
        there are none.

        Args:
            batch: A batch of data, as the module's steps get it.
        """
        if isinstance(batch, (tuple, list)) and len(batch) == 2:
            return batch[0], batch[1]
        name = type(self).__name__
        raise TypeError(
            f"{name} expects batches of (input, label), but got {type(batch).__name__}"
            f"{f' of {len(batch)}' if isinstance(batch, (tuple, list)) else ''}. Override {name}.unpack(batch) to "
            "return both."
        )

    def readout(self, outputs: Any) -> Any:
        """Return the scores of a network that spikes already; override where it returns others than ``(B, ...)``.

        Of spikes and potentials over time, ``(spk_rec, mem_rec)``, ``outputs[0].sum(0)`` counts the spikes, and
        ``outputs[1][-1]`` is the last potential.

        Args:
            outputs: What the network returned for a batch; a list of that where the step called it more than once.
        """
        return outputs

    def _unpacked(self, batch: Any) -> tuple[Tensor, Any]:
        unpacked: tuple[Any, Any] = self.unpack(batch)
        x, y = unpacked
        if not isinstance(x, Tensor):
            name = type(self).__name__
            raise TypeError(
                f"{name} expects the input to be a tensor, but got {type(x).__name__}. Override {name}.unpack(batch) "
                "to return the tensor that the network is called with, and the labels."
            )
        return x, y

    def _network(self, pl_module: LightningModule) -> nn.Module:
        return part_of(pl_module, self.network_name)

    def _traced(self, pl_module: LightningModule, x: Tensor) -> fx.GraphModule:
        """Trace the DNN that is exported.

        Raises:
            ValueError: If the input has other time steps than the spiking network is to take, or the network fails.
        """
        steps = self.options["timesteps"]
        if self._time_dim is not None and x.shape[self._time_dim] != steps:
            raise ValueError(
                f"Expected argument `timesteps` to be {x.shape[self._time_dim]}, the time steps of the data along "
                f"dimension {self._time_dim}, but got {steps}."
            )
        network = self._network(pl_module)
        try:
            return traced_faithfully(network, self._frames(x), self.options.get("until"))
        except ConversionError:
            raise
        except ValueError as error:
            name = type(self).__name__
            raise ValueError(
                f"{name} cannot run {type(network).__name__} on the inputs of a batch: {error} Name the network that "
                f"takes them by the argument `network`, or override {name}.unpack(batch) to return what it is called "
                "with."
            ) from error

    def _frames(self, x: Tensor) -> Tensor:
        """Give what the DNN sees of an input."""
        return mean_frame(x, self._time_dim, x.dtype if x.is_floating_point() else torch.get_default_dtype())

    def _drawn(self, trainer: Trainer, network: nn.Module) -> Any:
        """Draw random numbers, as an input code does, that move nobody else's."""
        if self._randomness is None:
            self._randomness = Randomness(trainer.global_rank)
        return self._randomness.drawn(device_of(network))

    def _scores(self, calls: Calls, targets: Any, step: str) -> Tensor:
        """Give the scores of a network that spikes already, for a batch that a step of the module had."""
        name = type(self).__name__
        if not calls.returned:
            called = "forward()" if self.network_name is None else repr(self.network_name)
            raise ValueError(
                f"{name} measures what the module's {step}() makes of the network, but that has not called {called}. "
                f'Name the network that it calls, such as {name}(network="net").'
            )
        with torch.no_grad():
            return scores_of(self.readout(calls.outputs), targets, f"Override {name}.readout(outputs)")

    # The first training batch.

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self._first.is_due:
            return
        x, self._targets = self._unpacked(batch)
        network = self._network(pl_module)
        if spikes_already(network):  # what it gives is seen in the module's own step
            self._calls = Calls(network)
            return
        dnn = self._traced(pl_module, x)
        with self._drawn(trainer, dnn), torch.no_grad():
            self._first.see(dnn(self._frames(x)), self._targets)

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._first.hear(loss)

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        waits = self._calls is not None and not self._calls.returned  # it may be called for another optimizer
        if pl_module.automatic_optimization or not waits:
            self._decide(pl_module)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._decide(pl_module)  # also where no optimizer steps

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._listen_no_more()

    def _listen_no_more(self) -> None:
        if self._calls is not None:
            self._calls.close()
        self._calls = None

    def _decide(self, pl_module: LightningModule) -> bool:
        """Choose the score, once; tell whether it was now."""
        if not (self._first.is_due and (self._calls is not None or self._first.has_batch)):
            return False
        rules = Processes(Sharded(())).gather(lambda: self._rule(pl_module))
        if len(set(rules)) > 1:
            raise ValueError(
                f"{type(self).__name__} is to score the same in all processes, but their first batches tell "
                f"{', '.join(sorted(set(map(str, rules))))}. Give `metric`."
            )
        return True

    def _rule(self, pl_module: LightningModule) -> tuple[Any, ...] | None:
        """Choose the score by this process's batch, and tell what it is."""
        if self._calls is not None:
            calls, targets = self._calls, self._targets
            self._listen_no_more()
            self._see(calls, targets, "training_step")
        self._first.decide(pl_module)
        return None if self._first.score is None else self._first.score.rule

    def _see(self, calls: Calls, targets: Any, step: str) -> None:
        """Take what a network that spikes already gave for a batch."""
        self._first.see(torch.empty(0) if targets is None else self._scores(calls, targets, step), targets)
