"""A network that spikes already is reported on as it is, without a DNN."""

from __future__ import annotations

import dataclasses

import norse.torch as norse
import pytest
import snntorch
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from snnreg_plugins import ExportReport, SynapticOperations, diagnose, load_network, report, to_snntorch, write_page
from snnreg_plugins.modules import SpikingClassifier
from snnreg_plugins.reports.raster import Raster
from snnreg_plugins.reports.report import Report
from tests.callbacks import test_export_report as exporting
from tests.callbacks.test_export_report import Data
from tests.callbacks.test_spiking_already import Hidden, Own, Rates, States, counted, norse_over_time
from tests.callbacks.test_spiking_validation_scores import CLASSES, X
from tests.helpers import brute_force_costs, recorded

EVENTS = (torch.rand(6, 40, 5, generator=torch.Generator().manual_seed(4)) < 0.3).float()
NEURONS = (snntorch.SpikingNeuron, norse.LIF)


class Recurrent(nn.Module):
    """Neurons that multiply too."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.fc, self.cell = nn.Linear(5, 3), norse.LIFRecurrentCell(3, 3, norse.LIFParameters(v_th=torch.tensor(0.1)))

    def forward(self, x):
        state, total = None, 0.0
        for _ in range(7):
            spikes, state = self.cell(self.fc(x), state)
            total = total + spikes
        return total


class Step(Hidden):
    """Takes a step at a time, and a state."""

    def forward(self, x, state):
        return super().forward(x), state


class Bypassed(Rates):
    """Does not call its neurons."""

    def forward(self, x):
        return self.fc2(self.fc1(x))


def batches(x=X):
    parts = x.split(16) if x.dim() == 2 else x.split(16, 1)
    return list(zip(parts, CLASSES.split(16), strict=True))


def events(*sizes):
    """Batches (T, B, ...)."""
    return list(zip(EVENTS.split(sizes, 1), CLASSES.split(sizes), strict=True))


@pytest.mark.parametrize(
    ("net", "data", "timesteps", "readout"),
    [
        (Rates(), batches(), 5, None),
        (States(), batches(), 5, counted),
        (norse_over_time(), batches(EVENTS), 6, counted),
    ],
)
def test_equals_what_it_does_when_it_is_called(net, data, timesteps, readout):
    net.train()
    options = {} if readout is None else {"readout": readout}
    result = report(None, net, data, **options)
    assert net.training
    read, emitted, right = {}, {}, 0
    for x, y in data:
        with torch.no_grad(), recorded(net, nn.Linear) as inputs, recorded(net, NEURONS, output=True) as outputs:
            scores = net(x) if readout is None else readout(net(x))
        right += int((scores.argmax(1) == y).sum())
        for name, cost in brute_force_costs(inputs).items():
            read[name] = [a + b for a, b in zip(read.get(name, (0, 0, 0)), cost, strict=True)]
        for name, _, spikes in outputs:
            before = emitted.get(name, (0, 0))
            emitted[name] = before[0] + int(spikes.sum()), before[1] + spikes.numel()
    assert result.samples == 40
    assert result.timesteps == timesteps
    assert result.dnn is None
    (step,) = result.steps
    assert step.accuracy == right / 40
    assert step.sops == sum(cost[0] for cost in read.values()) / 40
    assert step.effective_macs == sum(cost[1] for cost in read.values()) / 40
    assert step.updates == sum(neurons for _, neurons in emitted.values()) / 40
    assert step.spike_rate == sum(spikes for spikes, _ in emitted.values()) / (40 * step.updates)
    layers = {layer.name: layer for layer in result.layers}
    assert set(layers) == set(read) | set(emitted)
    for name, (sops, macs, _) in read.items():
        assert (layers[name].sops, layers[name].effective_macs) == (sops / 40, macs / 40)
    for name, (spikes, neurons) in emitted.items():
        assert layers[name].spike_rate == spikes / neurons


def test_states_of_another_batch_and_of_recurrent_neurons():
    net = Hidden().net
    first, again = (report(None, net, batches(), readout=lambda outputs: outputs[0]) for _ in range(2))
    assert first == again  # one call is one step, from fresh states
    assert first.timesteps == 1
    result = report(None, Recurrent(), batches())
    cell = next(layer for layer in result.layers if layer.name == "cell")
    assert result.timesteps == 7
    assert cell.spike_rate > 0
    assert cell.sops > 0
    assert cell.energy == pytest.approx(1e-12 * (0.9 * cell.sops + 4.6 * cell.effective_macs))
    assert sum(layer.sops or 0 for layer in result.layers) == pytest.approx(result.steps[0].sops)


class Shared(nn.Module):
    """Behind a DNN, neurons that are called twice in each of four steps; a head that is called once."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.front = nn.Sequential(nn.Linear(5, 8), nn.ReLU())
        self.a, self.b, self.lif, self.head = nn.Linear(8, 6), nn.Linear(6, 6), snntorch.Leaky(0.9), nn.Linear(6, 3)

    def forward(self, x):
        x, total = self.front(x), 0.0
        first = second = self.lif.init_leaky()
        for _ in range(4):
            spikes, first = self.lif(3 * self.a(x), first)
            spikes, second = self.lif(self.b(spikes) + 0.5, second)
            total = total + spikes
        return self.head(total)


