"""Training with surrogate gradients, and the accuracy of what is exported, on scikit-learn's digits."""

from __future__ import annotations

import copy

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from snnreg_plugins import to_snntorch
from tests.nets import make
from tests.spiking.test_network import FineTune


class Surrogate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, slope, threshold):
        ctx.save_for_backward(u)
        ctx.slope, ctx.threshold = slope, threshold
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        return grad / ctx.threshold * (1 / (1 + ctx.slope * u.abs() / ctx.threshold)) ** 2, None, None


@pytest.mark.parametrize(
    "options", [{}, {"per_channel": True, "surrogate_slope": 2.0}, {"beta": 0.8, "compensate_leak": False}]
)
def test_gradient_is_that_of_a_simulation_with_the_same_surrogate(options):
    net, _, x = make("lenet_functional")
    network = to_snntorch(net, x, timesteps=5, correction="none", **options)
    expected = copy.deepcopy(network)
    beta, relative_slope = options.get("beta", 1.0), options.get("surrogate_slope", 5.0)
    encoder, body = expected.encoder, expected.body
    thresholds = [body.get_submodule(name).threshold for name in ("relu", "relu_1", "relu_2")]
    potentials = [0.5 * threshold for threshold in thresholds]

    def fire(layer, current):
        threshold = thresholds[layer]
        reset = (potentials[layer] > threshold).to(x.dtype) * threshold  # carries no gradient
        potentials[layer] = beta * potentials[layer] + current - reset
        return Surrogate.apply(potentials[layer] - threshold, relative_slope, threshold)

    total = 0
    for _ in range(5):
        current = F.conv2d(x, encoder.conv1.weight, encoder.conv1.bias, padding=1)
        spikes = fire(0, current)
        spikes = fire(1, F.conv2d(4 * F.avg_pool2d(spikes, 2), body.conv2.weight, body.conv2.bias))
        spikes = fire(2, F.linear(4 * F.avg_pool2d(spikes, 2).flatten(1), body.fc1.weight, body.fc1.bias))
        total = total + F.linear(spikes, body.fc2.weight, body.fc2.bias)
    targets = torch.arange(20) % 10
    F.cross_entropy(total / 5, targets).backward()
    F.cross_entropy(network(x), targets).backward()
    for (name, ours), theirs in zip(network.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-12)
        assert float(ours.grad.abs().max()) > 0, name


def test_gradient_flows_through_max_pooling_to_the_neuron_that_counts():
    net, _, x = make("lenet_modules")
    network = to_snntorch(net, x, timesteps=5)
    network(x).square().sum().backward()
    assert all(float(parameter.grad.abs().max()) > 0 for parameter in network.parameters())


@pytest.fixture(scope="module")
def digits():
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    data = load_digits()
    x = torch.from_numpy(data.images).float().unsqueeze(1) / 16
    y = torch.from_numpy(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    return x[:1200], y[:1200], x[1200:], y[1200:]


def cnn(pool):
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), pool(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), pool(2),
        nn.Flatten(), nn.Dropout(0.1), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(digits):
    """Networks with average and with max pooling, trained for a few epochs."""
    x, y, _, _ = digits
    nets = {}
    with torch.random.fork_rng():
        for name, pool in (("average", nn.AvgPool2d), ("max", nn.MaxPool2d)):
            torch.manual_seed(0)
            net = nets[name] = cnn(pool)
            optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
            for _ in range(8):
                for index in torch.randperm(len(x)).split(64):
                    optimizer.zero_grad()
                    F.cross_entropy(net(x[index]), y[index]).backward()
                    optimizer.step()
            net.eval()
    return nets


def accuracy(scores, y):
    return float((scores.argmax(-1) == y).float().mean(-1).min())


@pytest.mark.parametrize("options", [{}, {"per_channel": True}, {"threshold": "max"}])
@pytest.mark.parametrize("pool", ["average", "max"])
@torch.no_grad()
def test_accuracy_is_kept_within_a_point(digits, trained, pool, options):
    x, _, x_test, y_test = digits
    net = trained[pool]
    assert accuracy(net(x_test), y_test) > 0.95
    network = to_snntorch(net, x, timesteps=128, **options)
    running = network(x_test, per_step=True)
    # From T = 32 on, at every T: more steps never do harm.
    assert accuracy(running[31:], y_test) >= accuracy(net(x_test), y_test) - 0.01
    agreement = (running[31:].argmax(-1) == net(x_test).argmax(-1)).float().mean(-1)
    assert float(agreement.min()) >= 0.98


@pytest.mark.parametrize("pool", ["average", "max"])
def test_fine_tuning_lowers_the_loss(digits, trained, pool):
    x, y, x_test, y_test = digits
    network = to_snntorch(trained[pool], x, timesteps=2)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for index in torch.arange(640).split(64):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(x[index]), y[index])
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        before = to_snntorch(trained[pool], x, timesteps=2)(x_test)
        after = network(x_test)
    assert float(F.cross_entropy(after, y_test)) < 0.9 * float(F.cross_entropy(before, y_test))
    assert accuracy(after, y_test) > accuracy(before, y_test)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*does not have many workers")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_fine_tuning_under_a_trainer(digits, trained, precision, tmp_path):
    x, y, _, _ = digits
    loader = DataLoader(TensorDataset(x[:600], y[:600]), batch_size=64)  # the last batch has 24
    module = FineTune(to_snntorch(trained["average"], loader, timesteps=2, correction="none"))  # far from trained
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_progress_bar=False, enable_model_summary=False,
        precision=precision, default_root_dir=tmp_path, num_sanity_val_steps=1, gradient_clip_val=1.0,
        accumulate_grad_batches=2,
    )  # fmt: skip
    trainer.fit(module, loader, loader)
    steps = 10  # of an epoch; before these the sanity check, behind each epoch the validation
    first, last = module.losses[1 : 1 + steps], module.losses[1 + 2 * steps : 1 + 3 * steps]
    assert sum(last) < 0.9 * sum(first)

    checkpoint = tmp_path / "last.ckpt"
    trainer.save_checkpoint(checkpoint)
    fresh = FineTune(to_snntorch(trained["average"], x[:50], timesteps=2, correction="none"))
    fresh.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    fresh, trained_network = fresh.network.float(), module.network.float()
    assert torch.equal(fresh(x[:20]), trained_network(x[:20]))
