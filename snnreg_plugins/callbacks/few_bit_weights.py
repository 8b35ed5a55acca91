"""Train a network with weights of few bits."""

from __future__ import annotations

from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from typing_extensions import override

from snnreg_plugins._checks import as_names
from snnreg_plugins._lightning import averaging
from snnreg_plugins.export.few_bits import has_few_bits
from snnreg_plugins.functional.fewbits import checked_bits
from snnreg_plugins.training.few_bits import layers_in_few_bits, leave_few_bits, put_few_bits


class FewBitWeights(Callback):
    r"""Train with weights of few bits, integers or powers of two in a unit of each output channel.

    Every layer with weights (Linear, Conv, ConvTranspose) computes with

    .. math:: \hat w = u_c \cdot \operatorname{round}(w / u_c) \qquad u_c = \max_{i \in c} |w_i| / M

    where round gives the nearest number that the format has, M being its largest; see
    :mod:`snnreg_plugins.functional.fewbits`. The float w behind it is what the optimizer trains, by the gradient of
    :math:`\hat w` as it is (straight through). At the end of ``fit`` the layers are left with :math:`\hat w` for plain
    weights; so they are by a run that reads a checkpoint, and by others as they were.

    An export with the same ``weights`` and ``weight_bits`` keeps what was trained, whatever the batch norms behind and
    the thresholds in front are: those of a layer scale whole output channels, which changes their unit alone. But
    thresholds ``per_channel`` scale the inputs of the next layer one by one, and layers whose currents are added up
    share a unit: there the export rounds again.

    The weights w are parameters of the layers from ``setup`` on, before optimizers are made and before checkpoints are
    read. A run that reads a checkpoint that was written during the training, also to validate, test or predict, needs
    this callback; outside of a Trainer, call :meth:`put` before ``load_state_dict`` and :meth:`leave` behind it.

    A :class:`~snnreg_plugins.modules.SpikingClassifier` needs no such callback: it takes ``weights="int8"`` itself.

    Args:
        weights: ``"int8"``, integers, or ``"power_of_two"``.
        bits: Of a weight, its sign among them: 2 to 8 for integers (8 if None), 2 to 5 for powers of two (4 if None).
        layers: Patterns of the names of the layers (``"features.*"``), all if None.

    Raises:
        ValueError: If an argument is out of range, or on start of a run, if there is no layer to train so, or one
            computes its weight already.
        MisconfigurationException: On start of a run, if the layers are no longer in the module, or a callback that
            averages weights is listed before this one.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> callback = FewBitWeights(bits=4)
        >>> trainer = Trainer(max_epochs=10, callbacks=[callback], logger=False, enable_checkpointing=False)
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> list(callback.put(model))  # the Trainer does it
        ['0', '2']
    """

    def __init__(
        self,
        weights: Literal["int8", "power_of_two"] = "int8",
        bits: int | None = None,
        layers: str | list[str] | None = None,
    ) -> None:
        self.bits = checked_bits(weights, bits)
        self.weights = weights
        self.layers = as_names("layers", layers)
        self._put: list[nn.Module] = []  # in this run

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights, "bits": self.bits}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict != self.state_dict():
            given = ", ".join(f"{name}={value!r}" for name, value in state_dict.items())
            rank_zero_warn(f"The checkpoint was trained with {given}, not weights={self.weights!r}, bits={self.bits}.")

    def put(self, model: nn.Module) -> dict[str, nn.Module]:
        """Put the weights of a model behind few bits, and return the layers by name.

        Args:
            model: A network or LightningModule; changed in place.

        Raises:
            ValueError: If there is no such layer, or one computes its weight already.
        """
        return put_few_bits(model, self.weights, self.bits, self.layers)

    def leave(self, model: nn.Module) -> None:
        """Leave the layers of a model with the weights of few bits that they compute with.

        Args:
            model: Changed in place.
        """
        leave_few_bits(layers_in_few_bits(model).values())

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        callbacks: list[Any] = list(getattr(trainer, "callbacks", []))
        for callback in averaging(trainer):
            if callbacks.index(callback) < callbacks.index(self):
                raise MisconfigurationException(
                    f"{type(callback).__name__} has copied the module before FewBitWeights changes its layers. List "
                    "FewBitWeights before it."
                )
        before = layers_in_few_bits(pl_module)
        self._put = [layer for name, layer in self.put(pl_module).items() if name not in before]

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not layers_in_few_bits(pl_module):
            raise MisconfigurationException(
                f"The layers that FewBitWeights has found in {type(pl_module).__name__} are no longer there: setup() "
                'or configure_model() has made others. A SpikingClassifier takes weights="int8" in place of this '
                "callback; make other layers in __init__."
            )

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" or trainer.ckpt_path is not None:
            self.leave(pl_module)
        else:  # a look at a module that may be trained later
            leave_few_bits(filter(has_few_bits, self._put), rounded=False)
        self._put = []
