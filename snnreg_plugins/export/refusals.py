"""What cannot be converted: said by layer, with its line in the user's code and what to do."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor, fx, nn

from snnreg_plugins._models import dtype_of

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
        ("layer_norm group_norm instance_norm", "train with nn.BatchNorm in its place, which folds into "
         "the weights"),
        ("linear matmul bmm einsum", "use nn.Linear, which owns its weights"),
        ("conv1d conv2d conv3d", "use nn.Conv, which owns its weights"),
        ("mean", "give the dimensions to average over, without the batch"),
        ("stack", "stack behind the batch, in dimension 1 or a later one"),
        ("TableEncoder", "export what reads it, on what it sends and with time_dim=0, and put both in a row: "
         "nn.Sequential(encoder, network)"),
        ("MultiheadAttention scaled_dot_product_attention", "keep attention as a DNN behind the spiking part, with "
         "`until`"),
    )
    for name in names.split()
}  # fmt: skip
_SUPPORTED = (
    "use Linear, Conv, ConvTranspose, ReLU, BatchNorm, average or max pooling, sums, concatenation, Flatten, Dropout "
    "and Identity, or "
)
_UNGATED = "train without this gate, such as a squeeze-and-excitation: spikes do not multiply each other"
_RESHAPES = ("view", "reshape", "unsqueeze", "expand", "expand_as", "flatten", "permute", "transpose", "getitem")
_BEHIND = "keep it as a DNN behind the spiking part, with `until`"
_IN_FRONT = "take it out of the network and apply it to the inputs: it stands in front of all neurons"


class ConversionError(ValueError):
    """A model, or a part of one, that cannot be expressed by spiking neurons; the message says what to do."""


def refusal(node: fx.Node, what: str, name: str | None = None, remedy: str | None = None) -> ConversionError:
    """Say what cannot be converted, where it stands in the user's code, and what to do."""
    layer = f"layer {name!r}: " if name else ""
    others = _SUPPORTED + (_BEHIND if node.meta.get("neural", True) else _IN_FRONT)
    gates = "sigmoid" in what.lower() and _gates(node)
    remedy = remedy or (_UNGATED if gates else _REMEDIES.get(what, others))
    return ConversionError(f"Cannot convert {layer}{what}{where(node)}. To export this network, {remedy}.")


def _gates(node: fx.Node) -> bool:
    """Tell whether what a node gives is multiplied with another activation than its own input."""
    own, ahead = {node, *node.all_input_nodes}, [node]
    while ahead:
        for user in ahead.pop().users:
            if _called(user) in _RESHAPES:
                own.add(user)
                ahead.append(user)
            elif _called(user) in ("mul", "mul_", "imul", "multiply"):
                return any(factor not in own for factor in user.all_input_nodes)
    return False


def _called(node: fx.Node) -> str:
    """Name the function or method that a node calls."""
    return str(getattr(node.target, "__name__", node.target))


def where(node: fx.Node) -> str:
    """Find the line of the user's code that a node comes from: ``" at file:line (code)"``, or nothing."""
    places = re.findall(r'File "([^"]+)", line (\d+).*\n\s*(.*)', node.stack_trace or "")
    for file, line, code in reversed(places):
        if is_users(file):
            return f" at {file}:{line} ({code.strip()})"
    return ""


def is_users(file: str) -> bool:
    """Tell whether a line of code is the user's: neither torch's, nor Lightning's, nor of the export itself."""
    return _EXPORT not in Path(file).parents and not _LIBRARIES.search(file)


_EXPORT = Path(__file__).parent
_LIBRARIES = re.compile(r"-packages[/\\](torch|lightning|pytorch_lightning)[/\\]")


def misfit(model: nn.Module, inputs: Tensor, argument: str, error: Exception) -> ValueError:
    """Say that a model fails on inputs."""
    taken, reason = dtype_of(model), str(error).rstrip(".")
    # As torch says it of operands that are of two types.
    of_types = inputs.dtype != taken and ("type" in reason or "not implemented for" in reason)
    return ValueError(
        f"Expected argument `{argument}` to hold inputs of the model, but the model fails on samples of shape "
        f"{tuple(inputs.shape[1:])} and {inputs.dtype}: {reason}."
        + (f" Make them of the model's type: x.to({taken})." if of_types else "")
    )
