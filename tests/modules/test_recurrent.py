"""Recurrent spiking networks on time series: equal to each series alone, step by step; and what they cost, exactly."""

from __future__ import annotations

import copy

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from snnreg_plugins import (
    ActivityRegularization,
    SpikeRate,
    SpikeStatistics,
    SpikingValidation,
    SynapticOperations,
    TimeSteps,
    exit_margins,
    report,
)
from snnreg_plugins.modules import RecurrentNetwork, SpikingClassifier
from snnreg_plugins.neurons import Drawn, Recurrent
from snnreg_plugins.profile import profile
from tests.helpers import adaptive_neuron, brute_force_costs, recorded

LENGTHS = (5, 9, 2, 9, 1, 7)


def network_of(dtype=torch.float64, **settings):
    torch.manual_seed(0)
    settings = dict(hidden=(8, 6), tau_m=Drawn("gamma", 3.0, 1.0), threshold=0.1) | settings
    return RecurrentNetwork(4, 3, **settings).to(dtype)


def ragged(lengths=LENGTHS, dtype=torch.float64, seed=1):
    x = 2 * torch.randn(len(lengths), 10, 4, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    for sample, length in zip(x, lengths, strict=True):
        sample[length:] = torch.nan
    return x


def alone(x):
    """Each series by itself, without what is behind its end."""
    return [series[: int((~series.isnan().any(1)).sum())].unsqueeze(0) for series in x]


def by_hand(network, x, readout):
    """Scores of a series alone, and the spikes of its layers by step."""
    read, spikes = list(x[0].unsqueeze(1)), []
    for weights, layer in zip(network.inputs, network.hidden, strict=True):
        currents = [weights(one) for one in read]
        recurrent = layer.synapses.weight if isinstance(layer, Recurrent) else None
        read = adaptive_neuron(currents, layer.neuron.p if isinstance(layer, Recurrent) else layer.p, recurrent)[0]
        spikes.append(read)
    keep, potential, potentials = torch.exp(-1 / network.log_tau_out.exp()), 0.0, []
    for one in read:
        potential = keep * potential + network.readout(one)
        potentials.append(potential)
    stacked = torch.stack(potentials)
    return {"mean": stacked.mean(0), "last": stacked[-1], "max": stacked.amax(0)}[readout], spikes


@pytest.mark.parametrize("readout", ["mean", "last", "max"])
@pytest.mark.parametrize("framework", ["snntorch", "norse"])
@pytest.mark.parametrize("recurrent", [True, False])
def test_scores_and_gradients_are_those_of_each_series_alone(framework, readout, recurrent):
    network, x = network_of(framework=framework, readout=readout, recurrent=recurrent), ragged()
    targets = torch.arange(6) % 3

    def gradients(scores):
        return torch.autograd.grad(F.cross_entropy(scores, targets), list(network.parameters()))

    scores, expected = network(x), torch.cat([by_hand(network, one, readout)[0] for one in alone(x)])
    torch.testing.assert_close(scores, expected, rtol=1e-12, atol=1e-12)
    assert scores.std() > 0.1
    for ours, wanted in zip(gradients(scores), gradients(expected), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-12)
    assert network.steps_taken.tolist() == list(LENGTHS)


def test_both_frameworks_and_parameters_by_layer():
    ours, x = network_of(torch.float32), ragged(dtype=torch.float32)
    other = network_of(torch.float32, framework="norse")
    assert not other.load_state_dict(ours.state_dict(), strict=False).missing_keys
    assert torch.equal(ours(x), other(x))
    shared = network_of(per_neuron=False, tau_m=3.0)
    assert all(layer.neuron.p.tau_m.shape == () for layer in shared.hidden)
    assert shared(ragged()).isfinite().all()


# What it costs.


@pytest.fixture(scope="module")
def counted():
    """The costs and spikes of each series alone, by brute force."""
    network, x = network_of(), ragged()
    with torch.no_grad(), recorded(network, nn.Linear) as record:
        spikes = [by_hand(network, one, "mean")[1] for one in alone(x)]
    read = {f"{name}.{what}": 0 for name in ("hidden.0", "hidden.1") for what in ("synapses", "neuron")}
    for layers in spikes:
        for index, layer in enumerate(layers):
            read[f"hidden.{index}.neuron"] += int(sum(z.sum() for z in layer))
            read[f"hidden.{index}.synapses"] += int(sum(z.sum() for z in layer[:-1])) * layer[0].shape[1]
    return brute_force_costs(record), read


def test_series_that_have_ended_cost_nothing_and_all_others_exactly(counted):
    costs, read = counted
    network, x = network_of(), ragged()
    with torch.no_grad(), SynapticOperations(network) as sops, SpikeRate(network) as rate, TimeSteps(network) as steps:
        for _ in range(3):  # what is known of the network is looked at in some passes alone
            network(x)
    for name in ("inputs.1", "readout"):
        assert sops.by_layer()[name] == costs[name][0] / 6
    for name in ("hidden.0.synapses", "hidden.1.synapses"):
        assert sops.by_layer()[name] == pytest.approx(read[name] / 6) != 0
    assert sops.by_layer("effective_macs")["inputs.0"] == costs["inputs.0"][1] / 6 == sum(LENGTHS) * 4 * 8 / 6
    total = sum(cost[0] for cost in costs.values()) + read["hidden.0.synapses"] + read["hidden.1.synapses"]
    assert sops.compute().item() == pytest.approx(total / 6)
    spikes = read["hidden.0.neuron"] + read["hidden.1.neuron"]
    assert rate.compute().item() == pytest.approx(spikes / (sum(LENGTHS) * (8 + 6)))
    assert steps.compute().item() == sum(LENGTHS) / 6


def test_whole_numbers_above_1_are_currents_and_binary_ones_events():
    network, x = network_of(), torch.ones(2, 5, 4, dtype=torch.float64)
    for value, sops, macs in ((1.0, 160, 0), (3.0, 0, 160)):
        with torch.no_grad(), SynapticOperations(network) as metric:
            network(value * x)
        assert (metric.by_layer()["inputs.0"], metric.by_layer("effective_macs")["inputs.0"]) == (sops, macs)


def test_reports_and_profiles_tell_the_same(counted):
    costs, read = counted
    total = sum(cost[0] for cost in costs.values()) + read["hidden.0.synapses"] + read["hidden.1.synapses"]
    network, x = network_of(), ragged()
    (step,) = report(None, network, [(x, torch.arange(6) % 3)]).steps
    assert (step.timesteps, step.sops) == (9, pytest.approx(total / 6))
    assert step.updates == sum(LENGTHS) * 14 / 6
    assert sum(layer.sops or 0 for layer in profile(network, x).layers) == pytest.approx(total / 6)


def test_spike_trains_are_those_of_each_series_alone():
    network, x = network_of(), ragged()
    with torch.no_grad(), SpikeStatistics(network) as together:
        network(x)
    with torch.no_grad(), SpikeStatistics(network) as one_by_one:
        for one in alone(x):
            network(one)
    expected = one_by_one.compute()
    for name, value in together.compute().items():
        assert value.item() == pytest.approx(expected[name].item(), nan_ok=True), name


# Training.


class Plain(LightningModule):
    """With ``strength``, the mean activity that its weights read is added to the loss by hand."""

    def __init__(self, network, strength=0.0):
        super().__init__()
        self.network, self.strength = copy.deepcopy(network), strength

    def training_step(self, batch, batch_idx):
        x, y = batch
        read = {}
        layers = [layer for layer in self.network.modules() if isinstance(layer, nn.Linear)] if self.strength else []
        handles = [
            layer.register_forward_pre_hook(lambda layer, args: read.setdefault(layer, []).append(args[0]))
            for layer in layers
        ]
        loss = F.cross_entropy(self.network(x), y)
        for handle in handles:
            handle.remove()
        for layer, steps in read.items():
            if layer is not self.network.inputs[0]:
                steps = [step for step in steps if step.requires_grad]  # not the zeros before the first step
                loss = loss + self.strength * torch.cat(steps).abs().mean()
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.5)


