"""Events in frames: every event is counted once, in its step and at its place."""

from __future__ import annotations

import math
import sys
import zipfile

import numpy as np
import pytest
import snntorch
import torch
from lightning.pytorch import Trainer
from torch import nn

from snnreg_plugins import SynapticOperations, to_snntorch
from snnreg_plugins.data import EventFiles, TonicEvents
from snnreg_plugins.data.events import Framing
from snnreg_plugins.modules import Classifier, SpikingClassifier
from tests.callbacks.reference import fit
from tests.helpers import brute_force_fan_out

SHAPE = (2, 6, 5)
KIND = [("x", "i2"), ("y", "i2"), ("t", "i8"), ("p", "i1")]


def recording(count=40, lasts=1000, seed=0, shape=SHAPE, kind=KIND):
    generator = np.random.default_rng(seed)
    sizes = dict(zip("pyx", shape, strict=True))
    events = np.zeros(count, kind)
    for field in "xyp":
        events[field] = generator.integers(sizes[field], size=count)
    events["t"] = 77 + np.sort(generator.integers(lasts, size=count))
    return events


def counted(events, shape, timesteps, window, binary=False, downsample=1):
    """Frames, an event at a time."""
    first, last = min(events["t"].tolist()), max(events["t"].tolist())
    steps = timesteps or int((last - first) // window) + 1
    sizes = [shape[0], *(math.ceil(size / downsample) for size in shape[1:])]
    frames = torch.zeros(steps, *sizes)
    for event in events:
        passed = int(event["t"]) - first
        step = passed // window if window else min(timesteps * passed // max(last - first, 1), timesteps - 1)
        if step < steps:
            place = (max(int(event["p"]), 0) if shape[0] > 1 else 0, event["y"] // downsample, event["x"] // downsample)
            frames[(int(step), *map(int, place))] += 1
    return frames.clamp_max(1) if binary else frames


@pytest.mark.parametrize(
    ("timesteps", "window"), [(1, None), (7, None), (1000, None), (7, 100), (20, 100), (None, 130)]
)
@pytest.mark.parametrize("options", [{}, dict(binary=True), dict(downsample=2), dict(downsample=4)], ids=str)
def test_frames_are_events_counted_one_by_one(timesteps, window, options):
    for seed in range(3):
        events = recording(seed=seed, count=200)
        frames = Framing(timesteps, window, **options).frames(events, SHAPE, "it")
        assert frames.dtype == torch.float32
        assert torch.equal(frames, counted(events, SHAPE, timesteps, window, **options))
        if window is None and not options.get("binary"):
            assert frames.sum() == 200  # none is left out


@pytest.mark.parametrize("kind", ["?", "i1", "f4"])
def test_polarities_of_all_kinds(kind):
    events = recording()
    other = events.astype([("x", "u2"), ("y", "u2"), ("t", "u8"), ("p", kind)])
    if kind == "i1":
        other["p"] = 2 * other["p"] - 1  # -1 and 1
    frames = Framing(5).frames(events, SHAPE, "it")
    assert torch.equal(Framing(5).frames(other, SHAPE, "it"), frames)
    merged = Framing(5).frames(other, (1, 6, 5), "it")
    assert torch.equal(merged, frames.sum(1, keepdim=True))
    without = {field: other[field] for field in "xyt"}
    assert torch.equal(Framing(5).frames(without, (1, 6, 5), "it"), merged)


def test_times_of_all_kinds_and_no_order():
    events = recording()
    seconds = {field: events[field] for field in "xyp"} | {"t": events["t"] * 1e-6}
    assert torch.equal(Framing(5).frames(seconds, SHAPE, "it"), Framing(5).frames(events, SHAPE, "it"))
    shuffled = np.random.default_rng(0).permutation(events)
    assert torch.equal(Framing(5, 100).frames(shuffled, SHAPE, "it"), Framing(5, 100).frames(events, SHAPE, "it"))


def test_recordings_of_one_instant_and_of_nothing():
    for count in (0, 3):
        events = recording(count)
        events["t"] = 5
        for framing, steps in ((Framing(4), 4), (Framing(4, 10.0), 4), (Framing(None, 10.0), 1)):
            frames = framing.frames(events, SHAPE, "it")
            assert frames.shape == (steps, *SHAPE)
            assert frames[0].sum() == frames.sum() == count


def test_sensors_without_rows():
    events = recording()[["x", "t"]]
    frames = Framing(5, downsample=2).frames(events, (1, 5), "it")
    assert frames.shape == (5, 1, 3)
    assert frames.sum() == len(events)


@pytest.mark.parametrize(
    ("events", "shape", "message"),
    [
        (np.zeros((5, 4)), SHAPE, "fields x, t, and, where there are such, y and p, but it has none"),
        (recording()[["x", "y", "p"]], SHAPE, "but it has \\['x', 'y', 'p'\\]"),
        (recording(), (2, 6, 4), "x from 0 to 3 for a sensor of shape \\(2, 6, 4\\), but it has an event with x = 4"),
        (recording(), (2, 5), "to have shape \\(C, H, W\\)"),
        (recording()[["x", "t"]], SHAPE, "to have shape \\(C, W\\), as its events have no y"),
        ({"x": [0.0, math.nan], "t": [0, 1]}, (1, 5), "x from 0 to 4"),
        ({"x": [0, 1], "t": [0.0, math.inf]}, (1, 5), "finite times"),
    ],
)
def test_what_is_no_recording_of_this_sensor(events, shape, message):
    with pytest.raises(ValueError, match=message):
        Framing(5).frames(events, shape, "it")


def test_a_window_in_another_unit():
    with pytest.raises(ValueError, match="`window` to make at most 10000 time steps"):
        Framing(None, 0.01).frames(recording(), SHAPE, "it")


# Files.


def write(root, train=10, test=4, zipped=False, classes=("left", "right")):
    """Recordings of two classes, which move another way; longer ones are of other times."""
    for part, count in (("train", train), ("test", test)):
        for label, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                events = recording(60, lasts=500 + 100 * number, seed=100 * label + number + 50 * (part == "test"))
                events["x"] = np.minimum(events["x"], 1) + 3 * label
                if zipped:
                    np.savez_compressed(folder / f"{number}.npz", **{field: events[field] for field in "xytp"})
                else:
                    np.save(folder / f"{number}.npy", events)
    return root


def everything(loader):
    return [loader.dataset[index] for index in range(len(loader.dataset))]


@pytest.mark.parametrize("zipped", [False, True])
def test_files_become_batches_with_time_where_it_is_wanted(tmp_path, zipped):
    root = write(tmp_path, zipped=zipped)

    def batch(**options):
        return next(iter(EventFiles(root, SHAPE, timesteps=4, batch_size=5, **options).test_dataloader()))

    frames, labels = batch()
    assert frames.shape == (4, 5, *SHAPE)
    assert labels.tolist() == [0, 0, 0, 0, 1]
    events = recording(60, lasts=600, seed=51)
    events["x"] = np.minimum(events["x"], 1)
    assert torch.equal(frames[:, 1], counted(events, SHAPE, 4, None))
    assert torch.equal(batch(time_dim=1)[0], frames.transpose(0, 1))
    assert torch.equal(batch(time_dim=None)[0], frames.mean(0))
    assert batch(binary=True)[0].max() == 1


def test_recordings_of_unequal_length_get_empty_frames(tmp_path):
    data = EventFiles(write(tmp_path), SHAPE, timesteps=None, window=100, batch_size=8)
    frames, _ = next(iter(data.test_dataloader()))
    own = [it for it, _ in everything(data.test_dataloader())]
    assert {len(it) for it in own} == {5, 6, 7, 8}
    assert len(frames) == 8
    for index, it in enumerate(own):
        assert torch.equal(frames[: len(it), index], it)
        assert not frames[len(it) :, index].any()


def test_parts_are_apart_and_hold_every_class(tmp_path):
    data = EventFiles(write(tmp_path), SHAPE, timesteps=3, validation_share=0.2)
    data.setup("fit")
    parts = [everything(it) for it in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())]
    assert [[int(label) for _, label in part].count(1) for part in parts] == [8, 2, 4]
    assert [len(part) for part in parts] == [16, 4, 8]
    assert len({tuple(frames.flatten().tolist()) for part in parts for frames, _ in part}) == 28
    assert (data.num_classes, data.classes, data.frame_shape) == (2, ["left", "right"], SHAPE)
    with pytest.raises(ValueError, match="`validation_share` to leave some of 20 recordings, but got 0.99"):
        EventFiles(tmp_path, SHAPE, validation_share=0.99).setup()


def mirrored(events):
    events["x"] = SHAPE[2] - 1 - events["x"]
    return events


def late(events):
    return events[events["t"] > events["t"].min() + 200]


def test_transforms_of_events(tmp_path):
    root = write(tmp_path)
    plain, changed = (
        EventFiles(root, SHAPE, timesteps=3, **options) for options in ({}, dict(transform=late, augmentation=mirrored))
    )
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        before = sum(frames for frames, _ in everything(getattr(plain, loader)()))
        after = sum(frames for frames, _ in everything(getattr(changed, loader)()))
        assert after.sum() < before.sum()
        left, right = after[..., :2].sum(), after[..., 3:].sum()
        assert left > 0
        assert right > 0
    one, other = plain.train_dataloader().dataset[0][0], changed.train_dataloader().dataset[0][0]
    assert bool(one[..., :2].sum()) != bool(other[..., :2].sum())  # mirrored
    one, other = plain.val_dataloader().dataset[0][0], changed.val_dataloader().dataset[0][0]
    assert bool(one[..., :2].sum()) == bool(other[..., :2].sum())


@pytest.mark.slow
def test_workers_read_the_same(tmp_path):
    root = write(tmp_path)
    one, other = (EventFiles(root, SHAPE, timesteps=3, num_workers=workers) for workers in (0, 2))
    for (a, b), (c, d) in zip(one.test_dataloader(), other.test_dataloader(), strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)


def test_damaged_and_hostile_files(tmp_path):
    root = write(tmp_path / "data", train=3, test=1)
    victim = root / "test" / "left" / "0.npy"
    whole = victim.read_bytes()

    def read():
        with pytest.raises(ValueError, match="0.np[yz] to hold events as NumPy writes them, but"):
            _ = EventFiles(root, SHAPE).test_dataloader().dataset[0]

    for content in (whole[: len(whole) // 2], b"", b"text", whole.replace(b"(60,)", b"(99999999999,)")):
        victim.write_bytes(content)
        read()
    np.save(victim, np.array([object()]), allow_pickle=True)
    read()
    victim.unlink()
    packed = victim.with_suffix(".npz")
    for content in (b"", b"PK\x03\x04"):
        packed.write_bytes(content)
        read()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(1 << 20))
    archive = bytearray(packed.read_bytes())
    size = (1 << 20).to_bytes(4, "little")
    packed.write_bytes(archive.replace(size, (1 << 31).to_bytes(4, "little")))
    with pytest.raises(ValueError, match=r"2,147,483,648 bytes, more than"):
        _ = EventFiles(root, SHAPE).test_dataloader().dataset[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(shape=(2, 3, 4, 5)), "`shape` to be \\(C, H, W\\) or \\(C, W\\)"),
        (dict(timesteps=None), "`timesteps` or `window`, or both"),
        (dict(timesteps=None, window=5.0, time_dim=None), "`timesteps` to be given with time_dim=None"),
        (dict(window=0), "`window`"),
        (dict(time_dim=2), "`time_dim`"),
        (dict(transform=3), "`transform` to be a function from events to events or None, but got 3"),
        (dict(validation_share=1.0), "`validation_share`"),
    ],
)
def test_what_is_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        EventFiles("data", **({"shape": SHAPE} | options))


