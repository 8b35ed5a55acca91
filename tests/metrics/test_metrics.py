"""The life of a cost metric: hooks, state, copies, processes, Lightning."""

import copy
import io
import pickle
import sys

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection

from snnreg_plugins import Energy, SpikeRate, SpikeStatistics, SynapticOperations, to_snntorch
from tests.metrics.processes import run_in_processes, values_in
from tests.metrics.styles import STYLES

METRICS = [SynapticOperations, Energy, SpikeRate]
every_metric = pytest.mark.parametrize("make", METRICS)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))


def batches(*sizes):
    """Events for the first layer; what the second one gets is real."""
    torch.manual_seed(1)
    return [torch.randint(0, 3, (size, 6)).float() for size in sizes]


def values(metric):
    return metric.compute(), metric.by_layer()


def values_of(make, data):
    """What a fresh metric on a fresh network gives for this data."""
    model = network()
    metric = make(model)
    for x in data:
        model(x)
    return values(metric)


class Fails(nn.Module):
    """Raises on demand."""

    def __init__(self, error=None):
        super().__init__()
        self.error = error

    def forward(self, x):
        if self.error is not None:
            raise self.error
        return x


def hooks(model):
    dicts = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called", "_forward_hooks_with_kwargs")
    return sum(len(getattr(module, name)) for module in model.modules() for name in dicts)


def same(x):
    return pickle.loads(pickle.dumps(x))


# Hooks.


@every_metric
def test_close_takes_all_hooks_off_and_keeps_what_was_counted(make):
    model = network()
    metric = make(model)
    assert hooks(model) > 0
    model(batches(3)[0])
    before = values(metric)
    metric.close()
    metric.close()
    assert hooks(model) == 0
    model(batches(3)[0])
    assert values(metric) == before


