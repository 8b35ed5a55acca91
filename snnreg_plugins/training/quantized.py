"""ReLU modules exchanged for quantized activations, within a model that somebody else made."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, fx, nn
from torch.nn import functional as F

from snnreg_plugins._checks import matching
from snnreg_plugins._models import device_of, dtype_of, kept_as_it_is
from snnreg_plugins.export.copies import unwrapped
from snnreg_plugins.export.qcfs import QCFS
from snnreg_plugins.export.refusals import where
from snnreg_plugins.spiking.network import SpikingNetwork
from snnreg_plugins.watching.hooks import notice_new_hooks

_FUNCTIONS = (F.relu, F.relu_, torch.relu, torch.relu_)
_METHODS = ("relu", "relu_")


def exchange_relus(model: nn.Module, make: Callable[[], QCFS], patterns: list[str] | None = None) -> dict[str, QCFS]:
    """Exchange the ReLU modules of a model, and return all its QCFS modules by name.

    A spiking network is left alone. Functional ReLUs cannot be exchanged, and are warned of if all were meant.

    Args:
        model: Changed in place.
        make: Makes a QCFS; it takes device, dtype and mode from the model.
        patterns: Of the names of the modules to exchange, all if None.

    Raises:
        ValueError: If there is none to exchange, or a pattern matches none.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> exchange_relus(model, lambda: QCFS(levels=4))
        {'1': QCFS(levels=4)}
    """
    if any(isinstance(module, SpikingNetwork) for module in model.modules()):
        return {}  # exported already
    relus = {name: module for name, module in model.named_modules() if _is_relu(module)}
    chosen = matching("layers", patterns, [*relus, *quantized(model)], "a ReLU")
    if not chosen:
        raise ValueError(
            f"Expected nn.ReLU modules to exchange, but {type(model).__name__} has none. Use nn.ReLU modules in "
            "place of F.relu and torch.relu, and make them in __init__, not in setup() or configure_model()."
            + "".join(_functional_relus(model))
        )
    if relus:
        functional = _functional_relus(model)
        if functional and patterns is None:
            rank_zero_warn(
                "QCFSActivations exchanges nn.ReLU modules alone. Use them in place of the functional ReLUs, which "
                f"stay as they are:{''.join(functional)}"
            )
        _replace(model, {relus[name] for name in chosen if name in relus}, make)
        notice_new_hooks()
    return quantized(model)


def quantized(model: nn.Module) -> dict[str, QCFS]:
    """Find the QCFS modules of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QCFS)}


def average_observed(modules: Iterable[QCFS], mean: Callable[[Tensor], Tensor]) -> None:
    """Have all processes go on from the mean of what each has observed.

    Args:
        modules: In the same order in all processes.
        mean: Gives the mean of a tensor over processes.
    """
    modules = list(modules)
    means = mean(torch.stack([module.observed for module in modules]))
    for module, value in zip(modules, means, strict=True):
        module.observed.copy_(value)


def _replace(model: nn.Module, relus: set[nn.Module], make: Callable[[], QCFS]) -> None:
    device, dtype = device_of(model), dtype_of(model)
    made: dict[nn.Module, QCFS] = {}  # a shared ReLU becomes a shared QCFS
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module in relus:
            if module not in made:
                made[module] = make().to(device, dtype).train(module.training)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, made[module])


def _is_relu(module: nn.Module) -> bool:
    # A subclass with a forward of its own is another activation.
    return isinstance(module, nn.ReLU) and type(module).forward is nn.ReLU.forward


def _functional_relus(model: nn.Module) -> list[str]:
    """Find the lines of the user's code with functional ReLUs, as far as the model can be traced."""
    try:
        with kept_as_it_is(model):
            graph = _Tracer().trace(model)
    except Exception:
        return []  # only a hint is lost
    lines = [
        where(node)
        for node in graph.nodes
        if (node.op == "call_function" and node.target in _FUNCTIONS)
        or (node.op == "call_method" and node.target in _METHODS)
    ]
    return list(dict.fromkeys(lines))


class _Tracer(fx.Tracer):
    record_stack_traces = True

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Past the module's hooks, which expect tensors, and past torch.compile, which cannot be traced.
        m = unwrapped(m)
        return super().call_module(m, m.forward, args, kwargs)