def trained(module, x, callbacks=(), epochs=1, **settings):
    seed_everything(0, verbose=False)
    loader = DataLoader(TensorDataset(x, torch.arange(len(x)) % 3), batch_size=6)
    settings = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False) | settings
    trainer = Trainer(
        max_epochs=epochs, callbacks=list(callbacks), accelerator="cpu", enable_model_summary=False, **settings
    )
    trainer.fit(module, loader, loader)
    return trainer


@pytest.mark.parametrize("framework", ["snntorch", "norse"])
def test_a_penalty_on_spikes_is_that_by_hand(framework):
    network, x = network_of(framework=framework), ragged()

    def weights(module, *callbacks):
        trained(module, x, callbacks, limit_train_batches=1, limit_val_batches=0)
        return torch.cat([p.detach().flatten() for p in module.network.parameters()])

    expected, without = weights(Plain(network, 0.5)), weights(Plain(network))
    assert (without - expected).abs().max() > 1e-4
    torch.testing.assert_close(weights(Plain(network), ActivityRegularization("l1", 0.5)), expected, rtol=0, atol=1e-12)


def test_a_classifier_learns_and_logs_what_it_spends(tmp_path):
    torch.manual_seed(0)
    x, network = ragged(LENGTHS[:4], torch.float32), network_of(torch.float32, hidden=(16,))
    module = SpikingClassifier(network, optimizer=lambda parameters: torch.optim.Adam(parameters, 3e-2))
    trainer = trained(module, x, [SpikingValidation()], epochs=15, check_val_every_n_epoch=15)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert logged["val/accuracy"] == 1.0
    with torch.no_grad(), SynapticOperations(module.network) as sops, SpikeRate(module.network) as rate:
        module(x)
    assert logged["val/sops"] == logged["snn/sops"] == pytest.approx(sops.compute().item(), rel=1e-6)
    assert logged["val/spike_rate"] == pytest.approx(rate.compute().item(), rel=1e-6)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = SpikingClassifier.load_from_checkpoint(
        tmp_path / "last.ckpt", network=network_of(torch.float32, hidden=(16,))
    )
    assert torch.equal(again(x), module(x))


