"""Training a spiking network, whatever it is: against loops and sums written by hand."""

from __future__ import annotations

import copy

import pytest
import snntorch
import torch
from lightning.pytorch import Callback, LightningDataModule
from norse.torch import LIFCell
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from snnreg_plugins import (
    Distillation,
    ExportReport,
    SynapticOperations,
    load_network,
    save_network,
    to_norse,
    to_snntorch,
)
from snnreg_plugins.modules import Classifier, PopulationCode, SpikingClassifier
from tests.callbacks.test_penalty_resumed import Placed, Save
from tests.modules.own import Explicit, Whole, hidden, loop_explicit, loop_hidden, loop_norse, norse
from tests.modules.test_classifier import quiet

X = 3 * torch.rand(12, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
Y = torch.arange(12) % 3
RATE = 0.1


def sgd(parameters):
    return torch.optim.SGD(parameters, RATE)


def loader():
    return DataLoader(TensorDataset(X, Y), 4)


def dnn_of(spiking=False):
    torch.manual_seed(0)
    layers = [nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), *([nn.ReLU()] if spiking else [])]
    return nn.Sequential(*layers).double()


def read_out(outputs, readout):
    """Scores, as one would write them."""
    if readout == "potential":
        potential = 0.0
        for output in outputs:
            potential = 0.9 * potential + output
        return potential
    stacked = torch.stack(outputs)
    return {"mean": stacked.mean(0), "last": outputs[-1], "max": stacked.max(0).values, "spike_count": stacked.sum(0)}[
        readout
    ]


def loss_by_hand(outputs, y, readout, per_step):
    if not per_step:
        return F.cross_entropy(read_out(outputs, readout), y)
    entropy = sum(F.cross_entropy(output, y) for output in outputs) / len(outputs)
    return 0.8 * entropy + 0.2 * sum(((output - 0.5) ** 2).mean() for output in outputs) / len(outputs)


def trained_by_hand(network, outputs_of, readout, per_step):
    """The weights after an epoch."""
    network = copy.deepcopy(network)
    optimizer = sgd(network.parameters())
    for x, y in loader():
        optimizer.zero_grad()
        loss_by_hand(outputs_of(network, x), y, readout, per_step).backward()
        optimizer.step()
    return [parameter.detach() for parameter in network.parameters()]


def arguments(readout, per_step):
    given = dict(readout=readout, readout_decay=0.9 if readout == "potential" else 1.0, optimizer=sgd)
    return given | (dict(per_step_loss=True, tet_strength=0.2, tet_target=0.5) if per_step else {})


def fitted(module, **options):
    quiet(max_epochs=1, enable_checkpointing=False, **options).fit(module, loader())
    return [parameter.detach() for parameter in module.network.parameters()]


def assert_equal(found, expected, start):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert not all(torch.equal(one, before) for one, before in zip(found, start.parameters(), strict=True))


HOW = [(readout, False) for readout in ("mean", "last", "max", "potential")] + [("mean", True), ("potential", True)]


@pytest.mark.parametrize(("readout", "per_step"), HOW)
@pytest.mark.parametrize("export", [to_snntorch, to_norse])
def test_gradients_of_an_exported_network(export, readout, per_step):
    network = export(dnn_of(), X, timesteps=4)
    start = copy.deepcopy(network)
    expected = trained_by_hand(network, lambda net, x: list(net.record(x).outputs), readout, per_step)
    module = SpikingClassifier(network, **arguments(readout, per_step))
    assert module.network is network
    assert_equal(fitted(module), expected, start)


@pytest.mark.parametrize(("readout", "per_step"), [("spike_count", False), ("mean", False), ("last", True)])
@pytest.mark.parametrize(
    ("make", "loop"), [(hidden, loop_hidden), (Explicit, loop_explicit), (norse, loop_norse)], ids=lambda f: f.__name__
)
def test_gradients_of_a_network_that_takes_a_step_a_call(make, loop, readout, per_step):
    if make is norse and readout == "spike_count":
        readout = "potential"  # it ends with currents
    torch.manual_seed(0)
    network = make().double()
    start = copy.deepcopy(network)
    expected = trained_by_hand(network, lambda net, x: loop(net, [x] * 4), readout, per_step)
    index = 0 if make is not hidden else None
    module = SpikingClassifier(network, timesteps=4, output_index=index, **arguments(readout, per_step))
    assert_equal(fitted(module), expected, start)
    torch.testing.assert_close(module(X), read_out(loop(network, [X] * 4), readout))


