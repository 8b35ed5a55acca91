"""A network that spikes already is measured as its own module's steps call it."""

from __future__ import annotations

import copy
import warnings

import norse.torch as norse
import pytest
import snntorch
import torch
from lightning.pytorch import LightningModule
from snntorch import functional as SF
from snntorch import utils
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from snnreg_plugins import Energy, SpikeRate, SpikingValidation, SynapticOperations, report, to_snntorch
from snnreg_plugins.callbacks.measurement import NeuronRates
from snnreg_plugins.modules import SpikingClassifier
from tests.callbacks.reference import free_port, leave, two_processes
from tests.callbacks.test_spiking_validation_scores import CLASSES, X, fit, loader, right, trainer_of
from tests.helpers import brute_force_costs, recorded

T = 5
EVENTS = (torch.rand(T, 40, 5, generator=torch.Generator().manual_seed(3)) < 0.3).float()


class States(nn.Module):
    """States in forward; gives what all neurons of the last layer did."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2 = nn.Linear(5, 12), nn.Linear(12, 3)
        self.lif1, self.lif2 = snntorch.Leaky(0.9, threshold=0.3), snntorch.Leaky(0.8, threshold=0.2)

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spikes, potentials = [], []
        for step in range(T):
            spk1, mem1 = self.lif1(self.fc1(x if x.dim() == 2 else x[step]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes.append(spk2)
            potentials.append(mem2)
        return torch.stack(spikes), torch.stack(potentials)


class Rates(States):
    def forward(self, x):
        return super().forward(x)[0].mean(0)


class Hidden(nn.Module):
    """One step at a call; states in the neurons."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(
            nn.Linear(5, 12),
            snntorch.Leaky(0.9, threshold=0.3, init_hidden=True),
            nn.Linear(12, 3),
            snntorch.Leaky(0.8, threshold=0.2, init_hidden=True, output=True),
        )

    def forward(self, x):
        return self.net(x)


def norse_steps():
    torch.manual_seed(2)
    parameters = norse.LIFBoxParameters(v_th=torch.tensor(0.1))
    cells = norse.LIFBoxCell(parameters), norse.LIFBoxCell(parameters)
    return norse.SequentialState(nn.Linear(5, 12), cells[0], nn.Linear(12, 3), cells[1])


def norse_over_time():
    torch.manual_seed(3)
    parameters = norse.LIFParameters(v_th=torch.tensor(0.05))
    return norse.SequentialState(nn.Linear(5, 12), norse.LIF(parameters), nn.Linear(12, 3))


def looped(net, x, state=None):
    """Step a network in a loop outside of it."""
    utils.reset(net.net if isinstance(net, Hidden) else net)  # which looks at children alone
    outputs = []
    for _ in range(T):
        output, state = net(x) if isinstance(net, Hidden) else net(x, state)
        outputs.append(output)
    return torch.stack(outputs).sum(0)


def counted(outputs):
    return outputs[0].sum(0)


def stepped(outputs):
    return sum(step[0] for step in outputs)


