from copy import deepcopy

import pytest
import snntorch
import torch
from torch import nn
from torch.nn import functional as F

from snnreg_plugins import to_snntorch
from snnreg_plugins.functional import COST_MODELS, Geometry, OneToOne
from snnreg_plugins.functional.zero_weights import fan_out_at_zero
from snnreg_plugins.watching.facts import layer_facts, require_prices
from snnreg_plugins.watching.tally import Tally

LAYERS = [
    (nn.Linear(6, 5), (6,)),
    (nn.Linear(6, 5), (4, 6)),
    (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (4, 9)),
    (nn.Conv2d(2, 3, (3, 2), padding="same", dilation=2), (2, 6, 5)),
    (nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 5, 4)),
    (nn.Conv2d(2, 4, 3, stride=2, padding=2, padding_mode="circular", groups=2), (2, 5, 4)),
    (nn.Conv3d(1, 2, 2, stride=2), (1, 4, 4, 4)),
    (nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1, groups=2), (2, 4, 4)),
    (OneToOne(torch.rand(3, 1, 1)), (3, 2, 2)),
]
TYPES = pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=str)
ZEROS = ("sops_at_zero", "effective_macs_at_zero", "dense_macs_at_zero")


def pruned(model, share=0.4):
    torch.manual_seed(0)
    model = deepcopy(model)
    for parameter in model.parameters():
        parameter.data[torch.rand(parameter.shape) < share] = 0.0
    return model


def at_zero(layer, x):
    """Sum what weights of 1 where they are zero, and of 0 elsewhere, make of an input."""
    with torch.no_grad():
        layer = deepcopy(layer).double()
        layer.weight.data = (layer.weight == 0).double()
        if getattr(layer, "bias", None) is not None:
            layer.bias.data.zero_()
        return layer(x.double()).sum().item()


def counted(model, x, **how):
    with torch.no_grad(), Tally(model, counting=["events", "zero_weights"], **how) as tally:
        model(x)
    return tally


@TYPES
def test_synapses_of_weight_zero_are_those_of_brute_force(layer, shape):
    layer = pruned(layer)
    reached = fan_out_at_zero(layer, shape)
    ones = torch.eye(reached.numel()).reshape(-1, *shape)
    assert reached.shape == shape
    assert reached.flatten().tolist() == [at_zero(layer, one.unsqueeze(0)) for one in ones]


@TYPES
@pytest.mark.parametrize("real", [False, True])
def test_operations_at_weights_of_zero_are_counted_apart(layer, shape, real):
    layer = pruned(layer)
    x = (torch.rand(3, *shape) < 0.4).float() * (torch.rand(3, *shape) if real else 2)
    active = (x != 0).float() if real else x
    tally = counted(nn.Sequential(layer), x)
    expected = at_zero(layer, active)
    assert expected > 0
    found = [tally.total(name) for name in ZEROS]
    assert found == [0 if real else expected, expected if real else 0, at_zero(layer, torch.ones_like(x))]
    assert tally.total("events") == (0 if real else x.sum())


def test_weights_are_looked_at_when_a_layer_is_called():
    layer = nn.Linear(4, 3)
    with torch.inference_mode(), Tally(nn.Sequential(layer), counting=["zero_weights"]) as tally:
        tally.model(torch.ones(1, 4))
        assert tally.total("sops_at_zero") == 0
        layer.weight.data[:, 0] = 0.0
        tally.model(torch.ones(1, 4))
        layer.weight.data[0] = 0.0
        tally.model(torch.ones(1, 4))
    assert tally.total("sops_at_zero") == 3 + 6


class Products(nn.Module):
    """Weights of no layer: from the right, from the left, in a convolution, and over a new dimension."""

    def __init__(self):
        super().__init__()
        self.right, self.left = nn.Parameter(torch.rand(4, 6)), nn.Parameter(torch.rand(5, 3))
        self.kernel, self.spread = nn.Parameter(torch.rand(2, 1, 3)), nn.Parameter(torch.rand(7, 6))

    def forward(self, x):
        y = F.conv1d(x.unsqueeze(1), self.kernel, stride=2)
        return F.linear(x, self.right).sum() + (self.left @ x).sum() + y.sum() + (x.unsqueeze(1) * self.spread).sum()


