"""Profiles of networks that come from anywhere, and ``snnreg profile``."""

from __future__ import annotations

import copy
import io
import json
import math
import sys

import norse.torch as norse
import pytest
import snntorch
import torch
from rich.console import Console
from torch import nn

from snnreg_plugins import SpikeRate, SynapticOperations, cli, to_snntorch
from snnreg_plugins.functional import EnergyTable, lemaire_dense_energy, lemaire_energy
from snnreg_plugins.profile import load_factory, load_inputs, profile
from tests.helpers import brute_force_costs, recorded
from tests.metrics.test_metrics import hooks

STEPS = 3
SYNAPTIC = (nn.Linear, nn.Conv2d)


def leaky(**arguments):
    return snntorch.Leaky(beta=0.9, threshold=0.3, **arguments)


def body(neuron):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), neuron(), nn.AvgPool2d(2, divisor_override=1), nn.Conv2d(4, 3, 3), neuron()
    )


class Loop(nn.Module):
    """The time loop inside, as snnTorch's tutorials write it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1, self.fc2, self.lif2 = nn.Linear(6, 5), leaky(), nn.Linear(5, 4), leaky()

    def forward(self, x):
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        current, spikes = self.fc1(x), []
        for _ in range(STEPS):
            spk1, mem1 = self.lif1(current, mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes.append(spk2)
        return torch.stack(spikes)


class Handed(nn.Module):
    """Takes a step, with its states handed in and out."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1, self.fc2 = nn.Linear(6, 5), leaky(), nn.Linear(5, 4)

    def forward(self, x, mem=None):
        spikes, mem = self.lif1(self.fc1(x), self.lif1.reset_mem() if mem is None else mem)
        return self.fc2(spikes), mem


def norse_network():
    torch.manual_seed(0)
    sensitive = norse.LIFParameters(v_th=torch.tensor(0.02))
    return norse.SequentialState(nn.Linear(6, 5), norse.LIFCell(sensitive), nn.Linear(5, 4), norse.LIFCell(sensitive))


def exported():
    torch.manual_seed(0)
    dnn = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    return to_snntorch(dnn, torch.rand(64, 6), timesteps=STEPS)


def spikingjelly_network():
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    return body(lambda: neuron.LIFNode(v_threshold=0.3))


def sinabs_network():
    layers = pytest.importorskip("sinabs.layers")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = body(lambda: layers.IAFSqueeze(batch_size=4))

        def forward(self, x):
            return self.body(x)

    return Net()


IMAGE, VECTOR = (4, 1, 8, 8), (4, 6)
NETWORKS = {
    "dnn": (lambda: body(nn.ReLU), IMAGE, None),
    "snntorch_stepped": (lambda: body(lambda: leaky(init_hidden=True)), IMAGE, STEPS),
    "snntorch_states_handed_over": (Handed, VECTOR, STEPS),
    "snntorch_loop_inside": (Loop, VECTOR, None),
    "norse_stepped": (norse_network, VECTOR, STEPS),
    "exported": (exported, VECTOR, None),
    "spikingjelly_stepped": (spikingjelly_network, IMAGE, STEPS),
    "sinabs_stepped": (sinabs_network, IMAGE, STEPS),
}


def by_hand(net, x, timesteps):
    """The reference: step the network plainly, record every input, count by brute force."""
    with torch.no_grad(), recorded(net, SYNAPTIC) as record:
        state = ()
        for _ in range(timesteps or 1):
            output = net(x, *state)
            state = output[1:] if isinstance(output, tuple) else ()
    return brute_force_costs(record)


