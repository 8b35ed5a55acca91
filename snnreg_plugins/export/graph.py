"""From a user's model to a plain graph of modules: traced, functional activations as modules, sums in one form."""

from __future__ import annotations

import copy
import operator
import re
import traceback
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from snnreg_plugins.export.network import SpikingNetwork
from snnreg_plugins.export.qcfs import QCFS
from snnreg_plugins.export.rectifiers import RECTIFIERS, populations
from snnreg_plugins.functional.synapses import SYNAPTIC_LAYERS, TRANSPOSED_CONVOLUTIONS, is_synaptic

AVERAGE_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
ADAPTIVE_AVERAGE_POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
ADAPTIVE_MAX_POOLS = (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
#: Modules that only move values.
MOVERS = (
    nn.Flatten,
    nn.Unflatten,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ChannelShuffle,
    nn.ZeroPad1d,
    nn.ZeroPad2d,
    nn.ZeroPad3d,
    nn.Upsample,  # to the nearest
)
_DROPPED = (nn.Identity, _DropoutNd)
_KEPT = (
    *SYNAPTIC_LAYERS,
    *RECTIFIERS,
    _BatchNorm,
    *AVERAGE_POOLS,
    *MAX_POOLS,
    *ADAPTIVE_AVERAGE_POOLS,
    *ADAPTIVE_MAX_POOLS,
    *MOVERS,
)

_MAX_POOL = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_AVERAGE_POOL = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
_RELU_IN_PLACE = partial(nn.ReLU, inplace=True)


def _clamp(min: float | None = None, max: float | None = None) -> nn.Module | None:
    if min != 0 or isinstance(max, (Tensor, fx.Node)):
        return None
    return nn.ReLU() if max is None else nn.Hardtanh(0.0, max)


def _upsample(size: Any = None, scale_factor: Any = None, mode: str = "nearest", *_: Any, **__: Any) -> nn.Module:
    return nn.Upsample(size, scale_factor, mode)


# Functions that are a module in disguise: what they become, and the names of their arguments after the input.
# A factory may give None: not in this form.
_AS_MODULE: dict[Any, tuple[Callable[..., nn.Module | None], tuple[str, ...]]] = {
    F.relu: (nn.ReLU, ("inplace",)),
    torch.relu: (nn.ReLU, ()),
    "relu": (nn.ReLU, ()),
    F.relu_: (_RELU_IN_PLACE, ()),
    torch.relu_: (_RELU_IN_PLACE, ()),
    "relu_": (_RELU_IN_PLACE, ()),
    F.relu6: (nn.ReLU6, ("inplace",)),
    F.hardtanh: (nn.Hardtanh, ("min_val", "max_val", "inplace")),
    F.leaky_relu: (nn.LeakyReLU, ("negative_slope", "inplace")),
    torch.clamp: (_clamp, ("min", "max")),
    torch.clip: (_clamp, ("min", "max")),
    "clamp": (_clamp, ("min", "max")),
    "clip": (_clamp, ("min", "max")),
    torch.clamp_min: (_clamp, ("min",)),
    "clamp_min": (_clamp, ("min",)),
    F.interpolate: (_upsample, ("size", "scale_factor", "mode")),
    F.max_pool1d: (nn.MaxPool1d, _MAX_POOL),
    F.max_pool2d: (nn.MaxPool2d, _MAX_POOL),
    F.max_pool3d: (nn.MaxPool3d, _MAX_POOL),
    torch.max_pool1d: (nn.MaxPool1d, _MAX_POOL),
    torch.max_pool2d: (nn.MaxPool2d, _MAX_POOL),
    torch.max_pool3d: (nn.MaxPool3d, _MAX_POOL),
    F.avg_pool1d: (nn.AvgPool1d, _AVERAGE_POOL),
    F.avg_pool2d: (nn.AvgPool2d, _AVERAGE_POOL),
    F.avg_pool3d: (nn.AvgPool3d, _AVERAGE_POOL),
    F.adaptive_avg_pool1d: (nn.AdaptiveAvgPool1d, ("output_size",)),
    F.adaptive_avg_pool2d: (nn.AdaptiveAvgPool2d, ("output_size",)),
    F.adaptive_avg_pool3d: (nn.AdaptiveAvgPool3d, ("output_size",)),
    F.adaptive_max_pool1d: (nn.AdaptiveMaxPool1d, ("output_size", "return_indices")),
    F.adaptive_max_pool2d: (nn.AdaptiveMaxPool2d, ("output_size", "return_indices")),
    F.adaptive_max_pool3d: (nn.AdaptiveMaxPool3d, ("output_size", "return_indices")),
}
_DROPOUT_FUNCTIONS = (
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
    torch.dropout,
)
# What only moves values.
_SHAPE_FUNCTIONS = (
    torch.flatten,
    torch.reshape,
    torch.permute,
    torch.transpose,
    torch.squeeze,
    torch.unsqueeze,
    torch.chunk,
    torch.split,
    operator.getitem,
)
_SHAPE_METHODS = (
    "view",
    "reshape",
    "flatten",
    "unflatten",
    "contiguous",
    "permute",
    "transpose",
    "squeeze",
    "unsqueeze",
    "chunk",
    "split",
)
_SIZE_METHODS = ("size", "dim", "numel")
_SIZE_ATTRIBUTES = ("shape", "ndim")
_SIZE_ARITHMETIC = (operator.add, operator.sub, operator.mul, operator.floordiv)
# Arithmetic on values, in every form that Python has for it: the one form it gets, and whether it writes to its input.
_ARITHMETIC: dict[Any, tuple[Callable[..., Any], bool]] = {
    form: (function, in_place)
    for function, forms, in_place in (
        (operator.add, (operator.add, torch.add, "add"), False),
        (operator.add, (operator.iadd, "add_"), True),
        (operator.sub, (operator.sub, torch.sub, torch.subtract, "sub"), False),
        (operator.sub, (operator.isub, "sub_"), True),
        (operator.mul, (operator.mul, torch.mul, torch.multiply, "mul"), False),
        (operator.mul, (operator.imul, "mul_"), True),
        (operator.truediv, (operator.truediv, torch.div, torch.divide, torch.true_divide, "div"), False),
        (operator.truediv, (operator.itruediv, "div_"), True),
        (operator.neg, (operator.neg, torch.neg, torch.negative, "neg"), False),
        (torch.cat, (torch.cat, torch.concat, torch.concatenate), False),
        (torch.mean, (torch.mean, "mean"), False),
    )
    for form in forms
}

_WITH_RELU = "train with nn.ReLU in its place"
# What to do about a module or function, by its name.
_REMEDIES = {
    name: remedy
    for names, remedy in (
        ("ELU CELU SELU GELU SiLU Mish Softplus Tanh Hardswish Hardsigmoid", _WITH_RELU),
        ("elu celu selu gelu silu mish softplus tanh hardswish hardsigmoid clamp clip", _WITH_RELU),
        ("Sigmoid sigmoid", f"{_WITH_RELU}, or leave it out where it only shapes the output"),
        ("prelu", "use nn.PReLU, which owns its slope"),
        ("Softmax LogSoftmax softmax log_softmax", "leave it out: scores before it rank the classes alike"),
        ("LayerNorm GroupNorm RMSNorm InstanceNorm1d InstanceNorm2d InstanceNorm3d LocalResponseNorm", "train with "
         "nn.BatchNorm in its place, which folds into the weights"),
        ("layer_norm group_norm instance_norm batch_norm", "train with nn.BatchNorm in its place, which folds into "
         "the weights"),
        ("linear matmul bmm einsum", "use nn.Linear, which owns its weights"),
        ("conv1d conv2d conv3d", "use nn.Conv, which owns its weights"),
        ("mean", "give the dimensions to average over, without the batch"),
        ("stack", "use torch.cat"),
        ("MultiheadAttention scaled_dot_product_attention", "keep attention as a DNN behind the spiking part, with "
         "`until`"),
    )
    for name in names.split()
}  # fmt: skip
_SUPPORTED = (
    "use Linear, Conv, ConvTranspose, ReLU, BatchNorm, average or max pooling, sums, concatenation, Flatten, Dropout "
    "and Identity, or keep it as a DNN behind the spiking part, with `until`"
)


class ConversionError(ValueError):
    """A model, or a part of one, that cannot be expressed by spiking neurons; the message says what to do."""


def trace(model: nn.Module, until: str | None = None) -> fx.GraphModule:
    """Trace a model to a graph whose every computation is a supported module, arithmetic, or moves values only.

    The result computes what the model does in eval mode: functional activations and pools have become modules,
    dropout is gone, a module called twice has become two. It shares nothing with the model, which is left as it was.

    Args:
        model: A network, a LightningModule with ``forward(x)``, or either wrapped by ``torch.compile`` or DDP.
        until: The last layer to convert, by name, or a block of layers. What depends on it may compute anything; its
            nodes have ``node.meta["head"]``, and the layer's node has ``node.meta["cut"]``.

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
    model = _unwrapped(model)
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
            base = _base(m)
            own = [getattr(type(m), name, None) is getattr(base, name, None) for name in ("forward", "_conv_forward")]
            return all(own)
        return type(m) is QCFS or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Past the module's hooks, which expect tensors, and past torch.compile, which cannot be traced.
        m = _unwrapped(m)
        return super().call_module(m, m.forward, args, kwargs)


def _traced(tracer: fx.Tracer, model: nn.Module) -> fx.Graph:
    name = type(model).__name__
    owner = next(base for base in type(model).__mro__ if "forward" in vars(base))
    if owner is nn.Module or owner.__name__ == "LightningModule":
        raise ConversionError(f"{name} has no forward() to trace. Pass the network itself, such as `model.net`.")
    try:
        graph = tracer.trace(model)
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
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
    block = [node for node in graph.nodes if node.op == "call_module" and f"{node.target}.".startswith(f"{until}.")]
    cut = block[-1] if block and until not in [str(node.target) for node in block] else None
    for node in list(graph.nodes):
        head = any(source.meta.get("head") or source.meta.get("cut") for source in node.all_input_nodes)
        node.meta["head"] = head
        name, module = "", None
        if node.op == "call_module":
            layer, name = named[node.target], str(node.target).replace("._orig_mod", "")
            if isinstance(layer, _DROPPED):
                _skip(graph, node, node is cut)
                continue
            module = bare_copy(layer) if head else _layer(node, layer, name)
        elif node.op == "get_attr":
            constant = str(node.target).replace(".", "_")
            value = operator.attrgetter(str(node.target))(model)
            add_submodule(own, "constants", nn.Module()).register_buffer(constant, value.detach().clone())
            node.target = f"constants.{constant}"
        elif node.op in ("call_function", "call_method") and node.target in _DROPOUT_FUNCTIONS:
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
            unique, number = name, 1
            while unique in names or any(other.startswith(f"{unique}.") for other in names):
                unique, number = f"{name}_{number}", number + 1
            names.append(unique)
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


def _layer(node: fx.Node, layer: nn.Module, name: str) -> nn.Module:
    """Copy a layer that can be converted."""
    if not isinstance(layer, _KEPT):
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
    if node.target in _AS_MODULE:
        kind, names = _AS_MODULE[node.target]
        arguments = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
        arguments.pop("input", None)
        module = kind(**arguments)
        if module is None:
            raise refusal(node, _function_name(node))
        return _checked(node, module)
    if _moves_values(node):
        if "input" in node.kwargs:
            node.args = (node.kwargs["input"], *node.args)
            node.kwargs = {name: value for name, value in node.kwargs.items() if name != "input"}
        return None
    if node.target not in _ARITHMETIC:
        raise refusal(node, _function_name(node))
    function, in_place = _ARITHMETIC[node.target]
    if in_place and _is_read_elsewhere(node):
        raise refusal(node, f"{_function_name(node)} in place on what is read again", remedy="write `x = x + y`")
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
            raise refusal(node, f"{_function_name(node)} with more than the operands", remedy="write it as `x + y`")
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


def is_value(operand: Any) -> bool:
    """Tell whether an operand depends on the network's input by more than its size."""
    return isinstance(operand, fx.Node) and operand.op != "get_attr" and not _is_size(operand)


def _is_read_elsewhere(node: fx.Node) -> bool:
    """Tell whether what a node writes to in place is read by others, also through views."""
    while True:
        source = _input(node)
        if any(user is not node and not _is_size(user) for user in source.users):
            return True
        if source.op not in ("call_function", "call_method") or not _moves_values(source):
            return False
        node = source


def _moves_values(node: Any) -> bool:
    """Tell whether a function only moves values, or reads or computes sizes."""
    if node.target is getattr:
        return node.args[1] in _SIZE_ATTRIBUTES
    if node.target in _SIZE_ARITHMETIC:
        return all(not isinstance(arg, fx.Node) or _is_size(arg) for arg in node.args)
    if node.target is F.pad:
        given = dict(zip(("mode", "value"), node.args[2:], strict=False)) | dict(node.kwargs)
        return given.get("mode", "constant") == "constant" and not given.get("value")
    return node.target in (*_SHAPE_FUNCTIONS, *_SHAPE_METHODS, *_SIZE_METHODS)


def _is_size(node: fx.Node) -> bool:
    """Tell whether a node is a size or shape, or computed from such alone."""
    if node.target in _SIZE_METHODS or node.target is getattr:
        return True
    sources = node.all_input_nodes
    return node.op == "call_function" and bool(sources) and all(_is_size(source) for source in sources)


def bare_copy(module: nn.Module) -> nn.Module:
    """Copy a layer without its hooks, so that what watches it (and all that this holds) stays behind."""
    if is_synaptic(module):
        return _plain(module)
    bare = copy.copy(module)
    for name, value in vars(module).items():
        if "_hooks" in name and isinstance(value, dict):
            vars(bare)[name] = OrderedDict()
    bare = copy.deepcopy(bare)
    return bare.eval()


def _plain(layer: Any) -> nn.Module:
    """Rebuild a synaptic layer with the weights it computes with: parametrized, normed and pruned ones too."""
    for hook in layer._forward_pre_hooks.values():
        # Old weight norm and pruning set the weight in a hook; `trace` puts back the one that was there.
        if type(hook).__module__.startswith("torch.nn.utils"):
            hook(layer, ())
    base, has_bias = _base(layer), layer.bias is not None
    plain: Any
    if base is nn.Linear:
        plain = nn.Linear(layer.in_features, layer.out_features, has_bias, device="meta")
    else:
        sizes = dict.fromkeys(("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"))
        arguments = {name: getattr(layer, name) for name in sizes}
        if issubclass(base, TRANSPOSED_CONVOLUTIONS):
            arguments["output_padding"] = layer.output_padding
        plain = base(**arguments, padding_mode=layer.padding_mode, bias=has_bias, device="meta")
    plain.weight = nn.Parameter(layer.weight.detach().clone())
    if has_bias:
        plain.bias = nn.Parameter(layer.bias.detach().clone())
    plain.eval()
    return plain  # type: ignore[no-any-return]


def _base(layer: nn.Module) -> Any:
    return next(base for base in SYNAPTIC_LAYERS if isinstance(layer, base))


def add_submodule(root: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Put a module at a dotted name, making plain modules on the way; give back the one that is there already."""
    *path, last = name.split(".")
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    if type(module) is nn.Module and hasattr(root, last):
        return getattr(root, last)  # type: ignore[no-any-return]
    root.add_module(last, module)
    return module


def refusal(node: fx.Node, what: str, name: str | None = None, remedy: str | None = None) -> ConversionError:
    """Say what cannot be converted, where it stands in the user's code, and what to do."""
    layer = f"layer {name!r}: " if name else ""
    remedy = remedy or _REMEDIES.get(what, _SUPPORTED)
    return ConversionError(f"Cannot convert {layer}{what}{where(node)}. To export this network, {remedy}.")


def _function_name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def where(node: fx.Node) -> str:
    """Find the line of the user's code that a node comes from: ``" at file:line (code)"``, or nothing."""
    places = re.findall(r'File "([^"]+)", line (\d+).*\n\s*(.*)', node.stack_trace or "")
    for file, line, code in reversed(places):
        if _is_users(file):
            return f" at {file}:{line} ({code.strip()})"
    return ""


def _is_users(file: str) -> bool:
    return not re.search(r"-packages[/\\](torch|lightning|pytorch_lightning)[/\\]|snnreg_plugins[/\\]export[/\\]", file)


def _unwrapped(model: nn.Module) -> nn.Module:
    """Look inside torch.compile and data parallelism."""
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        return _unwrapped(model.module)
    inner = getattr(model, "_orig_mod", None)
    return _unwrapped(inner) if isinstance(inner, nn.Module) else model
