"""Where the training of a spiking network starts: a DNN, an exported network, a file, or a network of the user's."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from typing_extensions import override

from snnreg_plugins._checks import shown
from snnreg_plugins._lightning import average_anew, both, goes_on_from
from snnreg_plugins._weights import load_weights, read_weights
from snnreg_plugins.export import Sharded, SpikingNetwork, deploy, to_snntorch
from snnreg_plugins.export.files import described_network, description
from snnreg_plugins.modules.classifier import Classifier
from snnreg_plugins.modules.costs import LoggedCosts
from snnreg_plugins.modules.own import OwnRun
from snnreg_plugins.modules.timesteps import Timesteps
from snnreg_plugins.training.calibration import calibration_of
from snnreg_plugins.watching.layers import spikes_already

# In a checkpoint: what an exported network is beside its weights, and how far the training is.
_SPIKING, _TRAINING = "spiking_network", "spiking_training"


class SpikingStart(LoggedCosts, Classifier):
    """What is trained by a :class:`~snnreg_plugins.modules.SpikingClassifier`, which explains and checks these.

    Attributes:
        export_options: All options of an export.
        given_options: Those that were given.
    """

    checkpoint: str | None
    timesteps: Timesteps
    calibration_batches: int
    truncation: int | None
    checkpointing: bool
    readout: str | None
    readout_decay: float
    output_index: int | None
    per_step_loss: bool
    export_options: dict[str, Any]
    given_options: dict[str, Any]

    def _start_with_nothing(self) -> None:
        self._dnn: tuple[nn.Module, ...] = ()  # in a tuple: its weights are not trained
        self._own: OwnRun | None = None
        self._own_steps = self.timesteps.at_most  # that a network of the user's is stepped through now
        self._has_started = False
        self._notice()

    def _notice(self) -> None:
        """See what the network is, and take it so."""
        network = self.network
        if isinstance(network, SpikingNetwork):
            self._refuse_options("a SpikingNetwork")
            if self.checkpoint is not None:
                raise ValueError(
                    f"Expected argument `checkpoint` to be None for a SpikingNetwork, which has weights, but got "
                    f"{shown(self.checkpoint)}. To start from a file, give the DNN as `network`."
                )
            self._take(network, None)
        elif spikes_already(network):
            self._notice_own(network)
        elif self.output_index is not None:
            raise ValueError(
                f"Expected argument `output_index` to be None for a network that is exported, but got "
                f"{self.output_index}: it gives one tensor."
            )

    def _notice_own(self, network: nn.Module) -> None:
        kind = type(network).__name__
        inside = [name for name, module in network.named_modules() if isinstance(module, SpikingNetwork)]
        if inside:
            raise ValueError(
                f"Expected argument `network` to be a SpikingNetwork itself, and not {kind} around one. Give that, "
                f"its {inside[0]!r}; what is done to inputs is for the data module."
            )
        self._refuse_options(f"{kind}, which spikes already")
        for name, given in {"truncation": self.truncation, "checkpointing": self.checkpointing or None}.items():
            if given is not None:
                raise ValueError(
                    f"Expected argument `{name}` not to be given for {kind}, which spikes already, but got {given}. "
                    "CompressedActivations saves memory in any network."
                )
        time_dim = self.given_options.get("time_dim")
        if time_dim is not None and not self.timesteps.are_given and self.readout is None:
            raise ValueError(
                f"Expected argument `time_dim` not to be given without `timesteps`, but got {time_dim}. Give the time "
                f"steps of the data, to have {kind} called once a step; or leave it out if it reads all of them, and "
                "give a `readout` if it gives as many outputs."
            )
        if self.per_step_loss and self.readout is None and not self.timesteps.are_given:
            raise ValueError(
                f"Expected outputs of every time step for per_step_loss=True, but {kind} gives scores. Give "
                "`timesteps` if it takes one step a call, or a `readout` if it gives outputs (T, B, K)."
            )
        self._own = OwnRun(self.readout, self.readout_decay, self.output_index, time_dim)

    def _refuse_options(self, of: str) -> None:
        for name, value in self.given_options.items():
            if name != "time_dim":
                raise ValueError(
                    f"Expected argument `{name}`, an option of the export, not to be given for {of}, but got "
                    f"{shown(value)}. Leave it out."
                )

    @override
    def setup(self, stage: str) -> None:
        self._configure()
        # What goes on from a checkpoint is all in there; and to read data would lose the place in them.
        if goes_on_from(self.trainer) is None:
            self._start()
        network = self.network  # which may have been made right now
        if stage == "fit" and isinstance(network, SpikingNetwork) and network.exit_margins is not None:
            rank_zero_warn(
                "The exit_margins of the network are dropped, as they are those of the network before it is trained. "
                "Find others for what export() gives."
            )
            network.exit_margins = None

    def _configure(self) -> None:
        """Have a LightningModule as the network make its layers, as no Trainer asks it to."""
        if isinstance(self.network, both(LightningModule)):
            self.network.configure_model()
            if self._own is None:
                self._notice()  # what it is, now that it is made

    def _start(self) -> None:
        """Read the weights to start with, and make the spiking network of a DNN."""
        network = self.network
        if isinstance(network, SpikingNetwork) or (self._own is not None and self._has_started):
            return
        self._has_started = True
        if self.checkpoint is not None:
            content, weights = read_weights(self.checkpoint, "checkpoint")
            if self._own is None and (_SPIKING in content or _is_network(content)):
                self._refuse_options(f"the spiking network in {self.checkpoint!r}")
                self._take_written(content, self.checkpoint)
                return
            load_weights(network, weights, self.checkpoint)
        if self._own is None:
            calibration: Any = calibration_of(self.trainer, self.calibration_batches)
            if self.trainer.world_size > 1:
                calibration = Sharded(calibration)
            self._take(to_snntorch(network, calibration, **self.export_options), network)

    def _take_written(self, content: dict[str, Any], source: str) -> None:
        """Take the network of a file, in place of the DNN that tells its code."""
        model, written, weights = self.network, content.get(_SPIKING, content), content["state_dict"]
        dnn = None
        if _SPIKING in content:
            name = "network."
            weights = {key.removeprefix(name): one for key, one in weights.items() if key.startswith(name)}
            if written.get("dnn") is not None:
                load_weights(model, written["dnn"], source)
                dnn = model
        self._take(described_network({**written, "state_dict": weights}, model, source), dnn)

    def _take(self, network: SpikingNetwork, dnn: nn.Module | None) -> None:
        """Train a network from now on."""
        if self.output_index is not None:
            raise ValueError(
                f"Expected argument `output_index` to be None for a SpikingNetwork, but got {self.output_index}: it "
                "gives one tensor."
            )
        self._arrange(network)
        self._dnn = () if dnn is None else (dnn,)
        self.network = network
        average_anew(self)

    def _arrange(self, network: SpikingNetwork) -> None:
        """Have a network do what the arguments say."""
        if self.truncation is not None:
            network.truncation = self.truncation
        if self.checkpointing:
            network.checkpointing = True
        if self.timesteps.at_most is not None and not self.timesteps.are_scheduled:
            network.timesteps = self.timesteps.at_most
        if "time_dim" in self.given_options:
            network.time_dim = self.given_options["time_dim"]
        if self.readout is not None:
            network.readout, network.readout_decay = self.readout, self.readout_decay
        fixed = "whose inputs have a dimension of time" if network.time_dim is not None else None
        if network.conversion.get("coding") == "latency":
            fixed = "whose input is coded by latency"
        if self.timesteps.vary and fixed is not None:
            raise ValueError(
                f"Expected argument `timesteps` to be one number for a network {fixed}, but got "
                f"{shown(self.timesteps.given)}. Leave it out for those that it has."
            )
        if self.per_step_loss and (network.head is not None or network.readout == "max"):
            why = "whose readout 'max' forgets outputs" if network.head is None else "with a part of the DNN behind it"
            raise ValueError(
                f"Expected a network whose scores tell the outputs of its steps for per_step_loss=True, but got one "
                f"{why}. Use readout='last' or 'mean', and no `until`."
            )

    @property
    def dnn(self) -> nn.Module | None:
        """The DNN that the network was, or will be, exported from; None if it is not known, or there is none."""
        if self._own is not None:
            return None
        if isinstance(self.network, SpikingNetwork):
            return self._dnn[0] if self._dnn else None
        return self.network

    def export(self) -> nn.Module:
        """Give the network as it is to be used.

        Returns:
            An exported network with batch norms folded, thresholds fixed, few bits rounded and ``readout`` set, at the
            largest number of time steps, or those of the last epoch. Of a network of your own, that network itself;
            ``self(x)`` steps it and reads out the scores.

        Raises:
            RuntimeError: Before a run has exported it.
        """
        if self._own is not None:
            return self.network
        if not isinstance(self.network, SpikingNetwork):
            raise RuntimeError("There is no spiking network yet: fit, validate or test the module first.")
        return deploy(self.network)

    # Files.

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the spiking network is beside its weights, the DNN, and how far the training is."""
        if isinstance(self.network, SpikingNetwork):
            dnn = self.dnn
            checkpoint[_SPIKING] = {**description(self.network), "dnn": None if dnn is None else dnn.state_dict()}
        if isinstance(self.network, SpikingNetwork) or self._own is not None:
            own = None if self._own is None else {"timesteps": self._own_steps, **self._own.settings()}
            checkpoint[_TRAINING] = {"drawn": self.timesteps.drawn, "own": own}

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the DNN from a checkpoint, and the spiking network where no run has exported one before."""
        self._configure()
        if _SPIKING in checkpoint and self._own is not None:
            raise ValueError(
                f"Expected a checkpoint of a SpikingClassifier around {type(self.network).__name__}, but this one "
                "holds a network that was exported. Give the DNN that it was exported from as `network`."
            )
        if _SPIKING not in checkpoint and self._own is None:
            raise ValueError(
                "Expected a checkpoint of a SpikingClassifier, but this one holds no spiking network. To fine-tune the "
                "DNN in it, name it as SpikingClassifier(checkpoint=...)."
            )
        training = checkpoint.get(_TRAINING)
        if training is not None:
            self.timesteps.drawn = training["drawn"].cpu()
            if self._own is not None:
                settings = dict(training["own"])
                steps = settings.pop("timesteps")
                if not self.timesteps.are_given or self.timesteps.are_scheduled:
                    self._own_steps = steps
                self._own.fill_in(**settings)
        self._has_started = True
        network = self.network
        if self._own is not None:
            return
        if not isinstance(network, SpikingNetwork):
            self._take_written(checkpoint, "the checkpoint")
            return
        # Its weights are in the checkpoint, too.
        written = checkpoint[_SPIKING]
        if self._dnn and written["dnn"] is not None:
            load_weights(self._dnn[0], written["dnn"], "the checkpoint")
        network.conversion = dict(written["conversion"])
        network.timesteps, network.exit_margins = written["timesteps"], written["exit_margins"]
        network.readout = network.readout
        self._arrange(network)

    @classmethod
    def load_from_checkpoint(cls, *args: Any, checkpoint: str | None = None, **kwargs: Any) -> Any:
        """Load a trained network, with its DNN: ``SpikingClassifier.load_from_checkpoint(path, network=LeNet())``.

        Args:
            *args: The file, and what else Lightning takes.
            checkpoint: Where training started from; it is not read, as the file holds all.
            **kwargs: Arguments of the module, ``network`` among them, and what else Lightning takes. ``timesteps`` and
                ``readout`` are those of the file if they are not given.
        """
        module = super().load_from_checkpoint(*args, **kwargs)
        module.checkpoint = checkpoint
        return module


def _is_network(content: dict[str, Any]) -> bool:
    """Tell whether a file is one of a spiking network."""
    return isinstance(content.get("format"), str) and "conversion" in content
