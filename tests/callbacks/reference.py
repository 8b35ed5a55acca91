"""A small training job, with the penalty from the callback or written into ``training_step`` by hand."""

from __future__ import annotations

import os
import socket

import snntorch
import torch
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from tests.helpers import brute_force_fan_out


class Analog(nn.Module):
    """Neurons behind a layer that reads real values."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(64, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.lif = snntorch.Leaky(0.9, threshold=0.3)

    def forward(self, x):
        s, _ = self.lif(self.fc2(self.fc1(x.flatten(1)).relu()), self.lif.init_leaky())
        return self.fc3(s.to(x))


def step_by(module, loss):
    """Give a loss to Lightning, or in manual optimization take a step by it."""
    if module.automatic_optimization:
        return loss
    optimizer = module.optimizers()
    optimizer.zero_grad()
    module.manual_backward(loss)
    optimizer.step()
    return None


class Net(nn.Module):
    """Convolutions and linear layers; tells the activities that its layers read."""

    def __init__(self, inplace=False, functional=False, shared=False, checkpointing=None):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.fc1 = nn.Linear(64, 12)
        self.fc2 = nn.Linear(12, 12)
        self.fc3 = nn.Linear(12, 3)
        self.relu = nn.ReLU(inplace=inplace)
        self.functional = functional
        self.shared = shared
        self.checkpointing = checkpointing

    def activate(self, x):
        return F.relu(x) if self.functional else self.relu(x)

    def features(self, x, activities):
        x = self.activate(self.conv1(x))
        activities.append(("conv2", x))
        x = self.activate(self.conv2(x)).flatten(1)
        activities.append(("fc1", x))
        return self.activate(self.fc1(x))

    def forward(self, x, activities=None):
        activities = [] if activities is None else activities
        if self.checkpointing is None:
            x = self.features(x, activities)
        else:
            # Reentrant checkpointing gives gradients only through an input that requires them.
            x = x.detach().requires_grad_()
            run = lambda x: self.features(x, [])  # noqa: E731
            x = checkpoint(run, x, use_reentrant=self.checkpointing == "reentrant")
        activities.append(("fc2", x))
        x = self.activate(self.fc2(x))
        if self.shared:
            activities.append(("fc2", x))
            x = self.activate(self.fc2(x))
        activities.append(("fc3", x))
        return self.fc3(x)


FAN_OUT = {
    "conv2": lambda net: brute_force_fan_out(net.conv2, (4, 8, 8)),
    "fc1": lambda net: brute_force_fan_out(net.fc1, (64,)),
    "fc2": lambda net: brute_force_fan_out(net.fc2, (12,)),
    "fc3": lambda net: brute_force_fan_out(net.fc3, (12,)),
}


def single(a):
    """Half precision is raised, as anybody who sums thousands of values would."""
    return a.float() if a.dtype in (torch.float16, torch.bfloat16) else a


def l1_by_hand(net, activities, weighting="uniform"):
    if weighting == "uniform":
        total = 0.0
        for name in {name for name, _ in activities}:
            calls = [single(a) for other, a in activities if other == name]
            total = total + sum(a.abs().mean() for a in calls) / len(calls)
        return total
    events, synapses = 0.0, 0
    for name, a in activities:
        fan_out = FAN_OUT[name](net)
        events = events + (single(a).abs() * fan_out).sum() / len(a)
        synapses += int(fan_out.sum())
    return events / synapses


class Module(LightningModule):
    """The user's module. With ``strength`` it adds the penalty by hand."""

    def __init__(self, net, strength=0.0, weighting="uniform", manual=False, optimizer="sgd", probe_grad=False):
        super().__init__()
        self.net = net
        self.strength, self.weighting = strength, weighting
        self.automatic_optimization = not manual
        self.optimizer = optimizer
        self.probe_grad = probe_grad

    def loss(self, batch):
        x, y = batch
        activities = []
        loss = F.cross_entropy(self.net(x, activities), y)
        if self.probe_grad:
            # A user's own derivative, which must not see the penalty.
            (g,) = torch.autograd.grad(loss, self.net.conv1.weight, retain_graph=True, create_graph=False)
            loss = loss * (1 + g.square().sum())
        if self.strength:
            loss = loss + self.strength * l1_by_hand(self.net, activities, self.weighting)
        return loss

    def training_step(self, batch, batch_idx):
        loss = step_by(self, self.loss(batch))
        return loss if loss is None else {"loss": loss}

    def configure_optimizers(self):
        if self.optimizer == "lbfgs":
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)
        if self.optimizer == "adam":
            return torch.optim.Adam(self.parameters(), lr=1e-2)
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader(dtype=torch.float32, samples=32, batch_size=8):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(samples, 1, 8, 8, generator=generator, dtype=dtype)
    y = torch.randint(0, 3, (samples,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=batch_size)


def fit(module, callbacks=(), dtype=torch.float32, **trainer):
    """Train for a few steps and return the parameters."""
    options = dict(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    ckpt_path, data = trainer.pop("ckpt_path", None), trainer.pop("data", None)
    trainer = Trainer(**(options | trainer), callbacks=list(callbacks))
    trainer.fit(module, loader(dtype) if data is None else data, ckpt_path=ckpt_path)
    return parameters(module), trainer


def parameters(module):
    return torch.cat([p.detach().double().flatten() for p in module.net.parameters()])


def start(net_options, dtype=torch.float32):
    torch.manual_seed(0)
    return Net(**net_options).to(dtype)


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def two_processes(rank, port, **options):
    """A DDP strategy for one of two processes that are running already."""
    torch.set_num_threads(1)
    os.environ |= dict(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
        LOCAL_WORLD_SIZE="2",
        GROUP_RANK="0",
        NODE_RANK="0",
        TORCHELASTIC_RUN_ID="test",
    )
    return DDPStrategy(cluster_environment=TorchElasticEnvironment(), process_group_backend="gloo", **options)


def leave():
    """Leave the process group together: a process that is late aborts when the first has closed the store."""
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