def test_no_data(tmp_path):
    with pytest.raises(FileNotFoundError, match="train to hold a folder for each class"):
        EventFiles(tmp_path, SHAPE).setup()
    (tmp_path / "train" / "left").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no .npy or .npz file in the folders of .*train"):
        EventFiles(tmp_path, SHAPE).setup()


# What runs on them.


def dnn():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(120, 2))


class Loop(nn.Module):
    """A user's network of snnTorch."""

    def __init__(self):
        super().__init__()
        self.conv, self.lif, self.fc = nn.Conv2d(2, 4, 3), snntorch.Leaky(beta=0.9), nn.Linear(48, 2)

    def forward(self, frames):
        state, total = self.lif.init_leaky(), 0.0
        for frame in frames:
            spikes, state = self.lif(self.conv(frame), state)
            total = total + self.fc(spikes.flatten(1))
        return total / len(frames)


@pytest.mark.parametrize("own", [False, True])
def test_counts_of_events_are_sops(tmp_path, own):
    frames, _ = next(iter(EventFiles(write(tmp_path), SHAPE, timesteps=4, batch_size=6).test_dataloader()))
    assert frames.max() > 1
    network = Loop() if own else to_snntorch(dnn(), frames, timesteps=4, time_dim=0)
    with SynapticOperations(network, batch_dim=int(own), input_events=True) as sops, torch.no_grad():
        network(frames) if own else network(frames, time_dim=0)
    name, layer = next((name, it) for name, it in network.named_modules() if isinstance(it, nn.Conv2d))
    expected = (frames.sum((0, 1)) * brute_force_fan_out(layer, SHAPE)).sum().item() / 6
    first = name if own else "0"
    assert sops.by_layer()[first] == pytest.approx(expected, rel=1e-12)
    assert sops.by_layer("effective_macs")[first] == 0


