"""What a network reads out of its steps, on its way to files, NIR, reports and early exit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from snnreg_plugins import deploy, exit_margins, from_nir, load_network, report, save_network, to_nir, to_snntorch
from snnreg_plugins.functional import READOUTS
from tests.helpers import plain_scores


def network_of(spiking, **options):
    torch.manual_seed(0)
    layers = [nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3), *([nn.ReLU()] if spiking else [])]
    dnn = nn.Sequential(*layers).double()
    return dnn, to_snntorch(dnn, X, timesteps=4, **options)


X = torch.rand(9, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("readout", READOUTS)
def test_scores_are_read_out_of_every_step(readout, per_channel):
    _, network = network_of(spiking=True, per_channel=per_channel)
    outputs = network.record(X).outputs
    network.readout, network.readout_decay = readout, 0.75
    given = (outputs != 0).double() if readout == "spike_count" else outputs
    assert outputs.unique().numel() > 2 or not per_channel  # spikes are worth different values
    for exact in (True, False):
        network.exact = exact
        for steps, found in enumerate(network(X, per_step=True), start=1):
            torch.testing.assert_close(found, plain_scores(given[:steps], readout, 0.75), rtol=1e-12, atol=1e-12)
        assert torch.equal(network(X), found)


@pytest.mark.parametrize("readout", READOUTS)
def test_it_stays_with_the_network(readout, tmp_path):
    dnn, network = network_of(spiking=True)
    network.readout, network.readout_decay = readout, 0.75
    expected = network(X)
    save_network(network, tmp_path / "spiking.pt")
    to_nir(network, tmp_path / "spiking.nir")
    others = [load_network(tmp_path / "spiking.pt", dnn), from_nir(tmp_path / "spiking.nir"), deploy(network)]
    for other in others:
        assert (other.readout, other.readout_decay) == (readout, 0.75)
        assert torch.equal(other(X), expected)


@pytest.mark.parametrize("readout", READOUTS)
def test_reports_and_early_exit_go_by_it(readout):
    _, network = network_of(spiking=True)
    network.readout = readout
    with torch.no_grad():
        running = network(X, per_step=True)
        classes = running[-1].argmax(1)
        result = report(None, network, [(X, classes)], steps=[1, 2, 4])
        for step in result.steps:
            assert step.score == (running[step.timesteps - 1].argmax(1) == classes).double().mean()
        network.exit_margins = exit_margins(network, X, agreement=1.0)
        found, taken = network(X), network.steps_taken
    assert torch.equal(found, running[taken - 1, torch.arange(9)])
    assert torch.equal(found.argmax(1), classes)


def test_what_is_read_out_only_where_there_is_any():
    dnn, network = network_of(spiking=False)
    with pytest.raises(ValueError, match="last layer spikes for readout='spike_count', .* ends with nn.ReLU"):
        network.readout = "spike_count"
    with pytest.raises(ValueError, match="Expected argument `readout` to be one of .*'last'.* but got 'mode'"):
        network.readout = "mode"
    with pytest.raises(ValueError, match=r"Expected argument `readout_decay` to be in \(0, 1\], but got 0"):
        network.readout_decay = 0
    partly = to_snntorch(dnn, X, timesteps=4, until="1")
    with pytest.raises(ValueError, match=r"(?s)`readout` to be 'mean' .* \(`until`\), .* but got 'last'. Export the"):
        partly.readout = "last"
    assert network.readout == partly.readout == "mean"


def test_a_file_says_nothing_else(tmp_path):
    dnn, network = network_of(spiking=False)
    network.conversion["readout"] = "spike_count"  # as a file of another network might
    save_network(network, tmp_path / "spiking.pt")
    with pytest.raises(ValueError, match="last layer spikes for readout='spike_count'"):
        load_network(tmp_path / "spiking.pt", dnn)


def test_gradients_under_checkpointing_are_of_the_steps_of_the_call():
    """The steps are set anew between forward and backward, as where each batch has its own."""
    gradients = []
    for checkpointing in (False, True):
        _, network = network_of(spiking=False)
        network.checkpointing = checkpointing
        network.timesteps = 3
        loss = network(X).square().mean()
        network.timesteps = 1
        loss.backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for plain, thrifty in zip(*gradients, strict=True):
        torch.testing.assert_close(thrifty, plain)


def test_fewer_steps_need_no_other_thresholds():
    """Spikes are 0 or 1, and scores a mean: the first steps are those of a shorter run."""
    _, network = network_of(spiking=False)
    network.exact = True
    before = {name: value.clone() for name, value in network.state_dict().items()}
    running = network(X, per_step=True)
    for steps in (3, 2, 1):
        network.timesteps = steps
        assert torch.equal(network(X), running[steps - 1])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
