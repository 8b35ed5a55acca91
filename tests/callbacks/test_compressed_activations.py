"""Training with the callback is training without it, to the bit; with fewer bytes kept."""

from __future__ import annotations

import contextlib
import gc
import itertools
import weakref

import pytest
import snntorch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from snnreg_plugins import (
    ActivityRegularization,
    CompressedActivations,
    compressed_activations,
    to_norse,
    to_snntorch,
)
from snnreg_plugins.functional.bits import _PATTERNS
from snnreg_plugins.training.compression import Packer, unpack
from tests.callbacks.reference import Module, fit, free_port, leave, loader, two_processes

NOTHING = contextlib.nullcontext


class Loop(nn.Module):
    """A spiking network as users write it: a loop over plain snnTorch neurons."""

    def __init__(self, pool=nn.AvgPool2d, timesteps=4, checkpointing=None, dropout=0.0):
        super().__init__()
        self.conv, self.pool, self.fc1, self.fc2 = nn.Conv2d(1, 6, 3), pool(2), nn.Linear(54, 40), nn.Linear(40, 3)
        self.neurons = nn.ModuleList(snntorch.Leaky(beta=0.9, threshold=0.2) for _ in range(2))
        self.timesteps, self.checkpointing, self.dropout = timesteps, checkpointing, nn.Dropout(dropout)

    def step(self, current, first, second):
        spikes, first = self.neurons[0](current, first)
        spikes, second = self.neurons[1](self.fc1(self.dropout(self.pool(spikes)).flatten(1)), second)
        return self.fc2(spikes), first, second

    def forward(self, x, activities=None):
        current = self.conv(x)
        first, second, total = torch.zeros_like(current), x.new_zeros(len(x), 40), 0
        for _ in range(self.timesteps):
            if self.checkpointing is None:
                out, first, second = self.step(current, first, second)
            else:
                out, first, second = checkpoint(self.step, current, first, second, use_reentrant=self.checkpointing)
            total = total + out
        for neuron in self.neurons:
            neuron.reset_mem()  # else it holds the graph
        return total / self.timesteps


def converted(to, pool):
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), pool(2), nn.Conv2d(6, 8, 3), nn.ReLU(), pool(2)),
        *(nn.Flatten(), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3)),
    )
    return to(net, torch.rand(64, 1, 8, 8), timesteps=5)


NETS = {
    "snnTorch loop, average pooling": Loop,
    "snnTorch loop, max pooling": lambda: Loop(nn.MaxPool2d),
    "snnTorch loop, dropout": lambda: Loop(dropout=0.2),
    "to_snntorch, average pooling": lambda: converted(to_snntorch, nn.AvgPool2d),
    "to_snntorch, max pooling": lambda: converted(to_snntorch, nn.MaxPool2d),
    "to_norse, average pooling": lambda: converted(to_norse, nn.AvgPool2d),
    "to_norse, max pooling": lambda: converted(to_norse, nn.MaxPool2d),
    "ReLU": lambda: nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(216, 3)),
    "LSTM": lambda: nn.Sequential(nn.Flatten(1, 2), nn.LSTM(8, 30), First(), nn.Flatten(), nn.Linear(240, 3)),
}


class First(nn.Module):
    def forward(self, x):
        return x[0]


def gradients(net, context, dtype=torch.float32, samples=32):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(samples, 1, 8, 8, generator=generator).to(dtype)
    y = torch.randint(0, 3, (samples,), generator=generator)
    torch.manual_seed(2)
    net.zero_grad()
    with context as savings:
        loss = F.cross_entropy(net(x), y)
    loss.backward()
    return [p.grad.clone() for p in net.parameters() if p.grad is not None], savings, loss.detach()


def assert_equal(actual, expected):
    assert len(actual) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


# The spikes of snnTorch's own surrogates are float32.
DOUBLE = [(row, torch.float64) for row in NETS if "loop" not in row]


