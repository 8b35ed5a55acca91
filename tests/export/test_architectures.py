"""Networks with branches, sums, other activations and norms in odd places, against a plain simulation of each."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from snnreg_plugins import ConversionError, SynapticOperations, to_snntorch
from snnreg_plugins.functional import OneToOne
from tests.export.reference import simulate_model
from tests.nets import Chain, one_in

T = 12


def randomize(model, seed=0):
    """Give batch norms statistics that leave no symmetry, and gains of the sign that they have."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.3, 3)
            with torch.no_grad():
                module.weight.copy_(torch.empty_like(module.weight).uniform_(0.5, 1.5) * module.weight.sign())
                module.bias.normal_(0, 0.3)
    return model.double().eval()


def negated(norm):
    with torch.no_grad():
        norm.weight[::2] *= -1
    return norm


def net(forward, **modules):
    return randomize(Chain(forward, **modules))


def conv(a, b, size=3, **options):
    return nn.Conv2d(a, b, size, padding=size // 2, **options)


def block(forward, *, features=64, **modules):
    """A forward on 4 channels between a first layer with ReLU and a last layer."""
    modules = {
        "first": conv(1, 4),
        "relu": nn.ReLU(),
        "flatten": nn.Flatten(),
        "last": nn.Linear(features, 3),
    } | modules
    return lambda: net(lambda m, x: m.last(m.flatten(forward(m, m.relu(m.first(x))))), **copy.deepcopy(modules))


def sequential(*layers):
    return lambda: randomize(nn.Sequential(*copy.deepcopy(layers)))


RELU = nn.ReLU
BN = nn.BatchNorm2d
POOL = nn.AvgPool2d


def shuffled(m, x):
    kept, half = x.chunk(2, dim=1)
    x = torch.cat([kept, m.r(m.a(half))], 1).view(x.size(0), 2, 2, 4, 4)
    return x.transpose(1, 2).reshape(x.size(0), 4, 4, 4)


class Scaled(nn.Module):
    """Normalizes its input with tensors of its own, and scales channels inside."""

    def __init__(self):
        super().__init__()
        self.first, self.relu, self.a, self.last = conv(1, 4), nn.ReLU(), conv(4, 4), nn.Linear(64, 3)
        self.r = nn.ReLU()
        self.register_buffer("mean", torch.tensor(0.4))
        self.gain = nn.Parameter(torch.tensor([1.0, 0.5, 2.0, 0.7]).reshape(4, 1, 1))
        self.double().eval()

    def forward(self, x):
        x = self.relu(self.first((x - self.mean) / 0.5))
        return self.last(torch.flatten(self.r(self.a(x * self.gain)) + self.gain, 1))


with torch.random.fork_rng():
    torch.manual_seed(0)
    #: Name to a function that makes a network for images (1, 4, 4).
    NETS = {
    "identity shortcut": block(lambda m, x: m.out(x + m.bn(m.conv(x))), conv=conv(4, 4), bn=BN(4), out=RELU()),
    "identity shortcut in place": block(
        lambda m, x: m.out(m.bn(m.conv(x)).add_(x)), conv=conv(4, 4), bn=BN(4), out=RELU(inplace=True)
    ),
    "shortcut with a convolution": block(
        lambda m, x: m.out(m.a(m.mid(m.b(x))) + m.down(x)), a=conv(4, 4), mid=RELU(), b=conv(4, 4),
        down=nn.Sequential(conv(4, 4, 1), BN(4)), out=RELU(),
    ),
    "two blocks": block(
        lambda m, x: (lambda y: m.out2(torch.add(y, m.b(y))))(m.out(x + m.a(x))), a=conv(4, 4), b=conv(4, 4),
        out=RELU(), out2=RELU(),
    ),
    "a sum without activation": block(lambda m, x: m.b(x + m.a(x)), a=conv(4, 4), b=conv(4, 4)),
    "a sum of spikes": block(lambda m, x: m.b(x + m.mid(m.a(x))), a=conv(4, 4), b=conv(4, 4), mid=RELU()),
    "a pooled sum of spikes": block(
        lambda m, x: m.pool(x + m.mid(m.a(x))), a=conv(4, 4), mid=RELU(), pool=POOL(2), features=16
    ),
    "a maximum of a sum": block(
        lambda m, x: m.pool(x + m.mid(m.a(x))), a=conv(4, 4), mid=RELU(), pool=nn.MaxPool2d(2), features=16
    ),
    "pre-activation": block(
        lambda m, x: m.end(x + m.b(m.r2(m.bn2(m.a(m.r1(m.bn1(x))))))), a=conv(4, 4), b=conv(4, 4), bn1=BN(4),
        bn2=BN(4), r1=RELU(), r2=RELU(), end=RELU(),
    ),
    "concatenation": block(
        lambda m, x: torch.cat([x, m.mid(m.a(x))], dim=1), a=conv(4, 4), mid=RELU(), features=128
    ),
    "dense block": block(
        lambda m, x: m.r2(m.bn2(m.b(torch.cat([x, m.r1(m.bn1(m.a(x)))], 1)))), a=conv(4, 3), b=conv(7, 4), bn1=BN(3),
        bn2=BN(4), r1=RELU(), r2=RELU(),
    ),
    "norm on concatenated spikes": block(
        lambda m, x: m.r2(m.bn(torch.cat([x, m.r1(m.a(x))], 1))), a=conv(4, 3), r1=RELU(), bn=BN(7), r2=RELU(),
        features=112,
    ),
    "spikes beside currents": block(
        lambda m, x: m.r(m.b(torch.cat([x, m.a(x)], 1))), a=conv(4, 3), b=conv(7, 4), r=RELU()
    ),
    "concatenated input": lambda: net(
        lambda m, x: m.last(m.flatten(torch.cat([x, m.relu(m.first(x))], 1))), first=conv(1, 4), relu=RELU(),
        flatten=nn.Flatten(), last=nn.Linear(80, 3),
    ),
    "input added behind": lambda: net(
        lambda m, x: m.last(m.flatten(m.r2(m.b(m.relu(m.first(x))) + x))), first=conv(1, 4), relu=RELU(),
        b=conv(4, 4), r2=RELU(), flatten=nn.Flatten(), last=nn.Linear(64, 3),
    ),
    "shuffled halves": block(shuffled, a=conv(2, 2), r=RELU()),
    "split": block(lambda m, x: m.a(torch.split(x, [1, 3], 1)[1]), a=conv(3, 4)),
    "ReLU6": sequential(conv(1, 4), nn.ReLU6(), conv(4, 4), nn.ReLU6(), nn.Flatten(), nn.Linear(64, 3)),
    "Hardtanh": sequential(conv(1, 4), nn.Hardtanh(-0.2, 0.3), conv(4, 4), RELU(), nn.Flatten(), nn.Linear(64, 3)),
    "LeakyReLU": sequential(
        conv(1, 4), BN(4), nn.LeakyReLU(0.2), conv(4, 4), BN(4), nn.LeakyReLU(0.1), nn.Flatten(), nn.Linear(64, 3)
    ),
    "pooled LeakyReLU": sequential(
        conv(1, 4), BN(4), nn.LeakyReLU(0.2), POOL(2), conv(4, 4), BN(4), nn.LeakyReLU(0.1), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(4, 3),
    ),
    "PReLU": sequential(conv(1, 4), nn.PReLU(4), conv(4, 4), nn.PReLU(), nn.Flatten(), nn.Linear(64, 3)),
    "norm before padded convolution": sequential(
        conv(1, 4), RELU(), BN(4), conv(4, 4), RELU(), nn.Flatten(), nn.Linear(64, 3)
    ),
    "norm before linear": sequential(nn.Flatten(), nn.Linear(16, 8), RELU(), nn.BatchNorm1d(8), nn.Linear(8, 3)),
    "norm of negative gain on spikes": sequential(
        conv(1, 4), RELU(), negated(BN(4)), RELU(), conv(4, 4), nn.Flatten(), nn.Linear(64, 3)
    ),
    "norm between pools": sequential(
        conv(1, 4), RELU(), POOL(2, 1), BN(4), POOL(2, 1, padding=1), conv(4, 4), RELU(), nn.Flatten(), nn.Linear(64, 3)
    ),
    "norm behind average pooling": sequential(
        conv(1, 4), POOL(2), negated(BN(4)), RELU(), nn.Flatten(), nn.Linear(16, 3)
    ),
    "norm behind padded average pooling": sequential(
        conv(1, 4), RELU(), conv(4, 4), POOL(2, padding=1), negated(BN(4)), RELU(), nn.Flatten(), nn.Linear(36, 3)
    ),
    "norm behind padding that does not count": sequential(
        conv(1, 4), POOL(2, padding=1, count_include_pad=False), negated(BN(4)), RELU(), nn.Flatten(), nn.Linear(36, 3)
    ),
    "norm behind a divisor": sequential(
        conv(1, 4), POOL(2, divisor_override=3), BN(4), RELU(), nn.Flatten(), nn.Linear(16, 3)
    ),
    "norm behind max pooling": sequential(
        conv(1, 4), RELU(), conv(4, 4), nn.MaxPool2d(2), BN(4), RELU(), nn.Flatten(), nn.Linear(16, 3)
    ),
    "negative norm behind max pooling": sequential(
        conv(1, 4), RELU(), conv(4, 4), nn.MaxPool2d(2), negated(BN(4)), RELU(), nn.Flatten(), nn.Linear(16, 3)
    ),
    "negative norm before max pooling": sequential(
        conv(1, 4), RELU(), negated(BN(4)), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    ),
    "norm at the end": sequential(conv(1, 4), RELU(), nn.Flatten(), nn.BatchNorm1d(64)),
    "norm of what two layers read": block(
        lambda m, x: (lambda y: m.r1(y) + m.r2(m.bn(y)))(m.a(x)), a=conv(4, 4), bn=BN(4), r1=RELU(), r2=RELU()
    ),
    "global mean": block(lambda m, x: m.r(m.a(x)).mean([2, 3]), a=conv(4, 5), r=RELU(), features=5),
    "mean over channels": block(lambda m, x: m.r(m.a(x)).mean(1, keepdim=True), a=conv(4, 5), r=RELU(), features=16),
    "uneven adaptive pooling": block(lambda m, x: m.pool(x), pool=nn.AdaptiveAvgPool2d(3), features=36),
    "enlarging adaptive pooling": block(lambda m, x: m.pool(x), pool=nn.AdaptiveAvgPool2d((6, 2)), features=48),
    "pooled with ceil_mode": block(lambda m, x: m.pool(x), pool=POOL(3, 2, ceil_mode=True), features=16),
    "padding not counted": block(
        lambda m, x: m.pool(x), pool=POOL(2, padding=1, count_include_pad=False), features=36
    ),
    "divisor": block(lambda m, x: m.pool(x), pool=POOL(2, divisor_override=3), features=16),
    "uneven pooling before ReLU": block(lambda m, x: m.r(m.pool(m.a(x))), a=conv(4, 4), pool=nn.AdaptiveAvgPool2d(3),
                                        r=RELU(), features=36),
    "adaptive max pooling": block(lambda m, x: m.pool(x), pool=nn.AdaptiveMaxPool2d(3), features=36),
    "upsampling": block(lambda m, x: m.up(x), up=nn.Upsample(scale_factor=2), features=256),
    "pixel shuffle": block(lambda m, x: m.a(m.shuffle(x)), shuffle=nn.PixelShuffle(2), a=conv(1, 1)),
    "zero padding": block(lambda m, x: m.a(m.p(x)), p=nn.ZeroPad2d((1, 0, 0, 2)), a=nn.Conv2d(4, 2, 3), features=24),
    "zero padding by function": block(lambda m, x: m.a(F.pad(x, (1, 1))), a=nn.Conv2d(4, 2, 3), features=16),
    "scaled by numbers": block(lambda m, x: m.r(m.a(x * 2 / 3) - 0.1) + 0.5, a=conv(4, 4), r=RELU()),
    "subtracted": block(lambda m, x: m.r(0.3 - m.a(x)) - x, a=conv(4, 4), r=RELU()),
    "negated": block(lambda m, x: m.r(-m.a(-x)), a=conv(4, 4), r=RELU()),
    "depthwise": block(
        lambda m, x: m.r2(m.point(m.r1(m.depth(x)))), depth=conv(4, 4, groups=4), r1=nn.ReLU6(), point=conv(4, 6, 1),
        r2=nn.ReLU6(), features=96,
    ),
    "inverted residual": block(
        lambda m, x: m.c(x + m.b(m.r(m.a(x)))), a=conv(4, 8, 1), r=nn.ReLU6(), b=conv(8, 4, 1), c=conv(4, 4)
    ),
    "gated by channel constants": Scaled,
}  # fmt: skip


def inputs(samples=30):
    return torch.rand(samples, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NETS)
def test_scores_are_those_of_a_plain_simulation(name):
    model, x = NETS[name](), inputs()
    for per_channel in (False, True):
        if per_channel and name == "pixel shuffle":  # which makes positions of channels
            with pytest.raises(ConversionError, match="use per_channel=False"):
                to_snntorch(model, x, timesteps=T, per_channel=True)
            continue
        network = to_snntorch(model, x, timesteps=T, threshold="max", correction="none", per_channel=per_channel)
        expected = simulate_model(model, x[:7], x, T, per_channel)
        with torch.no_grad():
            found = network(x[:7], per_step=True)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", one_in(3, NETS))
def test_scores_converge_to_those_of_the_network(name):
    model, x = NETS[name](), inputs(12)
    network = to_snntorch(model, x, timesteps=512, threshold="max", correction="none")
    with torch.no_grad():
        exact = model(x)
        error = (network(x, per_step=True) - exact).abs().mean((1, 2)) / exact.abs().mean()
    # 1/T: sixteen times the steps, about a sixteenth of the error.
    assert float(error[511]) < 0.02
    assert float(error[16:32].mean() / error[256:512].mean()) > 6


def briefly_trained(model, x):
    """A few steps of training, so that weights, statistics and activations are those of a trained network."""
    y = torch.arange(len(x)) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9)
    model.train()
    for _ in range(8):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        for _ in range(20):
            model(x)  # running statistics of the weights that came out
    return model


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "mobilenet_v2"])
def test_networks_of_torchvision_converge(name, trained):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    model, x = getattr(models, name)(num_classes=10), torch.rand(20, 3, 32, 32)
    if name == "vgg11_bn":
        model.classifier = nn.Sequential(nn.Linear(25088, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 10))
    with torch.no_grad():
        for _ in range(20):
            model.train()(x)  # statistics
    model = (briefly_trained(model, x) if trained else model).double().eval()
    x = x.double()
    network = to_snntorch(model, x, timesteps=256, threshold="max", correction="none", per_channel=True)
    with torch.no_grad():
        exact = model(x[:2])
        centered = exact - exact.mean(1, keepdim=True)
        error = (network(x[:2], per_step=True) - exact).abs().mean((1, 2)) / centered.abs().mean()
    assert float(error[240:].mean()) < 0.2
    assert float(error[24:40].mean() / error[216:256].mean()) > 2.5  # 7.5 by 1/T, which deep ones get to later


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_resnet18_is_a_plain_simulation_of_it():
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    model, x = randomize(models.resnet18(num_classes=10)), torch.rand(6, 3, 32, 32, dtype=torch.float64)
    network = to_snntorch(model, x, timesteps=4, threshold="max", correction="none")
    with torch.no_grad():
        torch.testing.assert_close(network(x[:2], per_step=True), simulate_model(model, x[:2], x, 4))
    # One synapse to each neuron for the identity shortcuts, and as many operations as spikes.
    shortcuts = [name for name, module in network.body.named_modules() if isinstance(module, OneToOne)]
    assert len(shortcuts) == 5
    with SynapticOperations(network) as sops, torch.no_grad():
        network(x[:2])
        assert all(0 < sops.by_layer()[name.removeprefix("body.")] <= 4 * 64 * 8 * 8 for name in shortcuts)


