"""What can be exported and in which forms, what is refused and how, and that the caller's model stays as it was."""

from __future__ import annotations

import copy
import warnings

import pytest
import snntorch
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.nn import functional as F

from snnreg_plugins import ConversionError, SynapticOperations, load_network, save_network, to_snntorch
from tests.nets import Chain, FunctionalLeNet, make

T = 4


class Wrapped(LightningModule):
    """The usual LightningModule: a network, metrics of its own, forward(x)."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.loss = nn.CrossEntropyLoss()

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return self.loss(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Written(LightningModule):
    """A LightningModule that is the network itself."""

    def __init__(self, net):
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = net.conv1, net.bn1, net.conv2, net.bn2
        self.fc1, self.bn3, self.fc2 = net.fc1, net.bn3, net.fc2

    forward = FunctionalLeNet.forward


class NoTraining(Wrapped):
    """A module that guards its mode."""

    def train(self, mode=True):
        raise AssertionError("the mode was set from outside")


class CompiledInside(nn.Module):
    """A network with a compiled part."""

    def __init__(self, net):
        super().__init__()
        self.net = torch.compile(net, backend="eager")

    def forward(self, x):
        return self.net(x)


def compiled_in_place(net):
    net.compile(backend="eager")
    return net


# How a network comes, and where its layers are then.
FORMS = {
    "LightningModule": (Wrapped, "net."),
    "LightningModule that is the network": (Written, ""),
    "nested LightningModules": (lambda net: Wrapped(Wrapped(net)), "net.net."),
    "overridden train()": (NoTraining, "net."),
    "torch.compile": (lambda net: torch.compile(net, backend="eager"), ""),
    "torch.compile of a LightningModule": (lambda net: torch.compile(Wrapped(net), backend="eager"), "net."),
    "Module.compile": (compiled_in_place, ""),
    "torch.compile inside": (CompiledInside, "net."),
    "DataParallel": (nn.DataParallel, ""),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_a_network(form):
    net, _, x = make("lenet_functional")
    expected = to_snntorch(net, x, timesteps=T)
    form, prefix = FORMS[form]
    network = to_snntorch(form(net), x, timesteps=T)
    assert torch.equal(network(x), expected(x))
    assert next(name for name, _ in network.body.named_parameters()) == f"{prefix}conv2.weight"


def test_distributed_data_parallel(tmp_path):
    net, _, x = make("lenet_functional")
    expected = to_snntorch(net, x, timesteps=T)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        network = to_snntorch(nn.parallel.DistributedDataParallel(net), x, timesteps=T)
    finally:
        torch.distributed.destroy_process_group()
    assert torch.equal(network(x), expected(x))


def test_a_model_in_training_mode_is_exported_in_eval_mode():
    net, _, x = make("lenet_functional")
    expected = to_snntorch(net, x, timesteps=T)
    assert torch.equal(to_snntorch(net.train(), x, timesteps=T)(x), expected(x))


def state_of(model):
    """Everything there is to a model: tensors by identity and value, attributes, modes, hooks."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {
        "tensors": [(name, id(value), value.detach().clone(), value._version) for name, value in tensors],
        "grads": [(value.requires_grad, None if value.grad is None else value.grad.clone()) for _, value in tensors],
        "modes": [(name, module.training) for name, module in model.named_modules()],
        "hooks": [
            [(key, list(hooks.items())) for key, hooks in vars(module).items() if "_hooks" in key and hooks is not None]
            for module in model.modules()
        ],
        "attributes": [{key: id(value) for key, value in vars(module).items()} for module in model.modules()],
    }


def assert_unchanged(model, before):
    after = state_of(model)
    for (name, identity, value, version), found in zip(before["tensors"], after["tensors"], strict=True):
        assert (name, identity, version) == (found[0], found[1], found[3])
        assert torch.equal(value, found[2])
    for (requires_grad, grad), found in zip(before["grads"], after["grads"], strict=True):
        assert requires_grad == found[0]
        assert (grad is None and found[1] is None) or torch.equal(grad, found[1])
    for key in ("modes", "hooks", "attributes"):
        assert after[key] == before[key]