# What is refused.


def test_series_of_another_shape_and_gaps_are_refused():
    network, x = network_of(), ragged()
    for wrong in (x[0], x[..., :3], x.unsqueeze(1)):
        with pytest.raises(ValueError, match=r"series of shape \(B, T, 4\), but got"):
            network(wrong)
    for change in ((1, 4, 2), (1, 4, slice(None)), (1, 9, 0)):
        broken = x.clone()
        broken[change] = 0.0 if change[1] == 9 else torch.nan
        with pytest.raises(ValueError, match=f"sample 1 has NaN in step {change[1]} and numbers beside or behind it"):
            network(broken)


def test_a_series_without_steps_has_no_scores():
    for readout in ("mean", "last", "max"):
        network, x = network_of(readout=readout), ragged((0, 3))
        scores = network(x)
        assert scores[0].isnan().all()
        assert torch.equal(scores[1:], network(x[1:]))
        assert network(x[:1]).isnan().all()


def test_what_is_not_finite_has_no_scores_and_leaves_others_theirs():
    network, x = network_of(), ragged()
    expected = network(x)
    for sample, step in ((0, 4), (1, 0), (1, 8)):
        broken = x.clone()
        broken[sample, step, 1] = torch.inf
        scores = network(broken)
        assert scores[sample].isnan().all()
        others = torch.arange(6) != sample
        assert torch.equal(scores[others], expected[others])
    with torch.no_grad():
        network.inputs[1].weight[0, 0] = torch.nan
    assert network(x).isnan().all()


def test_whole_numbers_are_refused():
    with pytest.raises(ValueError, match=r"floating-point numbers, but got torch.int64. Pass x.float\(\)"):
        network_of()(torch.ones(2, 3, 4, dtype=torch.int64))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (dict(framework="brian"), r"`framework` to be one of \['norse', 'snntorch'\]"),
        (dict(hidden=()), "`hidden`"),
        (dict(hidden=64), "`hidden`"),
        (dict(recurrent="false"), "`recurrent` to be True or False"),
        (dict(tau_out=0.0), "`tau_out`"),
        (dict(tau_m=-1.0), "`tau_m`"),
        (dict(readout="sum"), r"`readout` to be one of \['mean', 'last', 'max'\]"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, error):
    with pytest.raises(ValueError, match=error):
        RecurrentNetwork(4, 3, **arguments)


def test_it_has_no_early_exit():
    with pytest.raises(TypeError, match="to be a SpikingNetwork, .*, but got RecurrentNetwork"):
        exit_margins(network_of(), ragged())
