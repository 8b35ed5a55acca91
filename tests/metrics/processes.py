"""Metrics in several processes, each with its own share of the data."""

from __future__ import annotations

import socket
from contextlib import nullcontext

import torch
from torch import distributed, multiprocessing


def run_in_processes(cases, splits):
    """By split of the data over processes: what :func:`values_in` gives of each (model, class of metric).

    A split is a list of batches for each process; the result has a list by case for each process.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = multiprocessing.get_context("spawn").SimpleQueue()
    processes = len(splits[0])
    multiprocessing.spawn(_work, (port, cases, splits, results), nprocs=processes)
    return list(zip(*(results.get() for _ in range(processes)), strict=True))


def _work(rank, port, cases, splits, results):
    torch.set_num_threads(1)
    where = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=len(splits[0]))
    results.put([[values_in(model, make, split[rank]) for model, make in cases] for split in splits])
    distributed.destroy_process_group()


def values_in(model, make, batches):
    """All that a metric tells, after a run on batches and after a second one."""
    found = []
    with make(model) as metric:
        for _ in range(2):  # for the second, the state of this process alone must have come back
            for x in batches:
                labels = (x.sum(1) % 3).long()
                with metric.labelled(labels) if hasattr(metric, "labelled") else nullcontext():
                    model(x)
            values = {"compute": metric.compute(), "by_layer": metric.by_layer()}
            for quantity in ("sops", "effective_macs", "dense_macs") if hasattr(metric, "total") else ():
                for of in (metric.total, metric.by_layer, metric.by_step, metric.by_label):
                    values[of.__name__, quantity] = of(quantity)
            if hasattr(metric, "intervals"):
                values["intervals"] = [metric.intervals(layer).tolist() for layer in [None, *metric.layers]]
            found.append(_plain(values))
    return found


def _plain(values):
    if isinstance(values, dict):
        return {name: _plain(value) for name, value in values.items()}
    return values.item() if isinstance(values, torch.Tensor) else values