@pytest.mark.parametrize("name", NETWORKS)
def test_counts_are_those_of_brute_force(name):
    make, shape, timesteps = NETWORKS[name]
    torch.manual_seed(1)
    x = torch.rand(shape) * 3
    expected = by_hand(make(), x, timesteps)
    result = profile(make(), x, timesteps=timesteps)
    found = {layer.name: layer for layer in result.layers if layer.dense_macs is not None}
    assert found.keys() == expected.keys()
    for layer, costs in expected.items():
        row = found[layer]
        assert [row.sops, row.effective_macs, row.dense_macs] == [cost / 4 for cost in costs]
        assert row.energy == pytest.approx(1e-12 * (0.9 * row.sops + 4.6 * row.effective_macs))
    assert result.sops == sum(costs[0] for costs in expected.values()) / 4
    assert (result.sops > 0) == result.spiking == (name != "dnn")
    assert result.energy == pytest.approx(1e-12 * (0.9 * result.sops + 4.6 * result.effective_macs))
    assert result.samples == 4


class Weighs(nn.Module):
    """A product with weights that no layer makes."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4, 6))

    def forward(self, x):
        return nn.functional.linear(x, self.weight)


def averaged():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), leaky(init_hidden=True), nn.AvgPool2d(2), nn.Conv2d(4, 3, 3), nn.ReLU()
    )


def averaged_in_a_function():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = averaged()

        def forward(self, x):
            spikes = self.body[1](self.body[0](x))
            return self.body[3](nn.functional.avg_pool2d(spikes, 2))

    return Net()


def recurrent_of_snntorch():
    recurrent = snntorch.RLeaky(beta=0.9, threshold=0.3, linear_features=5, init_hidden=True)
    one_to_one = snntorch.RLeaky(beta=0.9, threshold=0.3, all_to_all=False, V=0.5, init_hidden=True)
    return nn.Sequential(nn.Linear(6, 5), recurrent, nn.Linear(5, 4), one_to_one)


def recurrent_of_norse():
    return norse.SequentialState(nn.Linear(6, 5), norse.LIFRecurrentCell(5, 5), nn.Linear(5, 4))


class Steps(nn.Module):
    """Gives each sample as one that is a sequence."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.read = layer, nn.Linear(5, 2)

    def forward(self, x):
        return self.read(self.layer(x.reshape(len(x), 2, 3))[0])


ALIKE = NETWORKS | {
    "average_pool": (averaged, IMAGE, STEPS),
    "average_pool_in_a_function": (averaged_in_a_function, IMAGE, STEPS),
    "attention": (lambda: nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), (4, 3, 6), None),
    "functional": (lambda: nn.Sequential(Weighs(), nn.ReLU(), nn.Linear(4, 3)), VECTOR, None),
    "recurrent_of_snntorch": (recurrent_of_snntorch, VECTOR, STEPS),
    "recurrent_of_norse": (recurrent_of_norse, VECTOR, STEPS),
    **{
        kind.__name__: (lambda kind=kind: Steps(kind(3, 5, batch_first=True)), VECTOR, None)
        for kind in (nn.RNN, nn.GRU, nn.LSTM)
    },
}


@pytest.mark.filterwarnings("ignore:.*does not count all")
@pytest.mark.parametrize("table", ["horowitz_fp32", "lemaire"])
@pytest.mark.parametrize("name", ALIKE)
def test_counts_are_those_of_the_metrics_layer_by_layer(name, table):
    make, shape, timesteps = ALIKE[name]
    torch.manual_seed(1)
    net, x = make().eval(), torch.rand(shape) * 3
    result = profile(net, x, timesteps=timesteps, table=table)
    net, counted = copy.deepcopy(net), {}
    with torch.no_grad(), SynapticOperations(net) as operations:
        step(net, x, timesteps)
    for quantity in operations.quantities:
        counted[quantity] = operations.by_layer(quantity)
        found = {layer.name: getattr(layer, quantity) for layer in result.layers if layer.dense_macs is not None}
        assert found == {name: count for name, count in counted[quantity].items() if name in found}
        assert getattr(result, quantity) == operations.total(quantity)
        assert not any(count for name, count in counted[quantity].items() if name not in found)
    rates = {layer.name: layer.spike_rate for layer in result.layers if layer.spike_rate is not None}
    if rates:
        net = make().eval()
        net.load_state_dict(operations.watch.model.state_dict())
        with torch.no_grad(), SpikeRate(net) as rate:
            step(net, x, timesteps)
        assert rates == {name: share for name, share in rate.by_layer().items() if share == share}
        assert result.spike_rate == rate.compute()


