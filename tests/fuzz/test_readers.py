"""Files that changed by chance: the same object, or one of our errors; in bounded time and memory."""

from __future__ import annotations

import copy
import gzip
import math
import random
import resource
import signal
import traceback
from pathlib import Path

import pytest
import torch
from torch import nn

import snnreg_plugins
from snnreg_plugins import from_nir, load_network, report, save_network, to_nir, to_snntorch
from snnreg_plugins._files import read_tensors
from snnreg_plugins.data.idx import read_idx
from snnreg_plugins.functional import EnergyTable, PriceList
from snnreg_plugins.reports.folder import settings_of
from snnreg_plugins.reports.report import Report

OURS = Path(snnreg_plugins.__file__).parent
MUTATIONS, CHUNKS = 100, 4
SECONDS, BYTES = 20, 400 << 20

X = torch.rand(12, 1, 6, 6, generator=torch.Generator().manual_seed(0))
# What a text may say instead.
WORDS = [
    "NaN", "-Infinity", "1e999", "null", "true", "[]", "{}", '""', "-1", "9" * 40, "[[[[", "]", "*a", "&a", "<<",
    "!!python/name:os.system ''", "\\ud800", "\0", "'", '"', ":", ",", "\n", "\t",
]  # fmt: skip


def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 3)
    ).eval()


def network():
    return to_snntorch(model(), X, timesteps=3, per_channel=True)


def scores(found):
    with torch.no_grad():
        return found(X, per_step=True).tolist(), found.conversion, found.exit_margins


def write_idx(path):
    header = bytes([0, 0, 8, 3, 0, 0, 0, 4, 0, 0, 0, 3, 0, 0, 0, 5])
    path.write_bytes(gzip.compress(header + bytes(range(60)), mtime=0))


def write_report(path):
    report(model(), network(), [(X, torch.arange(12) % 3)], steps=[1, 2]).save_json(path)


def write_table(path):
    path.write_text("# mine\nmac: 4.6\nac: 0.9\nsource: 'a chip: 2024'\n")


def write_prices(path):
    path.write_text("ac: {8: 0.03, 32: 0.1}\nmac: 4.6\nupdate: 1\naccess: {weights: {8: 5.0}}\nsource: 'a chip'\n")


def write_recipe(path):
    path.write_text(
        "seed_everything: 1\nmodel:\n  class_path: a.B\n  init_args: {size: [1, 2], x: 1e-3}\ndata: &d [a]\n"
    )


def write_checkpoint(path):
    torch.save({"state_dict": model().state_dict(), "epoch": 3, "hparams": {"a": [1, None]}}, path)


def tensors(path):
    content = read_tensors(path, "ckpt_path")
    return {**content, "state_dict": {name: value.tolist() for name, value in content["state_dict"].items()}}


def finite(value):
    return not isinstance(value, float) or math.isfinite(value)


def sound(found):
    """A report that could have been written: all its numbers are finite."""
    left = [found.to_dict()]
    while left:
        value = left.pop()
        assert finite(value)
        left.extend(value.values() if isinstance(value, dict) else value if isinstance(value, list) else [])


#: How a file is written, how it is read to something that can be compared, and what holds of another one that is
#: taken; None where none may be: what is not text carries sums that tell.
KINDS = {
    "spiking.pt": (lambda path: save_network(network(), path), lambda path: scores(load_network(path, model())), None),
    "network.nir": (
        lambda path: to_nir(network(), path, input_shape=(1, 6, 6)), lambda path: scores(from_nir(path)), None),
    "last.ckpt": (write_checkpoint, tensors, None),
    "images.gz": (write_idx, lambda path: read_idx(path, dimensions=3).tolist(), None),
    "report.json": (write_report, Report.load_json, sound),
    "table.yaml": (write_table, EnergyTable.from_yaml, lambda table: None),
    "prices.yaml": (write_prices, PriceList.from_yaml, lambda prices: None),
    "config.yaml": (write_recipe, lambda path: settings_of(None, path), lambda settings: None),
}  # fmt: skip


