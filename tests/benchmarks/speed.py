"""Time and memory of a converted network, ours beside the peers': a forward pass, one sample, a training step.

    python -m tests.benchmarks.speed --cache speed --output speed.json

prints one table, and our rows in brief. All times are ratios: in every repeat each contestant runs once, on the same
input, and is divided by what the DNN takes for running T times (and training through all of them) in that repeat;
printed are the median and range of these ratios. The DNN's own row has the milliseconds a sample, to convert them.
Forward passes are further divided by the peer whose median is lowest, and one sample and the training step by the plain
loop of snnTorch. One sample has five times the repeats.

Contestants. Ours is to_snntorch with its defaults, and numba where it is installed; "exact" takes one step at a time,
"checkpointing" sets ``network.checkpointing``, "in 1 bit" and "in 8 bits" train within ``compressed_activations``;
--compile adds it after ``network.compile()``, which unrolls the
loop over steps and so takes minutes at T = 32. SpikingJelly is its converter at the 99.9th percentile by channel with
half thresholds, called step by step ("s") or once for all steps ("m"). sinabs is from_model, all steps at once. The
plain loops are what a user of snnTorch or Norse writes by hand: all layers in every step, the first included, states
passed on, outputs added up; weights, thresholds and initial potentials are ours. Norse has no soft-reset neuron that
does not leak: its loop has LIFBoxCell with reset_subtract and a leak of 1/1024. Peers take part if they can be
imported: pip install spikingjelly==2.0.0 sinabs==3.1.3.

Networks. LeNet and a small VGG are trained on Fashion-MNIST, the regularized ones with ActivityRegularization, and kept
under --cache. ResNet-18 (torchvision's on 3 × 32 × 32, with a ReLU for each place that has one) has random weights and
batch norm statistics of random images, so its agreement with the DNN says little; where it is "regularized", the
biases of its batch norms are lowered together until the spike rate is low enough. Batch norm and dropout stay in eval
mode, in the training step too.

Memory. On the CPU, the allocations and frees that torch.profiler sees are added up in their order; their highest sum
is the peak, to the byte, of what is allocated beyond what was held before the call: weights, input and, in the training
step, gradients of the weights, which are there from a step before. Scratch memory inside of oneDNN is not seen. To
check: ``peak(lambda: torch.zeros(250_000) + torch.zeros(250_000), device)`` is 3,000,000, for two operands and their
sum, and with ``.relu_()`` behind it the same.
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import norse.torch as norse
import snntorch
import torch
from lightning.pytorch import seed_everything
from norse.torch.functional.lif_box import LIFBoxFeedForwardState, LIFBoxParameters
from norse.torch.functional.reset import reset_subtract
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from snnreg_plugins import ActivityRegularization, SpikeRate, SpikingNetwork, compressed_activations, to_snntorch
from snnreg_plugins._files import write_json
from snnreg_plugins.data import FashionMNIST
from snnreg_plugins.spiking.layers import InitialState, SpikeMaxPool
from snnreg_plugins.watching.layers import synaptic_layers
from tests.benchmarks import conversion
from tests.benchmarks.common import fit, head, kept, line, median_and_range, timed

REFERENCE, LOOP = "T × DNN", "snnTorch loop"
SPARSE = 0.03  # spikes per neuron and step that a regularized network may have
STRENGTH = {"lenet": 3.0, "vgg": 5.0}  # of the penalty on the expected rate, by fan-out
EPOCHS = 2
SLOPE = 5.0  # of surrogate gradients, in 1 / threshold, as ours has it by default
LEAK = 2.0**-10  # of Norse's neuron


# Networks


class Task(NamedTuple):
    """A DNN and what it is run on."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    calibration: list[Tensor]
    accuracy: float | None  # None where nothing was trained

    def to(self, device: torch.device) -> Task:
        """Move all of it."""
        calibration = [part.to(device) for part in self.calibration]
        return Task(self.model.to(device), self.images.to(device), self.labels.to(device), calibration, self.accuracy)


