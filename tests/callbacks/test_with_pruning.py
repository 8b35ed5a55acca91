"""Lightning's pruning beside a penalty: what is trained, exported, counted and read is that of the pruned network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelPruning
from torch import nn

from snnreg_plugins import ActivityRegularization, SynapticOperations, to_snntorch
from snnreg_plugins._weights import load_weights
from tests.callbacks.reference import Module, fit, loader, start

STRENGTH = 0.5
WAYS = {
    "all layers together": {"use_lottery_ticket_hypothesis": False},
    "each layer": {"use_global_unstructured": False, "use_lottery_ticket_hypothesis": False},
    "whole filters": {
        "pruning_fn": "ln_structured", "pruning_norm": 1, "pruning_dim": 0, "use_global_unstructured": False,
        "use_lottery_ticket_hypothesis": False, "parameter_names": ["weight"],
    },
    "rewound to the first weights": {"use_lottery_ticket_hypothesis": lambda epoch: epoch == 0},
    "after validation": {"use_lottery_ticket_hypothesis": False, "prune_on_train_epoch_end": False},
}  # fmt: skip


def pruning(way, permanent):
    return ModelPruning(**{"pruning_fn": "l1_unstructured", "amount": 0.2, **way, "make_pruning_permanent": permanent})


def trained(way, permanent, by_hand):
    net = start({}, torch.float64)
    penalty = [] if by_hand else [ActivityRegularization("l1", STRENGTH)]
    module = Module(net, STRENGTH if by_hand else 0.0)
    module.validation_step = lambda batch: None
    module.val_dataloader = lambda: loader(torch.float64)
    fit(module, [*penalty, pruning(way, permanent)], torch.float64, max_epochs=3)
    return net.eval()


def weights_of(net):
    """The weights that a network computes with: of what its hooks leave there."""
    net(next(iter(loader(torch.float64)))[0])
    return {
        f"{name}.{kind}": getattr(layer, kind).detach().clone()
        for name, layer in net.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d))
        for kind in ("weight", "bias")
    }


def sops_by_hand(network, x):
    """Spikes times the synapses that they reach, a weight of zero being none."""
    total = 0.0

    def count(layer, inputs, _):
        nonlocal total
        (spikes,) = inputs
        if not torch.equal(spikes, spikes.round()):
            return  # the image
        mask = (layer.weight != 0).to(spikes)
        if isinstance(layer, nn.Conv2d):
            total += F.conv2d(spikes.flatten(0, -4), mask, None, layer.stride, layer.padding).sum().item()
        else:
            total += F.linear(spikes, mask).sum().item()

    handles = [one.register_forward_hook(count) for one in network.modules() if isinstance(one, (nn.Linear, nn.Conv2d))]
    network(x)
    for handle in handles:
        handle.remove()
    return total / len(x)


QUICK = {("all layers together", True), ("each layer", True), ("whole filters", False)}
QUICK |= {("all layers together", False), ("rewound to the first weights", False)}
EVERY = [
    pytest.param(way, permanent, marks=[pytest.mark.slow] * ((way, permanent) not in QUICK))
    for way in WAYS
    for permanent in (True, False)
]


@pytest.mark.parametrize(("way", "permanent"), EVERY)
def test_pruned_networks_are_trained_exported_counted_and_read_as_they_are(way, permanent):
    net = trained(WAYS[way], permanent, by_hand=False)
    weights, expected = weights_of(net), weights_of(trained(WAYS[way], permanent, by_hand=True))
    assert any((one == 0).any() for name, one in weights.items() if name.endswith("weight"))
    for name, one in weights.items():
        torch.testing.assert_close(one, expected[name], rtol=0, atol=1e-12)
        assert torch.equal(one == 0, expected[name] == 0)

    plain = start({}, torch.float64).eval()
    plain.load_state_dict(weights)
    x = torch.cat([batch for batch, _ in loader(torch.float64)])
    exported = to_snntorch(net, x, timesteps=8)
    assert torch.equal(exported(x), to_snntorch(plain, x, timesteps=8)(x))
    with SynapticOperations(exported, count_zero_weights=False) as counted:
        exported(x)
        assert counted.compute().item() == pytest.approx(sops_by_hand(exported, x), rel=1e-6)

    found = start({}, torch.float64).eval()
    load_weights(found, net.state_dict(), "net.ckpt")  # masked by name where they are not for good
    assert torch.equal(found(x), net(x))
