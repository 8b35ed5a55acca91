"""A DNN and its spiking network side by side over one pass of the validation data; or one that spikes already."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, fx, nn
from typing_extensions import override

from snnreg_plugins._models import device_of
from snnreg_plugins._text import in_short
from snnreg_plugins.functional.cost_models import Arithmetic, cost_models
from snnreg_plugins.functional.costs import CostModel, LayerFacts
from snnreg_plugins.metrics import Energy, SpikeRate, SynapticOperations, TimeSteps
from snnreg_plugins.metrics.scores import MOST, Score
from snnreg_plugins.spiking.network import SpikingNetwork
from snnreg_plugins.watching.facts import layer_facts, needs_of
from snnreg_plugins.watching.hooks import Hooks, uncompiled, uncompiled_calls
from snnreg_plugins.watching.inputs import warn_of_whole_numbers
from snnreg_plugins.watching.layers import emits_spikes, time_dim
from snnreg_plugins.watching.observer import Observer
from snnreg_plugins.watching.steps import CallSteps
from snnreg_plugins.watching.tally import Tally

#: What operations cost, by one model or several.
Models: TypeAlias = tuple[CostModel, ...]


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
        models: What operations cost.
    """

    def __init__(
        self,
        dnn: fx.GraphModule,
        snn: SpikingNetwork,
        score: Score | None,
        figures: bool = False,
        models: Models = (),
    ) -> None:
        self.dnn, self.snn, self.score = dnn, snn, score
        device = device_of(snn)
        self.scores = {} if score is None else {"dnn": score.fresh(), "snn": score.fresh()}
        metric = _Counted if needs_more(models) else SynapticOperations
        how: dict[str, Any] = {"table": models} if needs_more(models) else {}
        of_dnn = metric(dnn, input_events=False, **how)  # whole numbers are an image, and no events
        self.operations = {"dnn": of_dnn.to(device), "snn": metric(snn, **how).to(device)}
        self.rate = SpikeRate(snn).to(device)
        self.steps = TimeSteps(snn).to(device)
        self.spikes = NeuronRates() if figures else None
        self.rate.watch.observer = self.spikes

    def update(self, frames: Tensor, x: Tensor, y: Any) -> None:
        """Run both networks on a batch, the DNN on its frames."""
        with torch.no_grad():
            for name, network, given in (("dnn", self.dnn, frames), ("snn", self.snn, x)):
                outputs = network(given)
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
            facts = (
                operations.facts()
                if isinstance(operations, Energy)
                else [_operations(name, name == "snn", counts["sops"], counts["effective_macs"])]
            )
            logged |= costs_of(name, cost_models(table), facts, self.snn.timesteps)
        logged["dnn/dense_macs"] = float(self.operations["dnn"].total("dense_macs"))
        logged["snn/sops"] = float(self.operations["snn"].total("sops"))
        logged["snn/spike_rate"] = self.rate.compute().float()
        if self.snn.exit_margins is not None:
            logged["snn/timesteps"] = self.steps.compute().float()
        logged |= {f"snn/sops/{layer}": sops for layer, sops in self.operations["snn"].by_layer("sops").items()}
        logged |= {f"snn/spike_rate/{layer}": rate for layer, rate in self.rate.by_layer().items()}
        return logged

    def close(self) -> None:
        """Look on no longer; what was seen stays."""
        for metric in (*self.operations.values(), self.rate, self.steps):
            metric.close()


