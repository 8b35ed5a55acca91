"""Whether the traced network computes what the user's model does when it is called."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from snnreg_plugins._models import device_of, eval_and_back, kept_as_it_is
from snnreg_plugins._torch import hooks_after, hooks_before
from snnreg_plugins.export.calibrate import run_on_calibration
from snnreg_plugins.export.copies import is_folded, unwrapped
from snnreg_plugins.export.refusals import ConversionError
from snnreg_plugins.export.trace import TRACING, trace
from snnreg_plugins.watching.hooks import Watcher, unwatched

# The traced network does the same operations in the same order, but for batch norms in the weights: what differs is
# rounding, a few units in the last place of the type.
_TOLERANCE, _UNITS = 1e-3, 8
_ANOTHER_SEED = 20_220_401
_COMPARED = 64  # samples, at most


def compared(
    model: nn.Module, traced: fx.GraphModule, inputs: Iterable[Tensor], seen: Callable[[Tensor], Tensor]
) -> Iterator[Tensor]:
    """Walk inputs; :func:`require_same` on what the model sees of the first of them."""
    for index, batch in enumerate(inputs):
        if index == 0:
            require_same(model, traced, seen(batch[:_COMPARED]))
        yield batch


def traced_faithfully(model: nn.Module, inputs: Tensor, until: str | None = None) -> fx.GraphModule:
    """Trace a model, and make sure that the result computes what the model does.

    Args:
        model: See :func:`~snnreg_plugins.export.trace.trace`.
        inputs: Inputs ``(B, ...)``, on any device.
        until: See there.

    Raises:
        ConversionError: See there and :func:`require_same`.
    """
    inputs = inputs[:_COMPARED].to(device_of(model))
    with TRACING, torch.autocast(inputs.device.type, enabled=False):
        traced = trace(model, two_of(inputs), until, "data")
        require_same(model, traced, inputs, "data")
    return traced


def two_of(inputs: Tensor) -> Tensor:
    """Give the first input twice: with one alone, ``squeeze()`` would take the batch away."""
    return inputs[:1].repeat_interleave(2, 0)


def require_same(model: nn.Module, traced: fx.GraphModule, inputs: Tensor, argument: str = "calibration") -> None:
    """Compare what a traced network gives with what the model gives when it is called as its user calls it.

    The model is called in eval mode, with its hooks, and left as it was; what of this package watches it sees nothing.

    Args:
        model: What was traced.
        traced: Its trace.
        inputs: Inputs ``(B, ...)``.
        argument: Name of the argument that they are from, for errors.

    Raises:
        ValueError: If the inputs do not fit the model.
        ConversionError: If they differ; names what is in the way.
    """
    model = unwrapped(model)
    if len(inputs) == 2:  # as many as were traced
        inputs = inputs.repeat_interleave(2, 0)
    with (
        eval_and_back(model),
        kept_as_it_is(model),
        unwatched(),
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),
    ):
        torch.default_generator.manual_seed(_ANOTHER_SEED)  # than tracing had
        expected = run_on_calibration(model, inputs.clone(), argument)
        found = _found(model, traced, inputs)
    if isinstance(expected, Tensor) and expected.shape == found.shape:
        off = _difference(expected, found)
        if off <= max(_TOLERANCE, _UNITS * torch.finfo(found.dtype).eps):
            return
        how = f"its outputs differ by {off:.2g} of their spread"
    else:
        shape = tuple(expected.shape) if isinstance(expected, Tensor) else type(expected).__name__
        how = f"it gives {tuple(found.shape)} for {shape}"
    reasons = [*in_the_way(model)] or [
        "random numbers or a state kept in forward(), or another way that it takes for these inputs than for the first "
        "sample, by their values or the size of the batch"
    ]
    raise ConversionError(
        f"{type(model).__name__} computes something else when it is called than the network that would be exported: "
        f"{how}. In the way: {'; '.join(reasons)}. Put what that computes into layers that forward() calls, or take it "
        "away before the export."
    )


def _found(model: nn.Module, traced: fx.GraphModule, inputs: Tensor) -> Tensor:
    try:
        found: Tensor = traced(inputs.clone())
    except (RuntimeError, ValueError, IndexError) as error:
        raise ConversionError(
            f"{type(model).__name__} takes a batch of shape {tuple(inputs.shape)}, but what was traced on another "
            f"number of samples does not: {error}. Take the size of the batch from the input, as in "
            "`x.view(x.size(0), -1)`, and do not branch on it."
        ) from error
    return found


def _difference(expected: Tensor, found: Tensor) -> float:
    """Give the largest difference, in units of the spread (or the size, of one number) of what is expected."""
    if not expected.numel():
        return 0.0
    expected, found = expected.double(), found.double()
    spread = float(expected.std(correction=0)) or float(expected.abs().max()) or 1.0
    off = float((expected - found).abs().max())
    return off / spread if off == off else (0.0 if torch.equal(expected.isnan(), found.isnan()) else float("inf"))


def in_the_way(model: nn.Module) -> Iterator[str]:
    """Name what of a model acts when it is called, and is not part of any layer's forward."""
    for name, module in model.named_modules():
        layer = f"layer {name!r}" if name else type(model).__name__
        for kind, hooks in (("pre-hook", hooks_before(module)), ("hook", hooks_after(module))):
            for hook in hooks:
                if not isinstance(hook, Watcher) and not is_folded(hook):
                    yield f"a forward {kind} of {layer} ({_called(hook)})"
        if "forward" in vars(module):
            yield f"a forward of its own on {layer} ({_called(vars(module)['forward'])})"


def _called(hook: Any) -> str:
    function = getattr(hook, "func", hook)
    return getattr(function, "__qualname__", type(function).__name__)
