"""What a network was made of, written down by who decides it and read by who makes it again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class Structure:
    """The decisions that values led to while a network was built: which parts there are, and of what shape.

    Built for the first time, a network takes them from the values of weights and thresholds. Built again around
    tensors of a file, it reads them: other values would lead to other parts.

    Args:
        written: What an earlier build wrote, plain data by place and question; None to decide.

    Example:
        >>> first = Structure()
        >>> first.decide("fc", "bias", lambda: True)
        True
        >>> Structure(first.written).decide("fc", "bias", lambda: False)
        True
    """

    def __init__(self, written: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self.is_given = written is not None
        self.written: dict[str, dict[str, Any]] = {place: dict(what) for place, what in (written or {}).items()}

    def decide(self, place: str, question: str, answer: Callable[[], T]) -> T:
        """Answer a question by ``answer``, and write it down; or read the answer.

        Args:
            place: The layer or operation.
            question: What is decided; once at a place.
            answer: Decides; gives plain data.

        Raises:
            KeyError: If the answer is to be read, but was not written.
        """
        if not self.is_given:
            answers = self.written.setdefault(place, {})
            assert question not in answers, (place, question)
            answers[question] = answer()
        elif question not in self.written.get(place, {}):
            raise KeyError(f"It does not say {question!r} of {place!r}.")
        found: T = self.written[place][question]
        return found
