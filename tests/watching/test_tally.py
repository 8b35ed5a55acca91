"""The tally: what is known of simulated networks, time steps, names, passes that do not count."""

import copy

import norse.torch as norse
import pytest
import snntorch
import torch
from lightning.pytorch import LightningModule
from torch import nn

from snnreg_plugins import Energy, SpikeRate, SynapticOperations, to_norse, to_snntorch
from snnreg_plugins.functional import SYNAPTIC_LAYERS
from snnreg_plugins.functional.synapses import Synapses, count_known_events, fan_out
from snnreg_plugins.watching import held
from snnreg_plugins.watching import tally as tallies
from snnreg_plugins.watching.observer import Observer
from snnreg_plugins.watching.simulated import SimulatedNetwork, known_events, names_in_dnn
from snnreg_plugins.watching.tally import Tally
from tests.helpers import brute_force_costs, brute_force_operations, recorded

T = 4


def convolutional():
    """Borders, strides, sums of spikes over windows, a shortcut."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2, self.conv3 = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 4, 3)
            self.relu1, self.relu2, self.relu3, self.pool = nn.ReLU(), nn.ReLU(), nn.ReLU(), nn.AvgPool2d(2)
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            x = self.pool(self.relu1(self.conv1(x)))
            x = x + self.relu2(self.conv2(x))
            return self.fc(self.relu3(self.conv3(x)).mean((2, 3)))

    return Net().eval()


def exported(target=to_snntorch, **options):
    return target(convolutional(), torch.rand(32, 1, 10, 10), timesteps=T, **options)


def batches(*sizes):
    torch.manual_seed(1)
    return [torch.rand(size, 1, 10, 10) for size in sizes]


def table_of(network, xs, always_look=False, **arguments):
    """All that a tally counts; by itself, or looking at each input."""
    with pytest.MonkeyPatch.context() as patch, torch.no_grad(), Tally(network, **arguments) as tally:
        if always_look:
            patch.setattr(tallies, "is_due", lambda passes: True)
        for x in xs:
            network(x)
        return tally.table()


# What is known.


@pytest.mark.parametrize("target", [to_snntorch, to_norse])
@pytest.mark.parametrize("sizes", [(1,) * 40, (3, 1, 5) * 6, (70, 2, 70)], ids=["small", "mixed", "in_parts"])
def test_known_events_are_counted_as_those_that_are_looked_at(target, sizes):
    network, xs = exported(target), batches(*sizes)
    found = table_of(network, xs)
    assert found == table_of(network, xs, always_look=True)
    network.exact = True  # one step at a time
    assert found == table_of(network, xs) == table_of(network, xs, always_look=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(held, "_HELD", 0)
        assert found == table_of(network, xs)


def test_all_that_reads_spikes_is_known():
    network = exported()
    known, modules = known_events(network), dict(network.named_modules())
    assert known.readers == {it for it in network.body.modules() if isinstance(it, SYNAPTIC_LAYERS)}
    assert known.sources == {modules[f"body.relu{number}"] for number in (1, 2, 3)}


def test_behind_max_pooling_all_is_known_too():
    dnn = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 2)).eval()
    network = to_snntorch(dnn, torch.rand(32, 1, 10, 10), timesteps=T)
    assert known_events(network).readers == {network.body.get_submodule("4")}


def test_a_layer_that_reads_a_coded_input_is_counted_as_what_it_is():
    dnn = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    network = to_snntorch(dnn, torch.rand(32, 4), timesteps=T, coding="poisson")
    with torch.no_grad(), SynapticOperations(network) as metric, recorded(network, SYNAPTIC_LAYERS) as record:
        for _ in range(9):
            network(torch.rand(3, 4))
    costs = brute_force_costs(record)
    assert metric.by_layer() == {name: costs[name][0] / 27 for name in metric.layers}


@pytest.mark.parametrize("factor", [0.3, 1.5, 2.0])
def test_spikes_that_turn_out_to_be_none_are_looked_at(factor):
    network, xs = exported(), batches(*[3] * 11)
    with torch.no_grad(), SynapticOperations(network) as metric:
        for x in xs[:3]:
            network(x)
        for module in network.modules():
            if isinstance(module, snntorch.Leaky):
                module.graded_spikes_factor = torch.tensor(factor)
        metric.reset()
        with recorded(network, SYNAPTIC_LAYERS) as record:
            for x in xs[3:]:
                network(x)
    costs = brute_force_costs(record)
    for index, quantity in enumerate(metric.quantities):
        assert metric.by_layer(quantity) == {name: costs[name][index] / 24 for name in metric.layers}
    assert metric.total("sops") > 0 or factor == 0.3


@pytest.mark.parametrize("value", [2**12, 2**14, 2**21, 2**23 + 1, 2.3, -1.0, torch.nan, torch.inf])
@pytest.mark.parametrize("channels_last", [False, True])
def test_sums_are_exact_or_none(value, channels_last):
    layer = nn.Conv2d(2, 3, 3, padding=1)
    torch.manual_seed(0)
    x = (torch.rand(6, 2, 5, 5) < 0.6).float() * value
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    known = Synapses(layer, fan_out(layer, (2, 5, 5))).count_known(x, 2)
    plain = value == value and value > 0 and value % 1 == 0
    events = count_known_events(x, 2)
    if value <= 2**14 and plain:
        assert known is not None
        assert events is not None
    if plain:
        expected = [brute_force_operations(layer, part)[0] for part in x.chunk(2)]
        assert known in (None, expected)
        assert events in (None, [int(part.double().sum()) for part in x.chunk(2)])
    else:
        assert known is events is None


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float64])
def test_sums_of_events_in_other_precisions(precision):
    x = torch.ones(2, 3000, dtype=precision)
    layer = nn.Linear(3000, 7)
    assert Synapses(layer, fan_out(layer, (3000,))).count_known(x, 2) == [21000, 21000]
    x, layer = torch.ones(2, 3, 9, 9, dtype=precision), nn.Conv2d(3, 5, 3)
    assert Synapses(layer, fan_out(layer, (3, 9, 9))).count_known(x, 1) in (None, [2 * 49 * 9 * 3 * 5])


def test_sums_in_reduced_precision_are_not_taken():
    layer = nn.Conv2d(3, 333, 3, padding=1)
    synapses, x = Synapses(layer, fan_out(layer, (3, 9, 9))), torch.ones(2, 3, 9, 9)
    assert synapses.count_known(x, 1) is not None
    with torch.autocast("cpu", torch.bfloat16):
        assert synapses.count_known(x, 1) is None


# Passes.


def test_small_inputs_are_held_for_no_longer_than_told(monkeypatch):
    network = exported()
    monkeypatch.setattr(held, "_HELD", 50_000)
    with torch.no_grad(), Tally(network) as tally:
        for x in batches(*[2] * 60):
            network(x)
            assert sum(x.numel() for _, _, x in tally._held._before) <= 50_000
        assert tally._held._before
        tally.table()
        assert not tally._held._before
        assert not tally._held._pass


def test_what_is_held_of_a_pass_that_fails_does_not_count(monkeypatch):
    network, xs = exported(), batches(*[2] * 12)
    expected = table_of(network, xs, spikes=False)
    with torch.no_grad(), Tally(network, spikes=False) as tally:
        for index, x in enumerate(xs):
            if index in (5, 6):
                with monkeypatch.context() as patch:
                    patch.setattr(network, "_scores", lambda _: 1 / 0)
                    with pytest.raises(ZeroDivisionError):
                        network(torch.rand(3, 1, 10, 10))
            network(x)
        assert (tally.samples, tally.passes) == (24, 12)
    assert tally.table() == expected


def test_reset_forgets_what_is_held():
    network, xs = exported(), batches(*[2] * 7)
    with torch.no_grad(), Tally(network) as tally:
        for x in xs:
            network(x)
        tally.reset()
        network(xs[0])
        network(xs[1])
    assert tally.table() == table_of(network, xs[:2])


def test_a_closed_tally_keeps_what_it_counted_and_a_copy_counts_on():
    network, xs = exported(), batches(*[2] * 7)
    expected = table_of(network, xs)
    with torch.no_grad(), Tally(network) as tally:
        for x in xs[:6]:
            network(x)
        twin = copy.deepcopy(tally)
        network(xs[6])
    network(xs[0])
    assert tally.table() == expected
    with torch.no_grad():
        twin.model(xs[6])
    twin.close()
    assert twin.table() == expected


# Time steps.


@pytest.mark.parametrize("make", [SynapticOperations, Energy, SpikeRate])
def test_the_first_steps_are_a_run_of_so_many_steps(make):
    network, xs = exported(), batches(3, 2, 3)
    with torch.no_grad(), make(network) as metric:
        for x in xs:
            network(x)
        quantities = [*metric.quantities, {Energy: "energy", SpikeRate: "rate"}.get(make, "sops")]
        found = {(steps, q): metric.by_layer(q, steps=steps) for steps in range(1, T + 2) for q in quantities}
        assert {q: metric.by_layer(q) for q in quantities} == {q: found[T, q] for q in quantities}
    for steps in range(1, T + 1):
        network.timesteps = steps
        with torch.no_grad(), make(network) as metric:
            for x in xs:
                network(x)
        for quantity in quantities:
            assert found[steps, quantity] == metric.by_layer(quantity)
    assert all(found[T + 1, quantity] == found[T, quantity] for quantity in quantities)


def test_the_first_steps_of_a_network_that_is_stepped():
    network = nn.Sequential(nn.Linear(3, 3), snntorch.Leaky(beta=0.9, init_hidden=True), nn.Linear(3, 2))
    x = torch.rand(2, 3) * 3
    with (
        torch.no_grad(),
        SynapticOperations(network) as operations,
        SpikeRate(network) as rate,
        recorded(network, SYNAPTIC_LAYERS) as record,
    ):
        for _ in range(5):
            network(x)
    costs = brute_force_costs(record[: 2 * 3])
    for index, quantity in enumerate(operations.quantities):
        assert operations.by_layer(quantity, steps=3) == {name: cost[index] / 2 for name, cost in costs.items()}
    assert rate.by_layer("neuron_steps", steps=3) == {"1": 9}


def test_neurons_that_take_all_steps_at_once():
    neurons = norse.LIF(norse.LIFParameters(v_th=torch.tensor(0.05)))
    x = torch.rand(5, 2, 3)
    with torch.no_grad(), Tally(neurons) as tally:
        spikes, _ = neurons(x)
    for steps in range(1, 6):
        assert tally.by_layer("spikes", steps) == {"": int(spikes[:steps].sum())}
        assert tally.by_layer("neuron_steps", steps) == {"": steps * 6}
    assert spikes.any()


def test_neurons_that_have_time_behind_the_batch():
    stateful = type("StatefulLayer", (nn.Identity,), {"__module__": "sinabs.layers"})()
    spikes = (torch.rand(2, 5, 3) < 0.5).float()
    with Tally(stateful) as tally:
        stateful(spikes)
    assert [tally.total("spikes", steps) for steps in range(1, 6)] == [int(spikes[:, :n].sum()) for n in range(1, 6)]
    assert tally.total("neuron_steps", 2) == 12


@pytest.mark.parametrize("steps", [0, -1, 1.5, "two"])
def test_a_number_of_steps_that_cannot_be_is_refused(steps):
    network = exported()
    for make in (SynapticOperations, SpikeRate):
        with torch.no_grad(), make(network) as metric:
            network(batches(2)[0])
            with pytest.raises(ValueError, match="`steps`.*integer of at least 1"):
                metric.by_layer(steps=steps)


def test_steps_of_layers_that_are_called_one_by_one_cannot_be_told():
    layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 2)])
    with SynapticOperations(layers) as metric:
        layers[1](layers[0](torch.rand(2, 3)))
        with pytest.raises(RuntimeError, match="called one by one"):
            metric.by_layer(steps=1)


# Names.


class Named(nn.Module):
    """A DNN whose own layers are called as the parts of an exported network are."""

    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
        self.body, self.relu, self.encoder = nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)

    def forward(self, x):
        return self.encoder(self.relu(self.body(self.head(x))))


class Module(LightningModule):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


def test_names_are_those_of_the_dnn():
    dnn, x = Named().eval(), torch.rand(32, 3)
    network = to_snntorch(dnn, x, timesteps=2)
    names = ["head.0", "body", "encoder"]
    for model, prefix in ((dnn, ""), (network, ""), (Module(dnn), "net."), (Module(network), "net.")):
        with torch.no_grad(), SynapticOperations(model) as operations, SpikeRate(model) as rate:
            model(x)
        assert sorted(operations.by_layer()) == sorted(prefix + name for name in names)
        assert sorted(rate.by_layer()) == sorted(prefix + name for name in ("head.1", "relu"))


def test_names_of_what_comes_behind_the_spikes():
    dnn = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    network, x = to_snntorch(dnn, torch.rand(32, 3), timesteps=2, until="2"), torch.rand(2, 3)
    with torch.no_grad(), SynapticOperations(network) as operations:
        network(x)
    assert list(operations.by_layer()) == ["0", "2", "4"]


def test_no_two_modules_have_one_name():
    class Odd(SimulatedNetwork):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(1, 1), nn.Linear(1, 1)

        def name_in_dnn(self, path):
            return "same"

    names = names_in_dnn(nn.Sequential(Odd()))
    assert names == {"": "", "0": "0", "0.a": "0.same", "0.b": "0.b"}


# Who wants more.


def test_an_observer_sees_calls_and_the_ends_of_passes():
    seen = []

    class Sees(Observer):
        def arrived(self, name, layer, x, shape, cost):
            seen.append((name, tuple(shape), cost))

        def emitted(self, name, layer, spikes, steps):
            seen.append((name, tuple(spikes.shape)))

        def multiplied(self, name):
            seen.append(name)

        def ended(self, counts):
            seen.append(counts)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.relu, self.weight = nn.Linear(3, 2), nn.ReLU(), nn.Parameter(torch.ones(2, 4))

        def forward(self, x):
            return self.relu(self.layer(x)) @ self.weight

    model = Net()
    with Tally(model, observer=Sees()):
        model(torch.ones(2, 3))
        with pytest.raises(ValueError, match="input_shape"):
            model(torch.ones(2, 5))
    assert seen == [("layer", (3,), (12, 0, 12)), ("relu", (2, 2)), "", True, False]


UNBATCHED = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)), (6,)),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)), (3, 7, 7)),
    "flattened": (lambda: nn.Sequential(nn.Flatten(-3), nn.Linear(24, 2)), (2, 3, 4)),
    "a layer alone": (lambda: nn.ConvTranspose1d(3, 2, 3), (3, 8)),
    "neurons": (lambda: nn.Sequential(nn.Linear(6, 4), snntorch.Leaky(0.9, init_hidden=True)), (6,)),
}


@pytest.mark.parametrize("case", UNBATCHED)
def test_one_sample_without_a_batch(case):
    make, shape = UNBATCHED[case]
    x = torch.rand(shape)
    counted = []
    for given in (x, x[None]):
        torch.manual_seed(0)
        model = make()
        with torch.no_grad(), Tally(model) as tally:
            model(given)
            model(given)
        assert tally.samples == (1 if case == "neurons" else 2)  # there, a further time step
        counted.append(tally.table())
    assert counted[0] == counted[1]


def test_samples_of_a_batch_one_after_the_other():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return torch.stack([self.layer(each) for each in x])

    model = Loop()
    with torch.no_grad(), Tally(model) as tally:
        model(torch.rand(5, 3, 7, 7))
    assert tally.samples == 5


class Mirrored(nn.Module):
    """Goes back to the size of the input, which the stride leaves open, by the ``output_size`` of the last layer."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(1, 2, 3, 2, 1), nn.ConvTranspose2d(2, 1, 3, 2, 1)

    def forward(self, x):
        return self.up(self.down(x).relu(), output_size=x.shape[2:])


@pytest.mark.parametrize("count_zero_weights", [True, False])
def test_output_size_of_a_transposed_convolution(count_zero_weights):
    model = Mirrored()
    with torch.no_grad():
        model.up.weight[0, 0, 2] = 0.0
    for size in (7, 8, 7):  # both to 4 x 4, and from there back
        x = torch.rand(2, 1, size, size)
        by_padding = copy.deepcopy(model.up)
        by_padding.output_padding = (size - 7, size - 7)
        with torch.no_grad(), Energy(model, count_zero_weights=count_zero_weights) as energy:
            model(x)
        with torch.no_grad(), Energy(by_padding, count_zero_weights=count_zero_weights) as expected:
            by_padding(model.down(x).relu())
        found = energy.by_layer()["up"]
        assert found == pytest.approx(float(expected.compute()), rel=1e-12), size
