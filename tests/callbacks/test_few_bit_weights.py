"""Training with the callback is training with weights that are rounded by hand, straight through."""

from __future__ import annotations

import copy

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, weight_norm

from snnreg_plugins import FewBitWeights, to_snntorch
from snnreg_plugins.functional import magnitudes
from snnreg_plugins.modules import SpikingClassifier
from tests.callbacks.reference import fit, loader
from tests.callbacks.test_spiking_validation import QUIET

FORMATS = [("int8", 8), ("int8", 3), ("power_of_two", 4)]


def rounded(weight, weights, bits, groups=None):
    """The nearest number of the format, output by output, by trying all of them."""
    steps = magnitudes(weights, bits).to(weight)
    every = torch.cat([-steps.flip(0), steps])
    out = torch.empty_like(weight)
    for o in range(weight.shape[0] if groups is None else groups * weight.shape[1]):
        if groups is None:
            own = (o,)
        else:  # a transposed convolution: inputs first
            inputs, outputs = weight.shape[0] // groups, weight.shape[1]
            own = (slice(o // outputs * inputs, (o // outputs + 1) * inputs), o % outputs)
        unit = weight[own].abs().max() / steps[-1]
        out[own] = unit * every[(weight[own].unsqueeze(-1) / unit - every).abs().argmin(-1)]
    return out


class Module(LightningModule):
    """The user's own. By hand, weights are rounded in the forward pass."""

    def __init__(self, by_hand=None):
        super().__init__()
        self.net = nn.ModuleDict({
            "conv": nn.Conv2d(1, 4, 3, groups=1, bias=False), "norm": nn.BatchNorm2d(4),
            "up": nn.ConvTranspose2d(4, 6, 2, groups=2), "fc": nn.Linear(6 * 49, 3),
        })  # fmt: skip
        self.by_hand = by_hand

    def weight(self, layer):
        weight = layer.weight
        if self.by_hand is None:
            return weight
        found = rounded(weight.detach(), *self.by_hand, layer.groups if layer is self.net["up"] else None)
        return weight + (found - weight.detach())

    def forward(self, x):
        net = self.net
        if self.by_hand is None:
            x = F.relu(net["norm"](net["conv"](x)))
            return net["fc"](F.relu(net["up"](x)).flatten(1))
        x = F.relu(net["norm"](F.conv2d(x, self.weight(net["conv"]))))
        x = F.relu(F.conv_transpose2d(x, self.weight(net["up"]), net["up"].bias, groups=2))
        return F.linear(x.flatten(1), self.weight(net["fc"]), net["fc"].bias)

    def training_step(self, batch, _):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.log("loss", F.cross_entropy(self(batch[0]), batch[1]))

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)


def module(by_hand=None):
    torch.manual_seed(0)
    return Module(by_hand).double()


def latent(model):
    return {name.replace("parametrizations.weight.original", "weight"): p for name, p in model.named_parameters()}


@pytest.mark.parametrize(("weights", "bits"), FORMATS)
@pytest.mark.parametrize("accumulated", [1, 2])
def test_training_is_that_by_hand(weights, bits, accumulated):
    own, other = module(), module((weights, bits))
    before, parameters = own.state_dict(), dict(own.named_parameters())
    seen = []

    class Callback(FewBitWeights):
        def on_train_end(self, trainer, pl_module):
            seen.append({name: p.detach().clone() for name, p in latent(pl_module).items()})

    given = dict(dtype=torch.float64, max_epochs=2, accumulate_grad_batches=accumulated)
    fit(own, [Callback(weights, bits)], **given)
    fit(other, **given)
    for name, expected in other.named_parameters():
        torch.testing.assert_close(seen[0][name], expected)
    # Behind the training, it is a module like any, with the weights that it computed with.
    assert list(own.state_dict()) == list(before)
    assert all(p is parameters[name] for name, p in own.named_parameters())
    for name, layer in other.net.items():
        if name != "norm":
            expected = rounded(layer.weight.detach(), weights, bits, layer.groups if name == "up" else None)
            torch.testing.assert_close(own.net[name].weight, expected)
    x = next(iter(loader(torch.float64)))[0]
    torch.testing.assert_close(own.eval()(x), other.eval()(x))


def test_resumed_it_is_what_it_would_have_been(tmp_path):
    kept = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    whole = module()
    fit(whole, [FewBitWeights(bits=3), kept], torch.float64, max_epochs=3, enable_checkpointing=True)
    again = module()
    given = dict(max_epochs=3, ckpt_path=tmp_path / "epoch=0.ckpt")
    fit(again, [FewBitWeights(bits=3)], torch.float64, **given)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())
    with pytest.warns(UserWarning, match="trained with weights='int8', bits=3, not weights='power_of_two', bits=4"):
        fit(module(), [FewBitWeights("power_of_two")], torch.float64, **given)