def test_steps_of_shared_neurons_and_no_rate_of_a_relu():
    net = Shared()
    result = report(None, net, batches())
    assert result.timesteps == 4
    with torch.no_grad(), recorded(net, snntorch.Leaky, output=True) as emitted:
        net(X)
    rate = sum(int(spikes.sum()) for _, _, spikes in emitted) / sum(spikes.numel() for _, _, spikes in emitted)
    assert result.steps[0].spike_rate == rate
    assert 0 < rate < 1
    assert [layer.name for layer in result.layers] == ["front.0", "a", "lif", "b", "head"]


def test_an_exported_network_without_its_dnn():
    torch.manual_seed(0)
    dnn = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3))
    network = to_snntorch(dnn, X, timesteps=4)
    beside, alone = (report(one, network, batches(), steps=(1, 4)) for one in (dnn, None))
    assert dataclasses.replace(beside, dnn=None, models=alone.models) == alone
    assert [model.steps for model in beside.models] == [model.steps for model in alone.models]


def test_tables_pictures_and_pages_have_no_dnn(tmp_path, capsys):
    result = report(None, Rates(), batches())
    result.print()
    shown = capsys.readouterr().out
    result.save_json(tmp_path / "report.json")
    assert Report.load_json(tmp_path / "report.json") == result
    page = write_page(result, tmp_path / "page.html").read_text(encoding="utf-8")
    for text in (shown, page):
        assert "DNN, dense" not in text
        assert "SNN, T = 5" in text
        assert "times a dense DNN of the same layers by arithmetic" in " ".join(text.split())
    pytest.importorskip("matplotlib")
    result.save_plot(tmp_path / "report.png")
    assert (tmp_path / "report.png").is_file()
    assert result.break_even_rate() is None


def test_what_cannot_be_reported_on_says_what_to_call():
    dnn = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3))
    with pytest.raises(
        TypeError, match=r"`network` to have spiking neurons, but got Sequential. Export it with to_snn"
    ):
        report(None, dnn, batches())
    with pytest.raises(
        TypeError, match=r"`dnn` to be None .* got Sequential beside Rates. Report on that as report\(No"
    ):
        report(dnn, Rates(), batches())
    for given in ((dnn, Rates()), (None, to_snntorch(dnn, X, timesteps=2))):
        with pytest.raises(TypeError, match=r"report\(None, network, data\) tells what a network spends"):
            diagnose(*given, X)
    with pytest.raises(TypeError, match="one tensor of scores for a batch, but got tuple. Pass a function `readout`"):
        report(None, States(), batches())
    with pytest.raises(
        ValueError, match=r"beside 16 targets, but got the shape \(5, 16, 3\). Pass a function `readout`"
    ):
        report(None, States(), batches(), readout=lambda outputs: outputs[0])
    with pytest.raises(TypeError, match="`network` to take a batch alone, but Step raised: .* Call one that takes"):
        report(None, Step(), batches())


def test_a_network_without_neurons_has_no_rate(tmp_path):
    result = report(None, Bypassed(), batches())
    assert result.steps[0].spike_rate is None
    result.print()
    result.save_json(tmp_path / "report.json")
    assert Report.load_json(tmp_path / "report.json") == result
    assert "no neurons" in write_page(result, tmp_path / "page.html").read_text(encoding="utf-8")


