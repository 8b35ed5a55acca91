"""How many time steps a training takes: always as many, drawn for each batch, or fewer from epoch to epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from snnreg_plugins._checks import as_integer, as_integers, shown

#: T; several, of which one is drawn for each batch; or T from each of these epochs on.
GivenSteps: TypeAlias = int | list[int] | dict[int, int] | None


class Timesteps:
    """How many time steps each batch of a training takes.

    Args:
        given: T; several, of which one is drawn for each batch; or by the epoch from which it holds, 0 among them.
            None if nobody said.

    Raises:
        ValueError: If it is anything else.

    Example:
        >>> Timesteps({0: 4, 3: 2}).of_epoch(5), Timesteps([1, 2, 4]).at_most
        (2, 4)
    """

    def __init__(self, given: Any) -> None:
        self.choices: tuple[int, ...] = ()  # that are drawn from
        self.by_epoch: dict[int, int] = {}
        if isinstance(given, Mapping):
            self.by_epoch = _schedule(given)
        elif isinstance(given, (list, tuple)) or getattr(given, "ndim", 0) == 1:
            self.choices = as_integers("timesteps", given, such_as=(1, 2, 4))
        elif given is not None:
            self.by_epoch = {0: as_integer("timesteps", given)}
        self._random = torch.Generator().manual_seed(0)  # the same in all processes

    @property
    def given(self) -> Any:
        """What was given, as plain data."""
        return list(self.choices) or (self.by_epoch if self.are_scheduled else self.at_most)

    @property
    def are_given(self) -> bool:
        """Whether anybody said."""
        return bool(self.choices or self.by_epoch)

    @property
    def vary(self) -> bool:
        """Whether they are not the same all the time."""
        return len({*self.choices, *self.by_epoch.values()}) > 1

    @property
    def are_scheduled(self) -> bool:
        """Whether they change with the epoch."""
        return len(self.by_epoch) > 1

    @property
    def several(self) -> tuple[int, ...]:
        """The numbers of steps to validate at, ascending, if there is more than one in an epoch."""
        return tuple(sorted(set(self.choices)))

    @property
    def at_most(self) -> int | None:
        """The largest number of steps of the first epoch; None if nobody said."""
        return max(self.choices, default=self.by_epoch.get(0))

    def of_epoch(self, epoch: int) -> int | None:
        """Give the largest number of steps of an epoch."""
        begun = [steps for first, steps in self.by_epoch.items() if first <= epoch]
        return begun[-1] if begun else self.at_most

    def draw(self) -> int | None:
        """Draw those of a batch; None for those of the epoch."""
        if not self.choices:
            return None
        return self.choices[int(torch.randint(len(self.choices), (), generator=self._random))]

    @property
    def drawn(self) -> Tensor:
        """What comes next, to go on from."""
        return self._random.get_state()

    @drawn.setter
    def drawn(self, state: Tensor) -> None:
        self._random.set_state(state)


def _schedule(given: Mapping[Any, Any]) -> dict[int, int]:
    expected = "Expected argument `timesteps` to give T by the epoch from which it holds, such as {0: 4, 3: 2}, but got"
    try:
        found = {as_integer("", epoch, 0): as_integer("", steps) for epoch, steps in given.items()}
    except ValueError:
        found = {}
    if 0 not in found or len(found) < len(given):
        raise ValueError(f"{expected} {shown(dict(given))}.")
    return dict(sorted(found.items()))