class Remembers(nn.Module):
    """A forward that keeps activations and counts calls, as homemade regularizers do; a constant of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b, self.calls = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3), 0

    def forward(self, x):
        self.calls += 1
        self.kept = F.relu(self.norm(self.a(x)))
        return self.b(self.kept)


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize(
    "name",
    ["lenet_functional", "lenet_modules", "spectral_norm", "weight_norm", "old_spectral_norm", "old_weight_norm",
     "pruned", "norm_on_input", "remembers", "lightning"],
)  # fmt: skip
def test_the_model_is_left_as_it_was(name):
    if name == "remembers":
        net, x = Remembers(), torch.rand(20, 6)
    else:
        net, _, x = make("lenet_functional" if name == "lightning" else name, torch.float32)
    net = Wrapped(net) if name == "lightning" else net
    net.train()
    next(module for module in net.modules() if isinstance(module, (nn.Conv2d, nn.BatchNorm1d))).eval()
    parameters = list(net.parameters())
    parameters[1].requires_grad_(False)
    net(x).sum().backward()
    seen = []
    net.register_forward_hook(lambda *_: seen.append("model"))
    for name, module in net.named_modules():
        if "parametrizations" in name:
            continue  # reading a weight calls these
        module.register_forward_pre_hook(lambda *_: seen.append("pre"))
        module.register_full_backward_hook(lambda *_: seen.append("backward"))
    before, rng, running = state_of(net), torch.get_rng_state(), copy.deepcopy(net.state_dict())
    network = to_snntorch(net, x, timesteps=T)
    network(x).sum().backward()
    assert_unchanged(net, before)
    assert torch.equal(torch.get_rng_state(), rng)
    assert "backward" not in seen
    assert seen.count("model") == 1  # called as its user calls it, once
    # Nothing is shared: training one does not move the other.
    with torch.no_grad():
        for value in [*network.parameters(), *network.buffers()]:
            value.add_(1)
    for key, value in net.state_dict().items():
        assert torch.equal(value, running[key])
    assert all(not module._forward_pre_hooks and not module._backward_hooks for module in network.modules())


def test_the_model_is_left_as_it_was_when_it_is_refused():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3), nn.GELU()).train()
    net[0].eval()
    before = state_of(net)
    with pytest.raises(ConversionError, match="GELU"):
        to_snntorch(net, torch.rand(20, 6), timesteps=T)
    assert_unchanged(net, before)


def test_frozen_layers_are_trainable_in_the_export():
    net, _, x = make("norm_on_input", torch.float32)
    net.requires_grad_(False)
    network = to_snntorch(net, x, timesteps=T)
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in network.parameters())
    network(x).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def quiet_trainer(**options):
    return Trainer(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu", **options,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*does not have many workers")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_within_lightning_validation_with_metrics_on_the_model(precision):
    net, _, x = make("lenet_functional", torch.float32)
    data = torch.utils.data.TensorDataset(x[:11], torch.arange(11) % 10)
    batches = torch.utils.data.DataLoader(data, batch_size=8)
    exported, modes = [], set()

    class Exports(Wrapped):
        def validation_step(self, batch, batch_idx):
            modes.add(torch.is_inference_mode_enabled())
            counted, rng = self.sops.counts.clone(), torch.get_rng_state()
            network = to_snntorch(self, self.trainer.val_dataloaders, timesteps=T)
            assert torch.equal(torch.get_rng_state(), rng)
            assert torch.equal(self.sops.counts, counted)
            assert not network(batch[0]).requires_grad
            exported.append(network)

    module = Exports(net)
    with SynapticOperations(module) as module.sops:
        trainer = quiet_trainer(precision=precision, max_epochs=1)
        module.train()
        trainer.fit(module, batches, batches)
        trainer.validate(module, batches, verbose=False)
        before = state_of(module)
        network = to_snntorch(module, batches, timesteps=T)  # still attached to its Trainer
        assert_unchanged(module, before)
    exported.append(network)
    assert modes == {False, True}
    assert len(exported) == 2 + 2 + 2 + 1  # two batches each in sanity check, epoch and validation; afterwards
    for network in exported:
        assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
        network(x).square().sum().backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())
        network.zero_grad()


def test_under_inference_mode_gives_trainable_parameters():
    net, _, x = make("norm_on_input", torch.float32)
    with torch.inference_mode():
        network = to_snntorch(net, torch.rand(20, 1, 8, 8), timesteps=T)
        scores = network(x)
    assert not any(value.is_inference() for value in [*network.parameters(), *network.buffers()])
    network(x).sum().backward()
    torch.testing.assert_close(network(x), scores.clone())


def small(forward, **modules):
    defaults = {"a": nn.Linear(6, 8), "b": nn.Linear(8, 8), "c": nn.Linear(8, 3), "relu": nn.ReLU()}
    return Chain(forward, **defaults | modules)


class Residual(nn.Module):
    def __init__(self, add):
        super().__init__()
        self.a, self.b, self.c, self.add = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3), add

    def forward(self, x):
        x = F.relu(self.a(x))
        return self.c(F.relu(self.add(x, self.b(x))))


class OwnWeights(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.w = nn.Linear(6, 8), nn.Parameter(torch.rand(3, 8))

    def forward(self, x):
        return F.linear(F.relu(self.a(x)), self.w * F.relu(self.a(x))[:1])


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def _twice(x):
    return 2.0 * x


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    twice = torch.jit.script(_twice)


class DataDependent(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 3)

    def forward(self, x):
        if x.sum() > 0:
            x = -x
        return F.relu(self.a(x))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 3)

    def forward(self, x, y):
        return F.relu(self.a(x + y))


class NoForward(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 3)


class GroupNormed(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.a, self.norm, self.c = nn.Linear(6, 8), norm, nn.Linear(8, 3)

    def forward(self, x):
        return self.c(F.relu(self.norm(self.a(x))))


class Assigning(nn.Module):
    def forward(self, x):
        h = self.relu(self.a(x))
        h[:, 3] = 0
        return self.c(h)


def conv(*layers):
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), *layers)


TRAIN_WITH_RELU = "train with nn.ReLU in its place"
BATCH_NORM = "train with nn.BatchNorm in its place, which folds into the weights"
RANKS = "leave it out: scores before it rank the classes alike"

# The model, and parts of the message: the layer or function, the code where it stands, what to do.
REFUSED = {
    "GELU": (lambda: nn.Sequential(nn.Linear(6, 8), nn.GELU()), "layer '1': GELU", TRAIN_WITH_RELU),
    "F.gelu": (lambda: small(lambda m, x: m.c(F.gelu(m.a(x)))), "convert gelu", "F.gelu(m.a(x))", TRAIN_WITH_RELU),
    "Sigmoid": (lambda: small(lambda m, x: m.c(torch.sigmoid(m.a(x)))), "convert sigmoid", TRAIN_WITH_RELU),
    "squeeze and excitation": (
        lambda: small(lambda m, x: m.c(m.relu(m.a(x)) * torch.sigmoid(m.b(m.a(x))).view(-1, 8))),
        "convert sigmoid", "train without this gate",
    ),
    "swish": (lambda: small(lambda m, x: m.c((h := m.a(x)) * torch.sigmoid(h))), "convert sigmoid", TRAIN_WITH_RELU),
    "assignment": (lambda: small(Assigning.forward), "item assignment", "as a product with a mask of constants"),
    "LayerNorm": (lambda: GroupNormed(nn.LayerNorm(8)), "layer 'norm': LayerNorm", "self.norm(self.a(x))", BATCH_NORM),
    "GroupNorm": (lambda: GroupNormed(nn.GroupNorm(2, 8)), "layer 'norm': GroupNorm", BATCH_NORM),
    "F.layer_norm": (lambda: small(lambda m, x: F.layer_norm(x, (6,))), "convert layer_norm", BATCH_NORM),
    "Softmax": (
        lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Softmax(1), nn.Linear(8, 3)), "layer '2': Softmax", RANKS,
    ),
    "F.log_softmax": (lambda: small(lambda m, x: m.c(F.log_softmax(m.relu(m.a(x)), 1))), "convert log_softmax", RANKS),
    "x.softmax": (lambda: small(lambda m, x: m.c(m.relu(m.a(x)).softmax(1))), "convert softmax", RANKS),
    "F.linear": (OwnWeights, "convert linear", "F.linear(F.relu(self.a(x)), self.w *", "use nn.Linear"),
    "F.prelu": (
        lambda: small(lambda m, x: m.c(F.prelu(m.a(x), torch.ones(8)))), "convert prelu", "use nn.PReLU, which owns",
    ),
    "clamp from above": (lambda: small(lambda m, x: m.c(m.a(x).clamp(-1, 1))), "convert clamp", TRAIN_WITH_RELU),
    "Hardtanh above 0": (
        lambda: nn.Sequential(nn.Linear(6, 8), nn.Hardtanh(1, 2)),
        "layer '1': Hardtanh(min_val=1, max_val=2), which does not map 0 to 0", "choose a range around 0",
    ),
    "gate": (
        lambda: small(lambda m, x: m.c(m.relu(m.a(x)) * m.relu(m.b(m.a(x))))), "convert a product of two activations",
        "multiply by constants only",
    ),
    "division": (lambda: small(lambda m, x: 1 / m.relu(m.a(x))), "a division by an activation", "by constants only"),
    "alpha": (
        lambda: Residual(lambda x, y: x.add_(y, alpha=2)), "add_ with more than the operands", "write it as",
    ),
    "in place through a view": (
        lambda: small(lambda m, x: (lambda y: (y.view(-1, 8).add_(1), m.c(y))[1])(m.relu(m.a(x)))),
        "add_ in place on what is read again", "write `x = x + y`",
    ),
    "stack": (lambda: small(lambda m, x: torch.stack([m.relu(m.a(x))] * 2)), "convert stack", "behind the batch"),
    "mean of all": (lambda: small(lambda m, x: m.relu(m.a(x)).mean()), "convert mean", "give the dimensions"),
    "mean over the batch": (lambda: small(lambda m, x: m.relu(m.a(x)).mean(0)), "convert mean", "without the batch"),
    "bilinear": (
        lambda: conv(nn.Upsample(scale_factor=2, mode="bilinear")), "layer '2': upsampling with mode='bilinear'",
        'use mode="nearest"',
    ),
    "attention": (
        lambda: small(lambda m, x: m.at(x, x, x)[0], at=nn.MultiheadAttention(6, 1)), "layer 'at': MultiheadAttention",
        "keep attention as a DNN behind the spiking part, with `until`",
    ),
    "control flow": (DataDependent, "DataDependent cannot be traced", "(if x.sum() > 0:)", "out of forward()"),
    "two inputs": (TwoInputs, "TwoInputs.forward takes 2 inputs", "wrap the model in a module"),
    "tuple": (lambda: small(lambda m, x: (m.relu(m.a(x)), x)), "Chain.forward returns a tuple", "Wrap the model in"),
    "dict": (lambda: small(lambda m, x: {"y": m.relu(m.a(x))}), "Chain.forward returns a dict", "Wrap the model in"),
    "no forward": (NoForward, "NoForward has no forward()", "Pass the network itself"),
    "return_indices": (
        lambda: Chain(lambda m, x: m.pool(m.a(x))[0], a=nn.Conv2d(1, 4, 3), pool=nn.MaxPool2d(2, return_indices=True)),
        "max pooling with return_indices=True", "m.pool(m.a(x))[0]", "use return_indices=False",
    ),
    "output_size": (
        lambda: Chain(
            lambda m, x: m.b(F.relu(m.a(x)), output_size=(8, 8)),
            a=nn.Conv2d(1, 4, 3, stride=2), b=nn.ConvTranspose2d(4, 2, 3, stride=2),
        ),
        "layer 'b': a call with more than the input", "output_size=(8, 8)", "give the layer its input alone",
    ),
    "norm without statistics": (
        lambda: GroupNormed(nn.BatchNorm1d(8, track_running_stats=False)),
        "layer 'norm': batch norm without running statistics", "use track_running_stats=True",
    ),
    "quantized": (
        lambda: torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))),
        "layer '0': quantized Linear", "as it was before quantization",
    ),
    "in front": (
        lambda: nn.Sequential(nn.Softshrink(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), "layer '0': Softshrink",
        "apply it to the inputs",
    ),
    "between": (
        lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Softshrink(), nn.Linear(8, 3)), "layer '2': Softshrink",
        "with `until`",
    ),
    "LSTM": (lambda: small(lambda m, x: m.c(m.lstm(x)[0]), lstm=nn.LSTM(6, 8)), "layer 'lstm': LSTM", "use Linear"),
    "spiking already": (
        lambda: Wrapped(to_snntorch(nn.Sequential(nn.Linear(6, 3), nn.ReLU()), torch.rand(9, 6), timesteps=1)),
        "Wrapped holds a spiking network already", "Pass the DNN it was made from",
    ),
    "the user's own neurons": (
        lambda: small(lambda m, x: m.lif(m.a(x)), lif=snntorch.Leaky(0.9, init_hidden=True)),
        "Chain has spiking neurons already", r"report(None, network, data) and profile(network, inputs) measure it",
    ),
    "function of autograd": (lambda: small(lambda m, x: m.relu(Rounded.apply(m.a(x)))), "Cannot convert round"),
    "tensor of a value": (lambda: small(lambda m, x: m.c(torch.as_tensor(m.relu(m.a(x))))), "cannot be traced"),
    "vmap": (lambda: small(lambda m, x: m.c(torch.vmap(m.relu)(m.a(x)))), "cannot be traced"),
    "compiled function": (lambda: small(lambda m, x: m.c(m.relu(twice(m.a(x))))), "cannot be traced"),
    "branch on a value": (
        lambda: small(lambda m, x: m.c(m.relu(m.a(x / 255 if x[0].max().item() > 1.0 else x)))), "cannot be traced",
        "Move data-dependent control flow",
    ),
    "scale by a value": (
        lambda: small(lambda m, x: m.c(m.relu(m.a(x * sum(x[0].tolist()))))), "cannot be traced",
        "read out of the input",
    ),
    "list of modules": (lambda: nn.ModuleList([nn.Linear(6, 3)]), "ModuleList has no forward()", "Pass the network"),
    "no ReLU": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), "does not depend on any ReLU"),
    "unread ReLU": (lambda: small(lambda m, x: (m.relu(m.a(x)), m.a(x))[1]), "does not depend on any ReLU"),
    "scripted": (
        lambda: torch.jit.script(nn.Sequential(nn.Linear(6, 3))), "RecursiveScriptModule is compiled by torch.jit",
        "Pass the module that it was made from",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings(
    "ignore:.*torch.ao.*", "ignore:.*torch.jit.*", "ignore:.*track_running_stats", "ignore::DeprecationWarning"
)
@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    model, *parts = REFUSED[name]
    model = model()
    convolutional = any(isinstance(module, nn.Conv2d) for module in model.modules())
    x = torch.rand(20, 1, 8, 8) if convolutional or name == "no ReLU" else torch.rand(20, 6)
    modes = [module.training for module in model.modules()]
    with pytest.raises(ConversionError) as raised:
        to_snntorch(model, x, timesteps=T)
    message = str(raised.value)
    for part in parts:
        assert part in message
    assert [module.training for module in model.modules()] == modes
    # Functions and custom forwards have a line in the user's code; it is this file's.
    if type(model).__module__ == __name__ and "cannot be traced" not in message and "Cannot convert" in message:
        assert f" at {__file__}:" in message


def test_a_refused_layer_of_a_sequential_is_named_without_a_line_in_torch():
    with pytest.raises(ConversionError) as raised:
        to_snntorch(nn.Sequential(nn.Linear(6, 8), nn.GELU()), torch.rand(20, 6), timesteps=T)
    assert str(raised.value) == (
        "Cannot convert layer '1': GELU. To export this network, train with nn.ReLU in its place."
    )


def test_refused_names_are_those_of_the_user_also_when_compiled():
    net = CompiledInside(nn.Sequential(nn.Linear(6, 8), nn.GELU()))
    with pytest.raises(ConversionError, match="layer 'net.1': GELU"):
        to_snntorch(net, torch.rand(20, 6), timesteps=T)


@pytest.mark.parametrize("model", [None, "net", torch.rand, nn.Linear])
def test_what_is_no_model(model):
    with pytest.raises(TypeError, match=r"Expected argument `model` to be a torch.nn.Module, but got [\w :]+\."):
        to_snntorch(model, torch.rand(20, 6), timesteps=T)


def test_unused_arguments_of_forward_are_no_inputs():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(6, 3)

        def forward(self, x, targets=None, scale=None, *unused, **options):
            return F.relu(self.a(x))

    x = torch.rand(20, 6)
    assert to_snntorch(Optional(), x, timesteps=T)(x).shape == (20, 3)


def renamed(names):
    """One network, whose layers have the names that are given."""
    torch.manual_seed(0)
    layers = [
        nn.Linear(6, 6), nn.LeakyReLU(0.1), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3),
    ]  # fmt: skip

    def forward(m, x):
        a, act, b, relu, c, last_relu, d = (getattr(m, name) for name in names)
        x = (act(a(x)) - m.shift) * 0.5
        x = relu(a(b(x)))
        return d(last_relu(x + F.relu(c(x)))) + x[:, :3]

    model = Chain(forward, **dict(zip(names, layers, strict=True)))
    model.register_buffer("shift", torch.tensor(0.1))
    return model.double()


PLAIN = ("a", "act", "b", "r", "c", "s", "d")


@pytest.mark.parametrize(
    "names",
    [
        ("a", "act", "b", "relu", "a_1", "relu_1", "a_1_1"),
        ("a", "act", "act_negative", "act_initial", "act_negative_initial", "relu", "relu_current"),
        ("input", "input_initial", "input_synapse", "constants", "input_1", "output_scale", "output_shift"),
        ("relu", "add", "mul", "sub", "add_synapse", "relu_synapse", "s_synapse"),
    ],
    ids=str,
)
@torch.no_grad()
def test_names_of_layers_make_no_difference(names, tmp_path):
    x = torch.rand(30, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 0.2
    for options in ({"beta": 0.9}, {"correction": "bias", "coding": "neurons"}, {"coding": "latency"}):
        expected = to_snntorch(renamed(PLAIN), x, timesteps=6, **options)
        network = to_snntorch(renamed(names), x, timesteps=6, **options)
        assert torch.equal(network(x), expected(x))
        assert len(list(network.parameters())) == len(list(expected.parameters()))
        # Layers that are called keep their names.
        kept = {name for name, module in network.named_modules() if isinstance(module, nn.Linear)}
        assert {name.partition(".")[2] for name in kept} >= {names[index] for index in (0, 2, 4, 6)}
        save_network(network, tmp_path / "spiking.pt")
        assert torch.equal(load_network(tmp_path / "spiking.pt", renamed(names))(x), expected(x))


def test_until_is_the_users_layer_and_no_copy_of_another():
    a, b, c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(m, x):
        for _ in range(2):
            x = m.act(m.a(x))
        return m.c(m.act_1(m.b(x)))

    model = Chain(forward, a=a, act=nn.ReLU(), b=b, act_1=nn.ReLU(), c=c)
    network = to_snntorch(model, torch.rand(20, 6), timesteps=6, until="act_1")
    assert list(network.levels) == ["act", "act_2", "act_1"]
    assert [name for name, _ in network.head.named_parameters()] == ["c.weight", "c.bias"]


def test_a_network_without_parameters():
    x = torch.rand(20, 4)
    network = to_snntorch(nn.Sequential(nn.Flatten(), nn.ReLU()), x, timesteps=64, threshold="max", correction="none")
    assert float((network(x) - x).abs().max()) <= float(x.max()) / 64
    with pytest.raises(ConversionError, match="nothing would spike"):
        to_snntorch(nn.Sequential(nn.Flatten()), x, timesteps=4)