def test_events_are_read_step_by_step_and_the_dnn_sees_their_mean():
    torch.manual_seed(0)
    dnn = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3))
    network = to_snntorch(dnn, EVENTS.mean(0), timesteps=6)
    network.time_dim = 0
    result = report(dnn, network, events(30, 10), steps=(2, 4, 32))
    assert [step.timesteps for step in result.steps] == [2, 4, 6]
    assert result.samples == 40
    mean = EVENTS.mean(0)
    with torch.no_grad(), SynapticOperations(network) as operations:
        scores = network(EVENTS)
    with torch.no_grad(), recorded(network, nn.Linear) as read:
        running = network(EVENTS, per_step=True)
        assert result.dnn.accuracy == float((dnn(mean).argmax(1) == CLASSES).double().mean())
    for step, ran in zip(result.steps, (running[1], running[3], scores), strict=True):
        assert step.accuracy == float((ran.argmax(1) == CLASSES).double().mean())
    assert result.steps[-1].sops == float(operations.compute())
    assert next(layer.sops for layer in result.layers if layer.name == "0") == brute_force_costs(read)["0"][0] / 40
    assert result.steps[-1].effective_macs == 0.0

    found, half = (diagnose(dnn, network, EVENTS, limit_samples=limit) for limit in (None, 30))
    assert (found.samples, half.samples) == (40, 30)
    (layer,) = found.layers
    assert diagnose(dnn, network, [EVENTS[:, :30], EVENTS[:, 30:]]).layers[0].error == pytest.approx(layer.error)
    with torch.no_grad():
        assert layer.activation == pytest.approx(float(dnn[:2](mean).mean()))


def test_what_is_no_dnn_is_told():
    network = to_snntorch(nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3)), X, timesteps=2)
    for given in ("dnn", nn.Linear):
        with pytest.raises(TypeError, match="Expected argument `dnn` to be a"):
            report(given, network, batches())
        with pytest.raises(TypeError, match="Expected argument `dnn` to be a"):
            diagnose(given, network, X)


# At the end of a fit.


def fit(folder, module, data, exporter=ExportReport, **options):
    return exporting.fit(folder, module, data, exporter, **{"timesteps": None} | options)  # its own steps


def test_the_users_own_is_reported_on_at_the_end_of_a_fit(tmp_path, capsys):
    class Counting(ExportReport):
        def readout(self, outputs):
            return counted(outputs)

    fit(tmp_path, Around(), Data(CLASSES))  # whose files are not to stay beside those of another network
    module = Own(States(), None, lambda o, y: F.cross_entropy(o[0].sum(0), y))
    fit(tmp_path, module, Data(CLASSES), Counting, html=True, diagnose=True)
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "report.png", "report.html"}
    found = Report.load_json(tmp_path / "report.json")
    assert (found.about.network, found.about.data, found.about.penalty) == ("Own", "Data", "no penalty")
    assert dataclasses.replace(found, about=None) == report(None, module, batches(), readout=counted)
    assert "No diagnosis: there is no DNN" in capsys.readouterr().out
    recipe = tmp_path.parent / "recipe.yaml"
    recipe.write_text("seed: 1\n")
    for _ in range(2):  # a folder of an earlier run
        Counting(str(tmp_path)).run(module, Data(CLASSES), recipe=recipe)
    with pytest.raises(ValueError, match="`timesteps` of ExportReport.*Own, which spikes already.*got 2. Leave it out"):
        Counting(str(tmp_path), timesteps=2).run(module, Data(CLASSES))
    assert (tmp_path / "report.yaml").read_text() == "seed: 1\n"


class Around(LightningModule):
    """A user's module around an exported network."""

    def __init__(self, shift=0.0):
        super().__init__()
        torch.manual_seed(1)
        self.snn, self.shift = (
            to_snntorch(nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3)), X, timesteps=2),
            shift,
        )

    def forward(self, x):
        return self.snn(x - self.shift)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    configure_optimizers = Own.configure_optimizers


