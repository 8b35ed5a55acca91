"""What may be set on a spiking network: how many steps it takes, and how."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from torch import fx, nn

from snnreg_plugins._checks import as_flag, as_integer, as_number, one_of
from snnreg_plugins.frameworks.base import Neurons
from snnreg_plugins.functional.readout import READOUTS
from snnreg_plugins.spiking.early_exit import checked_margins
from snnreg_plugins.spiking.inputs import checked_time_dim
from snnreg_plugins.spiking.structure import worth_of_outputs
from snnreg_plugins.watching.simulated import SimulatedNetwork

#: What may be set.
SETTINGS = (
    "checkpointing", "exact", "exit_margins", "readout", "readout_decay", "time_dim", "timesteps", "truncation"
)  # fmt: skip
# What else there is, set once.
_PARTS = ("body", "conversion", "encoder", "head", "neurons")


class NetworkSettings(SimulatedNetwork):
    """The settings of a :class:`~snnreg_plugins.SpikingNetwork`, which explains those that are plain attributes."""

    exact: bool = False
    checkpointing: bool = False
    body: fx.GraphModule
    neurons: Neurons
    head: nn.Module | None
    conversion: dict[str, Any]
    _is_open = False  # to further attributes
    _timesteps: int
    _truncation: int | None = None
    _exit_margins: tuple[float, ...] | None = None
    _worth = ""  # name of what output spikes are multiplied by

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let a class of the user's have attributes of its own."""
        super().__init_subclass__(**kwargs)
        cls._is_open = cls.__base__ is not NetworkSettings

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; one that nothing would read is refused."""
        if name in ("exact", "checkpointing"):
            value = as_flag(name, value)
        elif not (
            name.startswith("_")
            or name in (*SETTINGS, *_PARTS)
            or hasattr(self, name)
            or callable(value)
            or self._is_open
        ):
            close = get_close_matches(name.replace("_", ""), SETTINGS, 1) or ["timesteps"] * ("step" in name)
            raise AttributeError(
                f"{type(self).__name__} has no attribute {name!r} to set, so nothing would read it."
                + "".join(f" Did you mean `{meant}`?" for meant in close)
                + f" It has {', '.join(SETTINGS)}; thresholds, beta and the like are options of the export."
            )
        super().__setattr__(name, value)

    @property
    def timesteps(self) -> int:
        """Number of time steps of a call."""
        return self._timesteps

    @timesteps.setter
    def timesteps(self, value: int) -> None:
        self._timesteps = as_integer("timesteps", value)

    @property
    def truncation(self) -> int | None:
        """In training, the number of steps that a gradient flows back through neurons (truncated BPTT); None for all.

        Every so many steps, states are cut off from the steps before. Each step's output still adds to the gradient.
        """
        return self._truncation

    @truncation.setter
    def truncation(self, value: int | None) -> None:
        self._truncation = None if value is None else as_integer("truncation", value)

    @property
    def time_dim(self) -> int | None:
        """Dimension of time in inputs: 0 for ``(T, B, ...)``, 1 for ``(B, T, ...)``; None if they are constant."""
        dim: int | None = self.conversion.get("time_dim")
        return dim

    @time_dim.setter
    def time_dim(self, value: int | None) -> None:
        self.conversion["time_dim"] = checked_time_dim(value)

    @property
    def readout(self) -> str:
        r"""How scores are read out of the outputs :math:`y_t` of the steps.

        ``"mean"`` of the steps so far, which is on the DNN's output scale; the ``"last"`` one; the ``"max"``; the
        ``"potential"`` of a membrane that integrates them, :math:`U_t = \beta U_{t-1} + y_t` with β the
        ``readout_decay``; or ``"spike_count"``, the number of spikes of a last layer of neurons. It is saved with the
        network, and early exit, reports and metrics go by it.

        Raises:
            ValueError: If it is none of these; if spikes are to be counted that the last layer does not give; if a part
                of the DNN comes behind the spikes, which reads their mean.
        """
        return str(self.conversion.get("readout", "mean"))

    @readout.setter
    def readout(self, value: str) -> None:
        readout = one_of("readout", value, READOUTS)
        if readout != "mean" and self.head is not None:
            raise ValueError(
                f"Expected argument `readout` to be 'mean' for a network that has a part of the DNN behind its spikes "
                f"(`until`), which reads their mean, but got {readout!r}. Export the whole DNN, without `until`."
            )
        worth = worth_of_outputs(self.body, self.neurons.describe) if readout == "spike_count" else None
        if readout == "spike_count" and worth is None:
            raise ValueError(
                "Expected a network whose last layer spikes for readout='spike_count', but this one gives currents. "
                "Use 'mean' or 'potential'; or export a DNN that ends with nn.ReLU() (where a PopulationCode pools its "
                "outputs, with per_channel=False)."
            )
        self._worth = worth or ""
        self.conversion["readout"] = readout

    @property
    def readout_decay(self) -> float:
        """β of the readout ``"potential"``; 1 sums up."""
        return float(self.conversion.get("readout_decay", 1.0))

    @readout_decay.setter
    def readout_decay(self, value: float) -> None:
        self.conversion["readout_decay"] = as_number("readout_decay", value, "(0, 1]")

    @property
    def exit_margins(self) -> tuple[float, ...] | None:
        r"""Margins at which a sample needs no more steps, the first for step 1; None to take all steps.

        A sample is no longer simulated after the first step t at which its best score is ahead of the second best by

        .. math:: \text{scores}_t^{(1)} - \text{scores}_t^{(2)} \ge m_t

        Neither when training nor with ``per_step``. :func:`~snnreg_plugins.export.exit_margins` finds safe
        ones; :class:`~snnreg_plugins.TimeSteps` tells the steps that samples took on average, and
        :class:`~snnreg_plugins.SynapticOperations` what they cost. They are saved with the network.

        Raises:
            ValueError: If they are no numbers, or a part of the DNN comes behind the spikes.
        """
        return self._exit_margins

    @exit_margins.setter
    def exit_margins(self, value: Sequence[float] | None) -> None:
        margins = None if value is None else checked_margins(value)
        if margins is not None and self.head is not None:
            raise ValueError(
                "Expected a network whose scores are the mean of its steps to set `exit_margins`, but this one has a "
                "part of the DNN behind its spikes (`until`)."
            )
        self._exit_margins = margins
