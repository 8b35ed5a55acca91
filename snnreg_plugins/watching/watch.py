"""Looking on at a model from pass to pass: rows of counts, by time step, and the samples that they are of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

from torch import Tensor, nn
from typing_extensions import Self

from snnreg_plugins._checks import as_integer, one_of
from snnreg_plugins.watching.counts import StepCounts, Table, added, total
from snnreg_plugins.watching.hooks import Hooks
from snnreg_plugins.watching.samples import SampleCounter
from snnreg_plugins.watching.windows import tell, window_of


class Watch:
    """Counts in the forward passes of a model, between :meth:`open` and :meth:`close`; a context manager.

    A subclass names its ``quantities`` and attaches hooks that count with :meth:`add`. A pass that fails, or that is
    recomputed for the backward pass, does not count.

    All other passes count, until :meth:`claim` is called for the first time: from then on those do that ran since any
    watch on the model was told before, as a metric is told of a batch in training, and another one of a batch in
    validation.

    Args:
        model: The model to watch.
        rows: Modules that have a row of counts, by the name that they are shown by.
        layers: Those of them that are called as layers, by name.
        batch_dim: Dimension of the batch in the model's input; 1 for input of shape ``(T, B, ...)``.
    """

    quantities: tuple[str, ...]
    #: Whether the hooks know that a call may hold several time steps.
    many_steps: ClassVar[bool] = True

    def __init__(
        self, model: nn.Module, rows: Mapping[str, nn.Module], layers: Mapping[str, nn.Module], batch_dim: int = 0
    ) -> None:
        self.model, self.modules, self.layers = model, dict(rows), dict(layers)
        self.batch_dim = as_integer("batch_dim", batch_dim, at_least=0)
        self.names = tuple(rows)
        self.index = {module: row for row, module in enumerate(rows.values())}
        self.hooks = Hooks()
        #: Whether it looks on.
        self.is_open = False
        self._counter: SampleCounter | None = None
        self._window = 0
        self._claims = False  # whether only what is claimed counts
        self._shows_earlier = True
        self._forget()

    # Looking on.

    def open(self) -> Self:
        """Begin to look on."""
        self._counter = SampleCounter(
            self.model,
            self.layers,
            self._ended,
            self.batch_dim,
            self._begin,
            self._left,
            self._others(),
            many_steps=self.many_steps,
        )
        self.hooks = self._counter.hooks
        self._attach()
        self.is_open = True
        return self

    def shared(self) -> dict[int, Any]:
        """Give what a copy that is to watch the same model does not copy, as a memo for ``deepcopy``; it is closed."""
        return {id(part): part for part in (*self.model.modules(), self._counter, self.hooks)}

    def close(self) -> None:
        """Take all hooks off the model; what was counted stays."""
        self._left()
        self.hooks.remove()
        self.is_open = False

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _others(self) -> Iterable[nn.Module]:
        """Give further modules whose calls from outside are passes."""
        return ()

    def _attach(self) -> None:
        """Hook what counts."""

    def reset(self) -> None:
        """Forget all counts; the next pass brings new samples."""
        self._forget()
        if self._counter is not None:
            self._counter.reset()

    def _forget(self) -> None:
        self._forget_window()
        self._passes = 0  # of all windows
        self._earlier: list[tuple[StepCounts, int, int]] = []  # counts, samples and passes of windows before
        self._claimed = False
        self._forget_pass()

    def _forget_window(self) -> None:
        """Forget the window under way."""
        self._counts = StepCounts()
        self._of_window = 0, 0  # samples and passes

    def _forget_pass(self) -> None:
        """Forget the pass under way."""
        self._counts.drop()
        self._calls: dict[Any, int] = {}

    # Passes.

    def _begin(self, module: nn.Module, given: list[Tensor]) -> None:
        window = window_of(self.model)
        number = 0 if window is None else window.begin_pass()
        if number != self._window:
            self._window = number
            self._keep_window()
            self._forget_window()
            self._claimed = False
        self._begun(module, given)

    def _begun(self, module: nn.Module, given: list[Tensor]) -> None:
        """Begin a pass, with a call of this module on these tensors."""

    def _left(self) -> None:
        """End a pass in any way that can be noticed, before :meth:`_ended`."""

    def _ended(self, samples: int | None) -> None:
        """End a pass: with new samples, 0 for a further time step, None if it does not count."""
        if samples is not None:
            self._passes += 1
            self._of_window = self._of_window[0] + samples, self._of_window[1] + 1
            self._counts.keep(self._steps_before())
        self._forget_pass()

    def _steps_before(self) -> int:
        """Count the time steps that the samples of the pass under way took before it; called once a pass."""
        return 0

    def _called(self, layer: nn.Module, args: tuple[Any, ...]) -> None:
        """Tell that a layer was called, which from outside is a pass of its own."""
        if self._counter is not None:
            self._counter.called(layer, args)

    @property
    def continues(self) -> bool:
        """Whether the pass under way is a further time step, as far as it can be told by now."""
        return self._counter is not None and self._counter.continues

    @property
    def unbatched(self) -> bool:
        """Whether the last pass was one sample without a batch."""
        return self._counter is not None and self._counter.unbatched

    def call_in_pass(self, site: Any) -> int:
        """Count the calls at a place in the pass under way before this one."""
        call = self._calls[site] = self._calls.get(site, -1) + 1
        return call

    # Whose passes count.

    def claim(self) -> None:
        """Be told that the passes since the last such call, for any watch on the model, are to count here."""
        if not self._claims:
            self._claims = True
            self._forget_earlier()
        self._claimed = True
        tell(self.model)

    def _counts_now(self) -> bool:
        """Tell whether the window under way counts."""
        return self._claimed or not self._claims

    @contextmanager
    def only_this_window(self) -> Iterator[None]:
        """Show what ran since any watch on the model was told before, and nothing else."""
        self._shows_earlier = False
        try:
            yield
        finally:
            self._shows_earlier = True

    def _keep_window(self) -> None:
        """Keep what counts of the window under way, which is over."""
        counts = StepCounts()
        counts.add_table(self.table())
        self._earlier = [(counts, self.samples, self.passes)]

    def _forget_earlier(self) -> None:
        """Forget all windows before the one under way."""
        self._earlier = []

    # What was counted.

    @property
    def samples(self) -> int:
        """Samples that count."""
        return sum(samples for _, samples, _ in self._parts())

    @property
    def passes(self) -> int:
        """Passes that count."""
        return sum(passes for _, _, passes in self._parts())

    @property
    def version(self) -> tuple[Any, ...]:
        """What differs wherever what counts does, since the last reset."""
        return self._passes, self._window, self._claims, self._claimed

    def table(self) -> Table:
        """Give all numbers, by row (as in ``names``), column (as in ``quantities``) and time step."""
        tables = [counts.table() for counts, _, _ in self._parts()]
        return tables[0] if len(tables) == 1 else added(tables)

    def _parts(self) -> list[tuple[StepCounts, int, int]]:
        parts = list(self._earlier) if self._shows_earlier else []
        return [*parts, (self._counts, *self._of_window)] if self._counts_now() else parts

    def totals(self) -> list[list[int]]:
        """Give for each row a number for each quantity."""
        table = self.table()
        return [[total(table, row, column) for column in range(len(self.quantities))] for row in range(len(self.names))]

    def column(self, quantity: str) -> int:
        """Find a quantity.

        Raises:
            ValueError: If there is none of that name.
        """
        return self.quantities.index(one_of("quantity", quantity, sorted(self.quantities)))

    def steps_of(self, name: str) -> int:
        """Count the time steps in which a row was seen."""
        row = self.names.index(name)
        return max((len(values) for (of, _), values in self.table().items() if of == row), default=0)

    def by_layer(self, quantity: str, steps: int | None = None) -> dict[str, int]:
        """Give the sums over all samples, by name; only of the first time steps, if their number is given."""
        column, table = self.column(quantity), self.table()
        return {name: total(table, row, column, steps) for row, name in enumerate(self.names)}

    def total(self, quantity: str, steps: int | None = None) -> int:
        """Give the sum over all layers and samples; only of the first time steps, if their number is given."""
        return sum(self.by_layer(quantity, steps).values())
