"""Accuracy and SOPs on Fashion-MNIST of the same DNNs converted by different methods, at several T.

    python -m tests.benchmarks.conversion --output conversion.json

trains LeNet, a small VGG and a small residual network for every seed (weights are kept beside the output file),
converts each by every method and prints a table for each network, means over the seeds, and one of the best of the
peers at each T beside ours. SpikingJelly and sinabs take
part if they can be imported: pip install spikingjelly==2.0.0 sinabs==3.1.3. Results that the output file already holds
are not measured again, so a run may be stopped and resumed, and methods be added to OURS.

All methods calibrate on the same training images and get the image as a constant current. One counter counts SOPs for
all of them: every spike at the fan-out of its position, before average pooling, several spikes a step each. The first
layer, which sees the image, is not in SOPs.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import math
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext, redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import seed_everything
from torch import Tensor, nn
from torch.nn import functional as F

from snnreg_plugins import SpikingNetwork, SynapticOperations, to_snntorch
from snnreg_plugins._files import atomic
from snnreg_plugins.data import FashionMNIST
from snnreg_plugins.functional import fan_out
from snnreg_plugins.modules import VGG, LeNet
from snnreg_plugins.spiking.layers import SumPool
from snnreg_plugins.watching.hooks import Hooks
from snnreg_plugins.watching.layers import is_spiking_neuron, synaptic_layers
from tests.benchmarks.common import head, kept, line

# Options of to_snntorch. The network is exported for every T, unless the name is in SAME_AT_EVERY_T: then it is
# exported once, and a run of the largest T gives all others.
OURS: dict[str, dict[str, Any]] = {
    "layer, max": dict(threshold="max"),
    "layer, max, potential": dict(threshold="max", correction="potential"),
    "layer, 99.9 %": dict(threshold="percentile", percent=99.9),
    "layer, 99.9 %, potential": dict(threshold="percentile", percent=99.9, correction="potential"),
    "layer, 99.9 %, channel potential": dict(threshold="percentile", percent=99.9, correction="channel_potential"),
    "layer, 99.9 %, bias": dict(threshold="percentile", percent=99.9, correction="bias"),
    "layer, MMSE": dict(threshold="mmse"),
    "layer, MMSE, potential": dict(threshold="mmse", correction="potential"),
    "layer, MMSE, channel potential": dict(threshold="mmse", correction="channel_potential"),
    "layer, local": dict(threshold="local"),
    "layer, local, potential": dict(threshold="local", correction="potential"),
    "layer, Spike-Norm": dict(threshold="spike_norm"),
    "channel, max": dict(threshold="max", per_channel=True),
    "channel, 99.9 %": dict(threshold="percentile", percent=99.9, per_channel=True),
    "channel, 99.9 %, potential": dict(threshold="percentile", percent=99.9, per_channel=True, correction="potential"),
    "channel, 99.9 %, channel potential": dict(
        threshold="percentile", percent=99.9, per_channel=True, correction="channel_potential"
    ),
    "channel, MMSE": dict(threshold="mmse", per_channel=True),
    "channel, MMSE, potential": dict(threshold="mmse", per_channel=True, correction="potential"),
    "channel, local": dict(threshold="local", per_channel=True),
    "channel, local, potential": dict(threshold="local", per_channel=True, correction="potential"),
    "layer, 99.9 %, potential of T = 4": dict(timesteps=4, correction="potential"),
    "layer, 99.9 %, channel potential of T = 4": dict(timesteps=4, correction="channel_potential"),
    "beta = 0.9, as if 1": dict(beta=0.9, compensate_leak=False),
    "beta = 0.9": dict(beta=0.9),
    "beta = 0.9, bias": dict(beta=0.9, correction="bias"),
}
OURS = {"default": {}, "default, per channel": dict(per_channel=True), "auto": dict(threshold="auto")} | {
    name: {"correction": "none"} | options for name, options in OURS.items()
}
IN_BRIEF = {
    "ours default": "to_snntorch(model, data, timesteps=T)",
    "ours default, per channel": "per_channel=True",
    "ours auto": 'threshold="auto"',
}
SAME_AT_EVERY_T = {
    "layer, max",
    "layer, 99.9 %",
    "channel, max",
    "channel, 99.9 %",
    "layer, local",
    "channel, local",
    "layer, 99.9 %, potential of T = 4",
    "layer, 99.9 %, channel potential of T = 4",
    "beta = 0.9, as if 1",
}


def resnet() -> nn.Module:
    """Three of torchvision's residual blocks, two with a convolution in the shortcut."""
    from torchvision.models.resnet import BasicBlock

    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        return BasicBlock(inputs, outputs, stride, None if stride == 1 else shortcut)

    stem = [nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    blocks = [block(16, 16, 1), block(16, 32, 2), block(32, 64, 2)]
    return nn.Sequential(*stem, *blocks, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(64, 10))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {  # with epochs
    "lenet": (LeNet, 4),
    "vgg": (lambda: VGG(image_shape=(1, 28, 28), widths=(16, "P", 32, "P", 64, "P"), hidden=128), 3),
    "resnet": (resnet, 3),
}
ALL = 59_999  # images to train on
CALIBRATION = 20  # batches
BATCH = 100


class Data(NamedTuple):
    """Test images and labels, and batches of training images to calibrate on."""

    images: Tensor
    labels: Tensor
    calibration: list[Tensor]

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Walk the test images and labels."""
        return zip(self.images.split(BATCH), self.labels.split(BATCH), strict=True)


def load(samples: int, batches: int = CALIBRATION) -> Data:
    """Read the first test images, and the same training images in every run."""
    seed_everything(0, verbose=False)
    data = FashionMNIST(batch_size=BATCH, validation_size=1)
    calibration = [x for (x, _), _ in zip(data.train_dataloader(), range(batches), strict=False)]
    images, labels = (torch.cat(parts)[:samples] for parts in zip(*data.test_dataloader(), strict=True))
    return Data(images, labels, calibration)


class Converted(NamedTuple):
    """A spiking network, and how to run it: ``(images, T) -> (T, B, K)``, scores of a run of 1, 2, ..., T steps."""

    network: nn.Module
    run: Callable[[Tensor, int], Tensor]


class Method(NamedTuple):
    """A way to convert ``(DNN, calibration batches, T)``, and what changes its results."""

    convert: Callable[[nn.Module, list[Tensor], int], Converted]
    same_at_every_t: bool
    options: dict[str, Any]

    def described(self) -> str:
        """Write the options, functions by their names."""
        return json.dumps(self.options, default=lambda function: function.__name__)


def ours(options: dict[str, Any], same_at_every_t: bool) -> Method:
    """Convert by to_snntorch."""

    def convert(model: nn.Module, calibration: list[Tensor], timesteps: int) -> Converted:
        network = to_snntorch(model, calibration, **{"timesteps": timesteps, **options})
        network.timesteps = timesteps
        return Converted(network, lambda x, _: network(x, per_step=True))

    return Method(convert, same_at_every_t, options)


def spikingjelly(recipe: str, passes: int = 1, **options: Any) -> Method:
    """Convert by a recipe of SpikingJelly, single-step; it may see the calibration images several times."""

    def convert(model: nn.Module, calibration: list[Tensor], _: int) -> Converted:
        from spikingjelly.activation_based import ann2snn, functional

        converter = ann2snn.FXConverter(getattr(ann2snn, recipe)(dataloader=calibration * passes, **options))
        with redirect_stderr(io.StringIO()):  # progress bars
            network = converter.convert(copy.deepcopy(model)).eval()
        return Converted(network, by_step(network, lambda: functional.reset_net(network)))

    return Method(convert, True, {"recipe": recipe, "passes": passes, **options})


def sinabs() -> Method:
    """Convert by from_model of sinabs with its defaults; its neurons keep their states from step to step."""

    def convert(model: nn.Module, _: list[Tensor], __: int) -> Converted:
        from sinabs.from_torch import from_model

        network = from_model(copy.deepcopy(model).eval(), num_timesteps=1)
        # Without the copy of the DNN that it also holds.
        return Converted(network.spiking_model, by_step(network.spiking_model, network.reset_states))

    return Method(convert, True, {})


def by_step(network: nn.Module, reset: Callable[[], None]) -> Callable[[Tensor, int], Tensor]:
    """Run a network that does one step a call under constant input, from fresh states."""

    def run(x: Tensor, timesteps: int) -> Tensor:
        reset()
        return torch.stack([network(x) for _ in range(timesteps)]).cumsum(0)

    return run


def all_methods() -> dict[str, Method]:
    """Give every method by name; those of packages that are missing are left out, with a message."""
    methods: dict[str, Method] = {}
    if find_spec("spikingjelly"):
        for mode in ("max", "99.9%"):
            for thresholds in ("layer", "channel", "channel, half threshold"):
                options = dict(channel_wise=thresholds != "layer", half_threshold=thresholds.endswith("half threshold"))
                name = f"SpikingJelly {thresholds}, {mode.replace('%', ' %')}"
                methods[name] = spikingjelly("RateCodingRecipe", mode=mode, **options)
        for passes in (1, 10):  # its thresholds rise with every batch
            name = f"SpikingJelly local threshold balancing, {passes} pass{'es' if passes > 1 else ''}"
            methods[name] = spikingjelly("LocalThresholdBalancingRecipe", passes)
    if find_spec("sinabs"):
        methods["sinabs from_model"] = sinabs()
    missing = [name for name in ("spikingjelly==2.0.0", "sinabs==3.1.3") if not find_spec(name.partition("==")[0])]
    if missing:
        print(f"Left out, as they are not installed: pip install {' '.join(missing)}")
    return methods | {f"ours {name}": ours(options, name in SAME_AT_EVERY_T) for name, options in OURS.items()}


class Counter:
    """Counts the SOPs of every time step by hooks on the synaptic layers behind neurons.

    What one spike is worth in a layer's input differs by package, layer and channel. It is found by a run in which
    all neurons spike: pooling, average or sum, then sees k² spikes in every window, so that one is worth what it gives
    / k². Inputs have to be whole multiples of that.

    Args:
        converted: The network.
        x: Images, for that run.
        timesteps: T of the runs to count.
    """

    def __init__(self, converted: Converted, x: Tensor, timesteps: int) -> None:
        self.sops = torch.zeros(timesteps, dtype=torch.float64)  # whole numbers, exact
        self.layers: dict[nn.Module, tuple[Tensor, Tensor]] = {}  # worth of a spike, fan-out
        self.calls: dict[nn.Module, int] = defaultdict(int)
        self.seen: set[nn.Module] = set()
        self.worst = 0.0  # distance from a whole number
        self.window = 0  # positions pooled since the last neuron; 0 before the first
        with Hooks() as hooks:
            for module in converted.network.modules():
                if is_spiking_neuron(module):
                    hooks.after(module, self._fire)
                elif isinstance(module, (nn.AvgPool2d, SumPool)):
                    hooks.after(module, self._pool)
            for layer in synaptic_layers(converted.network).values():
                hooks.before(layer, self._probe)
            converted.run(x, timesteps)
        Hooks(before=[(layer, self._count) for layer in self.layers])

    def _fire(self, _: nn.Module, __: Any, output: Any) -> Any:
        self.window = 1
        return (torch.ones_like(output[0]), *output[1:]) if isinstance(output, tuple) else torch.ones_like(output)

    def _pool(self, pool: Any, *_: Any) -> None:
        kernel = pool.kernel_size
        self.window *= math.prod(kernel if isinstance(kernel, tuple) else (kernel, kernel))

    def _probe(self, layer: Any, args: tuple[Tensor, ...]) -> None:
        if layer not in self.seen and self.window:
            self.layers[layer] = args[0][:1] / self.window, fan_out(layer, args[0].shape[1:]).double()
        self.seen.add(layer)  # the first step decides

    def _count(self, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        worth, reached = self.layers[layer]
        exact = args[0] / worth
        spikes = exact.round()
        self.worst = max(self.worst, float((exact - spikes).abs().max()))
        assert self.worst < 1e-3, f"{layer} gets {self.worst} of a spike"
        self.sops[self.calls[layer] % len(self.sops)] += (spikes.sum(0, dtype=torch.float64) * reached).sum()
        self.calls[layer] += 1


@torch.no_grad()
def measure(converted: Converted, data: Data, timesteps: int) -> tuple[Tensor, Tensor]:
    """Count correct answers and SOPs for runs of 1, 2, ..., T steps."""
    counter = Counter(converted, data.images[:2], timesteps)
    correct = torch.zeros(timesteps, dtype=torch.int64)
    for index, (x, y) in enumerate(data.batches()):
        # The counter has to agree with the package's, which can count where a spike is worth 1.
        check = index == 0 and isinstance(converted.network, SpikingNetwork)
        with SynapticOperations(converted.network) if check else nullcontext() as metric:
            correct += (converted.run(x, timesteps).argmax(2) == y).sum(1)
        if check:
            assert float(metric.compute()) == float(counter.sops.sum() / len(x)), "the counters disagree"
    return correct, counter.sops.cumsum(0)


def train(name: str, epochs: int, seed: int, path: Path, images: int = ALL) -> nn.Module:
    """Train a network on so many images, or read the weights that ``path`` holds."""
    seed_everything(seed, verbose=False)
    model = NETWORKS[name][0]()

    def run() -> None:
        start = time.perf_counter()
        loader = FashionMNIST(batch_size=128, validation_size=ALL + 1 - images).train_dataloader()
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs * len(loader))
        for epoch in range(epochs):
            for x, y in loader:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
                scheduler.step()
            print(f"{path.stem}: epoch {epoch + 1}, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)

    return kept(model, path, run)


@torch.no_grad()
def dnn(model: nn.Module, data: Data) -> dict[str, float]:
    """Measure the DNN: accuracy, dense and effective MACs/sample."""
    with SynapticOperations(model) as operations:
        correct = sum(int((model(x).argmax(1) == y).sum()) for x, y in data.batches())
    macs = {kind: float(operations.total(f"{kind}_macs")) for kind in ("dense", "effective")}
    return {"accuracy": correct / len(data.labels)} | macs


class Results:
    """Measured numbers in a JSON file, written after each of them; other runs may add to it at the same time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.errors: dict[str, str] = {}
        self.runs: dict[str, dict[str, float]] = {}
        self.add({})

    def add(self, new: dict[str, dict[str, float]]) -> None:
        """Keep numbers."""
        self.runs = (json.loads(self.path.read_text()) if self.path.exists() else {}) | new
        with atomic(self.path) as temporary:
            temporary.write_text(json.dumps(self.runs, indent=1))

    def mean(self, keys: list[str], quantity: str) -> float:
        """Average over those of the runs that there are; NaN if there is none."""
        values = [self.runs[key][quantity] for key in keys if key in self.runs]
        return sum(values) / len(values) if values else math.nan


def fill(results: Results, keys: dict[int, str], method: Method, model: nn.Module, data: Data) -> None:
    """Measure a method at the T of ``keys``; an error is kept for its row, and the others go on."""
    together = [list(keys)] if keys else []
    for steps in together if method.same_at_every_t else [[T] for T in keys]:
        start = time.perf_counter()
        try:
            converted = method.convert(model, data.calibration, max(steps))
            converting = time.perf_counter() - start
            correct, sops = measure(converted, data, max(steps))
        except Exception as error:
            results.errors[keys[steps[0]]] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        seconds = {"conversion": converting, "seconds": time.perf_counter() - start - converting}  # of max(steps)
        count = len(data.labels)
        results.add(
            {
                keys[T]: {"accuracy": int(correct[T - 1]) / count, "sops": float(sops[T - 1]) / count} | seconds
                for T in steps
            }
        )


def row(results: Results, name: str, runs: dict[int, list[str]], samples: int) -> str:
    """Write a line of the table: the keys of a method's runs by T, one a seed."""
    cells = []
    for keys in runs.values():
        there = sum(key in results.runs for key in keys)
        cell = f"{100 * results.mean(keys, 'accuracy'):.1f} / {results.mean(keys, 'sops') / 1e3:.0f}" if there else ""
        partly = f"({there} of {len(keys)})" if 0 < there < len(keys) else ""
        errors = [results.errors[key] for key in keys if key in results.errors]
        cells.append(" ".join(part for part in (cell, partly, *errors[:1]) if part))
    conversion, seconds = (results.mean(runs[max(runs)], key) for key in ("conversion", "seconds"))
    cells += ["" if math.isnan(value) else f"{value:.1f}" for value in (conversion, 1e3 * seconds / samples)]
    return line(name, *cells)


def in_brief(results: Results, network: str, runs: dict[str, dict[int, list[str]]], trained: list[str]) -> list[str]:
    """Write the rows of the docs: at each T the most accurate recipe of the peers, and ours."""
    measured = {
        name: [(100 * results.mean(keys, "accuracy"), results.mean(keys, "sops") / 1e3) for keys in of_steps.values()]
        for name, of_steps in runs.items()
    }
    peers = [cells for name, cells in measured.items() if not name.startswith("ours ") and cells[-1][0] >= 0]
    # Of those that read alike the one that spends the least.
    best = [max(cells, key=lambda cell: (round(cell[0], 1), -cell[1])) for cells in zip(*peers, strict=True)]
    rows = {"best of SpikingJelly and sinabs": best} if best else {}
    rows |= {f"`{told}`": measured[name] for name, told in IN_BRIEF.items() if name in measured}
    accuracy = 100 * results.mean(trained, "accuracy")
    return [
        line(f"{network}, {name}", f"{accuracy:.1f} %", *(f"{score:.1f} % / {sops:.0f}k" for score, sops in cells))
        for name, cells in rows.items()
    ]


def main() -> None:
    """Train, convert, measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("conversion.json"))
    parser.add_argument("--samples", type=int, default=10_000, help="test images, the first ones")
    parser.add_argument("--epochs", type=int, help="of training, instead of each network's own")
    parser.add_argument("--calibration", type=int, default=CALIBRATION, help=f"batches of {BATCH} training images")
    parser.add_argument("--images", type=int, default=ALL, help="to train on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--timesteps", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--methods", nargs="*", default=[""], help="how their names begin; none: train only")
    parser.add_argument("--again", nargs="*", default=[], help="how the names begin of those to measure anew")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    methods = {name: method for name, method in all_methods().items() if name.startswith(tuple(options.methods))}
    results, steps, data = (
        Results(options.output),
        sorted(set(options.timesteps)),
        load(options.samples, options.calibration),
    )
    tables, brief = [], ["", head("", "DNN", *(f"T = {T}" for T in steps))]
    for network in options.networks:
        epochs, count = options.epochs or NETWORKS[network][1], len(data.labels)
        how = f"{epochs}" if options.images == ALL else f"{epochs} images={options.images}"
        trained = [f"{network} epochs={how} seed={seed} samples={count}" for seed in options.seeds]
        runs = {
            name: {T: [f"{of} {name} {method.described()} T={T}" for of in trained] for T in steps}
            for name, method in methods.items()
        }
        for index, seed in enumerate(options.seeds):
            kept_at = options.output.parent / f"{network}-epochs{how.replace(' images=', '-images')}-seed{seed}.pt"
            model = train(network, epochs, seed, kept_at, options.images)
            if trained[index] not in results.runs:
                results.add({trained[index]: dnn(model, data)})
            for name, method in methods.items():
                keys = {T: runs[name][T][index] for T in steps}
                again = name.startswith(tuple(options.again))
                fill(results, {T: keys[T] for T in steps if again or keys[T] not in results.runs}, method, model, data)
                told = row(results, f"{network} seed {seed} {name}", {T: [keys[T]] for T in steps}, count)
                print(told, file=sys.stderr, flush=True)
        accuracy, dense, effective = (results.mean(trained, name) for name in ("accuracy", "dense", "effective"))
        tables += [
            f"\n{network}, {count} test images, mean of seeds {options.seeds}. DNN: {100 * accuracy:.1f} %, "
            f"{dense / 1e3:.0f}k dense MACs, {effective / 1e3:.0f}k effective. SNN: accuracy % / thousand SOPs.\n",
            head("method", *(f"T = {T}" for T in steps), "conversion, s", f"s/1,000 at T = {max(steps)}"),
            *(row(results, name, runs[name], count) for name in methods),
        ]
        brief += in_brief(results, network, runs, trained)
    print("\n".join([*tables, *brief]))


if __name__ == "__main__":
    main()
