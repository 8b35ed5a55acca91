"""Time series: the reader of their files, and the two data sets."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch

from snnreg_plugins.data import DigitRows, Digits, JapaneseVowels
from snnreg_plugins.data.time_series import read_ts

HEADER = "#remark: with, signs\n@problemName Vowels\n@dimensions 2\n@classLabel true a b\n@data\n"


@pytest.fixture
def written(tmp_path):
    def write(body, header=HEADER):
        path = tmp_path / "series.ts"
        path.write_text(header + body)
        return path

    return write


def test_series_of_unequal_lengths_are_padded_behind_their_end(written):
    series, labels = read_ts(written("1,2,3:4,5,6:b\n\n# a remark\n-1e-1:.5:a\n"))
    nan = torch.nan
    expected = torch.tensor([[[1.0, 4], [2, 5], [3, 6]], [[-0.1, 0.5], [nan, nan], [nan, nan]]])
    assert torch.equal(series.nan_to_num(9), expected.nan_to_num(9))
    assert (series.dtype, labels.dtype, labels.tolist()) == (torch.float32, torch.int64, [1, 0])


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("1,2:3,4:c\n", r"label of \['a', 'b'\] at the end of .*series.ts:6, but got 'c'"),
        ("1,2:3,4\n", "label"),
        ("1,2:3:a\n", r"one length in .*:6, but got \[2, 1\]"),
        ("1,2:3,4:a\n1:a\n", "Expected 2 channels in .*:7, as in the first series, but got 1"),
        ("1,?:3,4:a\n", "Expected numbers in .*:6, but could not convert string to float: '\\?'"),
        ("1,nan:3,4:a\n", "finite numbers in .*:6"),
        (":a\n", "numbers"),
        ("a\n", "channels of one length"),
        ("", "holds none"),
    ],
)
def test_damaged_files_are_refused_by_line(written, body, error):
    with pytest.raises(ValueError, match=error):
        read_ts(written(body))


def test_no_file_of_series_is_refused(written):
    with pytest.raises(ValueError, match="behind a line `@data`"):
        read_ts(written("\x89PNG\0\xff\n", header=""))


def test_small_files_that_would_fill_the_memory_are_refused(written, monkeypatch):
    monkeypatch.setattr("snnreg_plugins.data.time_series._LARGEST", 600)
    body = "1:1:a\n" * 30 + ",".join("1" * 20) + ":" + ",".join("1" * 20) + ":a\n"
    with pytest.raises(ValueError, match="600 numbers with its padding"):
        read_ts(written(body))
    with pytest.raises(ValueError, match="600 bytes"):
        read_ts(written(body * 2))


@pytest.fixture
def vowels(tmp_path):
    """A folder of files as those of JapaneseVowels, with fewer and shorter series."""
    generator = torch.Generator().manual_seed(0)
    classes = [str(number) for number in range(1, 10)]
    for part, count in (("TRAIN", 36), ("TEST", 18)):
        lines = [f"@classLabel true {' '.join(classes)}", "@data"]
        for index in range(count):
            values = torch.randn(12, 3 + index % 4, generator=generator)
            lines.append(
                ":".join([*(",".join(f"{x:.4f}" for x in row) for row in values.tolist()), classes[index % 9]])
            )
        (tmp_path / f"JapaneseVowels_{part}.ts").write_text("\n".join(lines))
    return tmp_path


def test_vowels_are_split_and_batched(vowels):
    data = JapaneseVowels(root=str(vowels), batch_size=8, validation_size=9)
    parts = [list(loader) for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())]
    assert [sum(len(y) for _, y in part) for part in parts] == [27, 9, 18]
    assert sorted(torch.cat([y for _, y in parts[1]]).tolist()) == list(range(9))
    series, labels = parts[0][0]
    assert (series.shape, series.dtype, labels.dtype) == ((8, 6, 12), torch.float32, torch.int64)
    lengths = (~series.isnan().any(2)).sum(1)
    assert set(lengths.tolist()) <= {3, 4, 5, 6}


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="JapaneseVowels_TRAIN.ts. Get it from https"):
        JapaneseVowels(root=str(tmp_path)).setup("fit")
    monkeypatch.setattr("snnreg_plugins.data.time_series.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'needs aeon: pip install "snnreg_plugins\[time-series\]"$'):
        JapaneseVowels().setup("fit")
    with pytest.raises(ValueError, match="less than the 1497 training samples of DigitRows"):
        DigitRows(validation_size=1497).setup("fit")


@pytest.mark.skipif(importlib.util.find_spec("aeon") is None, reason="aeon, which ships the data, is not installed")
def test_the_real_vowels():
    data = JapaneseVowels()
    train, test = data._load(train=True), data._load(train=False)
    assert (train[0].shape, test[0].shape) == ((270, 26, 12), (370, 29, 12))
    assert train[1].bincount().tolist() == [30] * 9
    assert test[1].bincount().tolist() == [31, 35, 88, 44, 29, 24, 40, 50, 29]
    assert "aeon" not in sys.modules


def test_rows_are_those_of_the_digits():
    pytest.importorskip("sklearn")
    (series, labels), (images, same) = (next(iter(data().test_dataloader())) for data in (DigitRows, Digits))
    assert torch.equal(series, images.squeeze(1))
    assert torch.equal(labels, same)
