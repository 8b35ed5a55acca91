"""Of a traced graph, the one form that the export knows: modules of its own, arithmetic, and moves of values."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from snnreg_plugins.export.copies import add_submodule, bare_copy
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
from snnreg_plugins.export.rectifiers import ENDINGS, RECTIFIERS, Population, populations
from snnreg_plugins.export.refusals import ConversionError, refusal


def normalized(model: nn.Module, graph: fx.Graph, until: str | None) -> fx.GraphModule:
    """Check every node, and rebuild the graph on modules of its own.

    Args:
        model: What was traced.
        graph: Its graph; is changed.
        until: The last layer to convert; see :func:`~snnreg_plugins.export.trace.trace`, which says what it leaves in
            ``node.meta`` too.

    Raises:
        ValueError: If there is no layer ``until``.
        ConversionError: If something is not supported.
    """
    _find_end_of_block(graph, until)
    _drop(model, graph)
    free = _name(graph)
    _mark_head(graph, until)
    own = nn.Module()  # holds the new modules at the user's names
    _hold_constants(model, graph, own, free)
    for node in graph.nodes:
        if node.op in ("call_module", "call_function", "call_method"):
            module = _module(model, node)
            if module is not None:
                _put(node, module, own, free)
        elif node.op == "placeholder":
            node.meta["name"] = free.free("input", ENDINGS[1:])
        elif node.op == "output" and not isinstance(node.args[0], fx.Node):
            kind = type(node.args[0]).__name__.removeprefix("immutable_")
            raise ConversionError(
                f"{type(model).__name__}.forward returns a {kind}, but a spiking network gives one tensor of scores. "
                "Wrap the model in a module whose forward(x) returns that tensor."
            )
    traced = fx.GraphModule(own, graph, class_name=type(model).__name__)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return traced.eval()


def _find_end_of_block(graph: fx.Graph, until: str | None) -> None:
    """Mark the last layer of a block of layers that is named as the last one to convert."""
    block = [node for node in graph.nodes if node.op == "call_module" and f"{node.target}.".startswith(f"{until}.")]
    if block and until not in [str(node.target) for node in block]:
        block[-1].meta["cut"] = True


def _drop(model: nn.Module, graph: fx.Graph) -> None:
    """Take out what does nothing in eval mode."""
    named = dict(model.named_modules())
    for node in list(graph.nodes):
        is_module = node.op == "call_module" and isinstance(named[node.target], DROPPED)
        if is_module or (node.op in ("call_function", "call_method") and node.target in DROPOUT_FUNCTIONS):
            source = _input(node)
            source.meta["cut"] = source.meta.get("cut", False) or node.meta.get("cut", False)
            node.replace_all_uses_with(source)
            graph.erase_node(node)


def _name(graph: fx.Graph) -> Names:
    """Name all that is, or becomes, a module; give the names that are taken.

    Layers keep their names, those too that come later. A module called twice becomes two: each has a state and a scale
    of its own.
    """
    layers = {node: str(node.target).replace("._orig_mod", "") for node in graph.nodes if node.op == "call_module"}
    free, given = Names(layers.values()), set()
    for node in graph.nodes:
        if node in layers and layers[node] not in given:
            given.add(layers[node])
            node.meta["layer"] = layers[node]
        elif node in layers or (node.op in ("call_function", "call_method") and node.target in AS_MODULE):
            node.meta["layer"] = free.free(layers.get(node, node.name))
    return free


def _mark_head(graph: fx.Graph, until: str | None) -> None:
    """Mark the last layer to convert, and what depends on it."""
    for node in graph.nodes:
        node.meta["head"] = any(source.meta["head"] or source.meta.get("cut") for source in node.all_input_nodes)
        if until is not None and node.meta.get("layer") == until and not node.meta["head"]:
            node.meta["cut"] = True
    if until is not None and not any(node.meta.get("cut") for node in graph.nodes):
        names = [node.meta["layer"] for node in graph.nodes if "layer" in node.meta]
        raise ValueError(f"Expected argument `until` to be a layer or block, one of {names}, but got {until!r}.")


def _hold_constants(model: nn.Module, graph: fx.Graph, own: nn.Module, free: Names) -> None:
    """Copy the tensors that a forward reads into a module that holds nothing else."""
    constants = [node for node in graph.nodes if node.op == "get_attr"]
    if not constants:
        return
    holder, names = free.free("constants"), Names()
    held: dict[str, str] = {}
    for node in constants:
        name = str(node.target)
        if name not in held:
            held[name] = names.free(name.replace(".", "_"))
            value = operator.attrgetter(name)(model).detach().clone()
            add_submodule(own, holder, nn.Module()).register_buffer(held[name], value)
        node.target = f"{holder}.{held[name]}"


def _module(model: nn.Module, node: fx.Node) -> nn.Module | None:
    """Copy a layer, or give the module that a function is in disguise; bring other functions to one form."""
    if node.op == "call_module":
        layer = model.get_submodule(str(node.target))
        return bare_copy(layer) if node.meta["head"] else _layer(node, layer, node.meta["layer"])
    return None if node.meta["head"] else _function(node)


def _put(node: fx.Node, module: nn.Module, own: nn.Module, free: Names) -> None:
    """Let a node call a module at its name."""
    name = node.meta["layer"]
    if isinstance(module, RECTIFIERS) and not node.meta["head"]:
        node.meta["populations"] = _named(name, module, free)
    add_submodule(own, name, module)
    if node.op != "call_module" or not node.meta["head"]:
        node.args, node.kwargs = (_input(node),), {}
    node.op, node.target = "call_module", name


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
    """Give the module that a function is in disguise; bring all others to one form, or refuse them."""
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
    node.args, node.kwargs = _ARGUMENTS[function](node)
    node.op, node.target = "call_function", function
    return None


def _of_cat(node: fx.Node) -> tuple[Any, dict[str, Any]]:
    given = dict(zip(("tensors", "dim"), node.args, strict=False)) | dict(node.kwargs)
    tensors: Any = given["tensors"]
    return (list(tensors), given.get("dim", given.get("axis", 0))), {}


def _of_mean(node: fx.Node) -> tuple[Any, dict[str, Any]]:
    given: dict[str, Any] = dict(zip(("dim", "keepdim"), node.args[1:], strict=False)) | dict(node.kwargs)
    dims = given.get("dim", given.get("axis"))
    dims = [dims] if isinstance(dims, int) else dims
    if not dims or 0 in dims:
        raise refusal(node, "mean")
    return (_input(node), list(dims)), {"keepdim": given.get("keepdim", False)}


def _of_one(node: fx.Node) -> tuple[Any, dict[str, Any]]:
    return _operands(node, 1), {}


def _of_two(node: fx.Node) -> tuple[Any, dict[str, Any]]:
    return _operands(node, 2), {}


def _of_product(node: fx.Node) -> tuple[Any, dict[str, Any]]:
    operands = _operands(node, 2)
    if all(map(is_value, operands)):
        raise refusal(node, "a product of two activations", remedy="multiply by constants only")
    return operands, {}


def _of_quotient(node: fx.Node) -> tuple[Any, dict[str, Any]]:
    operands = _operands(node, 2)
    if is_value(operands[1]):
        raise refusal(node, "a division by an activation", remedy="divide by constants only")
    return operands, {}


# From a node that calls a function of arithmetic in any of its forms to the arguments of the one form.
_ARGUMENTS: dict[Callable[..., Any], Callable[[fx.Node], tuple[Any, dict[str, Any]]]] = {
    torch.cat: _of_cat,
    torch.mean: _of_mean,
    operator.neg: _of_one,
    operator.add: _of_two,
    operator.sub: _of_two,
    operator.mul: _of_product,
    operator.truediv: _of_quotient,
}


def _operands(node: fx.Node, count: int) -> tuple[Any, ...]:
    operands = [*node.args, *(value for key, value in node.kwargs.items() if key in ("input", "other"))]
    if len(operands) != count or len(operands) < len(node.args) + len(node.kwargs):
        raise refusal(node, f"{function_name(node)} with more than the operands", remedy="write it as `x + y`")
    return tuple(operands)


def _input(node: fx.Node) -> fx.Node:
    source = node.args[0] if node.args else node.kwargs["input"]
    assert isinstance(source, fx.Node)
    return source


def _is_read_elsewhere(node: fx.Node) -> bool:
    """Tell whether what a node writes to in place is read by others, also through views."""
    while True:
        source = _input(node)
        if any(user is not node and not is_size(user) for user in source.users):
            return True
        if source.op not in ("call_function", "call_method") or not moves_values(source):
            return False
        node = source