@every_metric
def test_with_closes_also_after_an_error(make):
    model = network()
    model.append(Fails(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError), make(model):
        model(batches(2)[0])
    assert hooks(model) == 0


@every_metric
def test_hooks_of_others_stay(make):
    model = network()
    seen = []
    model[0].register_forward_hook(lambda *_: seen.append("after"))
    model[0].register_forward_pre_hook(lambda *_: seen.append("before"))
    with make(model):
        model(batches(2)[0])
    model(batches(2)[0])
    assert seen == ["before", "after"] * 2


@every_metric
def test_a_pass_that_fails_is_not_counted(make):
    model, fails = network(), Fails()
    model.append(fails)
    expected = values_of(make, batches(3, 4))
    with make(model) as metric:
        model(batches(3, 4)[0])
        fails.error = RuntimeError("on demand")
        for x in (torch.rand(7, 6), torch.rand(7, 2)):
            with pytest.raises((RuntimeError, ValueError)):
                model(x)
        fails.error = None
        model(batches(3, 4)[1])
    assert values(metric) == expected
    assert hooks(model) == 0


@every_metric
def test_counts_go_on_after_an_interrupt_and_reset(make):
    model, fails = network(), Fails()
    model.append(fails)
    expected = values_of(make, batches(3))
    metric = make(model)
    fails.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        model(torch.rand(7, 6))
    fails.error = None
    metric.reset()
    model(batches(3)[0])
    assert values(metric) == expected


@every_metric
def test_reset_in_the_middle_of_a_pass_starts_there(make):
    class Resets(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network()

        def forward(self, x, reset):
            if reset:
                self.network(x)
                metric.reset()
            return self.network(x)

    model = Resets()
    metric = make(model.network)
    for count, x in enumerate(batches(3, 4, 2)):
        model(x, reset=count == 0)
    assert metric.samples == 9
    assert values(metric) == values_of(make, batches(3, 4, 2))
    metric.close()
    metric = make(model)
    for count, x in enumerate(batches(3, 4, 2)):
        model(x, reset=count == 0)
    assert metric.samples == 9
    assert metric.compute() == values_of(make, batches(3, 4, 2))[0]


@every_metric
def test_a_pass_may_return_nothing(make):
    class Silent(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network()

        def forward(self, x):
            self.network(x)

    model = Silent()
    metric = make(model)
    model(batches(3)[0])
    assert metric.samples == 3
    assert metric.compute() == values_of(make, batches(3))[0]


@every_metric
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_recomputation_in_backward_is_no_pass(make, use_reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network()

        def forward(self, x):
            return checkpoint(self.network, x, use_reentrant=use_reentrant)

    model = Checkpointed()
    x = batches(3)[0].requires_grad_()
    metric = make(model)
    output = model(x)
    before = values(metric)
    output.sum().backward()
    assert values(metric) == before
    assert metric.samples == 3


# State.


@every_metric
def test_reset_forgets_everything(make):
    model = network()
    expected = values_of(make, batches(4, 2))
    metric = make(model)
    for x in (torch.rand(9, 6), torch.rand(1, 6)):
        model(x)
    metric.reset()
    for x in batches(4, 2):
        model(x)
    assert values(metric) == expected


@every_metric
def test_compute_follows_later_passes(make):
    model = network()
    metric = make(model)
    data = batches(4, 2, 3)
    assert not metric.update_called
    for count, x in enumerate(data, start=1):
        model(x)
        assert metric.update_called
        assert values(metric) == values_of(make, data[:count])
        assert metric.samples == sum(len(x) for x in data[:count])


@every_metric
def test_is_no_part_of_the_model_and_the_model_no_part_of_it(make):
    model = network()
    metric = make(model)
    model(batches(2)[0])
    assert len(metric.state_dict()) == 0
    assert list(metric.parameters()) == []
    assert list(metric.children()) == []
    assert model.state_dict().keys() == network().state_dict().keys()


@every_metric
def test_two_metrics_on_one_model_do_not_see_each_other(make):
    model = network()
    expected = values_of(make, batches(4, 2))
    with make(model) as one, SynapticOperations(model) as other:
        model(batches(4, 2)[0])
        other.reset()
        model(batches(4, 2)[1])
    assert values(one) == expected
    assert values(other) == values_of(SynapticOperations, batches(4, 2)[1:])


@every_metric
def test_state_may_be_reset_in_inference_mode_and_used_after_it(make):
    model = network()
    expected = values_of(make, batches(4))
    metric = make(model)
    with torch.inference_mode():
        model(torch.rand(3, 6))
        metric.reset()
    model(batches(4)[0]).sum().backward()
    assert values(metric) == expected


@every_metric
@pytest.mark.parametrize("cast", [torch.float16, torch.bfloat16, torch.float64])
def test_counts_stay_integers_whatever_the_precision(make, cast):
    model = network()
    expected = values_of(make, batches(4))
    metric = make(model)
    model(batches(4)[0])
    for change in (metric.to, metric.set_dtype):
        change(cast)
        assert metric.counts.dtype == metric.samples.dtype == torch.int64
    metric.half().float().double()
    assert values(metric) == expected


def test_half_precision_models():
    model = network().bfloat16()
    x = torch.randint(0, 2, (3, 6)).bfloat16()
    with SynapticOperations(model) as metric:
        model(x)
    assert metric.by_layer()["0"] == x.sum() * 5 / 3
    with SynapticOperations(network()) as metric, torch.autocast("cpu", torch.bfloat16):
        metric.watch.model(x.float())
    assert metric.by_layer()["0"] == x.sum() * 5 / 3


@every_metric
def test_reading_changes_nothing(make):
    model = network()
    with make(model) as metric:
        for count in (1, 2, 3):
            model(batches(4, 2, 3)[count - 1])
            assert values(metric) == values(metric) == values_of(make, batches(4, 2, 3)[:count])


# Copies.


@every_metric
def test_a_pickled_metric_has_the_counts_and_leaves_the_model_alone(make):
    model = network()
    metric = make(model)
    model(batches(4)[0])
    before, hooked = values(metric), hooks(model)
    twin = same(metric)
    assert values(twin) == before
    model(torch.rand(2, 6))
    assert (metric.samples, twin.samples) == (6, 4)
    assert values(twin) == before
    twin.close()
    assert hooks(model) == hooked


@every_metric
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda metric: metric.clone()], ids=["deepcopy", "clone"])
def test_a_copy_watches_the_same_model(make, duplicate):
    model = network()
    metric = make(model)
    model(batches(4, 3)[0])
    before = values(metric)
    twin = duplicate(metric)
    assert values(twin) == before
    metric.close()
    model(batches(4, 3)[1])
    assert values(metric) == before
    assert values(twin) == values_of(make, batches(4, 3))
    assert twin.samples == 7
    twin.close()
    assert hooks(model) == 0


class Module(LightningModule):
    """A model, its metrics, and validation that logs them."""

    def __init__(self, metrics=METRICS):
        super().__init__()
        self.network = network()
        self.metrics = nn.ModuleDict({make.__name__: make(self.network) for make in metrics})

    def forward(self, x):
        return self.network(x)

    def training_step(self, batch, _):
        return self(batch).square().mean()

    def on_validation_epoch_start(self):
        for metric in self.metrics.values():
            metric.reset()  # they saw the training batches too

    def validation_step(self, batch, _):
        self(batch)
        for name, metric in self.metrics.items():
            self.log(name, metric)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Itself(LightningModule):
    def __init__(self):
        super().__init__()
        self.network = network()
        self.sops = SynapticOperations(self)

    def forward(self, x):
        return self.network(x)


def saved(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


DUPLICATES = {"deepcopy": copy.deepcopy, "pickle": same, "torch_save": saved}


@pytest.mark.parametrize("duplicate", DUPLICATES.values(), ids=DUPLICATES)
def test_a_copy_of_a_module_with_its_metrics_is_watched_by_the_copied_metrics(duplicate):
    module = Module()
    module(batches(4)[0])
    before = {name: values(metric) for name, metric in module.metrics.items()}
    twin = duplicate(module)
    assert hooks(twin) == hooks(module)
    assert {name: values(metric) for name, metric in twin.metrics.items()} == before
    twin(torch.rand(2, 6))
    assert {name: values(metric) for name, metric in module.metrics.items()} == before
    for metric in twin.metrics.values():
        assert metric.samples == 6
        assert not {id(layer) for layer in metric.watch.index} & {id(layer) for layer in module.modules()}
        metric.close()
    assert hooks(twin) == 0
    assert hooks(module) > 0


@pytest.mark.parametrize("duplicate", DUPLICATES.values(), ids=DUPLICATES)
def test_a_watched_export_can_be_copied(duplicate):
    torch.manual_seed(0)
    model, _, _ = STYLES["exported"]()
    metric = SynapticOperations(model)
    x = torch.rand(4, 6)
    output = model(x)
    before = values(metric)
    assert torch.equal(duplicate(model)(x), output)
    assert metric.samples == 4
    assert values(metric) == before


@pytest.mark.parametrize("name", [name for name in STYLES if name.startswith(("snntorch", "norse"))])
def test_a_watched_network_of_the_users_own_can_be_copied(name):
    torch.manual_seed(0)
    model, run, _ = STYLES[name]()
    metric = SynapticOperations(model)
    with torch.no_grad():
        if "truncated" not in name:
            run(torch.rand(4, 6))
    for duplicate in (copy.deepcopy(model), copy.deepcopy(metric), metric.clone()):
        assert isinstance(duplicate, (type(model), SynapticOperations))


def test_a_metric_may_be_built_on_the_module_that_holds_it():
    module = Itself()
    for each in (module, copy.deepcopy(module), same(module)):
        each(batches(4)[0])
        each(batches(2)[0])
        assert each.sops.samples == 6
        assert each.sops.layers == ["network.0", "network.2"]
        each.sops.reset()
    assert module.state_dict().keys() == {f"network.{key}" for key in network().state_dict()}


# Lightning.


def quiet_trainer(**arguments):
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    )


def loader(*sizes):
    return DataLoader(batches(*sizes), batch_size=None)


@pytest.mark.filterwarnings("ignore")
def test_logged_in_validation():
    module = Module()
    (logged,) = quiet_trainer().validate(module, loader(4, 4, 3), verbose=False)
    for make in METRICS:
        assert logged[make.__name__] == pytest.approx(values_of(make, batches(4, 4, 3))[0].item())


@pytest.mark.filterwarnings("ignore")
def test_logged_in_validation_while_fitting():
    module = Module()
    trainer = quiet_trainer(max_epochs=2, num_sanity_val_steps=1)
    trainer.fit(module, loader(5), loader(4, 4, 3))
    assert module.metrics["SynapticOperations"].samples == 0  # Lightning resets after logging
    for make in METRICS:
        expected = values_of(make, batches(4, 4, 3))[0]
        assert trainer.callback_metrics[make.__name__] == pytest.approx(expected.item())


def test_is_no_part_of_a_checkpoint_nor_of_the_parameters():
    module, bare = Module(), Module(metrics=[])
    assert module.state_dict().keys() == bare.state_dict().keys()
    assert [name for name, _ in module.named_parameters()] == [name for name, _ in bare.named_parameters()]
    assert [name for name, _ in module.named_buffers()] == [name for name, _ in bare.named_buffers()]
    module(batches(2)[0])
    bare.load_state_dict(module.state_dict())
    module.load_state_dict(bare.state_dict())
    module.half()
    assert module.metrics["SynapticOperations"].counts.dtype == torch.int64


def test_in_a_collection():
    model = network()
    collection = MetricCollection({make.__name__: make(model) for make in METRICS})
    model(batches(3)[0])
    computed = collection.compute()
    for make in METRICS:
        assert computed[make.__name__] == values_of(make, batches(3))[0]


def test_plot():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    model = network()
    metric = SynapticOperations(model)
    model(batches(3)[0])
    _, axes = metric.plot(metric.compute())
    assert axes.lines[0].get_ydata() == [metric.compute()]
    metric.plot([metric.compute(), metric.compute()])
    matplotlib.pyplot.close("all")


@pytest.mark.parametrize(
    ("make", "unit"),
    [(SynapticOperations, "SOPs / sample"), (Energy, "pJ / sample"), (SpikeRate, "Spikes / neuron / step")],
)
def test_plot_without_a_value_is_a_bar_for_each_layer(make, unit):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    model = network()
    metric = make(model)
    model(batches(3)[0])
    figure, axes = metric.plot()
    assert [bar.get_width() for bar in axes.patches] == list(metric.by_layer().values())
    assert [label.get_text() for label in axes.get_yticklabels()] == metric.layers
    assert axes.get_xlabel() == unit
    ticks = [axes.xaxis.get_major_formatter()(tick, 0) for tick in axes.get_xticks()]
    assert all(float(tick) >= 0 for tick in ticks[1:-1])  # no unit beside them
    mine = matplotlib.figure.Figure().subplots()
    assert metric.plot(ax=mine) == (mine.figure, mine)
    assert len(mine.patches) == len(metric.layers)
    figure.canvas.draw()
    matplotlib.pyplot.close("all")


def test_plot_of_a_layer_that_was_not_run():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    model = nn.ModuleList([network(), nn.ReLU()])
    metric = SpikeRate(model)
    model[0](batches(3)[0])
    _, axes = metric.plot()
    assert "not run" in [text.get_text() for text in axes.texts]
    matplotlib.pyplot.close("all")


def test_plot_without_matplotlib_says_what_to_install(monkeypatch):
    model = network()
    metric = SynapticOperations(model)
    model(batches(3)[0])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"snnreg_plugins\[plot\]"):
        metric.plot()


@pytest.mark.parametrize("name", ["dnn", pytest.param("exported", marks=pytest.mark.slow)])
def test_compiled_models(name):
    torch.manual_seed(0)
    model, _, _ = STYLES[name]()
    x = torch.rand(4, 6)
    with torch.no_grad():
        with SynapticOperations(model) as metric:
            model(x)
        expected = [metric.by_layer(quantity) for quantity in metric.quantities]
        torch._dynamo.reset()
        with SynapticOperations(model) as metric:
            compiled = torch.compile(model, backend="eager")
            compiled(x)
            compiled(x)
    assert [metric.by_layer(quantity) for quantity in metric.quantities] == expected
    assert metric.samples == 8
    torch._dynamo.reset()


# Processes.


@pytest.mark.slow
def test_two_processes_give_what_one_gives():
    data = batches(4, 1, 3, 2, 5)
    spiking = to_snntorch(network(), torch.cat(data), timesteps=8)
    cases = [(network(), make) for make in METRICS] + [(spiking, make) for make in (*METRICS, SpikeStatistics)]
    expected = [values_in(model, make, data) for model, make in cases]
    shares = [[[0, 3, 4], [1, 2]], [[0, 1, 2, 3, 4], []], [[], [4, 3, 2, 1, 0]]]
    splits = [[[data[index] for index in mine] for mine in share] for share in shares]
    for results in run_in_processes(cases, splits):
        assert list(results) == [expected, expected]


def test_a_metric_that_does_not_add_up_over_processes_asks_none_of_them():
    model = network()
    with SynapticOperations(model, sync_on_compute=False, distributed_available_fn=lambda: True) as metric:
        model(batches(3)[0])
    assert metric.by_step()[0] == metric.by_layer()["0"]


# Errors.


@pytest.mark.parametrize("make", [SynapticOperations, Energy])
def test_a_model_without_synapses_is_refused(make):
    with pytest.raises(ValueError, match="`model`.*synaptic layer.*ReLU has none"):
        make(nn.ReLU())


def test_a_model_without_neurons_is_refused():
    model = nn.Linear(2, 3)
    with pytest.raises(ValueError, match=r"`model`.*neuron layer.*Linear has none.*F\.relu"):
        SpikeRate(model)
    assert hooks(model) == 0


@every_metric
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_without_a_forward_pass_there_is_nothing_to_compute(make):
    model = network()
    metric = make(model)
    for _ in range(2):
        for read in (metric.compute, metric.by_layer):
            with pytest.raises(RuntimeError, match=f"{make.__name__} has seen no forward pass"):
                read()
        model(batches(2)[0])
        metric.compute()
        metric.reset()


@pytest.mark.parametrize("make", [SynapticOperations, Energy])
def test_an_unknown_quantity_is_refused_with_those_there_are(make):
    model = network()
    metric = make(model)
    model(batches(2)[0])
    for read in (metric.total, metric.by_layer):
        with pytest.raises(ValueError, match="`quantity`.*'dense_macs', 'effective_macs'.*'sops'.*'spikes'"):
            read("spikes")
    assert metric.compute() > 0


def test_an_unknown_table_is_refused_before_anything_is_hooked():
    model = network()
    with pytest.raises(ValueError, match="`table`.*'abacus'"):
        Energy(model, table="abacus")
    assert hooks(model) == 0


def test_a_table_without_a_price_for_macs_gives_the_energy_of_the_sops_and_names_what_it_leaves_out():
    model = network()
    with Energy(model, table="loihi") as metric, SynapticOperations(model) as counts:
        model(batches(4)[0])  # events for the first layer, real-valued input for the second
    with pytest.warns(UserWarning, match=r"leaves out the MACs of \['2'\].*no price.*Loihi"):
        joule = metric.compute()
    assert joule.item() == pytest.approx(23.6e-12 * counts.compute().item())
    with pytest.warns(UserWarning, match="leaves out"):
        by_layer = metric.by_layer()
    assert by_layer["0"] == pytest.approx(joule.item())
    assert by_layer["2"] != by_layer["2"]
    assert metric.left_out() == {"2": counts.by_layer("effective_macs")["2"]}
    assert metric.total("sops") == counts.compute()


def test_without_macs_no_price_for_them_is_missed(recwarn):
    model = nn.Linear(6, 5)
    with Energy(model, table="anp_i") as metric:
        model(batches(4)[0])
    assert metric.compute() == pytest.approx(1.5e-12 * metric.total("sops").item())
    assert metric.left_out() == {}
    assert not recwarn.list


def test_dense_energy_needs_a_price_for_macs():
    model = network()
    with pytest.raises(ValueError, match="`table`.*dense=True"):
        Energy(model, table="loihi", dense=True)
    assert hooks(model) == 0