@pytest.mark.parametrize(("index", "readout"), [(0, "spike_count"), (1, "last"), (1, "max")])
def test_gradients_of_a_network_with_its_loop_inside(index, readout):
    torch.manual_seed(0)
    network = Whole().double()
    start = copy.deepcopy(network)
    expected = trained_by_hand(network, lambda net, x: list(net(x)[index]), readout, False)
    module = SpikingClassifier(network, output_index=index, **arguments(readout, False))
    assert_equal(fitted(module), expected, start)


def test_a_users_network_keeps_no_graph():
    network = hidden()
    SpikingClassifier(network, timesteps=2)(X.float()).sum().backward()
    copy.deepcopy(network)  # of tensors with a graph, there is none
    assert not any(tensor.requires_grad for tensor in network.buffers())


def test_events_are_read_step_by_step():
    torch.manual_seed(0)
    network, events = hidden().double(), X.reshape(3, 4, 4)
    module = SpikingClassifier(network, timesteps=3, time_dim=0)
    torch.testing.assert_close(module(events), torch.stack(loop_hidden(network, list(events))).mean(0))
    torch.testing.assert_close(
        SpikingClassifier(network, timesteps=3, time_dim=1)(events.transpose(0, 1)), module(events)
    )
    with pytest.raises(
        ValueError, match="`timesteps` to be 3, the time steps of the data along dimension 0, but got 2"
    ):
        SpikingClassifier(network, timesteps=2, time_dim=0)(events)


class TimeFirst(nn.Module):
    """All steps of inputs (T, B, ...) in one call."""

    def __init__(self):
        super().__init__()
        self.steps = hidden().double()

    def forward(self, x):
        return torch.stack(loop_hidden(self.steps, list(x)))


def test_inputs_and_outputs_have_time_first_in_one_call():
    torch.manual_seed(0)
    network, events = TimeFirst(), X.reshape(3, 4, 4)
    expected = network(events).mean(0)
    with pytest.raises(ValueError, match=r"shape \(3, 4, 3\) for 3 samples. Give time_dim=0 if inputs are \(T, B, "):
        SpikingClassifier(network, readout="mean")(events)
    torch.testing.assert_close(SpikingClassifier(network, readout="mean", time_dim=0)(events), expected)
    with pytest.raises(ValueError, match="for 4 samples. Leave `readout` out"):
        SpikingClassifier(nn.Sequential(network, nn.Flatten(1)), readout="mean", time_dim=0)(events)


