"""Networks that nobody wrote: source text of random modules, in the many ways in which people write forward()."""

from __future__ import annotations

import importlib.util
import math
import random
import sys

HEAD = """
import math

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint


class Standardized(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Halved(nn.Linear):
    @property
    def half(self):
        return self.weight / 2

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.half, self.bias)


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, scale: float = 1.0):
        return x + scale * self.inner(x)


class DropPath(nn.Module):
    def __init__(self, p=0.5):
        super().__init__()
        self.p = p

    def forward(self, x):
        if self.p == 0.0 or not self.training:
            return x
        kept = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.p)
        return x / (1 - self.p) * kept
"""


class Writer:
    """Writes one network: ``shape`` is that of what ``x`` holds so far, without the batch.

    Args:
        seed: Of all choices. What is written depends on it alone.
    """

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.init, self.lines, self.after = [], [], []
        self.extra = ""  # further parameters of forward
        self.made = 0
        self.shape = self.input_shape = self.random.choice([(1, 8, 8), (3, 6, 6), (2, 12), (10,)])

    def name(self, what):
        self.made += 1
        return f"{what}{self.made}"

    def module(self, what, made):
        """Write a module into ``__init__``, and give what calls it."""
        name = self.name(what)
        self.init.append(f"self.{name} = {made}")
        return f"self.{name}"

    def write(self, *lines):
        self.lines += lines

    def say(self, *lines):
        """Write one of the lines."""
        self.write(self.random.choice(lines))

    # Layers with weights

    def convolution(self):
        kind = f"nn.Conv{len(self.shape) - 1}d"
        channels, size = self.shape[0], self.random.choice([1, 3, 3])
        groups = self.random.choice([1, 1, 1, channels])
        out = groups * self.random.randint(2, 4) if groups == 1 else groups
        bias = self.random.random() < 0.7
        made = f"{kind}({channels}, {out}, {size}, padding={size // 2}, groups={groups}, bias={bias})"
        if len(self.shape) == 3 and self.random.random() < 0.1:
            made = made.replace("nn.Conv2d", "Standardized")
        if self.random.random() < 0.1:
            wrap = self.random.choice(["parametrizations.weight_norm({})", "nn.utils.spectral_norm({})"])
            made = wrap.format(made)
        elif self.random.random() < 0.1:
            made = f"prune.l1_unstructured({made}, 'weight', 0.4)"
        layer = self.module("conv", made)
        call = f"{layer}(x)"
        if self.random.random() < 0.1:
            number = len(self.shape) - 1
            call = f"F.conv{number}d(x, {layer}.weight, {layer}.bias, padding={size // 2}, groups={groups})"
        self.write(f"x = {call}")
        self.shape = (out, *self.shape[1:])
        if self.random.random() < 0.4:
            self.write(f"x = {self.module('norm', f'nn.BatchNorm{len(self.shape) - 1}d({out})')}(x)")

    def linear(self):
        out = self.random.randint(4, 8)
        kind = self.random.choice(["nn.Linear", "nn.Linear", "Halved"])
        layer = self.module("linear", f"{kind}({self.shape[-1]}, {out}, bias={self.random.random() < 0.8})")
        self.say(f"x = {layer}(x)", f"x = {layer}.forward(x)", f"x = F.linear(x, {layer}.weight, {layer}.bias)")
        self.shape = (*self.shape[:-1], out)
        if len(self.shape) == 1 and self.random.random() < 0.3:
            self.write(f"x = {self.module('norm', f'nn.BatchNorm1d({out})')}(x)")

    def layer(self):
        self.linear() if len(self.shape) == 1 else self.convolution()

    def activation(self):
        kinds = ["nn.ReLU()", "nn.ReLU(inplace=True)", "nn.ReLU6()", "nn.LeakyReLU(0.1)", "nn.PReLU()"]
        self.say(
            f"x = {self.module('act', self.random.choice(kinds))}(x)",
            "x = F.relu(x)",
            "x = F.relu(x, inplace=True)",
            "x = x.relu()",
            "x = torch.relu(x)",
            "x = x.relu_()",
            "x = x.clamp(min=0)",
            "x = x.clamp(0, 1.5)",
            "x = torch.clamp_min(x, 0.0)",
            "x = F.leaky_relu(x, 0.2)",
            "x = F.hardtanh(x, 0.0, 2.0)",
            "F.relu_(x)",
        )

    # What people write between layers

    def same(self):
        """Something that gives x again, in eval mode."""
        self.write(*self.random.choice([
            ["if self.training:", "    x = x + torch.randn_like(x)"],
            ["x = F.dropout(x, 0.5, self.training)"],
            ["x = F.dropout(x, p=0.5, training=self.training)"],
            [f"x = {self.module('drop', 'nn.Dropout(0.3)')}(x)"],
            [f"x = {self.module('path', 'DropPath()')}(x)"],
            [f"assert x.dim() == {len(self.shape) + 1}"],
            [f"assert x.shape[1] == {self.shape[0]}, f'got {{x.shape}}'"],
            [f"torch._assert(x.shape[1] == {self.shape[0]}, 'another size')"],
            ["if x.ndim == 1:", "    x = x.unsqueeze(0)"],
            ["if isinstance(x, (list, tuple)):", "    x = torch.cat(x, 1)"],
            ["if not isinstance(x, Tensor):", "    raise TypeError(type(x))"],
            ["x = x.contiguous()"],
            ["x = x.clone()"],
            ["x = x.to(next(self.parameters()).dtype)"],
            ["x = x.double()"],
            ["x = x.type_as(x)"],
            ["x = x * 1"],
            ["x = x + 0.0"],
            ["x = x.unsqueeze(-1).squeeze(-1)"],
            ["x = x[:]"],
            ["x = x[...]"],
            ["x = x[: len(x)]"],
            ["B = x.size(0)", "x = x.reshape(B, *x.shape[1:])"],
            ["b, *rest = x.shape", "x = x.view([b] + rest)"],
            [f"x = {self.module('seq', 'nn.Sequential()')}(x)"],
            [f"for m in {self.module('list', 'nn.ModuleList([nn.Identity(), nn.Dropout(0.1)])')}:", "    x = m(x)"],
            ["self.last_activity = x.detach()"],
            ["self.calls = getattr(self, 'calls', 0) + 1"],
            ["with torch.profiler.record_function('part'):", "    x = x.view_as(x)"],
            ["y, z = x, x", "x = y if y is z else z"],
            ["try:", "    x = x.view(x.shape)", "except RuntimeError:", "    x = x.reshape(x.shape)"],
            ["n = 1", "for size in x.shape[1:]:", "    n *= size", "x = x.view(-1, n).view(x.shape)"],
        ]))  # fmt: skip

    def rescaled(self):
        """Arithmetic with numbers and tensors of the network's own."""
        if self.random.random() < 0.5:
            self.say("x = x * 0.5", "x = 2 * x", "x = x / 1.5", "x *= 0.7", "x = x.mul(0.5)", "x = torch.mul(x, 1.2)")
            return
        axes = (self.shape[0],) + (1,) * (len(self.shape) - 1)
        name = self.name("gain")
        held = [
            f"self.{name} = nn.Parameter(torch.rand{axes} + 0.5)",
            f"self.register_buffer('{name}', torch.rand{axes} + 0.5)",
        ]
        self.init.append(self.random.choice(held))
        self.say(f"x = x * self.{name}", f"x = self.{name} * x", f"x = x.mul(self.{name})", f"x = x / self.{name}")

    def shortcut(self):
        channels = self.shape[0]
        rank = len(self.shape) - 1
        if rank:
            layer = self.module("conv", f"nn.Conv{rank}d({channels}, {channels}, 3, padding=1)")
        else:
            layer = self.module("linear", f"nn.Linear({channels}, {channels})")
        form = self.random.choice(["plain", "norm", "module", "checkpoint", "scaled", "twice", "cat", "list"])
        if form == "module":
            self.init[-1] = self.init[-1].replace("= ", "= Residual(", 1) + ")"
            self.write(f"x = {layer}(x)")
        elif form == "checkpoint":
            self.write(f"x = x + checkpoint({layer}, x, use_reentrant=False)")
        elif form == "scaled":
            self.say(
                f"x = torch.add(x, {layer}(x), alpha=0.5)", f"x = x + 0.5 * {layer}(x)", f"x = x - 0.1 * {layer}(x)"
            )
        elif form == "twice":
            self.write(f"x = x + {layer}({layer}(x).relu())")
        elif form == "cat":
            self.say(f"x = torch.cat([x, {layer}(x)], dim=1)", f"x = torch.cat((x, F.relu({layer}(x))), 1)")
            self.shape = (2 * channels, *self.shape[1:])
        elif form == "list":
            self.write(f"ys = [x, {layer}(x)]", "x = sum(ys)")
        else:
            norm = self.module("norm", f"nn.BatchNorm{rank or 1}d({channels})") if form == "norm" else ""
            inner = f"{norm}({layer}(x))"
            self.write("identity = x", f"out = {inner}", *self.random.choice([
                ["out += identity", "x = out"],
                ["x = out + identity"],
                ["x = identity.add(out)"],
                ["x = torch.add(out, identity)"],
            ]))  # fmt: skip

    def pooled(self):
        rank = len(self.shape) - 1
        sizes = self.shape[1:]
        if not rank or any(size % 2 for size in sizes):
            return
        max_or_avg = self.random.choice(["max", "avg"])
        kind = {"max": "Max", "avg": "Avg"}[max_or_avg]
        half = ", ".join(str(size // 2) for size in sizes)
        self.say(
            f"x = {self.module('pool', f'nn.{kind}Pool{rank}d(2)')}(x)",
            f"x = F.{max_or_avg}_pool{rank}d(x, 2)",
            f"x = F.{max_or_avg}_pool{rank}d(x, kernel_size=2, stride=2)",
            f"x = F.adaptive_{max_or_avg}_pool{rank}d(x, ({half},))",
            "x = x" + "[" + ", ".join([":", ":"] + ["::2"] * rank) + "]",
        )
        self.shape = (self.shape[0], *[size // 2 for size in sizes])

    def moved(self):
        channels, *sizes = self.shape
        order = list(reversed(range(channels)))
        if len(sizes) == 2 and sizes[0] == sizes[1]:
            self.say(
                "x = x.transpose(2, 3)",
                "x = x.permute(0, 1, 3, 2)",
                "x = torch.flip(x, [2])",
                "x = x.flip(-1)",
                "x = torch.roll(x, 1, 3)",
                "x = x.rot90(1, (2, 3))",
                "x = x.mT",
                "x = torch.einsum('bchw->bcwh', x)",
                "x = x.swapaxes(2, 3)",
                "x = torch.stack(x.unbind(2), 3)",
            )
        elif channels % 2 == 0:
            self.say(
                "a, b = x.chunk(2, dim=1)\nx = torch.cat([b, a], 1)",
                f"x = torch.cat(torch.split(x, {channels // 2}, dim=1)[::-1], dim=1)",
                f"x = x.view(x.size(0), 2, {channels // 2}, *x.shape[2:]).transpose(1, 2).flatten(1, 2)",
                f"x = torch.cat([x[:, {channels // 2}:], x[:, :{channels // 2}]], 1)",
                f"x = x[:, {order}]",
                f"x = x[:, torch.tensor({order})]",
                f"x = x.index_select(1, torch.tensor({order}))",
                "x = torch.stack(x.tensor_split(2, 1), 2).flatten(1, 2)",
                "x = torch.repeat_interleave(x, 2, dim=1)[:, ::2]",
                f"x = x.repeat(1, 2{', 1' * len(sizes)})[:, 1:{channels + 1}]",
                f"x = torch.cat([x.narrow(1, {channels // 2}, {channels // 2}), x.narrow(1, 0, {channels // 2})], 1)",
            )
        else:
            self.say("x = F.pad(x, (1, 1))[..., 1:-1]", "x = torch.cat([x], 1)", "x = F.pad(x, (0, 2))[..., :-2]")

    def branched(self):
        """Something that depends on more than the values: what may be refused, and never be wrong."""
        shape = self.shape
        self.write(*self.random.choice([
            ["if mask is not None:", "    x = x * mask"],
            ["x = x if scale is None else x * scale"],
            ["if scale is not None:", "    x = x * scale", "else:", "    x = x * 0.9"],
            ["x = x * (temperature or 1.0)"],
            ["if flag:", "    x = -x"],
            ["if not flag:", "    x = x + 0.25"],
            [f"if x.shape[-1] > {shape[-1] - 1}:", "    x = x * 0.8"],
            ["if x.size(0) > 100:", "    x = x * 2"],
            ["if x.sum() > 0:", "    x = x * 2"],
            ["if x.abs().max() > 1e6:", "    raise ValueError('too large')"],
            ["if torch.isnan(x).any():", "    return None"],
            ["x = x * (x > 0)"],
            ["x = torch.where(x > 0, x, torch.zeros_like(x))"],
            ["x[x < 0] = 0"],
            ["x = x.masked_fill(x < 0.1, 0.0)"],
            ["x = torch.maximum(x, torch.zeros_like(x))"],
            ["x = x.abs()"],
            ["x = torch.sigmoid(x)"],
            ["x = x * torch.sigmoid(x)"],
            ["x = F.gelu(x)"],
            ["x = x / x.norm(dim=1, keepdim=True)"],
            ["x = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)"],
            ["x = x - x.mean()"],
            ["x = x / len(x)"],
            ["x = F.dropout(x, 0.5)"],
            ["x = x + 0.1 * torch.randn_like(x)"],
            ["x = x.round()"],
            ["x = x ** 2"],
            ["x = x * x"],
            ["x = F.softmax(x, 1)"],
            ["x = torch.einsum('b...,b...->b...', x, x)"],
            ["x.data = x.data * 0.5"],
            ["with torch.no_grad():", "    x = x * 0.5"],
            ["x = x.detach() * 0.5"],
            ["import numpy as np", "x = torch.as_tensor(np.asarray(x.detach()) * 2)"],
            ["x = torch.stack([one * 2 for one in x])"],
            ["x = torch.tensor(x.tolist(), dtype=x.dtype)"],
            ["x = x * x.shape[1] / 4"],
            ["x = x * math.sqrt(x.size(1))"],
            ["x = x + torch.ones(x.shape[1:], dtype=x.dtype) * 0.1"],
            ["x = x + torch.linspace(0, 1, x.shape[-1], dtype=x.dtype)"],
        ]))  # fmt: skip
        self.extra = ", scale=None, mask: Tensor | None = None, temperature=1.0, flag: bool = False, *args, **kwargs"

    def hooked(self):
        """A hook, or a forward of the instance, on the network as it was made."""
        modules = [
            line.split(" = ")[0].removeprefix("self.") for line in self.init if ("conv" in line or "linear" in line)
        ]
        layer = f"net.{self.random.choice(modules)}"
        self.after += self.random.choice([
            [f"{layer}.register_forward_hook(lambda m, i, o: None)"],
            [f"{layer}.register_forward_hook(lambda m, i, o: o * 0.5)"],
            [f"{layer}.register_forward_hook(lambda m, i, o: o.clamp(-0.1, 0.1))"],
            [f"{layer}.register_forward_pre_hook(lambda m, i: (i[0] * 0.5,))"],
            ["net.register_forward_pre_hook(lambda m, i: ((i[0] - 0.3) / 0.5,))"],
            ["net.register_forward_hook(lambda m, i, o: o - 1)"],
            [f"{layer}.register_full_backward_hook(lambda m, i, o: None)"],
            ["forward = net.forward", "net.forward = lambda x: forward(x) * 2"],
            [f"{layer}.forward = lambda x, f={layer}.forward: f(x) + 1"],
            ["net.register_state_dict_pre_hook(lambda *a: None)"],
            [f"{layer}.requires_grad_(False)"],
        ])  # fmt: skip

    def flattened(self):
        channels, *sizes = self.shape
        number = math.prod(self.shape)
        if not sizes:
            return
        rank = len(sizes)
        axes = tuple(range(2, rank + 2))
        if self.random.random() < 0.5:
            self.say(
                "x = x.flatten(1)",
                "x = torch.flatten(x, 1)",
                "x = x.view(x.size(0), -1)",
                "x = x.view(x.shape[0], -1)",
                f"x = x.view(-1, {number})",
                "x = x.reshape(len(x), -1)",
                f"x = x.reshape(-1, {' * '.join(str(size) for size in self.shape)})",
                f"x = {self.module('flatten', 'nn.Flatten()')}(x)",
                "b, c = x.shape[:2]\nx = x.reshape(b, c * math.prod(x.shape[2:]))",
                f"x = x.view(x.size(0), x.size(1) * {number // channels})",
            )
            self.shape = (number,)
        else:
            self.say(
                f"x = x.mean({axes})",
                f"x = x.mean(dim={[-1 - axis for axis in range(rank)]})",
                f"x = x.mean({axes}, keepdim=True).flatten(1)",
                f"x = x.sum({axes})",
                f"x = x.amax({axes})",
                f"x = F.adaptive_avg_pool{rank}d(x, 1).flatten(1)",
                f"x = F.avg_pool{rank}d(x, x.size()[2:]).view(x.size(0), -1)",
                f"x = F.max_pool{rank}d(x, x.shape[2:]).flatten(1)",
                f"x = torch.flatten({self.module('pool', f'nn.AdaptiveAvgPool{rank}d(1)')}(x), 1)",
                "x = x.flatten(2).mean(-1)",
                "x = x.flatten(2).max(-1)[0]",
                "x = torch.max(x.flatten(2), dim=2).values",
            )
            self.shape = (channels,)

    def ended(self):
        self.linear()
        self.say(
            *["return x"] * 24,
            "return F.log_softmax(x, dim=1)",
            "return x.softmax(-1)",
            "return x, {}",
            "return {'logits': x}",
            "return x.unsqueeze(1).squeeze(1)",
            "return x * 3.0",
            "return x.argmax(1)",
            "return -x",
        )

    def text(self):
        steps = [self.same] * 4 + [self.rescaled, self.shortcut, self.pooled, self.moved] * 2 + [self.branched]
        if self.random.random() < 0.3:
            self.random.choice([self.rescaled, self.same])()
        for _ in range(self.random.randint(1, 3)):
            self.layer()
            self.activation()
            for step in self.random.choices(steps, k=self.random.randint(0, 2)):
                step()
                if self.random.random() < 0.5:
                    self.activation()
        self.flattened()
        if self.random.random() < 0.5:
            self.linear()
            self.activation()
        self.ended()
        if self.random.random() < 0.12:
            self.hooked()
        lines = [part for line in self.lines for part in line.split("\n")]
        base = self.random.choice(["nn.Module", "LightningModule"])
        indent = "\n        "
        return (
            f"{HEAD}\n\nclass Net({base}):\n    def __init__(self):{indent}super().__init__(){indent}"
            f"{indent.join(self.init)}\n\n    def forward(self, x{self.extra}):{indent}{indent.join(lines)}\n\n\n"
            f"def make():\n    net = Net()\n    {(chr(10) + '    ').join([*self.after, 'return net'])}\n"
        )


def load(text, path):
    """Import a module from source text, written to ``path`` such that errors can cite its lines."""
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
