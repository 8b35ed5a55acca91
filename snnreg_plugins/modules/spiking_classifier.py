"""A LightningModule that classifies with a spiking network exported from a DNN."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from typing_extensions import Unpack, override

from snnreg_plugins._batches import inputs_of
from snnreg_plugins._checks import as_flag, as_integer
from snnreg_plugins._lightning import average_anew, goes_on_from
from snnreg_plugins._weights import load_weights, read_weights
from snnreg_plugins.export import Sharded, SpikingNetwork, deploy, to_snntorch
from snnreg_plugins.export.files import described_network, description
from snnreg_plugins.export.options import ExportOptions, Options
from snnreg_plugins.modules.classifier import Classifier
from snnreg_plugins.modules.costs import LoggedCosts

# In a checkpoint: what the spiking network is beside its weights.
_SPIKING = "spiking_network"


class SpikingClassifier(LoggedCosts, Classifier):
    """Fine-tune with surrogate gradients the spiking network that a DNN is exported to.

    At the start of a run the DNN's weights are read from ``checkpoint``, its thresholds are balanced on the training
    data, and it is exported to snnTorch neurons; :attr:`network` is then the
    :class:`~snnreg_plugins.SpikingNetwork`, and :attr:`dnn` what it was exported from. A run that goes on from a
    checkpoint of this module finds all of that in there. Validation and test log ``val/sops`` (per sample) and
    ``val/spike_rate`` (spikes/neuron/step) too, or ``test/...``.

    Args:
        network: The DNN, untrained; its weights come from the checkpoint.
        checkpoint: A Lightning checkpoint of a :class:`Classifier` of that DNN, or of your own LightningModule, where
            ``network`` is that module or the network within it; or a file of a ``state_dict()``. Only tensors are read
            from it, no code is run. None keeps the weights of ``network``.
        timesteps: Time steps T.
        calibration_batches: Batches of training data to balance thresholds on; processes share them out.
        optimizer: From parameters to an optimizer; Adam with its defaults if None.
        scheduler: From an optimizer to a learning-rate scheduler, stepped every epoch.
        truncation: Time steps that gradients flow back through neurons; all if None.
        checkpointing: Keep no activations for the backward pass, but compute them again there, a part of the batch at
            a time; see :class:`~snnreg_plugins.SpikingNetwork`.
        loss: From outputs and targets to a loss; cross-entropy if None.
        **options: Options of the export, such as ``threshold`` and ``per_channel``; see
            :func:`~snnreg_plugins.to_snntorch`. ``weights`` of few bits are trained, unless ``train_weights=False``.

    Raises:
        ValueError: If an argument is out of range.
        FileNotFoundError: On start of a run, if there is no file at ``checkpoint``.
        ValueError: On start of a run, if the checkpoint's weights do not fit ``network``.
    """

    def __init__(
        self,
        network: nn.Module,
        checkpoint: str | None = None,
        timesteps: int = 4,
        calibration_batches: int = 10,
        optimizer: OptimizerCallable = torch.optim.Adam,
        scheduler: LRSchedulerCallable | None = None,
        truncation: int | None = None,
        checkpointing: bool = False,
        loss: nn.Module | None = None,
        **options: Unpack[ExportOptions],
    ) -> None:
        super().__init__(network, optimizer, scheduler, loss)
        self.checkpoint = checkpoint
        self.calibration_batches = as_integer("calibration_batches", calibration_batches)
        self.truncation = None if truncation is None else as_integer("truncation", truncation)
        self.checkpointing = as_flag("checkpointing", checkpointing)
        if options.get("weights", "float") != "float":
            options.setdefault("train_weights", True)
        self.export_options: dict[str, Any] = {"timesteps": as_integer("timesteps", timesteps), **options}
        Options(**self.export_options)  # checks them

    @override
    def setup(self, stage: str) -> None:
        if isinstance(self.network, SpikingNetwork):
            return
        self._configure()
        if goes_on_from(self.trainer) is not None:
            return  # the network is in that file
        if self.checkpoint is not None:
            load_weights(self.network, read_weights(self.checkpoint, "checkpoint")[1], self.checkpoint)
        dnn = self.network
        calibration = self._calibration()
        parallel = self.trainer.world_size > 1
        self._exported(dnn, to_snntorch(dnn, Sharded(calibration) if parallel else calibration, **self.export_options))

    def _configure(self) -> None:
        """Have a LightningModule as the DNN make its layers, as no Trainer asks it to."""
        if isinstance(self.dnn, LightningModule):
            self.dnn.configure_model()

    def _exported(self, dnn: nn.Module, network: SpikingNetwork) -> None:
        network.truncation, network.checkpointing = self.truncation, self.checkpointing
        self._dnn = (dnn,)  # in a tuple: its weights are not trained
        self.network = network
        average_anew(self)

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the spiking network is beside its weights, and the DNN."""
        if isinstance(self.network, SpikingNetwork):
            checkpoint[_SPIKING] = {**description(self.network), "dnn": self.dnn.state_dict()}

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the DNN from a checkpoint, and the spiking network where no run has exported one before."""
        if _SPIKING not in checkpoint:
            raise ValueError(
                "Expected a checkpoint of a SpikingClassifier, but this one holds no spiking network. To fine-tune the "
                "DNN in it, name it as SpikingClassifier(checkpoint=...)."
            )
        written, name = checkpoint[_SPIKING], "network."
        self._configure()
        load_weights(self.dnn, written["dnn"], "the checkpoint")
        if isinstance(self.network, SpikingNetwork):
            return  # its weights are in the checkpoint, too
        weights = {key.removeprefix(name): one for key, one in checkpoint["state_dict"].items() if key.startswith(name)}
        network = described_network({**written, "state_dict": weights}, self.dnn, "the checkpoint")
        self._exported(self.dnn, network)

    @classmethod
    def load_from_checkpoint(cls, *args: Any, checkpoint: str | None = None, **kwargs: Any) -> Any:
        """Load a fine-tuned network with its DNN: ``SpikingClassifier.load_from_checkpoint(path, network=LeNet())``.

        Args:
            *args: The file, and what else Lightning takes.
            checkpoint: Where training started from; it is not read, as the file holds all.
            **kwargs: Arguments of the module, ``network`` among them, and what else Lightning takes.
        """
        module = super().load_from_checkpoint(*args, **kwargs)
        module.checkpoint = checkpoint
        return module

    @property
    def dnn(self) -> nn.Module:
        """The DNN that the network was, or will be, exported from."""
        return self._dnn[0] if isinstance(self.network, SpikingNetwork) else self.network

    def export(self) -> SpikingNetwork:
        """Give the spiking network as it is to be used: batch norms folded, thresholds fixed, few bits rounded.

        Raises:
            RuntimeError: Before a run has exported it.
        """
        if not isinstance(self.network, SpikingNetwork):
            raise RuntimeError("There is no spiking network yet: fit, validate or test the module first.")
        return deploy(self.network)

    def _calibration(self) -> Iterator[Tensor]:
        """First batches of the training data; of several processes, the share that this one is to calibrate on."""
        trainer: Any = self.trainer
        datamodule = getattr(trainer, "datamodule", None)
        if datamodule is not None:
            # Its loader would give every process all of the data, so the first process alone reads it.
            batches = self.calibration_batches if trainer.is_global_zero else 0
        else:
            if trainer.train_dataloader is None:
                trainer.fit_loop.setup_data()  # in all processes: they compare the lengths of their loaders
            batches = -(-self.calibration_batches // trainer.world_size)

        def read() -> Iterator[Tensor]:
            if not batches:
                return
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                loader = trainer.train_dataloader if datamodule is None else datamodule.train_dataloader()
                inputs = list(inputs_of(islice(loader, batches), argument="train_dataloader"))
            yield from inputs

        return read()  # when asked for its first batch: an error is then told to the processes that wait for this one