def step(net, x, timesteps):
    """Step a network as `by_hand` does."""
    state = ()
    for _ in range(timesteps or 1):
        output = net(x, *state)
        state = output[1:2] if isinstance(output, tuple) and timesteps else ()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_second_profile_is_the_first_and_the_network_as_it_was(name):
    make, shape, timesteps = NETWORKS[name]
    torch.manual_seed(1)
    net, x = make().train(), torch.rand(shape) * 3
    first = profile(net, x, timesteps=timesteps)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    assert profile(net, x, timesteps=timesteps) == first
    assert net.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    copy.deepcopy(net)
    assert hooks(net) == 0
    assert net.training


def test_layers_come_in_the_order_of_their_calls_and_others_are_named():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.spare, self.first, self.act = nn.Linear(5, 2), nn.Linear(1, 1), nn.Linear(6, 5), nn.ReLU()

        def forward(self, x):
            return self.last(self.act(self.first(x)))

    result = profile(Net(), torch.rand(2, 6))
    assert [(layer.name, layer.kind, layer.calls) for layer in result.layers] == [
        ("first", "Linear", 1),
        ("act", "ReLU", 1),
        ("last", "Linear", 1),
    ]
    assert result.unused == ("spare",)


def test_the_dense_dnn_computes_once():
    for name in ("snntorch_stepped", "snntorch_states_handed_over", "norse_stepped", "snntorch_loop_inside"):
        make, shape, timesteps = NETWORKS[name]
        torch.manual_seed(1)
        net, x = make(), torch.rand(shape) * 3
        result = profile(net, x, timesteps=timesteps)
        once = profile(net, x, timesteps=None if timesteps is None else 1)
        dense = once.dense_macs if timesteps else 6 * 5 + 5 * 4
        assert result.dense_energy == pytest.approx(4.6e-12 * dense)


def test_the_dense_dnn_computes_once_on_binary_images_too():
    net, x = exported(), (torch.rand(VECTOR) < 0.5).float()
    result = profile(net, x)
    assert result.effective_macs == 0
    assert result.dense_energy == pytest.approx(4.6e-12 * (6 * 5 + 5 * 4 + 4 * 3))
    layers = {layer.name: layer for layer in profile(net, x, table="lemaire").layers}
    first = layers["0"]
    spikes = STEPS * 5 * next(layer.spike_rate for layer in layers.values() if layer.spike_rate is not None)
    events = int(x.sum()) / 4
    expected = lemaire_energy(nn.Linear(6, 5), (6,), timesteps=STEPS, events_in=events, events_out=spikes)
    assert first.energy == pytest.approx(expected.total)


def test_a_layer_that_a_dnn_uses_twice_counts_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(self.layer(x))

    result = profile(Twice(), torch.rand(3, 4))
    assert result.dense_macs == 32
    assert result.dense_energy == pytest.approx(32 * 4.6e-12)


def test_weights_in_other_modules_are_named(capsys):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.pair, self.norm = nn.Linear(3, 4), nn.Bilinear(4, 4, 5), nn.BatchNorm1d(4)

        def forward(self, x):
            x = self.norm(self.layer(x))
            return self.pair(x, x)

    result = profile(Net(), torch.rand(2, 3))
    assert result.uncounted == ("pair",)
    result.print()
    assert "Not counted in full: pair." in capsys.readouterr().out
    assert profile(exported(), torch.rand(2, 6)).uncounted == ()


def test_a_sample_without_a_batch_is_refused_and_the_remedy_works():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(-3), nn.Linear(100, 2))
    image = torch.rand(3, 7, 7)
    with pytest.raises(ValueError, match=r"reads \(3, 7, 7\) as one sample. Give `inputs.unsqueeze\(0\)`"):
        profile(net, image)
    assert profile(net, image.unsqueeze(0)).dense_macs == 3 * 4 * 9 * 25 + 200


