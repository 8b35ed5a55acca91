"""Ways to give an input to a spiking network; one class and one row each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from snnreg_plugins.export.rectifiers import Population, both_signs
from snnreg_plugins.export.simulate import Balance, Neurons
from snnreg_plugins.spiking.coding import LatencyCoder, PoissonCoder


class CodeSettings(NamedTuple):
    """What a code of the input is made by, whatever its kind.

    Args:
        name: The name of its part, or of its neurons, in the network.
        timesteps: T.
        beta: Decay of a potential per step.
        initial_potential: As a share of the threshold.
        like: A tensor of the network's type, where the network is.
    """

    name: str
    timesteps: int
    beta: float
    initial_potential: float
    like: Tensor


class Inputs(NamedTuple):
    """What calibration data shows of the inputs.

    Args:
        largest: The largest magnitude.
        mean: Mean magnitude of those that are not 0.
        signed: Whether some are negative.
    """

    largest: float
    mean: float
    signed: bool


class InputCode:
    """How the input arrives. This one: as it is, a constant current that is computed once.

    Attributes:
        module: ``(input, state) -> (spikes, state)``, or None.
        worth: What a spike of the module is worth.
        populations: Neurons that read the input, by name.
        balances: How these are set.
    """

    def __init__(self) -> None:
        self.module: nn.Module | None = None
        self.worth = 1.0
        self.populations: dict[str, Population] = {}
        self.balances: dict[str, Balance] = {}

    @classmethod
    def made(cls, inputs: Inputs, settings: CodeSettings) -> InputCode:
        """Make it for the inputs of calibration data."""
        return cls()

    @classmethod
    def made_again(cls, written: Mapping[str, Any], settings: CodeSettings) -> InputCode:
        """Make it for a network that is built again: of the same parts, whose tensors come from a file.

        Args:
            written: What :meth:`written` gave.
            settings: As it was made by.
        """
        return cls()

    def written(self) -> dict[str, Any]:
        """Give, as plain data, what :meth:`made_again` is to know beside tensors and settings."""
        return {}

    def currents(self, inputs: Tensor) -> list[Tensor] | None:
        """Give what goes into a simulation at each step, ``(B, ...)``; None for the input itself."""
        return None


class _SpikesOfModule(InputCode):
    """Spikes of a module.

    Args:
        module: The module.
        worth: What a spike is worth.
        settings: As for all.
    """

    def __init__(self, module: nn.Module, worth: float, settings: CodeSettings) -> None:
        super().__init__()
        self.module = module.to(settings.like)
        self.worth = worth
        self.timesteps = settings.timesteps

    def currents(self, inputs: Tensor) -> list[Tensor]:
        assert self.module is not None
        steps, state = [], None
        for _ in range(self.timesteps):
            spikes, state = self.module(inputs, state)
            steps.append(self.worth * spikes)
        return steps


class PoissonCode(_SpikesOfModule):
    """Spikes at random; see :class:`~snnreg_plugins.spiking.coding.PoissonCoder`."""

    @classmethod
    def made(cls, inputs: Inputs, settings: CodeSettings) -> InputCode:
        return cls(PoissonCoder(inputs.largest), inputs.largest, settings)

    @classmethod
    def made_again(cls, written: Mapping[str, Any], settings: CodeSettings) -> InputCode:
        return cls(PoissonCoder(1.0), 1.0, settings)


class LatencyCode(_SpikesOfModule):
    """One spike; see :class:`~snnreg_plugins.spiking.coding.LatencyCoder`."""

    @classmethod
    def made(cls, inputs: Inputs, settings: CodeSettings) -> InputCode:
        # A spike carries on average what the input is over all steps.
        worth = inputs.mean * settings.timesteps
        return cls(LatencyCoder(inputs.largest, settings.timesteps), worth, settings)

    @classmethod
    def made_again(cls, written: Mapping[str, Any], settings: CodeSettings) -> InputCode:
        return cls(LatencyCoder(1.0, settings.timesteps), 1.0, settings)


class NeuronCode(InputCode):
    """Neurons on the input, one population for each of its signs.

    Args:
        signed: Whether there are neurons for negative input.
        level: The largest magnitude.
        settings: As for all.
    """

    def __init__(self, signed: bool, level: float, settings: CodeSettings) -> None:
        super().__init__()
        positive, negative = both_signs(-1.0)
        kinds = [positive, negative] if signed else [positive]
        self.populations = {settings.name + kind.suffix: kind for kind in kinds}
        worth = torch.tensor(level, device=settings.like.device)
        own = Balance(worth, worth, settings.initial_potential * worth, torch.zeros_like(worth))
        self.balances = dict.fromkeys(self.populations, own)
        self.timesteps, self.beta = settings.timesteps, settings.beta

    @classmethod
    def made(cls, inputs: Inputs, settings: CodeSettings) -> InputCode:
        return cls(inputs.signed, inputs.largest, settings)

    @classmethod
    def made_again(cls, written: Mapping[str, Any], settings: CodeSettings) -> InputCode:
        return cls(bool(written["signed"]), 1.0, settings)

    def written(self) -> dict[str, Any]:
        return {"signed": len(self.populations) > 1}

    def currents(self, inputs: Tensor) -> list[Tensor]:
        total = [torch.zeros_like(inputs)] * self.timesteps
        for name, kind in self.populations.items():
            balance = self.balances[name]
            neurons = Neurons(kind, [kind.sign * inputs] * self.timesteps, inputs, self.beta, per_channel=False)
            fired = neurons.fire(balance)
            total = [a + kind.sign * balance.level * b for a, b in zip(total, fired, strict=True)]
        return total


#: Ways to give the input to the network, by name.
CODES: dict[str, type[InputCode]] = {
    "constant": InputCode,
    "poisson": PoissonCode,
    "latency": LatencyCode,
    "neurons": NeuronCode,
}


def code_for(coding: str, inputs: Inputs, settings: CodeSettings) -> InputCode:
    """Make a code of the input by name.

    Raises:
        ValueError: If the inputs are to become spikes, but are all 0 or no floating numbers.
    """
    if CODES[coding] is not InputCode and not settings.like.is_floating_point():
        raise ValueError(
            f"Expected inputs of a floating type for coding={coding!r}, but got {settings.like.dtype}. Calibrate and "
            'run on `x.float()`, or use coding="constant".'
        )
    if CODES[coding] is not InputCode and not inputs.largest > 0:
        raise ValueError(f"Expected inputs that are not all 0 to code by {coding!r}.")
    return CODES[coding].made(inputs, settings)
