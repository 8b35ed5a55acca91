"""Which passes of a model belong together, where those who count are told after each batch that it is over."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from torch import nn

from snnreg_plugins import _torch


class Window:
    """The passes of a model up to the moment when somebody is told of them, and the first that follows."""

    number = 0
    told = False

    def begin_pass(self) -> int:
        """Give the number of the window that a pass which begins is in."""
        if self.told and not _torch.is_in_backward():  # where checkpointing only repeats a pass
            self.number, self.told = self.number + 1, False
        return self.number


_WINDOWS: WeakKeyDictionary[nn.Module, Window] = WeakKeyDictionary()


def window_of(model: nn.Module) -> Window | None:
    """Give the window that a model is in; None if nobody was ever told."""
    return _WINDOWS.get(model)


def tell(model: nn.Module) -> None:
    """Tell that what ran by now belongs together."""
    _WINDOWS.setdefault(model, Window()).told = True
