"""Random networks: each is exported as what it computes, or refused by one of our errors; never another network."""

from __future__ import annotations

import copy
import traceback
from pathlib import Path

import pytest
import torch
from torch import nn

import snnreg_plugins
from snnreg_plugins import (
    ConversionError,
    SynapticOperations,
    from_nir,
    load_network,
    save_network,
    to_nir,
    to_norse,
    to_snntorch,
)
from snnreg_plugins.functional import OneToOne
from snnreg_plugins.functional.synapses import SYNAPTIC_LAYERS
from tests.fuzz.networks import Writer, load
from tests.helpers import brute_force_costs, recorded

CHUNK, CHUNKS = 24, 25
OURS = Path(snnreg_plugins.__file__).parent


def made(seed, tmp_path):
    """The network of a seed, samples, and what it gives for them; None if it fails by itself."""
    torch.manual_seed(seed)
    writer = Writer(seed)
    module = load(writer.text(), tmp_path / f"random_{seed}.py")
    try:
        net = module.make().double()
        for norm in net.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.running_mean.normal_(0, 0.3)
                norm.running_var.uniform_(0.3, 3)
        x = torch.rand(16, *writer.input_shape, dtype=torch.float64)
        with torch.no_grad():
            expected = net.eval()(x.clone())
    except Exception:
        return None
    return net.train(), x, expected, module.make


def is_ours(error):
    """Tell whether an error was raised by a statement of the package, and so is one that was thought of."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return isinstance(error, (ValueError, TypeError)) and OURS in Path(last.filename).parents and "raise" in last.line


def check(seed, tmp_path):
    """Whether a network was exported, refused, or failed by itself."""
    found = made(seed, tmp_path)
    if found is None:
        return "failed"
    net, x, expected, make = found
    state, attributes = copy.deepcopy(net.state_dict()), set(vars(net))
    export = to_snntorch if seed % 3 else to_norse
    try:
        network = export(net, x, timesteps=512, threshold="max", correction="none", per_channel=seed % 2 == 0)
    except Exception as error:
        if not is_ours(error):
            raise AssertionError(f"seed {seed}: {error!r}") from error
        network = None
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items()), f"seed {seed}: changed"
    assert set(vars(net)) == attributes, f"seed {seed}: changed"
    assert net.training
    if network is None:
        return "refused"
    converges(seed, network, x, expected)
    costs_are_exact(seed, network, x[:2])
    is_the_same_from_a_file(seed, network, make().double(), x[:3], tmp_path)
    is_the_same_from_nir(seed, network, x[:3], tmp_path)
    takes_another_size(seed, network, net.eval(), x)
    return "exported"


def error(network, x, expected, timesteps):
    network.timesteps = timesteps
    with torch.no_grad():
        return float((network(x) - expected).abs().mean() / expected.std())


def converges(seed, network, x, expected):
    errors = [error(network, x, expected, timesteps) for timesteps in (32, 512)]
    assert errors[1] < 0.02 or errors[1] < errors[0] / 8, f"seed {seed}: errors {errors}"
    with torch.no_grad():
        torch.testing.assert_close(network(x[:5]), network(x)[:5], msg=f"seed {seed}: depends on the batch")


def costs_are_exact(seed, network, x):
    network.timesteps, network.exact = 3, True
    with torch.no_grad(), recorded(network, (*SYNAPTIC_LAYERS, OneToOne)) as record:
        network(x)
    network.exact = False
    with torch.no_grad(), SynapticOperations(network) as metric:
        network(x)
        found = [metric.by_layer(quantity) for quantity in ("sops", "effective_macs", "dense_macs")]
    costs = {name: [cost / len(x) for cost in costs] for name, costs in brute_force_costs(record).items()}
    assert {name: [by_layer[name] for by_layer in found] for name in found[0]} == costs, f"seed {seed}"


def is_the_same_from_a_file(seed, network, fresh, x, tmp_path):
    save_network(network, tmp_path / "spiking.pt")
    with torch.no_grad():
        assert torch.equal(load_network(tmp_path / "spiking.pt", fresh)(x), network(x)), (
            f"seed {seed}: another from a file"
        )


def is_the_same_from_nir(seed, network, x, tmp_path):
    try:
        to_nir(network, tmp_path / "network.nir")
    except ConversionError:
        return
    again = from_nir(tmp_path / "network.nir", "snntorch" if seed % 2 else "norse")
    with torch.no_grad():
        torch.testing.assert_close(again(x), network(x), msg=f"seed {seed}: another from NIR")


def takes_another_size(seed, network, net, x):
    if x.dim() == 2:
        return
    larger = torch.rand(6, x.shape[1], *[size + 2 for size in x.shape[2:]], dtype=x.dtype)
    try:
        with torch.no_grad():
            expected = net(larger.clone())
        assert len(expected) == len(larger)  # and no samples are mixed
    except Exception:
        expected = None
    try:
        errors = [error(network, larger, expected, timesteps) for timesteps in (32, 512)]
    except Exception as raised:
        if not is_ours(raised) and expected is not None:
            raise AssertionError(f"seed {seed}: {raised!r}") from raised
    else:
        assert errors[1] < 0.1 or errors[1] < errors[0] / 4, f"seed {seed}: errors {errors} at another size"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_what_is_exported_is_what_is_called(chunk, tmp_path):
    ends = [check(seed, tmp_path) for seed in range(CHUNK * chunk, CHUNK * (chunk + 1))]
    assert ends.count("exported") > CHUNK / 3
    assert ends.count("failed") < CHUNK / 4
