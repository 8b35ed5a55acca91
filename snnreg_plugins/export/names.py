"""Names for parts that a user's model has none for."""

from __future__ import annotations

from collections.abc import Iterable


class Names:
    """Names of modules that are taken, those of layers to come among them, so that a new one never takes theirs.

    Args:
        taken: Dotted names of the layers that keep their own.

    Example:
        >>> names = Names(["act", "act_1"])
        >>> names.free("act"), names.free("act")
        ('act_2', 'act_3')
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self.taken = set(taken)

    def is_free(self, name: str) -> bool:
        """Tell whether no module is at a name or below it."""
        return name not in self.taken and not any(other.startswith(f"{name}.") for other in self.taken)

    def free(self, name: str, beside: tuple[str, ...] = ()) -> str:
        """Take a name, numbered where it is taken.

        Args:
            name: What it would best be.
            beside: Endings of further names that are to be free, and are taken too.
        """
        number, unique = 0, name
        while not all(self.is_free(unique + ending) for ending in ("", *beside)):
            number += 1
            unique = f"{name}_{number}"
        self.taken |= {unique + ending for ending in ("", *beside)}
        return unique
