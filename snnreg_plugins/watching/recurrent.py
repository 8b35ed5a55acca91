"""What torch's recurrent layers multiply at each time step, which one operation hides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from snnreg_plugins.functional.synapses import Synapses
from snnreg_plugins.watching.inputs import is_binary
from snnreg_plugins.watching.products import Cost

_FORWARDS = {nn.RNN.forward, nn.LSTM.forward, nn.GRU.forward}


def is_recurrent(module: nn.Module) -> bool:
    """Tell whether a module is a recurrent layer of torch whose products are known by its input and output."""
    return isinstance(module, nn.RNNBase) and type(module).forward in _FORWARDS and not module.proj_size


class Factor(NamedTuple):
    """Activity that meets weights, step by step.

    Args:
        steps: The activity of each step, ``(B, features)``; B may fall, where sequences end.
        fan_out: How many weights each value meets.
        below: Whether it is the input of the first layer.
        weight: The weights, ``(fan_out, features)``.
    """

    steps: list[Tensor]
    fan_out: int
    below: bool
    weight: Tensor

    def counted(
        self, events: Callable[[Tensor], Tensor], currents: bool, zero_weights: bool
    ) -> Iterator[tuple[Cost, Cost]]:
        """Count what each step multiplies, and what of it by weights of exactly zero, if that is asked for.

        Args:
            events: Makes events of spikes times a constant.
            currents: Whether whole numbers above 1 are multiplied, too.
            zero_weights: Whether to count these.
        """
        zeros = (self.weight.detach() == 0).sum(0).double()
        for step in self.steps:
            x = events(step)
            synapses = Synapses(layer=None, fan_out_map=torch.tensor(self.fan_out).expand(x.shape[1:]))
            cost = synapses.count(x)
            if currents and cost[0] and not is_binary(step):
                cost = 0, synapses.count((x != 0).to(x.dtype))[0], cost[2]
            at_zero: Cost = (0, 0, 0)
            if zero_weights and zeros.any():
                met = round(float((x != 0 if cost[1] else x.abs()).sum(0, dtype=torch.float64) @ zeros))
                dense = len(x) * round(float(zeros.sum()))
                at_zero = (0, met, dense) if cost[1] else (met, 0, dense)
            yield cost, at_zero


def factors(layer: nn.RNNBase, args: tuple[Any, ...], output: Any, with_own: bool = True) -> Iterator[Factor]:
    """Give what each layer and direction reads from below and from its own step before.

    Of several layers, those above the first are computed again; in training, their dropout is not known, and they are
    left out.

    Args:
        layer: A layer of which :func:`is_recurrent` is true.
        args: What it was called with.
        output: What it gave.
        with_own: Whether to give what is read from the step before.
    """
    x, sizes = _time_first(layer, args[0])
    initial = args[1] if len(args) > 1 else None
    hidden = initial[0] if isinstance(initial, (tuple, list)) else initial
    directions = 2 if layer.bidirectional else 1
    if hidden is None:
        hidden = x.new_zeros(layer.num_layers * directions, sizes[0], layer.hidden_size)
    hidden = hidden if hidden.dim() == 3 else hidden.unsqueeze(1)
    if isinstance(args[0], PackedSequence) and args[0].sorted_indices is not None:
        hidden = hidden.index_select(1, args[0].sorted_indices)
    for index in range(1 if layer.training and layer.dropout else layer.num_layers):
        if layer.num_layers == 1:
            above = _time_first(layer, output[0])[0]
        else:
            above = _run_alone(layer, index, args[0], x, initial)
        for direction, outputs in enumerate(above.chunk(directions, -1)):
            of_input, of_own = (
                getattr(layer, f"weight_{which}_l{index}" + ("_reverse" if direction else "")) for which in ("ih", "hh")
            )
            yield Factor(list(torch.split(x, sizes)), of_input.shape[0], index == 0, of_input)
            if not with_own:
                continue
            before = _before(torch.split(outputs, sizes), hidden[index * directions + direction], bool(direction))
            yield Factor(before, of_own.shape[0], False, of_own)
        x = above


def _before(outputs: Any, initial: Tensor, reverse: bool) -> list[Tensor]:
    """Give the state that each step begins with, of the sequences that are under way."""
    states = []
    for step, now in enumerate(outputs):
        at = step + 1 if reverse else step - 1
        last = outputs[at] if 0 <= at < len(outputs) else initial[:0]
        # In reverse, a sequence begins where it ends, be it before others do.
        states.append(torch.cat([last[: len(now)], initial[len(last) : len(now)]]))
    return states


def _time_first(layer: nn.RNNBase, x: Any) -> tuple[Tensor, list[int]]:
    """Give the values of all steps, one step after the other, and how many each has."""
    if isinstance(x, PackedSequence):
        return x.data, x.batch_sizes.tolist()
    x = x.unsqueeze(1) if x.dim() == 2 else x.transpose(0, 1) if layer.batch_first else x
    return x.flatten(0, 1), [x.shape[1]] * x.shape[0]


def _run_alone(layer: nn.RNNBase, index: int, given: Any, x: Tensor, initial: Any) -> Tensor:
    """Compute one of several layers."""
    directions = 2 if layer.bidirectional else 1
    kind: Any = type(layer)
    alone = kind(x.shape[-1], layer.hidden_size, bias=layer.bias, bidirectional=layer.bidirectional)
    if isinstance(layer, nn.RNN):
        alone.nonlinearity, alone.mode = layer.nonlinearity, layer.mode
    for suffix in ("", "_reverse")[:directions]:
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if layer.bias else 2]:
            setattr(alone, f"{name}_l0{suffix}", getattr(layer, f"{name}_l{index}{suffix}"))
    own = slice(index * directions, (index + 1) * directions)

    def of_this(state: Tensor) -> Tensor:
        return (state if state.dim() == 3 else state.unsqueeze(1))[own].contiguous()

    state: Any = tuple(map(of_this, initial)) if isinstance(initial, (tuple, list)) else None
    state = of_this(initial) if isinstance(initial, Tensor) else state
    with torch.no_grad():
        if isinstance(given, PackedSequence):
            return alone(given._replace(data=x), state)[0].data  # type: ignore[no-any-return]
        steps = 1 if not len(x) else given.shape[1 if layer.batch_first and given.dim() == 3 else 0]
        return alone(x.view(steps, -1, x.shape[-1]), state)[0].flatten(0, 1)  # type: ignore[no-any-return]
