"""Which modules of a model are synapses, and which are neurons."""

from __future__ import annotations

from copy import copy
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from snnreg_plugins.frameworks.registry import framework_of
from snnreg_plugins.functional.synapses import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS, is_synaptic, sample_shape_of

#: See :func:`fan_out_key`.
FanOutKey: TypeAlias = tuple[int | str, tuple[int, ...], tuple[int, ...] | None]

_ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Softplus,
    nn.Hardtanh,
    nn.Hardswish,
)


class ActivityLayer(nn.Module):
    """A module of this package that emits activity, as the activations of torch and spiking neurons do."""


def is_stateful(module: nn.Module) -> bool:
    """Tell whether ``module`` is of a known framework and keeps a state over time steps, spiking or not."""
    framework = framework_of(module)
    return framework is not None and framework.has(module, framework.stateful)


def is_spiking_neuron(module: nn.Module) -> bool:
    """Tell whether ``module`` is a spiking neuron of snnTorch, Norse, SpikingJelly or sinabs."""
    framework = framework_of(module)
    return framework is not None and is_stateful(module) and not framework.has(module, framework.non_spiking)


def emits_spikes(module: nn.Module) -> bool:
    """Tell whether a layer of neurons emits spikes: all do but the activations of torch."""
    return not isinstance(module, _ACTIVATIONS)


def spikes_already(model: nn.Module) -> bool:
    """Tell whether a model has spiking neurons, so that it is to be measured as it is and not to be exported."""
    return any(map(is_spiking_neuron, model.modules()))


def time_dim(neuron: nn.Module) -> int | None:
    """Return the dimension of time in the output of a neuron that takes all steps at once; None if it takes one."""
    framework = framework_of(neuron)
    return None if framework is None else framework.time_dim(neuron)


def begins_anew(neuron: nn.Module) -> bool:
    """Tell whether a neuron takes all steps in one call, and goes on with nothing in the next."""
    framework = framework_of(neuron)
    return framework is not None and framework.has(neuron, framework.parallel)


def only_decays(module: nn.Module) -> bool:
    """Tell whether what a module itself multiplies, its parts left out, is the decay of a neuron, and no synapse."""
    framework = framework_of(module)
    return framework is not None and framework.has(module, framework.decaying)


def is_own_decay(layer: nn.RNNBase, model: nn.Module) -> bool:
    """Tell whether a recurrent layer's own weights are the decay of a neuron that it is a part of.

    As in snnTorch's LeakyParallel: nothing but the zeros of its matrix tells that it connects no neurons.
    """
    if not any(begins_anew(module) and layer in module.children() for module in model.modules()):
        return False
    matrix: Tensor = layer.get_parameter("weight_hh_l0").detach()
    return isinstance(layer, nn.RNN) and torch.equal(matrix, matrix.diagonal().diag())


def leaks(neuron: nn.Module) -> bool:
    """Tell whether the potential of a neuron decays: by its dynamics, its ``beta``, or else its class."""
    framework = framework_of(neuron)
    dynamics = framework.load().describe(neuron) if framework is not None and framework.load is not None else None
    beta = getattr(neuron, "beta", None) if dynamics is None else dynamics.beta
    if isinstance(beta, (float, int, Tensor)):
        return bool((torch.as_tensor(beta) != 1).any())
    return framework is None or not framework.has(neuron, framework.without_leak)


def forget_states(model: nn.Module) -> None:
    """Let all neurons of a model forget the states that they keep in themselves."""
    for module in model.modules():
        framework = framework_of(module)
        forget = getattr(module, framework.forget, None) if framework is not None and framework.forget else None
        if callable(forget):
            forget()
            # Of the size of a batch they would be in the way of what copies buffers, as averaging does; and none may
            # stay, as who counts samples knows by them that a batch goes on.
            for name in framework.states if framework is not None else ():
                if isinstance(held := getattr(module, name, None), Tensor):
                    setattr(module, name, held.new_zeros(0))


def synaptic_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Find the layers that multiply activity by weights, by name; a shared layer has its first name."""
    return {name: module for name, module in model.named_modules() if is_synaptic(module)}


def is_unbatched(layer: nn.Module, x: Tensor) -> bool:
    """Tell whether a layer reads one sample without a batch, as torch allows of Linear and convolutions.

    Example:
        >>> is_unbatched(nn.Conv2d(3, 4, 3), torch.zeros(3, 8, 8)), is_unbatched(nn.Linear(3, 4), torch.zeros(8, 3))
        (True, False)
    """
    return isinstance(layer, (nn.Linear, *CONVOLUTIONS)) and len(sample_shape_of(layer, tuple(x.shape))) == x.dim()


def as_called(layer: Any, args: tuple[Any, ...]) -> Any:
    """Give a layer as a call of it has it: with the output padding that ``output_size`` sets of a transposed one.

    Args:
        layer: A synaptic layer.
        args: All arguments of the call.

    Example:
        >>> layer = nn.ConvTranspose1d(2, 3, kernel_size=3, stride=2)
        >>> as_called(layer, (torch.zeros(1, 2, 4), [10])).output_padding
        (1,)
    """
    if len(args) < 2 or args[1] is None or not isinstance(layer, TRANSPOSED_CONVOLUTIONS):
        return layer
    dims = len(layer.kernel_size)
    given, wanted = args[0].shape[-dims:], tuple(args[1])[-dims:]
    if len(wanted) != dims:  # which torch refuses
        return layer
    padding = tuple(
        int(outputs) - ((size - 1) * stride - 2 * around + dilation * (kernel - 1) + 1)
        for outputs, size, stride, around, dilation, kernel in zip(
            wanted, given, layer.stride, layer.padding, layer.dilation, layer.kernel_size, strict=True
        )
    )
    called = copy(layer)
    called.output_padding = padding
    return called


def fan_out_key(which: int | str, layer: Any, shape: tuple[int, ...]) -> FanOutKey:
    """Give what the fan-out of a layer as it is called depends on: its inputs' shape, and what a call may change.

    Args:
        which: The number or name of the layer.
        layer: The layer, :func:`as_called`.
        shape: Of a sample of its inputs.
    """
    return which, shape, getattr(layer, "output_padding", None)


def strided(x: Tensor) -> Tensor:
    """Give an input of a layer with all its zeros.

    Raises:
        TypeError: If it is a nested tensor.

    Example:
        >>> strided(torch.eye(2).to_sparse()).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    if x.is_nested:
        raise TypeError("What a layer does with a nested tensor cannot be counted: give the model its parts, padded.")
    return x if x.layout is torch.strided else x.detach().to_dense()


def one_to_one_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Find the layers that weigh each spike for one target alone, inside recurrent neurons of snnTorch, by name."""
    return {name: module for name, module in model.named_modules() if _is_one_to_one(module)}


def neuron_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Find the layers that emit activity, by name: spiking neurons, or the activation modules of a DNN."""
    return {
        name: module
        for name, module in model.named_modules()
        if is_spiking_neuron(module) or isinstance(module, (*_ACTIVATIONS, ActivityLayer))
    }


def _is_one_to_one(module: nn.Module) -> bool:
    framework = framework_of(module)
    return framework is not None and framework.has(module, framework.one_to_one)
