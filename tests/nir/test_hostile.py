"""Files from strangers: the right network, or one error that names file, node and what is wrong."""

from __future__ import annotations

import io
import pickle

import h5py
import nir
import numpy as np
import pytest
import torch

from snnreg_plugins import from_nir, to_nir, to_snntorch
from tests.export.test_architectures import NETS, inputs


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
    "margins that are no list": (put("metadata/exit_margins", "0.5"), "'exit_margins' that are no numbers"),
    "margins that are no numbers": (put("metadata/exit_margins", "[NaN]"), "'exit_margins' that are no numbers"),
    "margins without end": (put("metadata/exit_margins", "[" * 60_000), "'exit_margins' that are no numbers"),
    "margins where version 0.1 has them": (
        put("metadata/conversion", '{"exit_margins": [0.25, "a"]}'), "'exit_margins' that are no numbers"),
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
        lambda data: data + b"\0",
        lambda data: data[:5000] + data[4992:],
        lambda data: b"",
        lambda data: pickle.dumps({"a": 1}),
        lambda data: data[:8] + b"\xff" * 200 + data[208:],
    ],
    ids=["half", "one byte less", "one byte more", "bytes twice", "empty", "a pickle", "damaged"],
)
def test_a_damaged_file_is_refused(change, good, path):
    path.write_bytes(change(good))
    with pytest.raises(ValueError, match="Expected argument `path` to name a NIR file") as caught:
        from_nir(path)
    assert repr(str(path)) in str(caught.value)


def test_numbers_that_changed_are_seen(good, path):
    """All that the file says goes together, but for one bit of a weight."""
    with h5py.File(io.BytesIO(good), "r") as file:
        weights = file["node/nodes/conv/weight"][()].tobytes()
    data = bytearray(good)
    data[data.find(weights) + 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="it is damaged: its numbers, names or edges are not those that were written"):
        from_nir(path)


def test_a_file_without_a_digest_is_read(good, path):
    path.write_bytes(good)
    expected = from_nir(path).state_dict()
    with h5py.File(path, "r+") as file:
        del file["node/metadata/digest"]
    found = from_nir(path).state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_files_of_others_are_refused(path):
    ones, zeros = np.ones(3, np.float32), np.zeros(3, np.float32)
    affine = nir.Affine(np.ones((3, 2), np.float32), zeros)
    nir.write(path, nir.NIRGraph.from_list(affine, nir.IF(ones, ones, zeros)))
    with pytest.raises(ValueError, match=r"none of `to_nir`.*v_reset.*norse\.torch\.from_nir"):
        from_nir(path)
