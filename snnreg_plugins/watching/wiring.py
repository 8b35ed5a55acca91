"""Which layers are called, how often and in which order, and so which neurons a synaptic layer drives."""

from __future__ import annotations

from collections import deque

from snnreg_plugins.watching.steps import CallSteps


class Wiring:
    """What the calls of a model's layers tell of it, by name.

    The neurons that a synaptic layer drives are those called after it and before any other one, at their first call. A
    layer within neurons, through which they drive each other, is none of these.

    Attributes:
        called: Calls by name, in the order of the first ones; of a simulated network, time steps.
        shapes: Shape of the last input of each synaptic layer, with the batch.
        drivers: From each neuron layer to the synaptic layer that drives it; None if it has none.
        behind: Synaptic layers before whose first call there were neurons.
    """

    def __init__(self) -> None:
        self.called: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.drivers: dict[str, str | None] = {}
        self.behind: dict[str, None] = {}
        self._last: deque[str] = deque(maxlen=8)  # synaptic layers called
        self._steps: dict[str, tuple[int, int]] = {}  # in the pass under way: the first, and behind the last

    def arrived(self, name: str, call: CallSteps | None, shape: tuple[int, ...]) -> None:
        """Remember a synaptic layer's call."""
        if name not in self.shapes and self.drivers:
            self.behind[name] = None
        self.shapes[name] = shape
        self._last.append(name)
        self._remember(name, call)

    def emitted(self, name: str, call: CallSteps | None) -> None:
        """Remember a neuron layer's call."""
        if name not in self.drivers:
            outside = (it for it in reversed(self._last) if not it.startswith(f"{name}."))
            self.drivers[name] = next(outside, None) if name else None
        self._remember(name, call)

    def is_within_neurons(self, name: str) -> bool:
        """Tell whether a synaptic layer is one through which neurons drive each other."""
        return any(name.startswith(f"{neurons}.") for neurons in self.drivers)

    def _remember(self, name: str, call: CallSteps | None) -> None:
        if call is None:
            self.called[name] = self.called.get(name, 0) + 1
        else:  # several steps, of a part of the batch
            self.called.setdefault(name, 0)
            first, behind = self._steps.get(name, (call.first_step, 0))
            self._steps[name] = min(first, call.first_step), max(behind, call.first_step + call.steps)

    def end_pass(self) -> None:
        """Count the steps of the pass, which is over."""
        for name, (first, behind) in self._steps.items():
            self.called[name] += behind - first
        self._steps.clear()
