"""What runs in a process of its own: imports little, since every process imports it again."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F


def batch_of(rank, x):
    """An uneven share: 13 and 7 samples."""
    return x[:13] if rank == 0 else x[13:]


def loss_of(network, rank, x):
    batch = batch_of(rank, x)
    return F.cross_entropy(network(batch), torch.arange(len(batch)) % 10)


def train_in_process(rank, network, x, folder):
    torch.set_num_threads(1)
    network = copy.deepcopy(network)  # spawned processes share the memory of their arguments
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    with torch.inference_mode():
        network(x)  # evaluated before: its buffers have to be fit for the broadcast
    if rank == 1:
        with torch.no_grad():
            next(network.parameters()).add_(1)  # the other process has the weights that count
    parallel = nn.parallel.DistributedDataParallel(network)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(parallel, rank, x).backward()
        optimizer.step()
    torch.save(network.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