@pytest.mark.parametrize(("row", "dtype"), [*((row, torch.float32) for row in NETS), *DOUBLE])
def test_gradients_are_bit_equal(row, dtype):
    torch.manual_seed(0)
    net = NETS[row]().to(dtype)
    expected, _, loss = gradients(net, NOTHING(), dtype)
    actual, savings, same_loss = gradients(net, compressed_activations(min_numel=1), dtype)
    assert torch.equal(loss, same_loss)
    assert_equal(actual, expected)
    assert any(g.abs().sum() > 0 for g in actual)
    if row not in ("ReLU", "LSTM"):
        assert savings.stored_bytes < 0.85 * savings.full_bytes


def test_gradients_in_channels_last_are_bit_equal():
    torch.manual_seed(0)
    net = Loop().to(memory_format=torch.channels_last)
    assert_equal(gradients(net, compressed_activations(min_numel=1))[0], gradients(net, NOTHING())[0])


@pytest.mark.parametrize("row", NETS)
def test_few_bits_give_near_gradients(row):
    torch.manual_seed(0)
    net = NETS[row]()
    expected, _, loss = gradients(net, NOTHING())
    for bits, tolerance in ((16, 0.02), (8, 0.15)):
        actual, savings, same_loss = gradients(net, compressed_activations(bits, min_numel=64, module=net))
        assert torch.equal(loss, same_loss)
        for a, b in zip(actual, expected, strict=True):
            assert float((a - b).norm()) <= tolerance * float(b.norm())
        if row != "LSTM":  # it keeps what it computed in bytes of its own
            assert savings.stored_bytes < savings.full_bytes * (0.6 if bits == 16 else 0.45)
        if row != "ReLU":
            assert any(not torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


# What comes back, by itself.


def raw(x):
    return x.view(_PATTERNS.get(x.dtype, x.dtype))


def round_trip(tensor, bits=32, min_numel=1, module=None):
    packer = Packer(bits, min_numel, module)
    return unpack(packer.pack(tensor)), packer.savings


DTYPES = [*_PATTERNS, torch.bool, torch.int16, torch.int32, torch.int64, torch.uint8, torch.complex64]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data(), st.sampled_from(DTYPES))
def test_tensors_come_back_to_the_bit_and_stride(data, dtype):
    shape = data.draw(st.lists(st.integers(0, 5), max_size=4))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    values = data.draw(st.sampled_from([[0.0, 1.0], [0.0, 3.0], [0.0, 15.0, 4.0], [0.0, 0.25], [0.0, 1.1, -7.3]]))
    odd = data.draw(st.sampled_from([[], [], [-0.0], [float("nan")], [float("inf")], [200.0], [70000.0]]))
    if not dtype.is_floating_point and not dtype.is_complex:
        values, odd = [int(v) for v in values], [int(v) for v in odd if v == v and abs(v) <= 30000]
    pool = torch.tensor(values + odd).to(dtype)
    x = pool[torch.randint(0, len(pool), shape)]
    kind = data.draw(st.sampled_from(["dense", "permuted", "sliced", "offset", "expanded", "channels_last"]))
    if kind == "permuted" and x.dim():
        x = x.permute(data.draw(st.permutations(range(x.dim()))))
    elif kind == "sliced" and x.dim():
        x = x[..., ::2]
    elif kind == "offset" and x.dim():
        x = x[1:]
    elif kind == "expanded":
        x = x.expand(3, *x.shape)
    elif kind == "channels_last" and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    again, savings = round_trip(x)
    assert (again.dtype, again.shape, again.stride()) == (x.dtype, x.shape, x.stride())
    assert torch.equal(raw(again.resolve_conj()), raw(x)) or (x.isnan().any() and not dtype.is_floating_point)
    assert savings.stored_bytes <= max(savings.full_bytes, 16)