def test_products_outside_of_layers_are_counted_apart_too():
    model = pruned(Products())
    x = (torch.rand(3, 6) < 0.5).float()
    zero = [(parameter == 0).double() for parameter in (model.right, model.left, model.kernel, model.spread)]

    def expected(x):
        x = x.double()
        y = F.conv1d(x.unsqueeze(1), zero[2], stride=2)
        return (F.linear(x, zero[0]).sum() + (zero[1] @ x).sum() + y.sum() + (x.unsqueeze(1) * zero[3]).sum()).item()

    tally = counted(model, x)
    assert [tally.total(name) for name in ZEROS] == [expected(x), 0, expected(torch.ones_like(x))]


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_layers_are_counted_apart_too(kind):
    model = pruned(kind(4, 3, batch_first=True))
    x = (torch.rand(2, 5, 4) < 0.5).float()
    with torch.no_grad():
        states = model(x)[0]
    before = torch.cat([torch.zeros(2, 1, 3), states[:, :-1]], 1)
    of_input, of_own = ((parameter == 0).sum(0).double() for parameter in (model.weight_ih_l0, model.weight_hh_l0))
    tally = counted(model, x)
    assert tally.total("sops_at_zero") == (x.double() @ of_input).sum()
    assert tally.total("effective_macs_at_zero") == ((before != 0).double() @ of_own).sum()
    assert tally.total("dense_macs_at_zero") == 10 * (of_input.sum() + of_own.sum())


def test_recurrence_one_to_one_is_counted_apart_too():
    neuron = snntorch.RLeaky(beta=0.9, threshold=0.5, V=torch.tensor([0.0, 1.0, 0.0]), all_to_all=False)
    with torch.no_grad(), Tally(neuron, counting=["zero_weights"]) as tally:
        neuron(torch.ones(2, 3), torch.ones(2, 3), torch.zeros(2, 3))
    assert (tally.total("sops"), tally.total("sops_at_zero")) == (6, 4)


def network(timesteps=6):
    torch.manual_seed(1)
    dnn = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    return to_snntorch(dnn, torch.rand(64, 6), timesteps=timesteps)


def seen(net, x, **how):
    with torch.no_grad(), Tally(net, counting=["events", "zero_weights", "activity"]) as tally:
        net(x)
    return layer_facts(tally, **how)


def test_facts_of_an_exported_network_are_those_of_its_spikes():
    net, x = pruned(network()), torch.rand(4, 6)
    first, middle, last = seen(net, x)
    assert [facts.name for facts in (first, middle, last)] == ["0", "2", "4"]
    assert (first.timesteps, first.spiking, first.leaky, first.neurons) == (6, True, False, "Leaky")
    assert (first.effective_macs, first.sops, first.dense_macs, first.updates) == (30, 0, 30, 30)
    assert middle.sops == 4 * first.events_out == 4 * middle.events_in
    assert last.sops == 3 * middle.events_out == 3 * last.events_in
    assert (middle.dense_macs, middle.updates, last.updates, last.state_updates) == (20, 24, 0, 18)
    assert middle.geometry == Geometry.of(nn.Linear(5, 4), (5,))
    assert middle.zero_weights == (net.body.get_submodule("2").weight == 0).sum() > 0
    assert 0 < middle.sops_at_zero < middle.sops


def test_the_first_steps_of_a_long_run_are_the_run_of_so_many():
    net, x = pruned(network(8)), torch.rand(4, 6)
    with torch.no_grad(), Tally(net, counting=["events", "zero_weights", "activity"]) as tally:
        net(x)
    for steps in (1, 3, 8):
        net.timesteps = steps
        assert layer_facts(tally, steps=steps) == seen(net, x)


def states_by_hand(currents, start):
    """Count what neurons were found as: their state is zero until something comes."""
    had, numbers = start.expand_as(currents[0]) != 0, torch.zeros(3)
    for current in currents:
        got = current != 0
        numbers += torch.tensor([(got & ~had).sum(), (had & ~got).sum(), (had & got).sum()])
        had = had | got
    return (numbers / len(currents[0])).tolist()


@pytest.mark.parametrize("initial_potential", [0.0, 0.5])
def test_states_of_neurons_by_hand(initial_potential):
    torch.manual_seed(0)
    dnn = nn.Sequential(nn.Linear(6, 9, bias=False), nn.ReLU(), nn.Linear(9, 8, bias=False), nn.ReLU(), nn.Linear(8, 3))
    net = to_snntorch(dnn.eval(), torch.rand(64, 6), timesteps=5, initial_potential=initial_potential)
    x = torch.rand(4, 6) * (torch.rand(4, 6) < 0.3)
    seen_currents: dict[str, list] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, args, name=name: seen_currents.setdefault(name, []).append(args[0].clone())
        )
        for name, module in net.body.named_modules()
        if isinstance(module, snntorch.Leaky)
    ]
    with torch.no_grad():
        net(x)  # step by step, as others look on
    for hook in hooks:
        hook.remove()
    starts = {name: module.potential for name, module in net.body.named_modules() if hasattr(module, "potential")}
    for facts, (name, currents) in zip(seen(net, x)[:2], seen_currents.items(), strict=True):
        expected = states_by_hand(currents, starts[f"{name}_initial"])
        assert [facts.receiving, facts.active, facts.active_receiving] == pytest.approx(expected)
        assert (sum(expected) > facts.updates - 1e-4) is (initial_potential > 0)


