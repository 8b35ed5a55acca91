"""Both networks side by side over one pass of the validation data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from snnreg_plugins._models import device_of
from snnreg_plugins.functional.energy import energy
from snnreg_plugins.metrics import SpikeRate, SynapticOperations, TimeSteps
from snnreg_plugins.metrics.scores import MOST, Score
from snnreg_plugins.spiking.network import SpikingNetwork
from snnreg_plugins.watching.steps import CallSteps
from snnreg_plugins.watching.tally import Observer


class Randomness:
    """Random numbers of its own: everybody else's go on as if none had been drawn.

    Args:
        seed: Where they start.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._states: list[Tensor] | None = None

    @contextmanager
    def drawn(self, device: torch.device) -> Iterator[None]:
        """Draw these within, on the CPU and on a device.

        Args:
            device: The device.
        """
        on_gpu = device.type == "cuda"
        with torch.random.fork_rng(devices=[device] if on_gpu else []):
            if self._states is None:
                torch.default_generator.manual_seed(self._seed)
                if on_gpu:
                    with torch.cuda.device(device):
                        torch.cuda.manual_seed(self._seed)
            else:
                torch.set_rng_state(self._states[0])
                if on_gpu:
                    torch.cuda.set_rng_state(self._states[1], device)
            yield
            self._states = [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if on_gpu else [])]


class Measurement:
    """Both networks with their metrics, over one pass of some data.

    Args:
        dnn: The traced DNN.
        snn: The spiking network.
        score: What they score; None if that is not asked for.
        figures: Whether to keep the rates of all neurons.
    """

    def __init__(self, dnn: fx.GraphModule, snn: SpikingNetwork, score: Score | None, figures: bool = False) -> None:
        self.dnn, self.snn, self.score = dnn, snn, score
        device = device_of(snn)
        self.scores = {} if score is None else {"dnn": score.fresh(), "snn": score.fresh()}
        self.operations = {"dnn": SynapticOperations(dnn).to(device), "snn": SynapticOperations(snn).to(device)}
        self.rate = SpikeRate(snn).to(device)
        self.steps = TimeSteps(snn).to(device)
        self.spikes = NeuronRates() if figures else None
        self.rate.watch.observer = self.spikes

    def update(self, x: Tensor, y: Any) -> None:
        """Run both networks on a batch."""
        with torch.no_grad():
            for name, network in (("dnn", self.dnn), ("snn", self.snn)):
                outputs = network(x)
                if name in self.scores:
                    self.scores[name].update(outputs, y)

    def values(self, table: Any) -> dict[str, Any]:
        """All figures, over all processes."""
        logged: dict[str, Any] = {}
        for name, operations in self.operations.items():
            counts = {quantity: float(operations.total(quantity)) for quantity in operations.quantities}
            if name in self.scores:
                logged[f"{name}/{self.scores[name].name}"] = self.scores[name].compute()
            logged[f"{name}/effective_macs"] = counts["effective_macs"]
            logged[f"{name}/energy"] = energy(counts["sops"], counts["effective_macs"], table)
        logged["dnn/dense_macs"] = float(self.operations["dnn"].total("dense_macs"))
        logged["snn/sops"] = float(self.operations["snn"].total("sops"))
        logged["snn/spike_rate"] = self.rate.compute().float()
        if self.snn.exit_margins is not None:
            logged["snn/timesteps"] = self.steps.compute().float()
        logged |= {f"snn/sops/{layer}": sops for layer, sops in self.operations["snn"].by_layer().items()}
        logged |= {f"snn/spike_rate/{layer}": rate for layer, rate in self.rate.by_layer().items()}
        return logged

    def close(self) -> None:
        """Look on no longer; what was seen stays."""
        for metric in (*self.operations.values(), self.rate, self.steps):
            metric.close()


class NeuronRates(Observer):
    """Spikes of each neuron, summed over samples and steps."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def emitted(self, name: str, layer: nn.Module, spikes: Tensor, steps: CallSteps | None) -> None:
        """Add the spikes of a call."""
        total = spikes.abs().sum(0, dtype=torch.float32).flatten()
        before = self._sums.get(name)
        if before is not None and before.shape != total.shape:  # inputs of another size have other neurons
            return
        self._sums[name] = total if before is None else before + total
        self._counts[name] = self._counts.get(name, 0) + len(spikes)

    def rates(self) -> dict[str, Tensor]:
        """Give the spikes per step of each neuron, by layer."""
        return {name: (total / max(self._counts[name], 1)).cpu() for name, total in self._sums.items()}


def no_values(score: Score | None) -> dict[str, float]:
    """Give what stands for figures where there are none: values that no monitor takes for good ones.

    Args:
        score: What is scored, if anything.
    """
    costs = ("effective_macs", "energy")
    values = {f"{name}/{cost}": MOST for name in ("dnn", "snn") for cost in costs}
    values |= {"dnn/dense_macs": MOST, "snn/sops": MOST, "snn/spike_rate": MOST, "snn/timesteps": MOST}
    return values if score is None else values | {f"{name}/{score.name}": score.worst for name in ("dnn", "snn")}
