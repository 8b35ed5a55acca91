"""Every public entry point: what is no argument is refused by a sentence that names it, what means one is taken."""

from __future__ import annotations

import math
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import snnreg_plugins
from snnreg_plugins import (
    ActivityRegularization,
    Energy,
    ExportReport,
    QCFSActivations,
    SpikingValidation,
    SynapticOperations,
    compressed_activations,
    diagnose,
    exit_margins,
    record,
    report,
    to_norse,
    to_snntorch,
)
from snnreg_plugins.data import CIFAR10, MNIST, Digits
from snnreg_plugins.export.qcfs import QCFS
from snnreg_plugins.functional import (
    EnergyTable,
    break_even_rate,
    energy,
    fan_out,
    lemaire_energy,
    local,
    mmse,
    percentile,
    ram_access,
)
from snnreg_plugins.functional.thresholds import ActivationHistogram
from snnreg_plugins.modules import VGG, LeNet, SpikingClassifier
from snnreg_plugins.profile import profile

OURS = Path(snnreg_plugins.__file__).parent
X, Y = torch.rand(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
DNN = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def bounded(**given):
    return ActivityRegularization("rate_bounds", **({"low": 0.1} | given))


def of_energy(**given):
    return ActivityRegularization("energy", **given)


#: What is no number, whatever is asked for.
NOTHING = [
    None, True, "much", "", [4], {}, 1j, math.nan, math.inf, 10**5000, torch.ones(2), np.ones((1, 1)), nn.ReLU, b"4",
]  # fmt: skip
INTEGERS = [4, np.int64(4), np.uint8(4), torch.tensor(4), np.array(4), "4"]
NUMBERS = [0.5, np.float32(0.5), torch.tensor(0.5), "0.5", "5e-1"]
WRONG = {"integer": [*NOTHING, 2.5, -1, "4.5"], "number": [*NOTHING, -1, "-1"], "flag": [0, "false", None, np.ones(2)]}
RIGHT = {"integer": INTEGERS, "number": NUMBERS, "flag": [True, np.True_]}


@pytest.fixture(scope="module")
def network():
    return to_snntorch(DNN, X, timesteps=2)


def histogram():
    found = ActivationHistogram(1)
    found.update(X)
    return found


LAYER = nn.Linear(4, 8)
SPENT = {"timesteps": 4, "events_in": 1, "events_out": 1}
#: What takes arguments: how it is called with them (and an exported network), and what kind each is of; one after a
#: question mark may be None.
ENTRIES = {
    to_snntorch: (lambda _, **k: to_snntorch(DNN, X, **({"timesteps": 2} | k)), {
        "timesteps": "integer", "initial_potential": "number", "beta": "number", "surrogate_slope": "number?",
        "per_channel": "flag?", "compensate_leak": "flag"}),
    to_norse: (lambda _, **k: to_norse(DNN, X, **({"timesteps": 2} | k)), {"timesteps": "integer"}),
    exit_margins: (lambda net, **k: exit_margins(net, X, **k), {"agreement": "number"}),
    record: (lambda net, **k: record(net, X, Y, **k), {
        "samples": "integer", "rows": "integer", "timesteps": "integer?"}),
    diagnose: (lambda net, **k: diagnose(DNN, net, X, **k), {"limit_samples": "integer?"}),
    report: (lambda net, steps: report(DNN, net, [(X, Y)], steps=[steps]), {"steps": "integer"}),
    profile: (lambda _, **k: profile(DNN, X, **k), {"timesteps": "integer?"}),
    SynapticOperations: (lambda _, **k: SynapticOperations(DNN, **k).close(), {
        "batch_dim": "integer", "count_zero_weights": "flag"}),
    Energy: (lambda _, **k: Energy(DNN, **k).close(), {"dense": "flag", "batch_dim": "integer"}),
    compressed_activations: (lambda _, **k: compressed_activations(**k).__enter__(), {
        "min_numel": "integer", "seed": "integer?"}),
    ActivityRegularization: (lambda _, **k: ActivityRegularization(**k), {
        "strength": "number?", "start_epoch": "integer", "warmup_epochs": "integer", "momentum": "number"}),
    bounded: (lambda _, **k: bounded(**k), {"low": "number?", "high": "number?"}),
    of_energy: (lambda _, **k: of_energy(**k), {"timesteps": "integer?"}),
    QCFSActivations: (lambda _, **k: QCFSActivations(**k), {"levels": "integer", "calibration_batches": "integer"}),
    SpikingValidation: (lambda _, **k: SpikingValidation(**k), {
        "timesteps": "integer", "every_n_epochs": "integer", "limit_batches": "integer?", "figures": "flag",
        "calibration_batches": "integer", "exit_agreement": "number?", "beta": "number", "per_channel": "flag?"}),
    ExportReport: (lambda _, **k: ExportReport(**k), {
        "timesteps": "integer?", "calibration_batches": "integer", "diagnose": "flag", "html": "flag"}),
    SpikingClassifier: (lambda _, **k: SpikingClassifier(DNN, **k), {
        "truncation": "integer?", "calibration_batches": "integer", "checkpointing": "flag"}),
    LeNet: (lambda _, **k: LeNet(**k), {"num_classes": "integer"}),
    VGG: (lambda _, **k: VGG(widths=(4, "P"), **k), {
        "num_classes": "integer", "hidden": "integer", "dropout": "number"}),
    Digits: (lambda _, **k: Digits(**k), {
        "batch_size": "integer", "num_workers": "integer", "validation_size": "integer", "seed": "integer"}),
    MNIST: (lambda _, **k: MNIST(**k), {"download": "flag", "batch_size": "integer"}),
    CIFAR10: (lambda _, **k: CIFAR10(**k), {"download": "flag", "augment": "flag", "seed": "integer"}),
    QCFS: (lambda _, **k: QCFS(**k), {"levels": "integer", "threshold": "number"}),
    EnergyTable: (lambda _, **k: EnergyTable(**({"mac": 1.0, "ac": 1.0, "source": "mine"} | k)), {"ac": "number"}),
    energy: (lambda _, **k: energy(**({"sops": 1.0, "macs": 1.0} | k)), {"sops": "number", "macs": "number"}),
    break_even_rate: (lambda _, **k: break_even_rate(**({"timesteps": 4} | k)), {
        "timesteps": "integer", "density": "number"}),
    lemaire_energy: (lambda _, **k: lemaire_energy(LAYER, (4,), **(SPENT | k)), {
        "timesteps": "integer", "events_in": "number", "events_out": "number", "bits": "integer", "leaky": "flag"}),
    ram_access: (lambda _, **k: ram_access(**({"elements": 4} | k)), {"elements": "number", "bits": "integer"}),
    fan_out: (lambda _, input_shape: fan_out(LAYER, (input_shape,)), {"input_shape": "integer"}),
    percentile: (lambda _, **k: percentile(histogram(), **k), {"percent": "number", "per_channel": "flag"}),
    mmse: (lambda _, **k: mmse(histogram(), **({"timesteps": 2} | k)), {
        "timesteps": "integer", "candidates": "integer", "initial_potential": "number"}),
    local: (lambda _, **k: local(histogram(), **k), {"iterations": "integer"}),
}  # fmt: skip
ROWS = [(entry, argument) for entry, (_, arguments) in ENTRIES.items() for argument in arguments]


@pytest.mark.parametrize(("entry", "argument"), ROWS, ids=[f"{entry.__name__}-{name}" for entry, name in ROWS])
def test_an_argument(entry, argument, network):
    call, arguments = ENTRIES[entry]
    kind = arguments[argument].removesuffix("?")
    for value in WRONG[kind]:
        if value is None and arguments[argument].endswith("?"):
            continue
        if isinstance(value, torch.Tensor) and value.dim() and entry is energy:
            continue  # of many samples
        with pytest.raises((ValueError, TypeError)) as caught:
            call(network, **{argument: value})
        last = traceback.extract_tb(caught.tb)[-1]
        assert f"Expected argument `{argument}` to be" in str(caught.value)
        assert OURS in Path(last.filename).parents
        assert len(str(caught.value)) < 400
    if entry not in (to_snntorch, to_norse, profile):  # which would be run
        for value in RIGHT[kind]:
            call(network, **{argument: value})