def test_time_first():
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU())
    result = profile(net, torch.ones(3, 4, 6), batch_dim=1)
    assert (result.samples, result.sops) == (4, 3 * 6 * 5)


def test_with_memory_access():
    net = Loop()
    torch.manual_seed(1)
    x = torch.rand(4, 6) * 3
    plain = profile(net, x)
    rows = {layer.name: layer for layer in plain.layers}
    result = profile(net, x, table="lemaire")
    spikes = [STEPS * size * rows[name].spike_rate for name, size in (("lif1", 5), ("lif2", 4))]
    first = lemaire_energy(
        net.fc1, (6,), timesteps=STEPS, events_in=0, events_out=spikes[0], effective_macs=30, leaky=True
    )
    last = lemaire_energy(net.fc2, (5,), timesteps=STEPS, events_in=spikes[0], events_out=spikes[1], leaky=True)
    assert result.energy == pytest.approx((first + last).total)
    found = {layer.name: layer for layer in result.layers}
    assert found["fc1"].energy == pytest.approx(first.total)
    assert found["fc2"].energy == pytest.approx(last.total)
    assert sum(result.breakdown.values()) == pytest.approx(result.energy)
    dense = lemaire_dense_energy(net.fc1, (6,)) + lemaire_dense_energy(net.fc2, (5,))
    assert result.dense_energy == pytest.approx(dense.total)
    assert (plain.sops, plain.breakdown) == (result.sops, None)


def test_memory_access_of_a_convolution_from_the_counts_of_the_metrics():
    def net():
        return body(lambda: leaky(init_hidden=True))

    torch.manual_seed(1)
    x = torch.rand(IMAGE) * 3
    model = net().eval()
    with torch.no_grad(), SynapticOperations(model) as sops, SpikeRate(model) as rate:
        for _ in range(STEPS):
            model(x)
    counted, rates = sops.by_layer(), rate.by_layer()
    spikes = [rates[name] * STEPS * size for name, size in (("1", 4 * 8 * 8), ("4", 3 * 2 * 2))]
    expected = lemaire_energy(
        model[3], (4, 4, 4), timesteps=STEPS, events_in=spikes[0], events_out=spikes[1], sops=counted["3"], leaky=True
    )
    found = {layer.name: layer for layer in profile(net(), x, timesteps=STEPS, table="lemaire").layers}
    assert counted["3"] > 0
    assert found["3"].energy == pytest.approx(expected.total)


def test_a_dnn_with_memory_access_spends_what_a_dense_dnn_spends():
    net = body(nn.ReLU)
    result = profile(net, torch.rand(IMAGE), table="lemaire")
    dense = lemaire_dense_energy(net[0], (1, 8, 8)) + lemaire_dense_energy(net[3], (4, 4, 4))
    assert result.energy == result.dense_energy == pytest.approx(dense.total)


def test_neurons_without_a_leak_multiply_nothing():
    x = torch.ones(4, 6)
    nets = [nn.Sequential(nn.Linear(6, 5), snntorch.Leaky(beta=beta, init_hidden=True)) for beta in (1.0, 0.5)]
    for net in nets:
        nn.init.zeros_(net[0].weight)
        nn.init.zeros_(net[0].bias)
    still, leaking = (profile(net, x, timesteps=4, table="lemaire").energy for net in nets)
    assert leaking - still == pytest.approx(4 * 5 * 3.2e-12)


def test_a_chip_prices_spikes_alone_and_says_what_is_left_out(capsys):
    result = profile(Loop(), torch.rand(4, 6) * 3, table="loihi")
    assert result.energy == pytest.approx(23.6e-12 * result.sops)
    assert (result.left_out, result.dense_energy) == (("fc1",), None)
    result.print()
    printed = " ".join(capsys.readouterr().out.split())
    assert "no price" in printed
    assert "Not in the energy: the MACs of fc1" in printed
    assert "published, not measured" in printed


