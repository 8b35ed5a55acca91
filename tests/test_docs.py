"""What README and the pages of docs/ say is so: their code runs, their commands and links lead somewhere."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from snnreg_plugins.cli.subcommands import OTHERS, TRAINING
from snnreg_plugins.functional.cost_models import COST_MODELS

ROOT = Path(__file__).parents[1]
PAGES = {file.name: file for file in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
# They train or try much; CI runs them.
SLOW = {"choosing.md", "coming-from.md", "fine-tuning.md", "start.md", "training.md"}


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page].read_text(), re.DOTALL | re.MULTILINE)


def pages_with(language):
    return [
        pytest.param(page, marks=[pytest.mark.slow] if page in SLOW else []) for page in PAGES if blocks(page, language)
    ]


@pytest.mark.parametrize("page", pages_with("python"))
def test_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), namespace)


def test_pages_have_code():
    assert len(pages_with("python")) >= 12
    assert set(PAGES) >= SLOW


def calls(page):
    """Commands of ours on a page."""
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    return [part.strip() for line in lines for part in line.split("&&") if "snnreg " in part]


@pytest.mark.parametrize("call", sorted({call for page in PAGES for call in calls(page)}))
def test_commands_exist(call, tmp_path, monkeypatch):
    from snnreg_plugins import cli

    monkeypatch.chdir(tmp_path)
    words = shlex.split(call, comments=True)
    monkeypatch.setattr(sys, "argv", ["snnreg", *words[1:], "--print_config"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code, call


@pytest.mark.parametrize("page", PAGES)
def test_links_to_files_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", PAGES[page].read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in link:
            assert (PAGES[page].parent / link.split("#")[0]).exists(), link


def test_every_page_is_in_the_table_of_contents_and_the_readme():
    contents = (ROOT / "docs" / "index.md").read_text()
    readme = PAGES["README.md"].read_text()
    for page in set(PAGES) - {"README.md", "index.md"}:
        assert re.search(rf"^{page.removesuffix('.md')}$", contents, re.MULTILINE), page
        assert f"(docs/{page})" in readme or page in {"changelog.md", "contributing.md"}, page


def test_every_recipe_is_told_of():
    text = PAGES["recipes.md"].read_text()
    for recipe in (ROOT / "recipes").glob("*.yaml"):
        name = recipe.stem
        assert f"`{name}`" in text or any(f"`{name[len(start) :]}`" in text for start in ("fashion_mnist_lenet",)), name


def test_every_subcommand_and_model_of_cost_is_told_of():
    commands, measuring = PAGES["recipes.md"].read_text(), PAGES["measuring.md"].read_text()
    for name in {**TRAINING, **OTHERS}:
        assert re.search(rf"^\| .*`(snnreg )?{name}`.* \|", commands, re.MULTILINE), name
    for name in COST_MODELS:
        assert f"`{name}`" in measuring or name.startswith("horowitz"), name


def test_ci_runs_the_readmes_test_command():
    command = next(line for block in blocks("README.md", "bash") for line in block.splitlines() if "pytest" in line)
    assert command.replace("pip install -e", "pip install -q -e") in (ROOT / ".ci" / "run").read_text()