class Stepped(nn.Module):
    def __init__(self, beta=0.5):
        super().__init__()
        torch.manual_seed(3)
        self.fc1, self.fc2 = nn.Linear(4, 6, bias=False), nn.Linear(6, 3)
        self.neuron = snntorch.Leaky(beta=beta, threshold=0.2)

    def forward(self, x):
        state, outputs, self.currents = self.neuron.reset_mem(), 0.0, []
        for step in x:
            self.currents.append(self.fc1(step))
            spikes, state = self.neuron(self.currents[-1], state)
            outputs = outputs + self.fc2(spikes)
        return outputs


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_a_network_of_ones_own_from_its_first_step_on(beta):
    net = Stepped(beta)
    x = (torch.rand(7, 5, 4) < 0.15).float()
    with torch.no_grad(), Tally(net, batch_dim=1, counting=["events", "zero_weights", "activity"]) as tally:
        net(x)
        states = states_by_hand(net.currents, torch.zeros(()))
        net(x)  # again, from fresh states
    first, last = layer_facts(tally)
    assert [first.receiving, first.active, first.active_receiving] == pytest.approx(states)
    assert 0 < sum(states) < first.updates == 7 * 6
    assert (first.timesteps, first.leaky, first.events_in) == (7, beta < 1, x.sum() / 5)
    assert first.events_out == last.events_in > 0
    cost = COST_MODELS["eflops"].spiking(first)
    prices = (3, 5, 6) if beta < 1 else (1, 1, 2)
    assert cost.neurons == pytest.approx(sum(n * price for n, price in zip(states, prices, strict=True)))


def test_states_that_cannot_be_followed_have_no_price():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.neuron = nn.Linear(4, 3), snntorch.RLeaky(beta=0.9, linear_features=3)

        def forward(self, x):
            spikes, state = self.neuron.init_rleaky()
            for _ in range(3):
                spikes, state = self.neuron(self.fc(x), spikes, state)
            return spikes

    with torch.no_grad(), Tally(net := Net(), counting=["zero_weights", "activity"]) as tally:
        net(torch.rand(2, 4))
    facts, own = layer_facts(tally)
    assert (facts.updates, own.name, own.updates, own.state_updates) == (9, "neuron.recurrent", 0, 0)
    with pytest.raises(ValueError, match=r"states.*'eflops'.*'fc' \(RLeaky\) drive each other.*out of `table`"):
        COST_MODELS["eflops"].spiking(facts)


def test_what_cannot_be_priced_is_said_before_it_runs():
    models = COST_MODELS["lemaire"], COST_MODELS["bit_matched"]
    with pytest.raises(ValueError, match="'bit_matched' prices a DNN beside a spiking network alone"):
        require_prices(models, nn.Linear(2, 3))
    recurrent = nn.Sequential(nn.Linear(4, 3), snntorch.RLeaky(beta=0.9, linear_features=3))
    require_prices(models, recurrent)
    with pytest.raises(ValueError, match=r"'eflops'.*'1' \(RLeaky\)"):
        require_prices((*models, COST_MODELS["eflops"]), recurrent)


def test_real_values_in_each_step_are_read_in_each_step():
    layer = nn.Sequential(nn.Linear(3, 4), snntorch.Leaky(beta=0.9, init_hidden=True))
    with torch.no_grad(), Tally(layer, counting=["events"]) as tally:
        for _ in range(5):
            layer(torch.rand(2, 3) + 0.1)
    (facts,) = layer_facts(tally, timesteps=5)
    assert (facts.calls, facts.effective_macs, facts.dense_macs) == (5, 60, 12)
    assert COST_MODELS["bit_matched"].spiking(facts).inputs == pytest.approx(5 * 3 * 8 * 0.25e-12)


def test_samples_that_leave_early_take_fewer_steps():
    net, x = network(8), torch.rand(16, 6)
    net.exit_margins = [torch.inf, 0.0]
    first, _, last = seen(net, x)
    assert (first.timesteps, first.steps, first.updates) == (8, 2, 2 * 5)
    assert last.state_updates == 2 * 3


def test_what_was_not_asked_for_is_not_counted():
    net = network()
    with torch.no_grad(), Tally(net) as tally:
        net(torch.rand(4, 6))
    facts = layer_facts(tally)[1]
    assert facts.events_in is facts.sops_at_zero is facts.active is None
    with pytest.raises(ValueError, match="`quantity`"):
        tally.by_layer("events")
    with pytest.raises(ValueError, match="`counting`"):
        Tally(net, counting=["joules"])
