"""What any network spends, layer by layer: a DNN, or a spiking network of snnTorch, Norse, SpikingJelly or sinabs."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from snnreg_plugins._files import read_batch, write_json
from snnreg_plugins._models import device_of, eval_and_back
from snnreg_plugins._text import in_joules, in_short, new_table
from snnreg_plugins.functional.energy import ENERGY_TABLES, EnergyTable, energy, energy_table, require_timesteps
from snnreg_plugins.functional.lemaire import LEMAIRE_SOURCE, LemaireEnergy, lemaire_dense_energy, lemaire_energy
from snnreg_plugins.functional.synapses import (
    SynapticLayer,
    count_events,
    fan_out,
    is_synaptic,
    operations,
    sample_shape,
)
from snnreg_plugins.spiking.network import SpikingNetwork
from snnreg_plugins.watching.hooks import Hooks
from snnreg_plugins.watching.layers import forget_states, is_spiking_neuron, leaks, neuron_layers, synaptic_layers
from snnreg_plugins.watching.simulated import names_in_dnn

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser
    from rich.console import Console
    from rich.table import Table

#: Name of the energy model with memory access, beside the names of tables.
LEMAIRE = "lemaire"


@dataclass(frozen=True)
class LayerProfile:
    """What a layer does, per sample. What does not apply is None.

    Args:
        name: Its name in the model.
        kind: Its class.
        calls: Calls for the whole batch.
        sops: SOPs/sample of integer-valued input.
        effective_macs: MACs/sample of real-valued input, zeros skipped.
        dense_macs: MACs/sample of all input, at every call.
        spike_rate: Spikes/neuron/step of a neuron layer; of real-valued activity, the share that is not zero.
        energy: J/sample; None where the table has no price for the layer's MACs.
        dense_energy: J/sample of the same layer in a DNN that skips no zeros and computes once.
    """

    name: str
    kind: str
    calls: int
    sops: float | None = None
    effective_macs: float | None = None
    dense_macs: float | None = None
    spike_rate: float | None = None
    energy: float | None = None
    dense_energy: float | None = None


@dataclass(frozen=True)
class Profile:
    """What a network spends; plain numbers. Made by :func:`profile`.

    Args:
        model: Class of the network.
        samples: Samples in the batch.
        timesteps: Time steps that the network was stepped through from outside; None if it was called once.
        spiking: Whether it has spiking neurons.
        layers: Its layers, in the order they were first called in; those never called are in ``unused``.
        unused: Names of layers that were not called.
        uncounted: Names of other modules with weights, such as LSTM or attention, whose operations are not counted.
        sops: SOPs/sample.
        effective_macs: MACs/sample of real-valued input, zeros skipped.
        dense_macs: MACs/sample of all input, at every call.
        spike_rate: Spikes/neuron/step over all neuron layers; None if there are none.
        energy: J/sample. With a table that has no price for MACs, that of the SOPs alone.
        dense_energy: J/sample of the same layers in a DNN that skips no zeros and computes once; None if MACs have
            no price.
        left_out: Names of layers whose MACs have no price and are not in ``energy``.
        breakdown: What spends ``energy``, in J/sample, where the model of energy tells.
        table: Name of the energy table, ``"lemaire"``, or ``"custom"``.
        source: Where its energies were published.
    """

    model: str
    samples: int
    timesteps: int | None
    spiking: bool
    layers: tuple[LayerProfile, ...]
    unused: tuple[str, ...]
    uncounted: tuple[str, ...]
    sops: float
    effective_macs: float
    dense_macs: float
    spike_rate: float | None
    energy: float
    dense_energy: float | None
    left_out: tuple[str, ...]
    breakdown: dict[str, float] | None
    table: str
    source: str

    def to_dict(self) -> dict[str, Any]:
        """Return nested dicts and lists of plain numbers and strings, as JSON has them."""
        plain = asdict(self)
        return plain | {name: list(plain[name]) for name in ("layers", "unused", "uncounted", "left_out")}

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`to_dict` to a JSON file; it appears when it is complete."""
        write_json(path, self.to_dict())

    def print(self, console: Console | None = None) -> None:
        """Print a table of the layers with the totals, and what the numbers mean.

        Args:
            console: Where to print; the terminal if None.
        """
        from rich.console import Console

        console = console or Console()
        console.print(self._by_layer())
        console.print("\n".join(self._notes()), style="dim", highlight=False, markup=False)

    def _by_layer(self) -> Table:
        stepped = f", {self.timesteps} steps" if self.timesteps else ""
        table = new_table(f"{self.model}, per sample (mean of {self.samples:,}{stepped})")
        table.add_column("Layer", overflow="fold")
        table.add_column("Kind", overflow="ellipsis", max_width=12)
        spiking = self.spiking or self.sops > 0
        for header in ("Calls", "Rate", *(["SOPs"] if spiking else []), "MACs", "Dense\nMACs", "Energy", "Dense\nDNN"):
            table.add_column(header, justify="right", no_wrap=True)
        for layer in self.layers:
            synaptic = layer.dense_macs is not None
            sops = "" if layer.effective_macs and not layer.sops else _count(layer.sops)
            table.add_row(
                layer.name,
                layer.kind,
                str(layer.calls),
                _rate(layer.spike_rate),
                *([sops] if spiking else []),
                _count(layer.effective_macs or None),
                _count(layer.dense_macs),
                "no price" if synaptic and layer.energy is None else _joule(layer.energy),
                _joule(layer.dense_energy),
            )
        table.add_section()
        table.add_row(
            "total",
            "",
            "",
            _rate(self.spike_rate),
            *([in_short(self.sops)] if spiking else []),
            in_short(self.effective_macs),
            in_short(self.dense_macs),
            _joule(self.energy),
            _joule(self.dense_energy),
        )
        return table

    @property
    def _prices_synapses_only(self) -> bool:
        return self.table != LEMAIRE and self.dense_energy is not None

    def _notes(self) -> Iterator[str]:
        yield (
            "Rate: spikes/neuron/step, or the share of active units. SOP: one spike at one synapse. MAC: one non-zero "
            "real-valued input at one synapse; dense: every input at every call. Dense DNN: the same layers computed "
            "once, nothing skipped."
        )
        if self.breakdown is not None:
            parts = ", ".join(f"{name} {in_joules(value)}" for name, value in self.breakdown.items() if value)
            yield f"Of the energy: {parts}."
        if self.left_out:
            yield (
                f"Not in the energy: the MACs of {', '.join(self.left_out)}, whose input is real-valued. The table has "
                "no price for MACs."
            )
        if self.uncounted:
            yield f"Not counted: the weights of {', '.join(self.uncounted)}, which are in no synaptic layer."
        if self.unused:
            yield f"Not called as layers: {', '.join(self.unused)}."
        scope = " Synapses only: no neuron updates or static power." if self._prices_synapses_only else ""
        yield f"Energy is an estimate from published numbers, not a measurement: {self.source}.{scope}"


