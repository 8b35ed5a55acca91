"""What is used of torch though it is not public: each test says what an upgrade took away, and what that breaks."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from snnreg_plugins import _torch


@contextmanager
def there(name: str) -> Iterator[None]:
    """Say what breaks where a function of ``_torch`` does no longer work."""
    what, *breaks = inspect.getdoc(getattr(_torch, name)).split("\n\n")
    try:
        yield
    except (AssertionError, AttributeError, ImportError, TypeError) as error:
        pytest.fail(
            f"torch {torch.__version__} has changed what snnreg_plugins._torch.{name} relies on ({error}). "
            f"It is to: {what} {' '.join(breaks)}"
        )


def test_children():
    module = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    module.register_module("none", None)
    with there("children"):
        assert list(_torch.children(module)) == [module[0], module[1], None]


def test_hooks_in_the_order_they_run_in():
    layer = nn.Linear(2, 2)
    with there("hooks_before"):
        assert _torch.hooks_before(layer) == []
        first, second = (lambda *_: None for _ in range(2))
        layer.register_forward_pre_hook(second)
        layer.register_forward_pre_hook(first, prepend=True)
        assert _torch.hooks_before(layer) == [first, second]
    with there("hooks_after"):
        assert _torch.hooks_after(layer) == []
        layer.register_forward_hook(second)
        layer.register_forward_hook(first, prepend=True, with_kwargs=True, always_call=True)
        assert _torch.hooks_after(layer) == [first, second]


@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_backward_hooks(register):
    layer = nn.Linear(2, 2)
    with there("has_backward_hooks"):
        assert not _torch.has_backward_hooks(layer)
        handle = getattr(layer, register)(lambda *_: None)
        assert _torch.has_backward_hooks(layer)
        handle.remove()
        assert not _torch.has_backward_hooks(layer)


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_hooks_on_all_modules(kind):
    with there("has_hooks_on_all"):
        assert not _torch.has_hooks_on_all()
        handle = getattr(nn.modules.module, f"register_module_{kind}_hook")(lambda *_: None)
        try:
            assert _torch.has_hooks_on_all()
        finally:
            handle.remove()
        assert not _torch.has_hooks_on_all()


@pytest.mark.parametrize("transform", [torch.func.vmap, torch.func.grad, torch.func.functionalize])
def test_transforms(transform):
    seen = []

    def function(x):
        seen.append(_torch.is_transformed())
        return x.sum()

    with there("is_transformed"):
        function(torch.ones(3))
        transform(function)(torch.ones(3))
        assert seen == [False, True]


def test_forward_derivatives():
    with there("is_forward_ad"):
        assert not _torch.is_forward_ad()
        with torch.autograd.forward_ad.dual_level():
            assert _torch.is_forward_ad()
        assert not _torch.is_forward_ad()


def test_modes_that_see_every_operation():
    with there("is_dispatch_mode_on"):
        assert not _torch.is_dispatch_mode_on()
        with FlopCounterMode(display=False):
            assert _torch.is_dispatch_mode_on()
            assert not _torch.is_dispatch_mode_on(beside=_torch.dispatch_mode())
        assert not _torch.is_dispatch_mode_on()


def test_the_backward_pass():
    seen = []
    with there("is_in_backward"):
        x = torch.ones(2, requires_grad=True)
        x.register_hook(lambda _: seen.append(_torch.is_in_backward()))
        x.sum().backward()
        assert seen == [True]
        assert not _torch.is_in_backward()


def test_a_graph_that_breaks():
    def function(x):
        _torch.break_graph("for a reason of ours")
        return 2 * x

    with there("break_graph"):
        torch.compiler.reset()
        assert torch.equal(torch.compile(function, backend="eager")(torch.ones(2)), 2 * torch.ones(2))
        torch.compiler.reset()
        with pytest.raises(torch._dynamo.exc.Unsupported, match="for a reason of ours"):
            torch.compile(function, backend="eager", fullgraph=True)(torch.ones(2))
        torch.compiler.reset()


def test_reentrant_checkpointing():
    seen = []

    def region(x):
        seen.append((_torch.checkpoint_in_forward(), _torch.checkpoint_in_backward()))
        return x.square()

    def nested(x):
        return checkpoint(region, x, use_reentrant=True)

    with there("checkpoint_in_forward"), there("checkpoint_in_backward"):
        region(torch.ones(2))
        for function in (region, nested):
            result = checkpoint(function, torch.ones(2, requires_grad=True), use_reentrant=True)
            result.sum().backward()
            node = result.grad_fn
            assert seen[:2] == [(None, None), (node, None)]
            assert seen[-1] == (None, node)
            del seen[1:]
        checkpoint(region, torch.ones(2, requires_grad=True), use_reentrant=False).sum().backward()
        assert seen[1:] == [(None, None)] * 2


def test_leaf_of_a_node():
    weight = nn.Parameter(torch.ones(2))
    with there("leaf_of"):
        product = (2 * weight).grad_fn
        assert _torch.leaf_of(product) is None
        assert _torch.leaf_of(product.next_functions[0][0]) is weight


def test_whether_a_backward_pass_collects():
    class Ask(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.view_as(x)

        @staticmethod
        def backward(ctx, gradient):
            asked.append(_torch.collects(ctx.next_functions[0][0]))
            return gradient

    asked, weight, x = [], nn.Parameter(torch.ones(2)), torch.ones(2, requires_grad=True)
    with there("collects"):
        (Ask.apply(weight) * x).sum().backward()
        torch.autograd.grad((Ask.apply(weight) * x).sum(), weight)
        (Ask.apply(weight) * x).sum().backward(inputs=[x, weight])
        assert asked == [True, False, True]


def test_views_and_changes_of_tensors():
    weight = nn.Parameter(torch.ones(2, 3))
    with there("view_base"):
        assert _torch.view_base(weight.t()) is weight
        assert _torch.view_base(weight) is weight
        assert _torch.view_base(y := weight + 1) is y
    with there("version_of"):
        x = torch.ones(2)
        before = _torch.version_of(x)
        x[:1].add_(1)
        assert _torch.version_of(x) == before + 1
        assert _torch.version_of(x.detach()) == before + 1


def test_the_address_of_a_storage():
    with there("storage_address"), there("hold_address"):
        x = torch.ones(2)
        address = _torch.storage_address(x.untyped_storage())
        assert _torch.storage_address(x[1:].detach().untyped_storage()) == address
        held = _torch.hold_address(x.untyped_storage())
        del x
        others = [torch.ones(2) for _ in range(50)]
        assert address not in {_torch.storage_address(other.untyped_storage()) for other in others}
        del held


def test_nodes_of_leaves():
    weight = nn.Parameter(torch.ones(2, 3))
    with there("is_of_leaf"):
        node = weight.t().grad_fn
        assert not _torch.is_of_leaf(node)
        assert _torch.is_of_leaf(node.next_functions[0][0])


def test_without_modes():
    with there("without_modes"), FlopCounterMode(display=False) as seen:
        with _torch.without_modes():
            torch.ones(2, 2) @ torch.ones(2, 2)
        assert seen.get_total_flops() == 0
        torch.ones(2, 2) @ torch.ones(2, 2)
        assert seen.get_total_flops() == 16


def test_dispatch_mode():
    seen = []
    with there("dispatch_mode"):

        class Mode(_torch.dispatch_mode()):
            def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
                seen.append(operation)
                return operation(*args, **(kwargs or {}))

        with Mode():
            torch.ones(2) + 1
        assert torch.ops.aten.add.Tensor in seen


def test_operation():
    with there("operation"):
        for name in ("mm", "addmm", "baddbmm", "addbmm", "addmv", "convolution", "mul", "mean", "avg_pool2d"):
            assert _torch.operation(name) is not None, name
        for name in ("_addmm_activation", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d"):
            assert _torch.operation(name) is not None, name
        assert _torch.operation("no_such_operation") is None


def test_arguments_of():
    with there("arguments_of"):
        x = torch.ones(2, 2)
        given = _torch.arguments_of(torch.ops.aten.mean.dim, (x, [1]), {"keepdim": True})
        assert given == {"self": x, "dim": [1], "keepdim": True, "dtype": None}


def test_writes_to_first():
    with there("writes_to_first"):
        assert _torch.writes_to_first(torch.ops.aten.mul_.Tensor)
        assert not _torch.writes_to_first(torch.ops.aten.mul.Tensor)
        assert not _torch.writes_to_first(torch.ops.aten.mul.out)


def test_has_composite_kernel():
    with there("has_composite_kernel"):
        assert _torch.has_composite_kernel(torch.ops.aten.matmul.default)
        assert not _torch.has_composite_kernel(torch.ops.aten.mm.default)


def test_memory_of():
    with there("memory_of"):
        x = torch.zeros(3)
        memory = _torch.memory_of(x)
        assert memory == _torch.memory_of(x.detach()[1:]) != _torch.memory_of(x.clone())
        assert len({memory, _torch.memory_of(x)}) == 1
        assert not memory.expired()
        del x
        assert memory.expired()


def test_writes_to():
    with there("writes_to"):
        x = torch.zeros(3)
        before = _torch.writes_to(x)
        x.detach().add_(1)
        assert _torch.writes_to(x) == before + 1
        with torch.inference_mode():
            assert _torch.writes_to(torch.zeros(3)) == 0


def test_normalizations():
    with there("normalizations"):
        for kind in (nn.BatchNorm1d, nn.BatchNorm3d, nn.InstanceNorm2d, nn.SyncBatchNorm):
            assert isinstance(kind(2), _torch.normalizations())
        assert not isinstance(nn.Linear(2, 2), _torch.normalizations())


def test_assertions():
    with there("is_assertion"):
        assert _torch.is_assertion(torch._assert)
        assert not _torch.is_assertion(torch.relu)


def test_the_class_that_a_loss_ignores():
    with there("ignore_index_of"):
        scores = torch.zeros(4, 3, requires_grad=True)
        loss = nn.functional.nll_loss(scores, torch.tensor([0, 1, 2, 2]), ignore_index=2)
        assert _torch.ignore_index_of(loss.grad_fn) == 2