class Own(LightningModule):
    """A user's module around a network; with ``step``, what its steps do with that."""

    def __init__(self, net, step=None, loss=F.cross_entropy):
        super().__init__()
        self.net, self.step, self.loss = net, step, loss
        self.at_first = copy.deepcopy(net.state_dict())

    def forward(self, x):
        return self.net(x)

    def run(self, x):
        return self(x) if self.step is None else self.step(self.net, x)

    def training_step(self, batch, batch_idx):
        return self.loss(self.run(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.run(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05)


def events(x=EVENTS, y=CLASSES):
    """Batches (T, B, ...)."""
    return [(x[:, start : start + 16], y[start : start + 16]) for start in range(0, len(y), 16)]


NETWORKS = {
    # the network, the loss, what the steps do with it, how scores are read out, what it runs on
    "rates": (Rates, F.cross_entropy, None, None, None),
    "spikes and potentials": (States, lambda o, y: SF.ce_count_loss()(o[0], y), None, counted, None),
    "loss at each step": (States, lambda o, y: sum(F.cross_entropy(step, y) for step in o[1]), None, counted, None),
    "events": (Rates, F.cross_entropy, None, None, EVENTS),
    "stepped": (Hidden, F.cross_entropy, looped, stepped, None),
    "Norse, stepped": (norse_steps, F.cross_entropy, looped, stepped, None),
    "Norse over time": (norse_over_time, lambda o, y: F.cross_entropy(o[0].sum(0), y), None, counted, EVENTS),
}


def validation(readout=None, **options):
    class Validation(SpikingValidation):
        def readout(self, outputs):
            return super().readout(outputs) if readout is None else readout(outputs)

    return Validation(**options)


def test_logs_what_other_models_of_cost_give():
    make, loss, step, readout, _ = NETWORKS["rates"]
    named = {"network": "net"} if step else {}
    module, data = Own(make(), step, loss), loader(CLASSES)
    trainer = trainer_of([validation(readout, **named, table=["lemaire", "eflops"])], max_epochs=1)
    trainer.fit(module, data, data)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    module.eval()
    with torch.no_grad(), Energy(module.net, ["lemaire", "eflops"]) as energy:
        for inputs, _ in data:
            module.net(inputs) if step is None else looped(module.net, inputs)
    for model, name in zip(energy.models, ("energy/lemaire", "eflops"), strict=True):
        expected = sum(model.spiking(one).total for one in energy.facts())
        assert logged[f"snn/{name}"] == pytest.approx(expected)
        assert expected > 0


@pytest.mark.parametrize("kind", NETWORKS)
def test_logs_what_the_network_does_in_its_own_steps(kind):
    make, loss, step, readout, x = NETWORKS[kind]
    named = {"network": "net"} if step else {}
    module, prefix = Own(make(), step, loss), "" if step else "net."
    data = events() if x is not None else loader(CLASSES)
    trainer = trainer_of([validation(readout, **named)], max_epochs=1)
    trainer.fit(module, *([DataLoader(data, batch_size=None)] * 2 if x is not None else [data] * 2))
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert any(not torch.equal(module.net.state_dict()[name], value) for name, value in module.at_first.items())

    costs, spikes, neurons, correct = {}, 0, 0, 0
    module.eval()
    neuron = (snntorch.SpikingNeuron, norse.LIFBoxCell, norse.LIF)
    for inputs, y in data:
        with torch.no_grad(), recorded(module.net, nn.Linear) as read, recorded(module.net, neuron, output=True) as out:
            outputs = [module.net(inputs)] if step is None else looped(module.net, inputs)
        scores = outputs if step else outputs[0] if readout is None else readout(outputs[0])
        correct += int((scores.argmax(1) == y).sum())
        spikes += sum(int(spk.sum()) for _, _, spk in out)
        neurons += sum(spk.numel() for _, _, spk in out)
        for name, cost in brute_force_costs(read).items():
            costs[name] = [a + b for a, b in zip(costs.get(name, (0, 0, 0)), cost, strict=True)]
    assert logged["snn/accuracy"] == pytest.approx(correct / 40)
    assert logged["snn/spike_rate"] == pytest.approx(spikes / neurons)
    assert 0 < spikes < neurons
    sops, macs = (sum(cost[column] for cost in costs.values()) / 40 for column in (0, 1))
    assert logged["snn/sops"] == pytest.approx(sops)
    assert logged["snn/effective_macs"] == pytest.approx(macs)
    assert logged["snn/energy"] == pytest.approx(1e-12 * (0.9 * sops + 4.6 * macs))
    for name, cost in costs.items():
        assert logged[f"snn/sops/{prefix}{name}"] == pytest.approx(cost[0] / 40)
    assert not [name for name in logged if name.startswith("dnn/")]


def test_training_ends_with_the_same_weights_bit_for_bit():
    states = []
    for callbacks in ([], [validation()]):
        module = Own(Rates())
        fit(callbacks, module, CLASSES, max_epochs=2)
        states.append([*module.net.state_dict().values(), torch.get_rng_state()])
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))


