"""From a user's model to a plain graph of modules: traced, functional activations as modules, batch norm folded."""

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

from snnreg_plugins.export.network import ChannelAffine, SpikingNetwork
from snnreg_plugins.functional.synapses import (
    CONVOLUTIONS,
    SYNAPTIC_LAYERS,
    TRANSPOSED_CONVOLUTIONS,
    is_synaptic,
)

AVERAGE_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
ADAPTIVE_AVERAGE_POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_DROPPED = (nn.Identity, _DropoutNd)
_KEPT = (
    *SYNAPTIC_LAYERS,
    nn.ReLU,
    nn.Flatten,
    nn.Unflatten,
    _BatchNorm,
    *AVERAGE_POOLS,
    *MAX_POOLS,
    *ADAPTIVE_AVERAGE_POOLS,
)

_MAX_POOL = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_AVERAGE_POOL = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
_RELU_IN_PLACE = partial(nn.ReLU, inplace=True)
# Functions that are a module in disguise: what they become, and the names of their arguments after the input.
_AS_MODULE: dict[Any, tuple[Callable[..., nn.Module], tuple[str, ...]]] = {
    F.relu: (nn.ReLU, ("inplace",)),
    torch.relu: (nn.ReLU, ()),
    "relu": (nn.ReLU, ()),
    F.relu_: (_RELU_IN_PLACE, ()),
    torch.relu_: (_RELU_IN_PLACE, ()),
    "relu_": (_RELU_IN_PLACE, ()),
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
)
_SIZE_METHODS = ("size", "dim", "numel")
_SIZE_ATTRIBUTES = ("shape", "ndim")
_SIZE_ARITHMETIC = (operator.add, operator.sub, operator.mul, operator.floordiv)

_ONE_BRANCH = "leave it out: every layer has to read one other layer, without skip connections and branches"
_OUTSIDE = "compute with it outside of the network, or make it the weight or bias of a layer"
# What to do about a module or function, by its name.
_REMEDIES = {
    name: remedy
    for names, remedy in (
        ("ReLU6 LeakyReLU PReLU ELU CELU SELU GELU SiLU Mish Softplus Tanh", "train with nn.ReLU in its place"),
        ("relu6 leaky_relu prelu elu celu selu gelu silu mish softplus tanh", "train with nn.ReLU in its place"),
        ("Sigmoid sigmoid", "train with nn.ReLU in its place, or leave it out where it only shapes the output"),
        ("Softmax LogSoftmax softmax log_softmax", "leave it out: scores before it rank the classes alike"),
        ("LayerNorm GroupNorm RMSNorm InstanceNorm1d InstanceNorm2d InstanceNorm3d LocalResponseNorm", "train with "
         "nn.BatchNorm in its place, which folds into the weights"),
        ("layer_norm group_norm instance_norm batch_norm", "train with nn.BatchNorm in its place, which folds into "
         "the weights"),
        ("linear matmul", "use nn.Linear, which owns its weights"),
        ("conv1d conv2d conv3d", "use nn.Conv, which owns its weights"),
        ("mean", "use nn.AdaptiveAvgPool and nn.Flatten in its place"),
        ("add cat concat stack", _ONE_BRANCH),
        ("AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d", "use nn.MaxPool in its place"),
    )
    for name in names.split()
}  # fmt: skip
_SUPPORTED = (
    "use Linear, Conv, ConvTranspose, ReLU, BatchNorm after a synaptic layer, average or max pooling, Flatten, "
    "Dropout and Identity"
)


class ConversionError(ValueError):
    """A model, or a part of one, that cannot be expressed by spiking neurons; the message says what to do."""