def fashion(name: str, weights: str, cache: Path) -> Task:
    """LeNet or VGG, trained on Fashion-MNIST."""
    data = conversion.load(2000)
    if weights == "dense":
        model = conversion.train(name, EPOCHS, 0, cache / f"{name}-epochs{EPOCHS}.pt")
    else:
        seed_everything(0, verbose=False)
        model = conversion.NETWORKS[name][0]()
        penalty = ActivityRegularization("expected_rate", STRENGTH[name], "fan_out", warmup_epochs=1)
        path = cache / f"{name}-epochs{EPOCHS}-penalty{STRENGTH[name]:g}.pt"
        kept(model, path, lambda: fit(model, FashionMNIST(batch_size=128, validation_size=1), EPOCHS, penalty))
    model.cpu()
    return Task(model, data.images, data.labels, data.calibration, conversion.dnn(model, data)["accuracy"])


class Residual(nn.Module):
    """A basic block of ResNet with a ReLU for each of its two places: converters take a shared one for one layer."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.conv1, self.norm1, self.relu1 = block.conv1, block.bn1, nn.ReLU()
        self.conv2, self.norm2, self.relu2 = block.conv2, block.bn2, nn.ReLU()
        self.shortcut = block.downsample or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Add what the convolutions make of ``x`` to it."""
        residual = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        return self.relu2(residual + self.shortcut(x))


def resnet(weights: str) -> Task:
    """ResNet-18 with random weights."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    source = resnet18(num_classes=10)
    blocks = [Residual(block) for i in range(1, 5) for block in getattr(source, f"layer{i}")]
    model = nn.Sequential(
        source.conv1, source.bn1, nn.ReLU(), source.maxpool, *blocks, source.avgpool, nn.Flatten(), source.fc
    )
    images, labels = torch.rand(64, 3, 32, 32), torch.randint(0, 10, (64,))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for bias in (0.0,) if weights == "dense" else [-i / 10 for i in range(1, 30)]:
        for norm in norms:
            nn.init.constant_(norm.bias, bias)
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all passes
        model.train()
        with torch.no_grad():
            for part in images.split(16):
                model(part)
        task = Task(model.eval(), images, labels, [images], None)
        if weights == "dense" or spike_rate(to_snntorch(model, images, timesteps=4), images[:16]) <= SPARSE:
            return task
    raise RuntimeError(f"No bias of the batch norms leads to a spike rate of {SPARSE}.")


class Network(NamedTuple):
    """How a network is made, and at what it is measured by default."""

    task: Callable[[str], Task]
    batch: int
    timesteps: tuple[int, ...]


def networks(cache: Path) -> dict[str, Network]:
    """Give the networks by name."""
    return {
        "lenet": Network(lambda weights: fashion("lenet", weights, cache), 128, (4, 32)),
        "vgg": Network(lambda weights: fashion("vgg", weights, cache), 64, (4, 32)),
        "resnet18": Network(resnet, 8, (4,)),
    }


@torch.no_grad()
def spike_rate(network: SpikingNetwork, images: Tensor) -> float:
    """Spikes per neuron and step."""
    with SpikeRate(network) as rate:
        for part in images.split(64):
            network(part)
    return float(rate.compute())


# Contestants


class Contestant(NamedTuple):
    """A network, and how to run it: from images to scores, from fresh states."""

    network: nn.Module
    run: Callable[[Tensor], Tensor]
    measures: tuple[str, ...] = ("forward", "latency", "training")
    saving: Callable[[], AbstractContextManager[Any]] = nullcontext  # around the forward pass of a training step


class Setting(NamedTuple):
    """What contestants are made from."""

    task: Task
    exported: SpikingNetwork
    timesteps: int


def dnn(setting: Setting) -> Contestant:
    """Run the DNN T times."""
    model = copy.deepcopy(setting.task.model)

    def run(x: Tensor) -> Tensor:
        total: Any = 0
        for _ in range(setting.timesteps):
            total = total + model(x)
        return total / setting.timesteps

    return Contestant(model, run)


def ours(setting: Setting) -> Contestant:
    """Run the exported network."""
    network = copy.deepcopy(setting.exported)
    return Contestant(network, network)


def ours_compiled(setting: Setting) -> Contestant:
    """Run the exported network compiled."""
    network = copy.deepcopy(setting.exported)
    network.compile()
    return Contestant(network, network)


def ours_exact(setting: Setting) -> Contestant:
    """Run the exported network one step at a time."""
    network = copy.deepcopy(setting.exported)
    network.exact = True
    return Contestant(network, network)


def ours_checkpointing(setting: Setting) -> Contestant:
    """Train the exported network, computing activations a second time for the backward pass."""
    network = copy.deepcopy(setting.exported)
    network.checkpointing = True
    return Contestant(network, network, ("training",))


def ours_compressed(setting: Setting, bits: int) -> Contestant:
    """Train the exported network with spikes kept in single bits, and potentials in some more."""
    network = copy.deepcopy(setting.exported)
    return Contestant(network, network, ("training",), partial(compressed_activations, bits=bits))


def spikingjelly(setting: Setting, step_mode: str) -> Contestant:
    """Run SpikingJelly's conversion, step by step or all steps at once."""
    from spikingjelly.activation_based import functional

    method = conversion.spikingjelly("RateCodingRecipe", mode="99.9%", channel_wise=True, half_threshold=True)
    network = method.convert(setting.task.model, setting.task.calibration, setting.timesteps).network
    functional.set_step_mode(network, step_mode)

    def run(x: Tensor) -> Tensor:
        functional.reset_net(network)
        if step_mode == "m":
            return network(x.expand(setting.timesteps, *x.shape)).mean(0)
        total: Any = 0
        for _ in range(setting.timesteps):
            total = total + network(x)
        return total / setting.timesteps

    return Contestant(network, run)


