"""Several processes, each with a share of the calibration data, get the network that one gets from all of it."""

from __future__ import annotations

from fractions import Fraction
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

from snnreg_plugins import to_norse, to_snntorch
from snnreg_plugins.export import Sharded, convert
from snnreg_plugins.export.calibrate import Statistics, _exact_sum, propagate_shapes
from snnreg_plugins.export.processes import Processes
from snnreg_plugins.export.trace import trace
from tests.export.processes import (
    UnsendableError,
    exact_inputs,
    exact_network,
    export_in_process,
    outcome,
    silent_network,
)

SAMPLES = 46
OPTIONS = {
    "percentile": dict(),
    "max by channel": dict(threshold="max", correction="none", per_channel=True),
    "mmse": dict(threshold="mmse"),
    "local": dict(threshold="local"),
    "spike_norm": dict(threshold="spike_norm"),
    "auto": dict(threshold="auto"),
    "potential": dict(correction="potential"),
    "leak": dict(beta=0.9),
    "latency": dict(coding="latency"),
    "neurons": dict(coding="neurons", correction="bias"),
    "poisson": dict(coding="poisson", correction="channel_potential"),
}


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    monkeypatch.setattr(convert, "_SAMPLES", 16)


def dealt_out(x, sizes=(5, 3)):
    """What a DistributedSampler gives each of two processes, in batches of different sizes."""
    return [
        list(DataLoader(x, batch_size=size, sampler=DistributedSampler(x, 2, rank, shuffle=False)))
        for rank, size in enumerate(sizes)
    ]


def uneven(x):
    """29 samples in four batches, and 17 in one."""
    return [list(x[:29].split(8)), [x[29:]]]


def taking_turns(shares):
    """All samples in the order that processes with these shares have."""
    samples = [[sample for batch in share for sample in batch] for share in shares]
    turns = range(max(map(len, samples)))
    return torch.stack([each[turn] for turn in turns for each in samples if turn < len(each)])


def cases():
    """(name, network, options, batches of each process)."""
    x = exact_inputs(SAMPLES)
    found = [(name, exact_network(), options, dealt_out(x)) for name, options in OPTIONS.items()]
    found.append(("two populations", exact_network(partial(nn.LeakyReLU, 0.5)), {}, dealt_out(x)))
    shares = {"uneven": uneven(x), "no batch in the first": [[], [x]], "empty batches in the second": [[x], [x[:0]]]}
    for name, batches in shares.items():
        found.append((name, exact_network(), dict(correction="potential", per_channel=True), batches))
        found.append((f"{name}, mean", exact_network(), dict(coding="latency"), batches))
    return found


def failures():
    """Network, batches of each process (or what makes an error at their end), and the error that all raise."""
    x = exact_inputs(10)
    whole = [x[:5]], [x[5:]]
    broken = x.clone()
    broken[7, 0, 2, 2] = float("nan")
    return {
        "reads": (exact_network(), [[x[:5]], [x[5:], partial(OSError, "disk is gone")]], "OSError", "disk is gone"),
        "at once": (exact_network(), [[partial(ConnectionError, "no network")], [x]], "ConnectionError", "no network"),
        "both": (
            exact_network(),
            [[x, partial(OSError, "first")], [x, partial(KeyError, "second")]],
            "OSError",
            "first",
        ),
        "unsendable": (exact_network(), [[x], [x, partial(UnsendableError, "a", "b")]], None, "a, b"),
        "not finite": (exact_network(), [[x[:5]], [broken[5:]]], "ValueError", "Expected finite activations"),
        "other shape": (exact_network(), [[x[:5]], [x[5:, :, :4]]], "ValueError", r"samples of shape (1, 4, 8)"),
        "no tensors": (exact_network(), [[x[:5]], ["x"]], "TypeError", "a batch of type str"),
        "silent": (silent_network(), whole, "SilentLayerError", "Layer '5' is silent on all calibration data"),
        "empty": (exact_network(), [[], []], "ValueError", "hold at least one sample, but it is empty"),
        "no input": (exact_network(), [[], [0 * x]], "ValueError", "inputs that are not all 0"),
    }


def same(one, other):
    (tensors, conversion), (others, other_conversion) = one, other
    assert conversion == other_conversion
    assert list(tensors) == list(others)
    for name, values in tensors.items():
        assert torch.equal(values, others[name]), name


@pytest.mark.slow
def test_two_processes_get_what_one_gets(tmp_path):
    assert torch.equal(taking_turns(dealt_out(exact_inputs(SAMPLES))), exact_inputs(SAMPLES))
    refused = failures()
    failing = [(name, network, dict(coding="poisson"), shares) for name, (network, shares, _, _) in refused.items()]
    torch.multiprocessing.spawn(export_in_process, (cases() + failing, tmp_path), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name, network, options, shares in cases():
        expected = outcome(network, taking_turns(shares), options)
        for results in found:
            same(results[name], expected)
    same(found[0]["alone"], outcome(exact_network(), exact_inputs(10), dict(threshold="auto")))
    for name, (_, _, kind, message) in refused.items():
        errors = [results[name] for results in found]
        assert message in errors[0][1], name
        assert errors[0][1].removeprefix("UnsendableError: ") == errors[1][1].removeprefix("UnsendableError: ")
        assert kind in (None, errors[0][0])
        assert kind in (None, errors[1][0])


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("sizes", [[1] * SAMPLES, [7, 1, 22, 16]])
def test_batches_of_any_size_give_the_same_network(options, sizes):
    x = exact_inputs(SAMPLES)
    same(outcome(exact_network(), list(x.split(sizes)), options), outcome(exact_network(), x, options))


def test_the_order_of_samples_makes_no_difference_where_none_are_kept():
    x = exact_inputs(SAMPLES)
    for options in (OPTIONS["percentile"], OPTIONS["mmse"], OPTIONS["latency"]):
        other = x[torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(1))]
        same(outcome(exact_network(), other, options), outcome(exact_network(), x, options))


@pytest.mark.parametrize("export", [to_snntorch, to_norse])
def test_alone_the_share_is_all_there_is(export):
    x = exact_inputs(20)
    network, expected = (export(exact_network(), data, timesteps=4) for data in (Sharded(x), x))
    same((network.state_dict(), network.conversion), (expected.state_dict(), expected.conversion))


@pytest.mark.parametrize("scale", [1.0, 1e-42, 1e30])
def test_sums_do_not_round(scale):
    values = scale * torch.randn(1000, generator=torch.Generator().manual_seed(0)).abs().exp()
    values[::3] = 0
    assert _exact_sum(values) == sum(int(value * 2**172) for value in map(Fraction, values.tolist()))


def test_the_mean_input_is_that_of_inputs_that_are_not_0():
    x = exact_inputs(SAMPLES)
    traced = trace(exact_network(), x[:2])
    propagate_shapes(traced, x[:2])
    found = Statistics(traced, x.split(7), False, 0, torch.device("cpu"), Processes(x))
    assert found.inputs.mean == float(x.double().abs().sum()) / int(x.count_nonzero())
    assert (found.inputs.largest, found.inputs.signed) == (float(x.abs().max()), bool((x < 0).any()))
    assert found.samples is None


def test_inputs_that_are_not_finite_are_refused_where_no_activation_shows_it():
    model = nn.Sequential(nn.Linear(2, 3))
    with pytest.raises(ValueError, match="`calibration` to hold finite inputs, but it has NaN"):
        to_snntorch(model, torch.tensor([[1.0, float("nan")]]), timesteps=2)