def test_states_are_in_nobodys_way_when_weights_are_averaged():
    """Buffers of the size of a batch are no weights."""
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    if not hasattr(callbacks, "WeightAveraging"):
        pytest.skip("Lightning before 2.6")
    torch.manual_seed(0)
    module, plain = (SpikingClassifier(hidden().double(), timesteps=3, optimizer=sgd) for _ in range(2))
    plain.load_state_dict(module.state_dict())
    states = []

    class Each(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            states.append({name: value.clone() for name, value in pl_module.state_dict().items()})

    fit = dict(max_epochs=1, enable_checkpointing=False)
    quiet(**fit, callbacks=[Each()]).fit(plain, loader(), loader())
    quiet(**fit, callbacks=[callbacks.WeightAveraging()]).fit(module, loader(), loader())
    for name, value in module.named_parameters():
        torch.testing.assert_close(value.data, torch.stack([state[name] for state in states]).mean(0))


@pytest.mark.parametrize(("make", "index"), [(hidden, None), (Explicit, 0)])
def test_operations_of_a_users_network(make, index):
    torch.manual_seed(0)
    network = make().double()
    module = SpikingClassifier(network, timesteps=[1, 3], output_index=index, readout="spike_count")
    trainer = quiet(enable_checkpointing=False)
    (found,) = trainer.validate(module, loader(), verbose=False)
    (neurons, *_) = [part for part in network.modules() if isinstance(part, snntorch.Leaky)]
    spikes = []
    handle = neurons.register_forward_hook(lambda _, __, output: spikes.append(output[0] if index == 0 else output))
    outputs = (loop_hidden if make is hidden else loop_explicit)(network, [X] * 3)
    handle.remove()
    for steps, ending in ((1, "_at_1"), (3, "_at_3"), (3, "")):
        assert found[f"val/sops{ending}"] == pytest.approx(float(sum(map(torch.sum, spikes[:steps]))) * 3 / 12)
        assert found[f"val/accuracy{ending}"] == pytest.approx(
            float((sum(outputs[:steps]).argmax(1) == Y).float().mean())
        )
    emitted = sum(map(torch.sum, spikes)) + sum(map(torch.sum, outputs))
    assert found["val/spike_rate"] == pytest.approx(float(emitted) / (12 * 9 * 3))


def test_every_batch_is_counted():
    torch.manual_seed(0)
    module = SpikingClassifier(hidden().double(), timesteps=3)
    with torch.no_grad(), SynapticOperations(module) as sops:
        for batch in range(1, 4):
            module(X)
            assert int(sops.samples) == batch * len(X)


class Seen(Callback):
    """How many steps each training batch took."""

    def __init__(self):
        self.steps = []

    def setup(self, trainer, pl_module, stage):
        pl_module.seen = self.steps

    def on_fit_start(self, trainer, pl_module):
        def see(network, *_):
            if network.training:
                self.steps.append(network.timesteps)

        pl_module.network.register_forward_pre_hook(see)


def test_steps_are_drawn_for_each_batch_and_all_are_validated():
    seen, network = Seen(), to_snntorch(dnn_of(), X, timesteps=4)
    module = SpikingClassifier(network, timesteps=[1, 2, 4], optimizer=sgd)
    trainer = quiet(max_epochs=5, enable_checkpointing=False, callbacks=[seen])
    trainer.fit(module, loader(), loader())
    assert set(seen.steps) == {1, 2, 4}
    assert len(seen.steps) == 15
    assert network.timesteps == 4
    for steps in (1, 2, 4):
        network.timesteps = steps
        (alone,) = quiet(enable_checkpointing=False).validate(SpikingClassifier(network), loader(), verbose=False)
        for name in ("loss", "accuracy", "sops", "spike_rate"):
            assert float(trainer.callback_metrics[f"val/{name}_at_{steps}"]) == pytest.approx(alone[f"val/{name}"])
    assert "val/accuracy_at_3" not in trainer.callback_metrics
    assert float(trainer.callback_metrics["val/accuracy"]) == float(trainer.callback_metrics["val/accuracy_at_4"])


def test_steps_are_lowered_from_epoch_to_epoch():
    seen, network = Seen(), to_snntorch(dnn_of(), X, timesteps=8)
    thresholds = [value.clone() for name, value in network.state_dict().items() if name.endswith("threshold")]
    module = SpikingClassifier(network, timesteps={0: 4, 1: 2, 3: 1}, optimizer=sgd)
    trainer = quiet(max_epochs=4, enable_checkpointing=False, callbacks=[seen])
    trainer.fit(module, loader(), loader())
    assert seen.steps == [4] * 3 + [2] * 6 + [1] * 3
    assert module.export().timesteps == 1
    after = [value for name, value in network.state_dict().items() if name.endswith("threshold")]
    assert len(thresholds) == 1
    assert torch.equal(thresholds[0], after[0])
    with torch.no_grad():
        found = float((network(X).argmax(1) == Y).float().mean())
    assert float(trainer.callback_metrics["val/accuracy"]) == pytest.approx(found)


class Batches(Placed):
    """The batches, from where they were left within an epoch."""

    def __init__(self):
        self.batches, self.place = list(loader()), 0

    def __iter__(self):
        self.place %= len(self.batches)  # of an epoch that ended
        return super().__iter__()


class Kept(LightningDataModule):
    def train_dataloader(self):
        return Batches()


STARTS = {
    "dnn": lambda: (dnn_of(), dict(timesteps=[1, 2, 4])),
    "exported": lambda: (to_snntorch(dnn_of(), X, timesteps=4), dict(timesteps=[1, 2, 4], readout="potential")),
    "hidden": lambda: (hidden().double(), dict(timesteps=[1, 2, 3], readout="spike_count")),
    "norse": lambda: (norse().double(), dict(timesteps={0: 3, 1: 2}, output_index=0, per_step_loss=True)),
    "whole": lambda: (Whole().double(), dict(output_index=1, readout="last")),
}


@pytest.mark.parametrize("name", STARTS)
def test_resuming_within_an_epoch_changes_nothing(name, tmp_path):
    def module(**more):
        torch.manual_seed(0)
        network, given = STARTS[name]()
        return SpikingClassifier(network, optimizer=lambda p: torch.optim.Adam(p, 0.05), **given, **more)

    whole = module()
    trainer = quiet(max_epochs=2, callbacks=[Save(tmp_path / "mid.ckpt", step=2)], enable_checkpointing=False)
    trainer.fit(whole, datamodule=Kept())
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    again = module(**({} if name == "exported" else {"checkpoint": "a_file_that_is_gone.ckpt"}))
    quiet(max_epochs=2, enable_checkpointing=False).fit(
        again, datamodule=Kept(), ckpt_path=tmp_path / "mid.ckpt", weights_only=True
    )
    for key, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    # And it is loaded from its file and code alone.
    network, _ = STARTS[name]()
    loaded = SpikingClassifier.load_from_checkpoint(tmp_path / "end.ckpt", network=network, weights_only=True)
    with torch.no_grad():
        assert torch.equal(loaded(X), whole(X))
    if name == "exported":  # of which the DNN is code enough
        loaded = SpikingClassifier.load_from_checkpoint(tmp_path / "end.ckpt", network=dnn_of(), weights_only=True)
        with torch.no_grad():
            assert torch.equal(loaded(X), whole(X))
        assert loaded.dnn is None


def test_a_run_starts_from_a_file(tmp_path):
    """Of save_network or of a SpikingClassifier; the DNN is given for its code."""
    network = to_snntorch(dnn_of(), X, timesteps=3)
    network.readout = "last"
    save_network(network, tmp_path / "spiking.pt")
    blank = dnn_of()
    nn.init.zeros_(blank[0].weight)
    module = SpikingClassifier(blank, checkpoint=str(tmp_path / "spiking.pt"), optimizer=sgd)
    quiet(enable_checkpointing=False).validate(module, loader(), verbose=False)
    assert (module.network.timesteps, module.network.readout, module.dnn) == (3, "last", None)
    with torch.no_grad():
        assert torch.equal(module(X), network(X))

    first = SpikingClassifier(dnn_of(), timesteps=3, optimizer=sgd)
    trainer = quiet(max_epochs=1, enable_checkpointing=False)
    trainer.fit(first, loader())
    trainer.save_checkpoint(tmp_path / "snn.ckpt")
    second = SpikingClassifier(blank, checkpoint=str(tmp_path / "snn.ckpt"), timesteps=2)
    quiet(enable_checkpointing=False).validate(second, loader(), verbose=False)
    first.network.timesteps = 2
    with torch.no_grad():
        assert torch.equal(second(X), first(X))
        assert torch.equal(second.dnn(X), first.dnn(X))
    third = SpikingClassifier(blank, checkpoint=str(tmp_path / "spiking.pt"), threshold="max", correction="none")
    with pytest.raises(
        ValueError, match=r"`threshold`, an option of the export, not to be given for the spiking network in"
    ):
        quiet(enable_checkpointing=False).validate(third, loader(), verbose=False)


def test_weights_of_a_users_network_are_read_once(tmp_path):
    torch.manual_seed(1)
    trained = hidden().double()
    torch.save(trained.state_dict(), tmp_path / "own.pt")
    module = SpikingClassifier(hidden().double(), checkpoint=str(tmp_path / "own.pt"), timesteps=2, optimizer=sgd)
    found = fitted(module)
    quiet(enable_checkpointing=False).validate(module, loader(), verbose=False)
    assert all(map(torch.equal, found, module.network.parameters()))
    by_hand = trained_by_hand(trained, lambda net, x: loop_hidden(net, [x] * 2), "mean", False)
    for one, other in zip(found, by_hand, strict=True):
        torch.testing.assert_close(one, other)
    assert module.export() is module.network


def test_what_is_exported_scores_alike(tmp_path):
    """Readout and population are in the file, for the report too."""
    torch.manual_seed(0)
    dnn = PopulationCode(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU()), 2, "sum")
    data = LightningDataModule.from_datasets(*[TensorDataset(X.float(), Y)] * 4, batch_size=4)
    module = SpikingClassifier(dnn, timesteps=3, readout="spike_count", per_step_loss=True)
    report = ExportReport(str(tmp_path / "run"), steps=[3], html=False)
    quiet(max_epochs=1, enable_checkpointing=False, callbacks=[report]).fit(module, datamodule=data)
    written, x = load_network(tmp_path / "run" / "spiking.pt", dnn), X.float()
    recording = module.network.record(x)
    counts = list(recording.spikes.values())[-1].sum(0).unflatten(1, (3, 2)).sum(2)
    for network in (module, module.export(), written):
        assert torch.equal(network(x), counts)
    assert counts.unique().numel() > 2


