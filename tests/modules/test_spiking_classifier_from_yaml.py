"""What a SpikingClassifier starts from, said in a recipe."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from snnreg_plugins import cli

NET = """
import snntorch
from torch import nn

class Net(nn.Sequential):
    def __init__(self, outputs: int):
        super().__init__(nn.Flatten(), nn.Linear(64, outputs), snntorch.Leaky(0.9, threshold=0.2, init_hidden=True))
"""
LENET = "{class_path: LeNet, init_args: {image_shape: [1, 8, 8], kernel_size: 3}}"
OWN = "{class_path: PopulationCode, init_args: {network: {class_path: own_net.Net, init_args: {outputs: 20}}, size: 2}}"
RECIPE = """
model: {{class_path: SpikingClassifier, init_args: {{network: {network}, {arguments}}}}}
data: {{class_path: Digits}}
trainer:
  max_epochs: 1
  limit_train_batches: 2
  limit_val_batches: 1
  accelerator: cpu
  logger: false
  callbacks:
    - {{class_path: ExportReport, init_args: {{output_dir: run, steps: [1, 3], html: false}}}}
    - {{class_path: ModelCheckpoint, init_args: {{dirpath: ., filename: snn}}}}
"""


@pytest.mark.slow
def test_recipes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("own_net.py").write_text(NET)

    def run(command, network, arguments, *words):
        Path("recipe.yaml").write_text(RECIPE.format(network=network, arguments=arguments))
        monkeypatch.setattr(sys, "argv", ["snnreg", command, "--config", "recipe.yaml", *words])
        cli.main()
        capsys.readouterr()
        return json.loads(Path("run/report.json").read_text())

    mixed = "timesteps: [1, 3], per_step_loss: true, tet_strength: 1.0e-2"
    own = run("fit", OWN, mixed)
    assert [step["timesteps"] for step in own["steps"]] == [3]
    assert run("export", OWN, mixed, "--ckpt_path=snn.ckpt", "--output_dir=run")["steps"] == own["steps"]
    Path("snn.ckpt").unlink()

    potential = "readout: potential, readout_decay: 0.9"
    lowered = run("fit", LENET, f"timesteps: {{0: 3, 1: 1}}, {potential}")
    assert (lowered["timesteps"], lowered["layers"][-1]["kind"]) == (3, "potential")
    # On from its checkpoint, where the schedule has one step; and from the file, as it is.
    later = run(
        "fit", LENET, f"timesteps: {{0: 3, 1: 1}}, {potential}", "--ckpt_path=snn.ckpt", "--trainer.max_epochs=2"
    )
    assert later["timesteps"] == 1
    with pytest.warns(UserWarning, match="was not trained"):
        again = run("fit", LENET, "checkpoint: run/spiking.pt", "--trainer.max_epochs=0")
    assert (again["timesteps"], again["dnn"], again["layers"][-1]["kind"]) == (1, None, "potential")
    assert again["steps"] == later["steps"]
