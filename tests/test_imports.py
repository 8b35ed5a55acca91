"""Packages that are missing or broken: one sentence where they are needed, and no word where they are not."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import torch
from torch import nn

from snnreg_plugins import _pictures, from_nir, to_nir, to_norse, to_snntorch
from snnreg_plugins.data import CIFAR10, MNIST, Digits
from tests import nets

T = 2


class Broken:
    """Finds a package, which fails when it is imported."""

    def __init__(self, package, error):
        self.package, self.error = package, error

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == self.package:
            raise self.error


@pytest.fixture
def without(monkeypatch):
    """Take a package away: for good, or with the error that its import ends in."""

    def take(package, error=None):
        ours = {"norse": "snnreg_plugins.frameworks.norse"}.get(package, package)
        for name in list(sys.modules):
            if name in (package, ours) or name.startswith(f"{package}."):
                monkeypatch.delitem(sys.modules, name)
        missing = ModuleNotFoundError(f"No module named {package!r}", name=package)
        monkeypatch.setattr(sys, "meta_path", [Broken(package, error or missing), *sys.meta_path])

    return take


def mlp():
    model, _, x = nets.make("mlp")
    return model, x


def use_nir(path):
    model, x = mlp()
    to_nir(to_snntorch(model, x, timesteps=T), path / "network.nir")


#: A package, what needs it, and what is said.
USES = {
    "norse": (
        "norse", lambda path: to_norse(*mlp(), timesteps=T), "A network of Norse neurons needs norse: pip install"),
    "nir": ("nir", use_nir, r'A NIR file needs nir and h5py: pip install "snnreg_plugins\[nir\]"'),
    "h5py": ("h5py", use_nir, r'A NIR file needs nir and h5py: pip install "snnreg_plugins\[nir\]"'),
    "h5py to read": ("h5py", lambda path: from_nir(__file__), r"A NIR file needs nir and h5py: pip install"),
    "matplotlib": (
        "matplotlib", lambda path: _pictures.layers_figure({"a": 1.0}, "SOPs", "SOPs / sample"),
        r'needs matplotlib: pip install "snnreg_plugins\[plot\]"'),
    "sklearn": ("sklearn", lambda path: Digits().setup(), r'needs sklearn: pip install "snnreg_plugins\[digits\]"'),
    "torchvision": (
        "torchvision", lambda path: CIFAR10(root=str(path)).setup(),
        r'CIFAR10 needs torchvision: pip install "snnreg_plugins\[vision\]"'),
    "torchvision to download": (
        "torchvision", lambda path: MNIST(root=str(path)).prepare_data(),
        "The download failed: MNIST needs torchvision: pip install"),
}  # fmt: skip
ERRORS = [
    None,
    OSError("libfoo.so.1: cannot open shared object file"),
    RuntimeError("operator torchvision::nms does not exist"),
    ImportError("cannot import name 'x' from 'y'"),
    ModuleNotFoundError("No module named 'z'", name="z"),
    AttributeError("module 'numpy' has no attribute 'bool8'"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("use", USES)
def test_a_package_that_is_missing_or_broken(use, error, without, tmp_path):
    package, run, message = USES[use]
    without(package, error)
    with pytest.raises((ModuleNotFoundError, FileNotFoundError), match=message) as caught:
        run(tmp_path)
    said = str(caught.value)
    assert ("as what is installed cannot be imported" in said) == (error is not None)
    assert error is None or str(error) in said
    assert not list(tmp_path.glob("*.nir"))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_nobody_else_needs_norse(error, without):
    without("norse", error)
    model, x = mlp()
    assert to_snntorch(model, x, timesteps=T)(x).shape == (len(x), 3)


def test_all_names_are_there_without_what_is_optional():
    # torchmetrics imports matplotlib and torchvision where they are installed, whether they work or not.
    code = (
        "import sys\n"
        "for name in ('norse', 'nir', 'h5py', 'sklearn', 'numba', 'neurobench'):\n"
        "    sys.modules[name] = None\n"
        "from snnreg_plugins import *\n"
        "from snnreg_plugins.export import *\nfrom snnreg_plugins.functional import *\n"
        "from snnreg_plugins.data import *\nfrom snnreg_plugins.modules import *\n"
        "from snnreg_plugins.callbacks import *\nfrom snnreg_plugins.profile import *\n"
        "print(to_norse.__name__, from_nir.__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "to_norse from_nir"


def test_a_package_is_found_when_it_is_there_again(without, monkeypatch):
    with monkeypatch.context():
        without("norse")
        with pytest.raises(ModuleNotFoundError):
            to_norse(*mlp(), timesteps=T)
    monkeypatch.undo()
    importlib.invalidate_caches()
    model, x = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)), torch.rand(9, 2)
    assert to_norse(model, x, timesteps=T)(x).shape == (9, 2)
