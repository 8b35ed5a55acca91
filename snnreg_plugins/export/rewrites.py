"""Computations that are others in disguise, written out: a sum is a mean times a number, a stack a concatenation."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from snnreg_plugins.export.forms import ARITHMETIC, is_constant, is_size, is_value, moves_values
from snnreg_plugins.export.refusals import ConversionError, refusal


def write_out(graph: fx.Graph) -> None:
    """Write what a graph computes in the forms that the export knows, where it knows none for the whole.

    Args:
        graph: Whose nodes have ``meta["known"]`` and ``meta["role"]``; is changed.

    What cannot be written so has ``meta["refusal"]`` then: behind ``until`` it may stay.
    """
    for node in list(graph.nodes):
        called = node.op in ("call_function", "call_method") and node.meta["role"] == "value"
        write = _REWRITES.get(ARITHMETIC.get(node.target, (node.target, False))[0]) if called else None
        if write is None:
            continue
        try:
            with graph.inserting_before(node):
                result = write(node)
        except ConversionError as error:
            node.meta["refusal"] = error
            continue
        if result is not node:
            result.meta["cut"] |= node.meta.get("cut", False)
            node.replace_all_uses_with(result)
            graph.erase_node(node)


def _call(node: fx.Node, function: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> fx.Node:
    """Call a function or method in the place of a node."""
    known, known_kwargs = fx.map_arg((args, kwargs), lambda source: source.meta["known"])
    if isinstance(function, str):
        made = node.graph.call_method(function, args, kwargs)
        value = getattr(known[0], function)(*known[1:], **known_kwargs)
    else:
        made = node.graph.call_function(function, args, kwargs)
        value = function(*known, **known_kwargs)
    made.meta = {**node.meta, "known": value, "cut": False}
    return made


def _sum(node: fx.Node) -> fx.Node:
    source, (dims, keepdim) = input_of(node), reduced(node)
    number = math.prod(source.meta["known"].shape[dim] for dim in dims)
    return _call(node, operator.mul, _call(node, torch.mean, source, dims, keepdim=keepdim), number)


def _amax(node: fx.Node) -> fx.Node:
    return _maximum(node, *reduced(node))


def _max(node: fx.Node) -> fx.Node:
    """``x.max(dim)`` gives values and where they are."""
    for user in [user for user in node.users if not user.users]:
        node.graph.erase_node(user)
    of_values = ((getattr, "values"), (operator.getitem, 0))
    by_dimension = isinstance(node.meta["known"], tuple)
    if not by_dimension or any((user.target, *user.args[1:]) not in of_values for user in node.users):
        raise refusal(node, "max", remedy="give one dimension, and read the values alone: `x.max(2).values`")
    values = _maximum(node, *reduced(node))
    values.meta["cut"] = any(user.meta.get("cut") for user in node.users)
    for user in list(node.users):
        user.replace_all_uses_with(values)
        node.graph.erase_node(user)
    return values


def _maximum(node: fx.Node, dims: list[int], keepdim: bool) -> fx.Node:
    """Take a maximum over positions as a pool."""
    source = input_of(node)
    rank = source.meta["known"].dim()
    kept = [dim for dim in range(1, rank) if dim not in dims]
    pools = {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}
    if len(kept) != 1 or len(dims) not in pools:
        raise refusal(node, "amax", remedy="take the maximum over all positions of each channel, and no others")
    if kept != [1]:
        source = _call(node, torch.permute, source, (0, *kept, *dims))
    pooled = _call(node, pools[len(dims)], source, 1)
    if not keepdim:
        return _call(node, torch.flatten, pooled, 1)
    return pooled if kept == [1] else _call(node, torch.transpose, pooled, 1, kept[0])


def _stack(node: fx.Node) -> fx.Node:
    given: dict[str, Any] = dict(zip(("tensors", "dim"), node.args, strict=False)) | dict(node.kwargs)
    dim = given.get("dim", 0)
    if dim in (0, -node.meta["known"].dim()):
        raise refusal(node, "stack")
    return _call(node, torch.cat, [_call(node, torch.unsqueeze, part, dim) for part in _parts(given["tensors"])], dim)


def _cat(node: fx.Node) -> fx.Node:
    given: dict[str, Any] = dict(zip(("tensors", "dim"), node.args, strict=False)) | dict(node.kwargs)
    return _call(node, torch.cat, _parts(given["tensors"]), given.get("dim", given.get("axis", 0)))


def _parts(tensors: Any) -> list[Any]:
    """Give the tensors of a list, or of what a function gave together."""
    if not isinstance(tensors, fx.Node):
        return list(tensors)
    return [_call(tensors, operator.getitem, tensors, index) for index in range(len(tensors.meta["known"]))]


def _shaped_as(node: fx.Node) -> fx.Node:
    """Bring a tensor to the shape of another, of which nothing else is read."""
    source, other = node.args
    assert isinstance(other, fx.Node)
    shape = _call(node, getattr, other, "shape")
    shape.meta["role"] = "size"
    return _call(node, "expand" if node.target == "expand_as" else "reshape", source, shape)


def _attribute(node: fx.Node) -> fx.Node:
    return _call(node, torch.transpose, node.args[0], -2, -1) if node.args[1] == "mT" else node


def _scaled(node: fx.Node) -> fx.Node:
    """``torch.add(x, y, alpha=a)`` is x + a y."""
    alpha = node.kwargs.get("alpha")
    if alpha is None or ARITHMETIC[node.target][1]:
        return node
    left, right = node.args[0], node.args[1] if len(node.args) > 1 else node.kwargs["other"]
    return _call(node, ARITHMETIC[node.target][0], left, _call(node, operator.mul, right, alpha))


_REWRITES: dict[Any, Callable[[fx.Node], fx.Node]] = {
    torch.sum: _sum,
    torch.amax: _amax,
    torch.max: _max,
    "max": _max,
    torch.cat: _cat,
    torch.stack: _stack,
    operator.add: _scaled,
    operator.sub: _scaled,
    "view_as": _shaped_as,
    "reshape_as": _shaped_as,
    "expand_as": _shaped_as,
    getattr: _attribute,
}


def make_behind(graph: fx.Graph) -> None:
    """Make what only the head reads, such as a first state of zeros, in the head, for the batch that is there.

    Args:
        graph: Whose nodes have ``meta["head"]`` and, one of them, ``meta["cut"]``; is changed.
    """
    cut: Any = next((node for node in graph.nodes if node.meta.get("cut")), None)
    if cut is None:
        return
    for node in reversed(graph.nodes):
        sized = is_constant(node) and node.meta["is_number"] and not node.meta["head"]
        if not sized or not node.users or not all(user.meta["head"] for user in node.users):
            continue
        replaced = {source: _batch_of(source, cut) for source in node.all_input_nodes if not is_constant(source)}
        if all(replaced.values()):
            node.meta |= {"head": True, "is_number": False}
            cut.append(node)
            for source, size in replaced.items():
                node.replace_input_with(source, size)
                if size is not cut:
                    cut.append(size)


def _batch_of(source: fx.Node, cut: Any) -> Any:
    """Give for the number of samples of any tensor that of another; None for another size."""
    if is_value(source):
        return cut
    of, *index = source.args
    if source.target is operator.getitem and isinstance(of, fx.Node):
        of = of.args[0] if of.target is getattr or len(of.args) == 1 else None
    if index != [0] or not isinstance(of, fx.Node) or not is_value(of):
        return None
    with cut.graph.inserting_after(cut):
        size = _call(cut, "size", cut, 0)
    size.meta |= {"role": "size", "head": True}
    return size


def reduced(node: fx.Node) -> tuple[list[int], bool]:
    """Give the dimensions that a node takes together, counted from 0, and whether they are kept.

    Raises:
        ConversionError: If the batch is among them, or there is more to it.
    """
    given: dict[str, Any] = dict(zip(("dim", "keepdim"), node.args[1:], strict=False)) | dict(node.kwargs)
    what = node.target if isinstance(node.target, str) else node.target.__name__
    if set(given) - {"dim", "axis", "keepdim", "input"}:
        raise refusal(node, f"{what} with more than the dimensions", remedy=f"write `x.{what}((2, 3))`")
    dims = as_known(node, given.get("dim", given.get("axis")))
    rank = input_of(node).meta["known"].dim()
    dims = [dim % rank for dim in ([dims] if isinstance(dims, int) else dims or ())]
    if not dims or 0 in dims:
        raise refusal(node, what)
    return dims, bool(given.get("keepdim", False))


def as_known(node: fx.Node, value: Any) -> Any:
    """Give what sizes and constants among the arguments of a node are for the samples; sizes are fixed then."""

    def known(source: fx.Node) -> Any:
        node.meta["is_number"] = node.meta.get("is_number") or is_size(source)
        return source if is_value(source) else source.meta["known"]

    found = fx.map_arg(value, known)
    return tuple(found) if isinstance(found, torch.Size) else found


def input_of(node: fx.Node) -> fx.Node:
    """Give what a node reads first."""
    source = node.args[0] if node.args else node.kwargs["input"]
    assert isinstance(source, fx.Node)
    return source


def read_from_then_on(node: fx.Node) -> bool:
    """Let all that reads what a node has written to in place, from there on, read the node.

    Returns:
        Whether nothing else sees it: no view that was taken before, and no tensor that it is a view of.
    """
    source = input_of(node)
    if not all(user is node or is_size(user) for user in source.users):
        order = {each: place for place, each in enumerate(node.graph.nodes)}
        before = [user for user in source.users if order[user] < order[node]]
        if any(moves_values(user) for user in before):
            return False
        for user in list(source.users):
            if order[user] > order[node]:
                user.replace_input_with(source, node)
    return not moves_values(source) or _is_read_once(source)


def _is_read_once(node: fx.Node) -> bool:
    """Tell whether what a view is of is read by it alone."""
    while node.op in ("call_function", "call_method") and moves_values(node):
        node = input_of(node)
        if sum(not is_size(user) for user in node.users) > 1:
            return False
    return True
