"""The cost metrics against brute force, on networks of every style."""

import norse.torch as norse
import pytest
import snntorch
import torch
from torch import nn

from snnreg_plugins import Energy, SpikeRate, SynapticOperations, to_snntorch
from snnreg_plugins.functional import SYNAPTIC_LAYERS, EnergyTable, dense_macs
from snnreg_plugins.watching.layers import is_spiking_neuron
from tests.helpers import brute_force_costs, recorded
from tests.metrics.styles import STYLES

QUANTITIES = ("sops", "effective_macs", "dense_macs")
NEURONS = (snntorch.SpikingNeuron, nn.ReLU, norse.LIFCell, norse.LIFBoxCell, norse.LIFRecurrentCell)
NEURONS += (norse.LIF, norse.LIFRecurrent)
RECURRENT = (norse.LIFRecurrentCell, norse.LIFRecurrent)
SIZES = (5, 5, 2)
every_style = pytest.mark.parametrize("make", STYLES.values(), ids=STYLES)


def batches(sizes=SIZES):
    torch.manual_seed(3)
    return [torch.rand(size, 6) for size in sizes]


def check_against(metric, costs, samples):
    """Every number of the metric against those of brute force, for that many samples."""
    assert metric.layers == list(metric.watch.layers)
    cells = {name for name, module in metric.watch.model.named_modules() if isinstance(module, RECURRENT)}
    for index, quantity in enumerate(QUANTITIES):
        expected = {name: costs[name][index] if name in costs else 0 for name in metric.layers}
        measured = metric.by_layer(quantity)
        recurrent = [measured.pop(name) for name in cells]  # see test_products
        assert measured == {name: cost / samples for name, cost in expected.items()}
        if recurrent:
            expected["recurrent"] = round(sum(recurrent) * samples)
        assert metric.total(quantity) == sum(expected.values()) / samples
        if not metric.watch.alone:
            assert sum(metric.by_step(quantity)) == pytest.approx(metric.total(quantity).item())
        assert sum(metric.by_layer(quantity).values()) == pytest.approx(metric.total(quantity).item(), rel=1e-12)
    assert metric.compute() == metric.total("sops")
    assert metric.compute().dtype == torch.float64


@every_style
def test_synaptic_operations(make):
    torch.manual_seed(0)
    model, run, batch_dim = make()
    metric = SynapticOperations(model, batch_dim=batch_dim)
    with recorded(model, SYNAPTIC_LAYERS) as record:
        for x in batches():
            run(x)
    check_against(metric, brute_force_costs(record), samples=sum(SIZES))


@every_style
def test_the_styles_have_spikes(make):
    """Else the other tests would be about nothing."""
    torch.manual_seed(0)
    model, run, _ = make()
    with recorded(model, NEURONS, output=True) as record:
        run(batches()[0])
    if any(is_spiking_neuron(module) for module in model.modules()):
        assert any(spikes.any() for _, layer, spikes in record if is_spiking_neuron(layer))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@every_style
def test_samples_are_counted_once_in(make, context):
    torch.manual_seed(0)
    model, run, batch_dim = make()
    if context is not torch.enable_grad and any(parameter.grad is not None for parameter in model.parameters()):
        pytest.skip("trains")
    if context is torch.inference_mode and "in_place" in make.__name__:
        pytest.skip("torch does not tell of writes then")
    with context(), SynapticOperations(model, batch_dim=batch_dim) as metric:
        for epoch in range(1, 3):
            for x in batches():
                run(x)
            assert metric.samples == epoch * sum(SIZES)
        metric.reset()
        assert metric.samples == 0
        run(batches()[2])
        assert metric.samples == SIZES[2]


@pytest.mark.parametrize("sizes", [(4,), (4, 4, 4), (4, 2, 4), (2, 2, 4, 4), (1, 1), (0, 3)])
@every_style
def test_samples_are_counted_once_for_batches_of(make, sizes):
    torch.manual_seed(0)
    model, run, batch_dim = make()
    metric = SynapticOperations(model, batch_dim=batch_dim)
    for x in batches(sizes):
        run(x)
    assert metric.samples == sum(sizes)


torch.manual_seed(0)
WITH_NEURONS = {name: make for name, make in STYLES.items() if any(isinstance(m, NEURONS) for m in make()[0].modules())}


@pytest.mark.parametrize("make", WITH_NEURONS.values(), ids=WITH_NEURONS)
def test_spike_rate(make):
    torch.manual_seed(0)
    model, run, _ = make()
    metric = SpikeRate(model)
    with recorded(model, NEURONS, output=True) as record:
        for x in batches():
            run(x)
    spikes, neuron_steps = dict.fromkeys(metric.layers, 0), dict.fromkeys(metric.layers, 0)
    for name, _, output in record:
        spikes[name] += sum(value != 0 for value in output.flatten().tolist())
        neuron_steps[name] += output.numel()
    assert {name for name, _, _ in record} == set(metric.layers)
    assert metric.by_layer() == {name: spikes[name] / neuron_steps[name] for name in metric.layers}
    assert metric.compute() == sum(spikes.values()) / sum(neuron_steps.values())


