"""What runs in a process of its own: imports little, since every process imports it again."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F

from snnreg_plugins.export import Sharded, convert, to_snntorch


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


def exact_network(activation=nn.ReLU):
    """A network whose weights are eighths: on inputs in sixteenths it never rounds, whatever the batch is."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), activation(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 12), activation(),
        nn.Linear(12, 5),
    )  # fmt: skip
    with torch.no_grad():
        for values in network.parameters():
            values.copy_((3 * values * 8).round() / 8)
    return network


def silent_network():
    network = exact_network()
    nn.init.constant_(network[4].bias, -1000)
    return network


def exact_inputs(samples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    # Scales far apart, so that a sum in floating point depends on its order, and ranges grow.
    scales = 2.0 ** torch.randint(-6, 7, (samples, 1, 1, 1), generator=generator)
    return torch.randint(-8, 17, (samples, 1, 8, 8), generator=generator) / 16 * scales


class UnsendableError(Exception):
    """It cannot be made again from its message."""

    def __init__(self, one, other):
        super().__init__(f"{one}, {other}")


def breaks(batches, make_error):
    """Batches, and then an error."""
    yield from batches
    raise make_error()


def export_in_process(rank, cases, folder):
    """Export each case, (name, network, options, a list of batches for each process); keep what comes out."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {
        name: outcome(network, Sharded(share_of(shares, rank)), options) for name, network, options, shares in cases
    }
    if rank == 0:  # one process alone may export too, without waiting for others
        found["alone"] = outcome(exact_network(), exact_inputs(10), dict(threshold="auto"))
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def share_of(shares, rank):
    """The batches of a process; at their end may be what makes an error that is to be raised there."""
    batches = shares[rank]
    return breaks(batches[:-1], batches[-1]) if batches and callable(batches[-1]) else batches


def outcome(network, calibration, options):
    """The tensors of an exported network and how it was made, or the error."""
    torch.manual_seed(0)
    convert._SAMPLES = 16  # fewer than there are
    try:
        spiking = to_snntorch(network, calibration, **(dict(timesteps=4) | options))
    except Exception as error:
        return type(error).__name__, str(error)
    return spiking.state_dict(), spiking.conversion
