"""The recipes that come with the package, listed and copied."""

from __future__ import annotations

from pathlib import Path

import pytest

from snnreg_plugins.cli import shelf

RECIPES = Path(__file__).parents[2] / "recipes"
MAIN = "digits_lenet_expected_rate"


def test_all_are_listed_with_what_they_do(capsys):
    shelf.main([])
    said = capsys.readouterr().out.splitlines()
    for path in RECIPES.rglob("*.yaml"):
        name = path.relative_to(RECIPES).with_suffix("").as_posix()
        assert said[said.index(name) + 1].split()[:2] == path.read_text().split()[1:3]
    assert "snnreg fit --config recipes/NAME.yaml" in said[-1]


@pytest.mark.parametrize("name", [MAIN, f"{MAIN}.yaml", f"recipes/{MAIN}.yaml"])
def test_one_is_copied_and_nothing_is_written_over(name, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    shelf.main([name])
    assert Path(f"{MAIN}.yaml").read_text() == (RECIPES / f"{MAIN}.yaml").read_text()
    assert capsys.readouterr().out == f"Written: {MAIN}.yaml\n"
    Path(f"{MAIN}.yaml").write_text("mine")
    with pytest.raises(
        FileExistsError, match=r"`output` to be a new file, but .* is there\. Name another one by --out"
    ):
        shelf.main([name])
    assert Path(f"{MAIN}.yaml").read_text() == "mine"
    shelf.main([name, "--output", "other.yaml"])
    assert Path("other.yaml").read_text() == (RECIPES / f"{MAIN}.yaml").read_text()


def test_one_of_a_sweep_is_copied(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shelf.main(["recipes/sweeps/digits_lenet.yaml"])
    assert Path("digits_lenet.yaml").read_text() == (RECIPES / "sweeps" / "digits_lenet.yaml").read_text()


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="`name` to be a recipe, but got 'digits_lenet_finetun'. Did you mean `digits"):
        shelf.copy("digits_lenet_finetun")
    with pytest.raises(ValueError, match="but got 'x'. `snnreg recipes` lists them"):
        shelf.copy("x")
