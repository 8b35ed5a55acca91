"""Recurrent layers of torch against their cells, run sample by sample and step by step; and neurons' own updates."""

from contextlib import nullcontext

import pytest
import snntorch
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from snnreg_plugins import SynapticOperations
from snnreg_plugins.profile import profile

T, B, INPUTS, HIDDEN = 5, 3, 4, 6
LAYERS = {nn.LSTM: (nn.LSTMCell, 4), nn.GRU: (nn.GRUCell, 3), nn.RNN: (nn.RNNCell, 1)}
OPTIONS = {
    "plain": {},
    "batch_first": {"batch_first": True},
    "bidirectional": {"bidirectional": True},
    "layers": {"num_layers": 3, "batch_first": True},
    "all": {"num_layers": 2, "bidirectional": True, "bias": False},
}
every_layer = pytest.mark.parametrize("make", LAYERS)


def events(*shape):
    return torch.randint(0, 3, shape).float()


def state_of(make, layers, batch=B):
    active = (torch.arange(batch) % 2).view(1, -1, 1)  # so that it matters whose state is whose
    states = tuple(torch.rand(layers, batch, HIDDEN) * active for _ in range(1 + (make is nn.LSTM)))
    return states if make is nn.LSTM else states[0]


def run_by_hand(layer, sequences, initial=None):
    """Cost of each step: what sequences, one for each sample, and states meet in the cells."""
    make = next(make for make in LAYERS if isinstance(layer, make))
    cell_of, gates = LAYERS[make]
    costs = [[0, 0, 0] for _ in range(max(map(len, sequences)))]

    def meet(step, x):
        values = x.double().tolist()
        events = all(value.is_integer() for value in values)
        costs[step][0] += gates * HIDDEN * sum(map(abs, values)) if events else 0
        costs[step][1] += 0 if events else gates * HIDDEN * sum(value != 0 for value in values)
        costs[step][2] += gates * HIDDEN * len(values)

    directions = 2 if layer.bidirectional else 1
    for sample, sequence in enumerate(sequences):
        for index in range(layer.num_layers):
            above = []
            for direction in range(directions):
                suffix = f"_l{index}" + "_reverse" * direction
                cell = cell_of(sequence.shape[1], HIDDEN, bias=layer.bias)
                cell.load_state_dict({name: getattr(layer, name + suffix) for name in cell.state_dict()})
                if initial is None:
                    state = torch.zeros(2, 1, HIDDEN).unbind() if make is nn.LSTM else torch.zeros(1, HIDDEN)
                else:
                    at = index * directions + direction
                    own = [part[at, sample : sample + 1] for part in (initial if make is nn.LSTM else [initial])]
                    state = tuple(own) if make is nn.LSTM else own[0]
                outputs = [None] * len(sequence)
                for step in reversed(range(len(sequence))) if direction else range(len(sequence)):
                    meet(step, sequence[step])
                    meet(step, (state[0] if make is nn.LSTM else state)[0])
                    state = cell(sequence[step].unsqueeze(0), state)
                    outputs[step] = (state[0] if make is nn.LSTM else state)[0]
                above.append(torch.stack(outputs))
            sequence = torch.cat(above, 1)
    return costs


def found(metric, samples):
    by_step = [metric.by_step(quantity) for quantity in ("sops", "effective_macs", "dense_macs")]
    return [[round(number * samples) for number in numbers] for numbers in zip(*by_step, strict=True)]


