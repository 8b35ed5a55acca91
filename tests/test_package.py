"""The package as a whole: light to import, layered, and true to its README."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import snnreg_plugins

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "snnreg_plugins"

# Rooms by floor, from the ground up: a room may import those of the floors below it.
FLOORS = [
    {"_files", "_text", "_checks", "_batches", "_models", "_torch", "_lightning"},
    {"_pictures", "functional", "data"},
    {"frameworks"},
    {"watching"},
    {"metrics", "spiking"},
    {"export"},
    {"nir", "training"},
    {"reports"},
    {"modules", "callbacks"},
    {"profile", "neurobench"},
    {"cli"},
    {"__main__"},
]


def test_import_is_light():
    heavy = ("norse", "torchvision", "matplotlib", "sklearn", "snntorch", "lightning", "torchmetrics")
    code = f"import sys, snnreg_plugins; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_export_does_not_need_norse():
    code = (
        "import sys; sys.modules['norse'] = None\n"
        "import torch; from torch import nn; from snnreg_plugins import to_snntorch, SpikeRate\n"
        "torch.manual_seed(0); model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))\n"
        "network = to_snntorch(model, torch.rand(9, 2), timesteps=2)\n"
        "print(tuple(network(torch.rand(3, 2)).shape))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "(3, 2)"


def test_every_public_name_is_there():
    assert set(snnreg_plugins.__all__) == set(snnreg_plugins._HOMES)
    for name in snnreg_plugins.__all__:
        assert getattr(snnreg_plugins, name).__doc__
    assert set(snnreg_plugins.__all__) <= set(dir(snnreg_plugins))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = snnreg_plugins.no_such_name


def imported_rooms(file):
    for node in ast.walk(ast.parse(file.read_text())):
        modules = []
        if isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        for module in modules:
            parts = module.split(".")
            if parts[0] == "snnreg_plugins" and len(parts) > 1:
                yield parts[1]


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_one_way(file):
    room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room == "__init__":
        return
    level = next(index for index, floor in enumerate(FLOORS) if room in floor)
    below = set().union(*FLOORS[:level], {room})
    assert set(imported_rooms(file)) <= below


def test_functional_imports_torch_only():
    for file in (PACKAGE / "functional").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                root = name.split(".")[0]
                assert root in {"torch", "snnreg_plugins"} | set(sys.stdlib_module_names), (file, name)


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_python_snippets_of_the_readme_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    assert len(blocks("python")) >= 3
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)


def test_commands_of_the_readme_exist(tmp_path, monkeypatch):
    from snnreg_plugins import cli

    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    calls = [part.strip() for line in lines for part in line.split("&&") if "snnreg " in part]
    assert calls
    for call in calls:
        words = shlex.split(call, comments=True)
        monkeypatch.setattr(sys, "argv", ["snnreg", *words[1:], "--print_config"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code, call


def test_ci_runs_the_readmes_test_command():
    command = next(line for block in blocks("bash") for line in block.splitlines() if "pytest" in line)
    ours = (ROOT / ".ci" / "run").read_text()
    assert command.replace("pip install -e", "pip install -q -e") in ours
