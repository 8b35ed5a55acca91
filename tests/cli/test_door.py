"""Which subcommand is meant: those that need no Lightning do without, and all are listed."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from snnreg_plugins import __version__, cli
from snnreg_plugins.cli.commands import CLI
from snnreg_plugins.cli.subcommands import OTHERS, TRAINING, Subcommand


@pytest.fixture
def told(monkeypatch, capsys):
    """What a command line prints."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["snnreg", *words])
        cli.main()
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("words", [(), ("-h",), ("--help",)])
def test_the_usage_lists_all_subcommands(words, told):
    said = told(*words)
    listed = [line.split()[0] for line in said.splitlines() if line.startswith("  ")]
    assert listed[:-2] == [*TRAINING, *OTHERS]
    assert all(len(line) <= 80 for line in said.splitlines())


def test_lightnings_subcommands_are_those_that_are_listed():
    assert list(CLI.subcommands()) == list(TRAINING)


def test_the_version_is_told_with_those_that_matter(told):
    said = told("--version")
    assert said.startswith(f"snnreg_plugins {__version__} (Python 3")
    assert f"torch {sys.modules['torch'].__version__.partition('+')[0]}" in said


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("reprot", "no subcommand 'reprot'. Did you mean `report`? There are fit, validate, "),
        ("train", "no subcommand 'train'. There are fit, validate, "),
        ("recipes/x.yaml", "no subcommand 'recipes/x.yaml'. There are fit, "),
    ],
)
def test_another_word_is_refused_in_a_line(word, message, told):
    with pytest.raises(SystemExit) as stop:
        told(word)
    assert message in stop.value.code
    assert "\n" not in stop.value.code


def test_a_subcommand_gets_the_words_behind_its_name(told, monkeypatch):
    monkeypatch.setitem(OTHERS, "say", Subcommand("say it", f"{__name__}:say"))
    assert told("say", "a", "--b") == "['a', '--b']\n"
    assert "  say        say it\n" in told("--help")


def test_what_an_output_has_no_sign_for_does_not_end_a_command(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr(sys, "argv", ["snnreg", "say", "\u2022"])
    monkeypatch.setitem(OTHERS, "say", Subcommand("say it", f"{__name__}:say"))
    cli.main()
    sys.stdout.flush()
    assert written.getvalue() == b"['?']\n"


def say(words):
    print(words)


HEAVY = {"torch", "lightning", "torchmetrics", "snntorch"}


@pytest.mark.parametrize(
    ("words", "without"),
    [
        *((f"{name} --help", HEAVY) for name in ("profile", "report", "compare", "front")),
        *((words, HEAVY) for words in ("--help", "--version", "recipes")),
        ("sweep --help", HEAVY - {"torch"}),
    ],
)
def test_nothing_heavy_is_imported_for_what_does_without(words, without):
    code = (
        "import sys; sys.argv = ['snnreg', *sys.argv[1:]]\n"
        "from snnreg_plugins.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        f"print({without} & {{name.partition('.')[0] for name in sys.modules}})"
    )
    done = subprocess.run([sys.executable, "-c", code, *words.split()], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