@pytest.mark.parametrize(
    ("make", "per_element"),
    [
        (lambda: (torch.rand(9, 1000) < 0.1).float(), 1 / 8),
        (lambda: torch.rand(9, 1000) < 0.1, 1 / 8),
        (lambda: (torch.rand(9, 1000) < 0.1).bfloat16(), 1 / 8),
        (lambda: F.avg_pool2d((torch.rand(9, 40, 100) < 0.1).float(), 2, divisor_override=1), 1 / 2),
        (lambda: torch.randint(0, 4, (9000,)).float(), 1 / 4),
        (lambda: torch.randint(0, 100, (9000,)).float(), 1),
        (lambda: torch.randint(0, 200, (9000,)), 1),
        (lambda: torch.randint(0, 30000, (9000,)), 2),
        (lambda: torch.randint(-70000, 70000, (9000,)), 4),
        (lambda: torch.randint(2**40, 2**41, (9000,)), 8),
        (lambda: torch.randn(9000), 4),
    ],
)
def test_bytes_by_kind(make, per_element):
    torch.manual_seed(0)
    x = make()
    again, savings = round_trip(x)
    assert torch.equal(again, x)
    assert savings.full_bytes == x.nbytes
    assert savings.stored_bytes == x.numel() * per_element


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_few_bits_are_within_the_bounds(dtype):
    torch.manual_seed(0)
    x = (torch.randn(7, 3, 100, 5, dtype=torch.float64) * 10).to(dtype).to(memory_format=torch.channels_last)
    again, savings = round_trip(x, 16)
    assert bool(((again.double() - x.double()).abs() <= x.double().abs() / 256).all())
    assert savings.stored_bytes == 2 * x.numel()
    again, savings = round_trip(x, 8)
    assert again.stride() == x.stride()
    flat = lambda t: t.permute(0, 2, 3, 1).flatten().double()  # noqa: E731
    for block, came in zip(flat(x).split(1024), flat(again).split(1024), strict=True):
        bound = float(block.max() - block.min()) / 510 + float(block.abs().max()) * torch.finfo(dtype).eps
        assert float((came - block).abs().max()) <= bound * 1.0001
    assert savings.stored_bytes <= x.numel() * 1.03


@pytest.mark.parametrize("bits", [16, 8, 4, 2])
def test_what_is_not_to_be_rounded(bits):
    torch.manual_seed(0)
    weight, frozen = nn.Parameter(torch.randn(40, 50)), nn.Parameter(torch.randn(40, 50), requires_grad=False)
    module = nn.Module()
    module.frozen = frozen
    module.register_buffer("buffer", torch.randn(2000))
    kept = [weight, weight.t(), weight.bfloat16(), weight.bfloat16().t(), frozen, frozen.t(), module.buffer[:1500]]
    kept += [torch.randn(999), torch.tensor([1.0, float("nan")] * 999)] if bits <= 8 else []
    for tensor in kept:
        assert torch.equal(raw(round_trip(tensor, bits, 1000, module)[0]), raw(tensor))
    activation = F.relu(F.linear(torch.randn(99, 50), weight))
    assert not torch.equal(round_trip(activation, bits, 1000, module)[0], activation)
    assert round_trip(weight, bits, 1, module)[1].full_bytes == 0  # is there anyway


@pytest.mark.parametrize("bits", [32, 16, 8, 4, 2])
def test_stored_bytes_are_what_is_stored(bits):
    torch.manual_seed(0)
    net, packer, entries, most = Loop(), Packer(bits, 64, None), weakref.WeakSet(), 0

    def pack(tensor):
        nonlocal most
        packed = packer.pack(tensor)
        base = tensor if tensor._base is None else tensor._base
        if not isinstance(base, nn.Parameter):
            entries.add(packed[0])
            parts = {id(part): part.nbytes for entry in entries for part in entry.parts}
            most = max(most, sum(parts.values()))
        return packed

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        loss = net(torch.rand(32, 1, 8, 8)).sum()
    assert packer.savings.stored_bytes == most
    del loss
    assert (packer.savings._full, packer.savings._stored) == (0, 0)


