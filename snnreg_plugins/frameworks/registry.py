"""The frameworks that networks are exported to; each is imported when its neurons are asked for."""

from __future__ import annotations

from importlib import import_module

from snnreg_plugins.frameworks.base import Target

# What makes the neurons of each framework, in the file of its name.
_TARGETS = {"snntorch": "SnnTorchTarget", "norse": "NorseTarget"}


def target_of(framework: str, beta: float, surrogate_slope: float) -> Target:
    """Give what makes the neurons of a framework.

    Args:
        framework: Its name.
        beta: Decay of the potential per step.
        surrogate_slope: Slope of the surrogate gradient, in 1 / λ.

    Raises:
        KeyError: If there is no such framework.
    """
    name = _TARGETS[framework]
    made: Target = getattr(import_module(f"{__package__}.{framework}"), name)(beta, surrogate_slope)
    return made