def test_a_dnn_is_trained_on_their_mean_and_its_spiking_network_on_them(tmp_path):
    root = write(tmp_path)
    module, trainer = Classifier(dnn(), lambda weights: torch.optim.Adam(weights, 0.02)), None
    data = dict(shape=SHAPE, timesteps=6, batch_size=6)
    _, trainer = fit_on(module, EventFiles(root, time_dim=None, **data), max_epochs=8)
    trainer.save_checkpoint(tmp_path / "dnn.ckpt")
    assert trainer.callback_metrics["val/accuracy"] == 1
    spiking = SpikingClassifier(dnn(), str(tmp_path / "dnn.ckpt"), timesteps=6, time_dim=0)
    _, trainer = fit_on(spiking, EventFiles(root, **data), max_epochs=1)
    results = trainer.test(spiking, EventFiles(root, **data), verbose=False)[0]
    assert results["test/accuracy"] == 1
    assert results["test/sops"] > 60 * 4  # those of the first layer, too


def test_a_network_of_ones_own_is_trained_on_them(tmp_path):
    data = EventFiles(write(tmp_path), SHAPE, timesteps=6, batch_size=6)
    torch.manual_seed(0)
    module = Classifier(Loop(), lambda weights: torch.optim.Adam(weights, 0.02))
    _, trainer = fit_on(module, data, max_epochs=8)
    assert trainer.test(module, data, verbose=False)[0]["test/accuracy"] == 1