def trace(model: nn.Module) -> fx.GraphModule:
    """Trace a model to a graph whose every computation is a supported module, or moves values only.

    The result computes what the model does in eval mode: functional activations and pools have become modules,
    dropout is gone, a module called twice has become two. It shares nothing with the model, which is left as it was.

    Args:
        model: A network, a LightningModule with ``forward(x)``, or either wrapped by ``torch.compile`` or DDP.

    Raises:
        TypeError: If ``model`` is no module.
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
            return _normalized(model, _traced(_Tracer(), model))
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
        return super().is_leaf_module(m, module_qualified_name)

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


def _normalized(model: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """Check every node, and rebuild the graph on modules of its own."""
    named = dict(model.named_modules())
    own = nn.Module()  # holds the new modules at the user's names
    used: set[str] = set()
    for node in list(graph.nodes):
        module: nn.Module | None = None
        if node.op == "call_module":
            layer, name = named[node.target], str(node.target).replace("._orig_mod", "")
            if isinstance(layer, _DROPPED):
                _skip(graph, node)
                continue
            if not isinstance(layer, _KEPT):
                raise refusal(node, type(layer).__name__, name)
            if len(node.args) + len(node.kwargs) > 1:
                raise refusal(node, "a call with more than the input", name, "give the layer its input alone")
            module = bare_copy(layer)
        elif node.op in ("call_function", "call_method"):
            if node.target in _DROPOUT_FUNCTIONS:
                _skip(graph, node)
                continue
            if node.target in _AS_MODULE:
                module, name = _as_module(node), node.name
            elif not _moves_values(node):
                raise refusal(node, _function_name(node))
        elif node.op == "get_attr":
            remedies = [_REMEDIES.get(_function_name(user), _ONE_BRANCH) for user in node.users]
            remedy = next((remedy for remedy in remedies if remedy != _ONE_BRANCH), _OUTSIDE)
            raise refusal(node, f"the tensor {node.target!r}", remedy=remedy)
        elif node.op == "output" and not isinstance(node.args[0], fx.Node):
            kind = type(node.args[0]).__name__.removeprefix("immutable_")
            raise ConversionError(
                f"{type(model).__name__}.forward returns a {kind}, but a spiking network gives one tensor of scores. "
                "Wrap the model in a module whose forward(x) returns that tensor."
            )
        if module is None:
            continue
        source = _input(node)
        if isinstance(module, MAX_POOLS) and module.return_indices:
            raise refusal(node, "max pooling with return_indices=True", remedy="use return_indices=False")
        if isinstance(module, nn.ReLU):
            if module.inplace and not all(user is node or _is_size(user) for user in source.users):
                raise refusal(node, "an in-place ReLU whose input is read again", remedy="read its output instead")
            module.inplace = False
        # A module called twice becomes two: each has a state and a scale of its own.
        unique, number = name, 1
        while unique in used or any(other.startswith(f"{unique}.") for other in used):
            unique, number = f"{name}_{number}", number + 1
        used.add(unique)
        add_submodule(own, unique, module)
        node.op, node.target, node.args, node.kwargs = "call_module", unique, (source,), {}
    traced = fx.GraphModule(own, graph, class_name=type(model).__name__)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return traced.eval()


def _input(node: fx.Node) -> fx.Node:
    source = node.args[0] if node.args else node.kwargs["input"]
    assert isinstance(source, fx.Node)
    return source


def _skip(graph: fx.Graph, node: fx.Node) -> None:
    node.replace_all_uses_with(_input(node))
    graph.erase_node(node)


def _as_module(node: fx.Node) -> nn.Module:
    kind, names = _AS_MODULE[node.target]
    arguments = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
    arguments.pop("input", None)
    return kind(**arguments)


def _moves_values(node: fx.Node) -> bool:
    """Tell whether a function only moves values, or reads or computes sizes."""
    if node.target is getattr:
        return node.args[1] in _SIZE_ATTRIBUTES
    if node.target in _SIZE_ARITHMETIC:
        return all(not isinstance(arg, fx.Node) or _is_size(arg) for arg in node.args)
    return node.target in (*_SHAPE_FUNCTIONS, *_SHAPE_METHODS, *_SIZE_METHODS)


def _is_size(node: fx.Node) -> bool:
    """Tell whether a node is a size or shape, or computed from such alone."""
    if node.target in _SIZE_METHODS or node.target is getattr:
        return True
    return node.op == "call_function" and all(_is_size(arg) for arg in node.all_input_nodes)


def fold_batch_norms(traced: fx.GraphModule) -> None:
    """Fold every batch norm of a traced network, in place: into the weights before it, or to an affine map.

    Args:
        traced: A network of :func:`trace`, in which ``ShapeProp`` has left shapes.

    Raises:
        ConversionError: If a batch norm behind an activation does not follow a synaptic layer, or has no statistics.
    """
    modules = dict(traced.named_modules())
    neural: set[fx.Node] = set()  # nodes that depend on an activation
    for node in list(traced.graph.nodes):
        norm: Any = modules[str(node.target)] if node.op == "call_module" else None
        if isinstance(norm, nn.ReLU) or neural.intersection(node.all_input_nodes):
            neural.add(node)
        if not isinstance(norm, _BatchNorm):
            continue
        name, source = str(node.target), _input(node)
        if norm.running_mean is None or norm.running_var is None:
            raise refusal(node, "batch norm without running statistics", name, "use track_running_stats=True")
        gain = torch.rsqrt(norm.running_var + norm.eps)
        gain = gain if norm.weight is None else gain * norm.weight
        shift = -norm.running_mean * gain
        shift = shift if norm.bias is None else shift + norm.bias

        layer = modules[str(source.target)] if source.op == "call_module" else nn.Identity()
        # Channels are dimension 1, also behind a Linear, which has its features in the last.
        same_channels = not isinstance(layer, nn.Linear) or len(source.meta["tensor_meta"].shape) == 2
        if is_synaptic(layer) and same_channels and len(source.users) == 1:
            scale_outputs(layer, gain, shift)
            _skip(traced.graph, node)
        elif node in neural:
            raise refusal(
                node,
                "batch norm that does not follow a synaptic layer",
                name,
                "move it directly behind a Linear or Conv layer that nothing else reads, so that it folds into the "
                "weights",
            )
        else:  # on the constant input
            add_submodule(traced, name, ChannelAffine(gain, shift))
    traced.delete_all_unused_submodules()
    traced.recompile()


def scale_outputs(layer: Any, gain: Tensor, shift: Tensor) -> None:
    """Change a synaptic layer in place so that channel c gives ``gain[c] * output + shift[c]``."""
    weight = layer.weight
    if isinstance(layer, TRANSPOSED_CONVOLUTIONS):
        grouped = weight.unflatten(0, (layer.groups, -1))  # groups, in, out, *kernel
        factor = gain.reshape(layer.groups, 1, -1, *[1] * (weight.dim() - 2))
        layer.weight = nn.Parameter((grouped * factor).flatten(0, 1))
    else:
        layer.weight = nn.Parameter(weight * gain.reshape(-1, *[1] * (weight.dim() - 1)))
    layer.bias = nn.Parameter(shift if layer.bias is None else layer.bias * gain + shift)


def scale_inputs(layer: Any, scale: Tensor) -> None:
    """Change a synaptic layer in place so that it gives for input x what it gave for ``scale[c] * x``."""
    weight = layer.weight
    if isinstance(layer, TRANSPOSED_CONVOLUTIONS):
        factor = scale.reshape(-1, *[1] * (weight.dim() - 1))
        layer.weight = nn.Parameter(weight * factor)
    elif isinstance(layer, CONVOLUTIONS):
        grouped = weight.unflatten(0, (layer.groups, -1))  # groups, out, in, *kernel
        factor = scale.reshape(layer.groups, 1, -1, *[1] * (weight.dim() - 2))
        layer.weight = nn.Parameter((grouped * factor).flatten(0, 1))
    else:
        layer.weight = nn.Parameter(weight * scale)


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
        if base in TRANSPOSED_CONVOLUTIONS:
            arguments["output_padding"] = layer.output_padding
        plain = base(**arguments, padding_mode=layer.padding_mode, bias=has_bias, device="meta")
    plain.weight = nn.Parameter(layer.weight.detach().clone())
    if has_bias:
        plain.bias = nn.Parameter(layer.bias.detach().clone())
    plain.eval()
    return plain  # type: ignore[no-any-return]


def _base(layer: nn.Module) -> Any:
    return next(base for base in SYNAPTIC_LAYERS if isinstance(layer, base))


def add_submodule(root: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module at a dotted name, making plain modules on the way."""
    *path, last = name.split(".")
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    root.add_module(last, module)


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
