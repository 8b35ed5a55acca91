"""A time loop of the user's own: one step at a time, and what each layer does in it."""

from __future__ import annotations

import copy
import pickle

import pytest
import snntorch.functional as SF
import torch
from torch import nn
from torch.nn import functional as F

from snnreg_plugins import SpikeRate, SpikeStatistics, SynapticOperations, TimeSteps, to_norse, to_snntorch
from snnreg_plugins.spiking.stepwise import NetworkState
from tests.export.reference import max_thresholds, simulate
from tests.helpers import soft_reset_neuron
from tests.nets import make

T = 6
NAMES = ["mlp", "lenet_functional", "lenet_modules", "ends_in_relu", "reshapes", "viewed", "reused_relu"]
both_frameworks = pytest.mark.parametrize("export", [to_snntorch, to_norse])


def exported(name, dtype=torch.float32, export=to_snntorch, **options):
    net, layers, x = make(name, dtype)
    return export(net, x, timesteps=T, threshold="max", correction="none", **options), layers, x


def stepped(network, inputs):
    outputs, state = [], None
    for x in inputs:
        output, state = network.step(x, state)
        outputs.append(output)
    return outputs, state


@both_frameworks
@pytest.mark.parametrize("name", NAMES)
def test_the_mean_of_steps_is_the_score_bit_for_bit(name, export):
    network, _, x = exported(name, export=export)
    outputs, state = stepped(network, [x] * T)
    assert state.steps == T
    torch.testing.assert_close(sum(outputs) / T, network(x))
    network.exact = True
    assert torch.equal(sum(outputs) / T, network(x))
    assert torch.equal(sum(outputs[:2]) / 2, network(x, per_step=True)[1])


def test_steps_read_inputs_of_their_own():
    network, _, x = exported("lenet_functional")
    frames = torch.rand(T, *x.shape)
    network.exact = True
    assert torch.equal(sum(stepped(network, frames)[0]) / T, network(frames, time_dim=0))


def test_codings_step():
    for coding in ("latency", "neurons"):
        network, _, x = exported("mlp", coding=coding)
        network.exact = True
        assert torch.equal(sum(stepped(network, [x] * T)[0]) / T, network(x))


def test_a_part_of_the_dnn_behind_the_spikes_reads_the_mean():
    network, _, x = exported("mlp", until="1")
    network.exact = True
    assert torch.equal(network.head(sum(stepped(network, [x] * T)[0]) / T), network(x))


@both_frameworks
def test_gradients_flow_through_steps(export):
    network, _, x = exported("lenet_functional", torch.float64, export=export)
    network.exact = True
    F.cross_entropy(network(x), torch.arange(20) % 10).backward()
    expected = [parameter.grad for parameter in network.parameters()]
    network.zero_grad()
    F.cross_entropy(sum(stepped(network, [x] * T)[0]) / T, torch.arange(20) % 10).backward()
    for parameter, grad in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def test_a_detached_state_truncates_the_gradient():
    network, _, x = exported("mlp", torch.float64)
    network.truncation = 2
    network(x).square().sum().backward()
    expected = [parameter.grad for parameter in network.parameters()]
    network.zero_grad()
    outputs, state = [], None
    for step in range(T):
        output, state = network.step(x, state if step % 2 or state is None else state.detach())
        outputs.append(output)
    (sum(outputs) / T).square().sum().backward()
    for parameter, grad in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def test_a_step_leaves_its_state_as_it_was():
    network, _, x = exported("lenet_modules")
    with torch.no_grad():
        _, first = network.step(x)
        second, _ = network.step(x, first)
        assert torch.equal(network.step(x, first)[0], second)  # from the same state again
        network(x)
        assert torch.equal(network.step(x, copy.deepcopy(first))[0], second)
    assert all(module.mem.numel() == 0 for module in network.modules() if hasattr(module, "mem"))
    pickle.dumps(network)


@pytest.mark.parametrize(
    ("state", "error", "told"),
    [
        (lambda network, x: network.step(x[:3])[1], ValueError, "of the same samples.*state=None"),
        (lambda network, x: exported("mlp")[0].step(torch.rand(20, 6))[1], TypeError, "a step of this network gave"),
        (lambda network, x: torch.zeros(3), TypeError, "got Tensor. Begin with state=None"),
        (lambda network, x: NetworkState(1, ()), TypeError, "got NetworkState"),
    ],
)
def test_states_of_other_samples_are_refused(state, error, told):
    network, _, x = exported("lenet_functional")  # snnTorch would begin anew without a word
    with pytest.raises(error, match=told):
        network.step(x, state(network, x))


def test_inputs_of_another_size_are_refused():
    network, _, x = exported("mlp")
    with pytest.raises(ValueError, match=r"Expected inputs of shape \(B, 6\).*\(20, 5\)"):
        network.step(x[:, :5])