@pytest.mark.filterwarnings("ignore:.*takes the whole numbers.*")
def test_what_is_logged_is_per_recording_where_time_comes_first(tmp_path):
    data = EventFiles(write(tmp_path), SHAPE, timesteps=5, batch_size=6)  # of 8 for testing
    torch.manual_seed(0)
    network, frames, labels = Loop(), *zip(*everything(data.test_dataloader()), strict=True)
    frames, labels = torch.stack(frames, 1), torch.stack(labels)
    with torch.no_grad(), SynapticOperations(network, batch_dim=1, input_events=True) as sops:
        scores = network(frames)
    trainer = Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
    found = trainer.test(SpikingClassifier(network), data, verbose=False)[0]
    assert found["test/sops"] == pytest.approx(sops.compute().item())
    assert found["test/loss"] == pytest.approx(nn.functional.cross_entropy(scores, labels).item())
    assert found["test/accuracy"] == pytest.approx((scores.argmax(1) == labels).float().mean().item())


def fit_on(module, data, **options):
    module.net = module.network  # as the helper knows it
    return fit(module, data=data, **options)


# tonic.


def test_without_tonic_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tonic", None)
    with pytest.raises(ModuleNotFoundError, match=r'TonicEvents needs tonic.*pip install "snnreg_plugins\[events\]"'):
        TonicEvents("NMNIST").prepare_data()
    with pytest.raises(ValueError, match="`dataset`"):
        TonicEvents(3)


@pytest.fixture
def tonic():
    return pytest.importorskip("tonic")


def write_shd(root, train=12, test=4):
    """Spiking Heidelberg Digits as they are stored: times in s, and channels of 700."""
    h5py = pytest.importorskip("h5py")
    folder = root / "SHD"
    folder.mkdir(parents=True)
    written = {}
    for part, count in (("train", train), ("test", test)):
        (folder / f"shd_{part}.h5.zip").write_bytes(b"")
        times = [np.sort(np.random.default_rng(n).random(30 + n)).astype(np.float16) for n in range(count)]
        units = [np.random.default_rng(n).integers(700, size=30 + n).astype(np.uint16) for n in range(count)]
        with h5py.File(folder / f"shd_{part}.h5", "w") as file:
            for name, values, kind in (("times", times, np.float16), ("units", units, np.uint16)):
                stored = file.create_dataset(f"spikes/{name}", (count,), h5py.vlen_dtype(kind))
                for index, value in enumerate(values):
                    stored[index] = value
            file["labels"] = np.arange(count) % 4
            file["extra/keys"] = np.arange(4)
            file["extra/speaker"] = np.zeros(count)
        written[part] = times, units
    return written