@every_layer
@pytest.mark.parametrize("context", [nullcontext, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("given", [False, True], ids=["fresh", "given"])
def test_each_step_of_a_recurrent_layer(make, name, context, given):
    torch.manual_seed(0)
    layer = make(INPUTS, HIDDEN, **OPTIONS[name])
    x = events(T, B, INPUTS)
    initial = state_of(make, layer.num_layers * (1 + layer.bidirectional)) if given else None
    with torch.no_grad():
        expected = run_by_hand(layer, x.unbind(1), initial)
    with SynapticOperations(layer, batch_dim=0 if layer.batch_first else 1) as metric, context():
        for _ in range(3):  # the first ones are looked at closely
            layer(x.transpose(0, 1) if layer.batch_first else x, **({"hx": initial} if given else {}))
    assert metric.samples == 3 * B
    assert found(metric, B) == expected
    assert [round(float(metric.total(each)) * B) for each in metric.quantities] == [sum(i) for i in zip(*expected)]  # noqa: B905


@every_layer
@pytest.mark.parametrize("name", ["plain", "all"])
def test_sequences_of_several_lengths(make, name):
    torch.manual_seed(0)
    layer = make(INPUTS, HIDDEN, **OPTIONS[name])
    lengths, x = [2, 5, 1, 4], events(T, 4, INPUTS)
    initial = state_of(make, layer.num_layers * (1 + layer.bidirectional), 4)
    with torch.no_grad(), SynapticOperations(layer) as metric:
        expected = run_by_hand(layer, [x[:length, index] for index, length in enumerate(lengths)], initial)
        layer(pack_padded_sequence(x, lengths, enforce_sorted=False), initial)
    assert metric.samples == 4
    assert found(metric, 4) == expected


@every_layer
def test_a_sequence_without_a_batch(make):
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = make(INPUTS, HIDDEN, num_layers=2, batch_first=True)

        def forward(self, x):
            return self.layer(x[0])

    model, x = Net(), events(1, T, INPUTS)
    with torch.no_grad(), SynapticOperations(model) as metric:
        model(x)
        expected = run_by_hand(model.layer, x)
    assert found(metric, 1) == expected


@every_layer
def test_a_layer_that_is_called_step_by_step(make):
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = make(INPUTS, HIDDEN)

        def forward(self, x):
            state = None
            for step in x:
                _, state = self.layer(step.unsqueeze(0), state)

    model, x = Net(), events(T, B, INPUTS)
    with torch.no_grad(), SynapticOperations(model, batch_dim=1) as metric:
        model(x)
        expected = run_by_hand(model.layer, x.unbind(1))
    assert found(metric, B) == expected
    assert profile(model, x, batch_dim=1).sops == sum(cost[0] for cost in expected) / B


def test_what_cannot_be_told_of_a_recurrent_layer_is_said():
    class Own(nn.GRU):
        def forward(self, x, state=None):
            return super().forward(x * 1.0, state)

    x = events(T, B, INPUTS)
    layer = nn.LSTM(INPUTS, HIDDEN, 2, dropout=0.5)
    with (
        SynapticOperations(layer, batch_dim=1) as metric,
        pytest.warns(UserWarning, match="above the first, as their dropout"),
    ):
        layer(x)
    assert found(metric, B) == run_by_hand(nn.LSTM(INPUTS, HIDDEN), x.unbind(1))  # the same numbers, of the first
    for layer in (Own(INPUTS, HIDDEN), nn.LSTM(INPUTS, HIDDEN, proj_size=2)):
        with SynapticOperations(layer, batch_dim=1) as metric:
            layer(x)
        gates = 3 if isinstance(layer, nn.GRU) else 4
        assert metric.compute() == float(x.sum()) * gates * HIDDEN / B
        for broken_down in (metric.by_step, lambda metric=metric: metric.by_layer(steps=2)):
            with pytest.raises(RuntimeError, match=r"cannot tell the time steps of \[''\]: recurrent layers with proj"):
                broken_down()


def test_by_step_of_what_multiplies_nothing():
    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.rand(5, 4))

        def forward(self, x):
            return nn.functional.embedding(x, self.weight)

    model = Looks()
    with SynapticOperations(model) as metric:
        model(torch.tensor([1, 2]))
    assert metric.by_step() == []


# Neurons' own updates are no synapses.


def test_decays_that_are_computed_as_convolutions():
    torch.manual_seed(0)
    x = events(T, B, 4)
    alone = nn.Sequential(nn.Linear(4, 4), snntorch.StateLeaky(beta=0.9, channels=4, learn_beta=True))
    with_weights = snntorch.LinearLeaky(beta=0.9, in_features=4, out_features=5)
    for model, outputs, name in ((alone, 4, "0"), (with_weights, 5, "linear")):
        with SynapticOperations(model, batch_dim=1) as metric:
            for _ in range(3):
                model(x)
        assert list(metric.by_layer()) == [name]
        assert metric.compute() == float(x.sum()) * outputs / B
        assert metric.total("effective_macs") == 0


@pytest.mark.parametrize("connected", [False, True])
def test_a_recurrent_matrix_that_is_a_decay(connected):
    torch.manual_seed(0)
    model, x = snntorch.LeakyParallel(4, 5, beta=0.9, weight_hh_enable=connected), events(T, B, 4)
    with SynapticOperations(model, batch_dim=1) as metric:
        model(x)
    assert metric.compute() == float(x.sum()) * 5 / B
    assert (metric.total("effective_macs") > 0) == connected
    assert metric.total("dense_macs") == T * 5 * (4 + 5 * connected)


@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr"])
@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_products_with_sparse_tensors_are_named(layout):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.rand(5, 4))

        def forward(self, x):
            return getattr(self.weight, layout)() @ x.t()

    model = Net()
    with SynapticOperations(model), pytest.warns(UserWarning, match="does not count all: 'Net' .*of sparse tensors"):
        model(torch.rand(3, 4))
