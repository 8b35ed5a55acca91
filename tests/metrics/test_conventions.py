"""What metrics of torchmetrics do: calls with predictions, collections, trackers, copies; and what only ours must."""

import copy
import gc
import pickle
import threading
from functools import cache

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection, MetricTracker
from torchmetrics.classification import MulticlassAccuracy

from snnreg_plugins import Energy, SpikeRate, SpikeStatistics, SynapticOperations, TimeSteps, to_snntorch

METRICS = (Energy, SpikeRate, SpikeStatistics, SynapticOperations, TimeSteps)
every_metric = pytest.mark.parametrize("make", METRICS)


@cache
def exported():
    torch.manual_seed(0)
    dnn = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    return to_snntorch(dnn, torch.rand(64, 4), timesteps=4)


def network():
    return copy.deepcopy(exported())


def batches(*sizes):
    torch.manual_seed(len(sizes))
    return [(torch.rand(size, 4) * size, torch.randint(0, 3, (size,))) for size in sizes]


def value(metric):
    computed = metric.compute()
    return {name: float(each) for name, each in computed.items()} if isinstance(computed, dict) else float(computed)


def value_over(make, data):
    """By a metric of its own, on a network of its own."""
    model = network()
    with make(model) as metric:
        for x, _ in data:
            model(x)
    return pytest.approx(value(metric), rel=1e-12, nan_ok=True)


def as_floats(computed):
    return {name: float(each) for name, each in computed.items()} if isinstance(computed, dict) else float(computed)


def hooks(model):
    return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules())


# Calls.


@every_metric
def test_a_call_gives_the_value_of_the_batch(make):
    model, data = network(), batches(3, 5, 2)
    metric = make(model)
    for x, y in data:
        assert as_floats(metric(model(x), y)) == value_over(make, [(x, y)])
    assert value(metric) == value_over(make, data)
    if make is SynapticOperations:
        assert sum(metric.by_step()) == pytest.approx(float(metric.compute()))
        assert sum(metric.by_layer(steps=4).values()) == pytest.approx(float(metric.compute()))


@every_metric
def test_arguments_of_update_are_ignored(make):
    model, data = network(), batches(3, 5)
    metric = make(model)
    for x, y in data:
        metric.update(model(x), target=y)
    assert value(metric) == value_over(make, data)


def test_a_call_without_new_samples_says_what_to_do():
    model = network()
    metric = SynapticOperations(model)
    with pytest.raises(RuntimeError, match="no new sample .*Run the model before"):
        metric(torch.rand(2, 3), torch.tensor([0, 1]))
    model(batches(3)[0][0])
    metric(1)
    assert int(metric.samples) == 3


def test_a_model_that_is_stepped_is_called_once_a_batch():
    class Stepped(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x, v):
            v = 0.9 * v + self.fc((x > 0.5).float())
            return v, v

    model, (x, _) = Stepped(), batches(2)[0]
    with SynapticOperations(model) as metric:
        for _ in range(2):
            v = torch.zeros(2, 3)
            for _ in range(5):
                _, v = model(x, v)
            assert float(metric(v)) == 5 * 3 * int((x > 0.5).sum()) / 2


# Whose passes are whose.


@every_metric
def test_metrics_of_training_and_validation_have_batches_of_their_own(make):
    """As collections cloned for each have."""
    model, first, second = network(), batches(3, 5, 2), batches(4, 1)
    train, val = make(model), make(model)
    for _ in range(2):
        for x, y in first:
            assert as_floats(train(model(x), y)) == value_over(make, [(x, y)])
        for x, y in second:
            val.update(model(x), y)
        model(torch.rand(7, 4))  # nobody's
        assert value(val) == value_over(make, second)
        assert value(train) == value_over(make, first)
        train.reset()
        val.reset()


@every_metric
def test_who_is_never_told_counts_all(make):
    model, data = network(), batches(3, 5)
    told, untold = make(model), make(model)
    told(model(data[0][0]))
    model(data[1][0])
    assert value(untold) == value_over(make, data)
    assert value(told) == value_over(make, data[:1])


@every_metric
def test_two_that_are_told_of_one_batch_both_have_it(make):
    model, data = network(), batches(3, 5)
    one, other = make(model), make(model)
    for x, y in data:
        outputs = model(x)
        one(outputs, y)
        other.update(outputs, y)
    assert value(one) == value(other) == value_over(make, data)


