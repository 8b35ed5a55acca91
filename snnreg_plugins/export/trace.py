"""From a user's model to a plain graph of modules: traced, functional activations as modules, sums in one form."""

from __future__ import annotations

import traceback
from typing import Any

import torch
from torch import fx, nn

from snnreg_plugins.export.copies import synaptic_base, unwrapped
from snnreg_plugins.export.normalize import normalized
from snnreg_plugins.export.qcfs import QCFS
from snnreg_plugins.export.refusals import ConversionError, is_users
from snnreg_plugins.functional.synapses import is_synaptic
from snnreg_plugins.spiking.network import SpikingNetwork


def trace(model: nn.Module, until: str | None = None) -> fx.GraphModule:
    """Trace a model to a graph whose every computation is a supported module, arithmetic, or moves values only.

    The result computes what the model does in eval mode: functional activations and pools have become modules,
    dropout is gone, a module called twice has become two. It shares nothing with the model, which is left as it was.

    Args:
        model: A network, a LightningModule with ``forward(x)``, or either wrapped by ``torch.compile`` or DDP.
        until: The last layer to convert, by name, or a block of layers. What depends on it may compute anything; its
            nodes have ``node.meta["head"]``, and the layer's node has ``node.meta["cut"]``. The node of an activation
            has ``node.meta["populations"]``, by the name that their neurons get; the input ``node.meta["name"]``.

    Raises:
        TypeError: If ``model`` is no module.
        ValueError: If there is no layer ``until``.
        ConversionError: If the model cannot be traced or holds something unsupported; names the layer and the
            line in the user's code, and says what to do.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected argument `model` to be a torch.nn.Module, but got {type(model).__name__}.")
    if any(isinstance(module, SpikingNetwork) for module in model.modules()):
        raise ConversionError(f"{type(model).__name__} holds a spiking network already. Pass the DNN it was made from.")
    model = unwrapped(model)
    # All attributes: a forward that keeps what it computed would keep what tracing puts in its place.
    before = [(module, module.training, vars(module).copy()) for module in model.modules()]
    try:
        for module, _, _ in before:
            module.training = False  # directly: `eval()` may be overridden
        # Parameters of a traced copy are to be trained, also when validation runs in inference mode.
        with torch.inference_mode(False), torch.no_grad():
            return normalized(model, _traced(_Tracer(), model), until)
    finally:
        for module, mode, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)
            module.training = mode


class _Tracer(fx.Tracer):
    record_stack_traces = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # A subclass of a synaptic layer with a forward of its own is looked into, and so never mistaken for one.
        if is_synaptic(m):
            base = synaptic_base(m)
            own = [getattr(type(m), name, None) is getattr(base, name, None) for name in ("forward", "_conv_forward")]
            return all(own)
        return type(m) is QCFS or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Past the module's hooks, which expect tensors, and past torch.compile, which cannot be traced.
        m = unwrapped(m)
        return super().call_module(m, m.forward, args, kwargs)


def _traced(tracer: fx.Tracer, model: nn.Module) -> fx.Graph:
    name = type(model).__name__
    owner = next(base for base in type(model).__mro__ if "forward" in vars(base))
    if owner is nn.Module or owner.__name__ == "LightningModule":
        raise ConversionError(f"{name} has no forward() to trace. Pass the network itself, such as `model.net`.")
    try:
        graph = tracer.trace(model)
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_users(frame.filename)]
        where = f" at {frames[-1].filename}:{frames[-1].lineno} ({frames[-1].line})" if frames else ""
        raise ConversionError(
            f"{name} cannot be traced by torch.fx{where}: {error}. Move data-dependent control flow (if, for, len over "
            "tensors) out of forward(), or export the part of the network without it."
        ) from error
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    for node in inputs[1:]:
        if node.users:
            raise ConversionError(
                f"{name}.forward takes {len(inputs)} inputs, but a spiking network has one. Wrap the model in a module "
                "whose forward(x) takes one tensor."
            )
        graph.erase_node(node)
    return graph
