"""Metrics in several processes, each with its own share of the data."""

from __future__ import annotations

import socket

import torch
from torch import distributed, multiprocessing


def run_in_processes(model, metrics, shares):
    """For each process: by class of metric what compute, by_layer, total and then compute again give."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(_work, (port, model, metrics, shares, results), nprocs=len(shares))
    return [results.get() for _ in shares]


def _work(rank, port, model, metrics, shares, results):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=len(shares))
    values = {}
    for make in metrics:
        with make(model) as metric:
            for x in shares[rank]:
                model(x)
            compute, by_layer = metric.compute().item(), metric.by_layer()
            quantities = ("sops", "effective_macs", "dense_macs") if hasattr(metric, "total") else ()
            totals = {quantity: metric.total(quantity).item() for quantity in quantities}
            for x in shares[rank]:  # the state of this process alone must have come back
                model(x)
            values[make.__name__] = compute, by_layer, totals, metric.compute().item()
    results.put(values)
    distributed.destroy_process_group()
