"""Runs a call of a spiking network layer by layer, each layer over many time steps at once."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from snnreg_plugins._models import eval_and_back
from snnreg_plugins._torch import has_hooks_on_all, is_dispatch_mode_on, is_forward_ad, is_transformed
from snnreg_plugins.functional.synapses import SYNAPTIC_LAYERS
from snnreg_plugins.spiking.events import EventDriven
from snnreg_plugins.spiking.firing import Firing, is_compilable
from snnreg_plugins.spiking.layers import InitialState, by_step, channels_last
from snnreg_plugins.spiking.plan import Plan
from snnreg_plugins.spiking.stepwise import Frames
from snnreg_plugins.watching.hooks import is_watched, sees_many_steps, unwatched, watched_call
from snnreg_plugins.watching.products import Products
from snnreg_plugins.watching.steps import CallSteps, holding_steps

# Elements that the largest tensor of a layer may have: few enough to stay in a cache, where there is one to stay in.
_ELEMENTS = {"cpu": 2**21}  # for each thread
_ELEMENTS_ELSEWHERE = 2**27
_TRAINED = 2  # times as many in training, where each part has its own backward pass
_LEAST_ELEMENTS = 2**18


class AllSteps(NamedTuple):
    """A tensor of every time step: ``(steps * B, ...)``, one step after the other."""

    values: Tensor


def can_hold_steps(parts: list[nn.Module], x: Any) -> bool:
    """Tell whether a network may be run layer by layer: nothing looks on that expects one step at a time.

    Args:
        parts: The modules in the network.
        x: Its input.
    """
    return (
        isinstance(x, Tensor)
        and x.dim() > 0
        and x.numel() > 0
        and not x.is_meta
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and not (is_transformed() or is_forward_ad() or is_dispatch_mode_on(beside=Products))
        and not has_hooks_on_all()
        and all(map(sees_many_steps, parts))
    )


class LayerwiseCall:
    """One call of a network: each layer for some steps, then the next layer.

    Neurons and weights do not change within a call, so what is found out about them serves for all of it.

    Args:
        plan: How to run the time step.
        encoder: Gives what steps read of an input.
        like: The input of one step.
        has_frames: Whether each step has its own.
    """

    def __init__(self, plan: Plan, encoder: nn.Module, like: Tensor, has_frames: bool) -> None:
        self.plan = plan
        self.encoder = encoder
        self.like = like
        self.key = has_frames, *like.shape[1:]
        self.largest = like.shape[1:].numel() if has_frames else 1
        self._neurons: dict[str, Firing | None] = {}
        self._synapses: dict[str, Callable[[Tensor], Tensor]] = {}

    def split(self, size: int, steps: int, trained: bool) -> tuple[int, int]:
        """Choose how many samples and steps of an input to run at once, by the sizes that were found out.

        In training too: tensors of a whole batch are so large that the system maps and clears their memory anew in
        every step. Never one sample where there are more: a DNN that squeezes its tensors takes a batch of one for
        none.
        """
        samples = size if self.plan.draws else 2
        largest = self.plan.sizes[self.key]
        on_cpu = self.like.device.type == "cpu"
        elements = _ELEMENTS.get(self.like.device.type, _ELEMENTS_ELSEWHERE)
        elements *= (torch.get_num_threads() if on_cpu else 1) * (_TRAINED if trained else 1)
        return max(samples, elements // (largest * steps)), max(1, min(steps, elements // largest))

    def least(self, steps: int) -> int:
        """Tell for how many samples it pays at least to run all steps and their gradients."""
        return max(2, _LEAST_ELEMENTS // (self.plan.sizes[self.key] * steps))

    def begin(self, given: Any) -> Any:
        """Compute what is the same in all steps."""
        if isinstance(given, Frames):
            return given
        with holding_steps(CallSteps(1, 0)):
            return self.encoder(given)

    def _encoded(self, frames: Frames, steps: int, first_step: int) -> tuple[Any, ...]:
        """Compute what some steps read of their frames."""
        if self.plan.reads_tensors:
            with holding_steps(CallSteps(steps, first_step, events=True)):
                return tuple(map(AllSteps, self.encoder(frames.of(first_step, steps))))
        read = []  # a size of one step is not that of all
        for step in range(first_step, first_step + steps):
            with holding_steps(CallSteps(1, step, events=True)):
                read.append(self.encoder(frames.of(step)))
        return tuple(_joined(list(results)) for results in zip(*read, strict=True))

    def __call__(self, constants: Any, states: Any, steps: int, first_step: int) -> tuple[Tensor, Any]:
        """Run some steps: gives the outputs ``(steps, B, ...)``, and the states."""
        if isinstance(constants, Frames):
            constants = self._encoded(constants, steps, first_step)
        chunk = Chunk(self, constants, states, steps, first_step)
        with holding_steps(chunk.held):
            for node, how, unused in self.plan.nodes:
                value = chunk.values[node] = getattr(chunk, how)(node)
                if isinstance(value, AllSteps):
                    self.largest = max(self.largest, value.values.numel() // value.values.shape[0])
                for source in unused:
                    del chunk.values[source]
        output, states = chunk.outputs
        if isinstance(output, AllSteps):
            return by_step(output.values, steps), states
        return output.expand(steps, *output.shape), states

    def learn(self, given: Any, states: Any) -> None:
        """Find out how large tensors are, from one step of few samples that nobody sees; this is not to be used again.

        So the first call of a network runs in the same parts as any later one, and rounds alike.
        """
        generators = [self.like.device] if self.like.device.type == "cuda" else []
        with (
            unwatched(),
            torch.no_grad(),
            torch.random.fork_rng(generators),
            eval_and_back(self.encoder),  # for batch norms
            eval_and_back(self.plan.body),
        ):
            with holding_steps(CallSteps(1, 0)):  # nor counted by its operations
                read = self.encoder(given.of(0) if isinstance(given, Frames) else given)
            self(self.begin(given), states, 1, 0)
        self.plan.reads_tensors = all(isinstance(part, Tensor) for part in read)
        self.plan.sizes[self.key] = self.largest

    def prepare(self) -> None:
        """Get all neurons ready, before what is computed twice: once for all that comes."""
        for node, how, _ in self.plan.nodes:
            if how == "neurons":
                self.neurons(str(node.target))

    def end(self) -> None:
        """Keep nothing."""

    def neurons(self, name: str) -> Firing | None:
        """Give a neuron layer ready to fire, None if it is to be called step by step."""
        if name not in self._neurons:
            module = self.plan.modules[name]
            own = "forward" in vars(module)  # which tells nothing of itself
            dynamics = None if own else self.plan.describe(module)
            self._neurons[name] = None if dynamics is None else Firing(dynamics)
        return self._neurons[name]

    def synapses(self, name: str, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Give what computes a layer."""
        if name not in self._synapses:
            module = self.plan.modules[name]
            trained = _needs_gradient(x, *module.parameters())
            by_events = not trained and EventDriven.takes(module, x)
            self._synapses[name] = EventDriven(module) if by_events else module.forward
        return self._synapses[name]


