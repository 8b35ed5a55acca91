"""What a network learns from another one, from the first to the last batch of a training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.hooks import RemovableHandle

from snnreg_plugins._batches import mean_frame
from snnreg_plugins._lightning import runs_a_step
from snnreg_plugins._models import dtype_of
from snnreg_plugins._torch import checkpoint_in_forward, is_in_backward, is_transformed, without_modes
from snnreg_plugins.functional.distillation import LogitLoss, kl_of_logits, l2_of_logits, mean_square, prefix_means
from snnreg_plugins.spiking.network import SpikingNetwork
from snnreg_plugins.training.carried import Call, Carrier, Carry, Graph, Logged
from snnreg_plugins.training.layer_means import LayerMeans
from snnreg_plugins.watching.hooks import Hooks, notice_new_hooks, uncompiled
from snnreg_plugins.watching.layers import spikes_already
from snnreg_plugins.watching.samples import tensors_in

#: What calls of the LightningModule itself are named in errors.
FORWARD = "forward()"

LOSSES: dict[str, Callable[[float], LogitLoss]] = {
    "kl": lambda temperature: partial(kl_of_logits, temperature=temperature),
    "l2": lambda temperature: l2_of_logits,
}


@dataclass(frozen=True)
class Aims:
    """What a student is to match, and how much each part counts.

    Args:
        loss: Compares the logits; a key of :data:`LOSSES`, None if they are not compared.
        alpha: Share of that in the whole, the user's own loss having the rest.
        temperature: Of the logits.
        every_step: Whether the means of the student's outputs over the steps so far are to match, at every step.
        time_dim: Dimension of time in outputs ``(T, B, K)`` or ``(B, T, K)`` of single steps.
        layers: From a layer of the student to one of the teacher that it is to match.
        layer_strength: Factor of each layer.
        logit_strength: Factor of the mean square of the student's logits.
    """

    loss: str | None
    alpha: float
    temperature: float
    every_step: bool
    time_dim: int | None
    layers: Mapping[str, str]
    layer_strength: float
    logit_strength: float

    @property
    def needs_teacher(self) -> bool:
        """Whether there is anything to match."""
        return self.loss is not None or bool(self.layers)


class Teacher:
    """A frozen copy of a network, in eval mode, that nobody else sees.

    Args:
        network: The network; it stays as it is.
        layers: Names of its layers that are to be matched.
        ask: From the copy and the arguments of the student's call to its outputs.
    """

    def __init__(self, network: nn.Module, layers: list[str], ask: Callable[..., Any]) -> None:
        self.network = copy.deepcopy(network).eval()
        self.layers = LayerMeans(self.network, layers, "teacher")
        self._ask = ask

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, dict[str, Tensor]]:
        """Give its outputs, and the means of its layers."""
        self.layers.begin()
        try:
            with torch.no_grad():
                outputs = self._ask(self.network, *args, **kwargs)
        except TypeError as error:
            raise TypeError(
                f"The teacher {type(self.network).__name__} could not be asked what the student was: {error}. Override "
                "Distillation.teach(teacher, *args, **kwargs) to call it with something else."
            ) from error
        finally:
            self.layers.end()
        return outputs, self.layers.means()


@dataclass
class _Call:
    """A call of the student that is under way."""

    outermost: bool
    asked: bool = False  # for the scores of every step, which who calls did not ask for


@dataclass
class Found:
    """What the first batches show of the student, so that nothing is lost without a word."""

    looking: bool = True  # until everything is said
    passes: int = 0  # backward passes seen
    called: dict[str, None] = field(default_factory=dict)
    ungraded: bool = False  # called without gradients
    fixed: bool = False  # gave what depends on no parameter
    learned: bool = False  # gave what a loss may depend on
    reached: bool = False  # by a backward pass

    def why_nothing(self, students: Iterable[str], children: Iterable[str]) -> str:
        """Say why no backward pass reached the student, and what to do.

        Args:
            students: Who might have been it.
            children: Names of the networks that may be named.
        """
        names = " or ".join(students)
        name = f"Name the network whose outputs training_step() uses by the argument `student`, one of {list(children)}"
        if self.learned:
            return f"no loss depends on what {names} gives. {name}."
        if self.fixed:
            return f"what {names} gives depends on no trained parameter. Train some, or name another by `student`."
        if self.ungraded:
            return f"{names} is called without gradients alone. Call it with gradients, or name another by `student`."
        return f"training_step() does not call {names}. {name}."


class Distilled:
    """The student of :class:`~snnreg_plugins.Distillation`: seen, compared, and its lesson carried and summed up.

    Args:
        students: The modules whose outermost calls are the student's, by what they are called in errors. Only one of
            them may be called.
        layers: Where the student's layers are looked for.
        teacher: Who is matched; None if nobody.
        aims: What is matched.
        readout: From what student or teacher returns to logits.
    """

    def __init__(
        self,
        students: Mapping[str, nn.Module],
        layers: nn.Module,
        teacher: Teacher | None,
        aims: Aims,
        readout: Callable[[Any], Any],
    ) -> None:
        self.active = False
        self.ran_backward = False  # in this batch
        self.found = Found()
        self.teacher = teacher
        self._aims, self._readout = aims, readout
        self._loss = None if aims.loss is None else LOSSES[aims.loss](aims.temperature)
        self._factor = 0.0
        self._carrier, self._logged = Carrier(), Logged()
        self._calls: list[_Call | None] = []  # under way
        self._earlier: list[Graph] = []  # of spiking students, in this batch, as long as is looked
        self._lessened: RemovableHandle | None = None  # the user's loss, in a backward pass
        self._layers = LayerMeans(layers, list(aims.layers), "student")
        self._hooks = Hooks(many_steps=True)
        notice_new_hooks()
        for name, module in students.items():
            self._hooks.around(module, self._enter, partial(self._leave, name))

    def start_batch(self, factor: float) -> None:
        """Have the forward passes to come carry a lesson times a factor."""
        self._factor = factor
        self.active = factor > 0
        self.ran_backward = False
        self._calls, self._earlier = [], []
        self._carrier.start_batch()

    def end_batch(self) -> None:
        """Let the forward passes to come, as those of validation, be."""
        self.active = False
        self._earlier = []

    # A call of the student.

    @uncompiled
    def _enter(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not self.active or runs_a_step(module):
            self._calls.append(None)
            return None
        call = _Call(outermost=not any(call is not None for call in self._calls))
        self._calls.append(call)
        if not call.outermost or not torch.is_grad_enabled():
            return None
        if not is_in_backward():
            self._layers.begin()
        own = isinstance(module, SpikingNetwork) and len(args) < 2 and "per_step" not in kwargs
        if not (self._aims.every_step and own and any(weight.requires_grad for weight in module.parameters())):
            return None
        call.asked = True
        return args, {**kwargs, "per_step": True}

    @uncompiled
    def _leave(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        call = self._calls.pop() if self._calls else None
        if call is None or not call.outermost:
            return None
        self._layers.end()
        if output is None:  # also where forward raised
            return None
        returned = output[-1] if call.asked else output
        if is_in_backward():  # computed again, for what is saved of it
            return returned
        if not torch.is_grad_enabled():
            self._refuse_reentrant(name)
            self.found.ungraded = True
            return None
        self._saw(name)
        return self._taught(name, module, (args, kwargs), output, returned)

    def _saw(self, name: str) -> None:
        self.found.called[name] = None
        if len(self.found.called) > 1:
            raise MisconfigurationException(
                "Distillation finds two that may be the student: training_step() calls "
                f"{' and '.join(self.found.called)}. Name the one whose outputs are to match the teacher's, such as "
                f"Distillation(student={_named(self.found.called)})."
            )

    @staticmethod
    def _refuse_reentrant(name: str) -> None:
        if checkpoint_in_forward() is not None:
            raise MisconfigurationException(
                f"Distillation cannot serve {name} within a reentrant checkpoint, where it is computed without "
                "gradients. Use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)."
            )

    def _taught(self, name: str, module: nn.Module, given: tuple[Any, Any], output: Any, returned: Any) -> Any:
        """Put the lesson of a call on the way of its gradient."""
        ways = {id(tensor): tensor for tensor in tensors_in(returned) if tensor.requires_grad}
        if not ways:
            if not any(True for _ in tensors_in(returned)):
                raise MisconfigurationException(
                    f"Distillation expects tensors, which tuples, lists and dicts may hold, but {name} gives "
                    f"{type(returned).__name__}. Name a module that gives such, by the argument `student`."
                )
            self.found.fixed = True
            return returned
        if is_transformed():
            raise MisconfigurationException(
                f"Distillation cannot serve {name} within a transform of torch.func (grad, vmap, jacrev). Use "
                "torch.autograd.grad there."
            )
        self._require_all_steps(name, module, next(iter(ways.values())))
        # Hooks that do nothing, on top of those of a checkpoint around, which must not see these tensors.
        with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor), without_modes():
            parts = list(self._parts(name, module, self._asked(module, *given), output))
        self.found.learned = True
        keys, tensors = list(ways), tuple(ways.values())
        for part, strength, value, samples in parts:
            lesson = Call(part, part, float(samples), strength, value.detach())
            carried = Carry.apply(tensors[0], value, self._carrier, lesson, *tensors[1:])
            tensors = carried if isinstance(carried, tuple) else (carried,)
        # Copies, as views of a function's result cannot be changed in place.
        return _replaced(returned, {key: tensor.clone() for key, tensor in zip(keys, tensors, strict=True)})

    def _require_all_steps(self, name: str, module: nn.Module, output: Tensor) -> None:
        """Refuse a network that is stepped through time from outside, whose outputs are no logits yet."""
        if not self.found.looking or isinstance(module, SpikingNetwork) or not spikes_already(module):
            return
        graph = Graph(output)
        if any(graph.shares_with(earlier) for earlier in self._earlier):
            raise MisconfigurationException(
                f"Distillation takes each call of {name} for logits, but it goes on from the states that an earlier "
                "call left, as where it is called once a time step. Name a module whose forward runs all steps, by "
                "the argument `student`; of one that returns the outputs of all, (T, B, K), give time_dim=0."
            )
        self._earlier.append(graph)

    def _parts(
        self, name: str, module: nn.Module, given: tuple[Any, Any], output: Any
    ) -> Iterator[tuple[str, float, Tensor, int]]:
        """Name, strength and value of each part of a lesson, and its samples."""
        aims = self._aims
        steps, logits = self._read(name, output, isinstance(module, SpikingNetwork))
        if aims.logit_strength:
            yield "mean_square", aims.logit_strength, mean_square(logits), len(logits)
        if self.teacher is None:
            return
        answer, taught = self.teacher(*given)
        if self._loss is not None:
            wanted = self._read("the teacher", answer, False)[1]
            self._require_comparable(name, logits, wanted)
            if steps is None:
                value = self._loss(logits, wanted)
            else:
                value = self._loss(steps.flatten(0, 1), wanted.expand(len(steps), *wanted.shape).flatten(0, 1))
            yield "logits", aims.alpha, value, len(logits)
        layers = self._layers.means()
        for layer, model in aims.layers.items():
            mine, theirs = layers[layer], taught[model]
            if mine.shape != theirs.shape:
                raise MisconfigurationException(
                    f"Expected argument `layers` to pair layers of the same shape, but {layer!r} gives "
                    f"{tuple(mine.shape)}, and {model!r} of the teacher {tuple(theirs.shape)}."
                )
            yield f"layers/{layer}", aims.layer_strength, l2_of_logits(mine, theirs), len(mine)

    def _asked(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Give what the teacher is asked: what the student was, but for what only spiking networks understand."""
        if not isinstance(module, SpikingNetwork) or self.teacher is None:
            return args, kwargs
        x, _, time_dim = _as_in_forward(*args, **{"time_dim": None, **kwargs})
        time_dim = module.time_dim if time_dim is None else time_dim
        if spikes_already(self.teacher.network):
            own = isinstance(self.teacher.network, SpikingNetwork)
            return (x,), ({"time_dim": time_dim} if own else {})
        return (mean_frame(x, time_dim, dtype_of(self.teacher.network)),), {}

    def _read(self, name: str, output: Any, running: bool) -> tuple[Tensor | None, Tensor]:
        """Give the means of the outputs over the steps so far, ``(T, B, K)``, where asked for; and the logits.

        Args:
            name: Whose output it is.
            output: The output.
            running: Whether three dimensions are such means already.
        """
        logits, dim = self._readout(output), self._aims.time_dim
        steps = None
        if isinstance(logits, Tensor) and logits.dim() == 3 and (running or dim is not None):
            steps = logits if running else prefix_means(logits.movedim(dim or 0, 0))
            logits = steps[-1]
        if not isinstance(logits, Tensor) or logits.dim() != 2 or not logits.is_floating_point():
            got = f"a tensor {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise MisconfigurationException(
                f"Distillation expects logits (B, K), but {name} gives {got}. Override Distillation.readout(outputs) "
                "to make them of what it returns, give time_dim=0 or 1 where that is (T, B, K) or (B, T, K), or name "
                "another module by the argument `student`."
            )
        every = self._aims.every_step and name != "the teacher"
        if every and steps is None:
            raise MisconfigurationException(
                f"Expected the outputs of every step for every_step=True, (T, B, K), but {name} gives "
                f"{tuple(logits.shape)}. Name the SpikingNetwork by the argument `student`, or give time_dim=0 or 1 "
                "where a network of yours returns the outputs of single steps."
            )
        return (steps if every else None), logits

    def _require_comparable(self, name: str, logits: Tensor, wanted: Tensor) -> None:
        if logits.shape != wanted.shape:
            raise MisconfigurationException(
                f"Expected a teacher with the student's classes, but {name} gives logits {tuple(logits.shape)}, and "
                f"the teacher {tuple(wanted.shape)}."
            )
        if self._aims.loss == "kl" and logits.shape[1] == 1:
            raise MisconfigurationException(
                "The gradient of loss='kl' is 0 for a single logit, as in binary classification or regression: a "
                "softmax of it is 1. Use loss='l2'."
            )
        if self.found.looking and bool(wanted.isnan().any()):
            raise MisconfigurationException("The teacher gives nan for the first batch. Check its weights and inputs.")

    # A backward pass.

    def start_backward(self, loss: Tensor, scale: float, multiplied: bool = False) -> None:
        """Let the lesson's gradient in, and lessen that of the user's loss.

        Args:
            loss: What goes into the backward pass.
            scale: What it was multiplied by, and the lesson is to be.
            multiplied: Whether it may be multiplied once more on its way.
        """
        self.ran_backward = True
        self.found.passes += 1
        graph = self._carrier.start(loss, self._factor * scale, multiplied)
        self.found.reached |= bool(self._carrier.calls)
        if self._loss is not None and self._carrier.is_in(graph):
            rest = 1.0 - self._factor * self._aims.alpha
            # Of this one pass. A hook leaves the value as it is.
            lessen: Any = loss.register_hook
            self._lessened = lessen(lambda gradient: gradient * rest)

    def end_backward(self) -> None:
        """Sum up what is to be logged, and let no more of the gradient in."""
        if self._lessened is not None:
            self._lessened.remove()
            self._lessened = None
        self._logged.add(self._carrier, self._factor)
        self._carrier.end()

    @property
    def missed_backward(self) -> bool:
        """Whether there was a backward pass in this batch that :meth:`start_backward` was not told of."""
        return self._carrier.ran_without_scale and not self.ran_backward

    @property
    def went_past(self) -> bool:
        """Whether there was one in this batch, beside others, that gave gradients to parameters."""
        return self._carrier.collected_without_scale

    def end_epoch(self) -> dict[str, Tensor]:
        """Give the means over the backward passes since the last call, by part, and in total under ``""``."""
        means, self._logged = self._logged.means(), Logged()
        return means

    def remove(self) -> None:
        """Look on no longer."""
        self._hooks.remove()
        self._layers.remove()
        self._carrier, self._calls, self.teacher = Carrier(), [], None


def _as_in_forward(x: Any, per_step: bool = False, time_dim: int | None = None) -> tuple[Any, bool, int | None]:
    """Arguments of :meth:`SpikingNetwork.forward` in their order."""
    return x, per_step, time_dim


def _replaced(values: Any, tensors: Mapping[int, Tensor]) -> Any:
    """Give the same, with other tensors in place of some, by their ``id``."""
    if isinstance(values, Tensor):
        return tensors.get(id(values), values)
    if isinstance(values, Mapping):
        changed: Any = copy.copy(values)  # keeps its class, which may give attributes
        for key, value in values.items():
            changed[key] = _replaced(value, tensors)
        return changed
    if isinstance(values, (tuple, list)):
        parts = [_replaced(value, tensors) for value in values]
        return type(values)(*parts) if hasattr(values, "_fields") else type(values)(parts)
    return values


def _named(called: Iterable[str]) -> str:
    return next((name for name in called if name != FORWARD), FORWARD)
