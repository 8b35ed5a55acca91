"""Forms in which people write a forward: each converges to what the model gives when it is called."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from snnreg_plugins import to_norse, to_snntorch

T = 256


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.conv2 = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, padding=1)
        self.fc, self.out = nn.Linear(8, 8), nn.Linear(8, 3)
        self.weight, self.kernel = nn.Parameter(torch.randn(3, 8) / 3), nn.Parameter(torch.randn(8, 8, 3, 3) / 9)
        self.register_buffer("mean", torch.tensor(0.5))

    def pooled(self, x):
        return F.relu(self.conv(x)).mean((2, 3))


def form(function):
    net = type(function.__name__, (Net,), {"forward": function})
    FORMS[function.__name__] = net
    return function


FORMS: dict = {}


@form
def pools_by_size(self, x):
    x = F.relu(self.conv(x))
    return self.out(F.avg_pool2d(x, x.size()[3]).view(x.size(0), -1))


@form
def max_pools_by_size(self, x):
    x = F.relu(self.conv(x))
    return self.out(F.max_pool2d(x, (x.shape[2], x.shape[3])).flatten(1))


@form
def upsamples_to_a_skip(self, x):
    skip = F.relu(self.conv(x))
    x = F.interpolate(F.max_pool2d(F.relu(self.conv2(skip)), 2), size=skip.shape[2:])
    return self.out((x + skip).mean((2, 3)))


@form
def sums_over_positions(self, x):
    return self.out(F.relu(self.conv(x)).sum((2, 3)) / 36)


@form
def sums_and_divides_by_the_size(self, x):
    x = F.relu(self.conv(x))
    return self.out(x.sum(dim=[-2, -1]) / (x.shape[2] * x.shape[3]))


@form
def maximum_over_positions(self, x):
    return self.out(F.relu(self.conv(x)).amax((2, 3)))


@form
def maximum_over_positions_kept(self, x):
    return self.out(torch.amax(F.relu(self.conv(x)), dim=(-1, -2), keepdim=True).flatten(1))


@form
def own_weight(self, x):
    return F.linear(F.relu(self.fc(self.pooled(x))), self.weight, self.out.bias)


@form
def computed_weight(self, x):
    return F.linear(self.pooled(x), F.normalize(self.weight, dim=1) * 2)


@form
def standardized_kernel(self, x):
    kernel = self.kernel - self.kernel.mean((1, 2, 3), keepdim=True)
    return self.out(F.relu(F.conv2d(F.relu(self.conv(x)), kernel, self.conv2.bias, padding=1)).mean((2, 3)))


@form
def maximum_of_a_dimension(self, x):
    values, _ = F.relu(self.conv(x)).flatten(2).max(dim=2)
    return self.out(torch.max(values.unsqueeze(2), -1, keepdim=True).values.squeeze(2))


@form
def maximum_over_the_first_of_two(self, x):
    x = F.relu(self.conv(x)).flatten(2).transpose(1, 2)  # (B, points, channels), as of a point cloud
    return self.out(x.amax(1))


@form
def adds_a_multiple(self, x):
    x = F.relu(self.conv(x))
    return self.out(torch.sub(torch.add(x, F.relu(self.conv2(x)), alpha=0.5), x, alpha=0.25).mean((2, 3)))


@form
def rectifies_in_place_by_the_way(self, x):
    x = self.conv(x)
    before = x * 2
    F.relu_(x)
    y = self.conv2(x)
    y.add_(x)
    y.relu_()
    return self.out((y + F.relu(before)).mean((2, 3)))


@form
def moves_as_people_do(self, x):
    x = F.relu(self.conv(x))
    x = torch.stack(x.mT.flip(2).roll(1, -1).unbind(1)[::-1], 1).swapaxes(2, 3)
    x = torch.cat(x.movedim(2, 3).split(4, dim=1)[::-1], 1)
    x = x.index_select(1, torch.tensor([1, 0, 2, 3, 4, 5, 7, 6]))[:, torch.tensor([0, 2, 1, 3, 4, 5, 6, 7])]
    return self.out(x.view_as(x).mean((2, 3)))


@form
def normalizes_by_function(self, x):
    average, variance = self.kernel.mean((1, 2, 3)), self.kernel.var((1, 2, 3)) + 1
    x = F.batch_norm(self.conv(x), average, variance, self.out.weight[0], None, self.training)
    x = torch.batch_norm(F.relu(x), None, self.out.weight[1], average, variance, False, 0.1, 1e-3, True)
    return self.out(F.relu(self.conv2(x)).mean((2, 3)))


@form
def shuffles_channels(self, x):
    x = F.relu(self.conv(x))
    x = x.view(x.size(0), 2, 4, 6, 6).transpose(1, 2).contiguous().view(x.shape)
    return self.out(F.avg_pool2d(x.transpose(2, 3), 2).transpose(2, 3).contiguous().view(len(x), 8, 9).mean(2))


@form
def length_is_the_batch(self, x):
    x = F.relu(self.conv(x))
    return self.out(x.reshape(len(x), 8, -1).mean(2))


@form
def ends_in_log_softmax(self, x):
    return F.log_softmax(self.out(self.pooled(x)), dim=1)


@form
def ends_in_softmax_of_a_maximum(self, x):
    return F.softmax(self.conv2(F.relu(self.conv(x))).flatten(2).max(2)[0], dim=1)


@form
def ends_in_sigmoid(self, x):
    return torch.sigmoid(self.out(self.pooled(x)))


@form
def casts(self, x):
    return self.out(self.pooled(x.float().to(x.device).contiguous()).type_as(x).clone().detach())


@form
def asserts(self, x):
    torch._assert(x.ndim == 4, "images")
    assert len(x.shape) == 4
    assert x.shape[1] == 1
    return self.out(self.pooled(x))


@form
def optional_arguments(self, x, normalized=None, scale=2.0, return_features=False, *args, **kwargs):
    x = x if normalized is not None else (x - self.mean) * scale
    features = self.pooled(x)
    return (self.out(features), features) if return_features else self.out(features)


@form
def looks_at_the_type(self, x):
    return self.out(self.pooled(x * 3 if isinstance(x, torch.Tensor) else torch.as_tensor(x)))


@form
def branches_on_the_size(self, x):
    x = F.relu(self.conv(x))
    if x.shape[-1] > 4:
        x = F.avg_pool2d(x, 2)
    return self.out(x.mean((2, 3)))


@pytest.mark.parametrize("name", FORMS)
def test_converges_to_the_model(name):
    net, x = FORMS[name]().eval(), torch.rand(40, 1, 8, 8)
    network = to_snntorch(net, x, timesteps=T, threshold="max", correction="none")
    with torch.no_grad():
        expected = net(x)
        errors = [
            ((scores - expected).abs().max() / expected.std()).item()
            for scores in network(x, per_step=True)[[31, T - 1]]
        ]
    assert errors[1] < 0.12
    assert errors[1] < 0.4 * errors[0]


class Subclass(nn.Linear):
    """Computes its weight."""

    def forward(self, x):
        return F.linear(x, self.weight / self.weight.norm(dim=1, keepdim=True), self.bias)


def test_a_layer_that_computes_its_weight_keeps_its_name():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), Subclass(16, 3)), torch.rand(30, 6)
    network = to_snntorch(net, x, timesteps=T, threshold="max", correction="none")
    assert "2" in dict(network.body.named_modules())
    assert (network(x) - net(x)).abs().max() < 0.05


def test_eval_of_stochastic_depth_is_nothing():
    ops = pytest.importorskip("torchvision.ops")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), ops.StochasticDepth(0.5, "row"), nn.Flatten(), nn.Linear(144, 3))
    x = torch.rand(20, 1, 8, 8)
    network = to_snntorch(net, x, timesteps=T, threshold="max", correction="none")
    assert (network(x) - net.eval()(x)).abs().max() < 0.05


def test_bytes_are_inputs_where_forward_takes_them():
    torch.manual_seed(0)

    class Frames(Net):
        def forward(self, x):
            return self.out(self.pooled(x.float() / 255))

    net, x = Frames().eval(), torch.randint(256, (40, 1, 8, 8), dtype=torch.uint8)
    network = to_snntorch(net, x, timesteps=T, threshold="max", correction="none")
    with torch.no_grad():
        assert (network(x) - net(x)).abs().max() < 0.12 * net(x).std()


class Fully(Net):
    """Convolutions alone, to a map of scores."""

    def forward(self, x):
        return self.conv2(F.avg_pool2d(F.relu(self.conv2(F.relu(self.conv(x)))), 2))


@pytest.mark.parametrize("export", [to_snntorch, to_norse])
def test_another_size_where_the_network_takes_any(export):
    net, x = Fully().eval(), torch.rand(20, 1, 12, 12)
    network = export(net, x, timesteps=T, threshold="max", correction="none", per_channel=True)
    other = torch.rand(6, 1, 10, 16)
    with torch.no_grad():
        expected = net(other)
        assert network(other).shape == expected.shape
        assert (network(other) - expected).abs().max() < 0.15 * expected.std()
    with pytest.raises(ValueError, match=r"Expected inputs of shape \(B, 1, 12, 12\), .* but got \(6, 2, 10, 16\)"):
        network(torch.rand(6, 2, 10, 16))


@pytest.mark.parametrize("options", [{}, {"correction": "potential"}])
@pytest.mark.parametrize(
    "name", ["pools_by_size", "sums_over_positions", "branches_on_the_size", "asserts", "adaptive"]
)
def test_another_size_is_refused_where_the_first_is_in_the_network(name, options):
    adaptive = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3))
    net = adaptive if name == "adaptive" else FORMS[name]()
    network = to_snntorch(net, torch.rand(20, 1, 8, 8), timesteps=4, **options)
    with pytest.raises(
        ValueError, match=r"shape \(B, 1, 8, 8\), as the calibration data had, but got \(5, 1, 12, 12\)"
    ):
        network(torch.rand(5, 1, 12, 12))


def test_calibration_of_several_sizes_serves_what_takes_any():
    net, sizes = Fully().eval(), [torch.rand(20, 1, 12, 12), torch.rand(20, 1, 10, 16)]
    network = to_snntorch(net, sizes, timesteps=T, threshold="max", correction="none")
    with torch.no_grad():
        for x in sizes:
            assert (network(x) - net(x)).abs().max() < 0.15 * net(x).std()
    assert to_snntorch(net, sizes, timesteps=4).conversion["correction"] == "channel_potential"
    shapes = r"shapes \(B, 1, 12, 12\) and \(B, 1, 10, 16\)"
    with pytest.raises(ValueError, match=f"one size, for a network that depends on it, but got {shapes}"):
        to_snntorch(net, sizes, timesteps=4, correction="potential")
    one = nn.Sequential(net.conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), net.out)
    with pytest.raises(ValueError, match=f"one size, for a network that depends on it, but got {shapes}"):
        to_snntorch(one, sizes, timesteps=4)


def test_a_branch_on_the_size_fits_one_size():
    class Branches(Fully):
        def forward(self, x):
            return super().forward(x if x.shape[2] > 11 else 2 * x)

    network = to_snntorch(Branches(), torch.rand(20, 1, 12, 12), timesteps=4)
    with pytest.raises(ValueError, match="as the calibration data had"):
        network(torch.rand(5, 1, 10, 10))


def test_neurons_that_are_corrected_one_by_one_fit_one_size():
    network = to_snntorch(Fully(), torch.rand(20, 1, 12, 12), timesteps=4, correction="potential")
    with pytest.raises(ValueError, match="as the calibration data had"):
        network(torch.rand(5, 1, 10, 10))


def test_one_sample_without_a_batch_is_refused_and_the_remedy_works():
    network, x = to_snntorch(Fully(), torch.rand(20, 1, 12, 12), timesteps=4), torch.rand(1, 12, 12)
    with pytest.raises(ValueError, match=r"but got \(1, 12, 12\)\. Give one sample as a batch of one: x\[None\]\."):
        network(x)
    assert len(network(x[None])) == 1


@pytest.mark.parametrize("per_channel", [False, True])
def test_two_populations_may_come_last(per_channel):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 5), nn.LeakyReLU(0.3)), torch.randn(40, 6)
    network = to_snntorch(net, x, timesteps=T, threshold="max", correction="none", per_channel=per_channel)
    assert (network(x) - net(x)).abs().max() < 0.05 * net(x).std()
