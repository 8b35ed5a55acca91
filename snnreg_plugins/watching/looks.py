"""When to look closely at a pass, for products that no layer's hook sees."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor, nn

from snnreg_plugins import _torch
from snnreg_plugins.watching.inputs import InputEvents
from snnreg_plugins.watching.layers import only_decays
from snnreg_plugins.watching.multiples import Multiples
from snnreg_plugins.watching.products import Cost, Products
from snnreg_plugins.watching.recurrent import is_recurrent
from snnreg_plugins.watching.steps import steps_of_call

# Passes from the first on that are all looked at closely.
_ALL_LOOKED_AT = 2
# Modules whose weights scale, shift or look up, and do not multiply as synapses do.
_SCALING = (nn.LayerNorm, nn.GroupNorm, nn.PReLU, nn.Embedding)
_EXPECTED = "what it multiplied in earlier passes: it was found only now"


def is_due(passes: int) -> bool:
    """Tell whether a look is due that comes ever more rarely: in passes 1, 2, 4, 8, ...

    Example:
        >>> [passes for passes in range(1, 10) if is_due(passes)]
        [1, 2, 4, 8]
    """
    return passes & (passes - 1) == 0


class Looks:
    """Looks closely at the first pass, and at ever rarer ones after it; at all of a model that has such products.

    Args:
        model: The model.
        index: Its modules whose products are looked for, with a number.
        count: What to call as ``count(owner, site, cost, at_zero)`` for each product; see :class:`Products`.
        miss: What to call as ``miss(owner, what)`` for each that cannot be counted.
        multiples: Where to remember what is made of events.
        input_events: Whether whole numbers in the model's input are events.
        zero_weights: Whether to count what is multiplied by weights of zero.
    """

    def __init__(
        self,
        model: nn.Module,
        index: Mapping[nn.Module, int],
        count: Callable[[nn.Module, int, Cost, Cost], None],
        miss: Callable[[nn.Module, str], None],
        multiples: Multiples,
        input_events: InputEvents,
        zero_weights: bool = False,
    ) -> None:
        self.zero_weights = zero_weights
        self.model, self.index, self.count, self.miss, self.multiples = model, index, count, miss, multiples
        # What is counted by what it reads and gives, and what is no synapse.
        self._left_alone = {module for module in index if is_recurrent(module) or only_decays(module)}
        self.input_events = input_events
        self._products: Products | None = None  # while a pass is looked at
        self.always = False  # to look at every pass
        self._begun: dict[tuple[int, bool], int] = {}  # passes by outermost module and its mode
        self._passes = 0  # of the module that began this one

    @property
    def products(self) -> Products | None:
        """Who looks at the operations that run now."""
        return None if steps_of_call() is not None else self._products

    def begin(self, module: nn.Module, given: Iterable[Tensor]) -> None:
        """Begin a pass with a call of this module, on these tensors."""
        key = self.index[module], module.training
        self._passes = self._begun[key] = self._begun.get(key, 0) + 1
        if self.always or is_due(self._passes):
            how = self.multiples, self.input_events, given, self.zero_weights
            self._products = Products(self.model, self.index, self._found, self._missed, *how)
            self._products.__enter__()

    def end(self) -> None:
        """End the pass, in any way."""
        if self._products is not None:
            products, self._products = self._products, None
            products.__exit__(None, None, None)
            if not self.always:
                self.multiples.forget_hidden()

    def _found(self, owner: nn.Module, site: int, cost: Cost, at_zero: Cost) -> None:
        if owner in self._left_alone:
            return
        if not self.always and self._passes > _ALL_LOOKED_AT:
            self.miss(owner, _EXPECTED)
        self.always = True
        self.count(owner, site, cost, at_zero)

    def _missed(self, owner: nn.Module, what: str) -> None:
        if owner in self._left_alone:
            return
        if what:
            self.miss(owner, what)
        else:  # nothing is missed as long as every pass is looked at
            self.always = True


def may_multiply(module: nn.Module) -> bool:
    """Tell whether a module that is no synaptic layer has weights that might multiply activity."""
    scales = isinstance(module, (*_SCALING, *_torch.normalizations()))
    return not scales and any(True for _ in module.parameters(recurse=False))


def is_derived(layer: nn.Module) -> bool:
    """Tell whether a synaptic layer is of a class that might do more than its base."""
    return not type(layer).__module__.startswith(("torch.nn.", "snntorch.", "snnreg_plugins."))
