"""From a user's model to a plain graph of modules: traced, functional activations as modules, sums in one form."""

from __future__ import annotations

import threading
import traceback

import torch
from torch import Tensor, fx, nn

from snnreg_plugins._models import as_module, eval_and_back, kept_as_it_is, require_sizes
from snnreg_plugins.export.copies import unwrapped
from snnreg_plugins.export.normalize import normalized
from snnreg_plugins.export.refusals import ConversionError, is_users, misfit
from snnreg_plugins.export.tracer import Tracer
from snnreg_plugins.spiking.network import SpikingNetwork
from snnreg_plugins.watching.layers import spikes_already

#: Held while a model is looked at: torch.fx patches nn.Module for all threads, and modes and buffers of a model that
#: several threads export are put back in the end.
TRACING = threading.RLock()


def trace(model: nn.Module, samples: Tensor, until: str | None = None, argument: str = "calibration") -> fx.GraphModule:
    """Trace a model to a graph whose every computation is a supported module, arithmetic, or moves values only.

    The result computes what the model does in eval mode: functional activations and pools have become modules,
    dropout is gone, a module called twice has become two, arguments beside the input have their defaults. It shares
    nothing with the model, which is left as it was. Forward runs once on the samples; whether the result computes what
    the model does when it is called is for :func:`~snnreg_plugins.export.faithful.require_same` to say.

    Args:
        model: A network, a LightningModule with ``forward(x)``, or either wrapped by ``torch.compile`` or DDP.
        samples: Two inputs or more, ``(B, ...)``, whose sizes are those that forward may ask for.
        until: The last layer to convert, by name, or a block of layers. What depends on it may compute anything; its
            nodes have ``node.meta["head"]``, and the layer's node has ``node.meta["cut"]``. The node of an activation
            has ``node.meta["populations"]``, by the name that their neurons get; the input ``node.meta["name"]``.
        argument: Name of the argument that the samples are from, for errors.

    Returns:
        The graph; ``meta["any_size"]`` says whether nothing of it depends on the sizes of the samples.

    Raises:
        TypeError: If ``model`` is no module.
        ValueError: If there is no layer ``until``, or the samples do not fit the model.
        ConversionError: If the model cannot be traced or holds something unsupported; names the layer and the
            line in the user's code, and says what to do.
    """
    if not isinstance(model, torch.jit.ScriptModule):
        as_module("model", model)
    if any(isinstance(module, SpikingNetwork) for module in model.modules()):
        raise ConversionError(f"{type(model).__name__} holds a spiking network already. Pass the DNN it was made from.")
    if until is None and spikes_already(model):
        raise ConversionError(
            f"{type(model).__name__} has spiking neurons already, and is no DNN to export. SpikingValidation, "
            "report(None, network, data) and profile(network, inputs) measure it as it is."
        )
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ConversionError(
                f"{type(module).__name__} is compiled by torch.jit, which leaves no forward() to trace. Pass the "
                "module that it was made from."
            )
    model = unwrapped(model)
    require_sizes(model)
    with (
        TRACING,
        eval_and_back(model),
        # A forward that keeps what it computed would keep what tracing puts in its place.
        kept_as_it_is(model),
        # Parameters of a traced copy are to be trained, also when validation runs in inference mode.
        torch.inference_mode(False),
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),
    ):
        return normalized(model, _recorded(model, samples.detach().clone(), argument), until)


def _recorded(model: nn.Module, samples: Tensor, argument: str) -> fx.Graph:
    """Record what forward does with the samples."""
    name = type(model).__name__
    owner = next(base for base in type(model).__mro__ if "forward" in vars(base))
    if owner is nn.Module or owner.__name__ == "LightningModule":
        part = next((child for child, _ in model.named_children()), "net")
        raise ConversionError(
            f"{name} has no forward() to trace. Pass the network itself, such as `model.{part}`, or its name to a "
            f'callback: network="{part}".'
        )
    tracer = Tracer(samples)
    try:
        return tracer.trace(model)
    except ConversionError:
        raise
    except Exception as error:
        if tracer.computing_failed:
            raise misfit(model, samples, argument, error) from error
        remedy = "Move data-dependent control flow (if, for, len over tensors) out of forward()"
        if "does not support item assignment" in str(error):
            remedy = "Write what is assigned as a product with a mask of constants, or a concatenation"
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_users(frame.filename)]
        where = f" at {frames[-1].filename}:{frames[-1].lineno} ({frames[-1].line})" if frames else ""
        raise ConversionError(
            f"{name} cannot be traced by torch.fx{where}: {error}. {remedy}, or export the part of the network "
            "without it."
        ) from error
