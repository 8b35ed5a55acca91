"""What a module's spiking network spends, logged at validation and test."""

from __future__ import annotations

from typing import Any

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

    @override
    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._labels += len(batch[1])

    @override
    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._labels += len(batch[1])

    def _watch(self) -> None:
        # What is to be put right by the labels of this process is added up over all of them only then.
        self._operations = SynapticOperations(self.network, sync_on_compute=False)
        metrics = {"sops": self._operations, "spike_rate": SpikeRate(self.network)}
        self._cost = {name: metric.to(self.device) for name, metric in metrics.items()}
        self._labels = 0

    def _log_cost(self, stage: str) -> None:
        self._log_per_sample(f"{stage}/sops", self._operations.compute(), prog_bar=True)
        self.log(f"{stage}/spike_rate", self._cost["spike_rate"].compute().float(), prog_bar=True)
        for metric in self._cost.values():
            metric.close()

    def _log_per_sample(self, name: str, value: Any, prog_bar: bool = False) -> None:
        """Log what the metric gives for a sample, of as many as there are labels.

        A network that reads time first, ``(T, B, ...)``, is taken for one that read T samples.
        """
        value = float(value) * self._operations.watch.samples / self._labels
        self.log(name, value, prog_bar=prog_bar, batch_size=self._labels, sync_dist=True)
