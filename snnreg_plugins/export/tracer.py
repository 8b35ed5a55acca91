"""Tracing of a user's forward on samples: what it does with them is recorded, and every size on the way is known."""

from __future__ import annotations

import builtins
import inspect
import operator
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import Attribute, TraceError

from snnreg_plugins.export.copies import set_weights, synaptic_base, unwrapped
from snnreg_plugins.export.qcfs import QCFS
from snnreg_plugins.export.refusals import ConversionError
from snnreg_plugins.functional.synapses import is_synaptic
from snnreg_plugins.spiking.encoder import TableEncoder

_OPEN = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class _Known(fx.Proxy):
    """A value of the traced forward, which knows what it is for the samples.

    To ``isinstance(x, Tensor)`` in Python it is of the class of that value; not to C, which would take it for the
    memory of a tensor. A size may be used as a plain number, which it then is in the graph too.
    """

    def __getattr__(self, k: str) -> Any:
        value = getattr(self.node.meta["known"], k)
        if callable(value):
            return Attribute(self, k)  # a method, to be called
        # The number of dimensions, the device and the like are the same for every batch.
        sized = isinstance(value, (torch.Size, Tensor))
        return self.tracer.create_proxy("call_function", getattr, (self, k), {}) if sized else value

    def _number(self) -> Any:
        known = self.node.meta["known"]
        if isinstance(known, Tensor) or self.node.meta["read"]:
            raise TraceError("symbolically traced variables cannot be used as inputs to control flow")
        # The number of dimensions is the same for every input that fits.
        self.node.meta["is_number"] = self.node.target not in ("dim", "ndimension")
        return known

    def __bool__(self) -> bool:
        return bool(self._number())

    def __index__(self) -> int:
        index: int = self._number().__index__()
        return index

    def __int__(self) -> int:
        return int(self._number())

    def __float__(self) -> float:
        return float(self._number())

    def __len__(self) -> int:
        return len(self.node.meta["known"])

    def __iter__(self) -> Iterator[Any]:
        known = self.node.meta["known"]
        # The number of items is that of the samples, and no batch dimension has the same in every batch.
        if isinstance(known, Tensor):
            raise TraceError("Proxy object cannot be iterated")
        return (operator.getitem(self, index) for index in range(len(known)))


class Tracer(fx.Tracer):
    """Traces a forward with the samples as its one argument; all others keep their defaults.

    Every node's ``meta["known"]`` is what it gives for the samples, ``meta["is_number"]`` tells of a size that forward
    has used as a plain number, and ``meta["read"]`` of a number that was read out of values.

    Args:
        samples: Inputs ``(B, ...)`` that are all of the batch's.
    """

    record_stack_traces = True

    def __init__(self, samples: Tensor) -> None:
        super().__init__()
        self.samples = samples
        self.computing_failed = False  # what was traced, on the samples
        self._computing = False
        # torch.fx has all threads call modules by way of this; others are let go on as if nothing was traced.
        self._thread = threading.get_ident()

    def trace(self, root: Any, concrete_args: Any = None) -> fx.Graph:
        with _length_is_a_size(root), _instances_of_what_is_known():
            return super().trace(root, concrete_args)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # A subclass of a synaptic layer with a forward of its own is looked into, and so never mistaken for one.
        if is_synaptic(m):
            base = synaptic_base(m)
            own = [getattr(type(m), name, None) is getattr(base, name, None) for name in ("forward", "_conv_forward")]
            return all(own)
        return type(m) is QCFS or isinstance(m, TableEncoder) or super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Give the samples for the first parameter of forward and nothing for the others."""
        parameters = [*inspect.signature(root_fn).parameters.values()][1:]
        needed = [one.name for one in parameters if one.default is one.empty and one.kind not in _OPEN]
        if len(needed) > 1:
            raise ConversionError(
                f"{type(self.root).__name__}.forward takes {len(needed)} inputs ({', '.join(needed)}), but a spiking "
                "network has one. Give the others a default, or wrap the model in a module whose forward(x) takes one "
                "tensor."
            )
        name = parameters[0].name if parameters else "x"
        return root_fn, [self.root, self.create_proxy("placeholder", name, (), {})]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Known(node, self)

    def create_arg(self, a: Any) -> Any:
        # First: it says that it is a tensor, which would be taken for a constant.
        return a.node if type(a) is _Known else super().create_arg(a)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        try:
            with self._plainly():
                node.meta["known"] = self._compute(node)
        except Exception:
            self.computing_failed = True
            raise
        # A number that is no size was read out of values, which differ from sample to sample.
        reads = node.op == "call_method" and node.target in ("item", "tolist")
        node.meta["read"] = reads or any(source.meta["read"] for source in node.all_input_nodes)
        if node.meta["read"] and isinstance(node.meta["known"], Tensor):
            raise TraceError("what is computed depends on values that item() or tolist() read out of the input")
        return node

    def _compute(self, node: fx.Node) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: source.meta["known"])
        target: Any = node.target
        if node.op == "placeholder":
            return self.samples
        if node.op == "get_attr":
            *path, name = str(target).split(".")
            return getattr(self.root.get_submodule(".".join(path)), name)
        if node.op == "call_module":
            module = unwrapped(self.root.get_submodule(str(target)))
            set_weights(module)
            return module.forward(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return target(*args, **kwargs) if node.op == "call_function" else None

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        """Compute as if nothing was traced."""
        before, self._computing = self._computing, True
        try:
            with torch.no_grad():
                yield
        finally:
            self._computing = before

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self._computing or threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        # Past the module's hooks, which expect tensors, and past torch.compile, which cannot be traced.
        m = unwrapped(m)
        if self._computing:
            return m.forward(*args, **kwargs)
        with self._plainly():
            set_weights(m)
        return super().call_module(m, m.forward, args, kwargs)

    def to_bool(self, obj: fx.Proxy) -> bool:
        return bool(obj)


@contextmanager
def _instances_of_what_is_known() -> Iterator[None]:
    """Have ``isinstance`` see what is known of a value, wherever a forward leads; one thread traces at a time."""
    builtins.isinstance = _isinstance
    try:
        yield
    finally:
        builtins.isinstance = _is_instance


_is_instance = isinstance


def _isinstance(value: Any, kinds: Any) -> bool:
    return _is_instance(value, kinds) or (type(value) is _Known and _is_instance(value.node.meta["known"], kinds))


@contextmanager
def _length_is_a_size(root: nn.Module) -> Iterator[None]:
    """Have ``len(x)``, which has to be a number, be the size ``x.size(0)`` in the code of a network's classes."""
    spaces = {
        id(method.__globals__): method.__globals__
        for module in root.modules()
        for kind in type(module).__mro__
        for method in vars(kind).values()
        if isinstance(method, FunctionType) and kind.__module__.partition(".")[0] not in ("torch", "lightning")
    }
    changed = [space for space in spaces.values() if "len" not in space]
    try:
        for space in changed:
            space["len"] = _length
        yield
    finally:
        for space in changed:
            del space["len"]


def _length(of: Any) -> Any:
    return of.size(0) if type(of) is _Known and isinstance(of.node.meta["known"], Tensor) else len(of)
