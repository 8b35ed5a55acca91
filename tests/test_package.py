"""The package as a whole: light to import, layered, and all of its rooms on the map."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import snnreg_plugins

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "snnreg_plugins"

# Rooms by floor, from the ground up: a room may import those of the floors below it.
FLOORS = [
    {"_text", "_checks", "_imports", "_torch", "_lightning"},
    {"_console", "_files", "_batches", "_models"},
    {"_weights"},
    {"_pictures", "functional", "data"},
    {"frameworks"},
    {"watching", "neurons"},
    {"metrics", "spiking"},
    {"export"},
    {"nir", "training"},
    {"reports"},
    {"modules", "callbacks"},
    {"profile", "neurobench", "sweeps"},
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
    for name in snnreg_plugins.__all__:
        assert getattr(snnreg_plugins, name).__doc__
    assert dir(snnreg_plugins) == sorted([*snnreg_plugins.__all__, "__version__"])
    assert callable(snnreg_plugins.profile)
    assert snnreg_plugins.profile.profile
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = snnreg_plugins.no_such_name


def test_tools_that_read_code_know_every_public_name():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    known = {alias.asname: node.module for node in block.body for alias in node.names}
    assert known == {name: f"snnreg_plugins.{home}" for name, home in snnreg_plugins._HOMES.items()}


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


FILES = {str(file.relative_to(PACKAGE)): ast.parse(file.read_text()) for file in sorted(PACKAGE.rglob("*.py"))}
LINES = {name: len((PACKAGE / name).read_text().splitlines()) for name in FILES}


def imported_files(tree):
    """Files of the package that are imported while a file is imported itself."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("snnreg_plugins"):
            home = "/".join(node.module.split(".")[1:])
            for alias in node.names:
                for found in (f"{home}/{alias.name}.py", f"{home}/__init__.py", f"{home}.py"):
                    if found.removeprefix("/") in FILES:
                        yield found.removeprefix("/")
                        break


def test_no_file_imports_itself_in_a_circle():
    graph = {name: set(imported_files(tree)) for name, tree in FILES.items()}
    assert len(graph["callbacks/activity_regularization.py"]) > 4  # or the graph says nothing
    while leaves := {name for name, imported in graph.items() if not imported}:
        graph = {name: imported - leaves for name, imported in graph.items() if name not in leaves}
    assert not graph


def test_no_file_is_long_and_no_room_holds_more_than_a_fifth():
    assert {name for name, lines in LINES.items() if lines > 450} == set()
    rooms: dict[str, int] = {}
    for name, lines in LINES.items():
        rooms[name.split("/")[0]] = rooms.get(name.split("/")[0], 0) + lines
    assert max(rooms.values()) <= sum(rooms.values()) / 5


DOORS = {"_torch.py", "_lightning.py"}
# Of Python; of Lightning and torchmetrics for who inherits from them, as their documentation says.
OFFERED = {"_fields", "_replace", "_asdict", "_getframe", "_generate_state_key", "_plot"}
OTHERS = {"torch", "lightning", "torchmetrics", "jsonargparse", "snntorch", "norse", "nir", "h5py"}


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def own_private_names():
    """Private names that the package itself defines: of functions, methods, classes, attributes and files."""
    for name, tree in FILES.items():
        yield Path(name).stem
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                yield node.name
            elif isinstance(node, (ast.Attribute, ast.Name)) and isinstance(node.ctx, ast.Store):
                yield node.attr if isinstance(node, ast.Attribute) else node.id


def test_what_others_do_not_offer_in_public_is_behind_one_door():
    own = set(own_private_names()) | OFFERED
    found: dict[str, set[str]] = {}
    for name, tree in FILES.items():
        used = found.setdefault(name, set())
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and is_private(node.attr):
                # Of anything, by a name that is not ours; of a module of others, by any.
                if node.attr not in own or ast.unparse(node).split(".")[0] in OTHERS:
                    used.add(ast.unparse(node))
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OTHERS:
                parts = [*node.module.split("."), *(alias.name for alias in node.names)]
                used |= {f"{node.module}: {part}" for part in parts if is_private(part)}
            elif isinstance(node, ast.Import):
                used |= {alias.name for alias in node.names if any(is_private(part) for part in alias.name.split("."))}
    assert not {name: used for name, used in found.items() if used and name not in DOORS}


def test_functional_imports_torch_only():
    for file in (PACKAGE / "functional").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                root = name.split(".")[0]
                assert root in {"torch", "snnreg_plugins"} | set(sys.stdlib_module_names), (file, name)


def test_contributing_names_every_room_and_what_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for room in set().union(*FLOORS) - {"__main__"}:
        assert f"`{room}`" in text or f"`{room}/`" in text
    for name in re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.[a-z]+)`", text):
        assert (PACKAGE / name).exists() or (ROOT / name).exists(), name
