"""Networks of packages that this one does not need, where they are installed."""

import pytest
import torch
from torch import nn

from snnreg_plugins import SpikeStatistics, SynapticOperations
from snnreg_plugins.functional import SYNAPTIC_LAYERS
from tests.helpers import brute_force_costs, recorded

QUANTITIES = ("sops", "effective_macs", "dense_macs")


def check(metric, record, samples, graded=None):
    costs = brute_force_costs([(name, layer, x * graded.get(name, 1) if graded else x) for name, layer, x in record])
    for index, quantity in enumerate(QUANTITIES):
        assert metric.by_layer(quantity) == {name: cost[index] / samples for name, cost in costs.items()}


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_spikingjelly(context, mode):
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import functional, layer, neuron

    torch.manual_seed(0)
    model = nn.Sequential(
        layer.Conv2d(1, 4, 3, padding=1),
        neuron.IFNode(v_threshold=0.1),
        layer.AvgPool2d(2),
        layer.Conv2d(4, 4, 3),
        neuron.LIFNode(v_threshold=0.1),
        layer.Flatten(),
        layer.Linear(16, 3),
    )
    functional.set_step_mode(model, mode)
    batches = [torch.rand(3, 1, 8, 8), torch.rand(2, 1, 8, 8)]
    metric, statistics = SynapticOperations(model, batch_dim=int(mode == "m")), SpikeStatistics(model)
    with (
        context(),
        recorded(model, SYNAPTIC_LAYERS) as record,
        recorded(model, neuron.BaseNode, output=True) as outputs,
    ):
        for x in batches:
            functional.reset_net(model)
            if mode == "m":
                model(x.expand(4, *x.shape))
            else:
                for _ in range(4):
                    model(x)
    assert metric.by_layer()["3"] > 0
    check(metric, record, 5, graded={"3": 4})
    assert metric.samples == 5
    if mode == "s":
        assert len(metric.by_step()) == 4
    spikes = sum(float(x.sum()) for _, _, x in outputs)
    assert statistics.compute()["rate"].item() == pytest.approx(spikes / sum(x.numel() for _, _, x in outputs))
    trains = [x for name, _, x in outputs if name == "1"]
    trains = trains if mode == "m" else [torch.stack(trains[:4]), torch.stack(trains[4:])]
    firsts = [int(train.argmax()) for each in trains for train in each.flatten(1).t() if train.any()]
    assert statistics.by_layer()["1"]["first_spike"] == pytest.approx(sum(firsts) / len(firsts))


def test_sinabs():
    pytest.importorskip("sinabs")
    import sinabs.layers as layers

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        layers.IAFSqueeze(batch_size=2, spike_threshold=torch.tensor(0.1)),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 3),
        layers.IAFSqueeze(batch_size=2),
    )
    x = torch.bernoulli(torch.full((2 * 5, 1, 8, 8), 0.3))
    with SynapticOperations(model) as metric, torch.no_grad(), recorded(model, SYNAPTIC_LAYERS) as record:
        model(x)
    assert metric.by_layer()["4"] > 0
    check(metric, record, 10, graded={"4": 4})  # time squeezed into the batch counts as samples


def test_sinabs_with_time():
    pytest.importorskip("sinabs")
    import sinabs.layers as layers

    neuron = layers.IAF(spike_threshold=torch.tensor(1.0))
    with SpikeStatistics(neuron) as statistics, torch.no_grad():
        neuron(torch.full((1, 6, 2), 0.5))
    assert statistics.compute()["first_spike"] == 1
    assert statistics.intervals().tolist() == [0, 0, 4]
