import gzip
import math
import re
import sys
import threading
import tracemalloc
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from snnreg_plugins.data import MNIST, FashionMNIST
from snnreg_plugins.data.idx import read_idx

NAMES = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
]
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def idx(tensor):
    sizes = b"".join(size.to_bytes(4, "big") for size in tensor.shape)
    return bytes([0, 0, 8, tensor.ndim]) + sizes + bytes(tensor.flatten().tolist())


def contents(train=30, test=20):
    """Four tensors as the four files hold them."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randint(256, (count, 28, 28), generator=generator) if "images" in name else torch.arange(count) % 10
        for name, count in zip(NAMES, [train, train, test, test], strict=True)
    }


def write(folder, zipped=False, **options):
    folder.mkdir(parents=True, exist_ok=True)
    tensors = contents(**options)
    for name, tensor in tensors.items():
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(tensor)))
        else:
            (folder / name).write_bytes(idx(tensor))
    return tensors


@pytest.fixture(autouse=True)
def _no_system_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(FashionMNIST, "_system_folder", tmp_path / "system")


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("shape", [(5,), (1,), (2, 3, 4)])
def test_read_idx_gives_back_what_was_written(tmp_path, shape, zipped):
    tensor = torch.arange(math.prod(shape)).reshape(shape) + 200
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(idx(tensor)) if zipped else idx(tensor))
    result = read_idx(path, dimensions=len(shape))
    assert result.dtype == torch.uint8
    assert torch.equal(result.long(), tensor)


GOOD = idx(torch.arange(24).reshape(2, 3, 4))
ZIPPED = gzip.compress(GOOD, mtime=0)  # processes that share the tests must collect the same


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "starts with 00 00 08 03, but it starts with nothing"),
        (b"<htm" + GOOD[4:], "but it starts with 3c 68 74 6d"),
        (b"\x00\x00\x0d\x03" + GOOD[4:], "but it starts with 00 00 0d 03"),
        (idx(torch.arange(24)), "in 3 dimension.* but it starts with 00 00 08 01"),
        (GOOD[:10], "header of 16 bytes, but it holds 10 bytes"),
        (GOOD[:-1], r"24 bytes after its header, as its shape \(2, 3, 4\) says, but got 23 bytes"),
        (GOOD + b"\x00", "24 bytes after its header, .* but got more than 24 bytes"),
        (idx(torch.zeros(0, 28, 28)), "at least one element"),
        (GOOD[:4] + b"\xff" * 12, "at most 268,435,456 bytes, but its shape is"),
        (ZIPPED[:-9], "whole gzip file"),
        (ZIPPED[:-8] + b"\x00" * 8, "whole gzip file.*CRC"),
        (ZIPPED[:12] + b"\xff" * 6 + ZIPPED[18:], "whole gzip file"),
        (gzip.compress(GOOD[:-1], mtime=0), "24 bytes after its header, .* but got 23 bytes"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, data, message):
    path = tmp_path / "broken-idx3-ubyte"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(path, dimensions=3)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("begins", [GOOD, b""], ids=["what should be there", "nothing"])
def test_a_small_file_does_not_grow(tmp_path, begins):
    path = tmp_path / "small-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(begins + bytes(1 << 26), mtime=0))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="but got more than 24 bytes|but it starts with 00 00 00 00"):
            read_idx(path, dimensions=3)
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("data_class", [MNIST, FashionMNIST])
@pytest.mark.parametrize("inner", ["", "{name}/raw"])
def test_files_are_read_from_root_or_torchvisions_folder(tmp_path, data_class, inner, zipped):
    written = write(tmp_path / inner.format(name=data_class.__name__), zipped)
    data = data_class(root=str(tmp_path), download=False, validation_size=10, batch_size=8)
    data.prepare_data()
    data.setup("fit")
    assert sum(len(labels) for _, labels in data.train_dataloader()) == 20
    assert sum(len(labels) for _, labels in data.val_dataloader()) == 10
    images, labels = next(iter(data.test_dataloader()))
    assert images.shape == (8, *data.image_shape)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    torch.testing.assert_close(images[:, 0], written[NAMES[2]][:8].float() / 255)
    assert torch.equal(labels, written[NAMES[3]][:8])


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (NAMES[0], torch.zeros(29, 28, 28), "{1} holds 30 labels and {0} 29 images"),
        (NAMES[0], torch.zeros(30, 28, 27), r"{0} to hold images of \(28, 28\) pixels, but got \(28, 27\)"),
        (NAMES[1], torch.zeros(31), "{1} holds 31 labels and {0} 30 images"),
        (NAMES[1], torch.full((30,), 10), "{1} to hold labels from 0 to 9, but got 10"),
    ],
)
def test_files_that_do_not_fit_are_refused_by_name(tmp_path, name, tensor, message):
    write(tmp_path)
    (tmp_path / name).write_bytes(idx(tensor.long()))
    paths = [re.escape(str(tmp_path / file)) for file in NAMES]
    with pytest.raises(ValueError, match=message.format(*paths)):
        MNIST(root=str(tmp_path), download=False, validation_size=10).setup("fit")


@pytest.mark.parametrize("data_class", [MNIST, FashionMNIST])
def test_missing_data_is_reported_with_every_folder_and_every_way_to_get_it(tmp_path, data_class):
    data = data_class(root=str(tmp_path / "nowhere"), download=False)
    data.prepare_data()
    with pytest.raises(FileNotFoundError) as caught:
        data.setup("fit")
    message = str(caught.value)
    folders = [tmp_path / "nowhere", tmp_path / "nowhere" / data_class.__name__ / "raw"]
    for part in [*map(str, folders), *NAMES, "download=True", 'pip install "snnreg_plugins[vision]"']:
        assert part in message
    is_fashion = data_class is FashionMNIST
    assert ("apt-get install dataset-fashion-mnist" in message) == is_fashion
    assert (str(tmp_path / "system") in message) == is_fashion
    assert not (tmp_path / "nowhere").exists()


def test_an_incomplete_folder_is_reported_with_what_it_lacks(tmp_path):
    write(tmp_path / "data")
    write(tmp_path / "system")
    (tmp_path / "data" / NAMES[3]).unlink()
    # Not even the system's complete folder may stand in for what the user put there.
    with pytest.raises(FileNotFoundError, match=f"{re.escape(str(tmp_path / 'data'))} lacks {NAMES[3]}\n"):
        FashionMNIST(root=str(tmp_path / "data"), download=False).setup("test")


def test_the_systems_folder_serves_when_the_user_has_no_files(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)  # nothing to download with
    system = write(tmp_path / "system", zipped=True)
    data = FashionMNIST(root=str(tmp_path / "data"))
    data.prepare_data()
    images, _ = next(iter(data.test_dataloader()))
    torch.testing.assert_close(images[:, 0], system[NAMES[2]].float() / 255)

    own = write(tmp_path / "data", test=7)
    images, _ = next(iter(FashionMNIST(root=str(tmp_path / "data")).test_dataloader()))
    torch.testing.assert_close(images[:, 0], own[NAMES[2]].float() / 255)


def test_without_torchvision_nothing_can_be_downloaded(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(FileNotFoundError, match=r"(?s)snnreg_plugins\[vision\].*download failed: .*torchvision"):
        MNIST(root=str(tmp_path)).prepare_data()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on this machine that serves a folder: (address, folder)."""
    folder = tmp_path / "server"
    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder)) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}/", folder
        httpd.shutdown()
        thread.join()


