import copy
import warnings

import pytest
import torch
from torch import nn

from snnreg_plugins import Energy, SynapticOperations, to_snntorch
from snnreg_plugins.functional import COST_MODELS
from snnreg_plugins.watching.facts import layer_facts
from snnreg_plugins.watching.tally import Tally

NEEDS = ["events", "zero_weights", "activity"]


@pytest.fixture
def dnn():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    for parameter in model.parameters():
        parameter.data[torch.rand(parameter.shape) < 0.3] = 0.0
    return model


@pytest.fixture
def network(dnn):
    return to_snntorch(dnn, torch.rand(64, 6), timesteps=4)


@pytest.fixture
def x():
    return torch.rand(8, 6, generator=torch.Generator().manual_seed(1))


def priced(model, x, name, **how):
    with torch.no_grad(), Tally(model, counting=NEEDS) as tally:
        model(x)
    return {facts.name: COST_MODELS[name].price(facts) for facts in layer_facts(tally, **how)}


@pytest.mark.parametrize("name", ["lemaire", "bit_matched", "eflops", "horowitz_int8"])
def test_any_model_prices_what_was_counted(network, x, name):
    expected = priced(network, x, name)
    with torch.no_grad(), Energy(network, name) as energy:
        network(x[:3])
        network(x[3:])
    assert energy.compute().item() == pytest.approx(sum(cost.total for cost in expected.values()))
    assert energy.by_layer() == pytest.approx({name: cost.total for name, cost in expected.items()})
    first_steps = priced(network, x, name, steps=2)
    assert energy.by_layer(steps=2) == pytest.approx({name: cost.total for name, cost in first_steps.items()})
    assert energy.left_out() == {}
    with torch.no_grad(), SynapticOperations(network) as sops:
        network(x)
    assert energy.total("sops") == sops.compute()
    assert energy.by_layer("sops").keys() == sops.by_layer().keys() == {"0", "2", "4"}


def test_several_models_never_add_up(network, x):
    names = ["horowitz_fp32", "lemaire", "eflops"]
    with torch.no_grad(), Energy(network, names) as energy:
        network(x)
    found = energy.compute()
    assert list(found) == names
    for name in names:
        costs = priced(network, x, name)
        assert found[name].item() == pytest.approx(sum(cost.total for cost in costs.values()))
        assert energy.by_layer(model=name) == pytest.approx({layer: cost.total for layer, cost in costs.items()})
        assert energy.parts(name)["2"] == pytest.approx(costs["2"].parts())
    with pytest.raises(ValueError, match="`model`.*'loihi'"):
        energy.by_layer(model="loihi")


def test_a_dnn_skips_zeros_where_the_model_knows_such_a_dnn(dnn, x):
    with (
        torch.no_grad(),
        Energy(dnn, ["eflops", "lemaire"]) as sparse,
        Energy(dnn, ["eflops", "lemaire"], dense=True) as dense,
    ):
        dnn(x)
    sparse, dense = sparse.compute(), dense.compute()
    assert sparse["eflops"] < dense["eflops"]
    assert sparse["lemaire"] == dense["lemaire"] > 0


def test_what_has_no_price_is_left_out_with_a_warning(network, x):
    with torch.no_grad(), Energy(network, ["loihi", "lemaire"]) as energy:
        network(x)
    with pytest.warns(UserWarning, match=r"MACs of \['0'\]"):
        found = energy.compute()
    assert found["loihi"].item() == pytest.approx(23.6e-12 * energy.total("sops").item())
    assert energy.left_out() == {"0": 30}
    with torch.no_grad(), Energy(network, ["lemaire", "loihi"]) as energy:
        network(x)
    with pytest.warns(UserWarning, match=r"left_out\('loihi'\) tells"):
        energy.compute()
    assert (energy.left_out(), energy.left_out("loihi")) == ({}, {"0": 30})


def test_a_dense_dnn_is_none_that_spikes(network, dnn):
    with pytest.raises(ValueError, match="`dense`.*'lemaire'.*Measure the DNN"):
        Energy(network, "lemaire", dense=True)
    with pytest.raises(ValueError, match="`table`.*price for MACs"):
        Energy(dnn, ["lemaire", "loihi"], dense=True)
    with pytest.raises(ValueError, match="'bit_matched' prices a DNN beside a spiking network alone"):
        Energy(dnn, ["lemaire", "bit_matched"])
    with pytest.raises(ValueError, match="`count_zero_weights`.*'eflops'"):
        Energy(network, "eflops", count_zero_weights=True)


def test_weights_of_zero_are_synapses_or_none(network, x):
    with torch.no_grad(), Tally(network, counting=NEEDS) as tally:
        network(x)
    with (
        torch.no_grad(),
        SynapticOperations(network, count_zero_weights=False) as pruned,
        SynapticOperations(network) as all_of_them,
        Energy(network, count_zero_weights=False) as energy,
        Energy(network, "lemaire", count_zero_weights=False) as memory,
    ):
        network(x)
    at_zero = tally.total("sops_at_zero") / 8
    assert at_zero > 0
    assert pruned.compute().item() == all_of_them.compute().item() - at_zero
    macs = [metric.total("effective_macs").item() for metric in (pruned, all_of_them)]
    assert macs[1] - macs[0] == tally.total("effective_macs_at_zero") / 8 > 0
    assert pruned.total("dense_macs").item() == all_of_them.total("dense_macs") - tally.total("dense_macs_at_zero") / 8
    assert sum(pruned.by_step()) == pytest.approx(pruned.compute().item())
    assert pruned.by_layer(steps=4) == pruned.by_layer()
    assert energy.compute().item() == pytest.approx(1e-12 * (0.9 * pruned.compute().item() + 4.6 * macs[0]))
    expected = [COST_MODELS["lemaire"].price(facts, False).total for facts in layer_facts(tally)]
    assert memory.compute().item() == pytest.approx(sum(expected))
    assert memory.total("sops") == pruned.compute()
    with pruned.labelled([0] * 8), pytest.raises(RuntimeError, match="count_zero_weights=True"):
        pruned.by_label()


def test_a_metric_of_a_model_with_memory_is_a_metric(network, x):
    energy = Energy(network, "lemaire")
    with torch.no_grad():
        network(x)
        before = energy.compute()
        clone = copy.deepcopy(energy)
        assert clone.compute() == before
        energy.reset()
        network(x[:4])
        alone = energy.compute()
    assert alone != before
    assert clone.by_layer().keys() == energy.by_layer().keys()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        energy.plot()
    energy.close()
    clone.close()