class Chunk:
    """Some steps of a call: the value of each node in them."""

    def __init__(self, call: LayerwiseCall, constants: Any, states: Any, steps: int, first_step: int) -> None:
        self.call = call
        self.plan = call.plan
        self.given = {"constants": constants, "states": states}
        self.steps = steps
        self.held = CallSteps(steps, first_step)
        self.values: dict[fx.Node, Any] = {}
        self.outputs: Any = None

    # One method for each kind of node.

    def placeholder(self, node: fx.Node) -> Any:
        return self.given[str(node.target)]

    def output(self, node: Any) -> Any:
        self.outputs = fx.map_arg(node.args[0], self.values.__getitem__)

    def get_attr(self, node: fx.Node) -> Any:
        return operator.attrgetter(str(node.target))(self.plan.body)

    def initial_state(self, node: Any) -> Any:
        state = self.values[node.args[0]]
        return self.plan.modules[node.target] if state is None else state

    def neurons(self, node: Any) -> tuple[AllSteps, Any]:
        current, state = (self.values[source] for source in node.args)
        module = self.plan.modules[node.target]
        firing = self.call.neurons(node.target)
        if firing is None:
            return self._in_turn(module, current, state)
        currents = current.values if isinstance(current, AllSteps) else current
        if not currents.is_floating_point():
            currents = currents.to(firing.dynamics.threshold.dtype)
        if is_compilable(currents) and currents.dim() == 4:
            # So that a spike adds weights to a run of outputs, and all layers from here on are laid out alike.
            currents = channels_last(currents)
        starts = isinstance(state, InitialState)
        if starts:
            sample = currents[: len(currents) // self.steps] if isinstance(current, AllSteps) else currents
            state = state.potential.to(sample.dtype).expand_as(sample)
        overwrite = self.plan.may_overwrite(node.args[0])

        def run(currents: Tensor) -> tuple[Tensor, Tensor]:
            if _needs_gradient(currents, state, firing.dynamics.threshold, firing.dynamics.beta):
                return firing.with_gradient(currents, state, self.steps)
            own = torch.empty_like(sample).copy_(state) if starts else state
            return firing(currents, own, self.steps, overwrite), own

        spikes, state = watched_call(module, run, currents)
        return AllSteps(spikes), state

    def _in_turn(self, module: nn.Module, current: Any, state: Any) -> tuple[AllSteps, Any]:
        """Call a module that takes and gives a state, step by step."""
        outputs = []
        for step in range(self.steps):
            value = self._at(current, step)
            if isinstance(state, InitialState):
                state = state(None, value)
            with holding_steps(CallSteps(1, self.held.first_step + step)):
                output, state = module(value, state)
            outputs.append(output)
        return AllSteps(torch.cat(outputs)), state

    def max_pool(self, node: Any) -> tuple[AllSteps, Any]:
        current, state = (self.values[source] for source in node.args)
        module = self.plan.modules[node.target]
        if "forward" in vars(module):
            return self._in_turn(module, current, state)

        def run(current: Tensor, state: Any) -> tuple[Tensor, Any]:
            passed: tuple[Tensor, Any] = module.over_steps(current, self.steps, state)
            return passed

        passed, state = watched_call(module, run, self._of_all_steps(current), state)
        return AllSteps(passed), state

    def samplewise(self, node: Any) -> Any:
        value, module = self.values[node.args[0]], self.plan.modules[node.target]
        if not isinstance(value, AllSteps):
            if not (isinstance(module, SYNAPTIC_LAYERS) or is_watched(module)):
                output = module(value)
                self.call.largest = max(self.call.largest, output.numel() // output.shape[0])
                return output
            # Its cost arises in every step; watched or not, so that sums are rounded alike.
            value = AllSteps(self._of_all_steps(value))
        return AllSteps(watched_call(module, self.call.synapses(node.target, value.values), value.values))

    def flatten(self, node: Any) -> Any:
        value = self.values[node.args[0]]
        return (
            AllSteps(value.values.flatten(node.args[1])) if isinstance(value, AllSteps) else value.flatten(node.args[1])
        )

    def pointwise(self, node: Any) -> Any:
        operands = [self.values[operand] if isinstance(operand, fx.Node) else operand for operand in node.args]
        if not any(isinstance(operand, AllSteps) for operand in operands):
            return node.target(*operands)
        if any(isinstance(operand, Tensor) for operand in operands):
            by_steps = [by_step(o.values, self.steps) if isinstance(o, AllSteps) else o for o in operands]
            return AllSteps(node.target(*by_steps).flatten(0, 1))
        return AllSteps(node.target(*(o.values if isinstance(o, AllSteps) else o for o in operands)))

    def cat(self, node: Any) -> AllSteps:
        return AllSteps(torch.cat([self._of_all_steps(self.values[source]) for source in node.args[0]], node.args[1]))

    def item(self, node: Any) -> Any:
        value = self.values[node.args[0]]
        return self.step_by_step(node) if isinstance(value, (AllSteps, Tensor)) else value[node.args[1]]

    def step_by_step(self, node: Any) -> Any:
        """Compute what may not take steps for further samples, such as a view of a given size."""
        results = []
        for step in range(self.steps):
            values = {source: self._at(self.values[source], step) for source in node.all_input_nodes}
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            if node.op == "call_module":
                with holding_steps(CallSteps(1, self.held.first_step + step)):
                    results.append(self.plan.modules[node.target](*args, **kwargs))
            elif node.op == "call_method":
                results.append(getattr(args[0], node.target)(*args[1:], **kwargs))
            else:
                results.append(node.target(*args, **kwargs))
            if not any(isinstance(self.values[source], AllSteps) for source in node.all_input_nodes):
                return results[0]
        return _joined(results)

    # What they share.

    def _at(self, value: Any, step: int) -> Any:
        """Give what a step sees; contiguous, as `view` wants it."""
        return by_step(value.values, self.steps)[step].contiguous() if isinstance(value, AllSteps) else value

    def _of_all_steps(self, value: Any) -> Tensor:
        """Give a tensor of all steps."""
        if isinstance(value, AllSteps):
            return value.values
        repeated: Tensor = value.expand(self.steps, *value.shape).flatten(0, 1)
        return repeated


def _needs_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _joined(results: list[Any]) -> Any:
    """Put together what steps give: tensors, lists of them, or sizes, which are those of one step."""
    if isinstance(results[0], Tensor):
        return AllSteps(torch.cat(results))
    if isinstance(results[0], (tuple, list)) and results[0] and isinstance(results[0][0], Tensor):
        return [AllSteps(torch.cat(parts)) for parts in zip(*results, strict=True)]
    return results[0]