@pytest.mark.parametrize("pooled", ["mean", "sum"])
def test_populations(pooled):
    torch.manual_seed(0)
    x, plain = torch.rand(5, 4), nn.Linear(4, 6)
    outputs = plain(x)
    columns = [outputs[:, 2 * k] + outputs[:, 2 * k + 1] for k in range(3)]
    expected = torch.stack(columns, 1) / (2 if pooled == "mean" else 1)
    torch.testing.assert_close(PopulationCode(plain, 2, pooled)(x), expected)
    with pytest.raises(ValueError, match="Expected argument `size` to divide the 6 outputs of the network, but got 4"):
        PopulationCode(plain, 4)(x)
    with pytest.raises(TypeError, match=r"PopulationCode\(nn.Identity\(\), 2\) the last layer within it"):
        PopulationCode(Whole(), 2)(x)
    own = nn.Sequential(nn.Linear(4, 6), snntorch.Leaky(0.8, threshold=0.1, init_hidden=True))
    module = SpikingClassifier(PopulationCode(own, 2, pooled), timesteps=3)
    spikes = torch.stack(loop_hidden(own, [x] * 3)).mean(0).unflatten(1, (3, 2))
    torch.testing.assert_close(module(x), spikes.mean(2) if pooled == "mean" else spikes.sum(2))


