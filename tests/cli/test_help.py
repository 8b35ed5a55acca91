"""What ``--help`` shows first, and which values options have by themselves."""

from __future__ import annotations

import sys

import pytest

from snnreg_plugins import cli


def test_the_help_of_an_export_begins_with_its_own_options(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["snnreg", "export", "--help"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("usage: snnreg export --config RECIPE --ckpt_path FILE [options]")
    own, others = said.split("Lightning's Trainer, which also exports:")
    assert "--ckpt_path CKPT_PATH" in own
    assert "How thresholds are chosen from activations; percentile if not given." in own
    assert "Whether to make up for a beta below 1; true if not given." in own
    assert "--auto_tolerance" in own
    assert "--trainer.max_epochs" in others
    assert "BinaryAccuracy" not in said  # one of hundreds of metrics
    assert "known subclasses: )" not in others
