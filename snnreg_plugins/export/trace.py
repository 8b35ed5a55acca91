"""From a user's model to a plain graph of modules: traced, functional activations as modules, sums in one form."""

from __future__ import annotations

import operator
import traceback
from typing import Any

import torch
from torch import fx, nn

from snnreg_plugins.export.copies import add_submodule, bare_copy, synaptic_base, unwrapped
from snnreg_plugins.export.forms import (
    ARITHMETIC,
    AS_MODULE,
    DROPOUT_FUNCTIONS,
    DROPPED,
    KEPT,
    function_name,
    is_size,
    is_value,
    moves_values,
)
from snnreg_plugins.export.names import Names
from snnreg_plugins.export.qcfs import QCFS
from snnreg_plugins.export.rectifiers import ENDINGS, RECTIFIERS, Population, populations
from snnreg_plugins.export.refusals import ConversionError, is_users, refusal
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
            return _normalized(model, _traced(_Tracer(), model), until)
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


def _normalized(model: nn.Module, graph: fx.Graph, until: str | None) -> fx.GraphModule:
    """Check every node, and rebuild the graph on modules of its own."""
    named = dict(model.named_modules())
    own = nn.Module()  # holds the new modules at the user's names
    names: list[str] = []
    users = {_users_name(node) for node in graph.nodes if node.op == "call_module"}
    free = Names(users)
    constants, constant_names = free.free("constants"), Names()
    held: dict[str, str] = {}
    block = [node for node in graph.nodes if node.op == "call_module" and f"{node.target}.".startswith(f"{until}.")]
    cut = block[-1] if block and until not in [str(node.target) for node in block] else None
    for node in list(graph.nodes):
        head = any(source.meta.get("head") or source.meta.get("cut") for source in node.all_input_nodes)
        node.meta["head"] = head
        name, module = "", None
        if node.op == "call_module":
            layer, name = named[node.target], _users_name(node)
            if isinstance(layer, DROPPED):
                _skip(graph, node, node is cut)
                continue
            module = bare_copy(layer) if head else _layer(node, layer, name)
        elif node.op == "get_attr":
            if str(node.target) not in held:
                held[str(node.target)] = constant_names.free(str(node.target).replace(".", "_"))
                value = operator.attrgetter(str(node.target))(model).detach().clone()
                add_submodule(own, constants, nn.Module()).register_buffer(held[str(node.target)], value)
            node.target = f"{constants}.{held[str(node.target)]}"
        elif node.op == "placeholder":
            node.meta["name"] = free.free("input", ENDINGS[1:])
        elif node.op in ("call_function", "call_method") and node.target in DROPOUT_FUNCTIONS:
            _skip(graph, node, node is cut)
            continue
        elif node.op in ("call_function", "call_method") and not head:
            module, name = _function(node), node.name
        elif node.op == "output" and not isinstance(node.args[0], fx.Node):
            kind = type(node.args[0]).__name__.removeprefix("immutable_")
            raise ConversionError(
                f"{type(model).__name__}.forward returns a {kind}, but a spiking network gives one tensor of scores. "
                "Wrap the model in a module whose forward(x) returns that tensor."
            )
        if module is not None:
            # A module called twice becomes two: each has a state and a scale of its own.
            unique = name if node.op == "call_module" and name not in names else free.free(name)
            names.append(unique)
            if isinstance(module, RECTIFIERS) and not head:
                node.meta["populations"] = _named(unique, module, free)
            add_submodule(own, unique, module)
            args = (node.args, node.kwargs) if head and node.op == "call_module" else ((_input(node),), {})
            node.op, node.target, (node.args, node.kwargs) = "call_module", unique, args
            node.meta["cut"] = node is cut or (unique == until and not head)
    if until is not None and not any(node.meta.get("cut") for node in graph.nodes):
        raise ValueError(f"Expected argument `until` to be a layer or block, one of {names}, but got {until!r}.")
    traced = fx.GraphModule(own, graph, class_name=type(model).__name__)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return traced.eval()


def _users_name(node: fx.Node) -> str:
    return str(node.target).replace("._orig_mod", "")


def _named(name: str, activation: nn.Module, free: Names) -> dict[str, Population]:
    """Name the populations of an activation such that they and where they start have names of their own."""
    found = {}
    for population in populations(activation) or ():
        own = not population.suffix and free.is_free(f"{name}_initial")
        found[name if own else free.free(name + population.suffix, ("_initial",))] = population
        free.taken.add(f"{name}_initial")
    return found