class Loop(nn.Module):
    """The loop within forward."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, frames):
        return sum(stepped(self.network, frames)[0]) / len(frames)


class Outside(Loop):
    """One step a call, the state in the caller's hands."""

    def forward(self, x, state=None):
        return self.network.step(x, state)


def run_outside(model, frames):
    state = None
    for x in frames:
        _, state = model(x, state)


@pytest.mark.parametrize("way", ["step", "loop in forward", "loop around a module"])
def test_samples_that_are_stepped_count_once(way):
    network, _, x = exported("lenet_functional")
    network.time_dim = 0
    frames = (torch.rand(T, *x.shape) < 0.4).float()

    def counted(model, run, times=1):
        with (
            torch.no_grad(),
            SynapticOperations(model, batch_dim=int(way == "loop in forward")) as sops,
            SpikeRate(model) as rate,
            SpikeStatistics(network) as statistics,
            TimeSteps(network) as steps,
        ):
            for _ in range(times):
                run()
        by_step = [round(float(step), 6) for step in sops.by_step()]
        return sops.compute(), sops.by_layer(), by_step, rate.compute(), statistics.by_layer(), steps.compute()

    expected = counted(network, lambda: network(frames))
    around = {"step": network, "loop in forward": Loop(network), "loop around a module": Outside(network)}[way]
    run = {
        "step": lambda: stepped(network, frames),
        "loop in forward": lambda: around(frames),
        "loop around a module": lambda: run_outside(around, frames),
    }[way]
    for times in (1, 3):
        sops, by_layer, by_step, rate, statistics, steps = counted(around, run, times)
        assert (sops, by_step, rate, statistics) == (expected[0], expected[2], expected[3], expected[4])
        assert list(by_layer.values()) == list(expected[1].values())
        assert steps == T or way != "step"


@both_frameworks
@pytest.mark.parametrize("name", ["mlp", "lenet_functional", "lenet_modules"])
def test_a_recording_is_a_plain_simulation(name, export):
    network, layers, x = exported(name, torch.float64, export=export)
    thresholds = max_thresholds(layers, x, False)
    spikes, running = simulate(layers, thresholds, x, T)
    recording = network.record(x)
    for found, expected in zip(recording.spikes.values(), spikes, strict=True):
        assert torch.equal(found, expected)
    torch.testing.assert_close(recording.scores, running)
    assert recording.outputs.shape == running.shape
    torch.testing.assert_close(recording.outputs.cumsum(0) / torch.arange(1, T + 1).reshape(-1, 1, 1), running)
    # What a neuron is, in the first layer: its current is the same in every step.
    first = next(iter(recording.spikes))
    current = layers[0](x) if not isinstance(layers[1], nn.BatchNorm2d) else layers[1].eval()(layers[0](x))
    neuron = network.get_submodule(f"body.{first}")
    assert torch.equal(torch.stack(soft_reset_neuron([current] * T, thresholds[0], thresholds[0] / 2)), spikes[0])
    unit = neuron.threshold / thresholds[0]
    torch.testing.assert_close(recording.potentials[first][0], (thresholds[0] / 2 + current.detach()) * unit)
    assert torch.equal(recording.spikes[first], (recording.potentials[first] > neuron.threshold).double())


def test_layers_are_recorded_by_the_names_of_the_dnn():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.relu1, self.fc2, self.act, self.fc3 = (
                nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.LeakyReLU(0.1), nn.Linear(8, 3),
            )  # fmt: skip

        def forward(self, x):
            return self.fc3(self.act(self.fc2(self.relu1(self.fc1(x)))))

    x = torch.randn(9, 6)
    recording = to_snntorch(Net(), x, timesteps=T).record(x)
    assert list(recording.spikes) == list(recording.potentials) == ["relu1", "act", "act_negative"]
    assert all(values.shape == (T, 9, 8) for values in (*recording.spikes.values(), *recording.potentials.values()))


def test_what_codes_an_input_has_spikes_and_no_potential():
    network, _, x = exported("mlp", coding="poisson")
    recording = network.record(x)
    assert recording.spikes.keys() - recording.potentials.keys() == {next(iter(recording.spikes))}


@pytest.mark.parametrize("setting", [{"checkpointing": True}, {"exit_margins": [0.0] * 5}, {"exact": True}, {}])
def test_a_recording_is_of_all_steps_and_samples_whatever_is_set(setting):
    network, _, x = exported("lenet_functional")
    expected = network.record(x)
    for name, value in setting.items():
        setattr(network, name, value)
    recording = network.record(x)
    assert torch.equal(recording.scores, expected.scores)
    assert recording.outputs.shape == (T, 20, 10)
    assert network.checkpointing == ("checkpointing" in setting)
    frames = x.expand(T, *x.shape)
    assert torch.equal(network.record(frames, time_dim=0).outputs, expected.outputs)