def test_what_has_no_price_at_all_is_not_said_to_be_0_joules(capsys):
    net, x = body(nn.ReLU), torch.rand(IMAGE)
    several, alone = profile(net, x, table=["horowitz_fp32", "loihi"]), profile(net, x, table="loihi")
    assert [model.unpriced for model in several.models] == [0.0, several.effective_macs]
    for result, said in ((several, "Not in the total of Loihi, published"), (alone, "Not in the energy: the MACs of")):
        result.print()
        printed = " ".join(capsys.readouterr().out.split())
        assert said in printed
        assert "no price" in printed
        assert " 0 J" not in printed


def test_a_table_of_ones_own(tmp_path):
    path = tmp_path / "chip.yaml"
    path.write_text("{ac: 1, mac: 10, source: my chip}")
    net, x = Loop(), torch.rand(4, 6) * 3
    results = [profile(net, x, table=table) for table in (str(path), EnergyTable(10, 1, "my chip"))]
    assert results[0].energy == results[1].energy == pytest.approx(1e-12 * (results[0].sops + 10 * 30))
    assert [result.table for result in results] == [str(path), "custom"]


def test_several_models_side_by_side(capsys):
    net, x = Loop(), torch.rand(4, 6) * 3
    names = ("lemaire", "horowitz_fp32", "bit_matched", "eflops", "loihi")
    result = profile(net, x, table=names)
    assert tuple(model.name for model in result.models) == names
    for model in result.models:
        alone = profile(net, x, table=model.name)
        assert (alone.models, alone.energy, alone.dense_energy) == ((model,), model.total, model.dense)
        assert model.total == pytest.approx(model.macs + model.synapses + model.neurons + model.memory)
        assert sum(cost or 0.0 for cost in model.layers.values()) <= model.total * (1 + 1e-9)
    assert (result.table, result.energy) == ("lemaire", result.models[0].total)
    assert [model.unit for model in result.models] == ["J", "J", "J", "EFLOPs", "J"]
    assert [model.dense is None for model in result.models] == [False, False, False, False, True]
    result.print()
    printed = capsys.readouterr().out
    assert "By each model" in printed
    assert "effective operations (EFLOPs)" in " ".join(printed.split())


def test_weights_of_zero_are_synapses_or_none(capsys):
    net, x = Loop(), torch.rand(4, 6) * 3
    net.fc2.weight.data[:, :2] = 0.0
    counted, left_out, told = (
        profile(net, x, table="horowitz_int8", count_zero_weights=how) for how in (None, False, True)
    )
    assert (counted.sops, counted.energy) == (told.sops, told.energy)
    assert left_out.sops < counted.sops
    assert left_out.energy < counted.energy
    assert left_out.zero_weights == pytest.approx(8 / 50)
    left_out.print()
    assert "16.00 % of the weights are exactly zero: no synapses in" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(ValueError, match="`count_zero_weights`.*'eflops'.*True"):
        profile(net, x, table=["eflops"], count_zero_weights=True)


def test_a_dnn_of_few_bits_stands_beside_a_spiking_network_alone():
    with pytest.raises(ValueError, match="bit_matched.*beside a spiking network"):
        profile(body(nn.ReLU), torch.rand(IMAGE), table="bit_matched")


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", ["dnn", "snntorch_stepped", "exported"])
def test_what_is_printed_fits(name, width):
    make, shape, timesteps = NETWORKS[name]
    console = Console(width=width, record=True, file=io.StringIO())
    profile(make(), torch.rand(shape) * 3, timesteps=timesteps).print(console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    head = lines.index(next(line for line in lines if "Layer" in line))
    sops = [] if name == "dnn" else ["SOPs"]
    assert lines[head - 1].split() == ["Dense", "Dense"]
    assert lines[head].split() == ["Layer", "Kind", "Calls", "Rate", *sops, "MACs", "MACs", "Energy", "DNN"]
    assert any(line.split()[:1] == ["total"] for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((nn.ReLU(), torch.rand(2, 3)), "`model`.*synaptic layer.*ReLU has none"),
        ((nn.Linear(3, 2), torch.rand(2, 4)), r"`inputs`.*Linear takes.*\(2, 4\)"),
        ((nn.Linear(3, 2), torch.rand(0, 3)), r"`inputs`.*\(0, 3\)"),
        ((nn.Linear(3, 2), torch.tensor(1.0)), r"`inputs`.*\(\)"),
    ],
)
def test_what_cannot_be_counted_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        profile(*arguments)


