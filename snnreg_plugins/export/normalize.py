"""Of a traced graph, the one form that the export knows: modules of its own, arithmetic, and moves of values."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from snnreg_plugins._torch import is_assertion
from snnreg_plugins.export.copies import add_submodule, bare_copy
from snnreg_plugins.export.forms import (
    ACTIVATION_FUNCTIONS,
    ADAPTIVE_AVERAGE_POOLS,
    ADAPTIVE_MAX_POOLS,
    ARITHMETIC,
    AS_MODULE,
    CASTS,
    DROPOUT_FUNCTIONS,
    DROPPED,
    KEPT,
    LAST,
    MADE_OF_SIZES,
    function_name,
    is_constant,
    is_size,
    is_value,
    moves_values,
)
from snnreg_plugins.export.names import Names
from snnreg_plugins.export.rectifiers import ENDINGS, RECTIFIERS, Population, populations
from snnreg_plugins.export.refusals import ConversionError, refusal
from snnreg_plugins.export.rewrites import as_known, input_of, make_behind, read_from_then_on, reduced, write_out
from snnreg_plugins.functional.synapses import is_synaptic


def normalized(model: nn.Module, graph: fx.Graph, until: str | None) -> fx.GraphModule:
    """Check every node, and rebuild the graph on modules of its own.

    Args:
        model: What was traced.
        graph: What :class:`~snnreg_plugins.export.tracer.Tracer` recorded; is changed.
        until: The last layer to convert; see :func:`~snnreg_plugins.export.trace.trace`, which says what it leaves in
            ``node.meta`` too.

    Raises:
        ValueError: If there is no layer ``until``.
        ConversionError: If something is not supported.
    """
    _tell_roles(graph)
    asked = any(node.meta.get("is_number") for node in graph.nodes)  # for a size, as a branch does
    _drop_questions(graph)
    _find_end_of_block(graph, until)
    if until is None:
        _cut_before_the_last(model, graph)
    _drop(model, graph)
    write_out(graph)
    free = _name(model, graph)
    _mark_head(graph, until)
    make_behind(graph)
    _mark_neural(model, graph)
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
    any_size = not asked and not any(map(_fixes_a_size, graph.nodes))
    traced = fx.GraphModule(own, graph, class_name=type(model).__name__)
    _refuse_numbers_of_samples(traced)
    for node in graph.nodes:
        node.meta.pop("known", None)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    traced.meta["any_size"] = any_size
    return traced.eval()


def _tell_roles(graph: fx.Graph) -> None:
    """Tell sizes (no tensors), constants (tensors that depend on no input) and values apart, in ``meta["role"]``.

    A tensor made of sizes alone, as a state of zeros is, is a constant for the sizes of the samples.
    """
    for node in graph.nodes:
        if node.op in ("placeholder", "output"):
            node.meta["role"] = "value"
        elif not _has_tensor(node.meta["known"]):
            node.meta["role"] = "size"
        else:
            constant = node.target in MADE_OF_SIZES or not any(map(is_value, node.all_input_nodes))
            node.meta["role"] = "constant" if constant else "value"
            sized = (source.meta.get("is_number") if is_constant(source) else True for source in node.all_input_nodes)
            node.meta["is_number"] = constant and any(sized)


def _has_tensor(known: Any) -> bool:
    return isinstance(known, Tensor) or (isinstance(known, (tuple, list)) and any(map(_has_tensor, known)))


def _drop_questions(graph: fx.Graph) -> None:
    """Take out what only asked for a size, and assertions, which the samples have passed."""
    for node in reversed(graph.nodes):
        if not node.users and node.op != "output" and (is_size(node) or is_assertion(node.target)):
            graph.erase_node(node)


def _cut_before_the_last(model: nn.Module, graph: fx.Graph) -> None:
    """Have a softmax or sigmoid of the scores computed once, on their mean over the steps, as ``until`` would."""
    last = graph.output_node().args[0]
    if not isinstance(last, fx.Node) or not last.all_input_nodes:
        return
    called = type(model.get_submodule(str(last.target))) if last.op == "call_module" else last.target
    if called in LAST:
        last.all_input_nodes[0].meta["cut"] = True


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
        if is_module or (node.op in ("call_function", "call_method") and _does_nothing(node)):
            source = input_of(node)
            source.meta["cut"] = source.meta.get("cut", False) or node.meta.get("cut", False)
            node.replace_all_uses_with(source)
            graph.erase_node(node)


def _does_nothing(node: fx.Node) -> bool:
    """Tell of dropout in eval mode, of another library's too, and of a cast to the type that is there."""
    if node.target in DROPOUT_FUNCTIONS:
        return True
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or not isinstance(node.meta["known"], Tensor):
        return False
    before, after = source.meta["known"], node.meta["known"]
    if node.target in CASTS:
        return bool(before.dtype == after.dtype and before.device == after.device)
    home = getattr(node.target, "__module__", None) or "torch"
    # Functions of torch that give back their input write to it.
    return node.op == "call_function" and before is after and home.partition(".")[0] not in ("torch", "_operator")


