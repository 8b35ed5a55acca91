"""Compiled loops for the CPU: neurons over all time steps, and synapses that are computed event by event.

Each works on the samples from a first one to one behind the last, so that threads can share a batch.

They need numba (``pip install snnreg_plugins[fast]``), so this file is imported only where they are used. All arrays
are contiguous; images are channels-last, ``(N, H, W, C)``, so that a spike adds one run of weights to one run of
outputs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import torch


def _compiled(function: Any) -> Any:
    # Sums that are written as products and additions may be fused, as they are in the libraries for dense layers. The
    # order of additions stays, and neurons, which must not be fused, have none of it.
    return _njit(function, fastmath={"contract"})


def _njit(function: Any, **options: Any) -> Any:
    try:
        return numba.njit(nogil=True, error_model="numpy", cache=True, **options)(function)
    except RuntimeError:  # there is no place to keep compiled code in
        return numba.njit(nogil=True, error_model="numpy", **options)(function)


def _fire(first: int, last: int, currents: Any, potential: Any, threshold: Any, beta: Any) -> None:
    """Turn currents ``(T, B, N)`` into spikes, in place; potentials are ``(B, N)``, thresholds ``(N,)``."""
    zero, one = threshold.dtype.type(0), threshold.dtype.type(1)
    for b in range(first, last):
        v = potential[b]
        for t in range(currents.shape[0]):
            row = currents[t, b]
            for i in range(row.shape[0]):
                reset = threshold[i] if v[i] > threshold[i] else zero
                v[i] = (beta * v[i] + row[i]) - reset
                row[i] = one if v[i] > threshold[i] else zero


def _fire_constantly(
    first: int, last: int, current: Any, spikes: Any, potential: Any, threshold: Any, beta: Any
) -> None:
    """Write the spikes ``(T, B, N)`` of a current ``(B, N)`` that is the same in every step."""
    zero, one = threshold.dtype.type(0), threshold.dtype.type(1)
    for b in range(first, last):
        v, row = potential[b], current[b]
        for t in range(spikes.shape[0]):
            out = spikes[t, b]
            for i in range(row.shape[0]):  # a loop of its own: the next one has as many arrays as vectorize
                out[i] = row[i]
            for i in range(row.shape[0]):
                reset = threshold[i] if v[i] > threshold[i] else zero
                v[i] = (beta * v[i] + out[i]) - reset
                out[i] = one if v[i] > threshold[i] else zero


def _fire_above(
    first: int,
    last: int,
    currents: Any,
    constant: bool,
    start: Any,
    potential: Any,
    threshold: Any,
    beta: Any,
    above: Any,
    spikes: Any,
) -> None:
    """Write the spikes of all steps, and how far the potential was above the threshold, both ``(T, B, N)``.

    Potentials, ``(B, N)``, are written; they start with those of ``start``, ``(B, N)``, or ``(1, N)`` for all samples.
    """
    zero, one = threshold.dtype.type(0), threshold.dtype.type(1)
    for b in range(first, last):
        v, begin = potential[b], start[b if start.shape[0] > 1 else 0]
        for i in range(v.shape[0]):
            v[i] = begin[i]
        for t in range(above.shape[0]):
            row, over, out = currents[0 if constant else t, b], above[t, b], spikes[t, b]
            # Loops of few arrays each, which vectorize.
            for i in range(row.shape[0]):
                reset = threshold[i] if v[i] > threshold[i] else zero
                v[i] = (beta * v[i] + row[i]) - reset
            for i in range(row.shape[0]):
                over[i] = v[i] - threshold[i]
            for i in range(row.shape[0]):
                out[i] = one if over[i] > zero else zero


def _fire_back(
    first: int,
    last: int,
    above: Any,
    fired: Any,
    of_spikes: Any,
    of_last: Any,
    slope: Any,
    height: Any,
    surrogate: int,
    beta: Any,
    of_currents: Any,
    of_start: Any,
    start: Any,
    threshold: Any,
) -> Any:
    """Write the gradients ``(T, B, N)`` of the currents, and those of the first potentials.

    Args:
        first: First sample.
        last: The one behind the last.
        above: How far potentials were above the threshold, ``(T, B, N)``; or the surrogate's derivative there.
        fired: Above 0 where a neuron fired, ``(T, B, N)``.
        of_spikes: ``(T, B, N)``.
        of_last: Gradient of the last potentials, ``(B, N)``, or ``(0, N)`` for 0.
        slope: Of the surrogate, ``(N,)``.
        height: Of the surrogate, ``(N,)``, or ``(0,)`` for 1.
        surrogate: Its number; -1 where ``above`` is its derivative.
        beta: The decay.
        of_currents: Written to.
        of_start: Gradient of the first potentials, ``(B, N)``; written to. ``(0, N)`` if nobody wants it.
        start: The first potentials, ``(B, N)`` or ``(1, N)``.
        threshold: ``(N,)``, or ``(0,)`` if nobody wants its gradient.

    Returns:
        The gradient of the threshold, ``(N,)`` or ``(0,)``, summed over steps and these samples.
    """
    zero, one = slope.dtype.type(0), slope.dtype.type(1)
    total = np.zeros(threshold.shape[0], slope.dtype)
    scratch = np.empty(slope.shape[0], slope.dtype)
    for b in range(first, last):
        later = of_start[b] if of_start.shape[0] else scratch
        if of_last.shape[0]:
            for i in range(later.shape[0]):
                later[i] = of_last[b, i]
        else:
            for i in range(later.shape[0]):
                later[i] = zero
        for t in range(above.shape[0] - 1, -1, -1):
            over, given, out = above[t, b], of_spikes[t, b], of_currents[t, b]
            for i in range(out.shape[0]):
                out[i] = given[i] * height[i] if height.shape[0] else given[i]
            if surrogate == -1:
                for i in range(out.shape[0]):
                    out[i] *= over[i]
            elif surrogate == 0:
                for i in range(out.shape[0]):
                    steepness = one + slope[i] * abs(over[i])
                    out[i] = out[i] / (steepness * steepness)
            elif surrogate == 1:
                for i in range(out.shape[0]):
                    left = one - slope[i] * abs(over[i])
                    out[i] = out[i] * (zero if left < zero else left)
            elif surrogate == 2:
                for i in range(out.shape[0]):
                    x = slope[i] * abs(over[i])
                    out[i] = out[i] / (one + x * x)
            else:
                for i in range(out.shape[0]):
                    out[i] = out[i] if slope[i] * abs(over[i]) < one else zero
            for i in range(total.shape[0]):
                total[i] -= out[i]
            for i in range(out.shape[0]):
                out[i] += later[i]
            if total.shape[0] and t > 0:
                before = fired[t - 1, b]
                for i in range(total.shape[0]):
                    total[i] -= out[i] if before[i] > zero else zero
            elif total.shape[0]:
                begin = start[b if start.shape[0] > 1 else 0]
                for i in range(total.shape[0]):
                    total[i] -= out[i] if begin[i] > threshold[i] else zero
            for i in range(out.shape[0]):
                later[i] = out[i] * beta
    return total


def _active(values: Any, index: Any, value: Any) -> int:
    """List the entries that are not 0; returns how many there are."""
    count = 0
    for i in range(values.shape[0]):
        index[count] = i  # without a branch, which no processor could predict
        value[count] = values[i]
        count += values[i] != 0
    return count


def _linear(first: int, last: int, x: Any, weight: Any, bias: Any, out: Any) -> None:
    """Add up the rows of ``weight`` (in, out) that inputs ``(N, in)`` are active for."""
    index, value = np.empty(x.shape[1] + 1, np.int64), np.empty(x.shape[1] + 1, x.dtype)
    for n in range(first, last):
        row = out[n]
        for i in range(row.shape[0]):
            row[i] = bias[i]
        for j in range(_active_rows(x[n], index, value)):
            weights, s = weight[index[j]], value[j]
            for i in range(row.shape[0]):
                row[i] += s * weights[i]


def _convolve(
    begin: int, end: int, x: Any, weight: Any, bias: Any, out: Any, padding: tuple[int, int], width: int
) -> None:
    """Convolve with stride 1: each spike adds one run of weights to each row of outputs that it reaches.

    Args:
        begin: First sample.
        end: The one behind the last.
        x: ``(N, H, W, C)``.
        weight: ``(C, kernel height, kernel width * O)``, mirrored along the width.
        bias: ``(O,)``.
        out: ``(N, H', W' * O)``.
        padding: Zeros before the first row and column.
        width: Kernel width.
    """
    channels = bias.shape[0]
    rows, columns = out.shape[1], out.shape[2] // channels
    index, value = np.empty(x.shape[3] + 1, np.int64), np.empty(x.shape[3] + 1, x.dtype)
    for n in range(begin, end):
        for y in range(rows):
            for column in range(columns):
                place = out[n, y, column * channels : (column + 1) * channels]
                for i in range(channels):
                    place[i] = bias[i]
        for y in range(x.shape[1]):
            bottom = y + padding[0]
            for column in range(x.shape[2]):
                count = _active_rows(x[n, y, column], index, value)
                if count == 0:
                    continue
                right = column + padding[1]
                left = right - width + 1
                first, last = max(0, left), min(columns - 1, right)
                for ky in range(max(0, bottom - rows + 1), min(weight.shape[1], bottom + 1)):
                    target = out[n, bottom - ky, first * channels : (last + 1) * channels]
                    for j in range(count):
                        weights = weight[index[j], ky, (first - left) * channels : (last + 1 - left) * channels]
                        s = value[j]
                        for i in range(target.shape[0]):
                            target[i] += s * weights[i]


def _convolve_sparsely(
    begin: int, end: int, x: Any, weight: Any, bias: Any, out: Any, padding: tuple[int, int], stride: tuple[int, int]
) -> None:
    """Convolve with any stride: each spike adds the weights of one tap to each output that it reaches.

    Args:
        begin: First sample.
        end: The one behind the last.
        x: ``(N, H, W, C)``.
        weight: ``(C, kernel height, kernel width, O)``.
        bias: ``(O,)``.
        out: ``(N, H', W', O)``.
        padding: Zeros before the first row and column.
        stride: Of rows and columns.
    """
    index, value = np.empty(x.shape[3] + 1, np.int64), np.empty(x.shape[3] + 1, x.dtype)
    for n in range(begin, end):
        for y in range(out.shape[1]):
            for column in range(out.shape[2]):
                place = out[n, y, column]
                for i in range(place.shape[0]):
                    place[i] = bias[i]
        for y in range(x.shape[1]):
            for column in range(x.shape[2]):
                count = _active_rows(x[n, y, column], index, value)
                if count == 0:
                    continue
                for ky in range(weight.shape[1]):
                    row = y + padding[0] - ky
                    if row < 0 or row % stride[0] or row // stride[0] >= out.shape[1]:
                        continue
                    for kx in range(weight.shape[2]):
                        left = column + padding[1] - kx
                        if left < 0 or left % stride[1] or left // stride[1] >= out.shape[2]:
                            continue
                        target = out[n, row // stride[0], left // stride[1]]
                        for j in range(count):
                            weights, s = weight[index[j], ky, kx], value[j]
                            for i in range(target.shape[0]):
                                target[i] += s * weights[i]


def in_parallel(kernel: Callable[..., Any], samples: int, work: int, *arguments: Any) -> list[Any]:
    """Run a kernel on all samples, in as many threads as torch uses.

    Args:
        kernel: ``(first, last, *arguments)``; takes the samples from first to before last.
        samples: Their number.
        work: About how many numbers are to be written or added.
        arguments: Passed on.

    Returns:
        What the kernel gave for each part of the samples, in their order.
    """
    threads = min(torch.get_num_threads(), samples, work // _WORTH_A_THREAD)
    if threads < 2:
        return [kernel(0, samples, *arguments)]
    bounds = [samples * thread // threads for thread in range(threads + 1)]
    pool = _threads(threads, os.getpid())
    return [part.result() for part in [pool.submit(kernel, *part, *arguments) for part in pairwise(bounds)]]


_WORTH_A_THREAD = 2**16


@cache
def _threads(number: int, process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(number, thread_name_prefix=f"snnreg_plugins-{process}")


def _count(values: Any) -> int:
    """Count the entries of ``(N,)`` that are not 0."""
    count = 0
    for i in range(values.shape[0]):
        count += values[i] != 0
    return count


_active_rows = _njit(_active)
count = _njit(_count)
fire = _njit(_fire)
fire_constantly = _njit(_fire_constantly)
fire_above = _njit(_fire_above)
fire_back = _njit(_fire_back)
linear = _compiled(_linear)
convolve = _compiled(_convolve)
convolve_sparsely = _compiled(_convolve_sparsely)
