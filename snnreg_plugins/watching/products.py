"""The products of a forward pass that no layer's hook sees, found by watching the operations themselves."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Container, Iterable, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from snnreg_plugins import _torch
from snnreg_plugins.functional.synapses import is_integer_valued
from snnreg_plugins.watching.averages import AVERAGE_POOLS, SEVERAL_SIZES, positions_of
from snnreg_plugins.watching.inputs import InputEvents, is_binary
from snnreg_plugins.watching.multiples import Multiples
from snnreg_plugins.watching.origins import Origins
from snnreg_plugins.watching.samples import Identity, identities, tensors_in
from snnreg_plugins.watching.steps import steps_of_call


def _operations(named: Mapping[str, Any]) -> dict[Any, Any]:
    return {_torch.operation(name): value for name, value in named.items() if _torch.operation(name) is not None}


# Where a matrix product has its two operands.
_MATRIX_PRODUCTS = _operations(
    dict.fromkeys(("mm", "bmm", "mv", "dot"), (0, 1))
    | dict.fromkeys(("addmm", "_addmm_activation", "baddbmm", "addbmm", "addmv"), (1, 2))
)
_ATTENTION = _operations(
    dict.fromkeys(
        f"_scaled_dot_product_{name}"
        for name in (
            "flash_attention_for_cpu",
            "flash_attention",
            "efficient_attention",
            "cudnn_attention",
            "fused_attention_overrideable",
        )
    )
)
# Averages, and over how many spatial dimensions each goes; a plain mean has none.
_AVERAGES = _operations(
    {"avg_pool2d": 2, "avg_pool3d": 3, "_adaptive_avg_pool2d": 2, "_adaptive_avg_pool3d": 3, "mean": 0}
)
_CONVOLUTION, _MULTIPLICATION = torch.ops.aten.convolution, torch.ops.aten.mul
# Operations that multiply, by name, beside those that are counted.
_MULTIPLIES = re.compile(
    r"(^|_)(\w*mm|\w*mv|addr|cdist|matmul|linear|conv\w*|attention|rnn|lstm|gru|trilinear|encoder)(_|\d|$)"
)
_HARMLESS = "upsample"


#: SOPs, effective and dense MACs.
Cost: TypeAlias = tuple[int, int, int]
_NOTHING: Cost = (0, 0, 0)


class Products(_torch.dispatch_mode()):  # type: ignore[misc]
    """Counts the products of activity with weights, and of two activities, while it is on.

    Weights are the model's parameters and what is made of them alone. A product with weights costs what a layer
    with these weights would cost. A product of two activities (the two of attention) has an effective MAC for each
    pair of non-zero operands that it multiplies, and no SOPs.

    Args:
        model: The model whose parameters are the weights.
        owners: Its modules.
        count: What to call as ``count(owner, site, (SOPs, effective MACs, dense MACs), at_zero)`` for each product; the
            owner is the innermost module whose forward makes it, and the site tells its place in the code.
        miss: What to call as ``miss(owner, what)`` for each product that is not counted.
        multiples: Where to remember what is made of events, and to look it up.
        input_events: Whether whole numbers in the model's input are events.
        given: The model's input.
        zero_weights: Whether to count in ``at_zero`` what is multiplied by weights of exactly zero; else it has zeros.
    """

    def __init__(
        self,
        model: nn.Module,
        owners: Container[nn.Module],
        count: Callable[[nn.Module, int, Cost, Cost], None],
        miss: Callable[[nn.Module, str], None],
        multiples: Multiples,
        input_events: InputEvents,
        given: Iterable[Tensor] = (),
        zero_weights: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.count, self.miss, self.multiples = model, count, miss, multiples
        self.input_events, self.zero_weights = input_events, zero_weights
        self.counted_by_hook = 0  # products to come whose layer is watched
        self._owners = owners
        self._weights = {identity[0] for identity in _storages(model.parameters())}
        self._buffers = {identity[0] for identity in _storages(model.buffers())} - self._weights
        self.origins = Origins(multiples, lambda x: self._kind(x) == "activity", given)
        self._fast_path = True

    def __enter__(self) -> Products:
        # The fused layers of attention would hide their products.
        self._fast_path = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        torch.clear_autocast_cache()  # else weights that were cast before would be strangers
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        torch.backends.mha.set_fastpath_enabled(self._fast_path)
        super().__exit__(*exception)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if steps_of_call() is not None:
            return func(*args, **kwargs)
        if _is_composite(func):  # as they come in inference mode
            with self._again():
                output = func.decompose(*args, **kwargs)
            if output is not NotImplemented:
                return output
        step = self.origins.before(func, args, kwargs)
        output = func(*args, **kwargs)
        inputs = list(tensors_in((args, kwargs)))
        spreads = func.overloadpacket is not _MULTIPLICATION or output.numel() > max(x.numel() for x in inputs)
        if spreads and _may_be_a_product(func):
            with _torch.without_modes():  # those of other metrics
                self._look_at(func, args, kwargs, inputs, output)
        self._follow(inputs, output)
        if step is not None:
            self.origins.after(step, output)
        return output

    def _look_at(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: list[Tensor], output: Any
    ) -> None:
        packet = func.overloadpacket
        if any(x.layout is not torch.strided for x in inputs):
            multiplies = packet in _MATRIX_PRODUCTS or self._is_unknown(func, inputs)
            if multiplies and not self._is_counted_by_hook():
                self.miss(self._owner(), f"{packet.__name__} of sparse tensors")
        elif packet in _MATRIX_PRODUCTS:
            first, second = (args[index] for index in _MATRIX_PRODUCTS[packet])
            self._count_matrices(first, second)
        elif packet is _CONVOLUTION:
            self._count_convolution(func, args)
        elif packet in _ATTENTION:
            self._count_attention(_torch.arguments_of(func, args, kwargs))
        elif packet is _MULTIPLICATION and len(inputs) == 2:
            self._count_outer(inputs[0], inputs[1], output)
        elif packet in _AVERAGES:
            self._remember(func, _torch.arguments_of(func, args, kwargs), output)
        elif self._is_unknown(func, inputs):
            self.miss(self._owner(), packet.__name__)

    def _again(self) -> Any:
        return _Again(self)

    # What is a weight.

    def _kind(self, x: Tensor) -> str:
        storage = next((identity[0] for identity in _storages([x])), None)
        return "weight" if storage in self._weights else "buffer" if storage in self._buffers else "activity"

    def _follow(self, inputs: list[Tensor], output: Any) -> None:
        """What is made of weights, and of buffers with them, is weights; what activity is written to is activity."""
        kinds = {self._kind(x) for x in inputs}
        storages = {identity[0] for identity in _storages(tensors_in(output))}
        if kinds and "activity" not in kinds:
            (self._weights if "weight" in kinds else self._buffers).update(storages)
        elif kinds:
            self._buffers -= storages
            self._weights -= storages

    def _activities(self, first: Tensor, second: Tensor) -> tuple[bool, bool]:
        """Tell which operands are activity: none of weights alone; a buffer that meets weights may hold a state."""
        kinds = self._kind(first), self._kind(second)
        if "activity" in kinds:
            return kinds[0] == "activity", kinds[1] == "activity"
        if set(kinds) == {"weight", "buffer"} and not _in_a_reparametrization():
            return kinds[0] == "buffer", kinds[1] == "buffer"
        return False, False

    def _place(self) -> tuple[nn.Module, int]:
        """Find the innermost module whose forward is under way, and the place in the code from there on."""
        frame, site = sys._getframe(1), 0
        while frame.f_back is not None:
            owner = frame.f_locals.get("self")
            if frame.f_code.co_filename != __file__:  # which way a product is counted is no place of its own
                site = hash((site, frame.f_code, frame.f_lasti))
            if isinstance(owner, nn.Module) and owner in self._owners:
                return owner, site
            frame = frame.f_back
        return self.model, site

    def _owner(self) -> nn.Module:
        return self._place()[0]

    # What products cost.

    def _is_counted_by_hook(self) -> bool:
        counted = self.counted_by_hook > 0
        self.counted_by_hook -= counted
        return counted

    def _count(self, weighted: Tensor, total: Callable[[Tensor], Tensor], at_zero: Callable[[Tensor], Tensor]) -> None:
        """Count activity that meets weights.

        Args:
            weighted: The activity.
            total: What weights of 1 make of an activity.
            at_zero: What those do that stand where weights are exactly zero, in the place of all others zeros.
        """
        x = self.multiples.events(weighted)
        known = self.multiples.find(weighted)
        if known is not None and known.hidden and known.factor != 1:
            self.miss(self._owner(), "")  # no more than: keep watching
        magnitudes, dense = x.detach().abs().double(), int(total(torch.ones_like(x, dtype=torch.float64)))
        is_given = self.origins.is_given(weighted)
        is_real = is_given and self.input_events.are_multiplied(self._owner(), x) and not is_binary(x)
        spiking = is_integer_valued(x) and not is_real
        counted = magnitudes if spiking else (magnitudes != 0).double()
        costs = []
        for each, of_all in ((total, dense), (at_zero, None if self.zero_weights else 0)):
            if of_all is None:
                of_all = round(float(at_zero(torch.ones_like(counted))))
            cost = round(float(each(counted))) if of_all else 0
            costs.append((cost, 0, of_all) if spiking else (0, cost, of_all))
        self.count(*self._place(), *costs)

    def _count_matrices(self, first: Tensor, second: Tensor) -> None:
        active = self._activities(first, second)
        if not any(active) or self._is_counted_by_hook():
            return
        first = first.unsqueeze(0) if first.dim() == 1 else first
        second = second.unsqueeze(-1) if second.dim() == 1 else second
        if all(active):
            cost = (0, _pairs(first, second), _pairs(torch.ones_like(first), second, dense=True))
            self.count(*self._place(), cost, _NOTHING)
        elif active[0]:
            self._count(
                first,
                lambda x: x.sum() * second.shape[-1],
                lambda x: (x.sum(-2) * (second == 0).sum(-1)).sum(),
            )
        else:
            self._count(
                second,
                lambda x: x.sum() * first.shape[-2],
                lambda x: (x.sum(-1) * (first == 0).sum(-2)).sum(),
            )

    def _count_convolution(self, func: Any, args: tuple[Any, ...]) -> None:
        x, weight, _, *rest = args
        active = self._activities(x, weight)
        if not any(active) or self._is_counted_by_hook():
            return

        def convolve(x: Tensor, weight: Tensor) -> Tensor:
            return func(x, weight, None, *rest).sum()  # type: ignore[no-any-return]

        if all(active):
            masks = [(operand != 0).double() for operand in (x, weight)]
            ones = [torch.ones_like(mask) for mask in masks]
            self.count(*self._place(), (0, int(convolve(*masks)), int(convolve(*ones))), _NOTHING)
        elif active[0]:
            all_of, zeros = torch.ones_like(weight, dtype=torch.float64), (weight == 0).double()
            self._count(x, *(partial(_of_a_batch, convolve, kernel) for kernel in (all_of, zeros)))
        else:
            all_of, zeros = torch.ones_like(x, dtype=torch.float64), (x == 0).double()
            self._count(weight, partial(convolve, all_of), partial(convolve, zeros))

    def _count_attention(self, given: dict[str, Any]) -> None:
        query, key, value = (given[name] for name in ("query", "key", "value"))
        groups = query.shape[-3] // key.shape[-3]
        key, value = (x.repeat_interleave(groups, -3) for x in (key, value))
        scale = given.get("scale")
        scores = query.double() @ key.double().transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
        bias = given.get("attn_bias", given.get("attn_mask"))
        if given.get("is_causal"):
            scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
        if bias is not None:
            scores = scores + bias  # torch makes numbers of a boolean mask
        weights = scores.softmax(-1).to(query.dtype)
        for first, second in ((query, key.transpose(-2, -1)), (weights, value)):
            dense = _pairs(torch.ones_like(first), second, dense=True)
            self.count(*self._place(), (0, _pairs(first, second), dense), _NOTHING)

    def _count_outer(self, first: Tensor, second: Tensor, output: Tensor) -> None:
        """Count an element-wise product that spreads activity over weights: a matrix product before its sum."""
        active = self._activities(first, second)
        if active[0] == active[1] or output.numel() <= max(first.numel(), second.numel()):
            return
        x, weight = (first, second) if active[0] else (second, first)
        self._count(x, lambda x: x.sum() * (output.numel() // x.numel()), lambda x: (x * (weight == 0)).sum())

    def _is_unknown(self, func: Any, inputs: list[Tensor]) -> bool:
        name = func.overloadpacket.__name__
        if func.namespace == "quantized":  # its weights are packed into what is no tensor
            return _MULTIPLIES.search(name) is not None
        if func.namespace == "aten":
            return bool(_MULTIPLIES.search(name)) and not name.startswith(_HARMLESS) and len(inputs) > 1
        kinds = {self._kind(x) for x in inputs if x.is_floating_point()}
        return func.namespace not in {"prims", "profiler", "c10d"} and kinds >= {"weight", "activity"}

    def _remember(self, func: Any, given: dict[str, Any], output: Any) -> None:
        x = given["self"]
        owner = self._owner()
        # An average pool that is a module has a hook of its own.
        if isinstance(output, Tensor) and self._kind(x) == "activity" and not isinstance(owner, AVERAGE_POOLS):
            size = positions_of(x, output, given, _AVERAGES[func.overloadpacket])
            if not self.multiples.remember_average(x, output, size, hidden=True):
                self.miss(owner, SEVERAL_SIZES)


def _of_a_batch(convolve: Callable[[Tensor, Tensor], Tensor], weight: Tensor, x: Tensor) -> Tensor:
    return convolve(x.sum(0, keepdim=True), weight)


def _in_a_reparametrization() -> bool:
    """Tell whether weights are being made, as spectral norm makes them of weights and buffers."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        if frame.f_globals.get("__name__", "").startswith(("torch.nn.utils.", "torch.ao.")):
            return True
        frame = frame.f_back
    return False


