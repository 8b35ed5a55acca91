"""Metrics in several processes, each with its own share of the data."""

from __future__ import annotations

import socket

import torch
from torch import distributed, multiprocessing


def run_in_processes(model, metrics, splits):
    """By split of the data over processes: what compute, by_layer, total, and compute after more passes, give.

    A split is a list of batches for each process; the result has a dict by class of metric for each process.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = multiprocessing.get_context("spawn").SimpleQueue()
    processes = len(splits[0])
    multiprocessing.spawn(_work, (port, model, metrics, splits, results), nprocs=processes)
    return list(zip(*(results.get() for _ in range(processes)), strict=True))


def _work(rank, port, model, metrics, splits, results):
    torch.set_num_threads(1)
    where = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=len(splits[0]))
    results.put([{make.__name__: _values(make, model, split[rank]) for make in metrics} for split in splits])
    distributed.destroy_process_group()


def _values(make, model, batches):
    with make(model) as metric:
        for x in batches:
            model(x)
        compute, by_layer = metric.compute().item(), metric.by_layer()
        quantities = ("sops", "effective_macs", "dense_macs") if hasattr(metric, "total") else ()
        totals = {quantity: metric.total(quantity).item() for quantity in quantities}
        for x in batches:  # the state of this process alone must have come back
            model(x)
        return compute, by_layer, totals, metric.compute().item()


def run_trains(make, shares):
    """For each process: what compute and intervals give of the metric that ``make`` makes of its share."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(_work_on_trains, (port, make, shares, results), nprocs=len(shares))
    return [results.get() for _ in shares]


def _work_on_trains(rank, port, make, shares, results):
    torch.set_num_threads(1)
    where = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=len(shares))
    _, metric = make(shares[rank])
    computed = {name: value.item() for name, value in metric.compute().items()}
    results.put((computed, metric.intervals().tolist()))
    distributed.destroy_process_group()
