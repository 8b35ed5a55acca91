"""NIR files bring back the same network in either framework; hostile ones are refused whole."""

from __future__ import annotations

import os
import pickle
import sys

import h5py
import nir
import nirtorch
import norse
import numpy as np
import pytest
import snntorch
import torch
from snntorch.import_nir import import_from_nir
from torch import nn

from snnreg_plugins import ConversionError, SynapticOperations, from_nir, to_nir, to_norse, to_snntorch
from snnreg_plugins.frameworks.norse import SoftResetCell, SoftResetParameters
from snnreg_plugins.frameworks.surrogate import FastSigmoid
from snnreg_plugins.nir.nodes import elementwise
from tests import nets
from tests.export.test_architectures import NETS, inputs, negated, randomize
from tests.export.test_norse import spikes
from tests.nets import Chain

RELU, POOL = nn.ReLU, nn.AvgPool2d


def named(name):
    return lambda: (NETS[name](), inputs(20))


def made(name):
    return lambda: nets.make(name)[::2]


def layers(*modules, shape=(1, 8, 8)):
    def make():
        return randomize(nn.Sequential(*modules)), torch.rand(20, *shape, dtype=torch.float64)

    return make


def chain(forward, shape, **modules):
    def make():
        return randomize(Chain(forward, **modules)), torch.rand(20, *shape, dtype=torch.float64)

    return make