def test_an_exported_network_is_written_and_reported_on_at_all_steps(tmp_path):
    module = Around()
    fit(tmp_path, module, Data(CLASSES))
    found = Report.load_json(tmp_path / "report.json")
    assert dataclasses.replace(found, about=None) == report(None, module.snn, batches(), steps=(1, 2))
    again = load_network(tmp_path / "spiking.pt", nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3)))
    assert torch.equal(again(X), module.snn(X))

    classifier = SpikingClassifier(nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3)), timesteps=2)
    fit(tmp_path, classifier, Data(CLASSES))
    assert Report.load_json(tmp_path / "report.json").dnn is not None

    with pytest.raises(ValueError, match="`network` to name the SpikingNetwork within Around, as that does more"):
        fit(tmp_path, Around(shift=0.1), Data(CLASSES))

    class Shifting(ExportReport):
        def unpack(self, batch):
            return batch[0] - 0.1, batch[1]

    shifted = Around(shift=0.1)
    fit(tmp_path, shifted, Data(CLASSES), Shifting, network="snn")
    with torch.no_grad():
        accuracy = float((shifted(X).argmax(1) == CLASSES).double().mean())
    assert Report.load_json(tmp_path / "report.json").steps[-1].accuracy == accuracy


def test_a_loop_in_the_step_is_for_spiking_validation(tmp_path):
    def looped(net, x):
        return sum(net(x)[0] for _ in range(3))

    net = Hidden()
    net.net[1].reset_mem()
    with pytest.raises(ValueError, match="calls it 3 times. Put the loop over time steps into forward"):
        fit(tmp_path, Own(net, looped), Data(CLASSES), network="net")


@pytest.mark.parametrize("where", ["data module", "module"])
def test_batches_are_brought_to_the_network_as_in_a_test(where, tmp_path):
    class Hooks:
        def on_after_batch_transfer(self, batch, dataloader_idx):
            assert not (self.trainer.testing and self.trainer.training)
            return [batch[0] - (0.3 if self.trainer.training else 0.1), batch[1]]

    class Hooked(Hooks, Data):
        pass

    class HookedModule(Hooks, Own):
        pass

    net = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3))
    module, data = (Own(net), Hooked(CLASSES)) if where == "data module" else (HookedModule(net), Data(CLASSES))
    fit(tmp_path, module, data, timesteps=2)
    found = Report.load_json(tmp_path / "report.json")
    with torch.no_grad():
        assert found.dnn.accuracy == float((module(X - 0.1).argmax(1) == CLASSES).double().mean())
    network = load_network(tmp_path / "spiking.pt", module)
    expected = to_snntorch(module, DataLoader(TensorDataset(X - 0.1), 16), timesteps=2)
    assert torch.equal(network(X), expected(X))


def test_events_are_exported_and_reported_on_at_the_end_of_a_fit(tmp_path):
    class Events(Data):
        def train_dataloader(self):
            return DataLoader(events(16, 16, 8), batch_size=None)

        test_dataloader = train_dataloader

    module = Own(nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3)), lambda net, x: net(x.mean(0)))
    fit(tmp_path, module, Events(CLASSES), timesteps=6, steps=[2, 6], time_dim=0, network="net", html=True)
    network = to_snntorch(module.net, EVENTS, timesteps=6, time_dim=0)
    found = Report.load_json(tmp_path / "report.json")
    expected = report(module.net, network, events(16, 16, 8), steps=(2, 6))
    assert dataclasses.replace(found, about=None) == expected
    assert torch.equal(load_network(tmp_path / "spiking.pt", module.net)(EVENTS), network(EVENTS))
    raster = Raster.load_json(tmp_path / "raster.json")
    with torch.no_grad(), recorded(network, snntorch.Leaky, output=True) as emitted:
        network(EVENTS)
    spikes = torch.stack([step for _, _, step in emitted])[:, : raster.samples]
    assert raster.layers[0].shown == tuple(spikes.any(0).any(0).nonzero().flatten().tolist())
    spikes = spikes[:, :, raster.layers[0].shown]
    assert [[[int(sign) for sign in train] for train in sample] for sample in raster.layers[0].spikes] == (
        spikes.permute(1, 2, 0).int().tolist()
    )
    assert (tmp_path / "report.html").is_file()