def mutated(data, random, is_text):
    """Change a few bytes: flip, cut, drop, repeat, fill, or put in a word."""
    data = bytearray(data)
    for _ in range(random.choice([1, 1, 1, 2, 5])):
        if not data:
            break
        at, length = random.randrange(len(data)), random.choice([1, 1, 2, 8, 64])
        kind = random.choice(["flip", "flip", "cut", "drop", "repeat", "fill", "word"] + ["word"] * 4 * is_text)
        if kind == "flip":
            data[at] ^= 1 << random.randrange(8)
        elif kind == "cut":
            del data[at:]
        elif kind == "drop":
            del data[at : at + length]
        elif kind == "repeat":
            data[at:at] = data[at : at + length] * random.choice([1, 1, 50])
        elif kind == "fill":
            data[at : at + length] = bytes([random.choice([0, 255])]) * length
        else:
            data[at : at + random.choice([0, 1, 4])] = random.choice(WORDS).encode()
    return bytes(data)


def is_ours(error):
    """Tell whether an error was raised by a statement of the package, and so is one that was thought of."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    thought_of = isinstance(error, (ValueError, TypeError, OSError)) and "raise" in last.line
    return thought_of and OURS in Path(last.filename).parents


class Bounded:
    """Ends what takes too long, and sees what took too much."""

    def __enter__(self):
        self.before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        signal.signal(signal.SIGALRM, self.late)
        signal.alarm(SECONDS)

    def __exit__(self, *error):
        signal.alarm(0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.before < BYTES >> 10

    @staticmethod
    def late(*_):
        raise AssertionError(f"it takes more than {SECONDS} seconds")


def check(path, read, original, accepts, what):
    try:
        with Bounded():
            found = read(path)
    except Exception as error:
        if not is_ours(error) or len(str(error)) > 3000:
            raise AssertionError(what, repr(error)[:3000], path.read_bytes()[:200]) from error
        return "refused"
    if found == original:
        return "same"
    assert accepts is not None, (what, path.read_bytes()[:200])
    accepts(found)
    return "other"


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS))
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_that_changed(kind, chunk, tmp_path):
    write, read, accepts = KINDS[kind]
    path = tmp_path / kind
    write(path)
    good, original = path.read_bytes(), read(path)
    seen = []
    for seed in range(chunk * MUTATIONS, (chunk + 1) * MUTATIONS):
        path.write_bytes(mutated(good, random.Random(seed), accepts is not None))
        seen.append(check(path, read, original, accepts, (kind, seed)))
    assert seen.count("refused") > MUTATIONS / 10
    assert set(seen) > {"refused"} or kind in ("images.gz", "last.ckpt", "spiking.pt")


#: What may stand in the place of anything else in a file of plain data.
VALUES = [
    None, True, -1, 0, 10**30, 0.0, math.nan, math.inf, -1.5, "", "abc", b"x", [], {}, [[]], {"a": 1}, (1, 2), {1: 2},
    [1] * 9, [10**6] * 3, ["relu", None], torch.ones(()), torch.ones(3), torch.zeros(2, 0),
    torch.full((2, 2), math.nan), torch.ones(3).long(), torch.ones(1).expand(10**9), torch.ones(3).bool(),
    torch.ones(3).half(), torch.ones(3).to_sparse(),
]  # fmt: skip


def places(value, path=()):
    """All places in nested data."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield (*path, key)
        yield from places(part, (*path, key))


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_values_that_changed(chunk, tmp_path):
    """A spiking.pt that is whole, and says something else somewhere."""
    path = tmp_path / "spiking.pt"
    save_network(network(), path)
    good = torch.load(path, weights_only=True)
    where, dnn = sorted(set(places(good)) - {("digest",)}, key=str), model()
    seen = []
    for seed in range(chunk * MUTATIONS, (chunk + 1) * MUTATIONS):
        draw = random.Random(seed)
        content = copy.deepcopy(good)
        *holders, last = draw.choice(where)
        holder = content
        for key in holders:
            holder = holder[key]
        if draw.random() < 0.15 and isinstance(holder, dict):
            del holder[last]
        else:
            holder[last] = draw.choice(VALUES)
        del content["digest"]  # which would tell
        torch.save(content, path)
        seen.append(check(path, lambda path: scores(load_network(path, dnn)), None, runs, (seed, *holders, last)))
    assert seen.count("refused") > MUTATIONS / 3


def runs(found):
    values, _, _ = found
    assert all(math.isfinite(value) for step in values for sample in step for value in sample)