def test_distillation_reaches_a_network_that_learns_step_by_step():
    """Its gradient comes on top, as if it were written beside the loss of the steps."""
    torch.manual_seed(3)
    teacher, network = dnn_of(), to_snntorch(dnn_of(), X, timesteps=3)
    nn.init.normal_(teacher[2].weight)
    by_hand = copy.deepcopy(network)
    for student in (None, "network"):
        module = SpikingClassifier(copy.deepcopy(network), per_step_loss=True, optimizer=sgd)
        callback = Distillation(teacher, student=student, loss="l2", alpha=0.25)
        quiet(max_steps=1, enable_checkpointing=False, callbacks=[callback]).fit(module, loader())
        one = copy.deepcopy(by_hand)
        outputs = one.record(X[:4]).outputs
        entropy = sum(F.cross_entropy(output, Y[:4]) for output in outputs) / 3
        difference = ((outputs.mean(0) - teacher(X[:4]).detach()) ** 2).mean()
        (0.75 * entropy + 0.25 * difference).backward()
        for found, parameter in zip(module.network.parameters(), one.parameters(), strict=True):
            torch.testing.assert_close(found, parameter - RATE * parameter.grad, rtol=1e-9, atol=1e-12)


def test_margins_of_the_network_before_are_dropped():
    network = to_snntorch(dnn_of(), X, timesteps=3)
    network.exit_margins = (0.5, 0.5, 0.0)
    with pytest.warns(UserWarning, match="exit_margins of the network are dropped"):
        fitted(SpikingClassifier(network, optimizer=sgd))
    assert network.exit_margins is None