def live_bytes(run):
    """Most bytes of tensors that are alive at one time, by torch's own record."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events))


def test_memory_is_saved_as_reported():
    torch.manual_seed(0)
    net = Loop(timesteps=32)
    savings = []

    def run(context):
        with context as kept:
            loss = net(torch.rand(64, 1, 8, 8)).square().sum()
        savings.append(kept)
        del loss

    plain = live_bytes(lambda: run(NOTHING()))
    for bits in (32, 8, 2):
        live = live_bytes(lambda bits=bits: run(compressed_activations(bits, module=net)))
        # What is at work in one step comes on top.
        assert savings[-1].stored_bytes <= live <= savings[-1].stored_bytes + 0.1 * plain
        assert plain == pytest.approx(savings[-1].full_bytes, rel=0.15)
        assert live < plain * {32: 0.6, 8: 0.3, 2: 0.16}[bits]


def test_a_tensor_saved_twice_is_packed_once():
    torch.manual_seed(0)
    spikes = (torch.rand(64, 64) < 0.5).float()
    a, b = torch.randn(64, 64, requires_grad=True), torch.randn(64 * 64, requires_grad=True)
    with compressed_activations() as savings:
        loss = (a * spikes).sum() + (b * spikes.flatten()).sum() + (a * spikes.t()).sum()
    assert (savings.full_bytes, savings.stored_bytes) == (4 * 64 * 64, 64 * 64 // 8)
    loss.backward()
    assert torch.equal(a.grad, spikes + spikes.t())
    assert torch.equal(b.grad, spikes.flatten())


def test_a_tensor_changed_in_place_is_packed_anew():
    x = torch.zeros(2000)
    a = torch.randn(2000, requires_grad=True)
    with compressed_activations():
        first = (a * x).sum()
        x += 1
        second = (a * x).sum()
        x[7] = 0.5
        third = (a * x).sum()
    for loss, expected in ((first, torch.zeros(2000)), (second, torch.ones(2000)), (third, x)):
        assert torch.equal(torch.autograd.grad(loss, a)[0], expected)


def test_addresses_that_are_used_again_are_other_tensors():
    a = torch.randn(2000, requires_grad=True)
    losses = []
    with compressed_activations():
        for step in range(50):
            losses.append((a * torch.full((2000,), float(step % 3))).sum())
            if step % 5 == 0:
                losses[step // 2] = losses[-1]
    for step, loss in enumerate(losses[26:], 26):
        assert torch.equal(torch.autograd.grad(loss, a, retain_graph=True)[0], torch.full((2000,), float(step % 3)))


def test_what_was_kept_as_it_is_and_changed_is_refused_as_by_autograd():
    a = torch.randn(2000, requires_grad=True)
    x, w = torch.randn(2000), nn.Parameter(torch.randn(2000))
    for changed in (x, w):
        with compressed_activations():
            loss = (a * x).sum() + (a * w).sum()
        with torch.no_grad():
            changed += 1
        with pytest.raises(
            RuntimeError, match=r"modified by an inplace operation: \[torch.float32 \[2000\]\].*version"
        ):
            loss.backward()


def test_a_buffer_that_the_step_exchanges_does_not_lend_its_address():
    torch.manual_seed(0)
    net, weight = nn.Module(), torch.randn(2000, requires_grad=True)
    net.register_buffer("state", torch.zeros(2000))
    kept, losses = set(), []
    for _ in range(20):
        with compressed_activations(module=net) as savings:
            net.state = torch.zeros(2000)
            losses = [(weight * (torch.rand(2000) < 0.5).float()).sum() for _ in range(9)]
        kept.add((savings.full_bytes, savings.stored_bytes))
    assert kept == {(9 * 8000, 9 * 250)}
    assert len(losses) == 9


def test_originals_are_let_go():
    storages = []

    def spike(u):
        spikes = (u > 0).float()
        storages.append(weakref.ref(spikes))
        return spikes

    weight = torch.randn(40, 50, requires_grad=True)
    with compressed_activations():
        loss = F.linear(spike(torch.randn(99, 50)), weight).exp().sum()
    assert storages[0]() is None
    ref = weakref.ref(weight)
    del weight, loss
    gc.collect()
    assert ref() is None  # no cycle through the graph


def test_derivatives_of_higher_order():
    def second(context):
        torch.manual_seed(0)
        x, w = (torch.rand(40, 50) < 0.5).double().requires_grad_(), torch.randn(50, 30, dtype=torch.float64)
        w.requires_grad_()
        with context:
            hidden = torch.tanh((x * 1.0) @ w)
            (first,) = torch.autograd.grad(hidden.square().sum(), w, create_graph=True)
            third = torch.autograd.grad(first.square().sum(), w, create_graph=True)[0]
        return torch.autograd.grad(third.sum(), [w, x])

    assert_equal(second(compressed_activations(min_numel=1)), second(NOTHING()))
    for a, b in zip(second(compressed_activations(16, min_numel=1)), second(NOTHING()), strict=True):
        assert float((a - b).norm()) < 0.05 * float(b.norm())


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant):
    torch.manual_seed(0)
    net = Loop(checkpointing=reentrant)
    assert_equal(gradients(net, compressed_activations(min_numel=1))[0], gradients(net, NOTHING())[0])


def test_torch_func_is_refused_and_vmap_works():
    with compressed_activations(), pytest.raises(RuntimeError, match="saved tensor hooks"):
        torch.func.grad(lambda x: x.square().sum())(torch.randn(3))
    x = (torch.rand(20, 100) < 0.5).float().requires_grad_()
    with compressed_activations(bits=2, min_numel=1):
        loss = torch.func.vmap(lambda row: (row * row).sum())(x).sum()
    loss.backward()
    assert torch.equal(x.grad, 2 * x)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_regions(backend):
    torch.compiler.reset()
    torch.manual_seed(0)
    net = Loop(timesteps=2)
    compiled = torch.compile(net, backend=backend)
    expected, _, _ = gradients(compiled, NOTHING())
    actual, savings, _ = gradients(compiled, compressed_activations(min_numel=1))
    assert_equal(actual, expected)
    assert savings.stored_bytes < savings.full_bytes
    torch.compiler.reset()


# In Lightning.


class OnlyBatch(Module):
    def training_step(self, batch):
        return super().training_step(batch, 0)


class Twice(Module):
    def training_step(self, batch, batch_idx):
        # A user's own derivative by the input, within the step.
        x = batch[0].requires_grad_()
        (g,) = torch.autograd.grad(self.net(x).square().sum(), x, create_graph=True)
        return F.cross_entropy(self.net(x), batch[1]) + g.square().mean()


ROWS = {
    "plain": {},
    "accumulate 2": dict(trainer=dict(accumulate_grad_batches=2)),
    "manual optimization": dict(module=dict(manual=True)),
    "bf16-mixed": dict(trainer=dict(precision="bf16-mixed")),
    "LBFGS": dict(module=dict(optimizer="lbfgs")),
    "dropout": dict(net=dict(dropout=0.3)),
    "max pooling": dict(net=dict(pool=nn.MaxPool2d)),
    "checkpointing": dict(net=dict(checkpointing=False)),
    "reentrant checkpointing": dict(net=dict(checkpointing=True)),
    "step without batch_idx": dict(kind=OnlyBatch),
    "gradient penalty": dict(kind=Twice),
    "with a penalty": dict(callbacks=lambda: [ActivityRegularization("l1", 0.5)]),
    "compiled network": dict(compile="network"),
    "compiled module": dict(compile="module"),
}


def train(row, compress, **options):
    torch.manual_seed(0)
    module = fitted = row.get("kind", Module)(Loop(**row.get("net", {})), **row.get("module", {}))
    if row.get("compile") == "network":
        module.net.compile(backend="eager")  # others: test_compiled_regions
    elif row.get("compile") == "module":
        fitted = torch.compile(module, backend="eager")
    callbacks = row.get("callbacks", list)()
    callback = CompressedActivations(min_numel=16)
    torch.manual_seed(3)
    fit(fitted, [*callbacks, callback] if compress else callbacks, **row.get("trainer", {}), **options)
    return list(module.net.parameters()), callback


@pytest.mark.parametrize(
    "row", [pytest.param(row, marks=pytest.mark.slow) if row == "compiled module" else row for row in ROWS]
)
def test_training_is_bit_equal(row):
    expected, _ = train(ROWS[row], False)
    actual, callback = train(ROWS[row], True)
    assert_equal(actual, expected)
    torch.manual_seed(0)
    assert not torch.equal(actual[0], Loop().conv.weight.to(actual[0].dtype))
    assert 0 < callback.stored_bytes < callback.full_bytes


def _ddp_worker(rank, port, compress, file):
    parameters, callback = train({}, compress, devices=2, strategy=two_processes(rank, port))
    if rank == 0:
        torch.save([p.detach() for p in parameters], file)
        assert not compress or 0 < callback.stored_bytes < callback.full_bytes
    leave()


@pytest.mark.slow
def test_training_in_two_processes_is_bit_equal(tmp_path):
    results = []
    for compress in (True, False):
        file = tmp_path / f"{compress}.pt"
        torch.multiprocessing.spawn(_ddp_worker, (free_port(), compress, file), nprocs=2)
        results.append(torch.load(file, weights_only=True))
    assert_equal(*results)


def hooks_are_set():
    """Tell whether an operation would be packed."""
    x = torch.zeros(5000, requires_grad=True)
    y = x.exp()
    return y.grad_fn._saved_result.data_ptr() != y.data_ptr()


class Watched(Module):
    """Notes in which hooks saved tensors are packed, and fails where it is told to."""

    def __init__(self, fail=None):
        super().__init__(Loop())
        self.fail, self.packed, self.had = fail, {}, []

    def note(self, where):
        with torch.inference_mode(False), torch.enable_grad():
            self.packed.setdefault(where, set()).add(hooks_are_set())

    def training_step(self, batch, batch_idx):
        self.note("step")
        if self.fail == "step" and batch_idx == 1:
            raise RuntimeError("failed")
        return super().training_step(batch, batch_idx)

    def on_before_backward(self, loss):
        self.note("backward")
        if self.fail == "backward":
            raise KeyboardInterrupt

    def on_train_batch_start(self, batch, batch_idx):
        return -1 if self.fail == "skip" else None

    def validation_step(self, batch, batch_idx):
        self.note("validation")
        self.had.append("training_step" in self.__dict__)
        return self.loss(batch)


@pytest.mark.parametrize("fail", [None, "step", "backward", "skip"])
def test_nothing_but_the_training_step_is_packed(fail):
    module = Watched(fail)
    stop = {None: NOTHING, "skip": NOTHING, "step": lambda: pytest.raises(RuntimeError, match="failed")}
    with stop.get(fail, lambda: pytest.raises((KeyboardInterrupt, SystemExit)))():
        from lightning.pytorch import Trainer

        options = dict(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
        trainer = Trainer(max_epochs=2, enable_model_summary=False, **options, callbacks=[CompressedActivations()])
        trainer.fit(module, loader(), loader())
    assert not hooks_are_set()
    assert "training_step" not in module.__dict__
    if fail is None:
        assert module.packed == {"step": {True}, "backward": {False}, "validation": {False}}
        assert not any(module.had)


def test_a_wrapper_put_around_ours_stays_and_ours_does_nothing():
    module, callback = Watched(), CompressedActivations()
    callback.on_train_batch_start(None, module, None, 0)
    ours = module.training_step
    module.training_step = lambda *args: ours(*args)
    callback.on_train_batch_end(None, module, None, None, 0)
    module.training_step(next(iter(loader())), 0)
    assert module.packed == {"step": {False}}


def test_a_second_fit_starts_anew():
    class Stopped(Module):
        def on_train_start(self):
            raise KeyError("before the first step")

    callback = CompressedActivations(min_numel=16)
    fit(Module(Loop()), [callback], limit_train_batches=1)
    assert callback.full_bytes > callback.stored_bytes > 0
    with contextlib.suppress(KeyError):
        fit(Stopped(Loop()), [callback])
    assert callback.full_bytes == callback.stored_bytes == 0


def test_bytes_are_those_of_the_last_step():
    callbacks = [CompressedActivations(min_numel=16), CompressedActivations(bits=8, min_numel=16)]
    for callback in callbacks:
        torch.manual_seed(0)
        fit(Module(Loop()), [callback], limit_train_batches=1)
    assert callbacks[0].full_bytes == callbacks[1].full_bytes
    assert callbacks[1].stored_bytes < callbacks[0].stored_bytes
    before = callbacks[0].full_bytes
    fit(Module(Loop()), [callbacks[0]], max_epochs=3)
    assert callbacks[0].full_bytes == before  # not added up


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(bits=3), "`bits`.*3"),
        (dict(bits=True), "`bits`.*True"),
        (dict(min_numel=0), "`min_numel`.*0"),
        (dict(min_numel=1.5), "`min_numel`.*1.5"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        CompressedActivations(**arguments)
    with pytest.raises(ValueError, match=message), compressed_activations(**arguments):
        pass