def test_products_that_no_layer_makes_are_a_row_of_the_module_that_makes_them():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return nn.functional.linear(x, self.layer.weight)

    result = profile(nn.Sequential(Functional()), torch.ones(2, 3))
    (row,) = result.layers
    assert (row.name, row.kind, row.calls, row.sops, row.dense_macs) == ("0", "Functional", 1, 6, 6)
    assert row.dense_energy == pytest.approx(4.6e-12 * 6)
    assert result.unused == ("0.layer",)
    with_memory = profile(nn.Sequential(Functional()), torch.ones(2, 3), table="lemaire")
    assert (with_memory.left_out, with_memory.layers[0].energy) == (("0",), None)


@pytest.mark.parametrize("timesteps", [1, 4])
def test_the_dense_dnn_computes_products_of_a_cell_once(timesteps):
    torch.manual_seed(0)
    result = profile(recurrent_of_norse(), torch.rand(VECTOR), timesteps=timesteps)
    row = next(layer for layer in result.layers if layer.kind == "LIFRecurrentCell")
    assert row.dense_macs == timesteps * 50
    assert row.dense_energy == pytest.approx(4.6e-12 * 50)


def test_a_network_that_multiplies_nothing_is_no_profile():
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return x + 1

    with pytest.raises(ValueError, match=r"`model`.*called none of \['layer'\]"):
        profile(Lazy(), torch.rand(2, 3))


def test_other_wrong_arguments_are_refused():
    layer = nn.Linear(3, 2)
    with pytest.raises(TypeError, match="`model`.*function"):
        profile(lambda x: x, torch.rand(2, 3))
    with pytest.raises(TypeError, match="`inputs`.*list"):
        profile(layer, [1.0])
    with pytest.raises(ValueError, match="`timesteps`.*0"):
        profile(layer, torch.rand(2, 3), timesteps=0)
    with pytest.raises(ValueError, match=r"`timesteps`.*SpikingNetwork.*network\.timesteps"):
        profile(exported(), torch.rand(2, 6), timesteps=4)
    with pytest.raises(ValueError, match="`table`.*'abacus'"):
        profile(layer, torch.rand(2, 3), table="abacus")


def test_after_an_error_the_network_is_as_it_was():
    net = body(lambda: leaky(init_hidden=True)).train()
    with pytest.raises(ValueError, match="`inputs`"):
        profile(net, torch.rand(4, 7, 8, 8), timesteps=2)
    assert hooks(net) == 0
    assert net.training


# Inputs and factories.


def test_random_inputs_are_the_same_ones_each_time():
    x = load_inputs("random", (1, 5), batch=3)
    assert x.shape == (3, 1, 5)
    assert torch.equal(x, load_inputs("random", (1, 5), batch=3))
    assert load_inputs("random", (7, 5), batch=3, batch_dim=1).shape == (7, 3, 5)


def test_inputs_from_a_file(tmp_path):
    x, path = torch.rand(10, 4), str(tmp_path / "x.pt")
    for content in (x, (x, torch.zeros(10)), [x]):
        torch.save(content, path)
        assert torch.equal(load_inputs(path, (4,), batch=3), x[:3])
    assert torch.equal(load_inputs(path, None, batch=99), x)
    assert torch.equal(load_inputs(path, None, batch=2, batch_dim=1), x[:, :2])
    with pytest.raises(ValueError, match=r"`input_shape`.*\[4\].*\[5\]"):
        load_inputs(path, (5,), batch=3)
    torch.save(nn.Linear(2, 3), path)  # code, which is not run
    with pytest.raises(ValueError, match="`data`.*not safe"):
        load_inputs(path, None, batch=3)
    torch.save({"x": x}, path)
    with pytest.raises(ValueError, match="`data`.*dict"):
        load_inputs(path, None, batch=3)


