"""The spiking network as a module: calls, copies, saved states, processes."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from snnreg_plugins import to_snntorch
from tests.export.processes import loss_of, train_in_process
from tests.export.reference import neurons_of
from tests.nets import NETS, make, one_in

T = 6
# One of each part a network may have: max pooling, sum pooling, a norm on the input, an output scale, reshapes.
VARIED = ["lenet_functional", "lenet_modules", "norm_on_input", "ends_in_relu", "reshapes", "three_dimensions"]


def exported(name, dtype=torch.float32, **options):
    net, _, x = make(name, dtype)
    return to_snntorch(net, x, timesteps=T, **options), x


@pytest.mark.parametrize("name", VARIED)
def test_calls_are_independent_of_each_other_and_of_the_batch(name):
    network, x = exported(name, torch.float64)
    whole = network(x)
    assert whole.shape == (20, whole.shape[1])
    assert torch.equal(network(x), whole)
    for size in (8, 4, 1):  # the last batch is smaller
        torch.testing.assert_close(torch.cat([network(batch) for batch in x.split(size)]), whole)


@pytest.mark.parametrize("name", VARIED)
def test_one_pass_gives_the_scores_at_every_step(name):
    network, x = exported(name)
    running = network(x, per_step=True)
    assert running.shape[:2] == (T, 20)
    for steps in (1, 2, T):
        network.timesteps = steps
        assert torch.equal(network(x), running[steps - 1])


def test_an_empty_batch():
    network, x = exported("lenet_modules")
    assert network(x[:0]).shape == (0, 10)
    assert network(x[:0], per_step=True).shape == (T, 0, 10)


def test_modes_make_no_difference():
    network, x = exported("norm_on_input")
    assert all(module.training for module in network.modules())  # Lightning warns of others
    before = {name: value.clone() for name, value in network.state_dict().items()}
    scores = network(x)
    assert torch.equal(network.eval()(x), scores)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("value", [0, 1.5, True, "4.5", None])
def test_timesteps_are_checked(value):
    network, _ = exported("mlp")
    with pytest.raises(ValueError, match="Expected argument `timesteps` to be an integer of at least 1, but got"):
        network.timesteps = value
    assert network.timesteps == T
    assert "timesteps=6" in repr(network)


def through_pickle(network):
    return pickle.loads(pickle.dumps(network))


def through_torch_save(network):
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def interrupt_behind_a_neuron(network, x):
    def interrupt(*_):
        raise KeyboardInterrupt

    neuron = next(iter(neurons_of(network).values()))
    handle = neuron.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        network(x)
    handle.remove()


@pytest.mark.parametrize("when", ["fresh", "after a forward", "after a backward", "after inference", "after an error"])
@pytest.mark.parametrize("through", [copy.deepcopy, through_pickle, through_torch_save])
@pytest.mark.parametrize("name", one_in(3, VARIED))
def test_copies(name, through, when):
    network, x = exported(name, per_channel=True)
    kept = network(x) if when == "after a forward" else None  # with its graph
    if when == "after a backward":
        network(x).sum().backward()
    if when == "after inference":
        with torch.inference_mode():
            network(x)
    if when == "after an error":
        interrupt_behind_a_neuron(network, x)
    copied = through(network)
    assert torch.equal(copied(x), network(x))
    assert torch.equal(copied(x, per_step=True), network(x, per_step=True))
    # The copy is one: it has its own weights, states and surrogates.
    assert not {id(p) for p in copied.parameters()} & {id(p) for p in network.parameters()}
    for ours, theirs in zip(neurons_of(copied).values(), neurons_of(network).values(), strict=True):
        assert ours.state_function.__self__ is ours is not theirs
        assert torch.equal(ours.threshold, theirs.threshold)
    copied.timesteps = 2
    assert network.timesteps == T
    copied(x).sum().backward()
    assert all(parameter.grad is not None for parameter in copied.parameters())
    del kept


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("name", VARIED)
def test_state_dict_into_another_export_of_the_model(name, per_channel):
    network, x = exported(name, per_channel=per_channel)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.1)
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    net, _, _ = make(name, torch.float32)
    other = to_snntorch(net, 0.3 * x, timesteps=T, per_channel=per_channel)
    assert not torch.equal(other(x), network(x))
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert torch.equal(other(x, per_step=True), network(x, per_step=True))
    for module in (network, other):
        module(x).square().sum().backward()
    for ours, theirs in zip(other.parameters(), network.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
def test_state_dict_has_no_state_of_a_run(name):
    network, x = exported(name)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network(x)
    assert list(network.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    for module in neurons_of(network).values():
        assert module.mem.numel() == 0
        assert not module.mem.is_inference()


def test_moves_to_another_dtype():
    network, x = exported("lenet_modules")
    assert network.double()(x.double()).dtype == torch.float64
    assert network.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_trains_after_a_forward_in_inference_mode():
    network, x = exported("lenet_modules")
    with torch.inference_mode():
        network(x)
    assert not any(value.is_inference() for value in network.buffers())
    network(x).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.slow
def test_can_be_compiled():
    network, x = exported("lenet_modules")
    compiled = torch.compile(network, backend="eager")
    assert torch.equal(compiled(x), network(x))
    assert torch.equal(compiled(x[:7]), network(x[:7]))


@pytest.mark.slow
def test_two_processes_with_batches_of_different_size(tmp_path):
    network, x = exported("lenet_modules", torch.float64)
    torch.multiprocessing.spawn(train_in_process, (network, x, str(tmp_path)), nprocs=2)
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    before = copy.deepcopy(network.state_dict())
    for _ in range(2):
        optimizer.zero_grad()
        (0.5 * (loss_of(network, 0, x) + loss_of(network, 1, x))).backward()
        optimizer.step()
    assert not torch.equal(network.state_dict()["encoder.0.0.0.weight"], before["encoder.0.0.0.weight"])
    for name, value in network.state_dict().items():
        for state in states:
            torch.testing.assert_close(state[name], value)


class FineTune(LightningModule):
    """Cross-entropy on the scores."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.losses = []

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.network(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    validation_step = training_step

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class Counts(FineTune):
    """Logs how many samples all processes saw."""

    def training_step(self, batch, batch_idx):
        self.log("samples", float(len(batch[0])), on_step=False, on_epoch=True, reduce_fx="sum", sync_dist=True)
        return super().training_step(batch, batch_idx)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*does not have many workers")
def test_trainer_with_spawned_processes_and_an_uneven_last_batch(tmp_path):
    network, x = exported("lenet_functional")
    loader = DataLoader(TensorDataset(x[:11], torch.arange(11) % 10), batch_size=4)
    before = network.body.fc2.weight.detach().clone()
    trainer = Trainer(
        accelerator="cpu", strategy="ddp_spawn", devices=2, max_epochs=1, logger=False, enable_progress_bar=False,
        default_root_dir=tmp_path, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Counts(network), loader, loader)
    assert trainer.callback_metrics["samples"] == 12  # one drawn twice: in each process batches of 4 and 2
    assert not torch.equal(network.body.fc2.weight, before)