def _layer(node: fx.Node, layer: nn.Module, name: str) -> nn.Module:
    """Copy a layer that can be converted."""
    if not isinstance(layer, KEPT):
        raise refusal(node, type(layer).__name__, name)
    if len(node.args) + len(node.kwargs) > 1:
        raise refusal(node, "a call with more than the input", name, "give the layer its input alone")
    return _checked(node, bare_copy(layer), name)


def _checked(node: fx.Node, module: Any, name: str | None = None) -> nn.Module:
    """Refuse what a layer does only with some arguments."""
    if getattr(module, "return_indices", False):
        raise refusal(node, "max pooling with return_indices=True", name, "use return_indices=False")
    if isinstance(module, nn.Upsample) and "nearest" not in module.mode:
        raise refusal(node, f"upsampling with mode={module.mode!r}", name, 'use mode="nearest"')
    if isinstance(module, RECTIFIERS):
        if populations(module) is None:
            raise refusal(node, f"{module}, which does not map 0 to 0,", name, "choose a range around 0")
        if getattr(module, "inplace", False):
            if _is_read_elsewhere(node):
                raise refusal(node, "an in-place ReLU whose input is read again", name, "read its output instead")
            module.inplace = False
    checked: nn.Module = module
    return checked


def _function(node: Any) -> nn.Module | None:
    """Give the module that a function is in disguise; bring arithmetic to one form; refuse all others."""
    if node.target in AS_MODULE:
        kind, names = AS_MODULE[node.target]
        arguments = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
        arguments.pop("input", None)
        module = kind(**arguments)
        if module is None:
            raise refusal(node, function_name(node))
        return _checked(node, module)
    if moves_values(node):
        if "input" in node.kwargs:
            node.args = (node.kwargs["input"], *node.args)
            node.kwargs = {name: value for name, value in node.kwargs.items() if name != "input"}
        return None
    if node.target not in ARITHMETIC:
        raise refusal(node, function_name(node))
    function, in_place = ARITHMETIC[node.target]
    if in_place and _is_read_elsewhere(node):
        raise refusal(node, f"{function_name(node)} in place on what is read again", remedy="write `x = x + y`")
    if function is torch.cat:
        given = dict(zip(("tensors", "dim"), node.args, strict=False)) | dict(node.kwargs)
        node.args, node.kwargs = (list(given["tensors"]), given.get("dim", given.get("axis", 0))), {}
    elif function is torch.mean:
        given = dict(zip(("dim", "keepdim"), node.args[1:], strict=False)) | dict(node.kwargs)
        dims = given.get("dim", given.get("axis"))
        dims = [dims] if isinstance(dims, int) else dims
        if not dims or 0 in dims:
            raise refusal(node, "mean")
        node.args, node.kwargs = (_input(node), list(dims)), {"keepdim": given.get("keepdim", False)}
    else:
        operands = [*node.args, *(value for key, value in node.kwargs.items() if key in ("input", "other"))]
        if len(operands) != (1 if function is operator.neg else 2) or len(operands) < len(node.args) + len(node.kwargs):
            raise refusal(node, f"{function_name(node)} with more than the operands", remedy="write it as `x + y`")
        values = [is_value(operand) for operand in operands]
        if function is operator.mul and all(values):
            raise refusal(node, "a product of two activations", remedy="multiply by constants only")
        if function is operator.truediv and values[1]:
            raise refusal(node, "a division by an activation", remedy="divide by constants only")
        node.args, node.kwargs = tuple(operands), {}
    node.op, node.target = "call_function", function
    return None


def _input(node: fx.Node) -> fx.Node:
    source = node.args[0] if node.args else node.kwargs["input"]
    assert isinstance(source, fx.Node)
    return source


def _skip(graph: fx.Graph, node: fx.Node, cut: bool = False) -> None:
    source = _input(node)
    source.meta["cut"] = source.meta.get("cut", False) or cut
    node.replace_all_uses_with(source)
    graph.erase_node(node)


def _is_read_elsewhere(node: fx.Node) -> bool:
    """Tell whether what a node writes to in place is read by others, also through views."""
    while True:
        source = _input(node)
        if any(user is not node and not is_size(user) for user in source.users):
            return True
        if source.op not in ("call_function", "call_method") or not moves_values(source):
            return False
        node = source