@pytest.fixture
def networks(tmp_path, monkeypatch):
    """A user's file in the current folder."""
    (tmp_path / "users_networks.py").write_text(
        "from torch import nn\n"
        "def make(): return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))\n"
        "made = make()\n"
        "def sized(size): return nn.Linear(size, size)\n"
        "def nothing(): pass\n"
        "five = 5\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("users_networks", None)


@pytest.mark.parametrize("name", ["make", "made"])
def test_a_factory_is_what_makes_a_network_or_the_network(networks, name):
    assert len(load_factory(f"users_networks:{name}")) == 3


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("users_networks", ValueError, "package.module:name.*'users_networks'"),
        ("users_networks.py:make", ValueError, "no 'users_networks.py'|package.module:name"),
        (":make", ValueError, "package.module:name"),
        ("../users_networks:make", ValueError, "package.module:name"),
        ("nowhere:make", ValueError, "there is no 'nowhere'"),
        ("users_networks:mak", ValueError, "no 'mak'"),
        ("users_networks:sized", TypeError, "needs size"),
        ("users_networks:nothing", TypeError, "makes one of type NoneType"),
        ("users_networks:five", TypeError, "is of type int"),
    ],
)
def test_a_path_that_leads_to_no_network_is_refused(networks, path, error, message):
    with pytest.raises(error, match=f"`factory`.*({message})"):
        load_factory(path)


def test_an_import_that_the_users_module_misses_is_no_error_of_the_path(networks):
    (networks / "broken_networks.py").write_text("import no_such_package")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        load_factory("broken_networks:make")


# The command line.


@pytest.fixture
def command(networks, monkeypatch):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["snnreg", *words])
        cli.main()

    return run


def test_the_command_prints_and_writes(command, capsys):
    command("profile", "users_networks:make", "--input-shape", "6", "--batch", "3", "--output", "out")
    printed = capsys.readouterr().out
    assert "total" in printed
    assert "profile.json" in printed
    with open("out/profile.json") as file:
        written = json.load(file)
    expected = profile(load_factory("users_networks:make"), load_inputs("random", (6,), 3))
    assert written["dense_macs"] == expected.dense_macs == 40
    assert [layer["name"] for layer in written["layers"]] == ["0", "1", "2"]
    assert not any(isinstance(value, float) and math.isnan(value) for value in written.values())


@pytest.mark.parametrize("table", ["horowitz_int8", "loihi", "lemaire,eflops"])
def test_every_kind_of_table_works_from_the_command_line(command, capsys, table):
    words = ("profile", "users_networks:make", "--input-shape", "6", "--table", table, "--timesteps", "2")
    command(*words)
    assert "total" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["users_networks:mak", "--input-shape", "6"], "`factory`"),
        (["users_networks:make"], "`input_shape`"),
        (["users_networks:make", "--input-shape", "7"], "`inputs`"),
        (["users_networks:make", "--data", "nowhere.pt"], "nowhere.pt"),
        (["users_networks:make", "--input-shape", "6", "--table", "abacus"], "`table`"),
        (["users_networks:make", "--input-shape", "6", "--batch", "0"], "`batch`"),
    ],
)
def test_a_refusal_is_one_line(command, words, message):
    with pytest.raises(SystemExit) as stop:
        command("profile", *words)
    assert str(stop.value.code).startswith("error: ")
    assert message in str(stop.value.code)
    assert "\n" not in str(stop.value.code)


def test_help_mentions_the_command(command, capsys):
    for words in (["profile", "--help"], ["profile", "x:y", "--input-shape", "1", "--print_config"]):
        with pytest.raises(SystemExit) as stop:
            command(*words)
        assert not stop.value.code
    printed = capsys.readouterr().out
    assert "snnreg profile module.path:name --input-shape 1 28 28" in " ".join(printed.split())
    assert "--timesteps" in printed
