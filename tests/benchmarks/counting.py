"""Synaptic operations of three networks by every counter, and what counting costs: ours beside the peers'.

    python -m tests.benchmarks.counting

prints for each counter and network the operations of one forward pass over the exact count, and the time of a forward
pass with the counter over that without: the median of paired runs in turn. Peers take part if they can
be imported: pip install neurobench==2.3.0 spikingjelly==2.0.0 sinabs==3.1.3 syops==0.0.5. The exact count is one sum
of spikes times fan-out for each layer and step, the fan-out being the gradient of the layer with all weights 1.
"""

from __future__ import annotations

import argparse
import copy
import io
import statistics
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from typing import Any, NamedTuple

import snntorch
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from snnreg_plugins import SynapticOperations, to_snntorch
from snnreg_plugins.functional import OneToOne
from snnreg_plugins.modules import LeNet
from snnreg_plugins.watching.hooks import Hooks
from snnreg_plugins.watching.layers import synaptic_layers
from tests.benchmarks.common import head, line, timed


class Convolutions(nn.Module):
    """Five layers of snnTorch neurons on spikes (B, T, 2, 32, 32); the loop over steps is inside."""

    def __init__(self) -> None:
        super().__init__()
        layers = [
            nn.Conv2d(2, 16, 5), nn.Conv2d(16, 32, 3, stride=2), nn.Conv2d(32, 32, 3, groups=32),
            nn.Conv2d(32, 64, 3, stride=2), nn.Linear(64 * 25, 10),
        ]  # fmt: skip
        self.layers = nn.ModuleList(layers)
        self.neurons = nn.ModuleList(snntorch.Leaky(beta=0.9) for _ in layers)

    def forward(self, x: Tensor) -> Tensor:
        """Give the spikes of the last layer, summed over steps."""
        potentials: list[Tensor | None] = [neuron.init_leaky() for neuron in self.neurons]
        total = 0
        for spikes in x.unbind(1):
            for i, (layer, neuron) in enumerate(zip(self.layers, self.neurons, strict=True)):
                spikes = spikes.flatten(1) if isinstance(layer, nn.Linear) else spikes
                spikes, potentials[i] = neuron(layer(spikes), potentials[i])
            total = total + spikes
        return total


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    """The networks with an input each."""
    torch.manual_seed(0)
    events = (torch.rand(16, 16, 2, 32, 32) < 0.1).float()
    images = torch.rand(32, 1, 28, 28)
    found = {
        "snnTorch convolutions, T = 16": (Convolutions(), events),
        "exported LeNet, T = 8": (to_snntorch(LeNet().eval(), images, timesteps=8), images),
    }
    try:
        from torchvision.models import resnet18
    except ImportError:
        return found
    images, model = torch.rand(8, 3, 32, 32), resnet18(num_classes=10)
    with torch.no_grad():
        for _ in range(20):
            model(images)  # statistics of batch norm
    return found | {"exported ResNet-18, T = 4": (to_snntorch(model.eval(), images, timesteps=4), images)}


