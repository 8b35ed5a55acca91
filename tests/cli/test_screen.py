"""The main job as a person sees it: in terminals of several widths, and in a pipe of another encoding."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.test_cli import MOMENT

FIT = [sys.executable, "-m", "snnreg_plugins", "fit", "--config", "recipes/digits_lenet_expected_rate.yaml", *MOMENT]
EVERY = ["--callback.SpikingValidation.every_n_epochs=1"]
NOISE = re.compile(r"\b(FLOPs|Flops)\b|is not empty|Tip|http")  # EFLOPs are a model of cost


@pytest.mark.slow
@pytest.mark.parametrize("columns", [55, 80, 120])
def test_the_main_job_in_a_terminal(columns, tmp_path):
    pytest.importorskip("pyte")
    from tests.screen import screen

    code, lines = screen([*FIT, "--trainer.max_epochs=2", *EVERY], columns, tmp_path)
    assert not code
    text = " ".join(line.strip() for line in lines)
    assert "Energy is an estimate from published numbers, not a measurement" in text
    assert sum(line.startswith("Epoch 1/1") for line in lines) == 1
    assert not any(line.startswith("Epoch 0/1") for line in lines)
    (title,) = [line for line in lines if "DNN and SNN, per sample" in line]
    assert title.startswith("DNN and SNN")
    for label in ("DNN, dense", "SNN, T = 32", "network.conv1"):
        assert any(line.strip().startswith(label) for line in lines)
    assert "Written to" in text
    assert lines.index(title) > max(index for index, line in enumerate(lines) if "Epoch" in line)
    assert not [line for line in lines if NOISE.search(line)]
    # Names whole, with their numbers behind them, in short.
    for metric in (r"train/loss: \d\.\d{3}", r"val/accuracy: \d\.\d{3}", r"snn/accuracy: \d\.\d{3}", r"snn/sops: \d+k"):
        assert re.search(metric, text), metric
    assert "v_num" not in text


EXPORT = """
import sys, time, torch
from torch import nn
from snnreg_plugins import to_snntorch

def batches():
    for batch in torch.rand(6, 8, 4):
        yield batch
        time.sleep(0.4)
    {end}

print("before")
try:
    to_snntorch(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), batches(), timesteps=4)
finally:
    print("after")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("end", "last"), [("", "after"), ("raise KeyboardInterrupt", "KeyboardInterrupt")])
def test_an_export_takes_its_bar_away(end, last, tmp_path):
    pytest.importorskip("pyte")
    from tests.screen import screen

    seen = []
    _, lines = screen([sys.executable, "-c", EXPORT.format(end=end)], 55, tmp_path, seen)
    assert any(line.startswith("Calibrating, batches") for line in seen)
    assert lines[:2] == ["before", "after"]
    assert lines[-1] == last
    assert not any("Calibrating, batches" in line for line in lines if "with progress" not in line)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "gbk", "cp932"])
def test_the_main_job_in_a_pipe(encoding, tmp_path):
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(FIT, capture_output=True, cwd=tmp_path, env=environment, check=True)
    out = done.stdout.decode(encoding)
    assert "Energy is an estimate" in out
    assert "Written to runs" in out
    assert "\x1b" not in out
    assert any(line.startswith("DNN and SNN, per sample") for line in out.splitlines())
