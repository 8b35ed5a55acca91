"""What a module's spiking network spends, logged at validation and test."""

from __future__ import annotations

from lightning.pytorch import LightningModule
from torch import nn
from typing_extensions import override

from snnreg_plugins.metrics import SpikeRate, SynapticOperations


class LoggedCosts(LightningModule):
    """Logs ``val/sops`` (per sample) and ``val/spike_rate`` (spikes/neuron/step), or ``test/...``.

    Attributes:
        network: The spiking network.
    """

    network: nn.Module

    @override
    def on_validation_start(self) -> None:
        self._watch()

    @override
    def on_test_start(self) -> None:
        self._watch()

    @override
    def on_validation_epoch_end(self) -> None:
        self._log_cost("val")

    @override
    def on_test_epoch_end(self) -> None:
        self._log_cost("test")

    def _watch(self) -> None:
        metrics = {"sops": SynapticOperations(self.network), "spike_rate": SpikeRate(self.network)}
        self._cost = {name: metric.to(self.device) for name, metric in metrics.items()}

    def _log_cost(self, stage: str) -> None:
        for name, metric in self._cost.items():
            self.log(f"{stage}/{name}", metric.compute().float(), prog_bar=True)
            metric.close()
