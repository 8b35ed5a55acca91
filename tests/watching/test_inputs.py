"""Whole numbers in a model's input: an image is multiplied, events are counted, and who does not say is told."""

import warnings

import pytest
import snntorch
import torch
from torch import nn
from torch.nn import functional as F

from snnreg_plugins import Energy, SynapticOperations, to_snntorch
from snnreg_plugins.profile import profile
from tests.helpers import brute_force_operations


class Net(nn.Module):
    """A layer behind something done to the image, and another one."""

    def __init__(self, idiom):
        super().__init__()
        self.idiom, self.layer, self.fc, self.pool = idiom, nn.Conv2d(1, 2, 3), nn.Linear(72, 3), nn.AvgPool2d(2)

    def forward(self, x):
        x = self.idiom(self, x)
        return self.fc(F.adaptive_avg_pool2d(x.relu(), 6).flatten(1))


IDIOMS = {
    "as_it_is": (lambda net, x: net.layer(x), lambda x: x),
    "cast": (lambda net, x: net.layer(x.byte().float()), lambda x: x),
    "turned": (lambda net, x: net.layer(x.transpose(2, 3).contiguous()), lambda x: x.transpose(2, 3)),
    "cropped": (lambda net, x: net.layer(x[..., 1:, :]), lambda x: x[..., 1:, :]),
    "padded": (lambda net, x: net.layer(F.pad(x, (1, 1))), lambda x: F.pad(x, (1, 1))),
    "max_pool": (lambda net, x: net.layer(F.max_pool2d(x, 2, 1)), lambda x: F.max_pool2d(x, 2, 1)),
    "average": (lambda net, x: net.layer(net.pool(x)), lambda x: 4 * F.avg_pool2d(x, 2)),
    "functional": (lambda net, x: F.conv2d(x, net.layer.weight), lambda x: x),
}


def images():
    torch.manual_seed(0)
    return torch.randint(0, 256, (4, 1, 12, 12)) * (torch.rand(4, 1, 12, 12) < 0.6)


def counted(metric, name="layer"):
    return tuple(round(metric.by_layer(each)[name] * int(metric.samples)) for each in metric.quantities)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", IDIOMS)
def test_an_image_is_what_the_user_says(name, context):
    idiom, reads = IDIOMS[name]
    x = images().float()
    events, _, dense = brute_force_operations(nn.Conv2d(1, 2, 3), reads(x))
    active, _, _ = brute_force_operations(nn.Conv2d(1, 2, 3), (reads(x) != 0).float())
    for told, expected in ((True, (events, 0, dense)), (False, (0, active, dense)), (None, (events, 0, dense))):
        with (
            warnings.catch_warnings(record=True) as caught,
            SynapticOperations(Net(idiom), input_events=told) as metric,
        ):
            warnings.simplefilter("always")
            with context():
                for _ in range(3):
                    metric.watch.model(x)
        assert counted(metric, "" if name == "functional" else "layer") == tuple(3 * number for number in expected)
        said = [str(each.message) for each in caught if "input_events" in str(each.message)]
        assert len(said) == (told is None)
        if told is None:
            where = "Net" if name == "functional" else "layer"
            assert f"up to {int(reads(x).max())}, that {where!r} reads from the model's input" in said[0]


@pytest.mark.parametrize("told", [None, True, False])
def test_images_of_0_and_1_are_added_up_and_others_are_not_asked_about(told, recwarn):
    x = (images() > 127).float()
    events, _, dense = brute_force_operations(nn.Conv2d(1, 2, 3), x)
    real = brute_force_operations(nn.Conv2d(1, 2, 3), x / 3)
    net = Net(IDIOMS["as_it_is"][0])
    with SynapticOperations(net, input_events=told) as metric:
        net(x)
        assert counted(metric) == (events, 0, dense)
        metric.reset()
        net(x / 3)
        assert counted(metric) == real
    assert not [each for each in recwarn if "input_events" in str(each.message)]


def test_images_that_a_model_divides_are_multiplied(recwarn):
    net = Net(lambda net, x: net.layer(x / 255.0))
    with SynapticOperations(net) as metric:
        net(images().byte())
    assert counted(metric)[0] == 0
    assert not recwarn


def test_only_the_input_is_what_the_user_says():
    """Sums of spikes further up are events."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), snntorch.Leaky(beta=0.5, init_hidden=True), nn.AvgPool2d(2, divisor_override=1),
        nn.Flatten(), nn.Linear(50, 3),
    )  # fmt: skip
    with SynapticOperations(net, input_events=False) as metric:
        net(images().float())
    assert counted(metric, "0")[0] == 0
    assert counted(metric, "4")[0] > 0
    assert counted(metric, "4")[1] == 0


def test_a_recurrent_layer_that_reads_an_image():
    x = torch.randint(0, 3, (2, 5, 4)).float()
    for told, expected in ((True, (int(x.sum()), 0)), (False, (0, int((x != 0).sum())))):
        layer = nn.GRU(4, 6, batch_first=True)
        with SynapticOperations(layer, input_events=told) as metric:
            for _ in range(3):
                outputs, _ = layer(x)
        states = int((outputs[:, :-1] != 0).sum())
        assert counted(metric, "")[:2] == (54 * expected[0], 54 * (expected[1] + states))


def test_energy_and_profile_ask_the_same():
    x = images().float()
    for told in (True, False):
        net = Net(IDIOMS["as_it_is"][0])
        with Energy(net, input_events=told) as energy:
            net(x)
        found = profile(net, x, input_events=told)
        assert found.sops == pytest.approx(float(energy.total("sops")))
        assert (found.layers[0].sops > 0) == told
    with pytest.warns(UserWarning, match="profile takes the whole numbers, up to 2.*'layer'"):
        profile(net, x)


def test_an_exported_network_knows(recwarn):
    net = nn.Sequential(nn.Flatten(), nn.Linear(144, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    network = to_snntorch(net, images().float(), timesteps=2)
    with SynapticOperations(network) as metric:
        network(images().float())
    assert counted(metric, "1")[0] == 0
    assert not [each for each in recwarn if "input_events" in str(each.message)]


def test_what_is_no_flag_is_refused():
    with pytest.raises(ValueError, match="`input_events` to be True or False, but got 'no'"):
        SynapticOperations(nn.Linear(2, 3), input_events="no")