class Finetuned(LightningModule):
    """A user's module around an exported network."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        dnn = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3))
        self.snn = to_snntorch(dnn, X, timesteps=4)

    forward = Own.forward
    validation_step, configure_optimizers = Own.validation_step, Own.configure_optimizers

    def run(self, x):
        return self.snn(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.run(batch[0]), batch[1])


def test_an_exported_network_while_it_is_fine_tuned():
    module = Finetuned()
    logged = fit(validation(network="snn"), module, CLASSES, max_epochs=2)
    with torch.no_grad(), SynapticOperations(module.snn) as sops, SpikeRate(module.snn) as rate:
        accuracy = right(module.snn(X).argmax(1), CLASSES)
    assert logged["snn/accuracy"] == pytest.approx(accuracy)
    assert logged["snn/spike_rate"] == pytest.approx(float(rate.compute()))
    for name, value in sops.by_layer().items():
        assert logged[f"snn/sops/{name}"] == pytest.approx(value)

    module = SpikingClassifier(nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3)))
    logged = fit(validation(), module, CLASSES)
    for name in ("accuracy", "sops", "spike_rate"):
        assert logged[f"snn/{name}"] == pytest.approx(logged[f"val/{name}"])


def refused(message, net, *module, error=ValueError, **options):
    """Before the first step."""
    module = Own(net, *module)
    with pytest.raises(error, match=message):
        fit(validation(**options), module, CLASSES)
    assert all(torch.equal(module.net.state_dict()[name], value) for name, value in module.at_first.items())


def test_what_cannot_be_scored_is_refused_before_the_first_step():
    counts = lambda o, y: F.cross_entropy(o.sum(0), y)  # noqa: E731
    refused(
        r"one tensor of scores for a batch, but got tuple. Override Validation.readout\(outputs\)",
        States(), None, lambda o, y: counts(o[0], y), error=TypeError,
    )  # fmt: skip
    net = States()
    net.forward = lambda x: States.forward(net, x)[0]
    refused(r"beside 16 targets, but got the shape \(5, 16, 3\). Override", net, None, counts)
    refused("got 5 calls of it. Override", Hidden(), looped, error=TypeError, network="net")
    refused(r"that has not called forward\(\). Name the network that it calls, such as", Hidden(), looped)
    refused("`exit_agreement` to be None for a network that spikes already, but got 0.9", Rates(), exit_agreement=0.9)


def test_what_else_a_step_calls_is_not_counted_along():
    class Taught(Own):
        def __init__(self):
            super().__init__(Rates())
            self.teacher = nn.Linear(5, 3)

        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            self.teacher(batch[0])

    with pytest.raises(ValueError, match=r"calls of 'forward\(\)', .* calls 'teacher' beside it. Name the network"):
        fit(validation(), Taught(), CLASSES)
    module = Taught()
    logged = fit(validation(network="net"), module, CLASSES)  # called by forward()
    with torch.no_grad(), SynapticOperations(module.net) as operations:
        module.net(X)
    assert logged["snn/effective_macs"] == pytest.approx(float(operations.total("effective_macs")))


def test_without_labels_cost_alone_is_measured():
    class Unlabelled(SpikingValidation):
        def unpack(self, batch):
            return batch[0], None

    module = Own(States(), None, lambda o, y: F.cross_entropy(o[0].sum(0), y))
    logged = fit(Unlabelled(), module, CLASSES)
    assert "snn/accuracy" not in logged
    with torch.no_grad(), SynapticOperations(module) as operations:
        module(X)
    assert logged["snn/sops"] == pytest.approx(float(operations.compute()))


def test_validation_alone_of_several_loaders_and_a_part_of_their_batches():
    module, callback = Own(Rates()), validation(limit_batches=1)
    trainer = trainer_of([callback])
    trainer.validate(module, [loader(CLASSES), loader(CLASSES, X.flip(0))], verbose=False)
    for index, x in enumerate((X[:16], X.flip(0)[:16])):
        with torch.no_grad(), SynapticOperations(module.net) as operations:
            accuracy = right(module.net(x).argmax(1), CLASSES[:16])
        assert float(trainer.callback_metrics[f"snn/accuracy/dataloader_idx_{index}"]) == pytest.approx(accuracy)
        sops = trainer.callback_metrics[f"snn/sops/dataloader_idx_{index}"]
        assert float(sops) == pytest.approx(float(operations.compute()))


def test_whole_numbers_are_what_the_user_says():
    bytes_ = (X * 9).round().abs()
    for told in (None, True, False):
        module, trainer = Own(Rates()), trainer_of([validation(input_events=told)])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.validate(module, loader(CLASSES, bytes_), verbose=False)
            result = report(None, module.net, [(bytes_, CLASSES)], input_events=told)
        doubts = [str(one.message) for one in caught if "input_events=False if they are an image" in str(one.message)]
        assert [text.split(" takes")[0] for text in doubts] == (
            ["SpikingValidation", "report()"] if told is None else []
        )
        events = float(bytes_.sum()) * 12 * T / 40
        for sops in (float(trainer.callback_metrics["snn/sops/net.fc1"]), result.layers[0].sops):
            assert sops == pytest.approx(0.0 if told is False else events)
        assert (result.steps[0].effective_macs > 0) == (told is False)


def test_the_rate_is_that_of_spiking_neurons():
    class Fronted(Rates):
        def __init__(self):
            super().__init__()
            self.front = nn.Sequential(nn.Linear(5, 5), nn.ReLU())

        def forward(self, x):
            return super().forward(self.front(x))

    module = Own(Fronted())
    logged = fit(validation(), module, CLASSES)
    with torch.no_grad(), recorded(module.net, snntorch.Leaky, output=True) as emitted:
        module.eval()(X)
    rate = sum(int(spikes.sum()) for _, _, spikes in emitted) / sum(spikes.numel() for _, _, spikes in emitted)
    assert logged["snn/spike_rate"] == pytest.approx(rate)
    assert "snn/spike_rate/net.front.1" not in logged
    assert "snn/sops/net.front.0" in logged


def test_an_optimizer_of_something_else_may_step_first():
    class Turns(Own):
        automatic_optimization = False

        def __init__(self):
            super().__init__(Rates())
            self.other = nn.Linear(5, 1)

        def training_step(self, batch, batch_idx):
            other, own = self.optimizers()
            self.manual_backward(self.other(batch[0]).mean())
            other.step()
            self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
            own.step()

        def configure_optimizers(self):
            return [torch.optim.SGD(part.parameters(), 0.05) for part in (self.other, self.net)]

    assert "snn/accuracy" in fit(validation(), Turns(), CLASSES)


@pytest.mark.slow
def test_a_compiled_network_is_measured_where_it_was_compiled_before():
    module = Own(Rates())
    module.net.compile(backend="eager")
    logged = fit(validation(every_n_epochs=2), module, CLASSES, max_epochs=2)
    plain = Own(Rates())
    assert logged == fit(validation(every_n_epochs=2), plain, CLASSES, max_epochs=2)
    assert logged["snn/sops"] > 0


def test_rates_of_neurons_that_take_all_steps_at_once():
    net, rates = norse_over_time(), NeuronRates()
    with torch.no_grad(), SpikeRate(net) as rate, recorded(net, norse.LIF, output=True) as emitted:
        rate.watch.observer = rates
        net(EVENTS)
    assert torch.allclose(rates.rates()["1"], emitted[0][2].mean((0, 1)))
    assert rates.rates()["1"].shape == (12,)


def _two_process_worker(rank, port, file):
    module = Own(Rates())
    logged = fit(validation(), module, CLASSES, devices=2, strategy=two_processes(rank, port))
    torch.save({"logged": logged, "net": module.net.state_dict()}, f"{file}{rank}")
    leave()


@pytest.mark.slow
def test_two_processes_log_what_one_would(tmp_path):
    torch.multiprocessing.spawn(_two_process_worker, (free_port(), tmp_path / "rank"), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}", weights_only=True) for rank in (0, 1))
    assert first["logged"] == second["logged"]
    net = Rates()
    net.load_state_dict(first["net"])
    with torch.no_grad(), SynapticOperations(net) as sops, SpikeRate(net) as rate:
        accuracy = right(net(X).argmax(1), CLASSES)
    assert first["logged"]["snn/accuracy"] == pytest.approx(accuracy)
    assert first["logged"]["snn/sops"] == pytest.approx(float(sops.compute()))
    assert first["logged"]["snn/spike_rate"] == pytest.approx(float(rate.compute()))
