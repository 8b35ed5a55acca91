"""What a spike of a coded input is worth, in the network and in the simulation that corrects it."""

from __future__ import annotations

from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from torch import nn

from snnreg_plugins import to_norse, to_snntorch
from snnreg_plugins.export.calibrate import OTHER_METHODS
from snnreg_plugins.export.input_code import CODES, CodeSettings, Inputs, code_for
from snnreg_plugins.export.options import CORRECTIONS, TRAINED, ExportOptions
from snnreg_plugins.frameworks.surrogate import SURROGATES
from snnreg_plugins.functional.draws import DISTRIBUTIONS
from snnreg_plugins.functional.fewbits import FEW_BITS

T = 6


def far_from_one():
    x = 3 * torch.randn(40, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 0
    return x


def test_the_codings_that_the_command_line_takes_are_those_there_are():
    assert list(get_args(get_type_hints(ExportOptions)["coding"])) == list(CODES)


@pytest.mark.parametrize("export", [to_snntorch, to_norse])
def test_types_of_an_export_name_the_choices_there_are(export):
    hints = get_type_hints(export)
    for name, known in {
        "threshold": {"percentile", "max", "mmse", "local", *OTHER_METHODS},
        "correction": set(CORRECTIONS),
        "coding": set(CODES),
        "surrogate": set(SURROGATES),
        "batch_norm": {"fold", "keep"},
        "train_thresholds": set(TRAINED),
        "train_beta": set(TRAINED),
        "heterogeneity": {"none", *DISTRIBUTIONS},
        "weights": {"float", *FEW_BITS},
    }.items():
        choices = [hints[name], *get_args(hints[name])]
        (named,) = [set(get_args(one)) for one in choices if get_origin(one) is Literal]
        assert named == known
        given = get_type_hints(ExportOptions)[name]
        assert any(set(get_args(one)) == known for one in (given, *get_args(given)))


@pytest.mark.parametrize("coding", ["poisson", "latency", "neurons"])
@torch.no_grad()
def test_the_first_weights_take_in_what_a_spike_is_worth(coding):
    model, x = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double(), far_from_one()
    network = to_snntorch(model, x, timesteps=T, coding=coding)
    worth = {
        "poisson": x.abs().max(),
        "latency": T * x.abs().sum() / x.count_nonzero(),
        "neurons": x.abs().max(),
    }[coding]
    torch.testing.assert_close(network.body.get_submodule("0").weight, model[0].weight * worth, rtol=1e-6, atol=0)


@pytest.mark.parametrize("coding", ["poisson", "latency", "neurons"])
@torch.no_grad()
def test_currents_of_the_simulation_are_spikes_at_their_worth(coding):
    x, steps = far_from_one(), 2000 if coding == "poisson" else T
    inputs = Inputs(float(x.abs().max()), float(x.abs().sum() / x.count_nonzero()), signed=True)
    code = code_for(coding, inputs, CodeSettings("input", steps, 1.0, 0.5, x))
    currents = torch.stack(code.currents(x))
    mean = currents.mean(0)
    if coding == "latency":  # one spike each, worth the mean input of all steps
        torch.testing.assert_close(mean, inputs.mean * x.sign())
    else:  # a rate: off by chance, or by half a spike
        error = 0.1 * inputs.largest if coding == "poisson" else 0.5 * inputs.largest / T
        assert float((mean - x).abs().max()) <= error + 1e-6
    assert set((currents.abs() / currents.abs().max()).unique().tolist()) == {0.0, 1.0}


def test_a_constant_input_is_computed_once():
    x = far_from_one()
    code = code_for("constant", Inputs(0.0, 0.0, signed=False), CodeSettings("input", T, 1.0, 0.5, x))
    assert code.module is None
    assert code.currents(x) is None
    with pytest.raises(ValueError, match="Expected inputs that are not all 0 to code by 'poisson'"):
        code_for("poisson", Inputs(0.0, 0.0, signed=False), CodeSettings("input", T, 1.0, 0.5, x))


@pytest.mark.parametrize("coding", ["poisson", "latency", "neurons"])
def test_bytes_are_refused_and_taken_as_floats(coding):
    torch.manual_seed(0)

    class Frames(nn.Sequential):
        def forward(self, x):
            return super().forward(x / 255)

    net, x = (
        Frames(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval(),
        torch.randint(256, (30, 6), dtype=torch.uint8),
    )
    with pytest.raises(ValueError, match=rf"for coding='{coding}', but got torch.uint8. Calibrate and run on `x.float"):
        to_snntorch(net, x, timesteps=4, coding=coding)
    assert to_snntorch(net, x.float(), timesteps=4, coding=coding)(x.float()).isfinite().all()
    constant = to_snntorch(net, x, timesteps=256, threshold="max", correction="none")
    assert (constant(x) - net(x)).abs().max() < 0.1 * net(x).std()
