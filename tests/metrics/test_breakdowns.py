"""Synaptic operations by time step and by label, against brute force."""

import pytest
import snntorch
import torch
from torch import nn

from snnreg_plugins import Energy, SynapticOperations, to_snntorch
from snnreg_plugins.functional import SYNAPTIC_LAYERS, fan_out
from tests.helpers import brute_force_operations, recorded
from tests.metrics.styles import STEPS, STYLES

QUANTITIES = ("sops", "effective_macs", "dense_macs")
BY_PASS = ["snntorch_reset_outside", "snntorch_states_from_none", "norse_sequential_state", "snntorch_states_in_a_dict"]
INSIDE = ["exported", "exported_in_a_lightning_module", "snntorch_reset_inside", "norse_loop_inside"]
SIZES = (4, 4, 3)


@pytest.mark.parametrize("name", BY_PASS + INSIDE)
def test_by_step(name):
    torch.manual_seed(0)
    model, run, _ = STYLES[name]()
    steps = {}
    with SynapticOperations(model) as metric:
        for size in SIZES:
            calls = {}
            with recorded(model, SYNAPTIC_LAYERS) as record:
                run(torch.rand(size, 6))
            for layer, module, x in record:
                step = calls[layer] = calls.get(layer, -1) + 1
                numbers = brute_force_operations(module, x)
                steps[step] = [a + b for a, b in zip(steps.get(step, (0, 0, 0)), numbers, strict=True)]
    assert len(steps) == STEPS
    for index, quantity in enumerate(QUANTITIES):
        expected = [steps[step][index] / sum(SIZES) for step in range(STEPS)]
        assert metric.by_step(quantity) == expected
        assert sum(expected) == pytest.approx(metric.total(quantity).item())


def test_by_step_of_recurrent_neurons():
    model = nn.Sequential(nn.Linear(2, 3), snntorch.RLeaky(beta=0.9, linear_features=3, init_hidden=True))
    with SynapticOperations(model) as metric:
        for _ in range(4):
            model(torch.ones(2, 2))
    assert metric.by_step("dense_macs") == [6 + 9] * 4


def test_by_step_knows_when_it_cannot_tell():
    model, run, _ = STYLES["snntorch_layers_called_alone"]()
    with SynapticOperations(model) as metric:
        run(torch.rand(2, 6))
        with pytest.raises(RuntimeError, match="its layers were called one by one"):
            metric.by_step()
    with SynapticOperations(model) as metric, pytest.raises(RuntimeError, match="has seen none"):
        metric.by_step()
    with pytest.raises(ValueError, match="`quantity`.*'joule'"):
        metric.by_step("joule")


@pytest.mark.parametrize("name", ["dnn", "snntorch_time_first", "norse_time_first", *BY_PASS, *INSIDE])
def test_by_label(name):
    torch.manual_seed(0)
    model, run, batch_dim = STYLES[name]()
    batches = [(torch.rand(size, 6).round(), torch.randint(0, 3, (size,))) for size in SIZES]
    with SynapticOperations(model, batch_dim=batch_dim) as metric:
        run(batches[0][0])  # not labelled
        records = []
        for x, y in batches:
            with metric.labelled(y), recorded(model, SYNAPTIC_LAYERS) as record:
                run(x)
            records.append(record)
        run(batches[0][0])  # not labelled either
    # Each sample alone, in the kind of cost that its batch has.
    expected = {}
    for (x, y), record in zip(batches, records, strict=True):
        for _, layer, given in record:
            kind = brute_force_operations(layer, given)
            per_sample = given.reshape(-1, len(x), given.shape[-1]).transpose(0, 1)
            for sample, label in zip(per_sample, y.tolist(), strict=True):
                sops, macs, dense = brute_force_operations(layer, sample)
                if kind[1]:
                    sops, macs = 0, int((sample != 0).sum()) * layer.out_features
                tally = expected.setdefault(label, [0, 0, 0])
                tally[:] = [a + b for a, b in zip(tally, (sops, macs, dense), strict=True)]
    counts = torch.bincount(torch.cat([y for _, y in batches])).tolist()
    for index, quantity in enumerate(QUANTITIES):
        assert metric.by_label(quantity) == {label: tally[index] / counts[label] for label, tally in expected.items()}


