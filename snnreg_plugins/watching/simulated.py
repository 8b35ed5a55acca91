"""What a network that simulates its time steps itself tells those who look on."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn


class Known(NamedTuple):
    """Modules of which it is known whether they handle events: whole numbers that are not negative.

    Args:
        readers: Modules whose input holds events in every call.
        sources: Modules whose output does.
        analog: Modules whose input is a current and no spikes: numbers above 1 are multiplied, whole ones too.
        averaged: Modules that read means over the time steps, which are no events any more.
    """

    readers: frozenset[nn.Module] = frozenset()
    sources: frozenset[nn.Module] = frozenset()
    analog: frozenset[nn.Module] = frozenset()
    averaged: frozenset[nn.Module] = frozenset()


class SimulatedNetwork(nn.Module):
    """A network one call of which is all time steps of its samples, from fresh states; base of those that are.

    What it says here is taken for granted in every pass, and looked at in few.

    Attributes:
        timesteps: Number of time steps of a call.
    """

    timesteps: int
    _steps_taken: Tensor | None = None

    @property
    def steps_taken(self) -> Tensor | None:
        """Time steps of each sample of the last call, ``(B,)``; None if that took all steps."""
        return self._steps_taken

    @property
    def weight_bits(self) -> int | None:
        """Bits that a weight has in memory; None for those of all numbers."""
        return None

    @property
    def only_layers_multiply(self) -> bool:
        """Whether nothing but synaptic layers multiplies activity."""
        return False

    def batch_dim_of(self, *args: Any, **kwargs: Any) -> int:
        """Give the dimension of the batch in the input of a call with these arguments."""
        return 0

    def name_in_dnn(self, path: str) -> str:
        """Give the name that a module has in the user's DNN; empty for a part that is none of it.

        Args:
            path: Its name in this network.
        """
        return path

    def initial_potentials(self) -> dict[nn.Module, Tensor]:
        """Give the potentials that neuron layers begin with, each shaped to broadcast over a sample; 0 of others."""
        return {}

    def known_events(self) -> Known:
        """Find the modules that handle events alone, and those that never do, by how the network is built."""
        return Known()


def names_in_dnn(model: nn.Module) -> dict[str, str]:
    """Give the name that each module of a model is shown by: in a simulated network, that in the user's DNN.

    Returns:
        From the name in the model; no two are the same.

    Example:
        >>> names_in_dnn(nn.Sequential(nn.ReLU()))
        {'': '', '0': '0'}
    """
    modules = dict(model.named_modules())
    networks = [(f"{path}." if path else "", it) for path, it in modules.items() if isinstance(it, SimulatedNetwork)]
    shown = {path: path for path in modules}
    taken = {path for path in modules if not any(path.startswith(prefix) for prefix, _ in networks)}
    parts = []
    for prefix, network in networks:
        for path in modules:
            if path == prefix[:-1] or not path.startswith(prefix):
                continue
            name = network.name_in_dnn(path.removeprefix(prefix))
            if not name:
                parts.append(path)
                continue
            shown[path] = path if prefix + name in taken else prefix + name
            taken.add(shown[path])
    for path in parts:  # layers go first
        shown[path] = f"<{path}>" if path in taken else path
    return shown


def known_events(model: nn.Module) -> Known:
    """Collect what all simulated networks in a model know of themselves."""
    found = [module.known_events() for module in model.modules() if isinstance(module, SimulatedNetwork)]
    return Known(*(frozenset().union(*parts) for parts in zip(*found, strict=True))) if found else Known()