class Forgetful(nn.Module):
    """Each call begins with no state, whatever was before."""

    def __init__(self):
        super().__init__()
        self.fc, self.lif = nn.Linear(4, 3), snntorch.Leaky(0.9)

    def forward(self, x):
        return self.lif(self.fc(x), self.lif.init_leaky())[0]


def exported():
    return to_snntorch(dnn_of(), X, timesteps=4)


def of_events():
    return to_snntorch(dnn_of(), X.reshape(4, 3, 4), timesteps=3, time_dim=1)


@pytest.mark.parametrize(
    ("make", "given", "message"),
    [
        (dnn_of, dict(timesteps=0), "`timesteps` to be an integer of at least 1, but got 0"),
        (dnn_of, dict(timesteps=[]), r"`timesteps` to be one or more integers of at least 1, .* but got \[\]"),
        (dnn_of, dict(timesteps={1: 4}), r"`timesteps` to give T by the epoch .* such as {0: 4, 3: 2}, but got {1: 4}"),
        (dnn_of, dict(timesteps={0: 0}), r"`timesteps` to give T by the epoch .* but got {0: 0}"),
        (dnn_of, dict(timesteps=[1, 2], time_dim=0), r"where inputs have a dimension of time .* got \[1, 2\]"),
        (dnn_of, dict(timesteps={0: 2, 1: 1}, coding="latency"), r"one number for coding='latency', .* {0: 2, 1: 1}"),
        (dnn_of, dict(readout="sum"), "`readout` to be one of .*, but got 'sum'"),
        (dnn_of, dict(readout_decay=0.5), "to be 1 for readout=None, .* Give it with readout='potential'"),
        (dnn_of, dict(tet_strength=0.1), "`tet_strength` to be 0 without `per_step_loss`, but got 0.1"),
        (dnn_of, dict(output_index=0), "`output_index` to be None for a network that is exported, but got 0"),
        (of_events, dict(timesteps=[1, 3]), r"one number for a network whose inputs have .* \[1, 3\]"),
        (of_events, dict(timesteps={0: 3, 1: 1}), r"one number for a network whose inputs .* Leave it out"),
        (exported, dict(output_index=0), "`output_index` to be None for a SpikingNetwork, but got 0"),
        (exported, dict(threshold="max"), "`threshold`, an option .* for a SpikingNetwork, but got 'max'"),
        (exported, dict(checkpoint="a.pt"), "to be None for a SpikingNetwork, .* give the DNN as `network`"),
        (exported, dict(readout="spike_count"), "last layer spikes for readout='spike_count'"),
        (exported, dict(readout="max", per_step_loss=True), "for per_step_loss=True, but .* 'max' forgets outputs"),
        (hidden, dict(beta=0.9), "`beta`, an option .* for Sequential, which spikes already, but got 0.9"),
        (hidden, dict(truncation=2), "`truncation` not to be given for Sequential, .* CompressedActivations"),
        (hidden, dict(checkpointing=True), "`checkpointing` not to be given for Sequential"),
        (hidden, dict(time_dim=0), "`time_dim` not to be given without `timesteps`, but got 0"),
        (hidden, dict(per_step_loss=True), "outputs of every time step for per_step_loss=True, but Sequential gives"),
        (lambda: nn.Sequential(exported()), {}, "to be a SpikingNetwork itself, and not Sequential around one. .* '0'"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit(make, given, message):
    with pytest.raises(ValueError, match=message):
        SpikingClassifier(make(), **given)


@pytest.mark.parametrize(
    ("make", "given", "message"),
    [
        (Forgetful, dict(timesteps=3), "Forgetful to go on from its last time step in each of 3 calls, but it begins"),
        (Whole, dict(output_index=2), "at least 3 things for output_index=2, but got 2 things"),
        (hidden, dict(timesteps=2, output_index=0), "for output_index=0, but got Tensor"),
        (hidden, dict(readout="last"), r"of all time steps, \(T, B, ...\), .* the shape \(12, 3\) for 12 samples"),
        (norse, dict(timesteps=2, output_index=0, readout="spike_count"), "outputs are spikes, 0 or 1, .* readout="),
    ],
)  # fmt: skip
def test_networks_that_do_not_fit(make, given, message):
    torch.manual_seed(0)
    network = make()
    with pytest.raises((ValueError, TypeError), match=message):
        SpikingClassifier(network, **given)(X.float())


def test_scores_of_all_steps_are_none_of_classes():
    class Spikes(Whole):
        def forward(self, x):
            return super().forward(x)[0]

    module = SpikingClassifier(Spikes().double())
    for samples in (3, 5):  # as many as steps, too
        with pytest.raises(ValueError, match=r"Give `readout` for outputs \(T, B, K\)"):
            module.training_step((X[:samples], Y[:samples]), 0)


def test_a_network_that_takes_one_step_is_told():
    with pytest.warns(UserWarning, match="Sequential takes a single time step in a call.* Give `timesteps`"):
        SpikingClassifier(hidden().double())(X)


def test_checkpoints_that_do_not_fit(tmp_path):
    module = SpikingClassifier(exported(), optimizer=sgd)
    trainer = quiet(max_epochs=1, enable_checkpointing=False)
    trainer.fit(module, loader())
    trainer.save_checkpoint(tmp_path / "snn.ckpt")
    with pytest.raises(
        ValueError, match="around Sequential, but this one holds a network that was exported. Give the DNN"
    ):
        SpikingClassifier.load_from_checkpoint(tmp_path / "snn.ckpt", network=hidden(), weights_only=True)


def test_the_report_says_what_is_of_no_use(tmp_path):
    data = LightningDataModule.from_datasets(*[TensorDataset(X, Y)] * 4, batch_size=4)
    for given, message in (
        (
            dict(threshold="max", correction="none"),
            "`threshold` of ExportReport not to be given .* but got 'max'. Leave it out; of an export",
        ),
        (dict(timesteps=9), "`timesteps` of ExportReport not to be given .* but got 9"),
    ):
        trainer = quiet(max_epochs=1, enable_checkpointing=False, callbacks=[ExportReport(str(tmp_path), **given)])
        with pytest.raises(ValueError, match=message):
            trainer.fit(SpikingClassifier(exported()), datamodule=data)
    report = ExportReport(str(tmp_path / "run"), steps=[2], html=False)
    with pytest.warns(
        UserWarning, match="ExportReport exports a network that was not trained: no optimizer took a step"
    ):
        quiet(max_epochs=0, enable_checkpointing=False, callbacks=[report]).fit(Classifier(dnn_of()), datamodule=data)
    assert (tmp_path / "run" / "spiking.pt").is_file()


class Stated(nn.Module):
    """Gives its states back behind its output, and no other outputs."""

    def __init__(self):
        super().__init__()
        self.layer, self.cell = nn.Linear(6, 3), LIFCell()

    def forward(self, x, state=None):
        return self.cell(self.layer(x), state)


def test_what_is_handed_back_to_a_network_is_no_output():
    torch.manual_seed(0)
    net, x = Stated(), 300 * torch.rand(5, 6)
    state, total = None, 0
    for _ in range(4):
        output, state = net(x, state)
        total = total + output
    assert total.any()
    for index in (None, 0):
        module = SpikingClassifier(net, timesteps=4, readout="spike_count", output_index=index)
        assert torch.equal(module(x), total)
