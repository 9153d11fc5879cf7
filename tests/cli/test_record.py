"""Reports hold the command that made them, as a shell would run it again."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

from clipmlu.backends.provenance import Command
from clipmlu.bundle.directory import CompiledBundle
from clipmlu.cli import main


def test_a_report_holds_the_words_and_the_variables_of_its_command(
    compiled: CompiledBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(compiled.path, "my bundle")
    monkeypatch.setenv("CLIPMLU_WORKERS", "1")
    monkeypatch.setenv("CLIPMLU_THREADS", "9")  # the option wins
    words = ["eval", "my bundle", "--dataset", "demo", "--samples", "3", "--threads", "1", "--output", "a.json"]
    assert main(words) == 0
    command = json.loads(Path("a.json").read_text())["command"]
    assert command == {"arguments": ["clipmlu", *words], "environment": {"CLIPMLU_WORKERS": "1"}}
    text = str(Command(**command))
    assert text.startswith("CLIPMLU_WORKERS=1 clipmlu eval 'my bundle' --dataset demo ")
    assert shlex.split(text) == ["CLIPMLU_WORKERS=1", "clipmlu", *words]