# Collections.


def test_in_a_collection_with_others():
    model, data = network(), batches(3, 5, 4)
    collection = MetricCollection([Energy(model), SpikeRate(model), MulticlassAccuracy(3, average="micro")])
    for x, y in data:
        found = collection(model(x), y)
        assert float(found["Energy"]) == value_over(Energy, [(x, y)])
        assert float(found["SpikeRate"]) == value_over(SpikeRate, [(x, y)])
    computed = collection.compute()
    assert float(computed["Energy"]) == value_over(Energy, data)
    right = sum(int((network()(x).argmax(1) == y).sum()) for x, y in data)
    assert float(computed["MulticlassAccuracy"]) == pytest.approx(right / 12)


def test_clones_of_a_collection_watch_the_model():
    model, first, second = network(), batches(3, 5), batches(4)
    collection = MetricCollection([Energy(model), SynapticOperations(model)])
    train, val = collection.clone(prefix="train/"), collection.clone(prefix="val/")
    for x, y in first:
        train.update(model(x), y)
    for x, y in second:
        val.update(model(x), y)
    assert float(train.compute()["train/Energy"]) == value_over(Energy, first)
    assert float(val.compute()["val/SynapticOperations"]) == value_over(SynapticOperations, second)


def test_two_models_with_the_same_counts_are_no_group():
    one, other, (first, second) = network(), network(), batches(3, 5)
    collection = MetricCollection({"one": SynapticOperations(one), "other": SynapticOperations(other)})
    one(first[0]), other(first[0])
    collection.update()
    one(second[0]), other(first[0])
    collection.update()
    computed = collection.compute()
    assert float(computed["one"]) == value_over(SynapticOperations, [first, second])
    assert float(computed["other"]) == value_over(SynapticOperations, [first, first])


# Trackers.


@pytest.mark.parametrize("told", [False, True])
def test_a_tracker_has_each_step_for_itself(told):
    model, data = network(), batches(3, 5, 4)
    base = SynapticOperations(model)
    tracker = MetricTracker(base, maximize=False)
    for x, y in data:
        tracker.increment()
        outputs = model(x)
        if told:
            tracker.update(outputs, y)
        assert float(tracker.compute()) == value_over(SynapticOperations, [(x, y)])
    expected = [value_over(SynapticOperations, [each]) for each in data]
    assert tracker.compute_all().tolist() == expected
    assert tracker.best_metric() == min(tracker.compute_all().tolist())


def test_a_tracker_of_a_collection():
    model, data = network(), batches(3, 5)
    tracker = MetricTracker(MetricCollection([Energy(model), SpikeRate(model)]))
    for x, _ in data:
        tracker.increment()
        model(x)
    for name, make in (("Energy", Energy), ("SpikeRate", SpikeRate)):
        assert tracker.compute_all()[name].tolist() == [value_over(make, [each]) for each in data]


# Copies.


def test_a_metric_that_is_copied_with_its_model_in_any_order_watches_the_copy():
    for first in (True, False):
        model = network()
        module = nn.ModuleDict()
        parts = [("metric", SynapticOperations(model)), ("model", model)]
        for name, part in parts if first else reversed(parts):
            module[name] = part
        copied = copy.deepcopy(module)
        copied["model"](batches(3)[0][0])
        assert (int(module["metric"].samples), int(copied["metric"].samples)) == (0, 3)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["copy", "pickle"])
def test_two_metrics_on_one_network_in_a_module(again):
    model = network()
    module, data = nn.ModuleDict({"network": model}), batches(3, 5)
    module["sops"], module["rate"] = SynapticOperations(model), SpikeRate(model)
    module["network"](data[0][0])
    copied = again(module)
    copied["network"](data[1][0])
    for name, make in (("sops", SynapticOperations), ("rate", SpikeRate)):
        assert value(copied[name]) == value_over(make, data)
        assert value(module[name]) == value_over(make, data[:1])


def test_a_module_that_holds_metrics_is_saved_and_read(tmp_path):
    module = nn.ModuleDict(
        {"network": (model := network()), "sops": SynapticOperations(model), "rate": SpikeRate(model)}
    )
    data = batches(3, 5)
    model(data[0][0])
    torch.save(module, tmp_path / "module.pt")
    read = torch.load(tmp_path / "module.pt", weights_only=False)
    read["network"](data[1][0])
    assert value(read["sops"]) == value_over(SynapticOperations, data)
    assert value(read["rate"]) == value_over(SpikeRate, data)