def test_spikes_over_an_identity_shortcut_are_counted_once_each():
    model, x = NETS["identity shortcut"](), inputs()
    network = to_snntorch(model, x, timesteps=T, threshold="max", correction="none")
    spikes = []
    network.body.relu.register_forward_hook(lambda m, args, output: spikes.append(output[0]))
    with SynapticOperations(network) as sops, torch.no_grad():
        network(x)
        assert sops.by_layer()["out_synapse"] == float(torch.stack(spikes).sum()) / len(x)
    level = network.levels["relu"]
    torch.testing.assert_close(network.body.out_synapse.weight.detach(), level)


def test_inputs_in_channels_last():
    model, x = NETS["two blocks"](), inputs()
    network = to_snntorch(model, x, timesteps=T)
    last = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(network(last), network(x))
    other = to_snntorch(model.to(memory_format=torch.channels_last), last, timesteps=T)
    with torch.no_grad():
        torch.testing.assert_close(other(x), network(x))


FUNCTIONAL = {
    "relu6": (F.relu6, nn.ReLU6()),
    "hardtanh": (lambda x: F.hardtanh(x, -0.5, 0.7), nn.Hardtanh(-0.5, 0.7)),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.2), nn.LeakyReLU(0.2)),
    "clamp from 0": (lambda x: x.clamp(min=0), nn.ReLU()),
    "clamp_min": (lambda x: torch.clamp_min(x, 0), nn.ReLU()),
    "clamp to 1": (lambda x: torch.clamp(x, 0, 1), nn.Hardtanh(0, 1)),
    "clip to 1": (lambda x: x.clip(0, 1), nn.Hardtanh(0, 1)),
    "in place": (lambda x: F.leaky_relu(x, 0.2, inplace=True), nn.LeakyReLU(0.2)),
    "interpolate": (lambda x: F.interpolate(F.relu(x), scale_factor=2), nn.Sequential(nn.ReLU(), nn.Upsample(None, 2))),
    "adaptive_max_pool2d": (
        lambda x: F.adaptive_max_pool2d(x.relu(), 2), nn.Sequential(nn.ReLU(), nn.AdaptiveMaxPool2d(2)),
    ),
    "adaptive_avg_pool2d": (
        lambda x: F.adaptive_avg_pool2d(x.relu(), 3), nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(3)),
    ),
    "mean": (lambda x: x.relu().mean(dim=(-2, -1), keepdim=True), nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1))),
    "torch.cat": (lambda x: torch.cat((x.relu(),), dim=-3), nn.ReLU()),
    "torch.add": (lambda x: torch.add(x.relu(), other=0.0), nn.ReLU()),
    "flatten of a keyword": (
        lambda x: torch.flatten(input=x.relu(), start_dim=2), nn.Sequential(nn.ReLU(), nn.Flatten(2)),
    ),
    "x / 1": (lambda x: torch.div(x, 1).relu(), nn.ReLU()),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_functions_are_the_modules_they_stand_for(name):
    function, module = FUNCTIONAL[name][0], copy.deepcopy(FUNCTIONAL[name][1])
    torch.manual_seed(0)
    first, last, x = conv(1, 4).double(), nn.LazyLinear(3).double(), inputs()
    by_module = nn.Sequential(first, module, nn.Flatten(), last)
    by_module(x)
    by_function = Chain(lambda m, x: m.last(function(m.first(x)).flatten(1)), first=first, last=last)
    with torch.no_grad():
        torch.testing.assert_close(by_function(x), by_module(x))
    ours, theirs = (to_snntorch(model, x, timesteps=T) for model in (by_function, by_module))
    with torch.no_grad():
        torch.testing.assert_close(ours(x, per_step=True), theirs(x, per_step=True))
    assert len(ours.levels) == len(theirs.levels) >= 1


def test_a_shift_that_is_the_same_everywhere_is_a_bias():
    network = to_snntorch(NETS["norm before linear"](), inputs(), timesteps=T)
    assert "output_shift" not in network.body.state_dict()
