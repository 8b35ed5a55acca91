"""Which modules of a model are synapses, and which are neurons."""

from __future__ import annotations

from torch import nn

from snnreg_plugins.functional.synapses import is_synaptic

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
# Classes by package. Names, so that no framework has to be imported to recognise its own.
STATEFUL = {
    "snntorch": {"SpikingNeuron", "LeakyParallel"},
    "norse": {"SNNCell", "SNNRecurrentCell", "SNN", "SNNRecurrent", "CobaLIFCell", "LIFCorrelation", "LILinearCell"},
    "spikingjelly": {"BaseNode"},
    "sinabs": {"StatefulLayer"},
}
_OWN = {"snnreg_plugins": {"QCFS", "PoissonCoder", "LatencyCoder"}}
_TIME_FIRST = {"snntorch": {"LeakyParallel"}, "norse": {"SNN", "SNNRecurrent"}}
_SQUEEZED = {"sinabs": {"SqueezeMixin"}}
_ONE_TO_ONE = {"snntorch": {"RecurrentOneToOne"}}
_NON_SPIKING = {"norse": {"LI", "LICell", "LIBoxCell", "LILinearCell"}, "sinabs": {"ExpLeak"}}


def is_spiking_neuron(module: nn.Module) -> bool:
    """Tell whether ``module`` is a spiking neuron of snnTorch, Norse, SpikingJelly or sinabs."""
    return derives(module, STATEFUL) and not derives(module, _NON_SPIKING)


def time_dim(neuron: nn.Module) -> int | None:
    """Return the dimension of time in the output of a neuron that takes all steps at once; None if it takes one."""
    if derives(neuron, _TIME_FIRST) or getattr(neuron, "step_mode", "s") == "m":
        return 0
    # Those of sinabs that squeeze time into the batch know one of the sizes.
    return 1 if derives(neuron, {"sinabs": {"StatefulLayer"}}) and not derives(neuron, _SQUEEZED) else None


def synaptic_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Find the layers that multiply activity by weights, by name; a shared layer has its first name."""
    return {name: module for name, module in model.named_modules() if is_synaptic(module)}


def one_to_one_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Find the layers that weigh each spike for one target alone, inside recurrent neurons of snnTorch, by name."""
    return {name: module for name, module in model.named_modules() if derives(module, _ONE_TO_ONE)}


def neuron_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Find the layers that emit activity, by name: spiking neurons, or the activation modules of a DNN."""
    return {
        name: module
        for name, module in model.named_modules()
        if is_spiking_neuron(module) or isinstance(module, _ACTIVATIONS) or derives(module, _OWN)
    }


def derives(module: nn.Module, classes: dict[str, set[str]]) -> bool:
    """Tell whether a module is of one of these classes, given as names by package."""
    bases = type(module).__mro__
    return any(base.__name__ in classes.get(base.__module__.partition(".")[0], ()) for base in bases)