@pytest.mark.parametrize("data_class", [MNIST, FashionMNIST])
def test_missing_files_are_downloaded_by_torchvision(tmp_path, monkeypatch, server, data_class):
    datasets = pytest.importorskip("torchvision.datasets")
    address, folder = server
    served = write(folder, zipped=True)
    torchvision_class = getattr(datasets, data_class.__name__)
    monkeypatch.setattr(torchvision_class, "mirrors", [address])
    monkeypatch.setattr(torchvision_class, "resources", [(f"{name}.gz", None) for name in NAMES])

    root = tmp_path / "data"
    data_class(root=str(root), download=False).prepare_data()
    assert not root.exists()
    data = data_class(root=str(root), validation_size=10)
    data.prepare_data()
    images, _ = next(iter(data.test_dataloader()))
    torch.testing.assert_close(images[:, 0], served[NAMES[2]].float() / 255)

    monkeypatch.setattr(torchvision_class, "mirrors", [])  # what is there is not downloaded again
    data_class(root=str(root)).prepare_data()


def test_a_failed_download_is_one_clear_error(tmp_path, monkeypatch):
    datasets = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(datasets.MNIST, "mirrors", [(tmp_path / "no server").as_uri() + "/"])
    with pytest.raises(FileNotFoundError, match=r"(?s)MNIST needs four IDX files.*The download failed: ") as caught:
        MNIST(root=str(tmp_path / "data")).prepare_data()
    assert str(tmp_path / "data") in str(caught.value)


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_debians_fashion_mnist(tmp_path, monkeypatch):
    monkeypatch.setattr(FashionMNIST, "_system_folder", DEBIAN)
    data = FashionMNIST(root=str(tmp_path), batch_size=10_000)
    data.prepare_data()
    images, labels = next(iter(data.test_dataloader()))
    assert labels.bincount().tolist() == [1000] * 10
    assert labels[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    # 0.2868 is the published mean grey level of the test set.
    assert images.mean().item() == pytest.approx(0.2868, abs=5e-5)
    assert not list(tmp_path.iterdir())