def sinabs(setting: Setting) -> Contestant:
    """Run sinabs' conversion, all steps at once."""
    from sinabs.from_torch import from_model

    network = from_model(copy.deepcopy(setting.task.model), num_timesteps=setting.timesteps)
    spiking = network.spiking_model  # without the copy of the DNN that it also holds

    def run(x: Tensor) -> Tensor:
        network.reset_states()
        return spiking(x.repeat_interleave(setting.timesteps, 0)).unflatten(0, (len(x), -1)).mean(1)

    return Contestant(spiking, run)


class SnnTorchNeuron(nn.Module):
    """Leaky as its users call it, but from an initial potential as ours has it."""

    def __init__(self, threshold: float, initial: Tensor) -> None:
        super().__init__()
        surrogate = snntorch.surrogate.fast_sigmoid(slope=SLOPE / threshold)
        self.neuron = snntorch.Leaky(beta=1.0, threshold=threshold, spike_grad=surrogate)
        self.register_buffer("initial", initial)

    def forward(self, current: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Give spikes and the state to pass on."""
        return self.neuron(current, torch.zeros_like(current) + self.initial if state is None else state)


class NorseNeuron(nn.Module):
    """The same of Norse; it leaks, and weights before it have to be 1 / LEAK as large."""

    def __init__(self, threshold: float, initial: Tensor) -> None:
        super().__init__()
        one = torch.tensor(1.0)
        parameters = LIFBoxParameters(
            tau_mem_inv=one, v_th=threshold * one, alpha=SLOPE / threshold * one, reset_method=reset_subtract
        )
        self.neuron = norse.LIFBoxCell(parameters, dt=LEAK)
        self.register_buffer("initial", initial)

    def forward(self, current: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Give spikes and the state to pass on."""
        if state is None:
            state = LIFBoxFeedForwardState(v=torch.zeros_like(current) + self.initial)
        return self.neuron(current, state)


Neuron = Callable[[float, Tensor], nn.Module]


class PlainResidual(nn.Module):
    """A basic block of ResNet whose neurons spike."""

    def __init__(self, block: Any, neuron: Neuron) -> None:
        super().__init__()
        self.conv1, self.conv2 = copy.deepcopy(block.conv1), copy.deepcopy(block.conv2)
        self.neuron1, self.neuron2 = converted(block, "relu1", neuron), converted(block, "relu2", neuron)
        identity = hasattr(block, "relu2_synapse")
        self.shortcut = copy.deepcopy(block.relu2_synapse if identity else block.shortcut.get_submodule("0"))

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Give spikes and the states to pass on."""
        first, second = state or (None, None)
        spikes, first = self.neuron1(self.conv1(x), first)
        spikes, second = self.neuron2(self.conv2(spikes) + self.shortcut(x), second)
        return spikes, (first, second)


def converted(holder: nn.Module, name: str, neuron: Neuron) -> nn.Module:
    """Make the neuron of a loop from one of ours."""
    threshold, initial = holder.get_submodule(name).threshold, holder.get_submodule(f"{name}_initial").potential
    return neuron(float(threshold), initial.detach().clone())


def layers(holder: nn.Module, neuron: Neuron) -> Iterator[nn.Module]:
    """Walk the layers of ours in their order, with other neurons."""
    for name, module in holder.named_children():
        if isinstance(module, snntorch.Leaky):
            yield converted(holder, name, neuron)
        elif hasattr(module, "conv1") and hasattr(module, "relu2"):
            yield PlainResidual(module, neuron)
        elif isinstance(module, SpikeMaxPool):
            yield copy.deepcopy(module.pool)
        elif not isinstance(module, InitialState):
            inner = next(module.children(), None) is not None
            yield from layers(module, neuron) if inner else (copy.deepcopy(module),)


class PlainLoop(nn.Module):
    """A loop over steps and layers, by hand."""

    def __init__(self, exported: SpikingNetwork, timesteps: int, neuron: Neuron) -> None:
        super().__init__()
        self.layers = nn.ModuleList([*layers(exported.encoder, neuron), *layers(exported.body, neuron)])
        self.timesteps = timesteps

    def forward(self, x: Tensor) -> Tensor:
        """Give scores for images."""
        states: dict[int, Any] = {}
        total: Any = 0
        for _ in range(self.timesteps):
            out = x
            for i, layer in enumerate(self.layers):
                if isinstance(layer, (SnnTorchNeuron, NorseNeuron, PlainResidual)):
                    out, states[i] = layer(out, states.get(i))
                else:
                    out = layer(out)
            total = total + out
        return total / self.timesteps


def snntorch_loop(setting: Setting) -> Contestant:
    """Run a plain loop of snnTorch."""
    network = PlainLoop(setting.exported, setting.timesteps, SnnTorchNeuron).to(setting.task.images.device)
    return Contestant(network, network)


@torch.no_grad()
def norse_loop(setting: Setting) -> Contestant:
    """Run a plain loop of Norse."""
    network = PlainLoop(setting.exported, setting.timesteps, NorseNeuron).to(setting.task.images.device)
    for layer in list(synaptic_layers(network).values())[:-1]:
        for parameter in layer.parameters():
            parameter /= LEAK
    return Contestant(network, network)


def contestants(compiled: bool) -> dict[str, Callable[[Setting], Contestant]]:
    """Give the contestants by name; those of packages that are missing are left out, with a message."""
    found: dict[str, Callable[[Setting], Contestant]] = {REFERENCE: dnn, "ours": ours, "ours, exact": ours_exact}
    if compiled:
        found["ours, compiled"] = ours_compiled
    found["ours, checkpointing"] = ours_checkpointing
    found["ours, spikes in 1 bit"] = partial(ours_compressed, bits=32)
    found["ours, potentials in 8 bits"] = partial(ours_compressed, bits=8)
    if find_spec("spikingjelly"):
        found["SpikingJelly, s"] = partial(spikingjelly, step_mode="s")
        found["SpikingJelly, m"] = partial(spikingjelly, step_mode="m")
    else:
        complain("Left out, as it is not installed: pip install spikingjelly==2.0.0")
    if find_spec("sinabs"):
        found["sinabs"] = sinabs
    else:
        complain("Left out, as it is not installed: pip install sinabs==3.1.3")
    return found | {LOOP: snntorch_loop, "Norse loop": norse_loop}


def complain(message: str) -> None:
    """Print what is not in the table."""
    print(message, file=sys.stderr, flush=True)


# Measurements


def forward(contestant: Contestant, x: Tensor, _: Tensor) -> Tensor:
    """Run without gradients."""
    with torch.inference_mode():
        return contestant.run(x)


def train_step(contestant: Contestant, x: Tensor, y: Tensor) -> None:
    """Run, and find the gradients."""
    with contestant.saving():
        loss = F.cross_entropy(contestant.run(x), y)
    loss.backward()


def set_mode(contestant: Contestant, training: bool) -> None:
    """Let neurons know whether they are trained; batch norm and dropout stay in eval mode."""
    for module in contestant.network.modules():
        frozen = isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd))
        module.training = training and not frozen


def peak(run: Callable[[], object], device: torch.device) -> int:
    """Most bytes that were allocated at a time while ``run`` ran, beyond those before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with silence(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest


@contextmanager
def silence() -> Iterator[None]:
    """Drop what the profiler's libraries write to standard error."""
    sys.stderr.flush()
    kept_open = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept_open, 2)
        os.close(kept_open)


class Results:
    """What was measured of one network, kind of weights and T.

    Attributes:
        seconds: By measure and contestant, one a repeat.
        peaks: Bytes, by measure and contestant.
        agreement: Share of a batch for which a contestant gives the class that the DNN gives.
        errors: By measure, "all" for all of them, and contestant.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, dict[str, list[float]]] = {}
        self.peaks: dict[str, dict[str, int]] = {}
        self.agreement: dict[str, float] = {}
        self.errors: dict[str, dict[str, str]] = {"all": {}}

    def measure(
        self,
        measure: str,
        entrants: dict[str, Contestant],
        x: Tensor,
        y: Tensor,
        repeats: int,
    ) -> None:
        """Measure all that take part, in turn."""
        call = train_step if measure == "training" else forward
        self.seconds[measure], self.peaks[measure], self.errors[measure] = {}, {}, {}
        ready: dict[str, Contestant] = {}
        for name, contestant in entrants.items():
            if measure not in contestant.measures:
                continue
            set_mode(contestant, measure == "training")
            found, error = attempt(partial(self._prepare, partial(call, contestant, x, y), x.device))
            if error:
                self.errors[measure][name] = error
                continue
            ready[name] = contestant
            self.peaks[measure][name] = found
            self.seconds[measure][name] = []
        for repeat in range(repeats * (5 if measure == "latency" else 1)):  # its calls are short, and vary
            # In an order of its own, so that nobody always runs after the same one.
            for name in random.Random(repeat).sample(list(ready), len(ready)):
                ready[name].network.zero_grad()
                self.seconds[measure][name].append(timed(partial(call, ready[name], x, y), x.device))

    def _prepare(self, run: Callable[[], object], device: torch.device) -> int:
        """Do what is done in the first calls only, and find the peak."""
        # TorchScript, which SpikingJelly uses, compiles again in the third or fourth call at a new size.
        begin, calls = time.perf_counter(), 0
        while calls < 2 or (calls < 8 and time.perf_counter() - begin < 1):
            run()
            calls += 1
        return peak(run, device)

    def ratios(self, measure: str, name: str, to: str) -> list[float]:
        """Divide the times of two contestants, repeat by repeat; none if one of them has none."""
        seconds = self.seconds.get(measure, {})
        return [a / b for a, b in zip(seconds.get(name, ()), seconds.get(to, ()), strict=False)]

    def fastest_peer(self) -> str:
        """Find the peer whose median forward pass takes the least time."""
        medians = {
            name: statistics.median(seconds)
            for name, seconds in self.seconds.get("forward", {}).items()
            if seconds and name != REFERENCE and not name.startswith("ours")
        }
        return min(medians, key=medians.__getitem__, default="")


def attempt(call: Callable[[], Any]) -> tuple[Any, str]:
    """Give what a call returns, or else its error as a cell of the table."""
    try:
        return call(), ""
    except Exception as error:
        return None, f"{type(error).__name__}: {error}".splitlines()[0][:100].replace("|", "/")


# The table

COLUMNS = [
    "network", "weights", "T", "contestant", "spikes/neuron/step", "class as DNN",
    "forward / T × DNN", "/ fastest peer", "peak MiB",
    "one sample / T × DNN", "/ snnTorch loop",
    "training / T × DNN", "/ snnTorch loop", "peak MiB",
]  # fmt: skip


def row(results: Results, name: str, batch: int) -> list[str]:
    """Write the cells of a contestant, from its agreement on."""
    if name in results.errors["all"]:
        return [results.errors["all"][name]]
    cells = [f"{results.agreement[name]:.0%}" if name in results.agreement else ""]
    beside = {"forward": results.fastest_peer(), "latency": LOOP, "training": LOOP}
    for measure in beside:
        seconds = results.seconds.get(measure, {}).get(name)
        if name == REFERENCE and seconds:
            samples = 1 if measure == "latency" else batch
            cell = f"{1e3 * statistics.median(seconds) / samples:.3f} ms/sample"
        else:
            cell = median_and_range(results.ratios(measure, name, REFERENCE))
        cells.append(results.errors.get(measure, {}).get(name, cell))
        cells.append(median_and_range(results.ratios(measure, name, beside[measure])))
        if measure != "latency":
            bytes_ = results.peaks.get(measure, {}).get(name)
            cells.append("" if bytes_ is None else f"{bytes_ / 2**20:.1f}")
    return cells


def in_brief(results: Results) -> list[str]:
    """Write the medians of our row, as in the table of the docs."""
    beside = (("forward", REFERENCE), ("forward", results.fastest_peer()), ("latency", LOOP), ("training", LOOP))
    found = [results.ratios(measure, "ours", to) for measure, to in beside]
    return [f"{statistics.median(ratios):.2f}" if ratios else "" for ratios in found]


def compare(
    setting: Setting,
    makers: dict[str, Callable[[Setting], Contestant]],
    measures: Sequence[str],
    batch: int,
    repeats: int,
) -> Results:
    """Make the contestants and measure them."""
    results = Results()
    x, y = setting.task.images[:batch], setting.task.labels[:batch]
    with torch.inference_mode():
        expected = setting.task.model(x).argmax(1)

    def made() -> Iterator[tuple[str, Contestant]]:
        for name, make in makers.items():
            contestant, error = attempt(partial(make, setting))
            if error:
                results.errors["all"][name] = error
            else:
                yield name, contestant

    entrants = dict(made())
    for name, contestant in entrants.items():
        if "forward" in contestant.measures:
            set_mode(contestant, False)
            scores, _ = attempt(partial(forward, contestant, x, y))
            if scores is not None:
                results.agreement[name] = float((scores.argmax(1) == expected).float().mean())
    for measure in measures:
        if measure == "training":  # anew: states of inference mode cannot be trained
            entrants = dict(made())
        size = 1 if measure == "latency" else batch
        results.measure(measure, entrants, x[:size], y[:size], repeats)
    return results


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names, all_measures = list(networks(Path())), Contestant._field_defaults["measures"]
    parser.add_argument("--cache", type=Path, default=Path("speed"), help="folder of trained weights")
    parser.add_argument("--output", type=Path, help="JSON file of all seconds and bytes")
    parser.add_argument("--networks", nargs="+", choices=names, default=names)
    parser.add_argument("--weights", nargs="+", choices=["dense", "regularized"], default=["dense", "regularized"])
    parser.add_argument("--timesteps", type=int, nargs="+", help="instead of each network's own")
    parser.add_argument("--batch", type=int, help="instead of each network's own")
    parser.add_argument("--only", nargs="+", default=[""], help="how the names of contestants begin")
    parser.add_argument("--measures", nargs="+", choices=all_measures, default=all_measures)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--compile", action="store_true", help="measure ours compiled, too")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    makers = {
        name: make
        for name, make in contestants(options.compile).items()
        if name == REFERENCE or name.startswith(tuple(options.only))
    }
    device = torch.cuda.get_device_name(options.device) if options.device.type == "cuda" else "cpu"
    about = {"device": device, "threads": options.threads, "torch": torch.__version__}
    complain(", ".join(f"{key} {value}" for key, value in about.items()))
    known = networks(options.cache)
    # All of them before the table, which training would interrupt.
    tasks = {(name, weights): known[name].task(weights) for name in options.networks for weights in options.weights}
    blocks: list[dict[str, Any]] = []
    brief: list[str] = []
    print(head(*COLUMNS), flush=True)
    for (name, weights), task in tasks.items():
        task, batch = task.to(options.device), options.batch or known[name].batch
        trained = weights if task.accuracy is None else f"{weights} ({task.accuracy:.1%} correct)"
        for timesteps in options.timesteps or known[name].timesteps:
            exported = to_snntorch(task.model, task.calibration, timesteps=timesteps)
            rate = spike_rate(exported, task.images[:512])
            results = compare(Setting(task, exported, timesteps), makers, options.measures, batch, options.repeats)
            for contestant in makers:
                spikes = f"{rate:.2%}" if contestant.startswith("ours") else ""
                cells = [name, trained, timesteps, contestant, spikes, *row(results, contestant, batch)]
                print(line(*cells, *[""] * (len(COLUMNS) - len(cells))), flush=True)
            brief.append(line(f"{name}, {weights}", timesteps, *in_brief(results)))
            found = {"network": name, "weights": weights, "timesteps": timesteps, "batch": batch}
            blocks.append(found | {"accuracy": task.accuracy, "spike_rate": rate} | vars(results))
            if options.output is not None:
                write_json(options.output, about | {"blocks": blocks})
    columns = ("forward / T × DNN", "/ fastest peer", "one sample", "training step")
    print("\nOurs, the last two / snnTorch loop\n", head("", "T", *columns), *brief, sep="\n")


if __name__ == "__main__":
    main()