class Calls:
    """What a network returns, from call to call, until this is closed.

    Args:
        network: The network. Of a LightningModule that calls itself within a step, which a wrapper around it runs as
            if it were its forward, the inner call counts.
    """

    def __init__(self, network: nn.Module) -> None:
        self.returned: list[Any] = []
        self.given: list[Any] = []  # their first arguments
        self._begun: list[int] = []  # calls that returned before each of those under way
        self._hooks = Hooks(many_steps=True)
        self._hooks.around(network, self._enter, self._leave)

    @property
    def outputs(self) -> Any:
        """What the call returned; a list of that where there were several."""
        return self.returned[0] if len(self.returned) == 1 else self.returned

    @uncompiled
    def _enter(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._begun.append(len(self.returned))

    @uncompiled
    def _leave(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._begun and self._begun.pop() == len(self.returned):
            self.returned.append(output)
            self.given.append(args[0] if args else next(iter(kwargs.values()), None))

    def close(self) -> None:
        """Look on no longer."""
        self._hooks.remove()


class OwnMeasurement:
    """A network that spikes already, in the validation steps of its module; for one pass of some data.

    What counts is what the steps make of it, however they call it. A step is watched between :meth:`open` and
    :meth:`close`.

    Args:
        network: The network.
        on_miss: What to call as ``on_miss(name, what)`` for what cannot be counted.
        figures: Whether to keep the rates of all neurons.
        input_events: Whether whole numbers in the network's input are events; None if nobody said.
        models: What operations cost.
    """

    def __init__(
        self,
        network: nn.Module,
        on_miss: Callable[[str, str], None],
        figures: bool = False,
        input_events: bool | None = None,
        models: Models = (),
    ) -> None:
        self.spikes = NeuronRates() if figures else None
        self.tally = _Within(
            network,
            observer=self.spikes,
            on_miss=on_miss,
            input_events=input_events,
            counting=needs_of(models) if needs_more(models) else (),
            on_doubt=partial(warn_of_whole_numbers, "SpikingValidation"),
        )
        self.score: Score | None = None
        self.samples = 0
        self.calls: Calls | None = None
        self._looking = ExitStack()

    def open(self) -> None:
        """Begin to look on."""
        self._looking.enter_context(uncompiled_calls())
        self.calls = Calls(self.tally.model)
        self._looking.callback(self.calls.close)
        self._looking.enter_context(self.tally)

    def add(self, samples: int, outputs: Tensor | None, y: Any) -> None:
        """Add the batch of a step."""
        self.samples += samples
        if self.score is not None and outputs is not None:
            self.score.update(outputs, y)

    def values(self, table: Any, over_processes: Callable[[Tensor], Any]) -> dict[str, Any]:
        """All figures, over all processes.

        Args:
            table: Energy per operation.
            over_processes: Sums up a tensor over them.
        """
        tally = self.tally
        counted = torch.tensor([[self.samples] * len(tally.quantities), *tally.totals()], dtype=torch.int64)
        (samples, *_), *rows = over_processes(counted.to(device_of(tally.model))).tolist()
        by_layer = {
            name: dict(zip(tally.quantities, row, strict=True)) for name, row in zip(tally.names, rows, strict=True)
        }
        total = {quantity: sum(counts[quantity] for counts in by_layer.values()) for quantity in tally.quantities}
        logged: dict[str, Any] = {} if self.score is None else {f"snn/{self.score.name}": self.score.compute()}
        logged["snn/effective_macs"] = total["effective_macs"] / samples
        models = cost_models(table)
        if needs_more(models):
            sums = {
                (row, column): [number] for row, numbers in enumerate(rows) for column, number in enumerate(numbers)
            }
            facts = layer_facts(tally, table=sums, samples=samples)
        else:
            facts = [_operations("snn", True, total["sops"] / samples, total["effective_macs"] / samples)]
        logged |= costs_of("snn", models, facts)
        logged["snn/sops"] = total["sops"] / samples
        spiking = [name for name in tally.neurons if emits_spikes(tally.modules[name])]  # and no ReLU beside them
        rates = {name: _over(by_layer[name]["spikes"], by_layer[name]["neuron_steps"]) for name in spiking}
        logged["snn/spike_rate"] = _over(*(sum(by_layer[name][of] for name in spiking) for of in _RATE))
        multiply = [name for name in by_layer if name in tally.synapses or by_layer[name]["dense_macs"]]
        logged |= {f"snn/sops/{name}": by_layer[name]["sops"] / samples for name in multiply}
        return logged | {f"snn/spike_rate/{name}": rate for name, rate in rates.items()}

    def dense_macs_of_a_step(self) -> int:
        """Dense MACs of the first time step of all samples of this process, in which each layer is called."""
        dense = self.tally.quantities.index("dense_macs")
        table = self.tally.table()
        return sum(steps[0] for (_, column), steps in table.items() if column == dense and steps)

    def steps(self) -> int:
        """Time steps of the longest sample of this process."""
        return max(map(len, self.tally.table().values()), default=0)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return device_of(self.tally.model)

    def stop(self) -> None:
        """Look on no longer; the calls seen stay, too."""
        self._looking.close()

    def close(self) -> None:
        """Look on no longer; what was counted stays."""
        self._looking.close()
        self.calls = None


class _Counted(Energy):
    """Counts what models price, of a DNN too that one prices beside a spiking network alone."""

    @override
    def _require_prices(self, models: Any, model: nn.Module) -> None:
        pass


def needs_more(models: Models) -> bool:
    """Tell whether models price more than SOPs and MACs."""
    return not all(isinstance(model, Arithmetic) for model in models)


def costs_of(network: str, models: Models, facts: list[LayerFacts], timesteps: int | None = None) -> dict[str, float]:
    """Price a network, by the names that it is logged by: the first energy as ``energy``, of several each by its name.

    Args:
        network: ``"dnn"`` or ``"snn"``.
        models: What operations cost.
        facts: What its layers do.
        timesteps: T of the spiking network that a DNN stands beside.
    """
    logged: dict[str, float] = {}
    for model in models:
        if network == "snn":
            cost = model.sum(map(model.spiking, facts))
        else:
            cost = model.sum(model.dnn(one, skipping_zeros=True, timesteps=timesteps) for one in facts)
            cost = cost or model.sum(model.dnn(one, timesteps=timesteps) for one in facts)
        if cost is None:
            continue
        if cost.unpriced:
            rank_zero_warn(
                f"The {network.upper()}'s energy leaves out {in_short(cost.unpriced)} operations/sample that "
                f"{model.name!r} has no price for ({model.source})."
            )
        for name in names_of(model, len(models) > 1):
            logged.setdefault(f"{network}/{name}", cost.total)
    return logged


def names_of(model: CostModel, among_others: bool) -> list[str]:
    """Give the names that the cost by a model is logged by: of energies the first one has a short name, too."""
    if model.unit != "J":
        return [model.name]
    return ["energy", f"energy/{model.name}"] if among_others else ["energy"]


def _operations(name: str, spiking: bool, sops: float, effective_macs: float) -> LayerFacts:
    """Take a whole network for a layer, for models that price no more than operations."""
    return LayerFacts(name, spiking=spiking, sops=sops, effective_macs=effective_macs)


_RATE = ("spikes", "neuron_steps")


def _over(spikes: int, neuron_steps: int) -> float:
    """Give spikes/neuron/step; nan if there was none."""
    return spikes / neuron_steps if neuron_steps else math.nan


class _Within(Tally):
    """Knows what was called from outside of the model itself."""

    #: Names of the layers and parts.
    outside: dict[str, None]

    def _begun(self, module: nn.Module, given: list[Tensor]) -> None:
        if module is not self.model:
            self.outside[self.names[self.index[module]] if module in self.index else type(module).__name__] = None
        super()._begun(module, given)

    def _forget(self) -> None:
        super()._forget()
        self.outside = {}


class NeuronRates(Observer):
    """Spikes of each neuron, summed over samples and steps."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def emitted(self, name: str, layer: nn.Module, spikes: Tensor, steps: CallSteps | None) -> None:
        """Add the spikes of a call."""
        dim = time_dim(layer)
        if dim is not None and spikes.dim() > dim:  # all steps at once
            spikes = spikes.movedim(dim, 0).flatten(0, 1)
        total = spikes.abs().sum(0, dtype=torch.float32).flatten()
        before = self._sums.get(name)
        if before is not None and before.shape != total.shape:  # inputs of another size have other neurons
            return
        self._sums[name] = total if before is None else before + total
        self._counts[name] = self._counts.get(name, 0) + len(spikes)

    def rates(self) -> dict[str, Tensor]:
        """Give the spikes per step of each neuron, by layer."""
        return {name: (total / max(self._counts[name], 1)).cpu() for name, total in self._sums.items()}


def no_values(score: Score | None, networks: tuple[str, ...] = ("dnn", "snn"), models: Models = ()) -> dict[str, float]:
    """Give what stands for figures where there are none: values that no monitor takes for good ones.

    Args:
        score: What is scored, if anything.
        networks: Which networks there are.
        models: What operations cost.
    """
    costs = {"dnn": ("dense_macs",), "snn": ("sops", "spike_rate", "timesteps")}
    values = {f"{name}/{cost}": MOST for name in networks for cost in ("effective_macs", "energy", *costs[name])}
    logged = [name for model in models for name in names_of(model, len(models) > 1)]
    values |= {f"{network}/{name}": MOST for network in networks for name in logged}
    return values if score is None else values | {f"{name}/{score.name}": score.worst for name in networks}