@pytest.mark.slow
def test_a_compiled_network_is_recorded():
    network, _, x = exported("mlp")
    expected = network.record(x)
    network.compile(backend="eager")
    network(x, per_step=True, time_dim=None)  # as the recording calls it, but nothing looks on yet
    recording = network.record(x)
    assert torch.equal(recording.outputs, expected.outputs)
    assert torch.equal(recording.spikes["1"], expected.spikes["1"])


@both_frameworks
def test_losses_of_snntorch_mean_what_the_docstring_says(export):
    network, _, x = exported("lenet_functional", export=export)
    y = torch.arange(20) % 10
    recording = network.record(x)
    of_steps = torch.stack([F.cross_entropy(output, y) for output in recording.outputs]).mean()
    torch.testing.assert_close(SF.ce_rate_loss()(recording.outputs, y).squeeze(), of_steps)
    of_scores = F.cross_entropy(recording.scores[-1], y)
    torch.testing.assert_close(SF.ce_count_loss()(recording.outputs / T, y), of_scores)
    right = (recording.scores[-1].argmax(1) == y).float().mean()
    assert SF.accuracy_rate(recording.outputs, y) == pytest.approx(float(right))
    of_scores.backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    network.zero_grad()
    network.exact = True
    F.cross_entropy(network(x), y).backward()
    for gradient, parameter in zip(gradients, network.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_counts_of_a_spiking_last_layer_can_be_trained_on():
    network, _, x = exported("ends_in_relu")
    y = torch.arange(20) % 3
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    losses = []
    for _ in range(8):
        *_, last = network.record(x).spikes.values()
        loss = SF.mse_count_loss()(last, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_spikeplot_draws_a_recording():
    pytest.importorskip("matplotlib").use("Agg")
    splt = pytest.importorskip("snntorch.spikeplot", exc_type=ImportError)  # which needs pandas
    import matplotlib.pyplot as plt

    recording = exported("mlp")[0].record(torch.rand(5, 6))
    figure, axes = plt.subplots()
    splt.raster(recording.spikes["1"][:, 0], axes)
    drawn = axes.collections[0].get_offsets()
    assert len(drawn) == recording.spikes["1"][:, 0].sum()
    plt.close(figure)


@pytest.mark.parametrize("name", ["time_steps", "num_steps", "T", "beta", "exit_margin", "checkpoint", "steps"])
def test_settings_that_nothing_would_read_are_refused(name):
    network, _, _ = exported("mlp")
    with pytest.raises(AttributeError, match=f"no attribute '{name}' to set.*timesteps, truncation") as told:
        setattr(network, name, 16)
    meant = {"time_steps": "timesteps", "num_steps": "timesteps", "exit_margin": "exit_margins", "steps": "timesteps"}
    assert (
        f"Did you mean `{ {**meant, 'checkpoint': 'checkpointing'}.get(name) }`" in str(told.value) or name in "Tbeta"
    )
    network._note = 16  # whoever needs one
    with pytest.raises(ValueError, match="`exact` to be True or False, but got 'false'"):
        network.exact = "false"


def test_a_class_of_the_users_own_has_attributes_of_its_own():
    network, _, x = exported("mlp")

    class Mine(type(network)):
        def forward(self, x):
            self.calls = getattr(self, "calls", 0) + 1
            return super().forward(x)

    network.__class__ = Mine
    network(x)
    assert network.calls == 1
    network.time_steps = 4


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda x: x.numpy(), r"got ndarray. Pass torch.as_tensor\(x, dtype=torch.float32\)"),
        (lambda x: x.tolist(), r"got list. Pass torch.as_tensor"),
        (lambda x: (x, x), "got tuple. Of an .input, target. pair, pass the input alone"),
        (lambda x: {"image": x}, "got dict. Pass the tensor of inputs"),
        (lambda x: x.double(), r"inputs of torch.float32.*got torch.float64.*Pass x.to\(torch.float32\)"),
        (lambda x: (255 * x).byte(), r"inputs of torch.float32.*got torch.uint8.*Pass x.to\(torch.float32\)"),
    ],
)
def test_inputs_of_another_type_are_refused_in_a_sentence(change, told, exact):
    network, _, x = exported("lenet_functional")
    network.exact = exact
    with pytest.raises(TypeError, match=told):
        network(change(x))
    with pytest.raises(TypeError, match=told):
        network.step(change(x))


def test_whole_numbers_that_neurons_read_are_taken_as_they_are():
    net = nn.Sequential(nn.ReLU(), nn.Linear(6, 3))
    counts = torch.randint(0, 8, (20, 6))
    counts[0] = 7  # half of which is no whole number
    network = to_snntorch(net, counts.float(), timesteps=T)
    for network.exact in (False, True):
        assert torch.equal(network(counts), network(counts.float()))