def test_spiking_heidelberg_digits(tonic, tmp_path):
    times, units = write_shd(tmp_path)["test"]
    data = TonicEvents("SHD", str(tmp_path), download=False, timesteps=8, batch_size=4, downsample=7)
    frames, labels = next(iter(data.test_dataloader()))
    assert frames.shape == (8, 4, 1, 100)
    assert labels.tolist() == [0, 1, 2, 3]
    assert frames.sum((0, 2, 3)).tolist() == [30, 31, 32, 33]
    for index in range(4):
        # tonic gives whole microseconds
        t = (times[index].astype(np.float64) * 1e6).astype(int)
        expected = torch.zeros(8, 1, 100)
        for time, unit in zip(t.tolist(), units[index].tolist(), strict=True):
            expected[min(8 * (time - min(t)) // (max(t) - min(t)), 7), 0, unit // 7] += 1
        assert torch.equal(frames[:, index], expected)
    data.setup("fit")
    assert (len(data.train_dataloader().dataset), len(data.val_dataloader().dataset)) == (11, 1)


def test_n_mnist(tonic, tmp_path, monkeypatch):
    """Its files have five bytes an event: x, y, and 23 bits of time behind the polarity."""
    monkeypatch.setattr(tonic.datasets.NMNIST, "_check_exists", lambda self: True)
    for part, count in (("Train", 5), ("Test", 2)):
        for label in range(3):
            folder = tmp_path / "NMNIST" / part / str(label)
            folder.mkdir(parents=True)
            for number in range(count):
                events = recording(50, lasts=300_000, seed=number + 10 * label, shape=(2, 34, 34))
                coded = [
                    (e["x"], e["y"], int(e["p"]) << 7 | int(e["t"]) >> 16, int(e["t"]) >> 8 & 255, int(e["t"]) & 255)
                    for e in events
                ]
                (folder / f"{number}.bin").write_bytes(bytes(int(byte) for event in coded for byte in event))
    data = TonicEvents("NMNIST", str(tmp_path), timesteps=5, batch_size=6)
    frames, labels = next(iter(data.test_dataloader()))
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(frames[:, 3], counted(recording(50, 300_000, 11, (2, 34, 34)), (2, 34, 34), 5, None))
    only = TonicEvents("NMNIST", str(tmp_path), timesteps=5, batch_size=6, options=dict(first_saccade_only=True))
    assert next(iter(only.test_dataloader()))[0].sum() < frames.sum()


def test_data_sets_of_ones_own_and_without_a_test_set(tonic, tmp_path):
    class Own(tonic.dataset.Dataset):
        sensor_size, dtype = (5, 6, 2), np.dtype(KIND)

        def __init__(self, save_to):
            super().__init__(save_to)
            self.targets = ["b", "a"] * 10

        def __getitem__(self, index):
            return recording(seed=index), self.targets[index]

        def __len__(self):
            return 20

    data = TonicEvents(Own, str(tmp_path), timesteps=3, test_share=0.2, validation_share=0.25)
    data.prepare_data()
    parts = [everything(it) for it in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())]
    assert [len(part) for part in parts] == [12, 4, 4]
    assert [[int(label) for _, label in part].count(0) for part in parts] == [6, 2, 2]
    assert len({tuple(frames.flatten().tolist()) for part in parts for frames, _ in part}) == 20
    Own.sensor_size = None
    with pytest.raises(ValueError, match="`shape` to be that of a frame, \\(C, H, W\\), as Own has no one size"):
        TonicEvents(Own, str(tmp_path)).setup()
    assert TonicEvents(Own, str(tmp_path), shape=SHAPE).frame_shape == SHAPE


def test_what_tonic_does_not_have(tonic, tmp_path):
    with pytest.raises(
        ValueError, match="`dataset` to name a class in tonic.datasets, one of .*'NMNIST'.*but got 'MNIST'"
    ):
        TonicEvents("MNIST", str(tmp_path)).setup()
    with pytest.raises(FileNotFoundError, match="NMNIST is not in .*, or not whole. .*download=True"):
        TonicEvents("NMNIST", str(tmp_path), download=False).setup()