def _name(model: nn.Module, graph: fx.Graph) -> Names:
    """Name all that is, or becomes, a module; give the names that are taken.

    Layers keep their names, those too that come later. A module called twice becomes two: each has a state and a scale
    of its own.
    """
    layers = {node: str(node.target).replace("._orig_mod", "") for node in graph.nodes if node.op == "call_module"}
    free, given = Names(layers.values()), set()
    own = {name for name, module in model.named_modules() if is_synaptic(module)}
    for node in graph.nodes:
        if node in layers and layers[node] not in given:
            given.add(layers[node])
            node.meta["layer"] = layers[node]
        elif node in layers or (node.op in ("call_function", "call_method") and node.target in AS_MODULE):
            # A function in the forward of a synaptic layer of the user's own has the layer's name.
            within = [path for path, _ in node.meta.get("nn_module_stack", {}).values()][-1:]
            name = within[0] if within and within[0] in own else node.name
            node.meta["layer"] = free.free(layers.get(node, name))
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


def _mark_neural(model: nn.Module, graph: fx.Graph) -> None:
    """Mark what depends on neurons, and so is not computed once in front of them."""
    for node in graph.nodes:
        layer = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        function = node.op in ("call_function", "call_method") and node.target in ACTIVATION_FUNCTIONS
        sources = any(source.meta["neural"] for source in node.all_input_nodes)
        node.meta["neural"] = sources or function or isinstance(layer, RECTIFIERS)


def _fixes_a_size(node: fx.Node) -> bool:
    """Tell whether what a node does in the steps holds for the sizes of the samples alone."""
    if node.meta.get("is_number"):
        return True
    if node.meta["head"] or not node.meta["neural"]:
        return False
    if node.target is torch.mean:
        return bool(node.args[1] != [1])
    return (
        node.op == "call_function"
        and any(is_size(source) for source in node.all_input_nodes)
        and (node.target in _ARGUMENTS)
    )


def _refuse_numbers_of_samples(traced: fx.GraphModule) -> None:
    """Refuse arithmetic with the size of the batch, which a step would have from the samples."""
    sized = [node for node in traced.graph.nodes if node.target in _ARITHMETIC and not node.meta["head"]]
    sized = [node for node in sized if any(map(is_size, node.all_input_nodes))]
    if not sized:
        return
    samples = next(node for node in traced.graph.nodes if node.op == "placeholder").meta["known"]
    other = fx.Interpreter(traced, garbage_collect_values=False)
    other.run(samples[:1].repeat_interleave(3, 0))
    for node in sized:
        if any(other.env[source] != source.meta["known"] for source in node.all_input_nodes if is_size(source)):
            raise refusal(
                node,
                f"{function_name(node)} with the size of the batch",
                remedy="leave it to the loss, which has it too",
            )