class _Again:
    """A mode that goes on again within its own dispatch, without what else entering does."""

    def __init__(self, mode: Products) -> None:
        self.mode = mode

    def __enter__(self) -> None:
        _torch.dispatch_mode().__enter__(self.mode)

    def __exit__(self, *exception: Any) -> None:
        _torch.dispatch_mode().__exit__(self.mode, *exception)


def _pairs(first: Tensor, second: Tensor, dense: bool = False) -> int:
    """Count the pairs that a matrix product multiplies: of non-zero operands, or all."""
    if dense:
        second = torch.ones_like(second)
    left, right = (first != 0).sum(-2).double(), (second != 0).sum(-1).double()
    return int((left * right).sum())


_products: dict[Any, bool] = {}


def _may_be_a_product(func: Any) -> bool:
    if func not in _products:
        packet = func.overloadpacket
        _products[func] = (
            packet in _MATRIX_PRODUCTS
            or packet in _ATTENTION
            or packet in _AVERAGES
            or packet in (_CONVOLUTION, _MULTIPLICATION)
            or func.namespace != "aten"
            or _MULTIPLIES.search(packet.__name__) is not None
        )
    return _products[func]


_composite: dict[Any, bool] = {}


def _is_composite(func: Any) -> bool:
    if func not in _composite:
        _composite[func] = _torch.has_composite_kernel(func)
    return _composite[func]


def _storages(tensors: Iterable[Tensor]) -> set[Identity]:
    return identities([tensor for tensor in tensors if tensor.layout is torch.strided])