def exact(model: nn.Module, x: Tensor) -> int:
    """Count by the definition, layer by layer and step by step; real-valued input is no events."""
    counts, maps = [], {}
    layers = list(synaptic_layers(model).values())
    copies = {
        layer: nn.Identity() if isinstance(layer, OneToOne) else copy.deepcopy(layer).double() for layer in layers
    }

    def observe(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        spikes = args[0].detach().double()
        if not bool((spikes == spikes.round()).all()):
            return
        if layer not in maps:
            ones = copies[layer]
            with torch.enable_grad():
                probe = torch.ones_like(spikes[:1], requires_grad=True)
                for name, parameter in ones.named_parameters():
                    parameter.data.fill_(float(name == "weight"))
                (maps[layer],) = torch.autograd.grad(ones(probe).sum(), probe)
        counts.append(int((spikes.abs() * maps[layer]).sum()))

    with Hooks(before=[(layer, observe) for layer in layers]):
        model(x)
    return sum(counts)


class Counter(NamedTuple):
    """A way to count: ``run(x)`` is a forward pass that is counted, ``read()`` the count of the last one."""

    run: Callable[[Tensor], Any]
    read: Callable[[], float]


def by_ours(model: nn.Module, x: Tensor) -> Counter:
    """Count with our metric."""
    metric = SynapticOperations(model)
    seen = [0]

    def read() -> float:
        # Not reset, which would make the metric look closely at the next passes, as it does at the first.
        before, seen[0] = seen[0], round(float(metric.compute()) * int(metric.samples))
        return seen[0] - before

    return Counter(model, read)


def by_sinabs(model: nn.Module, x: Tensor) -> Counter:
    """Count with the hooks of sinabs, adding up what they overwrite at every call."""
    from sinabs.hooks import conv_layer_synops_hook, linear_layer_synops_hook

    total: list[Tensor] = []

    def add(layer: nn.Module, args: tuple[Tensor, ...], _: Tensor) -> None:
        total.append(layer.hook_data["layer_synops_per_timestep"] * len(args[0]))

    def run(x: Tensor) -> None:
        total.clear()
        model(x)

    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            hook = conv_layer_synops_hook if isinstance(layer, nn.Conv2d) else linear_layer_synops_hook
            layer.register_forward_hook(hook)
            layer.register_forward_hook(add)
    return Counter(run, lambda: float(sum(total)))


def by_spikingjelly(model: nn.Module, x: Tensor) -> Counter:
    """Count with SynOpCounter."""
    from spikingjelly.activation_based.op_counter import DispatchCounterMode, SynOpCounter

    found = []

    def run(x: Tensor) -> None:
        counter = SynOpCounter()
        with DispatchCounterMode([counter]):
            model(x)
        found.append(float(counter.get_total()))

    return Counter(run, lambda: found[-1])


def by_neurobench(model: nn.Module, x: Tensor) -> Counter:
    """Count with NeuroBench's harness."""
    from neurobench.benchmarks import Benchmark
    from neurobench.metrics.workload import SynapticOperations as Metric
    from neurobench.models import TorchModel

    data = DataLoader(TensorDataset(x, torch.zeros(len(x), dtype=torch.long)), batch_size=len(x))
    found = []

    def run(x: Tensor) -> None:
        results = Benchmark(TorchModel(model), data, [], [], [[], [Metric]]).run(quiet=True)
        found.append(results["SynapticOperations"]["Effective_ACs"] * len(x))

    return Counter(run, lambda: found[-1])


def by_syops(model: nn.Module, x: Tensor) -> Counter:
    """Count accumulates with syops."""
    from syops import get_model_complexity_info

    data, found = [(x, torch.zeros(len(x)))], []

    def run(x: Tensor) -> None:
        ops, _ = get_model_complexity_info(
            model, tuple(x.shape[1:]), data, as_strings=False, print_per_layer_stat=False
        )
        found.append(float(ops[1]) * len(x))

    return Counter(run, lambda: found[-1])


def by_flop_counter(model: nn.Module, x: Tensor) -> Counter:
    """Count dense multiply-accumulates with PyTorch's FlopCounterMode."""
    from torch.utils.flop_counter import FlopCounterMode

    found = []

    def run(x: Tensor) -> None:
        with FlopCounterMode(display=False) as counter:
            model(x)
        found.append(counter.get_total_flops() / 2)

    return Counter(run, lambda: found[-1])


COUNTERS: dict[str, Callable[[nn.Module, Tensor], Counter]] = {
    "snnreg_plugins": by_ours,
    "sinabs 3.1.3": by_sinabs,
    "SpikingJelly 2.0.0": by_spikingjelly,
    "neurobench 2.3.0": by_neurobench,
    "syops 0.0.5": by_syops,
    "torch FlopCounterMode / 2": by_flop_counter,
}


def compared(model: nn.Module, x: Tensor, make: Callable[..., Counter], repeats: int) -> tuple[float, list[float]]:
    """Give what is counted in a pass, and the times of passes with the counter over those without, in turn."""
    bare = copy.deepcopy(model)
    counter = make(copy.deepcopy(model), x)
    counter.run(x)
    found = counter.read()
    for _ in range(8):  # what is done in the first passes only
        counter.run(x)
    return found, [1 / (timed(lambda: bare(x)) / timed(lambda: counter.run(x))) for _ in range(repeats)]


def main() -> None:
    """Count, time and print a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    them, expected = networks(), {}
    for title, (model, x) in them.items():
        with torch.no_grad():
            expected[title] = exact(model.eval(), x)
        print(f"{title}: {expected[title]:,} synaptic events")
    print("\n" + head("", *them))
    for name, count in COUNTERS.items():
        cells = []
        for title, (model, x) in them.items():
            try:
                with torch.no_grad(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                    found, ratios = compared(model, x, count, options.repeats)
            except Exception as error:
                print(f"{name}, {title}: {type(error).__name__}: {error}", file=sys.stderr)
                cells.append("fails")
                continue
            share = found / expected[title]
            off = (
                "exact"
                if found == expected[title]
                else "all but rounding"
                if abs(share - 1) < 1e-6
                else f"× {share:.4g}"
            )
            cells.append(f"{off}, {statistics.median(ratios):.2f}")
        print(line(name, *cells), flush=True)


if __name__ == "__main__":
    main()