# In Lightning.


class Module(LightningModule):
    """Logs metrics of its own for training and validation."""

    def __init__(self):
        super().__init__()
        self.network = network()
        self.of_training = MetricCollection([Energy(self.network), SpikeRate(self.network)], prefix="train/")
        self.of_validation = self.of_training.clone(prefix="val/")
        self.alone = SynapticOperations(self.network)
        self.seen = []

    def training_step(self, batch):
        x, y = batch
        outputs = self.network(x)
        self.of_training(outputs, y)
        self.log_dict(self.of_training, on_step=False, on_epoch=True)
        return 0.0 * nn.functional.cross_entropy(outputs, y)

    def on_validation_epoch_start(self):
        self.alone.reset()

    def validation_step(self, batch):
        x, y = batch
        self.of_validation.update(self.network(x), y)
        self.log_dict(self.of_validation)
        self.log("alone", self.alone)

    def on_train_epoch_end(self):
        self.seen.append(self.of_training.compute())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_logged_over_epochs(tmp_path):
    module, first, second = Module(), batches(3, 5, 4), batches(2, 6)
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, *(DataLoader(data, batch_size=None) for data in (first, second)))
    logged = {name: float(number) for name, number in trainer.logged_metrics.items()}
    assert logged["train/Energy"] == value_over(Energy, first)
    assert logged["train/SpikeRate"] == value_over(SpikeRate, first)
    assert logged["val/Energy"] == value_over(Energy, second)
    assert logged["val/SpikeRate"] == value_over(SpikeRate, second)
    assert logged["alone"] == value_over(SynapticOperations, second)


# What is dropped, and what is no model.


@every_metric
def test_metrics_that_are_dropped_come_off_their_model(make):
    model, data = network(), batches(3)
    before = hooks(model)
    gc.disable()  # at once, not at some time to come
    try:
        for _ in range(3):
            metric = make(model)
            metric(model(data[0][0]), data[0][1])
            copies = [metric.clone(), copy.deepcopy(metric)]
            del metric, copies
        assert hooks(model) == before
    finally:
        gc.enable()


@pytest.mark.parametrize("make", [Energy, SpikeRate, SpikeStatistics, SynapticOperations])
@pytest.mark.parametrize("model", [nn.Linear, None, [nn.Linear(2, 2)], "LeNet"])
def test_what_is_no_model_is_refused(make, model):
    with pytest.raises(TypeError, match=r"`model` to be a torch.nn.Module, but got (the class Linear: make|\w+\.$)"):
        make(model)


def test_a_scripted_model_is_refused():
    with pytest.warns(FutureWarning):
        scripted = torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    with pytest.raises(TypeError, match="give the module that was scripted"):
        SynapticOperations(scripted)


# Threads.


class Waits(nn.Module):
    """Waits in its middle for a signal."""

    def __init__(self):
        super().__init__()
        self.layer, self.inside, self.go_on = nn.Linear(2, 2), threading.Event(), threading.Event()

    def forward(self, x):
        self.inside.set()
        assert self.go_on.wait(60)
        return self.layer(x)


def test_two_threads_at_once_are_refused():
    model, x = Waits(), torch.ones(3, 2)
    with SynapticOperations(model) as metric:
        thread = threading.Thread(target=model, args=(x,))
        thread.start()
        assert model.inside.wait(60)
        for run in (model, model.layer):
            with pytest.raises(RuntimeError, match="two threads run it at once. Take a lock, or give each"):
                run(x)
        model.go_on.set()
        thread.join()
        model(x)  # one after the other
        assert int(metric.samples) == 6


def test_threads_with_copies_or_a_lock_count_right():
    model, data, lock = network(), batches(*[3] * 8), threading.Lock()
    found = []

    def with_a_copy(x):
        copied = copy.deepcopy(model)
        with SynapticOperations(copied) as metric:
            copied(x)
        found.append(float(metric.compute()))

    def with_a_lock(x):
        with lock:
            model(x)

    with SynapticOperations(model) as shared:
        for target in (with_a_copy, with_a_lock):
            threads = [threading.Thread(target=target, args=(x,)) for x, _ in data]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert value(shared) == value_over(SynapticOperations, data)
    assert sum(found) / 8 == value_over(SynapticOperations, data)