def test_labels_of_convolutions_and_names():
    torch.manual_seed(0)
    model = nn.Conv2d(2, 3, 3, padding=1)
    x = torch.randint(0, 2, (3, 2, 4, 5)).float()
    with Energy(model) as metric, metric.labelled(["a", "b", "a"]):
        model(x)
    costs = [brute_force_operations(model, sample.unsqueeze(0))[0] for sample in x]
    assert metric.by_label() == {"a": (costs[0] + costs[2]) / 2, "b": costs[1]}
    metric.reset()
    with pytest.raises(RuntimeError, match="none did"):
        metric.by_label()


def test_a_labelled_pass_that_fails_is_not_split():
    class Fails(nn.Module):
        def forward(self, x):
            return x / 0 if len(x) < 3 else x.no_such_thing

    model = nn.Sequential(nn.Linear(2, 3), Fails())
    with SynapticOperations(model) as metric:
        with pytest.raises(AttributeError), metric.labelled([0, 0, 1]):
            model(torch.ones(3, 2))
        with metric.labelled([0, 1]):
            model(torch.ones(2, 2))
    assert metric.by_label() == {0: 6 / 3, 1: 6 / 2}


def test_labels_that_do_not_fit():
    model = nn.Linear(2, 3)
    with SynapticOperations(model) as metric:
        with pytest.raises(ValueError, match="`labels`.*2 and"), metric.labelled([1, 2]):
            model(torch.ones(3, 2))
        attention = nn.MultiheadAttention(2, 1)
    with SynapticOperations(attention, batch_dim=1) as metric:
        with metric.labelled([1, 2]):
            attention(*[torch.rand(3, 2, 2)] * 3)
        with pytest.raises(RuntimeError, match="do not split"):
            metric.by_label()


def test_by_step_of_blocks_that_are_called_one_by_one():
    blocks = [nn.Sequential(nn.Linear(2, 2), snntorch.Leaky(beta=0.9, init_hidden=True)) for _ in range(2)]
    with SynapticOperations(nn.ModuleList(blocks)) as metric:
        for _ in range(3):
            blocks[1](blocks[0](torch.rand(2, 2)))
    assert metric.by_step("dense_macs") == [8, 8, 8]


class Cells(nn.Module):
    """A time loop over a recurrent cell."""

    def __init__(self, cell):
        super().__init__()
        self.cell, self.fc = cell, nn.Linear(6, 3)

    def forward(self, x):
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.fc(state[0] if isinstance(state, tuple) else state)


@pytest.mark.parametrize(("cell", "gates"), [(nn.LSTMCell, 4), (nn.GRUCell, 3), (nn.RNNCell, 1)])
def test_a_step_of_a_recurrent_cell_is_one_call(cell, gates):
    model, x = Cells(cell(7, 6)), (torch.rand(5, 4, 7) < 0.4).float()
    with SynapticOperations(model) as sops, torch.no_grad():
        model(x)
    assert sops.by_step() == [float(step.sum()) * gates * 6 / 5 for step in x.unbind(1)]


def test_whole_numbers_that_are_a_constant_current_are_multiplied():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (20, 1, 8, 8)).float()
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    network = to_snntorch(net, images, timesteps=4)
    with SynapticOperations(network) as sops, torch.no_grad():
        network(images)
    assert sops.by_layer()["0"] == 0
    reached = fan_out(net[0], (1, 8, 8))
    assert sops.by_layer("effective_macs")["0"] == float(((images != 0) * reached).sum()) / 20
    binary = (images > 99).float()
    with SynapticOperations(network) as sops, torch.no_grad():
        network(binary)
    assert sops.by_layer()["0"] == float((binary * reached).sum()) / 20
