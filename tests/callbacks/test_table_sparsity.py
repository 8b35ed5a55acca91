"""The sparsity loss of tables adds to any loop of training what is written by hand here."""

from __future__ import annotations

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from snnreg_plugins import TableEncoder, TableSparsity
from tests.callbacks.reference import fit, free_port, leave, step_by, two_processes

S = 0.3


class Over(nn.Module):
    """The mean over the steps."""

    def forward(self, x):
        return x.mean(0)


class Loop(LightningModule):
    """The user's module. By hand, it adds the sparsity to each loss."""

    def __init__(self, by_hand=False, manual=False, checkpointing=None, optimizer="sgd", dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        encoder = TableEncoder(lines=2, timesteps=3, bits=3)
        self.net = nn.Sequential(encoder, Over(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)
        self.by_hand, self.checkpointing, self.optimizer = by_hand, checkpointing, optimizer
        self.automatic_optimization = not manual

    def forward(self, x):
        if self.checkpointing is not None:
            return checkpoint(self.net, x.requires_grad_(), use_reentrant=self.checkpointing == "reentrant")
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        if self.by_hand:
            w = self.net[0].weight[0].flatten(1)
            loss = loss + S * self.by_hand * (w.abs().sum(1) / w.square().sum(1).sqrt()).mean()
        return step_by(self, loss)

    def configure_optimizers(self):
        kinds = dict(
            sgd=lambda weights: torch.optim.SGD(weights, 0.1),
            adam=lambda weights: torch.optim.Adam(weights, 0.01),
            lbfgs=lambda weights: torch.optim.LBFGS(weights, lr=0.1, max_iter=3),
        )
        return kinds[self.optimizer](self.parameters())


def data(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(32, 6, generator=generator, dtype=dtype)
    return DataLoader(TensorDataset(x, torch.randint(3, (32,), generator=generator)), batch_size=8)


def trained(module, callbacks=(), dtype=torch.float64, **options):
    _, trainer = fit(module, callbacks, data=data(dtype), **options)
    return torch.cat([weight.double().flatten() for weight in module.net.state_dict().values()]), trainer


@pytest.mark.parametrize(
    ("module", "trainer"),
    [
        (dict(), dict()),
        (dict(optimizer="adam"), dict(max_epochs=3)),
        (dict(), dict(accumulate_grad_batches=2)),
        (dict(), dict(accumulate_grad_batches=3)),  # of the last step, one batch is left
        (dict(), dict(gradient_clip_val=0.1)),
        (dict(manual=True), dict()),
        (dict(optimizer="lbfgs"), dict()),
        (dict(checkpointing="reentrant"), dict()),
        (dict(checkpointing="other"), dict()),
    ],
    ids=lambda value: "-".join(map(str, value.values())) or "plain",
)
def test_gradient_equals_that_of_the_sum_by_hand(module, trainer):
    expected, _ = trained(Loop(by_hand=1.0, **module), **trainer)
    actual, _ = trained(Loop(**module), [TableSparsity(S)], **trainer)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    without, _ = trained(Loop(**module), **trainer)
    assert (without - expected).abs().max() > 1e-3


def test_under_loss_scaling_and_where_optimizers_unscale_on_their_own(monkeypatch):
    def half():
        return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))

    expected, _ = trained(Loop(by_hand=1.0, dtype=torch.float32), dtype=torch.float32, plugins=[half()])
    actual, _ = trained(Loop(dtype=torch.float32), [TableSparsity(S)], dtype=torch.float32, plugins=[half()])
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5)

    class Fused(torch.optim.Optimizer):
        _step_supports_amp_scaling = True

        def step(self, closure=None):
            for parameter in self.param_groups[0]["params"]:
                parameter.data.sub_(0.1 * parameter.grad / self.grad_scale)

    monkeypatch.setattr(Loop, "configure_optimizers", lambda self: Fused(self.parameters(), {}))
    module = Loop(dtype=torch.float32)
    actual, _ = trained(module, [TableSparsity(S)], dtype=torch.float32, plugins=[half()])
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5)


def test_warm_up_and_what_is_logged():
    class Warm(Loop):
        def on_train_epoch_start(self):
            self.by_hand = [0.0, 0.5, 1.0][self.current_epoch]

    expected, _ = trained(Warm(by_hand=1.0), max_epochs=3)
    module = Loop()
    callback = TableSparsity(S, start_epoch=1, warmup_epochs=1)
    actual, trainer = trained(module, [callback], max_epochs=3)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        trainer.callback_metrics["table_sparsity/net.0"].double(), module.net[0].sparsity().detach(), check_dtype=False
    )


def test_resumed_training_goes_on_bit_by_bit(tmp_path):
    whole, _ = trained(Loop(optimizer="adam"), [TableSparsity(S, warmup_epochs=3)], max_epochs=4)
    _, trainer = trained(Loop(optimizer="adam"), [TableSparsity(S, warmup_epochs=3)], max_epochs=2)
    path = tmp_path / "half.ckpt"
    trainer.save_checkpoint(path)
    resumed, _ = trained(Loop(optimizer="adam"), [TableSparsity(S, warmup_epochs=3)], max_epochs=4, ckpt_path=path)
    assert torch.equal(resumed, whole)


class Two(LightningModule):
    """Two networks with a table each, and an optimizer each, of which the second steps half as often."""

    def __init__(self, by_hand):
        super().__init__()
        self.net = nn.ModuleList(Loop().net for _ in range(2))
        self.by_hand, self.automatic_optimization = by_hand, False

    def training_step(self, batch, batch_idx):
        x, y = batch
        for net, optimizer in zip(self.net, self.optimizers(), strict=True):
            loss = F.cross_entropy(net(x), y)
            if self.by_hand:
                w = net[0].weight[0].flatten(1)
                loss = loss + S * (w.abs().sum(1) / w.norm(dim=1)).mean()
            optimizer.zero_grad()
            self.manual_backward(loss)
        for index, optimizer in enumerate(self.optimizers()):
            if batch_idx % (index + 1) == 0:
                optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(net.parameters(), 0.1) for net in self.net]


def test_two_optimizers_step_the_table_that_is_theirs():
    expected, _ = trained(Two(by_hand=True))
    actual, _ = trained(Two(by_hand=False), [TableSparsity(S)])
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_what_cannot_be_served_is_said():
    class Without(Loop):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(6, 3).double()

    with pytest.raises(ValueError, match="no TableEncoder in Without"):
        trained(Without(), [TableSparsity()])
    with pytest.raises(ValueError, match="`strength`"):
        TableSparsity(strength=-1.0)

    class Past(Loop):
        def optimizers(self):
            return super().optimizers(use_pl_optimizer=False)

    with pytest.raises(MisconfigurationException, match="saw no step of an optimizer"):
        trained(Past(manual=True), [TableSparsity()])


def _ddp_worker(rank, port, file):
    options = dict(devices=2, strategy=two_processes(rank, port), accumulate_grad_batches=2)
    expected, _ = trained(Loop(by_hand=1.0), **options)
    actual, _ = trained(Loop(), [TableSparsity(S)], **(options | dict(strategy=two_processes(rank, port))))
    if rank == 0:
        torch.save([actual, expected], file)
    leave()


@pytest.mark.slow
def test_gradient_equals_that_by_hand_in_two_processes(tmp_path):
    file = tmp_path / "weights.pt"
    torch.multiprocessing.spawn(_ddp_worker, (free_port(), file), nprocs=2, join=True)
    actual, expected = torch.load(file, weights_only=True)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
