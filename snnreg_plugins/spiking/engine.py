"""Runs a spiking network layer by layer, each layer over many time steps at once."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as _module
from torch.utils._python_dispatch import _get_current_dispatch_mode

from snnreg_plugins.frameworks.base import Describe
from snnreg_plugins.functional.synapses import SYNAPTIC_LAYERS, OneToOne
from snnreg_plugins.spiking.coding import PoissonCoder
from snnreg_plugins.spiking.events import EventDriven
from snnreg_plugins.spiking.firing import Firing, is_compilable
from snnreg_plugins.spiking.layers import (
    AdaptiveSumPool,
    ChannelAffine,
    Current,
    InitialState,
    SpikeMaxPool,
    SumOver,
    SumPool,
    by_step,
)
from snnreg_plugins.watching.hooks import sees_many_steps
from snnreg_plugins.watching.steps import CallSteps, holding_steps

# Elements that the largest tensor of a layer may have: few enough to stay in a cache, where there is one to stay in.
_ELEMENTS = {"cpu": 2**21}  # for each thread
_ELEMENTS_ELSEWHERE = 2**27
_TRAINED = 2  # times as many in training, where each part has its own backward pass
_LEAST_ELEMENTS = 2**18
# Modules that treat each sample alone, so that steps can be further samples.
_SAMPLEWISE = (
    *SYNAPTIC_LAYERS,
    AdaptiveSumPool,
    ChannelAffine,
    Current,
    SumOver,
    SumPool,
    nn.Flatten,
    nn.Identity,
    nn.Upsample,
)
_POINTWISE = (operator.add, operator.sub, operator.mul, operator.truediv, operator.neg)
# Held while a module has a forward in place of its own, and to see which it has: threads may share a network.
_FORWARDS = threading.RLock()
# Modules whose output is a tensor of its own, which may be written over.
_FRESH = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, OneToOne, Current)


class AllSteps(NamedTuple):
    """A tensor of every time step: ``(steps * B, ...)``, one step after the other."""

    values: Tensor


def all_modules(module: nn.Module) -> list[nn.Module]:
    """List a module and all in it; ``module.modules()`` takes a while in a network that takes a millisecond."""
    found = [module]
    for part in found:
        found.extend(child for child in part._modules.values() if child is not None)
    return found


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
        and not torch._C._get_tracing_state()
        and torch._C._functorch.peek_interpreter_stack() is None  # of transforms, of parameters too
        and forward_ad._current_level < 0
        and _get_current_dispatch_mode() is None
        and not (_module._global_forward_hooks or _module._global_forward_pre_hooks)
        and not (_module._global_backward_hooks or _module._global_backward_pre_hooks)
        and all(map(sees_many_steps, parts))
    )


class Plan:
    """How to run the time step of a network for many steps: each layer for all of them, then the next layer.

    Synaptic layers take the steps as further samples. Neurons go through the steps in one compiled loop, or with
    operations in place; neurons of an unknown kind, and whatever else may not take steps for samples, step by step.

    Args:
        body: One time step, ``(constants, states) -> (output, states)``.
        describe: From a neuron module to its :class:`Dynamics`.
    """

    def __init__(self, body: fx.GraphModule, describe: Describe) -> None:
        self.body = body
        self.describe = describe
        self.parts = all_modules(body)
        self.modules = dict(body.named_modules(remove_duplicate=False))
        # Spikes that are drawn at random are drawn for a whole batch, as one step at a time draws them.
        self.draws = any(isinstance(module, PoissonCoder) for module in self.modules.values())
        self.sizes: dict[tuple[int, ...], int] = {}  # of the largest tensor of a sample, by the input's shape
        last_use = {source: node for node in body.graph.nodes for source in node.all_input_nodes}
        unused: dict[fx.Node, list[fx.Node]] = {}
        for source, node in last_use.items():
            unused.setdefault(node, []).append(source)
        self._fresh = {node for node in body.graph.nodes if self._is_fresh(node)}
        self.plan = [(node, self._kind(node), unused.get(node, [])) for node in body.graph.nodes]

    def is_of(self, body: fx.GraphModule) -> bool:
        """Tell whether the body still has the modules that this was planned for."""
        parts = all_modules(body)
        return len(parts) == len(self.parts) and all(map(operator.is_, parts, self.parts))

    def _kind(self, node: fx.Node) -> str:
        """Name the method of :class:`Chunk` that computes a node."""
        if node.op in ("placeholder", "get_attr", "output"):
            return node.op
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            if isinstance(module, InitialState):
                return "initial_state"
            if len(node.args) == 1:
                return "samplewise" if isinstance(module, _SAMPLEWISE) else "step_by_step"
            return "max_pool" if isinstance(module, SpikeMaxPool) else "neurons"
        if node.op == "call_function" and node.target in _POINTWISE:
            return "pointwise"
        if node.target in (torch.flatten, "flatten") and len(node.args) == 2 and not node.kwargs:
            return "flatten" if isinstance(node.args[1], int) and node.args[1] > 0 else "step_by_step"
        if node.target is operator.getitem:
            return "item"
        return "cat" if node.target is torch.cat else "step_by_step"

    def may_overwrite(self, source: Any) -> bool:
        """Tell whether a node's tensor is read once, and no view of another one."""
        return source in self._fresh

    def _is_fresh(self, source: fx.Node) -> bool:
        # Initial states look at the shape alone, before neurons write.
        if sum(self._kind(user) != "initial_state" for user in source.users) > 1:
            return False
        if source.op == "call_module":
            return isinstance(self.modules[str(source.target)], _FRESH)
        return source.op == "call_function" and source.target in _POINTWISE