class Centered(nn.Module):
    """Reads a tensor of its own twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.relu = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 3), nn.ReLU()
        self.register_buffer("mean", torch.tensor(0.4))

    def forward(self, x):
        return self.c(self.relu(self.a(x - self.mean) + self.b(self.mean - x)))


FLAT = nn.Flatten
with torch.random.fork_rng():
    torch.manual_seed(0)
    #: Name to a function that makes (network, inputs), and options of the export.
    ROWS = {
        "lenet": (made("lenet_functional"), {}),
        "lenet, per channel": (made("lenet_functional"), dict(per_channel=True, beta=0.9)),
        "lenet, potentials": (made("lenet_functional"), dict(correction="potential", surrogate_slope=3.0)),
        "lenet, biases": (made("lenet_functional"), dict(correction="bias")),
        "lenet, neurons": (made("lenet_functional"), dict(coding="neurons")),
        "lenet, Poisson": (made("lenet_functional"), dict(coding="poisson")),
        "lenet, latency": (made("lenet_functional"), dict(coding="latency")),
        "mlp": (made("mlp"), {}),
        "mlp, leaky": (made("mlp"), dict(beta=0.9, initial_potential=0.0)),
        "no bias": (made("no_bias"), {}),
        "grouped": (made("grouped"), dict(per_channel=True)),
        "names of code": (made("reused_weights"), {}),
        "squeezed": (made("squeezed"), dict(per_channel=True)),
        "scores of spikes": (made("ends_in_relu"), dict(per_channel=True)),
        "identity shortcut": (named("identity shortcut"), dict(per_channel=True)),
        "two blocks": (named("two blocks"), {}),
        "pre-activation": (named("pre-activation"), {}),
        "LeakyReLU": (named("LeakyReLU"), dict(per_channel=True)),
        "PReLU": (named("PReLU"), {}),
        "bias map": (named("norm before padded convolution"), {}),
        "normalized input": (named("gated by channel constants"), {}),
        "global mean": (named("global mean"), {}),
        "norm at the end": (named("norm at the end"), {}),
        "norm between pools": (named("norm between pools"), {}),
        "input arithmetic": (
            chain(lambda m, x: m.c(m.f(m.r(m.a((0.5 - x) * 2 / 3 + 0.25 - x)))), (1, 8, 8), a=nn.Conv2d(1, 3, 3),
                  r=RELU(), f=FLAT(), c=nn.Linear(108, 3)), {}),
        "a tensor twice": (lambda: (Centered().double(), torch.rand(20, 4, dtype=torch.float64)), {}),
        "the same twice": (
            chain(lambda m, x: (lambda y: m.c(m.s(y + y + y)))(m.b(m.r(m.a(x)))), (4,), a=nn.Linear(4, 5),
                  b=nn.Linear(5, 5), r=RELU(), s=RELU(), c=nn.Linear(5, 3)), {}),
        "uneven kernels": (layers(
            nn.Conv2d(1, 4, (2, 4), padding="same"), RELU(), nn.Conv2d(4, 4, (3, 2), (1, 2), padding=(1, 0)), RELU(),
            FLAT(2), nn.Conv1d(4, 2, 3, padding=1, dilation=2), RELU(), FLAT(), nn.Linear(60, 3)), {}),
        "pooled input": (layers(
            negated(nn.BatchNorm2d(1)), POOL(2), nn.Conv2d(1, 4, 3), RELU(), FLAT(), nn.Linear(16, 3)), {}),
        "pooled to little": (layers(
            negated(nn.BatchNorm2d(1)), POOL(100), FLAT(), nn.Linear(4, 4), RELU(), nn.Linear(4, 3),
            shape=(1, 200, 200)), {}),
        "one dimension": (layers(
            nn.Conv1d(2, 4, 3, bias=False), RELU(), nn.AvgPool1d(3, 2, padding=1), nn.Conv1d(4, 4, 2), RELU(),
            nn.AdaptiveAvgPool1d(1), FLAT(), nn.Linear(4, 3), shape=(2, 13)), dict(per_channel=True)),
    }  # fmt: skip


@pytest.fixture
def path(tmp_path):
    return tmp_path / "network.nir"


def seeded(network, x):
    torch.manual_seed(7)
    return spikes(network, x)


@pytest.mark.parametrize(
    ("row", "dtype"),
    [
        *((row, torch.float32) for row in ROWS),
        *((row, torch.float64) for row in ("lenet", "LeakyReLU", "one dimension")),
    ],
)
def test_a_network_comes_back_the_same(row, dtype, path):
    make, options = ROWS[row]
    model, x = make()
    model, x = model.to(dtype), x.to(dtype)
    network = to_snntorch(model, x, timesteps=6, **options)
    to_nir(network, path, input_shape=x.shape[1:])
    x = x[:5]
    expected, scores = seeded(network, x)
    with SynapticOperations(network) as counted:
        seeded(network, x)
    for target in ("snntorch", "norse"):
        found = from_nir(path, target)
        again, other = seeded(found, x)
        assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))
        assert torch.equal(other, scores)
        assert found.conversion == network.conversion | {"framework": target}
        with SynapticOperations(found) as operations:
            seeded(found, x)
        assert operations.by_layer() == counted.by_layer()
    state, restored = network.state_dict(), from_nir(path).state_dict()
    assert state.keys() == restored.keys()
    assert all(state[key].dtype == restored[key].dtype for key in state)
    assert all(torch.equal(state[key], restored[key]) for key in state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, path):
    model, _, x = nets.make("mlp", torch.float32)
    network = to_snntorch(model, x, timesteps=6, per_channel=True, beta=0.9).to(dtype)
    to_nir(network, path, input_shape=(6,))
    for target in ("snntorch", "norse"):
        found = from_nir(path, target)
        assert {parameter.dtype for parameter in found.parameters()} == {dtype}
        assert torch.equal(found(x.to(dtype)), network(x.to(dtype)))


def test_from_norse_and_on(path):
    model, _, x = nets.make("lenet_functional")
    network = to_norse(model, x, timesteps=6, per_channel=True, beta=0.9)
    to_nir(network, path, input_shape=x.shape[1:])
    found = from_nir(path, "norse")
    assert found.state_dict().keys() == network.state_dict().keys()
    to_nir(from_nir(path, "snntorch"), path, input_shape=x.shape[1:])
    assert torch.equal(from_nir(path, "norse")(x, per_step=True), network(x, per_step=True))


def test_what_is_read_trains(path):
    model, _, x = nets.make("lenet_functional")
    network = to_snntorch(model, x, timesteps=4, surrogate_slope=2.0)
    to_nir(network, path, input_shape=x.shape[1:])
    gradients = []
    for one in (network, from_nir(path), from_nir(path, "norse")):
        one(x).square().sum().backward()
        gradients.append([parameter.grad for parameter in one.parameters()])
    for a, b, c in zip(*gradients, strict=True):
        assert a.abs().sum() > 0
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=1e-12, atol=1e-12)
    assert torch.equal(pickle.loads(pickle.dumps(from_nir(path)))(x), network(x))


def test_trained_networks_are_written(path):
    model, _, x = nets.make("mlp")
    network = to_snntorch(model, x, timesteps=4)
    network(x).square().sum().backward()
    torch.optim.SGD(network.parameters(), 0.1).step()
    network.timesteps = 9
    before = torch.get_rng_state()
    to_nir(network, path, input_shape=(6,))
    found = from_nir(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(found(x), network(x))
    assert found.timesteps == 9


def test_a_network_is_not_run_to_be_written(path):
    model, _, x = nets.make("mlp")
    network = to_snntorch(model, x, timesteps=4)
    with SynapticOperations(network) as operations:
        to_nir(network, path, input_shape=(6,))
        network(x)
        counted = float(operations.compute())
    with SynapticOperations(network) as operations:
        network(x)
        assert float(operations.compute()) == counted


def test_input_shape_is_what_the_network_says(path):
    model, _, x = nets.make("mlp")
    network = to_snntorch(model, x, timesteps=4)
    network.conversion["input_shape"] = [6]
    to_nir(network, path)
    assert torch.equal(from_nir(path)(x), network(x))


# What NIR cannot say

CONV = nn.Conv2d(1, 4, 3)
REFUSED = {
    "max pooling": (layers(CONV, RELU(), nn.MaxPool2d(2), FLAT(), nn.Linear(36, 3)), "'2'.*average pooling"),
    "padding mode": (made("padding_modes"), "'0'.*padding_mode='circular'.*zeros"),
    "transposed": (made("transposed"), "'2'.*ConvTranspose2d.*save_network"),
    "3d": (made("three_dimensions"), "'0'.*Conv3d.*save_network"),
    "concatenation": (named("concatenation"), "cat.*save_network"),
    "sequences": (made("linear_on_sequences"), r"'0'.*\(5, 6\)"),
    "permuted": (made("reshapes"), "permute"),
    "unequal windows": (named("uneven adaptive pooling"), "'pool'.*windows.*one size"),
    "ceil_mode": (named("pooled with ceil_mode"), "'pool'.*ceil_mode=False"),
    "upsampling": (named("upsampling"), "'up'.*Upsample"),
    "mean over channels": (named("mean over channels"), r"'mean'.*dimensions \(1,\)"),
}


@pytest.mark.parametrize("row", REFUSED)
def test_what_nir_has_not_is_refused_by_name(row, path):
    make, message = REFUSED[row]
    model, x = make()
    network = to_snntorch(model, x, timesteps=3)
    with pytest.raises(ConversionError, match=f"Cannot write layer {message}|Cannot write layer '{message}"):
        to_nir(network, path, input_shape=x.shape[1:])
    assert not os.listdir(path.parent)


def test_a_bias_for_each_row_is_none_for_each_channel(path):
    network = to_snntorch(*layers(nn.Conv2d(1, 4, 3), RELU(), FLAT(), nn.Linear(64, 3), shape=(1, 6, 6))(), timesteps=3)
    network.body.get_submodule("1_initial").potential = torch.arange(4.0, dtype=torch.float64).reshape(1, 4, 1)
    relu = network.body.get_submodule("1")
    relu.threshold = torch.arange(1.0, 5.0, dtype=torch.float64).reshape(1, 4, 1)
    to_nir(network, path, input_shape=(1, 6, 6))
    with h5py.File(path) as file:
        assert (file["node/nodes/1/v_threshold"][0, :, 0] == np.arange(1.0, 5.0)).all()
    kind, fields = elementwise(torch.ones(()), torch.arange(4.0).reshape(1, 4, 1), (4, 4, 3), 1000)
    x = torch.rand(4, 4, 3)
    found = (torch.from_numpy(fields["weight"]) @ x.unsqueeze(-1)).squeeze(-1) + torch.from_numpy(fields["bias"])
    assert kind == "Affine"
    assert torch.equal(found, x + torch.arange(4.0).reshape(1, 4, 1))


def test_a_hybrid_is_refused(path):
    model, x = layers(CONV, RELU(), FLAT(), nn.Linear(144, 5), RELU(), nn.Linear(5, 3))()
    network = to_snntorch(model, x, timesteps=3, until="3")
    with pytest.raises(ConversionError, match="only a part of the network spikes.*until"):
        to_nir(network, path, input_shape=x.shape[1:])


def test_other_neurons_are_refused(path):
    model, _, x = nets.make("mlp")
    network = to_snntorch(model, x, timesteps=3)
    network.body.get_submodule("1").reset_delay = False
    with pytest.raises(ConversionError, match="'1'.*not those that this package makes"):
        to_nir(network, path, input_shape=(6,))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (None, "Expected argument `input_shape` to be given"),
        (8, "Expected argument `input_shape` to be positive integers"),
        ((1, 0, 8), "Expected argument `input_shape` to be positive integers"),
        ((1, 2.5, 8), "Expected argument `input_shape` to be positive integers"),
        ((2, 8, 8), r"'conv1'.*\(2, 8, 8\).*does not fit"),
        ((1, 8), r"'conv1'.*\(1, 8\).*does not fit"),
        ((1, 2, 2), "'conv2'.*larger than its input"),
        ((1, 80, 80), "'fc1'.*its input has shape"),
    ],
)
def test_shapes_that_do_not_fit(shape, message, path):
    model, _, x = nets.make("lenet_functional")
    network = to_snntorch(model, x, timesteps=3)
    del network.conversion["input_shape"]
    with pytest.raises(ValueError, match=message):
        to_nir(network, path, input_shape=shape)


def test_the_input_shape_is_that_of_the_calibration_data(path):
    model, _, x = nets.make("lenet_functional")
    network = to_snntorch(model, x, timesteps=3, correction="potential")
    to_nir(network, path)
    read = from_nir(path, "norse")
    assert torch.equal(read(x), network(x))
    assert read.conversion == network.conversion | {"framework": "norse"}
    for name, level in network.levels.items():
        assert torch.equal(read.levels[name], level)


def test_weights_that_are_not_finite_are_refused(path):
    model, _, x = nets.make("mlp")
    network = to_snntorch(model, x, timesteps=3)
    network.body.get_submodule("2").weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"'body\.2\.weight' holds NaN"):
        to_nir(network, path, input_shape=(6,))
    assert not os.listdir(path.parent)


def test_what_would_not_come_back_is_not_written(path):
    model, _, x = nets.make("mlp")
    network = to_snntorch(model, x, timesteps=3)
    network.conversion["note"] = "x" * 70_000
    with pytest.raises(ConversionError, match="would not come back the same: 'node/metadata/conversion'"):
        to_nir(network, path, input_shape=(6,))
    network.conversion["note"] = print
    with pytest.raises(ValueError, match="to have a `conversion` of plain data"):
        to_nir(network, path, input_shape=(6,))
    assert not os.listdir(path.parent)


def test_one_error_says_what_to_install(path, monkeypatch):
    model, _, x = nets.make("mlp")
    network = to_snntorch(model, x, timesteps=3)
    to_nir(network, path, input_shape=(6,))
    monkeypatch.setitem(sys.modules, "h5py", None)
    for call in (lambda: to_nir(network, path, input_shape=(6,)), lambda: from_nir(path)):
        with pytest.raises(ImportError, match=r'pip install "snnreg_plugins\[nir\]"'):
            call()


def test_wrong_arguments(path):
    with pytest.raises(ValueError, match=r"`target` to be one of \['norse', 'snntorch'\], but got 'brian'"):
        from_nir(path, "brian")
    with pytest.raises(FileNotFoundError, match="Expected argument `path` to name a file"):
        from_nir(path)
    with pytest.raises(TypeError, match="Expected argument `network` to be a SpikingNetwork, but got Linear"):
        to_nir(nn.Linear(2, 3), path, input_shape=(2,))


# Files from strangers


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    torch.manual_seed(0)
    network = to_snntorch(NETS["identity shortcut"](), inputs(), timesteps=3, per_channel=True)
    path = tmp_path_factory.mktemp("good") / "network.nir"
    to_nir(network, path, input_shape=(1, 4, 4))
    return path.read_bytes()


def put(name, value, **options):
    """Replace a dataset below node."""

    def change(file):
        if name in file["node"]:
            del file["node"][name]
        if value is not None:
            file["node"].create_dataset(name, data=value, **options)

    return change


def scaled(name, change):
    def apply(file):
        values = file["node"][name][()]
        put(name, change(values))(file)

    return apply


def edges(change):
    def apply(file):
        pairs = change([tuple(end.decode() for end in pair) for pair in file["node/edges"][()]])
        put("edges", pairs)(file)

    return apply


def at(name, make):
    """Let ``make(group, name)`` make what is at a place below node."""

    def change(file):
        parent, _, last = f"node/{name}".rpartition("/")
        if last in file[parent]:
            del file[parent][last]
        make(file[parent], last)

    return change


def external_storage(group, name):
    group.create_dataset(name, (4,), "f8", external=[("/etc/passwd", 0, 32)])


def virtual(group, name):
    layout = h5py.VirtualLayout((4,), "f8")
    layout[:] = h5py.VirtualSource("other.h5", "x", (4,))
    group.create_virtual_dataset(name, layout)


def never_written(group, name):
    group.create_dataset(name, (2**20, 2**20), "f8", fillvalue=1.0)


def deep(group, name):
    for _ in range(50):
        group = group.create_group(name)


def group_loop(group, name):
    group[name] = group


def long_string(group, name):
    group.create_dataset(name, data="x" * 100_000, dtype=h5py.string_dtype())


def renamed(file):
    file.move("node/nodes/conv", "node/nodes/..")


def version(value):
    def change(file):
        del file["version"]
        if value is not None:
            file.create_dataset("version", data=value)

    return change


CONV_, OUT = "nodes/conv/", "nodes/out/metadata/"
CODE = 'relu"), __import__("os").system("true"), getattr(self, "relu'
#: Name to what is done to a good file, and what is said of it.
HOSTILE = {
    "no version": (version(None), "the file should hold.*version"),
    "version of another format": (version("2.0"), "NIR version '2.0'"),
    "version that is a number": (version(1.0), "NIR version"),
    "no metadata": (lambda f: f["node"].pop("metadata"), "none of `to_nir`.*v_reset.*from_nir"),
    "format of another version": (put("metadata/format", "snnreg_plugins spiking network 9"), "none of `to_nir`"),
    "no nodes": (lambda f: f["node"].pop("nodes"), "'node' should hold"),
    "nodes that are numbers": (put("nodes", np.zeros(3)), "has no nodes"),
    "unknown type": (put("nodes/conv/type", "Conv9d"), "'conv' is of type 'Conv9d'"),
    "type that does not fit": (put("nodes/conv/type", "Affine"), "'conv'.*type 'Affine'"),
    "unknown kind": (put("nodes/conv/metadata/kind", "system"), "'conv'.*unknown kind 'system'"),
    "missing field": (put("nodes/conv/weight", None), "'conv' has no 'weight'"),
    "missing standard field": (put("nodes/out/r", None), "'nodes/out' should hold.*'r'"),
    "missing metadata": (lambda f: f["node/nodes/conv"].pop("metadata"), "'conv' has no 'metadata'"),
    "unknown field": (put("nodes/conv/hook", "x"), "'nodes/conv' should hold.*but holds.*hook"),
    "wrong shape": (scaled(CONV_ + "weight", lambda w: w[:, :3]), "input has shape|node 'conv'"),
    "wrong bias": (scaled(CONV_ + "bias", lambda b: b[:3]), "'bias' of 3 values, but it should be 4"),
    "scalar weight": (put(CONV_ + "weight", np.float64(1)), "node 'conv'.*'weight'.*not fit"),
    "empty weight": (put(CONV_ + "weight", np.zeros((0, 4, 3, 3))), "node 'conv'.*'weight'.*not fit"),
    "threshold that does not fit": (put(OUT + "threshold", np.ones((5, 1, 1))), "'out' cannot be.*its thresholds"),
    "NaN": (scaled(CONV_ + "weight", lambda w: w * np.nan), "'node/nodes/conv/weight' holds NaN"),
    "infinity": (scaled(OUT + "threshold", lambda t: t + np.inf), "'.*/out/metadata/threshold' holds NaN or inf"),
    "threshold beside the standard one": (
        scaled(OUT + "threshold", lambda t: t * 2), "'nodes/out/v_threshold' contradicts"),
    "standard field beside metadata": (scaled("nodes/out/r", lambda r: r * 2), "'nodes/out/r' contradicts"),
    "negative slope": (scaled(OUT + "slope", lambda s: -s), "'out'.*slope"),
    "threshold of zero": (scaled(OUT + "threshold", lambda t: t * 0), "'out'.*threshold that is not positive"),
    "negative threshold": (scaled(OUT + "threshold", lambda t: -t), "'out'.*threshold that is not positive"),
    "beta of two": (scaled(OUT + "beta", lambda b: b * 2), "'out'.*beta"),
    "edge to nowhere": (edges(lambda pairs: [*pairs, ("conv", "nowhere")]), "edge names 'nowhere'"),
    "loop": (edges(lambda pairs: [*pairs, ("out", "conv")]), "feeds back.*recurrent"),
    "loop of one": (edges(lambda pairs: [*pairs, ("out", "out")]), "feeds back.*recurrent"),
    "edge twice": (edges(lambda pairs: [*pairs, pairs[-1]]), "node|edges"),
    "edge missing": (edges(lambda pairs: pairs[:-1]), "reads nothing"),
    "no edges": (put("edges", np.zeros((0, 2))), "no edges"),
    "edges of three": (put("edges", [("conv", "out", "conv")]), "'node/edges' is neither a string nor pairs"),
    "edges in another order": (edges(lambda pairs: pairs[::-1]), "'edges'"),
    "sum of nothing": (put("nodes/out/metadata/sum", np.array([-1, 0, 1])), "node 'out'"),
    "sum of too many": (put("nodes/out/metadata/sum", np.array([0, 7, -1])), "node 'out'"),
    "order backwards": (put("nodes/conv/metadata/order", np.int64(99)), "'.*' comes before one that it reads"),
    "two inputs": (lambda f: f.copy("node/nodes/input", "node/nodes/more"), "one input and one output"),
    "node that nothing reads": (
        lambda f: (f.copy("node/nodes/conv", "node/nodes/more"),
                   edges(lambda pairs: [*pairs, ("relu", "more")])(f)), "module of the name 'conv', which another"),
    "soft link": (at(CONV_ + "weight", lambda g, n: g.__setitem__(n, h5py.SoftLink("/node"))), "link to elsewhere"),
    "external link": (
        at(CONV_ + "weight", lambda g, n: g.__setitem__(n, h5py.ExternalLink("x.h5", "/"))), "link to elsewhere"),
    "two links": (at(CONV_ + "bias", lambda g, n: g.__setitem__(n, g["weight"])), "linked more than once"),
    "group in itself": (at("nodes/conv/loop", group_loop), "linked more than once"),
    "external storage": (at(CONV_ + "bias", external_storage), "'node/nodes/conv/bias' is compressed.*another file"),
    "virtual": (at(CONV_ + "bias", virtual), "'node/nodes/conv/bias' is compressed.*virtual"),
    "compressed": (put(CONV_ + "bias", np.zeros(10**7), compression="gzip"), "'node/nodes/conv/bias' is compressed"),
    "never written": (at(CONV_ + "bias", never_written), "claims 8796093022208 bytes"),
    "compound": (put(CONV_ + "bias", np.zeros(4, [("a", "f8"), ("b", "i4")])), "neither numbers nor a string"),
    "references": (
        at(CONV_ + "bias", lambda g, n: g.create_dataset(n, data=g.ref, dtype=h5py.ref_dtype)), "neither numbers"),
    "objects": (
        put(CONV_ + "bias", np.frombuffer(pickle.dumps(print), "V1")), "neither numbers nor a string"),
    "rows of any length": (
        at(CONV_ + "bias", lambda g, n: g.create_dataset(n, (4,), h5py.vlen_dtype("f8"))), "neither numbers|claims"),
    "fixed string": (put("nodes/conv/type", np.bytes_("Conv2d")), "neither numbers nor a string"),
    "integers of four bytes": (put(CONV_ + "groups", np.int32(1)), "dtype int32"),
    "another dtype": (scaled(CONV_ + "weight", lambda w: w.astype("f4")), "'weight' of float32"),
    "named type": (at(CONV_ + "more", lambda g, n: g.__setitem__(n, np.dtype("f8"))), "neither a group nor a dataset"),
    "no value": (
        at(CONV_ + "bias", lambda g, n: g.create_dataset(n, data=h5py.Empty("f8"))), "'node/nodes/conv/bias' is empty"),
    "long string": (at("nodes/conv/type", long_string), "no string of at most"),
    "dots for a name": (renamed, r"'\.\.' in 'node/nodes' is no name"),
    "deep": (at("nodes/conv/metadata/more", deep), "nested deeper"),
    "huge stride": (put(CONV_ + "stride", np.array([2**62, 2**62])), "'stride'.*not in 1 to"),
    "stride of zero": (put(CONV_ + "stride", np.array([0, 1])), "'stride'.*not in 1 to"),
    "negative padding": (put(CONV_ + "padding", np.array([-1, 1])), "'padding'.*not in 0 to"),
    "huge padding": (put(CONV_ + "padding", np.array([2**30, 2**30])), "'conv' cannot be: its output.*more than"),
    "padding by name": (put(CONV_ + "padding", "reflect"), "padding of 'reflect'"),
    "stride of three": (put(CONV_ + "stride", np.array([1, 1, 1])), "'stride' of 3 integers"),
    "real stride": (put(CONV_ + "stride", np.array([1.0, 1.0])), "'stride' that is no row of integers"),
    "groups that do not fit": (put(CONV_ + "groups", np.int64(3)), "node 'conv'"),
    "huge groups": (put(CONV_ + "groups", np.int64(2**31 - 1)), "groups"),
    "kernel larger than the input": (put("nodes/input/shape", np.array([1, 1, 1])), "'last' cannot be: its input"),
    "input of the world": (put("nodes/input/shape", np.array([1, 2**20, 2**20])), "more than 268435456 values"),
    "much of little": (put("nodes/input/shape", np.array([1, 2**12, 2**12])), "'relu' cannot be: its currents"),
    "input without a shape": (put("nodes/input/shape", np.array([], dtype=np.int64)), "'shape'.*no row of integers"),
    "no steps": (put("metadata/timesteps", np.int64(0)), "'timesteps' of 0"),
    "steps in words": (put("metadata/timesteps", "3"), "'timesteps' that is no array"),
    "dtype of words": (put("metadata/dtype", "object"), "dtype 'object'"),
    "another reset": (put("metadata/reset", "to v_reset"), "'metadata/reset' should be"),
    "conversion that is no JSON": (put("metadata/conversion", "{'a': print}"), "no JSON"),
    "conversion without end": (put("metadata/conversion", "[" * 60_000), "no JSON"),
    "conversion of infinity": (put("metadata/conversion", '{"percent": Infinity}'), "plain data"),
    "name of code": (put("nodes/conv/metadata/module", CODE), "which no module may have"),
    "name of a keyword": (put("nodes/conv/metadata/module", "lambda"), "which no module may have"),
    "name of a method": (put("nodes/conv/metadata/module", "forward"), "which no module may have"),
    "name of the inside": (put("nodes/conv/metadata/module", "__class__.x"), "which no module may have"),
    "name of nothing": (put("nodes/conv/metadata/module", "a..b"), "which no module may have"),
    "name within another": (put("nodes/conv/metadata/module", "relu.threshold"), "which another has"),
}  # fmt: skip


@pytest.mark.parametrize("row", HOSTILE)
def test_a_hostile_file_is_refused(row, good, path):
    change, message = HOSTILE[row]
    path.write_bytes(good)
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(ValueError, match=message) as caught:
        from_nir(path)
    assert repr(str(path)) in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: b"",
        lambda data: pickle.dumps({"a": 1}),
        lambda data: data[:8] + b"\xff" * 200 + data[208:],
    ],
    ids=["half", "one byte less", "empty", "a pickle", "damaged"],
)
def test_a_damaged_file_is_refused(change, good, path):
    path.write_bytes(change(good))
    with pytest.raises(ValueError, match="Expected argument `path` to name a NIR file") as caught:
        from_nir(path)
    assert repr(str(path)) in str(caught.value)


def test_files_of_others_are_refused(path):
    ones, zeros = np.ones(3, np.float32), np.zeros(3, np.float32)
    affine = nir.Affine(np.ones((3, 2), np.float32), zeros)
    nir.write(path, nir.NIRGraph.from_list(affine, nir.IF(ones, ones, zeros)))
    with pytest.raises(ValueError, match=r"none of `to_nir`.*v_reset.*norse\.torch\.from_nir"):
        from_nir(path)


# What others make of a file


def hard_reset(model_layers, thresholds, x, timesteps):
    """Integrate from zero and start again from zero after a spike: what NIR says of its nodes."""
    potentials, total = [0.0] * len(thresholds), 0.0
    for _ in range(timesteps):
        value = model_layers[0](x)
        for index, threshold in enumerate(thresholds):
            v = potentials[index] + value
            fired = (v > threshold).to(v.dtype)
            potentials[index] = v * (1 - fired)
            value = model_layers[index + 1](fired)
        total = total + value
    return total / timesteps


def stepped(module, x, timesteps):
    state, total = None, 0.0
    for _ in range(timesteps):
        output, state = module(x, state)
        total = total + output
    return total / timesteps


@pytest.fixture
def plain(path):
    model, _, x = nets.make("mlp", torch.float32)
    network = to_snntorch(model, x, timesteps=6)
    to_nir(network, path, input_shape=(6,))
    linear = [network.encoder.get_submodule("0"), network.body.get_submodule("2"), network.body.get_submodule("4")]
    thresholds = [network.body.get_submodule(name).threshold for name in ("1", "3")]
    return path, x, network, hard_reset(linear, thresholds, x, 6)


def test_norse_reads_neurons_of_hard_reset(plain):
    path, x, _, expected = plain
    module = norse.torch.from_nir(nir.read(path), dt=1.0)
    torch.testing.assert_close(stepped(module, x, 6), expected)


def test_spikingjelly_reads_neurons_of_hard_reset(plain):
    exchange = pytest.importorskip("spikingjelly.activation_based.nir_exchange.from_nir")
    path, x, _, expected = plain
    torch.testing.assert_close(stepped(exchange.import_from_nir(nir.read(path), dt=1.0), x, 6), expected)


def test_sinabs_reads_neurons_of_soft_reset(plain):
    sinabs = pytest.importorskip("sinabs.nir")
    path, x, network, _ = plain
    module = sinabs.from_nir(nir.read(path), batch_size=len(x))
    assert stepped(module, x, 6).shape == network(x).shape


def test_snntorch_reads_leaky_neurons(plain, capsys):
    path, *_ = plain
    neurons = [module for module in import_from_nir(nir.read(path)).modules() if isinstance(module, snntorch.Leaky)]
    assert [round(float(neuron.beta), 6) for neuron in neurons] == [0.9, 0.9]


class Cell(nn.Module):
    """What the metadata of a neuron says."""

    def __init__(self, node):
        super().__init__()
        beta, slope = float(node.metadata["beta"]), torch.as_tensor(node.metadata["slope"])
        self.cell = SoftResetCell(SoftResetParameters(torch.from_numpy(node.v_threshold), beta, FastSigmoid(slope)))
        self.potential = torch.as_tensor(node.metadata["potential"])

    def forward(self, x, state=None):
        return self.cell(x, self.potential.expand_as(x) if state is None else state)


def affine(node):
    layer = nn.Linear(*node.weight.shape[::-1])
    layer.weight.data, layer.bias.data = torch.from_numpy(node.weight), torch.from_numpy(node.bias)
    return layer


def conv(node):
    sizes = node.weight.shape
    options = {name: tuple(getattr(node, name).tolist()) for name in ("stride", "padding", "dilation")}
    layer = nn.Conv2d(sizes[1] * int(node.groups), sizes[0], sizes[2:], groups=int(node.groups), **options)
    layer.weight.data, layer.bias.data = torch.from_numpy(node.weight), torch.from_numpy(node.bias)
    return layer


class Scale(nn.Module):
    def __init__(self, node):
        super().__init__()
        self.scale = torch.from_numpy(node.scale)

    def forward(self, x):
        return x * self.scale


@pytest.mark.parametrize("row", ["mlp", "mlp, leaky", "grouped", "identity shortcut", "LeakyReLU"])
def test_all_of_a_network_is_in_nodes_edges_and_their_metadata(row, path):
    make, options = ROWS[row]
    model, x = make()
    network = to_snntorch(model, x, timesteps=6, **options)
    to_nir(network, path, input_shape=x.shape[1:])
    cells = {nir.IF: Cell, nir.LIF: Cell, nir.Affine: affine, nir.Conv2d: conv, nir.Scale: Scale}
    cells[nir.Flatten] = lambda node: nn.Flatten(node.start_dim + 1)
    module = nirtorch.nir_to_torch(nir.read(path, type_check=False), cells, dtype=x.dtype)
    torch.testing.assert_close(stepped(module, x, 6), network(x))


# nir 1.0.8 takes grouped convolutions, also those that add a bias to each channel, and uneven kernels for others.
MISTAKEN = {
    "grouped", "uneven kernels", "normalized input", "pooled input", "pooled to little", "one dimension",
    "lenet, biases", "pre-activation",
}  # fmt: skip


@pytest.mark.parametrize("row", [row for row in ROWS if row not in MISTAKEN])
def test_the_shapes_are_those_that_nir_infers(row, path):
    make, options = ROWS[row]
    model, x = make()
    to_nir(to_snntorch(model, x, timesteps=2, **options), path, input_shape=x.shape[1:])
    graph = nir.read(path)  # checks types
    assert {type(node).__name__ for node in graph.nodes.values()} >= {"Input", "Output"}
    for node in graph.nodes.values():
        if isinstance(node, (nir.IF, nir.LIF)):
            assert (node.v_reset == 0).all()
            assert node.v_threshold.shape == node.r.shape == tuple(node.input_type["input"])
        if isinstance(node, nir.LIF):
            np.testing.assert_allclose(1 - 1 / node.tau, node.metadata["beta"])
            np.testing.assert_allclose(node.r, node.tau)