def profile(
    model: nn.Module,
    inputs: Tensor,
    *,
    timesteps: int | None = None,
    table: str | EnergyTable = "horowitz_fp32",
    batch_dim: int = 0,
) -> Profile:
    """Run a network on a batch and count what each of its layers does: operations, spikes, energy.

    The network need not come from this package: a plain DNN, or modules of snnTorch, Norse, SpikingJelly and sinabs.
    One whose time loop is inside is called once. One that takes a step at a time is called ``timesteps`` times with
    the same inputs; states that it returns (``output, state``) and takes as a further argument are handed back to it.
    States kept inside its neurons are reset before and after, its mode is eval, and both hooks and mode are as they
    were afterwards.

    Operations are those of synaptic layers (Linear, Conv1d/2d/3d, ConvTranspose1d/2d/3d), exact as in
    :class:`~snnreg_plugins.SynapticOperations`; modules with other weights are named as uncounted.

    Args:
        model: The network.
        inputs: A batch, as the network takes it.
        timesteps: Number of calls of a network that takes a step at a time; None for one call.
        table: pJ per operation: a name in ``functional.ENERGY_TABLES``, a YAML file, an ``EnergyTable`` of your own,
            or ``"lemaire"`` for :func:`~snnreg_plugins.functional.lemaire_energy`, which has memory access too. For
            that, SOPs are the exact ones, and spikes of a neuron layer are the output of the synaptic layer called
            last before it; what leaks is told by a neuron's ``beta`` or its class's name.
        batch_dim: Dimension of the batch in ``inputs``; 1 for ``(T, B, ...)``.

    Returns:
        The numbers, with ``print()`` and ``save_json(path)``.

    Raises:
        TypeError: If ``model`` is no module or ``inputs`` no tensor.
        ValueError: If the network cannot take ``inputs``, has no synaptic layer or calls none, or an argument is out
            of range.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> result = profile(net, torch.rand(2, 4))
        >>> [layer.name for layer in result.layers], result.dense_macs
        (['0', '1', '2'], 56.0)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected argument `model` to be a torch.nn.Module, but got {type(model).__name__}.")
    if not isinstance(inputs, Tensor):
        raise TypeError(f"Expected argument `inputs` to be a tensor, but got {type(inputs).__name__}.")
    if not 0 <= batch_dim < inputs.dim() or not inputs.numel():
        raise ValueError(
            f"Expected argument `inputs` to hold a batch of samples along dimension {batch_dim}, but got the shape "
            f"{tuple(inputs.shape)}."
        )
    if timesteps is not None:
        require_timesteps(timesteps)
        if isinstance(model, SpikingNetwork):
            raise ValueError(
                f"Expected argument `timesteps` to be None for a SpikingNetwork, whose time loop is inside, but got "
                f"{timesteps}. Set `network.timesteps` instead."
            )
    prices = None if table == LEMAIRE else energy_table(table)
    counter = _Counter(model)
    if not counter.synapses:
        raise ValueError(
            "Expected argument `model` to have a synaptic layer (Linear, Conv1d/2d/3d, ConvTranspose1d/2d/3d), but "
            f"{type(model).__name__} has none."
        )
    device = device_of(model, inputs.device)
    with torch.no_grad(), counter, _at_rest(model):
        try:
            _run(model, inputs.to(device), timesteps)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"Expected argument `inputs` to be a batch that {type(model).__name__} takes, but for one of shape "
                f"{tuple(inputs.shape)} it raised {type(error).__name__}: {reason}"
            ) from error
    if not any(name in counter.synapses for name in counter.seen):
        raise ValueError(
            f"Expected argument `model` to call its synaptic layers, but {type(model).__name__} called none of "
            f"{sorted(counter.synapses)}. Functional forms such as F.linear cannot be watched."
        )
    return _profile(model, counter, inputs.shape[batch_dim], timesteps, table, prices)


@dataclass
class _Seen:
    """What a layer did, summed over the batch."""

    calls: int = 0
    sops: int = 0
    effective_macs: int = 0
    dense_macs: int = 0
    events: int = 0
    spikes: int = 0
    neuron_steps: int = 0
    shape: tuple[int, ...] = ()
    presented: int = 0
    behind_neurons: bool = False
    neurons: list[str] = field(default_factory=list)


class _Counter:
    """Counts what the layers of a model do, exactly."""

    def __init__(self, model: nn.Module) -> None:
        names = names_in_dnn(model)
        self.synapses = {names[path]: layer for path, layer in synaptic_layers(model).items()}
        self.neurons = {names[path]: layer for path, layer in neuron_layers(model).items()}
        self.seen: dict[str, _Seen] = {}
        self._last: _Seen | None = None
        self._assigned: set[str] = set()
        self._fired = False
        self._fan_out: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        self._hooks = Hooks()
        for name, layer in self.synapses.items():
            self._hooks.before(layer, partial(self._arrive, name))
        for name, layer in self.neurons.items():
            self._hooks.after(layer, partial(self._emit, name))

    def _arrive(self, name: str, layer: SynapticLayer, args: tuple[Tensor, ...]) -> None:
        x, seen = args[0], self.seen.setdefault(name, _Seen(behind_neurons=self._fired))
        seen.shape = sample_shape(layer, x)
        key = name, seen.shape
        if key not in self._fan_out:
            self._fan_out[key] = fan_out(layer, seen.shape)
        sops, effective, dense = operations(layer, x, self._fan_out[key])
        seen.calls += 1
        seen.sops += sops
        seen.effective_macs += effective
        seen.dense_macs += dense
        seen.events += 0 if effective else count_events(x)
        seen.presented += x.numel() // self._fan_out[key].numel()
        self._last = seen

    def _emit(self, name: str, layer: nn.Module, _: Any, output: Any) -> None:
        spikes = output[0] if isinstance(output, tuple) else output
        self._fired = True
        seen = self.seen.setdefault(name, _Seen())
        seen.calls += 1
        seen.spikes += count_events(spikes)
        seen.neuron_steps += spikes.numel()
        if self._last is not None and name not in self._assigned:
            self._assigned.add(name)
            self._last.neurons.append(name)

    def timesteps(self, timesteps: int | None, samples: int, spiking: bool) -> int:
        """Find T: of a network with its loop inside, how often the layer behind neurons that is called least is."""
        if timesteps is not None or not spiking:
            return timesteps or 1
        synaptic = [seen for seen in self.seen.values() if seen.presented]
        behind = [seen.presented for seen in synaptic if seen.behind_neurons and not seen.effective_macs]
        return max(1, min(behind or [seen.presented for seen in synaptic]) // samples)

    def __enter__(self) -> _Counter:
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.remove()


def _run(model: nn.Module, inputs: Tensor, timesteps: int | None) -> None:
    if timesteps is None:
        model(inputs)
        return
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    takes = sum(parameter.kind in kinds for parameter in inspect.signature(model.forward).parameters.values()) - 1
    state: tuple[Any, ...] = ()
    for _ in range(timesteps):
        output = model(inputs, *state)
        state = output[1 : 1 + takes] if isinstance(output, tuple) else ()


@contextmanager
def _at_rest(model: nn.Module) -> Iterator[None]:
    """Run a model in eval mode with fresh states, and leave neither of them behind."""
    with eval_and_back(model):
        try:
            forget_states(model)
            yield
        finally:
            forget_states(model)


def _profile(
    model: nn.Module,
    counter: _Counter,
    samples: int,
    timesteps: int | None,
    table: str | EnergyTable,
    prices: EnergyTable | None,
) -> Profile:
    spiking = any(is_spiking_neuron(module) for module in model.modules())
    layers, breakdown, left_out = [], LemaireEnergy(), []
    steps = counter.timesteps(timesteps, samples, spiking)
    for name, seen in counter.seen.items():
        if name in counter.neurons:
            rate = seen.spikes / seen.neuron_steps if seen.neuron_steps else None
            kind = type(counter.neurons[name]).__name__
            layers.append(LayerProfile(name, kind, seen.calls, spike_rate=rate))
            continue
        layer: Any = counter.synapses[name]
        spent: float | None
        dense_spent: float | None
        uses = max(1, round(seen.presented / samples / steps))  # in a pass of a DNN
        if prices is None:
            dense = sum(uses * [lemaire_dense_energy(layer, seen.shape)], LemaireEnergy())
            parts = _lemaire(layer, counter, seen, samples, steps) if spiking else dense
            spent, dense_spent = parts.total, dense.total
            breakdown += parts
        elif prices.prices_macs or not seen.effective_macs:
            spent = energy(seen.sops, seen.effective_macs, prices) / samples
            once = uses * seen.dense_macs / max(1, seen.presented)
            dense_spent = energy(0.0, once, prices) if prices.prices_macs else None
        else:
            spent = dense_spent = None
            left_out.append(name)
        layers.append(
            LayerProfile(
                name,
                type(layer).__name__,
                seen.calls,
                sops=seen.sops / samples,
                effective_macs=seen.effective_macs / samples,
                dense_macs=seen.dense_macs / samples,
                energy=spent,
                dense_energy=dense_spent,
            )
        )
    seen_all = counter.seen.values()
    neuron_steps = sum(seen.neuron_steps for seen in seen_all)
    sops = sum(seen.sops for seen in seen_all) / samples
    total = energy(sops, 0.0, prices) if prices and left_out else sum(layer.energy or 0.0 for layer in layers)
    known = [layer.dense_energy for layer in layers if layer.dense_macs is not None]
    return Profile(
        model=type(model).__name__,
        samples=samples,
        timesteps=timesteps,
        spiking=spiking,
        layers=tuple(layers),
        unused=tuple(name for name in {**counter.synapses, **counter.neurons} if name not in counter.seen),
        uncounted=_uncounted(model),
        sops=sops,
        effective_macs=sum(seen.effective_macs for seen in seen_all) / samples,
        dense_macs=sum(seen.dense_macs for seen in seen_all) / samples,
        spike_rate=sum(seen.spikes for seen in seen_all) / neuron_steps if neuron_steps else None,
        energy=total,
        dense_energy=None if None in known else sum(value for value in known if value is not None),
        left_out=tuple(left_out),
        breakdown=asdict(breakdown) if prices is None else None,
        table=table if isinstance(table, str) else "custom",
        source=LEMAIRE_SOURCE if prices is None else prices.source,
    )


def _uncounted(model: nn.Module) -> tuple[str, ...]:
    """Name the modules that hold matrices and are neither synaptic layers nor known to have no synapses."""
    return tuple(
        name or type(module).__name__
        for name, module in model.named_modules()
        if not is_synaptic(module)
        and not isinstance(module, nn.LayerNorm)
        and not type(module).__module__.startswith("snnreg_plugins.")
        and any(
            parameter.dim() == 2 or (parameter.dim() > 2 and "weight" in key)
            for key, parameter in module.named_parameters(recurse=False)
        )
    )


def _lemaire(layer: SynapticLayer, counter: _Counter, seen: _Seen, samples: int, steps: int) -> LemaireEnergy:
    return lemaire_energy(
        layer,
        seen.shape,
        timesteps=max(steps, round(seen.presented / samples)),  # an analog layer drives its neurons in all steps
        events_in=seen.events / samples,
        events_out=sum(counter.seen[name].spikes for name in seen.neurons) / samples,
        sops=seen.sops / samples,
        effective_macs=seen.effective_macs / samples,
        leaky=any(leaks(counter.neurons[name]) for name in seen.neurons),
    )


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _count(value: float | None) -> str:
    return "" if value is None else in_short(value)


def _joule(value: float | None) -> str:
    return "" if value is None else in_joules(value)


def load_factory(path: str) -> nn.Module:
    """Make the network that ``module.path:factory`` names; modules in the current folder are found.

    Args:
        path: A module's dotted path, a colon, and the name in it of a network, or of a callable that makes one when
            called without arguments.

    Raises:
        ValueError: If ``path`` is not of that form, or there is no such module or name.
        TypeError: If what it names neither is nor makes a network.

    Example:
        >>> type(load_factory("snnreg_plugins.modules:LeNet")).__name__
        'LeNet'
    """
    name, colon, attribute = path.partition(":")
    if not (name and colon and attribute) or not all(part.isidentifier() for part in [*name.split("."), attribute]):
        raise ValueError(
            f"Expected argument `factory` to be of the form package.module:name, such as networks:make_net for "
            f"make_net in networks.py, but got {path!r}."
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        home = import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there, and misses another one
        raise ValueError(
            f"Expected argument `factory` to name a module, but there is no {error.name!r} in the current folder or "
            "among the installed packages."
        ) from error
    if not hasattr(home, attribute):
        raise ValueError(f"Expected argument `factory` to name something in {name}, but that has no {attribute!r}.")
    found = getattr(home, attribute)
    made = found if isinstance(found, nn.Module) or not callable(found) else _call(found, path)
    if not isinstance(made, nn.Module):
        raise TypeError(
            f"Expected argument `factory` to name a torch.nn.Module or what makes one, but {path!r} "
            f"{'is' if made is found else 'makes one'} of type {type(made).__name__}."
        )
    return made


def _call(factory: Callable[[], Any], path: str) -> Any:
    required = [
        parameter.name
        for parameter in inspect.signature(factory).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if required:
        raise TypeError(
            f"Expected argument `factory` to be callable without arguments, but {path!r} needs {', '.join(required)}. "
            "Write a function that makes the network."
        )
    return factory()


def load_inputs(data: str, input_shape: Sequence[int] | None, batch: int, batch_dim: int = 0) -> Tensor:
    """Make a batch: of random numbers in [0, 1), always the same ones, or the first samples in a file.

    Args:
        data: ``"random"``, or a file that ``torch.save`` wrote, of a tensor that holds samples along ``batch_dim``.
        input_shape: Shape of one sample, without the batch; None to take what the file has.
        batch: Number of samples.
        batch_dim: Dimension of the batch.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds no tensor or one of another shape, or an argument is out of range.

    Example:
        >>> load_inputs("random", (1, 28, 28), batch=4).shape
        torch.Size([4, 1, 28, 28])
    """
    if batch < 1:
        raise ValueError(f"Expected argument `batch` to be an integer of at least 1, but got {batch!r}.")
    if input_shape is not None and (not input_shape or min(input_shape) < 1):
        raise ValueError(f"Expected argument `input_shape` to hold sizes of at least 1, but got {list(input_shape)}.")
    if data == "random":
        if input_shape is None:
            raise ValueError("Expected argument `input_shape` to give the shape of a random sample, such as 1 28 28.")
        if not 0 <= batch_dim <= len(input_shape):
            raise ValueError(f"Expected argument `batch_dim` to be from 0 to {len(input_shape)}, but got {batch_dim}.")
        shape = (*input_shape[:batch_dim], batch, *input_shape[batch_dim:])
        return torch.rand(shape, generator=torch.Generator().manual_seed(0))
    held = read_batch(data, "data")
    if not 0 <= batch_dim < held.dim():
        raise ValueError(f"Expected argument `batch_dim` to be from 0 to {held.dim() - 1}, but got {batch_dim}.")
    sample = (*held.shape[:batch_dim], *held.shape[batch_dim + 1 :])
    if input_shape is not None and sample != tuple(input_shape):
        raise ValueError(
            f"Expected argument `input_shape` to be that of a sample in {data!r}, which is {list(sample)}, but got "
            f"{list(input_shape)}."
        )
    return held.narrow(batch_dim, 0, min(batch, held.shape[batch_dim]))


def main(words: Sequence[str]) -> None:
    """Run ``snnreg profile`` with the words after it."""
    parser = _parser()
    options = parser.parse_args(list(words))
    made = load_factory(options.factory)
    inputs = load_inputs(options.data, options.input_shape, options.batch, options.batch_dim)
    result = profile(made, inputs, timesteps=options.timesteps, table=options.table, batch_dim=options.batch_dim)
    result.print()
    if options.output is not None:
        path = Path(options.output) / "profile.json"
        result.save_json(path)
        print(f"Wrote {path}")


def _parser() -> ArgumentParser:
    import jsonargparse

    tables = ", ".join((*ENERGY_TABLES, LEMAIRE))
    parser = jsonargparse.ArgumentParser(
        prog="snnreg profile",
        usage="snnreg profile module.path:name --input-shape 1 28 28 [options]",
        description="Run any network on a batch, and print what each layer does: operations, spikes, energy.",
    )
    parser.add_argument(
        "factory", type=str, help="module.path:name of a network, or of what makes one, such as networks:make_net"
    )
    from_file = jsonargparse.ActionConfigFile  # type: ignore[attr-defined]
    parser.add_argument("-c", "--config", action=from_file, help="these options from a YAML file")
    parser.add_argument("--input-shape", type=int, nargs="+", help="shape of a sample, without the batch: 1 28 28")
    parser.add_argument("--batch", type=int, default=8, help="number of samples (default: 8)")
    parser.add_argument(
        "--batch-dim", type=int, default=0, help="dimension of the batch; 1 for input (T, B, ...) (default: 0)"
    )
    parser.add_argument(
        "--data", type=str, default="random", help="random, or a file that torch.save wrote, of a tensor of samples"
    )
    parser.add_argument("--timesteps", type=int, help="calls of a network that takes one time step at a time")
    parser.add_argument(
        "--table", type=str, default="horowitz_fp32", help=f"energy: {tables}, or a YAML file with ac, mac and source"
    )
    parser.add_argument("--output", type=str, help="folder to write profile.json to")
    return parser