def test_what_looks_on_leaves_weights_as_they_were_or_as_they_were_tested(tmp_path):
    trainer = Trainer(**QUIET | dict(enable_checkpointing=True), max_epochs=1, callbacks=[
        FewBitWeights(bits=2), ModelCheckpoint(tmp_path, filename="one")])  # fmt: skip
    own, data = module(), loader(torch.float64)
    before = copy.deepcopy(own.state_dict())
    (found,) = trainer.validate(own, data, verbose=False)
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())
    other = module()
    for name in ("conv", "up", "fc"):
        other.net[name].weight.data = rounded(other.net[name].weight.data, "int8", 2, 2 if name == "up" else None)
    assert found == Trainer(**QUIET).validate(other, data, verbose=False)[0]
    trainer.fit(own, data)
    after = copy.deepcopy(own.state_dict())
    own = module()
    (found,) = trainer.test(own, data, ckpt_path=tmp_path / "one.ckpt", verbose=False)
    assert all(torch.equal(value, after[name]) for name, value in own.state_dict().items())
    assert found == Trainer(**QUIET).test(own, data, verbose=False)[0]


@pytest.mark.parametrize(("weights", "bits"), FORMATS)
def test_an_export_keeps_the_weights(weights, bits):
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 6, 2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(24, 3)),
    )
    nn.init.normal_(net[1].weight)  # also below 0
    callback = FewBitWeights(weights, bits)
    assert list(callback.put(net)) == ["0", "4", "7"]
    x = torch.rand(30, 1, 8, 8)
    trained = to_snntorch(net.eval(), x, timesteps=4, weights=weights, weight_bits=bits)
    other = copy.deepcopy(net)
    callback.leave(net)
    assert type(other[0].parametrizations.weight[0]).__name__ == "FewBits"  # copies go on
    assert other(x).allclose(net(x))
    network = to_snntorch(net, x, timesteps=4, weights=weights, weight_bits=bits)
    for name, part in (("0", "encoder"), ("4", "body"), ("7", "body")):
        found = network.get_submodule(f"{part}.{name}").weight
        by_output = net.get_submodule(name).weight.flatten(1)
        codes = by_output / by_output.abs().amax(1, keepdim=True) * magnitudes(weights, bits)[-1]
        if name == "0":
            codes = codes * net[1].weight.sign().unsqueeze(1)
        assert torch.equal(found.flatten(1), codes.round())
        assert torch.equal(found, trained.get_submodule(f"{part}.{name}").weight)


def test_some_layers_alone():
    own = module()
    assert list(FewBitWeights(layers="*f*").put(own)) == ["net.fc"]
    with pytest.raises(ValueError, match=r"`layers` to match the name of a layer with weights, but 'head\*'"):
        FewBitWeights(layers=["head*"]).put(own)


def test_refused():
    with pytest.raises(ValueError, match=r"`bits` to be one of \[2, 3, 4, 5\], but got 8"):
        FewBitWeights("power_of_two", 8)
    with pytest.raises(ValueError, match=r"Expected layers with weights .*ReLU has none"):
        FewBitWeights().put(nn.ReLU())
    for computed in (
        parametrizations.weight_norm(nn.Linear(2, 3)), prune.l1_unstructured(nn.Linear(2, 3), "weight", 1),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"layer '0' to own its weight"):
            FewBitWeights().put(nn.Sequential(computed))
    with pytest.warns(FutureWarning, match="weight_norm"):
        old = weight_norm(nn.Linear(2, 3))
    with pytest.raises(ValueError, match=r"layer '0' to own its weight"):
        FewBitWeights().put(nn.Sequential(old, nn.Linear(3, 2)))
    net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(ValueError, match=r'SpikingNetwork.*weights="int8", train_weights=True'):
        FewBitWeights().put(to_snntorch(net, torch.rand(9, 2), timesteps=2))
    x, y = torch.rand(8, 2), torch.zeros(8, dtype=torch.long)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 4)
    with pytest.raises(MisconfigurationException, match='SpikingClassifier takes weights="int8"'):
        Trainer(**QUIET, max_epochs=1, callbacks=[FewBitWeights()]).fit(SpikingClassifier(net), data)


def test_averages_are_of_the_layers_that_are_trained():
    callbacks = [FewBitWeights(bits=4), StochasticWeightAveraging(0.1, 1)]
    with pytest.raises(MisconfigurationException, match="List FewBitWeights before it"):
        fit(module(), callbacks[::-1], torch.float64, max_epochs=3)
    own = module()
    fit(own, callbacks, torch.float64, max_epochs=3)
    codes = own.net["fc"].weight / own.net["fc"].weight.abs().amax(1, keepdim=True) * 7
    torch.testing.assert_close(codes, codes.round())


def test_a_checkpoint_that_was_written_in_training_says_what_it_wants(tmp_path):
    net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
    FewBitWeights().put(net)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    x, y = torch.rand(8, 2), torch.zeros(8, dtype=torch.long)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 4)
    plain = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
    classifier = SpikingClassifier(plain, str(tmp_path / "net.pt"))
    with pytest.raises(ValueError, match=r"FewBitWeights trained them: call put\(network\)"):
        Trainer(**QUIET, max_epochs=1).fit(classifier, data)
    FewBitWeights().put(plain)
    Trainer(**QUIET, max_epochs=1).fit(SpikingClassifier(plain, str(tmp_path / "net.pt"), weights="int8"), data)