def test_spike_rate_is_spikes_per_neuron_and_step():
    layer = snntorch.Leaky(beta=1.0, threshold=1.0, init_hidden=True)
    metric = SpikeRate(layer)
    for _ in range(4):  # 2 of 3 neurons fire at every second step
        layer(torch.tensor([[0.55, 0.0, 0.55]]))
    assert metric.compute() == 2 * 2 / (3 * 4)


def test_spike_rate_counts_graded_spikes_as_often_as_they_say():
    layer = snntorch.Leaky(beta=1.0, threshold=1.0, init_hidden=True, graded_spikes_factor=3.0)
    metric = SpikeRate(layer)
    layer(torch.tensor([[2.0, 0.0]]))
    assert metric.compute() == 3 / 2


def test_spike_rate_of_a_layer_that_was_not_run_is_nan():
    model = nn.ModuleList([nn.ReLU(), nn.ReLU()])
    metric = SpikeRate(model)
    model[0](torch.tensor([[1.0, -1.0]]))
    assert metric.by_layer()["0"] == 0.5
    assert metric.by_layer()["1"] != metric.by_layer()["1"]
    assert metric.compute() == 0.5


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).eval()


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_a_convolutional_network_and_its_export(training):
    torch.manual_seed(0)
    images = torch.rand(6, 1, 8, 8)
    dnn = convolutional()
    for model in (dnn.train(training), to_snntorch(dnn.eval(), images, timesteps=4).train(training)):
        with SynapticOperations(model) as metric, recorded(model, SYNAPTIC_LAYERS) as record:
            model(images[:4])
            model(images[4:])
        check_against(metric, brute_force_costs(record), samples=6)
    assert metric.by_layer("effective_macs")["0"] > 0
    assert metric.by_layer("sops")["0"] == 0
    assert metric.by_layer("sops")["3"] > 0
    assert metric.by_layer("effective_macs")["3"] == 0


def test_a_layer_may_count_both_events_and_macs():
    model = nn.Linear(2, 3)
    metric = SynapticOperations(model)
    model(torch.tensor([[1.0, 2.0]]))
    model(torch.tensor([[0.5, 2.0], [0.0, 1.0]]))
    model(torch.tensor([[1.0, 0.0]]))
    assert metric.by_layer("sops") == {"": (9 + 3) / 4}
    assert metric.by_layer("effective_macs") == {"": 9 / 4}
    assert metric.by_layer("dense_macs") == {"": 6}


def test_inputs_of_changing_size():
    model = nn.Conv2d(1, 2, 3)
    metric = SynapticOperations(model)
    with recorded(model, SYNAPTIC_LAYERS) as record:
        for size in (5, 3, 8, 5):
            model(torch.randint(0, 2, (2, 1, size, size)).float())
    check_against(metric, brute_force_costs(record), samples=8)


def test_inputs_of_ever_new_sizes_do_not_fill_the_memory():
    model = nn.Conv2d(1, 2, 3, padding=1)
    metric = SynapticOperations(model)
    dense = 0
    for size in range(1, 40):
        model(torch.zeros(1, 1, size, size))
        dense += dense_macs(model, (1, size, size))
        assert len(metric.watch._synapses) <= 8
    assert metric.total("dense_macs") == dense / 39


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("table", ["horowitz_int8", EnergyTable(mac=7.0, ac=2.0, source="mine")])
def test_energy(dense, table):
    torch.manual_seed(0)
    images = torch.rand(6, 1, 8, 8)
    model = to_snntorch(convolutional(), images, timesteps=4)
    with Energy(model, table, dense=dense) as metric, SynapticOperations(model) as operations:
        model(images)
    mac, ac = (7.0, 2.0) if isinstance(table, EnergyTable) else (0.23, 0.03)
    sops, macs, dense_macs = (operations.by_layer(quantity) for quantity in QUANTITIES)
    joule = {
        name: 1e-12 * (mac * dense_macs[name] if dense else ac * sops[name] + mac * macs[name])
        for name in operations.layers
    }
    assert metric.by_layer() == pytest.approx(joule)
    assert metric.compute() == metric.total() == pytest.approx(sum(joule.values()))
    for quantity in QUANTITIES:
        assert metric.by_layer(quantity) == operations.by_layer(quantity)
        assert metric.total(quantity) == operations.total(quantity)
