"""The one table of frameworks; each is imported when its neurons are asked for."""

from __future__ import annotations

from torch import nn

from snnreg_plugins._imports import needed
from snnreg_plugins.frameworks.base import Framework, Neurons, Target, package_of


def _snntorch() -> Neurons:
    with needed("A network of snnTorch neurons", "snntorch", "snntorch"):
        from snnreg_plugins.frameworks.snntorch import NEURONS

    return NEURONS


def _norse() -> Neurons:
    with needed("A network of Norse neurons", "norse", "norse"):
        from snnreg_plugins.frameworks.norse import NEURONS

    return NEURONS


_SNNTORCH_PARALLEL = {"LeakyParallel", "StateLeaky", "AssociativeLeaky"}
_NORSE_TIME_FIRST = {"SNN", "SNNRecurrent"}


def _snntorch_time(neuron: nn.Module) -> int | None:
    return 0 if FRAMEWORKS["snntorch"].has(neuron, _SNNTORCH_PARALLEL) else None


def _norse_time(neuron: nn.Module) -> int | None:
    return 0 if FRAMEWORKS["norse"].has(neuron, _NORSE_TIME_FIRST) else None


def _spikingjelly_time(neuron: nn.Module) -> int | None:
    return 0 if getattr(neuron, "step_mode", "s") == "m" else None


def _sinabs_time(neuron: nn.Module) -> int | None:
    # Those that squeeze time into the batch know one of the sizes.
    return None if FRAMEWORKS["sinabs"].has(neuron, {"SqueezeMixin"}) else 1


#: By name. A further framework is a row here, and a file with its :class:`Neurons` if networks are exported to it.
FRAMEWORKS: dict[str, Framework] = {
    framework.name: framework
    for framework in (
        Framework(
            name="snntorch",
            stateful={"SpikingNeuron", "LeakyParallel"},
            parallel=_SNNTORCH_PARALLEL,
            decaying={"StateLeaky"},
            one_to_one={"RecurrentOneToOne"},
            time_dim=_snntorch_time,
            forget="reset_mem",
            states={"mem", "syn", "syn_exc", "syn_inh", "spk", "reset"},
            load=_snntorch,
        ),
        Framework(
            name="norse",
            stateful=_NORSE_TIME_FIRST
            | {"SNNCell", "SNNRecurrentCell", "CobaLIFCell", "LIFCorrelation", "LILinearCell"},
            non_spiking={"LI", "LICell", "LIBoxCell", "LILinearCell"},
            without_leak={"IAF", "IAFCell"},
            time_dim=_norse_time,
            load=_norse,
        ),
        Framework(
            name="spikingjelly",
            stateful={"BaseNode"},
            without_leak={"IFNode"},
            time_dim=_spikingjelly_time,
            forget="reset",
        ),
        Framework(
            name="sinabs",
            stateful={"StatefulLayer"},
            non_spiking={"ExpLeak"},
            without_leak={"IAF", "IAFRecurrent"},
            time_dim=_sinabs_time,
            forget="reset_states",
        ),
    )
}


def framework_of(module: nn.Module) -> Framework | None:
    """Find the framework that a module, or a class that it derives from, is of; None if of no known one."""
    packages = map(package_of, type(module).__mro__)
    return next((FRAMEWORKS[package] for package in packages if package in FRAMEWORKS), None)


def exported_to() -> list[str]:
    """Name the frameworks that networks can be exported to."""
    return sorted(name for name, framework in FRAMEWORKS.items() if framework.load is not None)


def neurons_of(framework: str) -> Neurons:
    """Import a framework, and give the neurons of an export to it.

    Args:
        framework: Its name.

    Raises:
        ValueError: If no network is exported to a framework of this name.
        ImportError: If it is not installed.
    """
    load = FRAMEWORKS[framework].load if framework in FRAMEWORKS else None
    if load is None:
        raise ValueError(f"Expected a framework of {exported_to()}, but got {framework!r}.")
    return load()


def target_of(framework: str, beta: float, surrogate: str, surrogate_slope: float) -> Target:
    """Give what makes the neurons of an export to a framework.

    Args:
        framework: Its name.
        beta: Decay of the potential per step.
        surrogate: Name of the surrogate gradient.
        surrogate_slope: Its slope, in 1 / λ.

    Raises:
        ValueError: If no network is exported to a framework of this name.
        ImportError: If it is not installed.
    """
    return Target(neurons_of(framework), beta, surrogate, surrogate_slope)