def _hold_constants(model: nn.Module, graph: fx.Graph, own: nn.Module, free: Names) -> None:
    """Copy the tensors that a forward reads, or computes of such alone, into a module that holds nothing else."""
    constants = [node for node in graph.nodes if is_constant(node) and node.users and not node.meta["head"]]
    if not constants:
        return
    holder, names = free.free("constants"), Names()
    held: dict[str, str] = {}
    for node in constants:
        name = str(node.target) if node.op == "get_attr" else node.name
        if name not in held:
            held[name] = names.free(name.replace(".", "_"))
            value = node.meta["known"].detach().clone()
            add_submodule(own, holder, nn.Module()).register_buffer(held[name], value)
        node.op, node.target, node.args, node.kwargs = "get_attr", f"{holder}.{held[name]}", (), {}


def _module(model: nn.Module, node: fx.Node) -> nn.Module | None:
    """Copy a layer, or give the module that a function is in disguise; bring other functions to one form."""
    if node.op == "call_module":
        layer = model.get_submodule(str(node.target))
        return bare_copy(layer) if node.meta["head"] else _layer(node, layer, node.meta["layer"])
    if node.meta["head"] or is_size(node) or (node.target in CASTS and not node.meta["neural"]):
        return None
    return _function(node)


def _put(node: fx.Node, module: nn.Module, own: nn.Module, free: Names) -> None:
    """Let a node call a module at its name."""
    name = node.meta["layer"]
    if isinstance(module, (*ADAPTIVE_AVERAGE_POOLS, *ADAPTIVE_MAX_POOLS)) and node.meta["neural"]:
        node.meta["is_number"] = True  # windows are those of the samples
    if isinstance(module, RECTIFIERS) and not node.meta["head"]:
        node.meta["populations"] = _named(name, module, free)
    add_submodule(own, name, module)
    if node.op != "call_module" or not node.meta["head"]:
        node.args, node.kwargs = (input_of(node),), {}
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
        if "quantized" in type(layer).__module__:
            raise refusal(
                node, f"quantized {type(layer).__name__}", name, "pass the network as it was before quantization"
            )
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
            if not read_from_then_on(node):
                raise refusal(node, "an in-place ReLU whose input is read again", name, "read its output instead")
            module.inplace = False
    checked: nn.Module = module
    return checked


def _function(node: Any) -> nn.Module | None:
    """Give the module that a function is in disguise; bring all others to one form, or refuse them."""
    if "refusal" in node.meta:
        raise node.meta["refusal"]
    if node.target in AS_MODULE:
        kind, names = AS_MODULE[node.target]
        arguments = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
        arguments.pop("input", None)
        module = kind(**as_known(node, arguments))
        if module is None:
            raise refusal(node, function_name(node))
        return _checked(node, module)
    if moves_values(node):
        if node.target == "view":  # of strides that another layout of memory may not have
            node.target = "reshape"
        if "input" in node.kwargs:
            node.args = (node.kwargs["input"], *node.args)
            node.kwargs = {name: value for name, value in node.kwargs.items() if name != "input"}
        return None
    if node.target not in ARITHMETIC:
        raise refusal(node, function_name(node))
    function, in_place = ARITHMETIC[node.target]
    if in_place and not read_from_then_on(node):
        raise refusal(node, f"{function_name(node)} in place on what is read again", remedy="write `x = x + y`")
    node.args, node.kwargs = _ARGUMENTS[function](node)
    node.op, node.target = "call_function", function
    return None


def _of_mean(node: fx.Node) -> tuple[Any, dict[str, Any]]:
    dims, keepdim = reduced(node)
    return (input_of(node), dims), {"keepdim": keepdim}


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
    torch.cat: lambda node: (node.args, {}),
    torch.mean: _of_mean,
    operator.neg: _of_one,
    operator.add: _of_two,
    operator.sub: _of_two,
    operator.mul: _of_product,
    operator.truediv: _of_quotient,
}


_ARITHMETIC = (operator.add, operator.sub, operator.mul, operator.truediv)


def _operands(node: fx.Node, count: int) -> tuple[Any, ...]:
    operands = [*node.args, *(value for key, value in node.kwargs.items() if key in ("input", "other"))]
    if len(operands) != count or len(operands) < len(node.args) + len(node.kwargs):
        raise refusal(node, f"{function_name(node)} with more than the operands", remedy="write it as `x + y`")
    return tuple(operands)