class LayerwiseCall:
    """One call of a network: each layer for some steps, then the next layer.

    Neurons and weights do not change within a call, so what is found out about them serves for all of it.
    """

    def __init__(self, engine: Plan) -> None:
        self.engine = engine
        self.largest = 1
        self._neurons: dict[str, Firing | None] = {}
        self._synapses: dict[str, Callable[[Tensor], Tensor]] = {}

    def split(self, x: Tensor, steps: int, trained: bool) -> tuple[int, int]:
        """Choose how many samples and steps of an input to run at once, by the sizes that earlier calls have shown.

        In training too: tensors of a whole batch are so large that the system maps and clears their memory anew in
        every step. Never one sample where there are more: a DNN that squeezes its tensors takes a batch of one for
        none.
        """
        samples = len(x) if self.engine.draws else 2
        size = self.engine.sizes.get(tuple(x.shape[1:]))
        if size is None:
            return len(x) if trained else samples, steps
        elements = _ELEMENTS.get(x.device.type, _ELEMENTS_ELSEWHERE)
        elements *= (torch.get_num_threads() if x.device.type == "cpu" else 1) * (_TRAINED if trained else 1)
        return max(samples, elements // (size * steps)), max(1, min(steps, elements // size))

    def least(self, x: Tensor, steps: int) -> int:
        """Tell for how many samples it pays at least to run all steps and their gradients."""
        return max(2, _LEAST_ELEMENTS // (self.engine.sizes.get(tuple(x.shape[1:]), 1) * steps))

    def begin(self, encoder: nn.Module, x: Tensor) -> Any:
        """Compute what is the same in all steps."""
        self.shape = tuple(x.shape[1:])
        with holding_steps(CallSteps(1, 0)):
            return encoder(x)

    def __call__(self, constants: Any, states: Any, steps: int, first_step: int) -> tuple[Tensor, Any]:
        """Run some steps: gives the outputs ``(steps, B, ...)``, and the states."""
        run = Chunk(self, constants, states, steps, first_step)
        for node, kind, unused in self.engine.plan:
            value = run.values[node] = getattr(run, kind)(node)
            if isinstance(value, AllSteps):
                self.largest = max(self.largest, value.values.numel() // value.values.shape[0])
            for source in unused:
                del run.values[source]
        output, states = run.outputs
        if isinstance(output, AllSteps):
            return by_step(output.values, steps), states
        return output.expand(steps, *output.shape), states

    def end(self) -> None:
        """Remember how large the tensors were."""
        self.engine.sizes[self.shape] = self.largest

    def neurons(self, name: str) -> Firing | None:
        """Give a neuron layer ready to fire, None if it is to be called step by step."""
        if name not in self._neurons:
            module = self.engine.modules[name]
            with _FORWARDS:
                own = "forward" in vars(module)
            dynamics = None if own else self.engine.describe(module)
            self._neurons[name] = None if dynamics is None else Firing(dynamics)
        return self._neurons[name]

    def synapses(self, name: str, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Give what computes a layer."""
        if name not in self._synapses:
            module = self.engine.modules[name]
            trained = _needs_gradient(x, *module.parameters())
            with _FORWARDS:
                by_events = not trained and EventDriven.takes(module, x)
                self._synapses[name] = EventDriven(module) if by_events else module.forward
        return self._synapses[name]


class Chunk:
    """The values of one run of some steps."""

    def __init__(self, call: LayerwiseCall, constants: Any, states: Any, steps: int, first_step: int) -> None:
        self.call = call
        self.engine = call.engine
        self.given = {"constants": constants, "states": states}
        self.steps = steps
        self.fold = CallSteps(steps, first_step)
        self.values: dict[fx.Node, Any] = {}
        self.outputs: Any = None

    # One method for each kind of node.

    def placeholder(self, node: fx.Node) -> Any:
        return self.given[str(node.target)]

    def output(self, node: Any) -> Any:
        self.outputs = fx.map_arg(node.args[0], self.values.__getitem__)

    def get_attr(self, node: fx.Node) -> Any:
        return operator.attrgetter(str(node.target))(self.engine.body)

    def initial_state(self, node: Any) -> Any:
        state = self.values[node.args[0]]
        return self.engine.modules[node.target] if state is None else state

    def neurons(self, node: Any) -> tuple[AllSteps, Any]:
        current, state = (self.values[source] for source in node.args)
        module = self.engine.modules[node.target]
        firing = self.call.neurons(node.target)
        if firing is None:
            return self._in_turn(module, current, state)
        currents = current.values if isinstance(current, AllSteps) else current
        if is_compilable(currents) and currents.dim() == 4:
            # So that a spike adds weights to a run of outputs, and all layers from here on are laid out alike.
            currents = currents.contiguous(memory_format=torch.channels_last)
        if isinstance(state, InitialState):
            sample = currents[: len(currents) // self.steps] if isinstance(current, AllSteps) else currents
            state = torch.empty_like(sample).copy_(state.potential.expand_as(sample))
        overwrite = self.engine.may_overwrite(node.args[0])

        def run(currents: Tensor) -> tuple[Tensor, Tensor]:
            if _needs_gradient(currents, state):
                return firing.with_gradient(currents, state, self.steps)
            return firing(currents, state, self.steps, overwrite), state

        spikes, state = self._call(module, run, currents)
        return AllSteps(spikes), state

    def _in_turn(self, module: nn.Module, current: Any, state: Any) -> tuple[AllSteps, Any]:
        """Call a module that takes and gives a state, step by step."""
        outputs = []
        for step in range(self.steps):
            value = self._at(current, step)
            if isinstance(state, InitialState):
                state = state(None, value)
            with holding_steps(CallSteps(1, self.fold.first_step + step)):
                output, state = module(value, state)
            outputs.append(output)
        return AllSteps(torch.cat(outputs)), state

    def max_pool(self, node: Any) -> tuple[AllSteps, Any]:
        current, state = (self.values[source] for source in node.args)
        module = self.engine.modules[node.target]
        passed, state = module.over_steps(self._folded(current), self.steps, state)
        return AllSteps(passed), state

    def samplewise(self, node: Any) -> Any:
        value, module = self.values[node.args[0]], self.engine.modules[node.target]
        if not isinstance(value, AllSteps):
            if not isinstance(module, SYNAPTIC_LAYERS):
                return module(value)
            value = AllSteps(self._folded(value))  # its cost arises in every step
        return AllSteps(self._call(module, self.call.synapses(node.target, value.values), value.values))

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
            unfolded = [by_step(o.values, self.steps) if isinstance(o, AllSteps) else o for o in operands]
            return AllSteps(node.target(*unfolded).flatten(0, 1))
        return AllSteps(node.target(*(o.values if isinstance(o, AllSteps) else o for o in operands)))

    def cat(self, node: Any) -> AllSteps:
        return AllSteps(torch.cat([self._folded(self.values[source]) for source in node.args[0]], node.args[1]))

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
                with holding_steps(CallSteps(1, self.fold.first_step + step)):
                    results.append(self.engine.modules[node.target](*args, **kwargs))
            elif node.op == "call_method":
                results.append(getattr(args[0], node.target)(*args[1:], **kwargs))
            else:
                results.append(node.target(*args, **kwargs))
            if not any(isinstance(self.values[source], AllSteps) for source in node.all_input_nodes):
                return results[0]
        return _joined(results)

    # What they share.

    def _call(self, module: nn.Module, compute: Callable[..., Any], *args: Any) -> Any:
        """Call a module that is computed in another way than by its own forward, with its hooks."""
        if not (module._forward_hooks or module._forward_pre_hooks):
            return compute(*args)
        with _FORWARDS:
            own = vars(module).get("forward")
            module.forward = compute
            try:
                with holding_steps(self.fold):
                    return module(*args)
            finally:
                del module.forward
                if own is not None:
                    module.forward = own

    def _at(self, value: Any, step: int) -> Any:
        """Give what a step sees; contiguous, as `view` wants it."""
        return by_step(value.values, self.steps)[step].contiguous() if isinstance(value, AllSteps) else value

    def _folded(self, value: Any) -> Tensor:
        """Give a tensor of all steps."""
        if isinstance(value, AllSteps):
            return value.values
        folded: Tensor = value.expand(self.steps, *value.shape).flatten(0, 1)
        return folded


def _needs_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _joined(results: list[Any]) -> Any:
    """Put together what steps give: tensors, lists of them, or sizes, which are those of one step."""
    if isinstance(results[0], Tensor):
        return AllSteps(torch.cat(results))
    if isinstance(results[0], (tuple, list)) and results[0] and isinstance(results[0][0], Tensor):
        return [AllSteps(torch.cat(parts)) for parts in zip(*results, strict=True)]
    return results[0]
